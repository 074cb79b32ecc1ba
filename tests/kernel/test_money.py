"""Amounts: exact both ways, refused when they are not amounts, rounded half-even exactly where asked."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kernel.errors import AmountError
from services.kernel.money import (
    Money,
    ceil_minor,
    divide_half_even,
    floor_minor,
    format_nano,
    parse_amount,
    round_minor,
    usd,
)

nanos = st.integers(-(10**20), 10**20)


@given(nanos)
def test_text_and_nanos_are_the_same_amount(nano):
    assert parse_amount(format_nano(nano), signed=True) == nano
    assert parse_amount(format_nano(nano, decimals_min=2), signed=True) == nano


@pytest.mark.parametrize(
    "text",
    [
        "",
        " 1",
        "1 ",
        "+1",
        "1.",
        ".5",
        "1e3",
        "NaN",
        "Infinity",
        "1_000",
        "１",
        "٣",
        "1.0000000001",
        "--1",
        "1\n",
        "0x1",
        "1,5",
    ],
)
def test_what_is_no_amount_is_refused(text):
    with pytest.raises(AmountError):
        parse_amount(text, signed=True)


@pytest.mark.parametrize("value", [1, 1.0, True, None, b"1", ["1"]])
def test_only_a_string_is_an_amount(value):
    with pytest.raises(AmountError) as caught:
        parse_amount(value, field="threshold")
    assert caught.value.field == "threshold"


def test_a_sign_needs_permission():
    with pytest.raises(AmountError):
        parse_amount("-1")
    assert parse_amount("-1", signed=True) == -(10**9)


@given(st.integers(-(10**24), 10**24), st.integers(1, 10**12))
def test_half_even_is_what_fractions_say(numerator, denominator):
    assert divide_half_even(numerator, denominator) == round(Fraction(numerator, denominator))


@given(nanos, st.sampled_from([0, 2, 3]))
def test_minor_units(nano, exponent):
    step = 10 ** (9 - exponent)
    assert floor_minor(nano, exponent) <= nano <= ceil_minor(nano, exponent)
    assert ceil_minor(nano, exponent) - floor_minor(nano, exponent) in (0, step)
    assert abs(round_minor(nano, exponent) - nano) * 2 <= step
    assert all(rule(nano, exponent) % step == 0 for rule in (floor_minor, ceil_minor, round_minor))


def test_two_currencies_never_mix():
    with pytest.raises(AmountError):
        usd("1") + Money.of("1", "EUR")
    with pytest.raises(AmountError):
        _ = usd("1") < Money.of("1", "EUR")
    assert usd("100") + usd("50") - usd("20") == usd("130")
    assert repr(usd("-0.50")) == "Money('-0.5', 'USD')"
