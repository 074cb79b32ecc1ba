"""Links: repeats are dropped, the next is applied, a gap is a loss, another life is skipped."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.links import PLACE_IN_MAPPING, LinkLost, accept, go_on, spans_of
from services.runtime.records import Record


def record(link, seq, epoch=0, topic="t", partition=0):
    return Record(topic, partition, 0, 0, None, b"{}", "lane", {"link": link, "seq": seq, "epoch": epoch})


def test_the_next_seq_is_applied_and_what_was_seen_is_dropped():
    fresh, moved, skipped = accept(
        [record("a", 3), record("a", 4), record("b", 1), record("a", 5)], {("a", "t", 0): 4}, 0
    )
    assert [(r.message["link"], r.message["seq"]) for r in fresh] == [("b", 1), ("a", 5)]
    assert moved == {("a", "t", 0): 5, ("b", "t", 0): 1}
    assert skipped == 0


def test_a_gap_is_a_loss():
    with pytest.raises(LinkLost, match="jumps from 4 to 6"):
        accept([record("a", 6)], {("a", "t", 0): 4}, 0)


def test_the_same_link_in_two_partitions_has_two_counts():
    _, moved, _ = accept([record("a", 1, partition=0), record("a", 1, partition=1)], {}, 0)
    assert moved == {("a", "t", 0): 1, ("a", "t", 1): 1}


def test_a_record_of_another_epoch_is_skipped_and_counted():
    fresh, moved, skipped = accept([record("a", 9, epoch=1), record("a", 1)], {}, 0, bounds={})
    assert len(fresh) == 1
    assert moved == {("a", "t", 0): 1}
    assert skipped == 1


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 6)), min_size=1, max_size=30))
def test_merged_contiguous_runs_show_duplicates_never_gaps(runs):
    """Every sender sends contiguous runs that start at or below received_to + 1, so any merge is applied exactly once."""
    received, applied = {}, []
    for start, length in runs:
        have = received.get(("a", "t", 0), 0)
        first = min(start, have + 1)
        fresh, moved, _ = accept([record("a", seq) for seq in range(first, first + length)], received, 0)
        applied += [r.message["seq"] for r in fresh]
        received |= moved
    assert applied == list(range(1, len(applied) + 1))


ONE_LINK = st.tuples(
    st.sampled_from("ab"), st.sampled_from((0, 1)), st.integers(1, 3), st.integers(1, 4), st.sampled_from((0, 0, 0, 7))
)


@given(
    st.lists(ONE_LINK, max_size=6), st.dictionaries(st.sampled_from((("a", "t", 0), ("b", "t", 1))), st.integers(0, 2))
)
def test_a_batch_that_is_taken_as_a_whole_is_the_one_that_is_taken_record_by_record(runs, received):
    records = [
        record(link, seq, epoch, partition=partition)
        for link, partition, first, length, epoch in runs
        for seq in range(first, first + length)
    ]
    for each in records:
        each.lane = f"t/{each.partition}"
    spans = spans_of(records, 0, PLACE_IN_MAPPING)
    if spans is not None and go_on(spans, received):
        assert accept(records, received, 0) == (records, {link: last for link, (_, last) in spans.items()}, 0)


def test_what_is_not_one_after_the_other_is_looked_at_record_by_record():
    assert spans_of([record("a", 3), record("b", 1), record("a", 4)], 0, PLACE_IN_MAPPING) == {
        ("a", "t", 0): (3, 4),
        ("b", "t", 0): (1, 1),
    }
    assert spans_of([record("a", 3), record("a", 3)], 0, PLACE_IN_MAPPING) is None
    assert spans_of([record("a", 3), record("a", 5)], 0, PLACE_IN_MAPPING) is None
    assert spans_of([record("a", 3, epoch=1)], 0, PLACE_IN_MAPPING) is None
    assert go_on({("a", "t", 0): (3, 4)}, {("a", "t", 0): 2})
    assert not go_on({("a", "t", 0): (3, 4)}, {("a", "t", 0): 3})
    assert not go_on({("a", "t", 0): (3, 4)}, {})
