"""Re-rate: plans with the charges that they change, and of a charge which one it stands in the place of."""

from alembic import op

revision = "0027_rerate"
down_revision = "0026_owners"
branch_labels = None
depends_on = None

STATEMENTS = (
    "alter table usage.charge add column replaces uuid",
    "create index charge_by_replaced on usage.charge (replaces) where replaces is not null",
    # done_to: the number of the last charge of the plan that is settled; of those, left_stale were revised meanwhile.
    """
create table usage.rerate_plan (
  plan_id uuid primary key,
  state text not null check (state in ('planned', 'stale', 'approved', 'executing', 'done', 'cancelled')),
  note text not null,
  starts_at timestamptz not null,
  ends_at timestamptz not null check (ends_at > starts_at),
  account_ids text[] not null,
  group_id text,
  product text,
  book_id text,
  book_version integer check (book_version is null or book_id is not null),
  charges bigint not null check (charges >= 0),
  fingerprint text not null,
  planned_by text not null,
  planned_role text not null,
  planned_at timestamptz not null,
  approved_by text,
  approved_role text,
  approved_at timestamptz,
  executed_by text,
  executed_at timestamptz,
  cancelled_by text,
  cancelled_at timestamptz,
  done_at timestamptz,
  done_to bigint not null default 0 check (done_to between 0 and charges),
  left_stale bigint not null default 0 check (left_stale between 0 and done_to),
  constraint second_person check (lower(btrim(approved_by)) <> lower(btrim(planned_by))),
  check (num_nulls(approved_by, approved_role, approved_at) in (0, 3)),
  check (state not in ('approved', 'executing', 'done') or approved_by is not null),
  check (state not in ('executing', 'done') or executed_by is not null),
  check ((state = 'done') = (done_at is not null)),
  check (state <> 'done' or done_to = charges)
)
""",
    "create index rerate_plan_executing on usage.rerate_plan (executed_at, plan_id) where state = 'executing'",
    """
create table usage.rerate_charge (
  plan_id uuid not null references usage.rerate_plan,
  number bigint not null check (number > 0),
  charge_id uuid not null,
  event_time timestamptz not null,
  revision integer not null,
  account_id text not null,
  currency text not null,
  old_nano bigint not null,
  new_nano bigint not null check (new_nano <> old_nano and new_nano between 0 and 1000000000000000),
  quantity bigint not null,
  per bigint not null,
  product text not null,
  book_id text not null,
  book_version integer not null,
  matched text not null,
  "window" text not null,
  surcharge text,
  is_stale boolean not null default false,
  primary key (plan_id, number)
)
""",
    """
create table usage.rerate_sum (
  plan_id uuid not null references usage.rerate_plan,
  "of" text not null check ("of" in ('total', 'account', 'group', 'product', 'left_out')),
  which text not null,
  currency text not null,
  charges bigint not null check (charges > 0),
  old_nano numeric not null,
  new_nano numeric not null,
  primary key (plan_id, "of", which, currency)
)
""",
    "revoke delete, truncate on usage.rerate_plan, usage.rerate_charge, usage.rerate_sum from tollbook_usage",
    "revoke update on usage.rerate_sum from tollbook_usage",
)


def upgrade() -> None:
    """No charge that exists stands in the place of another."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
