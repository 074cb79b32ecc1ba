"""Kafka record batches, finished where the records are made: compressed once, stored small, sent as they stand.

The outbox keeps what Kafka takes, so that the relay neither unpacks nor compresses, and the database carries a fifth of the
bytes. Only what makes a producer idempotent is written in when a batch is sent. Source: Kafka's record batch format,
version 2; architecture, section 6.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from struct import pack_into
from typing import Any

from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c

BATCH_BYTES_MAX = 900_000  # before it is compressed: below the 1 MiB that a broker takes where nothing is said

_ZSTD = 4
_CRC, _CHECKED, _PRODUCER = 17, 21, 43  # offsets in the header: the checksum, what it covers, who sends it


def build(records: Iterable[tuple[bytes, bytes]], timestamp_ms: int) -> Iterator[tuple[int, bytes]]:
    """(number of records, finished batch) of these (key, value), in order; a record that is larger stands alone.

    >>> [(count, records_in(batch)) for count, batch in build([(b"k", b"{}"), (b"l", b"[]")], 0)]
    [(2, [(b'k', b'{}'), (b'l', b'[]')])]
    """
    builder, count = _builder(), 0
    for key, value in records:
        if builder.append(count, timestamp_ms, key, value, []) is None:
            yield count, bytes(builder.build())
            builder, count = _builder(), 0
            builder.append(0, timestamp_ms, key, value, [])  # the first is taken whatever its size
        count += 1
    if count:
        yield count, bytes(builder.build())


def _builder() -> Any:
    return DefaultRecordBatchBuilder(
        2, _ZSTD, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=-1, batch_size=BATCH_BYTES_MAX
    )


def records_in(batch: bytes) -> list[tuple[bytes, bytes]]:
    """The (key, value) of each record of a finished batch."""
    read = MemoryRecords(batch).next_batch()
    return [(record.key, record.value) for record in read]


class FinishedBatch:
    """A finished batch in the place of the client's `BatchBuilder`: what `AIOKafkaProducer.send_batch` asks of one."""

    def __init__(self, batch: bytes, records: int) -> None:
        self._batch = bytearray(batch)
        self._records = records

    def record_count(self) -> int:
        return self._records

    def size(self) -> int:
        return len(self._batch)

    def closed(self) -> bool:
        return True

    def close(self) -> None:
        """It is."""

    def _set_producer_state(self, producer_id: int, producer_epoch: int, base_sequence: int) -> None:
        pack_into(">qhi", self._batch, _PRODUCER, producer_id, producer_epoch, base_sequence)
        pack_into(">I", self._batch, _CRC, calc_crc32c(self._batch[_CHECKED:]))

    def _build(self) -> bytearray:
        return self._batch
