"""Invoices are paid by card: attempts that are a group's, and through whose wallet their money came."""

from alembic import op

revision = "0042_card_payments"
down_revision = "0041_receivables"
branch_labels = None
depends_on = None

NAME = 'text collate "C"'

STATEMENTS = (
    "alter table balance.attempt drop constraint attempt_kind_check,"
    " add constraint attempt_kind_check check (kind in ('auto', 'manual', 'scheduled', 'group'))",
    "alter table balance.application drop constraint application_source_check, add constraint application_source_check"
    " check (source in ('transfer', 'card', 'overpayment', 'credit', 'write_off'))",
    f"alter table balance.group_payment add column account_id {NAME}",
    f"""
create table balance.card_payment (
  attempt_id uuid primary key references balance.attempt (attempt_id),
  group_id {NAME} not null,
  invoice_id uuid,
  actor text not null
)
""",
    "create index card_payment_of_group on balance.card_payment (group_id)",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
