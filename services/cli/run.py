"""`tollbook run ROOM`: one copy of a room in the foreground; any number of copies may run, on any machine."""

from __future__ import annotations

import importlib
from typing import Annotated

import typer

from services.kernel.errors import InvalidInput


def run(room: Annotated[str, typer.Argument(help="usage, balance, groups, invoices or payments")]) -> None:
    """Run one copy of a room until it is told to stop; it logs JSON lines to standard error."""
    from services.runtime.main import run as run_room
    from services.runtime.settings import ROOMS

    if room not in ROOMS:
        raise InvalidInput(f"there is no room {room!r}; the rooms are {', '.join(ROOMS)}", field="ROOM")
    run_room(importlib.import_module(f"services.{room}.consumer").build)
