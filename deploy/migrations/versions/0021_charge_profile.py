"""Which outbound profile a charge went out by: its correction counts for the same one."""

from alembic import op

revision = "0021_charge_profile"
down_revision = "0020_spend_limits"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Charges that exist are of no profile."""
    op.execute("alter table usage.charge add column outbound_profile text")


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
