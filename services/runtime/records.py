"""A Kafka record on its way through a batch."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from msgspec import Struct

# What Python and PostgreSQL both hold, with room for every zone; asyncpg takes the very first and last for infinite.
FIRST = datetime(1, 1, 3, tzinfo=UTC)
LAST = datetime(9999, 12, 29, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
_FIRST_MS, _SPAN_MS = (FIRST - datetime(1970, 1, 1, tzinfo=UTC)) // _MS, (LAST - FIRST) // _MS


def lane_name(input_name: str, topic: str, partition: int) -> str:
    """The lane of a Kafka partition, as one input of a room reads it."""
    return f"{input_name}/{topic}/{partition}"


class Record(Struct, eq=False, gc=False):
    """One record as fetched, or as replayed: a replayed record keeps its first topic, partition, offset and timestamp.

    ``message`` is the decoded envelope of a record between rooms; a record from outside is decoded by its room.
    """

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    lane: str
    message: Any = None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    parked_id: int | None = None
    parked_reason: str | None = None
    asked_by: str | None = None
    verdict: str | None = None

    @property
    def timestamp(self) -> datetime:
        """The broker's clock for `usage.events.*`, UTC; of a topic with its producers' clock whatever they say, at most `LAST`.

        >>> Record("t", 0, 0, -(10**14), None, None, "t").timestamp.isoformat()
        '0001-01-03T00:00:00+00:00'
        """
        return FIRST + timedelta(milliseconds=min(max(self.timestamp_ms - _FIRST_MS, 0), _SPAN_MS))

    @property
    def where(self) -> str:
        """For people: its place in the log."""
        return f"{self.topic}/{self.partition} offset {self.offset}"

    @property
    def replayed(self) -> bool:
        return self.parked_id is not None

    @property
    def was_waiting(self) -> bool:
        """It was parked as a good record that might not run yet."""
        return self.parked_reason == "waiting"
