"""When is everything that was published processed? One answer, for the demo and for tests.

All lanes stand at the ends of their topics, every link has arrived whole, nothing lies in an outbox, nothing waits in a
replay lane, no timer is due, no errand under way, no charge to be corrected and no credit note to be issued. No room can be
asked at the same instant as another, so the question is put twice: when both rounds find the rooms idle and find the same
positions, they were idle at every instant between the two rounds.
"""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from aiokafka import AIOKafkaConsumer, TopicPartition
from sqlalchemy import and_, func, literal, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from contracts.topics import TOPICS, Topic, topic_of
from services.invoices import credit_note_api as credit_notes
from services.kernel.errors import Unavailable
from services.runtime.broker import Offsets
from services.runtime.database import open_engine, transaction
from services.runtime.kafka_access import client_options
from services.runtime.lanes import CLOCK_NOW
from services.runtime.room import Errand, Room
from services.runtime.settings import ROOMS, Settings
from services.runtime.tables import runtime_tables
from services.usage import api as usage

LOOK_S = 0.1  # between two rounds
IDLE_S_MAX = 60.0
UNDONE = ("waiting", "replaying", "discarding")  # parked records that will still move by themselves


@dataclass(frozen=True)
class Round:
    """What one round found: what is not done yet, in words, and all positions."""

    undone: tuple[str, ...]
    positions: tuple[tuple[object, ...], ...]


class Idle:
    """Asks every room, each with its own role, and Kafka for the ends of its topics."""

    def __init__(
        self, settings: Settings, engines: Mapping[str, AsyncEngine], offsets: Offsets, consumer: AIOKafkaConsumer
    ) -> None:
        self._settings = settings
        self._reads = {room: topics_read(room, settings) for room in engines}
        self._errands = {room: declared(room, settings).errands for room in engines}
        self._engines = engines
        self._offsets = offsets
        self._consumer = consumer

    async def wait(self, *, timeout_s: float = IDLE_S_MAX, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Until everything published is processed; `Unavailable` says what is not when that takes too long.

        ``meanwhile`` is called between the rounds; what it raises ends the waiting.
        """
        give_up = time.monotonic() + timeout_s
        before: Round | None = None
        while True:
            found = await self.look()
            if not found.undone and before == found:
                return
            if time.monotonic() > give_up:
                what = "; ".join(found.undone) or "the rooms do not come to rest"
                raise Unavailable(f"not everything is processed after {timeout_s:.0f} s: {what}")
            meanwhile()
            before = found
            await asyncio.sleep(LOOK_S)

    async def look(self) -> Round:
        """One round."""
        ends = await self._ends()
        undone: list[str] = []
        positions: list[tuple[object, ...]] = [("end", *place, end) for place, end in sorted(ends.items())]
        given: dict[tuple[str, str, int], int] = {}
        taken: dict[str, list[tuple[str, str, int, int]]] = {}
        for room, engine in self._engines.items():
            async with transaction(engine) as connection:
                rows = await _state(connection, room, self._errands[room])
            if room == "usage" and await usage.corrected_from(engine) is not None:
                undone.append("usage has charges to move or to re-rate")
            if room == "invoices" and await credit_notes.credit_notes(engine, state="approved", limit=1):
                undone.append("invoices has a credit note to issue")
            lanes = {(topic, partition) for what, _, topic, partition, _ in rows if what == "lane"}
            undone += [
                f"{room} has not begun to read {topic}/{partition}"
                for topic, partition in ends
                if topic_of(topic) in self._reads[room] and (topic, partition) not in lanes
            ]
            for what, name, topic, partition, count in rows:
                if what == "lane" and count < ends.get((topic, partition), 0):
                    undone.append(f"{room} is at {count} of {ends[topic, partition]} on {topic}/{partition}")
                elif what in ("outbox", "parked", "due") and count:
                    undone.append(f"{room} has {count} {name}")
                elif what == "out":
                    given[name, topic, partition] = count
                elif what == "in":
                    taken.setdefault(room, []).append((name, topic, partition, count))
            positions += [(room, *row) for row in rows]
        undone += [
            f"{room} has {count} of {given[link, topic, partition]} records of {link} on {topic}/{partition}"
            for room, links in taken.items()
            for link, topic, partition, count in links
            if count < given.get((link, topic, partition), 0)
        ]
        return Round(tuple(undone), tuple(positions))

    async def _ends(self) -> dict[tuple[str, int], int]:
        prefix = self._settings.topic_prefix
        counts = await self._offsets.partitions(TOPICS)
        places = [TopicPartition(prefix + name, number) for name, count in counts.items() for number in range(count)]
        ends = await self._consumer.end_offsets(places)
        return {(tp.topic.removeprefix(prefix), tp.partition): end for tp, end in ends.items()}


def declared(room: str, settings: Settings) -> Room:
    """A room as it declares itself."""
    made: Room = importlib.import_module(f"services.{room}.consumer").build(settings)
    return made


def topics_read(room: str, settings: Settings) -> frozenset[Topic]:
    """Every topic that a room reads, as its own declaration says."""
    return frozenset(topic for source in declared(room, settings).inputs for topic in source.topics)


@asynccontextmanager
async def watching(settings: Settings) -> AsyncIterator[Idle]:
    """Connected to every room and to Kafka."""
    async with AsyncExitStack() as stack:
        engines = {}
        for room in ROOMS:
            engines[room] = open_engine(settings.room_database_url(room), application="tollbook.idle", pool_size=1)
            stack.push_async_callback(engines[room].dispose)
        offsets = Offsets(settings)
        await offsets.start()
        stack.push_async_callback(offsets.stop)
        consumer = AIOKafkaConsumer(**client_options(settings), client_id="tollbook-idle", enable_auto_commit=False)
        await consumer.start()
        stack.push_async_callback(consumer.stop)
        yield Idle(settings, engines, offsets, consumer)


async def _state(
    connection: AsyncConnection, room: str, errands: Mapping[str, Errand]
) -> list[tuple[str, str, str, int, int]]:
    """(what, name, topic, partition, number): lanes, links, outbox, undone parked records, due timers and errands under way
    of a room, in one snapshot."""
    tables = runtime_tables(room)
    lane, out, into, due = tables.lane.c, tables.link_out.c, tables.link_in.c, tables.due.c
    # An errand that is under way stands its lease ahead.
    now_or_soon = or_(
        due.due_at <= CLOCK_NOW,
        *[and_(due.kind == kind, due.due_at <= CLOCK_NOW + errand.lease) for kind, errand in errands.items()],
    )
    none = (literal(""), literal(0))
    statement = (
        select(literal("lane"), lane.name, lane.topic, lane.partition, lane.position)
        .where(lane.topic.is_not(None))
        .union_all(
            select(literal("out"), out.link, out.topic, out.partition, out.last_seq),
            select(literal("in"), into.link, into.topic, into.partition, into.received_to),
            select(literal("outbox"), literal("chunks in its outbox"), *none, func.count()).select_from(tables.outbox),
            select(literal("parked"), literal("parked records to run"), *none, func.count())
            .select_from(tables.parked)
            .where(tables.parked.c.state.in_(UNDONE)),
            select(literal("due"), literal("timers that are due or errands under way"), *none, func.count())
            .select_from(tables.due)
            .where(now_or_soon),
        )
    )
    return sorted(tuple(row) for row in (await connection.execute(statement)).all())
