"""A record whose header has a name that is no UTF-8 is read, and none beside it is lost or read twice; none is larger than any may be."""

from __future__ import annotations

from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy

from contracts.topics import RECORD_BYTES_MAX
from services.runtime.fetched import as_ours, read_our_way

read_our_way()


class NoText(str):
    """A header's name in bytes that are no UTF-8; librdkafka and kcat send any."""

    def encode(self, *_: Any) -> bytes:
        return b"ce_\xff"


def builder(codec: int = 0) -> Any:
    return _DefaultRecordBatchBuilderPy(2, codec, False, -1, -1, -1, 2**20)


def batch(first: int, wrong: set[int], codec: int) -> bytes:
    made = builder(codec)
    for number in range(3):
        headers = [("a", None), (NoText(), b"\xff"), ("ö", b"1")] if first + number in wrong else [("b", b"2")]
        made.append(number, timestamp=5, key=b"k" * 50, value=b"%d" % (first + number), headers=headers)
    data = bytearray(made.build())
    data[:8] = first.to_bytes(8)  # as the broker writes it
    return bytes(data)


@pytest.mark.parametrize("codec", [0, 1, 3, 4], ids=["plain", "gzip", "lz4", "zstd"])
@pytest.mark.parametrize("wrong", [set(), {0}, {4}, {8}, {2, 3, 4}, set(range(9))])
def test_every_record_is_read_once_and_in_order(wrong: set[int], codec: int) -> None:
    data = b"".join(batch(first, wrong, codec) for first in (0, 3, 6))
    records = fetcher.PartitionRecords(
        TopicPartition("t", 0), fetcher.MemoryRecords(data + data[:40]), [], 0, None, None, True, fetcher.READ_COMMITTED
    )
    read = list(records)
    assert [(each.offset, each.key, each.value) for each in read] == [(n, b"k" * 50, b"%d" % n) for n in range(9)]
    for each in read:
        named = (("a", None), ("ce_\\xff", b"\xff"), ("ö", b"1")) if each.offset in wrong else (("b", b"2"),)
        assert each.headers == named
    assert records.next_fetch_offset == 9


def test_what_unfolds_to_more_than_any_record_may_be_is_cut_off_and_its_neighbours_are_whole() -> None:
    """Some kilobytes on the broker; whole, a database would refuse to keep it, and the lane would try it for ever."""
    large = b"0" * (RECORD_BYTES_MAX + 1)
    made = _DefaultRecordBatchBuilderPy(2, 4, False, -1, -1, -1, 2**30)
    for number, (key, value, headers) in enumerate(
        [(b"a", b"1", [("b", b"2")]), (large, large, [("c", large), ("d", b"3")]), (None, None, [("e", None)])]
    ):
        made.append(number, timestamp=5, key=key, value=value, headers=headers)
    data = bytes(made.build())
    assert len(data) < 20_000
    records = fetcher.PartitionRecords(
        TopicPartition("t", 0), fetcher.MemoryRecords(data), [], 0, None, as_ours, True, fetcher.READ_COMMITTED
    )
    before, cut, after = records
    assert (before.key, before.value, before.headers) == (b"a", b"1", (("b", b"2"),))
    assert cut.key == cut.value == large[:-1]
    assert cut.headers == (("c", large[:-1]),)
    assert (after.key, after.value, after.headers) == (None, None, (("e", None),))
