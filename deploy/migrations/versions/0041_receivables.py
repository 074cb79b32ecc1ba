"""What payer groups owe: invoices with what is open of them, payments, overdue invoices, write-offs.

What was closed before is taken over as unpaid: until now there was no payment of an invoice.
"""

from alembic import op

revision = "0041_receivables"
down_revision = "0040_webhooks"
branch_labels = None
depends_on = None

NAME = 'text collate "C"'

TABLES = (
    f"""
create table balance.payer (
  group_id {NAME} primary key,
  organization_id {NAME} not null,
  currency text not null,
  zone text not null,
  event_version bigint not null default 0,
  unapplied_nano numeric(38, 0) not null default 0 check (unapplied_nano >= 0),
  suspends boolean not null default false
)
""",
    f"""
create table balance.membership (
  account_id {NAME} not null,
  start_at timestamptz not null,
  end_at timestamptz check (end_at > start_at),
  group_id {NAME} not null,
  primary key (account_id, start_at)
)
""",
    "create index membership_of_group on balance.membership (group_id)",
    f"""
create table balance.receivable (
  invoice_id uuid primary key,
  group_id {NAME} not null references balance.payer (group_id),
  number text not null,
  period text not null,
  due_on timestamptz not null,
  due_nano numeric(38, 0) not null,
  paid_nano numeric(38, 0) not null default 0,
  written_off_nano numeric(38, 0) not null default 0 check (written_off_nano >= 0),
  version integer not null default 0,
  overdue_since timestamptz,
  noticed_days integer,
  write_off_proposed_by text,
  write_off_note text,
  constraint receivable_is_never_paid_twice check (
    paid_nano + written_off_nano between least(due_nano, 0) and greatest(due_nano, 0)
  ),
  check ((write_off_proposed_by is null) = (write_off_note is null))
)
""",
    # of the few that are open, whatever has been paid in all the years
    "create index receivable_open on balance.receivable (group_id) where paid_nano + written_off_nano <> due_nano",
    "create index receivable_of_group on balance.receivable (group_id, number)",
    f"""
create table balance.receivable_share (
  invoice_id uuid not null references balance.receivable (invoice_id),
  account_id {NAME} not null,
  open_nano bigint not null,
  primary key (invoice_id, account_id)
)
""",
    f"""
create table balance.group_payment (
  payment_id uuid primary key,
  group_id {NAME} not null,
  bank {NAME} not null,
  reference {NAME} not null,
  amount_nano bigint not null check (amount_nano > 0),
  currency text not null,
  received_at timestamptz not null,
  actor text not null,
  note text not null,
  constraint group_payment_is_recorded_once unique (bank, reference)
)
""",
    """
create table balance.application (
  invoice_id uuid not null references balance.receivable (invoice_id),
  version integer not null,
  source text not null check (source in ('transfer', 'overpayment', 'credit', 'write_off')),
  payment_id uuid,
  nano numeric(38, 0) not null,
  at timestamptz not null,
  primary key (invoice_id, version)
)
""",
    "create index application_of_payment on balance.application (payment_id) where payment_id is not null",
    f"""
create table balance.group_command (
  group_id {NAME} not null,
  command_id {NAME} not null,
  content bytea not null check (octet_length(content) = 16),
  kind text not null,
  actor text not null,
  role text not null,
  at timestamptz not null,
  accepted boolean not null,
  reason text,
  primary key (group_id, command_id)
)
""",
    """
create table balance.overdue_terms (
  only_row boolean primary key default true check (only_row),
  suspend_after_days integer not null check (suspend_after_days between 0 and 365)
)
""",
    "insert into balance.overdue_terms (suspend_after_days) values (21)",
    """
create table invoices.settlement (
  invoice_id uuid not null references invoices.invoice (invoice_id),
  version integer not null,
  kind text not null,
  at timestamptz not null,
  state text not null check (state in ('closed', 'partly_paid', 'paid', 'overdue', 'written_off')),
  amount_nano numeric(38, 0) not null,
  source text,
  reference text,
  paid_nano numeric(38, 0) not null,
  written_off_nano numeric(38, 0) not null,
  open_nano numeric(38, 0) not null,
  primary key (invoice_id, version)
)
""",
    "revoke update, delete, truncate on invoices.settlement from tollbook_invoices",
    """
create table groups.owed (
  invoice_id uuid primary key,
  version integer not null,
  number text not null,
  accounts text[] not null,
  open_nano numeric(30, 0) not null
)
""",
    "create index owed_by_account on groups.owed using gin (accounts) where open_nano > 0",
    # what was paid and given up is history, as the ledger is
    "revoke update, delete, truncate on balance.application, balance.group_payment from tollbook_balance",
    "comment on column balance.payer.unapplied_nano is 'paid too much: pays the next invoice'",
    "comment on column balance.payer.suspends is 'its invoiced accounts are suspended until no invoice is overdue'",
)

TAKEN_OVER = (
    # groups as the registry knows them, and all that has closed invoices
    """
insert into balance.payer (group_id, organization_id, currency, zone)
select group_id, organization_id, currency, zone from groups.payer_group
on conflict do nothing
""",
    """
insert into balance.membership (account_id, start_at, end_at, group_id)
select a.account_id, lower(g.during), upper(g.during), g.group_id
from groups.account_group g join groups.account a using (account_no)
where exists (select from balance.wallet w where w.account_id = a.account_id and w.registry_version > 0)
""",
    # an invoice that is closed and not posted yet comes by its event
    """
insert into balance.receivable (invoice_id, group_id, number, period, due_on, due_nano)
select i.invoice_id, i.group_id, i.number, i.period, (d.body::jsonb ->> 'due_on')::timestamptz, -sum(e.nano)
from invoices.invoice i
join invoices.document d using (invoice_id)
join balance.transaction t on t.kind = 'closing' and t.ref = i.invoice_id::text
join balance.entry e on e.transaction_id = t.id and split_part(e.ledger, ':', 1) = 'receivable'
where exists (select from balance.payer p where p.group_id = i.group_id)
group by i.invoice_id, d.body
""",
    """
insert into balance.receivable_share (invoice_id, account_id, open_nano)
select r.invoice_id, e.account_id, -sum(e.nano)
from balance.receivable r
join balance.transaction t on t.kind = 'closing' and t.ref = r.invoice_id::text
join balance.entry e on e.transaction_id = t.id and split_part(e.ledger, ':', 1) = 'receivable'
group by r.invoice_id, e.account_id
having sum(e.nano) <> 0
""",
    """
insert into groups.owed (invoice_id, version, number, accounts, open_nano)
select r.invoice_id, 0, r.number, array_agg(s.account_id), r.due_nano
from balance.receivable r join balance.receivable_share s using (invoice_id)
where r.due_nano > 0 group by r.invoice_id
""",
    """
insert into balance.due (kind, key, due_at)
select distinct 'overdue', group_id, runtime.clock_now() from balance.receivable
union all
select 'group_change', account_id, min(start_at) from balance.membership
where start_at > runtime.clock_now() group by account_id
on conflict do nothing
""",
)


def upgrade() -> None:
    for statement in (*TABLES, *TAKEN_OVER):
        op.execute(statement)


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
