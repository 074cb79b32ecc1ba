"""Batches of charges by time: the first limit of an account takes over what was posted for it on that day."""

from alembic import op

revision = "0028_batches_by_time"
down_revision = "0027_rerate"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """One entry a batch, however many charges."""
    op.execute("create index charge_batch_by_time on balance.charge_batch (at)")


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
