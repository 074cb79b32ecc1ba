"""Prices by the time of day: a version of a book names windows, and a price may hold in one of them."""

from alembic import op

revision = "0017_windows"
down_revision = "0016_retried"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
create table usage.book_window (
  book_id text not null,
  version integer not null,
  id text not null,
  zone text not null,
  days text not null,
  "from" text not null,
  "to" text not null,
  holidays text not null,
  primary key (book_id, version, id),
  foreign key (book_id, version) references usage.book_version
)
""",
    """
alter table usage.book_price
  add column "window" text not null default '',
  drop constraint book_price_pkey,
  add primary key (book_id, version, product, prefix, "window")
""",
    'alter table usage.book_price alter column "window" drop default',
    'alter table usage.charge add column "window" text',
)


def upgrade() -> None:
    """No price that exists is of a window."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
