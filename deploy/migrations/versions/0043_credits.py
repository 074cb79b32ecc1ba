"""Promotional credit: credits of accounts and payer groups, what they paid, voucher codes."""

from alembic import op

revision = "0043_credits"
down_revision = "0042_card_payments"
branch_labels = None
depends_on = None

# Names are compared as bytes: rows are locked in the order in which the programs sort.
NAME = 'text collate "C"'
NANO_MAX = 4_000_000_000_000_000_000

MEMBERSHIP = (
    "alter table balance.membership add column scoped boolean not null default false",
    "update balance.membership m set scoped = true from groups.payer_group p"
    " where p.group_id = m.group_id and p.account_id is not null",
    "comment on column balance.membership.scoped is 'the group is of this account alone, and takes no other'",
)

CREDITS = (
    f"alter table balance.wallet add column credit_nano bigint not null default 0 check (credit_nano between -{NANO_MAX} and {NANO_MAX})",
    f"""
create table balance.voucher (
  voucher_id uuid primary key,
  digest bytea not null unique check (octet_length(digest) = 32),
  amount_nano bigint not null check (amount_nano > 0 and amount_nano <= {NANO_MAX}),
  currency text not null,
  shared boolean not null,
  organization_id {NAME},
  redemptions_max integer not null check (redemptions_max > 0),
  redeemed integer not null default 0,
  redeem_until timestamptz,
  credit_days integer check (credit_days > 0),
  needs_approval boolean not null,
  created_by text not null,
  created_at timestamptz not null,
  approved_by text,
  approved_at timestamptz,
  note text,
  constraint voucher_is_redeemed_as_often_as_allowed check (redeemed between 0 and redemptions_max),
  check ((approved_by is null) = (approved_at is null)),
  check (approved_by <> created_by)
)
""",
    f"""
create table balance.credit (
  credit_id uuid primary key,
  organization_id {NAME} not null,
  group_id {NAME},
  account_id {NAME} references balance.wallet (account_id),
  asked_for {NAME} not null references balance.wallet (account_id),
  currency text not null,
  granted_nano bigint not null check (granted_nano > 0 and granted_nano <= {NANO_MAX}),
  remaining_nano bigint not null,
  breakage_nano bigint not null default 0,
  valid_from timestamptz,
  expires_at timestamptz,
  expired_at timestamptz,
  created_at timestamptz not null,
  origin text not null check (origin in ('grant', 'code')),
  asked_by text not null,
  approved_by text,
  note text,
  check (group_id is not null or account_id is not null),
  check (valid_from is not null or remaining_nano = 0),
  check (expired_at is null or remaining_nano = 0),
  check (approved_by <> asked_by),
  constraint credit_is_never_overspent check (
    remaining_nano >= 0 and breakage_nano >= 0 and remaining_nano + breakage_nano <= granted_nano
  )
)
""",
    "create index credit_of_account on balance.credit (account_id) where account_id is not null",
    "create index credit_of_group on balance.credit (group_id) where account_id is null",
    """
create table balance.redemption (
  voucher_id uuid not null references balance.voucher (voucher_id),
  beneficiary text not null,
  account_id text not null,
  credit_id uuid not null,
  actor text not null,
  at timestamptz not null,
  primary key (voucher_id, beneficiary)
)
""",
    """
create table balance.funding (
  charge_id uuid not null,
  place smallint not null check (place >= 0),
  credit_id uuid not null references balance.credit (credit_id),
  nano bigint not null check (nano <> 0),
  charge_nano bigint not null,
  primary key (charge_id, place)
)
""",
    "create index funding_of_credit on balance.funding (credit_id)",
    # revisions are one transaction, and an earlier one may have read this table by a cursor
    "close all",
    "alter table balance.transaction drop constraint transaction_kind_check",
    "alter table balance.transaction add constraint transaction_kind_check check (kind in ("
    "'opening', 'goodwill', 'payment', 'refund', 'dispute_opened', 'dispute_won', 'dispute_lost', 'payout',"
    " 'credit_granted', 'credit_used', 'credit_expired', 'reversal', 'closing', 'invoice_paid', 'unapplied_used',"
    " 'credit_note', 'write_off'))",
    "revoke update, delete, truncate on balance.funding from tollbook_balance",
    "create trigger funding_only_grows before update or delete or truncate on balance.funding"
    " for each statement execute function balance.refuse_change()",
    "comment on column balance.wallet.credit_nano is 'what is left of the credits of this account alone'",
    "comment on column balance.credit.account_id is 'null: all accounts of the group share it'",
    "comment on column balance.credit.valid_from is 'null: proposed, another person has to approve it'",
    "comment on column balance.voucher.digest is 'SHA-256 of the code; the code itself is kept nowhere'",
)


def upgrade() -> None:
    """There is no credit yet."""
    for statement in (*MEMBERSHIP, *CREDITS):
        op.execute(statement)


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
