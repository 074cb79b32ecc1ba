"""What people ask of credit notes, with the room's own role: one proposes, another approves; the room numbers and issues.

A proposal is worked out at once, so that what it would give back is seen before it is approved, and again when it is issued.
Of an invoice one is under way at a time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID, uuid4

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.invoices import credit_note_store
from services.invoices.api import as_id, find_closed
from services.invoices.credit_note_documents import as_text
from services.invoices.credit_notes import Asked, CreditNote, Document, decide, parse, read, written
from services.kernel.cards import refuse_card_number
from services.kernel.errors import InvalidInput, NotFound, NotPermitted, Refused
from services.runtime.database import transaction

REASON_MAX = 500  # it stands on the document
LINES_MAX = 1_000
LIST_MAX = 1_000

State = Literal["proposed", "approved", "issued", "withdrawn"]


@dataclass(frozen=True, slots=True)
class KeptNote:
    """A credit note and who decided what. ``lines`` None: all that was left of the invoice."""

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
    issued_at: datetime | None


@dataclass(frozen=True, slots=True)
class ShownNote:
    """An issued note. ``body`` is the canonical JSON whose SHA-256 was published."""

    document: Document
    body: str
    sha256: str

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
    _need_finance(role)
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
        note = decide(document, await _earlier(connection, invoice_id), lines)
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
        return _kept(await credit_note_store.load(connection, credit_note_id))


async def approve(engine: AsyncEngine, credit_note_id: UUID, by: str, role: str) -> KeptNote:
    """Let a proposed note be issued: the room gives it its number within a second. Again by the same person changes nothing.

    `NotPermitted` for who proposed it and for another role than finance; `Refused` for one that was withdrawn.
    """
    _need_finance(role)
    async with transaction(engine) as connection:
        row = await _of_id(connection, credit_note_id)
        if row.proposed_by == by:
            raise NotPermitted(
                f"{by} proposed it, so another person has to approve it", field="actor", code="second_person"
            )
        if row.state == "withdrawn":
            raise Refused(f"{row.decided_by} has withdrawn it; propose it anew", field="credit_note", code="withdrawn")
        if row.state == "proposed":
            await credit_note_store.decide(connection, credit_note_id, "approved", by)
        return _kept(await credit_note_store.load(connection, credit_note_id))


async def withdraw(engine: AsyncEngine, credit_note_id: UUID, by: str, role: str) -> KeptNote:
    """Give up a note that is not issued yet; `Refused` for one that is: it stays."""
    _need_finance(role)
    async with transaction(engine) as connection:
        row = await _of_id(connection, credit_note_id)
        if row.state == "issued":
            raise Refused(f"it is issued with number {row.number}: it stays", field="credit_note", code="issued")
        if row.state != "withdrawn":
            await credit_note_store.decide(connection, credit_note_id, "withdrawn", by)
        return _kept(await credit_note_store.load(connection, credit_note_id))


async def credit_note(engine: AsyncEngine, credit_note_id: UUID) -> KeptNote:
    """One by its id; `NotFound` where there is none."""
    async with transaction(engine) as connection:
        return _kept(await _of_id(connection, credit_note_id))


async def credit_notes(
    engine: AsyncEngine, *, group_id: str | None = None, state: State | None = None, limit: int = LIST_MAX
) -> list[KeptNote]:
    """Notes in the order in which they were proposed: of a payer group, in a state, or all."""
    async with transaction(engine) as connection:
        rows = await credit_note_store.find(connection, limit, group_id, state)
    return [_kept(row) for row in rows]


async def show(engine: AsyncEngine, reference: str) -> ShownNote:
    """An issued note by number or id; `NotFound` where there is none, `InvalidInput` when two sellers share the number."""
    async with transaction(engine) as connection:
        found = await credit_note_store.find_issued(connection, reference, as_id(reference))
    if not found:
        raise NotFound(f"no issued credit note has the number or id {reference!r}", field="credit_note")
    if len(found) > 1:
        raise InvalidInput(f"two billing entities have a credit note {reference}: give its id", field="credit_note")
    return ShownNote(json.loads(found[0].body), found[0].body, found[0].sha256)


async def _earlier(connection: AsyncConnection, invoice_id: UUID) -> list[CreditNote]:
    rows = (await credit_note_store.load_issued(connection, [invoice_id])).get(invoice_id, [])
    return [parse(json.loads(row.body)) for row in rows]


async def _of_id(connection: AsyncConnection, credit_note_id: UUID) -> Any:
    row = await credit_note_store.load(connection, credit_note_id)
    if row is None:
        raise NotFound(f"no credit note has the id {credit_note_id}", field="credit_note")
    return row


def _need_finance(role: str) -> None:
    if role != "finance":
        raise NotPermitted("credit notes need the role finance", field="role")


def _kept(row: Any) -> KeptNote:
    return KeptNote(
        row.credit_note_id, row.state, row.number, row.invoice_id, row.invoice_number, row.group_id, row.period,
        row.currency, int(row.net_nano), int(row.tax_nano), int(row.total_nano), row.voids, row.reason,
        read(row.asked), row.proposed_by, row.proposed_at, row.decided_by, row.decided_at, row.issued_at,
    )  # fmt: skip
