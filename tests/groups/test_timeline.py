"""Timelines: one value at each instant, no gap, no overlap, whatever is asked in whatever order."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from services.groups.timeline import Span, from_then_on, value_at, value_before, values_during

DAY = timedelta(days=1)
START = datetime(2026, 10, 1, tzinfo=UTC)


def day(number: int) -> datetime:
    return START + number * DAY


changes = st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["a", "b", "c", None])), max_size=12)


@given(changes)
def test_a_timeline_has_no_gap_no_overlap_no_empty_span_and_no_equal_neighbours(asked):
    timeline = (Span(START, None, "a"),)
    for number, value in asked:
        timeline = from_then_on(timeline, day(number), value)
    assert timeline[0].start == START
    assert timeline[-1].end is None
    for left, right in pairwise(timeline):
        assert left.end == right.start
        assert left.start < left.end
        assert left.value != right.value


@given(changes)
def test_the_last_word_for_an_instant_holds(asked):
    timeline = (Span(START, None, "a"),)
    for number, value in asked:
        timeline = from_then_on(timeline, day(number), value)
    # every change gives up what was planned later, so an instant is ruled by the last change at or before it ...
    for number in range(32):
        ruling = "a"
        for place, (at, value) in enumerate(asked):
            given_up = any(later <= at for later, _ in asked[place + 1 :])
            if at <= number and not given_up:
                ruling = value
        assert value_at(timeline, day(number)) == ruling


def test_a_change_at_the_same_instant_replaces_the_first():
    assert from_then_on((Span(START, None, "trial"),), START, "payg") == (Span(START, None, "payg"),)


def test_a_coming_change_is_given_up_by_one_before_it_and_kept_by_one_after_it():
    planned = from_then_on((Span(START, None, "a"),), day(10), "b")
    assert [span.value for span in from_then_on(planned, day(5), "c")] == ["a", "c"]
    assert [span.value for span in from_then_on(planned, day(20), "c")] == ["a", "b", "c"]
    assert from_then_on(planned, day(10), "a") == (Span(START, None, "a"),)


def test_the_end_of_a_span_is_not_in_it():
    timeline = from_then_on((Span(START, None, "a"),), day(10), "b")
    assert (value_before(timeline, day(10)), value_at(timeline, day(10))) == ("a", "b")
    assert values_during(timeline, day(3), day(10)) == {"a"}
    assert values_during(timeline, day(10), None) == {"b"}
    assert values_during(timeline, day(3), None) == {"a", "b"}
    assert value_at(timeline, START - DAY) is None
