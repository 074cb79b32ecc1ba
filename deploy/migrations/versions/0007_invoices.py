"""Invoices: what is accumulated, the cuts, the closed documents and their numbers."""

from alembic import op

revision = "0007_invoices"
down_revision = "0006_payments"
branch_labels = None
depends_on = None

# Names are compared as bytes: rows are locked in the order in which the programs sort.
NAME = 'text collate "C"'
MONTH = "check ({column} ~ '^[0-9]{{4}}-(0[1-9]|1[0-2])$')"
# Sums over many accounts.
TOTAL = "numeric(38, 0)"
# Rows that many batches add to: room on the page keeps the updates in place (HOT).
HOT = "with (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000)"

TERMS = """
create table invoices.terms (
  only_row boolean primary key default true check (only_row),
  automatic_from timestamptz not null,
  grace_s integer not null check (grace_s >= 0)
)
"""

BILLING_GROUP = f"""
create table invoices.billing_group (
  group_id {NAME} primary key,
  version bigint not null,
  zone {NAME} not null,
  told text not null
)
"""

ACCOUNT = f"""
create table invoices.account (
  account_id {NAME} primary key,
  version bigint not null,
  name text not null
)
"""

ZONE = f"""
create table invoices.zone (
  zone {NAME} primary key,
  since timestamptz not null
)
"""

# The period's name stands for its start in the group's zone: one group, one period, one invoice.
INVOICE = f"""
create table invoices.invoice (
  invoice_id uuid primary key,
  group_id {NAME} not null,
  period {NAME} not null {MONTH.format(column="period")},
  state text not null default 'open' check (state in ('open', 'closed', 'nothing')),
  refused text,
  refused_at timestamptz,
  closed_at timestamptz,
  cutoff_id uuid,
  billing_entity_id {NAME},
  number {NAME},
  currency text,
  net_nano {TOTAL},
  tax_nano {TOTAL},
  total_nano {TOTAL},
  due_nano {TOTAL},
  constraint invoice_once unique (group_id, period),
  constraint invoice_number_once unique (billing_entity_id, number),
  check ((state = 'open') = (closed_at is null)),
  check ((state = 'closed') = (number is not null)),
  check (num_nulls(number, billing_entity_id, currency, net_nano, tax_nano, total_nano, due_nano) in (0, 7)),
  check (total_nano = net_nano + tax_nano)
) {HOT}
"""

INVOICE_OPEN = """
create index invoice_open on invoices.invoice (period, refused_at nulls first, group_id) where state = 'open'
"""

LINE = f"""
create table invoices.line (
  invoice_id uuid not null,
  account_id {NAME} not null,
  product {NAME} not null,
  cost_center_id {NAME} not null,
  period {NAME} not null {MONTH.format(column="period")},
  prepaid boolean not null,
  currency {NAME} not null,
  charges bigint not null,
  quantity bigint not null,
  exact_nano bigint not null,
  unit_price_min_nano bigint not null,
  unit_price_max_nano bigint not null,
  primary key (invoice_id, account_id, product, cost_center_id, period, prepaid, currency)
) {HOT}
"""

TALLY = f"""
create table invoices.tally (
  invoice_id uuid primary key,
  charges bigint not null,
  exact_nano {TOTAL} not null,
  xor bigint not null
) {HOT}
"""

PAID = f"""
create table invoices.paid (
  invoice_id uuid not null,
  account_id {NAME} not null,
  currency {NAME} not null,
  charged_nano bigint not null,
  credits_nano bigint not null,
  wallet_nano bigint not null,
  unbilled_nano bigint not null,
  primary key (invoice_id, account_id, currency)
) {HOT}
"""

DOCUMENT = """
create table invoices.document (
  invoice_id uuid primary key references invoices.invoice (invoice_id),
  body text not null,
  sha256 text not null check (sha256 ~ '^[0-9a-f]{64}$')
)
"""

NUMBER_SERIES = f"""
create table invoices.number_series (
  billing_entity_id {NAME} primary key,
  last_number bigint not null check (last_number >= 0)
)
"""

CLOSE_REQUEST = f"""
create table invoices.close_request (
  period {NAME} primary key {MONTH.format(column="period")},
  requested_by text not null,
  requested_at timestamptz not null
)
"""

CUTOFF = """
create table invoices.cutoff (
  cutoff_id uuid primary key,
  boundary timestamptz not null unique,
  cut_at timestamptz not null,
  passed_at timestamptz,
  held text[],
  finished_at timestamptz,
  check ((passed_at is null) = (held is null)),
  check (finished_at is null or passed_at is not null)
)
"""

CUTOFF_UNFINISHED = "create index cutoff_unfinished on invoices.cutoff (boundary) where finished_at is null"

COVERED = f"""
create table invoices.covered (
  cutoff_id uuid not null,
  room text not null check (room in ('groups', 'usage', 'balance')),
  group_id {NAME} not null,
  told text not null,
  primary key (cutoff_id, room, group_id)
)
"""

CUTOFF_EVIDENCE = f"""
create table invoices.cutoff_evidence (
  cutoff_id uuid not null references invoices.cutoff (cutoff_id),
  group_id {NAME} not null,
  body text not null,
  sha256 text not null check (sha256 ~ '^[0-9a-f]{{64}}$'),
  primary key (cutoff_id, group_id)
)
"""

# What is closed is never written again, whoever asks.
UNCHANGING = ("document", "cutoff_evidence")


def upgrade() -> None:
    """Makes the room's tables."""
    for statement in (
        TERMS, BILLING_GROUP, ACCOUNT, ZONE, INVOICE, INVOICE_OPEN, LINE, TALLY, PAID, DOCUMENT, NUMBER_SERIES,
        CLOSE_REQUEST, CUTOFF, CUTOFF_UNFINISHED, COVERED, CUTOFF_EVIDENCE,
    ):  # fmt: skip
        op.execute(statement)
    for table in UNCHANGING:
        op.execute(f"revoke update, delete on invoices.{table} from tollbook_invoices")


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
