"""When an invoice is overdue, when that is told, and when its group's accounts are suspended for it. Pure.

All of it counts days of the group's calendar: a day begins at midnight of its zone, also where clocks are put forward or
back. Source: designs/ledger, "Postpaid".
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from services.kernel.period import zone

NOTICE_DAYS = (0, 7, 14)  # after it became overdue
SUSPEND_AFTER_DAYS = 21  # unless the installation says otherwise
SUSPEND_AFTER_DAYS_MAX = 365


def begins(due_on: datetime, zone_name: str, days: int = 0) -> datetime:
    """The first instant of the day after the due date, and so many days later, UTC.

    Due on 17 November in Detroit: overdue from midnight there. In Paris clocks go back on 25 October, so that the week from
    the 24th on has an hour more.

    >>> begins(datetime(2026, 11, 17, 9, 30, tzinfo=UTC), "America/Detroit").isoformat()
    '2026-11-18T05:00:00+00:00'
    >>> [begins(datetime(2026, 10, 23, tzinfo=UTC), "Europe/Paris", days).isoformat() for days in (0, 7)]
    ['2026-10-23T22:00:00+00:00', '2026-10-30T23:00:00+00:00']
    """
    place = zone(zone_name)
    day = due_on.astimezone(place).date() + timedelta(days=1 + days)
    return datetime(day.year, day.month, day.day, tzinfo=place).astimezone(UTC)


@dataclass(frozen=True, slots=True)
class Stage:
    """How far an open invoice has come: ``notice`` is the last notice that is due by now, None before it is overdue."""

    notice: int | None
    suspends: bool
    next_at: datetime | None

    @property
    def is_overdue(self) -> bool:
        return self.notice is not None


def stage(due_on: datetime, zone_name: str, now: datetime, suspend_after_days: int = SUSPEND_AFTER_DAYS) -> Stage:
    """Where an open invoice stands, and when it must be looked at again (None: never by itself).

    A day counts from its first instant on: at +7 days 00:00 the second notice is due, a microsecond before it is not.

    >>> due_on = datetime(2026, 11, 17, 9, 30, tzinfo=UTC)
    >>> stage(due_on, "UTC", datetime(2026, 11, 17, 23, 59, 59, 999999, tzinfo=UTC)).is_overdue
    False
    >>> stage(due_on, "UTC", datetime(2026, 11, 18, tzinfo=UTC)).notice
    0
    >>> stage(due_on, "UTC", datetime(2026, 12, 9, tzinfo=UTC))
    Stage(notice=14, suspends=True, next_at=None)
    """
    notice = None
    following = []
    for days in NOTICE_DAYS:
        at = begins(due_on, zone_name, days)
        if at <= now:
            notice = days
        else:
            following.append(at)
    suspends_at = begins(due_on, zone_name, suspend_after_days)
    if suspends_at > now:
        following.append(suspends_at)
    return Stage(notice, suspends_at <= now, min(following, default=None))
