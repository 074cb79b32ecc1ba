"""A timeline: half-open spans [start, end) of one value each, in order, the last one usually open-ended. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Span:
    """``value`` holds from ``start`` until ``end``; without an end it holds on."""

    start: datetime
    end: datetime | None
    value: str | None

    def overlaps(self, start: datetime, end: datetime | None) -> bool:
        """Whether any instant of [start, end) is in this span."""
        return (end is None or self.start < end) and (self.end is None or self.end > start)


Timeline = tuple[Span, ...]


def from_then_on(timeline: Timeline, start: datetime, value: str | None) -> Timeline:
    """The timeline when ``value`` holds from ``start`` on: what was to begin at or after ``start`` is dropped, neighbours
    of one value are one span, and no span is empty.

    >>> from datetime import UTC
    >>> first, second = datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC)
    >>> [(span.value, span.end) for span in from_then_on((Span(first, None, "trial"),), first, "payg")]
    [('payg', None)]
    >>> [span.value for span in from_then_on((Span(first, None, "trial"),), second, "payg")]
    ['trial', 'payg']
    """
    kept = [span for span in timeline if span.start < start]
    if not kept:
        return (Span(start, None, value),)
    last = kept.pop()
    if last.value == value and (last.end is None or last.end >= start):
        return (*kept, Span(last.start, None, value))
    ended = start if last.end is None else min(last.end, start)
    return (*kept, Span(last.start, ended, last.value), Span(start, None, value))


def value_at(timeline: Timeline, instant: datetime) -> str | None:
    """The value at an instant; None where no span holds it."""
    return next((span.value for span in timeline if span.start <= instant and not _over(span, instant)), None)


def value_before(timeline: Timeline, instant: datetime) -> str | None:
    """The value that holds up to an instant; None where there is none."""
    return next(
        (span.value for span in timeline if span.start < instant and (span.end is None or span.end >= instant)), None
    )


def during(timeline: Iterable[Span], start: datetime, end: datetime | None) -> list[Span]:
    """The part of a timeline that lies in [start, end).

    >>> from datetime import UTC
    >>> first, second = datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC)
    >>> [(span.start.month, span.value) for span in during((Span(first, None, "payg"),), second, None)]
    [(11, 'payg')]
    """
    return [
        Span(max(span.start, start), min(filter(None, (span.end, end)), default=None), span.value)
        for span in timeline
        if span.overlaps(start, end)
    ]


def values_during(timeline: Iterable[Span], start: datetime, end: datetime | None) -> frozenset[str | None]:
    """Every value that holds at some instant of [start, end)."""
    return frozenset(span.value for span in timeline if span.overlaps(start, end))


def _over(span: Span, instant: datetime) -> bool:
    return span.end is not None and span.end <= instant
