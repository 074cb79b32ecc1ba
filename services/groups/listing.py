"""The registry's SQL for readers: what holds now, in the order of ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Column, ColumnElement, Select, Table, and_, func, select
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.ext.asyncio import AsyncConnection

from services.groups import tables
from services.runtime.lanes import CLOCK_NOW

_account, _group, _organization, _command = tables.account, tables.payer_group, tables.organization, tables.command


async def organizations(connection: AsyncConnection, organization_id: str | None = None) -> Sequence[Any]:
    """Organizations with the number of their accounts and payer groups."""
    statement = (
        select(
            _organization,
            _count(_account.c.organization_id).label("accounts"),
            _count(_group.c.organization_id).label("groups"),
        )
        .where(*_only(_organization.c.organization_id, organization_id))
        .order_by(_organization.c.organization_id)
    )
    return (await connection.execute(statement)).all()


async def publishers(connection: AsyncConnection) -> Sequence[Any]:
    """Publishers with whom they may bill, their sources and their tolerance."""
    return (await connection.execute(select(tables.publisher).order_by(tables.publisher.c.publisher_id))).all()


async def accounts(
    connection: AsyncConnection, *, organization_id: str | None = None, account_id: str | None = None
) -> Sequence[Any]:
    """Accounts with the plan and the payer group of this instant."""
    statement = (
        _accounts_now()
        .where(*_only(_account.c.organization_id, organization_id), *_only(_account.c.account_id, account_id))
        .order_by(_account.c.organization_id, _account.c.account_id)
    )
    rows: Sequence[Any] = (await connection.execute(statement)).all()
    return rows


async def timeline(connection: AsyncConnection, account_no: int, *, of: str) -> Sequence[Any]:
    """(start, end, value) of an account's plans or groups, in order of time."""
    kinds: dict[str, tuple[Table, Column[str]]] = {
        "plans": (tables.account_plan, tables.account_plan.c.plan),
        "groups": (tables.account_group, tables.account_group.c.group_id),
    }
    table, value = kinds[of]
    start, end = func.lower(table.c.during), func.upper(table.c.during)
    statement = (
        select(start.label("start"), end.label("end"), value.label("value"))
        .where(table.c.account_no == account_no)
        .order_by(start)
    )
    rows: Sequence[Any] = (await connection.execute(statement)).all()
    return rows


async def groups(
    connection: AsyncConnection, *, organization_id: str | None = None, group_id: str | None = None
) -> Sequence[Any]:
    """Payer groups with the accounts that are in them at this instant."""
    here = tables.account_group
    members = (
        select(func.array_agg(aggregate_order_by(_account.c.account_id, _account.c.account_id)))
        .join(here, here.c.account_no == _account.c.account_no)
        .where(here.c.group_id == _group.c.group_id, here.c.during.contains(CLOCK_NOW))
        .correlate(_group)
        .scalar_subquery()
        .label("members")
    )
    statement = (
        select(_group, members)
        .where(*_only(_group.c.organization_id, organization_id), *_only(_group.c.group_id, group_id))
        .order_by(_group.c.organization_id, _group.c.group_id)
    )
    return (await connection.execute(statement)).all()


async def log(connection: AsyncConnection, *, organization_id: str | None, limit: int) -> Sequence[Any]:
    """What was asked, newest first."""
    statement = (
        select(_command).where(*_only(_command.c.organization_id, organization_id)).order_by(_command.c.id.desc())
    )
    return (await connection.execute(statement.limit(limit))).all()


async def answer(connection: AsyncConnection, organization_id: str, command_id: str) -> dict[str, Any] | None:
    """The stored answer to a command; None while it was not decided."""
    statement = select(_command.c.answer).where(
        _command.c.organization_id == organization_id, _command.c.command_id == command_id
    )
    return (await connection.execute(statement)).scalar_one_or_none()


def _accounts_now() -> Select[Any]:
    plan, group = tables.account_plan, tables.account_group
    return (
        select(_account, plan.c.plan, group.c.group_id)
        .outerjoin(plan, and_(plan.c.account_no == _account.c.account_no, plan.c.during.contains(CLOCK_NOW)))
        .outerjoin(group, and_(group.c.account_no == _account.c.account_no, group.c.during.contains(CLOCK_NOW)))
    )


def _count(column: Any) -> Any:
    counted = select(func.count()).where(column == _organization.c.organization_id)
    return counted.correlate(_organization).scalar_subquery()


def _only(column: Any, value: str | None) -> tuple[ColumnElement[bool], ...]:
    return () if value is None else (column == value,)
