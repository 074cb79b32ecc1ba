"""Requests to payment processors and their results. The attempt id is the idempotency key, everywhere."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field, StringConstraints

from contracts.words import Amount, CurrencyCode, Id, Instant, Message, Text

MethodKind = Literal["card", "paypal", "bank_debit", "transfer"]
Token = Annotated[
    str,
    StringConstraints(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_.:-]+$"),
    Field(description="A processor's token, never a card number"),
]
ResultId = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f]+$")]


class PaymentRequest(Message):
    """`payments.requests`: charge this token once for this attempt id."""

    kind: Literal["charge"] = "charge"
    attempt_id: UUID
    account_id: Id
    processor: Id
    method_kind: MethodKind
    token: Token
    amount: Amount
    currency: CurrencyCode
    requested_at: Instant


class PaymentResult(Message):
    """`payments.results.<processor>`: may come twice, late or out of order. ``result_id`` is unique per processor."""

    result_id: ResultId
    attempt_id: UUID
    processor: Id
    kind: Literal["settled", "failed"]
    failure: Annotated[Literal["declined", "error"] | None, Field(description="Only with failed")] = None
    reason: Text | None = None
    amount: Amount
    currency: CurrencyCode
    at: Instant
