"""What tiers priced has a line of an invoice for each version of a schedule: it is divided over cost centers by quantity."""

from alembic import op

revision = "0015_lines_by_schedule"
down_revision = "0014_kinds_of_use"
branch_labels = None
depends_on = None

STATEMENTS = (
    "alter table invoices.line add column schedule text collate \"C\" not null default ''",
    "alter table invoices.line alter column schedule drop default",
    "alter table invoices.line drop constraint line_pkey",
    """
alter table invoices.line
  add primary key (invoice_id, account_id, product, cost_center_id, period, prepaid, currency, schedule)
""",
)


def upgrade() -> None:
    """Every line that exists is of use with a price of its own."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
