"""Re-rates from plan to done: what two people decide, and the chunks on the corrections lane that carry it out.

Each function takes an engine of the room's own role and is one transaction; a chunk is one too, and what it has settled is
settled for ever. Source: designs/identity, "Void, amend, re-rate".
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

from msgspec.json import Encoder
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.kernel.errors import Corrupt, InvalidInput, NotFound, Refused
from services.kernel.money import format_nano
from services.kernel.period import period_named
from services.runtime import faults
from services.runtime.database import transaction
from services.runtime.lanes import internal_lane
from services.runtime.work import Work
from services.usage import reassignment_store, rerate_store, revising, store
from services.usage.books import PriceBook
from services.usage.closing import CORRECTIONS_LANE
from services.usage.memory import Memory
from services.usage.replacing import Step, Terms, delivered_before, settle
from services.usage.rerating import (
    APPROVED,
    CANCELLED,
    DONE,
    EXECUTING,
    LEFT_OUT,
    PLANNED,
    STALE,
    Change,
    Entering,
    Fingerprint,
    Repricing,
    Sums,
    amounts,
    check_role,
    check_second_person,
)
from services.usage.simulating import Draft
from services.usage.tiers import CounterKey, Schedule, schedule_version

CHUNK = 1_000  # charges settled in one transaction: revisions wait for it a fraction of a second
CHARGES_SHOWN = 100
_ALWAYS = datetime.min.replace(tzinfo=UTC)

_encode = Encoder().encode


@dataclass(frozen=True, slots=True)
class Charged:
    """What of a line of a plan is settled: with what its charges were taken back, and what is charged instead."""

    charges: int
    old: str
    new: str
    difference: str


@dataclass(frozen=True, slots=True)
class PlanLine:
    """What a plan changes of one account, group, product or in all; of what it leaves out, the reason is ``which``.

    ``old`` and ``new`` are as planned: of tiers, by where the counters stood then. ``charged`` is what came of it so far, of a
    plan that is shown.
    """

    of: str
    which: str
    currency: str
    charges: int
    old: str
    new: str
    difference: str
    reason: str | None = None
    charged: Charged | None = None


@dataclass(frozen=True, slots=True)
class PlannedCharge:
    """A charge of a plan, and what it costs before and after, as planned. ``is_stale``: it was revised before its chunk came, and left."""

    number: int
    charge_id: UUID
    revision: int
    account_id: str
    event_time: datetime
    product: str
    currency: str
    old: str
    new: str
    book_id: str
    book_version: int
    matched: str
    is_stale: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """A re-rate: what was asked for, what it changes, who decided what, and how far it is."""

    plan_id: UUID
    state: str
    note: str
    starts_at: datetime
    ends_at: datetime
    account_ids: tuple[str, ...]
    group_id: str | None
    product: str | None
    book_id: str | None
    book_version: int | None
    charges: int
    settled: int
    left_stale: int
    fingerprint: str
    planned_by: str
    planned_role: str
    planned_at: datetime
    approved_by: str | None
    approved_role: str | None
    approved_at: datetime | None
    executed_by: str | None
    executed_at: datetime | None
    cancelled_by: str | None
    cancelled_at: datetime | None
    done_at: datetime | None
    sums: tuple[PlanLine, ...] = ()
    left_out: tuple[PlanLine, ...] = ()
    changes: tuple[PlannedCharge, ...] = ()


# ---- what people decide --------------------------------------------------------------------------------------------


async def plan_rerate(
    engine: AsyncEngine,
    start: datetime,
    end: datetime,
    actor: str,
    role: str,
    *,
    account_ids: Sequence[str] = (),
    group_id: str | None = None,
    product: str | None = None,
    book_id: str | None = None,
    book_version: int | None = None,
    note: str = "",
) -> Plan:
    """Plan what the live charges of event times in [start, end) cost by the prices as they are now, or by a book before all
    others: by the version that is named for all of the range, else by each from its own date.

    Nothing is charged. Of what it would change the plan keeps each charge with its old and new amount, and the sums; what
    cannot be re-rated is left out, and said. One snapshot of the room, which no worker waits for.
    """
    check_role(role, "plan")
    if start >= end:
        raise InvalidInput("must be after --from", field="to")
    if book_version is not None and book_id is None:
        raise InvalidInput("is missing; a version is of a book", field="book")
    plan_id = uuid4()
    async with transaction(engine) as connection:
        await rerate_store.one_snapshot(connection)
        memory = Memory()
        await memory.refresh(connection, await store.read_state(connection))
        for account_id in account_ids:
            if account_id not in memory.registry.accounts:
                raise NotFound(f"there is no account {account_id}", field="account")
        if group_id is not None and memory.registry.zone_of(group_id) is None:
            raise NotFound(f"there is no payer group {group_id} that ever had an account", field="group")
        draft = await _draft(connection, memory, book_id, book_version) if book_id is not None else None
        values = {
            "plan_id": plan_id, "state": PLANNED, "note": note, "starts_at": start, "ends_at": end,
            "account_ids": sorted(set(account_ids)), "group_id": group_id, "product": product, "book_id": book_id,
            "book_version": book_version, "charges": 0, "fingerprint": "", "planned_by": actor, "planned_role": role,
            "planned_at": await store.clock_now(connection),
        }  # fmt: skip
        await rerate_store.insert_plan(connection, values)
        repricing = Repricing(memory.registry, memory.prices, draft)
        read = partial(rerate_store.live_charges, connection, start, end, account_ids, group_id, product)
        await _work_out(connection, plan_id, repricing, read)
        return await _told(connection, plan_id)


async def _work_out(
    connection: AsyncConnection, plan_id: UUID, repricing: Repricing, read: Callable[[], AsyncIterator[store.Rows]]
) -> None:
    """What a plan changes, charge by charge, in the order in which it is carried out.

    Where there are tiers the charges are read twice: what one of them changes depends on what else comes into its counter.
    """
    found = _Range(connection, repricing, read)
    entering = Entering()
    if await rerate_store.has_schedules(connection):
        async for piece in found.pieces():
            for _, each in piece:
                if isinstance(each, Change):
                    entering.add(each)
    began = await rerate_store.counters(connection, entering.counters)
    stays, stand = entering.meets_nothing(began), dict(began)
    sums, fingerprint, number, used = Sums(), Fingerprint(), 0, set[CounterKey]()
    async for piece in found.pieces():
        changes: list[Change] = []
        for charge, each in piece:
            if isinstance(each, str):
                sums.leave_out(charge, each)
            elif each is not None and (each.enters is None or each.enters.key not in stays):
                changes.append(each)
        rows = []
        for each, (old_nano, new_nano) in zip(changes, amounts(changes, stand), strict=True):
            number += 1
            used.update(movement.key for movement in each.movements)
            sums.add(each.charge, old_nano, new_nano)
            fingerprint.add([(each.charge.charge_id, each.charge.revision)])
            rows.append(_item(plan_id, number, each, old_nano, new_nano))
        if rows:
            await rerate_store.append_items(connection, rows)
    await rerate_store.append_sums(connection, plan_id, sums.found)
    if used:
        await rerate_store.append_counters(connection, plan_id, {key: began[key] for key in used})
    await rerate_store.counted(connection, plan_id, number, fingerprint.text())


class _Range:
    """The charges of a plan's range, each with what becomes of it, read as often as it is asked for."""

    def __init__(
        self, connection: AsyncConnection, repricing: Repricing, read: Callable[[], AsyncIterator[store.Rows]]
    ) -> None:
        self._connection, self._repricing, self._read = connection, repricing, read
        self._schedules: dict[str, Schedule] = {}

    async def pieces(self) -> AsyncIterator[list[tuple[store.Found, Change | str | None]]]:
        """Pieces of them, in the order in which the plan is carried out."""
        schedules = self._schedules
        async for piece in self._read():
            schedules |= await revising.schedules_of(
                self._connection, (each for each in piece if each.schedule not in schedules)
            )
            delivered = await delivered_before(self._connection, piece)
            yield [
                (each, self._repricing.of(each, schedules.get(each.schedule), delivered=each.charge_id in delivered))
                for each in piece
            ]


async def _draft(connection: AsyncConnection, memory: Memory, book_id: str, version: int | None) -> Draft:
    """A book before all others: one version of it at all times, or all from their own dates."""
    if not memory.prices.books.has(book_id):
        raise NotFound(f"there is no price book {book_id}; `tollbook price list` names them", field="book")
    if version is None:
        return Draft(memory.prices.books.book(book_id))
    listed = {row.version: row for row in await store.book_listing(connection, book_id)}
    if version not in listed:
        numbers = ", ".join(map(str, sorted(listed)))
        raise NotFound(f"{book_id} has no version {version}; it has {numbers}", field="version")
    read = await store.book_version(connection, listed[version])
    return Draft(PriceBook(book_id, [replace(read, effective_from=_ALWAYS)]))


def _item(plan_id: UUID, number: int, change: Change, old_nano: int, new_nano: int) -> tuple[Any, ...]:
    """A row in the order of `ITEM_COLUMNS`."""
    charge, price, surcharge = change.charge, change.price, change.surcharge
    return (
        plan_id, number, charge.charge_id, charge.event_time, charge.revision, charge.account_id, charge.currency,
        old_nano, new_nano, change.quantity, change.per, price.product, price.book_id, price.version,
        price.prefix, price.window, _encode(surcharge.told()).decode() if surcharge is not None else None,
    )  # fmt: skip


async def approve_rerate(engine: AsyncEngine, plan_id: UUID, actor: str, role: str) -> Plan:
    """Let a plan be executed. Another person than the one who planned; `Refused` for a plan of which a charge was revised or
    re-rated since, or a counter of tiers moved: it is stale from then on."""
    check_role(role, "approve")
    async with transaction(engine) as connection:
        row = await _of(connection, plan_id)
        if row.state != PLANNED:
            raise Refused(f"is {row.state}; only a planned re-rate can be approved", field="plan")
        check_second_person(row.planned_by, actor)
        if not row.charges:
            raise Refused("changes no charge; there is nothing to approve", field="plan")
        fingerprint = Fingerprint()
        async for each in rerate_store.still_live(connection, plan_id, row.starts_at, row.ends_at):
            fingerprint.add([each])
        is_stale = fingerprint.text() != row.fingerprint or await rerate_store.has_moved_counter(connection, plan_id)
        if is_stale:
            await rerate_store.set_plan(connection, plan_id, state=STALE)
        else:
            now = await store.clock_now(connection)
            await rerate_store.set_plan(
                connection, plan_id, state=APPROVED, approved_by=actor, approved_role=role, approved_at=now
            )
        told = await _told(connection, plan_id)
    if is_stale:
        raise Refused(
            "is stale: a charge of it was corrected since it was made, or a counter of tiers moved; plan again",
            field="plan", code="stale",
        )  # fmt: skip
    return told


async def execute_rerate(engine: AsyncEngine, plan_id: UUID, actor: str, role: str) -> Plan:
    """Ask for an approved plan to be carried out; the usage workers do it. To ask again changes nothing."""
    check_role(role, "execute")
    async with transaction(engine) as connection:
        row = await _of(connection, plan_id)
        if row.state not in (APPROVED, EXECUTING, DONE):
            how = "another person approves it first" if row.state == PLANNED else "plan again"
            raise Refused(f"is {row.state}; {how}", field="plan")
        if row.state == APPROVED:
            now = await store.clock_now(connection)
            await rerate_store.set_plan(connection, plan_id, state=EXECUTING, executed_by=actor, executed_at=now)
        return await _told(connection, plan_id)


async def cancel_rerate(engine: AsyncEngine, plan_id: UUID, actor: str, role: str) -> Plan:
    """Give up a plan that nobody has asked to execute; to ask again changes nothing."""
    check_role(role, "cancel")
    async with transaction(engine) as connection:
        row = await _of(connection, plan_id)
        if row.state in (EXECUTING, DONE):
            raise Refused(
                f"is {row.state}; what is charged is taken back by another re-rate, by the prices from before",
                field="plan",
            )
        if row.state != CANCELLED:
            now = await store.clock_now(connection)
            await rerate_store.set_plan(connection, plan_id, state=CANCELLED, cancelled_by=actor, cancelled_at=now)
        return await _told(connection, plan_id)


async def rerate(engine: AsyncEngine, plan_id: UUID, *, limit: int = CHARGES_SHOWN, stale_only: bool = False) -> Plan:
    """A plan with its sums and what of them is charged, and its first charges, or of those that were left stale. `NotFound`
    when there is none."""
    async with transaction(engine) as connection:
        told = await _told(connection, plan_id, with_settled=True)
        items = await rerate_store.items_of(connection, plan_id, limit, stale_only=stale_only)
    changes = tuple(
        PlannedCharge(
            row.number, row.charge_id, row.revision, row.account_id, row.event_time, row.product, row.currency,
            format_nano(row.old_nano), format_nano(row.new_nano), row.book_id, row.book_version, row.matched, row.is_stale,
        )
        for row in items
    )  # fmt: skip
    return replace(told, changes=changes)


async def rerates(engine: AsyncEngine) -> list[Plan]:
    """Every plan without its charges, the newest first."""
    async with transaction(engine) as connection:
        return [
            _plan(row, await rerate_store.sums_of(connection, row.plan_id))
            for row in await rerate_store.plans(connection)
        ]


async def _of(connection: AsyncConnection, plan_id: UUID) -> store.Found:
    """The row of a plan, held until the commit."""
    row = await rerate_store.plan_of(connection, plan_id, lock=True)
    if row is None:
        raise NotFound(f"there is no re-rate {plan_id}; `tollbook rerate list` names them", field="plan")
    return row


async def _told(connection: AsyncConnection, plan_id: UUID, *, with_settled: bool = False) -> Plan:
    row = await rerate_store.plan_of(connection, plan_id)
    if row is None:
        raise NotFound(f"there is no re-rate {plan_id}; `tollbook rerate list` names them", field="plan")
    settled = await rerate_store.settled_sums(connection, row) if with_settled and row.done_to else ()
    return _plan(row, await rerate_store.sums_of(connection, plan_id), settled)


def _plan(row: store.Found, sums: Sequence[store.Found], settled: Sequence[store.Found] = ()) -> Plan:
    charged = {
        (each.of, each.which, each.currency): Charged(
            each.charges, format_nano(int(each.old_nano)), format_nano(int(each.new_nano)),
            format_nano(int(each.new_nano - each.old_nano)),
        )
        for each in settled
    }  # fmt: skip
    lines = [
        PlanLine(
            each.of, each.which, each.currency, each.charges, format_nano(int(each.old_nano)),
            format_nano(int(each.new_nano)), format_nano(int(each.new_nano - each.old_nano)),
            LEFT_OUT[each.which] if each.of == "left_out" else None,
            charged.get((each.of, each.which, each.currency)),
        )
        for each in sums
    ]  # fmt: skip
    return Plan(
        row.plan_id, row.state, row.note, row.starts_at, row.ends_at, tuple(row.account_ids), row.group_id, row.product,
        row.book_id, row.book_version, row.charges, row.done_to, row.left_stale, row.fingerprint, row.planned_by,
        row.planned_role, row.planned_at, row.approved_by, row.approved_role, row.approved_at, row.executed_by,
        row.executed_at, row.cancelled_by, row.cancelled_at, row.done_at,
        sums=tuple(line for line in lines if line.of != "left_out"),
        left_out=tuple(line for line in lines if line.of == "left_out"),
    )  # fmt: skip


# ---- what the workers do -------------------------------------------------------------------------------------------


class Execution:
    """The tick that carries plans out: one chunk of the oldest, in one transaction that holds the corrections lane.

    A chunk settles its charges by number: each is reversed and replaced, or left because it is not live any more. What it has
    settled stands in the plan's row by the same commit, so a crash repeats a chunk or does not, and never half of it.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    async def run(self, work: Work) -> None:
        """One look, and one chunk if there is something to do."""
        plan_id = await rerate_store.executing_plan(work.connection)
        if plan_id is None:
            return
        await internal_lane(work.connection, work.tables, CORRECTIONS_LANE)
        work.lane = CORRECTIONS_LANE
        await self._memory.share(work.connection)
        await store.hold_charges(work.connection)
        row = await _of(work.connection, plan_id)
        if row.state == EXECUTING:
            await self._settle(work, row)

    async def _settle(self, work: Work, plan: store.Found) -> None:
        items = await rerate_store.next_items(work.connection, plan.plan_id, plan.done_to, CHUNK)
        done_to = min(plan.done_to + CHUNK, plan.charges)
        if len(items) != done_to - plan.done_to:
            raise Corrupt(f"charges or prices of re-rate {plan.plan_id} are gone", code="rerate_lost")
        faults.step("usage.rerate.taken")
        if await reassignment_store.is_within(work.connection, {item.event_time for item in items}):
            return  # what stands in the place of a charge may sort before those that were looked at, and would be overlooked
        ids = [item.charge_id for item in items]
        start = min(item.event_time for item in items)
        end = max(item.event_time for item in items) + timedelta(microseconds=1)
        live = await store.live_by_id(work.connection, ids, start, end)
        steps: list[Step] = []
        stale: list[int] = []
        for item in items:
            charge = live.get(item.charge_id)
            if charge is None:
                stale.append(item.number)
                continue
            bill_to = self._bill_to(charge)
            reversal = revising.Reversal(charge, bill_to, plan.plan_id, charge.partition, charge.offset)
            steps.append(Step(reversal, _terms(item, charge.currency), bill_to))
        await settle(work, steps, "usage.rerate")
        if stale:
            await rerate_store.leave_stale(work.connection, plan.plan_id, stale)
        faults.step("usage.rerate.written")
        is_done = done_to == plan.charges
        await rerate_store.set_plan(
            work.connection, plan.plan_id, done_to=done_to, left_stale=plan.left_stale + len(stale),
            **({"state": DONE, "done_at": work.now} if is_done else {}),
        )  # fmt: skip

    def _bill_to(self, charge: store.Found) -> str | None:
        """Where reversal and replacement stand, both: on the charge's own invoice until its cut has passed the group."""
        if charge.group_id is None:
            return None
        zone = self._memory.registry.zone_of(charge.group_id)
        if zone is None:
            raise Corrupt(
                f"nobody knows the payer group {charge.group_id} of charge {charge.charge_id}", code="group_lost"
            )
        return self._memory.cuts.correction_to(charge.group_id, zone, period_named(charge.bill_to, zone))


def _terms(item: store.Found, currency: str) -> Terms:
    """The price that a charge of a plan gets; what it comes to by tiers is found when it is carried out."""
    by_tiers = item.schedule is not None
    return Terms(
        item.book_id, item.book_version, item.matched, item.window or None, item.surcharge, item.price_nano,
        item.connection_fee_nano, item.minimum, item.increment, currency, item.quantity, item.per, item.new_nano,
        schedule_version(item.book_id, item.book_version, item.schedule) if by_tiers else None,
    )  # fmt: skip
