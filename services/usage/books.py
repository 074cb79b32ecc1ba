"""Price books: versions with effective dates, and the order in which the books of an account are asked.

Pure values; what a book holds comes from the store or from a price file (`price_files`). Source: domain, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from sys import intern
from typing import Literal, Protocol, TypeVar

from msgspec import Struct
from msgspec.msgpack import Decoder, encode
from msgspec.structs import force_setattr

from services.kernel.errors import InvalidInput
from services.kernel.money import format_nano
from services.usage.tiers import Schedule, schedule_version
from services.usage.windows import Window

OUTBOUND = "voice.outbound"
INBOUND = "voice.inbound"
TOLL_FREE = "voice.toll_free"  # inbound on a number whose caller does not pay
SURCHARGE = "voice.toll_free.surcharge"  # what a toll-free leg costs more by where its caller is
VOICE = (OUTBOUND, INBOUND, TOLL_FREE, SURCHARGE)
MESSAGES = tuple(
    f"message.{channel}.{direction}" for channel in ("sms", "mms") for direction in ("outbound", "inbound")
)
DATA = "data"
RENTAL = "number.rental"
SECOND, SEGMENT, BYTE, DAY = "second", "segment", "byte", "day"
UNITS = dict.fromkeys(VOICE, SECOND) | dict.fromkeys(MESSAGES, SEGMENT) | {DATA: BYTE, RENTAL: DAY}
"""The unit of every product that is not the publisher's own."""
ANY = "*"  # the prefix of a price for every destination, and for what has none
SHORT_CODE = "="  # before the digits of a short code: a price of it alone, and of no longer one
TOLL_FREE_PREFIXES = frozenset({"+1800", "+1833", "+1844", "+1855", "+1866", "+1877", "+1888"})

Direction = Literal["inbound", "outbound"]


def product_of(direction: Direction, called: str) -> str:
    """The product of a leg: its direction, and for inbound legs whether the number is toll-free.

    >>> product_of("inbound", "+18778874413"), product_of("outbound", "+18778874413")
    ('voice.toll_free', 'voice.outbound')
    """
    if direction == "outbound":
        return OUTBOUND
    return TOLL_FREE if called[:5] in TOLL_FREE_PREFIXES else INBOUND


def products_of_number(number: str) -> tuple[str, ...]:
    """The products that a number may be priced as: one with a plus by number, digits alone as a short code or a network.

    >>> [each for each in products_of_number("+18778874413") if each in VOICE], "data" in products_of_number("310260")
    (['voice.outbound', 'voice.toll_free', 'voice.toll_free.surcharge'], True)
    """
    if not number.startswith("+"):
        return (*MESSAGES, DATA)
    inbound = product_of("inbound", number)
    return tuple(
        product for product in UNITS if product != DATA and (product == inbound or product not in (INBOUND, TOLL_FREE))
    )


def message_product(channel: str, direction: Direction) -> str:
    """The product of a message.

    >>> message_product("sms", "outbound")
    'message.sms.outbound'
    """
    return f"message.{channel}.{direction}"


class PriceRow(Struct, frozen=True, gc=False, array_like=True):
    """What one prefix costs for one product: nanos for ``per`` units, a fee an event, and which quantity is billed.

    Voice has its price a minute, ``per`` 60 seconds; ``60/6`` is minimum 60, increment 6. Data of 0.01 a started megabyte
    has ``per``, ``minimum`` and ``increment`` 1,000,000 bytes. A rental has its price a month, whatever ``per`` says. A row
    that names a ``window`` of its version holds only for uses that begin in it, before the row of its prefix without one;
    one that names a ``schedule`` has no price of its own, no fee, and the ``per`` of the schedule.
    """

    product: str
    prefix: str
    price_nano: int
    connection_fee_nano: int = 0
    minimum: int = 60
    increment: int = 60
    per: int = 60
    unit: str = SECOND
    delivered_only: bool = False
    window: str = ""
    schedule: str = ""


_decode_rows = Decoder(tuple[PriceRow, ...]).decode


@dataclass(frozen=True, slots=True)
class BookVersion:
    """One complete price list, valid from an instant until the next version of the same book."""

    book_id: str
    version: int
    currency: str
    effective_from: datetime
    rows: tuple[PriceRow, ...]
    windows: tuple[Window, ...] = ()
    schedules: tuple[Schedule, ...] = ()


def check_schedules(rows: Iterable[PriceRow], schedules: Iterable[Schedule]) -> None:
    """Each schedule once, those that rows name among them, and the rows without a price of their own; `InvalidInput` else."""
    known: dict[str, Schedule] = {}
    for schedule in schedules:
        if known.setdefault(schedule.schedule_id, schedule) is not schedule:
            raise InvalidInput(f"{schedule.schedule_id} stands twice; keep one", field="schedules")
    for row in rows:
        if not row.schedule:
            continue
        if row.product == SURCHARGE:
            raise InvalidInput(f"{SURCHARGE} is added to one leg; it has no tiers", field="schedule")
        of_row = known.get(row.schedule)
        if of_row is None:
            raise InvalidInput(f"there is no schedule {row.schedule}; name it under schedules", field="schedule")
        if row.price_nano or row.connection_fee_nano or row.per != of_row.per:
            what = f"{row.product} {row.prefix}"
            raise InvalidInput(
                f"{what} has a price, a fee or a per beside its schedule; leave them out", field="schedule"
            )


class Price(Struct, frozen=True, gc=False):
    """A price row and where it stands: all that a charge names. The texts are the decimal strings of the charge.

    A worker holds one for every row of the versions in use: a structure that the collector of garbage need not walk through.
    """

    book_id: str
    version: int
    currency: str
    product: str
    prefix: str
    price_nano: int
    connection_fee_nano: int
    minimum: int
    increment: int
    per: int = 60
    unit: str = SECOND
    delivered_only: bool = False
    window: str = ""
    schedule: str = ""
    tiers: Schedule | None = None
    unit_price: str = ""
    connection_fee: str = ""

    def __post_init__(self) -> None:
        force_setattr(self, "unit_price", format_nano(self.price_nano))
        force_setattr(self, "connection_fee", format_nano(self.connection_fee_nano))

    @property
    def schedule_version(self) -> str:
        """The name of the schedule, its version of the book included."""
        return schedule_version(self.book_id, self.version, self.schedule)


class _Dated(Protocol):
    @property
    def version(self) -> int: ...
    @property
    def effective_from(self) -> datetime: ...


DatedT = TypeVar("DatedT", bound=_Dated)


def newest_first(versions: Iterable[DatedT]) -> list[DatedT]:
    """The versions of a book in the order they are asked; the first that is effective at an instant holds."""
    return sorted(versions, key=lambda version: (version.effective_from, version.version), reverse=True)


class _Prefixes:
    """The prefixes of one product: asked by length, longest first. A price for any destination stands under "".

    Without windows ``lengths`` are all there are and ``get`` finds the price; with windows there are none, and `in_window`
    is asked.
    """

    __slots__ = ("_all_lengths", "get", "in_windows", "lengths")

    def __init__(self, prices: dict[str, Price], in_windows: Mapping[str, tuple[tuple[Window, Price], ...]]) -> None:
        self._all_lengths = tuple(sorted({len(prefix) for prefix in (*prices, *in_windows)}, reverse=True))
        self.lengths = () if in_windows else self._all_lengths
        self.get: Callable[[str], Price | None] = prices.get
        self.in_windows = in_windows

    def in_window(self, destination: str, began: datetime) -> Price | None:
        """Of the longest prefix that has a price at this time: the price of the window, or the one without."""
        for length in self._all_lengths:
            prefix = destination[:length]
            for window, price in self.in_windows.get(prefix, ()):
                if window.holds(began):
                    return price
            price_at_any_time = self.get(prefix)
            if price_at_any_time is not None:
                return price_at_any_time
        return None


class _Version:
    """A version as it is asked: packed, and unpacked when somebody asks for it. Of the lists of a carrier, dozens a year with
    tens of thousands of prices each, one or two are in use."""

    __slots__ = ("_listed", "_packed", "effective_from", "products", "version")

    def __init__(self, version: BookVersion) -> None:
        self.version = version.version
        self.effective_from = version.effective_from
        self.products: dict[str, _Prefixes] = {}
        self._packed: bytes | None = encode(version.rows)
        self._listed = replace(version, rows=())

    def unpack(self, product: str) -> _Prefixes | None:
        """The prefixes of a product that is not among ``products``, if it was only not unpacked yet."""
        if self._packed is None:
            return None
        self.products = _products(self._listed, _decode_rows(self._packed))
        self._packed = None
        return self.products.get(product)


def _products(version: BookVersion, rows: Iterable[PriceRow]) -> dict[str, _Prefixes]:
    prices: dict[str, dict[str, Price]] = {}
    in_windows: dict[str, dict[str, list[tuple[Window, Price]]]] = {}
    windows = {window.window_id: window for window in version.windows}
    schedules = {schedule.schedule_id: schedule for schedule in version.schedules}
    for row in rows:
        product, unit = intern(row.product), intern(row.unit)  # of all rows the same few
        of_product = prices.setdefault(product, {})
        key = "" if row.prefix == ANY else row.prefix
        if key.startswith(SHORT_CODE):
            key = key[1:] + SHORT_CODE  # at its end, as it is looked for: so a longer code does not begin with it
        price = Price(
            version.book_id, version.version, version.currency, product, row.prefix, row.price_nano,
            row.connection_fee_nano, row.minimum, row.increment, row.per, unit, row.delivered_only, row.window,
            row.schedule, schedules[row.schedule] if row.schedule else None,
        )  # fmt: skip
        if row.window:
            in_windows.setdefault(product, {}).setdefault(key, []).append((windows[row.window], price))
        elif key in of_product:
            raise InvalidInput(
                f"{product} {row.prefix} stands twice in {version.book_id} version {version.version}; keep one of the rows",
                field="prefix",
            )
        else:
            of_product[key] = price
    return {
        product: _Prefixes(
            of_product, {prefix: tuple(choices) for prefix, choices in in_windows.get(product, {}).items()}
        )
        for product, of_product in prices.items()
    }


class PriceBook:
    """All versions of one book. ``exists`` is False for a book that is named but not loaded."""

    __slots__ = ("_versions", "book_id", "exists")

    def __init__(self, book_id: str, versions: Iterable[BookVersion], *, known: PriceBook | None = None) -> None:
        """A book of these versions and of those that are known of it already, which stay as they are."""
        by_number = {version.version: version for version in known._versions} if known is not None else {}
        by_number |= {version.version: _Version(version) for version in versions}
        self.book_id = book_id
        self.exists = bool(by_number)
        self._versions: tuple[_Version, ...] = tuple(newest_first(by_number.values()))

    def sells(self, product: str, at: datetime) -> bool:
        """Whether the version that is effective at an instant has any price for a product."""
        version = next((version for version in self._versions if version.effective_from <= at), None)
        return version is not None and (product in version.products or version.unpack(product) is not None)

    def find(self, product: str, destination: str, at: datetime, duration_s: int = 0) -> Price | None:
        """The price of the longest prefix in the version that is effective at an instant, or None.

        Of several versions the one with the latest ``effective_from`` up to that instant holds; of two from the same
        instant the higher version. A version dated back therefore rates what is rated from then on. Of a prefix with prices
        in windows, the window counts in which the use began, ``duration_s`` before the instant; outside of them the price
        without a window, and if the prefix has none, the next shorter prefix. A short code is priced by itself, or by ``*``.
        """
        if destination[:1] != "+":
            destination += SHORT_CODE
        for version in self._versions:
            if version.effective_from <= at:
                prefixes = version.products.get(product)
                if prefixes is None:
                    prefixes = version.unpack(product)
                    if prefixes is None:
                        return None
                get = prefixes.get
                for length in prefixes.lengths:
                    price = get(destination[:length])
                    if price is not None:
                        return price
                if prefixes.in_windows:
                    return prefixes.in_window(destination, at - timedelta(seconds=duration_s))
                return None
        return None


Chain = tuple[PriceBook, ...]


class PriceBooks:
    """Every book that is loaded."""

    __slots__ = ("_books",)

    def __init__(self, versions: Iterable[BookVersion], *, known: PriceBooks | None = None) -> None:
        """These versions beside the known ones: what did not change is shared with them."""
        by_book: dict[str, list[BookVersion]] = {}
        for version in versions:
            by_book.setdefault(version.book_id, []).append(version)
        self._books: dict[str, PriceBook] = dict(known._books) if known is not None else {}
        for book_id, of_book in by_book.items():
            self._books[book_id] = PriceBook(book_id, of_book, known=self._books.get(book_id))

    def has(self, book_id: str) -> bool:
        """Whether a book is loaded."""
        return book_id in self._books

    def book(self, book_id: str) -> PriceBook:
        """A book, with no price at all if it is not loaded."""
        return self._books.get(book_id) or PriceBook(book_id, ())

    def chain(
        self,
        *,
        account: str | None = None,
        pricing_model: str | None = None,
        organization: str | None = None,
        default: Iterable[str] = (),
    ) -> Chain:
        """The books of an account in the order they are asked: its own override, the payer group's pricing model, the
        organization's, the default ones. The first with a match wins.

        >>> [book.book_id for book in PriceBooks([]).chain(pricing_model="wholesale", default=("list", "inbound"))]
        ['wholesale', 'list', 'inbound']
        """
        named = [book_id for book_id in (account, pricing_model, organization) if book_id is not None]
        order = dict.fromkeys((*named, *default))
        return tuple(self.book(book_id) for book_id in order)
