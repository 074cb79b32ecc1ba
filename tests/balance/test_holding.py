"""What a call holds: the worked examples of the design, and that nothing longer could have been granted."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.balance.holding import (
    GRACE,
    SLICE_S_MAX,
    Lasting,
    Rate,
    Rates,
    Slice,
    affordable_s,
    cost_nano,
    lasts_s,
    lease_end,
    next_slice,
    settled_nano,
)
from services.kernel.money import parse_amount
from services.usage.books import Price
from services.usage.rating import Surcharge, amount_nano, billed_quantity

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)


def rate(minimum_s: int = 60, increment_s: int = 60, fee: str = "0", price: str = "0.0140") -> Rate:
    return Rate(parse_amount(price), 60, parse_amount(fee), minimum_s, increment_s)


@pytest.mark.parametrize(
    ("rates", "available", "granted_s", "held"),
    [
        ((rate(60, 60),), "0.05", 180, "0.0420"),
        ((rate(60, 6),), "0.05", 210, "0.0490"),
        ((rate(1, 1, fee="0.01"),), "0.05", 171, "0.0499"),
        ((rate(60, 60),), "500", 300, "0.0700"),
    ],
)
def test_a_slice_is_as_long_as_the_money_lasts(rates: Rates, available: str, granted_s: int, held: str) -> None:
    made = next_slice(rates, spendable_nano=parse_amount(available), before_s=0, asked_s=300)
    assert made is not None
    assert (made.granted_s, made.total_s, made.held_nano) == (granted_s, granted_s, parse_amount(held))


def test_less_than_the_minimum_is_nothing() -> None:
    assert next_slice((rate(60, 60),), spendable_nano=parse_amount("0.0139"), before_s=0, asked_s=300) is None


def test_a_renewal_raises_the_same_hold_and_pays_fee_and_minimum_once() -> None:
    rates = (rate(60, 1, fee="0.01"),)
    first = next_slice(rates, spendable_nano=parse_amount("1"), before_s=0, asked_s=30)
    assert first is not None
    assert (first.granted_s, first.held_nano) == (30, parse_amount("0.024"))
    second = next_slice(rates, spendable_nano=parse_amount("1"), before_s=30, asked_s=30)
    assert second is not None
    assert (second.granted_s, second.total_s, second.held_nano) == (30, 60, parse_amount("0.024"))
    third = next_slice(rates, spendable_nano=parse_amount("1"), before_s=60, asked_s=30)
    assert third is not None
    assert (third.granted_s, third.total_s, third.held_nano) == (30, 90, parse_amount("0.031"))


def test_the_ceiling_is_how_long_the_call_could_become() -> None:
    made = next_slice((rate(1, 1),), spendable_nano=parse_amount("1.4"), before_s=0, asked_s=10)
    assert made is not None
    assert (made.granted_s, made.max_s) == (10, 6000)


def test_a_free_call_holds_nothing_and_needs_no_money_but_no_debt_either() -> None:
    assert next_slice((), spendable_nano=0, before_s=0, asked_s=1000) == Slice(SLICE_S_MAX, SLICE_S_MAX, 7 * 86_400, 0)
    assert next_slice((), spendable_nano=-1, before_s=0, asked_s=1000) is None


rates = st.tuples() | st.lists(
    st.builds(
        Rate,
        price_nano=st.integers(0, 2 * 10**9),
        per_s=st.sampled_from([1, 6, 7, 60]),
        connection_fee_nano=st.integers(0, 10**9),
        minimum_s=st.integers(0, 120),
        increment_s=st.integers(1, 90),
    ),
    min_size=1,
    max_size=2,
).map(tuple)


@given(rates, st.integers(-(10**9), 20 * 10**9), st.integers(0, 400), st.integers(1, 320))
def test_nothing_longer_could_have_been_granted(own: Rates, nano: int, before_s: int, asked_s: int) -> None:
    best = max(
        (length for length in range(asked_s + 1) if length == 0 or cost_nano(own, before_s + length) <= nano), default=0
    )
    assert affordable_s(own, nano, before_s=before_s, asked_s=asked_s) == best


@given(rates, st.integers(1, 4000))
def test_the_cost_is_that_of_the_charge(own: Rates, seconds: int) -> None:
    exact = Fraction(0)
    for each in own:
        billed = max(each.minimum_s, seconds)
        if billed > each.minimum_s:
            steps = -(-(billed - each.minimum_s) // each.increment_s)
            billed = each.minimum_s + steps * each.increment_s
        exact += each.connection_fee_nano + Fraction(billed * each.price_nano, each.per_s)
    assert cost_nano(own, seconds) == round(exact)  # half-even, as Fraction rounds


def test_the_cost_of_a_toll_free_call_is_what_rating_makes_of_it() -> None:
    price = Price("w", 1, "USD", "voice.inbound.tollfree", "+1", 21_333_333, 7, 30, 6)
    more = Price("w", 1, "USD", "voice.surcharge", "+1", 1_111_111, 600_000_000, 0, 1, 7)
    own = tuple(
        Rate(each.price_nano, each.per, each.connection_fee_nano, each.minimum, each.increment)
        for each in (price, more)
    )
    for seconds in (1, 29, 30, 31, 95, 3601):
        billed = [billed_quantity(seconds, each.minimum, each.increment) for each in (price, more)]
        assert cost_nano(own, seconds) == amount_nano(billed[0], price.per, price, Surcharge(more, billed[1]))


def test_a_lease_lasts_for_the_slice_and_the_grace() -> None:
    first = lease_end(NOON, 180)
    assert first == NOON + timedelta(seconds=180) + GRACE


@given(st.lists(st.tuples(st.integers(1, 300), st.floats(0, 1)), min_size=1, max_size=8))
def test_a_lease_never_ends_before_what_is_granted_is_used_up(slices: list[tuple[int, float]]) -> None:
    """Whenever within its lease a call renews, talking since the grant: the lease is at least as long as what it may talk."""
    now, until, talk_ends = NOON, None, NOON
    for granted_s, part in slices:
        until = lease_end(now, granted_s, until)
        talk_ends = max(talk_ends, now) + timedelta(seconds=granted_s)
        assert until >= talk_ends
        now += (until - now - timedelta(seconds=1)) * part


def test_what_is_settled_never_holds_more_than_was_held() -> None:
    own = (rate(60, 60),)
    assert settled_nano(own, 61, 70_000_000) == 28_000_000
    assert settled_nano(own, 3600, 70_000_000) == 70_000_000
    assert settled_nano(own, 61, 0) == 0


@given(st.integers(1, 300), st.integers(0, 900_000_000), st.none() | st.integers(-100, 900))
def test_a_slice_that_lasts_is_one_whose_lease_ends_in_time(granted_s: int, until_us: int, runs_s: int | None) -> None:
    until = NOON + timedelta(microseconds=until_us)
    runs_until = None if runs_s is None else NOON + timedelta(seconds=runs_s)
    assert (granted_s <= lasts_s(NOON, until, runs_until)) == (lease_end(NOON, granted_s, runs_until) <= until)


@given(
    st.integers(-50_000_000, 100_000_000),
    st.lists(st.tuples(st.integers(0, 60_000_000), st.none() | st.integers(-30, 320)), max_size=3),
    st.integers(1, 300),
)
def test_with_money_that_ends_nothing_longer_could_have_been_granted(
    own: int, beside: list[tuple[int, int | None]], asked_s: int
) -> None:
    rates = (rate(60, 6),)

    def covers(seconds: int) -> bool:
        there = own + sum(nano for nano, lasts in beside if lasts is None or seconds <= lasts)
        return cost_nano(rates, seconds) <= there

    made = next_slice(
        rates, spendable_nano=own, before_s=0, asked_s=asked_s, beside=[Lasting(*each) for each in beside]
    )
    longest = max((seconds for seconds in range(1, asked_s + 1) if covers(seconds)), default=0)
    assert (0 if made is None else made.granted_s) == longest
