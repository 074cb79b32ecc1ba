"""SQL of credit notes and nothing else: one function, one statement, named by what it asks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, Uuid, and_, bindparam, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.invoices.credit_notes import Line
from services.invoices.tables import credit_note, credit_note_document, invoice, line
from services.runtime.lanes import CLOCK_NOW

_IDS = bindparam("ids", type_=ARRAY(Uuid))
_note = credit_note.c
_KEPT = select(
    credit_note, invoice.c.number.label("invoice_number"), invoice.c.group_id, invoice.c.period, invoice.c.currency
).join_from(credit_note, invoice, invoice.c.invoice_id == _note.invoice_id)

_ISSUED = (  # one whose document is gone is still issued: nobody may credit the same again
    select(credit_note, credit_note_document.c.body, credit_note_document.c.sha256)
    .outerjoin_from(credit_note, credit_note_document, credit_note_document.c.credit_note_id == _note.credit_note_id)
    .where(_note.state == "issued")
)


async def lock_invoices(connection: AsyncConnection, invoice_ids: Iterable[UUID]) -> None:
    """Of a closed invoice one note is proposed or issued at a time, each when the one before it is there to be read."""
    statement = select(invoice.c.invoice_id).where(invoice.c.invoice_id == func.any(_IDS))
    statement = statement.order_by(invoice.c.invoice_id).with_for_update()
    await connection.execute(statement, {"ids": sorted(set(invoice_ids))})


async def propose(connection: AsyncConnection, row: Mapping[str, Any]) -> bool:
    """Keep a proposal; False where one of its invoice is under way already."""
    statement = insert(credit_note).values(**row, state="proposed", proposed_at=CLOCK_NOW).on_conflict_do_nothing()
    return (await connection.execute(statement.returning(_note.credit_note_id))).first() is not None


async def load(connection: AsyncConnection, credit_note_id: UUID) -> Any:
    """A note with what is said of its invoice, or None; locked."""
    statement = _KEPT.where(_note.credit_note_id == credit_note_id).with_for_update(of=credit_note)
    return (await connection.execute(statement)).one_or_none()


async def find(connection: AsyncConnection, limit: int, group_id: str | None, state: str | None) -> list[Any]:
    """The newest notes, in the order they were proposed: of this group, in this state, or all."""
    statement = _KEPT.order_by(_note.proposed_at.desc(), _note.credit_note_id.desc()).limit(limit)
    for column, wanted in ((invoice.c.group_id, group_id), (_note.state, state)):
        if wanted is not None:
            statement = statement.where(column == wanted)
    return list((await connection.execute(statement)).all())[::-1]


async def approve(connection: AsyncConnection, credit_note_id: UUID, by: str) -> None:
    """A locked proposal is approved."""
    statement = update(credit_note).where(_note.credit_note_id == credit_note_id)
    await connection.execute(statement.values(state="approved", decided_by=by, decided_at=CLOCK_NOW))


async def withdraw(connection: AsyncConnection, credit_note_id: UUID, by: str) -> None:
    """A locked note that is not issued is given up."""
    statement = update(credit_note).where(_note.credit_note_id == credit_note_id)
    await connection.execute(statement.values(state="withdrawn", withdrawn_by=by, withdrawn_at=CLOCK_NOW))


async def refuse(connection: AsyncConnection, credit_note_id: UUID, why: str) -> bool:
    """A locked note that is approved cannot be issued; whether that is news."""
    statement = update(credit_note).where(_note.credit_note_id == credit_note_id, _note.refused.is_distinct_from(why))
    return bool((await connection.execute(statement.values(refused=why))).rowcount)


async def lock_approved(connection: AsyncConnection, limit: int) -> list[Any]:
    """Approved notes that nobody else is issuing, the first to be approved first; of an invoice there is one."""
    statement = (
        select(credit_note)
        .where(_note.state == "approved")
        .order_by(_note.decided_at, _note.credit_note_id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return list((await connection.execute(statement)).all())


async def load_issued(connection: AsyncConnection, invoice_ids: Iterable[UUID]) -> dict[UUID, list[Any]]:
    """The notes that were issued against these invoices, each with body and SHA-256 of its document, in their order."""
    statement = _ISSUED.where(_note.invoice_id == func.any(_IDS)).order_by(_note.issued_at, _note.number)
    found: dict[UUID, list[Any]] = {}
    for row in (await connection.execute(statement, {"ids": sorted(set(invoice_ids))})).all():
        found.setdefault(row.invoice_id, []).append(row)
    return found


async def given_back(connection: AsyncConnection, invoice_id: UUID) -> dict[Line, int]:
    """Of what an invoice says of its own period: what later invoices of its group give back, above zero."""
    other = invoice.alias("other").c
    exact = func.sum(line.c.exact_nano)
    key = (line.c.account_id, line.c.product, line.c.prepaid)
    statement = (
        select(*key, -exact)
        .join_from(
            invoice, other.invoice_id.table, and_(other.group_id == invoice.c.group_id, other.period > invoice.c.period)
        )
        .join(line, and_(line.c.invoice_id == other.invoice_id, line.c.period == invoice.c.period))
        .where(invoice.c.invoice_id == invoice_id)
        .group_by(*key)
        .having(exact < 0)
    )
    return {Line(*row[:3]): int(row[3]) for row in (await connection.execute(statement)).all()}


async def find_issued(connection: AsyncConnection, number: str, as_id: UUID | None) -> list[Any]:
    """The issued notes of this number or id, each with body and SHA-256 of its document."""
    same = _note.number == number if as_id is None else _note.credit_note_id == as_id
    return list((await connection.execute(_ISSUED.where(same))).all())


async def save_issued(
    connection: AsyncConnection, credit_note_id: UUID, entity_id: str, number: str, now: datetime
) -> None:
    """A locked note that was approved has its number."""
    statement = update(credit_note).where(_note.credit_note_id == credit_note_id)
    await connection.execute(
        statement.values(state="issued", billing_entity_id=entity_id, number=number, issued_at=now, refused=None)
    )


async def save_document(connection: AsyncConnection, credit_note_id: UUID, body: str, sha256: str) -> None:
    """The document of a note; never written again."""
    await connection.execute(
        insert(credit_note_document).values(credit_note_id=credit_note_id, body=body, sha256=sha256)
    )
