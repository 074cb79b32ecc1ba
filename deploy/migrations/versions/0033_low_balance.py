"""Levels of available credit at which an account is told that its balance is low."""

from alembic import op

revision = "0033_low_balance"
down_revision = "0032_suspension_reasons"
branch_labels = None
depends_on = None

STATEMENTS = (
    "alter table balance.wallet add column level_next_nano bigint, add column level_told_nano bigint",
    """
create table balance.level (
  account_id text collate "C" not null references balance.wallet (account_id),
  nano bigint not null check (nano between 0 and 4000000000000000000),
  primary key (account_id, nano)
)
""",
    "comment on column balance.wallet.level_next_nano is 'the highest level below what is available: told of when reached'",
    "comment on column balance.wallet.level_told_nano is 'the lowest level told of: armed when available is above it'",
)


def upgrade() -> None:
    """No account has a level yet."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
