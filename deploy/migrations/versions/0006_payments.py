"""Payments: the attempts that the built-in processor was asked for, and the answers it gives."""

from alembic import op

revision = "0006_payments"
down_revision = "0005_balance"
branch_labels = None
depends_on = None

ATTEMPT = """
create table payments.attempt (
  attempt_id uuid primary key,
  account_id text not null,
  processor text not null,
  token text not null,
  amount text not null,
  currency text not null,
  requested_at timestamptz not null,
  received_at timestamptz not null
)
"""

# `told_at` empty: the answer is planned and its timer runs.
ANSWER = """
create table payments.answer (
  attempt_id uuid not null references payments.attempt (attempt_id),
  number smallint not null check (number >= 1),
  result_id text not null,
  kind text not null check (kind in ('settled', 'failed')),
  failure text check (failure in ('declined', 'error')),
  reason text,
  due_at timestamptz not null,
  told_at timestamptz,
  primary key (attempt_id, number),
  check ((kind = 'failed') = (failure is not null))
)
"""


def upgrade() -> None:
    """Makes the room's tables."""
    op.execute(ATTEMPT)
    op.execute(ANSWER)


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
