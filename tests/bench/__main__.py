"""`python -m tests.bench`: what one machine settles, on real servers that it starts itself. Exit 1 when a sum is wrong."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import time
from pathlib import Path

from rich.console import Console

from services.runtime.settings import ROOMS
from tests.bench.parts import PARTS, Bench, profile
from tests.bench.report import show, write
from tests.bench.worlds import Worlds
from tests.support.servers import EmbeddedServers

PROFILE_EVENTS = 150_000


def arguments() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--events", type=int, default=500_000, help="preloaded for the whole chain (default 500000)")
    parser.add_argument("--only", choices=PARTS, action="append", help="measure this part only; may be given again")
    parser.add_argument("--json", type=Path, default=Path(".tollbook/bench.json"), help="where the JSON goes")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(".tollbook/bench"),
        help="folder of the servers, made anew and removed at the end",
    )
    parser.add_argument(
        "--profile", choices=ROOMS, action="append", help="sample this room instead of measuring; may be given again"
    )
    return parser.parse_args()


async def bench(asked: argparse.Namespace) -> int:
    """Start the servers, measure, report, stop."""
    console = Console(width=150 if not sys.stdout.isatty() else None)
    begin = time.monotonic()

    def tell(line: str) -> None:
        console.print(f"[dim]{time.monotonic() - begin:6.1f} s[/]  {line}", highlight=False)

    shutil.rmtree(asked.data, ignore_errors=True)
    servers = EmbeddedServers(asked.data)
    tell(f"starting the servers below {asked.data}")
    try:
        async with Worlds(servers, tell).opened() as worlds:
            if asked.profile:
                events = min(asked.events, PROFILE_EVENTS)
                problems = await profile(worlds, asked.profile, events, console)
            else:
                measured = Bench(worlds, asked.events, asked.only or PARTS, tell)
                await measured.run()
                problems = measured.problems
                show(console, measured.rows, measured.used, problems)
                write(asked.json, measured.rows, measured.used, problems, time.monotonic() - begin)
                tell(f"measured; {asked.json}")
    finally:
        await servers.close()
        shutil.rmtree(asked.data, ignore_errors=True)
    for problem in problems:
        print(f"wrong: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(bench(arguments())))
