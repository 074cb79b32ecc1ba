"""SQL of payments and nothing else: one function, one statement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Row, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from services.payments import tables
from services.runtime.work import Work


async def append_attempts(work: Work, rows: Sequence[Mapping[str, Any]]) -> set[UUID]:
    """Attempts asked for; returns those that were never asked for before, in whatever order and however often."""
    statement = upsert(tables.attempt).on_conflict_do_nothing().returning(tables.attempt.c.attempt_id)
    ordered = sorted(rows, key=lambda row: row["attempt_id"])
    return set((await work.execute(statement, ordered)).scalars())


async def append_answers(work: Work, rows: Sequence[Mapping[str, Any]]) -> None:
    """What is going to be answered, and when."""
    await work.execute(insert(tables.answer), list(rows))


async def answers_due(work: Work, attempt_ids: Iterable[UUID]) -> Sequence[Row[Any]]:
    """Answers of these attempts whose time has come and that were not told, with what they answer."""
    attempt, answer = tables.attempt.c, tables.answer.c
    statement = (
        select(tables.answer, attempt.processor, attempt.amount, attempt.currency)
        .join(tables.attempt, answer.attempt_id == attempt.attempt_id)
        .where(answer.attempt_id.in_(sorted(set(attempt_ids))), answer.told_at.is_(None), answer.due_at <= work.now)
        .order_by(answer.attempt_id, answer.number)
        .with_for_update(of=tables.answer)
    )
    return (await work.execute(statement)).all()


async def answers_told(work: Work, attempt_ids: Iterable[UUID]) -> None:
    """Mark what `answers_due` found as told."""
    answer = tables.answer.c
    statement = update(tables.answer).where(
        answer.attempt_id.in_(sorted(set(attempt_ids))), answer.told_at.is_(None), answer.due_at <= work.now
    )
    await work.execute(statement.values(told_at=work.now))


async def answers_to_come(work: Work, attempt_ids: Iterable[UUID]) -> Sequence[Row[Any]]:
    """(attempt, due) of the next answer of each attempt that has one."""
    answer = tables.answer.c
    statement = (
        select(answer.attempt_id, func.min(answer.due_at).label("due_at"))
        .where(answer.attempt_id.in_(sorted(set(attempt_ids))), answer.told_at.is_(None))
        .group_by(answer.attempt_id)
        .order_by(answer.attempt_id)
    )
    return (await work.execute(statement)).all()
