"""Charges that were made before the registry told of a change are moved to whom the registry says now."""

from alembic import op

revision = "0051_reassignments"
down_revision = "0050_replaced_charges"
branch_labels = None
depends_on = None

STATEMENTS = (
    # No default: of charges that exist nobody knows, so what they say of account and cost center stays.
    "alter table usage.charge add column named smallint",
    "comment on column usage.charge.named is"
    " '1: the event named the account, 2: its cost center counted, 3: both; null: charged before this was kept'",
    # A few bytes per megabyte: all that is asked of it is to skip the hours before a change.
    "create index charge_by_time on usage.charge using brin (event_time) with (autosummarize = on)",
    # A charge may name a payer group that no timeline names any more: its zone says where its months end.
    "create table usage.payer_zone (group_id text primary key, zone text not null, changed bigint not null)",
    """
insert into usage.payer_zone (group_id, zone, changed)
select distinct on (each->>'group_id') each->>'group_id', each->>'zone', changed
from usage.timeline, jsonb_array_elements(document->'groups') as each
where kind = 'account'
order by each->>'group_id', changed desc
""",
    """
create table usage.reassignment (
  reassignment_id uuid primary key,
  position bigint generated always as identity,
  kind text not null check (kind in ('account', 'number', 'outbound_profile')),
  object_id text not null,
  number text check ((number is null) = (kind <> 'number')),
  version integer not null check (version > 0),
  starts_at timestamptz not null,
  ends_at timestamptz check (ends_at > starts_at),
  reprices boolean not null,
  noticed_at timestamptz not null,
  reached_at timestamptz not null check (reached_at >= starts_at),
  reached_id uuid not null,
  moved bigint not null default 0 check (moved >= 0),
  done_at timestamptz
)
""",
    "create index reassignment_open on usage.reassignment (position) where done_at is null",
    "create index reassignment_of_object on usage.reassignment (object_id, position)",
    """
create table usage.reassigned_charge (
  reassignment_id uuid not null references usage.reassignment,
  charge_id uuid not null,
  event_time timestamptz not null,
  reason text,
  account_id text check (account_id is null or reason is not null),
  primary key (reassignment_id, charge_id)
)
""",
    "comment on column usage.reassigned_charge.reason is 'why the charge was left as it is; null: it was moved'",
    "comment on column usage.reassigned_charge.account_id is 'whose it would be, if that account had been there then'",
    "create index reassigned_charge_by_account on usage.reassigned_charge (account_id) where account_id is not null",
    "create index reassigned_charge_by_id on usage.reassigned_charge (charge_id)",
    "revoke delete, truncate on usage.reassignment, usage.reassigned_charge, usage.payer_zone from tollbook_usage",
    "revoke update on usage.reassigned_charge from tollbook_usage",
)


def upgrade() -> None:
    """What the registry changed before this revision moves nothing."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
