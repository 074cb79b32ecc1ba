"""Finished Kafka batches: what goes in comes out, and what a producer writes into one leaves it whole."""

from __future__ import annotations

from aiokafka.record.memory_records import MemoryRecords
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.batches import BATCH_BYTES_MAX, FinishedBatch, build, records_in

RECORDS = st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=200)), max_size=30)


@given(RECORDS)
def test_batches_hold_the_records_in_their_order(records: list[tuple[bytes, bytes]]) -> None:
    built = list(build(records, 1_790_000_000_000))
    assert [record for _, batch in built for record in records_in(batch)] == records
    assert sum(count for count, _ in built) == len(records)


def test_a_batch_ends_where_it_is_full_and_a_larger_record_stands_alone() -> None:
    half, whole = b"x" * (BATCH_BYTES_MAX // 2 - 100), b"y" * (BATCH_BYTES_MAX + 1)
    assert [count for count, _ in build([(b"k", value) for value in (half, half, half, whole, b"z")], 0)] == [
        2,
        1,
        1,
        1,
    ]


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**15 - 1), st.integers(0, 2**31 - 1))
def test_the_producer_writes_itself_in_and_the_checksum_holds(producer_id: int, epoch: int, sequence: int) -> None:
    ((count, finished),) = build([(b"k", b"{}" * 100), (b"l", b"[]")], 1_790_000_000_000)
    batch = FinishedBatch(finished, count)
    batch._set_producer_state(producer_id, epoch, sequence)
    read = MemoryRecords(bytes(batch._build())).next_batch()
    assert read.validate_crc()
    assert (read.producer_id, read.producer_epoch, read.base_sequence) == (producer_id, epoch, sequence)
    assert [(record.key, record.value) for record in read] == records_in(finished)
