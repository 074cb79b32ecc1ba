"""The same use in any order of arrival is the same money: charges' sums, wallets and invoices, against the page by fractions.

Each world has the same events for accounts and a group of its own, published in an order of its own: shuffled, over two
partitions, some twice, read by two workers in batches of any size and at once, cut while some are still unread, with late
ones after the cut, some voided or amended before or after what they correct. The model is written from designs/tiers.md; it imports nothing of how tiers are made.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from math import floor
from typing import Any

import pytest
from pydantic import TypeAdapter

from contracts.topics import GROUPS_BILLING_GROUPS
from contracts.usage import PRODUCT, VOIDED, Charge
from services.balance import api as balance_api
from services.balance.consumer import room as balance_room
from services.balance.refuse_fast import RefuseFast
from services.invoices import api as invoices_api
from services.invoices.consumer import build as invoices_room
from services.kernel.money import format_nano, parse_amount, round_minor
from services.kernel.period import period_of
from services.runtime.processor import Processor
from services.runtime.settings import Settings
from services.usage import api as usage_api
from services.usage.consumer import build as usage_room
from services.usage.price_documents import read_price_document
from tests.invoices.neighbours import billing_group
from tests.support.rooms import Log, Rooms
from tests.support.servers import Database
from tests.support.usage_registry import LONG_AGO, SOURCE, Sender

NOW = datetime.now(UTC).replace(microsecond=0)
BOUNDARY = period_of(NOW).start
THIS, LAST = period_of(NOW).name, period_of(BOUNDARY - timedelta(seconds=1)).name
WORLDS = 3
PLANS = {"desk": "payg", "east": "invoiced"}


# ---- what is used ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    """A use of `quantity`, or, of revision 1, what holds instead: a void has quantity 0. ``late`` ones are published after the
    cut."""

    event_id: str
    account: str
    product: str
    center: str | None
    quantity: int
    at: datetime
    late: bool
    revision: int = 0

    @property
    def period(self) -> str:
        return period_of(self.at).name

    @property
    def bill_to(self) -> str:
        return THIS if self.late else self.period

    def told(self, world: int) -> dict[str, Any]:
        data = {
            "account_id": f"w{world}-{self.account}", "product": self.product, "quantity": self.quantity, "unit": "request",
            "used_at": f"{self.at:%Y-%m-%dT%H:%M:%SZ}", "cost_center_id": self.center,
        }  # fmt: skip
        kind = PRODUCT
        if not self.quantity:
            kind, data = VOIDED, {"account_id": data["account_id"], "reason": "it never was"}
        return {
            "specversion": "1.0", "id": f"w{world}-{self.event_id}", "source": SOURCE, "type": kind,
            "revision": self.revision, "data": data,
        }  # fmt: skip


def some_schedule(chance: random.Random) -> dict[str, Any]:
    ends = [*sorted(chance.sample(range(1, 500), chance.randint(0, 3))), None]
    bands = [
        {
            "up_to": end,
            "price": format_nano(chance.choice([0, 10**7, chance.randint(1, 10**9)])),
            "fee": chance.choice(["0", "0", "1.5"]),
        }
        for end in ends
    ]
    return {"id": "s", "form": chance.choice(["graduated", "volume"]), "per": chance.choice([1, 3, 7]), "bands": bands}


def some_events(chance: random.Random) -> list[Event]:
    """Uses, and corrections of some of them."""
    uses = [
        Event(
            f"e{number}",
            chance.choice(list(PLANS)),
            chance.choice(["api.lookups", "api.lookups", "api.other"]),
            chance.choice([None, "north", "south"]),
            chance.randint(1, 150),
            BOUNDARY + timedelta(seconds=chance.choice([-3_000, -2_000, -2_000, -1_000, 60])),
            chance.random() < 0.3,
        )
        for number in range(chance.randint(8, 24))
    ]
    corrections = [
        replace(
            use,
            revision=1,
            late=chance.random() < 0.5,
            quantity=chance.choice([0, chance.randint(1, 150)]),
            center=chance.choice([use.center, "north"]),
        )
        for use in uses
        if chance.random() < 0.4
    ]
    return uses + corrections


@dataclass(frozen=True)
class Entry:
    """What an invoice takes in, below zero what it gives back."""

    account: str
    product: str
    center: str
    period: str
    bill_to: str
    quantity: int
    schedule: str = "list/1/s"


def entries(events: list[Event]) -> list[Entry]:
    """What all events come to. A revision that is no later than its use holds from the start: the use itself leaves no trace."""
    revised = {event.event_id: event for event in events if event.revision}
    found = []
    for use in (event for event in events if not event.revision):
        correction = revised.get(use.event_id)
        steps = [(use, 1, use.bill_to)]
        if correction is not None:
            steps = [(correction, 1, correction.bill_to)]
            if correction.bill_to > use.bill_to:
                steps += [(use, 1, use.bill_to), (use, -1, correction.bill_to)]
        found += [
            Entry(each.account, each.product, each.center or "", each.period, invoice, sign * each.quantity)
            for each, sign, invoice in steps
            if each.quantity
        ]
    return found


# ---- what it costs, by the page --------------------------------------------------------------------------------------


def total(schedule: dict[str, Any], quantity: int) -> int:
    """R(T(Q)) in nanos."""
    exact, below = Fraction(0), 0
    for band in schedule["bands"]:
        if quantity <= below:
            break
        top = quantity if band["up_to"] is None else min(quantity, band["up_to"])
        price, fee = Fraction(parse_amount(band["price"]), schedule["per"]), parse_amount(band["fee"])
        exact = exact + (top - below) * price + fee if schedule["form"] == "graduated" else quantity * price + fee
        below = top
    return round(exact)  # a fraction is rounded half-even


def expected_lines(
    schedules: dict[str, dict[str, Any]], all_entries: list[Entry], invoice: str
) -> list[dict[str, Any]]:
    """The lines of an invoice: each counter's sum, divided by quantity with the largest remainders."""
    lines = []
    counters: dict[tuple[str, str, str, str], list[Entry]] = defaultdict(list)
    for entry in all_entries:
        counters[entry.account, entry.product, entry.period, entry.schedule].append(entry)
    for (account, product, period, name), of_counter in counters.items():
        schedule = schedules[name]
        counted = sum(entry.quantity for entry in of_counter if entry.bill_to < invoice)
        by_center: dict[str, int] = defaultdict(int)
        for entry in of_counter:
            by_center[entry.center] += entry.quantity if entry.bill_to == invoice else 0
        centers = sorted(center for center, quantity in by_center.items() if quantity)
        quantities = [by_center[center] for center in centers]
        used = sum(quantities)
        cost = total(schedule, counted + used) - total(schedule, counted)
        exact = [Fraction(cost * quantity, used) if used else Fraction(0) for quantity in quantities]
        parts = [floor(each) for each in exact]
        by_rest = sorted(range(len(parts)), key=lambda index: (parts[index] - exact[index], centers[index]))
        for index in by_rest[: cost - sum(parts)]:
            parts[index] += 1
        for center, quantity, part in zip(centers, quantities, parts, strict=True):
            lines.append(
                {
                    "account_id": account, "product": product, "cost_center_id": center or None, "period": period,
                    "prior_period": period != invoice, "payment": "postpaid" if PLANS[account] == "invoiced" else "prepaid",
                    "quantity": quantity, "unit_price": None, "schedule": name, "exact": format_nano(part),
                    "amount": format_nano(round_minor(part, 2), decimals_min=2),
                }
            )  # fmt: skip
    return sorted(
        lines,
        key=lambda line: [
            line["account_id"],
            line["product"],
            line["cost_center_id"] or "",
            line["period"],
            line["schedule"],
        ],
    )


# ---- how it comes ----------------------------------------------------------------------------------------------------


class Arrival:
    """All worlds over one log, with the rooms that read it and a second worker of usage."""

    def __init__(self, log: Log, rooms: Rooms, second: Rooms, chance: random.Random) -> None:
        self.log, self.rooms, self.chance = log, rooms, chance
        self.send = Sender(log)
        self.slow = chance.randrange(2)
        self.workers = (rooms.processors["usage"], second.processors["usage"])

    async def start(self, schedule: dict[str, Any]) -> None:
        self.send.publisher()
        for center in ("north", "south"):
            self.send.cost_center(center)
        for world in range(WORLDS):
            group = billing_group(f"g{world}", organization_id="lakeside")
            self.send.send(GROUPS_BILLING_GROUPS, group.group_id, group.data())
            for account, plan in PLANS.items():
                self.send.account(f"w{world}-{account}", group=group.group_id, plan=plan)
        await self.rooms.pump()
        await self.new_prices(schedule)
        await invoices_api.set_grace(self.rooms.processors["invoices"].engine, timedelta(0))

    async def new_prices(self, schedule: dict[str, Any]) -> None:
        """A version of the list that is valid at all times."""
        prices = [{"product": name, "unit": "request", "schedule": "s"} for name in ("api.lookups", "api.other")]
        document = {"currency": "USD", "schedules": [schedule], "prices": prices}
        book = read_price_document(json.dumps(document).encode())
        assert book.refused == ()
        await usage_api.import_prices(self.workers[0].engine, "list", book, LONG_AGO, is_default=True)

    def order(self, events: list[Event]) -> list[dict[str, Any]]:
        """The events of all worlds, in another order in each, some of them again later."""
        told: list[tuple[float, dict[str, Any]]] = []
        for world in range(WORLDS):
            for event in events:
                place = self.chance.random()
                told.append((place, event.told(world)))
                if self.chance.random() < 0.2:
                    told.append((self.chance.uniform(place, 1), event.told(world)))
        return [event for _, event in sorted(told, key=lambda each: each[0])]

    async def publish(self, events: list[dict[str, Any]]) -> None:
        """Write them over both partitions, while the workers read now and then."""
        for event in events:
            partition = self.chance.randrange(2)
            self.send.leg(event, partition=partition, at=BOUNDARY + timedelta(hours=1))
            if self.chance.random() < 0.25:
                await self.read()

    async def read(self) -> None:
        """One or both workers handle a batch of their partition; which worker has which changes. One partition is slow: late
        records of the other are met before what they are late for."""
        is_slow = self.chance.random() < 0.1
        partitions = self.chance.sample((0, 1), self.chance.randint(1, 2)) if is_slow else [1 - self.slow]
        workers = self.chance.sample(self.workers, 2)
        await asyncio.gather(*(self._batch(worker, part) for worker, part in zip(workers, partitions, strict=False)))

    async def _batch(self, worker: Processor, partition: int) -> None:
        source = worker.room.input("events")
        object.__setattr__(source, "max_records", self.chance.randint(1, 12))
        await self.rooms.feed(worker, source, partition=partition)

    async def cut(self) -> None:
        """The month is closed by command: usage takes the cut while records may still be unread."""
        invoices, usage = self.rooms.processors["invoices"], self.workers[0]
        await invoices_api.request_close(invoices.engine, LAST, "test")
        await invoices.tick(next(tick for tick in invoices.room.ticks if tick.name == "cut"))
        await self.rooms.drain("invoices")
        await self.rooms.feed(usage, usage.room.input("closing"))
        await usage.tick(next(tick for tick in usage.room.ticks if tick.name == "cut"))
        (cut,) = await usage_api.cuts(usage.engine)
        assert cut.taken_at is not None

    async def settle(self) -> None:
        self.send.groups_covered(BOUNDARY)
        for _ in range(3):
            await self.rooms.pump(ticks=True)


@pytest.mark.parametrize("seed", range(4))
async def test_any_order_of_arrival_is_the_same_money_to_the_last_digit(database: Database, seed: int) -> None:
    chance = random.Random(seed)
    schedule, events = some_schedule(chance), some_events(chance)
    log = Log()
    balance = balance_room(RefuseFast(lambda: None, prefix="t."))
    async with (
        Rooms(log, database, [usage_room(), balance, invoices_room(Settings())]) as rooms,
        Rooms(log, database, [usage_room()]) as second,
    ):
        arrival = Arrival(log, rooms, second, chance)
        await arrival.start(schedule)
        await arrival.publish(arrival.order([event for event in events if not event.late]))
        await arrival.cut()
        await arrival.publish(arrival.order([event for event in events if event.late]))
        await arrival.settle()

        seen = [await money_of(arrival, world) for world in range(WORLDS)]
        assert (await invoices_api.audit(rooms.processors["invoices"].engine)).findings == ()
    assert seen[0] == seen[1] == seen[2]
    documents, by_invoice = seen[0]["documents"], seen[0]["charged"]
    for invoice, document in documents.items():
        lines = expected_lines({"list/1/s": schedule}, entries(events), invoice)
        assert document["lines"] == lines
        cost = {name: sum(parse_amount(line["exact"], signed=True) for line in lines if line["account_id"] == name) for name in PLANS}  # fmt: skip
        assert {name: by_invoice.get(f"{name} {invoice}", 0) for name in PLANS} == cost
    check_purses(seen[0])


def check_purses(money: dict[str, Any]) -> None:
    """The wallet paid what is on both invoices of the prepaid account; of the other one the open invoice is owed."""
    closed = money["documents"].get(LAST, {"accounts": ()})["accounts"]
    paid = {each["account_id"]: parse_amount(each["paid_from_balance"], signed=True) for each in closed}
    running = {name: money["charged"].get(f"{name} {THIS}", 0) for name in PLANS}
    assert money["purses"]["desk"] == [format_nano(-paid.get("desk", 0) - running["desk"]), "0"]
    assert money["purses"]["east"] == ["0", format_nano(running["east"])]


async def money_of(arrival: Arrival, world: int) -> dict[str, Any]:
    """Everything that a world's events came to, without the names of the world.

    What was charged and taken back in one world was absorbed before it was charged in another: it leaves no amount.
    """
    engines = {name: processor.engine for name, processor in arrival.rooms.processors.items()}
    group = f"g{world}"
    charged: dict[str, int] = defaultdict(int)
    for charge in arrival.log.data("usage.charges"):
        if charge["group_id"] == group:
            TypeAdapter(Charge).validate_python(charge)
            charged[f"{charge['account_id']} {charge['bill_to']}"] += parse_amount(charge["amount"], signed=True)
    documents = {
        each.period: (await invoices_api.show(engines["invoices"], each.number or "")).document
        for each in await invoices_api.list_invoices(engines["invoices"], group_id=group, state="closed")
    }
    documents[THIS] = await invoices_api.estimate(engines["invoices"], group, THIS)
    told = {
        period: {
            "lines": [without(line, "charges", "account_name") for line in document["lines"] if line["quantity"]],
            "accounts": [each for each in document["accounts"] if each["exact"] != "0"],
            "exact": document["evidence"]["exact_sum"],
            **{name: document[name] for name in ("rounding", "tax", "totals")},
        }
        for period, document in documents.items()
    }
    assert all(line["exact"] == "0" for each in documents.values() for line in each["lines"] if not line["quantity"])
    wallets = await balance_api.balances(engines["balance"], [f"w{world}-{name}" for name in PLANS])
    found = {
        "documents": {period: document for period, document in told.items() if document["lines"]},
        "charged": {key: nano for key, nano in charged.items() if nano},
        "purses": {each.account_id: [each.wallet, each.unbilled] for each in wallets},
    }
    without_names: dict[str, Any] = json.loads(json.dumps(found).replace(f"w{world}-", ""))
    return without_names


def without(line: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in names}
