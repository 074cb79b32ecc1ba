"""The ledger takes every posting there is: refunds, disputes, pay-outs, credits, paid invoices, credit notes, write-offs.

A charge that a credit paid in part names it beside the wallet's and the unbilled part.
"""

from alembic import op

revision = "0031_ledger_accounts"
down_revision = "0030_counters_any_size"
branch_labels = None
depends_on = None

KINDS = (
    "'opening', 'goodwill', 'payment', 'refund', 'dispute_opened', 'dispute_won', 'dispute_lost', 'payout',"
    " 'credit_granted', 'credit_expired', 'reversal', 'closing', 'invoice_paid', 'unapplied_used', 'credit_note',"
    " 'write_off'"
)

# Null for the many that no credit paid.
CREDITS = """
alter table balance.charged
  add column credits text[],
  add column credit_nano bigint[],
  drop constraint charged_sums_to_zero,
  add constraint charged_credits_have_amounts
    check (coalesce(cardinality(credits), -1) = coalesce(cardinality(credit_nano), -1)),
  add constraint charged_sums_to_zero check (
    wallet_nano + unbilled_nano + coalesce(balance.sum_nano(credit_nano), 0) + balance.sum_nano(revenue_nano) = 0
  )
"""

LEDGER = """
create or replace view balance.ledger_entry with (security_invoker = true) as
select 'charges' as kind, c.batch_id::text as ref, b.at, c.currency, c.account_id, each.ledger, each.nano, c.charges
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
select t.kind, t.ref, t.at, t.currency, e.account_id, e.ledger, e.nano, 0
  from balance.entry e join balance.transaction t on t.id = e.transaction_id
"""


def upgrade() -> None:
    """What stands in the ledger stays as it is."""
    op.execute("alter table balance.transaction drop constraint transaction_kind_check")
    op.execute(f"alter table balance.transaction add constraint transaction_kind_check check (kind in ({KINDS}))")
    op.execute(CREDITS)
    op.execute(LEDGER)


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
