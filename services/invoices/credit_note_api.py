"""What people ask of credit notes, with the room's own role: one proposes, another approves; the room numbers and issues.

A proposal is worked out at once, so that what it would give back is seen before it is approved, and again when it is issued.
Of an invoice one is under way at a time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID, uuid4

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.invoices import credit_note_documents, credit_note_store
from services.invoices.api import as_id, find_closed
from services.invoices.credit_note_documents import as_text
from services.invoices.credit_notes import Asked, CreditNote, Document, decide, given_back_twice, parse, read, written
from services.invoices.documents import canonical, sha256_of
from services.kernel.cards import refuse_card_number
from services.kernel.errors import InvalidInput, NotFound, NotPermitted, Refused
from services.runtime.database import transaction

ACTOR_MAX = 255
REASON_MAX = 500  # it stands on the document
LINES_MAX = 1_000
LIST_MAX = 1_000

State = Literal["proposed", "approved", "issued", "withdrawn"]


@dataclass(frozen=True, slots=True)
class KeptNote:
    """A credit note and who decided what: ``decided_by`` approved it. ``lines`` None: all that was left of the invoice.
    ``refused``: why one that is approved cannot be issued."""

    credit_note_id: UUID
    state: State
    number: str | None
    invoice_id: UUID
    invoice_number: str
    group_id: str
    period: str
    currency: str
    net_nano: int
    tax_nano: int
    total_nano: int
    voids: bool
    reason: str
    lines: tuple[Asked, ...] | None
    proposed_by: str
    proposed_at: datetime
    decided_by: str | None
    decided_at: datetime | None
    withdrawn_by: str | None
    withdrawn_at: datetime | None
    refused: str | None
    issued_at: datetime | None
    warnings: tuple[str, ...] = ()  # of what is proposed: for who decides


@dataclass(frozen=True, slots=True)
class ShownNote:
    """A note. ``body`` is the canonical JSON whose SHA-256 was published, or is to be: then the number is `DRAFT`."""

    document: Document
    body: str
    sha256: str
    warnings: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The note as a page to read."""
        return as_text(dict(self.document))


async def propose(
    engine: AsyncEngine, reference: str, reason: str, by: str, role: str, lines: Sequence[Asked] | None = None
) -> KeptNote:
    """Propose to credit lines of a closed invoice, or all that is left of it; nothing moves until another person approves.

    `NotPermitted` for another role than finance; `InvalidInput` and `Refused` for what cannot be credited, with how much can;
    `Refused` (``under_way``) while another note of the invoice is.
    """
    _need_finance(role, by)
    if not reason.strip() or len(reason) > REASON_MAX or not reason.isprintable():
        raise InvalidInput(
            f"say why, in 1 to {REASON_MAX} characters and one line: it stands on the document", field="reason"
        )
    refuse_card_number(reason, field="reason")
    if lines is not None and not 0 < len(lines) <= LINES_MAX:
        raise InvalidInput(f"must name 1 to {LINES_MAX} lines, or none for all of the invoice", field="line")
    async with transaction(engine) as connection:
        body, _ = await find_closed(connection, reference)
        document = json.loads(body)
        invoice_id = UUID(document["invoice_id"])
        await credit_note_store.lock_invoices(connection, [invoice_id])
        note, warnings = await _decided(connection, document, lines)
        credit_note_id = uuid4()
        made = {
            "credit_note_id": credit_note_id, "invoice_id": invoice_id, "asked": written(lines), "reason": reason,
            "proposed_by": by, "voids": note.voids, "net_nano": Decimal(note.net_nano), "tax_nano": Decimal(note.tax_nano),
            "total_nano": Decimal(note.total_nano),
        }  # fmt: skip
        if not await credit_note_store.propose(connection, made):
            raise Refused(
                f"a credit note of invoice {document['number']} is under way: approve or withdraw it first",
                field="invoice",
                code="under_way",
            )
        return replace(_kept(await credit_note_store.load(connection, credit_note_id)), warnings=warnings)


async def approve(engine: AsyncEngine, credit_note_id: UUID, by: str, role: str) -> KeptNote:
    """Let a proposed note be issued: the room gives it its number within a second. Again by the same person changes nothing.

    `NotPermitted` for who proposed it and for another role than finance; `Refused` for one that was withdrawn.
    """
    _need_finance(role, by)
    async with transaction(engine) as connection:
        row = await _of_id(connection, credit_note_id)
        if row.proposed_by == by:
            raise NotPermitted(
                f"{by} proposed it, so another person has to approve it", field="actor", code="second_person"
            )
        if row.state == "withdrawn":
            raise Refused(
                f"{row.withdrawn_by} has withdrawn it; propose it anew", field="credit_note", code="withdrawn"
            )
        if row.state == "proposed":
            await credit_note_store.approve(connection, credit_note_id, by)
        return _kept(await credit_note_store.load(connection, credit_note_id))


async def withdraw(engine: AsyncEngine, credit_note_id: UUID, by: str, role: str) -> KeptNote:
    """Give up a note that is not issued yet; `Refused` for one that is: it stays."""
    _need_finance(role, by)
    async with transaction(engine) as connection:
        row = await _of_id(connection, credit_note_id)
        if row.state == "issued":
            raise Refused(f"it is issued with number {row.number}: it stays", field="credit_note", code="issued")
        if row.state != "withdrawn":
            await credit_note_store.withdraw(connection, credit_note_id, by)
        return _kept(await credit_note_store.load(connection, credit_note_id))


async def credit_note(engine: AsyncEngine, credit_note_id: UUID) -> KeptNote:
    """One by its id; `NotFound` where there is none."""
    async with transaction(engine) as connection:
        return _kept(await _of_id(connection, credit_note_id))


async def credit_notes(
    engine: AsyncEngine, *, group_id: str | None = None, state: State | None = None, limit: int = LIST_MAX
) -> list[KeptNote]:
    """The newest notes, in the order in which they were proposed: of a payer group, in a state, or all."""
    async with transaction(engine) as connection:
        rows = await credit_note_store.find(connection, limit, group_id, state)
    return [_kept(row) for row in rows]


async def show(engine: AsyncEngine, reference: str) -> ShownNote:
    """An issued note by number or id, or by id what one would be if it were issued now: for who approves it.

    `NotFound` where there is none or it is withdrawn, `InvalidInput` when two sellers share the number.
    """
    note_id = as_id(reference)
    async with transaction(engine) as connection:
        found = await credit_note_store.find_issued(connection, reference, note_id)
        if not found and note_id is not None and (row := await credit_note_store.load(connection, note_id)) is not None:
            return await _draft(connection, row)
    if not found:
        raise NotFound(f"no issued credit note has the number or id {reference!r}", field="credit_note")
    if len(found) > 1:
        raise InvalidInput(f"two billing entities have a credit note {reference}: give its id", field="credit_note")
    (document,) = credit_note_documents.documents_of(found)
    return ShownNote(document, found[0].body, found[0].sha256)


async def _draft(connection: AsyncConnection, row: Any) -> ShownNote:
    if row.state == "withdrawn":
        raise NotFound(f"{row.withdrawn_by} has withdrawn credit note {row.credit_note_id}", field="credit_note")
    body, sha256 = await find_closed(connection, str(row.invoice_id))
    invoice = json.loads(body)
    note, warnings = await _decided(connection, invoice, read(row.asked))
    document = credit_note_documents.issued(
        note, row.credit_note_id, invoice, sha256, number="DRAFT", reason=row.reason, at=row.proposed_at
    )
    draft = canonical(document)
    return ShownNote(document, draft, sha256_of(draft), warnings)


async def _decided(
    connection: AsyncConnection, invoice: Document, lines: Sequence[Asked] | None
) -> tuple[CreditNote, tuple[str, ...]]:
    """The note, and what the people who decide have to know."""
    invoice_id = UUID(invoice["invoice_id"])
    rows = (await credit_note_store.load_issued(connection, [invoice_id])).get(invoice_id, [])
    earlier = list(map(parse, credit_note_documents.documents_of(rows)))
    note = decide(invoice, earlier, lines)
    given_back = await credit_note_store.given_back(connection, invoice_id)
    return note, tuple(given_back_twice(invoice, [*earlier, note], given_back))


async def _of_id(connection: AsyncConnection, credit_note_id: UUID) -> Any:
    row = await credit_note_store.load(connection, credit_note_id)
    if row is None:
        raise NotFound(f"no credit note has the id {credit_note_id}", field="credit_note")
    return row


def _need_finance(role: str, by: str) -> None:
    if role != "finance":
        raise NotPermitted("credit notes need the role finance", field="role")
    if not 0 < len(by) <= ACTOR_MAX or not by.isprintable():
        raise InvalidInput(f"must be 1 to {ACTOR_MAX} characters in one line", field="actor")
    refuse_card_number(by, field="actor")


def _kept(row: Any) -> KeptNote:
    return KeptNote(
        row.credit_note_id, row.state, row.number, row.invoice_id, row.invoice_number, row.group_id, row.period,
        row.currency, int(row.net_nano), int(row.tax_nano), int(row.total_nano), row.voids, row.reason,
        read(row.asked), row.proposed_by, row.proposed_at, row.decided_by, row.decided_at, row.withdrawn_by,
        row.withdrawn_at, row.refused, row.issued_at,
    )  # fmt: skip
