"""What invoices tells: totals, link and hash of a closed invoice, and its closing postings, never its lines."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field

from contracts.words import CurrencyCode, Id, Instant, Message, Month, SignedAmount, SignedTotal, Text


class ClosingPosting(Message):
    """The entries of one account at close; what is left out is zero. Signs as in the ledger: > 0 credits."""

    account_id: Id
    wallet: SignedAmount = "0"
    unbilled: SignedAmount = "0"
    receivable: SignedAmount = "0"


class InvoiceClosed(Message):
    """`invoices.events`. The sum over postings + rounding + tax is zero, to the nano."""

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
