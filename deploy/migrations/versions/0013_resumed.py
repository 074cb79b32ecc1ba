"""Lanes that a person let go on after they stopped: who, why, and what was given up for it."""

from __future__ import annotations

from alembic import op

revision = "0013_resumed"
down_revision = "0012_cost_centers"
branch_labels = None
depends_on = None

ROOMS = ("usage", "balance", "groups", "invoices", "payments")

TABLE = """
create table {room}.resumed (
  id bigserial primary key,
  lane text not null,
  topic text not null,
  partition integer not null,
  stopped text not null,
  from_offset bigint not null check (from_offset >= 0),
  to_offset bigint not null check (to_offset >= 0),
  links jsonb not null,
  by text not null check (by <> ''),
  reason text not null check (reason <> ''),
  at timestamptz not null
)
"""


def upgrade() -> None:
    for room in ROOMS:
        op.execute(TABLE.format(room=room))


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
