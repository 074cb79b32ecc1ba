"""Payments in trouble are found over all accounts: what is unknown or was given up is little among all that settled."""

from alembic import op

revision = "0047_payments_by_state"
down_revision = "0046_ledger_by_time"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Of each state the newest are read, however many payments there are."""
    op.execute("create index attempt_by_state on balance.attempt (state, requested_at)")


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
