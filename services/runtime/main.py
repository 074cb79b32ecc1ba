"""Starts a room's process: `python -m services.<room>`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

from services.kernel.errors import TollbookError
from services.runtime import logs
from services.runtime.health import serve
from services.runtime.room import Room
from services.runtime.settings import Settings, load
from services.runtime.worker import Worker


def run(build: Callable[[Settings], Room]) -> None:
    """Run a room until SIGTERM; exit 1 with a sentence when it cannot start."""
    try:
        settings = load()
        room = build(settings)
        logs.configure(room.name, settings.log_level)
        asyncio.run(_run(room, settings))
    except TollbookError as error:
        sys.exit(f"{error}")


async def _run(room: Room, settings: Settings) -> None:
    worker = Worker(room, settings)
    server = (
        await serve(settings.health_port, worker.health, worker.processor.metrics)
        if settings.health_port is not None
        else None
    )
    try:
        await worker.run()
    finally:
        if server is not None:
            server.close()
