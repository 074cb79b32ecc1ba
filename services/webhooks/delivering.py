"""What follows from an attempt to deliver: delivered, again at which instant, given up, or the endpoint is disabled. Pure.

A delivery is tried at once and then after the waits of `WAITS`, as the Standard Webhooks specification proposes: ten times
within about three days. All waits count by the one clock; they get longer by chance, so that the deliveries that one outage
held up do not come back in the same instant.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Literal

WAITS = (
    timedelta(seconds=5),
    timedelta(minutes=5),
    timedelta(minutes=30),
    timedelta(hours=2),
    timedelta(hours=5),
    timedelta(hours=10),
    timedelta(hours=14),
    timedelta(hours=20),
    timedelta(hours=24),
)
JITTER = 0.2  # of a wait, at most, on top of it
RETRY_AFTER_MAX = timedelta(hours=24)  # as long as the longest wait of ours: a receiver cannot stop us for good
FAILING_MAX = timedelta(days=5)  # longer than one delivery is tried: two in a row were given up
GONE = 410

Reason = Literal["gone", "failing"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: a status, or the error why none came. ``piece`` is the beginning of the body."""

    status: int | None = None
    error: str | None = None
    piece: str = ""
    retry_after: timedelta | None = None
    took_ms: int = 0

    @property
    def is_success(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


@dataclass(frozen=True, slots=True)
class Delivered:
    """The receiver has it: the next one of this endpoint may go."""


@dataclass(frozen=True, slots=True)
class Again:
    """It is tried again at this instant, and those behind it wait."""

    at: datetime


@dataclass(frozen=True, slots=True)
class GivenUp:
    """It is tried no more; the next one of this endpoint may go."""


@dataclass(frozen=True, slots=True)
class Disabled:
    """Nothing is sent to this endpoint any more until a person enables it."""

    reason: Reason


Decision = Delivered | Again | GivenUp | Disabled


def decide(answer: Answer, tries: int, failing_since: datetime | None, now: datetime, chance: float) -> Decision:
    """What follows from the answer to the attempt with this number (1 is the first).

    ``failing_since`` is when the endpoint failed first since it last took anything, ``chance`` from 0 to 1. Only 2xx is a
    success: a redirect is none, since following it could lead anywhere.

    >>> noon = datetime(2026, 11, 1, 12, tzinfo=UTC)
    >>> decide(Answer(status=500), 2, noon, noon, 0.0)
    Again(at=datetime.datetime(2026, 11, 1, 12, 5, tzinfo=datetime.timezone.utc))
    >>> decide(Answer(status=500), 10, noon, noon, 0.0), decide(Answer(status=410), 1, None, noon, 0.0)
    (GivenUp(), Disabled(reason='gone'))
    """
    if answer.is_success:
        return Delivered()
    if answer.status == GONE:
        return Disabled("gone")
    if tries <= len(WAITS):
        return Again(now + wait(tries, chance, answer.retry_after))
    if failing_since is not None and now - failing_since >= FAILING_MAX:
        return Disabled("failing")
    return GivenUp()


def wait(tries: int, chance: float, retry_after: timedelta | None = None) -> timedelta:
    """How long to wait after this many failed attempts; at least as long as the receiver asked for, within bounds.

    >>> wait(1, 0.0), wait(1, 0.5), wait(1, 0.0, timedelta(minutes=1))
    (datetime.timedelta(seconds=5), datetime.timedelta(seconds=5, microseconds=500000), datetime.timedelta(seconds=60))
    """
    ours = WAITS[tries - 1] * (1 + JITTER * chance)
    return max(ours, min(retry_after or timedelta(0), RETRY_AFTER_MAX))


def retry_after(header: str, now: datetime) -> timedelta | None:
    """What a `Retry-After` header asks for: seconds, or a date compared with ``now``; None for what is neither.

    >>> retry_after("120", datetime(2026, 11, 1, tzinfo=UTC))
    datetime.timedelta(seconds=120)
    >>> retry_after("Sun, 01 Nov 2026 00:01:00 GMT", datetime(2026, 11, 1, tzinfo=UTC))
    datetime.timedelta(seconds=60)
    """
    text = header.strip()
    if text.isascii() and text.isdecimal():
        return min(timedelta(seconds=int(text[:9])), RETRY_AFTER_MAX)
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # the latter of a year or a zone that no number of the machine holds
        return None
    asked = (at if at.tzinfo is not None else at.replace(tzinfo=UTC)) - now
    return max(timedelta(0), min(asked, RETRY_AFTER_MAX))
