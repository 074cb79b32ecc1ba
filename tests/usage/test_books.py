"""Price books and price files, as a specification."""

from __future__ import annotations

import random
import time
import tracemalloc
from datetime import UTC, datetime, timedelta
from pathlib import Path

import phonenumbers
import pytest

from services.kernel.errors import InvalidInput
from services.kernel.money import format_nano
from services.usage.books import INBOUND, OUTBOUND, TOLL_FREE, BookVersion, PriceBook, PriceBooks, PriceRow
from services.usage.number_plan import number_blocks
from services.usage.price_files import PriceFile, read_price_file

DEMO = Path(__file__).parents[2] / "deploy" / "demo"
DAY = datetime(2026, 10, 1, tzinfo=UTC)
COUNTRY_HEADER = "iso_country,price_per_minute,currency"
PREFIX_HEADER = "product,prefix,price_per_minute,minimum_s,increment_s,connection_fee,currency"


def version(number: int, effective_from: datetime, *rows: PriceRow) -> BookVersion:
    return BookVersion("list", number, "USD", effective_from, rows)


def file_of(*lines: str) -> PriceFile:
    return read_price_file("\n".join(lines).encode())


def prices_of(file: PriceFile, *numbers: str) -> list[str | None]:
    book = PriceBooks([version(1, DAY, *file.rows)]).chain(default=("list",))[0]
    found = [book.find(OUTBOUND, number, DAY) for number in numbers]
    return [price.unit_price if price else None for price in found]


@pytest.fixture(scope="module")
def price_list() -> PriceFile:
    return read_price_file((DEMO / "voice_prices.csv").read_bytes())


# --- versions ---------------------------------------------------------------------------------------------------------


def test_a_version_dated_back_rates_what_is_rated_from_then_on() -> None:
    first = version(1, DAY, PriceRow(INBOUND, "+1", 1))
    dated_back = version(2, DAY, PriceRow(INBOUND, "+1", 1), PriceRow(TOLL_FREE, "+1877", 2))
    before = PriceBooks([first]).chain(default=("list",))[0]
    after = PriceBooks([first, dated_back]).chain(default=("list",))[0]
    assert before.find(TOLL_FREE, "+18778874413", DAY) is None
    price = after.find(TOLL_FREE, "+18778874413", DAY)
    assert price is not None
    assert price.version == 2


def test_a_version_dated_back_does_not_replace_a_later_one() -> None:
    of_march, dated_back = DAY + timedelta(days=60), DAY + timedelta(days=30)
    versions = [
        version(number, start, PriceRow(OUTBOUND, "+1", number))
        for number, start in ((1, DAY), (2, of_march), (3, dated_back))
    ]
    book = PriceBooks(versions).chain(default=("list",))[0]
    found = [book.find(OUTBOUND, "+1248", DAY + timedelta(days=days)) for days in (0, 29, 30, 59, 60)]
    assert [price.version if price else None for price in found] == [1, 1, 3, 3, 2]


def test_a_version_is_complete_so_a_prefix_it_leaves_out_has_no_price() -> None:
    book = PriceBooks(
        [version(1, DAY, PriceRow(OUTBOUND, "+49", 1)), version(2, DAY, PriceRow(OUTBOUND, "+33", 1))]
    ).chain(default=("list",))[0]
    assert book.find(OUTBOUND, "+4930123456", DAY) is None


def test_a_prefix_stands_once_in_a_version() -> None:
    twice = version(1, DAY, PriceRow(OUTBOUND, "+1", 1), PriceRow(OUTBOUND, "+1", 2))
    book = PriceBooks([twice]).chain(default=("list",))[0]
    with pytest.raises(InvalidInput, match=r"voice.outbound \+1 stands twice in list version 1"):
        book.find(OUTBOUND, "+1248", DAY)


def test_a_version_that_nobody_asks_takes_little_memory() -> None:
    """A carrier's list of 50,000 prefixes every week, and a worker that must not hold four hundred megabytes for a year of it."""

    def weekly(number: int) -> BookVersion:
        rows = (PriceRow(OUTBOUND, f"+{prefix}", prefix * number) for prefix in range(100_000, 105_000))
        return version(number, DAY + timedelta(weeks=number), *rows)

    tracemalloc.start()
    try:
        book = PriceBook("list", (weekly(number) for number in range(20)))
        packed, _ = tracemalloc.get_traced_memory()
        price = book.find(OUTBOUND, "+1045678", DAY + timedelta(weeks=7, days=1))
        unpacked, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert price is not None
    assert (price.version, price.prefix, price.price_nano) == (7, "+104567", 104_567 * 7)
    assert packed / (20 * 5_000) < 60, "bytes a price"
    assert (unpacked - packed) / 5_000 < 500
    assert book.sells(OUTBOUND, DAY + timedelta(weeks=3))
    assert not book.sells(INBOUND, DAY + timedelta(weeks=3))


def test_books_are_asked_once_each_in_the_order_account_model_organization_default() -> None:
    books = PriceBooks([]).chain(account="a", pricing_model="list", organization=None, default=("list", "inbound"))
    assert [book.book_id for book in books] == ["a", "list", "inbound"]


# --- the price list by country ----------------------------------------------------------------------------------------


def test_the_price_list_loads_in_under_five_seconds() -> None:
    number_blocks.cache_clear()
    begun = time.perf_counter()
    read_price_file((DEMO / "voice_prices.csv").read_bytes())
    assert time.perf_counter() - begun < 5


def test_only_the_dissolved_netherlands_antilles_are_refused_by_name(price_list: PriceFile) -> None:
    assert [str(refused) for refused in price_list.refused] == [
        "line 9, iso_country: AN is in no number plan, so it has no prefixes; remove the line, or price its numbers by prefix"
    ]


def test_every_other_country_of_the_price_list_has_prefixes(price_list: PriceFile) -> None:
    lines = (DEMO / "voice_prices.csv").read_text().splitlines()[1:]
    prices = {price.prefix for price in price_list.rows}
    for country in {line.split(",")[0] for line in lines} - {"AN"}:
        blocks = number_blocks(phonenumbers.country_code_for_region(country))
        assert {block.prefix for block in blocks if block.countries[0] == country} & prices, country


@pytest.mark.parametrize(
    ("number", "price"),
    [
        ("+12485252160", "0.014"),  # United States
        ("+13102345678", "0.014"),  # an area code of the United States, and a national service of Canada
        ("+14165550123", "0.014"),  # Canada
        ("+12423651234", "0.3134"),  # Bahamas
        ("+18095551234", "0.11"),  # Dominican Republic
        ("+17875551234", "0.02"),  # Puerto Rico
        ("+18005551234", "0.014"),  # shared by the United States and Canada, at the same price
        ("+74951234567", "0.3892"),  # Russia
        ("+77012345678", "0.251"),  # Kazakhstan
        ("+390612345678", "0.0168"),  # Italy
        ("+390669812345", "0.021"),  # Vatican City
        ("+442071838750", "0.0158"),  # Great Britain
        ("+919885988143", "0.0473"),  # India
    ],
)
def test_countries_that_share_a_calling_code_have_their_own_prices(
    price_list: PriceFile, number: str, price: str
) -> None:
    assert prices_of(price_list, number) == [price]


def test_guernsey_jersey_and_man_have_no_price_and_not_great_britains(price_list: PriceFile) -> None:
    guernsey = ("+441481256789", "+447781123456", "+447839123456", "+447911712345")
    jersey = ("+441534456789", "+447797712345", "+447700312345", "+447829123456")
    man = ("+441624756789", "+447524123456", "+447624123456", "+447457612345")
    assert prices_of(price_list, *guernsey, *jersey, *man) == [None] * 12


def test_blocks_agree_with_the_number_plan_digit_by_digit() -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    checked = 0
    for calling_code, countries in phonenumbers.COUNTRY_CODE_TO_REGION_CODE.items():
        if len(countries) == 1:
            continue
        owner_of = {block.prefix: block.countries[0] for block in number_blocks(calling_code)}
        national_at = len(str(calling_code)) + 1
        examples = [
            phonenumbers.format_number(example, phonenumbers.PhoneNumberFormat.E164)
            for country in countries
            for kind in range(11)
            if (example := phonenumbers.example_number_for_type(country, kind)) is not None
        ]
        for valid in examples:
            for _ in range(20):
                digits = list(valid)
                for _ in range(chance.randrange(5)):
                    digits[chance.randrange(national_at, len(digits))] = str(chance.randrange(10))
                number = "".join(digits)
                expected = phonenumbers.region_code_for_number(phonenumbers.parse(number))
                leading_zero = number[national_at] == "0" and calling_code != 39  # no number of those plans
                of_canada_only = calling_code == 1 and len(number) < 12  # cannot be dialled from abroad
                if expected is None or leading_zero or of_canada_only:
                    continue
                found = next(
                    (owner_of[number[:at]] for at in range(len(number), 0, -1) if number[:at] in owner_of), None
                )
                assert found == expected, f"{number}, seed {seed}"
                checked += 1
    assert checked > 1_000


def test_numbers_that_two_listed_countries_share_at_two_prices_are_refused_by_name() -> None:
    file = file_of(COUNTRY_HEADER, "US,0.0140,USD", "CA,0.0200,USD")
    assert prices_of(file, "+12485252160", "+14165550123", "+18005551234") == ["0.014", "0.02", None]
    assert len(file.refused) == 1
    assert file.refused[0].line == 3
    assert "+1866" in file.refused[0].message
    assert "US 0.014, CA 0.02" in file.refused[0].message


def test_a_country_without_numbers_of_its_own_is_refused_by_name() -> None:
    file = file_of(COUNTRY_HEADER, "DE,0.01,USD", "EH,0.6,USD")
    assert prices_of(file, "+212520123456", "+4930123456") == [None, "0.01"]
    assert [(refused.line, refused.field) for refused in file.refused] == [(3, "iso_country")]
    assert "EH cannot be told apart from those of MA" in file.refused[0].message


def test_countries_that_share_all_their_numbers_have_a_price_only_if_it_is_the_same() -> None:
    one_price = file_of(COUNTRY_HEADER, "DE,0.01,USD", "MA,0.5,USD", "EH,0.5,USD")
    assert (prices_of(one_price, "+212520123456"), one_price.refused) == (["0.5"], ())
    two_prices = file_of(COUNTRY_HEADER, "DE,0.01,USD", "MA,0.5,USD", "EH,0.6,USD")
    assert prices_of(two_prices, "+212520123456") == [None]
    assert [refused.line for refused in two_prices.refused] == [4]


def test_a_country_file_may_give_fee_and_steps() -> None:
    file = read_price_file((DEMO / "wholesale_prices.csv").read_bytes())
    india = next(row for row in file.rows if row.prefix == "+91")
    assert india == PriceRow(OUTBOUND, "+91", 40_000_000, 1_000_000, 60, 6)
    assert prices_of(file, "+12485252160", "+14165550123") == ["0.012", None]


# --- price files by prefix, and bad lines -----------------------------------------------------------------------------


def test_a_prefix_file_gives_its_rows_as_they_stand() -> None:
    file = read_price_file((DEMO / "inbound_prices_v2.csv").read_bytes())
    assert [(row.product, row.prefix, format_nano(row.price_nano)) for row in file.rows] == [
        (INBOUND, "+1", "0.0085"),
        *((TOLL_FREE, f"+1{code}", "0.022") for code in (800, 833, 844, 855, 866, 877, 888)),
    ]
    assert {(row.minimum, row.increment, row.connection_fee_nano) for row in file.rows} == {(1, 1, 0)}


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("voice.outbound,+49,0.01x,60,60,0,USD", "price_per_minute"),
        ("voice.outbound,+49,1_000,60,60,0,USD", "price_per_minute"),
        ("voice.outbound,+49,０.１,60,60,0,USD", "price_per_minute"),
        ("voice.outbound,+49,NaN,60,60,0,USD", "price_per_minute"),
        ("voice.outbound,+49,-0.01,60,60,0,USD", "price_per_minute"),
        ("voice.outbound,+49,1000000.000000001,60,60,0,USD", "price_per_minute"),
        ("voice.outbound,+49,0.01,60,60,1e3,USD", "connection_fee"),
        ("voice.outbound,+49,0.01,60,60,99999999999,USD", "connection_fee"),
        ("voice.outbound,+49,0.01,-1,60,0,USD", "minimum_s"),
        ("voice.outbound,+49,0.01,60,0,0,USD", "increment_s"),
        ("voice.outbound,+49,0.01,60,60,0,XXX", "currency"),
        ("voice.outbound,+49,0.01", "currency"),
        ("voice.inbond,+49,0.01,60,60,0,USD", "product"),
        ("voice.outbound,+0,0.01,60,60,0,USD", "prefix"),
        ("voice.outbound,+49,0.01,60,60,0,USD,junk", "column 8"),
        ("voice.outbound,1,0.02,60,60,0,USD", "prefix"),
    ],
)
def test_a_bad_line_is_named_and_its_neighbours_go_on(line: str, field: str) -> None:
    file = file_of(PREFIX_HEADER, "voice.outbound,+1,0.01,60,60,0,USD", line, "voice.outbound,+33,0.03,6,6,0,USD")
    assert [row.prefix for row in file.rows] == ["+1", "+33"]
    assert [(refused.line, refused.field) for refused in file.refused] == [(3, field)]


@pytest.mark.parametrize(
    ("header", "line"),
    [
        ("product,prefix,currency,price_per_minute", "voice.outbound,49,USD,0,25"),
        ("iso_country,currency,price_per_minute", "DE,USD,0,03"),
        ("product,prefix,currency,price", "voice.outbound,49,USD,1,234.50"),
    ],
)
def test_a_price_with_a_comma_is_no_price_of_what_stands_before_it(header: str, line: str) -> None:
    file = file_of(header, line.rpartition(",")[0], line)
    named = header.count(",") + 1
    assert [str(refused) for refused in file.refused] == [
        f"line 3, column {named + 1}: the line has {named + 1} fields, the header {named}; quote a field that holds a comma"
    ]


def test_the_names_that_a_carriers_list_has_beside_its_prefixes_are_for_readers() -> None:
    by_prefix = file_of(
        "product,prefix,country,description,price_per_minute,currency",
        'voice.outbound,49151,DE,"Germany, mobile",0.02,USD',
    )
    by_product = file_of("description,product,prefix,price,currency", '"Germany, mobile",voice.outbound,49151,0.02,USD')
    assert by_prefix.rows == by_product.rows
    assert [(row.prefix, row.price_nano) for row in by_prefix.rows] == [("+49151", 20_000_000)]


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("XX,0.01,USD", "iso_country"),
        ("de,0.01,USD", "iso_country"),
        ("KZ,0.02,USD", "iso_country"),
        ("DE", "price_per_minute"),
    ],
)
def test_a_bad_country_line_is_named(line: str, field: str) -> None:
    file = file_of(COUNTRY_HEADER, "KZ,0.01,USD", line)
    assert [(refused.line, refused.field) for refused in file.refused] == [(3, field)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "lacks currency"),
        (b"iso_country,price\nDE,0.01\n", "lacks currency, price_per_minute"),
        (b"iso_country,price_per_minute,currency,colour\n", "unknown column 'colour'"),
        (b"iso_country,price_per_minute,currency\nDE,0.01,USD\nFR,\xff,USD\n", "line 3 is not UTF-8"),
        (b'iso_country,price_per_minute,currency\nDE,"0.01,USD\n', "is not CSV"),
        (
            b"iso_country;price_per_minute;currency\nDE;0,01;USD\n",
            "its fields are parted by semicolons; save it with commas",
        ),
        (
            b"iso_country\tprice_per_minute\tcurrency\nDE\t0.01\tUSD\n",
            "its fields are parted by tabs; save it with commas",
        ),
        (
            b"iso_country,price_per_minute,currency\nAN,0.01,USD\n",
            "no line that gives a price; line 2, iso_country: AN",
        ),
    ],
)
def test_a_file_that_is_no_price_list_is_refused_as_a_whole(data: bytes, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        read_price_file(data)


def test_a_byte_order_mark_and_windows_line_ends_are_read() -> None:
    file = read_price_file(b"\xef\xbb\xbfiso_country,price_per_minute,currency\r\nDE,0.01,USD\r\n")
    assert [row.prefix for row in file.rows] == ["+49"]


def test_a_line_is_named_by_where_it_begins_and_one_without_a_word_is_none() -> None:
    file = file_of(
        "product,prefix,price_per_minute,currency,description",
        'voice.outbound,+49,0.01,USD,"Germany,',
        'all networks"',
        'voice.outbound,+33,0.0x,USD,"France',
        'and Monaco"',
        "",
        ",,,,",
        "voice.outbound,+0,0.01,USD,",
        ",,,,",
    )
    assert [row.prefix for row in file.rows] == ["+49"]
    assert [(refused.line, refused.field) for refused in file.refused] == [(4, "price_per_minute"), (8, "prefix")]


def test_blanks_around_a_field_say_nothing() -> None:
    spaced = file_of(
        "product, prefix, price_per_minute, currency", "voice.outbound , +49,\u00a00.01, USD ", "  ,, ", " "
    )
    assert spaced.refused == ()
    assert spaced.rows == file_of("product,prefix,price_per_minute,currency", "voice.outbound,+49,0.01,USD").rows


def test_a_quote_that_is_never_closed_is_named_by_where_it_was_opened() -> None:
    lines = [f"voice.outbound,+{prefix},0.01,USD," for prefix in range(20, 40)]
    with pytest.raises(
        InvalidInput, match=r"^price file: line 12 is not CSV \(unexpected end of data\); check its quotes"
    ):
        file_of("product,prefix,price_per_minute,currency,description", *lines[:10], f'{lines[10]}"Berlin', *lines[11:])
