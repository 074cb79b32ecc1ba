"""Sums that are checked while the rooms run: what each wallet's entries come to, up to which seals, and what differs."""

from alembic import op

revision = "0039_checked_sums"
down_revision = "0038_rerate_tiers"
branch_labels = None
depends_on = None

NAME = 'text collate "C"'

SUMMED = f"""
create table balance.summed (
  account_id {NAME} primary key,
  wallet_nano numeric not null,
  unbilled_nano numeric not null,
  receivable_nano numeric not null
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000)
"""

SUMMED_TO = f"create table balance.summed_to (lane {NAME} primary key, seq bigint not null)"

SWEEP = f"""
create table balance.sweep (
  id smallint primary key check (id = 1),
  account_id {NAME} not null default '',
  transaction_id uuid not null default '00000000-0000-0000-0000-000000000000'
)
"""

DRIFT = f"""
create table balance.drift (
  id bigint generated always as identity primary key,
  about {NAME} not null,
  kind text not null check (kind in ('wallet', 'unbilled', 'receivable', 'charges', 'transaction')),
  held_nano numeric not null,
  entries_nano numeric not null,
  found_at timestamptz not null,
  gone_at timestamptz
)
"""

DRIFT_INDEX = "create unique index drift_open on balance.drift (about, kind) where gone_at is null"

FILL = """
insert into balance.summed
select account_id, coalesce(sum(nano) filter (where part = 'wallet'), 0),
       coalesce(sum(nano) filter (where part = 'unbilled'), 0), coalesce(sum(nano) filter (where part = 'receivable'), 0)
  from (select account_id, split_part(ledger, ':', 1) as part, nano from balance.ledger_entry) as each
 where account_id is not null and part in ('wallet', 'unbilled', 'receivable')
 group by account_id
"""


def upgrade() -> None:
    """Sums up what there is; from then on only what moves is added."""
    for statement in (SUMMED, SUMMED_TO, SWEEP, DRIFT, DRIFT_INDEX, FILL):
        op.execute(statement)
    op.execute("insert into balance.summed_to select lane, max(seq) from balance.seal group by lane")
    op.execute("insert into balance.sweep (id) values (1)")


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
