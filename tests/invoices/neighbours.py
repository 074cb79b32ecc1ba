"""The rooms around invoices, played by hand: they publish with dense seqs what usage, balance and groups would."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import text

from contracts.closing import Covered, LaneCount, Mark, SilentSource
from contracts.groups import AccountTimeline, BillingEntity, BillingGroup, BillingInformation
from contracts.reading import Reading
from contracts.topics import (
    BALANCE_POSTINGS,
    CLOSING_PROGRESS,
    GROUPS_ACCOUNTS,
    GROUPS_BILLING_GROUPS,
    USAGE_CHARGES,
    Topic,
)
from services.invoices import accumulation
from services.invoices.accumulation import FoldedCharges
from services.invoices.consumer import build
from services.kernel.ids import cutoff_id
from services.kernel.money import format_nano, parse_amount
from services.kernel.period import Period, period_of
from services.runtime.outbox import partition_of
from services.runtime.records import Record
from services.runtime.settings import Settings
from tests.support.rooms import Log, Rooms

LAKESIDE = BillingEntity(
    billing_entity_id="seller", name="Tollbook Inc.", address="1 Main St\nDetroit", vat_id=None, number_prefix="TB-"
)
SOON = timedelta(minutes=1)


def billing_group(group_id: str = "northwind", **changes: Any) -> BillingGroup:
    """A group as the registry tells it."""
    values: dict[str, Any] = {
        "group_id": group_id,
        "version": 1,
        "organization_id": "org",
        "account_id": None,
        "name": group_id.title(),
        "billing_entity": LAKESIDE,
        "billing_information": BillingInformation(company=f"{group_id.title()} Ltd"),
        "zone": "UTC",
        "currency": "USD",
        "tax_rate": "0",
        "pricing_model": None,
        "deleted_at": None,
    }
    return BillingGroup(**(values | changes))


def fold_charges(charges: Iterable[Mapping[str, Any]]) -> FoldedCharges:
    """What invoices make of charges that came in one batch."""
    return accumulation.fold_charges(records_of(accumulation.READING, charges))


def message(data: Mapping[str, Any], **around: Any) -> bytes:
    """An encoded record of `usage.charges`."""
    values = {"id": "1", "type": "usage.charge", "version": 1, "time": "2026-10-10T10:00:00Z"}
    values |= {"link": "usage:events/a/0", "seq": 1, "epoch": 0, "trace": None}
    return json.dumps(values | around | {"data": data}).encode()


def records_of(reading: Reading, charges: Iterable[Mapping[str, Any]]) -> list[Record]:
    """Charges as a room has them that reads them so."""
    records = []
    for seq, data in enumerate(charges, 1):
        encoded = message(data, seq=seq)
        records.append(Record("usage.charges", 0, seq - 1, 0, None, encoded, "lane", reading.read(encoded)))
    return records


def charge(
    account_id: str,
    amount: str,
    *,
    group_id: str | None = "northwind",
    bill_to: str | None = "2026-10",
    **changes: Any,
) -> dict[str, Any]:
    """A charge as usage tells it."""
    values: dict[str, Any] = {
        "charge_id": str(uuid.uuid4()),
        "revision": 0,
        "reverses": None,
        "account_id": account_id,
        "organization_id": "org",
        "plan": "invoiced",
        "group_id": group_id,
        "period": bill_to,
        "bill_to": bill_to,
        "cost_center_id": None,
        "assignment_version": 1,
        "event_time": "2026-10-10T10:00:00Z",
        "publisher": "switch",
        "source": "/switch",
        "event_id": "1",
        "call_leg_id": None,
        "product": "voice.outbound",
        "unit": "second",
        "quantity": 60,
        "duration_s": 60,
        "amount": amount,
        "currency": "USD",
        "book_id": "list",
        "book_version": 1,
        "matched": "1",
        "unit_price": "0.0120",
        "connection_fee": "0",
        "per": 60,
        "minimum": 60,
        "increment": 6,
    }
    return values | changes


def posting(of: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """What balance posts for one charge."""
    is_postpaid = of["plan"] == "invoiced"
    return {
        "account_id": of["account_id"],
        "group_id": of["group_id"],
        "bill_to": of["bill_to"],
        "currency": of["currency"],
        "charges": 1,
        "charged": of["amount"],
        "credits": "0",
        "wallet": "0" if is_postpaid else of["amount"],
        "unbilled": of["amount"] if is_postpaid else "0",
    } | changes


@dataclass
class Neighbours:
    """Publishes in the names of the other rooms, and moves the clock."""

    rooms: Rooms
    now: datetime
    seqs: Counter[tuple[str, str, int]] = field(default_factory=Counter)

    @property
    def log(self) -> Log:
        return self.rooms.log

    @property
    def period(self) -> Period:
        """The month that runs now."""
        return period_of(self.now)

    def publish(self, link: str, topic: Topic, key: str, data: Any) -> None:
        partition = partition_of(key, self.log.partitions(topic.name))
        self.seqs[link, topic.name, partition] += 1
        envelope = {
            "id": str(uuid.uuid4()),
            "type": topic.type,
            "version": topic.version,
            "time": "2026-10-31T23:50:00Z",
            "link": link,
            "seq": self.seqs[link, topic.name, partition],
            "epoch": 0,
            "trace": None,
            "data": data,
        }
        self.log.write(topic.name, value=envelope, key=key, partition=partition)

    def group(self, group_id: str = "northwind", **changes: Any) -> BillingGroup:
        group = billing_group(group_id, **changes)
        self.publish("groups:commands/groups.commands/0", GROUPS_BILLING_GROUPS, group_id, group.data())
        return group

    def account(self, account_id: str, name: str, group_id: str, since: datetime, zone: str = "UTC") -> None:
        interval = {
            "from": since, "to": None, "group_id": group_id, "zone": zone, "currency": "USD", "pricing_model": None,
        }  # fmt: skip
        timeline = AccountTimeline.model_validate(
            {
                "account_id": account_id, "account_no": 1, "version": 1, "organization_id": "org", "name": name,
                "currency": "USD", "opened_at": since, "created_at": since, "level_2": False, "credit_limit": "100",
                "closed_at": None, "plans": ({"from": since, "to": None, "plan": "invoiced"},), "groups": (interval,),
            }
        )  # fmt: skip
        self.publish("groups:commands/groups.commands/0", GROUPS_ACCOUNTS, account_id, timeline.data())

    def charge(self, account_id: str, amount: str, *, posted: bool = True, **changes: Any) -> dict[str, Any]:
        """A charge of the running month, and what balance posts for it."""
        made = charge(account_id, amount, **({"bill_to": self.period.name} | changes))
        self.publish("usage:events/usage.events.switch/0", USAGE_CHARGES, account_id, made)
        if posted:
            self.posting(made)
        return made

    def posting(self, of: dict[str, Any], **changes: Any) -> None:
        data = posting(of, **changes)
        key = data["group_id"] or data["account_id"]
        self.publish("balance:charges/usage.charges/0", BALANCE_POSTINGS, key, data)

    def marks(self, room: str, *, ahead: int = 0) -> tuple[Mark, ...]:
        return tuple(
            Mark(link=link, topic=topic, partition=partition, last_seq=last + ahead)
            for (link, topic, partition), last in sorted(self.seqs.items())
            if link.startswith(f"{room}:") and topic != CLOSING_PROGRESS.name
        )

    def covered(
        self,
        room: str,
        boundary: datetime,
        *,
        group_id: str | None = None,
        held: tuple[str, ...] = (),
        ahead: int = 0,
        silent: tuple[str, ...] = (),
    ) -> None:
        """A room says that a cut is covered; ``ahead`` puts its marks above what it has published."""
        lanes = (
            (
                LaneCount(
                    topic="usage.events.switch",
                    partition=0,
                    from_offset=0,
                    to_offset=3,
                    counts={"rated": 2, "duplicate": 1},
                ),
            )
            if room == "usage" and group_id is None
            else ()
        )
        told = Covered(
            cutoff_id=cutoff_id(boundary),
            boundary=boundary,
            room=room,  # type: ignore[arg-type]
            group_id=group_id,
            marks=self.marks(room, ahead=ahead),
            lanes=lanes,
            held=held,
            counts={"rated": 2, "duplicate": 1},
            silent_sources=tuple(SilentSource(publisher_id="switch", source=each) for each in silent),
            silent_sources_count=len(silent),
        )
        self.publish(f"{room}:tick.{room}", CLOSING_PROGRESS, str(told.cutoff_id), told.data())

    def all_covered(self, boundary: datetime, *, held: tuple[str, ...] = (), silent: tuple[str, ...] = ()) -> None:
        self.covered("groups", boundary)
        self.covered("usage", boundary, held=held, silent=silent)
        self.covered("balance", boundary)

    async def move_to(self, instant: datetime) -> None:
        """Move the one clock forward."""
        statement = text("select runtime.clock_move(:forward)")
        ((self.now,),) = await self.rooms.query("invoices", statement, {"forward": instant - self.now})

    async def settle(self) -> None:
        """Everything that can happen now happens; ticks go on until they have nothing to do."""
        await self.rooms.pump()
        for _ in range(3):
            await self.rooms.pump(ticks=True)


async def neighbours(database: Any) -> Neighbours:
    """Opens the room on a database; close `.rooms` when done."""
    rooms = Rooms(Log(), database, [build(Settings())])
    await rooms.__aenter__()
    ((now,),) = await rooms.query("invoices", text("select runtime.clock_now()"))
    return Neighbours(rooms, now.astimezone(UTC))


def sums_to_zero(event: dict[str, Any]) -> bool:
    """Whether the closing postings of an event balance, to the nano."""
    total = sum(
        parse_amount(each[name], signed=True)
        for each in event["postings"]
        for name in ("wallet", "unbilled", "receivable")
    )
    total += parse_amount(event["posting_rounding"], signed=True) + parse_amount(event["posting_tax"], signed=True)
    return format_nano(total) == "0"
