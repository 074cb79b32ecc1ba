"""Requests to payment processors and their results, all by attempt id: it is the idempotency key, everywhere.

A request may come again, and is then the same request; a result may come twice, late and out of order. Source: domain,
section 4; designs/recharge.
"""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field, StringConstraints, TypeAdapter

from contracts.words import Amount, CurrencyCode, Id, Instant, Message, Text

MethodKind = Literal["card", "paypal", "bank_debit", "transfer"]
Token = Annotated[
    str,
    StringConstraints(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_.:-]+$"),
    Field(description="A processor's token, never a card number"),
]
ResultId = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f]+$")]
DisputeId = Annotated[
    str,
    StringConstraints(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f]+$"),
    Field(description="The processor's id of a dispute: the same in all that is said of it"),
]

PROCESSORS: dict[str, tuple[MethodKind, ...]] = {
    "sandbox": ("card", "paypal", "bank_debit"),
    "stripe": ("card", "paypal", "bank_debit"),
}
"""Who takes requests, and which kinds of method each can charge. A `transfer` is sent by the customer: nobody can pull it."""

# ---- requests ------------------------------------------------------------------------------------------------------


class _Request(Message):
    attempt_id: UUID
    account_id: Id
    processor: Id
    amount: Amount
    currency: CurrencyCode
    requested_at: Instant


class ChargeRequest(_Request):
    """Charge this token once for this attempt id."""

    kind: Literal["charge"] = "charge"
    method_kind: MethodKind
    token: Token
    origin: Annotated[
        Literal["auto", "manual", "scheduled"],
        Field(description="What asked for it; a person is there only when it is manual"),
    ] = "auto"


class InquireRequest(_Request):
    """Say what became of an attempt whose result is missing. It charges nothing; the answer is a result like any other."""

    kind: Literal["inquire"]
    number: Annotated[int, Field(ge=1, le=1_000, description="1, 2, 3 … of this attempt: each is asked once")]


class CancelRequest(_Request):
    """Give the attempt up if it is not settled: answered by `cancelled`, or by what became of it."""

    kind: Literal["cancel"]


class RefundRequest(_Request):
    """Give this amount of a settled attempt back; ``refund_id`` is the idempotency key of the refund."""

    kind: Literal["refund"]
    refund_id: UUID


PaymentRequest = Annotated[ChargeRequest | InquireRequest | CancelRequest | RefundRequest, Field(discriminator="kind")]
"""`payments.requests`, keyed by account: the requests about an attempt come in the order in which they were made."""

# ---- results -------------------------------------------------------------------------------------------------------

ResultKind = Literal[
    "settled",
    "failed",
    "cancelled",
    "never_seen",
    "refunded",
    "refund_failed",
    "disputed",
    "dispute_won",
    "dispute_lost",
]


class PaymentResult(Message):
    """`payments.results.<processor>`: may come twice, late or out of order. ``result_id`` is unique per processor.

    ``amount`` is what settled, failed or was given up, always the whole attempt; of a refund or dispute its own amount.
    `cancelled` and `never_seen` promise that this attempt id is not charged any more.
    """

    result_id: ResultId
    attempt_id: UUID
    processor: Id
    kind: ResultKind
    failure: Annotated[Literal["declined", "error"] | None, Field(description="With failed, and only then")] = None
    reason: Text | None = None
    amount: Amount
    currency: CurrencyCode
    at: Instant
    refund_id: Annotated[
        UUID | None,
        Field(
            description="Of a refund, the same in all that is said of it; null: the processor began it and gave it no name"
        ),
    ] = None
    dispute_id: Annotated[DisputeId | None, Field(description="With the three kinds of disputes, and only then")] = None


payment_result: TypeAdapter[PaymentResult] = TypeAdapter(PaymentResult)
