"""A group's card payment that is on its way is found however many have paid."""

from alembic import op

revision = "0061_card_payments_paid"
down_revision = "0060_covered_unanswered"
branch_labels = None
depends_on = None

STATEMENTS = (
    "alter table balance.card_payment add column has_paid boolean not null default false",
    "update balance.card_payment set has_paid = true"
    " where attempt_id in (select payment_id from balance.group_payment)",
    "drop index balance.card_payment_of_group",
    "create index card_payment_to_come on balance.card_payment (group_id) where not has_paid",
    "comment on column balance.card_payment.has_paid is 'it settled, and invoices of the group are paid with it'",
)


def upgrade() -> None:
    """What has paid is recorded beside the payments of groups."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
