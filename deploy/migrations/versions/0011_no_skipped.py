"""What a link skipped is logged where it happens; nobody ever counted it in its row."""

from __future__ import annotations

from alembic import op

revision = "0011_no_skipped"
down_revision = "0010_source_seen"
branch_labels = None
depends_on = None

ROOMS = ("usage", "balance", "groups", "invoices", "payments")


def upgrade() -> None:
    for room in ROOMS:
        op.execute(f"alter table {room}.link_in drop column skipped")


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
