"""The SQL of re-rates: one function, one statement, named by what it asks or does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Select,
    and_,
    bindparam,
    case,
    exists,
    func,
    insert,
    literal,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime.database import copy_rows, unnest
from services.usage.rerating import EXECUTING, Sum, SumKey
from services.usage.store import CHARGES_AT_ONCE, Found, Rows, names_price
from services.usage.tables import (
    BOOK_PRICE,
    BOOK_SCHEDULE,
    CHARGE,
    COUNTER,
    RERATE_CHARGE,
    RERATE_COUNTER,
    RERATE_PLAN,
    RERATE_SUM,
)
from services.usage.tiers import CounterKey

ITEM_COLUMNS = tuple(column.name for column in RERATE_CHARGE.columns if column.name != "is_stale")

_reversal = CHARGE.alias("reversal")


def _not_reversed(start: datetime, end: datetime) -> tuple[ColumnElement[bool], ...]:
    """Of charges of event times in [start, end): a reversal has the event time of its charge."""
    charge, reversal = CHARGE.c, _reversal.c
    is_reversed = exists().where(
        reversal.reverses == charge.charge_id, reversal.event_time >= start, reversal.event_time < end
    )
    return charge.event_time >= start, charge.event_time < end, ~is_reversed


async def one_snapshot(connection: AsyncConnection) -> None:
    """All that this transaction reads is of one instant; before anything else."""
    await connection.execute(text("set transaction isolation level repeatable read"))


async def live_charges(
    connection: AsyncConnection,
    start: datetime,
    end: datetime,
    account_ids: Sequence[str],
    group_id: str | None,
    product: str | None,
) -> AsyncIterator[Rows]:
    """Charges of event times in [start, end) that nothing has reversed, in pieces, each with the ``delivered_only`` of its
    price; in the order in which counters are moved: event time, publisher, source, id."""
    charge = CHARGE.c
    statement = (
        select(CHARGE, BOOK_PRICE.c.delivered_only)
        .join(BOOK_PRICE, names_price(charge))
        .where(charge.reverses.is_(None), *_not_reversed(start, end))
        .order_by(charge.event_time, *(charge[name].collate("C") for name in ("publisher", "source", "event_id")))
    )
    if account_ids:
        statement = statement.where(charge.account_id.in_(account_ids))
    if group_id is not None:
        statement = statement.where(charge.group_id == group_id)
    if product is not None:
        statement = statement.where(charge.product == product)
    result = await connection.stream(statement.execution_options(yield_per=CHARGES_AT_ONCE))
    async for piece in result.partitions():
        yield piece


async def insert_plan(connection: AsyncConnection, values: Mapping[str, Any]) -> None:
    await connection.execute(insert(RERATE_PLAN).values(done_to=0, left_stale=0, **values))


async def counted(connection: AsyncConnection, plan_id: UUID, charges: int, fingerprint: str) -> None:
    """Note how many charges a new plan changes, and the hash over them."""
    columns = RERATE_PLAN.c
    statement = update(RERATE_PLAN).where(columns.plan_id == plan_id)
    await connection.execute(statement.values(charges=charges, fingerprint=fingerprint))


async def append_items(connection: AsyncConnection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Rows in the order of `ITEM_COLUMNS`, none of them stale."""
    await copy_rows(connection, RERATE_CHARGE, (*ITEM_COLUMNS, "is_stale"), [(*row, False) for row in rows])


async def has_schedules(connection: AsyncConnection) -> bool:
    """Whether any version of a book prices anything by tiers."""
    return bool((await connection.execute(select(exists(select(BOOK_SCHEDULE.c.id))))).scalar_one())


async def counters(connection: AsyncConnection, keys: Collection[CounterKey]) -> dict[CounterKey, int]:
    """Where these counters stand; one that nothing ever came into stands at 0."""
    stand = dict.fromkeys(keys, 0)
    if stand:
        wanted = unnest("wanted", **{name: COUNTER.c[name].type for name in CounterKey._fields})
        same = and_(*(COUNTER.c[name] == wanted.c[name] for name in CounterKey._fields))
        columns = zip(CounterKey._fields, zip(*stand, strict=True), strict=True)
        rows = await connection.execute(
            select(*(COUNTER.c[name] for name in CounterKey._fields), COUNTER.c.quantity).join(wanted, same),
            {f"wanted_{name}": list(values) for name, values in columns},
        )
        stand |= {CounterKey(*key): quantity for *key, quantity in rows}
    return stand


async def append_counters(connection: AsyncConnection, plan_id: UUID, stand: Mapping[CounterKey, int]) -> None:
    """Remember where the counters stood that a plan moves."""
    columns = ("plan_id", *CounterKey._fields, "quantity")
    rows = [(plan_id, *key, Decimal(quantity)) for key, quantity in sorted(stand.items())]
    await copy_rows(connection, RERATE_COUNTER, columns, rows)


async def has_moved_counter(connection: AsyncConnection, plan_id: UUID) -> bool:
    """Whether a counter that a plan moves stands elsewhere than when it was made."""
    planned = RERATE_COUNTER.c
    same = and_(*(COUNTER.c[name] == planned[name] for name in CounterKey._fields))
    moved = (
        select(literal(1))
        .select_from(RERATE_COUNTER.outerjoin(COUNTER, same))
        .where(planned.plan_id == plan_id, func.coalesce(COUNTER.c.quantity, 0) != planned.quantity)
    )
    return bool((await connection.execute(select(moved.exists()))).scalar_one())


async def append_sums(connection: AsyncConnection, plan_id: UUID, sums: Mapping[SumKey, Sum]) -> None:
    rows = [
        {
            "plan_id": plan_id, "of": of, "which": which, "currency": currency, "charges": each.charges,
            "old_nano": each.old_nano, "new_nano": each.new_nano,
        }
        for (of, which, currency), each in sorted(sums.items())
    ]  # fmt: skip
    if rows:
        await connection.execute(insert(RERATE_SUM), rows)


async def plans(connection: AsyncConnection) -> Rows:
    """Every plan, the newest first."""
    return (await connection.execute(select(RERATE_PLAN).order_by(RERATE_PLAN.c.planned_at.desc()))).all()


async def plan_of(connection: AsyncConnection, plan_id: UUID, *, lock: bool = False) -> Found | None:
    statement = select(RERATE_PLAN).where(RERATE_PLAN.c.plan_id == plan_id)
    return (await connection.execute(statement.with_for_update() if lock else statement)).first()


async def sums_of(connection: AsyncConnection, plan_id: UUID) -> Rows:
    columns = RERATE_SUM.c
    statement = select(RERATE_SUM).where(columns.plan_id == plan_id)
    return (await connection.execute(statement.order_by(columns["of"], columns.which, columns.currency))).all()


async def items_of(connection: AsyncConnection, plan_id: UUID, limit: int, *, stale_only: bool = False) -> Rows:
    columns = RERATE_CHARGE.c
    statement = select(RERATE_CHARGE).where(columns.plan_id == plan_id).order_by(columns.number).limit(limit)
    if stale_only:
        statement = statement.where(columns.is_stale)
    return (await connection.execute(statement)).all()


async def still_live(
    connection: AsyncConnection, plan_id: UUID, start: datetime, end: datetime
) -> AsyncIterator[tuple[UUID, int]]:
    """(charge id, revision) of those charges of a plan that nothing has reversed, in the plan's order."""
    item, charge = RERATE_CHARGE.c, CHARGE.c
    statement = (
        select(charge.charge_id, charge.revision)
        .join(RERATE_CHARGE, and_(item.charge_id == charge.charge_id, item.event_time == charge.event_time))
        .where(item.plan_id == plan_id, *_not_reversed(start, end))
        .order_by(item.number)
    )
    async for row in await connection.stream(statement.execution_options(yield_per=CHARGES_AT_ONCE)):
        yield row.charge_id, row.revision


async def set_plan(connection: AsyncConnection, plan_id: UUID, **values: Any) -> None:
    await connection.execute(update(RERATE_PLAN).where(RERATE_PLAN.c.plan_id == plan_id).values(values))


async def executing_from(connection: AsyncConnection) -> datetime | None:
    """From which event time on charges are being re-rated; None when no plan is carried out."""
    statement = select(func.min(RERATE_PLAN.c.starts_at)).where(RERATE_PLAN.c.state == literal(EXECUTING))
    return (await connection.execute(statement)).scalar_one()  # type: ignore[no-any-return]


async def executing_plan(connection: AsyncConnection) -> UUID | None:
    """The plan that is being executed, of several the one that was asked for first."""
    columns = RERATE_PLAN.c
    statement = select(columns.plan_id).where(columns.state == literal(EXECUTING))
    statement = statement.order_by(columns.executed_at, columns.plan_id).limit(1)
    return (await connection.execute(statement)).scalar_one_or_none()


async def next_items(connection: AsyncConnection, plan_id: UUID, after: int, limit: int) -> Rows:
    """The next charges of a plan, each with what its new price says; ``schedule`` is null where that is not by tiers."""
    item, price = RERATE_CHARGE.c, BOOK_PRICE.c
    schedule = func.nullif(price.schedule, "").label("schedule")
    statement = (
        select(RERATE_CHARGE, price.price_nano, price.connection_fee_nano, price.minimum, price.increment, schedule)
        .join(BOOK_PRICE, names_price(item))
        .where(item.plan_id == plan_id, item.number > after, item.number <= after + limit)
        .order_by(item.number)
    )
    return (await connection.execute(statement)).all()


_taken_back, _charged = CHARGE.alias("taken_back"), CHARGE.alias("charged")


def _settled(*columns: Any) -> Select[Any]:
    """Columns of the charges of plans that are settled: each with what takes it back and what stands in its place."""
    plan, item = RERATE_PLAN.c, RERATE_CHARGE.c
    out, into = _taken_back.c, _charged.c
    return (
        select(*columns)
        .select_from(RERATE_PLAN)
        .join(RERATE_CHARGE, and_(item.plan_id == plan.plan_id, item.number <= plan.done_to, ~item.is_stale))
        .join(_taken_back, and_(out.reverses == item.charge_id, out.event_time == item.event_time))
        .join(_charged, and_(into.replaces == item.charge_id, into.event_time == item.event_time))
    )


async def settled_sums(connection: AsyncConnection, plan: Found) -> Rows:
    """With what the settled charges of a plan were taken back, and what is charged instead: (of, which, currency, charges,
    old_nano, new_nano), the same sums as the plan's."""
    into = _charged.c
    settled = _settled(
        into.account_id, func.coalesce(into.group_id, "").label("group_id"), into.product, into.currency,
        _taken_back.c.amount_nano.label("out_nano"), into.amount_nano.label("into_nano"),
    )  # fmt: skip
    days = [
        and_(each.event_time >= plan.starts_at, each.event_time < plan.ends_at) for each in (into, _taken_back.c)
    ]  # only their partitions are searched
    by = settled.where(RERATE_PLAN.c.plan_id == plan.plan_id, *days).subquery().c
    sets = [tuple_(by.currency), *(tuple_(each, by.currency) for each in (by.account_id, by.group_id, by.product))]
    level = func.grouping(by.account_id, by.group_id, by.product)
    of = case((level == 3, "account"), (level == 5, "group"), (level == 6, "product"), else_="total")
    statement = select(
        of.label("of"), func.coalesce(by.account_id, by.group_id, by.product, "").label("which"), by.currency,
        func.count().label("charges"), (-func.sum(by.out_nano)).label("old_nano"),
        func.sum(by.into_nano).label("new_nano"),
    ).group_by(func.grouping_sets(*sets))  # fmt: skip
    return (await connection.execute(statement)).all()


async def plans_that_settled_otherwise(connection: AsyncConnection) -> Rows:
    """(plan_id, told, found): of plans that say another number of settled charges than were taken back and replaced."""
    plan = RERATE_PLAN.c
    found = _settled(plan.plan_id, _charged.c.charge_id).subquery()
    told = plan.done_to - plan.left_stale
    number = func.count(found.c.charge_id)
    statement = (
        select(plan.plan_id, told.label("told"), number.label("found"))
        .select_from(RERATE_PLAN.outerjoin(found, found.c.plan_id == plan.plan_id))
        .group_by(plan.plan_id)
        .having(number != told)
    )
    return (await connection.execute(statement)).all()


async def leave_stale(connection: AsyncConnection, plan_id: UUID, numbers: Sequence[int]) -> None:
    columns = RERATE_CHARGE.c
    wanted = columns.number == func.any(bindparam("numbers", type_=ARRAY(BigInteger())))
    statement = update(RERATE_CHARGE).where(columns.plan_id == plan_id, wanted).values(is_stale=True)
    await connection.execute(statement, {"numbers": list(numbers)})
