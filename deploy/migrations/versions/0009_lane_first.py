"""Where a lane began: the start of its log when it was born. Nothing below was ever there to be read."""

from __future__ import annotations

from alembic import op

revision = "0009_lane_first"
down_revision = "0008_timers_alone"
branch_labels = None
depends_on = None

ROOMS = ("usage", "balance", "groups", "invoices", "payments")


def upgrade() -> None:
    for room in ROOMS:
        op.execute(f"alter table {room}.lane add column first bigint not null default 0 check (first >= 0)")


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
