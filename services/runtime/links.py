"""Links: dense sequence numbers between rooms, so that nothing between two rooms is lost or applied twice.

A link is (lane of the producer, topic, partition). Its records carry seq 1, 2, 3…; a consumer applies ``received_to + 1``,
drops what is not above ``received_to``, and stops the partition at a gap. After a restore from a backup seqs go on in a new
epoch: of an earlier one a record holds up to the bound of its link. Source: designs/closing, lines 1 to 3, and RESTORE.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from operator import attrgetter, itemgetter
from typing import Any

from msgspec import DecodeError
from pydantic import ValidationError
from sqlalchemy import BigInteger, Integer, Table, Text, select, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import TypeEngine

from contracts.reading import PLACE, Reading
from services.kernel.errors import Corrupt
from services.runtime.database import Plain, unnest
from services.runtime.records import Record
from services.runtime.tables import RuntimeTables

Link = tuple[str, str, int]  # (link, topic, partition)
Bounds = Mapping[tuple[int, Link], int]  # of each (earlier epoch, link), the last seq that holds


@dataclass(frozen=True)
class LinkMark:
    """The last seq given out on a link."""

    link: str
    topic: str
    partition: int
    last_seq: int


class LinkLost(Corrupt):
    """A gap between two records of a link: something that was published is not there any more, or cannot be applied.

    ``offset`` is that of the record after the gap, or of the one that cannot; what came before it can be applied.
    """

    code = "link_lost"

    def __init__(self, lane: str, offset: int, message: str) -> None:
        super().__init__(message)
        self.lane = lane
        self.offset = offset


def unreadable(record: Record, error: ValidationError | DecodeError) -> LinkLost:
    """A record between rooms that is not of its contract: its lane stops before it."""
    what = error.errors()[0]["loc"] if isinstance(error, ValidationError) else str(error)
    return LinkLost(record.lane, record.offset, f"unreadable record at {record.where}: {what}")


def inapplicable(record: Record, why: str) -> LinkLost:
    """A record between rooms that the room or its database refuses: its lane stops before it."""
    return LinkLost(record.lane, record.offset, f"record at {record.where} cannot be applied: {why}")


def judge(reading: Reading, record: Record) -> None:
    """Judge a record by its whole contract that was only read. Raises `LinkLost` where that refuses it."""
    try:
        reading.judge(record.value or b"")
    except ValidationError as error:
        raise unreadable(record, error) from None


Place = Callable[[Any], tuple[str, int, int]]

PLACE_IN_MAPPING: Place = itemgetter(*PLACE)
PLACE_IN_OBJECT: Place = attrgetter(*PLACE)
"""Where a decoded envelope has its link, seq and epoch."""


def links_of(records: Iterable[Record], place: Place) -> set[Link]:
    """The links that records came on."""
    return {(place(record.message)[0], record.topic, record.partition) for record in records}


Spans = dict[Link, tuple[int, int]]
"""The first and the last seq of each link in a batch."""


def spans_of(records: Iterable[Record], epoch: int, place: Place) -> Spans | None:
    """Of a batch whose records are of this epoch and follow one another on each link, as nearly all do; of any other None."""
    spans: dict[Link, list[int]] = {}
    span: list[int] = []
    name = lane = ""
    for record in records:
        of, seq, life = place(record.message)
        if of != name or record.lane != lane:
            name, lane = of, record.lane
            span = spans.setdefault((name, record.topic, record.partition), [seq, seq - 1])
        if seq != span[1] + 1 or life != epoch:
            return None
        span[1] = seq
    return {link: (first, last) for link, (first, last) in spans.items()}


def go_on(spans: Spans, received_to: dict[Link, int]) -> bool:
    """Whether each link goes on where it stands: then the batch is accepted as it is, and nothing of it is looked at again."""
    return all(first == received_to.get(link, 0) + 1 for link, (first, _) in spans.items())


class OtherEpoch(Exception):
    """A record is of another epoch: what holds of it is to be asked for."""


def holds(bounds: Bounds, current: int, epoch: int, link: Link, seq: int) -> bool:
    """Whether a record is of this life: of the current epoch, or of an earlier one up to the bound of its link.

    >>> bounds = {(0, ("usage:events", "usage.charges", 1)): 80}
    >>> [holds(bounds, 2, 0, ("usage:events", "usage.charges", 1), seq) for seq in (80, 81)]
    [True, False]
    """
    return epoch == current or seq <= bounds.get((epoch, link), 0)


def accept(
    records: Iterable[Record],
    received_to: dict[Link, int],
    epoch: int,
    place: Place = PLACE_IN_MAPPING,
    bounds: Bounds | None = None,
) -> tuple[list[Record], dict[Link, int], int]:
    """The records to apply, the new ``received_to`` of the links they came on, and how many were skipped.

    Pure: a repeat is dropped, the next one applied, a gap raises `LinkLost`; a record of a life that a restore undid is skipped.
    Without ``bounds`` one of another epoch raises `OtherEpoch`: where nothing was ever restored they are never asked for.
    """
    fresh: list[Record] = []
    moved: dict[Link, int] = {}
    skipped = 0
    for record in records:
        name, seq, life = place(record.message)
        link = (name, record.topic, record.partition)
        if life != epoch:
            if bounds is None:
                raise OtherEpoch
            if not holds(bounds, epoch, life, link, seq):
                skipped += 1
                continue
        have = moved.get(link)
        if have is None:
            have = received_to.get(link, 0)
        if seq <= have:
            continue
        if seq != have + 1:
            jump = f"link {link[0]} on {link[1]}/{link[2]} jumps from {have} to {seq} at offset {record.offset}"
            raise LinkLost(record.lane, record.offset, jump)
        moved[link] = seq
        fresh.append(record)
    return fresh, moved, skipped


async def take(
    connection: AsyncConnection, tables: RuntimeTables, records: list[Record], epoch: int, place: Place
) -> tuple[list[Record], Spans, int]:
    """The records of a batch that are to be applied, what they take of each link, and how many were skipped. The lane rows are
    locked, so nobody else moves the links. Raises `LinkLost`."""
    spans = spans_of(records, epoch, place)
    links = links_of(records, place) if spans is None else set(spans)
    received = await load_received(connection, tables, links) if links else {}
    if spans is not None and go_on(spans, received):
        return records, spans, 0
    try:
        fresh, moved, skipped = accept(records, received, epoch, place)
    except OtherEpoch:
        bounds = await load_bounds(connection, tables, {link[1:] for link in links})
        fresh, moved, skipped = accept(records, received, epoch, place, bounds)
    return fresh, {link: (received.get(link, 0) + 1, last) for link, last in moved.items()}, skipped


async def load_bounds(
    connection: AsyncConnection, tables: RuntimeTables, partitions: Collection[tuple[str, int]] | None = None
) -> Bounds:
    """What holds of the earlier epochs on these partitions (topic, number), or on all."""
    columns = tables.bound.c
    statement = select(columns.epoch, columns.link, columns.topic, columns.partition, columns.last_seq)
    if partitions is not None:
        statement = statement.where(tuple_(columns.topic, columns.partition).in_(sorted(partitions)))
    return {(row.epoch, tuple(row[1:4])): row.last_seq for row in (await connection.execute(statement)).all()}


async def load_received(connection: AsyncConnection, tables: RuntimeTables, links: Iterable[Link]) -> dict[Link, int]:
    """``received_to`` of these links. The lane row of their partition is locked, so nobody else moves them."""
    rows = await _load(tables).rows(connection, _columns("wanted", sorted(set(links))))
    return {(row["link"], row["topic"], row["partition"]): row["received_to"] for row in rows}


async def save_received(connection: AsyncConnection, tables: RuntimeTables, moved: dict[Link, int]) -> None:
    """Store the highest seq applied per link."""
    ordered = sorted(moved)
    parameters = _columns("new", ordered) | {"new_received_to": [moved[link] for link in ordered]}
    await _save(tables).touched(connection, parameters)


async def take_seqs(connection: AsyncConnection, tables: RuntimeTables, counts: dict[Link, int]) -> dict[Link, int]:
    """Reserve ``counts`` seqs per link and return the first of each. The producer's lane row is locked."""
    ordered = sorted(counts)
    parameters = _columns("new", ordered) | {"new_last_seq": [counts[link] for link in ordered]}
    rows = await _take(tables).rows(connection, parameters)
    last = {(row["link"], row["topic"], row["partition"]): row["last_seq"] for row in rows}
    return {link: last[link] - counts[link] + 1 for link in ordered}


def _columns(name: str, links: Sequence[Link]) -> dict[str, Any]:
    """Links as the arrays of an `unnest` of this name."""
    return {
        f"{name}_link": [link for link, _, _ in links],
        f"{name}_topic": [topic for _, topic, _ in links],
        f"{name}_partition": [partition for _, _, partition in links],
    }


_LINK: dict[str, TypeEngine[Any]] = {"link": Text(), "topic": Text(), "partition": Integer()}


@cache
def _load(tables: RuntimeTables) -> Plain:
    columns = tables.link_in.c
    wanted = unnest("wanted", **_LINK)
    key = tuple_(columns.link, columns.topic, columns.partition)
    return Plain(
        select(columns.link, columns.topic, columns.partition, columns.received_to).where(
            key.in_(select(wanted.c.link, wanted.c.topic, wanted.c.partition))
        )
    )


@cache
def _save(tables: RuntimeTables) -> Plain:
    statement = _upsert(tables.link_in, "received_to")
    return Plain(
        statement.on_conflict_do_update(
            index_elements=list(_LINK), set_={"received_to": statement.excluded.received_to}
        )
    )


@cache
def _take(tables: RuntimeTables) -> Plain:
    columns = tables.link_out.c
    statement = _upsert(tables.link_out, "last_seq")
    return Plain(
        statement.on_conflict_do_update(
            index_elements=list(_LINK), set_={"last_seq": columns.last_seq + statement.excluded.last_seq}
        ).returning(columns.link, columns.topic, columns.partition, columns.last_seq)
    )


def _upsert(table: Table, number: str) -> Any:
    new = unnest("new", **_LINK, **{number: BigInteger()})
    return insert(table).from_select([*_LINK, number], select(*[new.c[name] for name in (*_LINK, number)]))


async def marks(connection: AsyncConnection, tables: RuntimeTables, topics: Iterable[str]) -> list[LinkMark]:
    """The last seq of every link of this room's output on these topics, in order."""
    columns = tables.link_out.c
    statement = (
        select(columns.link, columns.topic, columns.partition, columns.last_seq)
        .where(columns.topic.in_(sorted(topics)))
        .order_by(columns.topic, columns.partition, columns.link)
    )
    return [LinkMark(*row) for row in (await connection.execute(statement)).all()]


async def has_reached(
    connection: AsyncConnection, tables: RuntimeTables, marks: Iterable[tuple[str, str, int, int]]
) -> bool:
    """Whether ``received_to`` is at or above the mark (link, topic, partition, last_seq) on every link."""
    wanted = {(link, topic, partition): last for link, topic, partition, last in marks}
    if not wanted:
        return True
    have = await load_received(connection, tables, wanted)
    return all(have.get(link, 0) >= last for link, last in wanted.items())
