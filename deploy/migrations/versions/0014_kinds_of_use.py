"""Prices and charges of everything that can be used: messages, data, rentals and products beside voice."""

from alembic import op

revision = "0014_kinds_of_use"
down_revision = "0013_resumed"
branch_labels = None
depends_on = None

STATEMENTS = (
    "alter table usage.book_price rename column per_minute_nano to price_nano",
    "alter table usage.book_price rename column minimum_s to minimum",
    "alter table usage.book_price rename column increment_s to increment",
    """
alter table usage.book_price
  alter column minimum type bigint, alter column increment type bigint,
  add column per bigint not null default 60 check (per > 0),
  add column unit text not null default 'second',
  add column delivered_only boolean not null default false
""",
    """
alter table usage.book_price
  alter column per drop default, alter column unit drop default, alter column delivered_only drop default
""",
    "alter table usage.charge rename column billable_s to used",
    "alter table usage.charge rename column caller to origin",
    "alter table usage.charge rename column called to destination",
    """
alter table usage.charge
  alter column used type bigint, alter column quantity type bigint,
  add column per bigint not null default 60,
  add column unit text not null default 'second'
""",
    "alter table usage.charge alter column per drop default, alter column unit drop default",
)


def upgrade() -> None:
    """Every price and charge that exists is of voice, by the minute."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
