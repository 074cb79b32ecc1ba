"""A line's quantity has no end: bytes of many sessions, each billed in large steps, do not fit a bigint."""

from alembic import op

revision = "0029_line_quantity"
down_revision = "0028_batches_by_time"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("alter table invoices.line alter column quantity type numeric(38, 0)")


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
