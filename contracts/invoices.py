"""What invoices tells: totals, link and hash of a closed invoice and its closing postings, never its lines; then its states."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field

from contracts.groups import Zone
from contracts.receivables import InvoiceState
from contracts.words import CurrencyCode, Id, Instant, Message, Month, SignedAmount, SignedTotal, Text


class ClosingPosting(Message):
    """The entries of one account at close; what is left out is zero. Signs as in the ledger: > 0 credits."""

    account_id: Id
    wallet: SignedAmount = "0"
    unbilled: SignedAmount = "0"
    receivable: SignedAmount = "0"


class InvoiceClosed(Message):
    """A closed invoice. The sum over postings + rounding + tax is zero, to the nano."""

    kind: Literal["closed"] = "closed"
    invoice_id: UUID
    number: Text
    group_id: Id
    organization_id: Id
    period: Month
    boundary: Instant
    issued_on: Instant
    due_on: Instant
    currency: CurrencyCode
    net: SignedTotal
    tax: SignedTotal
    total: SignedTotal
    paid_from_balance: SignedTotal
    due: SignedTotal
    charges: Annotated[int, Field(ge=0)]
    document: Text
    sha256: Text
    postings: tuple[ClosingPosting, ...]
    posting_rounding: SignedTotal
    posting_tax: SignedTotal
    zone: Annotated[
        Zone, Field(description="In whose calendar it becomes overdue; an older record does not say it")
    ] = "UTC"


class InvoiceMoved(Message):
    """What happened to a closed invoice, and how it stands after it; its document does not change.

    ``version`` counts per invoice: the highest holds. due = paid + written off + open. An overdue invoice that is paid in
    part is told as `partly_paid`, and its state is overdue still.
    """

    kind: Literal["partly_paid", "paid", "overdue", "written_off"]
    invoice_id: UUID
    version: Annotated[int, Field(ge=1)]
    number: Text
    group_id: Id
    organization_id: Id
    period: Month
    state: InvoiceState
    at: Instant
    due_on: Instant
    currency: CurrencyCode
    due: SignedTotal
    paid: SignedTotal
    written_off: SignedTotal
    open: SignedTotal
    owed_by: Annotated[
        tuple[Id, ...] | None,
        Field(description="Accounts with a share of what is open; an older record does not say it"),
    ] = None


InvoiceEvent = Annotated[InvoiceClosed | InvoiceMoved, Field(discriminator="kind")]
"""`invoices.events`, keyed by group: read on by ``kind``, and pass over kinds that you do not know."""
