"""SQL of credits and voucher codes: one function, one statement. Credits are locked after wallets, by id."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    DateTime,
    Integer,
    Row,
    Text,
    Uuid,
    and_,
    bindparam,
    column,
    delete,
    func,
    insert,
    literal_column,
    or_,
    select,
    true,
    tuple_,
    union,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.balance import tables
from services.balance.credits import Credit, Part
from services.runtime.database import LOCK_NOT_AVAILABLE, copy_rows, sqlstate, unnest
from services.runtime.lanes import CLOCK_NOW
from services.runtime.work import Work

_credit = tables.credit.c
_voucher = tables.voucher.c
_redemption = tables.redemption.c
_member = tables.membership.c
_funding = tables.funding.c
_wallet = tables.wallet.c
_hold = tables.credit_hold.c
_IN_HAND = [_credit[name] for name in Credit.__slots__ if name in _credit]
_NOW = bindparam("now", type_=DateTime(timezone=True))


def _any_of(column: Any, name: str) -> Any:
    return column == func.any(bindparam(name, type_=ARRAY(column.type)))


def _at(now: Any) -> Any:
    return and_(_member.start_at <= now, or_(_member.end_at.is_(None), _member.end_at > now))


# ---- credits -------------------------------------------------------------------------------------------------------

# Each part by an index that holds only credits of which something is left: what was spent is never looked at again.
_OF_OWNERS = union_all(
    select(_credit.credit_id).where(_any_of(_credit.account_id, "accounts"), _credit.is_left),
    select(_credit.credit_id).where(_credit.account_id.is_(None), _any_of(_credit.group_id, "groups"), _credit.is_left),
    select(func.unnest(bindparam("ids", type_=ARRAY(Uuid)))),
)
# Looked at again once a row is locked: whoever held it may have spent the rest.
_BY_OWNER = select(*_IN_HAND).where(
    _credit.credit_id == func.any(func.array(_OF_OWNERS.scalar_subquery())),
    or_(_credit.is_left, _any_of(_credit.credit_id, "ids")),
)
_BY_OWNER_LOCKED = _BY_OWNER.order_by(_credit.credit_id).with_for_update()
_BY_OWNER_FREE = _BY_OWNER.order_by(_credit.credit_id).with_for_update(skip_locked=True)


async def lock_credits(
    connection: AsyncConnection, account_ids: Iterable[str], group_ids: Iterable[str], credit_ids: Iterable[UUID]
) -> list[Credit]:
    """What is left for these accounts and groups, and these credits whatever is left of them, locked in order of their ids.

    Once in a transaction: what is locked by a second statement would be out of that order.
    """
    parameters = {"accounts": sorted(account_ids), "groups": sorted(group_ids), "ids": sorted(credit_ids)}
    return [Credit(**row._mapping) for row in await connection.execute(_BY_OWNER_LOCKED, parameters)]


HELD_MS_MAX = 100  # a credit is held for some milliseconds by a batch of charges, and several batches may queue for it
_HAVE_PATIENCE = select(func.set_config("lock_timeout", str(HELD_MS_MAX), True))


async def lock_credits_soon(
    connection: AsyncConnection, group_ids: Iterable[str], credit_ids: Iterable[UUID]
) -> tuple[list[Credit], list[Credit]]:
    """As `lock_credits` of groups; beside those that are locked the others, which somebody holds for longer than a moment.

    Who waits is in the queue for the row, so that no charges overtake it for ever. Only when the moment is over, what is free is
    taken without waiting, in whatever order: of one group's credit that is held another group knows nothing. The moment counts
    for the rest of the transaction, too.
    """
    await connection.execute(_HAVE_PATIENCE)
    try:
        async with connection.begin_nested():
            return await lock_credits(connection, (), group_ids, credit_ids), []
    except DBAPIError as error:
        if sqlstate(error) != LOCK_NOT_AVAILABLE:
            raise
    parameters = {"accounts": [], "groups": sorted(group_ids), "ids": sorted(credit_ids)}
    free = {row.credit_id: Credit(**row._mapping) for row in await connection.execute(_BY_OWNER_FREE, parameters)}
    all_there = await look_at_credits(connection, group_ids, credit_ids)
    return list(free.values()), [each for each in all_there if each.credit_id not in free]


async def look_at_credits(
    connection: AsyncConnection, group_ids: Iterable[str], credit_ids: Iterable[UUID]
) -> list[Credit]:
    """As `lock_credits` of groups, without locks: to promise nothing."""
    parameters = {"accounts": [], "groups": sorted(group_ids), "ids": sorted(credit_ids)}
    return [Credit(**row._mapping) for row in await connection.execute(_BY_OWNER, parameters)]


_WHOLE = select(tables.credit).where(_any_of(_credit.credit_id, "ids"))
_WHOLE_LOCKED = _WHOLE.order_by(_credit.credit_id).with_for_update()


async def load_credits(work: Work, credit_ids: Iterable[UUID], *, lock: bool) -> Sequence[Row[Any]]:
    """The whole rows; whose they are never changes."""
    statement = _WHOLE_LOCKED if lock else _WHOLE
    rows: Sequence[Row[Any]] = (await work.execute(statement, {"ids": sorted(set(credit_ids))})).all()
    return rows


_left = unnest("new", credit_id=Uuid(), remaining_nano=BigInteger(), breakage_nano=BigInteger(), held_nano=BigInteger())
_CHANGES = ("remaining_nano", "breakage_nano", "held_nano")
_SAVE = (
    update(tables.credit)
    .where(_credit.credit_id == _left.c.credit_id)
    .values({name: _left.c[name] for name in _CHANGES})
)


async def save_credits(connection: AsyncConnection, credits: Sequence[Credit]) -> None:
    """What locked credits have left, and what calls hold of them."""
    await connection.execute(
        _SAVE,
        {f"new_{name}": [getattr(credit, name) for credit in credits] for name in ("credit_id", *_CHANGES)},
    )


async def append_credits(work: Work, rows: Sequence[Mapping[str, Any]]) -> None:
    """New credits of accounts whose wallets are locked."""
    await work.execute(insert(tables.credit), list(rows))


async def approve_credits(work: Work, credit_ids: Iterable[UUID], approved: Mapping[UUID, str]) -> None:
    """Proposed credits, locked, that are valid from now on, each with who approved it."""
    new = unnest("new", credit_id=Uuid(), approved_by=Text())
    statement = (
        update(tables.credit)
        .where(_credit.credit_id == new.c.credit_id)
        .values(valid_from=_NOW, remaining_nano=_credit.granted_nano, approved_by=new.c.approved_by)
    )
    ids = sorted(credit_ids)
    await work.execute(
        statement, {"now": work.now, "new_credit_id": ids, "new_approved_by": [approved[each] for each in ids]}
    )


_EXPIRE = (
    update(tables.credit)
    .where(_any_of(_credit.credit_id, "ids"))
    .values(remaining_nano=0, breakage_nano=_credit.breakage_nano + _credit.remaining_nano, expired_at=_NOW)
)


async def expire_credits(work: Work, credit_ids: Iterable[UUID]) -> None:
    """What is left of locked credits is breakage."""
    await work.execute(_EXPIRE, {"now": work.now, "ids": sorted(credit_ids)})


# ---- what they paid ------------------------------------------------------------------------------------------------

_PARTS = (
    select(tables.funding)
    .where(or_(_any_of(_funding.charge_id, "paid"), _any_of(_funding.reverses, "reversed")))
    .order_by(_funding.charge_id, _funding.place)
)


async def parts_of(work: Work, paid: Iterable[str], reversed: Iterable[str]) -> dict[str, list[Part]]:
    """What credits paid of some charges, and got back by the reversals of some. The wallets of their accounts are locked."""
    parameters = {"paid": [UUID(each) for each in paid], "reversed": [UUID(each) for each in reversed]}
    found: dict[str, list[Part]] = {}
    for row in await work.execute(_PARTS, parameters):
        reverses = None if row.reverses is None else str(row.reverses)
        found.setdefault(str(row.charge_id), []).append(
            Part(str(row.charge_id), row.place, row.credit_id, row.nano, row.charge_nano, reverses)
        )
    return found


async def append_parts(work: Work, parts: Iterable[Part]) -> None:
    """What credits paid of the charges of this transaction."""
    rows = [
        (
            UUID(part.charge_id), part.place, part.credit_id, part.nano, part.charge_nano,
            None if part.reverses is None else UUID(part.reverses),
        )
        for part in parts
    ]  # fmt: skip
    await copy_rows(work.connection, tables.funding, Part._fields, rows)


# ---- what calls hold of them ---------------------------------------------------------------------------------------


class Share(NamedTuple):
    """What a call holds of a shared credit."""

    account_id: str
    call_leg_id: str
    credit_id: UUID
    nano: int


_SHARES = select(*[_hold[name] for name in Share._fields]).where(_any_of(_hold.account_id, "ids"))


async def shares_of(connection: AsyncConnection, account_ids: Iterable[str]) -> list[Share]:
    """What calls of these accounts hold of shared credits. Their wallets are locked, without which none of it is changed."""
    return [Share._make(row) for row in await connection.execute(_SHARES, {"ids": sorted(account_ids)})]


_calls = unnest("wanted", account_id=Text(), call_leg_id=Text())
_SHARES_OF_CALLS = select(*[_hold[name] for name in Share._fields]).join_from(
    tables.credit_hold,
    _calls,
    and_(_hold.account_id == _calls.c.account_id, _hold.call_leg_id == _calls.c.call_leg_id),
)


async def shares_of_calls(connection: AsyncConnection, keys: Iterable[tuple[str, str]]) -> list[Share]:
    """The same of calls by (account, call leg)."""
    ordered = sorted(set(keys))
    parameters = {
        "wanted_account_id": [account_id for account_id, _ in ordered],
        "wanted_call_leg_id": [call_leg_id for _, call_leg_id in ordered],
    }
    return [Share._make(row) for row in await connection.execute(_SHARES_OF_CALLS, parameters)]


_shares = unnest("new", account_id=Text(), call_leg_id=Text(), credit_id=Uuid(), nano=BigInteger())
_held = upsert(tables.credit_hold).from_select(
    Share._fields, select(*[_shares.c[name] for name in Share._fields]).where(_shares.c.nano > 0)
)
_key = ("account_id", "call_leg_id", "credit_id")
_no_more = (
    delete(tables.credit_hold)
    .where(
        tuple_(*[_hold[name] for name in _key]).in_(
            select(*[_shares.c[name] for name in _key]).where(_shares.c.nano == 0)
        )
    )
    .cte("no_more")
)
_SAVE_SHARES = _held.on_conflict_do_update(index_elements=list(_key), set_={"nano": _held.excluded.nano}).add_cte(
    _no_more
)


async def save_shares(connection: AsyncConnection, shares: Sequence[Share]) -> None:
    """What calls hold of locked credits from now on; 0: nothing. The wallets of their accounts are locked."""
    columns = zip(*shares, strict=True)
    parameters = {f"new_{name}": list(column) for name, column in zip(Share._fields, columns, strict=True)}
    await connection.execute(_SAVE_SHARES, parameters)


# ---- payer groups --------------------------------------------------------------------------------------------------

SHARED = (
    select(
        func.coalesce(func.sum(_credit.remaining_nano), 0).cast(BigInteger).label("shared_credit_nano"),
        func.coalesce(func.sum(_credit.held_nano), 0).cast(BigInteger).label("shared_held_nano"),
        func.max(_member.group_id).label("shared_group_id"),
    )
    .select_from(tables.membership.join(tables.credit, _credit.group_id == _member.group_id))
    .where(
        _member.account_id == _wallet.account_id,
        _at(CLOCK_NOW),
        _credit.account_id.is_(None),
        _credit.is_left,
    )
    .correlate(tables.wallet)
    .lateral("shared")
)
"""What is left of the credits that the present group of a wallet's account shares, what calls of whomever hold of it, and the
group, where something is left: one row beside each wallet, joined on true."""

_SHARED_WITH = (
    select(_wallet.account_id, *SHARED.c)
    .join_from(tables.wallet, SHARED, true())
    .where(_any_of(_wallet.account_id, "ids"))
)


async def shared_with(work: Work, account_ids: Iterable[str]) -> Sequence[Row[Any]]:
    """What the present groups of these accounts share, as `SHARED`."""
    rows: Sequence[Row[Any]] = (await work.execute(_SHARED_WITH, {"ids": sorted(set(account_ids))})).all()
    return rows


_HAD_A_SHARE = (
    select(_member.account_id)
    .distinct()
    .join_from(tables.membership, tables.credit, _credit.group_id == _member.group_id)
    .where(
        _any_of(_member.account_id, "ids"),
        _member.end_at <= CLOCK_NOW,
        _credit.account_id.is_(None),
        _credit.is_left,
        _credit.valid_from < _member.end_at,
    )
)


async def had_a_share(work: Work, account_ids: Iterable[str]) -> set[str]:
    """Which of these accounts shared a credit, of which something is left, in a group that they have left since."""
    return set((await work.execute(_HAD_A_SHARE, {"ids": sorted(set(account_ids))})).scalars())


_asked = (
    func.unnest(bindparam("groups", type_=ARRAY(Text)))
    .table_valued(column("group_id", Text), name="asked")
    .render_derived(name="asked")
)
# Of a group whose last credit was spent there is a row as well: it is concerned by that.
_left_of_group = (
    select(
        func.coalesce(func.sum(_credit.remaining_nano), 0).label("nano"),
        func.coalesce(func.sum(_credit.held_nano), 0).label("held_nano"),
    )
    .where(_credit.group_id == _asked.c.group_id, _credit.account_id.is_(None), _credit.is_left)
    .lateral("left_of_group")
)
_shared = (
    select(_asked.c.group_id, _left_of_group.c.nano, _left_of_group.c.held_nano)
    .join_from(_asked, _left_of_group, true())
    .subquery("shared")
)
_FUNDS = _shared.c.nano + sum(
    (_wallet[name] for name in ("credit_nano", "credit_limit_nano", "unbilled_nano", "receivable_nano")),
    start=_wallet.wallet_nano - _wallet.on_its_way_nano,
)
_AVAILABLE = _FUNDS - _wallet.held_nano - _shared.c.held_nano
_IS_WARNED = or_(_wallet.level_next_nano >= _AVAILABLE, _wallet.level_told_nano < _AVAILABLE)
_SHARING = (
    select(_shared.c.group_id)
    .distinct()
    .join_from(_shared, tables.membership, and_(_member.group_id == _shared.c.group_id, _at(CLOCK_NOW)))
    .join(tables.wallet, _wallet.account_id == _member.account_id)
)
_CONCERNED = _SHARING.where(or_((_FUNDS <= 0) != _wallet.suspended_funds, _IS_WARNED))
# What the index of those who want to be told is made by, for the planner: of a large group mostly nobody does.
_HAS_LEVELS = or_(_wallet.level_next_nano.is_not(None), _wallet.level_told_nano.is_not(None))
_WARNED = _SHARING.where(_HAS_LEVELS, _IS_WARNED)


async def concerned(connection: AsyncConnection, group_ids: Iterable[str]) -> set[str]:
    """Which of these groups have an account that what is left of their shared credits suspends, restores or warns.

    Read without the wallets' locks: who moves one looks at it itself, and whom both overlook is found by `sharing`.
    """
    return set((await connection.execute(_CONCERNED, {"groups": sorted(group_ids)})).scalars())


_SHARING_GROUPS = select(_credit.group_id).distinct().where(_credit.account_id.is_(None), _credit.is_left)


async def sharing(work: Work) -> set[str]:
    """The groups that share something, of which something is left."""
    return set((await work.execute(_SHARING_GROUPS)).scalars())


async def warned(connection: AsyncConnection, group_ids: Iterable[str]) -> set[str]:
    """Which of these groups have an account to be told of a low balance, or no more, by what calls hold of what they share.

    Funds are the same whatever calls hold: nobody is suspended or restored. Read without the wallets' locks, as `concerned`.
    """
    return set((await connection.execute(_WARNED, {"groups": sorted(group_ids)})).scalars())


_GROUPS = select(tables.membership).where(_any_of(_member.account_id, "ids"), _at(_NOW))


class Group(NamedTuple):
    """The payer group of an account now; ``scoped``: to that account alone."""

    group_id: str
    scoped: bool


async def groups_now(work: Work, account_ids: Iterable[str]) -> dict[str, Group]:
    """The present payer groups of these accounts; a trial has none."""
    rows = await work.execute(_GROUPS, {"ids": sorted(set(account_ids)), "now": work.now})
    return {row.account_id: Group(row.group_id, row.scoped) for row in rows}


_MEMBERS = (
    select(_member.account_id)
    .where(_member.group_id == bindparam("group_id"), _member.account_id > bindparam("after"), _at(_NOW))
    .order_by(_member.account_id)
    .limit(bindparam("most", type_=Integer()))
)


async def members(work: Work, group_id: str, after: str, most: int) -> list[str]:
    """The next accounts of a group, in order of their ids."""
    parameters = {"group_id": group_id, "after": after, "most": most, "now": work.now}
    return list((await work.execute(_MEMBERS, parameters)).scalars())


# ---- codes ---------------------------------------------------------------------------------------------------------

_VOUCHERS = (
    select(tables.voucher).where(_any_of(_voucher.digest, "digests")).order_by(_voucher.voucher_id).with_for_update()
)


async def lock_vouchers(work: Work, digests: Iterable[bytes]) -> Sequence[Row[Any]]:
    """Vouchers by the digests of their codes, locked in order of their ids, after wallets."""
    rows: Sequence[Row[Any]] = (await work.execute(_VOUCHERS, {"digests": sorted(set(digests))})).all()
    return rows


_REDEEMED_BY = select(_redemption.voucher_id, _redemption.beneficiary).where(
    _any_of(_redemption.voucher_id, "ids"), _any_of(_redemption.beneficiary, "names")
)


async def redeemed_by(work: Work, voucher_ids: Iterable[UUID], beneficiaries: Iterable[str]) -> set[tuple[UUID, str]]:
    """(voucher, beneficiary) of every redemption of these vouchers, which are locked, by these beneficiaries."""
    rows = await work.execute(_REDEEMED_BY, {"ids": sorted(voucher_ids), "names": sorted(beneficiaries)})
    return {(row.voucher_id, row.beneficiary) for row in rows}


async def append_redemptions(work: Work, rows: Sequence[Mapping[str, Any]]) -> None:
    """Redemptions of locked vouchers; a second one for the same beneficiary is refused by its key."""
    await work.execute(insert(tables.redemption), list(rows))


_times = unnest("new", voucher_id=Uuid(), times=Integer())
_COUNT = (
    update(tables.voucher)
    .where(_voucher.voucher_id == _times.c.voucher_id)
    .values(redeemed=_voucher.redeemed + _times.c.times)
)


async def count_redemptions(work: Work, times: Mapping[UUID, int]) -> None:
    """So many more redemptions of locked vouchers; the database refuses more than each may have."""
    ids = sorted(times)
    await work.execute(_COUNT, {"new_voucher_id": ids, "new_times": [times[each] for each in ids]})


async def append_vouchers(connection: AsyncConnection, rows: Sequence[Mapping[str, Any]]) -> None:
    """New vouchers."""
    await connection.execute(insert(tables.voucher), list(rows))


async def voucher(connection: AsyncConnection, voucher_id: UUID) -> Any | None:
    """One voucher, locked."""
    statement = select(tables.voucher).where(_voucher.voucher_id == voucher_id).with_for_update()
    return (await connection.execute(statement)).first()


async def approve_voucher(connection: AsyncConnection, voucher_id: UUID, actor: str) -> None:
    """From now on it can be redeemed."""
    statement = update(tables.voucher).where(_voucher.voucher_id == voucher_id)
    await connection.execute(statement.values(approved_by=actor, approved_at=CLOCK_NOW))


async def clock_now(connection: AsyncConnection) -> datetime:
    """The one clock's instant."""
    now: datetime = (await connection.execute(select(CLOCK_NOW))).scalar_one()
    return now


# ---- the hot path --------------------------------------------------------------------------------------------------

_pairs = unnest("paid", account_id=Text(), group_id=Text(), taken_back=Integer())
_OF_ACCOUNT = _credit.account_id == _pairs.c.account_id
_OF_GROUP = and_(_credit.group_id == _pairs.c.group_id, _credit.account_id.is_(None))
_owners = union(
    *[
        select(_pairs.c.account_id).join_from(_pairs, tables.credit, and_(whose, _credit.is_left))
        for whose in (_OF_ACCOUNT, _OF_GROUP)
    ],
    # One is enough, whatever is left of it: where something is taken back, those that were spent may have paid for it.
    *[
        select(_pairs.c.account_id)
        .join_from(_pairs, select(_credit.credit_id).where(whose).limit(literal_column("1")).lateral(), true())
        .where(_pairs.c.taken_back > 0)
        for whose in (_OF_ACCOUNT, _OF_GROUP)
    ],
).subquery("credited")
CREDITED = select(func.array_agg(_owners.c.account_id)).scalar_subquery().label("credited")
"""The accounts of a batch that credits may pay for, or that one may have paid for where a charge of theirs or of their group is
taken back or replaced: null for none."""


def credited_parameters(pairs: Mapping[tuple[str, str | None], bool]) -> dict[str, list[Any]]:
    """The parameters of `CREDITED`: (account, group) of charges, and whether one of the account or group is taken back or replaced."""
    keys = list(pairs)
    return {
        "paid_account_id": [account_id for account_id, _ in keys],
        "paid_group_id": [group_id for _, group_id in keys],
        "paid_taken_back": [int(pairs[key]) for key in keys],
    }
