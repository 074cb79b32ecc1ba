"""A Kafka record on its way through a batch."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from msgspec import Struct


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
        """The broker's clock for `usage.events.*`, UTC."""
        return datetime.fromtimestamp(self.timestamp_ms / 1000, UTC)

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
