"""Links: repeats are dropped, the next is applied, a gap is a loss, another life is skipped."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.links import LinkLost, accept
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
