"""Lines of what tiers priced: whatever shares the charges had, a counter's sum is divided over its cost centers by quantity."""

from __future__ import annotations

import random
from fractions import Fraction
from math import floor

from hypothesis import given
from hypothesis import strategies as st

from services.invoices import api
from services.invoices.rounding import LineKey, LineSum, bill, split_by_quantity, split_tiers
from tests.invoices.neighbours import Neighbours, charge, fold_charges, neighbours
from tests.invoices.test_accumulation import KEY
from tests.invoices.test_room import close_the_month

TIER = {"schedule": "list/3/legs", "form": "volume", "before": 0, "after": 60}


def tiered(amount: str, center: str | None, quantity: int, **changes: object) -> dict[str, object]:
    return {
        "unit_price": None, "tier": TIER, "product": "data", "unit": "byte", "amount": amount, "cost_center_id": center,
        "quantity": quantity,
    } | changes  # fmt: skip


def line(center: str, quantity: int, nano: int, *, account: str = "a", schedule: str = "list/3/legs") -> LineSum:
    return LineSum(LineKey(account, "data", center, "2026-10", True, "USD", schedule), 1, quantity, nano, 0, 0)


quantities = st.lists(st.integers(-5, 10**12), min_size=1, max_size=5)


@given(total=st.integers(-(10**15), 10**15), of=quantities)
def test_a_total_is_divided_by_quantity_with_the_largest_remainders(total: int, of: list[int]) -> None:
    parts = split_by_quantity(total, of)
    assert sum(parts) == total
    if not sum(of):
        return
    exact = [Fraction(total * quantity, sum(of)) for quantity in of]
    assert all(part - floor(share) in (0, 1) for part, share in zip(parts, exact, strict=True))
    rest = [(floor(share) - share, index) for index, share in enumerate(exact)]
    getting = {index for _, index in sorted(rest)[: total - sum(map(floor, exact))]}
    assert [part - floor(share) for part, share in zip(parts, exact, strict=True)] == [
        int(index in getting) for index in range(len(of))
    ]


@given(
    centers=st.lists(st.sampled_from(["", "north", "south"]), min_size=1, max_size=6),
    of=st.lists(st.integers(1, 10**6), min_size=6, max_size=6),
    first=st.lists(st.integers(-(10**9), 10**9), min_size=6, max_size=6),
    seed=st.integers(0, 2**32),
)
def test_lines_do_not_depend_on_the_shares(centers: list[str], of: list[int], first: list[int], seed: int) -> None:
    """Two arrival orders: the same events in other shares, of the same sum."""
    count = len(centers)
    second = first[:count]
    chance = random.Random(seed)
    for _ in range(5):
        left, right = chance.randrange(count), chance.randrange(count)
        moved = chance.randint(-(10**9), 10**9)
        second[left] += moved
        second[right] -= moved
    made = []
    for shares in (first[:count], second):
        sums: dict[LineKey, LineSum] = {}
        for center, quantity, nano in zip(centers, of[:count], shares, strict=True):
            known = sums.get(line(center, 0, 0).key, line(center, 0, 0))
            sums[known.key] = line(center, known.quantity + quantity, known.exact_nano + nano)
        other = line("", 60, 5, schedule="")
        bills = bill([other, *sums.values()], rate_nano=0, exponent=2)
        assert bills.exact_nano == sum(shares) + 5
        assert other in [each.sum for each in bills.lines]
        made.append([(each.sum.key, each.sum.exact_nano, each.amount_nano) for each in bills.lines])
    assert made[0] == made[1]


def test_each_counter_is_divided_by_itself_and_ties_go_by_cost_center() -> None:
    sums = [
        line("south", 1, 1), line("north", 1, 0), line("", 1, 0), line("south", 1, 7, account="b"),
        line("south", 1, 9, schedule="list/4/legs"), line("north", 3, 8, schedule=""),
    ]  # fmt: skip
    assert [(each.key.account_id, each.key.cost_center_id, each.exact_nano) for each in split_tiers(sums)] == [
        ("a", "", 1), ("a", "north", 8), ("a", "north", 0), ("a", "south", 0), ("a", "south", 9), ("b", "south", 7),
    ]  # fmt: skip


def test_a_schedule_has_a_line_of_its_own_and_no_unit_price() -> None:
    folded = fold_charges([charge("a", "0.01"), charge("a", **tiered("-0.02", None, 60, product="voice.outbound"))])
    assert {(each.key.schedule, each.exact_nano, each.unit_price_nano) for each in folded.lines[KEY]} == {
        ("", 10_000_000, 12_000_000),
        ("list/3/legs", -20_000_000, None),
    }


async def test_two_orders_of_arrival_are_one_document(database) -> None:
    """The page's volume example: 900 of north, 200 and 300 of south. 11.20 by quantity: 7.20 and 4.00."""
    orders = (
        [("north", 900, "9"), ("south", 200, "-0.2"), ("south", 300, "2.4")],
        [("south", 200, "2"), ("north", 900, "6.8"), ("south", 300, "2.4")],
    )
    around: Neighbours = await neighbours(database)
    async with around.rooms:
        for number, order in enumerate(orders):
            group = around.group(f"g{number}")
            around.account(f"a{number}", "Sales", group.group_id, around.period.start)
            for center, quantity, amount in order:
                around.charge(f"a{number}", **tiered(amount, center, quantity), group_id=group.group_id)
                await around.rooms.pump()
        await close_the_month(around)
        engine = around.rooms.processors["invoices"].engine
        shown = [await api.show(engine, each.number or "") for each in await api.list_invoices(engine, state="closed")]
        audited = await api.audit(engine)
    assert [[(each["cost_center_id"], each["exact"], each["amount"]) for each in of.document["lines"]] for of in shown] == [
        [("north", "7.2", "7.20"), ("south", "4", "4.00")]
    ] * 2  # fmt: skip
    assert {each["schedule"] for of in shown for each in of.document["lines"]} == {"list/3/legs"}
    assert "tiers" in shown[0].text
    assert (audited.findings, len(audited.invoices)) == ((), 2)
