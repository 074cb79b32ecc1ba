"""The mechanism's tables in every room's schema: lanes, links, outbox, parked records, timers."""

from alembic import op

revision = "0002_runtime"
down_revision = "0001_foundation"
branch_labels = None
depends_on = None

ROOMS = ("usage", "balance", "groups", "invoices", "payments")

# small rows that are updated by every batch: room on the page keeps the updates in place (HOT)
HOT = "with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500)"

TABLES = f"""
create table {{room}}.lanes (
  id smallint primary key check (id = 1),
  epoch integer not null default 0
);
insert into {{room}}.lanes (id) values (1);

create table {{room}}.lane (
  name text primary key,
  input text,
  topic text,
  partition integer,
  position bigint check (position >= 0),
  stopped text,
  updated_at timestamptz not null default now()
) {HOT};

create table {{room}}.link_out (
  link text not null,
  topic text not null,
  partition integer not null,
  last_seq bigint not null check (last_seq >= 0),
  primary key (link, topic, partition)
) {HOT};

create table {{room}}.link_in (
  link text not null,
  topic text not null,
  partition integer not null,
  received_to bigint not null check (received_to >= 0),
  skipped bigint not null default 0,
  primary key (link, topic, partition)
) {HOT};

create table {{room}}.outbox (
  id bigserial primary key,
  topic text not null,
  partition integer not null,
  records integer not null,
  chunk bytea not null
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
-- compressing what lives a second costs more than it saves
alter table {{room}}.outbox alter column chunk set storage external;

create table {{room}}.parked (
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
  about jsonb not null default '{{{{}}}}'::jsonb,
  parked_at timestamptz not null,
  decided_at timestamptz,
  decided_by text,
  constraint parked_once unique (topic, partition, "offset")
);
create index parked_open on {{room}}.parked (state, id) where state in ('quarantined', 'waiting', 'replaying', 'discarding');

create table {{room}}.due (
  kind text not null,
  key text not null,
  due_at timestamptz not null,
  primary key (kind, key)
);
create index due_next on {{room}}.due (due_at);
"""


def upgrade() -> None:
    for room in ROOMS:
        for statement in TABLES.format(room=room).split(";\n"):
            if statement.strip():
                op.execute(statement)


def downgrade() -> None:
    for room in ROOMS:
        op.execute(
            f"drop table {room}.due, {room}.parked, {room}.outbox, {room}.link_in, {room}.link_out, {room}.lane, {room}.lanes"
        )
