"""Payments that somebody asks for, and the day of a scheduled one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.balance import paying
from services.kernel.currency import currency
from services.kernel.errors import InvalidInput, Refused
from services.kernel.money import parse_amount

USD = currency("USD")
NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Account:
    level_2: bool = False
    created_at: datetime = NOON


@dataclass(frozen=True)
class Attempt:
    amount_nano: int
    state: str = "settled"
    kind: str = "manual"
    requested_at: datetime = NOON


def refusal(amount, attempts=(), **changes):
    try:
        paying.check_payment(Account(**changes), attempts, parse_amount(amount), USD, NOON)
    except (InvalidInput, Refused) as refused:
        return str(refused)
    return None


@pytest.mark.parametrize("amount", ["10", "99.99", "100"])
def test_payments_within_the_limit_of_the_first_day(amount):
    assert refusal(amount) is None


@pytest.mark.parametrize(
    ("amount", "paid", "names"),
    [
        ("100.01", "0", ("100.00 USD", "10.00 USD")),
        ("9.99", "0", ("10.00 USD",)),
        ("40.01", "60", ("40.00 USD", "10.00 USD")),
        ("10", "90.01", ("9.99 USD", "10.00 USD")),
    ],
)
def test_example_22_the_refusal_names_what_is_left_and_the_minimum(amount, paid, names):
    said = refusal(amount, [Attempt(parse_amount(paid))])
    assert said.startswith("amount: ")
    assert all(name in said for name in names)


@pytest.mark.parametrize("state", ["requested", "unknown", "settled", "abandoned"])
def test_what_may_have_been_taken_counts(state):
    assert refusal("10", [Attempt(parse_amount("95"), state)]) is not None


@pytest.mark.parametrize("state", ["declined", "cancelled"])
def test_what_was_not_taken_does_not_count(state):
    assert refusal("100", [Attempt(parse_amount("95"), state)]) is None


def test_level_2_lifts_the_limit_and_not_the_bounds():
    assert refusal("10000000", level_2=True) is None
    assert "at most" in refusal("10000000.01", level_2=True)
    assert "minimum" in refusal("9.99", level_2=True)
    assert "decimals" in refusal("10.001", level_2=True)


@given(
    st.integers(1, 28) | st.just(31),
    st.integers(0, 14 * 366 * 86_400).map(lambda seconds: NOON + timedelta(seconds=seconds)),
)
def test_the_next_scheduled_day_is_the_first_of_its_number_after_an_instant(day, after):
    at = paying.next_scheduled(day, after)
    assert at > after
    assert (at.hour, at.minute, at.second, at.microsecond) == (0, 0, 0, 0)
    is_last = (at + timedelta(days=1)).day == 1
    assert is_last if day == 31 else at.day == day
    assert at - after <= timedelta(days=31)


@pytest.mark.parametrize("kind", ["card", "paypal", "bank_debit"])
def test_what_the_sandbox_can_charge(kind):
    paying.check_method("sandbox", kind)
