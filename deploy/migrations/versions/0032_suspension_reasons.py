"""Why an account is suspended, as a set; and the note of a command in its log."""

from alembic import op

revision = "0032_suspension_reasons"
down_revision = "0031_ledger_accounts"
branch_labels = None
depends_on = None

STATEMENTS = (
    "alter table balance.wallet rename column suspended to suspended_funds",
    "alter table balance.wallet"
    " add column suspended_overdue boolean not null default false,"
    " add column suspended_operator boolean not null default false",
    "drop index balance.wallet_suspended",
    "create index wallet_suspended on balance.wallet (account_id)"
    " where suspended_funds or suspended_overdue or suspended_operator",
    "comment on column balance.wallet.suspended_funds is 'one reason of three; active only while none stands'",
    "alter table balance.command add column note text",
)


def upgrade() -> None:
    """Who was suspended was so for want of funds: there was no other reason."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
