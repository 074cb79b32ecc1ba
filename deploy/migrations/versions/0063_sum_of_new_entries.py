"""That the entries of a transaction sum to zero is looked at by its entries alone: the plan for the first posting of a connection
was to read the ledger in the order of the transactions."""

from alembic import op

revision = "0063_sum_of_new_entries"
down_revision = "0062_timelines_by_object"
branch_labels = None
depends_on = None

# As an array: whatever is guessed of how many there are, each is looked for in the index.
REFUSE_UNBALANCED = """
create or replace function balance.refuse_unbalanced() returns trigger language plpgsql as
$$
begin
  if exists (
    select from balance.entry
     where transaction_id = any (array(select transaction_id from fresh))
     group by transaction_id having sum(nano) <> 0
  ) then
    raise exception 'the entries of a transaction must sum to zero' using errcode = 'check_violation';
  end if;
  return null;
end
$$
"""


def upgrade() -> None:
    """What it refuses stays the same."""
    op.execute(REFUSE_UNBALANCED)


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
