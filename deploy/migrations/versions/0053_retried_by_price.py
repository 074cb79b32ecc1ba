"""What is in quarantine for want of a price is found by its account: one that moves to another payer group may have other prices."""

from alembic import op

revision = "0053_retried_by_price"
down_revision = "0052_shared_holds"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        "create index parked_no_price on usage.parked ((about ->> 'account_id'))"
        " where state = 'quarantined' and reason = 'no_price'"
    )


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
