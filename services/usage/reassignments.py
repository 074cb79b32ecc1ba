"""Reassignments: charges that were made before the registry told of a change are moved to whom it says now.

Whoever projects a timeline notes the stretches of time that it changes, in the same transaction (`registry_changed`). A tick
looks the charges in them through, chunk by chunk, on the corrections lane. Source: designs/assignment, points 4 and 5.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from contracts.groups import AccountTimeline
from services.kernel.errors import Corrupt, NotFound
from services.kernel.money import format_nano
from services.kernel.period import period_named
from services.runtime import faults
from services.runtime.database import transaction
from services.runtime.lanes import internal_lane
from services.runtime.work import Work
from services.usage import reassignment_store, revising, store
from services.usage.closing import CORRECTIONS_LANE
from services.usage.memory import Memory
from services.usage.reassigning import (
    ACCOUNT,
    BEFORE_ALL,
    LEFT,
    Concerned,
    Job,
    Left,
    Moved,
    Reassigning,
    Window,
    changes,
    next_window,
    reassignment_id,
    stands_under,
    why,
    why_left,
)
from services.usage.replacing import Stamps, Step, delivered_before, settle

LISTED, CHARGES_SHOWN = 100, 20
CHUNK = 2_000  # charges looked at in one transaction: revisions wait for it half a second
JOBS_AT_ONCE = 1_000  # looked through by one search
DAYS_AT_ONCE = 7  # without any charge that is concerned: a day is searched whole, half a second a million charges


async def registry_changed(
    work: Work, before: Mapping[tuple[str, str], Mapping[str, Any]], now: Mapping[tuple[str, str], Any]
) -> None:
    """Note what these timelines change of what was known ``before``. The caller holds the state alone: every batch that knew
    less is committed, and its charges are found; every one that comes knows more."""
    rows = [
        {
            "reassignment_id": reassignment_id(kind, object_id, version, stretch.start), "kind": kind,
            "object_id": object_id, "number": number, "version": version, "starts_at": stretch.start,
            "ends_at": stretch.end, "reprices": stretch.reprices, "noticed_at": work.now, "reached_at": stretch.start,
            "reached_id": BEFORE_ALL, "moved": 0,
        }
        for kind, object_id, number, version, stretch in changes(before, now)
    ]  # fmt: skip
    versions = {
        id: timeline.version
        for (kind, id), timeline in now.items()
        if kind == ACCOUNT and _is_there_otherwise(before.get((kind, id)), timeline)
    }
    again = await _again(work, versions)
    if rows or again:
        await reassignment_store.insert_reassignments(work.connection, [*rows, *again])


def _is_there_otherwise(known: Mapping[str, Any] | None, timeline: AccountTimeline) -> bool:
    """Whether an account is new, or is there at other times than was known."""
    if known is None:
        return True
    document = timeline.data()
    return timeline.version > known["version"] and any(
        known[name] != document[name] for name in ("opened_at", "closed_at", "plans")
    )


async def _again(work: Work, versions: Mapping[str, int]) -> list[dict[str, Any]]:
    """What left charges because one of these accounts was not there, and is to be looked through again: a number's timeline may
    come before that of the account which takes it over."""
    if not versions:
        return []
    found: dict[UUID, dict[str, Any]] = {}
    for row in await reassignment_store.left_for(work.connection, sorted(versions)):
        id = reassignment_id(
            row.kind, row.object_id, row.version, row.starts_at, row.account_id, str(versions[row.account_id])
        )
        found[id] = {name: getattr(row, name) for name in _SAME} | {
            "reassignment_id": id, "noticed_at": work.now, "reached_at": row.starts_at, "reached_id": BEFORE_ALL,
            "moved": 0,
        }  # fmt: skip
    return list(found.values())


_SAME = ("kind", "object_id", "number", "version", "starts_at", "ends_at", "reprices")


class Reassignments:
    """The tick that looks charges through: one chunk of the oldest jobs, in one transaction that holds the corrections lane.

    A charge that stands elsewhere than the registry says is reversed and replaced, or noted with the reason why not. How far
    the jobs are stands in their rows by the same commit; what was looked at twice would be found right the second time.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    async def run(self, work: Work) -> None:
        """One look, and one chunk if there is something to do."""
        if not await reassignment_store.has_open(work.connection):
            return
        await internal_lane(work.connection, work.tables, CORRECTIONS_LANE)
        work.lane = CORRECTIONS_LANE
        days = await reassignment_store.charge_days(work.connection)
        jobs = await reassignment_store.open_jobs(work.connection, JOBS_AT_ONCE)
        for _ in range(DAYS_AT_ONCE):
            window, over = next_window(jobs, days)
            finished = {job.reassignment_id for job in over}
            if finished:
                await reassignment_store.finish(work.connection, finished, work.now)
            if window is None:
                return
            found = await reassignment_store.charges_in(work.connection, window, CHUNK)
            moved = await self._look_at(work, window, found) if found else Counter[UUID]()
            is_all = len(found) < CHUNK
            reached = (window.end, BEFORE_ALL) if is_all else (found[-1].event_time, found[-1].charge_id)
            after = {job.reassignment_id: job.up_to(*reached) for job in window.jobs}
            await reassignment_store.advance(work.connection, after.values(), moved)
            if found:
                return
            jobs = [after.get(job.reassignment_id, job) for job in jobs if job.reassignment_id not in finished]

    async def _look_at(self, work: Work, window: Window, found: store.Rows) -> Counter[UUID]:
        """Settle charges that were found; returns how many each job has moved."""
        faults.step("usage.reassign.taken")
        await self._memory.share(work.connection)
        await store.hold_charges(work.connection)
        ids = [row.charge_id for row in found]
        start, end = found[0].event_time, found[-1].event_time + timedelta(microseconds=1)
        live = await store.live_by_id(work.connection, ids, start, end)
        left = await reassignment_store.left_ids(work.connection, ids)  # by other books than those of who is charged
        delivered = await delivered_before(work.connection, live.values())
        # also those that wait, or came just now: whatever is moved here is moved to where their words say
        accounts = {row.account_id for row in live.values()}
        repricing = Concerned(await reassignment_store.open_repricing(work.connection, accounts))
        concerned = Concerned(window.jobs)
        reassigning = Reassigning(self._memory.registry, self._memory.prices)
        steps: list[Step] = []
        noted: list[reassignment_store.Note] = []
        moved: Counter[UUID] = Counter()
        for id in ids:
            charge = live.get(id)
            mine = concerned.open_by(charge) if charge is not None else []
            if charge is None or not mine:
                continue
            cause = mine[-1].reassignment_id  # the last word of the registry is what is carried out
            reprices = id in left or bool(repricing.open_by(charge))
            outcome = reassigning.of(charge, reprices=reprices, delivered=id in delivered)
            if isinstance(outcome, Moved):
                step = self._step(charge, outcome, cause)
                if step is not None:
                    steps.append(step)
                    moved[cause] += 1
                    noted.append((cause, id, charge.event_time, None, None))
                    continue
                outcome = Left("unknown_payer")
            if outcome is not None:
                noted.append((cause, id, charge.event_time, *outcome))
        if steps:
            await settle(work, steps, "usage.reassign")
        if noted:
            await reassignment_store.append_charges(work.connection, noted)
        faults.step("usage.reassign.written")
        return moved

    def _step(self, charge: store.Found, outcome: Moved, cause: UUID) -> Step | None:
        """What is taken back stands where the charge does until the cut has passed its group, and what is charged instead in the
        month of its event time, by the same rule for its own group; None when nobody knows the group that was charged."""
        back: str | None = None
        if charge.group_id is not None:
            zone = self._memory.registry.zone_of(charge.group_id)
            if zone is None:
                return None
            back = self._memory.cuts.correction_to(charge.group_id, zone, period_named(charge.bill_to, zone))
        reversal = revising.Reversal(charge, back, cause, charge.partition, charge.offset)
        return Step(reversal, outcome.terms, self._bill_to(outcome.stamps), outcome.stamps)

    def _bill_to(self, stamps: Stamps) -> str | None:
        """The first period from that of the event time whose cut has not passed the group; None: a trial."""
        if stamps.group_id is None or stamps.period is None:
            return None
        zone = self._memory.registry.zone_of(stamps.group_id)
        if zone is None:
            raise Corrupt(f"nobody knows payer group {stamps.group_id}, which a timeline names", code="group_lost")
        return self._memory.cuts.correction_to(stamps.group_id, zone, period_named(stamps.period, zone))


# ---- what people read ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MovedLine:
    """Charges that one reassignment moved from an account, payer group and cost center to others: what was taken back there,
    and what is charged here instead."""

    from_account: str
    from_group: str | None
    from_cost_center: str | None
    to_account: str
    to_group: str | None
    to_cost_center: str | None
    currency: str
    charges: int
    taken_back: str
    charged: str


@dataclass(frozen=True, slots=True)
class LeftLine:
    """Charges that one reassignment left as they are, and why."""

    reason: str
    why: str
    charges: int


@dataclass(frozen=True, slots=True)
class LeftCharge:
    """A charge that was left as it is."""

    charge_id: UUID
    event_time: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class Reassignment:
    """A stretch of time that a version of a timeline changed after use in it may have been rated: which, how far its charges
    are looked through (all of event times before ``reached_at``), and how many were moved or left as they are.

    ``lines`` and ``left_charges`` are of one that is shown.
    """

    reassignment_id: UUID
    state: str
    kind: str
    object_id: str
    number: str | None
    version: int
    starts_at: datetime
    ends_at: datetime | None
    reprices: bool
    noticed_at: datetime
    reached_at: datetime
    done_at: datetime | None
    moved: int
    left: int
    lines: tuple[MovedLine, ...] = ()
    left_out: tuple[LeftLine, ...] = ()
    left_charges: tuple[LeftCharge, ...] = ()


async def reassignments(engine: AsyncEngine, *, idle: bool = False, limit: int = LISTED) -> list[Reassignment]:
    """What is under way, and what moved charges or left some as they are; with ``idle`` also what found none to move. The
    newest first."""
    async with transaction(engine) as connection:
        rows = await reassignment_store.listing(connection, limit, idle=idle)
        return [_told(row) for row in rows]


async def reassignment(engine: AsyncEngine, id: UUID, *, limit: int = CHARGES_SHOWN) -> Reassignment:
    """One of them with what it moved from where to where, and the first charges that it left. `NotFound` when there is none."""
    async with transaction(engine) as connection:
        rows = await reassignment_store.listing(connection, 1, id=id, idle=True)
        if not rows:
            raise NotFound(
                f"there is no reassignment {id}; `tollbook reassignment list` names them", field="reassignment"
            )
        lines = await reassignment_store.moved_lines(connection, rows[0])
        left = await reassignment_store.left_reasons(connection, id)
        charges = await reassignment_store.left_charges(connection, id, limit)
    return replace(
        _told(rows[0]),
        lines=tuple(
            MovedLine(
                line.from_account, line.from_group, line.from_cost_center, line.to_account, line.to_group,
                line.to_cost_center, line.currency, line.charges, format_nano(int(line.taken_back)),
                format_nano(int(line.charged)),
            )
            for line in lines
        ),
        left_out=tuple(LeftLine(row.reason, LEFT[row.reason], row.charges) for row in left),
        left_charges=tuple(LeftCharge(row.charge_id, row.event_time, row.reason) for row in charges),
    )  # fmt: skip


def _told(row: store.Found) -> Reassignment:
    return Reassignment(
        row.reassignment_id, "done" if row.done_at is not None else "open", row.kind, row.object_id, row.number,
        row.version, row.starts_at, row.ends_at, row.reprices, row.noticed_at, row.reached_at, row.done_at, row.moved,
        row.left,
    )  # fmt: skip


async def explained(connection: AsyncConnection, charge: Mapping[str, Any]) -> tuple[str, ...]:
    """Why a charge came to be where it is after it, or the one before it, was charged, one sentence each."""
    before = charge["replaces"] or charge["reverses"]
    found = await reassignment_store.of_charges(connection, [each for each in (before, charge["charge_id"]) if each])
    reasons = []
    for row in found:
        job = Job(*row[: len(Job.__struct_fields__)])
        if row.charge_id == before and row.reason is None:
            reasons.append(why(charge, job, row.version))
        elif row.charge_id != before and row.reason is not None:
            reasons.append(why_left(job, row.version, row.reason))
    return tuple(reasons)


async def audited(connection: AsyncConnection) -> list[str]:
    """What does not hang together: reassignments that moved another number of charges than they say, and live charges of one
    that is done which do not stand where the registry says, and were not left for a reason. For a snapshot."""
    findings = [
        f"reassignment {row.reassignment_id} says that it moved {row.told} charges; {row.found} were taken back and replaced"
        for row in await reassignment_store.that_moved_otherwise(connection)
    ]
    jobs, still_open = await reassignment_store.all_jobs(connection)
    if not jobs:
        return findings
    memory = Memory()
    await memory.refresh(connection, await store.read_state(connection))
    done, under_way = Concerned(jobs), Concerned(still_open)
    reassigning = Reassigning(memory.registry, memory.prices)
    astray: dict[UUID, tuple[store.Found, str]] = {}
    async for charge in reassignment_store.live_charges(connection, min(job.starts_at for job in jobs)):
        if not done.by(charge) or under_way.by(charge):
            continue
        found = reassigning.stamps(charge)
        if isinstance(found, Left) or not stands_under(charge, found[0]):
            where = found.reason if isinstance(found, Left) else f"{found[0].account_id}, group {found[0].group_id}"
            astray[charge.charge_id] = charge, where
    left = await _left_before(connection, [charge for charge, _ in astray.values() if charge.replaces is not None])
    return findings + [
        f"charge {id} of {charge.account_id}, group {charge.group_id}, was not moved; it should stand under {where}"
        for id, (charge, where) in astray.items()
        if id not in left
    ]


async def _left_before(connection: AsyncConnection, charges: Sequence[store.Found]) -> set[UUID]:
    """Those of these charges that a re-rate put in the place of one that was left where it is."""
    of = {charge.charge_id: charge for charge in charges}
    before = await store.charges_before(connection, charges)
    left = await reassignment_store.left_ids(connection, [row.charge_id for row in before])
    return {row.asked for row in before if row.charge_id in left and stands_under(of[row.asked], row)}
