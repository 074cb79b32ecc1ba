"""Price files in CSV: one price a country, expanded to prefixes by number-plan data, or one price a prefix.

A country file has the columns ``iso_country, price_per_minute, currency``; a prefix file has ``product, prefix,
price_per_minute, currency``. Both may have ``minimum_s, increment_s, connection_fee``. A file with ``price`` instead of
``price_per_minute`` prices every product: ``product, price, currency``, and may have ``prefix`` (none is any), ``per, unit,
minimum, increment, fee, bill_on``. All may have ``country, description``, for readers, and ``window``, the id of a window that
a second file names: ``id, zone, days, from, to`` and, if it has any, ``holidays``. Fields are parted by commas; blanks around
them, and lines without a word, say nothing. A line that cannot be used is refused by name and the others go on. JSON: `price_documents`. Pure: bytes in, rows out. Source: domain, section 3.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from contracts.usage import QUANTITY_MAX, RESERVED_PRODUCTS
from contracts.words import ID_PATTERN
from services.kernel.currency import currency as currency_row
from services.kernel.errors import InvalidInput
from services.kernel.money import CHARGE_NANO_MAX, format_nano, parse_amount
from services.usage.books import ANY, DATA, MESSAGES, OUTBOUND, RENTAL, SECOND, SHORT_CODE, UNITS, VOICE, PriceRow
from services.usage.number_plan import calling_code_of, number_blocks
from services.usage.tiers import Schedule
from services.usage.windows import Window, window_of

PRICE_FILE_BYTES_MAX = 16 * 2**20  # the longest prefix lists of carriers are a few megabytes
SECONDS_MAX = 3_600  # of a minimum or an increment: more than an hour is a mistyped price list

NO_NUMBERS = "no_numbers"  # the code of a refusal: by number-plan data a country has no numbers, or shares them

_OPTIONAL = {"minimum_s", "increment_s", "connection_fee", "window"}
_FOR_READERS = {"country", "description"}  # as the lists of carriers name what a prefix reaches; they price nothing
_WINDOW_COLUMNS = {"id", "zone", "days", "from", "to"}
_COUNTRY_COLUMNS = {"iso_country", "price_per_minute", "currency"}
_PREFIX_COLUMNS = {"product", "prefix", "price_per_minute", "currency"}
_PRODUCT_COLUMNS = {"product", "price", "currency"}
_PRODUCT_OPTIONAL = {"prefix", "per", "unit", "minimum", "increment", "fee", "bill_on", "window"}
_PREFIX = re.compile(r"\+?([1-9][0-9]{0,14})", re.ASCII)
_SHORT_CODE = re.compile(r"[0-9]{3,8}", re.ASCII)  # as events name it
_NETWORK = re.compile(r"[0-9]{3,6}", re.ASCII)
_QUANTITY = re.compile(r"[0-9]{1,16}", re.ASCII)
_RESERVED = re.compile(RESERVED_PRODUCTS)
_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}  # as spreadsheets of other countries write them
_BILL_ON = {"": False, "accepted": False, "delivered": True}
_SECONDS = re.compile(r"[0-9]{1,4}", re.ASCII)
_COUNTRY = re.compile(r"[A-Z]{2}", re.ASCII)


@dataclass(frozen=True, slots=True)
class RefusedPrice:
    """A line of the file that gives no price: where, which field, and how to mend it. Of JSON the field is the place."""

    line: int | None
    field: str
    message: str
    code: str = InvalidInput.code

    def __str__(self) -> str:
        where = f"line {self.line}, " if self.line is not None else ""
        return f"{where}{self.field}: {self.message}"


@dataclass(frozen=True, slots=True)
class PriceFile:
    """The rows of a book version, and every line that was refused."""

    currency: str
    rows: tuple[PriceRow, ...]
    refused: tuple[RefusedPrice, ...]
    windows: tuple[Window, ...] = ()
    schedules: tuple[Schedule, ...] = ()

    @property
    def mistakes(self) -> tuple[RefusedPrice, ...]:
        """What is refused for what the file says. A country without numbers of its own is no mistake: every list by country
        has some."""
        return tuple(refusal for refusal in self.refused if refusal.code != NO_NUMBERS)


class NoPrices(InvalidInput):
    """A file of which no line gives a price is no price file; ``refused`` says why of each."""

    def __init__(self, refused: Sequence[RefusedPrice]) -> None:
        first = f"; {refused[0]}" if refused else ""
        super().__init__(f"holds no line that gives a price{first}", field="price file")
        self.refused = tuple(refused)


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    fields: dict[str, str]
    surplus: int  # fields beyond the header: half of 0,25 is another price

    def check_length(self) -> None:
        if self.surplus:
            named = len(self.fields)
            raise InvalidInput(
                f"the line has {named + self.surplus} fields, the header {named}; quote a field that holds a comma",
                field=f"column {named + 1}",
            )


@dataclass(frozen=True, slots=True)
class Terms:
    """The part of a price row that is the same in all kinds of file."""

    price_nano: int
    fee_nano: int
    minimum: int
    increment: int
    per: int = 60
    unit: str = SECOND
    delivered_only: bool = False
    schedule: str = ""

    def row(self, product: str, prefix: str, window: str = "") -> PriceRow:
        return PriceRow(
            product, prefix, self.price_nano, self.fee_nano, self.minimum, self.increment, self.per, self.unit,
            self.delivered_only, window, self.schedule,
        )  # fmt: skip


class PriceRows:
    """Rows that are taken in one by one, each at most once; of those of one prefix no two windows overlap."""

    def __init__(self, windows: Iterable[Window]) -> None:
        self._windows = {window.window_id: window for window in windows}
        self._places: dict[tuple[str, str, str], str] = {}
        self._of_prefix: dict[tuple[str, str], list[Window]] = {}
        self._overlaps: dict[tuple[str, str], str | None] = {}
        self.rows: list[PriceRow] = []

    def add(self, place: str, product: str, prefix: str, window_id: str, terms: Terms) -> None:
        """Take a row in, or say what keeps it out: `InvalidInput` with the field prefix or window."""
        prefix = checked_prefix(product, prefix)
        self.take(place, product, prefix, window_id)
        self.rows.append(terms.row(product, prefix, window_id))

    def take(self, place: str, product: str, priced: str, window_id: str, field: str = "prefix") -> None:
        """Take it in that a prefix, or a country, has a price in a window, or without one."""
        key = product, priced, window_id
        if key in self._places:
            raise InvalidInput(f"{priced} has a price on {self._places[key]} already; keep one", field=field)
        if window_id:
            self._check_window(*key)
        self._places[key] = place

    def _check_window(self, product: str, prefix: str, window_id: str) -> None:
        window = self._windows.get(window_id)
        if window is None:
            raise InvalidInput(f"there is no usable window {window_id}; name it among the windows", field="window")
        others = self._of_prefix.setdefault((product, prefix), [])
        for other in others:
            problem = self._overlap(window, other)
            if problem is not None:
                where = self._places[product, prefix, other.window_id]
                raise InvalidInput(
                    f"{window_id} and {other.window_id}, which {prefix} has on {where}, {problem}", field="window"
                )
        others.append(window)

    def _overlap(self, window: Window, other: Window) -> str | None:
        pair = window.window_id, other.window_id
        if pair not in self._overlaps:
            if window.zone != other.zone:
                self._overlaps[pair] = f"are of two zones ({window.zone}, {other.zone}); give one prefix windows of one"
            else:
                both = window.overlap(other)
                self._overlaps[pair] = f"overlap ({both}); end one where the other begins" if both else None
        return self._overlaps[pair]


def read_price_file(
    data: bytes, *, minimum_s: int = 60, increment_s: int = 60, windows: Iterable[Window] = ()
) -> PriceFile:
    """Reads a price file of either kind; the kind follows from the header. The defaults hold where a line has none.

    Raises `InvalidInput` where the file as a whole is no price list (size, encoding, header), `NoPrices` where it has not one
    usable line.

    >>> file = read_price_file(b"iso_country,price_per_minute,currency\\nKZ,0.251,USD\\nAN,0.2,USD\\n")
    >>> [(row.prefix, row.price_nano) for row in file.rows]
    [('+77', 251000000)]
    >>> print(file.refused[0])
    line 3, iso_country: AN is in no number plan, so it has no prefixes; remove the line, or price its numbers by prefix
    """
    check_steps(minimum_s, increment_s)
    header, lines = _table(data)
    _check_header(header)
    by_product, by_country = "price" in header, "iso_country" in header
    windows = tuple(windows)
    refused: list[RefusedPrice] = []
    of_countries: dict[str, dict[str, tuple[_Line, Terms]]] = {}  # by window
    found = PriceRows(windows)
    currency = ""
    for line in lines:
        try:
            line.check_length()
            product = line.fields.get("product", "")
            if not by_country:
                check_product(product, by_product=by_product)
            terms = (product_terms if by_product else _terms)(line.fields, minimum_s, increment_s)
            code = currency_row(line.fields["currency"]).code
            if currency and code != currency:
                raise InvalidInput(
                    f"{code}, but the file began in {currency}; one book has one currency", field="currency"
                )
            window, place = line.fields.get("window", ""), f"line {line.number}"
            if by_country:
                country = _country(line.fields["iso_country"])
                found.take(place, OUTBOUND, country, window, "iso_country")
                of_countries.setdefault(window, {})[country] = (line, terms)
            else:
                found.add(place, product, line.fields.get("prefix", ""), window, terms)
        except InvalidInput as error:
            refused.append(_refusal(line, error))
            continue
        currency = code
    for window, of_window in of_countries.items():
        found.rows += _country_rows(of_window, window, refused)
    rows = tuple(found.rows)
    refused.sort(key=lambda refusal: refusal.line or 0)
    if not rows:
        raise NoPrices(refused)
    return PriceFile(currency, rows, tuple(refused), windows)


def read_windows(data: bytes) -> tuple[Window, ...]:
    """Reads a file of windows; a line that is none refuses the whole, since the prices would hold at other times.

    >>> for window in read_windows(b"id,zone,days,from,to\\nnight,Europe/Berlin,mon-fri,22:00,06:00\\n"): print(window)
    night: mon-fri 22:00-06:00 Europe/Berlin
    """
    header, lines = _table(data, field="windows")
    if not _WINDOW_COLUMNS <= set(header) <= _WINDOW_COLUMNS | {"holidays"} or len(set(header)) != len(header):
        raise InvalidInput(
            "the header must be id, zone, days, from and to, and may have holidays; no name twice", field="windows"
        )
    windows: dict[str, Window] = {}
    for line in lines:
        fields = {name: line.fields.get(name, "") for name in (*_WINDOW_COLUMNS, "holidays")}
        try:
            line.check_length()
            add_window(windows, fields)
        except InvalidInput as error:
            raise InvalidInput(f"line {line.number}, {error}", field="windows") from None
    return tuple(windows.values())


def add_window(windows: dict[str, Window], fields: Mapping[str, str]) -> None:
    """Take a window in by its texts; `InvalidInput` names the field."""
    window = window_of(*[fields[name] for name in ("id", "zone", "days", "from", "to", "holidays")])
    if window.window_id in windows:
        raise InvalidInput(f"there is a window {window.window_id} already; keep one", field="id")
    windows[window.window_id] = window


def check_steps(minimum_s: int, increment_s: int) -> None:
    """What voice is billed by where a line does not say it; `InvalidInput` names the one that cannot be."""
    for name, seconds, least in (("minimum_s", minimum_s, 0), ("increment_s", increment_s, 1)):
        if not least <= seconds <= SECONDS_MAX:
            raise _no_seconds(name, least)


def _no_seconds(name: str, least: int) -> InvalidInput:
    return InvalidInput(f"must be whole seconds from {least} to {SECONDS_MAX}, such as 60", field=name)


def text_of(data: bytes, field: str = "price file") -> str:
    """The text of a file, or `InvalidInput`: too large, or not UTF-8."""
    if len(data) > PRICE_FILE_BYTES_MAX:
        raise InvalidInput(f"is larger than {PRICE_FILE_BYTES_MAX} bytes; split it into books", field=field)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidInput(f"line {line} is not UTF-8; save the file as UTF-8", field=field) from None


def _table(data: bytes, field: str = "price file") -> tuple[list[str], list[_Line]]:
    text = text_of(data, field)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    lines: list[_Line] = []
    begins = 1  # the line that a row begins on: a quoted field may go on over many
    try:
        header = [name.strip() for name in next(reader, [])]
        begins = reader.line_num + 1
        for written in reader:
            row = [cell.strip() for cell in written]  # what nobody sees is no part of a prefix or a price
            if any(row):  # a line without a word, commas or not, is where a spreadsheet ends
                lines.append(_Line(begins, dict(zip(header, row, strict=False)), max(len(row) - len(header), 0)))
            begins = reader.line_num + 1
    except csv.Error as error:
        raise InvalidInput(f"line {begins} is not CSV ({error}); check its quotes", field=field) from None
    if len(header) == 1:
        for separator, name in _OTHER_SEPARATORS.items():
            if separator in header[0]:
                raise InvalidInput(f"its fields are parted by {name}; save it with commas", field=field)
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
    known = required | (_PRODUCT_OPTIONAL if by_product else _OPTIONAL) | _FOR_READERS
    unknown = sorted(names - known)
    if unknown or len(names) != len(header):
        what = f"unknown column {unknown[0]!r}" if unknown else "a column twice"
        raise InvalidInput(f"the header has {what}; use {', '.join(sorted(known))}", field="price file")


def _refusal(line: _Line, error: InvalidInput) -> RefusedPrice:
    return RefusedPrice(line.number, error.field or "line", error.message, error.code)


def _terms(fields: dict[str, str], minimum_s: int, increment_s: int) -> Terms:
    for name in ("price_per_minute", "currency"):
        if name not in fields:
            raise InvalidInput("the line is short; give it as many fields as the header has", field=name)
    return Terms(
        price_nano(fields["price_per_minute"], field="price_per_minute"),
        price_nano(fields.get("connection_fee") or "0", field="connection_fee"),
        _seconds(fields, "minimum_s", minimum_s, least=0),
        _seconds(fields, "increment_s", increment_s, least=1),
    )


def product_terms(fields: Mapping[str, str], minimum_s: int, increment_s: int) -> Terms:
    """Of a line that prices any product. Where it does not say how much is billed: voice by these seconds, all else the units
    used."""
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
    minimum, increment, per = (minimum_s, increment_s, 60) if product in VOICE else (0, 1, 1)
    if product == RENTAL and any(fields.get(name) for name in ("per", "minimum", "increment")):
        raise InvalidInput("a rental has its price a month, shared out by days; leave it out", field="per")
    return Terms(
        price_nano(fields["price"], field="price"),
        price_nano(fields.get("fee") or "0", field="fee"),
        _quantity(fields, "minimum", minimum, least=0),
        _quantity(fields, "increment", increment, least=1),
        _quantity(fields, "per", per, least=1),
        unit,
        _BILL_ON[bill_on],
        fields.get("schedule", ""),
    )


def price_nano(text: object, *, field: str) -> int:
    """Nanos of a price or a fee, which is at most what one charge may be."""
    nano = parse_amount(text, field=field)
    if nano > CHARGE_NANO_MAX:
        raise InvalidInput(
            f"must be at most {format_nano(CHARGE_NANO_MAX)}, the most that one charge may be", field=field
        )
    return nano


def _quantity(fields: Mapping[str, str], name: str, default: int, *, least: int) -> int:
    text = fields.get(name)
    if not text:
        return default
    if _QUANTITY.fullmatch(text) is None or not least <= int(text) <= QUANTITY_MAX:
        raise InvalidInput(f"must be a whole number from {least} to {QUANTITY_MAX}", field=name)
    return int(text)


def check_product(product: str, *, by_product: bool) -> None:
    if not by_product and product not in VOICE:
        raise InvalidInput(
            f"{product!r} is no product with a price a minute; use one of {', '.join(VOICE)}, or price it by the column price",
            field="product",
        )
    if re.fullmatch(ID_PATTERN, product) is None or (_RESERVED.match(product) and product not in UNITS):
        raise InvalidInput(
            f"{product!r} is no product; use one of {', '.join(UNITS)}, or a name of your own", field="product"
        )


def checked_prefix(product: str, text: str) -> str:
    """The prefix as rating looks for it: of a number with a plus, of a network without, ``*`` for any, and for messages a short
    code behind ``=``. Digits alone that may be either, of a code or of a number, are refused.

    >>> checked_prefix("voice.outbound", "44123"), checked_prefix("message.sms.outbound", "=44123")
    ('+44123', '=44123')
    """
    if text == ANY or (not text and (product == DATA or product not in UNITS)):
        return ANY
    if product == DATA:
        if _NETWORK.fullmatch(text) is None:
            raise InvalidInput('must be the MCC, or MCC and MNC, of a network such as "310260", or *', field="prefix")
        return text
    if product not in UNITS:
        raise InvalidInput("a product of your own has no prefixes; leave it out", field="prefix")
    if product in MESSAGES:
        if text.startswith(SHORT_CODE) and _SHORT_CODE.fullmatch(text[1:]):
            return text
        if _SHORT_CODE.fullmatch(text):
            raise InvalidInput(
                f"may be a short code or begin a number; write {SHORT_CODE}{text} for the short code alone, or +{text} for"
                " the numbers that begin with it",
                field="prefix",
            )
    match = _PREFIX.fullmatch(text)
    if match is None:
        raise InvalidInput('must be 1 to 15 digits of an E.164 number, such as "+1800", or * for any', field="prefix")
    return f"+{match[1]}"


def _seconds(fields: dict[str, str], name: str, default: int, *, least: int) -> int:
    text = fields.get(name)
    if not text:
        return default
    if _SECONDS.fullmatch(text) is None or not least <= int(text) <= SECONDS_MAX:
        raise _no_seconds(name, least)
    return int(text)


def _country(text: str) -> str:
    """The code of a country that is in a number plan."""
    if _COUNTRY.fullmatch(text) is None:
        raise InvalidInput('must be an ISO 3166 code of two capital letters, such as "DE"', field="iso_country")
    if calling_code_of(text) is None:
        raise InvalidInput(
            f"{text} is in no number plan, so it has no prefixes; remove the line, or price its numbers by prefix",
            field="iso_country",
            code=NO_NUMBERS,
        )
    return text


def _country_rows(
    priced: dict[str, tuple[_Line, Terms]], window: str, refused: list[RefusedPrice]
) -> Iterator[PriceRow]:
    """The rows of the countries that are priced in one window, or without one."""
    for code in sorted({code for country in priced if (code := calling_code_of(country)) is not None}):
        yield from _rows_of_calling_code(code, priced, window, refused)


def _rows_of_calling_code(
    calling_code: int, priced: dict[str, tuple[_Line, Terms]], window: str, refused: list[RefusedPrice]
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
            yield terms.row(OUTBOUND, block.prefix, window)
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
                NO_NUMBERS,
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
                    NO_NUMBERS,
                )
            )
