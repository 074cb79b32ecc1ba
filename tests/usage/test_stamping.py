"""Which invoice a charge stands on: designs/closing, line 8."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from services.kernel.period import period_named
from services.usage.stamping import BillTo, Cut, Cuts

LANE = ("usage.events.lakeside", 0)
OCTOBER, NOVEMBER = period_named("2026-10"), period_named("2026-11")


def cut(number: int, boundary: datetime, position: int | None, *, passed: bool = False, **held: bool) -> Cut:
    positions = {LANE: position} if position is not None else {}
    return Cut(UUID(int=number), number, boundary, positions, passed, held)


def stamped(cuts: Cuts, offset: int, *, replayed: bool = False) -> BillTo:
    return cuts.bill_to("g", "UTC", OCTOBER, LANE, offset, replayed=replayed)


def test_without_a_cut_a_charge_stands_on_the_invoice_of_its_period() -> None:
    assert stamped(Cuts(), 10) == BillTo("2026-10")


def test_below_the_cut_a_charge_stands_on_its_period_even_after_the_pass_in_its_own_lane() -> None:
    assert stamped(Cuts([cut(0, OCTOBER.end, 100)]), 99) == BillTo("2026-10")


def test_a_late_record_waits_for_the_pass_and_then_stands_on_the_next_invoice() -> None:
    assert stamped(Cuts([cut(0, OCTOBER.end, 100)]), 100) == BillTo("2026-11", waits=True)
    assert stamped(Cuts([cut(0, OCTOBER.end, 100, passed=True)]), 100) == BillTo("2026-11")


def test_a_late_record_of_a_held_group_waits_until_its_group_has_passed() -> None:
    assert stamped(Cuts([cut(0, OCTOBER.end, 100, passed=True, g=False)]), 100).waits
    assert not stamped(Cuts([cut(0, OCTOBER.end, 100, passed=True, g=True)]), 100).waits
    assert not stamped(Cuts([cut(0, OCTOBER.end, 100, passed=True, other=False)]), 100).waits


def test_a_partition_that_was_born_after_the_cut_is_all_after_it() -> None:
    assert stamped(Cuts([cut(0, OCTOBER.end, None)]), 0) == BillTo("2026-11", waits=True)


def test_a_replay_before_the_pass_stands_on_its_period_and_after_it_on_the_next() -> None:
    assert stamped(Cuts([cut(0, OCTOBER.end, 100)]), 5, replayed=True) == BillTo("2026-10")
    assert stamped(Cuts([cut(0, OCTOBER.end, 100, passed=True)]), 5, replayed=True) == BillTo("2026-11")


def test_a_replay_that_its_group_was_held_for_stands_on_its_period() -> None:
    assert stamped(Cuts([cut(0, OCTOBER.end, 100, passed=True, g=False)]), 5, replayed=True) == BillTo("2026-10")


def test_a_record_that_skips_two_cuts_waits_for_both() -> None:
    first = cut(0, OCTOBER.end, 100, passed=True)
    assert stamped(Cuts([first, cut(1, NOVEMBER.end, 200)]), 200) == BillTo("2026-12", waits=True)
    assert stamped(Cuts([first, cut(1, NOVEMBER.end, 200)]), 150) == BillTo("2026-11")
    assert stamped(Cuts([first, cut(1, NOVEMBER.end, 200, passed=True)]), 200) == BillTo("2026-12")


def test_a_cut_of_another_zone_is_none_of_this_group() -> None:
    paris = period_named("2026-10", "Europe/Paris")
    assert stamped(Cuts([cut(0, paris.end, 100)]), 100) == BillTo("2026-10")


@given(st.lists(st.integers(0, 50), max_size=5).map(sorted), st.integers(0, 60))
def test_a_segment_counts_the_cuts_before_a_record(positions: list[int], offset: int) -> None:
    cuts = Cuts(cut(n, period_named(f"2026-{n + 1:02d}").end, position) for n, position in enumerate(positions))
    assert cuts.segment(LANE, offset) == sum(position <= offset for position in positions)
