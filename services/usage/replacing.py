"""A charge that is taken back, and another one that stands in its place: by other prices, or under other stamps.

What re-rates (`rerate_plans.py`) and reassignments (`reassignments.py`) have in common: how the pair is written and told, and
how it moves counters of tiers. Source: designs/identity, "Void, amend, re-rate"; designs/assignment, point 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from msgspec import Struct
from msgspec.json import Encoder
from sqlalchemy.ext.asyncio import AsyncConnection

from contracts.topics import USAGE_CHARGES
from services.kernel.errors import Corrupt
from services.kernel.ids import replacement_id
from services.runtime import faults
from services.runtime.work import Work
from services.usage import revising, store
from services.usage.books import MESSAGES
from services.usage.tables import CHARGE_COLUMNS
from services.usage.tiers import Movement, Schedule, Share, apportion, moved, movement_for, tell

_encode = Encoder().encode


class Stamps(Struct, frozen=True, gc=False):
    """Whose a charge is: what the registry decides. ``assignment_version`` is that of the account's timeline that says so."""

    account_id: str
    organization_id: str
    plan: str
    group_id: str | None
    period: str | None
    cost_center_id: str | None
    assignment_version: int


class Terms(Struct, frozen=True, gc=False):
    """The price that a charge gets, by the columns of its row and of its price, and what it comes to.

    ``schedule`` is the name that charges give the schedule of a price by tiers: then the amount is what the counter says.
    """

    book_id: str
    book_version: int
    matched: str
    window: str | None
    surcharge: str | None  # JSON as it is published
    price_nano: int
    connection_fee_nano: int
    minimum: int
    increment: int
    currency: str
    quantity: int
    per: int
    amount_nano: int
    schedule: str | None = None


class Step(Struct, gc=False):
    """One charge that is taken back, and the terms, stamps and period to bill of the one in its place; no stamps: those of
    the first. Where tiers price it, ``schedule`` is theirs and ``share`` what its counter costs more."""

    reversal: revising.Reversal
    terms: Terms
    bill_to: str | None
    stamps: Stamps | None = None
    schedule: Schedule | None = None
    share: Share | None = None

    @property
    def account_id(self) -> str:
        """Who pays for what stands in its place."""
        stamps = self.stamps
        account_id: str = self.reversal.charge.account_id if stamps is None else stamps.account_id
        return account_id

    def entering(self) -> Movement:
        """What comes into the counter of the new price."""
        terms = self.terms
        if terms.schedule is None or self.schedule is None:
            raise Corrupt(
                f"the schedule of book {terms.book_id}, version {terms.book_version} is gone", code="schedule_lost"
            )
        charge = self.reversal.charge
        return movement_for(charge, terms.schedule, self.schedule, terms.per, terms.quantity, self.stamps)

    def replacement(self) -> tuple[tuple[Any, ...], str, bytes]:
        """The charge in the place of the one that is taken back: its row with the charge that it replaces, its id, and the data
        that is published. What was used is as it was."""
        charge, terms, share = self.reversal.charge, self.terms, self.share
        if not isinstance(self.reversal.cause, UUID):
            raise Corrupt("a charge is replaced without a cause", code="rerate_lost")
        id = replacement_id(charge.charge_id, self.reversal.cause)
        changed = {
            "charge_id": id,
            "amount_nano": terms.amount_nano if share is None else share.amount_nano,
            "quantity": terms.quantity,
            "per": terms.per,
            "bill_to": self.bill_to,
            "reverses": None,
            "book_id": terms.book_id,
            "book_version": terms.book_version,
            "matched": terms.matched,
            "window": terms.window,
            "surcharge": terms.surcharge,
            "currency": terms.currency,
            "price_nano": terms.price_nano,
            "connection_fee_nano": terms.connection_fee_nano,
            "minimum": terms.minimum,
            "increment": terms.increment,
            "schedule": terms.schedule,
            "counted_before": share.before if share is not None else None,
            "counted_after": share.after if share is not None else None,
        }
        if self.stamps is not None:
            changed |= {name: getattr(self.stamps, name) for name in Stamps.__struct_fields__}
        row = tuple(changed[name] if name in changed else getattr(charge, name) for name in CHARGE_COLUMNS)
        data = revising.told(charge, changed)
        if share is not None and self.schedule is not None and terms.schedule is not None:
            tell(data, terms.schedule, self.schedule.form, share)
        if self.account_id == charge.account_id:  # of another account's charge nobody may be told, nor its credits pay
            data["replaces"] = str(charge.charge_id)
        return (*row, charge.charge_id), str(id), _encode(data)


async def delivered_before(connection: AsyncConnection, charges: Iterable[Any]) -> set[UUID]:
    """Those of these charges, given by their rows, that stand in the place of one for a delivered message: it was delivered,
    whatever they say."""
    messages = [row for row in charges if row.replaces is not None and row.product in MESSAGES]
    return {row.asked for row in await store.charges_before(connection, messages) if row.delivered_only}


async def settle(work: Work, steps: Sequence[Step], crash: str) -> None:
    """Write and publish reversal and replacement of each step; counters first, for they say what tiers price. ``crash`` begins
    the names of the steps at which a test may kill this process."""
    await _move_counters(work, steps, crash)
    reversals: list[tuple[Any, ...]] = []
    replacements: list[tuple[Any, ...]] = []
    for step in steps:
        row, id, data = step.reversal.written()
        reversals.append(row)
        work.publish(USAGE_CHARGES, step.reversal.charge.account_id, id, data)
        row, id, data = step.replacement()
        replacements.append(row)
        work.publish(USAGE_CHARGES, step.account_id, id, data)
    await store.append_charges(work.connection, reversals)
    await store.append_replacements(work.connection, replacements)


async def _move_counters(work: Work, steps: Sequence[Step], crash: str) -> None:
    """Take out of counters what tiers priced and let in what they price now, all of a chunk at once; what that costs is each
    one's amount. In the order of event time, publisher, source and id."""
    named = [each for step in steps for each in (step.reversal.charge, step.terms)]
    schedules = await revising.schedules_of(work.connection, named)
    movements: list[Movement] = []
    movers: list[revising.Reversal | Step] = []
    for step in steps:
        reversal = step.reversal
        if reversal.charge.schedule is not None:
            reversal.schedule = schedules.get(reversal.charge.schedule)
            movements.append(reversal.movement())
            movers.append(reversal)
        if step.terms.schedule is not None:
            step.schedule = schedules.get(step.terms.schedule)
            movements.append(step.entering())
            movers.append(step)
    if not movements:
        return
    by = moved(movements)
    after = await store.move_counters(work.connection, by)
    shares = apportion(movements, {key: quantity - by[key] for key, quantity in after.items()})
    for mover, share in zip(movers, shares, strict=True):
        mover.share = share
    faults.step(f"{crash}.counted")
