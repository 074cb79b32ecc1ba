"""One measured run: rooms started and at rest, the first of them held, events loaded, then let go and timed."""

from __future__ import annotations

import asyncio
import importlib
import signal
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import asyncpg
import psutil  # type: ignore[import-untyped]

from services.runtime import embedded
from services.runtime.room import Room
from services.runtime.settings import ROOMS
from tests.bench.events import Calls
from tests.bench.kafka import preload
from tests.bench.processor_time import Used, used
from tests.bench.worlds import EVENTS_TOPIC, World

LOOK_S = 0.1
STALL_S_MAX = 60.0
START_S_MAX = 60.0
WHOLE_CHAIN = dict.fromkeys(ROOMS, 1)
NOTHING: Mapping[str, str] = {}

# Sums over about a thousand rows at most: a look costs the servers well under a millisecond.
PROGRESS = """
select (select coalesce(sum(count), 0) from usage.class_count where class = 'rated')::bigint as rated,
       exists (select from usage.outbox) as unsent,
       (select coalesce(sum(position), 0) from balance.lane where topic = 'usage.charges')::bigint as debited,
       (select coalesce(sum(charges), 0) from invoices.tally)::bigint as settled
"""


@dataclass(frozen=True)
class Run:
    """Seconds from the moment usage was let go: until all was rated and published, on invoices, off the wallets."""

    events: int
    published_s: float
    settled_s: float | None
    debited_s: float | None
    used: Used
    memory_mb: float
    """The largest of the processes of usage, at the end."""

    @property
    def published_rate(self) -> float:
        """Events a second through usage alone, its outbox sent."""
        return self.events / self.published_s

    @property
    def settled_rate(self) -> float:
        """Events a second until the last charge was accumulated on its invoice."""
        if self.settled_s is None:
            raise ValueError("invoices did not run")
        return self.events / self.settled_s


@asynccontextmanager
async def started(
    world: World, rooms: Mapping[str, int] = WHOLE_CHAIN, *, under: Mapping[str, str] = NOTHING, **variables: str
) -> AsyncIterator[None]:
    """The rooms, each in so many copies, with all their partitions assigned; they are stopped at the end.

    ``under`` names, for some rooms, the module that runs and watches them.
    """
    processes = world.processes
    processes.environment = world.environment | variables
    async with world.database.connected() as owner:  # of processes that ran here before
        await owner.execute("delete from runtime.heartbeat")
    for room, copies in rooms.items():
        for copy in range(copies):
            module = (under[room], room) if room in under else (f"services.{room}",)
            processes.start(f"{room}-{copy + 1}", *module)
    try:
        async with world.database.connected() as owner:
            for room, copies in rooms.items():
                await _assigned(world, owner, room, copies)
        yield
    finally:
        processes.stop()


async def _assigned(world: World, owner: asyncpg.Connection, room: str, copies: int) -> None:
    declared: Room = importlib.import_module(f"services.{room}.consumer").build(world.settings)
    partitions = sum(topic.partitions for source in declared.inputs for topic in source.topics)
    give_up = time.monotonic() + START_S_MAX
    while True:
        shares = [
            row["assigned"] for row in await owner.fetch("select assigned from runtime.heartbeat where room = $1", room)
        ]
        if len(shares) == copies and sum(shares) == partitions and max(shares) < 2 * min(shares) + 2:
            return
        _check_alive(world)
        if time.monotonic() > give_up:
            raise RuntimeError(
                f"{room} has {shares} of {partitions} partitions after {START_S_MAX:.0f} s; see {world.logs}"
            )
        await asyncio.sleep(LOOK_S)


async def measure(world: World, calls: Calls) -> Run:
    """Load the events while usage is held, let it go, and look until all rooms that run are through."""
    rooms: dict[str, list[int]] = {}
    for name, process in world.processes.running.items():
        rooms.setdefault(name.partition("-")[0], []).append(process.pid)
    whole = "invoices" in rooms
    servers = embedded.running(world.data).running
    async with world.database.connected() as owner:
        before = await owner.fetchrow(PROGRESS)
        with held(world, "usage"):
            await preload(world.kafka, world.prefix + EVENTS_TOPIC, calls)
            times = await used(owner, rooms, servers)
        begin = time.monotonic()
        reached: dict[str, float] = {}
        last, moved_at = None, begin
        while True:
            now = await owner.fetchrow(PROGRESS)
            at = time.monotonic() - begin
            if now["rated"] - before["rated"] >= calls.count and not now["unsent"]:
                reached.setdefault("published", at)
            for what in ("debited", "settled"):
                if whole and now[what] - before[what] >= calls.count:
                    reached.setdefault(what, at)
            if len(reached) == (3 if whole else 1):
                break
            if now != last:
                last, moved_at = now, time.monotonic()
            _check_alive(world)
            if time.monotonic() - moved_at > STALL_S_MAX:
                raise RuntimeError(f"nothing moves for {STALL_S_MAX:.0f} s at {dict(now)}; see {world.logs}")
            await asyncio.sleep(LOOK_S)
        spent = (await used(owner, rooms, servers)).since(times)
    world.loaded += calls.count
    for account_id, nano in calls.nano.items():
        world.nano[account_id] = world.nano.get(account_id, 0) + nano
    resident = max(psutil.Process(pid).memory_info().rss for pid in rooms["usage"]) / 2**20
    return Run(calls.count, reached["published"], reached.get("settled"), reached.get("debited"), spent, resident)


@contextmanager
def held(world: World, room: str | None = None) -> Iterator[None]:
    """The processes of a room, or of all, stand still inside the block."""
    chosen = [p for name, p in world.processes.running.items() if room is None or name.partition("-")[0] == room]
    for process in chosen:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in chosen:
            process.send_signal(signal.SIGCONT)


def _check_alive(world: World) -> None:
    for name, process in world.processes.running.items():
        if process.poll() is not None:
            raise RuntimeError(f"{name} ended by {process.returncode}\n{world.processes.tail(name)}")
