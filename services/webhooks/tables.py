"""The room's tables: who owns an account, events, endpoints, what each endpoint gets, every attempt, and who did what."""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Column,
    DateTime,
    Identity,
    Integer,
    MetaData,
    Sequence,
    SmallInteger,
    Table,
    Text,
    Uuid,
)

metadata = MetaData(schema="webhooks")
Instant = DateTime(timezone=True)

PLACES = Sequence("place", metadata=metadata)

account = Table(
    "account",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("organization_id", Text),
    Column("version", BigInteger, nullable=False),
)

event = Table(
    "event",
    metadata,
    Column("event_no", BigInteger, Identity(always=True), primary_key=True),
    Column("event_id", Text, nullable=False),
    Column("organization_id", Text),
    Column("account_id", Text),
    Column("type", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("received_at", Instant, nullable=False),
)

endpoint = Table(
    "endpoint",
    metadata,
    Column("endpoint_id", Text, primary_key=True),
    Column("organization_id", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("types", ARRAY(Text)),
    Column("account_ids", ARRAY(Text)),
    Column("state", Text, nullable=False),
    Column("disabled_reason", Text),
    Column("disabled_at", Instant),
    Column("secret", Text, nullable=False),
    Column("previous_secret", Text),
    Column("previous_until", Instant),
    Column("created_at", Instant, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("failing_since", Instant),
    Column("due_at", Instant),
    Column("lease", Uuid),
)

delivery = Table(
    "delivery",
    metadata,
    Column("endpoint_id", Text, primary_key=True),
    Column("event_no", BigInteger, primary_key=True),
    Column("place", BigInteger, PLACES, nullable=False, server_default=PLACES.next_value()),
    Column("state", Text, nullable=False),
    Column("tries", SmallInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("queued_at", Instant, nullable=False),
    Column("settled_at", Instant),
)

attempt = Table(
    "attempt",
    metadata,
    Column("endpoint_id", Text, primary_key=True),
    Column("event_no", BigInteger, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("at", Instant, nullable=False),
    Column("status", SmallInteger),
    Column("error", Text),
    Column("piece", Text, nullable=False),
    Column("took_ms", Integer, nullable=False),
)

action = Table(
    "action",
    metadata,
    Column("action_no", BigInteger, Identity(always=True), primary_key=True),
    Column("endpoint_id", Text, nullable=False),
    Column("organization_id", Text, nullable=False),
    Column("at", Instant, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("detail", Text, nullable=False),
)
