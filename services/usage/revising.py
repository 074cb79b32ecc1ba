"""Higher revisions of a usage fact: which charge they take back, and on which invoice.

What is live is the charge of the revision that holds, or the one that stands in its place after re-rates and
reassignments. A higher one takes it back by a reversal, the exact negative of it under the same stamps, and unless it is a
void has a charge of its own.
Source: designs/identity, "Void, amend, re-rate".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any, TypeVar
from uuid import UUID

from msgspec import Struct
from msgspec.json import Encoder
from sqlalchemy.ext.asyncio import AsyncConnection

from contracts.topics import USAGE_EVENTS
from contracts.usage import Charge
from services.kernel.errors import Corrupt
from services.kernel.ids import charge_id, identity_digest, reversal_id
from services.kernel.money import format_nano
from services.kernel.period import instant_text, period_named
from services.runtime.records import Record
from services.usage import store, tiers
from services.usage.cloudevents import structured
from services.usage.events import EventRefused, decode
from services.usage.generations import ALWAYS
from services.usage.memory import Memory
from services.usage.stamping import BillTo
from services.usage.tables import CHARGE_COLUMNS
from services.usage.tiers import Movement, Schedule, Share, schedule_version

RATED, RATED_UNGROUPED, NOT_BILLABLE, VOIDED = 1, 2, 3, 4  # states of an identity
CHARGED = (RATED, RATED_UNGROUPED)
LOWER_LOOKED_FOR = 8  # revisions below that of an event whose fact is forgotten: one of them, or 0, was charged
DAY_MAX = 2**15 - 1
_EPOCH = date(1970, 1, 1).toordinal()

KeyT = TypeVar("KeyT")

_encode = Encoder().encode


def day_of(event_time: datetime) -> int:
    """The day of an event time, as identities keep it to find the charge again: days since 1970, in two bytes.

    >>> day_of(datetime(2026, 10, 31, 23, 50, tzinfo=UTC)), day_of(datetime(1, 1, 1)), day_of(datetime(9999, 1, 1))
    (20757, 0, 32767)
    """
    return min(max(event_time.toordinal() - _EPOCH, 0), DAY_MAX)


class Reversal(Struct, gc=False):
    """A charge that is taken back, and the period on whose invoice that stands. The cause is a revision, the plan of a
    re-rate or a reassignment; partition and offset are those of the record that revises it, else its own. Of a price by tiers
    it takes back what the counter costs less without it: ``share``."""

    charge: store.Found
    bill_to: str | None
    cause: int | UUID
    partition: int
    offset: int
    schedule: Schedule | None = None
    share: Share | None = None

    def movement(self) -> Movement:
        """What it takes out of the counter that the charge went into."""
        live = self.charge
        if self.schedule is None:
            raise Corrupt(f"the schedule of charge {live.charge_id} is gone", code="schedule_lost")
        return tiers.movement_for(live, live.schedule, self.schedule, live.per, -live.quantity)

    def written(self) -> tuple[tuple[Any, ...], str, bytes]:
        """Its row in the order of `CHARGE_COLUMNS`, its id, and the data that is published."""
        live, share = self.charge, self.share
        id = reversal_id(live.charge_id, self.cause)
        amount_nano = -live.amount_nano if share is None else share.amount_nano
        changed = {
            "charge_id": id,
            "amount_nano": amount_nano,
            "quantity": -live.quantity,
            "bill_to": self.bill_to,
            "reverses": live.charge_id,
            "partition": self.partition,
            "offset": self.offset,
            "counted_before": share.before if share is not None else None,
            "counted_after": share.after if share is not None else None,
        }
        row = tuple(changed[name] if name in changed else getattr(live, name) for name in CHARGE_COLUMNS)
        charge = told(live, changed)
        if share is not None and self.schedule is not None:
            tiers.tell(charge, live.schedule, self.schedule.form, share)
        return row, str(id), _encode(charge)


def told(live: store.Found, changed: Mapping[str, Any]) -> Charge:
    """The data of a charge that is like another one but for what is changed: columns of its row and of its price."""

    def value(name: str) -> Any:
        return changed[name] if name in changed else getattr(live, name)

    reverses = value("reverses")
    charge: Charge = {
        "charge_id": str(value("charge_id")),
        "revision": live.revision,
        "reverses": str(reverses) if reverses is not None else None,
        "account_id": value("account_id"),
        "organization_id": value("organization_id"),
        "plan": value("plan"),
        "group_id": value("group_id"),
        "period": value("period"),
        "bill_to": value("bill_to"),
        "cost_center_id": value("cost_center_id"),
        "outbound_profile": live.outbound_profile,
        "assignment_version": value("assignment_version"),
        "event_time": instant_text(live.event_time.astimezone(UTC)),
        "publisher": live.publisher,
        "source": live.source,
        "event_id": live.event_id,
        "call_leg_id": live.call_leg_id,
        "product": live.product,
        "unit": live.unit,
        "quantity": value("quantity"),
        "duration_s": live.duration_s,
        "amount": format_nano(value("amount_nano")),
        "currency": value("currency"),
        "book_id": value("book_id"),
        "book_version": value("book_version"),
        "matched": value("matched"),
        "unit_price": format_nano(value("price_nano")),
        "per": value("per"),
        "connection_fee": format_nano(value("connection_fee_nano")),
        "minimum": value("minimum"),
        "increment": value("increment"),
    }
    if value("window") is not None:
        charge["window"] = value("window")
    if value("surcharge") is not None:
        charge["surcharge"] = json.loads(value("surcharge"))
    return charge


def bill_to(memory: Memory, charge: store.Found, record: Record) -> BillTo | None:
    """Where the reversal of a charge stands: not before the charge itself. None when nobody knows its group any more."""
    zone = memory.registry.zone_of(charge.group_id)
    if zone is None:
        return None
    period = period_named(charge.bill_to, zone)
    lane = (record.topic, record.partition)
    return memory.cuts.bill_to(charge.group_id, zone, period, lane, record.offset, replayed=record.replayed)


async def live_charges(connection: AsyncConnection, holding: Mapping[bytes, store.Found]) -> dict[bytes, store.Found]:
    """The charges, with their prices, of the revisions that hold; these were all charged. After re-rates and
    reassignments the live charge is the one in the place of the first, however often."""
    if not holding:
        return {}
    ids = {charge_id(digest, row.revision): digest for digest, row in holding.items()}
    days = [row.day for row in holding.values()]
    start = end = None
    if None not in days:  # it was not kept before there were revisions
        start = datetime.fromordinal(_EPOCH + min(days)).replace(tzinfo=UTC)
        end = datetime.fromordinal(_EPOCH + max(days) + 1).replace(tzinfo=UTC)
    standing = list(ids)
    while standing := await _replace(connection, ids, standing, start, end):
        pass
    found = {ids[row.charge_id]: row for row in await store.charges_with_prices(connection, list(ids), start, end)}
    if found.keys() != holding.keys():
        raise Corrupt("a usage fact says that it is charged, and its charge is not there", code="charge_lost")
    return found


async def _replace(
    connection: AsyncConnection,
    ids: dict[UUID, bytes],
    standing: Sequence[UUID],
    start: datetime | None,
    end: datetime | None,
) -> list[UUID]:
    """Put the charge that stands in the place of another one there; returns those: they may be replaced themselves."""
    replaced = await store.replacements(connection, standing, start, end)
    for before, after in replaced.items():
        ids[after] = ids.pop(before)
    return list(replaced.values())


def revised_by(record: Record) -> tuple[bytes, int] | None:
    """The fact that a record would revise, by its digest, and the revision: None of one that is no higher revision."""
    if b'"revision"' not in (record.value or b"") and all(name != "ce_revision" for name, _ in record.headers):
        return None
    try:
        event = decode(structured(record.headers, record.value))
    except EventRefused:
        return None
    if not event.revision:
        return None
    return identity_digest(USAGE_EVENTS.member(record.topic), event.source, event.event_id), event.revision


async def live_of(
    connection: AsyncConnection, memory: Memory, revised: Mapping[KeyT, tuple[bytes, int]]
) -> dict[KeyT, store.Found]:
    """Of each of these revisions the live charge that it would take back, if there is one by now."""
    if not revised:
        return {}
    generations = (*memory.sealed_generations, memory.generation)
    known = await store.known_identities(connection, generations, [digest for digest, _ in revised.values()])
    live = await live_charges(connection, {digest: row for digest, row in known.items() if row.state in CHARGED})
    return {
        key: live[digest]
        for key, (digest, revision) in revised.items()
        if digest in live and live[digest].revision < revision
    }


def held_by(charge: store.Found | None) -> dict[str, str] | None:
    """What of a live charge says whose invoice waits for the record that would take it back."""
    if charge is None or charge.group_id is None:
        return None
    return {
        "account_id": charge.account_id,
        "group_id": charge.group_id,
        "event_time": charge.event_time.isoformat(),
    }


async def charged_long_ago(connection: AsyncConnection, memory: Memory, revisions: Mapping[bytes, int]) -> set[bytes]:
    """Which of these facts, of which no identity is known, were charged under one that is forgotten.

    Only the days are searched of which something may be forgotten.
    """
    if memory.remembered_from is ALWAYS or not revisions:
        return set()
    ids: dict[UUID, bytes] = {}
    for digest, revision in revisions.items():
        lower = {0, *range(max(0, revision - LOWER_LOOKED_FOR), revision)}
        ids.update((charge_id(digest, each), digest) for each in lower)
    return {ids[each] for each in await store.existing_charges(connection, list(ids), memory.remembered_from)}


async def schedules_of(connection: AsyncConnection, charges: Iterable[store.Found]) -> dict[str, Schedule]:
    """The schedules of these charges' versions of books, by the names that charges give them."""
    versions = {(each.book_id, each.book_version) for each in charges if each.schedule is not None}
    return {
        schedule_version(*version, schedule.schedule_id): schedule
        for version in sorted(versions)
        for schedule in await store.book_schedules(connection, *version)
    }
