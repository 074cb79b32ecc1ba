"""Moves charges in a process of its own, so that it can be killed at a named step: `python -m tests.support.reassigning CHUNK`."""

from __future__ import annotations

import asyncio
import sys

from services.runtime.database import open_engine
from services.runtime.processor import Processor
from services.runtime.settings import load
from services.usage import api, reassignments
from services.usage.consumer import build
from tests.support.rooms import Log


async def look_through() -> None:
    """Ticks until nothing is under way. What is published stays in the outbox."""
    engine = open_engine(load().room_database_url("usage"), application="test.reassigning", pool_size=2)
    processor = Processor(build(), engine, Log())
    tick = next(each for each in processor.room.ticks if each.name == "reassign")
    while any(each.state == "open" for each in await api.reassignments(engine)):
        await processor.tick(tick)
    await engine.dispose()


if __name__ == "__main__":
    reassignments.CHUNK = int(sys.argv[1])
    asyncio.run(look_through())
