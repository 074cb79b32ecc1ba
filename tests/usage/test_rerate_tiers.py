"""Re-rates of what tiers priced, or price from now on: whole quantities go from counter to counter, and each counter's charges
sum to what its quantity costs, in whatever chunks, beside whatever else moves them."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from contracts.usage import PRODUCT, RENTAL, Charge
from services.kernel.errors import Refused
from services.kernel.money import format_nano
from services.kernel.period import period_of
from services.usage import api, rerate_plans, rerating
from services.usage.books import Price, PriceRow
from services.usage.price_files import PriceFile
from services.usage.rerate_plans import Plan
from services.usage.rerating import Change
from services.usage.tiers import Band, Form, Schedule, movement_for
from tests.support import model
from tests.support.servers import Database
from tests.support.usage_registry import LONG_AGO, SOURCE, leg, void
from tests.support.usage_room import Usage
from tests.usage.test_counters import counters
from tests.usage.test_rerating import NOW, amounts, approved, carry_out, executed, live_once, planned

BOUNDARY = period_of(NOW).start
CENT = 10**7
BANDS = (Band(1_000, CENT), Band(None, 8 * 10**6))
MONTH = period_of(NOW).name


def use(
    name: str, quantity: int, at: datetime = NOW, account: str = "sales", product: str = "sms", revision: int = 0
) -> Any:
    data = {
        "account_id": account, "product": product, "quantity": quantity, "unit": "piece",
        "used_at": f"{at:%Y-%m-%dT%H:%M:%SZ}",
    }  # fmt: skip
    return {"specversion": "1.0", "id": name, "source": SOURCE, "type": PRODUCT, "revision": revision, "data": data}


def tiers(
    form: Form = "graduated", bands: tuple[Band, ...] = BANDS, *, minimum: int = 0, increment: int = 1
) -> PriceFile:
    row = PriceRow("sms", "*", 0, 0, minimum, increment, 1, "piece", schedule="s")
    return PriceFile("USD", (row,), (), schedules=(Schedule("s", form, 1, bands),))


def plain(nano: int, *, minimum: int = 0, increment: int = 1) -> PriceFile:
    return PriceFile("USD", (PriceRow("sms", "*", nano, 0, minimum, increment, 1, "piece"),), ())


async def imported(usage: Usage, prices: PriceFile, start: datetime = LONG_AGO) -> None:
    await api.import_prices(usage.engine, "tiers", prices, start, is_default=True)


async def standing(usage: Usage) -> dict[str, int]:
    """How much is in each counter of `sales` that is not empty, by its version of the book."""
    found = await counters(usage)
    return {key[-1].split("/")[1]: quantity for key, quantity in found.items() if quantity}


def total(plan: Plan) -> tuple[str, str, str]:
    (line,) = (line for line in plan.sums if line.of == "total")
    return line.old, line.new, line.difference


def charged(plan: Plan) -> tuple[str, str, str]:
    (line,) = (line for line in plan.sums if line.of == "total")
    assert line.charged is not None
    return line.charged.old, line.charged.new, line.charged.difference


def cost(usage: Usage) -> str:
    return format_nano(sum(model.nano(each) for each in amounts(usage)))


# ---- from one price to another -------------------------------------------------------------------------------------


async def test_what_tiers_priced_goes_into_the_counter_of_the_new_schedule(usage: Usage) -> None:
    """The page's example: 900, 200 and 300 are 13.20 graduated and 11.20 by volume, in any order."""
    await imported(usage, tiers())
    for number, quantity in enumerate((300, 200, 900)):
        await usage.take(use(f"e{quantity}", quantity, NOW - timedelta(minutes=number)))
    await imported(usage, tiers("volume"))
    plan = await planned(usage)
    assert (plan.charges, plan.left_out, total(plan)) == (3, (), ("13.2", "11.2", "-2"))
    assert {(each.of, each.which, each.old, each.new) for each in plan.sums if each.of != "total"} == {
        ("account", "sales", "13.2", "11.2"), ("group", "g-sales", "13.2", "11.2"), ("product", "sms", "13.2", "11.2"),
    }  # fmt: skip
    shown = await api.rerate(usage.engine, plan.plan_id)
    assert [(each.old, each.new) for each in shown.changes] == [("8.2", "9"), ("2", "-0.2"), ("3", "2.4")]
    plan = await api.approve_rerate(usage.engine, plan.plan_id, "bob", "operator")
    done = await executed(usage, plan)
    assert (done.state, charged(done)) == ("done", total(plan))
    assert amounts(usage)[3:] == ["-8.2", "9", "-2", "-0.2", "-3", "2.4"]
    assert (cost(usage), await standing(usage)) == ("11.2", {"2": 1_400})
    for charge in usage.charges:
        TypeAdapter(Charge).validate_python(charge)
    adjusted = next(each for each in usage.charges if each.get("kind") == "tier_adjustment")
    assert (adjusted["tier"], adjusted["unit_price"]) == (
        {"schedule": "tiers/2/s", "form": "volume", "before": 900, "after": 1_100}, None,
    )  # fmt: skip
    explained = await api.charge(usage.engine, UUID(adjusted["charge_id"]))
    assert explained.charge["replaces"] is not None
    assert explained.steps[-1] == "8.8 - 9 = -0.2 USD"
    assert (await planned(usage)).charges == 0
    await live_once(usage)


async def test_what_had_a_price_of_its_own_enters_a_counter_and_leaves_it_again(usage: Usage) -> None:
    await imported(usage, plain(2 * CENT))
    await usage.take(use("e1", 900), use("e2", 200, NOW - timedelta(minutes=1)))
    await imported(usage, tiers())
    await usage.take(use("after", 300))
    plan = await executed(usage)
    assert (plan.charges, total(plan), charged(plan)) == (2, ("22", "10.2", "-11.8"), ("22", "10.2", "-11.8"))
    assert (cost(usage), await standing(usage)) == ("13.2", {"2": 1_400})
    await imported(usage, plain(CENT))
    plan = await executed(usage)
    assert (plan.charges, total(plan), charged(plan)) == (3, ("13.2", "14", "0.8"), ("13.2", "14", "0.8"))
    assert (cost(usage), await standing(usage)) == ("14", {})
    last = usage.charges[-1]
    assert ("tier" in last, last["unit_price"], last["quantity"]) == (False, "0.01", 900)
    await live_once(usage)


async def test_a_charge_whose_share_happens_to_be_the_new_price_leaves_its_counter_all_the_same(usage: Usage) -> None:
    """200 came first, at 2.00 in the dear band; if it stayed, the 900 after it would be given back 8.80 for their 9.00."""
    await imported(usage, tiers())
    await usage.take(use("first", 200))
    await usage.take(use("second", 900))
    await imported(usage, plain(CENT))
    plan = await executed(usage)
    assert (plan.charges, cost(usage), await standing(usage)) == (2, "11", {})


async def test_what_enters_is_billed_by_the_new_price_and_what_leaves_is_what_had_entered(usage: Usage) -> None:
    await imported(usage, tiers(increment=100))
    await usage.take(use("e1", 150), use("e2", 990))
    assert await standing(usage) == {"1": 1_200}
    await imported(usage, tiers(minimum=400, increment=7))
    plan = await executed(usage)
    assert await standing(usage) == {"2": 400 + 995}
    assert (total(plan), charged(plan)) == (("11.6", "13.16", "1.56"), ("11.6", "13.16", "1.56"))
    assert sorted(each["quantity"] for each in usage.charges[2:]) == [-1_000, -200, 400, 995]


async def test_trials_and_numbers_have_counters_of_their_own_months(usage: Usage) -> None:
    usage.send.account("try", plan="trial")
    await usage.rooms.pump()

    def rented(nano: int) -> PriceFile:
        rows = (
            PriceRow("number.rental", "*", 0, 0, 0, 1, 1, "day", schedule="s"),
            PriceRow("sms", "*", 0, 0, 0, 1, 1, "piece", schedule="s"),
        )
        return PriceFile("USD", rows, (), schedules=(Schedule("s", "graduated", 1, (Band(10, 0), Band(None, nano))),))

    await imported(usage, rented(31 * CENT))
    last = BOUNDARY - timedelta(days=1)
    data = {
        "account_id": "sales", "number": "+12485550101", "month": f"{last:%Y-%m}", "days": 1,
        "starts_at": f"{last:%Y-%m-%dT00:00:00Z}",
    }  # fmt: skip
    await usage.take({"specversion": "1.0", "id": "r", "source": SOURCE, "type": RENTAL, "data": data})
    await usage.take(use("tried", 30, last, "try"), use("now", 30, NOW, "try"))
    await imported(usage, rented(62 * CENT))
    plan = await api.plan_rerate(usage.engine, last - timedelta(days=2), NOW + timedelta(1), "ann", "finance")
    await api.approve_rerate(usage.engine, plan.plan_id, "bob", "finance")
    done = await executed(usage, plan)
    assert (done.charges, charged(done)) == (3, total(done))
    found = {key: quantity for key, quantity in (await counters(usage)).items() if key[-1] == "tiers/2/s"}
    assert found == {
        ("sales", "g-sales", f"{last:%Y-%m}", "number.rental", True, "tiers/2/s"): 1,
        ("try", "", f"{last:%Y-%m}", "sms", True, "tiers/2/s"): 30,
        ("try", "", MONTH, "sms", True, "tiers/2/s"): 30,
    }  # fmt: skip
    assert cost(usage) == format_nano(2 * 20 * 62 * CENT)
    await live_once(usage)


async def test_a_leg_with_a_surcharge_does_not_go_into_tiers(usage: Usage) -> None:
    rows = (
        PriceRow("voice.toll_free", "+1", CENT), PriceRow("voice.toll_free.surcharge", "+1", 0, CENT, 0, 1, 1),
        PriceRow("voice.inbound", "+1", CENT, 0, 1, 1),
    )  # fmt: skip
    by_tiers = PriceRow("voice.toll_free", "+1", 0, 0, 0, 1, 60, schedule="s")
    await imported(usage, PriceFile("USD", rows, ()))
    await usage.take(leg("free", NOW, direction="inbound", called="+18005550101"))
    await imported(usage, PriceFile("USD", (by_tiers, *rows[1:]), (), schedules=(Schedule("s", "volume", 60, BANDS),)))
    plan = await planned(usage)
    assert (plan.charges, [(line.which, line.charges) for line in plan.left_out]) == (0, [("surcharge", 1)])


# ---- the same schedule in another version --------------------------------------------------------------------------


async def test_use_stays_when_the_new_version_says_the_same(usage: Usage) -> None:
    await imported(usage, tiers())
    await usage.take(use("e1", 900), use("e2", 200))
    await imported(usage, tiers())
    plan = await planned(usage)
    assert (plan.charges, plan.sums, plan.left_out) == (0, (), ())
    await imported(usage, tiers(minimum=250))
    assert (
        await planned(usage)
    ).charges == 2  # the minimum changes what one of them is billed: the counter begins anew


async def test_use_joins_what_is_in_the_counter_of_a_version_that_says_the_same(usage: Usage) -> None:
    """A list that was dated back in mid-month began a second counter: 10.80 + 2.00. As one month it is 12.40."""
    await imported(usage, tiers())
    await usage.take(use("e1", 900), use("e2", 200))
    await imported(usage, tiers())
    await usage.take(use("later", 200))
    assert (cost(usage), await standing(usage)) == ("12.8", {"1": 1_100, "2": 200})
    plan = await executed(usage)
    assert (plan.charges, total(plan), charged(plan)) == (2, ("10.8", "10.4", "-0.4"), ("10.8", "10.4", "-0.4"))
    assert (cost(usage), await standing(usage)) == ("12.4", {"2": 1_300})


async def test_two_counters_are_joined_in_a_third_that_says_the_same(usage: Usage) -> None:
    for name in ("e1", "e2"):
        await imported(usage, tiers())
        await usage.take(use(name, 900))
    await imported(usage, tiers())
    plan = await executed(usage)
    assert (plan.charges, charged(plan), await standing(usage)) == (2, ("18", "16.4", "-1.6"), {"3": 1_800})


# ---- what a plan says ----------------------------------------------------------------------------------------------

SCHEDULES = (
    Schedule("s", "graduated", 3, (Band(100, CENT), Band(250, 0, 5), Band(None, 7))),
    Schedule("s", "volume", 7, (Band(100, CENT, 3), Band(None, 8 * 10**6, 10**9))),
)


@given(
    quantities=st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=12),
    pieces=st.integers(1, 12),
    there=st.tuples(st.integers(0, 300), st.integers(0, 300)),
    which=st.permutations(SCHEDULES),
)
def test_planned_amounts_are_the_same_in_whatever_pieces_and_sum_to_what_the_counters_cost(
    quantities: list[tuple[int, int]], pieces: int, there: tuple[int, int], which: list[Schedule]
) -> None:
    plain_price = Price("tiers", 2, "USD", "sms", "*", CENT, 0, 0, 1, 1, "piece")
    changes = []
    for number, (old, new) in enumerate(quantities):
        charge = SimpleNamespace(
            account_id="a", group_id="g", period=MONTH, event_time=NOW, product="sms", plan="payg", publisher="p", source="s",
            event_id=f"{number:02}", amount_nano=1_000 + number,
        )  # fmt: skip
        leaves, enters = (
            movement_for(charge, f"tiers/{version}/s", schedule, schedule.per, quantity)
            for version, schedule, quantity in zip((1, 2), which, (-old, new), strict=True)
        )
        changes.append(
            [
                Change(charge, plain_price, None, new, 1, None, leaves, enters),
                Change(charge, plain_price, None, new, 1, new * CENT, leaves, None),
                Change(charge, plain_price, None, new, 1, None, None, enters),
            ][number % 3]
        )
    keys = [movement_for(changes[0].charge, f"tiers/{version}/s", which[0], 1, 0).key for version in (1, 2)]
    out = sum(-each.leaves.quantity for each in changes if each.leaves)
    before = dict(zip(keys, (there[0] + out, there[1]), strict=True))
    at_once, after = rerating.amounts(changes, stand := dict(before)), stand
    in_pieces, stand = [], dict(before)
    for start in range(0, len(changes), pieces):
        in_pieces += rerating.amounts(changes[start : start + pieces], stand)
    assert (at_once, after) == (in_pieces, stand)
    assert after == {
        keys[0]: there[0],
        keys[1]: there[1] + sum(each.enters.quantity for each in changes if each.enters),
    }
    cost = sum(
        schedule.total_nano(after[key], schedule.per) - schedule.total_nano(before[key], schedule.per)
        for key, schedule in zip(keys, which, strict=True)
    )
    kept = sum((each.amount_nano or 0) - (0 if each.leaves else each.charge.amount_nano) for each in changes)
    assert sum(new - old for old, new in at_once) == cost + kept


# ---- what moves meanwhile ------------------------------------------------------------------------------------------


async def test_a_plan_is_stale_when_a_counter_has_moved_since(usage: Usage) -> None:
    await imported(usage, tiers())
    await usage.take(use("e1", 900))
    await imported(usage, tiers("volume"))
    plan, other = await planned(usage), await planned(usage)
    await usage.take(use("another month", 7, BOUNDARY - timedelta(hours=1)))
    await usage.take(use("new", 200))
    with pytest.raises(
        Refused, match="is stale: a charge of it was corrected since it was made, or a counter of tiers moved"
    ):
        await api.approve_rerate(usage.engine, plan.plan_id, "bob", "operator")
    assert (await api.rerate(usage.engine, plan.plan_id)).state == "stale"
    await usage.take(void("new", 1))  # both counters stand where they stood
    assert (await api.approve_rerate(usage.engine, other.plan_id, "bob", "operator")).state == "approved"


async def test_counters_that_move_after_the_approval_say_what_is_charged(usage: Usage) -> None:
    await imported(usage, tiers())
    await usage.take(use("e1", 900), use("e2", 100), use("void", 50))
    await imported(usage, tiers("volume"))
    plan = await approved(usage)
    assert total(plan) == ("10.4", "8.4", "-2")
    await usage.take(use("new", 200), void("void", 1))
    done = await executed(usage, plan)
    assert (done.left_stale, total(done), charged(done)) == (1, ("10.4", "8.4", "-2"), ("10", "7.6", "-2.4"))
    assert {(each.of, each.charged.charges) for each in done.sums if each.charged is not None} == {
        ("total", 2), ("account", 2), ("group", 2), ("product", 2),
    }  # fmt: skip
    assert (cost(usage), await standing(usage)) == ("9.6", {"2": 1_200})
    await live_once(usage)


async def test_a_void_after_a_re_rate_leaves_the_counter_that_the_use_is_in_now(usage: Usage) -> None:
    await imported(usage, tiers())
    await usage.take(use("e1", 900), use("e2", 500))
    await imported(usage, tiers("volume"))
    await executed(usage)
    await usage.take(void("e1", 1), use("e2", 50, revision=1))
    assert (cost(usage), await standing(usage)) == ("0.5", {"2": 50})
    await live_once(usage)


async def test_the_auditor_finds_a_re_rate_that_replaced_less_than_it_says(usage: Usage, database: Database) -> None:
    await imported(usage, tiers())
    await usage.take(use("e1", 900), use("e2", 500))
    await imported(usage, tiers("volume"))
    plan = await executed(usage)
    assert (await api.tiers_and_reversals(usage.engine)).findings == ()
    async with database.connected() as owner:
        await owner.execute("update usage.charge set replaces = null where replaces is not null and quantity = 500")
    assert (await api.tiers_and_reversals(usage.engine)).findings == (
        f"re-rate {plan.plan_id} says that it settled 2 charges; 1 were taken back and replaced",
    )


# ---- whatever happens ----------------------------------------------------------------------------------------------

PRODUCTS = ("sms", "mms")
PLANS = {"sales": "payg", "owed": "invoiced", "try": "trial"}


@dataclass
class Version:
    """A version of the book: of each product nanos or a schedule, and what is billed of a use."""

    start: datetime
    nano: dict[str, int]
    schedules: dict[str, Schedule]
    billed: dict[str, tuple[int, int]]

    def file(self) -> PriceFile:
        rows = [
            PriceRow(
                product, "*", self.nano.get(product, 0), 0, *self.billed[product],
                self.schedules[product].per if product in self.schedules else 1, "piece",
                schedule=product if product in self.schedules else "",
            )
            for product in PRODUCTS
        ]  # fmt: skip
        return PriceFile("USD", tuple(rows), (), schedules=tuple(self.schedules.values()))

    def says(self, product: str) -> Any:
        """All that the price of a product is made of, but for its name."""
        schedule = self.schedules.get(product)
        made = None if schedule is None else (schedule.form, schedule.per, schedule.bands)
        return self.nano.get(product), made, self.billed[product]


def some_version(dice: random.Random, like: list[Version]) -> Version:
    """Prices as they come; now and then those of a version that there was."""
    start = dice.choice([LONG_AGO, LONG_AGO, BOUNDARY, NOW - timedelta(minutes=20)]) if like else LONG_AGO
    if like and dice.random() < 0.4:
        other = dice.choice(like)
        return Version(start, other.nano, other.schedules, other.billed)
    made = Version(start, {}, {}, {})
    for product in PRODUCTS:
        made.billed[product] = dice.choice([(0, 1), (0, 1), (40, 1), (1, 25)])
        if dice.random() < 0.3:
            made.nano[product] = dice.choice([0, CENT, dice.randrange(10**9)])
            continue
        ends = [*sorted(dice.sample(range(1, 600), dice.randrange(4))), None]
        bands = tuple(
            Band(end, dice.choice([0, CENT, dice.randrange(10**9)]), dice.choice([0, 0, 15 * 10**8])) for end in ends
        )
        form: Form = dice.choice(["graduated", "volume"])
        made.schedules[product] = Schedule(product, form, dice.choice([1, 3, 7]), bands)
    return made


@dataclass
class World:
    """Uses and their revisions, versions of one book, and what all charges must say of them."""

    usage: Usage
    dice: random.Random
    versions: list[Version]
    uses: dict[str, tuple[str, str, datetime, int, int]]  # account, product, when, quantity, revision

    async def new_prices(self) -> None:
        self.versions.append(some_version(self.dice, self.versions))
        made = self.versions[-1]
        await imported(self.usage, made.file(), made.start)

    def some_uses(self) -> None:
        """Published and not read yet: new ones, and revisions of some that there are."""
        for _ in range(self.dice.randrange(1, 9)):
            at = self.dice.choice([BOUNDARY - timedelta(hours=1), NOW - timedelta(minutes=30), NOW, NOW])
            place = self.dice.choice(list(PLANS)), self.dice.choice(PRODUCTS), at
            self._publish(f"use{len(self.uses)}", *place, self.dice.randrange(1, 200), 0)
        for name in self.dice.sample(sorted(self.uses), min(2, len(self.uses))):
            account, product, at, _, revision = self.uses[name]
            product = self.dice.choice([product, *PRODUCTS])
            quantity = self.dice.choice([0, self.dice.randrange(1, 200)])
            self._publish(name, account, product, at, quantity, revision + 1)

    def _publish(self, name: str, account: str, product: str, at: datetime, quantity: int, revision: int) -> None:
        self.uses[name] = account, product, at, quantity, revision
        event = use(name, quantity, at, account, product, revision)
        self.usage.send.leg(event if quantity else void(name, revision, account=account))

    async def re_rate(self, *, is_alone: bool) -> None:
        """A plan of all or of a part, approved and carried out, beside other use unless it is alone."""
        dice, usage = self.dice, self.usage
        span = BOUNDARY - timedelta(days=1), NOW + timedelta(minutes=1)
        more: dict[str, Any] = {}
        if not is_alone:
            span = dice.choice([span, (BOUNDARY, span[1]), (span[0], BOUNDARY), (span[0], NOW)])
            more = dice.choice(
                [{}, {}, {"account_ids": [dice.choice(list(PLANS))]}, {"product": dice.choice(PRODUCTS)}]
            )
        plan = await api.plan_rerate(usage.engine, *span, "ann", "finance", **more)
        if not plan.charges:
            return
        before = self.by_line()
        await api.approve_rerate(usage.engine, plan.plan_id, "bob", "operator")
        await api.execute_rerate(usage.engine, plan.plan_id, "bob", "operator")
        tick = next(each for each in usage.processor.room.ticks if each.name == "rerate")
        while not is_alone and dice.random() < 0.7:
            self.some_uses()
            await asyncio.gather(usage.processor.tick(tick), usage.rooms.pump())
        await carry_out(usage)
        plan = await api.rerate(usage.engine, plan.plan_id)
        changed = {key: nano - before.get(key, 0) for key, nano in self.by_line().items()}
        for line in plan.sums:
            if is_alone:
                assert line.charged is not None
                assert (line.old, line.new, line.charges) == (line.charged.old, line.charged.new, line.charged.charges)
                assert model.nano(line.difference) == changed[line.of, line.which]
        assert (plan.state, plan.settled) == ("done", plan.charges)

    def by_line(self) -> dict[tuple[str, str], int]:
        """What is charged in all, as a plan sums it up."""
        found: dict[tuple[str, str], int] = defaultdict(int)
        for charge in map(model.published, self.usage.charges):
            for of, which in (
                ("total", ""), ("account", charge.account_id), ("group", charge.group_id or ""), ("product", charge.product),
            ):  # fmt: skip
                found[of, which] += charge.amount_nano
        return found

    async def check(self) -> dict[str, model.Charge]:
        """Each use has one charge that stands and bills its quantity; each counter costs what its quantity costs."""
        usage = self.usage
        charges = [(model.published(seen), seen) for seen in usage.charges]
        stands, problems = model.standing(each for each, _ in charges)
        schedules = {
            f"tiers/{number}/{product}": schedule.texts()
            for number, version in enumerate(self.versions, start=1)
            for product, schedule in version.schedules.items()
        }
        assert problems == model.check_counters([each for each in charges if each[0].schedule], schedules) == []
        assert (await api.tiers_and_reversals(usage.engine)).findings == ()
        live = {name: charge for (_, _, name), charge in stands.items()}
        assert live.keys() == {name for name, (*_, quantity, _) in self.uses.items() if quantity}
        seen_by_id = {charge.charge_id: seen for charge, seen in charges}
        for name, charge in live.items():
            account, product, at, quantity, revision = self.uses[name]
            assert (charge.account_id, charge.product, charge.event_time, charge.revision) == (
                account,
                product,
                at,
                revision,
            )
            version = self.versions[seen_by_id[charge.charge_id]["book_version"] - 1]
            assert version.start <= at
            assert charge.quantity == model.billed_quantity(quantity, *version.billed[product])
            assert (charge.schedule is None) == (product in version.nano)
            if charge.schedule is None:
                assert charge.amount_nano == charge.quantity * version.nano[product]
        return live

    def holds(self, at: datetime) -> int:
        """The number of the version of an instant: the latest start, of two the later version."""
        return max((version.start, number) for number, version in enumerate(self.versions, 1) if version.start <= at)[1]


@pytest.mark.parametrize("seed", range(2))
async def test_in_whatever_order_the_charges_of_a_counter_sum_to_what_its_quantity_costs(
    usage: Usage, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    dice = random.Random(seed)
    monkeypatch.setattr(rerate_plans, "CHUNK", dice.choice((1, 3, 8, 1_000)))
    for account, plan in PLANS.items():
        if plan != "payg":
            usage.send.account(account, plan=plan)
    await usage.rooms.pump()
    world = World(usage, dice, [], {})
    await world.new_prices()
    for _ in range(7):
        world.some_uses()
        await usage.rooms.pump()
        if dice.random() < 0.6:
            await world.new_prices()
        if dice.random() < 0.6:
            await world.re_rate(is_alone=False)
            await world.check()
    await world.re_rate(is_alone=True)
    live = await world.check()
    books = {each["charge_id"]: each["book_version"] for each in usage.charges}
    used = {
        (account, group or None, month, product, not prepaid, schedule)
        for (account, group, month, product, prepaid, schedule), quantity in (await counters(usage)).items()
        if quantity
    }
    for charge in live.values():
        number, held = world.holds(charge.event_time), books[charge.charge_id]
        assert world.versions[held - 1].says(charge.product) == world.versions[number - 1].says(charge.product)
        if held != number:  # it stays where it is only as long as nothing is where it would go
            there = (*model.counter_of(charge)[:5], f"tiers/{number}/{charge.product}")
            assert there not in used
    plan = await api.plan_rerate(
        usage.engine, BOUNDARY - timedelta(days=1), NOW + timedelta(minutes=1), "ann", "finance"
    )
    assert plan.charges == 0
