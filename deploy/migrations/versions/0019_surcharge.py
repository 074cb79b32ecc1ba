"""Toll-free legs with a surcharge by the caller: what it was stands in the charge."""

from alembic import op

revision = "0019_surcharge"
down_revision = "0018_tiers"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """No charge that exists has one."""
    op.execute("alter table usage.charge add column surcharge text")


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
