"""When the fee of a number falls due, whose it is, and for how many days: in advance, once a number and period.

Pure: values in, decisions out. Source: domain, section 3.
"""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime, timedelta

from msgspec import Struct

from services.kernel.period import period_named, period_of, zone
from services.usage.registry import Account, Number

TRIAL_ZONE = "UTC"  # a trial has no payer group whose zone there would be
LOOKED_BACK = (
    12  # fees: what was before so many that were paid is settled, or each look would cost more than the one before
)
_NOTHING_PAID = ""  # before the name of every period
_INSTANT = timedelta(microseconds=1)


class Stretch(Struct, frozen=True, gc=False):
    """A time in which a number was one account's, and its months those of one zone: half-open, or open-ended."""

    start: datetime
    end: datetime | None
    account_id: str
    zone: str

    def holds(self, instant: datetime) -> bool:
        """Whether an instant at or after the start is in it."""
        return self.end is None or instant < self.end


class Fee(Struct, frozen=True, gc=False):
    """One fee: of a period, of whom, from which instant on, for how many started days of the month."""

    period: str
    account_id: str
    starts_at: datetime
    days: int


class Due(Struct, frozen=True, gc=False):
    """The fees that are due now, and when to look again; None when the number is nobody's from then on."""

    fees: tuple[Fee, ...]
    look_again: datetime | None


def stretches(number: Number, accounts: Mapping[str, Account]) -> list[Stretch]:
    """Whose a number was over time, and in which zone; without the times before its account was opened or after it was
    closed, and without accounts that the registry has not told yet."""
    found: list[Stretch] = []
    for owner in number.owners:
        account = accounts.get(owner.account_id)
        if account is None:
            continue
        start = max(owner.start, account.opened_at)
        end = _earlier(owner.end, account.closed_at)
        if end is not None and end <= start:
            continue
        payers = [payer for payer in account.payers if _overlap(payer.start, payer.end, start, end)]
        edges = {start, *(payer.start for payer in payers), *(payer.end for payer in payers if payer.end is not None)}
        inside = sorted(edge for edge in edges if edge >= start and (end is None or edge < end))
        for edge, following in zip(inside, [*inside[1:], end], strict=True):
            payer = account.payer_at(edge)
            found.append(Stretch(edge, following, account.account_id, payer.zone if payer is not None else TRIAL_ZONE))
    return sorted(found, key=lambda stretch: stretch.start)


def due(
    parts: Iterable[Stretch],
    paid: Collection[str],
    since: datetime,
    now: datetime,
    has_fee: Callable[[str, datetime], bool],
) -> Due:
    """The fees of a number that are due at ``now``, where ``paid`` are the last `LOOKED_BACK` periods that were paid.

    A fee falls due when the number becomes an account's, for the days of that month that are left, and then at the start
    of each month. It stays with whoever had the number then: who takes it over in mid-month pays from the next month on.
    A month before one that was paid is due as well, when it becomes known later whose the number was, or what it cost.
    ``has_fee`` says whether an account pays for numbers at an instant; where it does not, nothing is paid by anybody, and
    whoever takes the number over pays from there. A month that had begun before ``since`` was somebody else's to bill.

    >>> from datetime import UTC
    >>> bought = datetime(2027, 3, 21, 3, 30, tzinfo=UTC)  # the 20th, 23:30, in Detroit
    >>> part = Stretch(bought, None, "sales", "America/Detroit")
    >>> found = due([part], (), bought, bought, lambda account_id, at: True)
    >>> found.fees[0].period, found.fees[0].days, found.look_again.isoformat()
    ('2027-03', 12, '2027-04-01T04:00:00+00:00')
    """
    last = min(paid) if len(paid) >= LOOKED_BACK else _NOTHING_PAID
    fees: list[Fee] = []
    for part in parts:
        if part.start < since:
            begun = since if part.end is None else min(since, part.end)
            last = max(last, period_of(begun - _INSTANT, part.zone).name)
        at = part.start
        if period_of(at, part.zone).name <= last:
            at = period_named(last, part.zone).end
        while part.holds(at):
            if at > now:
                return Due(tuple(fees), at)
            period = period_of(at, part.zone)
            is_paid = period.name in paid
            if not is_paid and has_fee(part.account_id, at):
                fees.append(Fee(period.name, part.account_id, at, days_left(at, part.zone)))
                is_paid = True
            if is_paid:
                last = period.name
            at = period.end
    return Due(tuple(fees), None)


def days_left(instant: datetime, zone_name: str) -> int:
    """The days of a month that are left, the one that has started included, by the calendar of a zone.

    >>> from datetime import UTC
    >>> days_left(datetime(2028, 2, 29, 23, 59, tzinfo=UTC), "UTC"), days_left(datetime(2026, 11, 1, 4, tzinfo=UTC), "America/Detroit")
    (1, 30)
    """
    local = instant.astimezone(zone(zone_name))
    return monthrange(local.year, local.month)[1] - local.day + 1


def _earlier(one: datetime | None, other: datetime | None) -> datetime | None:
    if one is None or other is None:
        return one or other
    return min(one, other)


def _overlap(start: datetime, end: datetime | None, other: datetime, other_end: datetime | None) -> bool:
    return (end is None or other < end) and (other_end is None or start < other_end)
