"""`tollbook run ROOM`: one copy of a room, or the gateway, in the foreground; any number may run, on any machine."""

from __future__ import annotations

import importlib
from typing import Annotated

import typer

from services.kernel.errors import InvalidInput


def run(
    room: Annotated[str, typer.Argument(help="usage, balance, groups, invoices, payments, webhooks or gateway")],
) -> None:
    """Run one copy of a room, or the gateway, until it is told to stop; it logs JSON lines to standard error."""
    from services.runtime.main import run as run_room
    from services.runtime.settings import GATEWAY, PROCESSES

    if room not in PROCESSES:
        raise InvalidInput(f"there is no room {room!r}; what runs is {', '.join(PROCESSES)}", field="ROOM")
    if room == GATEWAY:
        importlib.import_module(f"services.{GATEWAY}.server").run()
        return
    run_room(importlib.import_module(f"services.{room}.consumer").build)
