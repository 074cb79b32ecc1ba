"""Schedules and shares: the arithmetic of tiers, against fractions."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kernel.errors import Corrupt, InvalidInput
from services.kernel.money import CHARGE_NANO_MAX, NANO, format_nano
from services.usage.tiers import Band, Form, Schedule, describe, explain, shares

BANDS = (Band(1_000, 10_000_000), Band(None, 8_000_000))


def schedule(form: Form, *bands: Band, per: int = 1) -> Schedule:
    return Schedule("s", form, per, bands or BANDS)


def amounts(form: Form, *quantities: int, start: int = 0) -> list[str]:
    return [format_nano(each.amount_nano) for each in shares(schedule(form), 1, start, quantities)]


@pytest.mark.parametrize(
    ("form", "quantities", "expected"),
    [
        ("graduated", (900, 200, 300), ["9", "1.8", "2.4"]),
        ("graduated", (300, 200, 900), ["3", "2", "8.2"]),
        ("graduated", (200, 900, 300), ["2", "8.8", "2.4"]),
        ("volume", (900, 200, 300), ["9", "-0.2", "2.4"]),
        ("volume", (300, 200, 900), ["3", "2", "6.2"]),
        ("volume", (200, 900, 300), ["2", "6.8", "2.4"]),
        ("volume", (900, 200, 300, -200, -500), ["9", "-0.2", "2.4", "-1.6", "-2.6"]),
    ],
)
def test_the_examples_of_the_page(form: Form, quantities: tuple[int, ...], expected: list[str]) -> None:
    assert amounts(form, *quantities) == expected


@pytest.mark.parametrize(
    ("form", "quantity", "total"),
    [
        ("graduated", 0, "0"),
        ("graduated", 100, "0"),
        ("graduated", 101, "5.01"),
        ("graduated", 200, "6"),
        ("graduated", 201, "6.001"),
        ("volume", 0, "0"),
        ("volume", 100, "0"),
        ("volume", 101, "6.01"),
        ("volume", 200, "7"),
        ("volume", 201, "0.201"),
    ],
)
def test_an_included_quantity_is_a_band_at_price_zero_and_a_fee_is_due_once_a_band_is_entered(
    form: Form, quantity: int, total: str
) -> None:
    bands = (Band(100, 0), Band(200, 10**7, 5 * NANO), Band(None, 10**6))
    assert format_nano(schedule(form, *bands).total_nano(quantity, 1)) == total


def test_a_counter_below_zero_is_refused() -> None:
    with pytest.raises(Corrupt):
        amounts("volume", 5, -6)


prices = st.integers(0, 10**11)
forms = st.sampled_from(("graduated", "volume"))
borders = st.lists(st.integers(1, 400), max_size=4, unique=True).map(sorted)


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    ends = [*draw(borders), None]
    fees = st.sampled_from((0, 0, 1, 10**9))
    bands = tuple(Band(end, draw(prices), draw(fees)) for end in ends)
    return Schedule("s", draw(forms), draw(st.sampled_from((1, 3, 7, 60, 1_000))), bands)


def cost(of: Schedule, quantity: int) -> int:
    """What a quantity costs, in fractions of a nano, each unit by itself; rounded as Python rounds a fraction: half-even."""

    def band_of(unit: int) -> Band:
        return next(band for band in of.bands if band.up_to is None or unit <= band.up_to)

    if not quantity:
        return 0
    units = range(1, quantity + 1)
    if of.form == "volume":
        band = band_of(quantity)
        exact = Fraction(band.price_nano, of.per) * quantity + band.fee_nano
    else:
        exact = sum((Fraction(band_of(unit).price_nano, of.per) for unit in units), Fraction(0))
        exact += sum(band.fee_nano for band in dict.fromkeys(map(band_of, units)))
    return round(exact)


@given(of=schedules(), quantity=st.integers(0, 600))
def test_a_total_is_the_fraction_rounded_once(of: Schedule, quantity: int) -> None:
    assert of.total_nano(quantity, of.per) == cost(of, quantity)


@given(
    of=schedules(),
    quantities=st.lists(st.integers(0, 120), min_size=1, max_size=8),
    voided=st.sets(st.integers(0, 7)),
    seed=st.integers(0, 2**32),
)
def test_shares_sum_to_the_cost_of_what_is_left_in_any_order_with_any_voids(
    of: Schedule, quantities: list[int], voided: set[int], seed: int
) -> None:
    gone = [number for number in voided if number < len(quantities)]
    steps = [(number, quantity) for number, quantity in enumerate(quantities)]
    chance = random.Random(seed)
    chance.shuffle(steps)
    for number in gone:  # a void comes after what it voids
        place = chance.randint(steps.index((number, quantities[number])) + 1, len(steps))
        steps.insert(place, (-1, -quantities[number]))
    made = list(shares(of, of.per, 0, (quantity for _, quantity in steps)))
    left = sum(quantities) - sum(quantities[number] for number in gone)
    assert sum(share.amount_nano for share in made) == cost(of, left)
    for (_, quantity), share in zip(steps, made, strict=True):
        assert share.after - share.before == quantity
        assert abs(share.amount_nano) <= of.largest_share_nano(abs(quantity), of.per)


@pytest.mark.parametrize(
    ("bands", "field"),
    [
        ((), "bands"),
        ((Band(10, 1),), "bands[0].up_to"),
        ((Band(None, 1), Band(None, 2)), "bands[0].up_to"),
        ((Band(0, 1), Band(None, 2)), "bands[0].up_to"),
        ((Band(10, 1), Band(10, 1), Band(None, 2)), "bands[1].up_to"),
        ((Band(10, 1), Band(None, -2)), "bands[1].price"),
        ((Band(10, 1), Band(None, 2, -1)), "bands[1].price"),
        ((Band(None, 0, CHARGE_NANO_MAX),), "bands"),
        ((Band(2 * 10**8, 10**7), Band(None, 0)), "bands"),
    ],
)
def test_bands_that_make_no_schedule_are_refused_by_name(bands: tuple[Band, ...], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        Schedule("s", "volume", 1, bands)
    assert refused.value.field == field


def test_other_parts_of_a_schedule_are_checked_too() -> None:
    with pytest.raises(InvalidInput, match="form"):
        Schedule("s", "stairs", 1, BANDS)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="per"):
        Schedule("s", "volume", 0, BANDS)


def test_a_share_is_explained_to_the_last_digit() -> None:
    of = schedule("volume", Band(1_000, 10**7), Band(None, 8 * 10**6, NANO), per=7)
    (share,) = shares(of, 7, 1_400, [-500])
    assert explain(of, share, 7, "second", "EUR") == (
        "the month's counter stood at 1400 second, and without these 500 at 900",
        "1400 second cost 1400 x 0.008 / 7 + fee 1 = 2.6",
        "900 second cost 900 x 0.01 / 7 = 1.285714285714…, rounded half-even to 9 decimals: 1.285714286",
        "1.285714286 - 2.6 = -1.314285714 EUR",
    )
    (first,) = shares(of, 7, 0, [5])
    assert explain(of, first, 7, "second", "EUR")[1] == "0 second cost 0 = 0"
    assert (
        describe(of, "for 7 second")
        == "schedule s, volume, prices for 7 second: up to 1000 at 0.01; above at 0.008, fee 1"
    )
