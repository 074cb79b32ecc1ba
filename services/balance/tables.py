"""The room's tables. Amounts are bigint nanos with the signs of the ledger: above zero credits, below zero debits."""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    Computed,
    Date,
    DateTime,
    Identity,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    SmallInteger,
    Table,
    Text,
    Uuid,
    or_,
)
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData(schema="balance")
Instant = DateTime(timezone=True)
Total = Numeric(38, 0)  # nanos over many accounts

wallet = Table(
    "wallet",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("organization_id", Text, nullable=False),
    Column("currency", Text, nullable=False),
    # Sums of the account's entries on the ledger accounts of these names.
    Column("wallet_nano", BigInteger, nullable=False),
    Column("unbilled_nano", BigInteger, nullable=False),
    Column("receivable_nano", BigInteger, nullable=False),
    Column("event_version", BigInteger, nullable=False),
    Column("trigger_version", BigInteger, nullable=False),
    # As the registry told it; version 0: it has not yet.
    Column("registry_version", Integer, nullable=False),
    Column("plan", Text),
    Column("level_2", Boolean, nullable=False),
    Column("credit_limit_nano", BigInteger, nullable=False),
    Column("created_at", Instant),
    Column("closed_at", Instant),
    Column("opened_at", Instant),
    Column("method_processor", Text),
    Column("method_kind", Text),
    Column("method_token", Text),
    Column("recharge_enabled", Boolean, nullable=False),
    Column("recharge_mode", Text, nullable=False),
    Column("threshold_nano", BigInteger, nullable=False),
    Column("recharge_nano", BigInteger, nullable=False),
    Column("decline_streak", SmallInteger, nullable=False),
    Column("retry_at", Instant),
    Column("paused_by", Text),
    Column("notice", Text),
    # The set of reasons; the account is active while none stands.
    Column("suspended_funds", Boolean, nullable=False),
    Column("suspended_overdue", Boolean, nullable=False),
    Column("suspended_operator", Boolean, nullable=False),
    Column("spend_counted", Boolean, nullable=False),
    # The marks of its low-balance levels; null: no level there.
    Column("level_next_nano", BigInteger),
    Column("level_told_nano", BigInteger),
    # What its calls in progress hold of its own money; the latest end of a lease that a call of it ever had.
    Column("held_nano", BigInteger, nullable=False),
    Column("calls_until", Instant),
    # How often a method was deleted: a payment that was begun before saves none.
    Column("method_version", BigInteger, nullable=False),
    # A payment of every month: how much, on which day (31: the last), when the next one is made.
    Column("schedule_nano", BigInteger),
    Column("schedule_day", SmallInteger),
    Column("schedule_at", Instant),
    # What is left of the credits of this account alone.
    Column("credit_nano", BigInteger, nullable=False),
    # Of what is in the wallet: brought by a card for its group's invoices, to which it goes on at once.
    Column("on_its_way_nano", BigInteger, nullable=False),
)

IS_SUSPENDED = or_(wallet.c.suspended_funds, wallet.c.suspended_overdue, wallet.c.suspended_operator)

# Promotional money: of one account, or, without one, of all accounts of a payer group.
credit = Table(
    "credit",
    metadata,
    Column("credit_id", Uuid, primary_key=True),
    Column("organization_id", Text, nullable=False),
    Column("group_id", Text),
    Column("account_id", Text),
    Column("asked_for", Text, nullable=False),
    Column("currency", Text, nullable=False),
    Column("granted_nano", BigInteger, nullable=False),
    Column("remaining_nano", BigInteger, nullable=False),
    Column("breakage_nano", BigInteger, nullable=False),
    # Null while it waits for a second person.
    Column("valid_from", Instant),
    Column("expires_at", Instant),
    Column("expired_at", Instant),
    Column("created_at", Instant, nullable=False),
    Column("origin", Text, nullable=False),
    Column("asked_by", Text, nullable=False),
    Column("approved_by", Text),
    Column("note", Text),
    # What calls hold of it. Of one that has expired it is worth nothing, and goes when those calls end.
    Column("held_nano", BigInteger, nullable=False, server_default="0"),
    # For indexes: it changes twice in a credit's life, so that paying moves no entry of theirs.
    Column("is_left", Boolean, Computed("remaining_nano > 0", persisted=True), nullable=False),
)

# Which credits paid a charge, in order of their places; below zero: what its reversal gave back.
funding = Table(
    "funding",
    metadata,
    Column("charge_id", Uuid, primary_key=True),
    Column("place", SmallInteger, primary_key=True),
    Column("credit_id", Uuid, nullable=False),
    Column("nano", BigInteger, nullable=False),
    Column("charge_nano", BigInteger, nullable=False),
    Column("reverses", Uuid),  # of what a reversal gives back: the charge that it takes back
)

voucher = Table(
    "voucher",
    metadata,
    Column("voucher_id", Uuid, primary_key=True),
    Column("digest", LargeBinary, nullable=False),
    Column("amount_nano", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("shared", Boolean, nullable=False),
    Column("organization_id", Text),
    Column("redemptions_max", Integer, nullable=False),
    Column("redeemed", Integer, nullable=False),
    Column("redeem_until", Instant),
    Column("credit_days", Integer),
    Column("needs_approval", Boolean, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("approved_by", Text),
    Column("approved_at", Instant),
    Column("note", Text),
)

redemption = Table(
    "redemption",
    metadata,
    Column("voucher_id", Uuid, primary_key=True),
    Column("beneficiary", Text, primary_key=True),
    Column("account_id", Text, nullable=False),
    Column("credit_id", Uuid, nullable=False),
    Column("actor", Text, nullable=False),
    Column("at", Instant, nullable=False),
)

level = Table(
    "level",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("nano", BigInteger, primary_key=True),
)

# Of an account, or, where a profile is named, of that outbound profile of it.
spend_limit = Table(
    "spend_limit",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("outbound_profile", Text, primary_key=True),
    Column("daily_spend_nano", BigInteger),
    Column("calls_max", Integer),
    Column("set_at", Instant, nullable=False),
)

spend = Table(
    "spend",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("day", Date, primary_key=True),
    Column("outbound_profile", Text, primary_key=True),
    Column("spent_nano", BigInteger, nullable=False),
    Column("told", SmallInteger, nullable=False),
    Column("told_limit_nano", BigInteger),
)

call = Table(
    "call",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("call_leg_id", Text, primary_key=True),
    Column("outbound_profile", Text, nullable=False),
    Column("started_at", Instant, nullable=False),
    Column("expires_at", Instant, nullable=False),
    Column("ended_at", Instant),
    Column("ended_by", Text),
    Column("settled_s", Integer),
    # What is held in all, by which rates, and the last grant: answered again when it is asked for again.
    Column("held_nano", BigInteger, nullable=False),
    Column("rates", JSONB, nullable=False),
    Column("content", LargeBinary),
    Column("number", Integer, nullable=False),
    Column("asked_s", Integer, nullable=False),
    Column("granted_s", Integer, nullable=False),
    Column("total_s", Integer, nullable=False),
    Column("max_s", Integer, nullable=False),
    # Of what is held: of credits that a payer group shares, each part in `credit_hold`.
    Column("shared_nano", BigInteger, nullable=False),
)

# What a call holds of a shared credit.
credit_hold = Table(
    "credit_hold",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("call_leg_id", Text, primary_key=True),
    Column("credit_id", Uuid, primary_key=True),
    Column("nano", BigInteger, nullable=False),
)

charge_batch = Table(
    "charge_batch",
    metadata,
    Column("id", BigInteger, primary_key=True),
    Column("at", Instant, nullable=False),
    Column("links", JSONB, nullable=False),
)

charged = Table(
    "charged",
    metadata,
    Column("batch_id", BigInteger, primary_key=True),
    Column("account_id", Text, primary_key=True),
    Column("currency", Text, nullable=False),
    Column("charges", Integer, nullable=False),
    Column("wallet_nano", BigInteger, nullable=False),
    Column("unbilled_nano", BigInteger, nullable=False),
    Column("products", ARRAY(Text), nullable=False),
    Column("revenue_nano", ARRAY(BigInteger), nullable=False),
    # Null unless a credit paid a part.
    Column("credits", ARRAY(Text)),
    Column("credit_nano", ARRAY(BigInteger)),
)

transaction = Table(
    "transaction",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("ref", Text, nullable=False),
    Column("currency", Text, nullable=False),
    Column("at", Instant, nullable=False),
    Column("actor", Text),
    Column("note", Text),
)

entry = Table(
    "entry",
    metadata,
    Column("transaction_id", Uuid, nullable=False),
    Column("ledger", Text, nullable=False),
    Column("account_id", Text),
    Column("nano", BigInteger, nullable=False),
)

# The chain over what was written to the ledger: a seal covers a batch of charges or some transactions.
seal = Table(
    "seal",
    metadata,
    Column("lane", Text, primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("batch_id", BigInteger),
    Column("transaction_ids", ARRAY(Uuid)),
    Column("content", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
)

sealed_day = Table(
    "sealed_day",
    metadata,
    Column("day", Date, primary_key=True),
    Column("at", Instant, nullable=False),
    Column("heads", JSONB, nullable=False),  # lane: [seq, hash in hex]
    Column("hash", LargeBinary, nullable=False),
)

# What the entries of each account sum to, as far as the seals of `summed_to`; compared with the wallets that move.
summed = Table(
    "summed",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("wallet_nano", Numeric, nullable=False),
    Column("unbilled_nano", Numeric, nullable=False),
    Column("receivable_nano", Numeric, nullable=False),
)

summed_to = Table(
    "summed_to",
    metadata,
    Column("lane", Text, primary_key=True),
    Column("seq", BigInteger, nullable=False),
)

# One row: how far the sweep over all accounts and transactions has come.
sweep = Table(
    "sweep",
    metadata,
    Column("id", SmallInteger, primary_key=True),
    Column("account_id", Text, nullable=False),
    Column("transaction_id", Uuid, nullable=False),
)

drift = Table(
    "drift",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("about", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("held_nano", Numeric, nullable=False),
    Column("entries_nano", Numeric, nullable=False),
    Column("found_at", Instant, nullable=False),
    Column("gone_at", Instant),
)

# A view: every entry of the room, one row each, those of charges taken apart.
ledger_entry = Table(
    "ledger_entry",
    metadata,
    Column("kind", Text),
    Column("ref", Text),
    Column("at", Instant),
    Column("currency", Text),
    Column("account_id", Text),
    Column("ledger", Text),
    Column("nano", BigInteger),
    Column("charges", Integer),
    Column("batch_id", BigInteger),  # of charges, as a number: by it a part of them is found
    Column("actor", Text),
    Column("note", Text),
)

attempt = Table(
    "attempt",
    metadata,
    Column("attempt_id", Uuid, primary_key=True),
    Column("account_id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("trigger_version", BigInteger, nullable=False),
    Column("processor", Text, nullable=False),
    Column("method_kind", Text, nullable=False),
    Column("amount_nano", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("requested_at", Instant, nullable=False),
    Column("ended_at", Instant),
    # Of a payment that brought its own method: what is saved if it succeeds.
    Column("token", Text),
    Column("method_version", BigInteger, nullable=False),
    Column("inquiries", Integer, nullable=False),
    # Asked for by an earlier life of the database, of which a backup was restored.
    Column("undone", Boolean, nullable=False, server_default="false"),
)

# Undone attempts whose command was not read again yet: it takes its attempt over, and nobody is asked for money anew.
unclaimed = Table(
    "unclaimed",
    metadata,
    Column("attempt_id", Uuid, primary_key=True),
    Column("account_id", Text, nullable=False),
    Column("command_id", Text),  # null: not known, the amount tells
    Column("charged", Text, nullable=False),  # the token
)

result = Table(
    "result",
    metadata,
    Column("processor", Text, primary_key=True),
    Column("result_id", Text, primary_key=True),
    Column("attempt_id", Uuid, nullable=False),
    Column("kind", Text, nullable=False),
    Column("failure", Text),
    Column("reason", Text),
    Column("at", Instant, nullable=False),
    Column("received_at", Instant, nullable=False),
    Column("amount_nano", BigInteger, nullable=False),
    Column("refund_id", Uuid),
    Column("dispute_id", Text),
)

# What finance asked to give back.
refund = Table(
    "refund",
    metadata,
    Column("refund_id", Uuid, primary_key=True),
    Column("attempt_id", Uuid, nullable=False),
    Column("account_id", Text, nullable=False),
    Column("amount_nano", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("requested_at", Instant, nullable=False),
    Column("ended_at", Instant),
    Column("actor", Text, nullable=False),
    Column("note", Text),
)

command = Table(
    "command",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("command_id", Text, primary_key=True),
    Column("content", LargeBinary, nullable=False),
    Column("kind", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("at", Instant, nullable=False),
    Column("accepted", Boolean, nullable=False),
    Column("reason", Text),
    Column("note", Text),
)

covered = Table(
    "covered",
    metadata,
    Column("cutoff_id", Uuid, primary_key=True),
    Column("group_id", Text, primary_key=True),
    Column("boundary", Instant, nullable=False),
    Column("marks", JSONB, nullable=False),
    Column("answered_at", Instant),
)

# ---- what payer groups owe -----------------------------------------------------------------------------------------

# Its row is the lock of all that the group owes: taken before wallets, because only then is it known whose they are.
payer = Table(
    "payer",
    metadata,
    Column("group_id", Text, primary_key=True),
    Column("organization_id", Text, nullable=False),
    Column("currency", Text, nullable=False),
    Column("zone", Text, nullable=False),
    Column("event_version", BigInteger, nullable=False),
    # Paid too much, as people say it: above zero.
    Column("unapplied_nano", Total, nullable=False),
    Column("suspends", Boolean, nullable=False),
)

# Which group pays for an account, over time, as the registry told it.
membership = Table(
    "membership",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("start_at", Instant, primary_key=True),
    Column("end_at", Instant),
    Column("group_id", Text, nullable=False),
    # The group is scoped to this account and takes no other.
    Column("scoped", Boolean, nullable=False),
)

# Amounts as people say them: what is owed and what is paid is above zero.
receivable = Table(
    "receivable",
    metadata,
    Column("invoice_id", Uuid, primary_key=True),
    Column("group_id", Text, nullable=False),
    Column("number", Text, nullable=False),
    Column("period", Text, nullable=False),
    Column("due_on", Instant, nullable=False),
    Column("due_nano", Total, nullable=False),
    Column("paid_nano", Total, nullable=False),
    Column("written_off_nano", Total, nullable=False),
    Column("credited_nano", Total, nullable=False),  # of what was open, by credit notes
    Column("voided", Boolean, nullable=False),
    Column("version", Integer, nullable=False),
    Column("overdue_since", Instant),
    Column("noticed_days", Integer),
    Column("write_off_proposed_by", Text),
    Column("write_off_note", Text),
)

receivable_share = Table(
    "receivable_share",
    metadata,
    Column("invoice_id", Uuid, primary_key=True),
    Column("account_id", Text, primary_key=True),
    Column("open_nano", BigInteger, nullable=False),
    # What the account's own wallet paid of it, less what a credit note gave back.
    Column("from_wallet_nano", BigInteger, nullable=False),
)

group_payment = Table(
    "group_payment",
    metadata,
    Column("payment_id", Uuid, primary_key=True),
    Column("group_id", Text),  # null: it topped up the account's wallet
    Column("bank", Text, nullable=False),
    Column("reference", Text, nullable=False),
    Column("amount_nano", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("received_at", Instant, nullable=False),
    Column("actor", Text, nullable=False),
    Column("note", Text, nullable=False),
    # Through whose wallet a payment by card came, or whose wallet a transfer topped up; null for a transfer for a group.
    Column("account_id", Text),
)

# Attempts that charge a saved method for a group's invoices.
card_payment = Table(
    "card_payment",
    metadata,
    Column("attempt_id", Uuid, primary_key=True),
    Column("group_id", Text, nullable=False),
    Column("invoice_id", Uuid),
    Column("actor", Text, nullable=False),
    Column("has_paid", Boolean, nullable=False, server_default="false"),
)

# What of an invoice was paid from where; a payment is null where it was the group's unapplied money.
application = Table(
    "application",
    metadata,
    Column("invoice_id", Uuid, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("source", Text, nullable=False),
    Column("payment_id", Uuid),
    Column("nano", Total, nullable=False),
    Column("at", Instant, nullable=False),
)

group_command = Table(
    "group_command",
    metadata,
    Column("group_id", Text, primary_key=True),
    Column("command_id", Text, primary_key=True),
    Column("content", LargeBinary, nullable=False),
    Column("kind", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("at", Instant, nullable=False),
    Column("accepted", Boolean, nullable=False),
    Column("reason", Text),
)

overdue_terms = Table(
    "overdue_terms",
    metadata,
    Column("only_row", Boolean, primary_key=True),
    Column("suspend_after_days", Integer, nullable=False),
)
