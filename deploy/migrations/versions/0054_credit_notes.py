"""Credit notes: decided by two persons and numbered by invoices, carried out by balance."""

from alembic import op

revision = "0054_credit_notes"
down_revision = "0053_retried_by_price"
branch_labels = None
depends_on = None

NAME = 'text collate "C"'

INVOICES = (
    f"""
create table invoices.credit_note (
  credit_note_id uuid primary key,
  invoice_id uuid not null references invoices.invoice (invoice_id),
  asked text,
  reason text not null,
  state text not null check (state in ('proposed', 'approved', 'issued', 'withdrawn')),
  net_nano numeric(38, 0) not null,
  tax_nano numeric(38, 0) not null,
  total_nano numeric(38, 0) not null check (total_nano > 0),
  voids boolean not null,
  proposed_by text not null,
  proposed_at timestamptz not null,
  decided_by text,
  decided_at timestamptz,
  billing_entity_id {NAME},
  number {NAME},
  issued_at timestamptz,
  constraint credit_note_has_two_persons check (state in ('proposed', 'withdrawn') or decided_by <> proposed_by),
  check ((state = 'proposed') = (decided_at is null)),
  check ((state = 'issued') = (number is not null)),
  check ((state = 'issued') = (issued_at is not null)),
  unique (billing_entity_id, number)
)
""",
    "create unique index credit_note_under_way on invoices.credit_note (invoice_id) where state in ('proposed', 'approved')",
    "create index credit_note_to_issue on invoices.credit_note (decided_at) where state = 'approved'",
    "create index credit_note_of_invoice on invoices.credit_note (invoice_id)",
    "comment on column invoices.credit_note.asked is 'the lines that are credited, JSON; null: all that is left of the invoice'",
    """
create table invoices.credit_note_document (
  credit_note_id uuid primary key references invoices.credit_note (credit_note_id),
  body text not null,
  sha256 text not null check (sha256 ~ '^[0-9a-f]{64}$')
)
""",
    "revoke delete, truncate on invoices.credit_note from tollbook_invoices",
    "revoke update, delete, truncate on invoices.credit_note_document from tollbook_invoices",
    "alter table invoices.settlement add credited_nano numeric(38, 0) not null default 0",
    "alter table invoices.settlement drop constraint settlement_state_check, add constraint settlement_state_check"
    " check (state in ('closed', 'partly_paid', 'paid', 'overdue', 'written_off', 'void'))",
)

BALANCE = (
    "alter table balance.receivable add credited_nano numeric(38, 0) not null default 0 check (credited_nano >= 0),"
    " add voided boolean not null default false",
    "alter table balance.receivable drop constraint receivable_is_never_paid_twice,"
    " add constraint receivable_is_never_paid_twice check ("
    "paid_nano + written_off_nano + credited_nano between least(due_nano, 0) and greatest(due_nano, 0))",
    "drop index balance.receivable_open",
    "create index receivable_open on balance.receivable (group_id)"
    " where paid_nano + written_off_nano + credited_nano <> due_nano",
    "alter table balance.application drop constraint application_source_check, add constraint application_source_check"
    " check (source in ('transfer', 'card', 'balance', 'overpayment', 'credit', 'write_off', 'credit_note'))",
)


def upgrade() -> None:
    for statement in (*INVOICES, *BALANCE):
        op.execute(statement)


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
