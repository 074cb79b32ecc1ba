"""What telephony services publish, and what usage makes of it.

The two hot records are typed dictionaries (half the decoding time of models); everything else is a frozen model.
"""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired

from pydantic import ConfigDict, Field, StringConstraints, with_config
from typing_extensions import TypedDict

from contracts.words import E164, Amount, CurrencyCode, Id, Instant, InstantText, Message, Month, SignedAmount, Text

VOICE_LEG = "tollbook.usage.voice.leg.v1"
EVENT_BYTES_MAX = 65_536  # an event is a few hundred bytes; larger ones are quarantined, not parsed
CALL_SECONDS_MAX = 7 * 86_400  # a leg of more than a week is a broken clock, not a call

_STRICT = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)
_STRICT_OPEN = ConfigDict(strict=True, extra="allow", hide_input_in_errors=True)

Attribute = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")]
Seconds = Annotated[int, Field(ge=0, le=CALL_SECONDS_MAX)]


@with_config(_STRICT)
class VoiceLeg(TypedDict):
    """One side of a call as one switch record. Event time is ``ended_at``."""

    account_id: Id
    direction: Literal["inbound", "outbound"]
    caller: E164 | None
    called: E164
    started_at: InstantText
    ended_at: InstantText
    answered: bool
    duration_s: Annotated[Seconds, Field(description="The whole leg, ringing included")]
    billable_s: Annotated[Seconds, Field(description="The answered part; 0 when unanswered")]
    outbound_profile: NotRequired[Id | None]
    cost_center_id: NotRequired[Annotated[Id | None, Field(description="Per-call override")]]
    call_leg_id: NotRequired[Attribute | None]


@with_config(_STRICT_OPEN)
class VoiceLegEvent(TypedDict):
    """A CloudEvents 1.0 event in structured JSON; extension attributes are allowed and ignored."""

    specversion: Literal["1.0"]
    id: Attribute
    source: Attribute
    type: Literal["tollbook.usage.voice.leg.v1"]
    time: NotRequired[InstantText | None]
    subject: NotRequired[Attribute | None]
    datacontenttype: NotRequired[Literal["application/json"] | None]
    dataschema: NotRequired[Attribute | None]
    data: VoiceLeg


@with_config(_STRICT)
class Charge(TypedDict):
    """A rated usage event, as balance, invoices and downstream consumers read it. Negative for a reversal."""

    charge_id: Annotated[str, Field(min_length=36, max_length=36)]
    revision: Annotated[int, Field(ge=0)]
    reverses: str | None
    account_id: Id
    organization_id: Id
    plan: Annotated[Literal["trial", "payg", "invoiced"], Field(description="The account's plan at event time")]
    group_id: Annotated[Id | None, Field(description="Payer group at event time; null for a trial account")]
    period: Annotated[Month | None, Field(description="Period of the event time in the group's zone")]
    bill_to: Annotated[Month | None, Field(description="Period on whose invoice the charge stands; >= period")]
    cost_center_id: Annotated[Id | None, Field(description="null: ungrouped")]
    assignment_version: Annotated[int, Field(ge=0, description="Version of the account's timeline it was stamped with")]
    event_time: InstantText
    publisher: Id
    source: Attribute
    event_id: Attribute
    call_leg_id: Attribute | None
    product: Annotated[str, Field(max_length=64, examples=["voice.outbound"])]
    quantity: Annotated[int, Field(description="What is billed, in the product's unit (seconds for voice)")]
    duration_s: Annotated[int, Field(ge=0)]
    amount: SignedAmount
    currency: CurrencyCode
    book_id: Id
    book_version: Annotated[int, Field(ge=1)]
    matched: Annotated[str, Field(max_length=32, description="The prefix or product that matched")]
    unit_price: Annotated[Amount, Field(description="Per minute for voice")]
    connection_fee: Amount
    minimum_s: Annotated[int, Field(ge=0)]
    increment_s: Annotated[int, Field(ge=1)]


class Rejection(Message):
    """Told to the publisher for every quarantine, replay and discard."""

    publisher: Id
    action: Literal["quarantined", "replayed", "discarded"]
    reason: Id
    field: Text | None
    message: Text
    topic: Text
    partition: int
    offset: int
    source: Text | None
    event_id: Text | None
    account_id: Text | None
    at: Instant
