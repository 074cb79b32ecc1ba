"""What a simulation and the plan of a re-rate say is what rating itself would have charged, to the last nano; and each charge
explains exactly what it is. Whatever is used, amended and taken back, in whatever order, over a change of clocks."""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from contracts.usage import DATA, MESSAGE, PRODUCT, RENTAL
from services.kernel.money import parse_amount
from services.usage import api
from services.usage.books import PriceRow
from services.usage.price_files import PriceFile
from services.usage.tiers import Band, Schedule
from services.usage.windows import window_of
from tests.support.usage_registry import LONG_AGO, leg, void
from tests.support.usage_room import Usage
from tests.usage.test_rerating import carry_out, live_once

NOW = datetime.now(UTC).replace(microsecond=0)
CLOCKS_CHANGE = "America/Detroit"
SPAN = NOW - timedelta(days=40), NOW + timedelta(days=1)
PLANS: tuple[Mapping[str, Any], ...] = (
    {"plan": "payg"},
    {"plan": "invoiced"},
    {"plans": [(LONG_AGO, NOW - timedelta(days=12), "payg"), (NOW - timedelta(days=12), None, "invoiced")]},
)


class Shop:
    """Books and uses that nobody chose."""

    def __init__(self, dice: random.Random, zone: str) -> None:
        self.dice, self.zone = dice, zone

    def _nano(self) -> int:
        return self.dice.choice([0, self.dice.randrange(1, 10**6), self.dice.randrange(1, 10**8)])

    def book(self) -> PriceFile:
        """A price for everything that is used: by tiers with included quantities, in windows, with fees and steps."""
        dice = self.dice
        windows = (
            window_of("early", CLOCKS_CHANGE, "sun", "01:00", "02:00"),
            window_of("night", CLOCKS_CHANGE, "mon-sat", "22:00", "03:00"),
        )
        rows: list[PriceRow] = []
        schedules: list[Schedule] = []

        def price(product: str, prefix: str, unit: str, per: int, *steps: tuple[int, int], window: str = "") -> None:
            minimum, increment = dice.choice(steps)
            if not window and not product.startswith("voice.toll_free") and dice.random() < 0.35:
                first = dice.randrange(1, 40)
                bands = (
                    Band(first, dice.choice([0, self._nano()]), dice.choice([0, 10**7])),
                    Band(first + dice.randrange(1, 400), self._nano()),
                    Band(None, self._nano(), dice.choice([0, 10**6])),
                )
                name = f"s{len(schedules)}"
                schedules.append(Schedule(name, dice.choice(["graduated", "volume"]), per, bands))
                rows.append(PriceRow(product, prefix, 0, 0, minimum, increment, per, unit, schedule=name))
            else:
                fee = dice.choice([0, dice.randrange(10**6)])
                rows.append(PriceRow(product, prefix, self._nano(), fee, minimum, increment, per, unit, window=window))

        for prefix in ("+1", "+1248", "+44"):
            price("voice.outbound", prefix, "second", 60, (60, 60), (60, 6), (1, 1), (30, 7))
            for window in dice.sample(["early", "night"], dice.randrange(3)):
                price("voice.outbound", prefix, "second", dice.choice([60, 7]), (60, 6), (1, 1), window=window)
        price("voice.inbound", "*", "second", 60, (6, 6))
        price("voice.toll_free", "+1", "second", 60, (6, 6))
        price("voice.toll_free.surcharge", "+1248", "second", 7, (0, 1), (60, 60))
        price("message.sms.outbound", "+1", "segment", 1, (0, 1))
        price("data", "*", "byte", 1_000_000, (10_000, 10_000))
        price("number.rental", "+1", "day", 1, (0, 1))
        price("pieces", "*", "piece", dice.choice([1, 3]), (0, 1), (5, 4))
        return PriceFile("USD", tuple(rows), (), windows, tuple(schedules))

    def use(self, name: str, revision: int) -> dict[str, Any]:
        """A use of `a` of some kind, at some time of the last month."""
        dice = self.dice
        at = NOW - timedelta(seconds=dice.randrange(34 * 86_400))
        then, quantity = f"{at:%Y-%m-%dT%H:%M:%SZ}", dice.randrange(1, 200)
        event = leg(name, at, "a") | {"revision": revision}
        kind = dice.choice(["outbound", "outbound", "inbound", MESSAGE, DATA, RENTAL, PRODUCT])
        if kind == "outbound":
            called = dice.choice(["+12485550101", "+13135550101", "+447700900123"])
            lasted = quantity + dice.randrange(3_000)
            return leg(name, at, "a", called=called, duration_s=lasted, billable_s=quantity) | {"revision": revision}
        if kind == "inbound":
            more = {
                "direction": "inbound", "called": dice.choice(["+13135550199", "+18775550199"]),
                "caller": dice.choice([None, "+12485550100", "+33123456789"]),
            }  # fmt: skip
            return leg(name, at, "a", duration_s=quantity, billable_s=quantity, **more) | {"revision": revision}
        data: dict[str, Any] = {
            MESSAGE: {
                "direction": "outbound", "channel": "sms", "sender": "desk", "recipient": "+12485550101",
                "segments": quantity % 9 + 1, "outcome": "delivered", "sent_at": then,
            },
            DATA: {"bytes": quantity * 12_345, "network": "310260", "started_at": then, "ended_at": then},
            RENTAL: {
                "number": "+13135550177", "month": f"{at.astimezone(ZoneInfo(self.zone)):%Y-%m}",
                "days": quantity % 28 + 1, "starts_at": then,
            },
            PRODUCT: {"product": "pieces", "quantity": quantity, "unit": "piece", "used_at": then},
        }[kind]  # fmt: skip
        return event | {"type": kind, "data": {"account_id": "a"} | data}


def of_b(event: dict[str, Any]) -> dict[str, Any]:
    """The same use, of the other account."""
    return event | {"id": f"b-{event['id']}", "data": event["data"] | {"account_id": "b"}}


def cost(usage: Usage, account: str) -> int:
    return sum(parse_amount(each["amount"], signed=True) for each in usage.charges if each["account_id"] == account)


async def explains_itself(usage: Usage) -> None:
    for charge in usage.charges:
        steps = (await api.charge(usage.engine, UUID(charge["charge_id"]))).steps
        assert steps[-1].endswith(f" {charge['amount']} USD"), (steps, charge)
        assert f"billed {abs(charge['quantity'])} " in " ".join(steps), (steps, charge)


@pytest.mark.parametrize("seed", range(3))
async def test_simulated_planned_and_rated_come_to_the_same(usage: Usage, seed: int) -> None:
    """`b` has the draft for its price book; of `a` the draft is simulated, planned and carried out."""
    dice = random.Random(seed)
    zone = dice.choice(["UTC", "Asia/Kolkata", CLOCKS_CHANGE, "Pacific/Honolulu"])
    shop, plan = Shop(dice, zone), dice.choice(PLANS)
    for book in ("list", "draft"):
        for start in (LONG_AGO, NOW - timedelta(days=dice.randrange(5, 30))):
            await api.import_prices(usage.engine, book, shop.book(), start)
    usage.send.account("a", zone=zone, **plan)
    usage.send.account("b", zone=zone, pricing_model="draft", **plan)
    await usage.rooms.pump()
    events = [
        void(f"e{number}", revision, account="a")
        if revision and dice.random() < 0.3
        else shop.use(f"e{number}", revision)
        for number in range(50)
        for revision in range(dice.choice([1, 1, 1, 2, 3]))
    ]
    await usage.take(*dice.sample(events, len(events)))
    await usage.take(*map(of_b, dice.sample(events, len(events))))
    now, then = cost(usage, "a"), cost(usage, "b")
    await explains_itself(usage)

    for draft, place, expected in (("list", "list", now), ("draft", None, then)):
        (line,) = (await api.simulate(usage.engine, draft, *SPAN, in_place_of=place, account_id="a")).total.values()
        assert (line.now_nano, line.then_nano, line.unpriced) == (now, expected, 0)
    planned = await api.plan_rerate(usage.engine, *SPAN, "ann", "finance", account_ids=["a"], book_id="draft")
    (total,) = (line for line in planned.sums if line.of == "total")
    assert (planned.left_out, parse_amount(total.difference, signed=True)) == ((), then - now)
    await api.approve_rerate(usage.engine, planned.plan_id, "bob", "operator")
    await api.execute_rerate(usage.engine, planned.plan_id, "bob", "operator")
    await carry_out(usage)
    assert cost(usage, "a") == then
    await explains_itself(usage)
    await live_once(usage)
    await usage.take(*(void(f"e{number}", 9, account="a") for number in range(50)))
    assert cost(usage, "a") == 0
    await live_once(usage)
