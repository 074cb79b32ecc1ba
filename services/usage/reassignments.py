"""Reassignments: charges that were made before the registry told of a change are moved to whom it says now.

Whoever projects a timeline notes the stretches of time that it changes, in the same transaction (`registry_changed`). A tick
looks the charges in them through, chunk by chunk, on the corrections lane. Source: designs/assignment, points 4 and 5.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

from services.kernel.errors import Corrupt
from services.kernel.period import period_named
from services.runtime import faults
from services.runtime.lanes import internal_lane
from services.runtime.work import Work
from services.usage import reassignment_store, revising, store
from services.usage.closing import CORRECTIONS_LANE
from services.usage.memory import Memory
from services.usage.reassigning import (
    BEFORE_ALL,
    Concerned,
    Moved,
    Reassigning,
    Window,
    changes,
    next_window,
    reassignment_id,
)
from services.usage.replacing import Stamps, Step, settle

CHUNK = 2_000  # charges looked at in one transaction: revisions wait for it half a second
JOBS_AT_ONCE = 1_000  # looked through by one search
DAYS_AT_ONCE = 7  # without any charge that is concerned: a day is searched whole, a tenth of a second a million


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
    if rows:
        await reassignment_store.insert_reassignments(work.connection, rows)


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
            if over:
                await reassignment_store.finish(work.connection, [job.reassignment_id for job in over], work.now)
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
            jobs = [after.get(job.reassignment_id, job) for job in jobs if job not in over]

    async def _look_at(self, work: Work, window: Window, found: store.Rows) -> Counter[UUID]:
        """Settle charges that were found; returns how many each job has moved."""
        faults.step("usage.reassign.taken")
        await self._memory.share(work.connection)
        await store.hold_charges(work.connection)
        ids = [row.charge_id for row in found]
        start, end = found[0].event_time, found[-1].event_time + timedelta(microseconds=1)
        live = await store.live_by_id(work.connection, ids, start, end)
        concerned = Concerned(window.jobs)
        reassigning = Reassigning(self._memory.registry, self._memory.prices)
        steps: list[Step] = []
        noted: list[tuple[UUID, UUID, Any, str | None]] = []
        moved: Counter[UUID] = Counter()
        for id in ids:
            charge = live.get(id)
            mine = concerned.by(charge) if charge is not None else []
            if charge is None or not mine:
                continue
            cause = mine[-1].reassignment_id  # the last word of the registry is what is carried out
            outcome = reassigning.of(charge, reprices=any(job.reprices for job in mine))
            if isinstance(outcome, Moved):
                step = self._step(charge, outcome, cause)
                if step is None:
                    outcome = "unknown_payer"
                else:
                    steps.append(step)
                    moved[cause] += 1
            if outcome is not None:
                noted.append((cause, id, charge.event_time, outcome if isinstance(outcome, str) else None))
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
