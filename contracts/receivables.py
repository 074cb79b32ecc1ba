"""What payer groups owe: commands of finance about it, and what balance tells of invoices that are paid or overdue.

Balance owns the money, so it alone says how much of an invoice is paid; invoices owns the document and moves its state.
"""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field, StringConstraints, TypeAdapter

from contracts.words import Amount, CurrencyCode, Id, Instant, Message, Month, Name, SignedTotal, Text

InvoiceState = Literal["closed", "partly_paid", "paid", "overdue", "written_off", "void"]
InvoiceReference = Annotated[
    str,
    StringConstraints(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f]+$"),
    Field(description="An invoice's id or number"),
]
Reference = Annotated[
    str,
    StringConstraints(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f]+$"),
    Field(description="The bank's own id of a transfer"),
]


# ---- commands ------------------------------------------------------------------------------------------------------


class _Command(Message):
    command_id: Annotated[Id, Field(description="The same id is carried out once for a group")]
    actor: Annotated[Name, Field(description="Who asks, for the log")]
    role: Literal["owner", "billing_admin", "operator", "finance"] = "owner"
    group_id: Annotated[Id, Field(description="The payer group")]


class RecordPayment(_Command):
    """Finance records a transfer that arrived. It pays the named invoice, or else what is due first; what is left is kept
    for the next close. The same reference of the same bank is recorded once."""

    kind: Literal["record_payment"] = "record_payment"
    amount: Amount
    currency: CurrencyCode
    bank: Annotated[Id, Field(description="Where it arrived; its clearing account has this name")] = "bank"
    reference: Reference
    invoice: InvoiceReference | None = None
    note: Text = ""


class PayByCard(_Command):
    """Charges the saved method of an account of the group: for the named invoice, or else what is due first."""

    kind: Literal["pay_by_card"] = "pay_by_card"
    account_id: Annotated[Id, Field(description="Whose saved method is charged; the group pays for it")]
    amount: Annotated[Amount | None, Field(description="null: all that is open")] = None
    currency: CurrencyCode
    invoice: InvoiceReference | None = None


class ReturnMoney(_Command):
    """Finance has sent back money that is kept for the group: paid too much, or credited after it was paid. Never more than is
    kept. The same reference of the same bank is recorded once for a group."""

    kind: Literal["return_money"] = "return_money"
    amount: Amount
    currency: CurrencyCode
    bank: Annotated[Id, Field(description="Which sent it; its clearing account has this name")] = "bank"
    reference: Reference
    note: Text = ""


class ProposeWriteOff(_Command):
    """Finance proposes to give up what is open of an invoice; nothing moves until another person approves it."""

    kind: Literal["propose_write_off"] = "propose_write_off"
    invoice: InvoiceReference
    note: Annotated[Text, StringConstraints(min_length=1), Field(description="Why; for the log")]


class ApproveWriteOff(_Command):
    """A second person of finance approves: what is open by then is written off."""

    kind: Literal["approve_write_off"] = "approve_write_off"
    invoice: InvoiceReference


GroupCommand = Annotated[
    RecordPayment | PayByCard | ReturnMoney | ProposeWriteOff | ApproveWriteOff, Field(discriminator="kind")
]
group_command: TypeAdapter[GroupCommand] = TypeAdapter(GroupCommand)


# ---- events --------------------------------------------------------------------------------------------------------

GroupEventKind = Literal[
    "command_refused",
    "payment_recorded",
    "payment_known",
    "card_payment_requested",
    "money_returned",
    "write_off_proposed",
    "invoice_paid",
    "invoice_credited",
    "invoice_written_off",
    "invoice_overdue",
    "overdue_notice",
]


class InvoiceStanding(Message):
    """How an invoice stands: due = paid + written off + credited + open. ``version`` counts per invoice from its close on,
    which is 0: the highest holds."""

    invoice_id: UUID
    version: Annotated[int, Field(ge=0)]
    number: Text
    period: Month
    state: InvoiceState
    due_on: Instant
    due: SignedTotal
    paid: SignedTotal
    written_off: SignedTotal
    credited: Annotated[
        SignedTotal, Field(description="Of what was open, by credit notes; an older record does not say it")
    ] = "0"
    open: SignedTotal
    overdue_since: Instant | None = None
    owed_by: Annotated[
        tuple[Id, ...] | None,
        Field(description="Accounts with a share of what is open; an older record does not say it"),
    ] = None


class GroupEvent(Message):
    """`balance.group_events`: one per transition of what a group owes. ``version`` counts per group.

    Those with an ``invoice`` say how it stands after it; of these, `invoice_paid`, `invoice_credited` and
    `invoice_written_off` moved ``amount`` of it. A credit note is told as `invoice_credited`, with its number as ``reference``:
    what is not open any more is kept, or never was given up.
    """

    group_id: Id
    organization_id: Id
    version: Annotated[int, Field(ge=1)]
    kind: GroupEventKind
    at: Instant
    currency: CurrencyCode
    unapplied: Annotated[SignedTotal, Field(description="Paid too much so far: pays the next invoice")]
    amount: SignedTotal | None = None
    invoice: InvoiceStanding | None = None
    source: Annotated[
        Literal["transfer", "card", "balance", "overpayment", "credit", "write_off", "credit_note"] | None,
        Field(description="What the amount came from"),
    ] = None
    payment_id: UUID | None = None
    reference: Annotated[
        Text | None, Field(description="Of the payment, as the bank names it; the number of a credit note")
    ] = None
    days: Annotated[int | None, Field(description="Of a notice: since how many days the invoice is overdue")] = None
    command_id: Text | None = None
    reason: Text | None = None
    field: Text | None = None
    message: Text | None = None
