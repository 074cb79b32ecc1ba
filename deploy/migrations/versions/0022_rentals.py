"""Fees of numbers: since when Tollbook bills them, and which were published."""

from alembic import op

revision = "0022_rentals"
down_revision = "0021_charge_profile"
branch_labels = None
depends_on = None

STATEMENTS = (
    # months that had begun before were somebody else's to bill; the instant is fixed when the column is made
    "alter table usage.state add column rentals_from timestamptz not null default runtime.clock_now()",
    "alter table usage.state alter column rentals_from drop default",
    """
create table usage.rental (
  resource_id text not null,
  period text not null,
  account_id text not null,
  number text not null,
  starts_at timestamptz not null,
  days smallint not null check (days between 1 and 31),
  published_at timestamptz not null,
  primary key (resource_id, period)
)
""",
    # numbers that are known already are looked at once
    "insert into usage.due (kind, key, due_at) values ('rental.prices', 'all', runtime.clock_now())",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
