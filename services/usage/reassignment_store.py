"""The SQL of reassignments: one function, one statement, named by what it asks or does."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import date, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Text,
    Uuid,
    and_,
    bindparam,
    exists,
    func,
    insert,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime.database import copy_rows, unnest
from services.usage.books import DATA
from services.usage.reassigning import ACCOUNT, NUMBER, OUTBOUND_PROFILE, Concerned, Job, Window
from services.usage.store import Rows
from services.usage.tables import CHARGE, REASSIGNED_CHARGE, REASSIGNMENT, Instant

_JOB = [REASSIGNMENT.c[name] for name in Job.__struct_fields__]


async def insert_reassignments(connection: AsyncConnection, rows: Sequence[Mapping[str, Any]]) -> None:
    await connection.execute(insert(REASSIGNMENT), list(rows))


async def has_open(connection: AsyncConnection) -> bool:
    """Whether anything is to be looked through."""
    return bool((await connection.execute(select(exists().where(REASSIGNMENT.c.done_at.is_(None))))).scalar_one())


async def open_from(connection: AsyncConnection) -> datetime | None:
    """From which event time on charges are still to be looked at; None when all are."""
    statement = select(func.min(REASSIGNMENT.c.reached_at)).where(REASSIGNMENT.c.done_at.is_(None))
    return (await connection.execute(statement)).scalar_one()  # type: ignore[no-any-return]


async def open_jobs(connection: AsyncConnection, limit: int) -> list[Job]:
    """The oldest that are not done."""
    columns = REASSIGNMENT.c
    statement = select(*_JOB).where(columns.done_at.is_(None)).order_by(columns.position).limit(limit)
    return [Job(*row) for row in await connection.execute(statement)]


async def charge_days(connection: AsyncConnection) -> list[date]:
    """The event days that have a partition, and so perhaps charges."""
    statement = text(
        "select to_date(right(inhrelid::regclass::text, 8), 'YYYYMMDD') from pg_inherits"
        f" where inhparent = '{CHARGE.fullname}'::regclass"
    )
    return list((await connection.execute(statement)).scalars())


async def charges_in(connection: AsyncConnection, window: Window, limit: int) -> Rows:
    """(charge_id, event_time) of the first charges of a window that some job of it may concern, by event time and id: live or
    taken back, but no reversals. Whatever is charged meanwhile is charged by the registry as it is now."""
    columns, concerned = CHARGE.c, Concerned(window.jobs)
    of: list[Any] = []
    parameters: dict[str, list[str]] = {}
    for kind, matches in (
        (ACCOUNT, lambda names: columns.account_id == names),
        (OUTBOUND_PROFILE, lambda names: columns.outbound_profile == names),
        (
            NUMBER,
            lambda names: or_(columns.destination == names, and_(columns.product == DATA, columns.origin == names)),
        ),
    ):
        if names := concerned.names(kind):
            of.append(matches(func.any(bindparam(kind, type_=ARRAY(Text())))))
            parameters[kind] = names
    statement = (
        select(columns.charge_id, columns.event_time)
        .where(
            columns.event_time >= window.reached_at,
            columns.event_time < window.end,
            tuple_(columns.event_time, columns.charge_id) > (window.reached_at, window.reached_id),
            columns.reverses.is_(None),
            or_(*of),
        )
        .order_by(columns.event_time, columns.charge_id)
        .limit(limit)
    )
    return (await connection.execute(statement, parameters)).all()


async def advance(connection: AsyncConnection, jobs: Collection[Job], moved: Mapping[UUID, int]) -> None:
    """Note how far these are, and that they have moved so many charges more."""
    columns = REASSIGNMENT.c
    new = unnest("new", id=Uuid(), reached_at=Instant, reached_id=Uuid(), moved=BigInteger())
    statement = (
        update(REASSIGNMENT)
        .where(columns.reassignment_id == new.c.id)
        .values(reached_at=new.c.reached_at, reached_id=new.c.reached_id, moved=columns.moved + new.c.moved)
    )
    parameters = {
        "new_id": [job.reassignment_id for job in jobs], "new_reached_at": [job.reached_at for job in jobs],
        "new_reached_id": [job.reached_id for job in jobs],
        "new_moved": [moved.get(job.reassignment_id, 0) for job in jobs],
    }  # fmt: skip
    await connection.execute(statement, parameters)


async def finish(connection: AsyncConnection, jobs: Collection[UUID], now: datetime) -> None:
    """Nothing is left of these."""
    columns = REASSIGNMENT.c
    wanted = columns.reassignment_id == func.any(bindparam("ids", type_=ARRAY(Uuid())))
    await connection.execute(update(REASSIGNMENT).where(wanted).values(done_at=now), {"ids": sorted(jobs)})


async def append_charges(connection: AsyncConnection, rows: Sequence[tuple[UUID, UUID, datetime, str | None]]) -> None:
    """(reassignment, charge, its event time, why it was left; null: it was moved), each once."""
    columns = [column.name for column in REASSIGNED_CHARGE.columns]
    await copy_rows(connection, REASSIGNED_CHARGE, columns, rows)
