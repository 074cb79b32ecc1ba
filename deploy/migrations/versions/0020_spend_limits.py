"""Limits of accounts and outbound profiles: what they may spend a day, what they have spent."""

from alembic import op

revision = "0020_spend_limits"
down_revision = "0019_surcharge"
branch_labels = None
depends_on = None

NANO_MAX = 4_000_000_000_000_000_000

# An empty profile is the account as a whole.
STATEMENTS = (
    "alter table balance.wallet add column spend_counted boolean not null default false",
    f"""
create table balance.spend_limit (
  account_id text collate "C" not null references balance.wallet (account_id),
  outbound_profile text collate "C" not null,
  daily_spend_nano bigint check (daily_spend_nano between 0 and {NANO_MAX}),
  calls_max integer check (calls_max >= 0),
  set_at timestamptz not null,
  primary key (account_id, outbound_profile)
)
""",
    f"""
create table balance.spend (
  account_id text collate "C" not null,
  day date not null,
  outbound_profile text collate "C" not null,
  spent_nano bigint not null check (spent_nano between -{NANO_MAX} and {NANO_MAX}),
  told smallint not null default 0 check (told in (0, 1, 2)),
  told_limit_nano bigint,
  primary key (account_id, day, outbound_profile),
  check ((told = 0) = (told_limit_nano is null))
) with (fillfactor = 50)
""",
    "comment on column balance.wallet.spend_counted is 'its charges are counted by day, since a limit was set'",
    "comment on column balance.spend.told is 'of told_limit_nano: 1 that it is near, 2 that it is reached'",
)


def upgrade() -> None:
    """No account has a limit yet, so nothing is counted."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
