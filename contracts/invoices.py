"""What invoices tells: totals, link and hash of a closed invoice and its closing postings, never its lines; then its states,
and the credit notes against it."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field

from contracts.groups import Zone
from contracts.receivables import InvoiceState
from contracts.words import Amount, CurrencyCode, Id, Instant, Message, Month, SignedAmount, SignedTotal, Text

SellerId = Annotated[Id | None, Field(description="Who issues it; an older record does not say it")]
SeriesNo = Annotated[
    int | None,
    Field(ge=1, description="Its place in the series of its seller's numbers; an older record does not say it"),
]


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
    exact_sum: Annotated[
        SignedTotal | None, Field(description="Of its charges, to the nano; an older record does not say it")
    ] = None
    xor: Annotated[
        Text | None, Field(description="Of the hashes of its charges' ids; an older record does not say it")
    ] = None
    billing_entity_id: SellerId = None
    series_no: SeriesNo = None
    replaces: Annotated[
        Text | None,
        Field(
            description="The number of an invoice of this group and period that is cancelled: it was told in a life that a"
            " restore from a backup undid, and the close came to something else"
        ),
    ] = None


class InvoiceMoved(Message):
    """What happened to a closed invoice, and how it stands after it; its document does not change.

    ``version`` counts per invoice: the highest holds. due = paid + written off + credited + open. An overdue invoice that is
    paid in part is told as `partly_paid`, and its state is overdue still.
    """

    kind: Literal["partly_paid", "paid", "overdue", "written_off", "credited"]
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
    credited: Annotated[
        SignedTotal, Field(description="Of what was open, by credit notes; an older record does not say it")
    ] = "0"
    open: SignedTotal
    owed_by: Annotated[
        tuple[Id, ...] | None,
        Field(description="Accounts with a share of what is open; an older record does not say it"),
    ] = None


class CreditNotePosting(Message):
    """What a credit note gives one account back, tax included: into its wallet, and of what its group owes for it."""

    account_id: Id
    wallet: Amount = "0"
    owed: Amount = "0"


class ProductCredit(Message):
    """What a credit note takes back of the revenue of one product, to the nano; below zero where the invoice had given."""

    product: Text
    exact: SignedTotal


class CreditNoteIssued(Message):
    """A credit note against a closed invoice. total = net + tax = the sum over postings, to the nano; and
    net = the sum over products - promotion + rounding."""

    kind: Literal["credit_note"] = "credit_note"
    credit_note_id: UUID
    number: Text
    invoice_id: UUID
    invoice_number: Text
    group_id: Id
    organization_id: Id
    period: Annotated[Month, Field(description="Of the invoice")]
    issued_on: Instant
    currency: CurrencyCode
    net: SignedTotal
    tax: SignedTotal
    total: SignedTotal
    voids: Annotated[bool, Field(description="Nothing of the invoice is left: it is void")]
    document: Text
    sha256: Text
    postings: tuple[CreditNotePosting, ...]
    products: tuple[ProductCredit, ...]
    promotion: Annotated[
        SignedTotal, Field(description="What promotional credit had paid of it, which is not given back")
    ]
    rounding: SignedTotal
    billing_entity_id: SellerId = None
    series_no: SeriesNo = None


InvoiceEvent = Annotated[InvoiceClosed | InvoiceMoved | CreditNoteIssued, Field(discriminator="kind")]
"""`invoices.events`, keyed by group: read on by ``kind``, and pass over kinds that you do not know."""
