"""The chain over the ledger: every writing to it is sealed in its lane, and once a day the lanes are chained into one row.

What stands in it already is sealed here, in a lane of its own.
"""

import json
from datetime import UTC, datetime, timedelta
from hashlib import blake2b, sha256
from itertools import groupby

from alembic import op
from sqlalchemy import text

revision = "0035_sealed_ledger"
down_revision = "0034_payments_port"
branch_labels = None
depends_on = None

SEAL = """
create table balance.seal (
  lane text collate "C" not null,
  seq bigint not null check (seq > 0),
  batch_id bigint,
  transaction_ids uuid[],
  content bytea not null check (octet_length(content) = 32),
  hash bytea not null check (octet_length(hash) = 32),
  primary key (lane, seq),
  check ((batch_id is null) <> (transaction_ids is null))
)
"""

SEAL_INDEX = "create unique index seal_of_batch on balance.seal (batch_id) where batch_id is not null"

# Rows of a batch lie together: a few bytes for each thirty-two pages find them, and cost the charge path nothing.
CHARGED_INDEX = (
    "create index charged_by_batch on balance.charged using brin (batch_id)"
    " with (pages_per_range = 32, autosummarize = on)"
)

DAY = """
create table balance.sealed_day (
  day date primary key,
  at timestamptz not null,
  heads jsonb not null,
  hash bytea not null check (octet_length(hash) = 32)
)
"""

GROWS_ONLY = ("seal", "sealed_day")

LANE = "before the chain"
ROWS_AT_ONCE = 5_000
TRANSACTIONS_A_SEAL = 500
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

BATCHES = """
select b.id, b.at, b.links, c.account_id, c.currency, c.charges, c.wallet_nano, c.unbilled_nano, c.products,
       c.revenue_nano, c.credits, c.credit_nano
  from balance.charge_batch b left join balance.charged c on c.batch_id = b.id
 order by b.id, c.account_id
"""

TRANSACTIONS = """
select t.id, t.kind, t.ref, t.currency, t.at, t.actor, t.note,
       coalesce(jsonb_agg(jsonb_build_array(e.ledger, e.account_id, e.nano::text)) filter (where e.nano is not null), '[]')
  from balance.transaction t left join balance.entry e on e.transaction_id = t.id
 group by t.id order by t.id
"""

APPEND = text(
    "insert into balance.seal (lane, seq, batch_id, transaction_ids, content, hash)"
    " values (:lane, :seq, :batch_id, cast(:transaction_ids as uuid[]), :content, :hash)"
)


def digest(value: object) -> bytes:
    """The bytes that `services.balance.chain` seals."""
    written = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return blake2b(written.encode(), digest_size=32).digest()


def micros(at: datetime) -> int:
    """Since 1970."""
    return (at - EPOCH) // timedelta(microseconds=1)


def contents():  # type: ignore[no-untyped-def]  # pairs of (what is covered, digest)
    """Of every batch, then of the transactions in groups."""
    bind = op.get_bind()
    rows = bind.execute(text(BATCHES).execution_options(yield_per=ROWS_AT_ONCE))
    for (batch_id, at), of_batch in groupby(rows, key=lambda row: (row[0], row[1])):
        kept = list(of_batch)
        links = sorted([name, *span] for name, span in kept[0][2].items())
        charged = [list(row[3:]) for row in kept if row[3] is not None]
        yield {"batch_id": batch_id, "transaction_ids": None}, digest([micros(at), links, charged])
    group: list[list[object]] = []
    for row in bind.execute(text(TRANSACTIONS).execution_options(yield_per=ROWS_AT_ONCE)):
        entries = sorted([ledger, account or "", account is None, int(nano)] for ledger, account, nano in row[7])
        group.append([str(row[0]), row[1], row[2], row[3], micros(row[4]), row[5], row[6], entries])
        if len(group) == TRANSACTIONS_A_SEAL:
            yield {"batch_id": None, "transaction_ids": [each[0] for each in group]}, digest(group)
            group = []
    if group:
        yield {"batch_id": None, "transaction_ids": [each[0] for each in group]}, digest(group)


def upgrade() -> None:
    """Seals what there is; takes a second for some ten thousand rows."""
    for statement in (SEAL, SEAL_INDEX, CHARGED_INDEX, DAY):
        op.execute(statement)
    previous = sha256(LANE.encode()).digest()
    for seq, (covered, content) in enumerate(contents(), start=1):
        previous = sha256(previous + content).digest()
        op.get_bind().execute(APPEND, {"lane": LANE, "seq": seq, "content": content, "hash": previous, **covered})
    for table in GROWS_ONLY:
        op.execute(f"revoke update, delete, truncate on balance.{table} from tollbook_balance")
        op.execute(
            f"create trigger {table}_only_grows before update or delete or truncate on balance.{table}"
            " for each statement execute function balance.refuse_change()"
        )


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
