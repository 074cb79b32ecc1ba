"""Revisions: an identity knows the revision that holds and the day of its charge, charges know what they reverse."""

from alembic import op

revision = "0024_revisions"
down_revision = "0023_calls_in_progress"
branch_labels = None
depends_on = None

# Made anew, because the two columns fit where the old rows had padding: a row stays as long as it was.
# state: 1 rated, 2 rated_ungrouped, 3 not_billable, 4 voided; day: of the event time, since 1970 (null: not known);
# 'partition' and 'offset' say which record was accepted: every other record of the same identity is a duplicate.
IDENTITY = """
create table usage.identity (
  generation integer not null,
  digest uuid not null,
  content uuid not null,
  state smallint not null check (state between 1 and 4),
  day smallint,
  revision integer not null check (revision >= 0),
  partition integer not null,
  "offset" bigint not null,
  primary key (generation, digest)
) partition by list (generation)
"""

# What a fact was before its revisions, and the lower revisions that a void absorbed.
SUPERSEDED = """
create table usage.superseded (
  generation integer not null,
  digest uuid not null,
  content uuid not null,
  state smallint not null check (state between 1 and 4),
  revision integer not null check (revision >= 0),
  partition integer not null,
  "offset" bigint not null,
  primary key (generation, digest, revision)
) partition by list (generation)
"""

OPEN_GENERATION = """
create or replace function usage.open_generation(new_generation integer) returns void language plpgsql
security definer set search_path = pg_catalog as
$$
declare
    name text;
begin
    foreach name in array array['identity', 'superseded'] loop
        execute format('create table usage.%s_%s (like usage.%s including all)', name, new_generation, name);
        execute format('alter table usage.%s attach partition usage.%s_%s for values in (%s)',
                       name, name, new_generation, new_generation);
    end loop;
end
$$
"""

DROP_GENERATION = """
create or replace function usage.drop_generation(old_generation integer) returns void language plpgsql
security definer set search_path = pg_catalog as
$$
begin
    if old_generation >= (select generation - 1 from usage.state) then
        raise exception 'generation % may still be asked for', old_generation
            using hint = 'The current generation and the one sealed last are kept.';
    end if;
    execute format('drop table if exists usage.identity_%s, usage.superseded_%s', old_generation, old_generation);
end
$$
"""

COPY = f"""
do $$
declare
    old text;
    generation integer;
begin
    for old in select relname from pg_class join pg_inherits on oid = inhrelid
               where inhparent = 'usage.identity'::regclass order by relname loop
        execute format('alter table usage.%I rename to %I', old, replace(old, 'identity_', 'identity_before_'));
    end loop;
    alter table usage.identity rename to identity_before;
    alter index usage.identity_pkey rename to identity_before_pkey;
    execute $made$ {IDENTITY} $made$;
    execute $made$ {SUPERSEDED} $made$;
    for generation in select substring(inhrelid::regclass::text from '[0-9]+$')::integer from pg_inherits
                      where inhparent = 'usage.identity_before'::regclass order by 1 loop
        perform usage.open_generation(generation);
    end loop;
    insert into usage.identity (generation, digest, content, state, revision, partition, "offset")
    select b.generation, b.digest, b.content, b.state, 0, b.partition, b."offset" from usage.identity_before b;
    drop table usage.identity_before;
end
$$
"""

STATEMENTS = (
    OPEN_GENERATION,
    DROP_GENERATION,
    COPY,
    "alter table usage.charge add column revision integer not null default 0, add column reverses uuid",
    "alter table usage.charge alter column revision drop default",
    "create index charge_by_reversed on usage.charge (reverses) where reverses is not null",
)


def upgrade() -> None:
    """Everything so far is a revision 0 that nothing reverses."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
