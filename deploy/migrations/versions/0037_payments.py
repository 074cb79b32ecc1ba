"""Payments beside automatic recharges: manual and scheduled ones, refunds, disputes, and attempts that nobody answers."""

from alembic import op

revision = "0037_payments"
down_revision = "0036_holds"
branch_labels = None
depends_on = None

NANO_MAX = 4_000_000_000_000_000_000
KINDS = "'settled', 'failed', 'cancelled', 'never_seen', 'refunded', 'refund_failed', 'disputed', 'dispute_won', 'dispute_lost'"

STATEMENTS = (
    """
alter table balance.wallet
  add column paused_by text check (paused_by in ('declines', 'refund', 'dispute')),
  add column method_version bigint not null default 0,
  add column schedule_nano bigint check (schedule_nano > 0),
  add column schedule_day smallint check (schedule_day between 1 and 28 or schedule_day = 31),
  add column schedule_at timestamptz,
  add constraint wallet_schedule_is_whole
    check ((schedule_nano is null) = (schedule_day is null) and (schedule_nano is null) = (schedule_at is null))
""",
    "update balance.wallet set paused_by = 'declines' where paused",  # nothing else paused it so far
    "alter table balance.wallet drop column paused",
    """
alter table balance.attempt
  drop constraint attempt_kind_check,
  add constraint attempt_kind_check check (kind in ('auto', 'manual', 'scheduled')),
  drop constraint attempt_state_check,
  add constraint attempt_state_check
    check (state in ('requested', 'unknown', 'settled', 'declined', 'cancelled', 'abandoned')),
  add column token text,
  add column method_version bigint not null default 0,
  add column inquiries integer not null default 0
""",
    # What a result was about was not kept: so far it had to be the whole attempt.
    """
alter table balance.result
  drop constraint result_kind_check,
  add column amount_nano bigint,
  add column refund_id uuid,
  add column dispute_id text
""",
    f"alter table balance.result add constraint result_kind_check check (kind in ({KINDS}))",
    """
update balance.result r set amount_nano = a.amount_nano from balance.attempt a where a.attempt_id = r.attempt_id
""",
    "alter table balance.result alter column amount_nano set not null",
    """
alter table balance.result add constraint result_names_its_dispute
  check ((dispute_id is not null) = (kind in ('disputed', 'dispute_won', 'dispute_lost')))
""",
    # What is unknown since before there were inquiries is asked for now, and given up like all others.
    """
insert into balance.due (kind, key, due_at)
select timers.kind, attempt_id::text, case timers.kind when 'inquiry' then runtime.clock_now() else requested_at + interval '24 hours' end
  from balance.attempt cross join (values ('inquiry'), ('abandon')) as timers (kind)
 where state = 'unknown'
""",
    f"""
create table balance.refund (
  refund_id uuid primary key,
  attempt_id uuid not null references balance.attempt (attempt_id),
  account_id text collate "C" not null references balance.wallet (account_id),
  amount_nano bigint not null check (amount_nano > 0 and amount_nano <= {NANO_MAX}),
  state text not null check (state in ('requested', 'refunded', 'failed')),
  requested_at timestamptz not null,
  ended_at timestamptz,
  actor text not null,
  note text,
  check ((state = 'requested') = (ended_at is null))
)
""",
    "create index refund_of_attempt on balance.refund (attempt_id)",
    "comment on column balance.wallet.schedule_day is 'of each month; 31: the last one'",
)


def upgrade() -> None:
    """Keeps every attempt and result as it is."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
