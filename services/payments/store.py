"""SQL of payments and nothing else: one function, one statement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from services.payments import tables
from services.runtime.work import Work

_attempt = tables.attempt.c
_operation = tables.operation.c
_answer = tables.answer.c


async def append_attempts(work: Work, rows: Sequence[Mapping[str, Any]]) -> None:
    """Attempts that were never spoken of before, in whatever order and however often they come."""
    ordered = sorted(rows, key=lambda row: row["attempt_id"])
    await work.execute(upsert(tables.attempt).on_conflict_do_nothing(), ordered)


async def append_operations(work: Work, rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """What is asked for; returns the ids of those that were never asked for before."""
    statement = upsert(tables.operation).on_conflict_do_nothing().returning(_operation.operation_id)
    ordered = sorted(rows, key=lambda row: row["operation_id"])
    return set((await work.execute(statement, ordered)).scalars())


async def operation(work: Work, operation_id: str) -> Any:
    """One operation by its id."""
    return (await work.execute(select(tables.operation).where(_operation.operation_id == operation_id))).one()


async def lock_attempt(work: Work, attempt_id: UUID) -> Any | None:
    """An attempt, locked: its operations are taken and ended under this lock."""
    statement = select(tables.attempt).where(_attempt.attempt_id == attempt_id).with_for_update()
    return (await work.execute(statement)).one_or_none()


async def save_attempt(work: Work, attempt_id: UUID, **values: Any) -> None:
    """New values of an attempt that is locked."""
    await work.execute(update(tables.attempt).where(_attempt.attempt_id == attempt_id).values(**values))


async def count_try(work: Work, operation_id: str) -> None:
    """One more try, before it is made."""
    statement = update(tables.operation).where(_operation.operation_id == operation_id)
    await work.execute(statement.values(tries=_operation.tries + 1))


async def is_untried(work: Work, operation_id: str) -> bool:
    """Whether this operation is to be done and was never tried."""
    statement = select(_operation.operation_id).where(
        _operation.operation_id == operation_id, _operation.done_at.is_(None), _operation.tries == 0
    )
    return (await work.execute(statement)).first() is not None


async def undone(work: Work, attempt_id: UUID, *, untried: bool = False) -> list[str]:
    """The ids of the operations of an attempt that are to be done; only of those that were never tried when that is asked."""
    statement = select(_operation.operation_id).where(_operation.attempt_id == attempt_id, _operation.done_at.is_(None))
    if untried:
        statement = statement.where(_operation.tries == 0)
    return list((await work.execute(statement)).scalars())


async def end_operations(work: Work, attempt_id: UUID, outcome: str, *, kind: str) -> None:
    """Operations of a kind are not carried out any more."""
    statement = update(tables.operation).where(
        _operation.attempt_id == attempt_id, _operation.kind == kind, _operation.done_at.is_(None)
    )
    await work.execute(statement.values(done_at=work.now, outcome=outcome))


async def end_every(work: Work, kind: str, outcome: str) -> list[str]:
    """No operation of a kind is carried out any more, of whatever attempt; returns the ids of those that were to be."""
    statement = update(tables.operation).where(_operation.kind == kind, _operation.done_at.is_(None))
    ended = statement.values(done_at=work.now, outcome=outcome).returning(_operation.operation_id)
    return list((await work.execute(ended)).scalars())


async def end_operation(work: Work, operation_id: str, outcome: str) -> None:
    """An operation is over: `heard`, or why it is given up."""
    statement = update(tables.operation).where(_operation.operation_id == operation_id, _operation.done_at.is_(None))
    await work.execute(statement.values(done_at=work.now, outcome=outcome))


async def last_answer(work: Work, attempt_id: UUID) -> int:
    """The number of the newest answer of an attempt that is locked; 0 for none."""
    statement = select(func.coalesce(func.max(_answer.number), 0)).where(_answer.attempt_id == attempt_id)
    return int((await work.execute(statement)).scalar_one())


async def append_answers(work: Work, rows: Sequence[Mapping[str, Any]]) -> None:
    """What is going to be answered, and when."""
    await work.execute(insert(tables.answer), list(rows))


async def answers_due(work: Work, attempt_ids: Iterable[UUID]) -> Sequence[Row[Any]]:
    """Answers of these attempts whose time has come and that were not told, with what they answer."""
    amount, currency = (func.coalesce(_answer[name], _attempt[name]).label(name) for name in ("amount", "currency"))
    own = [column for column in tables.answer.columns if column.name not in ("amount", "currency")]
    statement = (
        select(*own, amount, currency, _attempt.processor)
        .join_from(tables.answer, tables.attempt, _answer.attempt_id == _attempt.attempt_id)
        .where(_answer.attempt_id.in_(sorted(set(attempt_ids))), _answer.told_at.is_(None), _answer.due_at <= work.now)
        .order_by(_answer.attempt_id, _answer.number)
        .with_for_update(of=tables.answer)
    )
    return (await work.execute(statement)).all()


async def answers_told(work: Work, attempt_ids: Iterable[UUID]) -> None:
    """Mark what `answers_due` found as told."""
    statement = update(tables.answer).where(
        _answer.attempt_id.in_(sorted(set(attempt_ids))), _answer.told_at.is_(None), _answer.due_at <= work.now
    )
    await work.execute(statement.values(told_at=work.now))


async def answers_to_come(work: Work, attempt_ids: Iterable[UUID]) -> dict[UUID, datetime]:
    """When the next answer of each attempt is due that has one."""
    statement = (
        select(_answer.attempt_id, func.min(_answer.due_at).label("due_at"))
        .where(_answer.attempt_id.in_(sorted(set(attempt_ids))), _answer.told_at.is_(None))
        .group_by(_answer.attempt_id)
    )
    return {row.attempt_id: row.due_at for row in (await work.execute(statement)).all()}
