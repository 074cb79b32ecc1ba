"""From what a switch writes as a time to the instants it can mean."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from services.usage.importing.profile import SwitchProfile
from services.usage.importing.rows import Refused

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_WALL_CLOCK = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}", re.ASCII)
_ISO = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[ T]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:[.,][0-9]{1,9})?"
    r" ?(Z|UTC|[+-][0-9]{2}(?::?[0-9]{2})?)?",
    re.ASCII,
)
_EPOCH = re.compile(r"([0-9]{9,11})(?:\.[0-9]{1,9})?", re.ASCII)


def never(text: str) -> bool:
    """Whether a time stands for none, as tables and switches write it."""
    return text in ("", "0") or text.startswith(("0000-00-00", "1970-01-01", "1969-12-31"))


def wall_clock(text: str, field: str) -> datetime:
    """``2018-11-29 20:19:34`` as Asterisk's cdr_csv writes it, without a zone."""
    try:
        if _WALL_CLOCK.fullmatch(text):
            return datetime.fromisoformat(text)
    except ValueError:
        pass
    raise Refused("invalid", field, 'must be a time such as "2018-11-29 20:19:34"')


def local_candidates(local: datetime, profile: SwitchProfile, field: str) -> tuple[datetime, ...]:
    """The instants that a wall clock of the switch's zone can mean: two in the hour that is set back."""
    earlier = local.replace(tzinfo=profile.tz)
    later = earlier.replace(fold=1)
    try:
        if earlier.utcoffset() == later.utcoffset():
            return (earlier.astimezone(UTC),)
        candidates = tuple(sorted((earlier.astimezone(UTC), later.astimezone(UTC))))
    except OverflowError:  # the last hours of 9999 west of Greenwich, the first of 0001 east of it
        raise Refused("invalid", field, "is outside the calendar in UTC; check the switch's clock") from None
    if candidates[0].astimezone(profile.tz).replace(tzinfo=None) != local:
        raise Refused(
            "invalid", field, f"does not exist in {profile.zone} (the clock was set forward); check the profile's zone"
        )
    return candidates


def candidates(text: str, profile: SwitchProfile, field: str) -> tuple[datetime, ...]:
    """The instants that a database's or a switch's time can mean, cut to whole seconds.

    Seconds since 1970, or a date and time; with an offset, or else by the clock of the profile's zone.
    """
    if epoch := _EPOCH.fullmatch(text):
        return (EPOCH + timedelta(seconds=int(epoch[1])),)
    iso = _ISO.fullmatch(text)
    try:
        if iso is None:
            raise ValueError
        if iso[3] in ("Z", "UTC"):
            return (datetime.fromisoformat(f"{iso[1]}T{iso[2]}+00:00"),)
        if iso[3]:
            return (datetime.fromisoformat(f"{iso[1]}T{iso[2]}{iso[3]}").astimezone(UTC),)
        local = datetime.fromisoformat(f"{iso[1]} {iso[2]}")
    except (ValueError, OverflowError):
        raise Refused(
            "invalid",
            field,
            'must be a time such as "2018-11-29 20:19:34", with an offset or not, or seconds since 1970',
        ) from None
    return local_candidates(local, profile, field)


def span(
    starts: tuple[datetime, ...],
    ends: tuple[datetime, ...] | None,
    duration_s: int,
    *,
    not_before: Callable[[], datetime | None] = lambda: None,
    field: str = "end",
) -> tuple[datetime, datetime]:
    """Start and end in UTC; without an end it is the start and the duration.

    Where a clock that was set back leaves a choice, the pair that fits the duration is meant, and of two such pairs the
    one that does not begin before ``not_before``.
    """
    duration = timedelta(seconds=duration_s)
    if len(starts) == 1 and (ends is None or len(ends) == 1):
        start = starts[0]
        end = start + duration if ends is None else ends[0]
    else:
        pairs = [(s, s + duration) for s in starts] if ends is None else [(s, e) for s in starts for e in ends]
        created = not_before() or datetime.min.replace(tzinfo=UTC)
        start, end = min(pairs, key=lambda pair: (abs(pair[1] - pair[0] - duration), pair[0] < created, pair[0]))
    if end < start:
        raise Refused("invalid", field, "is before the start; check the switch's clock")
    return start, end


def utc_text(instant: datetime, shift: timedelta, field: str = "end") -> str:
    """The instant as events carry it, moved by whole days."""
    try:
        return (instant + shift).strftime("%Y-%m-%dT%H:%M:%SZ")
    except OverflowError:
        raise Refused("invalid", field, "is outside the calendar after the shift; shift by fewer days") from None
