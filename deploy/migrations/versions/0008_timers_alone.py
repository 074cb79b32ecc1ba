"""How often a timer has failed in a row: it is tried again later each time, and holds up no other."""

from __future__ import annotations

from alembic import op

revision = "0008_timers_alone"
down_revision = "0007_invoices"
branch_labels = None
depends_on = None

ROOMS = ("usage", "balance", "groups", "invoices", "payments")


def upgrade() -> None:
    for room in ROOMS:
        op.execute(f"alter table {room}.due add column failures integer not null default 0 check (failures >= 0)")


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
