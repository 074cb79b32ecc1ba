"""Changes of the registry that become known after use was charged, before a cut, between cut and pass and after the close:
charges, wallets, credits and the invoices of both groups come to what they would be had it been known first.

What calls cost is worked out here in fractions; nothing is imported of how the room prices or moves them.
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
from services.balance import vouchers
from services.balance.consumer import room as balance_room
from services.balance.refuse_fast import RefuseFast
from services.invoices import api as invoices_api
from services.invoices.consumer import build as invoices_room
from services.kernel.money import format_nano, parse_amount
from services.kernel.period import period_of
from services.runtime.settings import Settings
from services.usage import api as usage_api
from services.usage import reassignments
from services.usage.consumer import build as usage_room
from services.usage.price_files import read_price_file
from tests.invoices.neighbours import billing_group
from tests.support.rooms import Log, Rooms
from tests.support.servers import Database
from tests.support.usage_registry import LONG_AGO, Sender, leg, void
from tests.system.test_rerate import cut_is_taken

NOW = datetime.now(UTC).replace(microsecond=0)
BOUNDARY = period_of(NOW).start
THIS, LAST = period_of(NOW).name, period_of(BOUNDARY - timedelta(seconds=1)).name
ACCOUNTS = ("desk", "east")
RATES = {"g": 30 * 10**6, "h": 18 * 10**6, "k": 30 * 10**6}  # nanos a minute, of what their members call
MODELS = {"h": "cheap"}
MINUTES = (-50, -30, -10, -1, 3, 20)  # of calls and changes, around the boundary
Intervals = list[tuple[datetime, datetime | None, str]]


class Months:
    """Two accounts that move between three groups and two plans over the end of a month, told sooner or later."""

    def __init__(self, log: Log, rooms: Rooms, chance: random.Random) -> None:
        self.log, self.rooms, self.chance, self.send = log, rooms, chance, Sender(log)
        self.usage, self.invoices = rooms.processors["usage"].engine, rooms.processors["invoices"].engine
        self.groups: dict[str, Intervals] = {each: [(LONG_AGO, None, "g")] for each in ACCOUNTS}
        self.plans: dict[str, Intervals] = {"desk": [(LONG_AGO, None, "payg")], "east": [(LONG_AGO, None, "invoiced")]}
        self.facts: dict[str, tuple[str, datetime, int, int]] = {}  # account, when, seconds, revision

    async def start(self) -> None:
        self.send.publisher()
        for name in RATES:
            group = billing_group(name, organization_id="lakeside", pricing_model=MODELS.get(name))
            self.send.send(GROUPS_BILLING_GROUPS, name, group.data())
        for account in ACCOUNTS:
            self.tell(account)
        await self.rooms.pump()
        for book, group in (("list", "g"), ("cheap", "h")):
            rows = f"product,prefix,price_per_minute,currency,minimum_s,increment_s\nvoice.outbound,1,{format_nano(RATES[group])},USD,0,1\n"
            await usage_api.import_prices(
                self.usage, book, read_price_file(rows.encode()), LONG_AGO, is_default=book == "list"
            )
        await invoices_api.set_grace(self.invoices, timedelta(0))

    def tell(self, account: str) -> None:
        self.send.account(account, plans=self.plans[account], groups=self.groups[account], pricing_models=MODELS)

    async def change(self) -> None:
        """The registry says another thing of one account, and everybody hears it."""
        chance, account = self.chance, self.chance.choice(ACCOUNTS)
        at = BOUNDARY + timedelta(minutes=chance.choice(MINUTES))
        first, second = chance.sample(sorted(RATES), 2)
        self.groups[account] = [(LONG_AGO, at, first), (at, None, second)]
        if chance.random() < 0.4:
            plans = chance.sample(["payg", "invoiced"], 2)
            self.plans[account] = [(LONG_AGO, at, plans[0]), (at, None, plans[1])]
        self.tell(account)
        await self.rooms.pump()

    async def call(self, count: int) -> None:
        """Calls on both sides of the boundary, and revisions of some that there are."""
        chance = self.chance
        for _ in range(count):
            at = BOUNDARY + timedelta(minutes=chance.choice(MINUTES))
            self.facts[f"call{len(self.facts)}"] = chance.choice(ACCOUNTS), at, chance.randrange(1, 3_000), 0
            self._publish(f"call{len(self.facts) - 1}")
        for name in chance.sample(sorted(self.facts), min(3, len(self.facts))):
            account, at, _, revision = self.facts[name]
            self.facts[name] = account, at, chance.choice((0, chance.randrange(1, 3_000))), revision + 1
            self._publish(name)
        await self.rooms.pump()

    def _publish(self, name: str) -> None:
        account, at, seconds, revision = self.facts[name]
        event = leg(name, at, account, duration_s=seconds, billable_s=seconds) | {"revision": revision}
        if not seconds:
            event = void(name, revision, account=account)
        self.send.leg(event, at=BOUNDARY + timedelta(hours=1), partition=0)

    async def look_through(self) -> None:
        while any(each.state == "open" for each in await usage_api.reassignments(self.usage, limit=1_000)):
            await self.rooms.pump(ticks=True)
        await self.rooms.pump(ticks=True)

    async def cut(self) -> None:
        await cut_is_taken(self.rooms, LAST)

    @property
    def charges(self) -> list[dict[str, Any]]:
        return self.log.data("usage.charges")

    def must_cost(self) -> dict[tuple[str, str, str, str], int]:
        """What all use costs by the last words of the registry: by account, group, plan and month."""
        found: dict[tuple[str, str, str, str], int] = defaultdict(int)
        for account, at, seconds, _ in self.facts.values():
            group, plan = held(self.groups[account], at), held(self.plans[account], at)
            cost = round(Fraction(RATES[group] * seconds, 60))
            found[account, group, plan, period_of(at).name] += cost
        return {key: nano for key, nano in found.items() if nano}

    def charged(self, *names: str) -> dict[tuple[str, ...], int]:
        found: dict[tuple[str, ...], int] = defaultdict(int)
        for charge in self.charges:
            found[tuple(charge[name] for name in names)] += parse_amount(charge["amount"], signed=True)
        return {key: nano for key, nano in found.items() if nano}


def held(intervals: Intervals, at: datetime) -> str:
    return next(each for start, end, each in intervals if start <= at and (end is None or at < end))


@pytest.mark.parametrize("seed", range(3))
async def test_charges_wallets_and_invoices_come_to_what_the_last_word_of_the_registry_says(
    database: Database, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance = random.Random(seed)
    monkeypatch.setattr(reassignments, "CHUNK", chance.choice((2, 5, 2_000)))
    log = Log()
    balance = balance_room(RefuseFast(lambda: None, prefix="t."))
    async with Rooms(log, database, [usage_room(), balance, invoices_room(Settings())]) as rooms:
        months = Months(log, rooms, chance)
        await months.start()
        await months.call(12)
        for _ in range(3):
            await months.change()
            await months.call(3)
        await months.look_through()
        stamps = "account_id", "group_id", "plan", "period"
        assert months.charged(*stamps) == months.must_cost()
        assert all(charge["bill_to"] == charge["period"] for charge in months.charges)

        await months.cut()
        await months.change()
        await months.call(4)  # late for the cut: what is of the month before waits for its pass
        months.send.groups_covered(BOUNDARY)
        await months.look_through()
        for _ in range(3):
            await rooms.pump(ticks=True)
        assert months.charged(*stamps) == months.must_cost()
        closed = {
            each.group_id: (await invoices_api.show(months.invoices, each.number or "")).document
            for each in await invoices_api.list_invoices(months.invoices, state="closed")
        }
        assert closed

        for _ in range(3):
            await months.change()
        await months.look_through()
        await months.call(2)
        await months.look_through()
        assert months.charged(*stamps) == months.must_cost()
        charged = months.charged("account_id", "group_id", "bill_to")
        paid: dict[str, int] = defaultdict(int)
        due: dict[str, int] = defaultdict(int)
        for group in RATES:
            documents = {THIS: await invoices_api.estimate(months.invoices, group, THIS)}
            if group in closed:
                documents[LAST] = closed[group]
            for period, shown in documents.items():
                exact: dict[str, int] = defaultdict(int)
                for line in shown["lines"]:
                    exact[line["account_id"]] += parse_amount(line["exact"], signed=True)
                assert {name: exact[name] for name in ACCOUNTS} == {
                    name: charged.get((name, group, period), 0) for name in ACCOUNTS
                }
            for each in await invoices_api.list_invoices(months.invoices, group_id=group, state="closed"):
                assert (await invoices_api.show(months.invoices, each.number or "")).document == closed[group]
            for each in closed[group]["accounts"] if group in closed else ():
                paid[each["account_id"]] += parse_amount(each["paid_from_balance"], signed=True)
                due[each["account_id"]] += parse_amount(each["due"], signed=True)
        assert (await invoices_api.audit(months.invoices)).findings == ()
        assert (await usage_api.tiers_and_reversals(months.usage)).findings == ()
        engine = rooms.processors["balance"].engine
        assert await balance_api.wallet_differences(engine) == []
        open_now: dict[tuple[str, str], int] = defaultdict(int)
        for (account, _, plan, bill_to), nano in months.charged("account_id", "group_id", "plan", "bill_to").items():
            if bill_to == THIS:
                open_now[account, plan] += nano
        for each in await balance_api.balances(engine):
            name = each.account_id
            assert parse_amount(each.wallet, signed=True) == -paid[name] - open_now[name, "payg"]
            assert parse_amount(each.unbilled, signed=True) == open_now[name, "invoiced"]
            assert parse_amount(each.receivable, signed=True) == due[name]


async def test_what_credits_paid_goes_back_to_them_and_the_new_group_pays_by_its_own(database: Database) -> None:
    log = Log()
    balance = balance_room(RefuseFast(lambda: None, prefix="t."))
    async with Rooms(log, database, [usage_room(), balance, invoices_room(Settings())]) as rooms:
        months = Months(log, rooms, random.Random(0))
        await months.start()
        engine = rooms.processors["balance"].engine

        def grant(account: str, amount: str, name: str) -> None:
            command = {
                "command_id": name, "actor": "ann", "role": "operator", "account_id": account, "kind": "grant_credit",
                "amount": amount, "currency": "USD", "shared": True,
            }  # fmt: skip
            log.write("balance.commands", key=account, value=command)

        months.groups["east"] = [(LONG_AGO, None, "k")]
        months.tell("east")
        await rooms.pump(ticks=True)
        grant("desk", "0.02", "of-g")
        grant("east", "0.05", "of-k")
        await rooms.pump(ticks=True)
        at = datetime.now(UTC) + timedelta(minutes=1)
        months.send.leg(leg("e1", at, "desk", billable_s=60, duration_s=60))
        await rooms.pump(ticks=True)

        async def left() -> dict[str | None, str]:
            return {each.group_id: each.remaining for each in await vouchers.credits(engine)}

        async def wallet() -> str:
            return next(each.wallet for each in await balance_api.balances(engine) if each.account_id == "desk")

        assert (await left(), await wallet()) == ({"g": "0", "k": "0.05"}, "-0.01")
        months.groups["desk"] = [(LONG_AGO, at - timedelta(minutes=1), "g"), (at - timedelta(minutes=1), None, "k")]
        months.tell("desk")
        await rooms.pump()
        await months.look_through()
        assert (await left(), await wallet()) == ({"g": "0.02", "k": "0.02"}, "0")
        for group, lines in (("g", 0), ("k", 1)):
            estimate = await invoices_api.estimate(months.invoices, group, THIS)
            assert len([line for line in estimate["lines"] if line["exact"] != "0"]) == lines
        assert (await invoices_api.audit(months.invoices)).findings == ()
        assert await balance_api.wallet_differences(engine) == []
