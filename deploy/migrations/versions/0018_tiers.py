"""Prices by tiers: schedules of bands, and the counters that say where in them an account stands."""

from alembic import op

revision = "0018_tiers"
down_revision = "0017_windows"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
create table usage.book_schedule (
  book_id text not null,
  version integer not null,
  id text not null check (id <> ''),
  form text not null check (form in ('graduated', 'volume')),
  per bigint not null check (per > 0),
  bands jsonb not null check (jsonb_array_length(bands) > 0),
  primary key (book_id, version, id),
  foreign key (book_id, version) references usage.book_version
)
""",
    """
alter table usage.book_price
  add column schedule text not null default '',
  add check (schedule = '' or (price_nano = 0 and connection_fee_nano = 0))
""",
    "alter table usage.book_price alter column schedule drop default",
    # How much was used: of an account with its payer group (empty: a trial) in a month of event time. No check of
    # quantity: a row to be inserted is checked before it meets the one that it is added to.
    """
create table usage.counter (
  account_id text collate "C" not null,
  group_id text collate "C" not null,
  period text collate "C" not null check (period ~ '^[0-9]{4}-(0[1-9]|1[0-2])$'),
  product text collate "C" not null,
  prepaid boolean not null,
  schedule text collate "C" not null,
  quantity bigint not null,
  primary key (account_id, group_id, period, product, prepaid, schedule)
) with (fillfactor = 70)
""",
    """
alter table usage.charge
  add column schedule text collate "C",
  add column counted_before bigint,
  add column counted_after bigint,
  add check (num_nulls(schedule, counted_before, counted_after) in (0, 3)),
  add check (counted_before >= 0 and counted_after >= 0)
""",
)


def upgrade() -> None:
    """Every price and charge that exists is one of its own."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
