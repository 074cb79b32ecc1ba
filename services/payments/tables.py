"""The room's tables: what processors were asked for, and what they answer."""

from __future__ import annotations

from sqlalchemy import Column, DateTime, Integer, MetaData, SmallInteger, Table, Text, Uuid

metadata = MetaData(schema="payments")
Instant = DateTime(timezone=True)

attempt = Table(
    "attempt",
    metadata,
    Column("attempt_id", Uuid, primary_key=True),
    Column("account_id", Text, nullable=False),
    Column("processor", Text, nullable=False),
    Column("method_kind", Text),
    Column("token", Text),
    Column("origin", Text, nullable=False),
    Column("amount", Text, nullable=False),
    Column("currency", Text, nullable=False),
    Column("requested_at", Instant, nullable=False),
    Column("received_at", Instant, nullable=False),
    # What the processor calls it, as it told.
    Column("reference", Text),
    # A call about it is under way until then, at the latest: two operations of an attempt never overlap.
    Column("calling_until", Instant),
    # It was told that nothing is charged any more: no charge goes out after that.
    Column("closed_at", Instant),
)

operation = Table(
    "operation",
    metadata,
    Column("operation_id", Text, primary_key=True),
    Column("attempt_id", Uuid, nullable=False),
    Column("processor", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("number", SmallInteger),  # of an inquiry
    Column("refund_id", Uuid),
    Column("amount", Text, nullable=False),
    Column("currency", Text, nullable=False),
    Column("asked_at", Instant, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("done_at", Instant),
    Column("outcome", Text),
)

answer = Table(
    "answer",
    metadata,
    Column("attempt_id", Uuid, primary_key=True),
    Column("number", SmallInteger, primary_key=True),
    Column("result_id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("failure", Text),
    Column("reason", Text),
    Column("amount", Text),  # the attempt's where empty
    Column("currency", Text),
    Column("refund_id", Uuid),
    Column("dispute_id", Text),
    Column("due_at", Instant, nullable=False),
    Column("told_at", Instant),
)
