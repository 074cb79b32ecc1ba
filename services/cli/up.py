"""`tollbook up`: everything in one terminal. Servers where none are named, migrations, every room, live status."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live
from rich.table import Table
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from services.cli.asynchronous import asynchronous
from services.cli.output import console
from services.cli.rooms import Copy, RoomProcesses, environment
from services.runtime import embedded, migrate
from services.runtime.database import open_engine, transaction
from services.runtime.settings import GATEWAY, Settings, load

LOOK_S = 1.0
SILENT_S = 10  # a process that has not said anything for this long is not shown as running


@dataclass(frozen=True)
class Beat:
    """What the copies of one room say of themselves."""

    copies: int
    loop_age_ms: int
    assigned: int
    lag: int


@asynchronous
async def up(
    movable: Annotated[
        bool, typer.Option("--movable", help="a new database gets a clock that can be moved (tests)")
    ] = False,
    copies: Annotated[int, typer.Option(min=1, max=8, help="copies of each room")] = 1,
) -> None:
    """Start everything in this terminal and show how it is; Ctrl-C stops it all."""
    settings = load()
    given = {"kafka": settings.kafka, "postgres": settings.postgres, "valkey": settings.valkey}
    names = [name for name in embedded.NAMES if given[name] is None]
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    before = {name for name, one in embedded.status(settings.data).items() if one}
    rooms = RoomProcesses(settings.data.resolve() / "logs", environment(settings.data))
    try:
        if names:
            say(f"starting {', '.join(names)} on {settings.data}")
            await asyncio.to_thread(embedded.start, settings.data, names, tell=say)
        await migrate.upgrade(
            settings.owner_database_url(), room_password=settings.room_password_text(), movable=movable
        )
        say(f"Kafka {settings.kafka_bootstrap}, Valkey {settings.valkey_url}, logs in {rooms.logs}")
        say(f"gateway on http://{settings.gateway_host}:{settings.gateway_port}")
        if not stop.is_set():
            rooms.start(copies=copies)
            rooms.start([GATEWAY])  # one: copies on one machine would each need a port
            await _watch(settings, names, rooms, stop)
    finally:
        if rooms.copies:
            say("stopping the rooms")
            await asyncio.to_thread(rooms.stop)
        ours = [name for name in names if name not in before]
        if ours:
            say(f"stopping {', '.join(ours)}")
            await asyncio.to_thread(embedded.stop, settings.data, ours)


def say(line: str) -> None:
    """One line above the status."""
    console.print(line, markup=False)


async def _watch(
    settings: Settings, servers: Iterable[embedded.Name], rooms: RoomProcesses, stop: asyncio.Event
) -> None:
    engine = open_engine(settings.room_database_url("groups"), application="tollbook.up", pool_size=1)
    shown: set[str] = set()
    ended: set[embedded.Name] = set()
    try:
        with Live(console=console, auto_refresh=False, transient=False) as live:
            while not stop.is_set():
                for copy in rooms.look():
                    say(_crash(copy))
                running = embedded.status(settings.data)
                gone = {name for name in servers if running[name] is None}
                for name in sorted(gone - ended):
                    say(_end_of_server(name, settings.data))
                ended = gone
                beats = await _beats(engine)
                if console.is_terminal:
                    live.update(_table(rooms, beats), refresh=True)
                else:
                    _tell_new(beats, shown, say)
                try:
                    await asyncio.wait_for(stop.wait(), LOOK_S)
                except TimeoutError:
                    continue
    finally:
        await engine.dispose()


async def _beats(engine: AsyncEngine) -> dict[str, Beat]:
    """The fresh heartbeats by room; none while PostgreSQL does not answer."""
    statement = text(
        "select room, count(*), max(loop_age_ms), sum(assigned), sum(lag) from runtime.heartbeat"
        " where at > now() - make_interval(secs => :silent) group by room"
    )
    try:
        async with transaction(engine) as connection:
            rows = (await connection.execute(statement, {"silent": SILENT_S})).all()
    except Exception as error:  # the driver has many names for a server that is away; the rooms go on by themselves
        say(f"PostgreSQL does not answer: {type(error).__name__}")
        return {}
    return {row[0]: Beat(int(row[1]), int(row[2]), int(row[3]), int(row[4])) for row in rows}


def _table(rooms: RoomProcesses, beats: dict[str, Beat]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", title=time.strftime("tollbook  %H:%M:%S"))
    for heading in ("room", "state", "copies", "loop age", "partitions", "lag", "crashes"):
        table.add_column(heading, justify="left" if heading in ("room", "state") else "right")
    for room in dict.fromkeys(copy.room for copy in rooms.copies):
        mine = [copy for copy in rooms.copies if copy.room == room]
        beat = beats.get(room)
        waiting = any(copy.process is None for copy in mine)
        state = "starts again" if waiting else "runs" if beat else "starts"
        numbers = (
            [str(beat.copies), f"{beat.loop_age_ms} ms", str(beat.assigned), str(beat.lag)]
            if beat
            else ["", "", "", ""]
        )
        table.add_row(room, state, *numbers, str(sum(copy.crashes for copy in mine)))
    return table


def _tell_new(beats: dict[str, Beat], shown: set[str], tell: Callable[[str], None]) -> None:
    for room, beat in beats.items():
        if room not in shown:
            shown.add(room)
            tell(f"{room} runs, {beat.assigned} partitions")


def _crash(copy: Copy) -> str:
    wait_s = (copy.starts_at or 0.0) - time.monotonic()
    return f"{copy.room} ended with code {copy.exit_code}; it starts again in {max(wait_s, 0):.1f} s; see {copy.log}"


def _end_of_server(name: str, data: Path) -> str:
    # It is not started again by itself, as a room is: what ended it, such as a full disk, is for a person to look at first.
    return f"{name} has ended; see {embedded.log_of(data, name)}, then stop this by Ctrl-C and start it again"
