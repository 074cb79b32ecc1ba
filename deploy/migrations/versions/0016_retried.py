"""What is in quarantine for want of an account or a number is found by it."""

from alembic import op

revision = "0016_retried"
down_revision = "0015_lines_by_schedule"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for reason, name in (("unknown_account", "account_id"), ("unknown_number", "number")):
        op.execute(
            f"create index parked_{reason} on usage.parked ((about ->> '{name}'))"
            f" where state = 'quarantined' and reason = '{reason}'"
        )


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
