"""What a call in progress holds of its account's available credit: how long it may go on, what that costs, until when.

Pure. Amounts are nanos, lengths whole seconds; a call's cost is always that from its start, so that the connection fee and
the minimum count once. Source: domain, section 4; designs/holds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from contracts.usage import CALL_SECONDS_MAX
from services.kernel.money import divide_half_even

SLICE_S_MAX = 300  # what one grant promises at most: a switch that dies holds money no longer than this and the grace
GRACE = timedelta(seconds=30)  # after the slice: time to ring, to renew and to say how the call ended
SETTLED_KEPT = timedelta(hours=1)  # how long the exact cost of a call that ended waits for its charge


@dataclass(frozen=True, slots=True)
class Rate:
    """A price for ``per_s`` seconds and what is billed by it; a toll-free call's surcharge is a second one."""

    price_nano: int
    per_s: int
    connection_fee_nano: int
    minimum_s: int
    increment_s: int

    def billed_s(self, seconds: int) -> int:
        """At least the minimum, above it in whole increments, always rounded up.

        >>> [Rate(0, 60, 0, 60, 6).billed_s(seconds) for seconds in (1, 60, 61, 66)]
        [60, 60, 66, 66]
        """
        if seconds <= self.minimum_s:
            return self.minimum_s
        return self.minimum_s - (self.minimum_s - seconds) // self.increment_s * self.increment_s


Rates = tuple[Rate, ...]
"""All that a call is priced by, added up and rounded once. Empty: it costs nothing."""


def cost_nano(rates: Sequence[Rate], seconds: int) -> int:
    """What a call of so many seconds costs, rounded once, half-even to a nano: the amount of its charge. Nothing for 0.

    >>> cost_nano([Rate(14_000_000, 60, 0, 60, 6)], 205), cost_nano([Rate(14_000_000, 60, 10_000_000, 1, 1)], 171)
    (49000000, 49900000)
    """
    if seconds <= 0:
        return 0
    numerator, denominator = 0, 1
    for rate in rates:
        nanos = rate.connection_fee_nano * rate.per_s + rate.billed_s(seconds) * rate.price_nano
        numerator, denominator = numerator * rate.per_s + nanos * denominator, denominator * rate.per_s
    return divide_half_even(numerator, denominator)


def affordable_s(rates: Sequence[Rate], nano: int, *, before_s: int, asked_s: int) -> int:
    """The most seconds after the first ``before_s``, up to ``asked_s``, with which the call costs at most ``nano``.

    A call never becomes cheaper by going on, so half of what is left is tried each time. Money below zero pays for nothing,
    not even for what is free.

    >>> minute, six, second = (60, 60), (60, 6), (1, 1)
    >>> def most(steps, nano, fee=0): return affordable_s([Rate(14_000_000, 60, fee, *steps)], nano, before_s=0, asked_s=300)
    >>> most(minute, 50_000_000), most(six, 50_000_000), most(second, 50_000_000, 10_000_000), most(minute, 13_900_000)
    (180, 210, 171, 0)
    """
    if asked_s > 0 and cost_nano(rates, before_s + asked_s) <= nano:
        return asked_s  # nearly always
    lengths = range(before_s + 1, before_s + asked_s + 1)
    return bisect_right(lengths, nano, key=lambda seconds: cost_nano(rates, seconds))


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of a call that is paid for: its length, the call's length at its end, what the call then holds.

    ``max_s`` is the length of the call at which what is there now would be used up, if nothing else used it.
    """

    granted_s: int
    total_s: int
    max_s: int
    held_nano: int


@dataclass(frozen=True, slots=True)
class Lasting:
    """Money beside an account's own that can be promised to a slice of ``lasts_s`` seconds at most; None: to any."""

    nano: int
    lasts_s: int | None = None

    def lasts(self, seconds: int) -> bool:
        """Whether it is still there when the lease of such a slice ends."""
        return self.lasts_s is None or seconds <= self.lasts_s


def next_slice(
    rates: Sequence[Rate], *, spendable_nano: int, before_s: int, asked_s: int, beside: Sequence[Lasting] = ()
) -> Slice | None:
    """The slice of a call after its first ``before_s`` seconds; None where not one second of it can be paid.

    ``spendable_nano`` is available credit and what the call itself holds already; ``beside`` it there may be money that ends. Price
    0.0140 a minute, 60/60, asked 300 s with 500 available: the whole slice, held 0.0700. All that is there now counts for
    ``max_s``, however soon it ends: that is no promise.

    >>> minute = [Rate(14_000_000, 60, 0, 60, 60)]
    >>> next_slice(minute, spendable_nano=50_000_000, before_s=0, asked_s=300)
    Slice(granted_s=180, total_s=180, max_s=180, held_nano=42000000)
    >>> next_slice(minute, spendable_nano=50_000_000, before_s=180, asked_s=300) is None
    True
    >>> next_slice(minute, spendable_nano=14_000_000, before_s=0, asked_s=300, beside=[Lasting(70_000_000, 100)])
    Slice(granted_s=100, total_s=100, max_s=360, held_nano=28000000)
    """
    asked_s = min(asked_s, SLICE_S_MAX, CALL_SECONDS_MAX - before_s)
    granted_s = 0
    for most_s in {asked_s, *(each.lasts_s for each in beside if each.lasts_s is not None and each.lasts_s < asked_s)}:
        nano = spendable_nano + sum(each.nano for each in beside if each.lasts(most_s))
        granted_s = max(granted_s, affordable_s(rates, nano, before_s=before_s, asked_s=most_s))
    if granted_s <= 0:
        return None
    total_s = before_s + granted_s
    there_nano = spendable_nano + sum(each.nano for each in beside)
    more_s = affordable_s(rates, there_nano, before_s=total_s, asked_s=CALL_SECONDS_MAX - total_s)
    return Slice(granted_s, total_s, total_s + more_s, cost_nano(rates, total_s))


def lease_end(now: datetime, granted_s: int, runs_until: datetime | None = None) -> datetime:
    """Until when a grant holds: its slice and the grace from now; of a call that runs at least its slice longer than before.

    A renewal that comes early adds its slice to what is left, one that comes late begins at once.

    >>> noon = datetime(2026, 1, 5, 12)
    >>> first = lease_end(noon, 300)
    >>> [str(lease_end(noon + timedelta(seconds=s), 300, first).time()) for s in (200, 320)]
    ['12:10:30', '12:10:50']
    """
    until = now + timedelta(seconds=granted_s) + GRACE
    if runs_until is None or runs_until <= now:
        return until
    return max(until, runs_until + timedelta(seconds=granted_s))


def lasts_s(now: datetime, until: datetime, runs_until: datetime | None = None) -> int:
    """The longest slice whose lease, granted now, ends by ``until``: the other way round of `lease_end`. Rounded down; below
    zero for none.

    >>> noon = datetime(2026, 1, 5, 12)
    >>> first = lease_end(noon, 300)
    >>> lasts_s(noon, first), lasts_s(noon, first, noon + timedelta(seconds=100)), lasts_s(noon, noon)
    (300, 230, -30)
    """
    left = until - now - GRACE
    if runs_until is not None and runs_until > now:
        left = min(left, until - runs_until)
    return left // timedelta(seconds=1)


def settled_nano(rates: Sequence[Rate], seconds: int, held_nano: int) -> int:
    """What a call that ended goes on holding until its charge comes: its exact cost, never more than it held.

    A call that ran on over its slice costs more than it holds; what was not promised is left to the charge.

    >>> rates = [Rate(14_000_000, 60, 0, 60, 60)]
    >>> settled_nano(rates, 61, 70_000_000), settled_nano(rates, 0, 70_000_000), settled_nano(rates, 301, 70_000_000)
    (28000000, 0, 70000000)
    """
    return min(cost_nano(rates, seconds), held_nano)
