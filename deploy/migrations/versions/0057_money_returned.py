"""What is kept for a payer group can be sent back: it left the group's credit by our bank."""

from alembic import op

revision = "0057_money_returned"
down_revision = "0056_withdrawn_notes"
branch_labels = None
depends_on = None

KINDS = (
    "'opening', 'goodwill', 'payment', 'transfer', 'refund', 'dispute_opened', 'dispute_won', 'dispute_lost', 'payout',"
    " 'credit_granted', 'credit_used', 'credit_expired', 'reversal', 'closing', 'balance_used', 'invoice_paid',"
    " 'unapplied_used', 'unapplied_returned', 'credit_note', 'write_off'"
)


def upgrade() -> None:
    op.execute(
        "alter table balance.transaction drop constraint transaction_kind_check,"
        f" add constraint transaction_kind_check check (kind in ({KINDS}))"
    )


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
