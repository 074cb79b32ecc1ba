"""What is held, what is left of credits and what is on its way to groups are sums that are checked while the rooms run, too."""

from alembic import op

revision = "0048_drift_of_holds"
down_revision = "0047_payments_by_state"
branch_labels = None
depends_on = None

KINDS = "'wallet', 'unbilled', 'receivable', 'charges', 'held', 'credit', 'on_its_way', 'transaction'"

STATEMENT = (
    "alter table balance.drift drop constraint drift_kind_check,"
    f" add constraint drift_kind_check check (kind in ({KINDS}))"
)


def upgrade() -> None:
    """Three more kinds of drift."""
    op.execute(STATEMENT)


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
