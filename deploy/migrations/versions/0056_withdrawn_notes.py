"""Who withdrew a credit note stands beside who approved it, and why one cannot be issued beside both; the newest are listed."""

from alembic import op

revision = "0056_withdrawn_notes"
down_revision = "0055_paid_from_wallets"
branch_labels = None
depends_on = None

STATEMENTS = (
    "alter table invoices.credit_note add withdrawn_by text, add withdrawn_at timestamptz, add refused text",
    "alter table invoices.credit_note drop constraint credit_note_check",
    "update invoices.credit_note set withdrawn_by = decided_by, withdrawn_at = decided_at, decided_by = null, decided_at = null"
    " where state = 'withdrawn'",
    "alter table invoices.credit_note"
    " add check (state = 'withdrawn' or (state = 'proposed') = (decided_at is null)),"
    " add check ((state = 'withdrawn') = (withdrawn_at is not null))",
    "create index credit_note_by_time on invoices.credit_note (proposed_at, credit_note_id)",
)


def upgrade() -> None:
    """Of a note that was withdrawn before, who approved it was not kept."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
