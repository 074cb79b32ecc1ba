"""Low balance: when an account is told that its available credit has come down to a level of its own.

Pure; nanos. A level is told of when available credit reaches it (<=) from above, and armed again when it rises above it; so
which levels were told follows from the lowest of them. Source: domain, section 4.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Marks(NamedTuple):
    """Where available credit has to come before something changes: down to ``next_nano``, or above ``told_nano``."""

    next_nano: int | None
    told_nano: int | None


def marks(levels: Iterable[int], available_nano: int) -> Marks:
    """The highest level below what is available, and the lowest at or above it.

    >>> marks([50, 20, 5], 30), marks([50, 20, 5], 20), marks([], 30)
    (Marks(next_nano=20, told_nano=50), Marks(next_nano=5, told_nano=20), Marks(next_nano=None, told_nano=None))
    """
    levels = list(levels)
    return Marks(
        max((level for level in levels if level < available_nano), default=None),
        min((level for level in levels if level >= available_nano), default=None),
    )


def moves(before: Marks, available_nano: int) -> bool:
    """Whether a level is to be told of or armed again; two comparisons, for every account of a batch.

    >>> moves(Marks(20, 50), 21), moves(Marks(20, 50), 20), moves(Marks(20, 50), 51), moves(Marks(None, None), 0)
    (False, True, True, False)
    """
    next_nano, told_nano = before
    return (next_nano is not None and available_nano <= next_nano) or (
        told_nano is not None and available_nano > told_nano
    )


def crossed(levels: Iterable[int], before: Marks, available_nano: int) -> list[int]:
    """The levels to tell of now, the highest first: reached, and not told since available credit was above them.

    >>> crossed([50, 20, 5], Marks(20, 50), 4), crossed([50, 20, 5], Marks(20, 50), 60)
    ([20, 5], [])
    """
    told_nano = before.told_nano
    return sorted(
        (level for level in levels if level >= available_nano and (told_nano is None or level < told_nano)),
        reverse=True,
    )
