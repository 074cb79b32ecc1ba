"""When a wallet is recharged by itself, and by how much.

`decide` lists the whole policy in order; each limit that may cut or refuse a recharge is a rule of its own below. Pure: the
account, its attempts and the instant are arguments. Amounts are nanos. Source: domain, section 4; designs/recharge.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, Protocol

from services.kernel.currency import Currency, currency
from services.kernel.errors import InvalidInput
from services.kernel.money import PAYMENT_NANO_MAX, ceil_minor, floor_minor, format_nano

WINDOW = timedelta(hours=24)
RECHARGES_PER_WINDOW_MAX = 10  # nobody can raise it
EIGHTH = 8  # of the ten: the account is warned
RESULT_TIMEOUT = timedelta(minutes=15)  # silence for this long makes an attempt unknown
BACK_OFFS = (timedelta(hours=1), timedelta(hours=2))  # after the first and second decline; the third pauses
DECLINES_MAX = 3
ERROR_RETRY = timedelta(minutes=15)  # the processor failed, nothing was charged: evaluated again

Mode = Literal["up_to_sum", "target", "fixed"]
Kind = Literal["auto", "manual", "scheduled", "group"]
State = Literal["requested", "unknown", "settled", "declined", "cancelled", "abandoned"]

IN_FLIGHT: frozenset[str] = frozenset({"requested", "unknown"})
COUNTED: frozenset[str] = frozenset({"requested", "unknown", "settled", "abandoned"})


class Attempt(Protocol):
    """What the decision needs of one payment attempt; ``kind`` is ``auto``, ``manual``, ``scheduled`` or ``group``. ``undone`` says
    that an earlier life of the database asked for it: see `adopting`."""

    @property
    def kind(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def amount_nano(self) -> int: ...
    @property
    def requested_at(self) -> datetime: ...
    @property
    def undone(self) -> bool: ...


class Account(Protocol):
    """What the decision needs of one account. ``available_nano`` has the credits that its group shares in it; while one is
    left nothing is recharged, so the amounts go by what the account has alone. ``recharge_nano`` is the target in mode ``target``."""

    @property
    def plan(self) -> str | None: ...
    @property
    def closed_at(self) -> datetime | None: ...
    @property
    def suspended_operator(self) -> bool: ...
    @property
    def currency(self) -> str: ...
    @property
    def level_2(self) -> bool: ...
    @property
    def created_at(self) -> datetime | None: ...
    @property
    def available_nano(self) -> int: ...
    @property
    def shared_credit_nano(self) -> int: ...
    @property
    def recharge_enabled(self) -> bool: ...
    @property
    def recharge_mode(self) -> str: ...
    @property
    def threshold_nano(self) -> int: ...
    @property
    def recharge_nano(self) -> int: ...
    @property
    def method_token(self) -> str | None: ...
    @property
    def retry_at(self) -> datetime | None: ...
    @property
    def paused(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Nothing:
    """No recharge is wanted now."""


@dataclass(frozen=True, slots=True)
class Request:
    """Charge this much. ``counted`` recharges lie in the window before it."""

    amount_nano: int
    counted: int


@dataclass(frozen=True, slots=True)
class Capped:
    """Ten recharges lie in the window; it opens by itself."""

    next_allowed_at: datetime


@dataclass(frozen=True, slots=True)
class Refused:
    """Wanted, and not allowed: ``paused``, ``no_method`` or ``top_up_limit``. Without an instant a person has to act."""

    reason: str
    next_allowed_at: datetime | None


@dataclass(frozen=True, slots=True)
class Wait:
    """A back-off is running."""

    until: datetime


Decision = Nothing | Request | Capped | Refused | Wait


def decide(account: Account, attempts: Sequence[Attempt], now: datetime) -> Decision:
    """The whole policy, in order. ``attempts`` are those in flight, of the last 24 hours, and of this UTC day.
    Example: threshold 100, recharge 50, available 20: `Request` of 130.00.
    """
    if not account.recharge_enabled or account.plan != "payg" or account.closed_at is not None:
        return Nothing()
    if account.suspended_operator:
        return Nothing()
    if account.shared_credit_nano > 0 or account.available_nano > account.threshold_nano:
        return Nothing()
    if is_in_flight(attempts):
        return Nothing()
    if account.paused:
        return Refused("paused", None)
    if account.method_token is None:
        return Refused("no_method", None)
    if account.retry_at is not None and now < account.retry_at:
        return Wait(account.retry_at)
    counted = counted_in_window(attempts, now)
    if len(counted) >= RECHARGES_PER_WINDOW_MAX:
        return Capped(counted[-RECHARGES_PER_WINDOW_MAX] + WINDOW)
    row = currency(account.currency)
    amount = wanted_amount(account, row)
    if not account.level_2:
        amount = min(amount, floor_minor(left_today(account.created_at, attempts, row, now), row.exponent))
        if amount < row.payment_min_nano:
            return Refused("top_up_limit", next_utc_day(now))
    return Request(amount, len(counted))


def is_in_flight(attempts: Iterable[Attempt]) -> bool:
    """Whether an automatic attempt is requested or unknown: only one at a time. So long as it is not known what became of an undone
    attempt of whatever kind, nothing is recharged either: what it brought may be all that is wanted."""
    return any((attempt.kind == "auto" or attempt.undone) and attempt.state in IN_FLIGHT for attempt in attempts)


def counted_in_window(attempts: Iterable[Attempt], now: datetime) -> list[datetime]:
    """When the automatic attempts that count for the ten were requested, after now - 24 h, oldest first.

    Declined and cancelled ones do not count; refunded or disputed later still do. One that is later than ``now`` counts: a
    transaction that waited for its wallet has an instant from before the wait.
    """
    return sorted(
        attempt.requested_at
        for attempt in attempts
        if attempt.kind == "auto" and attempt.state in COUNTED and attempt.requested_at > now - WINDOW
    )


def wanted_amount(account: Account, row: Currency) -> int:
    """What one recharge charges: the need, up to the next minor unit, at least the minimum payment, at most 10^7.

    `up_to_sum` brings available credit up to threshold + recharge amount, so a deep fall is repaired by one charge;
    `target` up to the target; `fixed` is always the same. 100 + 50 at 19.996: 130.004, charged 130.01.
    """
    need = {
        "up_to_sum": account.threshold_nano + account.recharge_nano - account.available_nano,
        "target": account.recharge_nano - account.available_nano,
        "fixed": account.recharge_nano,
    }[account.recharge_mode]
    return min(max(ceil_minor(need, row.exponent), row.payment_min_nano), PAYMENT_NANO_MAX)


def day_limit(created_at: datetime, row: Currency, now: datetime) -> int:
    """What an account without level 2 may top up on this UTC day: 100 on the day it was created, rising 50 a day.

    >>> created, next_day = datetime(2026, 1, 5, 23, 59, tzinfo=UTC), datetime(2026, 1, 6, tzinfo=UTC)
    >>> format_nano(day_limit(created, currency("USD"), created)), format_nano(day_limit(created, currency("USD"), next_day))
    ('100', '150')
    """
    day = (now.astimezone(UTC).date() - created_at.astimezone(UTC).date()).days
    return row.topup_first_day_nano + max(day, 0) * row.topup_rise_per_day_nano


def attempted_today(attempts: Iterable[Attempt], now: datetime) -> int:
    """Manual, scheduled and automatic attempts together, by the UTC date of their request, in the states that count.

    A payment of a group's invoice tops nothing up, and does not count.
    """
    today = now.astimezone(UTC).date()
    return sum(
        attempt.amount_nano
        for attempt in attempts
        if attempt.kind != "group" and attempt.state in COUNTED and attempt.requested_at.astimezone(UTC).date() == today
    )


def left_today(created_at: datetime | None, attempts: Iterable[Attempt], row: Currency, now: datetime) -> int:
    """What may still be topped up today. What was attempted on earlier days does not count."""
    return day_limit(created_at or now, row, now) - attempted_today(attempts, now)


def next_utc_day(now: datetime) -> datetime:
    """The next 00:00Z."""
    day = now.astimezone(UTC).date() + timedelta(days=1)
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class AfterFailure:
    """What a failed attempt does to its account."""

    decline_streak: int
    retry_at: datetime | None
    paused: bool


def after_decline(streak: int, now: datetime) -> AfterFailure:
    """Declined: back-off of 1 h, then 2 h; the third in a row pauses auto-recharge until a person acts.

    >>> noon = datetime(2026, 1, 5, 12, tzinfo=UTC)
    >>> after_decline(0, noon).retry_at.hour, after_decline(1, noon).retry_at.hour, after_decline(2, noon).paused
    (13, 14, True)
    """
    streak += 1
    if streak >= DECLINES_MAX:
        return AfterFailure(streak, None, True)
    return AfterFailure(streak, now + BACK_OFFS[streak - 1], False)


def after_error(streak: int, now: datetime) -> AfterFailure:
    """The processor failed and charged nothing: not counted, no decline, looked at again after 15 minutes."""
    return AfterFailure(streak, now + ERROR_RETRY, False)


def check_preferences(*, mode: str, threshold_nano: int, recharge_nano: int, row: Currency) -> None:
    """Refuse preferences that make no sense, naming the field: threshold >= 0; recharge > 0; `target` above the
    threshold; `fixed` at least the minimum payment; neither above 10^7, which is the most that one payment can be."""
    if threshold_nano < 0:
        raise InvalidInput("must not be negative", field="threshold")
    if recharge_nano <= 0:
        raise InvalidInput("must be above zero", field="recharge")
    for field, nano in (("threshold", threshold_nano), ("recharge", recharge_nano)):
        if nano > PAYMENT_NANO_MAX:
            raise InvalidInput(f"must be at most {format_nano(PAYMENT_NANO_MAX)}", field=field)
    if mode == "target" and recharge_nano <= threshold_nano:
        raise InvalidInput("the target must be above the threshold", field="recharge")
    if mode == "fixed" and recharge_nano < row.payment_min_nano:
        least = format_nano(row.payment_min_nano, decimals_min=row.exponent)
        raise InvalidInput(
            f"a fixed recharge must be at least the minimum payment of {least} {row.code}", field="recharge"
        )
