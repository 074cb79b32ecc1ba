"""What was used: a call leg, a message, data, a month of a number, or a product of the publisher's own.

Each kind of event is one structure with the same questions to it: what is it priced as (`product`, `destination`), how much
was used (`used`, in `unit`), why does it cost nothing if so (`free`), and whose is it (`cost_center_id`, `resource`).
`priced_by`, `measured_by` and `dated_by` are the fields of the event to name when that is refused. Pure. Source: domain,
section 3.
"""

from __future__ import annotations

from calendar import monthrange
from datetime import datetime
from typing import Annotated, ClassVar, Literal

from msgspec import Meta, Struct

from contracts.usage import BYTES_MAX, CALL_SECONDS_MAX, QUANTITY_MAX, SEGMENTS_MAX
from services.usage.books import BYTE, DATA, DAY, RENTAL, SECOND, SEGMENT, Direction, message_product, product_of

ONLY_INBOUND = "is missing; only what is inbound may leave it out, for the called number tells it"
CLOCK_SLACK_S = 2  # a switch measures the length of a call and its two times each by itself, and rounds each

Free = Literal["unanswered", "nothing_used", "rejected", "not_delivered"]
ResourceKind = Literal["number", "outbound_profile"]

Text = Annotated[str, Meta(min_length=1, max_length=256)]
Seconds = Annotated[int, Meta(ge=0, le=CALL_SECONDS_MAX)]


class UseRefused(Exception):
    """The data of an event contradict each other. ``message`` names the fix, ``field`` where it is needed."""

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.message = message
        self.field = f"data.{field}"


class Leg(Struct, forbid_unknown_fields=True, gc=False):
    """One side of a call; what is absent and what is null are the same."""

    direction: Direction
    caller: str | None
    called: str
    started_at: str
    ended_at: str
    answered: bool
    duration_s: Seconds
    billable_s: Seconds
    account_id: str | None = None
    outbound_profile: str | None = None
    cost_center_id: str | None = None
    call_leg_id: Text | None = None

    unit: ClassVar[str] = SECOND
    priced_by: ClassVar[str] = "data.called"
    measured_by: ClassVar[str] = "data.billable_s"
    dated_by: ClassVar[str] = "data.ended_at"

    @property
    def product(self) -> str:
        return product_of(self.direction, self.called)

    @property
    def destination(self) -> str:
        """The number that decides the price: the called one, which of an inbound leg is the customer's own."""
        return self.called

    @property
    def origin(self) -> str | None:
        return self.caller

    @property
    def reference(self) -> str | None:
        """The publisher's own id of the leg, message or session."""
        return self.call_leg_id

    @property
    def used(self) -> int:
        return self.billable_s

    @property
    def free(self) -> Free | None:
        """Why it costs nothing, whatever the prices are."""
        if not self.answered:
            return "unanswered"
        return None if self.billable_s else "nothing_used"

    @property
    def event_time(self) -> str:
        return self.ended_at

    @property
    def resource(self) -> tuple[ResourceKind, str | None]:
        """Whose cost center it takes."""
        return ("outbound_profile", self.outbound_profile) if self.direction == "outbound" else ("number", self.called)

    def checked(self) -> datetime:
        """The event time. A call ends after it starts, is billed for no longer than it lasts and only if answered, and
        lasts what its two times say, give or take 2 seconds; `UseRefused` else."""
        try:
            started_at, ended_at = datetime.fromisoformat(self.started_at), datetime.fromisoformat(self.ended_at)
        except ValueError:
            started_at, ended_at = instant(self.started_at, "started_at"), instant(self.ended_at, "ended_at")
        if self.account_id is None and self.direction == "outbound":
            raise UseRefused(ONLY_INBOUND, "account_id")
        duration_s, billable_s = self.duration_s, self.billable_s
        lasted_s = (ended_at - started_at).total_seconds()
        if lasted_s < 0:
            raise UseRefused("must not be before data.started_at", "ended_at")
        if billable_s > duration_s:
            raise UseRefused("must not be more than data.duration_s", "billable_s")
        if billable_s and not self.answered:
            raise UseRefused("must be 0 for a call that was not answered", "billable_s")
        if not -CLOCK_SLACK_S <= lasted_s - duration_s <= CLOCK_SLACK_S:
            raise UseRefused(
                f"is {duration_s}, but from data.started_at to data.ended_at are {lasted_s:g} seconds; at most"
                f" {CLOCK_SLACK_S} seconds of difference are allowed",
                "duration_s",
            )
        return ended_at


class Message(Struct, forbid_unknown_fields=True, gc=False):
    """An SMS or MMS, priced a segment by its recipient; an inbound one by the customer's own number."""

    direction: Direction
    channel: Literal["sms", "mms"]
    sender: str | None
    recipient: str
    segments: Annotated[int, Meta(ge=1, le=SEGMENTS_MAX)]
    outcome: Literal["accepted", "rejected", "delivered", "undelivered"]
    sent_at: str
    account_id: str | None = None
    outbound_profile: str | None = None
    cost_center_id: str | None = None
    message_id: Text | None = None

    unit: ClassVar[str] = SEGMENT
    priced_by: ClassVar[str] = "data.recipient"
    measured_by: ClassVar[str] = "data.segments"
    dated_by: ClassVar[str] = "data.sent_at"
    duration_s: ClassVar[int] = 0

    @property
    def product(self) -> str:
        return message_product(self.channel, self.direction)

    @property
    def destination(self) -> str:
        return self.recipient

    @property
    def origin(self) -> str | None:
        return self.sender

    @property
    def reference(self) -> str | None:
        return self.message_id

    @property
    def used(self) -> int:
        return self.segments

    @property
    def free(self) -> Free | None:
        """What the carrier did not take costs nothing; what it took and did not deliver does, unless the book says."""
        return "rejected" if self.outcome == "rejected" else None

    @property
    def event_time(self) -> str:
        return self.sent_at

    @property
    def resource(self) -> tuple[ResourceKind, str | None]:
        outbound = self.direction == "outbound"
        return ("outbound_profile", self.outbound_profile) if outbound else ("number", self.recipient)

    def checked(self) -> datetime:
        if self.account_id is None and self.direction == "outbound":
            raise UseRefused(ONLY_INBOUND, "account_id")
        return instant(self.sent_at, "sent_at")


class Data(Struct, forbid_unknown_fields=True, gc=False):
    """Bytes of a data session, priced by the network they went through (MCC and MNC), if that is told."""

    account_id: str
    bytes: Annotated[int, Meta(ge=0, le=BYTES_MAX)]
    started_at: str
    ended_at: str
    network: str | None = None
    subscriber: str | None = None
    cost_center_id: str | None = None
    session_id: Text | None = None

    unit: ClassVar[str] = BYTE
    priced_by: ClassVar[str] = "data.network"
    measured_by: ClassVar[str] = "data.bytes"
    dated_by: ClassVar[str] = "data.ended_at"
    product: ClassVar[str] = DATA
    duration_s: ClassVar[int] = 0

    @property
    def destination(self) -> str:
        return self.network or ""

    @property
    def origin(self) -> str | None:
        return self.subscriber

    @property
    def reference(self) -> str | None:
        return self.session_id

    @property
    def used(self) -> int:
        return self.bytes

    @property
    def free(self) -> Free | None:
        return None if self.bytes else "nothing_used"

    @property
    def event_time(self) -> str:
        return self.ended_at

    @property
    def resource(self) -> tuple[ResourceKind, str | None]:
        return "number", self.subscriber

    def checked(self) -> datetime:
        started_at, ended_at = instant(self.started_at, "started_at"), instant(self.ended_at, "ended_at")
        if ended_at < started_at:
            raise UseRefused("must not be before data.started_at", "ended_at")
        return ended_at


class Rental(Struct, forbid_unknown_fields=True, gc=False):
    """A number for some days of a month, in advance: the month's price is shared out by days."""

    account_id: str
    number: str
    month: str
    days: Annotated[int, Meta(ge=1, le=31)]
    starts_at: str
    cost_center_id: str | None = None

    unit: ClassVar[str] = DAY
    priced_by: ClassVar[str] = "data.number"
    measured_by: ClassVar[str] = "data.days"
    dated_by: ClassVar[str] = "data.starts_at"
    product: ClassVar[str] = RENTAL
    duration_s: ClassVar[int] = 0
    origin: ClassVar[str | None] = None
    reference: ClassVar[str | None] = None
    free: ClassVar[Free | None] = None

    @property
    def destination(self) -> str:
        return self.number

    @property
    def used(self) -> int:
        return self.days

    @property
    def event_time(self) -> str:
        return self.starts_at

    @property
    def resource(self) -> tuple[ResourceKind, str | None]:
        return "number", self.number

    def checked(self) -> datetime:
        year, month = map(int, self.month.split("-"))
        if year < 1:
            raise UseRefused("is no month of the calendar", "month")
        days_of_month = monthrange(year, month)[1]
        if self.days > days_of_month:
            raise UseRefused(f"must be at most {days_of_month}: {self.month} has no more days", "days")
        return instant(self.starts_at, "starts_at")


class Product(Struct, forbid_unknown_fields=True, gc=False):
    """A quantity of anything else, in a unit that its price names too."""

    account_id: str
    product: str
    quantity: Annotated[int, Meta(ge=0, le=QUANTITY_MAX)]
    unit: str
    used_at: str
    cost_center_id: str | None = None
    reference: Text | None = None

    priced_by: ClassVar[str] = "data.product"
    measured_by: ClassVar[str] = "data.quantity"
    dated_by: ClassVar[str] = "data.used_at"
    duration_s: ClassVar[int] = 0
    destination: ClassVar[str] = ""
    origin: ClassVar[str | None] = None

    @property
    def used(self) -> int:
        return self.quantity

    @property
    def free(self) -> Free | None:
        return None if self.quantity else "nothing_used"

    @property
    def event_time(self) -> str:
        return self.used_at

    @property
    def resource(self) -> tuple[ResourceKind, str | None]:
        return "number", None

    def checked(self) -> datetime:
        return instant(self.used_at, "used_at")


Use = Leg | Message | Data | Rental | Product


def instant(text: str, field: str) -> datetime:
    """An instant of the contract's form as a point in time, or `UseRefused`."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise UseRefused("is no date and time of the calendar", field) from None
