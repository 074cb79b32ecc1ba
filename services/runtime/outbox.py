"""The outbox: what a transaction publishes is written with it, as finished Kafka batches, and sent by the relay.

Only this module and the relay speak to Kafka outward. Source: architecture, section 4; designs/closing, lines 1 and 2.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import cache, lru_cache
from itertools import count
from typing import Any

from aiokafka.partitioner import murmur2
from msgspec import Struct
from pydantic_core import to_json
from sqlalchemy import Integer, LargeBinary, Text, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import TypeEngine

from contracts.topics import AROUND_BYTES_MAX, Topic
from services.kernel.errors import InvalidInput
from services.kernel.period import instant_text
from services.runtime import batches
from services.runtime.database import Plain, unnest
from services.runtime.links import Link, take_seqs
from services.runtime.tables import RuntimeTables


@lru_cache(maxsize=200_000)
def partition_of(key: str, partitions: int) -> int:
    """The partition of a key, as the Java client's default partitioner chooses it."""
    hashed: int = murmur2(key.encode())
    return (hashed & 0x7FFFFFFF) % partitions


class Outgoing(Struct, gc=False):
    """One record to publish; ``data`` is encoded JSON."""

    topic: Topic
    name: str
    key: str
    id: str
    data: bytes


class RecordTooLarge(InvalidInput):
    """What would be published fits into no record. In the outbox it would keep all that comes after it from leaving."""

    code = "record_too_large"

    def __init__(self, topic: str, key: str, size: int, size_max: int) -> None:
        super().__init__(
            f"what follows from it for {topic}, key {key[:64]}, has {size} bytes and at most {size_max} fit into a"
            " record; ask for less at once, or make what it changes smaller first"
        )


class Outbox:
    """Collects what one transaction publishes and writes it at its end. ``members`` are its topics of families."""

    def __init__(self, room: str, partitions: Callable[[str], int]) -> None:
        self._room = room
        self._partitions = partitions
        self._outgoing: list[Outgoing] = []
        self.members: set[str] = set()

    def add(self, topic: Topic, key: str, id: str, data: Any, member: str | None = None) -> None:
        """Publish ``data`` (a JSON-ready value, or bytes already encoded) with the commit of this transaction.

        Raises `RecordTooLarge` for what no broker would take, so that the relay never meets it.
        """
        name = topic.name
        if member is not None:
            name = topic.of(member)
            self.members.add(name)
        encoded = data if isinstance(data, bytes) else to_json(data)
        size_max = topic.record_bytes_max - AROUND_BYTES_MAX
        if len(encoded) + 4 * len(key) > size_max:  # a character has at most four bytes
            raise RecordTooLarge(name, key, len(encoded), size_max)
        self._outgoing.append(Outgoing(topic, name, key, id, encoded))

    def __len__(self) -> int:
        return len(self._outgoing)

    def take_back(self, kept: int) -> None:
        """Forget what was added after the first ``kept`` records: what it speaks of was rolled back."""
        del self._outgoing[kept:]

    async def flush(
        self, connection: AsyncConnection, tables: RuntimeTables, lane: str, now: datetime, epoch: int
    ) -> None:
        """Give out the seqs, wrap, and store the batches: two statements, however many records."""
        if not self._outgoing:
            return
        grouped: dict[tuple[str, int], list[Outgoing]] = defaultdict(list)
        for outgoing in self._outgoing:
            grouped[outgoing.name, partition_of(outgoing.key, self._partitions(outgoing.name))].append(outgoing)
        self._outgoing = []
        link = f"{self._room}:{lane}"
        counts: dict[Link, int] = {
            (link, name, partition): len(items)
            for (name, partition), items in grouped.items()
            if not items[0].topic.bare
        }
        first = await take_seqs(connection, tables, counts) if counts else {}
        tail = f'","link":"{link}","seq":'.encode()
        middle = f',"epoch":{epoch},"trace":null,"data":'.encode()
        time = instant_text(now).encode()
        timestamp_ms = int(now.timestamp() * 1000)  # the broker sets its own
        rows: list[tuple[str, int, int, bytes]] = []
        for name, partition in sorted(grouped):
            items = grouped[name, partition]
            topic = items[0].topic
            records: Iterator[tuple[bytes, bytes]] = ((item.key.encode(), item.data) for item in items)
            if not topic.bare:
                seqs = count(first[link, name, partition])
                head = f'","type":"{topic.type}","version":{topic.version},"time":"'.encode() + time + tail
                records = (
                    (item.key.encode(), b'{"id":"%b%b%d%b%b}' % (item.id.encode(), head, seq, middle, item.data))
                    for item, seq in zip(items, seqs, strict=False)
                )
            rows += [(name, partition, *batch) for batch in batches.build(records, timestamp_ms)]
        columns = zip(*rows, strict=True)
        parameters = {f"new_{name}": list(column) for name, column in zip(_STORED, columns, strict=True)}
        await _store(tables).touched(connection, parameters)


_STORED: dict[str, TypeEngine[Any]] = {
    "topic": Text(),
    "partition": Integer(),
    "records": Integer(),
    "chunk": LargeBinary(),
}


@cache
def _store(tables: RuntimeTables) -> Plain:
    new = unnest("new", **_STORED)
    return Plain(insert(tables.outbox).from_select(list(_STORED), select(*[new.c[name] for name in _STORED])))
