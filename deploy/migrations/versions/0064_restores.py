"""What a restore from a backup leaves: in every room what of its neighbours' earlier epochs holds, and above which version it tells
its objects; and, for people, which restores there were."""

from __future__ import annotations

from alembic import op

revision = "0064_restores"
down_revision = "0063_sum_of_new_entries"
branch_labels = None
depends_on = None

ROOMS = ("usage", "balance", "groups", "invoices", "payments", "webhooks")

BOUND = """
create table {room}.bound (
  topic text not null,
  partition integer not null,
  link text not null,
  epoch integer not null,
  last_seq bigint not null check (last_seq >= 0),
  primary key (topic, partition, link, epoch)
)
"""

FLOOR = "alter table {room}.lanes add version_floor bigint not null default 0 check (version_floor >= 0)"

RESTORE = """
create table runtime.restore (
  epoch integer primary key check (epoch > 0),
  by text not null check (by <> ''),
  reason text not null check (reason <> ''),
  begun_at timestamptz not null default now(),
  ended_at timestamptz,
  report jsonb
)
"""

UNDONE = """
create table invoices.undone (
  number text not null,
  group_id text not null,
  period text not null,
  kind text not null check (kind in ('closed', 'credit_note')),
  billing_entity_id text,
  told text not null,
  place bigserial not null,
  primary key (number, group_id)
)
"""


def upgrade() -> None:
    """Nothing was restored yet."""
    for room in ROOMS:
        op.execute(BOUND.format(room=room))
        op.execute(FLOOR.format(room=room))
    op.execute(RESTORE)
    op.execute(f"grant select on runtime.restore to {', '.join(f'tollbook_{room}' for room in ROOMS)}")
    op.execute(UNDONE)
    op.execute("create index undone_documents on invoices.undone (group_id, period) where kind = 'closed'")


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
