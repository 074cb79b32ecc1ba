"""The timelines of an account or a resource are found without reading those of all others: each command of the registry asks
for some."""

from alembic import op

revision = "0062_timelines_by_object"
down_revision = "0061_card_payments_paid"
branch_labels = None
depends_on = None

# What keeps two spans from overlapping is an index of ranges, by which no number is found.
STATEMENTS = (
    "create index account_plan_of_account on groups.account_plan (account_no)",
    "create index account_group_of_account on groups.account_group (account_no)",
    "create index resource_owner_of_resource on groups.resource_owner (resource_no)",
    "create index resource_cost_center_of_resource on groups.resource_cost_center (resource_no)",
)


def upgrade() -> None:
    """What is in the timelines stays as it is."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
