"""How what runs beside a process's work is ended, and how one finds out why it does not end."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterable
from typing import Any


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel them until they have ended: a driver may answer a cancellation with an error, and its loop would go on."""
    waited = list(tasks)
    while running := [task for task in waited if not task.done()]:
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=1.0)
    await asyncio.gather(*waited, return_exceptions=True)  # so that nobody is told of errors that came while they ended


def stacks() -> str:
    """Where every task of this loop stands."""
    text = io.StringIO()
    for task in asyncio.all_tasks():
        task.print_stack(limit=8, file=text)
    return text.getvalue()
