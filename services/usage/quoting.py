"""What a call will cost a minute, and what a minute of it may cost at most, before it starts.

Pure: by the registry, the books and the maxima that a worker keeps in memory, in the same way as the call will be rated when
it has ended. Source: domain, section 3; designs/holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from services.kernel.errors import InvalidInput, NotFound, Refused
from services.kernel.period import instant_text
from services.usage.books import Direction, Price
from services.usage.rating import Counted, NoPrice, Rated, WrongCurrency, rate
from services.usage.registry import Account, Prices
from services.usage.uses import Leg

WHOLE = ""  # in the place of an outbound profile: the account as a whole

Maxima = Mapping[tuple[str, str], int]
"""(account, profile or WHOLE) to the most that a minute may cost, nanos."""

_E164 = re.compile(r"\+[1-9][0-9]{4,14}", re.ASCII)


class QuotedRate(NamedTuple):
    """A price for ``per_s`` seconds, exact, and what is billed by it."""

    price_nano: int
    per_s: int
    connection_fee_nano: int
    minimum_s: int
    increment_s: int


@dataclass(frozen=True, slots=True)
class Quote:
    """The price of a call that begins at an instant. Amounts are nanos of ``currency``; ``price_nano`` is a minute's.

    A toll-free call's surcharge for its caller is in the price and the fee. ``rates`` is what the cost of a length comes from,
    to the nano: that of the price and, if there is one, of the surcharge, added up and rounded once. Of a price ``by_tiers``, whose bands the month's
    use decides, it is the dearest band's. ``maximum_nano`` is the lower of the account's and the profile's maximum, and
    ``maximum_profile`` names the profile whose it is.
    """

    account_id: str
    direction: Direction
    called: str
    caller: str | None
    outbound_profile: str | None
    at: datetime
    product: str
    currency: str
    price_nano: int
    connection_fee_nano: int
    minimum_s: int
    increment_s: int
    book_id: str
    book_version: int
    matched: str
    window: str | None
    by_tiers: bool
    maximum_nano: int | None
    maximum_profile: str | None
    rates: tuple[QuotedRate, ...]


def quote(
    account: Account,
    prices: Prices,
    maxima: Maxima,
    *,
    direction: Direction,
    called: str,
    caller: str | None,
    at: datetime,
    profile: str | None,
) -> Quote:
    """The quote of a call of an account; a minute is rounded up to a whole nano where the price is for another time.

    Raises `InvalidInput` for what no call can be, `NotFound` where no book has a price, `Refused` where the account is not
    open, or its price is in another currency than its group.
    """
    for field, number in (("called", called), ("caller", caller)):
        if number is not None and _E164.fullmatch(number) is None:
            raise InvalidInput("must be an E.164 number with its plus, such as +12485252160", field=field)
    if direction == "inbound" and profile is not None:
        raise InvalidInput("an inbound call goes out by no profile; leave it out", field="outbound_profile")
    plan = account.plan_at(at)
    is_closed = account.closed_at is not None and at >= account.closed_at
    if plan is None or at < account.opened_at or is_closed:
        raise Refused(
            f"account {account.account_id} is not open at {instant_text(at)}",
            field="account_id",
            code="account_closed",
            retry_can_help=not is_closed,
        )
    payer = account.payer_at(at) if plan != "trial" else None
    currency = payer.currency if payer is not None else account.currency
    leg = Leg(direction, caller, called, "", "", True, 0, 1, account.account_id, profile)
    match rate(leg, at, account.chain(payer, prices), currency):
        case Rated(price=price, surcharge=surcharge):
            more = surcharge.price if surcharge is not None else None
        case Counted(price=price):
            more = None
        case NoPrice(message=message):
            raise NotFound(message, field="called", code="no_price")
        case WrongCurrency(price=price):
            raise Refused(
                f"the price of {price.prefix} in {price.book_id} is in {price.currency}, the account in {currency}",
                field="account_id",
                code="wrong_currency",
            )
        case other:
            raise Refused(f"this call cannot be priced ({type(other).__name__}); mend the price", code="no_price")
    maximum_nano, maximum_profile = _maximum(maxima, account.account_id, profile)
    return Quote(
        account_id=account.account_id,
        direction=direction,
        called=called,
        caller=caller,
        outbound_profile=profile,
        at=at,
        product=price.product,
        currency=price.currency,
        price_nano=a_minute_nano(price) + (a_minute_nano(more) if more is not None else 0),
        connection_fee_nano=price.connection_fee_nano + (more.connection_fee_nano if more is not None else 0),
        minimum_s=price.minimum,
        increment_s=price.increment,
        book_id=price.book_id,
        book_version=price.version,
        matched=price.prefix,
        window=price.window or None,
        by_tiers=price.tiers is not None,
        maximum_nano=maximum_nano,
        maximum_profile=maximum_profile,
        rates=tuple(_rate_of(each) for each in (price, more) if each is not None),
    )


def _rate_of(price: Price) -> QuotedRate:
    return QuotedRate(_dearest_nano(price), price.per, price.connection_fee_nano, price.minimum, price.increment)


def _dearest_nano(price: Price) -> int:
    return price.price_nano if price.tiers is None else max(band.price_nano for band in price.tiers.bands)


def a_minute_nano(price: Price) -> int:
    """What 60 seconds cost at most, rounded up to a whole nano, without fees.

    >>> a_minute_nano(Price("w", 1, "USD", "voice.outbound", "+1", 100, 0, 1, 1, per=7))
    858
    """
    return -(-_dearest_nano(price) * 60 // price.per)


def _maximum(maxima: Maxima, account_id: str, profile: str | None) -> tuple[int | None, str | None]:
    of_account = maxima.get((account_id, WHOLE))
    of_profile = maxima.get((account_id, profile)) if profile is not None else None
    if of_profile is not None and (of_account is None or of_profile <= of_account):
        return of_profile, profile
    return of_account, None
