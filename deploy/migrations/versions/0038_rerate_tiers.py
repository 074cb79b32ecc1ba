"""A re-rate moves what tiers priced: it remembers where the counters stood that it was worked out from."""

from alembic import op

revision = "0038_rerate_tiers"
down_revision = "0037_payments"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
create table usage.rerate_counter (
  plan_id uuid not null references usage.rerate_plan,
  account_id text collate "C" not null,
  group_id text collate "C" not null,
  period text collate "C" not null,
  product text collate "C" not null,
  prepaid boolean not null,
  schedule text collate "C" not null,
  quantity numeric(38, 0) not null check (quantity >= 0),
  primary key (plan_id, account_id, group_id, period, product, prepaid, schedule)
)
""",
    "revoke update, delete, truncate on usage.rerate_counter from tollbook_usage",
    # What tiers make of a charge may be below zero, and as much as before while another one of its counter costs more.
    "alter table usage.rerate_charge drop constraint rerate_charge_check",
    """
alter table usage.rerate_charge add constraint rerate_charge_new_nano_check
  check (new_nano between -1000000000000000 and 1000000000000000)
""",
)


def upgrade() -> None:
    """No plan so far moves a counter."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
