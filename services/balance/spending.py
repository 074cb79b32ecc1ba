"""Spend control: when a daily spend limit is near or reached, and whether a call may start.

Pure. Limits are of an account or of one of its outbound profiles, whose name is then given; the account's own has none.
Source: domain, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from services.balance.holding import Rates
from services.kernel.money import format_nano

NEAR_PERCENT = 80  # of a limit: time enough to raise it, late enough to mean something

NOTHING, NEAR, REACHED = 0, 1, 2
"""What was told of a limit on a day; more comes after less."""


def level(spent_nano: int, limit_nano: int) -> int:
    """How far a day's spend has come: `REACHED` from the limit on, `NEAR` from 80 % of it on.

    Exact: no division, so no rounding. Spend is nanos and may be below zero when corrections outweigh charges.

    >>> [level(spent, 100) for spent in (-5, 79, 80, 99, 100, 250)]
    [0, 0, 1, 1, 2, 2]
    >>> level(0, 0)
    2
    """
    if spent_nano >= limit_nano:
        return REACHED
    return NEAR if spent_nano * 100 >= limit_nano * NEAR_PERCENT else NOTHING


@dataclass(frozen=True, slots=True)
class Told:
    """The most that was told of a day, and of which limit."""

    level: int
    limit_nano: int


def to_tell(spent_nano: int, limit_nano: int | None, told: Told | None) -> Told | None:
    """What is to be told now; None for nothing. A day and limit are told of once each: near, then reached.

    What leaps over 80 % straight to the limit is told as reached only. A correction that brings the spend back, and the
    charge that crosses again, tell nothing new; another limit is told of anew.

    >>> to_tell(85, 100, None), to_tell(90, 100, Told(NEAR, 100)), to_tell(120, 100, Told(NEAR, 100))
    (Told(level=1, limit_nano=100), None, Told(level=2, limit_nano=100))
    >>> to_tell(120, 150, Told(REACHED, 100))
    Told(level=1, limit_nano=150)
    """
    if limit_nano is None:
        return None
    now = level(spent_nano, limit_nano)
    before = told.level if told is not None and told.limit_nano == limit_nano else NOTHING
    return Told(now, limit_nano) if now > before else None


# ---- whether a call may start --------------------------------------------------------------------------------------

RefusalReason = Literal[
    "closed", "suspended", "price_too_high", "daily_spend", "concurrent_calls", "insufficient_credit"
]


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit and what counts against it now: today's spend, and the calls in progress without the one that asks.

    ``outbound_profile`` is None for the account as a whole; an amount or number of None is no limit.
    """

    outbound_profile: str | None
    daily_spend_nano: int | None
    calls_max: int | None
    spent_nano: int
    calls: int


@dataclass(frozen=True, slots=True)
class CallAsked:
    """A call that wants to start, with its price a minute and the most that a minute may cost, if there is a most.

    Prices are nanos of ``currency`` without connection fees; ``rates`` is all that its cost comes from. ``maximum_profile`` is
    the outbound profile whose maximum it is.
    """

    account_id: str
    outbound_profile: str | None
    price_nano: int
    currency: str
    rates: Rates
    maximum_nano: int | None = None
    maximum_profile: str | None = None


@dataclass(frozen=True, slots=True)
class Allowed:
    """Nothing stands against the call."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The call may not start; the message names the limit and what stands against it."""

    reason: RefusalReason
    message: str


def decide(asked: CallAsked, limits: Sequence[Limit], *, closed: bool, suspended: bool) -> Allowed | Refused:
    """Whether a call may start; the first thing against it is named.

    A price may be as high as the maximum. A day's spend and the calls in progress must be below their limits: what reaches a
    limit stops the next call, not the one that runs, so a day can end above its limit by the calls that ran then. The limits
    are those of the account and of the call's profile, and both hold. Source: domain, section 3.

    >>> asked = CallAsked("sales", "dialer", 14_000_000, "USD", (), maximum_nano=14_000_000)
    >>> day = Limit(None, 10 * 10**9, None, 9_999_999_999, 0)
    >>> decide(asked, [day, Limit("dialer", None, 2, 0, 1)], closed=False, suspended=False)
    Allowed()
    >>> print(decide(asked, [day, Limit("dialer", None, 2, 0, 2)], closed=False, suspended=False).message)
    profile dialer of sales has 2 of at most 2 calls in progress
    """
    if closed:
        return Refused("closed", f"account {asked.account_id} is closed")
    if suspended:
        return Refused("suspended", f"account {asked.account_id} is suspended")
    if asked.maximum_nano is not None and asked.price_nano > asked.maximum_nano:
        return Refused(
            "price_too_high",
            f"a minute costs {format_nano(asked.price_nano)} {asked.currency}; {_of(asked, asked.maximum_profile)} allows at"
            f" most {format_nano(asked.maximum_nano)}",
        )
    for limit in limits:
        if limit.daily_spend_nano is not None and limit.spent_nano >= limit.daily_spend_nano:
            return Refused(
                "daily_spend",
                f"{_of(asked, limit.outbound_profile)} has spent {format_nano(limit.spent_nano)} {asked.currency} today; its"
                f" limit is {format_nano(limit.daily_spend_nano)} a day, and the next day begins at 00:00 UTC",
            )
    for limit in limits:
        if limit.calls_max is not None and limit.calls >= limit.calls_max:
            return Refused(
                "concurrent_calls",
                f"{_of(asked, limit.outbound_profile)} has {limit.calls} of at most {limit.calls_max} calls in progress",
            )
    return Allowed()


def _of(asked: CallAsked, profile: str | None) -> str:
    return f"account {asked.account_id}" if profile is None else f"profile {profile} of {asked.account_id}"
