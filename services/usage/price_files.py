"""Price files (CSV): one price a country, expanded to prefixes by number-plan data, or one price a prefix.

A country file has the columns ``iso_country, price_per_minute, currency`` and may have ``country, description``; a prefix
file has ``product, prefix, price_per_minute, currency``. Both may have ``minimum_s, increment_s, connection_fee``. A line
that cannot be used is refused by name and the others go on. Pure: bytes in, rows out. Source: domain, section 3.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass

from services.kernel.currency import currency as currency_row
from services.kernel.errors import InvalidInput
from services.kernel.money import format_nano, parse_amount
from services.usage.books import OUTBOUND, PRODUCTS, PriceRow
from services.usage.number_plan import calling_code_of, number_blocks

PRICE_FILE_BYTES_MAX = 16 * 2**20  # the longest prefix lists of carriers are a few megabytes
SECONDS_MAX = 3_600  # of a minimum or an increment: more than an hour is a mistyped price list

_OPTIONAL = {"minimum_s", "increment_s", "connection_fee"}
_COUNTRY_COLUMNS = {"iso_country", "price_per_minute", "currency"}
_PREFIX_COLUMNS = {"product", "prefix", "price_per_minute", "currency"}
_PREFIX = re.compile(r"\+?([1-9][0-9]{0,14})", re.ASCII)
_SECONDS = re.compile(r"[0-9]{1,4}", re.ASCII)
_COUNTRY = re.compile(r"[A-Z]{2}", re.ASCII)


@dataclass(frozen=True, slots=True)
class RefusedPrice:
    """A line of the file that gives no price: where, which field, and how to mend it."""

    line: int
    field: str
    message: str

    def __str__(self) -> str:
        return f"line {self.line}, {self.field}: {self.message}"


@dataclass(frozen=True, slots=True)
class PriceFile:
    """The rows of a book version, and every line that was refused."""

    currency: str
    rows: tuple[PriceRow, ...]
    refused: tuple[RefusedPrice, ...]


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    fields: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Terms:
    """The part of a price row that is the same in both kinds of file."""

    per_minute_nano: int
    connection_fee_nano: int
    minimum_s: int
    increment_s: int

    def row(self, product: str, prefix: str) -> PriceRow:
        return PriceRow(
            product, prefix, self.per_minute_nano, self.connection_fee_nano, self.minimum_s, self.increment_s
        )


def read_price_file(data: bytes, *, minimum_s: int = 60, increment_s: int = 60) -> PriceFile:
    """Reads a price file of either kind; the kind follows from the header. The defaults hold where a line has none.

    Raises `InvalidInput` where the file as a whole is no price list (size, encoding, header, not one usable line).

    >>> file = read_price_file(b"iso_country,price_per_minute,currency\\nKZ,0.251,USD\\nAN,0.2,USD\\n")
    >>> [(row.prefix, row.per_minute_nano) for row in file.rows]
    [('+77', 251000000)]
    >>> print(file.refused[0])
    line 3, iso_country: AN is in no number plan, so it has no prefixes; remove the line, or price its numbers by prefix
    """
    header, lines = _table(data)
    refused: list[RefusedPrice] = []
    usable: list[tuple[_Line, _Terms]] = []
    currency = ""
    for line in lines:
        try:
            terms = _terms(line.fields, minimum_s, increment_s)
            code = currency_row(line.fields["currency"]).code
            if currency and code != currency:
                raise InvalidInput(
                    f"{code}, but the file began in {currency}; one book has one currency", field="currency"
                )
        except InvalidInput as error:
            refused.append(_refusal(line, error))
            continue
        currency = code
        usable.append((line, terms))
    rows = _country_rows(usable, refused) if "iso_country" in header else _prefix_rows(usable, refused)
    if not rows:
        first = f"; {refused[0]}" if refused else ""
        raise InvalidInput(f"holds no line that gives a price{first}", field="price file")
    return PriceFile(currency, rows, tuple(sorted(refused, key=lambda refusal: refusal.line)))


def _table(data: bytes) -> tuple[list[str], list[_Line]]:
    if len(data) > PRICE_FILE_BYTES_MAX:
        raise InvalidInput(f"is larger than {PRICE_FILE_BYTES_MAX} bytes; split it into books", field="price file")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidInput(f"line {line} is not UTF-8; save the file as UTF-8", field="price file") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(header)
        lines = [_Line(reader.line_num, dict(zip(header, row, strict=False))) for row in reader if row]
    except csv.Error as error:
        raise InvalidInput(
            f"line {reader.line_num} is not CSV ({error}); check its quotes", field="price file"
        ) from None
    return header, lines


def _check_header(header: list[str]) -> None:
    names = set(header)
    required = _COUNTRY_COLUMNS if "iso_country" in names else _PREFIX_COLUMNS
    missing = sorted(required - names)
    if missing:
        raise InvalidInput(
            f"the header lacks {', '.join(missing)}; a price file has iso_country or product and prefix, and"
            " price_per_minute and currency",
            field="price file",
        )
    known = required | _OPTIONAL | ({"country", "description"} if "iso_country" in names else set())
    unknown = sorted(names - known)
    if unknown or len(names) != len(header):
        what = f"unknown column {unknown[0]!r}" if unknown else "a column twice"
        raise InvalidInput(f"the header has {what}; use {', '.join(sorted(known))}", field="price file")


def _refusal(line: _Line, error: InvalidInput) -> RefusedPrice:
    return RefusedPrice(line.number, error.field or "line", error.message)


def _terms(fields: dict[str, str], minimum_s: int, increment_s: int) -> _Terms:
    for name in ("price_per_minute", "currency"):
        if name not in fields:
            raise InvalidInput("the line is short; give it as many fields as the header has", field=name)
    return _Terms(
        parse_amount(fields["price_per_minute"], field="price_per_minute"),
        parse_amount(fields.get("connection_fee") or "0", field="connection_fee"),
        _seconds(fields, "minimum_s", minimum_s, least=0),
        _seconds(fields, "increment_s", increment_s, least=1),
    )


def _seconds(fields: dict[str, str], name: str, default: int, *, least: int) -> int:
    text = fields.get(name)
    if not text:
        return default
    if _SECONDS.fullmatch(text) is None or not least <= int(text) <= SECONDS_MAX:
        raise InvalidInput(f"must be whole seconds from {least} to {SECONDS_MAX}, such as 60", field=name)
    return int(text)


def _prefix_rows(lines: list[tuple[_Line, _Terms]], refused: list[RefusedPrice]) -> tuple[PriceRow, ...]:
    rows: dict[tuple[str, str], tuple[int, PriceRow]] = {}
    for line, terms in lines:
        product, match = line.fields["product"], _PREFIX.fullmatch(line.fields["prefix"])
        if product not in PRODUCTS:
            error = InvalidInput(f"{product!r} is no product; use one of {', '.join(PRODUCTS)}", field="product")
        elif match is None:
            error = InvalidInput('must be 1 to 15 digits of an E.164 number, such as "+1800"', field="prefix")
        elif (key := (product, f"+{match[1]}")) in rows:
            error = InvalidInput(f"{key[1]} has a price on line {rows[key][0]} already; keep one", field="prefix")
        else:
            rows[key] = (line.number, terms.row(*key))
            continue
        refused.append(_refusal(line, error))
    return tuple(row for _, row in rows.values())


def _country_rows(lines: list[tuple[_Line, _Terms]], refused: list[RefusedPrice]) -> tuple[PriceRow, ...]:
    priced: dict[str, tuple[_Line, _Terms]] = {}
    for line, terms in lines:
        country = line.fields["iso_country"]
        if _COUNTRY.fullmatch(country) is None:
            error = InvalidInput('must be an ISO 3166 code of two capital letters, such as "DE"', field="iso_country")
        elif country in priced:
            earlier = priced[country][0].number
            error = InvalidInput(f"{country} has a price on line {earlier} already; keep one", field="iso_country")
        elif calling_code_of(country) is None:
            error = InvalidInput(
                f"{country} is in no number plan, so it has no prefixes; remove the line, or price its numbers by prefix",
                field="iso_country",
            )
        else:
            priced[country] = (line, terms)
            continue
        refused.append(_refusal(line, error))
    rows: list[PriceRow] = []
    for code in sorted({code for country in priced if (code := calling_code_of(country)) is not None}):
        rows += _rows_of_calling_code(code, priced, refused)
    return tuple(rows)


def _rows_of_calling_code(
    calling_code: int, priced: dict[str, tuple[_Line, _Terms]], refused: list[RefusedPrice]
) -> Iterator[PriceRow]:
    """A block of numbers has the price of the country whose numbers they are. It has none where that country is not in
    the list, and none where several countries of the list share the numbers at different prices."""
    unclear: dict[tuple[str, ...], list[str]] = {}
    settled: set[str] = set()  # countries whose line gave a price or is named below
    blocks = number_blocks(calling_code)
    for block in blocks:
        listed = tuple(country for country in block.countries if country in priced)
        if not listed or (listed[0] != block.countries[0] and block.settled):
            continue
        settled.update(listed)
        terms = priced[listed[0]][1]
        one_price = all(priced[country][1] == terms for country in listed)
        if one_price and (block.settled or listed == block.countries):
            yield terms.row(OUTBOUND, block.prefix)
        else:
            unclear.setdefault(block.countries, []).append(block.prefix)
    for countries, prefixes in unclear.items():
        line = max((priced[country][0] for country in countries if country in priced), key=lambda line: line.number)
        prices = ", ".join(
            f"{country} {format_nano(priced[country][1].per_minute_nano)}" if country in priced else f"{country} none"
            for country in countries
        )
        refused.append(
            RefusedPrice(
                line.number,
                "price_per_minute",
                f"numbers that begin with {', '.join(prefixes)} cannot be told apart ({prices}); they have no price:"
                " price them by prefix",
            )
        )
    for country, (line, _) in priced.items():
        if calling_code_of(country) == calling_code and country not in settled:
            owners = ", ".join(sorted({block.countries[0] for block in blocks}))
            refused.append(
                RefusedPrice(
                    line.number,
                    "iso_country",
                    f"the numbers of {country} cannot be told apart from those of {owners} on +{calling_code}, which is"
                    " not in the list; price them by prefix",
                )
            )
