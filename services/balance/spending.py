"""Spend control: when a daily spend limit is near or reached, and whether a call may start.

Pure. Limits are of an account or of one of its outbound profiles, whose name is then given; the account's own has none.
Source: domain, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

NEAR_PERCENT = 80  # of a limit: time enough to raise it, late enough to mean something

NOTHING, NEAR, REACHED = 0, 1, 2
"""What was told of a limit on a day; more comes after less."""


def level(spent_nano: int, limit_nano: int) -> int:
    """How far a day's spend has come: `REACHED` from the limit on, `NEAR` from 80 % of it on.

    Exact: no division, so no rounding. Spend is nanos and may be below zero when corrections outweigh charges.

    >>> [level(spent, 100) for spent in (-5, 79, 80, 99, 100, 250)]
    [0, 0, 1, 1, 2, 2]
    >>> level(0, 0)
    2
    """
    if spent_nano >= limit_nano:
        return REACHED
    return NEAR if spent_nano * 100 >= limit_nano * NEAR_PERCENT else NOTHING


@dataclass(frozen=True, slots=True)
class Told:
    """The most that was told of a day, and of which limit."""

    level: int
    limit_nano: int


def to_tell(spent_nano: int, limit_nano: int | None, told: Told | None) -> Told | None:
    """What is to be told now; None for nothing. A day and limit are told of once each: near, then reached.

    What leaps over 80 % straight to the limit is told as reached only. A correction that brings the spend back, and the
    charge that crosses again, tell nothing new; another limit is told of anew.

    >>> to_tell(85, 100, None), to_tell(90, 100, Told(NEAR, 100)), to_tell(120, 100, Told(NEAR, 100))
    (Told(level=1, limit_nano=100), None, Told(level=2, limit_nano=100))
    >>> to_tell(120, 150, Told(REACHED, 100))
    Told(level=1, limit_nano=150)
    """
    if limit_nano is None:
        return None
    now = level(spent_nano, limit_nano)
    before = told.level if told is not None and told.limit_nano == limit_nano else NOTHING
    return Told(now, limit_nano) if now > before else None
