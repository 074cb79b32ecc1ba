"""The billing month: half-open [start, end) between two midnights of the payer group's time zone, named ``YYYY-MM``.

Source: domain, sections 1 and 2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from services.kernel.errors import InvalidInput

YEAR_MIN, YEAR_MAX = 1900, 9998  # every month between has a start and an end that a calendar can name
_NAME = re.compile(r"([0-9]{4})-(0[1-9]|1[0-2])", re.ASCII)


def instant_text(instant: datetime) -> str:
    """UTC with Z, as it stands on every wire, in documents and in messages for people.

    >>> instant_text(datetime(2026, 10, 31, 23, 50, tzinfo=UTC))
    '2026-10-31T23:50:00Z'
    """
    return instant.isoformat().replace("+00:00", "Z")


def zone(name: str, *, field: str = "zone") -> ZoneInfo:
    """The IANA time zone of this name.

    >>> zone("Mars/Olympus")
    Traceback (most recent call last):
    services.kernel.errors.InvalidInput: zone: 'Mars/Olympus' is no IANA time zone; use a name such as "UTC" or "America/Detroit"
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InvalidInput(
            f'{name!r} is no IANA time zone; use a name such as "UTC" or "America/Detroit"', field=field
        ) from None


@dataclass(frozen=True, slots=True)
class Period:
    """One billing month. ``start`` and ``end`` are UTC instants."""

    name: str
    start: datetime
    end: datetime

    def __contains__(self, instant: datetime) -> bool:
        return self.start <= instant < self.end


def _index(name: str) -> int:
    match = _NAME.fullmatch(name)
    if match is None or not YEAR_MIN <= int(match[1]) <= YEAR_MAX:
        raise InvalidInput('must be a month such as "2026-10"', field="period")
    return int(match[1]) * 12 + int(match[2]) - 1


@lru_cache(maxsize=4096)
def _period(index: int, zone_name: str) -> Period:
    tz = zone(zone_name)
    year, month = divmod(index, 12)
    after = divmod(index + 1, 12)
    start = datetime(year, month + 1, 1, tzinfo=tz).astimezone(UTC)
    end = datetime(after[0], after[1] + 1, 1, tzinfo=tz).astimezone(UTC)
    return Period(f"{year:04d}-{month + 1:02d}", start, end)


def period_named(name: str, zone_name: str = "UTC") -> Period:
    """The period called ``YYYY-MM`` in a zone.

    >>> period_named("2026-10", "Europe/Paris").end.isoformat()
    '2026-10-31T23:00:00+00:00'
    """
    return _period(_index(name), zone_name)


def period_of(instant: datetime, zone_name: str = "UTC") -> Period:
    """The period that holds an instant.

    >>> period_of(datetime(2026, 10, 31, 23, 30, tzinfo=UTC), "Europe/Paris").name
    '2026-11'
    """
    local = instant.astimezone(zone(zone_name))
    return _period(local.year * 12 + local.month - 1, zone_name)


def next_period(period: Period, zone_name: str = "UTC") -> Period:
    """The month after.

    >>> next_period(period_named("2026-12")).name
    '2027-01'
    """
    return _period(_index(period.name) + 1, zone_name)


def is_boundary(instant: datetime, zone_name: str) -> bool:
    """Whether an instant is the end of a period in this zone.

    >>> is_boundary(datetime(2026, 11, 1, tzinfo=UTC), "UTC"), is_boundary(datetime(2026, 11, 2, tzinfo=UTC), "UTC")
    (True, False)
    """
    return period_of(instant, zone_name).start == instant
