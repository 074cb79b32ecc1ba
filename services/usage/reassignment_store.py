"""The SQL of reassignments: one function, one statement, named by what it asks or does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from datetime import date, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Select,
    Text,
    Uuid,
    and_,
    bindparam,
    case,
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
from services.usage.reassigning import ACCOUNT, BEFORE_ALL, NUMBER, OUTBOUND_PROFILE, Concerned, Job, Window
from services.usage.store import CHARGES_AT_ONCE, Found, Rows
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


async def open_repricing(connection: AsyncConnection, account_ids: Collection[str]) -> list[Job]:
    """All that are not done of these accounts, and by which other books may be asked."""
    columns = REASSIGNMENT.c
    wanted = columns.object_id == func.any(bindparam("accounts", type_=ARRAY(Text())))
    statement = select(*_JOB).where(wanted, columns.kind == ACCOUNT, columns.reprices, columns.done_at.is_(None))
    return [Job(*row) for row in await connection.execute(statement, {"accounts": sorted(account_ids)})]


async def is_within(connection: AsyncConnection, event_times: Collection[datetime]) -> bool:
    """Whether of the charges of one of these instants some are looked at, and others are not yet."""
    columns = REASSIGNMENT.c
    at = columns.reached_at == func.any(bindparam("at", type_=ARRAY(Instant)))
    wanted = exists().where(columns.done_at.is_(None), at, columns.reached_id != BEFORE_ALL)
    return bool((await connection.execute(select(wanted), {"at": sorted(event_times)})).scalar_one())


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
    of: list[ColumnElement[bool]] = []
    parameters: dict[str, list[str]] = {}
    for kind, asked in (
        (ACCOUNT, (columns.account_id,)),
        (OUTBOUND_PROFILE, (columns.outbound_profile,)),
        (NUMBER, (columns.destination, case((columns.product == DATA, columns.origin)))),
    ):
        names = concerned.names(kind)
        if names:
            # of a thousand names: a subquery is hashed for whatever plan, an array would be walked through for each row
            wanted = select(unnest(kind, name=Text()).c.name)
            of += [column.in_(wanted) for column in asked]
            parameters[f"{kind}_name"] = names
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


Note = tuple[UUID, UUID, datetime, str | None, str | None]
"""Reassignment, charge, its event time, why it was left (null: it was moved), and whose it would be."""


async def append_charges(connection: AsyncConnection, rows: Sequence[Note]) -> None:
    """What became of charges, each once."""
    columns = [column.name for column in REASSIGNED_CHARGE.columns]
    await copy_rows(connection, REASSIGNED_CHARGE, columns, rows)


async def left_ids(connection: AsyncConnection, charge_ids: Collection[UUID]) -> set[UUID]:
    """Which of these charges were left as they are, for whatever reason."""
    of = REASSIGNED_CHARGE.c
    wanted = of.charge_id == func.any(bindparam("ids", type_=ARRAY(Uuid())))
    statement = select(of.charge_id).where(wanted, of.reason.is_not(None))
    return set((await connection.execute(statement, {"ids": list(charge_ids)})).scalars())


async def left_for(connection: AsyncConnection, account_ids: Sequence[str]) -> Rows:
    """The reassignments that left charges because one of these accounts was not there, with the account."""
    of = REASSIGNED_CHARGE.c
    wanted = of.account_id == func.any(bindparam("accounts", type_=ARRAY(Text())))
    statement = (
        select(REASSIGNMENT, of.account_id)
        .join(REASSIGNED_CHARGE, of.reassignment_id == REASSIGNMENT.c.reassignment_id)
        .where(wanted)
        .distinct()
    )
    return (await connection.execute(statement, {"accounts": list(account_ids)})).all()


# ---- what people and the auditor read ------------------------------------------------------------------------------


async def listing(connection: AsyncConnection, limit: int, *, id: UUID | None = None, idle: bool) -> Rows:
    """The newest, each with how many charges it left: of this id; all, or only those not done and those that found something."""
    columns, of = REASSIGNMENT.c, REASSIGNED_CHARGE.c
    left = (
        select(func.count())
        .where(of.reassignment_id == columns.reassignment_id, of.reason.is_not(None))
        .scalar_subquery()
    )
    statement = select(REASSIGNMENT, left.label("left")).order_by(columns.position.desc()).limit(limit)
    if id is not None:
        statement = statement.where(columns.reassignment_id == id)
    if not idle:
        has_left = exists().where(of.reassignment_id == columns.reassignment_id)
        statement = statement.where(or_(columns.done_at.is_(None), columns.moved > 0, has_left))
    return (await connection.execute(statement)).all()


_taken_back, _charged = CHARGE.alias("taken_back"), CHARGE.alias("charged")


def _moved(*columns: Any) -> Select[Any]:
    """Columns of the charges that were moved: each with what takes it back and what stands in its place."""
    of, out, into = REASSIGNED_CHARGE.c, _taken_back.c, _charged.c
    return (
        select(*columns)
        .select_from(REASSIGNED_CHARGE)
        .join(_taken_back, and_(out.reverses == of.charge_id, out.event_time == of.event_time))
        .join(_charged, and_(into.replaces == of.charge_id, into.event_time == of.event_time))
        .where(of.reason.is_(None))
    )


async def moved_lines(connection: AsyncConnection, row: Found) -> Rows:
    """From and to which account, group and cost center one has moved charges: (the six, currency, charges, taken_back, charged)."""
    out, into = _taken_back.c, _charged.c
    names = {"account": "account_id", "group": "group_id", "cost_center": "cost_center_id"}
    key = (
        *(out[name].label(f"from_{label}") for label, name in names.items()),
        *(into[name].label(f"to_{label}") for label, name in names.items()),
        into.currency,
    )
    statement = (
        _moved(
            *key, func.count().label("charges"), (-func.sum(out.amount_nano)).label("taken_back"),
            func.sum(into.amount_nano).label("charged"),
        )
        .where(REASSIGNED_CHARGE.c.reassignment_id == row.reassignment_id)
        .where(*(each.event_time >= row.starts_at for each in (out, into)))
        .group_by(*key)
        .order_by(*key)
    )  # fmt: skip
    if row.ends_at is not None:
        statement = statement.where(*(each.event_time < row.ends_at for each in (out, into)))
    rows: Rows = (await connection.execute(statement)).all()
    return rows


async def left_reasons(connection: AsyncConnection, id: UUID) -> Rows:
    """(reason, charges) of what one left as it is."""
    columns = REASSIGNED_CHARGE.c
    statement = select(columns.reason, func.count().label("charges")).where(
        columns.reassignment_id == id, columns.reason.is_not(None)
    )
    statement = statement.group_by(columns.reason).order_by(columns.reason)
    return (await connection.execute(statement)).all()


async def left_charges(connection: AsyncConnection, id: UUID, limit: int) -> Rows:
    columns = REASSIGNED_CHARGE.c
    statement = select(REASSIGNED_CHARGE).where(columns.reassignment_id == id, columns.reason.is_not(None))
    return (await connection.execute(statement.order_by(columns.event_time, columns.charge_id).limit(limit))).all()


async def of_charges(connection: AsyncConnection, charge_ids: Sequence[UUID]) -> Rows:
    """The columns of `Job`, version, charge_id and reason of what moved or left these charges, in the order it was noticed."""
    columns, of = REASSIGNMENT.c, REASSIGNED_CHARGE.c
    wanted = of.charge_id == func.any(bindparam("ids", type_=ARRAY(Uuid())))
    statement = (
        select(*_JOB, columns.version, of.charge_id, of.reason)
        .join(REASSIGNED_CHARGE, of.reassignment_id == columns.reassignment_id)
        .where(wanted)
        .order_by(columns.position)
    )
    return (await connection.execute(statement, {"ids": list(charge_ids)})).all()


async def that_moved_otherwise(connection: AsyncConnection) -> Rows:
    """(reassignment_id, told, found): of those that say another number than were taken back and replaced."""
    columns = REASSIGNMENT.c
    found = _moved(REASSIGNED_CHARGE.c.reassignment_id, _charged.c.charge_id).subquery()
    number = func.count(found.c.charge_id)
    statement = (
        select(columns.reassignment_id, columns.moved.label("told"), number.label("found"))
        .select_from(REASSIGNMENT.outerjoin(found, found.c.reassignment_id == columns.reassignment_id))
        .group_by(columns.reassignment_id)
        .having(number != columns.moved)
    )
    return (await connection.execute(statement)).all()


async def all_jobs(connection: AsyncConnection) -> tuple[list[Job], list[Job]]:
    """Those that are done, and those that are not."""
    rows = (await connection.execute(select(*_JOB, REASSIGNMENT.c.done_at).order_by(REASSIGNMENT.c.position))).all()
    jobs: dict[bool, list[Job]] = {True: [], False: []}
    for row in rows:
        jobs[row.done_at is not None].append(Job(*row[:-1]))
    return jobs[True], jobs[False]


async def live_charges(connection: AsyncConnection, start: datetime) -> AsyncIterator[Found]:
    """The charges from an event time on that nothing takes back and nobody has left for a reason, read in pieces."""
    charge, reversal, of = CHARGE.c, _taken_back.c, REASSIGNED_CHARGE.c
    is_reversed = exists().where(reversal.reverses == charge.charge_id, reversal.event_time >= start)
    is_left = exists().where(of.charge_id == charge.charge_id, of.reason.is_not(None))
    statement = select(CHARGE).where(charge.event_time >= start, charge.reverses.is_(None), ~is_reversed, ~is_left)
    result = await connection.stream(statement.execution_options(yield_per=CHARGES_AT_ONCE))
    async for row in result:
        yield row
