"""The registry: organizations, publishers, billing entities, payer groups, accounts, cost centers, resources, the log."""

from alembic import op

revision = "0003_groups"
down_revision = "0002_runtime"
branch_labels = None
depends_on = None

TABLES = """
-- one writer of the registry at a time: see services/groups/store.py, lock_registry
create table groups.registry (
  only_row boolean primary key default true check (only_row)
);
insert into groups.registry default values;

create sequence groups.object_no;

create table groups.organization (
  organization_id text primary key,
  name text not null,
  consolidation text not null check (consolidation in ('strict', 'open')),
  primary_group_id text,
  created_at timestamptz not null
);

create table groups.publisher (
  publisher_id text primary key,
  version integer not null check (version >= 1),
  organization_ids text[] not null,
  sources text[] not null,
  late_s_max integer not null check (late_s_max >= 0),
  early_s_max integer not null check (early_s_max >= 0)
);

create table groups.billing_entity (
  billing_entity_id text primary key,
  name text not null,
  address text not null,
  vat_id text,
  number_prefix text not null,
  is_default boolean not null
);
create unique index one_default_entity on groups.billing_entity (is_default) where is_default;

create table groups.payer_group (
  group_id text primary key,
  version integer not null check (version >= 1),
  organization_id text not null references groups.organization,
  account_id text,
  name text not null,
  billing_entity_id text not null references groups.billing_entity,
  billing_information jsonb not null,
  zone text not null,
  currency text not null check (currency ~ '^[A-Z]{3}$'),
  tax_rate text not null,
  pricing_model text,
  sharing_approved_at timestamptz,
  sharing_approved_by text,
  -- totals over many accounts do not fit a bigint of nanos
  sharing_yearly_spend_nano numeric(30, 0),
  sharing_threshold_nano numeric(30, 0),
  created_at timestamptz not null,
  constraint scoped_groups_are_not_shared check (account_id is null or sharing_approved_at is null),
  constraint approval_is_whole check (
    num_nulls(sharing_approved_at, sharing_approved_by, sharing_yearly_spend_nano, sharing_threshold_nano) in (0, 4)
  ),
  constraint spend_reaches_threshold check (sharing_yearly_spend_nano >= sharing_threshold_nano)
);
create index payer_group_organization on groups.payer_group (organization_id, group_id);

-- deferred: an organization and its first group may come in one transaction
alter table groups.organization add constraint primary_group_exists
  foreign key (primary_group_id) references groups.payer_group deferrable initially deferred;

create table groups.account (
  account_id text primary key,
  account_no bigint not null unique,
  version integer not null check (version >= 1),
  organization_id text not null references groups.organization,
  name text not null,
  currency text not null check (currency ~ '^[A-Z]{3}$'),
  opened_at timestamptz not null,
  created_at timestamptz not null,
  level_2 boolean not null,
  credit_limit_nano bigint not null check (credit_limit_nano between 0 and 4000000000000000000),
  constraint not_opened_in_future check (opened_at <= created_at)
);
create index account_organization on groups.account (organization_id, account_id);

alter table groups.payer_group add constraint scoped_account_exists
  foreign key (account_id) references groups.account deferrable initially deferred;

-- int8range of the number makes the account comparable by && without an extension
create table groups.account_plan (
  account_no bigint not null references groups.account (account_no),
  during tstzrange not null check (not isempty(during) and not lower_inf(during) and lower_inc(during)),
  plan text not null check (plan in ('trial', 'payg', 'invoiced')),
  constraint one_plan_at_a_time exclude using gist (int8range(account_no, account_no, '[]') with &&, during with &&)
);

create table groups.account_group (
  account_no bigint not null references groups.account (account_no),
  during tstzrange not null check (not isempty(during) and not lower_inf(during) and lower_inc(during)),
  group_id text not null references groups.payer_group,
  constraint one_group_at_a_time exclude using gist (int8range(account_no, account_no, '[]') with &&, during with &&)
);
create index account_group_members on groups.account_group (group_id, account_no);

create table groups.cost_center (
  cost_center_id text primary key,
  organization_id text not null references groups.organization,
  name text not null,
  created_at timestamptz not null
);

create table groups.resource (
  resource_id text primary key,
  resource_no bigint not null unique,
  version integer not null check (version >= 1),
  kind text not null check (kind in ('number', 'outbound_profile')),
  number text unique,
  account_id text not null references groups.account,
  organization_id text not null references groups.organization,
  constraint numbers_have_one check ((kind = 'number') = (number is not null))
);
create index resource_account on groups.resource (account_id);

create table groups.resource_cost_center (
  resource_no bigint not null references groups.resource (resource_no),
  during tstzrange not null check (not isempty(during) and not lower_inf(during) and lower_inc(during)),
  cost_center_id text references groups.cost_center,
  constraint one_cost_center_at_a_time
    exclude using gist (int8range(resource_no, resource_no, '[]') with &&, during with &&)
);

create table groups.cut (
  cutoff_id uuid primary key,
  boundary timestamptz not null unique
);

-- who asked what when, and what became of it; a command is decided once
create table groups.command (
  id bigint generated always as identity primary key,
  organization_id text not null,
  command_id text not null,
  digest bytea not null,
  kind text not null,
  actor text not null,
  role text not null,
  at timestamptz not null,
  accepted boolean not null,
  content jsonb not null,
  answer jsonb not null,
  constraint command_once unique (organization_id, command_id)
);
"""


def upgrade() -> None:
    for statement in TABLES.split(";\n"):
        if statement.strip():
            op.execute(statement)


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
