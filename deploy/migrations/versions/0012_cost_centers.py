"""Usage knows cost centers by themselves, so that a call may name one that no resource has."""

from __future__ import annotations

from alembic import op

revision = "0012_cost_centers"
down_revision = "0011_no_skipped"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("alter table usage.timeline drop constraint timeline_kind_check")
    op.execute(
        "alter table usage.timeline add constraint timeline_kind_check"
        " check (kind in ('account', 'resource', 'publisher', 'cost_center'))"
    )


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
