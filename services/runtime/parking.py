"""Records out of the stream: quarantined with a reason, waiting for a cut, or on their way back through the replay lane.

A parked record keeps its first topic, partition, offset, timestamp and bytes. People decide by asking (`ask`); the worker
that holds the replay lane carries it out. Source: domain, section 3; designs/closing, line 8.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime.records import Record
from services.runtime.tables import RuntimeTables

REPLAY_LANE = "replay"
REPLAY_RECORDS_MAX = 500  # one replay transaction; keeps the lane short for the pass of a cut


@dataclass(slots=True)
class Parked:
    """A record that was parked in this transaction, with why and what could be read of it."""

    record: Record
    state: str
    reason: str
    field: str | None
    message: str
    about: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ParkedRow:
    """A parked record as people see it."""

    id: int
    topic: str
    partition: int
    offset: int
    timestamp: datetime
    headers: tuple[tuple[str, bytes | None], ...]
    value: bytes | None
    state: str
    reason: str
    field: str | None
    message: str
    about: dict[str, Any]
    parked_at: datetime
    decided_at: datetime | None
    decided_by: str | None


def _clean(text: str | None) -> str | None:
    return None if text is None else text.replace("\x00", "\\u0000")[:2000]


def _clean_about(about: dict[str, Any]) -> dict[str, Any]:
    return {key: _clean(value) if isinstance(value, str) else value for key, value in about.items()}


async def park(connection: AsyncConnection, tables: RuntimeTables, parked: Sequence[Parked], now: datetime) -> None:
    """Store them; one that was parked before takes the new state and reason."""
    statement = insert(tables.parked)
    statement = statement.on_conflict_do_update(
        constraint="parked_once",
        set_={name: statement.excluded[name] for name in ("state", "reason", "field", "message", "about")},
    )
    rows = [
        {
            "input": item.record.lane.split("/", 1)[0],
            "topic": item.record.topic,
            "partition": item.record.partition,
            "offset": item.record.offset,
            "timestamp": item.record.timestamp,
            "key": item.record.key,
            "value": item.record.value,
            "headers": _headers_kept(item.record),
            "state": item.state,
            "reason": item.reason,
            "field": _clean(item.field),
            "message": _clean(item.message),
            "about": _clean_about(item.about),
            "parked_at": now,
        }
        for item in parked
    ]
    await connection.execute(statement, rows)


async def take_asked(connection: AsyncConnection, tables: RuntimeTables) -> list[tuple[Record, str, ParkedRow, str]]:
    """The oldest records that somebody asked to replay or discard: (record, asked, row, input). The lane is locked."""
    columns = tables.parked.c
    statement = (
        select(tables.parked)
        .where(columns.state.in_(["replaying", "discarding"]))
        .order_by(columns.id)
        .limit(REPLAY_RECORDS_MAX)
        .with_for_update()
    )
    taken = []
    for row in (await connection.execute(statement)).all():
        record = Record(
            topic=row.topic,
            partition=row.partition,
            offset=row.offset,
            timestamp_ms=round(row.timestamp.astimezone(UTC).timestamp() * 1000),
            key=row.key,
            value=row.value,
            lane=REPLAY_LANE,
            headers=_headers(row),
            parked_id=row.id,
            parked_reason=row.reason,
            asked_by=row.decided_by,
        )
        taken.append((record, row.state, _as_row(row), row.input))
    return taken


async def settle(
    connection: AsyncConnection, tables: RuntimeTables, ids: Iterable[int], state: str, now: datetime
) -> None:
    """The end of parked records: replayed or discarded."""
    columns = tables.parked.c
    statement = update(tables.parked).where(columns.id.in_(sorted(ids))).values(state=state, decided_at=now)
    await connection.execute(statement)


async def ask(
    connection: AsyncConnection,
    tables: RuntimeTables,
    decision: Literal["replaying", "discarding"],
    by: str,
    *,
    ids: Sequence[int] | None = None,
    reason: str | None = None,
    states: Sequence[str] = ("quarantined",),
) -> int:
    """Ask to replay or discard by id or by reason; only what still stands is taken. Returns how many."""
    columns = tables.parked.c
    statement = (
        update(tables.parked)
        .where(columns.state.in_(list(states)))
        .values(state=decision, decided_by=by, decided_at=func.runtime.clock_now())
    )
    if ids is not None:
        statement = statement.where(columns.id.in_(list(ids)))
    if reason is not None:
        statement = statement.where(columns.reason == reason)
    return (await connection.execute(statement)).rowcount


async def ask_after(
    connection: AsyncConnection, tables: RuntimeTables, by: str, *, reason: str, after: int, limit: int
) -> int | None:
    """Ask to replay what is quarantined for a reason, of ids above one, the lowest first, so many at most; the highest id of
    them if there were so many, so that more may follow."""
    columns = tables.parked.c
    found = (
        select(columns.id)
        .where(columns.state == "quarantined", columns.reason == reason, columns.id > after)
        .order_by(columns.id)
        .limit(limit)
    )
    ids = (await connection.execute(found)).scalars().all()
    if ids:
        await ask(connection, tables, "replaying", by, ids=ids)
    return ids[-1] if len(ids) == limit else None


async def listing(
    connection: AsyncConnection,
    tables: RuntimeTables,
    *,
    states: Sequence[str] = ("quarantined",),
    reason: str | None = None,
    ids: Sequence[int] | None = None,
    limit: int = 100,
) -> list[ParkedRow]:
    """Parked records in the order they came; of these ids only, where some are given."""
    columns = tables.parked.c
    statement = select(tables.parked).where(columns.state.in_(list(states))).order_by(columns.id).limit(limit)
    if reason is not None:
        statement = statement.where(columns.reason == reason)
    if ids is not None:
        statement = statement.where(columns.id.in_(list(ids)))
    return [_as_row(row) for row in (await connection.execute(statement)).all()]


def _as_row(row: Any) -> ParkedRow:
    return ParkedRow(
        row.id, row.topic, row.partition, row.offset, row.timestamp, _headers(row), row.value, row.state, row.reason,
        row.field, row.message, row.about, row.parked_at, row.decided_at, row.decided_by,
    )  # fmt: skip


def _headers_kept(record: Record) -> list[tuple[str | None, str | None]]:
    return [(_clean(name), None if value is None else value.hex()) for name, value in record.headers]


def _headers(row: Any) -> tuple[tuple[str, bytes | None], ...]:
    return tuple((name, None if value is None else bytes.fromhex(value)) for name, value in row.headers)
