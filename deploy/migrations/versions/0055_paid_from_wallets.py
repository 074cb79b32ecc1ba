"""What an account's own wallet paid of an invoice: what a credit note gives back goes there, and pays nobody else's share."""

from alembic import op

revision = "0055_paid_from_wallets"
down_revision = "0054_credit_notes"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """What wallets have paid so far stands in the ledger; no note has given anything of it back."""
    op.execute("alter table balance.receivable_share add from_wallet_nano bigint not null default 0")
    op.execute(
        "update balance.receivable_share s set from_wallet_nano = paid.nano"
        " from (select split_part(t.ref, ':', 1)::uuid as invoice_id, e.account_id, -sum(e.nano) as nano"
        " from balance.transaction t join balance.entry e on e.transaction_id = t.id"
        " where t.kind = 'balance_used' and e.ledger = 'wallet' group by 1, 2) as paid"
        " where s.invoice_id = paid.invoice_id and s.account_id = paid.account_id"
    )
    op.execute("alter table balance.receivable_share alter from_wallet_nano drop default")
    op.execute("alter table balance.receivable_share add check (from_wallet_nano >= 0)")


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
