"""Calls in progress, counted against the limit of concurrent calls for as long as their leases run."""

from alembic import op

revision = "0023_calls_in_progress"
down_revision = "0022_rentals"
branch_labels = None
depends_on = None

# An ended call stays for a while, so that a late copy of its start is known.
STATEMENTS = (
    """
create table balance.call (
  account_id text collate "C" not null,
  call_leg_id text collate "C" not null check (length(call_leg_id) between 1 and 256),
  outbound_profile text collate "C" not null,
  started_at timestamptz not null,
  expires_at timestamptz not null,
  ended_at timestamptz,
  primary key (account_id, call_leg_id)
)
""",
    "create index call_in_progress on balance.call (account_id, outbound_profile, expires_at) where ended_at is null",
    "create index call_by_lease on balance.call (expires_at)",
    "create index spend_by_day on balance.spend (day)",
    "comment on column balance.call.expires_at is 'the end of its lease: from then on it counts no more'",
)


def upgrade() -> None:
    """No call is known yet."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
