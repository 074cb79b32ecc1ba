"""Which invoice a charge stands on: its period, or the first later one whose cut it has not passed.

Pure. Source: designs/closing, line 8.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from msgspec import Struct

from services.kernel.period import Period, next_period

Lane = tuple[str, int]  # topic, partition


@dataclass(frozen=True, slots=True)
class Cut:
    """A cut that was taken: the end offset of every usage partition, and how far its pass has come.

    ``number`` counts cuts in the order they were taken. ``held`` says, of each group that was held when the lanes passed,
    whether it has passed since.
    """

    cutoff_id: UUID
    number: int
    boundary: datetime
    positions: Mapping[Lane, int]
    is_passed: bool = False
    held: Mapping[str, bool] = field(default_factory=dict)

    def is_before(self, lane: Lane, offset: int) -> bool:
        """Whether a record came after this cut; all of a partition that was born after it did."""
        return offset >= self.positions.get(lane, 0)

    def has_passed(self, group_id: str) -> bool:
        """Whether nothing more may be added to this cut for a group."""
        return self.is_passed and self.held.get(group_id, True)


class BillTo(Struct, frozen=True, gc=False):
    """The period on whose invoice a charge stands. ``waits``: not before every cut that it skips has passed its group."""

    period: str
    waits: bool = False


class Cuts:
    """Every cut that was taken."""

    __slots__ = ("_by_boundary", "_in_order", "_segments")

    def __init__(self, cuts: Iterable[Cut] = ()) -> None:
        self._in_order = sorted(cuts, key=lambda cut: cut.number)
        self._by_boundary = {cut.boundary: cut for cut in self._in_order}
        self._segments: dict[Lane, list[int]] = {}

    def __iter__(self) -> Iterator[Cut]:
        return iter(self._in_order)

    def at(self, boundary: datetime) -> Cut | None:
        """The cut of a boundary, if it was taken."""
        return self._by_boundary.get(boundary)

    def before(self, cut: Cut) -> Cut | None:
        """The cut that was taken before this one."""
        earlier = [each for each in self._in_order if each.number < cut.number]
        return earlier[-1] if earlier else None

    def segment(self, lane: Lane, offset: int) -> int:
        """How many cuts had been taken when a record came. Cut n answers for the records of segment n.

        >>> cuts = Cuts([Cut(UUID(int=0), 0, datetime.min, {("t", 0): 5}), Cut(UUID(int=1), 1, datetime.max, {("t", 0): 9})])
        >>> [cuts.segment(("t", 0), offset) for offset in (4, 5, 9)], cuts.segment(("born", 0), 0)
        ([0, 1, 2], 2)
        """
        if not self._in_order:
            return 0
        positions = self._segments.get(lane)
        if positions is None:
            positions = self._segments[lane] = [cut.positions.get(lane, 0) for cut in self._in_order]
        return bisect_right(positions, offset)

    def follows(self, group_ids: Iterable[str], lane: Lane, offset: int) -> bool:
        """Whether a record came after a cut that has not passed all of these groups: what came before it may be unread."""
        groups = tuple(group_ids)
        return any(cut.is_before(lane, offset) and not all(map(cut.has_passed, groups)) for cut in self._in_order)

    def bill_to(self, group_id: str, zone: str, period: Period, lane: Lane, offset: int, *, replayed: bool) -> BillTo:
        """The first period from ``period`` on whose cut a charge has not passed.

        A record passes a cut by its offset, wherever it runs; in the replay lane also when the cut has passed its group.
        One that skips a cut by its offset waits until that cut has passed its group.
        """
        waits = False
        while (cut := self._by_boundary.get(period.end)) is not None:
            has_passed = cut.has_passed(group_id)
            is_late = cut.is_before(lane, offset)
            if not is_late and not (replayed and has_passed):
                break
            waits = waits or (is_late and not has_passed)
            period = next_period(period, zone)
        return BillTo(period.name, waits)

    def correction_to(self, group_id: str, zone: str, period: Period) -> str:
        """Where a correction without a record of its own stands: the first period from that of the charge which it corrects
        on whose cut has not passed its group."""
        while (cut := self._by_boundary.get(period.end)) is not None and cut.has_passed(group_id):
            period = next_period(period, zone)
        return period.name
