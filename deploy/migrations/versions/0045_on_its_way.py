"""What a card brought for a group's invoices is nobody's to spend while it is in a wallet; debtors are found by an index."""

from alembic import op

revision = "0045_on_its_way"
down_revision = "0044_plan_changes"
branch_labels = None
depends_on = None

STATEMENTS = (
    "alter table balance.wallet add column on_its_way_nano bigint not null default 0",
    # What is under way now: each such payment has the timer that takes it on.
    "update balance.wallet set on_its_way_nano = moving.nano"
    " from (select account_id, sum(amount_nano) as nano from balance.attempt"
    " where kind = 'group' and state = 'settled'"
    " and attempt_id::text in (select key from balance.due where kind = 'group_paid') group by account_id) as moving"
    " where wallet.account_id = moving.account_id",
    "create index receivable_share_open on balance.receivable_share (account_id) where open_nano <> 0",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
