"""After a restore, attempts that an earlier life asked for are adopted: several of one account may be in flight, and those that a
command asked for wait for it to be read again."""

from alembic import op

revision = "0065_undone_attempts"
down_revision = "0064_restores"
branch_labels = None
depends_on = None

NAME = 'text collate "C"'

STATEMENTS = (
    "alter table balance.attempt add column undone boolean not null default false",
    # One in flight is the rule of what this life asks for; what an earlier one asked for is only known to it afterwards.
    "drop index balance.attempt_in_flight",
    "create unique index attempt_in_flight on balance.attempt (account_id)"
    " where state in ('requested', 'unknown') and kind = 'auto' and not undone",
    f"""
create table balance.unclaimed (
  attempt_id uuid primary key references balance.attempt (attempt_id),
  account_id {NAME} not null,
  command_id text,
  charged text not null
)
""",
    "create index unclaimed_of_account on balance.unclaimed (account_id)",
    "comment on column balance.attempt.undone is 'asked for by an earlier life of the database, of which a backup was restored'",
    "comment on table balance.unclaimed is 'undone attempts that no command has taken over yet'",
)


def upgrade() -> None:
    """No attempt that exists is undone."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
