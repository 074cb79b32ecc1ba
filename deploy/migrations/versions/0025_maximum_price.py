"""What a minute of a call may cost at most, per account and outbound profile."""

from alembic import op

revision = "0025_maximum_price"
down_revision = "0024_revisions"
branch_labels = None
depends_on = None

# A log: of an account, and of a profile of it where that is not empty, the last word holds; null lifts the maximum.
STATEMENTS = (
    """
create table usage.maximum_price (
  id bigint generated always as identity primary key,
  account_id text collate "C" not null,
  outbound_profile text collate "C" not null,
  price_nano bigint check (price_nano >= 0),
  currency text not null,
  set_at timestamptz not null,
  set_by text not null
)
""",
    "create index maximum_price_of on usage.maximum_price (account_id, outbound_profile, id)",
    "revoke update, delete, truncate on usage.maximum_price from tollbook_usage",
)


def upgrade() -> None:
    """No price has a maximum yet."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
