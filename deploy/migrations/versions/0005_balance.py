"""Balance: wallets, the ledger that only grows, payment attempts and their results, commands, cuts to answer."""

from alembic import op

revision = "0005_balance"
down_revision = "0004_usage"
branch_labels = None
depends_on = None

# Names are compared as bytes: rows are locked in the order in which the programs sort.
NAME = 'text collate "C"'
# A wallet lies within +-4 x 10^9 units; room is left in a bigint for the sums of a batch.
NANO = "bigint not null {default} check ({name} between -4000000000000000000 and 4000000000000000000)"


def nano(name: str, default: str = "default 0") -> str:
    """The column of an amount in nanos."""
    return f"{name} " + NANO.format(name=name, default=default)


WALLET = f"""
create table balance.wallet (
  account_id {NAME} primary key,
  organization_id {NAME} not null,
  currency text not null,
  {nano("wallet_nano")},
  {nano("unbilled_nano")},
  {nano("receivable_nano")},
  event_version bigint not null default 0,
  trigger_version bigint not null default 0,
  registry_version integer not null default 0,
  plan text check (plan in ('trial', 'payg', 'invoiced')),
  level_2 boolean not null default false,
  {nano("credit_limit_nano")},
  created_at timestamptz,
  closed_at timestamptz,
  opened_at timestamptz,
  method_processor text,
  method_kind text,
  method_token text,
  recharge_enabled boolean not null default false,
  recharge_mode text not null default 'up_to_sum' check (recharge_mode in ('up_to_sum', 'target', 'fixed')),
  {nano("threshold_nano")},
  {nano("recharge_nano")},
  decline_streak smallint not null default 0 check (decline_streak >= 0),
  retry_at timestamptz,
  paused boolean not null default false,
  notice text,
  suspended boolean not null default false,
  check (registry_version = 0 or (plan is not null and created_at is not null)),
  check ((method_processor is null) = (method_token is null) and (method_kind is null) = (method_token is null))
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000)
"""

SUSPENDED = "create index wallet_suspended on balance.wallet (account_id) where suspended"

# The sum of one transaction's amounts; SQL only adds.
SUM = """
create function balance.sum_nano(amounts bigint[]) returns bigint language plpgsql immutable parallel safe strict as
$$
declare
  amount bigint;
  total bigint := 0;
begin
  foreach amount in array amounts loop
    total := total + amount;
  end loop;
  return total;
end
$$
"""

CHARGE_BATCH = """
create table balance.charge_batch (
  id bigint generated always as identity primary key,
  at timestamptz not null,
  links jsonb not null
)
"""

# One row is one transaction: all charges of an account in a batch, with its entries side by side. The batch is written in
# the same transaction just before; a foreign key would only look it up again for every row.
CHARGED = f"""
create table balance.charged (
  batch_id bigint not null,
  account_id {NAME} not null,
  currency text not null,
  charges integer not null check (charges > 0),
  {nano("wallet_nano", "")},
  {nano("unbilled_nano", "")},
  products text[] not null,
  revenue_nano bigint[] not null,
  primary key (account_id, batch_id),
  check (cardinality(products) = cardinality(revenue_nano)),
  constraint charged_sums_to_zero check (wallet_nano + unbilled_nano + balance.sum_nano(revenue_nano) = 0)
)
"""

TRANSACTION = """
create table balance.transaction (
  id uuid primary key,
  kind text not null check (kind in ('opening', 'goodwill', 'payment', 'closing')),
  ref text not null,
  currency text not null,
  at timestamptz not null,
  actor text,
  note text
)
"""

ENTRY = f"""
create table balance.entry (
  transaction_id uuid not null references balance.transaction (id),
  ledger {NAME} not null,
  account_id {NAME},
  nano bigint not null check (nano <> 0)
)
"""

ENTRY_INDEXES = (
    "create index entry_of_transaction on balance.entry (transaction_id)",
    "create index entry_of_account on balance.entry (account_id) where account_id is not null",
)

ZERO = """
create function balance.refuse_unbalanced() returns trigger language plpgsql as
$$
begin
  if exists (
    select from balance.entry
     where transaction_id in (select transaction_id from fresh)
     group by transaction_id having sum(nano) <> 0
  ) then
    raise exception 'the entries of a transaction must sum to zero' using errcode = 'check_violation';
  end if;
  return null;
end
$$
"""

ZERO_TRIGGER = """
create trigger entry_sums_to_zero after insert on balance.entry
referencing new table as fresh for each statement execute function balance.refuse_unbalanced()
"""

APPEND_ONLY = """
create function balance.refuse_change() returns trigger language plpgsql as
$$
begin
  raise exception 'the ledger only grows: % of %.% is refused', tg_op, tg_table_schema, tg_table_name
    using errcode = 'insufficient_privilege', hint = 'Post a transaction that reverses it.';
end
$$
"""

GROWS_ONLY = ("charge_batch", "charged", "transaction", "entry")

LEDGER = """
create view balance.ledger_entry with (security_invoker = true) as
select 'charges' as kind, c.batch_id::text as ref, b.at, c.currency, c.account_id, each.ledger, each.nano, c.charges
  from balance.charged c
  join balance.charge_batch b on b.id = c.batch_id
  cross join lateral (
    select 'wallet' as ledger, c.wallet_nano as nano
    union all select 'unbilled', c.unbilled_nano
    union all select 'revenue:' || r.product, r.nano from unnest(c.products, c.revenue_nano) as r (product, nano)
  ) as each
 where each.nano <> 0
union all
select t.kind, t.ref, t.at, t.currency, e.account_id, e.ledger, e.nano, 0
  from balance.entry e join balance.transaction t on t.id = e.transaction_id
"""

ATTEMPT = f"""
create table balance.attempt (
  attempt_id uuid primary key,
  account_id {NAME} not null references balance.wallet (account_id),
  kind text not null check (kind = 'auto'),
  state text not null check (state in ('requested', 'unknown', 'settled', 'declined', 'cancelled')),
  trigger_version bigint not null,
  processor text not null,
  method_kind text not null,
  {nano("amount_nano", "")},
  currency text not null,
  requested_at timestamptz not null,
  ended_at timestamptz,
  unique (account_id, trigger_version),
  check (amount_nano > 0)
)
"""

ATTEMPT_INDEXES = (
    "create unique index attempt_in_flight on balance.attempt (account_id)"
    " where state in ('requested', 'unknown') and kind = 'auto'",
    "create index attempt_by_time on balance.attempt (account_id, requested_at)",
)

RESULT = """
create table balance.result (
  processor text not null,
  result_id text not null,
  attempt_id uuid not null references balance.attempt (attempt_id),
  kind text not null check (kind in ('settled', 'failed')),
  failure text check (failure in ('declined', 'error')),
  reason text,
  at timestamptz not null,
  received_at timestamptz not null,
  primary key (processor, result_id),
  check ((kind = 'failed') = (failure is not null))
)
"""

RESULT_INDEX = "create index result_of_attempt on balance.result (attempt_id)"

# Who asked what, when, and what became of it. No token is kept here.
COMMAND = f"""
create table balance.command (
  account_id {NAME} not null,
  command_id {NAME} not null,
  content bytea not null check (octet_length(content) = 16),
  kind text not null,
  actor text not null,
  role text not null,
  at timestamptz not null,
  accepted boolean not null,
  reason text,
  primary key (account_id, command_id)
)
"""

COVERED = """
create table balance.covered (
  cutoff_id uuid not null,
  group_id text not null,
  boundary timestamptz not null,
  marks jsonb not null,
  answered_at timestamptz,
  primary key (cutoff_id, group_id)
)
"""

COMMENTS = (
    "comment on column balance.wallet.unbilled_nano is 'the sum of its entries: zero or below'",
    "comment on column balance.wallet.receivable_nano is 'its share of unpaid invoices: zero or below'",
    "comment on column balance.wallet.registry_version is '0: known from a charge only, the registry has not told it yet'",
    "comment on column balance.wallet.notice is 'what was told last of its recharge, so that it is told once'",
    "comment on column balance.covered.group_id is 'the held group that is spoken of; empty: the whole cut'",
)


def upgrade() -> None:
    """Makes the room's tables; what the ledger holds can be added to and never changed."""
    for statement in (
        WALLET,
        SUSPENDED,
        SUM,
        CHARGE_BATCH,
        CHARGED,
        TRANSACTION,
        ENTRY,
        *ENTRY_INDEXES,
        ZERO,
        ZERO_TRIGGER,
        APPEND_ONLY,
        LEDGER,
        ATTEMPT,
        *ATTEMPT_INDEXES,
        RESULT,
        RESULT_INDEX,
        COMMAND,
        COVERED,
        *COMMENTS,
    ):
        op.execute(statement)
    op.execute("grant execute on function balance.sum_nano(bigint[]) to tollbook_balance")
    for table in GROWS_ONLY:
        op.execute(f"revoke update, delete, truncate on balance.{table} from tollbook_balance")
        op.execute(
            f"create trigger {table}_only_grows before update or delete or truncate on balance.{table}"
            " for each statement execute function balance.refuse_change()"
        )


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
