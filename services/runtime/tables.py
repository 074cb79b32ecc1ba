"""The tables of the mechanism. Every room's schema has its own set; no room sees another's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

Instant = DateTime(timezone=True)


@dataclass(frozen=True)
class RuntimeTables:
    """The mechanism's tables in one schema.

    lanes: one parent row; a new lane is born under FOR SHARE, the cut takes it FOR UPDATE. `version_floor`: objects are told with
        versions above it, for in a life that a restore undid they were told up to it.
    lane: an input consumed in order under one row lock; for a Kafka lane `position` is *the* position of the consumer,
        `first` the one it was born with.
    link_out / link_in: last dense seq given out, highest seq applied.
    bound: of each earlier epoch of the database, the last seq of every room's links that holds; written by a restore alone.
    outbox: finished Kafka batches on their way; `chunk` is one batch of `records` records.
    parked: raw records out of the stream: quarantined, waiting, or being replayed.
    due: timers that decide money; `failures` in a row put one off, and a new time for it starts them anew.
    resumed: lanes that a person let go on: who, why, and the offsets and seqs that were given up for it.
    """

    schema: str
    metadata: MetaData
    lanes: Table
    lane: Table
    link_out: Table
    link_in: Table
    bound: Table
    outbox: Table
    parked: Table
    due: Table
    resumed: Table


@cache
def runtime_tables(schema: str) -> RuntimeTables:
    """The mechanism's tables of a room, built once."""
    metadata = MetaData(schema=schema)
    return RuntimeTables(
        schema=schema,
        metadata=metadata,
        lanes=Table(
            "lanes",
            metadata,
            Column("id", SmallInteger, primary_key=True, autoincrement=False),
            Column("epoch", Integer, nullable=False, server_default=text("0")),
            Column("version_floor", BigInteger, nullable=False, server_default=text("0")),
        ),
        lane=Table(
            "lane",
            metadata,
            Column("name", Text, primary_key=True),
            Column("input", Text),
            Column("topic", Text),
            Column("partition", Integer),
            Column("first", BigInteger, nullable=False, server_default=text("0")),
            Column("position", BigInteger),
            Column("stopped", Text),
            Column("updated_at", Instant, nullable=False, server_default=func.now()),
        ),
        link_out=Table(
            "link_out",
            metadata,
            Column("link", Text, primary_key=True),
            Column("topic", Text, primary_key=True),
            Column("partition", Integer, primary_key=True),
            Column("last_seq", BigInteger, nullable=False),
        ),
        link_in=Table(
            "link_in",
            metadata,
            Column("link", Text, primary_key=True),
            Column("topic", Text, primary_key=True),
            Column("partition", Integer, primary_key=True),
            Column("received_to", BigInteger, nullable=False),
        ),
        bound=Table(
            "bound",
            metadata,
            Column("link", Text, primary_key=True),
            Column("topic", Text, primary_key=True),
            Column("partition", Integer, primary_key=True),
            Column("epoch", Integer, primary_key=True),
            Column("last_seq", BigInteger, nullable=False),
        ),
        outbox=Table(
            "outbox",
            metadata,
            Column("id", BigInteger, primary_key=True, autoincrement=True),
            Column("topic", Text, nullable=False),
            Column("partition", Integer, nullable=False),
            Column("records", Integer, nullable=False),
            Column("chunk", LargeBinary, nullable=False),
        ),
        parked=Table(
            "parked",
            metadata,
            Column("id", BigInteger, primary_key=True, autoincrement=True),
            Column("input", Text, nullable=False),
            Column("topic", Text, nullable=False),
            Column("partition", Integer, nullable=False),
            Column("offset", BigInteger, nullable=False),
            Column("timestamp", Instant, nullable=False),
            Column("key", LargeBinary),
            Column("value", LargeBinary),
            Column("headers", JSONB, nullable=False, server_default=text("'[]'::jsonb")),
            Column("state", Text, nullable=False),
            Column("reason", Text, nullable=False),
            Column("field", Text),
            Column("message", Text, nullable=False),
            Column("about", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
            Column("parked_at", Instant, nullable=False),
            Column("decided_at", Instant),
            Column("decided_by", Text),
            UniqueConstraint("topic", "partition", "offset", name="parked_once"),
            Index(
                "parked_open",
                "state",
                "id",
                postgresql_where=text("state in ('quarantined', 'waiting', 'replaying', 'discarding')"),
            ),
        ),
        due=Table(
            "due",
            metadata,
            Column("kind", Text, primary_key=True),
            Column("key", Text, primary_key=True),
            Column("due_at", Instant, nullable=False),
            Column("failures", Integer, nullable=False, server_default=text("0")),
            Index("due_next", "due_at"),
        ),
        resumed=Table(
            "resumed",
            metadata,
            Column("id", BigInteger, primary_key=True, autoincrement=True),
            Column("lane", Text, nullable=False),
            Column("topic", Text, nullable=False),
            Column("partition", Integer, nullable=False),
            Column("stopped", Text, nullable=False),
            Column("from_offset", BigInteger, nullable=False),
            Column("to_offset", BigInteger, nullable=False),
            Column("links", JSONB, nullable=False),
            Column("by", Text, nullable=False),
            Column("reason", Text, nullable=False),
            Column("at", Instant, nullable=False),
        ),
    )
