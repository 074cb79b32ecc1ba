"""What changes between two versions of a book."""

from __future__ import annotations

from datetime import UTC, datetime
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from services.kernel.errors import InvalidInput
from services.usage.books import MESSAGES, OUTBOUND, SEGMENT, BookVersion, PriceRow
from services.usage.comparing import Change, compare
from services.usage.rating import billed_quantity
from services.usage.tiers import Band, Schedule
from services.usage.windows import Window, window_of

AT = datetime(2026, 10, 1, tzinfo=UTC)
ROW = PriceRow(OUTBOUND, "+49", 100, 10, 60, 60)


def version(*rows: PriceRow, windows: tuple[Window, ...] = (), schedules: tuple[Schedule, ...] = ()) -> BookVersion:
    return BookVersion("list", 1, "USD", AT, rows, windows, schedules)


def only(old: PriceRow, new: PriceRow) -> Change:
    (change,) = compare(version(old), version(new))
    return change


def test_what_is_the_same_is_not_told() -> None:
    assert compare(version(ROW, replace(ROW, prefix="+33")), version(replace(ROW, prefix="+33"), ROW)) == ()


def test_added_and_removed_prices_name_what_covers_their_numbers_in_the_other_version() -> None:
    germany, mobile, france = ROW, replace(ROW, prefix="+4917"), replace(ROW, prefix="+33")
    anywhere = replace(ROW, prefix="*")
    changes = compare(version(germany, france), version(germany, mobile, anywhere))
    assert [(each.kind, each.prefix, each.covered_by) for each in changes] == [
        ("added", "*", None),
        ("removed", "+33", anywhere),
        ("added", "+4917", germany),
    ]


def test_a_short_code_is_covered_by_the_price_of_any_and_by_no_shorter_code() -> None:
    code, longer, numbers = (
        PriceRow(MESSAGES[0], prefix, 100, 0, 0, 1, 1, SEGMENT) for prefix in ("=441", "=44123", "+441")
    )
    anywhere = replace(code, prefix="*")
    assert [
        (each.prefix, each.covered_by) for each in compare(version(code, numbers), version(code, numbers, longer))
    ] == [("=44123", None)]
    (removed,) = compare(version(code, longer, anywhere), version(code, anywhere))
    assert (removed.kind, removed.prefix, removed.covered_by) == ("removed", "=44123", anywhere)


@pytest.mark.parametrize(
    ("new", "kind", "percent", "fields"),
    [
        (replace(ROW, price_nano=150), "raised", "50.00", ("price",)),
        (replace(ROW, price_nano=0), "lowered", "-100.00", ("price",)),
        (replace(ROW, price_nano=101, connection_fee_nano=9), "changed", "1.00", ("price", "fee")),
        (replace(ROW, connection_fee_nano=11), "raised", "0.00", ("fee",)),
        (replace(ROW, increment=6), "lowered", "0.00", ("increment",)),
        (replace(ROW, minimum=1), "changed", "0.00", ("minimum",)),  # 120 seconds: 120 before, 121 now
        (replace(ROW, minimum=120), "raised", "0.00", ("minimum",)),
        (replace(ROW, minimum=30, increment=6, price_nano=99), "lowered", "-1.00", ("price", "minimum", "increment")),
        (replace(ROW, minimum=30, increment=6, price_nano=101), "changed", "1.00", ("price", "minimum", "increment")),
        (replace(ROW, price_nano=200, per=120), "changed", "0.00", ("price", "per")),
        (replace(ROW, per=120), "lowered", "-50.00", ("per",)),
        (replace(ROW, delivered_only=True), "changed", "0.00", ("bill_on",)),
    ],
)
def test_a_price_is_raised_or_lowered_if_that_is_so_for_every_use(
    new: PriceRow, kind: str, percent: str, fields: tuple[str, ...]
) -> None:
    change = only(ROW, new)
    assert (change.kind, change.percent, change.fields) == (kind, percent, fields)


@pytest.mark.parametrize(
    ("old", "new", "percent"), [(3, 4, "33.33"), (3, 2, "-33.33"), (800, 801, "0.12"), (800, 803, "0.38")]
)
def test_percentages_are_rounded_half_even_to_two_decimals(old: int, new: int, percent: str) -> None:
    assert only(replace(ROW, price_nano=old), replace(ROW, price_nano=new)).percent == percent


def test_a_price_that_was_zero_has_no_percentage() -> None:
    change = only(replace(ROW, price_nano=0), ROW)
    assert (change.kind, change.percent) == ("raised", None)


def test_a_window_with_other_hours_changes_the_prices_in_it() -> None:
    night, later = (window_of("night", "UTC", "mon-sun", start, "06:00") for start in ("20:00", "22:00"))
    at_night = replace(ROW, price_nano=50, window="night")
    (change,) = compare(version(ROW, at_night, windows=(night,)), version(ROW, at_night, windows=(later,)))
    assert (change.kind, change.window, change.fields) == ("changed", "night", ("window",))
    assert (change.old, change.new) == (at_night, at_night)
    (added,) = compare(version(ROW), version(ROW, at_night, windows=(night,)))
    assert (added.kind, added.covered_by) == ("added", ROW)


def test_a_schedule_with_other_bands_changes_the_prices_by_it() -> None:
    first, second = (Schedule("monthly", "volume", 60, (Band(None, price),)) for price in (1, 2))
    tiered = replace(ROW, price_nano=0, connection_fee_nano=0, schedule="monthly")
    (change,) = compare(version(tiered, schedules=(first,)), version(tiered, schedules=(second,)))
    assert (change.kind, change.fields, change.percent) == ("changed", ("schedule",), None)
    assert only(ROW, tiered).kind == "changed"


def test_two_currencies_cannot_be_compared() -> None:
    euro = BookVersion("euro", 1, "EUR", AT, (ROW,))
    with pytest.raises(InvalidInput, match="EUR cannot be compared with USD"):
        compare(version(ROW), euro)


ROWS = st.builds(
    lambda price, fee, minimum, increment, per: PriceRow(OUTBOUND, "+1", price, fee, minimum, increment, per),
    st.integers(0, 4), st.integers(0, 2), st.integers(0, 12), st.integers(1, 6), st.integers(1, 3),
)  # fmt: skip


@given(ROWS, ROWS)
def test_by_a_raised_price_no_use_costs_less_and_by_a_lowered_one_none_costs_more(old: PriceRow, new: PriceRow) -> None:
    def cost(row: PriceRow, used: int) -> Fraction:
        billed = billed_quantity(used, row.minimum, row.increment)
        return row.connection_fee_nano + Fraction(billed * row.price_nano, row.per)

    for change in compare(version(old), version(new)):
        differences = [cost(new, used) - cost(old, used) for used in range(1, 60)]
        if change.kind == "raised":
            assert min(differences) >= 0
        elif change.kind == "lowered":
            assert max(differences) <= 0
