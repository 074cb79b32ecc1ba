"""Webhooks: a room of its own with the mechanism's tables, events, endpoints, deliveries and their attempts."""

from __future__ import annotations

from alembic import op

revision = "0040_webhooks"
down_revision = "0039_checked_sums"
branch_labels = None
depends_on = None

ROLE = "tollbook_webhooks"

# As `0001_foundation` gives them to the rooms that were there first.
ROOM = f"""
create schema webhooks;
grant usage on schema webhooks to {ROLE};
alter default privileges in schema webhooks grant select, insert, update, delete on tables to {ROLE};
alter default privileges in schema webhooks grant usage on sequences to {ROLE};
grant usage on schema runtime to {ROLE};
alter default privileges in schema runtime grant execute on functions to {ROLE};
grant execute on all functions in schema runtime to {ROLE};
grant select on runtime.clock to {ROLE};
grant select, insert, update, delete on runtime.heartbeat to {ROLE};
"""

# small rows that are updated by every batch: room on the page keeps the updates in place (HOT)
HOT = "with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500)"

# The mechanism's tables as they are by now in the other rooms.
MECHANISM = f"""
create table webhooks.lanes (
  id smallint primary key check (id = 1),
  epoch integer not null default 0
);
insert into webhooks.lanes (id) values (1);

create table webhooks.lane (
  name text primary key,
  input text,
  topic text,
  partition integer,
  first bigint not null default 0 check (first >= 0),
  position bigint check (position >= 0),
  stopped text,
  updated_at timestamptz not null default now()
) {HOT};

create table webhooks.link_out (
  link text not null,
  topic text not null,
  partition integer not null,
  last_seq bigint not null check (last_seq >= 0),
  primary key (link, topic, partition)
) {HOT};

create table webhooks.link_in (
  link text not null,
  topic text not null,
  partition integer not null,
  received_to bigint not null check (received_to >= 0),
  primary key (link, topic, partition)
) {HOT};

create table webhooks.outbox (
  id bigserial primary key,
  topic text not null,
  partition integer not null,
  records integer not null,
  chunk bytea not null
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
alter table webhooks.outbox alter column chunk set storage external;

create table webhooks.parked (
  id bigserial primary key,
  input text not null,
  topic text not null,
  partition integer not null,
  "offset" bigint not null,
  "timestamp" timestamptz not null,
  key bytea,
  value bytea,
  headers jsonb not null default '[]'::jsonb,
  state text not null check (state in ('quarantined', 'waiting', 'replaying', 'discarding', 'replayed', 'discarded')),
  reason text not null,
  field text,
  message text not null,
  about jsonb not null default '{{}}'::jsonb,
  parked_at timestamptz not null,
  decided_at timestamptz,
  decided_by text,
  constraint parked_once unique (topic, partition, "offset")
);
create index parked_open on webhooks.parked (state, id) where state in ('quarantined', 'waiting', 'replaying', 'discarding');

create table webhooks.due (
  kind text not null,
  key text not null,
  due_at timestamptz not null,
  failures integer not null default 0 check (failures >= 0),
  primary key (kind, key)
);
create index due_next on webhooks.due (due_at);

create table webhooks.resumed (
  id bigserial primary key,
  lane text not null,
  topic text not null,
  partition integer not null,
  stopped text not null,
  from_offset bigint not null check (from_offset >= 0),
  to_offset bigint not null check (to_offset >= 0),
  links jsonb not null,
  by text not null check (by <> ''),
  reason text not null check (reason <> ''),
  at timestamptz not null
);
"""

# An account without an organization was named by an event before the registry told of it; its row is what the two meet at.
OWNERS = """
create table webhooks.account (
  account_id text primary key,
  organization_id text,
  version bigint not null check ((version = 0) = (organization_id is null))
);

create table webhooks.event (
  event_no bigint generated always as identity primary key,
  event_id text not null constraint event_once unique,
  organization_id text,
  account_id text,
  type text not null,
  body text not null,
  received_at timestamptz not null,
  check (organization_id is not null or account_id is not null)
);
create index event_by_organization on webhooks.event (organization_id, event_no);
create index event_of_nobody on webhooks.event (account_id, event_no) where organization_id is null;
create index event_by_age on webhooks.event (received_at);
"""

# `due_at` is when the first delivery that waits is tried, or when the lease of who tries it ends; empty: none waits.
ENDPOINT = f"""
create table webhooks.endpoint (
  endpoint_id text primary key,
  organization_id text not null,
  url text not null check (length(url) <= 2000),
  description text not null check (length(description) <= 2000),
  types text[],
  account_ids text[],
  state text not null check (state in ('enabled', 'disabled')),
  disabled_reason text,
  disabled_at timestamptz,
  secret text not null,
  previous_secret text,
  previous_until timestamptz,
  created_at timestamptz not null,
  created_by text not null,
  failing_since timestamptz,
  due_at timestamptz,
  lease uuid,
  check ((state = 'disabled') = (disabled_reason is not null) and (state = 'disabled') = (disabled_at is not null)),
  check ((previous_secret is null) = (previous_until is null)),
  check (lease is null or due_at is not null)
) {HOT};
create index endpoint_by_organization on webhooks.endpoint (organization_id);
create index endpoint_due on webhooks.endpoint (due_at) where due_at is not null;

create table webhooks.action (
  action_no bigint generated always as identity primary key,
  endpoint_id text not null,
  organization_id text not null,
  at timestamptz not null,
  actor text not null,
  action text not null,
  detail text not null
);
create index action_of_endpoint on webhooks.action (endpoint_id, action_no);
"""

# `place` is the order of one endpoint; `tries` counts since it was queued, `attempts` all that ever were.
DELIVERY = """
create sequence webhooks.place;

create table webhooks.delivery (
  endpoint_id text not null references webhooks.endpoint (endpoint_id) on delete cascade,
  event_no bigint not null references webhooks.event (event_no) on delete cascade,
  place bigint not null default nextval('webhooks.place'),
  state text not null check (state in ('waiting', 'delivered', 'given_up')),
  tries smallint not null check (tries >= 0),
  attempts integer not null check (attempts >= tries),
  queued_at timestamptz not null,
  settled_at timestamptz,
  primary key (endpoint_id, event_no),
  check ((state = 'waiting') = (settled_at is null))
) with (autovacuum_vacuum_scale_factor = 0.05);
create unique index delivery_waiting on webhooks.delivery (endpoint_id, place) where state = 'waiting';
create index delivery_in_order on webhooks.delivery (endpoint_id, place);
create index delivery_of_event on webhooks.delivery (event_no);

create table webhooks.attempt (
  endpoint_id text not null,
  event_no bigint not null,
  number integer not null check (number >= 1),
  at timestamptz not null,
  status smallint,
  error text,
  piece text not null check (length(piece) <= 1000),
  took_ms integer not null check (took_ms >= 0),
  primary key (endpoint_id, event_no, number),
  foreign key (endpoint_id, event_no) references webhooks.delivery (endpoint_id, event_no) on delete cascade,
  check ((status is null) = (error is not null))
);
"""


def upgrade() -> None:
    for part in (ROOM, MECHANISM, OWNERS, ENDPOINT, DELIVERY):
        for statement in part.split(";\n"):
            if statement.strip():
                op.execute(statement)


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
