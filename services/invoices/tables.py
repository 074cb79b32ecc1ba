"""The room's tables. Sums of one account are bigint nanos, sums over many accounts numeric."""

from __future__ import annotations

from sqlalchemy import ARRAY, BigInteger, Boolean, Column, DateTime, Integer, MetaData, Numeric, Table, Text, Uuid

metadata = MetaData(schema="invoices")
Instant = DateTime(timezone=True)
Total = Numeric(38, 0)  # nanos over many accounts
Quantity = Numeric(38, 0)  # units of many charges: of bytes, each charge may have 2 x 10^15

# How this installation closes: one row, set when the room first starts.
terms = Table(
    "terms",
    metadata,
    Column("only_row", Boolean, primary_key=True),
    Column("automatic_from", Instant, nullable=False),
    Column("grace_s", Integer, nullable=False),
)

# ---- what the registry told ----------------------------------------------------------------------------------------

billing_group = Table(
    "billing_group",
    metadata,
    Column("group_id", Text, primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("zone", Text, nullable=False),
    Column("told", Text, nullable=False),  # the whole message, JSON
)

account = Table(
    "account",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("name", Text, nullable=False),
)

# Zones of the groups, and since when a group of the zone exists.
zone = Table(
    "zone",
    metadata,
    Column("zone", Text, primary_key=True),
    Column("since", Instant, nullable=False),
)

# ---- invoices and what is accumulated on them ----------------------------------------------------------------------

# Batches that accumulate hold the row FOR SHARE, the close takes it FOR UPDATE; so the sums are in tables beside it.
invoice = Table(
    "invoice",
    metadata,
    Column("invoice_id", Uuid, primary_key=True),
    Column("group_id", Text, nullable=False),
    Column("period", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("refused", Text),
    Column("refused_at", Instant),
    Column("closed_at", Instant),
    Column("cutoff_id", Uuid),
    Column("billing_entity_id", Text),
    Column("number", Text),
    Column("currency", Text),
    Column("net_nano", Total),
    Column("tax_nano", Total),
    Column("total_nano", Total),
    Column("due_nano", Total),
)

line = Table(
    "line",
    metadata,
    Column("invoice_id", Uuid, primary_key=True),
    Column("account_id", Text, primary_key=True),
    Column("product", Text, primary_key=True),
    Column("cost_center_id", Text, primary_key=True),
    Column("period", Text, primary_key=True),
    Column("prepaid", Boolean, primary_key=True),
    Column("currency", Text, primary_key=True),
    Column("schedule", Text, primary_key=True),  # empty: a price of its own
    Column("charges", BigInteger, nullable=False),
    Column("quantity", Quantity, nullable=False),
    Column("exact_nano", BigInteger, nullable=False),
    Column("unit_price_min_nano", BigInteger, nullable=False),
    Column("unit_price_max_nano", BigInteger, nullable=False),
)

tally = Table(
    "tally",
    metadata,
    Column("invoice_id", Uuid, primary_key=True),
    Column("charges", BigInteger, nullable=False),
    Column("exact_nano", Total, nullable=False),
    Column("xor", BigInteger, nullable=False),
)

paid = Table(
    "paid",
    metadata,
    Column("invoice_id", Uuid, primary_key=True),
    Column("account_id", Text, primary_key=True),
    Column("currency", Text, primary_key=True),
    Column("charged_nano", BigInteger, nullable=False),
    Column("credits_nano", BigInteger, nullable=False),
    Column("wallet_nano", BigInteger, nullable=False),
    Column("unbilled_nano", BigInteger, nullable=False),
)

document = Table(
    "document",
    metadata,
    Column("invoice_id", Uuid, primary_key=True),
    Column("body", Text, nullable=False),  # canonical JSON, byte for byte what is hashed
    Column("sha256", Text, nullable=False),
)

number_series = Table(
    "number_series",
    metadata,
    Column("billing_entity_id", Text, primary_key=True),
    Column("last_number", BigInteger, nullable=False),
)

# Documents that were told in a life that a restore from a backup undid: their numbers are theirs for ever.
undone = Table(
    "undone",
    metadata,
    Column("number", Text, primary_key=True),
    Column("group_id", Text, primary_key=True),
    Column("period", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("billing_entity_id", Text),
    Column("told", Text, nullable=False),  # the whole message, JSON
    Column("place", BigInteger, nullable=False),  # of several of a period the one that was told last counts
)

# Each step of a closed invoice after its close, as balance told it: the highest version says how it stands.
settlement = Table(
    "settlement",
    metadata,
    Column("invoice_id", Uuid, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("at", Instant, nullable=False),
    Column("state", Text, nullable=False),
    Column("amount_nano", Total, nullable=False),
    Column("source", Text),
    Column("reference", Text),
    Column("paid_nano", Total, nullable=False),
    Column("written_off_nano", Total, nullable=False),
    Column("open_nano", Total, nullable=False),
    Column("credited_nano", Total, nullable=False),
)

# ---- credit notes --------------------------------------------------------------------------------------------------

# A decision of two persons against a closed invoice: proposed, approved (or withdrawn), issued with a number.
credit_note = Table(
    "credit_note",
    metadata,
    Column("credit_note_id", Uuid, primary_key=True),
    Column("invoice_id", Uuid, nullable=False),
    Column("asked", Text),  # the lines that are credited, JSON; null: all that is left of the invoice
    Column("reason", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("net_nano", Total, nullable=False),
    Column("tax_nano", Total, nullable=False),
    Column("total_nano", Total, nullable=False),
    Column("voids", Boolean, nullable=False),
    Column("proposed_by", Text, nullable=False),
    Column("proposed_at", Instant, nullable=False),
    Column("decided_by", Text),  # who approved it
    Column("decided_at", Instant),
    Column("withdrawn_by", Text),
    Column("withdrawn_at", Instant),
    Column("refused", Text),  # why it cannot be issued, though it is approved
    Column("billing_entity_id", Text),
    Column("number", Text),
    Column("issued_at", Instant),
)

credit_note_document = Table(
    "credit_note_document",
    metadata,
    Column("credit_note_id", Uuid, primary_key=True),
    Column("body", Text, nullable=False),  # canonical JSON, byte for byte what is hashed
    Column("sha256", Text, nullable=False),
)

# ---- cuts ----------------------------------------------------------------------------------------------------------

close_request = Table(
    "close_request",
    metadata,
    Column("period", Text, primary_key=True),
    Column("requested_by", Text, nullable=False),
    Column("requested_at", Instant, nullable=False),
)

cutoff = Table(
    "cutoff",
    metadata,
    Column("cutoff_id", Uuid, primary_key=True),
    Column("boundary", Instant, nullable=False),
    Column("cut_at", Instant, nullable=False),
    Column(
        "passed_at", Instant
    ),  # every room covered it and all its records are here: groups that are not held may close
    Column("held", ARRAY(Text)),
    Column("finished_at", Instant),  # no group waits for it any more
)

covered = Table(
    "covered",
    metadata,
    Column("cutoff_id", Uuid, primary_key=True),
    Column("room", Text, primary_key=True),
    Column("group_id", Text, primary_key=True),  # empty: the whole cut
    Column("told", Text, nullable=False),  # the whole message, JSON
)

cutoff_evidence = Table(
    "cutoff_evidence",
    metadata,
    Column("cutoff_id", Uuid, primary_key=True),
    Column("group_id", Text, primary_key=True),  # empty: the whole cut
    Column("body", Text, nullable=False),
    Column("sha256", Text, nullable=False),
)
