"""The room's tables: what the built-in processor was asked for, and what it answers."""

from __future__ import annotations

from sqlalchemy import Column, DateTime, MetaData, SmallInteger, Table, Text, Uuid

metadata = MetaData(schema="payments")
Instant = DateTime(timezone=True)

attempt = Table(
    "attempt",
    metadata,
    Column("attempt_id", Uuid, primary_key=True),
    Column("account_id", Text, nullable=False),
    Column("processor", Text, nullable=False),
    Column("token", Text, nullable=False),
    Column("amount", Text, nullable=False),
    Column("currency", Text, nullable=False),
    Column("requested_at", Instant, nullable=False),
    Column("received_at", Instant, nullable=False),
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
    Column("due_at", Instant, nullable=False),
    Column("told_at", Instant),
)
