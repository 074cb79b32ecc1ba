"""Windows of a price book: hours of days in a zone in which another price holds.

The clock on the wall of the zone decides. An hour that is repeated when clocks are set back is in a window both times; an
hour that is missing never comes, so a window that begins in it begins when the clock has jumped. Windows that do not overlap
on the wall therefore never overlap at all. Pure. Source: domain, section 3.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

from contracts.words import ID_PATTERN
from services.kernel.errors import InvalidInput
from services.kernel.period import zone as zone_named

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
HOLIDAY = "holiday"
DAY_MINUTES = 24 * 60
HOLIDAYS_MAX = 1_000  # of one window: thirty years of them
_ONE_DAY = timedelta(days=1)
_WHOLE_DAYS = {number: name.capitalize() for number, name in enumerate(DAYS)}
_TIME = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])", re.ASCII)
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Window:
    """From one time of day to another (minutes after midnight), on some days. It belongs to the day on which it begins: one that
    passes midnight (``end`` is not after ``start``) goes on into the next, whatever day that is.

    ``days`` are the week's, Monday 0; 7 are holidays. A date that is a holiday of this window is no other day of it.
    """

    window_id: str
    zone: str
    days: frozenset[int]
    start: int
    end: int
    holidays: frozenset[date] = frozenset()
    _clock: ZoneInfo = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_clock", zone_named(self.zone))

    def holds(self, at: datetime) -> bool:
        """Whether an instant is in the window.

        >>> night = window_of("night", "America/Detroit", "mon-fri", "22:00", "06:00")
        >>> [night.holds(datetime.fromisoformat(text)) for text in (
        ...     "2026-10-03T09:59:59Z", "2026-10-03T10:00:00Z", "2026-10-04T03:00:00Z")]  # Sat 05:59:59, 06:00; Sat 23:00
        [True, False, False]
        """
        local = at.astimezone(self._clock)
        minute = local.hour * 60 + local.minute
        today = local.date()
        if self.start < self.end:
            return self.start <= minute < self.end and self._is_of(today)
        if minute >= self.start:
            return self._is_of(today)
        return minute < self.end and self._is_of(today - _ONE_DAY)

    def _is_of(self, day: date) -> bool:
        return (7 if day in self.holidays else day.weekday()) in self.days

    def _spans(self, day: int, day_before: int) -> Iterator[tuple[int, int]]:
        """The minutes of one day that are in the window; the two days are those of a week, or 7."""
        if self.start >= self.end and day_before in self.days:
            yield 0, self.end
        if day in self.days:
            yield self.start, self.end if self.start < self.end else DAY_MINUTES

    def overlap(self, other: Window) -> str | None:
        """When both are on, the first such time in words; None when they never are. Both are of one zone.

        >>> day = window_of("day", "Europe/Berlin", "mon-fri", "08:00", "18:00")
        >>> day.overlap(window_of("late", "Europe/Berlin", "fri sat", "17:30", "02:00"))
        'Fri 17:30'
        """
        for day in range(7):
            before = (day - 1) % 7
            minute = _common(self._spans(day, before), other._spans(day, before))
            if minute is not None:
                return f"{_WHOLE_DAYS[day]} {_time(minute)}"
        special = self.holidays | other.holidays
        for each in sorted(special | {day + _ONE_DAY for day in special}):
            minute = _common(self._spans(*self._kinds(each)), other._spans(*other._kinds(each)))
            if minute is not None:
                return f"{each} {_time(minute)}"
        return None

    def _kinds(self, day: date) -> tuple[int, int]:
        before = day - _ONE_DAY
        return (
            7 if day in self.holidays else day.weekday(),
            7 if before in self.holidays else before.weekday(),
        )

    def explain(self, began: datetime) -> str:
        """Why the window holds, for people.

        >>> night = window_of("night", "Europe/Berlin", "mon-fri", "22:00", "06:00")
        >>> night.explain(datetime.fromisoformat("2026-10-03T03:10:00Z"))
        'began Sat 2026-10-03 05:10:00 (Europe/Berlin), which is in window night: mon-fri 22:00-06:00 Europe/Berlin'
        """
        local = began.astimezone(self._clock)
        return f"began {local:%a %Y-%m-%d %H:%M:%S} ({self.zone}), which is in window {self}"

    def texts(self) -> dict[str, str]:
        """As it stands in a price file: `window_of` of these is the same window.

        >>> window_of("a", "UTC", "mon-wed sat holiday", "00:00", "24:00", "2026-12-25").texts()["days"]
        'mon tue wed sat holiday'
        """
        return {
            "id": self.window_id,
            "zone": self.zone,
            "days": " ".join((*DAYS, HOLIDAY)[day] for day in sorted(self.days)),
            "from": _time(self.start),
            "to": _time(self.end),
            "holidays": " ".join(day.isoformat() for day in sorted(self.holidays)),
        }

    def __str__(self) -> str:
        text = f"{self.window_id}: {_days_in_words(self.days)} {_time(self.start)}-{_time(self.end)} {self.zone}"
        return f"{text}, {len(self.holidays)} holidays" if self.holidays else text


def window_of(window_id: str, zone: str, days: str, start: str, end: str, holidays: str = "") -> Window:
    """A window of the texts that a price file has. Days and holidays are parted by blanks; ``mon-fri`` is five days, ``holiday``
    the dates that are named as such. Raises `InvalidInput` with the field (id, zone, days, from, to, holidays).

    >>> window_of("x", "Europe/Berlin", "mon-fri", "8:00", "18:00")
    Traceback (most recent call last):
    services.kernel.errors.InvalidInput: from: must be a time such as "08:00"
    """
    if re.fullmatch(ID_PATTERN, window_id) is None:
        raise InvalidInput(
            'must begin with a letter or digit and hold at most 64 letters, digits, "_", "." and "-"', field="id"
        )
    zone_named(zone)
    dates = holidays.split()
    if len(dates) > HOLIDAYS_MAX:
        raise InvalidInput(f"must be at most {HOLIDAYS_MAX} dates", field="holidays")
    window = Window(
        window_id,
        zone,
        frozenset(_days(days)),
        _minute(start, "from"),
        _minute(end, "to"),
        frozenset(map(_date, dates)),
    )
    if not window.days:
        raise InvalidInput('must name days such as "mon-fri" or "sat sun holiday"', field="days")
    if 7 in window.days and not window.holidays:
        raise InvalidInput("must name the dates, or the window must not be of a holiday", field="holidays")
    return window


def _days(text: str) -> Iterator[int]:
    for word in text.split():
        first, dash, last = word.partition("-")
        if word == HOLIDAY:
            yield 7
        elif first in DAYS and (not dash or last in DAYS):
            begin = DAYS.index(first)
            for each in range((DAYS.index(last) - begin) % 7 + 1 if dash else 1):
                yield (begin + each) % 7
        else:
            raise InvalidInput(f"{word!r} is no day; use {', '.join(DAYS)}, mon-fri or {HOLIDAY}", field="days")


def _minute(text: str, name: str) -> int:
    if text == "24:00" and name == "to":
        return DAY_MINUTES
    match = _TIME.fullmatch(text)
    if match is None:
        raise InvalidInput('must be a time such as "08:00"', field=name)
    return int(match[1]) * 60 + int(match[2])


def _date(text: str) -> date:
    if _DATE.fullmatch(text) is not None:
        try:
            day = date.fromisoformat(text)
        except ValueError:
            pass
        else:
            if 1900 <= day.year <= 9998:
                return day
    raise InvalidInput(f'{text!r} is no date; use dates such as "2026-12-25"', field="holidays")


def _time(minute: int) -> str:
    return f"{minute // 60:02d}:{minute % 60:02d}"


def _days_in_words(days: frozenset[int]) -> str:
    """Days with runs of three and more shortened.

    >>> _days_in_words(frozenset({0, 1, 2, 3, 4, 7}))
    'mon-fri holiday'
    """
    words: list[str] = []
    day = 0
    while day < 7:
        last = day
        while day in days and last + 1 < 7 and last + 1 in days:
            last += 1
        if day in days:
            words += [f"{DAYS[day]}-{DAYS[last]}"] if last - day > 1 else list(DAYS[day : last + 1])
        day = last + 1
    return " ".join([*words, HOLIDAY] if 7 in days else words)


def _common(spans: Iterator[tuple[int, int]], others: Iterator[tuple[int, int]]) -> int | None:
    """The first minute that is in both."""
    theirs = list(others)
    found = [
        max(start, begin) for start, end in spans for begin, finish in theirs if max(start, begin) < min(end, finish)
    ]
    return min(found) if found else None
