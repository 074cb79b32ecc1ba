"""What of an account's attempts is in flight is found however many there were: every look at a wallet asks for it."""

from alembic import op

revision = "0058_attempts_in_flight"
down_revision = "0057_money_returned"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """An attempt leaves it when its result comes: it is as small as what is in flight."""
    op.execute(
        "create index attempt_on_its_way on balance.attempt (account_id) where state in ('requested', 'unknown')"
    )


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
