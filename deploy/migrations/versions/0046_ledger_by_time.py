"""The ledger is read by time: what was posted between two instants is found without reading what was posted before."""

from alembic import op

revision = "0046_ledger_by_time"
down_revision = "0045_on_its_way"
branch_labels = None
depends_on = None

# Rows are written in the order of time: a few bytes for each thirty-two pages find them, and cost who posts nothing.
BY_TIME = (
    "create index transaction_by_time on balance.transaction using brin (at)"
    " with (pages_per_range = 32, autosummarize = on)"
)

LEDGER = """
create or replace view balance.ledger_entry with (security_invoker = true) as
select 'charges' as kind, c.batch_id::text as ref, b.at, c.currency, c.account_id, each.ledger, each.nano, c.charges,
       c.batch_id, null::text as actor, null::text as note
  from balance.charged c
  join balance.charge_batch b on b.id = c.batch_id
  cross join lateral (
    select 'wallet' as ledger, c.wallet_nano as nano
    union all select 'unbilled', c.unbilled_nano
    union all select 'credit:' || p.credit, p.nano from unnest(c.credits, c.credit_nano) as p (credit, nano)
    union all select 'revenue:' || r.product, r.nano from unnest(c.products, c.revenue_nano) as r (product, nano)
  ) as each
 where each.nano <> 0
union all
select t.kind, t.ref, t.at, t.currency, e.account_id, e.ledger, e.nano, 0, null::bigint, t.actor, t.note
  from balance.entry e join balance.transaction t on t.id = e.transaction_id
"""


def upgrade() -> None:
    """What stands in the ledger stays as it is."""
    op.execute(BY_TIME)
    op.execute(LEDGER)


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
