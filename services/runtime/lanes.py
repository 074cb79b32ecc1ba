"""Lanes: inputs consumed in order under one row lock. For a Kafka partition the row *is* the consumer's position.

Whoever holds the row may read, apply and publish for that lane; a zombie or a second copy waits for it and then finds
its offsets done. Source: architecture, section 4; designs/closing, words and line 6.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import ARRAY, BigInteger, Select, Text, bindparam, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kernel.errors import Corrupt
from services.runtime.database import Plain, unnest
from services.runtime.tables import RuntimeTables

CLOCK_NOW = func.runtime.clock_now()
_TEXTS = ARRAY(Text)


class LaneStopped(Corrupt):
    """The lane was stopped, by another copy or a person: nothing of it is applied until a person lets it go on."""

    code = "lane_stopped"

    def __init__(self, lane: str, message: str) -> None:
        super().__init__(message)
        self.lane = lane


class Moment(NamedTuple):
    """What holds for all of one transaction: its instant by the one clock, the epoch in which it publishes, and above which version
    it tells objects."""

    now: datetime
    epoch: int
    version_floor: int


@dataclass(frozen=True)
class Locked:
    """The lanes of one transaction: positions at the time of the lock, and the transaction's moment."""

    moment: Moment
    positions: dict[str, int]


RETIRED = "retired: "


@dataclass(frozen=True)
class Lane:
    name: str
    topic: str
    partition: int
    first: int
    position: int
    stopped: str | None

    @property
    def is_retired(self) -> bool:
        """Stopped for good: a person gave it up, for Kafka does not have its topic any more."""
        return self.stopped is not None and self.stopped.startswith(RETIRED)


async def give_birth(
    connection: AsyncConnection, tables: RuntimeTables, input_name: str, lanes: Iterable[tuple[str, str, int, int]]
) -> None:
    """Create the rows (name, topic, partition, start of the log) that are missing; never changes one that exists.

    Under FOR SHARE of the parent row, so that no lane is born while a cut holds it FOR UPDATE.
    """
    await connection.execute(select(tables.lanes.c.id).with_for_update(read=True))
    rows = [
        {
            "name": name,
            "input": input_name,
            "topic": topic,
            "partition": partition,
            "first": first,
            "position": first,
        }
        for name, topic, partition, first in lanes
    ]
    if rows:
        await connection.execute(insert(tables.lane).on_conflict_do_nothing(), rows)


async def internal_lane(
    connection: AsyncConnection, tables: RuntimeTables, name: str, *, skip_locked: bool = False
) -> bool:
    """Lock an internal lane (replay, corrections, a tick), creating its row the first time. False if skipped."""
    lock = select(tables.lane.c.name).where(tables.lane.c.name == name).with_for_update(skip_locked=skip_locked)
    if (await connection.execute(lock)).first() is not None:
        return True
    created = insert(tables.lane).values(name=name).on_conflict_do_nothing().returning(tables.lane.c.name)
    if (await connection.execute(created)).first() is not None:
        return True
    if skip_locked:
        return False
    return (await connection.execute(lock)).first() is not None


async def transaction_instant(connection: AsyncConnection, tables: RuntimeTables) -> Moment:
    """The moment of this transaction."""
    return Moment._make(
        (await connection.execute(select(CLOCK_NOW, tables.lanes.c.epoch, tables.lanes.c.version_floor))).one()
    )


async def lock_lanes(connection: AsyncConnection, tables: RuntimeTables, names: Iterable[str]) -> Locked:
    """Lock Kafka lanes in the order of their names. Raises `LaneStopped` for the first that is; a missing one is a bug."""
    wanted = sorted(set(names))
    rows = (await connection.execute(_lock(tables), {"names": wanted})).all()
    for row in rows:
        if row.stopped:
            raise LaneStopped(row.name, row.stopped)
    if len(rows) != len(wanted):
        raise Corrupt(f"lanes {sorted(set(wanted) - {row.name for row in rows})} are missing", code="lane_missing")
    first = rows[0]
    return Locked(Moment(first.now, first.epoch, first.version_floor), {row.name: row.position for row in rows})


@cache
def _lock(tables: RuntimeTables) -> Select[Any]:
    """Not `Plain`: it is the first statement of a transaction, which SQLAlchemy begins with it."""
    return (
        select(
            tables.lane.c.name,
            tables.lane.c.position,
            tables.lane.c.stopped,
            CLOCK_NOW.label("now"),
            select(tables.lanes.c.epoch).scalar_subquery().label("epoch"),
            select(tables.lanes.c.version_floor).scalar_subquery().label("version_floor"),
        )
        .where(tables.lane.c.name == func.any(bindparam("names", type_=_TEXTS)))
        .order_by(tables.lane.c.name)
        .with_for_update(of=tables.lane)
    )


async def advance_lanes(connection: AsyncConnection, tables: RuntimeTables, positions: dict[str, int]) -> None:
    """Move positions forward; the rows are locked by this transaction. Never backwards."""
    names = sorted(positions)
    parameters = {"moved_name": names, "moved_position": [positions[name] for name in names]}
    await _advance(tables).touched(connection, parameters)


@cache
def _advance(tables: RuntimeTables) -> Plain:
    moved = unnest("moved", name=Text(), position=BigInteger())
    return Plain(
        update(tables.lane)
        .where(tables.lane.c.name == moved.c.name, tables.lane.c.position < moved.c.position)
        .values(position=moved.c.position, updated_at=func.now())
    )


async def lanes_of(
    connection: AsyncConnection, tables: RuntimeTables, input_name: str, *, lock: bool = False
) -> list[Lane]:
    """Every Kafka lane of an input in order; locked FOR UPDATE for the cut."""
    statement = _kafka_lanes(tables).where(tables.lane.c.input == input_name)
    if lock:
        statement = statement.with_for_update()
    return [Lane(*row) for row in (await connection.execute(statement)).all()]


async def all_lanes(connection: AsyncConnection, tables: RuntimeTables) -> list[Lane]:
    """Every Kafka lane of the room in order."""
    return [Lane(*row) for row in (await connection.execute(_kafka_lanes(tables))).all()]


async def lane_named(
    connection: AsyncConnection, tables: RuntimeTables, name: str, *, lock: bool = False
) -> Lane | None:
    """One Kafka lane, if there is one of this name."""
    statement = _kafka_lanes(tables).where(tables.lane.c.name == name)
    if lock:
        statement = statement.with_for_update()
    row = (await connection.execute(statement)).one_or_none()
    return None if row is None else Lane(*row)


def _kafka_lanes(tables: RuntimeTables) -> Select[Any]:
    columns = tables.lane.c
    return (
        select(columns.name, columns.topic, columns.partition, columns.first, columns.position, columns.stopped)
        .where(columns.input.is_not(None))
        .order_by(columns.name)
    )


async def lock_parent(connection: AsyncConnection, tables: RuntimeTables) -> None:
    """Hold back the birth of lanes until the end of this transaction."""
    await connection.execute(select(tables.lanes.c.id).with_for_update())


async def stop_lane(connection: AsyncConnection, tables: RuntimeTables, name: str, reason: str) -> None:
    """Stop a lane for a person to look at: no copy reads it any more."""
    await connection.execute(update(tables.lane).where(tables.lane.c.name == name).values(stopped=reason))
