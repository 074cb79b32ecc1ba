"""SQL of balance and nothing else: one function, one statement. Names are sorted before rows are locked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Date,
    DateTime,
    Integer,
    LargeBinary,
    Row,
    Select,
    SmallInteger,
    Text,
    Uuid,
    and_,
    bindparam,
    case,
    cast,
    delete,
    func,
    insert,
    literal,
    literal_column,
    null,
    or_,
    select,
    true,
    tuple_,
    union,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.balance import ledger, tables
from services.balance.chain import Charged, Posted
from services.balance.credit_store import CREDITED, SHARED, credited_parameters
from services.balance.statement import Moved, Position
from services.runtime import parking
from services.runtime.database import Kept, Plain, copy_rows, unnest
from services.runtime.lanes import CLOCK_NOW
from services.runtime.work import Work

_NAMES = ARRAY(Text)
TRANSACTION_MAX = timedelta(hours=1)  # far longer than any of ours takes
_FOR_AN_ACCOUNT = ("waiting", "unknown_account")  # why a command is parked that an account can free


def _any_of(column: Any, name: str) -> Any:
    return column == func.any(bindparam(name, type_=ARRAY(column.type)))


# ---- wallets -------------------------------------------------------------------------------------------------------


class Addition(NamedTuple):
    """What is added to one wallet row, which is made when it does not exist."""

    account_id: str
    organization_id: str
    currency: str
    wallet_nano: int
    unbilled_nano: int
    credit_nano: int = 0


class Standing(NamedTuple):
    """A wallet row after an addition: as much as tells whether it must be looked at."""

    account_id: str
    currency: str
    wallet_nano: int
    unbilled_nano: int
    receivable_nano: int
    credit_limit_nano: int
    recharge_enabled: bool
    threshold_nano: int
    notice: str | None
    suspended_funds: bool
    spend_counted: bool
    level_next_nano: int | None
    level_told_nano: int | None
    held_nano: int
    calls_until: datetime | None
    credit_nano: int
    on_its_way_nano: int


_additions = unnest(
    "new",
    account_id=Text(),
    organization_id=Text(),
    currency=Text(),
    wallet_nano=BigInteger(),
    unbilled_nano=BigInteger(),
    credit_nano=BigInteger(),
)
_wallet = tables.wallet.c
_attempt = tables.attempt.c
# An upsert takes its rows one by one in the order of the arrays: that is the order of the locks.
_add = upsert(tables.wallet).from_select(Addition._fields, select(*[_additions.c[name] for name in Addition._fields]))
_ADD_TO_WALLETS = Plain(
    _add.on_conflict_do_update(
        index_elements=["account_id"],
        set_={name: _wallet[name] + _add.excluded[name] for name in ("wallet_nano", "unbilled_nano", "credit_nano")},
    ).returning(*[_wallet[name] for name in Standing._fields])
)


async def add_to_wallets(work: Work, additions: Sequence[Addition]) -> list[Standing]:
    """Lock the rows in order of their ids, add the amounts, make rows that are missing."""
    ordered = sorted(additions)
    columns = zip(*ordered, strict=True)
    parameters = {f"new_{name}": list(column) for name, column in zip(Addition._fields, columns, strict=True)}
    return [Standing._make(row) for row in await _ADD_TO_WALLETS.tuples(work.connection, parameters)]


def _locked(which: ColumnElement[bool]) -> Plain:
    """Whole rows with what the group shares, which no wallet's lock holds; locked in order of their ids."""
    rows = select(tables.wallet, *SHARED.c).join_from(tables.wallet, SHARED, true()).where(which)
    return Plain(rows.order_by(_wallet.account_id).with_for_update(of=tables.wallet))


_LOCK_WALLETS = _locked(_any_of(_wallet.account_id, "ids"))
_LOCK_WALLETS_OF_ATTEMPTS = _locked(
    _wallet.account_id.in_(select(_attempt.account_id).where(_any_of(_attempt.attempt_id, "ids")))
)


async def lock_wallets(work: Work, account_ids: Iterable[str]) -> list[dict[str, Any]]:
    """The whole rows, locked in order of their ids; unknown ones are left out."""
    return await _LOCK_WALLETS.rows(work.connection, {"ids": sorted(set(account_ids))})


async def lock_wallets_of_attempts(work: Work, attempt_ids: Iterable[UUID]) -> list[dict[str, Any]]:
    """The whole rows of the accounts that these attempts belong to, locked in order of their ids."""
    return await _LOCK_WALLETS_OF_ATTEMPTS.rows(work.connection, {"ids": sorted(set(attempt_ids))})


_SAVED = [column for column in tables.wallet.columns if column.name != "account_id"]
_states = unnest("new", **{column.name: column.type for column in tables.wallet.columns})
_SAVE_WALLETS = Plain(
    update(tables.wallet)
    .where(_wallet.account_id == _states.c.account_id)
    .values({column: _states.c[column.name] for column in _SAVED})
)


async def save_wallets(work: Work, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write locked rows back as a whole."""
    columns = {f"new_{column.name}": [row[column.name] for row in rows] for column in tables.wallet.columns}
    await _SAVE_WALLETS.touched(work.connection, columns)


_KNOWN = select(_wallet.account_id).where(_any_of(_wallet.account_id, "ids"), _wallet.registry_version > 0)


async def known_accounts(work: Work, account_ids: Iterable[str]) -> set[str]:
    """Which of these accounts the registry has told."""
    return set((await work.execute(_KNOWN, {"ids": sorted(set(account_ids))})).scalars())


# ---- ledger --------------------------------------------------------------------------------------------------------


_seal = tables.seal.c
_another_seal = tables.seal.alias("another")
_LANE = bindparam("lane", type_=Text())
_CONTENT = bindparam("content", type_=LargeBinary())
_last = select(_seal.seq, _seal.hash).where(_seal.lane == _LANE).order_by(_seal.seq.desc()).limit(1).cte("last")
_FIRST = func.sha256(func.convert_to(_LANE, "UTF8"), type_=LargeBinary())  # chain.first_of
_PREVIOUS = func.coalesce(select(_last.c.hash).scalar_subquery(), _FIRST, type_=LargeBinary())
_NEXT = (
    _LANE.label("lane"),
    (func.coalesce(select(_last.c.seq).scalar_subquery(), 0) + 1).label("seq"),
    _CONTENT.label("content"),
    func.sha256(_PREVIOUS.op("||")(_CONTENT)).label("hash"),  # chain.following
)
"""The next seal of a lane, whose row this transaction holds."""

_batch = (
    insert(tables.charge_batch)
    .values(at=bindparam("at"), links=bindparam("links"))
    .returning(tables.charge_batch.c.id)
    .cte("batch")
)
_APPEND_BATCH = (
    insert(tables.seal)
    .from_select(["batch_id", "lane", "seq", "content", "hash"], select(_batch.c.id, *_NEXT))
    .returning(_seal.batch_id, CREDITED)
)


async def append_batch(
    work: Work, links: Mapping[str, Sequence[int]], content: bytes, owners: Mapping[tuple[str, str | None], bool]
) -> tuple[int, frozenset[str]]:
    """A new batch of charges with the seqs it took from each link, sealed in the lane; its id, and accounts with credits.

    ``owners`` are the (account, group) of its charges, and whether one of either is taken back: see `CREDITED`.
    """
    parameters = {"at": work.now, "links": dict(links), "lane": work.lane, "content": content}
    row = (await work.execute(_APPEND_BATCH, parameters | credited_parameters(owners))).one()
    return row.batch_id, frozenset(row.credited or ())


_CHARGED = ("batch_id", *Charged._fields)


async def append_charged(work: Work, batch_id: int, rows: Iterable[Charged]) -> None:
    """One transaction per (batch, account)."""
    await copy_rows(work.connection, tables.charged, _CHARGED, [(batch_id, *row) for row in rows])


_TRANSACTION = {name: tables.transaction.c[name].type for name in Posted._fields if name != "entries"}
_new = unnest("new", **_TRANSACTION)
_appended = (
    insert(tables.transaction).from_select(list(_TRANSACTION), select(*[_new.c[name] for name in _TRANSACTION])).cte()
)
_APPEND_TRANSACTIONS = (
    insert(tables.seal)
    .from_select(
        ["transaction_ids", "lane", "seq", "content", "hash"],
        select(bindparam("new_id", type_=ARRAY(Uuid)).label("transaction_ids"), *_NEXT),
    )
    .add_cte(_appended)
)


async def append_transactions(work: Work, rows: Sequence[Posted], content: bytes) -> None:
    """Transactions that are not charges, sealed in the lane; one that exists is refused by its key."""
    columns = {f"new_{name}": [getattr(row, name) for row in rows] for name in _TRANSACTION}
    await work.execute(_APPEND_TRANSACTIONS, {**columns, "lane": work.lane, "content": content})


async def posted(work: Work, transaction_ids: Iterable[UUID]) -> set[UUID]:
    """Which of these transactions stand in the ledger."""
    column = tables.transaction.c.id
    statement = select(column).where(_any_of(column, "ids"))
    return set((await work.execute(statement, {"ids": sorted(set(transaction_ids))})).scalars())


async def posted_to_bank(work: Work, transaction_ids: Iterable[UUID]) -> Sequence[Row[Any]]:
    """(ref, currency, nano on the bank) of those of these transactions that stand in the ledger."""
    transaction, entry = tables.transaction.c, tables.entry.c
    statement = (
        select(transaction.ref, transaction.currency, entry.nano)
        .join_from(tables.transaction, tables.entry, entry.transaction_id == transaction.id)
        .where(_any_of(transaction.id, "ids"), entry.ledger == ledger.BANK)
    )
    return (await work.execute(statement, {"ids": sorted(set(transaction_ids))})).all()


_ENTRY = {column.name: column.type for column in tables.entry.columns}
_entries = unnest("new", **_ENTRY)
_APPEND_ENTRIES = insert(tables.entry).from_select(list(_ENTRY), select(*[_entries.c[name] for name in _ENTRY]))


async def append_entries(work: Work, rows: Iterable[Posted]) -> None:
    """All entries of new transactions, in one statement: the database checks that each transaction sums to zero."""
    flat = [(row.id, *entry) for row in rows for entry in row.entries]
    if flat:
        columns = zip(*flat, strict=True)
        await work.execute(
            _APPEND_ENTRIES, {f"new_{name}": list(column) for name, column in zip(_ENTRY, columns, strict=True)}
        )


# ---- statements ----------------------------------------------------------------------------------------------------


_INSTANT = DateTime(timezone=True)
_PARTS = ("wallet_nano", "unbilled_nano", "receivable_nano")


def _statement() -> Select[Any]:
    """Everything of an account since an instant: what came after the end summed up, the wallet row beside it."""
    account_id, since, until = (
        bindparam("id", type_=Text()),
        bindparam("since", type_=_INSTANT),
        bindparam("until", type_=_INSTANT),
    )
    batch, charged, transaction, entry = (
        tables.charge_batch.c, tables.charged.c, tables.transaction.c, tables.entry.c,
    )  # fmt: skip
    # Of the account's own rows only those of later batches than one from well before the time are looked at: a batch gets its
    # number after its instant, and no transaction takes that long.
    before = select(batch.id).where(batch.at < since - TRANSACTION_MAX).order_by(batch.at.desc()).limit(1)
    first = func.coalesce(before.scalar_subquery(), 0)
    of_charges = (
        select(
            literal("charges", Text()).label("kind"),
            cast(batch.id, Text()).label("ref"),
            batch.at.label("at"),
            charged.wallet_nano.label("wallet_nano"),
            charged.unbilled_nano.label("unbilled_nano"),
            literal(0, BigInteger()).label("receivable_nano"),
            charged.charges.label("charges"),
            charged.products.label("names"),
            null().label("actor"),
            null().label("note"),
        )
        .join_from(tables.charged, tables.charge_batch, batch.id == charged.batch_id)
        .where(charged.account_id == account_id, charged.batch_id >= first, batch.at >= since)
    )
    part = func.split_part(entry.ledger, ":", 1)

    def sum_of(name: str) -> Any:
        return cast(func.coalesce(func.sum(entry.nano).filter(part == name), 0), BigInteger()).label(f"{name}_nano")

    of_others = (
        select(
            transaction.kind,
            transaction.ref,
            transaction.at,
            sum_of("wallet"),
            sum_of("unbilled"),
            sum_of("receivable"),
            literal(0, Integer()),
            func.array_agg(entry.ledger, type_=ARRAY(Text)),
            transaction.actor,
            transaction.note,
        )
        .join_from(tables.entry, tables.transaction, transaction.id == entry.transaction_id)
        .where(entry.account_id == account_id, transaction.at >= since)
        .group_by(transaction.id)
    )
    every = of_charges.union_all(of_others).cte("every")
    moved = select(*every.c).where(every.c.at < until, or_(*[every.c[name] != 0 for name in _PARTS]))
    sums = [cast(func.coalesce(func.sum(every.c[name]), 0), BigInteger()) for name in _PARTS]
    nothing = [null() for _ in range(4)]
    later = select(literal(LATER, Text()), null(), null(), *sums, *nothing).where(every.c.at >= until)
    wallet = select(literal(NOW, Text()), null(), null(), *[_wallet[name] for name in _PARTS], *nothing)
    return select(moved.union_all(later, wallet.where(_wallet.account_id == account_id)).subquery())


NOW, LATER = "now", "later"
_STATEMENT = _statement()


async def movements(
    connection: AsyncConnection, account_id: str, since: datetime, until: datetime
) -> tuple[Position, Position, list[Moved]] | None:
    """In one snapshot: the position now, what was moved from ``until`` on, and what from ``since`` to ``until``."""
    rows = (await connection.execute(_STATEMENT, {"id": account_id, "since": since, "until": until})).all()
    sums = {row.kind: Position(*[row._mapping[name] for name in _PARTS]) for row in rows if row.at is None}
    if NOW not in sums:
        return None
    moved = [
        Moved(
            row.at,
            row.kind,
            row.ref,
            Position(row.wallet_nano, row.unbilled_nano, row.receivable_nano),
            row.charges,
            row.names if row.kind == "charges" else (),
            row.actor,
            row.note,
            next((name.partition(":")[2] for name in row.names if name.startswith(("clearing:", "disputes:"))), None),
        )
        for row in rows
        if row.at is not None
    ]
    return sums[NOW], sums[LATER], moved


async def attempts_named(connection: AsyncConnection, attempt_ids: Iterable[UUID]) -> Mapping[str, Row[Any]]:
    """The kind and the method of attempts, by id as text."""
    statement: Select[Any] = select(_attempt.attempt_id, _attempt.kind, _attempt.method_kind)
    rows: Sequence[Row[Any]] = (
        await connection.execute(statement.where(_any_of(_attempt.attempt_id, "ids")), {"ids": list(attempt_ids)})
    ).all()
    return {str(row.attempt_id): row for row in rows}


# ---- the chain over the ledger ------------------------------------------------------------------------------------

_day = tables.sealed_day.c


async def last_sealed_day(work: Work) -> Row[Any] | None:
    """The newest row of the days."""
    return (await work.execute(select(tables.sealed_day).order_by(_day.day.desc()).limit(1))).one_or_none()


def _lanes() -> Any:
    """The lanes that have seals, from the index alone: a step per lane, however many seals there are."""
    lanes = select(func.min(_seal.lane).label("lane")).cte("lanes", recursive=True)
    another = _another_seal.c
    following = select(select(func.min(another.lane)).where(another.lane > lanes.c.lane).scalar_subquery())
    return lanes.union_all(following.where(lanes.c.lane.is_not(None)))


async def lane_heads(work: Work) -> Sequence[Row[Any]]:
    """The last seal of every lane."""
    lanes = _lanes()
    own = select(_seal.seq, _seal.hash).where(_seal.lane == lanes.c.lane).order_by(_seal.seq.desc()).limit(1)
    last = own.lateral()
    statement = select(lanes.c.lane, last.c.seq, last.c.hash).join_from(lanes, last, true())
    rows: Sequence[Row[Any]] = (await work.execute(statement)).all()
    return rows


async def append_sealed_day(work: Work, row: Mapping[str, Any]) -> None:
    """The row of a day that is over."""
    await work.execute(insert(tables.sealed_day), row)


async def sealed_days(connection: AsyncConnection) -> Sequence[Row[Any]]:
    """The rows of all days, oldest first."""
    return (await connection.execute(select(tables.sealed_day).order_by(_day.day))).all()


async def seals(connection: AsyncConnection, *, of_transactions: bool = False) -> AsyncIterator[Row[Any]]:
    """Every seal, or those of transactions, in order of lane and seq, as a stream."""
    statement = select(tables.seal).order_by(_seal.lane, _seal.seq)
    if of_transactions:
        statement = statement.where(_seal.transaction_ids.is_not(None))
    async for row in await connection.stream(statement):
        yield row


async def batches_after(connection: AsyncConnection, after: int, limit: int) -> Sequence[Row[Any]]:
    """The next batches by id with their seals; what has no counterpart is there with nulls in its place."""
    batches, ids = tables.charge_batch, tables.charge_batch.c
    known = select(ids.id.label("id")).where(ids.id > after).order_by(ids.id).limit(limit)
    sealed = select(_seal.batch_id.label("id")).where(_seal.batch_id > after).order_by(_seal.batch_id).limit(limit)
    both = union(known.subquery().select(), sealed.subquery().select()).subquery()
    statement: Select[Any] = (
        select(both.c.id.label("batch_id"), ids.at, ids.links, _seal.lane, _seal.seq, _seal.content)
        .outerjoin_from(both, batches, ids.id == both.c.id)
        .outerjoin(tables.seal, _seal.batch_id == both.c.id)
        .order_by(both.c.id)
        .limit(limit)
    )
    rows: Sequence[Row[Any]] = (await connection.execute(statement)).all()
    return rows


async def charged_between(connection: AsyncConnection, after: int, to: int | None) -> Sequence[Row[Any]]:
    """The rows of batches above one and up to another, or to the end, in order of batch and account."""
    columns = tables.charged.c
    statement = (
        select(columns.batch_id, *[columns[name] for name in Charged._fields])
        .where(columns.batch_id > after)
        .order_by(columns.batch_id, columns.account_id)
    )
    if to is not None:
        statement = statement.where(columns.batch_id <= to)
    return (await connection.execute(statement)).all()


async def transactions(connection: AsyncConnection, ids: Iterable[UUID]) -> Sequence[Row[Any]]:
    """Transactions by id, as they are sealed."""
    columns = [tables.transaction.c[name] for name in _TRANSACTION]
    return (await connection.execute(select(*columns).where(_any_of(columns[0], "ids")), {"ids": list(ids)})).all()


async def entries_of(connection: AsyncConnection, ids: Iterable[UUID]) -> Sequence[Row[Any]]:
    """The entries of transactions."""
    statement = select(tables.entry).where(_any_of(tables.entry.c.transaction_id, "ids"))
    return (await connection.execute(statement, {"ids": list(ids)})).all()


async def unsealed(connection: AsyncConnection, limit: int) -> Sequence[UUID]:
    """Transactions that no seal covers. There must be none."""
    covered = (
        select(func.unnest(_seal.transaction_ids).label("id")).where(_seal.transaction_ids.is_not(None)).subquery()
    )
    column = tables.transaction.c.id
    statement = select(column).outerjoin_from(tables.transaction, covered, covered.c.id == column)
    return (await connection.execute(statement.where(covered.c.id.is_(None)).limit(limit))).scalars().all()


async def orphaned_entries(connection: AsyncConnection, limit: int) -> Sequence[UUID]:
    """Transactions that are missing and have entries. There must be none."""
    column = tables.entry.c.transaction_id
    statement = (
        select(column).distinct().outerjoin_from(tables.entry, tables.transaction, tables.transaction.c.id == column)
    )
    return (await connection.execute(statement.where(tables.transaction.c.id.is_(None)).limit(limit))).scalars().all()


# ---- sums that are checked ------------------------------------------------------------------------------------------

_summed = tables.summed.c
_part = func.split_part(tables.entry.c.ledger, ":", 1)
_OWN = ("wallet", "unbilled", "receivable")
_IN_A_WALLET = (*_OWN, "held", "credit", "on_its_way")


def _sum(column: Any, name: str) -> Any:
    return func.coalesce(func.sum(column), 0).label(name)


def _add_to_summed() -> Select[Any]:
    lanes, to, charged, entry = _lanes(), tables.summed_to.c, tables.charged.c, tables.entry.c
    known = select(to.seq).where(to.lane == lanes.c.lane).correlate(lanes).scalar_subquery()
    newer = (
        select(_seal.seq, _seal.batch_id, _seal.transaction_ids)
        .where(_seal.lane == lanes.c.lane, _seal.seq > func.coalesce(known, 0))
        .lateral()
    )
    fresh = (
        select(lanes.c.lane, newer.c.seq, newer.c.batch_id, newer.c.transaction_ids)
        .join_from(lanes, newer, true())
        .cte("fresh")
    )
    first, last = (select(side(fresh.c.batch_id)).scalar_subquery() for side in (func.min, func.max))
    of_charges = (
        select(charged.account_id, *[charged[name] for name in ("wallet_nano", "unbilled_nano")], literal(0).label("r"))
        .join_from(tables.charged, fresh, fresh.c.batch_id == charged.batch_id)
        .where(charged.batch_id >= first, charged.batch_id <= last)
    )
    of_others = select(
        entry.account_id, *[case((_part == name, entry.nano), else_=0).label(name) for name in _OWN]
    ).where(
        # As an array: how many there are is not guessed from how many seals there are.
        entry.transaction_id == func.any(func.array(select(func.unnest(fresh.c.transaction_ids)).scalar_subquery())),
        entry.account_id.is_not(None),
        _part.in_(_OWN),
    )
    each = of_charges.union_all(of_others).subquery()
    columns = [each.c.wallet_nano, each.c.unbilled_nano, each.c.r]
    moved = (
        select(each.c.account_id, *[_sum(column, f"{name}_nano") for name, column in zip(_OWN, columns, strict=True)])
        .group_by(each.c.account_id)
        .cte("moved")
    )
    ends = select(fresh.c.lane, func.max(fresh.c.seq)).group_by(fresh.c.lane)
    advance = upsert(tables.summed_to).from_select(["lane", "seq"], ends)
    advanced = advance.on_conflict_do_update(index_elements=["lane"], set_={"seq": advance.excluded.seq})
    add = upsert(tables.summed).from_select([column.name for column in moved.c], select(moved))
    added = (
        add.on_conflict_do_update(
            index_elements=["account_id"],
            set_={f"{name}_nano": _summed[f"{name}_nano"] + add.excluded[f"{name}_nano"] for name in _OWN},
        )
        .returning(tables.summed)
        .cte("added")
    )
    differs = [_wallet[f"{name}_nano"].is_distinct_from(added.c[f"{name}_nano"]) for name in _OWN]
    return (
        select(added.c.account_id)
        .outerjoin_from(added, tables.wallet, _wallet.account_id == added.c.account_id)
        .where(or_(*differs))
        .add_cte(advanced.cte("advanced"))
    )


_ADD_TO_SUMMED = _add_to_summed()


async def lock_sweep(work: Work) -> Row[Any]:
    """How far the sweep has come; one transaction at a time adds to the sums."""
    return (await work.execute(select(tables.sweep).with_for_update())).one()


async def add_to_summed(work: Work) -> Sequence[str]:
    """Add what was sealed since the last time, in one snapshot with the wallets; returns accounts that differ."""
    return (await work.execute(_ADD_TO_SUMMED)).scalars().all()


async def accounts_after(work: Work, account_id: str, limit: int) -> Sequence[str]:
    """The next accounts that have a wallet, or sums of entries: one whose wallet is gone has those."""
    every = union(
        *[
            select(column).where(column > account_id).order_by(column).limit(limit).subquery().select()
            for column in (_wallet.account_id, _summed.account_id)
        ]
    ).subquery()
    statement = select(every.c.account_id).order_by(every.c.account_id).limit(limit)
    return (await work.execute(statement)).scalars().all()


async def transactions_after(work: Work, transaction_id: UUID, limit: int) -> Sequence[UUID]:
    """The next transactions by id."""
    column = tables.transaction.c.id
    statement = select(column).where(column > transaction_id).order_by(column).limit(limit)
    return (await work.execute(statement)).scalars().all()


async def save_sweep(work: Work, account_id: str, transaction_id: UUID | None) -> None:
    """How far it came; from the start again after the last."""
    statement = update(tables.sweep).values(account_id=account_id, transaction_id=transaction_id or UUID(int=0))
    await work.execute(statement)


async def add_up(work: Work, account_ids: Iterable[str]) -> Sequence[Row[Any]]:
    """The wallets of these accounts beside the sums of all their entries, which are as long as their history, of what their
    calls hold, of what is left of their own credits and of cards' payments on their way to a group; beside them what their calls
    say to hold of shared credits, and what the shared credits that they asked for say is held of them, with the sums of the
    parts of both. In one snapshot, so that what is half done is seen nowhere. A wallet that is missing is 0.

    What calls hold whose leases are over counts until their wallets are looked at: both sides are taken back together.
    """
    asked = unnest("asked", account_id=Text())
    account_id = asked.c.account_id
    charged, entry = tables.charged.c, tables.entry.c
    off = charged.wallet_nano + charged.unbilled_nano
    off += func.coalesce(func.balance.sum_nano(charged.credit_nano), 0) + func.balance.sum_nano(charged.revenue_nano)
    of_charges = (
        select(
            _sum(charged.wallet_nano, "wallet"), _sum(charged.unbilled_nano, "unbilled"), _sum(off, "charges"),
        )
        .where(charged.account_id == account_id)
        .lateral()
    )  # fmt: skip
    of_others = (
        select(*[_sum(case((_part == name, entry.nano), else_=0), name) for name in _OWN])
        .where(entry.account_id == account_id)
        .lateral()
    )
    call, credit = tables.call.c, tables.credit.c
    of_calls = (
        select(_sum(call.held_nano - call.shared_nano, "held"), _sum(call.shared_nano, "call_shares"))
        .where(call.account_id == account_id, call.held_nano > 0)
        .lateral()
    )
    hold, is_shared = tables.credit_hold.c, and_(credit.asked_for == account_id, credit.account_id.is_(None))
    of_parts = select(_sum(hold.nano, "call_shares")).where(hold.account_id == account_id).lateral()
    of_shared = select(_sum(credit.held_nano, "credit_holds")).where(is_shared).lateral()
    of_their_parts = (
        select(_sum(hold.nano, "credit_holds"))
        .join_from(tables.credit, tables.credit_hold, hold.credit_id == credit.credit_id)
        .where(is_shared)
        .lateral()
    )
    of_credits = select(_sum(credit.remaining_nano, "credit")).where(credit.account_id == account_id).lateral()
    paid = tables.group_payment.c
    of_cards = (
        select(_sum(_attempt.amount_nano, "nano"))
        .select_from(tables.attempt.outerjoin(tables.group_payment, paid.payment_id == _attempt.attempt_id))
        .where(
            _attempt.account_id == account_id, _attempt.kind == "group", _attempt.state == "settled",
            paid.payment_id.is_(None),
        )
        .lateral()
    )  # fmt: skip
    statement = (
        select(
            account_id,
            *[func.coalesce(_wallet[f"{name}_nano"], 0).label(f"{name}_nano") for name in _IN_A_WALLET],
            (of_charges.c.wallet + of_others.c.wallet).label("wallet_sum"),
            (of_charges.c.unbilled + of_others.c.unbilled).label("unbilled_sum"),
            of_others.c.receivable.label("receivable_sum"),
            of_charges.c.charges.label("charges_sum"),
            of_calls.c.held.label("held_sum"),
            of_credits.c.credit.label("credit_sum"),
            of_cards.c.nano.label("on_its_way_sum"),
            of_calls.c.call_shares.label("call_shares_nano"),
            of_parts.c.call_shares.label("call_shares_sum"),
            of_shared.c.credit_holds.label("credit_holds_nano"),
            of_their_parts.c.credit_holds.label("credit_holds_sum"),
        )
        .outerjoin_from(asked, tables.wallet, _wallet.account_id == account_id)
        .join(of_charges, true())
        .join(of_others, true())
        .join(of_calls, true())
        .join(of_credits, true())
        .join(of_cards, true())
        .join(of_parts, true())
        .join(of_shared, true())
        .join(of_their_parts, true())
        .order_by(account_id)
    )  # fmt: skip
    parameters = {"asked_account_id": sorted(set(account_ids))}
    rows: Sequence[Row[Any]] = (await work.execute(statement, parameters)).all()
    return rows


async def off_zero(work: Work, transaction_ids: Iterable[UUID]) -> Sequence[Row[Any]]:
    """Those of these transactions whose entries do not sum to zero. There must be none."""
    columns, entry = tables.transaction.c, tables.entry.c
    nano = func.sum(entry.nano)
    statement: Select[Any] = (
        select(columns.kind, columns.ref, nano.label("nano"))
        .join_from(tables.transaction, tables.entry, entry.transaction_id == columns.id)
        .where(_any_of(columns.id, "ids"))
        .group_by(columns.id)
        .having(nano != 0)
    )
    rows: Sequence[Row[Any]] = (await work.execute(statement, {"ids": list(transaction_ids)})).all()
    return rows


async def first_accounts(work: Work, transaction_ids: Iterable[UUID]) -> dict[UUID, str]:
    """The first account by id that each of these transactions touches; one that touches none is left out."""
    entry = tables.entry.c
    statement = (
        select(entry.transaction_id, func.min(entry.account_id).label("account_id"))
        .where(_any_of(entry.transaction_id, "ids"), entry.account_id.is_not(None))
        .group_by(entry.transaction_id)
    )
    rows = await work.execute(statement, {"ids": sorted(set(transaction_ids))})
    return {row.transaction_id: row.account_id for row in rows}


_OPEN_DRIFTS = select(tables.drift).where(tables.drift.c.gone_at.is_(None)).order_by(tables.drift.c.id)


async def open_drifts(work: Work) -> Sequence[Row[Any]]:
    """What differs since it was found."""
    return (await work.execute(_OPEN_DRIFTS)).all()


async def drifts(connection: AsyncConnection) -> Sequence[Row[Any]]:
    """What differs now, for people."""
    return (await connection.execute(_OPEN_DRIFTS)).all()


async def append_drifts(work: Work, rows: Sequence[Mapping[str, Any]]) -> None:
    """What was found now."""
    await work.execute(insert(tables.drift), list(rows))


async def end_drifts(work: Work, ids: Iterable[int]) -> None:
    """What holds again."""
    column = tables.drift.c.id
    await work.execute(update(tables.drift).where(column.in_(sorted(ids))).values(gone_at=work.now))


# ---- limits and what counts against them ---------------------------------------------------------------------------

SpendKey = tuple[str, date, str]  # account, day of UTC, outbound profile or, empty, the account as a whole


class SpendLimit(NamedTuple):
    """What an account or, where it is named, an outbound profile of it may do; None: no limit."""

    account_id: str
    outbound_profile: str
    daily_spend_nano: int | None
    calls_max: int | None


class Spent(NamedTuple):
    """A day after an addition, with the limit on it and what was told of the day."""

    account_id: str
    day: date
    outbound_profile: str
    spent_nano: int
    told: int
    told_limit_nano: int | None
    limit_nano: int | None


class SpendTold(NamedTuple):
    """What was told of a day now, and of which limit."""

    account_id: str
    day: date
    outbound_profile: str
    told: int
    told_limit_nano: int


_spend = tables.spend.c
_limit = tables.spend_limit.c
_limits = unnest("new", account_id=Text(), outbound_profile=Text(), daily_spend_nano=BigInteger(), calls_max=Integer())
_set_limits = upsert(tables.spend_limit).from_select(
    [*SpendLimit._fields, "set_at"],
    select(*[_limits.c[name] for name in SpendLimit._fields], bindparam("set_at", type_=DateTime(timezone=True))),
)
_SAVE_LIMITS = _set_limits.on_conflict_do_update(
    index_elements=["account_id", "outbound_profile"],
    set_={name: _set_limits.excluded[name] for name in ("daily_spend_nano", "calls_max", "set_at")},
)


async def save_limits(work: Work, limits: Iterable[SpendLimit]) -> None:
    """Limits of accounts whose wallets are locked, each as a whole."""
    columns = zip(*sorted(limits), strict=True)
    parameters = {f"new_{name}": list(column) for name, column in zip(SpendLimit._fields, columns, strict=True)}
    await work.execute(_SAVE_LIMITS, {"set_at": work.now, **parameters})


_sums = unnest("new", account_id=Text(), day=Date(), outbound_profile=Text(), spent_nano=BigInteger())
_SUMS = ("account_id", "day", "outbound_profile", "spent_nano")
_add_spend = upsert(tables.spend).from_select(_SUMS, select(*[_sums.c[name] for name in _SUMS]))
_added = (
    _add_spend.on_conflict_do_update(
        index_elements=["account_id", "day", "outbound_profile"],
        set_={"spent_nano": _spend.spent_nano + _add_spend.excluded.spent_nano},
    )
    .returning(tables.spend)
    .cte("added")
)
_ADD_TO_SPEND = select(
    *[_added.c[name] for name in Spent._fields[:-1]], _limit.daily_spend_nano.label("limit_nano")
).outerjoin_from(
    _added,
    tables.spend_limit,
    and_(_limit.account_id == _added.c.account_id, _limit.outbound_profile == _added.c.outbound_profile),
)


async def add_to_spend(work: Work, sums: Mapping[SpendKey, int]) -> list[Spent]:
    """Add nanos to days of accounts whose wallets are locked; a day that has no row gets one."""
    keys = sorted(sums)
    parameters = {
        "new_account_id": [account_id for account_id, _, _ in keys],
        "new_day": [day for _, day, _ in keys],
        "new_outbound_profile": [profile for _, _, profile in keys],
        "new_spent_nano": [sums[key] for key in keys],
    }
    return [Spent._make(row) for row in (await work.execute(_ADD_TO_SPEND, parameters)).all()]


_CHARGED_SINCE = (
    select(
        tables.charged.c.account_id,
        (-func.sum(tables.charged.c.wallet_nano + tables.charged.c.unbilled_nano)).label("nano"),
    )
    .where(
        _any_of(tables.charged.c.account_id, "ids"),
        tables.charged.c.batch_id.in_(
            select(tables.charge_batch.c.id).where(tables.charge_batch.c.at >= bindparam("since"))
        ),
    )
    .group_by(tables.charged.c.account_id)
)


async def charged_since(work: Work, account_ids: Iterable[str], since: datetime) -> list[tuple[str, int]]:
    """(account, nanos) of the charges of these accounts that were posted since an instant. Their wallets are locked."""
    rows = (await work.execute(_CHARGED_SINCE, {"ids": sorted(account_ids), "since": since})).all()
    return [(row.account_id, int(row.nano)) for row in rows]


_told = unnest(
    "new", account_id=Text(), day=Date(), outbound_profile=Text(), told=SmallInteger(), told_limit_nano=BigInteger()
)
_SAVE_TOLD = (
    update(tables.spend)
    .where(
        _spend.account_id == _told.c.account_id,
        _spend.day == _told.c.day,
        _spend.outbound_profile == _told.c.outbound_profile,
    )
    .values(told=_told.c.told, told_limit_nano=_told.c.told_limit_nano)
)


async def save_told(work: Work, rows: Sequence[SpendTold]) -> None:
    """What was told of days, of accounts whose wallets are locked."""
    columns = zip(*rows, strict=True)
    await work.execute(
        _SAVE_TOLD, {f"new_{name}": list(column) for name, column in zip(SpendTold._fields, columns, strict=True)}
    )


# ---- low-balance levels --------------------------------------------------------------------------------------------

_level = tables.level.c
_LEVELS = Plain(select(_level.account_id, _level.nano).where(_any_of(_level.account_id, "ids")))
_FORGET_LEVELS = delete(tables.level).where(_any_of(_level.account_id, "ids"))


async def levels_of(work: Work, account_ids: Iterable[str]) -> list[tuple[str, int]]:
    """(account, nanos) of every level of these accounts. Their wallets are locked."""
    rows = await _LEVELS.tuples(work.connection, {"ids": sorted(account_ids)})
    return [(account_id, nano) for account_id, nano in rows]


async def forget_levels(work: Work, account_ids: Iterable[str]) -> None:
    """Delete the levels of accounts whose wallets are locked."""
    await work.execute(_FORGET_LEVELS, {"ids": sorted(account_ids)})


async def append_levels(work: Work, levels: Iterable[tuple[str, int]]) -> None:
    """New levels (account, nanos) of accounts whose wallets are locked and that have none."""
    await work.execute(insert(tables.level), [{"account_id": account_id, "nano": nano} for account_id, nano in levels])


# ---- calls in progress and what they hold --------------------------------------------------------------------------

CallKey = tuple[str, str]  # account, call leg

_call = tables.call.c
_CALLERS = (
    select(tables.wallet, *SHARED.c, CLOCK_NOW.label("now"))
    .join_from(tables.wallet, SHARED, true())
    .where(_any_of(_wallet.account_id, "ids"))
)
_CALLERS_LOCKED = _CALLERS.order_by(_wallet.account_id).with_for_update(of=tables.wallet, skip_locked=True)


async def callers(connection: AsyncConnection, account_ids: Iterable[str], *, lock: bool) -> Sequence[Row[Any]]:
    """The whole rows of these wallets and the one clock's instant; locked, those that nobody else holds.

    Unknown ones are left out.
    """
    statement = _CALLERS_LOCKED if lock else _CALLERS
    rows: Sequence[Row[Any]] = (await connection.execute(statement, {"ids": sorted(set(account_ids))})).all()
    return rows


_AT = bindparam("now", type_=DateTime(timezone=True))
_keys = unnest("wanted", account_id=Text(), call_leg_id=Text())
_CALL_COLUMNS = [cast(each, Text).label("rates") if each.name == "rates" else each for each in _call]
_CALLS = select(*_CALL_COLUMNS).join_from(
    tables.call, _keys, and_(_call.account_id == _keys.c.account_id, _call.call_leg_id == _keys.c.call_leg_id)
)
# A constant and no parameter: a plan for any value could not use the index of those that hold something.
_is_lapsed = and_(_call.held_nano > literal_column("0"), _call.expires_at <= _AT)
_LAPSED = select(*_CALL_COLUMNS).where(_any_of(_call.account_id, "ids"), _is_lapsed)
_READ_CALLS, _READ_LAPSED, _READ_CALLS_AND_LAPSED = Plain(_CALLS), Plain(_LAPSED), Plain(_CALLS.union_all(_LAPSED))

# Each key with its wallet and with its call, if there is one, in the columns after the wallet's.
_CALL_AS = {each.name: f"call_{each.name}" for each in _call}
_IN_HAND = Plain(
    select(
        tables.wallet,
        *SHARED.c,
        CLOCK_NOW.label("now"),
        cast(literal_column("wallet.xmin"), Text).label("revision"),
        *[each.label(_CALL_AS[each.name]) for each in _CALL_COLUMNS],
    )
    .select_from(_keys)
    .join(tables.wallet, _wallet.account_id == _keys.c.account_id)
    .join(SHARED, true())
    .outerjoin(tables.call, and_(_call.account_id == _keys.c.account_id, _call.call_leg_id == _keys.c.call_leg_id))
)


async def callers_at_once(
    kept: Kept, keys: Iterable[CallKey]
) -> tuple[dict[str, Mapping[str, Any]], list[dict[str, Any]]]:
    """Of the accounts of these calls the rows as `callers` has them, by id, and those of the calls that there are; no locks.

    `revision` is another one after whatever happens to the wallet's row.
    """
    rows = await kept.rows(_IN_HAND, _wanted(keys))
    wallets = {row["account_id"]: row for row in rows}
    calls = [
        {name: row[shown] for name, shown in _CALL_AS.items()} for row in rows if row["call_account_id"] is not None
    ]
    return wallets, calls


async def accounts_with_lapsed(kept: Kept, account_ids: Iterable[str], now: datetime) -> set[str]:
    """Which of these accounts have calls that hold something and whose leases are over."""
    return {row["account_id"] for row in await kept.rows(_READ_LAPSED, {"ids": sorted(account_ids), "now": now})}


async def calls_in_hand(
    connection: AsyncConnection, keys: Iterable[CallKey], holding: Iterable[str], now: datetime
) -> list[dict[str, Any]]:
    """Calls by their ids, and those of the accounts that hold something whose leases are over. Their wallets are locked.

    A call that is both comes twice. `rates` is JSON as text.
    """
    wanted, ids = _wanted(keys), sorted(set(holding))
    lapsed: dict[str, Any] = {"ids": ids, "now": now}
    if not ids:
        return await _READ_CALLS.rows(connection, wanted)
    if not wanted["wanted_account_id"]:
        return await _READ_LAPSED.rows(connection, lapsed)
    return await _READ_CALLS_AND_LAPSED.rows(connection, wanted | lapsed)


def _wanted(keys: Iterable[CallKey]) -> dict[str, Any]:
    ordered = sorted(set(keys))
    return {
        "wanted_account_id": [account_id for account_id, _ in ordered],
        "wanted_call_leg_id": [call_leg_id for _, call_leg_id in ordered],
    }


_HOLDING_OVER = (
    select(_call.account_id, func.bool_or(_call.shared_nano > 0).label("shares"))
    .where(_is_lapsed)
    .group_by(_call.account_id)
    .limit(bindparam("most", type_=Integer()))
)


async def accounts_holding_over(work: Work, limit: int) -> dict[str, bool]:
    """Accounts with calls that hold something and whose leases are over, and whether any of it is of shared credits."""
    rows = await work.execute(_HOLDING_OVER, {"now": work.now, "most": limit})
    return {row.account_id: row.shares for row in rows}


class Held(NamedTuple):
    """What a wallet holds for its calls from now on, and what it held before; until when the last of them may run."""

    account_id: str
    before_nano: int
    held_nano: int
    calls_until: datetime | None


_CALL_KINDS = {column.name: Text() if column.name == "rates" else column.type for column in tables.call.columns}
_new_calls = unnest("call", **_CALL_KINDS)
_calls_given = select(*[cast(each, JSONB) if each.name == "rates" else each for each in _new_calls.columns])


def _upserted(given: Select[Any]) -> Any:
    statement = upsert(tables.call).from_select(list(_CALL_KINDS), given)
    return statement.on_conflict_do_update(
        index_elements=["account_id", "call_leg_id"],
        set_={name: statement.excluded[name] for name in _CALL_KINDS if name not in ("account_id", "call_leg_id")},
    )


_held = unnest(
    "held", account_id=Text(), before_nano=BigInteger(), held_nano=BigInteger(), calls_until=DateTime(timezone=True)
)
_hold = (
    update(tables.wallet)
    .where(_wallet.account_id == _held.c.account_id, _wallet.held_nano == _held.c.before_nano)
    .values(held_nano=_held.c.held_nano, calls_until=_held.c.calls_until)
)
_SAVE_CALLS = Plain(_hold.add_cte(_upserted(_calls_given).cte("saved")))

# The condition is looked at again on the newest row when somebody was about to change it, and then its revision is another.
# Nobody is waited for: so the order of the locks is nobody's trouble, and a wallet that is held delays no other.
_known = unnest(
    "known", account_id=Text(), revision=Text(), held_nano=BigInteger(), calls_until=DateTime(timezone=True)
)
_unchanged = (
    select(_wallet.account_id, _known.c.held_nano, _known.c.calls_until)
    .join_from(
        _known,
        tables.wallet,
        and_(
            _wallet.account_id == _known.c.account_id,
            cast(literal_column("wallet.xmin"), Text) == _known.c.revision,
        ),
    )
    .with_for_update(of=tables.wallet, skip_locked=True)
    .cte("unchanged")
)
_hold_unchanged = (
    update(tables.wallet)
    .where(_wallet.account_id == _unchanged.c.account_id)
    .values(held_nano=_unchanged.c.held_nano, calls_until=_unchanged.c.calls_until)
    .returning(_wallet.account_id)
    .cte("held")
)
_SAVE_CALLS_IF_UNCHANGED = Plain(
    select(_hold_unchanged.c.account_id).add_cte(
        _upserted(
            _calls_given.join_from(_new_calls, _unchanged, _unchanged.c.account_id == _new_calls.c.account_id)
        ).cte("saved")
    )
)


async def save_calls(connection: AsyncConnection, calls: Sequence[Mapping[str, Any]], held: Sequence[Held]) -> int:
    """Calls as a whole, and what their wallets hold, in one statement; the wallets are locked.

    Returns how many wallets held what they were said to have held before: all, or somebody has not kept to the lock.
    """
    return await _SAVE_CALLS.touched(connection, _to_save(calls, held))


async def save_calls_if_unchanged(
    kept: Kept, calls: Sequence[Mapping[str, Any]], held: Sequence[Held], revisions: Mapping[str, str]
) -> set[str]:
    """As `save_calls`, of each wallet that nobody has touched since it was read, and that nobody holds; returns which."""
    known = {
        "known_account_id": [each.account_id for each in held],
        "known_revision": [revisions[each.account_id] for each in held],
        "known_held_nano": [each.held_nano for each in held],
        "known_calls_until": [each.calls_until for each in held],
    }
    return {row["account_id"] for row in await kept.rows(_SAVE_CALLS_IF_UNCHANGED, _columns(calls) | known)}


def _to_save(calls: Sequence[Mapping[str, Any]], held: Sequence[Held]) -> dict[str, list[Any]]:
    columns = zip(*held, strict=True)
    return _columns(calls) | {f"held_{name}": list(column) for name, column in zip(Held._fields, columns, strict=True)}


def _columns(calls: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {f"call_{name}": [call[name] for call in calls] for name in _CALL_KINDS}


_in_progress = (
    select(func.count())
    .where(
        _call.account_id == _limit.account_id,
        or_(_limit.outbound_profile == "", _call.outbound_profile == _limit.outbound_profile),
        _call.ended_at.is_(None),
        _call.expires_at > _AT,
    )
    .scalar_subquery()
)
_spent_today = (
    select(_spend.spent_nano)
    .where(
        _spend.account_id == _limit.account_id,
        _spend.outbound_profile == _limit.outbound_profile,
        _spend.day == bindparam("today", type_=Date()),
    )
    .scalar_subquery()
)
_LIMITS_NOW: Select[Any] = select(
    tables.spend_limit,
    func.coalesce(_spent_today, 0).label("spent_nano"),
    _in_progress.label("calls"),
).order_by(_limit.account_id, _limit.outbound_profile)
_LIMITS_NOW_OF_ACCOUNT = _LIMITS_NOW.where(_limit.account_id == bindparam("account_id"))
_owners = unnest("owner", account_id=Text(), outbound_profile=Text())
_LIMITS_NOW_OF = _LIMITS_NOW.where(
    tuple_(_limit.account_id, _limit.outbound_profile).in_(select(_owners.c.account_id, _owners.c.outbound_profile))
)


async def limits_of_account(connection: AsyncConnection, account_id: str, now: datetime) -> Sequence[Row[Any]]:
    """The limits of an account and of all its profiles, with today's spend and the calls in progress."""
    parameters = {"account_id": account_id, "now": now, "today": now.date()}
    rows: Sequence[Row[Any]] = (await connection.execute(_LIMITS_NOW_OF_ACCOUNT, parameters)).all()
    return rows


async def limits_of(
    connection: AsyncConnection, owners: Iterable[tuple[str, str]], now: datetime
) -> Sequence[Row[Any]]:
    """The limits of these (account, profile or the account as a whole), as `limits_of_account`."""
    ordered = sorted(set(owners))
    parameters = {
        "owner_account_id": [account_id for account_id, _ in ordered],
        "owner_outbound_profile": [profile for _, profile in ordered],
        "now": now,
        "today": now.date(),
    }
    rows: Sequence[Row[Any]] = (await connection.execute(_LIMITS_NOW_OF, parameters)).all()
    return rows


async def forget_calls(work: Work, expired_before: datetime, limit: int) -> None:
    """Delete the calls whose leases ended longest ago and that hold nothing; one that is being started again stays."""
    key = tuple_(_call.account_id, _call.call_leg_id)
    oldest = (
        select(_call.account_id, _call.call_leg_id)
        .where(_call.expires_at < expired_before, _call.held_nano == 0)
        .order_by(_call.expires_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    await work.execute(delete(tables.call).where(key.in_(oldest)))


async def forget_days(work: Work, before: date) -> None:
    """Delete what was spent before a day."""
    await work.execute(delete(tables.spend).where(_spend.day < before))


# ---- attempts and results ------------------------------------------------------------------------------------------

IN_FLIGHT = ("requested", "unknown")


class Tried(NamedTuple):
    """What the decision about a recharge needs of an attempt."""

    account_id: str
    kind: str
    state: str
    amount_nano: int
    requested_at: datetime
    undone: bool


_SINCE = bindparam("since", type_=DateTime(timezone=True))
_tried = select(*[_attempt[name] for name in Tried._fields]).where(_any_of(_attempt.account_id, "ids"))
# Constants and no parameters: a plan for any value could not use the index of what is in flight.
_is_in_flight = _attempt.state.in_([literal_column(f"'{state}'") for state in IN_FLIGHT])
# Two reads, each by its index: of the two conditions in one, a plan for any values looks at all attempts of an account.
_ATTEMPTS_SINCE = Plain(
    _tried.where(_attempt.requested_at > _SINCE)
    .union_all(_tried.where(_attempt.requested_at <= _SINCE, _is_in_flight))
    .order_by("account_id", "requested_at")
)


async def attempts_since(work: Work, account_ids: Iterable[str], since: datetime) -> list[Tried]:
    """Attempts after an instant, and what is in flight however old, oldest first. The wallets are locked."""
    rows = await _ATTEMPTS_SINCE.tuples(work.connection, {"ids": sorted(account_ids), "since": since})
    return [Tried._make(row) for row in rows]


async def load_attempts(work: Work, attempt_ids: Iterable[UUID]) -> Sequence[Row[Any]]:
    """Attempts by id. Their state holds only while their wallets are locked."""
    statement = select(tables.attempt).where(_any_of(_attempt.attempt_id, "ids"))
    return (await work.execute(statement, {"ids": sorted(set(attempt_ids))})).all()


@dataclass(frozen=True)
class NewAttempt:
    """An attempt that is asked for in this transaction."""

    attempt_id: UUID
    account_id: str
    trigger_version: int
    processor: str
    method_kind: str
    amount_nano: int
    currency: str
    requested_at: datetime
    kind: str = "auto"
    state: str = "requested"
    token: str | None = None
    method_version: int = 0
    inquiries: int = 0
    undone: bool = False


_NEW_ATTEMPT = [each.name for each in fields(NewAttempt)]
_new_attempts = unnest("new", **{name: _attempt[name].type for name in _NEW_ATTEMPT})
_APPEND_ATTEMPTS = Plain(
    insert(tables.attempt).from_select(_NEW_ATTEMPT, select(*[_new_attempts.c[name] for name in _NEW_ATTEMPT]))
)


async def append_attempts(work: Work, attempts: Sequence[NewAttempt]) -> None:
    """New attempts; the index of those in flight refuses a second one of an account, but for those that are undone."""
    columns = {f"new_{name}": [getattr(attempt, name) for attempt in attempts] for name in _NEW_ATTEMPT}
    await _APPEND_ATTEMPTS.touched(work.connection, columns)


async def save_attempts(work: Work, states: Mapping[UUID, tuple[str, datetime | None]]) -> None:
    """New states of attempts whose wallets are locked."""
    new = unnest("new", attempt_id=Uuid(), state=Text(), ended_at=DateTime(timezone=True))
    statement = (
        update(tables.attempt)
        .where(_attempt.attempt_id == new.c.attempt_id)
        .values(state=new.c.state, ended_at=new.c.ended_at)
    )
    ids = sorted(states)
    await work.execute(
        statement,
        {
            "new_attempt_id": ids,
            "new_state": [states[each][0] for each in ids],
            "new_ended_at": [states[each][1] for each in ids],
        },
    )


async def load_results(work: Work, attempt_ids: Iterable[UUID]) -> Sequence[Row[Any]]:
    """Every result stored of these attempts, in the order they came."""
    columns = tables.result.c
    statement = (
        select(tables.result)
        .where(_any_of(columns.attempt_id, "ids"))
        .order_by(columns.received_at, columns.processor, columns.result_id)
    )
    return (await work.execute(statement, {"ids": sorted(set(attempt_ids))})).all()


async def append_results(work: Work, rows: Sequence[Mapping[str, Any]]) -> None:
    """Results that were not stored yet. The wallets of their attempts are locked."""
    await work.execute(insert(tables.result), list(rows))


async def save_inquiries(work: Work, numbers: Mapping[UUID, int]) -> None:
    """How often attempts were inquired about; their wallets are locked."""
    new = unnest("new", attempt_id=Uuid(), inquiries=Integer())
    statement = update(tables.attempt).where(_attempt.attempt_id == new.c.attempt_id).values(inquiries=new.c.inquiries)
    ids = sorted(numbers)
    await work.execute(statement, {"new_attempt_id": ids, "new_inquiries": [numbers[each] for each in ids]})


class Unclaimed(NamedTuple):
    """An undone attempt whose command was not read again yet; ``command_id`` None: which one it was is not known. ``charged`` is
    the token that it charged."""

    attempt_id: UUID
    account_id: str
    kind: str
    state: str
    processor: str
    method_kind: str
    amount_nano: int
    currency: str
    token: str | None
    method_version: int
    command_id: str | None
    charged: str


_unclaimed = tables.unclaimed.c


async def unclaimed(work: Work, account_ids: Iterable[str]) -> list[Unclaimed]:
    """The undone attempts of these accounts that no command has taken over, in the order in which they were asked for. The wallets
    are locked."""
    columns = [_attempt[name] for name in Unclaimed._fields[:-2]]
    statement = (
        select(*columns, _unclaimed.command_id, _unclaimed.charged)
        .join_from(tables.unclaimed, tables.attempt, _attempt.attempt_id == _unclaimed.attempt_id)
        .where(_any_of(_unclaimed.account_id, "ids"))
        .order_by(_attempt.account_id, _attempt.trigger_version)
    )
    return [Unclaimed._make(row) for row in (await work.execute(statement, {"ids": sorted(set(account_ids))})).all()]


async def append_unclaimed(work: Work, rows: Sequence[Mapping[str, Any]]) -> None:
    """Undone attempts that wait for their commands; after the attempts."""
    await work.execute(insert(tables.unclaimed), list(rows))


async def end_unclaimed(work: Work, taken: Sequence[Unclaimed]) -> None:
    """Their commands have taken these attempts over, and say of what kind they are and which method they brought."""
    new = unnest("new", attempt_id=Uuid(), kind=Text(), token=Text(), method_version=BigInteger())
    names = ("attempt_id", "kind", "token", "method_version")
    gone = delete(tables.unclaimed).where(_any_of(_unclaimed.attempt_id, "new_attempt_id")).cte("gone")
    statement = (
        update(tables.attempt)
        .where(_attempt.attempt_id == new.c.attempt_id)
        .values({name: new.c[name] for name in names[1:]})
        .add_cte(gone)
    )
    await work.execute(statement, {f"new_{name}": [getattr(each, name) for each in taken] for name in names})


async def put_off_abandoning(work: Work, kind: str, until: datetime) -> None:
    """No attempt is given up before this instant."""
    due = work.tables.due
    await work.execute(update(due).where(due.c.kind == kind, due.c.due_at < until).values(due_at=until))


async def load_refunds(work: Work, attempt_ids: Iterable[UUID]) -> Sequence[Row[Any]]:
    """Every refund that was asked for of these attempts. Their wallets are locked."""
    columns = tables.refund.c
    statement = select(tables.refund).where(_any_of(columns.attempt_id, "ids")).order_by(columns.refund_id)
    return (await work.execute(statement, {"ids": sorted(set(attempt_ids))})).all()


async def refunds_named(work: Work, refund_ids: Iterable[UUID]) -> Sequence[Row[Any]]:
    """Those of these refunds that were asked for, of whatever attempts. Of what payment and how much never changes: nobody locks them."""
    statement = select(tables.refund).where(_any_of(tables.refund.c.refund_id, "ids"))
    return (await work.execute(statement, {"ids": sorted(set(refund_ids))})).all()


async def refused_refunds(work: Work, attempt_ids: Iterable[str]) -> list[int]:
    """The parked results of these attempts that gave back more than was left."""
    parked = work.tables.parked.c
    statement = select(parked.id).where(
        parked.state == "quarantined",
        parked.reason == "refund_too_large",
        parked.about["attempt_id"].astext == func.any(bindparam("ids", type_=_NAMES)),
    )
    return list((await work.execute(statement, {"ids": sorted(attempt_ids)})).scalars())


async def append_refunds(work: Work, rows: Sequence[Mapping[str, Any]]) -> None:
    """Refunds that are asked for."""
    await work.execute(insert(tables.refund), list(rows))


async def name_refund(work: Work, refund_id: UUID, actor: str, note: str | None) -> None:
    """Who asked for an undone refund, and why."""
    columns = tables.refund.c
    await work.execute(update(tables.refund).where(columns.refund_id == refund_id).values(actor=actor, note=note))


async def end_refunds(work: Work, states: Mapping[UUID, str]) -> None:
    """What became of refunds."""
    columns = tables.refund.c
    new = unnest("new", refund_id=Uuid(), state=Text())
    statement = (
        update(tables.refund).where(columns.refund_id == new.c.refund_id).values(state=new.c.state, ended_at=work.now)
    )
    ids = sorted(states)
    await work.execute(statement, {"new_refund_id": ids, "new_state": [states[each] for each in ids]})


# ---- commands ------------------------------------------------------------------------------------------------------


async def carried_out(work: Work, commands: Iterable[tuple[str, str]]) -> dict[tuple[str, str], bytes]:
    """The content of those of these (account, command) that had an answer before. The wallets are locked."""
    columns = tables.command.c
    wanted = unnest("wanted", account_id=Text(), command_id=Text())
    key = tuple_(columns.account_id, columns.command_id)
    statement = select(columns.account_id, columns.command_id, columns.content).where(
        key.in_(select(wanted.c.account_id, wanted.c.command_id))
    )
    ordered = sorted(set(commands))
    parameters = {
        "wanted_account_id": [account_id for account_id, _ in ordered],
        "wanted_command_id": [command_id for _, command_id in ordered],
    }
    rows = (await work.execute(statement, parameters)).all()
    return {(row.account_id, row.command_id): row.content for row in rows}


async def append_commands(work: Work, rows: Sequence[Mapping[str, Any]]) -> None:
    """The log of commands: who, when, what, and what became of it."""
    await work.execute(insert(tables.command), list(rows))


async def accounts_waiting(work: Work, account_ids: Iterable[str]) -> set[str]:
    """Which of these accounts have an earlier command that waits for them, in quarantine or not."""
    parked = work.tables.parked.c
    account_id = parked.about["account_id"].astext
    statement = select(account_id).where(
        parked.state.in_(["waiting", "quarantined", "replaying"]),
        parked.reason.in_(_FOR_AN_ACCOUNT),
        account_id == func.any(bindparam("ids", type_=_NAMES)),
    )
    return set((await work.execute(statement, {"ids": sorted(set(account_ids))})).scalars())


async def waiting_to_run(work: Work, waiting_since: datetime) -> list[int]:
    """The oldest parked commands whose account is known by now, or that have waited for it since before an instant."""
    parked = work.tables.parked.c
    known = select(literal(1)).where(
        _wallet.account_id == parked.about["account_id"].astext, _wallet.registry_version > 0
    )
    too_long = and_(parked.state == "waiting", parked.parked_at < waiting_since)
    statement = (
        select(parked.id)
        .where(
            parked.state.in_(["waiting", "quarantined"]),
            parked.reason.in_(_FOR_AN_ACCOUNT),
            or_(known.exists(), too_long),
        )
        .order_by(parked.id)
        .limit(parking.REPLAY_RECORDS_MAX)
    )
    return list((await work.execute(statement)).scalars())


# ---- closing -------------------------------------------------------------------------------------------------------


async def append_covered(work: Work, rows: Sequence[Mapping[str, Any]]) -> None:
    """What usage covers, to be answered."""
    await work.execute(upsert(tables.covered).on_conflict_do_nothing(), list(rows))


async def unanswered(work: Work) -> Sequence[Row[Any]]:
    """What usage covers and this room has not answered yet."""
    columns = tables.covered.c
    statement = (
        select(tables.covered).where(columns.answered_at.is_(None)).order_by(columns.cutoff_id, columns.group_id)
    )
    return (await work.execute(statement)).all()


async def answered(work: Work, cutoff_id: UUID, group_id: str) -> None:
    """Mark one as answered."""
    columns = tables.covered.c
    statement = update(tables.covered).where(columns.cutoff_id == cutoff_id, columns.group_id == group_id)
    await work.execute(statement.values(answered_at=work.now))


async def received_and_posted(
    work: Work, charges: str, postings: str
) -> tuple[dict[tuple[str, str, int], int], list[tuple[str, str, int, int]]]:
    """In one snapshot: received_to per link of the charges, and (link, topic, partition, last_seq) of the postings."""
    into, out = work.tables.link_in.c, work.tables.link_out.c
    received = select(literal("in"), into.link, into.topic, into.partition, into.received_to)
    posted = select(literal("out"), out.link, out.topic, out.partition, out.last_seq)
    statement = received.where(into.topic == charges).union_all(posted.where(out.topic == postings))
    rows = [tuple(row) for row in (await work.execute(statement)).all()]
    return (
        {(link, topic, part): seq for way, link, topic, part, seq in rows if way == "in"},
        sorted((link, topic, part, seq) for way, link, topic, part, seq in rows if way == "out"),
    )


UNDER_WALLET_LOCKS = (
    _ADD_TO_WALLETS, _LOCK_WALLETS, _ATTEMPTS_SINCE, _APPEND_ATTEMPTS, _LEVELS, _SAVE_WALLETS, _READ_CALLS, _READ_LAPSED,
    _READ_CALLS_AND_LAPSED, _SAVE_CALLS,
)  # fmt: skip
"""What runs while the wallets of a batch are locked, and calls wait for them."""
