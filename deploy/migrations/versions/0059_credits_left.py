"""Credits of which something is left are found among however many were spent: each lock of a wallet and each call asks for
them."""

from alembic import op

revision = "0059_credits_left"
down_revision = "0058_attempts_in_flight"
branch_labels = None
depends_on = None

STATEMENTS = (
    # A column of its own and no condition on what is left: an index with that in it would get an entry for each charge.
    "alter table balance.credit add column is_left boolean not null generated always as (remaining_nano > 0) stored",
    "create index credit_left_of_account on balance.credit (account_id) where is_left and account_id is not null",
    "create index credit_left_of_group on balance.credit (group_id) where is_left and account_id is null",
    "comment on column balance.credit.is_left is 'whether something is left of it'",
)


def upgrade() -> None:
    """The table is written anew once, as the column is kept in it."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
