"""What a leg costs, as a specification."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from services.kernel.errors import InvalidInput
from services.kernel.money import NANO, format_nano, parse_amount
from services.usage.books import (
    INBOUND,
    OUTBOUND,
    SURCHARGE,
    TOLL_FREE,
    BookVersion,
    Chain,
    Direction,
    Price,
    PriceBooks,
    PriceRow,
    check_schedules,
)
from services.usage.rating import (
    Counted,
    NoPrice,
    NotBillable,
    Rated,
    Surcharge,
    TooLarge,
    WrongCurrency,
    amount_nano,
    billed_quantity,
    explain,
    rate,
)
from services.usage.tiers import Band, Schedule
from services.usage.uses import Leg

NOW = datetime(2026, 10, 15, 12, tzinfo=UTC)
START = datetime(2026, 10, 1, tzinfo=UTC)


def row(
    prefix: str, price: str, *, product: str = OUTBOUND, fee: str = "0", minimum_s: int = 60, increment_s: int = 60
) -> PriceRow:
    return PriceRow(product, prefix, parse_amount(price), parse_amount(fee), minimum_s, increment_s)


def book(book_id: str, *rows: PriceRow, currency: str = "USD") -> BookVersion:
    return BookVersion(book_id, 1, currency, START, rows)


def chain(*versions: BookVersion) -> Chain:
    return PriceBooks(versions).chain(default=[version.book_id for version in versions])


def leg(called: str, seconds: int, *, direction: Direction = "outbound", answered: bool = True) -> Leg:
    times = ("2026-10-15T11:00:00Z", "2026-10-15T12:00:00Z")
    return Leg(direction, None, called, *times, answered, seconds, seconds, "sales")


def rated(leg: Leg, books: Chain) -> Rated:
    outcome = rate(leg, NOW, books, "USD")
    assert isinstance(outcome, Rated), outcome
    return outcome


def cost(leg: Leg, books: Chain) -> str:
    return format_nano(rated(leg, books).amount_nano)


@pytest.mark.parametrize(
    ("seconds", "price", "fee", "minimum_s", "increment_s", "billed_s", "amount"),
    [
        (95, "0.0140", "0", 60, 60, 120, "0.028"),
        (95, "0.0120", "0.0010", 60, 6, 96, "0.0202"),
        (3, "0.0085", "0", 1, 1, 3, "0.000425"),
        (1, "0.0085", "0", 1, 1, 1, "0.000141667"),
        (23, "0.0400", "0.0010", 60, 6, 60, "0.041"),
        (60, "0.0140", "0", 60, 60, 60, "0.014"),
        (61, "0.0140", "0", 60, 60, 120, "0.028"),
        (7, "0.0140", "0", 6, 6, 12, "0.0028"),
        (7, "0.0140", "0", 0, 6, 12, "0.0028"),
        (1, "0", "0", 60, 60, 60, "0"),
    ],
)
def test_a_leg_costs_fee_plus_billed_seconds_of_the_price_a_minute(
    seconds: int, price: str, fee: str, minimum_s: int, increment_s: int, billed_s: int, amount: str
) -> None:
    books = chain(book("list", row("+1", price, fee=fee, minimum_s=minimum_s, increment_s=increment_s)))
    outcome = rated(leg("+12485252160", seconds), books)
    assert outcome.billed == billed_s
    assert format_nano(outcome.amount_nano) == amount


def test_a_charge_names_its_price() -> None:
    price = rated(leg("+919885988143", 23), chain(book("list", row("+91", "0.0473", fee="0.0010")))).price
    assert (price.book_id, price.version, price.currency, price.product, price.prefix) == (
        "list", 1, "USD", "voice.outbound", "+91",
    )  # fmt: skip
    assert (price.unit_price, price.connection_fee, price.minimum, price.increment) == ("0.0473", "0.001", 60, 60)


def test_the_longest_prefix_wins() -> None:
    books = chain(book("list", row("+1", "0.01"), row("+1242", "0.30"), row("+124", "0.20")))
    assert [cost(leg(called, 60), books) for called in ("+12425550100", "+12485550100", "+13135550100")] == [
        "0.3", "0.2", "0.01",
    ]  # fmt: skip


def test_the_first_book_with_a_match_wins_even_with_a_shorter_prefix() -> None:
    books = PriceBooks(
        [
            book("own", row("+4420", "0.01")),
            book("model", row("+44", "0.02")),
            book("house", row("+447", "0.03"), row("+49", "0.03")),
            book("list", row("+447", "0.04"), row("+33", "0.04")),
        ]
    ).chain(account="own", pricing_model="model", organization="house", default=("list",))
    called = ("+442071838750", "+447400123456", "+4930123456", "+33140205050")
    assert [rated(leg(number, 60), books).price.book_id for number in called] == ["own", "model", "house", "list"]


def test_inbound_is_priced_by_the_own_number_and_toll_free_is_a_product_of_its_own() -> None:
    inbound = row("+1", "0.0085", product=INBOUND, minimum_s=1, increment_s=1)
    toll_free = row("+1877", "0.0220", product=TOLL_FREE, minimum_s=1, increment_s=1)
    without, with_it = chain(book("inbound", inbound)), chain(book("inbound", inbound, toll_free))
    assert cost(leg("+12484329407", 60, direction="inbound"), without) == "0.0085"
    assert rate(leg("+18778874413", 60, direction="inbound"), NOW, without, "USD") == NoPrice(TOLL_FREE, "+18778874413")
    assert cost(leg("+18778874413", 60, direction="inbound"), with_it) == "0.022"
    assert isinstance(rate(leg("+18778874413", 60), NOW, with_it, "USD"), NoPrice), "outbound has no price here"


def from_caller(caller: str | None, seconds: int) -> Leg:
    times = ("2026-10-15T11:00:00Z", "2026-10-15T12:00:00Z")
    return Leg("inbound", caller, "+18778874413", *times, True, seconds, seconds, "sales")


TOLL_FREE_ROW = row("+1877", "0.0220", product=TOLL_FREE, minimum_s=1, increment_s=1)
PAYPHONE = row("+1248555", "0", product=SURCHARGE, fee="0.60", minimum_s=0, increment_s=1)
MOBILE = row("+1248556", "0.05", product=SURCHARGE, fee="0.01", minimum_s=60, increment_s=60)


@pytest.mark.parametrize(
    ("caller", "seconds", "surcharge", "amount"),
    [
        ("+12485550101", 90, "+1248555", "0.633"),  # 90 x 0.022 / 60 + 0.60
        ("+12485560101", 90, "+1248556", "0.143"),  # 0.033 + 2 minutes of 0.05 + 0.01
        ("+12485560101", 1, "+1248556", "0.060366667"),  # 0.000366666… + 0.06: rounded once
        ("+13135550101", 90, None, "0.033"),
        (None, 90, None, "0.033"),
    ],
)
def test_a_toll_free_leg_costs_more_by_where_its_caller_is(
    caller: str | None, seconds: int, surcharge: str | None, amount: str
) -> None:
    outcome = rated(from_caller(caller, seconds), chain(book("list", TOLL_FREE_ROW, PAYPHONE, MOBILE)))
    assert (outcome.surcharge.price.prefix if outcome.surcharge else None) == surcharge
    assert format_nano(outcome.amount_nano) == amount


def test_a_caller_that_is_not_known_takes_the_surcharge_of_any() -> None:
    any_caller = row("*", "0", product=SURCHARGE, fee="0.25")
    books = chain(book("list", TOLL_FREE_ROW, PAYPHONE, any_caller))
    callers = (None, "+4930123456", "+12485550101")
    assert [cost(from_caller(caller, 60), books) for caller in callers] == ["0.272", "0.272", "0.622"]


def test_a_surcharge_comes_from_the_first_book_that_has_one_and_no_other_leg_takes_it() -> None:
    versions = [book("own", TOLL_FREE_ROW), book("list", PAYPHONE, row("+1", "0.0085", product=INBOUND))]
    outcome = rated(from_caller("+12485550101", 60), chain(*versions))
    assert (outcome.price.book_id, outcome.surcharge.price.book_id if outcome.surcharge else None) == ("own", "list")
    waived = book("own", TOLL_FREE_ROW, row("*", "0", product=SURCHARGE, minimum_s=0, increment_s=1))
    assert cost(from_caller("+12485550101", 60), chain(waived, versions[1])) == "0.022"
    inbound = leg("+12484329407", 60, direction="inbound")
    assert rated(inbound, chain(*versions)).surcharge is None


def test_a_surcharge_in_another_currency_or_of_a_book_that_is_not_loaded_stops_the_charge() -> None:
    books = chain(book("list", TOLL_FREE_ROW), book("euro", PAYPHONE, currency="EUR"))
    assert isinstance(rate(from_caller("+12485550101", 60), NOW, books, "USD"), WrongCurrency)
    missing = PriceBooks([book("list", TOLL_FREE_ROW)]).chain(default=("list", "to-come"))
    outcome = rate(from_caller("+12485550101", 60), NOW, missing, "USD")
    assert outcome == NoPrice(SURCHARGE, "+12485550101", missing_book="to-come")


def test_a_surcharge_is_never_lost_beside_tiers() -> None:
    schedule = Schedule("monthly", "graduated", 60, (Band(None, 10_000_000),))
    by_tiers = structs.replace(TOLL_FREE_ROW, price_nano=0, schedule="monthly")
    tiered = BookVersion("tiers", 1, "USD", START, (by_tiers,), schedules=(schedule,))
    outcome = rate(from_caller("+12485550101", 60), NOW, chain(tiered, book("list", PAYPHONE)), "USD")
    assert isinstance(outcome, NoPrice)
    assert "by tiers, to which the surcharge of book list cannot be added" in outcome.message
    assert isinstance(rate(from_caller("+13135550101", 60), NOW, chain(tiered, book("list", PAYPHONE)), "USD"), Counted)
    with pytest.raises(InvalidInput, match="it has no tiers"):
        check_schedules([structs.replace(by_tiers, product=SURCHARGE)], [schedule])


def test_explain_adds_the_surcharge_before_it_rounds() -> None:
    outcome = rated(from_caller("+12485560101", 1), chain(book("list", TOLL_FREE_ROW, MOBILE)))
    assert outcome.surcharge is not None
    assert explain(outcome.price, 1, 60, surcharge=outcome.surcharge.price)[2:] == (
        "1 s x 0.022 / 60 = 0.000366666666…",
        "surcharge by the caller: prefix +1248556 of book list, version 1 (voice.toll_free.surcharge): 0.05 USD a minute,"
        " connection fee 0.01, 60/60 seconds",
        "surcharge by the caller: answered 1 s; at least 60 s, then steps of 60 s: billed 60 s",
        "surcharge by the caller: 60 s x 0.05 / 60 = 0.05",
        "surcharge by the caller: 0.05 + connection fee 0.01 = 0.06",
        "0.000366666666… + surcharge 0.06 = 0.060366666666…",
        "rounded half-even to 9 decimals: 0.060366667 USD",
    )


@given(
    seconds=st.integers(1, 7 * 86_400),
    prices=st.tuples(*[st.integers(0, 10 * NANO)] * 4),
    per=st.sampled_from([60, 1, 7, 3_600]),
)
def test_a_charge_with_a_surcharge_is_the_exact_sum_rounded_once(
    seconds: int, prices: tuple[int, ...], per: int
) -> None:
    price = Price("list", 1, "USD", TOLL_FREE, "+1", prices[0], prices[1], 1, 1)
    more = Price("list", 1, "USD", SURCHARGE, "+1", prices[2], prices[3], 1, 1, per)
    exact = prices[1] + prices[3] + Fraction(seconds * prices[0], 60) + Fraction(seconds * prices[2], per)
    assert amount_nano(seconds, 60, price, Surcharge(more, seconds)) == round(exact)


def test_no_match_is_no_price_and_an_explicit_zero_is_a_price() -> None:
    books = chain(book("list", row("+1", "0")))
    assert cost(leg("+12485252160", 60), books) == "0"
    outcome = rate(leg("+442071838750", 60), NOW, books, "USD")
    assert isinstance(outcome, NoPrice)
    assert "+442071838750" in outcome.message


def test_unanswered_and_zero_seconds_cost_nothing_before_any_price_is_looked_up() -> None:
    assert rate(leg("+99", 0, answered=False), NOW, (), "USD") == NotBillable("unanswered")
    assert rate(leg("+99", 13, answered=False), NOW, (), "USD") == NotBillable("unanswered")
    assert rate(leg("+99", 0), NOW, (), "USD") == NotBillable("nothing_used")


def test_a_book_that_is_named_but_not_loaded_is_no_reason_to_take_the_next_ones_price() -> None:
    books = PriceBooks([book("list", row("+1", "0.0140"))]).chain(pricing_model="wholesale", default=("list",))
    outcome = rate(leg("+12485252160", 60), NOW, books, "USD")
    assert outcome == NoPrice(OUTBOUND, "+12485252160", missing_book="wholesale")
    assert "wholesale" in outcome.message


def test_another_currency_is_never_converted() -> None:
    outcome = rate(leg("+12485252160", 60), NOW, chain(book("list", row("+1", "0.01"), currency="EUR")), "USD")
    assert isinstance(outcome, WrongCurrency)
    assert (outcome.price.currency, outcome.expected) == ("EUR", "USD")


def test_a_charge_above_a_million_units_is_not_made() -> None:
    assert isinstance(rate(leg("+1248", 600), NOW, chain(book("list", row("+1", "999999"))), "USD"), TooLarge)


def test_the_price_effective_at_event_time_holds() -> None:
    first = BookVersion("list", 1, "USD", START, (row("+1", "0.01"),))
    second = BookVersion("list", 2, "USD", NOW, (row("+1", "0.02"),))
    books = PriceBooks([second, first]).chain(default=("list",))

    def version_at(at: datetime) -> int | None:
        outcome = rate(leg("+1248", 60), at, books, "USD")
        return outcome.price.version if isinstance(outcome, Rated) else None

    second_before = timedelta(seconds=1)
    assert [version_at(at) for at in (START - second_before, START, NOW - second_before, NOW)] == [None, 1, 1, 2]


def test_explain_shows_digits_that_rounding_takes_away() -> None:
    price = Price("inbound", 2, "USD", INBOUND, "+1", parse_amount("0.0085"), 0, 1, 1)
    assert explain(price, 1, 60) == (
        "prefix +1 of book inbound, version 2 (voice.inbound): 0.0085 USD a minute, connection fee 0, 1/1 seconds",
        "answered 1 s; at least 1 s, then steps of 1 s: billed 1 s",
        "1 s x 0.0085 / 60 = 0.000141666666…",
        "rounded half-even to 9 decimals: 0.000141667 USD",
    )


@given(
    seconds=st.integers(1, 7 * 86_400),
    minimum_s=st.integers(0, 3_600),
    increment_s=st.integers(1, 3_600),
)
def test_billed_seconds_are_the_least_allowed_that_cover_the_call(
    seconds: int, minimum_s: int, increment_s: int
) -> None:
    billed_s = billed_quantity(seconds, minimum_s, increment_s)
    assert billed_s >= max(seconds, minimum_s)
    assert (billed_s - minimum_s) % increment_s == 0
    assert billed_s == minimum_s or billed_s - increment_s < seconds


@given(
    billed_s=st.integers(1, 7 * 86_400),
    per_minute_nano=st.integers(0, 100 * NANO),
    fee_nano=st.integers(0, 100 * NANO),
)
def test_an_amount_is_the_exact_fraction_rounded_once_half_even(
    billed_s: int, per_minute_nano: int, fee_nano: int
) -> None:
    price = Price("list", 1, "USD", OUTBOUND, "+1", per_minute_nano, fee_nano, 60, 60)
    assert amount_nano(billed_s, 60, price) == round(fee_nano + Fraction(billed_s * per_minute_nano, 60))
    assert explain(price, billed_s, 60)[-1].startswith("rounded half-even to 9 decimals: ")


def test_half_a_nano_goes_to_the_even_neighbour() -> None:
    halves = [Price("list", 1, "USD", OUTBOUND, "+1", nano, 0, 1, 1) for nano in (1, 3, 5)]
    assert [amount_nano(30, 60, price) for price in halves] == [0, 2, 2]


def test_voice_that_is_not_priced_by_the_minute_says_so() -> None:
    price = Price("list", 1, "USD", OUTBOUND, "+1", NANO, 0, 1, 1, 3_600)
    assert explain(price, 60, 3_600)[0].endswith("1 USD for 3600 s, connection fee 0, 1/1 seconds")
