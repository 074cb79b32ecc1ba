"""Payments that somebody asks for: what each kind of method can do, what a payment must satisfy, when a scheduled one is due.

Pure: the account, its attempts and the instant are arguments. Amounts are nanos. Source: domain, section 4;
designs/recharge, sections 1 and 3.
"""

from __future__ import annotations

import calendar
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from contracts.payments import PROCESSORS, MethodKind
from services.balance.recharge import Account, Attempt, left_today, next_utc_day
from services.kernel.currency import Currency
from services.kernel.errors import InvalidInput, Refused
from services.kernel.money import PAYMENT_NANO_MAX, floor_minor, format_nano

ABANDONED_AFTER = timedelta(hours=24)
HEARD_WITHIN = timedelta(hours=1)  # of becoming unknown: what lies unread is read, five inquiries are answered
LAST_DAY = 31  # of a month, whichever it is
INQUIRY_WAIT_MAX = timedelta(minutes=60)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a kind of method can do. ``pulled``: the processor takes the money; else the customer has to send it."""

    pulled: bool
    refundable: bool
    abandoned_after: timedelta = ABANDONED_AFTER


CAPABILITIES: dict[MethodKind, Capabilities] = {
    "card": Capabilities(pulled=True, refundable=True),
    "paypal": Capabilities(pulled=True, refundable=True),
    # A bank answers in days: to count it as lost after one would debit the customer twice.
    "bank_debit": Capabilities(pulled=True, refundable=True, abandoned_after=timedelta(days=14)),
    "transfer": Capabilities(pulled=False, refundable=False),
}


def check_method(processor: str, kind: MethodKind) -> None:
    """Refuse a method that cannot be charged, naming the field and what can.

    >>> check_method("sandbox", "transfer")
    Traceback (most recent call last):
    services.kernel.errors.InvalidInput: method_kind: a transfer is sent by the customer and cannot be charged; use one of card, paypal, bank_debit
    """
    if processor not in PROCESSORS:
        raise InvalidInput(f"no such processor; use one of {', '.join(PROCESSORS)}", field="processor")
    kinds = ", ".join(PROCESSORS[processor])
    if not CAPABILITIES[kind].pulled:
        raise InvalidInput(
            f"a {kind} is sent by the customer and cannot be charged; use one of {kinds}", field="method_kind"
        )
    if kind not in PROCESSORS[processor]:
        raise InvalidInput(f"{processor} cannot charge a {kind}; use one of {kinds}", field="method_kind")


def check_amount(nano: int, row: Currency) -> None:
    """Refuse an amount that is no payment, today or ever: below the minimum, above the most, or not whole minor units."""
    if nano < row.payment_min_nano:
        raise InvalidInput(
            f"must be at least the minimum payment of {_money(row.payment_min_nano, row)}", field="amount"
        )
    if nano > PAYMENT_NANO_MAX:
        raise InvalidInput(f"must be at most {_money(PAYMENT_NANO_MAX, row)}", field="amount")
    if floor_minor(nano, row.exponent) != nano:
        raise InvalidInput(f"must have at most {row.exponent} decimals", field="amount")


def check_payment(account: Account, attempts: Iterable[Attempt], nano: int, row: Currency, now: datetime) -> None:
    """Refuse a payment below the minimum, above the most, or above what an account without level 2 may top up today.

    Manual 100.01 and 9.99 on the first day: the one is refused naming the 100.00 left, the other naming the minimum of 10.00.
    `Refused` when tomorrow, or level 2, can help.
    """
    check_amount(nano, row)
    if account.level_2:
        return
    least = _money(row.payment_min_nano, row)
    left = max(floor_minor(left_today(account.created_at, attempts, row, now), row.exponent), 0)
    if nano <= left:
        return
    tomorrow = f"more from {next_utc_day(now):%Y-%m-%d}T00:00:00Z on, or after level-2 verification"
    if left < row.payment_min_nano:
        message = f"only {_money(left, row)} of today's top-up limit is left, less than the minimum payment of {least}"
    else:
        message = f"only {_money(left, row)} of today's top-up limit is left; pay at least {least} and at most that"
    raise Refused(f"{message}; {tomorrow}", field="amount", code="top_up_limit")


def next_scheduled(day: int, after: datetime) -> datetime:
    """The next 00:00Z of this day of a month, strictly after an instant; 31 is the last day, whichever it is.

    >>> next_scheduled(31, datetime(2026, 2, 28, tzinfo=UTC)).isoformat()
    '2026-03-31T00:00:00+00:00'
    >>> next_scheduled(15, datetime(2026, 12, 15, 0, 0, 1, tzinfo=UTC)).isoformat()
    '2027-01-15T00:00:00+00:00'
    """
    after = after.astimezone(UTC)
    year, month = after.year, after.month
    while True:
        last = calendar.monthrange(year, month)[1]
        at = datetime(year, month, min(day, last), tzinfo=UTC)
        if at > after:
            return at
        year, month = (year + 1, 1) if month == 12 else (year, month + 1)


def inquiry_wait(number: int) -> timedelta:
    """How long after an inquiry the next one is made: 1, 2, 4 .. 60 minutes. ``number`` 0: the first, after the silence.

    >>> [inquiry_wait(number).seconds // 60 for number in range(8)]
    [1, 2, 4, 8, 16, 32, 60, 60]
    """
    return min(INQUIRY_WAIT_MAX, timedelta(minutes=2 ** min(number, 10)))


def _money(nano: int, row: Currency) -> str:
    return f"{format_nano(nano, decimals_min=row.exponent)} {row.code}"
