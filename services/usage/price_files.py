"""Price files (CSV): one price a country, expanded to prefixes by number-plan data, or one price a prefix.

A country file has the columns ``iso_country, price_per_minute, currency`` and may have ``country, description``; a prefix
file has ``product, prefix, price_per_minute, currency``. Both may have ``minimum_s, increment_s, connection_fee``. A file
with ``price`` instead of ``price_per_minute`` prices every product: ``product, price, currency``, and may have ``prefix``
(none is any), ``per, unit, minimum, increment, fee, bill_on``. A line that cannot be used is refused by name and the others
go on. Pure: bytes in, rows out. Source: domain, section 3.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass

from contracts.usage import QUANTITY_MAX, RESERVED_PRODUCTS
from contracts.words import ID_PATTERN
from services.kernel.currency import currency as currency_row
from services.kernel.errors import InvalidInput
from services.kernel.money import format_nano, parse_amount
from services.usage.books import ANY, DATA, MESSAGES, OUTBOUND, RENTAL, SECOND, UNITS, VOICE, PriceRow
from services.usage.number_plan import calling_code_of, number_blocks

PRICE_FILE_BYTES_MAX = 16 * 2**20  # the longest prefix lists of carriers are a few megabytes
SECONDS_MAX = 3_600  # of a minimum or an increment: more than an hour is a mistyped price list

_OPTIONAL = {"minimum_s", "increment_s", "connection_fee"}
_COUNTRY_COLUMNS = {"iso_country", "price_per_minute", "currency"}
_PREFIX_COLUMNS = {"product", "prefix", "price_per_minute", "currency"}
_PRODUCT_COLUMNS = {"product", "price", "currency"}
_PRODUCT_OPTIONAL = {"prefix", "per", "unit", "minimum", "increment", "fee", "bill_on"}
_PREFIX = re.compile(r"\+?([1-9][0-9]{0,14})", re.ASCII)
_NETWORK = re.compile(r"[0-9]{3,6}", re.ASCII)
_QUANTITY = re.compile(r"[0-9]{1,16}", re.ASCII)
_RESERVED = re.compile(RESERVED_PRODUCTS)
_BILL_ON = {"": False, "accepted": False, "delivered": True}
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
    """The part of a price row that is the same in all kinds of file."""

    price_nano: int
    fee_nano: int
    minimum: int
    increment: int
    per: int = 60
    unit: str = SECOND
    delivered_only: bool = False

    def row(self, product: str, prefix: str) -> PriceRow:
        return PriceRow(
            product, prefix, self.price_nano, self.fee_nano, self.minimum, self.increment, self.per, self.unit,
            self.delivered_only,
        )  # fmt: skip


def read_price_file(data: bytes, *, minimum_s: int = 60, increment_s: int = 60) -> PriceFile:
    """Reads a price file of either kind; the kind follows from the header. The defaults hold where a line has none.

    Raises `InvalidInput` where the file as a whole is no price list (size, encoding, header, not one usable line).

    >>> file = read_price_file(b"iso_country,price_per_minute,currency\\nKZ,0.251,USD\\nAN,0.2,USD\\n")
    >>> [(row.prefix, row.price_nano) for row in file.rows]
    [('+77', 251000000)]
    >>> print(file.refused[0])
    line 3, iso_country: AN is in no number plan, so it has no prefixes; remove the line, or price its numbers by prefix
    """
    header, lines = _table(data)
    by_product = "price" in header
    refused: list[RefusedPrice] = []
    usable: list[tuple[_Line, _Terms]] = []
    currency = ""
    for line in lines:
        try:
            if "iso_country" not in header:
                _check_product(line.fields.get("product", ""), by_product=by_product)
            terms = _product_terms(line.fields) if by_product else _terms(line.fields, minimum_s, increment_s)
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
    by_product = "price" in names and "iso_country" not in names
    required = _COUNTRY_COLUMNS if "iso_country" in names else _PRODUCT_COLUMNS if by_product else _PREFIX_COLUMNS
    missing = sorted(required - names)
    if missing:
        raise InvalidInput(
            f"the header lacks {', '.join(missing)}; a price file has iso_country or product and prefix, and"
            " price_per_minute and currency, or product, price and currency",
            field="price file",
        )
    known = (
        required
        | (_PRODUCT_OPTIONAL if by_product else _OPTIONAL)
        | ({"country", "description"} if "iso_country" in names else set())
    )
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


def _product_terms(fields: dict[str, str]) -> _Terms:
    """Of a line that prices any product. Where it does not say how much is billed: voice a minute in whole minutes, all else
    the units used."""
    for name in ("product", "price", "currency"):
        if name not in fields:
            raise InvalidInput("the line is short; give it as many fields as the header has", field=name)
    product = fields["product"]
    unit = UNITS.get(product) or fields.get("unit") or ""
    if re.fullmatch(ID_PATTERN, unit) is None:
        raise InvalidInput("must be named for a product of your own, such as request", field="unit")
    if fields.get("unit") not in (None, "", unit):
        raise InvalidInput(f"must be {unit} for {product}; leave it out", field="unit")
    bill_on = fields.get("bill_on") or ""
    if bill_on not in _BILL_ON or (bill_on and product not in MESSAGES):
        raise InvalidInput("must be accepted or delivered, and only for messages", field="bill_on")
    minute = 60 if product in VOICE else 1
    if product == RENTAL and any(fields.get(name) for name in ("per", "minimum", "increment")):
        raise InvalidInput("a rental has its price a month, shared out by days; leave it out", field="per")
    return _Terms(
        parse_amount(fields["price"], field="price"),
        parse_amount(fields.get("fee") or "0", field="fee"),
        _quantity(fields, "minimum", 60 if product in VOICE else 0, least=0),
        _quantity(fields, "increment", minute, least=1),
        _quantity(fields, "per", minute, least=1),
        unit,
        _BILL_ON[bill_on],
    )


def _quantity(fields: dict[str, str], name: str, default: int, *, least: int) -> int:
    text = fields.get(name)
    if not text:
        return default
    if _QUANTITY.fullmatch(text) is None or not least <= int(text) <= QUANTITY_MAX:
        raise InvalidInput(f"must be a whole number from {least} to {QUANTITY_MAX}", field=name)
    return int(text)


def _check_product(product: str, *, by_product: bool) -> None:
    if not by_product and product not in VOICE:
        raise InvalidInput(
            f"{product!r} is no product with a price a minute; use one of {', '.join(VOICE)}, or price it by the column price",
            field="product",
        )
    if re.fullmatch(ID_PATTERN, product) is None or (_RESERVED.match(product) and product not in UNITS):
        raise InvalidInput(
            f"{product!r} is no product; use one of {', '.join(UNITS)}, or a name of your own", field="product"
        )


def _prefix(product: str, text: str) -> str:
    """The prefix as rating looks for it: of a number with a plus, of a network without, ``*`` for any."""
    if text == ANY or (not text and (product == DATA or product not in UNITS)):
        return ANY
    if product == DATA:
        if _NETWORK.fullmatch(text) is None:
            raise InvalidInput('must be the MCC, or MCC and MNC, of a network such as "310260", or *', field="prefix")
        return text
    if product not in UNITS:
        raise InvalidInput("a product of your own has no prefixes; leave it out", field="prefix")
    match = _PREFIX.fullmatch(text)
    if match is None:
        raise InvalidInput('must be 1 to 15 digits of an E.164 number, such as "+1800", or * for any', field="prefix")
    return f"+{match[1]}"


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
        product = line.fields["product"]
        try:
            key = product, _prefix(product, line.fields.get("prefix", ""))
            if key in rows:
                raise InvalidInput(f"{key[1]} has a price on line {rows[key][0]} already; keep one", field="prefix")
        except InvalidInput as error:
            refused.append(_refusal(line, error))
        else:
            rows[key] = (line.number, terms.row(*key))
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
            f"{country} {format_nano(priced[country][1].price_nano)}" if country in priced else f"{country} none"
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
