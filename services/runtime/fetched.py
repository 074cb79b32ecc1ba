"""What a consumer of this process makes of what it fetched: our own records if it asks for them, whatever the names of headers.

The client makes an object of eleven fields of each record, which would only be copied into ours. A consumer whose deserializer
is `as_ours` gets ours at once.

Header names that are no UTF-8: Kafka takes any bytes, and the client cannot read such a record. Worse, on its error it
forgets the records that it had read before that one, while its position is beyond them: they would be lost. Here each wrong
byte of the name is read as an escape (`\\\\xff`), and the record goes its way. All others are read as they always are.

Records larger than any may be: a broker bounds a batch as it is compressed, and one of some kilobytes unfolds to a record of a
gigabyte, which no database keeps in quarantine and which would be tried for ever. What is beyond `RECORD_BYTES_MAX` of its key,
its value and its headers is cut off: whoever reads it refuses it as too large all the same.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Any

from aiokafka import TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords

from contracts.topics import RECORD_BYTES_MAX
from services.runtime.records import Record

_LENGTH_AT, _OVERHEAD = 8, 12  # of a batch: its first offset, and the length of all that follows


def read_our_way() -> None:
    """Have every consumer of this process read so."""
    fetcher.MemoryRecords = _Batches
    fetcher.PartitionRecords = _Records


def as_ours(value: bytes) -> bytes:
    """The deserializer of values of a consumer whose records are to be ours, without a lane."""
    return value


class _Batches(MemoryRecords):  # type: ignore[misc]
    """The batches of a fetched partition; the last one can be read again, in the slow way that takes any name."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._data = data
        self._last = (0, 0)
        self._again = False

    def read_again(self) -> None:
        self._again = True

    def has_next(self) -> bool:
        return self._again or super().has_next()

    def next_batch(self) -> Any:
        if self._again:
            self._again = False
            return _AnyName(memoryview(self._data)[slice(*self._last)])
        batch = super().next_batch()
        start = self._last[1]
        (length,) = struct.unpack_from(">i", self._data, start + _LENGTH_AT)
        self._last = start, start + _OVERHEAD + length
        return batch


class _Records(fetcher.PartitionRecords):  # type: ignore[misc]
    """The records of a fetched partition; what was handed out before a name that is no text is passed over by its offset."""

    _records_iterator: Any

    def __iter__(self) -> Iterator[Any]:
        return iter(self._records_iterator or ())  # and not by a call of `__next__` for each

    def _unpack_records(self) -> Iterator[Any]:
        while True:
            try:
                yield from super()._unpack_records()
                return
            except UnicodeDecodeError:
                self._records.read_again()

    def _consumer_record(self, tp: TopicPartition, record: Any) -> Any:
        if self._value_deserializer is not as_ours:
            return super()._consumer_record(tp, record)
        key, value, headers = record.key, record.value, record.headers
        if len(key or b"") > RECORD_BYTES_MAX or len(value or b"") > RECORD_BYTES_MAX:
            key, value = _cut(key), _cut(value)
        headers = _cut_headers(headers) if headers else ()
        return Record(tp.topic, tp.partition, record.offset, record.timestamp, key, value, "", None, headers)


def _cut(raw: bytes | None, left: int = RECORD_BYTES_MAX) -> bytes | None:
    return raw if raw is None or len(raw) <= left else raw[:left]


def _cut_headers(headers: Iterable[tuple[str, bytes | None]]) -> tuple[tuple[str, bytes | None], ...]:
    kept, left = [], RECORD_BYTES_MAX
    for name, value in headers:
        kept.append((name[:left], _cut(value, left)))
        left -= len(name) + len(value or b"")
        if left <= 0:
            break
    return tuple(kept)


class _AnyName(_DefaultRecordBatchPy):  # type: ignore[misc]
    _buffer: bytearray

    def _maybe_uncompress(self) -> None:
        super()._maybe_uncompress()
        self._buffer = _Bytes(self._buffer)


class _Bytes(bytearray):
    """The names of headers are the only text in a record."""

    def __getitem__(self, place: Any) -> Any:
        part = super().__getitem__(place)
        return part if isinstance(part, int) else _Bytes(part)

    def decode(self, encoding: str = "utf-8", errors: str = "backslashreplace") -> str:
        return super().decode(encoding, errors)
