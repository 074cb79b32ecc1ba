"""What telephony services publish, and what usage makes of it.

The two hot records are typed dictionaries (half the decoding time of models); everything else is a frozen model.
"""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired

from pydantic import ConfigDict, Field, StringConstraints, with_config
from typing_extensions import TypedDict

from contracts.cloudevents import AbsoluteUri, Attribute, Timestamp
from contracts.words import E164, Amount, CurrencyCode, Id, Instant, InstantText, Month, SignedAmount, Text
from contracts.words import Message as Model

TOLLBOOK = "tollbook"  # the publisher of what Tollbook itself publishes; nobody can be registered by this name
RECURRING_SOURCE = "tollbook/recurring"
VOICE_LEG = "tollbook.usage.voice.leg.v1"
MESSAGE = "tollbook.usage.message.v1"
DATA = "tollbook.usage.data.v1"
RENTAL = "tollbook.usage.rental.v1"
PRODUCT = "tollbook.usage.product.v1"
VOIDED = "tollbook.usage.voided.v1"
EVENT_BYTES_MAX = 65_536  # an event is a few hundred bytes; larger ones are quarantined, not parsed
CALL_SECONDS_MAX = 7 * 86_400  # a leg of more than a week is a broken clock, not a call
SEGMENTS_MAX = 255  # a concatenated message counts its parts in one byte
BYTES_MAX = 2**50  # a petabyte in one session is a broken counter
QUANTITY_MAX = 10**15
REVISION_MAX = 2**31 - 1  # an integer of CloudEvents
RESERVED_PRODUCTS = r"voice\.|message\.|number\.|data$"  # of the other kinds of events

_STRICT = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)
_STRICT_OPEN = ConfigDict(strict=True, extra="allow", hide_input_in_errors=True)

Seconds = Annotated[int, Field(ge=0, le=CALL_SECONDS_MAX)]
NumberOrShortCode = Annotated[
    str, StringConstraints(pattern=r"^(\+[1-9][0-9]{4,14}|[0-9]{3,8})$"), Field(examples=["+12485252160", "72345"])
]
AccountOrNull = Annotated[
    Id | None, Field(description="May be left out of what is inbound: then whoever had the called number at that time")
]
Network = Annotated[str, StringConstraints(pattern=r"^[0-9]{3}([0-9]{2,3})?$"), Field(examples=["310260"])]


@with_config(_STRICT)
class VoiceLeg(TypedDict):
    """One side of a call as one switch record. Event time is ``ended_at``."""

    account_id: NotRequired[AccountOrNull]
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


@with_config(_STRICT)
class Message(TypedDict):
    """One SMS or MMS. Event time is ``sent_at``. A later outcome comes as a higher revision of the same event."""

    account_id: NotRequired[AccountOrNull]
    direction: Literal["inbound", "outbound"]
    channel: Literal["sms", "mms"]
    sender: Annotated[Attribute | None, Field(description="A number, a short code or a name")]
    recipient: NumberOrShortCode
    segments: Annotated[int, Field(ge=1, le=SEGMENTS_MAX)]
    outcome: Annotated[
        Literal["accepted", "rejected", "delivered", "undelivered"],
        Field(description="Of the carrier; rejected costs nothing, a book may say that only delivered costs"),
    ]
    sent_at: InstantText
    outbound_profile: NotRequired[Id | None]
    cost_center_id: NotRequired[Annotated[Id | None, Field(description="Per-message override")]]
    message_id: NotRequired[Attribute | None]


@with_config(_STRICT)
class Data(TypedDict):
    """One data session, or a part of one. Event time is ``ended_at``."""

    account_id: Id
    bytes: Annotated[int, Field(ge=0, le=BYTES_MAX)]
    started_at: InstantText
    ended_at: InstantText
    network: NotRequired[
        Annotated[Network | None, Field(description="MCC and MNC of the network; prices may differ by it")]
    ]
    subscriber: NotRequired[Annotated[E164 | None, Field(description="The number whose cost center it takes")]]
    cost_center_id: NotRequired[Id | None]
    session_id: NotRequired[Attribute | None]


@with_config(_STRICT)
class Rental(TypedDict):
    """A number for the rest of a month, in advance. Event time is ``starts_at``, the first instant that is paid for."""

    account_id: Id
    number: E164
    month: Month
    days: Annotated[int, Field(ge=1, le=31, description="Started days, in the zone of the payer group")]
    starts_at: InstantText
    cost_center_id: NotRequired[Id | None]


@with_config(_STRICT)
class Product(TypedDict):
    """Some quantity of anything else, in whole units: choose a small one. Event time is ``used_at``."""

    account_id: Id
    product: Annotated[
        Id,
        Field(description="A name of your own; voice., message., number. and data belong to the other kinds of events"),
    ]
    quantity: Annotated[int, Field(ge=0, le=QUANTITY_MAX)]
    unit: Annotated[Id, Field(description="Must be the unit of the price", examples=["minute", "request"])]
    used_at: InstantText
    cost_center_id: NotRequired[Id | None]
    reference: NotRequired[Attribute | None]


@with_config(_STRICT)
class Voided(TypedDict):
    """What was told never was. The event has the id and source of the one that it takes back, and a higher revision."""

    account_id: Annotated[Id, Field(description="Must be one that the publisher may bill; usually that of the event")]
    reason: Attribute


@with_config(_STRICT_OPEN)
class _Attributes(TypedDict):
    """A CloudEvents 1.0 event in structured JSON; extension attributes are allowed and, but for revision, ignored."""

    specversion: Literal["1.0"]
    id: Attribute
    source: Attribute
    time: NotRequired[Timestamp | None]
    subject: NotRequired[Attribute | None]
    datacontenttype: NotRequired[Literal["application/json"] | None]
    dataschema: NotRequired[AbsoluteUri | None]


@with_config(_STRICT_OPEN)
class _Event(_Attributes):
    revision: NotRequired[
        Annotated[
            Annotated[int, Field(ge=0, le=REVISION_MAX)] | None,
            Field(description="Of one id and source the highest counts, with its whole content; absent is 0"),
        ]
    ]


@with_config(_STRICT_OPEN)
class VoiceLegEvent(_Event):
    type: Literal["tollbook.usage.voice.leg.v1"]
    data: VoiceLeg


@with_config(_STRICT_OPEN)
class MessageEvent(_Event):
    type: Literal["tollbook.usage.message.v1"]
    data: Message


@with_config(_STRICT_OPEN)
class DataEvent(_Event):
    type: Literal["tollbook.usage.data.v1"]
    data: Data


@with_config(_STRICT_OPEN)
class RentalEvent(_Event):
    type: Literal["tollbook.usage.rental.v1"]
    data: Rental


@with_config(_STRICT_OPEN)
class ProductEvent(_Event):
    type: Literal["tollbook.usage.product.v1"]
    data: Product


@with_config(_STRICT_OPEN)
class VoidedEvent(_Attributes):
    type: Literal["tollbook.usage.voided.v1"]
    revision: Annotated[int, Field(ge=1, le=REVISION_MAX, description="Higher than that of what is taken back")]
    data: Voided


UsageEvent = Annotated[
    VoiceLegEvent | MessageEvent | DataEvent | RentalEvent | ProductEvent | VoidedEvent, Field(discriminator="type")
]
USAGE_EVENT_TYPES = (VOICE_LEG, MESSAGE, DATA, RENTAL, PRODUCT, VOIDED)


@with_config(_STRICT)
class Tier(TypedDict):
    """How a charge moved the counter of its account, payer group, month and product, whose price depends on its quantity.

    The amount is what the schedule makes of the quantity after, less what it makes of the one before: it depends on the
    order in which events came, and only the sum does not.
    """

    schedule: Annotated[
        str,
        StringConstraints(max_length=150, pattern=r"^[A-Za-z0-9_.-]+/[0-9]+/[A-Za-z0-9_.-]+$"),
        Field(description="Price book, its version, and the schedule in it", examples=["list/3/messages"]),
    ]
    form: Literal["graduated", "volume"]
    before: Annotated[int, Field(ge=0)]
    after: Annotated[int, Field(ge=0)]


@with_config(_STRICT)
class Surcharge(TypedDict):
    """What a toll-free leg costs more by where its caller is: connection_fee + quantity x unit_price / per, within the
    charge's amount, which is rounded once."""

    book_id: Id
    book_version: Annotated[int, Field(ge=1)]
    matched: Annotated[str, Field(max_length=32, description="The prefix of the caller's number that matched")]
    quantity: Annotated[int, Field(description="Seconds billed by the rule of this price")]
    unit_price: Amount
    per: Annotated[int, Field(ge=1)]
    connection_fee: Amount
    minimum: Annotated[int, Field(ge=0)]
    increment: Annotated[int, Field(ge=1)]
    window: NotRequired[Id]


@with_config(_STRICT)
class Charge(TypedDict):
    """A rated usage event, as balance, invoices and downstream consumers read it.

    A reversal takes a charge back: its quantity is the negative one, and so is its amount, but for what tiers priced: of that
    it is what the counter costs less. All else is as in that charge. A charge by other prices (after a re-rate) or under other stamps (after a
    change of the registry that became known later) ``replaces`` the one that was taken back.
    """

    charge_id: Annotated[str, Field(min_length=36, max_length=36)]
    revision: Annotated[int, Field(ge=0, description="Of the event that was rated; a reversal has that of its charge")]
    reverses: Annotated[str | None, Field(description="The charge that a reversal takes back")]
    account_id: Id
    organization_id: Id
    plan: Annotated[Literal["trial", "payg", "invoiced"], Field(description="The account's plan at event time")]
    group_id: Annotated[Id | None, Field(description="Payer group at event time; null for a trial account")]
    period: Annotated[Month | None, Field(description="Period of the event time in the group's zone")]
    bill_to: Annotated[Month | None, Field(description="Period on whose invoice the charge stands; >= period")]
    cost_center_id: Annotated[Id | None, Field(description="null: ungrouped")]
    outbound_profile: NotRequired[Annotated[Id | None, Field(description="The profile that the use went out by")]]
    assignment_version: Annotated[int, Field(ge=0, description="Version of the account's timeline it was stamped with")]
    event_time: InstantText
    publisher: Id
    source: Attribute
    event_id: Attribute
    call_leg_id: Annotated[Attribute | None, Field(description="The publisher's own id of the leg, message or session")]
    product: Annotated[str, Field(max_length=64, examples=["voice.outbound"])]
    unit: Annotated[
        Id, Field(description="second, segment, byte, day, or the unit of a product of the publisher's own")
    ]
    quantity: Annotated[int, Field(description="What is billed, in this unit")]
    duration_s: Annotated[int, Field(ge=0)]
    amount: SignedAmount
    currency: CurrencyCode
    book_id: Id
    book_version: Annotated[int, Field(ge=1)]
    matched: Annotated[str, Field(max_length=32, description="The prefix or product that matched")]
    unit_price: Annotated[
        Amount | None, Field(description="For `per` units: a minute of voice has 60 seconds; null with a tier")
    ]
    per: Annotated[int, Field(ge=1)]
    connection_fee: Amount
    minimum: Annotated[int, Field(ge=0)]
    increment: Annotated[int, Field(ge=1)]
    surcharge: NotRequired[Surcharge]
    replaces: NotRequired[
        Annotated[
            Annotated[str, Field(min_length=36, max_length=36)],
            Field(
                description="The charge of this account in whose place this one stands after a correction; absent: none"
            ),
        ]
    ]
    window: NotRequired[Annotated[Id, Field(description="The window of the book that the use began in; absent: none")]]
    tier: NotRequired[Tier]
    kind: NotRequired[
        Annotated[
            Literal["tier_adjustment"],
            Field(
                description="The use made all use of the month cheaper by more than it costs: its own charge, below zero"
            ),
        ]
    ]


class Rejection(Model):
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
