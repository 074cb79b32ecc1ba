"""Cuts that wait for an answer are found however many were answered: each tick asks for them."""

from alembic import op

revision = "0060_covered_unanswered"
down_revision = "0059_credits_left"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """One leaves it when it is answered."""
    op.execute("create index covered_unanswered on balance.covered (cutoff_id, group_id) where answered_at is null")


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
