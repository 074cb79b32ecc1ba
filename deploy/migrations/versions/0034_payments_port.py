"""Payments: the operations that processors are asked for, carried out one after the other for each attempt."""

from alembic import op

revision = "0034_payments_port"
down_revision = "0033_low_balance"
branch_labels = None
depends_on = None

KINDS = "'settled', 'failed', 'cancelled', 'never_seen', 'refunded', 'refund_failed', 'disputed', 'dispute_won', 'dispute_lost'"

# What was asked for before was answered as it came: those attempts have no operation that is to be done.
STATEMENTS = (
    """
alter table payments.attempt
  alter column token drop not null,
  add column method_kind text,
  add column origin text not null default 'auto' check (origin in ('auto', 'manual', 'scheduled')),
  add column reference text,
  add column calling_until timestamptz,
  add column closed_at timestamptz
""",
    """
create table payments.operation (
  operation_id text primary key,
  attempt_id uuid not null,
  processor text not null,
  kind text not null check (kind in ('charge', 'inquire', 'cancel', 'refund')),
  number smallint,
  refund_id uuid,
  amount text not null,
  currency text not null,
  asked_at timestamptz not null,
  tries integer not null default 0,
  done_at timestamptz,
  outcome text,
  check ((kind = 'inquire') = (number is not null) and (kind = 'refund') = (refund_id is not null)),
  check ((done_at is null) = (outcome is null))
)
""",
    "create index operation_of_attempt on payments.operation (attempt_id)",
    f"""
alter table payments.answer
  drop constraint answer_kind_check,
  add constraint answer_kind_check check (kind in ({KINDS})),
  add column amount text,
  add column currency text,
  add column refund_id uuid,
  add column dispute_id text
""",
)


def upgrade() -> None:
    """Adds the operations and what else a processor may say."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
