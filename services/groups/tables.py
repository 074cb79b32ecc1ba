"""The registry's tables. Their constraints stand in the migration."""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Identity,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    Sequence,
    Table,
    Text,
    Uuid,
)
from sqlalchemy.dialects.postgresql import JSONB, TSTZRANGE

metadata = MetaData(schema="groups")
Instant = DateTime(timezone=True)
Nanos = Numeric(30, 0)

object_no = Sequence("object_no", schema="groups")

registry = Table("registry", metadata, Column("only_row", Boolean, primary_key=True))

organization = Table(
    "organization",
    metadata,
    Column("organization_id", Text, primary_key=True),
    Column("name", Text),
    Column("consolidation", Text),
    Column("primary_group_id", Text),
    Column("created_at", Instant),
)

publisher = Table(
    "publisher",
    metadata,
    Column("publisher_id", Text, primary_key=True),
    Column("version", Integer),
    Column("organization_ids", ARRAY(Text)),
    Column("sources", ARRAY(Text)),
    Column("late_s_max", Integer),
    Column("early_s_max", Integer),
)

billing_entity = Table(
    "billing_entity",
    metadata,
    Column("billing_entity_id", Text, primary_key=True),
    Column("name", Text),
    Column("address", Text),
    Column("vat_id", Text),
    Column("number_prefix", Text),
    Column("is_default", Boolean),
)

payer_group = Table(
    "payer_group",
    metadata,
    Column("group_id", Text, primary_key=True),
    Column("version", Integer),
    Column("organization_id", Text),
    Column("account_id", Text),
    Column("name", Text),
    Column("billing_entity_id", Text),
    Column("billing_information", JSONB),
    Column("zone", Text),
    Column("currency", Text),
    Column("tax_rate", Text),
    Column("pricing_model", Text),
    Column("sharing_approved_at", Instant),
    Column("sharing_approved_by", Text),
    Column("sharing_yearly_spend_nano", Nanos),
    Column("sharing_threshold_nano", Nanos),
    Column("created_at", Instant),
)

account = Table(
    "account",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("account_no", BigInteger),
    Column("version", Integer),
    Column("organization_id", Text),
    Column("name", Text),
    Column("currency", Text),
    Column("opened_at", Instant),
    Column("created_at", Instant),
    Column("level_2", Boolean),
    Column("credit_limit_nano", BigInteger),
)

account_plan = Table(
    "account_plan",
    metadata,
    Column("account_no", BigInteger, nullable=False),
    Column("during", TSTZRANGE, nullable=False),
    Column("plan", Text, nullable=False),
)

account_group = Table(
    "account_group",
    metadata,
    Column("account_no", BigInteger, nullable=False),
    Column("during", TSTZRANGE, nullable=False),
    Column("group_id", Text, nullable=False),
)

cost_center = Table(
    "cost_center",
    metadata,
    Column("cost_center_id", Text, primary_key=True),
    Column("organization_id", Text),
    Column("name", Text),
    Column("created_at", Instant),
)

resource = Table(
    "resource",
    metadata,
    Column("resource_id", Text, primary_key=True),
    Column("resource_no", BigInteger),
    Column("version", Integer),
    Column("kind", Text),
    Column("number", Text),
    Column("account_id", Text),
    Column("organization_id", Text),
)

resource_owner = Table(
    "resource_owner",
    metadata,
    Column("resource_no", BigInteger, nullable=False),
    Column("during", TSTZRANGE, nullable=False),
    Column("account_id", Text),
)

resource_cost_center = Table(
    "resource_cost_center",
    metadata,
    Column("resource_no", BigInteger, nullable=False),
    Column("during", TSTZRANGE, nullable=False),
    Column("cost_center_id", Text),
)

cut = Table("cut", metadata, Column("cutoff_id", Uuid, primary_key=True), Column("boundary", Instant))

command = Table(
    "command",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("organization_id", Text),
    Column("command_id", Text),
    Column("digest", LargeBinary),
    Column("kind", Text),
    Column("actor", Text),
    Column("role", Text),
    Column("at", Instant),
    Column("accepted", Boolean),
    Column("content", JSONB),
    Column("answer", JSONB),
)

# What is open of closed invoices, as invoices told it last, and which accounts have a share of it.
owed = Table(
    "owed",
    metadata,
    Column("invoice_id", Uuid, primary_key=True),
    Column("version", Integer),
    Column("number", Text),
    Column("accounts", ARRAY(Text)),
    Column("open_nano", Nanos),
)
