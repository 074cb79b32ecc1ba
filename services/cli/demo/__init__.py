"""`tollbook demo`: plays on real servers, each judged against the acceptance table of its cast."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import signal
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from services.cli.asynchronous import asynchronous
from services.cli.demo import servers
from services.cli.output import console
from services.kernel.errors import TollbookError
from services.runtime import embedded


class Play(StrEnum):
    """What is played; each is a module of this name."""

    month = "month"
    recharges = "recharges"


@asynchronous
async def demo(
    play: Annotated[
        Play, typer.Option(help="a month of a real switch, or two days of recharges on a clock that is moved")
    ] = Play.month,
    data: Annotated[Path, typer.Option(help="folder of the demo's servers; emptied first")] = Path(".tollbook/demo"),
) -> None:
    """Play the demo on servers of its own; exit 1 on any difference from the expected table."""
    began = time.monotonic()
    task = asyncio.current_task()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel if task is not None else loop.stop)
    starting = asyncio.create_task(asyncio.to_thread(servers.start, data))
    stage: Any = None
    logs = data / "logs"
    differences = 1
    try:
        # All that the demo needs is imported while the servers come up.
        played = await asyncio.to_thread(importlib.import_module, f"services.cli.demo.{play}")
        narrator = await asyncio.to_thread(importlib.import_module, "services.cli.demo.narrator")
        stage = played.Stage(data, movable=play == Play.recharges)
        differences = await played.play(stage, starting, narrator.Narrator(began))
    except asyncio.CancelledError:
        console.print("interrupted")
        raise typer.Exit(1) from None
    except TollbookError:
        console.print(f"the demo stopped; the logs of servers and rooms are in {logs}", markup=False)
        raise
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, lambda: None)  # what was started is stopped, however often one asks
        with contextlib.suppress(TollbookError):
            await starting
            if stage is not None:
                await stage.close()
            await asyncio.to_thread(embedded.stop, data)
        console.print(f"everything is stopped; {time.monotonic() - began:.1f} s in all; logs in {logs}", markup=False)
    if differences:
        raise typer.Exit(1)
