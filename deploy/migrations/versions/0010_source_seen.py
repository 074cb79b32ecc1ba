"""Which sources were seen in which month: a source that fell silent is shown in the evidence of a cut."""

from __future__ import annotations

from alembic import op

revision = "0010_source_seen"
down_revision = "0009_lane_first"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
create table usage.source_seen (
  month text not null,
  publisher text not null,
  source text not null,
  primary key (month, publisher, source)
)
"""
    )


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
