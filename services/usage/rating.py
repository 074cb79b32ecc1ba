"""What a call leg costs: one price, one multiplication, one rounding.

Pure. Amounts are nanos (10^-9 of the currency unit), times are whole seconds. Source: domain, sections 2 and 3.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal, Protocol

from msgspec import Struct

from services.kernel.money import CHARGE_NANO_MAX, divide_half_even, format_nano
from services.usage.books import Chain, Direction, Price, product_of

SECONDS_PER_MINUTE = 60


class Leg(Protocol):
    """What rating needs of a voice leg. ``called`` is E.164; for an inbound leg it is the customer's own number."""

    direction: Direction
    called: str
    answered: bool
    billable_s: int


class Rated(Struct, frozen=True, gc=False):
    """The leg costs ``amount_nano`` for ``billed_s`` seconds at ``price``."""

    price: Price
    billed_s: int
    amount_nano: int


class NotBillable(Struct, frozen=True, gc=False):
    """The leg costs nothing, whatever the prices are: it was not answered, or lasted 0 seconds."""

    reason: Literal["unanswered", "zero_seconds"]


class NoPrice(Struct, frozen=True, gc=False):
    """No book has a price; never a charge of zero. ``missing_book`` is named by the account but not loaded."""

    product: str
    number: str
    missing_book: str | None = None

    @property
    def message(self) -> str:
        if self.missing_book is not None:
            return f"the price book {self.missing_book} is not loaded; load it, and the record is retried"
        return f"no price book has a {self.product} price for {self.number}; add a prefix, and the record is retried"


class WrongCurrency(Struct, frozen=True, gc=False):
    """The price that matched is in another currency than the account's group; nothing is converted."""

    price: Price
    expected: str


class TooLarge(Struct, frozen=True, gc=False):
    """The charge would be more than one charge may be (10^6 units): the price or the leg is wrong."""

    price: Price
    amount_nano: int


Outcome = Rated | NotBillable | NoPrice | WrongCurrency | TooLarge

_UNANSWERED = NotBillable("unanswered")
_ZERO_SECONDS = NotBillable("zero_seconds")


def billed_seconds(billable_s: int, minimum_s: int, increment_s: int) -> int:
    """The seconds that are billed: at least the minimum, above it in whole increments, always rounded up.

    >>> billed_seconds(95, 60, 60), billed_seconds(95, 60, 6), billed_seconds(3, 1, 1), billed_seconds(31, 30, 12)
    (120, 96, 3, 42)
    """
    if billable_s <= minimum_s:
        return minimum_s
    return minimum_s - (minimum_s - billable_s) // increment_s * increment_s


def amount_nano(billed_s: int, price: Price) -> int:
    """Connection fee + billed seconds x price a minute / 60, rounded once, half-even to 9 decimals, as the last step.

    >>> price = Price("w", 1, "USD", "voice.outbound", "+1", 12_000_000, 1_000_000, 60, 6)
    >>> format_nano(amount_nano(96, price))
    '0.0202'
    """
    exact = price.connection_fee_nano * SECONDS_PER_MINUTE + billed_s * price.per_minute_nano
    return divide_half_even(exact, SECONDS_PER_MINUTE)


def rate(leg: Leg, ended_at: datetime, books: Chain, currency: str) -> Outcome:
    """What a leg that ended at an instant costs by an account's books; the first book with a match wins.

    Outbound legs are priced by the called number, inbound ones by the customer's own, which is the called number too.
    Legs that cost nothing are told apart before any price is looked up.
    """
    if not leg.answered:
        return _UNANSWERED
    if leg.billable_s == 0:
        return _ZERO_SECONDS
    product = product_of(leg.direction, leg.called)
    for book in books:
        price = book.find(product, leg.called, ended_at)
        if price is not None:
            break
        if not book.exists:  # the next book must not answer for one that is to be loaded: its price would be wrong
            return NoPrice(product, leg.called, missing_book=book.book_id)
    else:
        return NoPrice(product, leg.called)
    if price.currency != currency:
        return WrongCurrency(price, currency)
    billed_s = billed_seconds(leg.billable_s, price.minimum_s, price.increment_s)
    amount = amount_nano(billed_s, price)
    if amount > CHARGE_NANO_MAX:
        return TooLarge(price, amount)
    return Rated(price, billed_s, amount)


def _sixtieth(numerator_nano: int) -> str:
    """A sixtieth of nanos as it is before rounding: exact to 12 decimals, then a sign that digits follow."""
    thousandths, rest = divmod(numerator_nano * 1_000, SECONDS_PER_MINUTE)
    if not rest and thousandths % 1_000 == 0:
        return format_nano(thousandths // 1_000)
    units, decimals = divmod(thousandths, 10**12)
    digits = f"{decimals:012d}"
    return f"{units}.{digits}…" if rest else f"{units}.{digits.rstrip('0')}"


def explain(price: Price, billable_s: int) -> tuple[str, ...]:
    """The steps of a charge's arithmetic, one sentence each, to the last digit.

    >>> price = Price("wholesale", 1, "USD", "voice.outbound", "+91", 40_000_000, 1_000_000, 60, 6)
    >>> for step in explain(price, 23): print(step)
    prefix +91 of book wholesale, version 1 (voice.outbound): 0.04 USD a minute, connection fee 0.001, 60/6 seconds
    answered 23 s; at least 60 s, then steps of 6 s: billed 60 s
    60 s x 0.04 / 60 = 0.04
    0.04 + connection fee 0.001 = 0.041
    rounded half-even to 9 decimals: 0.041 USD
    """
    billed_s = billed_seconds(billable_s, price.minimum_s, price.increment_s)
    minutes = _sixtieth(billed_s * price.per_minute_nano)
    steps = [
        f"prefix {price.prefix} of book {price.book_id}, version {price.version} ({price.product}): {price.unit_price}"
        f" {price.currency} a minute, connection fee {price.connection_fee},"
        f" {price.minimum_s}/{price.increment_s} seconds",
        f"answered {billable_s} s; at least {price.minimum_s} s, then steps of {price.increment_s} s: billed {billed_s} s",
        f"{billed_s} s x {price.unit_price} / 60 = {minutes}",
    ]
    if price.connection_fee_nano:
        exact = price.connection_fee_nano * SECONDS_PER_MINUTE + billed_s * price.per_minute_nano
        steps.append(f"{minutes} + connection fee {price.connection_fee} = {_sixtieth(exact)}")
    steps.append(f"rounded half-even to 9 decimals: {format_nano(amount_nano(billed_s, price))} {price.currency}")
    return tuple(steps)
