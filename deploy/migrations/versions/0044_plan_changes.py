"""Accounts that become invoiced keep their wallet, which pays their invoices first; transfers top prepaid wallets up."""

from alembic import op

revision = "0044_plan_changes"
down_revision = "0043_credits"
branch_labels = None
depends_on = None

KINDS = (
    "'opening', 'goodwill', 'payment', 'transfer', 'refund', 'dispute_opened', 'dispute_won', 'dispute_lost', 'payout',"
    " 'credit_granted', 'credit_used', 'credit_expired', 'reversal', 'closing', 'balance_used', 'invoice_paid',"
    " 'unapplied_used', 'credit_note', 'write_off'"
)

STATEMENTS = (
    "alter table balance.transaction drop constraint transaction_kind_check,"
    f" add constraint transaction_kind_check check (kind in ({KINDS}))",
    "alter table balance.application drop constraint application_source_check, add constraint application_source_check"
    " check (source in ('transfer', 'card', 'balance', 'overpayment', 'credit', 'write_off'))",
    # One reference of a bank is one payment, whether it pays a group's invoices or tops a wallet up.
    "alter table balance.group_payment alter column group_id drop not null,"
    " add constraint group_payment_is_of_somebody check (group_id is not null or account_id is not null)",
    "comment on column balance.group_payment.group_id is 'null: it topped up the wallet of account_id'",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
