"""A counter's quantity has no end: uses billed in large steps, of which a month has thousands, do not fit a bigint."""

from alembic import op

revision = "0030_counters_any_size"
down_revision = "0029_line_quantity"
branch_labels = None
depends_on = None

STATEMENTS = (
    "alter table usage.counter alter column quantity type numeric(38, 0)",
    """
alter table usage.charge
  alter column counted_before type numeric(38, 0), alter column counted_after type numeric(38, 0)
""",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
