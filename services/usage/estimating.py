"""What events would cost if they were published now, and which would be quarantined: nothing of it is kept.

Each part is handled as a worker would handle it, by the same code in a transaction of its own, and taken back. So it is
exact: prices, minimum and increment, repeats, conflicts, cuts. A worker that bills the same accounts may wait for a moment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Any, cast

from msgspec import Struct
from msgspec.json import Decoder
from pydantic_core import to_json
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts.topics import USAGE_CHARGES, USAGE_EVENTS, Topic
from services.kernel.money import format_nano, parse_amount
from services.runtime.database import is_of_statement, is_retryable
from services.runtime.lanes import transaction_instant
from services.runtime.outbox import Outbox
from services.runtime.records import Record, lane_name
from services.runtime.work import Surroundings, Work
from services.usage.books import SECOND
from services.usage.closing import EVENTS
from services.usage.handler import CLASS_OF_STATE, DUPLICATE, UsageEvents
from services.usage.importing.interface import LegEvent
from services.usage.memory import Memory
from services.usage.tables import RUNTIME

TOGETHER_MAX = 20_000  # events in one transaction, as in a worker's largest batch
QUARANTINED_NAMED_MAX = 1_000
OFFSET_FIRST = 2**62  # behind every record that is there: an event that is published now comes after all cuts taken

ACCEPTED = frozenset(CLASS_OF_STATE.values())


@dataclass(slots=True)
class AccountEstimate:
    """What becomes of an account's legs. ``currency`` is None where nothing is billed; ``repeats`` were counted before."""

    account_id: str
    currency: str | None
    legs: int = 0
    billed_s: int = 0
    amount_nano: int = 0
    not_billable: int = 0
    repeats: int = 0
    waiting: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)

    @property
    def amount(self) -> str:
        return format_nano(self.amount_nano)


@dataclass(frozen=True, slots=True)
class Quarantine:
    """An event that would be put aside, as its publisher would be told."""

    event_id: str
    account_id: str
    reason: str
    field: str | None
    message: str


@dataclass(slots=True)
class Estimate:
    """Accounts by name. ``parts`` is more than one for a file of more than 20,000 legs: what is priced by tiers begins in
    each part from where the counters stand now, so that there the sum is exact only within a part."""

    accounts: list[AccountEstimate] = field(default_factory=list)
    quarantined: list[Quarantine] = field(default_factory=list)
    parts: int = 0


class _Charge(Struct):
    account_id: str
    currency: str
    amount: str
    quantity: int
    unit: str


_decode = Decoder(_Charge).decode


@dataclass(slots=True)
class _Trial(Work):
    """A transaction whose charges are only looked at."""

    charges: list[_Charge] = field(default_factory=list)

    def publish(self, topic: Topic, key: str, id: str, data: Any, *, member: str | None = None) -> None:
        if topic is USAGE_CHARGES:
            self.charges.append(_decode(data if isinstance(data, bytes) else to_json(data)))


async def estimate(
    engine: AsyncEngine, publisher_id: str, events: Iterable[LegEvent], *, at: datetime | None = None
) -> Estimate:
    """What these events would become if this publisher published them now (or ``at``), in this order.

    Amounts are the exact sums of the charges, in nanos. A server that fails is raised as it is; nothing was done then.
    """
    made = _Making(engine, publisher_id, int((at or datetime.now(UTC)).timestamp() * 1000))
    every = iter(events)
    while part := list(islice(every, TOGETHER_MAX)):
        await made.take(part)
    return made.estimate()


class _Making:
    def __init__(self, engine: AsyncEngine, publisher_id: str, timestamp_ms: int) -> None:
        self._engine = engine
        self._topic = USAGE_EVENTS.of(publisher_id)
        self._timestamp_ms = timestamp_ms
        self._handler = UsageEvents(Memory())
        self._accounts: dict[tuple[str, str | None], AccountEstimate] = {}
        self._quarantined: list[Quarantine] = []
        self._contents: dict[str, int] = {}  # what was accepted in earlier parts, which were taken back
        self._parts = 0

    def estimate(self) -> Estimate:
        accounts = self._accounts
        for account_id in {name for name, currency in accounts if currency is not None}:
            # What costs nothing stands with what does, where the account has but one currency.
            billed = [each for (name, currency), each in accounts.items() if name == account_id and currency]
            free = accounts.get((account_id, None))
            if free is not None and len(billed) == 1:
                del accounts[account_id, None]
                one = billed[0]
                one.not_billable += free.not_billable
                one.repeats += free.repeats
                one.waiting += free.waiting
                one.quarantined += free.quarantined
        ordered = sorted(accounts.values(), key=lambda each: (each.account_id, each.currency or ""))
        return Estimate(ordered, self._quarantined, self._parts)

    async def take(self, part: list[LegEvent]) -> None:
        """One part. An id that an earlier part has accepted is a repeat or a conflict, though nothing of that part is kept."""
        self._parts += 1
        new: list[LegEvent] = []
        for event in part:
            content = self._contents.get(event.event["id"])
            if content is None:
                new.append(event)
            elif content == _content(event):
                self._account(event.account_id).repeats += 1
            else:
                self._put_aside(event, "conflict", "another event of this file has the same id and other content", "id")
        if new:
            await self._try(new)

    async def _try(self, events: list[LegEvent]) -> None:
        """As a worker does, what only the database refuses is halved until the one record is found."""
        try:
            await self._handle(events)
        except Exception as error:
            if is_retryable(error) or is_of_statement(error):
                raise
            if len(events) == 1:
                self._put_aside(events[0], "refused_by_store", "the database refuses it", None)
                return
            middle = len(events) // 2
            await self._try(events[:middle])
            await self._try(events[middle:])

    async def _handle(self, events: list[LegEvent]) -> None:
        lane = lane_name(EVENTS, self._topic, 0)
        records = [
            Record(
                self._topic, 0, OFFSET_FIRST + number, self._timestamp_ms, event.account_id.encode(),
                to_json(event.event), lane,
            )
            for number, event in enumerate(events)
        ]  # fmt: skip
        async with self._engine.connect() as connection:  # never committed
            moment = await transaction_instant(connection, RUNTIME)
            nowhere = cast(Surroundings, None)  # only what is finished is sent
            outbox = Outbox("usage", lambda _: 1)
            work = _Trial(connection, RUNTIME, "usage", lane, moment.now, moment.epoch, outbox, nowhere)
            await self._handler.handle(work, records)
        for charge in work.charges:
            account = self._account(charge.account_id, charge.currency)
            account.amount_nano += parse_amount(charge.amount, signed=True)
            account.billed_s += charge.quantity if charge.unit == SECOND else 0
            account.legs += 1
        parked = {id(item.record): item for item in work.parked}
        for event, record in zip(events, records, strict=True):
            item = parked.get(id(record))
            if record.verdict == DUPLICATE:
                self._account(event.account_id).repeats += 1
            elif record.verdict == "not_billable":
                self._account(event.account_id).not_billable += 1
            elif record.verdict == "waiting":
                self._account(event.account_id).waiting += 1
            elif item is not None:
                self._put_aside(event, item.reason, item.message, item.field)
            if record.verdict in ACCEPTED:
                self._contents[event.event["id"]] = _content(event)

    def _account(self, account_id: str, currency: str | None = None) -> AccountEstimate:
        return self._accounts.setdefault((account_id, currency), AccountEstimate(account_id, currency))

    def _put_aside(self, event: LegEvent, reason: str, message: str, field: str | None) -> None:
        self._account(event.account_id).quarantined[reason] += 1
        if len(self._quarantined) < QUARANTINED_NAMED_MAX:
            self._quarantined.append(Quarantine(event.event["id"], event.account_id, reason, field, message))


def _content(event: LegEvent) -> int:
    return hash(to_json(event.event["data"]))
