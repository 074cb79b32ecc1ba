"""Usage: what it knows of the registry, price books, identities by generation, charges by event day, cuts."""

from alembic import op

revision = "0004_usage"
down_revision = "0003_groups"
branch_labels = None
depends_on = None

# small rows that are updated again and again: room on the page keeps the updates in place (HOT)
HOT = "with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500)"

TABLES = (
    f"""
create table usage.state (
  id smallint primary key check (id = 1),
  generation integer not null check (generation > 0),
  generation_since timestamptz not null,
  registry_version bigint not null default 0,
  books_version bigint not null default 0,
  cuts_version bigint not null default 0
) {HOT}
""",
    """
create table usage.timeline (
  kind text not null check (kind in ('account', 'resource', 'publisher')),
  id text not null,
  version integer not null check (version > 0),
  changed bigint not null,
  document jsonb not null,
  primary key (kind, id)
)
""",
    "create index timeline_changed on usage.timeline (changed)",
    """
create table usage.book_version (
  book_id text not null,
  version integer not null check (version > 0),
  currency text not null,
  effective_from timestamptz not null,
  changed bigint not null,
  imported_at timestamptz not null,
  primary key (book_id, version)
)
""",
    """
create table usage.book_price (
  book_id text not null,
  version integer not null,
  product text not null,
  prefix text not null,
  per_minute_nano bigint not null check (per_minute_nano >= 0),
  connection_fee_nano bigint not null check (connection_fee_nano >= 0),
  minimum_s integer not null check (minimum_s >= 0),
  increment_s integer not null check (increment_s > 0),
  primary key (book_id, version, product, prefix),
  foreign key (book_id, version) references usage.book_version
)
""",
    """
create table usage.book_order (
  scope text not null check (scope in ('account', 'organization', 'default')),
  subject text not null,
  position integer not null,
  book_id text not null,
  primary key (scope, subject, position),
  unique (scope, subject, book_id),
  check ((scope = 'default') = (subject = '')),
  check (scope = 'default' or position = 1)
)
""",
    # 'partition' and 'offset' say which record was accepted: every other record of the same identity is a duplicate.
    # state: 1 rated, 2 rated_ungrouped, 3 not_billable
    """
create table usage.identity (
  generation integer not null,
  digest uuid not null,
  content uuid not null,
  state smallint not null check (state between 1 and 3),
  partition integer not null,
  "offset" bigint not null,
  primary key (generation, digest)
) partition by list (generation)
""",
    # No uniqueness: that is the identity's. One charge is at most 10^6 units.
    """
create table usage.charge (
  charge_id uuid not null,
  event_time timestamptz not null,
  amount_nano bigint not null check (amount_nano between -1000000000000000 and 1000000000000000),
  "offset" bigint not null,
  partition integer not null,
  assignment_version integer not null,
  duration_s integer not null,
  billable_s integer not null,
  quantity integer not null,
  book_version integer not null,
  publisher text not null,
  source text not null,
  event_id text not null,
  call_leg_id text,
  account_id text not null,
  organization_id text not null,
  plan text not null,
  group_id text,
  period text,
  bill_to text,
  cost_center_id text,
  caller text,
  called text not null,
  product text not null,
  currency text not null,
  book_id text not null,
  matched text not null,
  check ((group_id is null) = (period is null) and (group_id is null) = (bill_to is null)),
  check (bill_to >= period)
) partition by range (event_time)
""",
    "create index charge_by_id on usage.charge (charge_id)",
    # Batches and the replay lane count in rows of their own, so that neither waits for the other.
    f"""
create table usage.class_count (
  topic text not null,
  partition integer not null,
  segment integer not null check (segment >= 0),
  class text not null,
  replayed boolean not null,
  count bigint not null,
  primary key (topic, partition, segment, class, replayed)
) {HOT}
""",
    """
create table usage.cut (
  cutoff_id uuid primary key,
  boundary timestamptz not null unique,
  number integer unique,
  taken_at timestamptz,
  groups_marks jsonb,
  passed_at timestamptz,
  check ((number is null) = (taken_at is null)),
  check (passed_at is null or taken_at is not null)
)
""",
    """
create table usage.cut_position (
  cutoff_id uuid not null references usage.cut,
  topic text not null,
  partition integer not null,
  position bigint not null check (position >= 0),
  primary key (cutoff_id, topic, partition)
)
""",
    """
create table usage.held_group (
  cutoff_id uuid not null references usage.cut,
  group_id text not null,
  passed_at timestamptz,
  primary key (cutoff_id, group_id)
)
""",
    """
create table usage.waived (
  parked_id bigint primary key references usage.parked,
  cutoff_id uuid not null references usage.cut,
  waived_at timestamptz not null
)
""",
)

# The login role owns no table, so these functions make and drop partitions for it. ATTACH lets other batches go on.
OPEN_GENERATION = """
create function usage.open_generation(new_generation integer) returns void language plpgsql
security definer set search_path = pg_catalog as
$$
begin
    execute format('create table usage.identity_%s (like usage.identity including all)', new_generation);
    execute format('alter table usage.identity attach partition usage.identity_%s for values in (%s)',
                   new_generation, new_generation);
end
$$
"""

DROP_GENERATION = """
create function usage.drop_generation(old_generation integer) returns void language plpgsql
security definer set search_path = pg_catalog as
$$
begin
    if old_generation >= (select generation - 1 from usage.state) then
        raise exception 'generation % may still be asked for', old_generation
            using hint = 'The current generation and the one sealed last are kept.';
    end if;
    execute format('drop table if exists usage.identity_%s', old_generation);
end
$$
"""

# A day far from today is a broken clock, of the broker or of this server: it gets no partition, and its record is refused.
OPEN_CHARGE_DAYS = """
create function usage.open_charge_days(days date[]) returns void language plpgsql
security definer set search_path = pg_catalog as
$$
declare
    today date := (runtime.clock_now() at time zone 'UTC')::date;
    day date;
    name text;
begin
    perform pg_advisory_xact_lock(hashtext('usage.open_charge_days'));
    foreach day in array days loop
        name := 'charge_' || to_char(day, 'YYYYMMDD');
        if day between today - 400 and today + 40 and to_regclass('usage.' || name) is null then
            execute format('create table usage.%I (like usage.charge including all)', name);
            execute format('alter table usage.charge attach partition usage.%I for values from (%L) to (%L)',
                           name, day || ' 00:00:00+00', (day + 1) || ' 00:00:00+00');
        end if;
    end loop;
end
$$
"""

FUNCTIONS = {
    "open_generation(integer)": OPEN_GENERATION,
    "drop_generation(integer)": DROP_GENERATION,
    "open_charge_days(date[])": OPEN_CHARGE_DAYS,
}


def upgrade() -> None:
    """Makes the tables, the functions that keep partitions, and the first generation."""
    for statement in TABLES:
        op.execute(statement)
    for signature, statement in FUNCTIONS.items():
        op.execute(statement)
        op.execute(f"revoke execute on function usage.{signature} from public")
        op.execute(f"grant execute on function usage.{signature} to tollbook_usage")
    op.execute("select usage.open_generation(1)")
    op.execute("insert into usage.state (id, generation, generation_since) values (1, 1, runtime.clock_now())")


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
