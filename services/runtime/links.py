"""Links: dense sequence numbers between rooms, so that nothing between two rooms is lost or applied twice.

A link is (lane of the producer, topic, partition). Its records carry seq 1, 2, 3…; a consumer applies ``received_to + 1``,
drops what is not above ``received_to``, and stops the partition at a gap. Source: designs/closing, lines 1 to 3.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import BigInteger, Integer, Text, select, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kernel.errors import Corrupt
from services.runtime.database import unnest
from services.runtime.records import Record
from services.runtime.tables import RuntimeTables

Link = tuple[str, str, int]  # (link, topic, partition)


@dataclass(frozen=True)
class LinkMark:
    """The last seq given out on a link."""

    link: str
    topic: str
    partition: int
    last_seq: int


class LinkLost(Corrupt):
    """A gap between two records of a link: something that was published is not there any more.

    ``offset`` is that of the record after the gap; what came before it can be applied.
    """

    code = "link_lost"

    def __init__(self, lane: str, offset: int, message: str) -> None:
        super().__init__(message)
        self.lane = lane
        self.offset = offset


def accept(
    records: Iterable[Record], received_to: dict[Link, int], epoch: int
) -> tuple[list[Record], dict[Link, int], int]:
    """The records to apply, the new ``received_to`` of the links they came on, and how many were skipped.

    Pure: a repeat is dropped, the next one applied, a gap raises `LinkLost`; a record of another life is skipped.
    """
    fresh: list[Record] = []
    moved: dict[Link, int] = {}
    skipped = 0
    for record in records:
        envelope = record.message
        if envelope["epoch"] != epoch:
            skipped += 1
            continue
        link = (envelope["link"], record.topic, record.partition)
        seq = envelope["seq"]
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


async def load_received(connection: AsyncConnection, tables: RuntimeTables, links: Iterable[Link]) -> dict[Link, int]:
    """``received_to`` of these links. The lane row of their partition is locked, so nobody else moves them."""
    columns = tables.link_in.c
    key = tuple_(columns.link, columns.topic, columns.partition)
    wanted = unnest("wanted", link=Text(), topic=Text(), partition=Integer())
    statement = select(columns.link, columns.topic, columns.partition, columns.received_to).where(
        key.in_(select(wanted.c.link, wanted.c.topic, wanted.c.partition))
    )
    ordered = sorted(set(links))
    parameters = {
        "wanted_link": [link for link, _, _ in ordered],
        "wanted_topic": [topic for _, topic, _ in ordered],
        "wanted_partition": [partition for _, _, partition in ordered],
    }
    rows = (await connection.execute(statement, parameters)).all()
    return {(row.link, row.topic, row.partition): row.received_to for row in rows}


async def save_received(connection: AsyncConnection, tables: RuntimeTables, moved: dict[Link, int]) -> None:
    """Store the highest seq applied per link."""
    new = unnest("new", link=Text(), topic=Text(), partition=Integer(), received_to=BigInteger())
    source = select(new.c.link, new.c.topic, new.c.partition, new.c.received_to)
    statement = insert(tables.link_in).from_select(["link", "topic", "partition", "received_to"], source)
    statement = statement.on_conflict_do_update(
        index_elements=["link", "topic", "partition"], set_={"received_to": statement.excluded.received_to}
    )
    ordered = sorted(moved)
    await connection.execute(
        statement,
        {
            "new_link": [link for link, _, _ in ordered],
            "new_topic": [topic for _, topic, _ in ordered],
            "new_partition": [partition for _, _, partition in ordered],
            "new_received_to": [moved[link] for link in ordered],
        },
    )


async def take_seqs(connection: AsyncConnection, tables: RuntimeTables, counts: dict[Link, int]) -> dict[Link, int]:
    """Reserve ``counts`` seqs per link and return the first of each. The producer's lane row is locked."""
    new = unnest("new", link=Text(), topic=Text(), partition=Integer(), taken=BigInteger())
    source = select(new.c.link, new.c.topic, new.c.partition, new.c.taken)
    statement = insert(tables.link_out).from_select(["link", "topic", "partition", "last_seq"], source)
    updated = statement.on_conflict_do_update(
        index_elements=["link", "topic", "partition"],
        set_={"last_seq": tables.link_out.c.last_seq + statement.excluded.last_seq},
    ).returning(
        tables.link_out.c.link, tables.link_out.c.topic, tables.link_out.c.partition, tables.link_out.c.last_seq
    )
    ordered = sorted(counts)
    rows = await connection.execute(
        updated,
        {
            "new_link": [link for link, _, _ in ordered],
            "new_topic": [topic for _, topic, _ in ordered],
            "new_partition": [partition for _, _, partition in ordered],
            "new_taken": [counts[link] for link in ordered],
        },
    )
    return {(link, topic, part): last - counts[link, topic, part] + 1 for link, topic, part, last in rows.all()}


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
