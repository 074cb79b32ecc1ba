"""A wallet is never deleted: its entries stay, and without it nothing says what they sum to."""

from alembic import op

revision = "0049_wallets_stay"
down_revision = "0048_drift_of_holds"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """No code deletes one."""
    op.execute("revoke delete, truncate on balance.wallet from tollbook_balance")


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
