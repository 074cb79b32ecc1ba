"""The room's part in closing: the cut through every usage partition, and its pass.

A cut fixes, for one boundary, the end offset of every partition while no batch can run. It passes when every lane is
beyond it and the registry's moves from before it are known. Groups with a record below it that is not settled are held,
and pass one by one. Source: designs/closing, lines 6 and 9 to 10a.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from contracts.closing import SILENT_SOURCES_MAX, Covered, LaneCount, Mark, SilentSource
from contracts.topics import CLOSING_PROGRESS, USAGE_CHARGES, USAGE_EVENTS
from services.kernel.errors import Corrupt
from services.kernel.ids import derived_id
from services.kernel.period import is_boundary, period_of
from services.runtime import faults, parking
from services.runtime.lanes import Lane as RuntimeLane
from services.runtime.lanes import give_birth, internal_lane, lanes_of, lock_parent
from services.runtime.links import has_reached, marks
from services.runtime.records import lane_name
from services.runtime.work import Work
from services.usage import reassignment_store, rerate_store, revising, store
from services.usage.memory import Memory
from services.usage.registry import REGISTRY_TOPICS, Registry
from services.usage.stamping import Cut, Lane

EVENTS = "events"
CORRECTIONS_LANE = "corrections"
_REGISTRY = frozenset(topic.name for topic in REGISTRY_TOPICS)
OFFSETS_WAIT_S = 5  # every lane is locked meanwhile
ZONES_APART = timedelta(days=1)  # more than a month of any zone ends before or after that of UTC
QUARANTINE_HOLDS = timedelta(hours=72)  # after the pass of the lanes


@dataclass(frozen=True, slots=True)
class Holder:
    """A record below a cut that keeps a group's invoice from closing, and why it is not settled."""

    parked_id: int
    group_id: str
    account_id: str
    topic: str
    partition: int
    offset: int
    event_time: datetime
    state: str
    reason: str
    field: str | None
    message: str

    @property
    def waits(self) -> bool:
        """It waits for an earlier cut, so it will run by itself."""
        return self.reason == "waiting"


def holders(registry: Registry, cut: Cut, parked: Iterable[store.Found]) -> list[Holder]:
    """The records that hold a group at a cut: below it, used before its boundary, of a group whose period ends there.

    A record whose account is not registered holds nobody. A void or an amendment holds the group of the live charge too.
    """
    found: list[Holder] = []
    for row in parked:
        if cut.is_before((row.topic, row.partition), row.offset):
            continue
        mine: dict[str, Holder] = {}
        for account_id, group_id, zone, event_time in _used_by(registry, row):
            if event_time < cut.boundary and is_boundary(cut.boundary, zone):
                mine[group_id] = Holder(
                    row.id, group_id, account_id, row.topic, row.partition, row.offset, event_time, row.state,
                    row.reason, row.field, row.message,
                )  # fmt: skip
        found += mine.values()
    return found


def _used_by(registry: Registry, row: store.Found) -> Iterator[tuple[str, str, str, datetime]]:
    """Account, group, its zone and event time of what a record tells, and of the charge that it would take back."""
    event_time = datetime.fromisoformat(row.event_time)
    account = registry.accounts.get(row.account_id)
    payer = account.payer_at(event_time) if account is not None else None
    if payer is not None:
        yield row.account_id, payer.group_id, payer.zone, event_time
    live = row.live
    if live is not None and (zone := registry.zone_of(live["group_id"])) is not None:
        yield live["account_id"], live["group_id"], zone, datetime.fromisoformat(live["event_time"])


# ---- the cut -------------------------------------------------------------------------------------------------------


async def take_cut(work: Work) -> None:
    """Tick: take the oldest cut that is asked for. The positions never change afterwards."""
    named = await store.cuts_to_take(work.connection)
    if not named:
        return
    cutoff_id: UUID = named[0].cutoff_id
    await lock_parent(work.connection, work.tables)
    async with asyncio.timeout(OFFSETS_WAIT_S):
        begins = await work.surroundings.begin_offsets(USAGE_EVENTS)
    missing = [(lane_name(EVENTS, *lane), *lane, begins[lane]) for lane in sorted(begins)]
    await give_birth(work.connection, work.tables, EVENTS, missing)
    lanes = await lanes_of(work.connection, work.tables, EVENTS, lock=True)
    await store.lock_state(work.connection)
    faults.step("usage.cut.locked")
    async with asyncio.timeout(OFFSETS_WAIT_S):
        ends = await work.surroundings.end_offsets(USAGE_EVENTS)
    faults.step("usage.cut.read")
    for lane in lanes:
        if ends.get((lane.topic, lane.partition), -1) < lane.position and not lane.is_retired:
            raise Corrupt(f"{lane.topic}/{lane.partition} ends below position {lane.position}", code="topic_truncated")
    if ends.keys() - {(lane.topic, lane.partition) for lane in lanes}:
        return  # a partition was born just now: its lane is made on the next tick, with the cut
    await store.take_cut(work.connection, cutoff_id, work.now)
    if ends:
        await store.insert_cut_positions(work.connection, cutoff_id, ends)
    await store.bump(work.connection, "cuts_version")
    work.after_commit.append(partial(faults.step, "usage.cut.committed"))


def begins_of(cut: Cut, before: Cut | None, born: Iterable[RuntimeLane]) -> dict[Lane, int]:
    """Where the records of a cut begin: at the cut before it, else at the log's start when the lane was born."""
    first = {(lane.topic, lane.partition): lane.first for lane in born}
    ends = before.positions if before is not None else {}
    return {lane: ends.get(lane, first[lane]) for lane in cut.positions}


def months_around(boundary: datetime) -> tuple[str, str]:
    """The month that ends at a boundary, in whatever zone, and the one before it.

    >>> from datetime import UTC
    >>> months_around(datetime(2026, 11, 1, 12, tzinfo=UTC)), months_around(datetime(2026, 12, 31, 10, tzinfo=UTC))
    (('2026-10', '2026-09'), ('2026-12', '2026-11'))
    """
    ending = period_of(boundary - ZONES_APART)
    return ending.name, period_of(ending.start - timedelta(days=1)).name


def silent_sources(seen: Iterable[store.Seen], boundary: datetime) -> list[SilentSource]:
    """The sources that were seen in the month before the one that ends at a boundary, and not in it. They hold nothing.

    >>> from datetime import UTC
    >>> seen = [("2026-09", "lakeside", "pbx/1"), ("2026-09", "lakeside", "pbx/2"), ("2026-10", "lakeside", "pbx/1")]
    >>> silent_sources(seen, datetime(2026, 11, 1, tzinfo=UTC))
    [SilentSource(publisher_id='lakeside', source='pbx/2')]
    """
    this, before = months_around(boundary)
    of: dict[str, set[tuple[str, str]]] = {this: set(), before: set()}
    for month, publisher_id, source in seen:
        if month in of:
            of[month].add((publisher_id, source))
    return [
        SilentSource(publisher_id=publisher_id, source=source) for publisher_id, source in sorted(of[before] - of[this])
    ]


def _waits(holder: Holder) -> bool:
    return holder.waits


async def corrected_from(connection: AsyncConnection) -> datetime | None:
    """From which event time on charges are still to be re-rated, or to be moved; None when all are."""
    begins = [await when(connection) for when in (rerate_store.executing_from, reassignment_store.open_from)]
    return min((each for each in begins if each is not None), default=None)


# ---- the pass ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GroupPass:
    """A held group that may pass; ``waived`` are the records that hold it no longer because 72 hours are over."""

    cut: Cut
    group_id: str
    waived: tuple[int, ...]


class Passing:
    """The tick that passes cuts: first the lanes of one, then each group that was held."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._witnesses: tuple[int, ...] = ()  # of each held group one record that held it when all were looked at

    async def run(self, work: Work) -> None:
        """One look; what waited for a cut that passes now is asked to run again."""
        memory = self._memory
        ready = await self._ready(work)
        held = await store.groups_to_pass(work.connection)
        if not ready:
            if not held:
                return
            # A look without locks first: groups that stay held must not stop the batches every second. What it reads may
            # be newer than the versions it was read for; then the next batch finds other versions and reads it again.
            await memory.refresh(work.connection, await store.read_state(work.connection))
            if await self._is_as_it_was(work, held):
                return
            parked = await store.records_that_may_hold(work.connection)
            if not self._free(work.now, held, parked):
                self._witnesses = self._one_of_each(held, parked)
                return
        await internal_lane(work.connection, work.tables, CORRECTIONS_LANE)
        if await self._is_corrected(work, ready or held):
            return
        await internal_lane(work.connection, work.tables, parking.REPLAY_LANE)
        await store.lock_state(work.connection)
        await memory.refresh(work.connection, await store.read_state(work.connection))
        await self._look_what_is_live(work)
        parked = await store.records_that_may_hold(work.connection)
        if ready:
            await self._pass_lanes(work, self._cut(ready[0].boundary), parked)
        else:
            for each in self._free(work.now, held, parked):
                await self._pass_group(work, each)
        await store.bump(work.connection, "cuts_version")
        # No batch runs while the state is held, so no record begins to wait for a cut after it was looked for here.
        await parking.ask(work.connection, work.tables, "replaying", "closing", states=("waiting",))

    async def _look_what_is_live(self, work: Work) -> None:
        """What parked revisions would take back may have come after them, in a lane that was slower, or be another charge by
        now. No batch runs beside this, and every record below the cut was read."""
        parked = await store.parked_revisions(work.connection)
        revised = {row.id: (bytes.fromhex(row.revises["digest"]), row.revises["revision"]) for row in parked}
        found = await revising.live_of(work.connection, self._memory, revised)
        live = {row.id: revising.held_by(found.get(row.id)) for row in parked}
        changed = {row.id: live[row.id] for row in parked if live[row.id] != row.live}
        if changed:
            await store.note_live(work.connection, changed)

    async def _ready(self, work: Work) -> Sequence[store.Found]:
        """The first cut that all lanes have reached, with the registry's moves from before it known. Both only grow."""
        for row in await store.cuts_to_pass(work.connection):
            told = [
                (mark["link"], mark["topic"], mark["partition"], mark["last_seq"])
                for mark in row.groups_marks
                if mark["topic"] in _REGISTRY
            ]
            if await has_reached(work.connection, work.tables, told):
                return [row]
        return []

    async def _is_corrected(self, work: Work, cuts: Sequence[store.Found]) -> bool:
        """Whether a re-rate or a reassignment is under way of use before one of these cuts: they wait, so that all of it stands
        on one invoice.

        For one who holds the corrections lane: no chunk is under way then, and one that begins later finds the cut passed.
        """
        begins = await corrected_from(work.connection)
        return begins is not None and begins < max(cut.boundary for cut in cuts)

    def _free(self, now: datetime, held: Sequence[store.Found], parked: Sequence[store.Found]) -> list[GroupPass]:
        """The held groups whose records are all settled, or in quarantine 72 hours after the lanes passed. A waiting
        record runs by itself, so it holds for as long as it waits."""
        free: list[GroupPass] = []
        for row, cut, mine in self._holding(held, parked):
            is_over = now >= row.passed_at + QUARANTINE_HOLDS and not any(holder.waits for holder in mine)
            if not mine or is_over:
                free.append(GroupPass(cut, row.group_id, tuple(holder.parked_id for holder in mine)))
        return free

    def _holding(
        self, held: Sequence[store.Found], parked: Sequence[store.Found]
    ) -> Iterator[tuple[store.Found, Cut, list[Holder]]]:
        """Each held group with its cut and what of these records holds it there."""
        of_cut: dict[UUID, dict[str, list[Holder]]] = {}
        for row in held:
            cut = self._cut(row.boundary)
            if cut.cutoff_id not in of_cut:
                of_group = of_cut[cut.cutoff_id] = {}
                for holder in holders(self._memory.registry, cut, parked):
                    of_group.setdefault(holder.group_id, []).append(holder)
            yield row, cut, of_cut[cut.cutoff_id].get(row.group_id, [])

    async def _is_as_it_was(self, work: Work, held: Sequence[store.Found]) -> bool:
        """Whether every held group is still held by the one record that was remembered of it.

        More records could only hold more, so the whole quarantine is read again only when one of these is settled.
        """
        if not self._witnesses:
            return False
        standing = await store.records_that_may_hold(work.connection, ids=self._witnesses)
        return not self._free(work.now, held, standing)

    def _one_of_each(self, held: Sequence[store.Found], parked: Sequence[store.Found]) -> tuple[int, ...]:
        """Of each held group one record that holds it: one that waits, where there is one, for that is never over."""
        ids = (max(mine, key=_waits).parked_id for _, _, mine in self._holding(held, parked) if mine)
        return tuple(sorted(set(ids)))

    async def _pass_lanes(self, work: Work, cut: Cut, parked: Sequence[store.Found]) -> None:
        held = sorted({holder.group_id for holder in holders(self._memory.registry, cut, parked)})
        await store.insert_lane_pass(work.connection, cut.cutoff_id, work.now)
        if held:
            await store.hold_groups(work.connection, cut.cutoff_id, held)
        faults.step("usage.pass.insert")
        await self._tell(work, cut, None, held)

    async def _pass_group(self, work: Work, each: GroupPass) -> None:
        await store.insert_group_pass(work.connection, each.cut.cutoff_id, each.group_id, work.now)
        if each.waived:
            await store.waive(work.connection, each.cut.cutoff_id, each.waived, work.now)
        faults.step("usage.grouppass.insert")
        await self._tell(work, each.cut, each.group_id, [])

    async def _tell(self, work: Work, cut: Cut, group_id: str | None, held: Sequence[str]) -> None:
        """Publish that the cut, or one group of it, is covered: counts per lane, held groups, the last seq of every link, and
        of the whole cut the silent sources."""
        counted = await store.class_counts(work.connection, cut.number)
        per_lane: dict[Lane, dict[str, int]] = defaultdict(dict)
        totals: dict[str, int] = defaultdict(int)
        for topic, partition, _, name, number in counted:
            per_lane[topic, partition][name] = number
            totals[name] += number
        born = await lanes_of(work.connection, work.tables, EVENTS)
        begins = begins_of(cut, self._memory.cuts.before(cut), born)
        lanes = tuple(
            LaneCount(
                topic=topic,
                partition=partition,
                from_offset=begins[topic, partition],
                to_offset=cut.positions[topic, partition],
                counts=per_lane[topic, partition],
            )
            for topic, partition in sorted(cut.positions)
        )
        silent: list[SilentSource] = []
        if group_id is None:
            seen = await store.sources_seen(work.connection, months_around(cut.boundary))
            silent = silent_sources(seen, cut.boundary)
        links = await marks(work.connection, work.tables, [USAGE_CHARGES.name])
        covered = Covered(
            cutoff_id=cut.cutoff_id,
            boundary=cut.boundary,
            room="usage",
            group_id=group_id,
            marks=tuple(
                Mark(link=mark.link, topic=mark.topic, partition=mark.partition, last_seq=mark.last_seq)
                for mark in links
            ),
            lanes=lanes,
            held=tuple(held),
            counts=dict(sorted(totals.items())),
            silent_sources=tuple(silent[:SILENT_SOURCES_MAX]),
            silent_sources_count=len(silent),
        )
        id = derived_id("covered", "usage", str(cut.cutoff_id), group_id or "")
        work.publish(CLOSING_PROGRESS, str(cut.cutoff_id), str(id), covered.data())

    def _cut(self, boundary: datetime) -> Cut:
        cut = self._memory.cuts.at(boundary)
        if cut is None:
            raise Corrupt(f"the cut of {boundary.isoformat()} is not known", code="cut_unknown")
        return cut
