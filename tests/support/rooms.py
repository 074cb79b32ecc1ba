"""Rooms without Kafka: an in-memory log in its place, everything else real (Postgres, transactions, links, outbox).

    log = Log()
    rooms = Rooms(log, database, [groups_room, usage_room])
    log.write("groups.commands", key="acme", value={...})
    await rooms.pump()
    rooms.log.read("groups.events")

`pump` moves every outbox into the log and every new record into the rooms that read its topic, until nothing moves.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import delete, select

from contracts.topics import Topic, topic_of
from services.runtime.batches import records_in
from services.runtime.database import open_engine, transaction
from services.runtime.lanes import give_birth, lanes_of
from services.runtime.outbox import partition_of
from services.runtime.processor import Processor
from services.runtime.records import Record, lane_name
from services.runtime.room import Input, Room


@dataclass
class Logged:
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()

    @property
    def json(self) -> Any:
        return json.loads(self.value or b"null")


class Log:
    """Topics in memory. Also the `Surroundings` of the processors."""

    def __init__(self, partitions: int = 2) -> None:
        self._partitions = partitions
        self.records: dict[tuple[str, int], list[Logged]] = defaultdict(list)

    async def make(self, topic: str) -> None:
        """Every topic is there."""

    def partitions(self, topic: str) -> int:
        return min(self._partitions, topic_of(topic).partitions)

    async def begin_offsets(self, topic: Topic) -> dict[tuple[str, int], int]:
        return dict.fromkeys(await self.end_offsets(topic), 0)

    async def end_offsets(self, topic: Topic) -> dict[tuple[str, int], int]:
        names = {name for name, _ in self.records if topic_of(name) is topic} | (
            {topic.name} if not topic.is_family else set()
        )
        return {(name, part): len(self.records[name, part]) for name in names for part in range(self.partitions(name))}

    def write(
        self,
        topic: str,
        *,
        value: Any,
        key: str = "",
        headers: Iterable[tuple[str, bytes | None]] = (),
        partition: int | None = None,
        at: datetime | None = None,
    ) -> tuple[str, int, int]:
        """Append a record (bytes as they are, anything else as JSON); returns (topic, partition, offset)."""
        raw = value if isinstance(value, bytes) or value is None else json.dumps(value).encode()
        part = partition_of(key, self.partitions(topic)) if partition is None else partition
        stamp = int((at or datetime.now(UTC)).timestamp() * 1000)
        self.records[topic, part].append(Logged(stamp, key.encode(), raw, tuple(headers)))
        return topic, part, len(self.records[topic, part]) - 1

    def read(self, topic: str) -> list[Any]:
        """Every record of a topic (or family, by its dotted prefix), decoded, partition by partition."""
        return [
            record.json
            for (name, _), records in sorted(self.records.items())
            if name == topic or (topic.endswith(".") and name.startswith(topic))
            for record in records
        ]

    def data(self, topic: str) -> list[Any]:
        """The `data` of every enveloped record of a topic."""
        return [record["data"] for record in self.read(topic)]


class Rooms:
    """Processors of some rooms over one log and one database. Close it when done."""

    def __init__(self, log: Log, database: Any, rooms: Iterable[Room]) -> None:
        self.log = log
        self.database = database
        self.processors: dict[str, Processor] = {}
        for room in rooms:
            engine = open_engine(database.room(room.name), application=f"test.{room.name}", pool_size=3)
            self.processors[room.name] = Processor(room, engine, log)

    async def __aenter__(self) -> Rooms:
        for processor in self.processors.values():
            if processor.room.started is not None:
                await processor.room.started(processor)
        return self

    async def __aexit__(self, *_: object) -> None:
        for processor in self.processors.values():
            if processor.room.stopped is not None:
                await processor.room.stopped()
            await processor.engine.dispose()

    async def pump(self, *, ticks: bool = False, only: Sequence[str] | None = None) -> None:
        """Move records until nothing moves; with ``ticks`` every tick and due timer runs each round too."""
        for _ in range(200):
            moved = 0
            for name, processor in self.processors.items():
                if only is not None and name not in only:
                    continue
                moved += await self.drain(name)
                for source in processor.room.inputs:
                    moved += await self.feed(processor, source)
                moved += await processor.replay()
                if ticks:
                    for tick in processor.room.ticks:
                        await processor.tick(tick)
                    moved += await processor.fire_timers()
                moved += await processor.run_errands()
                moved += await self.drain(name)
            if not moved:
                return
        raise AssertionError("the rooms do not come to rest")

    async def drain(self, room: str) -> int:
        """The relay's work: outbox rows, in order, to the log."""
        processor = self.processors[room]
        outbox = processor.tables.outbox
        async with transaction(processor.engine) as connection:
            rows = (await connection.execute(select(outbox).order_by(outbox.c.id))).all()
            count = 0
            for row in rows:
                for key, value in records_in(row.chunk):
                    self.log.records[row.topic, row.partition].append(
                        Logged(int(datetime.now(UTC).timestamp() * 1000), key, value)
                    )
                    count += 1
            # only what was read: another worker may have written more meanwhile
            await connection.execute(delete(outbox).where(outbox.c.id.in_([row.id for row in rows])))
        return count

    async def feed(self, processor: Processor, source: Input, *, partition: int | None = None) -> int:
        """A batch of what is in the log above the lanes' positions; of one partition, as one of several workers reads it."""
        names = sorted(
            {
                name
                for name, _ in self.log.records
                for topic in source.topics
                if topic_of(name) is topic and self.log.records
            }
        )
        async with transaction(processor.engine) as connection:
            lanes = {lane.name: lane.position for lane in await lanes_of(connection, processor.tables, source.name)}
            wanted = [
                (name, part)
                for name in names
                for part in range(self.log.partitions(name))
                if partition is None or part == partition
            ]
            born = [
                (lane_name(source.name, name, part), name, part, 0)
                for name, part in wanted
                if lane_name(source.name, name, part) not in lanes
            ]
            if born:
                await give_birth(connection, processor.tables, source.name, born)
        count = 0
        records: list[Record] = []
        ranges: dict[str, tuple[int, int]] = {}
        for name, part in wanted:
            lane = lane_name(source.name, name, part)
            start = lanes.get(lane, 0)
            fresh = self.log.records[name, part][start : start + source.max_records]
            if not fresh:
                continue
            ranges[lane] = (start, start + len(fresh))
            for number, logged in enumerate(fresh):
                records.append(
                    Record(
                        name,
                        part,
                        start + number,
                        logged.timestamp_ms,
                        logged.key,
                        logged.value,
                        lane,
                        None,
                        logged.headers,
                    )
                )
            count += len(fresh)
        if ranges:
            await processor.process(source, records, ranges)
        return count

    async def query(self, room: str, statement: Any, parameters: Any = None) -> list[Any]:
        """Rows of a statement, with the room's own role."""
        async with transaction(self.processors[room].engine) as connection:
            return list((await connection.execute(statement, parameters)).all())
