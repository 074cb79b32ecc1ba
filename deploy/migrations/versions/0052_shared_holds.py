"""Calls hold parts of the credits that their payer group shares, so that no two accounts are promised the same cent."""

from alembic import op

revision = "0052_shared_holds"
down_revision = "0051_reassignments"
branch_labels = None
depends_on = None

# Names are compared as bytes: rows are locked in the order in which the programs sort.
NAME = 'text collate "C"'
KINDS = (
    "'wallet', 'unbilled', 'receivable', 'charges', 'held', 'call_shares', 'credit_holds', 'credit', 'on_its_way',"
    " 'transaction'"
)

STATEMENTS = (
    """
alter table balance.credit
  add column held_nano bigint not null default 0 check (held_nano >= 0),
  add constraint credit_holds_what_is_left check (held_nano <= remaining_nano or expired_at is not null)
""",
    """
alter table balance.call
  add column shared_nano bigint not null default 0,
  add constraint call_shares_in_what_it_holds check (shared_nano between 0 and held_nano)
""",
    f"""
create table balance.credit_hold (
  account_id {NAME} not null,
  call_leg_id {NAME} not null,
  credit_id uuid not null references balance.credit (credit_id),
  nano bigint not null check (nano > 0),
  primary key (account_id, call_leg_id, credit_id)
)
""",
    "create index credit_hold_of_credit on balance.credit_hold (credit_id)",
    "create index credit_shared_by_who_asked on balance.credit (asked_for) where account_id is null",
    "create index wallet_with_levels on balance.wallet (account_id)"
    " where level_next_nano is not null or level_told_nano is not null",
    "alter table balance.drift drop constraint drift_kind_check,"
    f" add constraint drift_kind_check check (kind in ({KINDS}))",
    "comment on column balance.wallet.held_nano is 'the sum of what its calls hold of its own money'",
    "comment on column balance.credit.held_nano is 'what calls hold of it; of one that has expired it is worth nothing'",
    "comment on column balance.call.shared_nano is 'of held_nano: what it holds of credits that a payer group shares'",
    "comment on table balance.credit_hold is 'what a call holds of a shared credit'",
)


def upgrade() -> None:
    """No call holds anything of a shared credit yet."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
