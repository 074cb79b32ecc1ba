"""The tables of usage. Identities and charges are partitioned: by generation, and by event day."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Identity,
    Integer,
    MetaData,
    Numeric,
    SmallInteger,
    Table,
    Text,
    TypeDecorator,
    Uuid,
)
from sqlalchemy.dialects.postgresql import JSONB

from services.runtime.tables import runtime_tables

SCHEMA = "usage"
RUNTIME = runtime_tables(SCHEMA)
METADATA = MetaData(schema=SCHEMA)
Instant = DateTime(timezone=True)


class Counted(TypeDecorator[int]):
    """Whole units of a month, however many: of bytes, each use may have 2 x 10^15."""

    impl = Numeric(38, 0)
    cache_ok = True

    def process_bind_param(self, value: int | None, _: Any) -> Decimal | None:
        return None if value is None else Decimal(value)

    def process_result_value(self, value: Decimal | None, _: Any) -> int | None:
        return None if value is None else int(value)


# One row. Its versions say what a worker that keeps the registry, the books and the cuts in memory has to read again.
STATE = Table(
    "state",
    METADATA,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("generation", Integer, nullable=False),
    Column("generation_since", Instant, nullable=False),
    Column("registry_version", BigInteger, nullable=False),
    Column("books_version", BigInteger, nullable=False),
    Column("cuts_version", BigInteger, nullable=False),
    Column("rentals_from", Instant, nullable=False),
)

# The fees of numbers that were published: one a number and period, whoever pays it.
RENTAL = Table(
    "rental",
    METADATA,
    Column("resource_id", Text, primary_key=True),
    Column("period", Text, primary_key=True),
    Column("account_id", Text, nullable=False),
    Column("number", Text, nullable=False),
    Column("starts_at", Instant, nullable=False),
    Column("days", SmallInteger, nullable=False),
    Column("published_at", Instant, nullable=False),
)

TIMELINE = Table(
    "timeline",
    METADATA,
    Column("kind", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("changed", BigInteger, nullable=False),
    Column("document", JSONB, nullable=False),
)

# The zone of each payer group that a timeline ever named: a charge may name one that no timeline names any more.
PAYER_ZONE = Table(
    "payer_zone",
    METADATA,
    Column("group_id", Text, primary_key=True),
    Column("zone", Text, nullable=False),
    Column("changed", BigInteger, nullable=False),
)

BOOK_VERSION = Table(
    "book_version",
    METADATA,
    Column("book_id", Text, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("currency", Text, nullable=False),
    Column("effective_from", Instant, nullable=False),
    Column("changed", BigInteger, nullable=False),
    Column("imported_at", Instant, nullable=False),
)

BOOK_PRICE = Table(
    "book_price",
    METADATA,
    Column("book_id", Text, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("product", Text, primary_key=True),
    Column("prefix", Text, primary_key=True),
    Column("price_nano", BigInteger, nullable=False),
    Column("connection_fee_nano", BigInteger, nullable=False),
    Column("minimum", BigInteger, nullable=False),
    Column("increment", BigInteger, nullable=False),
    Column("per", BigInteger, nullable=False),
    Column("unit", Text, nullable=False),
    Column("delivered_only", Boolean, nullable=False),
    Column("window", Text, primary_key=True),
    Column("schedule", Text, nullable=False),
)

BOOK_WINDOW = Table(
    "book_window",
    METADATA,
    Column("book_id", Text, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("zone", Text, nullable=False),
    Column("days", Text, nullable=False),
    Column("from", Text, nullable=False),
    Column("to", Text, nullable=False),
    Column("holidays", Text, nullable=False),
)

BOOK_SCHEDULE = Table(
    "book_schedule",
    METADATA,
    Column("book_id", Text, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("form", Text, nullable=False),
    Column("per", BigInteger, nullable=False),
    Column("bands", JSONB, nullable=False),  # of each: up_to, price, fee
)

BOOK_ORDER = Table(
    "book_order",
    METADATA,
    Column("scope", Text, primary_key=True),
    Column("subject", Text, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("book_id", Text, nullable=False),
)

# What a minute may cost at most, for an account or, where it is named, an outbound profile of it. The last word holds.
MAXIMUM_PRICE = Table(
    "maximum_price",
    METADATA,
    Column("id", BigInteger, primary_key=True),
    Column("account_id", Text, nullable=False),
    Column("outbound_profile", Text, nullable=False),
    Column("price_nano", BigInteger),
    Column("currency", Text, nullable=False),
    Column("set_at", Instant, nullable=False),
    Column("set_by", Text, nullable=False),
)

# The revision of a fact that holds, as far as its generation knows; of two generations the higher one.
IDENTITY = Table(
    "identity",
    METADATA,
    Column("generation", Integer, primary_key=True),
    Column("digest", Uuid, primary_key=True),
    Column("content", Uuid, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("day", SmallInteger),
    Column("revision", Integer, nullable=False),
    Column("partition", Integer, nullable=False),
    Column("offset", BigInteger, nullable=False),
)

# What it was before, and the lower revisions that a void absorbed.
SUPERSEDED = Table(
    "superseded",
    METADATA,
    Column("generation", Integer, primary_key=True),
    Column("digest", Uuid, primary_key=True),
    Column("revision", Integer, primary_key=True),
    Column("content", Uuid, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("partition", Integer, nullable=False),
    Column("offset", BigInteger, nullable=False),
)

CHARGE = Table(
    "charge",
    METADATA,
    Column("charge_id", Uuid, nullable=False),
    Column("event_time", Instant, nullable=False),
    Column("amount_nano", BigInteger, nullable=False),
    Column("used", BigInteger, nullable=False),
    Column("quantity", BigInteger, nullable=False),
    Column("per", BigInteger, nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("partition", Integer, nullable=False),
    Column("assignment_version", Integer, nullable=False),
    Column("duration_s", Integer, nullable=False),
    Column("book_version", Integer, nullable=False),
    Column("publisher", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("event_id", Text, nullable=False),
    Column("call_leg_id", Text),
    Column("account_id", Text, nullable=False),
    Column("organization_id", Text, nullable=False),
    Column("plan", Text, nullable=False),
    Column("group_id", Text),
    Column("period", Text),
    Column("bill_to", Text),
    Column("cost_center_id", Text),
    Column("outbound_profile", Text),
    Column("origin", Text),
    Column("destination", Text, nullable=False),
    Column("product", Text, nullable=False),
    Column("unit", Text, nullable=False),
    Column("currency", Text, nullable=False),
    Column("book_id", Text, nullable=False),
    Column("matched", Text, nullable=False),
    Column("window", Text),
    Column("schedule", Text),
    Column("counted_before", Counted),
    Column("counted_after", Counted),
    Column("surcharge", Text),  # JSON as it is published
    Column("revision", Integer, nullable=False),
    Column("reverses", Uuid),
    Column("named", SmallInteger),  # what the event named itself: see `reassigning.NAMED_ACCOUNT` and its neighbour
    Column("replaces", Uuid),  # the charge in whose place it stands after a re-rate or a reassignment
)
CHARGE_COLUMNS = tuple(column.name for column in CHARGE.columns if column.name != "replaces")  # of a charge of an event

# How much of a product was used: the price of tiers depends on it.
COUNTER = Table(
    "counter",
    METADATA,
    Column("account_id", Text, primary_key=True),
    Column("group_id", Text, primary_key=True),  # empty: a trial
    Column("period", Text, primary_key=True),
    Column("product", Text, primary_key=True),
    Column("prepaid", Boolean, primary_key=True),
    Column("schedule", Text, primary_key=True),
    Column("quantity", Counted, nullable=False),
)

# Re-rates: what was planned, by whom, and how far it is done.
RERATE_PLAN = Table(
    "rerate_plan",
    METADATA,
    Column("plan_id", Uuid, primary_key=True),
    Column("state", Text, nullable=False),
    Column("note", Text, nullable=False),
    Column("starts_at", Instant, nullable=False),
    Column("ends_at", Instant, nullable=False),
    Column("account_ids", ARRAY(Text), nullable=False),
    Column("group_id", Text),
    Column("product", Text),
    Column("book_id", Text),
    Column("book_version", Integer),
    Column("charges", BigInteger, nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("planned_by", Text, nullable=False),
    Column("planned_role", Text, nullable=False),
    Column("planned_at", Instant, nullable=False),
    Column("approved_by", Text),
    Column("approved_role", Text),
    Column("approved_at", Instant),
    Column("executed_by", Text),
    Column("executed_at", Instant),
    Column("cancelled_by", Text),
    Column("cancelled_at", Instant),
    Column("done_at", Instant),
    Column("done_to", BigInteger, nullable=False),
    Column("left_stale", BigInteger, nullable=False),
)

# The charges of a plan in the order in which they are settled, with the price that each gets.
RERATE_CHARGE = Table(
    "rerate_charge",
    METADATA,
    Column("plan_id", Uuid, primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("charge_id", Uuid, nullable=False),
    Column("event_time", Instant, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("account_id", Text, nullable=False),
    Column("currency", Text, nullable=False),
    Column("old_nano", BigInteger, nullable=False),
    Column("new_nano", BigInteger, nullable=False),
    Column("quantity", BigInteger, nullable=False),
    Column("per", BigInteger, nullable=False),
    Column("product", Text, nullable=False),
    Column("book_id", Text, nullable=False),
    Column("book_version", Integer, nullable=False),
    Column("matched", Text, nullable=False),
    Column("window", Text, nullable=False),
    Column("surcharge", Text),  # JSON as it is published
    Column("is_stale", Boolean, nullable=False),
)

# Where the counters stood that a plan moves, when it was made.
RERATE_COUNTER = Table(
    "rerate_counter",
    METADATA,
    Column("plan_id", Uuid, primary_key=True),
    Column("account_id", Text, primary_key=True),
    Column("group_id", Text, primary_key=True),
    Column("period", Text, primary_key=True),
    Column("product", Text, primary_key=True),
    Column("prepaid", Boolean, primary_key=True),
    Column("schedule", Text, primary_key=True),
    Column("quantity", Counted, nullable=False),
)

RERATE_SUM = Table(
    "rerate_sum",
    METADATA,
    Column("plan_id", Uuid, primary_key=True),
    Column("of", Text, primary_key=True),
    Column("which", Text, primary_key=True),
    Column("currency", Text, primary_key=True),
    Column("charges", BigInteger, nullable=False),
    Column("old_nano", Numeric, nullable=False),
    Column("new_nano", Numeric, nullable=False),
)

# Stretches of time in which the registry said something else than it does now: charges in them are looked at again.
REASSIGNMENT = Table(
    "reassignment",
    METADATA,
    Column("reassignment_id", Uuid, primary_key=True),
    Column("position", BigInteger, Identity(always=True), nullable=False),
    Column("kind", Text, nullable=False),  # account, number, outbound_profile
    Column("object_id", Text, nullable=False),  # the account, or the resource
    Column("number", Text),
    Column("version", Integer, nullable=False),  # of the timeline that says otherwise
    Column("starts_at", Instant, nullable=False),
    Column("ends_at", Instant),
    Column("reprices", Boolean, nullable=False),
    Column("noticed_at", Instant, nullable=False),
    Column("reached_at", Instant, nullable=False),  # all charges up to this event time and id are looked at
    Column("reached_id", Uuid, nullable=False),
    Column("moved", BigInteger, nullable=False),
    Column("done_at", Instant),
)

# The charges that one moved, or left as they are for a reason.
REASSIGNED_CHARGE = Table(
    "reassigned_charge",
    METADATA,
    Column("reassignment_id", Uuid, primary_key=True),
    Column("charge_id", Uuid, primary_key=True),
    Column("event_time", Instant, nullable=False),
    Column("reason", Text),
    Column("account_id", Text),  # whose it would be, if that account had been there then
)

CLASS_COUNT = Table(
    "class_count",
    METADATA,
    Column("topic", Text, primary_key=True),
    Column("partition", Integer, primary_key=True),
    Column("segment", Integer, primary_key=True),
    Column("class", Text, primary_key=True),
    Column("replayed", Boolean, primary_key=True),
    Column("count", BigInteger, nullable=False),
)

# Of which sources an event of a month (UTC, by event time) was ever admitted.
SOURCE_SEEN = Table(
    "source_seen",
    METADATA,
    Column("month", Text, primary_key=True),
    Column("publisher", Text, primary_key=True),
    Column("source", Text, primary_key=True),
)

# A cut is named (groups or invoices speak of it), taken (positions stand), passed (all lanes are beyond them).
CUT = Table(
    "cut",
    METADATA,
    Column("cutoff_id", Uuid, primary_key=True),
    Column("boundary", Instant, nullable=False),
    Column("number", Integer),
    Column("taken_at", Instant),
    Column("groups_marks", JSONB(none_as_null=True)),
    Column("passed_at", Instant),
)

CUT_POSITION = Table(
    "cut_position",
    METADATA,
    Column("cutoff_id", Uuid, primary_key=True),
    Column("topic", Text, primary_key=True),
    Column("partition", Integer, primary_key=True),
    Column("position", BigInteger, nullable=False),
)

HELD_GROUP = Table(
    "held_group",
    METADATA,
    Column("cutoff_id", Uuid, primary_key=True),
    Column("group_id", Text, primary_key=True),
    Column("passed_at", Instant),
)

WAIVED = Table(
    "waived",
    METADATA,
    Column("parked_id", BigInteger, primary_key=True, autoincrement=False),
    Column("cutoff_id", Uuid, nullable=False),
    Column("waived_at", Instant, nullable=False),
)
