"""Re-rates between a cut, its close and the month after: charges, wallets and invoices come to the same, to the last digit.

What calls cost is worked out here in fractions; nothing is imported of how the room prices them.
"""

from __future__ import annotations

import random
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

import pytest

from contracts.topics import GROUPS_BILLING_GROUPS
from services.balance import api as balance_api
from services.balance.consumer import room as balance_room
from services.balance.refuse_fast import RefuseFast
from services.invoices import api as invoices_api
from services.invoices.consumer import build as invoices_room
from services.kernel.money import format_nano, parse_amount
from services.kernel.period import period_of
from services.runtime.settings import Settings
from services.usage import api as usage_api
from services.usage import rerate_plans
from services.usage.consumer import build as usage_room
from services.usage.price_files import read_price_file
from services.usage.rerate_plans import Plan
from tests.invoices.neighbours import billing_group
from tests.support.rooms import Log, Rooms
from tests.support.servers import Database
from tests.support.usage_registry import LONG_AGO, Sender, leg, void

NOW = datetime.now(UTC).replace(microsecond=0)
BOUNDARY = period_of(NOW).start
THIS, LAST = period_of(NOW).name, period_of(BOUNDARY - timedelta(seconds=1)).name
PLANS = {"desk": "payg", "east": "invoiced"}
Price = tuple[int, int, int, int]  # nanos a minute and a fee, minimum, increment


async def cut_is_taken(rooms: Rooms, period: str) -> None:
    """The cut at the end of a period is asked for and taken by usage, and has not passed."""
    invoices, usage = rooms.processors["invoices"], rooms.processors["usage"]
    await invoices_api.request_close(invoices.engine, period, "test")
    await invoices.tick(next(tick for tick in invoices.room.ticks if tick.name == "cut"))
    await rooms.drain("invoices")
    await rooms.feed(usage, usage.room.input("closing"))
    await usage.tick(next(tick for tick in usage.room.ticks if tick.name == "cut"))
    (cut,) = await usage_api.cuts(usage.engine)
    assert (cut.taken_at is not None, cut.passed_at) == (True, None)


class Months:
    """Two accounts of one group, over the end of a month."""

    def __init__(self, log: Log, rooms: Rooms, chance: random.Random) -> None:
        self.log, self.rooms, self.chance, self.send = log, rooms, chance, Sender(log)
        self.usage, self.invoices = rooms.processors["usage"].engine, rooms.processors["invoices"].engine
        self.facts: dict[str, tuple[str, int, int]] = {}  # account, seconds, revision

    async def start(self) -> None:
        self.send.publisher()
        group = billing_group("g", organization_id="lakeside")
        self.send.send(GROUPS_BILLING_GROUPS, group.group_id, group.data())
        for account, plan in PLANS.items():
            self.send.account(account, group="g", plan=plan)
        await self.rooms.pump()
        await self.new_prices()
        await invoices_api.set_grace(self.invoices, timedelta(0))

    async def new_prices(self) -> Price:
        chance = self.chance
        price = (
            chance.randrange(10**9),
            chance.choice((0, chance.randrange(10**8))),
            chance.randrange(90),
            chance.randrange(1, 90),
        )
        row = f"voice.outbound,1,{format_nano(price[0])},{format_nano(price[1])},USD,{price[2]},{price[3]}\n"
        header = "product,prefix,price_per_minute,connection_fee,currency,minimum_s,increment_s\n"
        await usage_api.import_prices(
            self.usage, "list", read_price_file((header + row).encode()), LONG_AGO, is_default=True
        )
        return price

    async def call(self, count: int) -> None:
        """Calls on both sides of the boundary, and revisions of some that there are."""
        chance = self.chance
        events: list[dict[str, Any]] = []
        for _ in range(count):
            name = f"call{len(self.facts)}"
            account, seconds = chance.choice(list(PLANS)), chance.randrange(1, 3_000)
            self.facts[name] = account, seconds, 0
            events.append(self._leg(name))
        for name in chance.sample(sorted(self.facts), min(4, len(self.facts))):
            account, seconds, revision = self.facts[name]
            self.facts[name] = account, chance.choice((0, chance.randrange(1, 3_000))), revision + 1
            events.append(self._leg(name))
        for event in events:
            self.send.leg(event, at=BOUNDARY + timedelta(hours=1), partition=0)
        await self.rooms.pump()

    def _leg(self, name: str) -> dict[str, Any]:
        account, seconds, revision = self.facts[name]
        if not seconds:
            return void(name, revision, account=account)
        ended_at = BOUNDARY + timedelta(minutes=random.Random(name).choice((-50, -1, 3)))
        return leg(name, ended_at, account, duration_s=seconds, billable_s=seconds) | {"revision": revision}

    async def re_rate(self) -> Plan:
        span = BOUNDARY - timedelta(hours=2), BOUNDARY + timedelta(hours=2)
        plan = await usage_api.plan_rerate(self.usage, *span, "ann", "finance")
        await usage_api.approve_rerate(self.usage, plan.plan_id, "bob", "operator")
        await usage_api.execute_rerate(self.usage, plan.plan_id, "bob", "operator")
        while (plan := await usage_api.rerate(self.usage, plan.plan_id)).state != "done":
            await self.rooms.pump(ticks=True)
        assert plan.left_stale == 0
        await self.rooms.pump(ticks=True)
        return plan

    async def cut(self) -> None:
        await cut_is_taken(self.rooms, LAST)

    @property
    def charges(self) -> list[dict[str, Any]]:
        return self.log.data("usage.charges")

    def facts_cost(self) -> dict[str, int]:
        found = dict.fromkeys(self.facts, 0)
        for charge in self.charges:
            found[charge["event_id"]] += parse_amount(charge["amount"], signed=True)
        return found

    def by_invoice(self) -> dict[tuple[str, str], int]:
        found: dict[tuple[str, str], int] = defaultdict(int)
        for charge in self.charges:
            found[charge["account_id"], charge["bill_to"]] += parse_amount(charge["amount"], signed=True)
        return found


@pytest.mark.parametrize("seed", range(2))
async def test_charges_wallets_and_invoices_come_to_what_the_new_prices_make(
    database: Database, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance = random.Random(seed)
    monkeypatch.setattr(rerate_plans, "CHUNK", chance.choice((2, 5, 1_000)))
    log = Log()
    balance = balance_room(RefuseFast(lambda: None, prefix="t."))
    async with Rooms(log, database, [usage_room(), balance, invoices_room(Settings())]) as rooms:
        months = Months(log, rooms, chance)
        await months.start()
        await months.call(12)
        price = await months.new_prices()
        await months.re_rate()
        assert months.facts_cost() == {name: cost(seconds, price) for name, (_, seconds, _) in months.facts.items()}

        await months.cut()
        await months.new_prices()
        await months.re_rate()
        assert {charge["bill_to"] for charge in months.charges if charge["period"] == LAST} == {LAST}
        await months.call(6)  # late for the cut: what is of the month before waits for its pass
        months.send.groups_covered(BOUNDARY)
        for _ in range(3):
            await rooms.pump(ticks=True)
        (closed,) = await invoices_api.list_invoices(months.invoices, group_id="g", state="closed")
        document = (await invoices_api.show(months.invoices, closed.number or "")).document

        price = await months.new_prices()
        plan = await months.re_rate()
        assert plan.charges
        assert months.facts_cost() == {name: cost(seconds, price) for name, (_, seconds, _) in months.facts.items()}
        assert (await invoices_api.show(months.invoices, closed.number or "")).document == document
        estimate = await invoices_api.estimate(months.invoices, "g", THIS)
        charged = months.by_invoice()
        for period, shown in ((LAST, document), (THIS, estimate)):
            exact: dict[str, int] = defaultdict(int)
            for line in shown["lines"]:
                exact[line["account_id"]] += parse_amount(line["exact"], signed=True)
            assert {name: exact[name] for name in PLANS} == {name: charged[name, period] for name in PLANS}
        assert {line["period"] for line in estimate["lines"]} == {LAST, THIS}
        assert (await invoices_api.audit(months.invoices)).findings == ()
        engine = rooms.processors["balance"].engine
        assert await balance_api.wallet_differences(engine) == []
        paid = {
            each["account_id"]: parse_amount(each["paid_from_balance"], signed=True) for each in document["accounts"]
        }
        wallets = {each.account_id: (each.wallet, each.unbilled) for each in await balance_api.balances(engine)}
        assert wallets["desk"] == (format_nano(-paid.get("desk", 0) - charged["desk", THIS]), "0")
        assert wallets["east"] == ("0", format_nano(charged["east", THIS]))


def cost(seconds: int, price: Price) -> int:
    """Of the page: fee and billed minutes, rounded once half-even."""
    per_minute, fee, minimum, increment = price
    if not seconds:
        return 0
    billed = minimum
    while billed < seconds:
        billed += increment
    return round(fee + Fraction(billed * per_minute, 60))
