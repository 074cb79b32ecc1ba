"""PostgreSQL was restored from a backup, Kafka was not touched: what of the log still holds, and the epoch that begins.

All rooms' schemas are of one instant. What the log has above their ``last_seq`` is *undone*: its rooms make it again, perhaps
otherwise, under the same seqs; so a new epoch begins, and of the old ones holds what is at or below the bound of its link. Before
any room runs, each of them knows the bounds, and an opening on every partition tells them to whoever reads it outside. What may not
be made otherwise, because the world has seen it, the rooms adopt. Source: designs/closing, RESTORE (a) to (e).
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from aiokafka import AIOKafkaProducer
from pydantic_core import to_json
from sqlalchemy import func, insert, literal, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from contracts.openings import OPENING, Bound, EarlierLife, Opening, key_of
from contracts.topics import TOPICS, Topic, topic_of
from services.kernel.errors import Refused
from services.kernel.period import instant_text
from services.runtime import faults
from services.runtime.broker import Offsets, open_producer, read_logs
from services.runtime.database import transaction
from services.runtime.lanes import Lane, all_lanes
from services.runtime.links import Bounds, Link, load_bounds
from services.runtime.settings import ROOMS, Settings, room_role
from services.runtime.tables import runtime_tables

LOCK = 7_364_951_028  # any number: one restore at a time in a database

CARRYING = tuple(topic for topic in TOPICS if not topic.bare)
"""The topics whose records carry the envelope."""

AGE_MAX = timedelta(days=min(topic.retention_days for topic in CARRYING))  # of an older backup something may be gone

Partition = tuple[str, int]


class Told(msgspec.Struct, gc=False):
    """The envelope of a record; ``data`` are as they stand, and ``undone`` says that it holds no more."""

    id: str
    type: str
    time: str
    link: str
    seq: int
    epoch: int
    data: msgspec.Raw
    topic: str = ""
    partition: int = 0
    offset: int = 0
    undone: bool = False

    @property
    def place(self) -> Link:
        return self.link, self.topic, self.partition

    def fields(self) -> Any:
        """The data, decoded."""
        return msgspec.json.decode(self.data)


class _Command(msgspec.Struct):
    command_id: str


_read = msgspec.json.Decoder(Told).decode
_read_command = msgspec.json.Decoder(_Command).decode


# ---- what the database says ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Life:
    """The life that a database was restored to. ``last`` is the last seq of every room's links, ``earlier`` what of the epochs
    before this one holds, ``ran_until`` when a room last wrote."""

    epoch: int
    last: Mapping[Link, int]
    earlier: Bounds
    lanes: Sequence[tuple[str, Lane]]
    ran_until: datetime | None

    @property
    def bounds(self) -> dict[tuple[int, Link], int]:
        """What holds when the next epoch has begun: of this one up to ``last``, of the earlier ones what held."""
        return {**self.earlier, **{(self.epoch, link): last for link, last in self.last.items()}}

    @property
    def chain(self) -> list[int]:
        """The epochs of which something can hold, the newest last."""
        return sorted({epoch for epoch, _ in self.earlier} | {self.epoch})


async def restored_life(connection: AsyncConnection) -> Life:
    """Read it. `Refused` when the rooms are not of one instant: then no bound is true."""
    epochs: dict[str, int] = {}
    last: dict[Link, int] = {}
    received: dict[str, dict[Link, int]] = {}
    lanes: list[tuple[str, Lane]] = []
    wrote: list[datetime] = []
    for room in ROOMS:
        tables = runtime_tables(room)
        epochs[room] = (await connection.execute(select(tables.lanes.c.epoch))).scalar_one()
        out, into = tables.link_out.c, tables.link_in.c
        for row in (await connection.execute(select(out.link, out.topic, out.partition, out.last_seq))).all():
            last[row.link, row.topic, row.partition] = row.last_seq
        rows = (await connection.execute(select(into.link, into.topic, into.partition, into.received_to))).all()
        received[room] = {(row.link, row.topic, row.partition): row.received_to for row in rows}
        lanes += [(room, lane) for lane in await all_lanes(connection, tables)]
        read = select(func.max(tables.lane.c.updated_at)).where(tables.lane.c.input.is_not(None))
        wrote += (await connection.execute(read)).scalars()
    wrote += (await connection.execute(text("select max(at) from runtime.heartbeat"))).scalars()
    ahead = [room for room, links in received.items() if any(seq > last.get(link, 0) for link, seq in links.items())]
    if len(set(epochs.values())) > 1 or ahead:
        raise Refused(
            f"the rooms' schemas are not of one instant ({', '.join(ahead) or epochs}): some were restored and some were not, or"
            " from different backups; restore the whole database from one",
            code="not_one_backup",
        )
    earlier = await load_bounds(connection, runtime_tables(ROOMS[0]))
    return Life(epochs[ROOMS[0]], last, earlier, lanes, max((at for at in wrote if at), default=None))


async def refuse_running(connection: AsyncConnection) -> None:
    """`Refused` while anybody is connected to the database as a room: what it writes meanwhile would be of no epoch."""
    activity = text(
        "select distinct usename, application_name, coalesce(host(client_addr), 'this machine') as host from pg_stat_activity"
        " where datname = current_database() and usename = any(:roles) order by 1, 2, 3"
    )
    rows = (await connection.execute(activity, {"roles": [room_role(room) for room in ROOMS]})).all()
    if rows:
        who = ", ".join(f"{row.application_name or row.usename} from {row.host}" for row in rows)
        raise Refused(
            f"these are connected still: {who}; stop every room, the gateway and other commands", code="running"
        )


# ---- what may not be restored --------------------------------------------------------------------------------------


def refuse_old(life: Life, now: datetime) -> None:
    """`Refused` for a backup that is older than what is kept between rooms: what its rooms have not read may be gone."""
    if life.ran_until is not None and now - life.ran_until > AGE_MAX:
        raise Refused(
            f"the backup is of {instant_text(life.ran_until)}, and topics between rooms keep {AGE_MAX.days} days: what the rooms"
            " had not read then may be gone; restore a newer backup",
            code="too_old",
        )


def refuse_other_log(life: Life, begins: Mapping[Partition, int], ends: Mapping[Partition, int]) -> None:
    """`Refused` where the log cannot be the one that the rooms had read: replaced, or shorter than it has to be."""
    for room, lane in life.lanes:
        place = (lane.topic, lane.partition)
        if lane.stopped is not None or (place not in ends and topic_of(lane.topic).is_family):
            continue  # it waits for a person as it did before
        if lane.position > ends.get(place, 0):
            raise Refused(
                f"{room} had read {lane.topic}/{lane.partition} up to {lane.position}, and it ends at {ends.get(place, 0)}: this is"
                " not the Kafka that the backup belongs to. A restore is for a Kafka that was not touched; check TOLLBOOK_KAFKA",
                code="other_kafka",
            )
        if lane.position < begins.get(place, 0):
            raise Refused(
                f"{room} had read {lane.topic}/{lane.partition} up to {lane.position}, and it begins at {begins[place]}: records"
                " in between are gone, and would be missing; restore a newer backup",
                code="gone",
            )


def refuse_abandoned(life: Life, openings: Iterable[tuple[Told, Opening]]) -> None:
    """`Refused` for a backup of a life that an earlier restore gave up: its records were told outside to be undone, above a bound
    that an opening names. Source: designs/closing, RESTORE (a)."""
    bounds = life.bounds
    for told, opening in openings:
        named = {each.epoch: {one.link: one.last_seq for one in each.bounds} for each in opening.chain}
        before: dict[Link, int] = {}
        for epoch in life.chain:
            mine = {
                link: seq
                for (of, link), seq in bounds.items()
                if of == epoch and link[1:] == (told.topic, told.partition)
            }
            for link, seq in mine.items():
                if epoch < told.epoch and seq > max(before.get(link, 0), named.get(epoch, {}).get(link[0], 0)):
                    raise Refused(
                        f"the backup is of a life that the restore of {told.time} gave up: link {link[0]} on {link[1]}/{link[2]} stands"
                        f" at {seq}, and epoch {told.epoch} began at {named.get(epoch, {}).get(link[0], 0)}; restore a backup from before"
                        " that one was made, or from after that restore",
                        code="abandoned",
                    )
            before |= mine


# ---- what the log says ---------------------------------------------------------------------------------------------


class Log:
    """Reads what the restored rooms have not read, and finds epochs, openings and what is undone."""

    def __init__(self, settings: Settings, offsets: Offsets, life: Life) -> None:
        self._settings = settings
        self._offsets = offsets
        self._life = life
        self._ids: dict[tuple[int, Link], tuple[int, array[int]]] = {}
        self.begins: dict[Partition, int] = {}
        self.ends: dict[Partition, int] = {}
        self.epoch_max = life.epoch
        self.openings: list[tuple[Told, Opening]] = []

    async def look(self) -> None:
        """Where the partitions of every topic begin and end."""
        self.begins = await self._offsets.begins(*TOPICS)
        self.ends = await self._offsets.ends(*TOPICS)

    @property
    def partitions(self) -> list[Partition]:
        """Every partition that carries the envelope."""
        return sorted(place for place in self.ends if not topic_of(place[0]).bare)

    async def read(self) -> AsyncIterator[Told]:
        """What was told above the positions of the rooms, in order within its partition. All that is undone is among it: the log
        ended no earlier when the backup was made. Openings stand on every partition; topics that have but one are read as a
        whole, for that costs little.
        """
        bounds = self._life.bounds
        async for record in read_logs(self._settings, self._ranges(*CARRYING)):
            try:
                told = _read(record.value or b"")
            except msgspec.DecodeError:
                continue  # it stops its lane when its turn comes
            told.topic = record.topic.removeprefix(self._settings.topic_prefix)
            told.partition, told.offset = record.partition, record.offset
            self.epoch_max = max(self.epoch_max, told.epoch)
            if told.type == OPENING:
                self.openings.append((told, Opening.model_validate_json(bytes(told.data))))
                continue
            self._refuse_two_lives(told)
            told.undone = told.seq > bounds.get((told.epoch, told.place), 0)
            yield told

    async def commands(self, topic: Topic) -> set[str]:
        """The ids of the commands that a room has not read: it carries them out when it runs."""
        found = set()
        async for record in read_logs(self._settings, self._ranges(topic)):
            try:
                found.add(_read_command(record.value or b"").command_id)
            except msgspec.DecodeError:
                continue  # it is quarantined when its turn comes
        return found

    def _ranges(self, *topics: Topic) -> dict[Partition, tuple[int, int]]:
        read_to: dict[Partition, int] = {}
        for _, lane in self._life.lanes:
            if lane.stopped is None:
                place = (lane.topic, lane.partition)
                read_to[place] = min(lane.position, read_to.get(place, lane.position))
        ranges = {}
        for place, end in self.ends.items():
            if (topic := topic_of(place[0])) in topics:
                start = 0 if topic.partitions == 1 else read_to.get(place, 0)
                ranges[place] = (max(start, self.begins[place]), end)
        return ranges

    def _refuse_two_lives(self, told: Told) -> None:
        """A repeat has the id of the first. Another id says that rooms ran on the restored database before its epoch began, and
        nobody can tell any more which of the two its readers took."""
        first, ids = self._ids.setdefault((told.epoch, told.place), (told.seq, array("q")))
        at, id = told.seq - first, hash(told.id)
        if at >= len(ids):
            ids.extend([0] * (at - len(ids)))  # not there any more: compacted
            ids.append(id)
        elif at >= 0 and ids[at] not in (0, id):
            raise Refused(
                f"rooms ran on the restored database already: seq {told.seq} of link {told.link} on {told.topic}/{told.partition} was"
                " given out twice. Restore the backup once more, and start no room before this command is done",
                code="ran_already",
            )


# ---- the new epoch -------------------------------------------------------------------------------------------------


def openings_of(life: Life, partitions: Iterable[Partition]) -> dict[Partition, Opening]:
    """The opening of each partition: what holds there."""
    of: dict[Partition, dict[int, list[Bound]]] = defaultdict(lambda: defaultdict(list))
    for (epoch, (link, topic, number)), last in sorted(life.bounds.items()):
        of[topic, number][epoch].append(Bound(link=link, last_seq=last))
    return {
        place: Opening(
            chain=tuple(EarlierLife(epoch=epoch, bounds=tuple(of[place].get(epoch, ()))) for epoch in life.chain)
        )
        for place in partitions
    }


async def begin(engine: AsyncEngine, epoch: int, by: str, reason: str) -> None:
    """From here on no room starts until the restore has ended: outside they hear of the new epoch first."""
    values = {"epoch": epoch, "by": by, "reason": reason}
    async with transaction(engine) as connection:
        await connection.execute(
            text("insert into runtime.restore (epoch, by, reason) values (:epoch, :by, :reason)"), values
        )
    faults.step("restore.begun")


async def open_epoch(settings: Settings, life: Life, epoch: int, partitions: Iterable[Partition]) -> None:
    """Send the openings, and come back when all are acknowledged."""
    now = instant_text(datetime.now(UTC))
    producer: AIOKafkaProducer = await open_producer(settings, "restore")
    try:
        sent = []
        for (topic, number), opening in openings_of(life, partitions).items():
            envelope = {
                "id": f"{OPENING}:{epoch}:{topic}/{number}", "type": OPENING, "version": 1, "time": now, "link": OPENING,
                "seq": 1, "epoch": epoch, "trace": None, "data": opening.data(),
            }  # fmt: skip
            name, key = settings.topic_prefix + topic, key_of(epoch).encode()
            sent.append(await producer.send(name, to_json(envelope), key=key, partition=number))
            faults.step("restore.sent")
        for each in sent:
            await each
    finally:
        await producer.stop()
    faults.step("restore.opened")


async def begin_epoch(connection: AsyncConnection, life: Life, epoch: int) -> None:
    """Every room goes on in the new epoch and knows what holds of its neighbours' earlier ones. `Refused` if a room moved since."""
    if (await restored_life(connection)).last != life.last:
        raise Refused("a room ran meanwhile; stop every room and the gateway, and run this again", code="running")
    rows = [
        {"epoch": of, "link": link, "topic": topic, "partition": partition, "last_seq": last}
        for (of, (link, topic, partition)), last in life.bounds.items()
        if of == life.epoch
    ]
    for room in ROOMS:
        tables = runtime_tables(room)
        await connection.execute(update(tables.lanes).values(epoch=epoch))
        if rows:
            await connection.execute(insert(tables.bound), rows)


async def raise_versions(connection: AsyncConnection, room: str, version: int) -> None:
    """A room tells its objects with versions above this one from now on."""
    lanes = runtime_tables(room).lanes
    await connection.execute(update(lanes).values(version_floor=func.greatest(lanes.c.version_floor, literal(version))))


async def end(connection: AsyncConnection, epoch: int, report: Mapping[str, Any]) -> None:
    """The restore is done when this commits, and rooms may start. Whatever began before and was killed ends with it."""
    values = {"report": to_json(report).decode(), "epoch": epoch}
    await connection.execute(text("update runtime.restore set ended_at = now() where ended_at is null"))
    await connection.execute(
        text("update runtime.restore set report = cast(:report as jsonb) where epoch = :epoch"), values
    )


async def refuse_unfinished(connection: AsyncConnection) -> None:
    """For a room that starts: `Refused` while a restore has begun and not ended."""
    unfinished = text("select epoch from runtime.restore where ended_at is null limit 1")
    if (await connection.execute(unfinished)).first() is not None:
        raise Refused(
            "a restore of the database has begun and not ended; run `tollbook restore` again, and start the rooms after it",
            code="restore_unfinished",
        )


@asynccontextmanager
async def alone(engine: AsyncEngine) -> AsyncIterator[None]:
    """One restore at a time; `Refused` for another."""
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        if not (await connection.execute(select(func.pg_try_advisory_lock(LOCK)))).scalar_one():
            raise Refused("another restore is under way", code="running")
        try:
            yield
        finally:
            await connection.invalidate()


async def known_epoch(connection: AsyncConnection) -> int:
    """The highest epoch that any restore of this database began, ended or not."""
    return (await connection.execute(text("select coalesce(max(epoch), 0) from runtime.restore"))).scalar_one() or 0
