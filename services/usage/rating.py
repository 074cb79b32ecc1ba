"""What a use costs: one price, one multiplication, one rounding.

Pure. Amounts are nanos (10^-9 of the currency unit), quantities are whole units. Source: domain, sections 2 and 3.
"""

from __future__ import annotations

from calendar import monthrange
from datetime import datetime
from typing import Protocol

from msgspec import Struct

from contracts.usage import Surcharge as SurchargeData
from services.kernel.money import CHARGE_NANO_MAX, divide_half_even, format_fraction, format_nano
from services.usage import tiers
from services.usage.books import RENTAL, SECOND, SURCHARGE, TOLL_FREE, UNITS, Chain, Price
from services.usage.uses import Free


class Used(Protocol):
    """What rating needs of a use. ``destination`` decides the price; of an inbound leg it is the customer's own number."""

    @property
    def product(self) -> str: ...
    @property
    def destination(self) -> str: ...
    @property
    def origin(self) -> str | None: ...
    @property
    def unit(self) -> str: ...
    @property
    def duration_s(self) -> int: ...
    @property
    def used(self) -> int: ...
    @property
    def free(self) -> Free | None: ...


class Surcharge(Struct, frozen=True, gc=False):
    """What a toll-free leg costs more: ``billed`` seconds by the rule of ``price``, which is found by the caller's number."""

    price: Price
    billed: int

    def told(self) -> SurchargeData:
        """As a charge tells it."""
        price = self.price
        data: SurchargeData = {
            "book_id": price.book_id,
            "book_version": price.version,
            "matched": price.prefix,
            "quantity": self.billed,
            "unit_price": price.unit_price,
            "per": price.per,
            "connection_fee": price.connection_fee,
            "minimum": price.minimum,
            "increment": price.increment,
        }
        if price.window:
            data["window"] = price.window
        return data


class Rated(Struct, frozen=True, gc=False):
    """The use costs ``amount_nano`` for ``billed`` units at ``price`` for ``per`` units, and the surcharge if there is one."""

    price: Price
    billed: int
    per: int
    amount_nano: int
    surcharge: Surcharge | None = None


class Counted(Struct, frozen=True, gc=False):
    """The use costs what the schedule of ``price`` says when ``billed`` units enter the counter, ``per`` as in `Rated`."""

    price: Price
    billed: int
    per: int


class NotBillable(Struct, frozen=True, gc=False):
    """The use costs nothing: nobody answered, the carrier rejected it, nothing was used, or the book says so."""

    reason: Free


class NoPrice(Struct, frozen=True, gc=False):
    """No book has a price; never a charge of zero. ``missing_book`` is named by the account but not loaded; ``tiers_beside``
    has a surcharge for a leg that ``tiers_of`` prices by tiers, which share out the sum of a month and not what one leg
    costs."""

    product: str
    destination: str
    missing_book: str | None = None
    tiers_beside: str | None = None
    tiers_of: str | None = None

    @property
    def message(self) -> str:
        if self.tiers_beside is not None:
            return (
                f"the price of {self.product} is by tiers, to which the surcharge of book {self.tiers_beside} cannot be"
                " added; price one of them otherwise, and the record is retried"
            )
        if self.missing_book is not None:
            return f"the price book {self.missing_book} is not loaded; load it, and the record is retried"
        where = f" for {self.destination}" if self.destination else ""
        return f"no price book has a {self.product} price{where}; add one, and the record is retried"


class WrongCurrency(Struct, frozen=True, gc=False):
    """The price that matched is in another currency than the account's group; nothing is converted."""

    price: Price
    expected: str


class WrongUnit(Struct, frozen=True, gc=False):
    """The product was used in another unit than its price has; nothing is converted."""

    price: Price
    unit: str


class TooLarge(Struct, frozen=True, gc=False):
    """The charge would be more than one charge may be (10^6 units): the price or the quantity is wrong."""

    price: Price
    amount_nano: int


Outcome = Rated | Counted | NotBillable | NoPrice | WrongCurrency | WrongUnit | TooLarge


def why_unpriced(outcome: Outcome) -> str | None:
    """The word by which a correction says that there is no price to charge by; None where there is one, or nothing to charge."""
    match outcome:
        case NoPrice(tiers_beside=beside):
            return "no_price" if beside is None else "surcharge"
        case WrongCurrency():
            return "wrong_currency"
        case WrongUnit():
            return "wrong_unit"
        case TooLarge():
            return "too_large"
    return None


_FREE: dict[Free, NotBillable] = {
    reason: NotBillable(reason) for reason in ("unanswered", "nothing_used", "rejected", "not_delivered")
}


def billed_quantity(used: int, minimum: int, increment: int) -> int:
    """What is billed: at least the minimum, above it in whole increments, always rounded up.

    >>> billed_quantity(95, 60, 60), billed_quantity(95, 60, 6), billed_quantity(3, 1, 1), billed_quantity(31, 30, 12)
    (120, 96, 3, 42)
    """
    if used <= minimum:
        return minimum
    return minimum - (minimum - used) // increment * increment


def amount_nano(billed: int, per: int, price: Price, surcharge: Surcharge | None = None) -> int:
    """Fee + billed quantity x price / per, and the same of a surcharge, rounded once, half-even to 9 decimals, as the last
    step.

    >>> price = Price("w", 1, "USD", "voice.outbound", "+1", 12_000_000, 1_000_000, 60, 6)
    >>> format_nano(amount_nano(96, 60, price))
    '0.0202'
    >>> payphone = Price("w", 1, "USD", SURCHARGE, "+1248", 0, 600_000_000, 0, 1)
    >>> format_nano(amount_nano(96, 60, price, Surcharge(payphone, 95)))
    '0.6202'
    """
    return divide_half_even(*_exact(billed, per, price, surcharge))


def _exact(billed: int, per: int, price: Price, surcharge: Surcharge | None = None) -> tuple[int, int]:
    """The amount as a fraction of nanos, not rounded."""
    nanos = price.connection_fee_nano * per + billed * price.price_nano
    if surcharge is None:
        return nanos, per
    more, per_more = _exact(surcharge.billed, surcharge.price.per, surcharge.price)
    return nanos * per_more + more * per, per * per_more


def per_of(price: Price, month: str | None) -> int:
    """For how many units the price is: of a rental, whose price is a month's, for the days of that month.

    >>> rent = Price("list", 1, "USD", RENTAL, "+1", 10**9, 0, 0, 1, 1, "day")
    >>> per_of(rent, "2028-02"), format_nano(amount_nano(10, per_of(rent, "2028-02"), rent))
    (29, '0.344827586')
    """
    if price.product != RENTAL or month is None:
        return price.per
    return monthrange(int(month[:4]), int(month[5:7]))[1]


def rate(use: Used, event_time: datetime, books: Chain, currency: str) -> Outcome:
    """What a use costs by an account's books; the first book with a match wins.

    Uses that cost nothing are told apart before any price is looked up. A toll-free leg takes the surcharge of the first book
    that has one for its caller; without one, or a caller that is not known and no price for any, it costs no more.
    """
    free = use.free
    if free is not None:
        return _FREE[free]
    product = use.product
    price = _find(product, use.destination, use, event_time, books)
    if isinstance(price, NoPrice):
        return price
    if price.currency != currency:
        return WrongCurrency(price, currency)
    if price.unit != use.unit:
        return WrongUnit(price, use.unit)
    if price.delivered_only and getattr(use, "outcome", None) != "delivered":
        return _FREE["not_delivered"]
    per = per_of(price, getattr(use, "month", None)) if product == RENTAL else price.per
    billed = billed_quantity(use.used, price.minimum, price.increment)
    surcharge = None
    if product == TOLL_FREE:
        more = _find(SURCHARGE, use.origin or "", use, event_time, books)
        if isinstance(more, Price):
            if more.currency != currency:
                return WrongCurrency(more, currency)
            if price.tiers is not None:
                return NoPrice(product, use.destination, tiers_beside=more.book_id, tiers_of=price.book_id)
            surcharge = Surcharge(more, billed_quantity(use.used, more.minimum, more.increment))
        elif more.missing_book is not None:
            return more
    if price.tiers is not None:
        largest = price.tiers.largest_share_nano(billed, per)  # the same in whatever order uses come
        return Counted(price, billed, per) if largest <= CHARGE_NANO_MAX else TooLarge(price, largest)
    amount = amount_nano(billed, per, price, surcharge)
    if amount > CHARGE_NANO_MAX:
        return TooLarge(price, amount)
    return Rated(price, billed, per, amount, surcharge)


def _find(product: str, number: str, use: Used, event_time: datetime, books: Chain) -> Price | NoPrice:
    """The price of the first book that has one."""
    for book in books:
        price = book.find(product, number, event_time, use.duration_s)
        if price is not None:
            return price
        if not book.exists:  # the next book must not answer for one that is to be loaded: its price would be wrong
            return NoPrice(product, number, missing_book=book.book_id)
    return NoPrice(product, number)


def explain(
    price: Price, used: int, per: int, share: tiers.Share | None = None, surcharge: Price | None = None
) -> tuple[str, ...]:
    """The steps of a charge's arithmetic, one sentence each, to the last digit; ``share`` is that of a price by tiers.

    >>> price = Price("wholesale", 1, "USD", "voice.outbound", "+91", 40_000_000, 1_000_000, 60, 6)
    >>> for step in explain(price, 23, 60): print(step)
    prefix +91 of book wholesale, version 1 (voice.outbound): 0.04 USD a minute, connection fee 0.001, 60/6 seconds
    answered 23 s; at least 60 s, then steps of 6 s: billed 60 s
    60 s x 0.04 / 60 = 0.04
    0.04 + connection fee 0.001 = 0.041
    rounded half-even to 9 decimals: 0.041 USD
    """
    billed = billed_quantity(used, price.minimum, price.increment)
    more = None
    steps = _steps(price, used, per)
    if price.tiers is not None and share is not None:
        unit = "s" if price.unit == SECOND else price.unit
        return (*steps, *tiers.explain(price.tiers, share, per, unit, price.currency))
    if surcharge is not None:
        more = Surcharge(surcharge, billed_quantity(used, surcharge.minimum, surcharge.increment))
        own, added = _exact(billed, per, price), _exact(more.billed, surcharge.per, surcharge)
        both = format_fraction(*_exact(billed, per, price, more))
        steps += [f"surcharge by the caller: {step}" for step in _steps(surcharge, used, surcharge.per)]
        steps.append(f"{format_fraction(*own)} + surcharge {format_fraction(*added)} = {both}")
    steps.append(
        f"rounded half-even to 9 decimals: {format_nano(amount_nano(billed, per, price, more))} {price.currency}"
    )
    return tuple(steps)


def _steps(price: Price, used: int, per: int) -> list[str]:
    """How one price comes to what it is before rounding."""
    voice = UNITS.get(price.product) == "second"
    unit, fee_name = ("s", "connection fee") if voice else (price.unit, "fee")
    billed = billed_quantity(used, price.minimum, price.increment)
    for_how_many = "a minute" if voice and per == 60 else "a month" if price.product == RENTAL else f"for {per} {unit}"
    exact = format_fraction(billed * price.price_nano, per)
    in_window = f" in window {price.window}" if price.window else ""
    costs = (
        f"{price.unit_price} {price.currency} {for_how_many}, {fee_name} {price.connection_fee}"
        if price.tiers is None
        else tiers.describe(price.tiers, for_how_many)
    )
    steps = [
        f"prefix {price.prefix}{in_window} of book {price.book_id}, version {price.version} ({price.product}): {costs},"
        f" {price.minimum}/{price.increment} {price.unit}s",
        f"{'answered' if voice else 'used'} {used} {unit}; at least {price.minimum} {unit}, then steps of"
        f" {price.increment} {unit}: billed {billed} {unit}",
    ]
    if price.tiers is not None:
        return steps
    steps.append(f"{billed} {unit} x {price.unit_price} / {per} = {exact}")
    if price.connection_fee_nano:
        whole = format_fraction(*_exact(billed, per, price))
        steps.append(f"{exact} + {fee_name} {price.connection_fee} = {whole}")
    return steps
