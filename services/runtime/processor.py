"""The one pattern: a batch of records is one transaction.

(1) lane rows locked, offsets already done dropped; (2) link seqs checked; (3) links and lanes advanced; (4) the room's effects;
(5) parked records and outbox; commit. Redelivery, crash, zombie and duplicate are all the same case: the lane row decides.
The processor knows no Kafka: a worker feeds it, tests feed it directly. Source: architecture, section 4.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from itertools import groupby, pairwise
from operator import attrgetter
from typing import TypeVar

from msgspec import DecodeError
from pydantic import ValidationError
from sqlalchemy import func, not_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from contracts.openings import opening_in
from services.kernel.errors import Corrupt
from services.runtime import faults, parking
from services.runtime.database import is_data_error, is_of_statement, is_retryable, sqlstate, transaction
from services.runtime.lanes import (
    CLOCK_NOW,
    LaneStopped,
    Moment,
    advance_lanes,
    internal_lane,
    lock_lanes,
    stop_lane,
    transaction_instant,
)
from services.runtime.links import (
    PLACE_IN_MAPPING,
    PLACE_IN_OBJECT,
    LinkLost,
    Spans,
    inapplicable,
    save_received,
    take,
    unreadable,
)
from services.runtime.metrics import Metrics
from services.runtime.outbox import Outbox, RecordTooLarge
from services.runtime.records import Record
from services.runtime.room import Input, Room, Tick
from services.runtime.tables import RuntimeTables, runtime_tables
from services.runtime.work import Surroundings, Work

log = logging.getLogger(__name__)

RETRY_S_FIRST = 0.1
RETRY_S_MAX = 5.0
TIMERS_PER_ROUND = 500
PUT_OFF_DOUBLINGS_MAX = 9  # of a second: a timer that fails and fails is tried every nine minutes
ERRANDS_AT_ONCE = 16  # calls under way in one process: they wait for other servers, not for this machine
DUE_LANE = "due"
ERRAND_LANE = "errand"

Ranges = dict[str, tuple[int, int]]
T = TypeVar("T")


class Behind(Exception):
    """The batch starts above the lane's position: records in between were never handled. Seek back and read again."""


@dataclass(frozen=True)
class Refusal:
    """Why a record is quarantined without asking the room again."""

    reason: str
    message: str


class Processor:
    """Runs a room's handlers in transactions of its schema."""

    def __init__(self, room: Room, engine: AsyncEngine, surroundings: Surroundings) -> None:
        self.room = room
        self.engine = engine
        self.surroundings = surroundings
        self.tables: RuntimeTables = runtime_tables(room.name)
        self.committed: Callable[[], None] = lambda: None
        self.metrics = Metrics()
        self._unknown_timers: set[str] = set()
        self._transacting = asyncio.Lock()  # errands queue here, not each with a connection on the row of their lane

    # ---- batches ---------------------------------------------------------------------------------------------------

    async def process(self, source: Input, records: list[Record], ranges: Ranges) -> set[str]:
        """Apply a batch, in parts where its lanes have more keys than may be together. Returns lanes stopped.

        ``ranges`` is, per lane, [first offset, next offset) of what was fetched. Comes back only when the batch
        is committed: a failure of a server is waited out, a record that cannot be applied is isolated. Raises `Behind` when the caller must seek.
        """
        stopped: set[str] = set()
        lost: list[LinkLost] = []
        wait = RETRY_S_FIRST
        while True:
            try:
                if ranges:
                    for part in _parts(source, records, ranges):
                        await self._isolate(source, *part)
                    ranges = {}
                for error in lost:
                    await self._stop(error)
                return stopped
            except LinkLost as error:  # what came before the gap is applied: the lane stands at it when it stops
                lost.append(error)
                stopped.add(error.lane)
                records, ranges = _before(error.lane, error.offset, records, ranges)
            except LaneStopped as error:
                stopped.add(error.lane)
                records, ranges = _before(error.lane, 0, records, ranges)
            except (Behind, asyncio.CancelledError):
                raise
            except Exception as error:
                level = logging.WARNING if is_retryable(error) else logging.ERROR
                log.log(
                    level,
                    "%s.%s tries a batch again: %s",
                    self.room.name,
                    source.name,
                    _describe(error),
                    exc_info=error,
                )
                await asyncio.sleep(wait)
                wait = min(RETRY_S_MAX, wait * 2)

    async def _isolate(self, source: Input, records: list[Record], ranges: Ranges) -> None:
        """Commit the batch; what only the database (or a bug) refuses is halved until the one record is found.

        That is quarantined if it is from outside; between rooms nothing may be left out, so its lane stops before it.
        """
        try:
            await self._commit(source, records, ranges)
        except (Behind, LinkLost, LaneStopped, asyncio.CancelledError):
            raise
        except Exception as error:
            if _is_of_no_record(error, bare=source.bare) or not records:
                raise
            if len(records) > 1:
                for part in split_at(records, ranges, [len(records) // 2]):
                    await self._isolate(source, *part)
                return
            log.error("%s.%s cannot apply %s", self.room.name, source.name, records[0].where, exc_info=error)
            if not source.bare:
                raise inapplicable(records[0], _describe(error)) from error
            await self._commit(source, records, ranges, _refusal(error))

    async def _commit(
        self, source: Input, records: list[Record], ranges: Ranges, refusal: Refusal | None = None
    ) -> None:
        crash = f"{self.room.name}.{source.name}"
        begun = time.monotonic()
        async with transaction(self.engine) as connection:
            locked = await lock_lanes(connection, self.tables, ranges)
            faults.step(f"{crash}.locked")
            for lane, (first, _) in ranges.items():
                if first > locked.positions[lane]:
                    raise Behind(lane)
            todo = [record for record in records if record.offset >= locked.positions[record.lane]]
            taken: Spans = {}
            skipped = 0
            if not source.bare:
                todo = _decode(source, [record for record in todo if record.value is not None])
                place = PLACE_IN_MAPPING if source.reading is None else PLACE_IN_OBJECT
                todo, taken, skipped = await take(connection, self.tables, todo, locked.moment.epoch, place)
            faults.step(f"{crash}.checked")
            # All of it or nothing is committed; before the handler, so that nothing waits for this under its locks.
            if taken:
                await save_received(connection, self.tables, {link: last for link, (_, last) in taken.items()})
            ends = {lane: end for lane, (_, end) in ranges.items() if end > locked.positions[lane]}
            if ends:
                await advance_lanes(connection, self.tables, ends)
            faults.step(f"{crash}.advanced")
            work = self._work(connection, min(ranges), locked.moment, taken)
            if refusal is not None:
                for record in todo:
                    work.quarantine(record, refusal.reason, refusal.message)
            elif todo:
                await source.handle(work, todo)
            faults.step(f"{crash}.effects")
            if work.parked and source.parked is not None:
                await source.parked(work, work.parked)
            await work.finish()
            faults.step(f"{crash}.outbox")
        faults.step(f"{crash}.committed")
        self.metrics.batch(source.name, time.monotonic() - begun, len(records))
        if skipped:
            self.metrics.undone(source.name, skipped)
            log.warning("%s.%s skipped %d records of a life that a restore undid", self.room.name, source.name, skipped)
        self._told(work)

    async def pass_markers(self, ranges: Ranges) -> None:
        """Move lanes over offsets that hold no readable record (transaction markers, aborted records)."""
        async with transaction(self.engine) as connection:
            locked = await lock_lanes(connection, self.tables, ranges)
            ends = {lane: end for lane, (first, end) in ranges.items() if first <= locked.positions[lane] < end}
            if ends:
                await advance_lanes(connection, self.tables, ends)

    async def _stop(self, error: LinkLost) -> None:
        log.critical("%s stops lane %s: %s", self.room.name, error.lane, error.message)
        async with transaction(self.engine) as connection:
            await stop_lane(connection, self.tables, error.lane, error.message)

    # ---- replay lane -----------------------------------------------------------------------------------------------

    async def replay(self) -> int:
        """Run what people asked to replay or discard, in one transaction that holds the replay lane. Returns how many."""
        try:
            return await self._replay()
        except Exception as error:
            if _is_of_no_record(error):
                raise
            log.error("%s replays one by one: %s", self.room.name, _describe(error), exc_info=error)
            return await self._replay(one_by_one=True)

    async def _replay(self, *, one_by_one: bool = False) -> int:
        async with transaction(self.engine) as connection:
            if not await internal_lane(connection, self.tables, parking.REPLAY_LANE, skip_locked=True):
                return 0
            taken = await parking.take_asked(connection, self.tables)
            if not taken:
                return 0
            moment = await transaction_instant(connection, self.tables)
            work = self._work(connection, parking.REPLAY_LANE, moment)
            faults.step(f"{self.room.name}.replay.taken")
            for source in self.room.inputs:
                mine = [(record, asked, row) for record, asked, row, name in taken if name == source.name]
                discards = [(record, row) for record, asked, row in mine if asked == "discarding"]
                replays = [record for record, asked, _ in mine if asked == "replaying"]
                for some in _split(discards, one_by_one):
                    records, rows = [record for record, _ in some], [row for _, row in some]
                    told = partial(source.discarded, work, rows) if source.discarded is not None else _nobody
                    await self._retake(work, source, records, "discarded", told, alone=one_by_one)
                for records in _split(replays, one_by_one):
                    run = partial(source.handle, work, records)
                    await self._retake(work, source, records, "replayed", run, alone=one_by_one)
            await work.finish()
            faults.step(f"{self.room.name}.replay.outbox")
        faults.step(f"{self.room.name}.replay.committed")
        self._told(work)
        return len(taken)

    async def _retake(
        self,
        work: Work,
        source: Input,
        records: list[Record],
        state: str,
        run: Callable[[], Awaitable[None]],
        *,
        alone: bool,
    ) -> None:
        """Run parked records again, or tell that they are given up; one that fails alone is parked again."""
        before = len(work.parked)
        try:
            if alone:
                async with work.attempt():
                    await run()
            else:
                await run()
        except Exception as error:
            if not alone or _is_of_no_record(error):
                raise
            refusal = _refusal(error)
            for record in records:
                work.quarantine(record, refusal.reason, refusal.message)
        again = work.parked[before:]
        for item in again:
            item.record.lane = f"{source.name}/{item.record.topic}/{item.record.partition}"
        if again and source.parked is not None:
            await source.parked(work, again)
        parked_again = {id(item.record) for item in again}
        done = [
            record.parked_id for record in records if id(record) not in parked_again and record.parked_id is not None
        ]
        if done:
            await parking.settle(work.connection, self.tables, done, state, work.now)

    # ---- ticks and timers ------------------------------------------------------------------------------------------

    async def tick(self, tick: Tick) -> bool:
        """Run a tick unless another worker is at it."""
        return await self._alone(f"tick.{tick.name}", tick.run)

    async def fire_timers(self) -> int:
        """Run the timers that are due, oldest first. Each is re-evaluated by its room, so a late or doubled one is harmless.

        A kind is a transaction of its own: its room locks wallets in one order in each, and no failure of one kind reaches
        another. Returns how many fired.
        """
        fired = 0
        unwell: Exception | None = None
        for kind, keys in (await self._due()).items():
            try:
                fired += await self._fire(kind, keys)
            except Exception as error:  # a server, or the schema: no timer's fault
                unwell = unwell or error
        if unwell is not None:
            raise unwell
        return fired

    async def _due(self) -> dict[str, list[str]]:
        """The keys that are due, by kind. A kind that this version does not know stays for one that does."""
        due = self.tables.due.c
        known = due.kind.in_(sorted(self.room.timers))
        mine = due.kind.in_(sorted({*self.room.timers, *self.room.errands}))
        oldest = (
            select(due.kind, due.key)
            .where(due.due_at <= CLOCK_NOW, known)
            .order_by(due.due_at, due.kind, due.key)
            .limit(TIMERS_PER_ROUND)
        )
        others = select(due.kind).distinct().where(due.due_at <= CLOCK_NOW, not_(mine))
        async with transaction(self.engine) as connection:
            rows = (await connection.execute(oldest)).all()
            unknown = set((await connection.execute(others)).scalars()) - self._unknown_timers
        if unknown:
            log.error("%s does not know timers of kind %s; they stay", self.room.name, ", ".join(sorted(unknown)))
            self._unknown_timers |= unknown
        kinds: dict[str, list[str]] = {}
        for kind, key in rows:
            kinds.setdefault(kind, []).append(key)
        return kinds

    async def _fire(self, kind: str, keys: list[str]) -> int:
        """All together; if they fail, one by one, and one that fails alone is put off."""
        try:
            return await self._fire_together(kind, keys)
        except Exception as error:
            if is_retryable(error) or is_of_statement(error):
                raise
            if len(keys) == 1:
                await self._put_off(kind, keys[0], error)
                return 0
            log.error("%s fires timers of %s one by one: %s", self.room.name, kind, _describe(error), exc_info=error)
        return sum([await self._fire(kind, [key]) for key in keys])

    async def _fire_together(self, kind: str, keys: list[str]) -> int:
        """One transaction. Their rows are not locked before the room locks its own: a batch sets timers while it holds
        wallets, and the other way round the two would wait for each other."""
        due = self.tables.due.c
        fired = 0

        async def run(work: Work) -> None:
            nonlocal fired
            still = select(due.key, due.due_at).where(due.kind == kind, due.key.in_(keys), due.due_at <= CLOCK_NOW)
            rows = (await work.execute(still.order_by(due.due_at, due.key))).all()
            if not rows:
                return
            await self.room.timers[kind](work, [row.key for row in rows])
            await work.timers_fired(kind, {row.key: row.due_at for row in rows})
            fired = len(rows)

        await self._alone(DUE_LANE, run)
        return fired

    async def _put_off(self, kind: str, key: str, error: Exception, *, set_to: datetime | None = None) -> None:
        """Try a failing timer again, later each time: one that is due, or one that still is as it was set."""
        log.error("%s puts timer %s of %s off: %s", self.room.name, kind, key, _describe(error), exc_info=error)
        due = self.tables.due.c
        wait_s = func.power(2, func.least(due.failures, PUT_OFF_DOUBLINGS_MAX))
        statement = (
            update(self.tables.due)
            .where(
                due.kind == kind, due.key == key, due.due_at <= CLOCK_NOW if set_to is None else due.due_at == set_to
            )
            .values(due_at=CLOCK_NOW + wait_s * timedelta(seconds=1), failures=due.failures + 1)
        )
        async with transaction(self.engine) as connection:
            await connection.execute(statement)

    # ---- errands ---------------------------------------------------------------------------------------------------

    async def run_errands(self) -> int:
        """Run errands that are due, oldest first, side by side and outside of any transaction. Returns how many."""
        claimed = await self._claim() if self.room.errands else []
        await asyncio.gather(*[self._run_errand(kind, key, lease) for kind, key, lease in claimed])
        return len(claimed)

    async def _claim(self) -> list[tuple[str, str, datetime]]:
        """(kind, key, end of the lease) of errands that are due and that no other copy has taken."""
        due = self.tables.due.c
        oldest = (
            select(due.kind, due.key)
            .where(due.due_at <= CLOCK_NOW, due.kind.in_(sorted(self.room.errands)))
            .order_by(due.due_at, due.kind, due.key)
            .limit(ERRANDS_AT_ONCE)
            .with_for_update(skip_locked=True)
        )
        claimed: list[tuple[str, str, datetime]] = []
        async with transaction(self.engine) as connection:
            for kind, key in (await connection.execute(oldest)).all():
                lease = (
                    update(self.tables.due)
                    .where(due.kind == kind, due.key == key)
                    .values(due_at=CLOCK_NOW + self.room.errands[kind].lease)
                    .returning(due.due_at)
                )
                claimed.append((kind, key, (await connection.execute(lease)).scalar_one()))
        return claimed

    async def _run_errand(self, kind: str, key: str, lease: datetime) -> None:
        try:
            await self.room.errands[kind].run(self, key)
        except Exception as error:
            await self._put_off(kind, key, error, set_to=lease)

    async def transact(self, run: Callable[[Work], Awaitable[None]], *, lane: str = ERRAND_LANE) -> None:
        """One transaction outside of any batch: how an errand, or a door of the room, writes and publishes."""
        async with self._transacting:
            await self._alone(lane, run, skip_locked=False)

    async def _alone(self, lane: str, run: Callable[[Work], Awaitable[None]], *, skip_locked: bool = True) -> bool:
        async with transaction(self.engine) as connection:
            if not await internal_lane(connection, self.tables, lane, skip_locked=skip_locked):
                return False
            work = self._work(connection, lane, await transaction_instant(connection, self.tables))
            await run(work)
            await work.finish()
            faults.step(f"{self.room.name}.{lane}.outbox")
        faults.step(f"{self.room.name}.{lane}.committed")
        self._told(work)
        return True

    # ---- small parts -----------------------------------------------------------------------------------------------

    def _outbox(self) -> Outbox:
        return Outbox(self.room.name, self.surroundings.partitions)

    def _work(self, connection: AsyncConnection, lane: str, moment: Moment, taken: Spans | None = None) -> Work:
        return Work(
            connection, self.tables, self.room.name, lane, moment.now, moment.epoch, self._outbox(), self.surroundings,
            taken or {}, version_floor=moment.version_floor,
        )  # fmt: skip

    def _told(self, work: Work) -> None:
        self.metrics.parked(work.parked)
        self.committed()
        for call in work.after_commit:
            call()


def _parts(source: Input, records: list[Record], ranges: Ranges) -> list[tuple[list[Record], Ranges]]:
    """What of a batch goes into each transaction: all of it where its lanes may be together."""
    cuts = cuts_before_lanes(records, source.max_keys) if source.max_keys is not None else []
    return split_at(records, ranges, cuts) if cuts else [(records, ranges)]


def cuts_before_lanes(records: Sequence[Record], most: int) -> list[int]:
    """Where to cut a batch so that lanes are together only as far as they have no more keys than this.

    A lane is never cut: all records of a key are in one, so every key is in one part. Most keys of a lane come again and again, and
    would be in both of its halves and cost twice.

    >>> def r(lane, key): return Record("t", 0, 0, 0, key, None, lane)
    >>> batch = [r("a", b"1"), r("a", b"2"), r("a", b"1"), r("b", b"3"), r("b", b"4"), r("c", b"5")]
    >>> cuts_before_lanes(batch, 5), cuts_before_lanes(batch, 3), cuts_before_lanes(batch, 1)
    ([], [3], [3, 5])
    """
    cuts: list[int] = []
    seen: set[bytes | None] = set()
    at = 0
    for _, lane in groupby(records, attrgetter("lane")):
        keys = [record.key for record in lane]
        if seen and len(seen.union(keys)) > most:
            cuts.append(at)
            seen = set()
        seen.update(keys)
        at += len(keys)
    return cuts


def split_at(records: list[Record], ranges: Ranges, cuts: Sequence[int]) -> list[tuple[list[Record], Ranges]]:
    """Batches that together are this one, each from one cut to the next: no offset is in two, none is left out.

    >>> def r(lane, offset): return Record("t", 0, offset, 0, None, None, lane)
    >>> batch = [r("a", 1), r("a", 3), r("a", 4), r("b", 7)]
    >>> [ranges for _, ranges in split_at(batch, {"a": (1, 6), "b": (7, 9)}, [2, 3])]
    [{'a': (1, 4)}, {'a': (4, 6)}, {'b': (7, 9)}]
    """
    parts: list[tuple[list[Record], Ranges]] = []
    ends = {lane: end for lane, (_, end) in ranges.items()}
    for begin, end in reversed([*pairwise((0, *cuts, len(records)))]):
        part = records[begin:end]
        firsts: dict[str, int] = {}
        for record in part:
            firsts.setdefault(record.lane, record.offset)
        parts.insert(0, (part, {lane: (first, ends[lane]) for lane, first in firsts.items()}))
        ends |= firsts
    begins = {lane: first for lane, (first, _) in ranges.items()}
    for _, own in parts:  # what comes before the first record of a lane is done with that
        own |= {lane: (begins.pop(lane), end) for lane, (_, end) in own.items() if lane in begins}
    parts[-1][1].update({lane: ranges[lane] for lane in begins})
    return parts


def _before(lane: str, offset: int, records: list[Record], ranges: Ranges) -> tuple[list[Record], Ranges]:
    """The batch without what stands at or above this offset of a lane. Of a lane of which nothing is left to do no record
    stays either: what was read of it is below its position, and applied.

    >>> _before("a", 4, [], {"a": (1, 6), "b": (7, 9)}), _before("a", 0, [], {"a": (1, 6), "b": (7, 9)})
    (([], {'a': (1, 4), 'b': (7, 9)}), ([], {'b': (7, 9)}))
    >>> _before("a", 4, [Record("t", 0, 3, 0, None, None, "a")], {"a": (4, 6)})
    ([], {})
    """
    ends = {name: (first, min(end, offset) if name == lane else end) for name, (first, end) in ranges.items()}
    left = {name: (first, end) for name, (first, end) in ends.items() if first < end}
    return [each for each in records if each.lane in left and (each.lane != lane or each.offset < offset)], left


def _decode(source: Input, records: list[Record]) -> list[Record]:
    """The records without openings of an epoch, which tell a room nothing: what holds stands in its own schema. Decodes what
    was not decoded at an earlier try. `LinkLost` for a record that cannot be read."""
    decoders = {name: source.decoder(name) for name in {record.topic for record in records}}
    is_whole = True
    for record in records:
        if record.message is None:
            try:
                record.message = decoders[record.topic](record.value or b"")
            except (ValidationError, DecodeError) as error:
                if opening_in(record.value or b"") is None:
                    raise unreadable(record, error) from None
                is_whole = False
    return records if is_whole else [record for record in records if record.message is not None]


def _split(items: list[T], one_by_one: bool) -> list[list[T]]:
    return [[item] for item in items] if one_by_one else [items] if items else []


async def _nobody() -> None:
    """No room wants to be told."""


def _is_of_no_record(error: BaseException, *, bare: bool = True) -> bool:
    """Whether it can be no record's fault: a server is away, the database is not migrated, or an invariant of ours does not
    hold, which no record from outside can break."""
    return is_retryable(error) or is_of_statement(error) or (bare and isinstance(error, Corrupt))


def _refusal(error: BaseException) -> Refusal:
    if isinstance(error, RecordTooLarge):
        return Refusal(error.code, error.message)
    if is_data_error(error):
        return Refusal("refused_by_store", f"the database refuses this record (SQLSTATE {sqlstate(error)})")
    return Refusal(
        "internal_error", f"this record could not be handled ({type(error).__name__}); replay it after the fix"
    )


def _describe(error: BaseException) -> str:
    code = error.code if isinstance(error, Corrupt) else sqlstate(error)
    return f"{type(error).__name__} {code}" if code else type(error).__name__
