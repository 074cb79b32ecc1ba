"""Holds: each call in progress keeps as much of its account's available credit as it may cost until its lease ends."""

from alembic import op

revision = "0036_holds"
down_revision = "0035_sealed_ledger"
branch_labels = None
depends_on = None

NANO_MAX = 4_000_000_000_000_000_000

# Calls that are there hold nothing and cost nothing: they were started before there were holds.
STATEMENTS = (
    f"""
alter table balance.wallet
  add column held_nano bigint not null default 0 check (held_nano between 0 and {NANO_MAX}),
  add column calls_until timestamptz
""",
    f"""
alter table balance.call
  add column held_nano bigint not null default 0 check (held_nano between 0 and {NANO_MAX}),
  add column rates jsonb not null default '[]',
  add column content bytea check (octet_length(content) = 16),
  add column number integer not null default 0 check (number >= 0),
  add column asked_s integer not null default 0 check (asked_s >= 0),
  add column granted_s integer not null default 0 check (granted_s >= 0),
  add column total_s integer not null default 0 check (total_s >= granted_s),
  add column max_s integer not null default 0,
  add column ended_by text check (ended_by in ('settle', 'release', 'charge')),
  add column settled_s integer check (settled_s >= 0)
""",
    "update balance.call set ended_by = 'release' where ended_at is not null",
    """
alter table balance.call
  add check ((ended_by is null) = (ended_at is null)),
  add check (settled_s is null or ended_at is not null)
""",
    "update balance.wallet w set calls_until = c.until from"
    " (select account_id, max(expires_at) as until from balance.call group by account_id) c"
    " where c.account_id = w.account_id",
    "create index call_holding on balance.call (expires_at) where held_nano > 0",
    "comment on column balance.wallet.held_nano is 'the sum of what its calls hold'",
    "comment on column balance.wallet.calls_until is 'the latest end of a lease that a call of it ever had'",
    "comment on column balance.call.content is 'digest of what was asked: the same request again has the same'",
    "comment on column balance.call.number is 'of the last renewal; 0 is the authorisation. The grant is that of this number'",
    "comment on column balance.call.total_s is 'from the start of the call to the end of the slice'",
)


def upgrade() -> None:
    """Adds what is held to wallets and calls."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
