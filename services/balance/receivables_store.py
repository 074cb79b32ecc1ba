"""SQL of what payer groups owe and nothing else: one function, one statement.

A group's row is locked before wallets; rows of its invoices hold while it is. Amounts as people say them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Row,
    Text,
    and_,
    bindparam,
    cast,
    delete,
    func,
    insert,
    literal,
    literal_column,
    or_,
    select,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.balance import tables
from services.runtime import parking
from services.runtime.database import unnest
from services.runtime.work import Work

WAITING = ("waiting", "unknown_group", "unknown_invoice")  # why a group's command is parked that others can free

_payer = tables.payer.c
_member = tables.membership.c
_owed = tables.receivable.c
_share = tables.receivable_share.c
_payment = tables.group_payment.c
_IS_OPEN = _owed.paid_nano + _owed.written_off_nano + _owed.credited_nano != _owed.due_nano


def _any_of(column: Any, name: str) -> Any:
    return column == func.any(bindparam(name, type_=ARRAY(column.type)))


def _arrays(name: str, fields: Sequence[str], rows: Iterable[Sequence[Any]]) -> dict[str, list[Any]]:
    columns = list(zip(*rows, strict=True)) or [() for _ in fields]
    return {f"{name}_{field}": list(column) for field, column in zip(fields, columns, strict=True)}


# ---- payer groups --------------------------------------------------------------------------------------------------


class NewPayer(NamedTuple):
    """A payer group as an account's timeline or a closed invoice names it."""

    group_id: str
    organization_id: str
    currency: str
    zone: str


_new_payers = unnest("new", **dict.fromkeys(NewPayer._fields, Text()))
_MAKE_PAYERS = (
    upsert(tables.payer)
    .from_select(NewPayer._fields, select(*[_new_payers.c[name] for name in NewPayer._fields]))
    .on_conflict_do_nothing()
)


async def make_payers(work: Work, payers: Iterable[NewPayer]) -> None:
    """Rows of groups that are met for the first time; those that exist stay as they are."""
    await work.execute(_MAKE_PAYERS, _arrays("new", NewPayer._fields, sorted(payers)))


_PAYERS = select(tables.payer).where(_any_of(_payer.group_id, "ids")).order_by(_payer.group_id)
_LOCK_PAYERS = _PAYERS.with_for_update()
_HOLD_PAYERS = _PAYERS.with_for_update(read=True)


async def lock_payers(work: Work, group_ids: Iterable[str]) -> Sequence[Row[Any]]:
    """The rows of these groups, locked in order of their ids; unknown ones are left out."""
    return (await work.execute(_LOCK_PAYERS, {"ids": sorted(set(group_ids))})).all()


async def hold_payers(work: Work, group_ids: Iterable[str]) -> None:
    """Keep these groups as they are, for who reads them under wallets; shared."""
    await work.execute(_HOLD_PAYERS, {"ids": sorted(set(group_ids))})


_known = unnest("new", group_id=Text(), event_version=BigInteger(), unapplied_nano=tables.Total, suspends=Boolean())
_SAVE_PAYERS = (
    update(tables.payer)
    .where(_payer.group_id == _known.c.group_id)
    .values(
        event_version=_known.c.event_version,
        unapplied_nano=_known.c.unapplied_nano,
        suspends=_known.c.suspends,
    )
)


async def save_payers(work: Work, rows: Sequence[tuple[str, int, int, bool]]) -> None:
    """(group, event version, unapplied, whether it suspends) of locked groups."""
    fields = ("group_id", "event_version", "unapplied_nano", "suspends")
    await work.execute(_SAVE_PAYERS, _arrays("new", fields, rows))


# ---- whose accounts ------------------------------------------------------------------------------------------------


def _at(now: datetime) -> Any:
    return and_(_member.start_at <= now, or_(_member.end_at.is_(None), _member.end_at > now))


async def members(work: Work, group_ids: Iterable[str], now: datetime) -> list[tuple[str, str]]:
    """(account, group) of every account that one of these groups pays for at an instant."""
    statement = select(_member.account_id, _member.group_id).where(_any_of(_member.group_id, "ids"), _at(now))
    rows = (await work.execute(statement, {"ids": sorted(set(group_ids))})).all()
    return [(row.account_id, row.group_id) for row in rows]


async def groups_of(work: Work, account_ids: Iterable[str]) -> set[str]:
    """Every group that pays for one of these accounts at any time."""
    statement = select(_member.group_id).where(_any_of(_member.account_id, "ids")).distinct()
    return set((await work.execute(statement, {"ids": sorted(set(account_ids))})).scalars())


async def suspending(work: Work, account_ids: Iterable[str], now: datetime) -> set[str]:
    """Which of these accounts belong to a group that suspends its invoiced accounts. Wallets and groups are locked."""
    statement = (
        select(_member.account_id)
        .join(tables.payer, _payer.group_id == _member.group_id)
        .where(_any_of(_member.account_id, "ids"), _at(now), _payer.suspends)
    )
    return set((await work.execute(statement, {"ids": sorted(set(account_ids))})).scalars())


async def next_moves(work: Work, account_ids: Iterable[str], now: datetime) -> dict[str, datetime]:
    """When the payer group of each of these accounts changes next, of those of which it is known."""
    statement = (
        select(_member.account_id, func.min(_member.start_at).label("at"))
        .where(_any_of(_member.account_id, "ids"), _member.start_at > now)
        .group_by(_member.account_id)
    )
    rows = (await work.execute(statement, {"ids": sorted(set(account_ids))})).all()
    return {row.account_id: row.at for row in rows}


async def forget_memberships(work: Work, account_ids: Iterable[str]) -> None:
    """Delete what was told of these accounts; their wallets are locked."""
    statement = delete(tables.membership).where(_any_of(_member.account_id, "ids"))
    await work.execute(statement, {"ids": sorted(set(account_ids))})


async def append_memberships(work: Work, rows: Sequence[tuple[str, datetime, datetime | None, str, bool]]) -> None:
    """(account, start, end, group, whether it takes no other account) of accounts whose wallets are locked."""
    fields = ("account_id", "start_at", "end_at", "group_id", "scoped")
    kinds = {name: tables.membership.c[name].type for name in fields}
    new = unnest("new", **kinds)
    statement = insert(tables.membership).from_select(list(fields), select(*[new.c[name] for name in fields]))
    await work.execute(statement, _arrays("new", fields, rows))


# ---- invoices and shares -------------------------------------------------------------------------------------------


_OF_GROUPS = _any_of(_owed.group_id, "ids")
_OPEN = select(tables.receivable).where(_OF_GROUPS, _IS_OPEN)
# Each part by its index: of the conditions in one, joined by an or, all invoices of the group are looked at.
_OPEN_OR_NAMED = select(tables.receivable).where(
    _owed.invoice_id
    == func.any(
        func.array(
            union_all(
                select(_owed.invoice_id).where(_OF_GROUPS, _IS_OPEN),
                select(_owed.invoice_id).where(_OF_GROUPS, _any_of(_owed.number, "numbers")),
                select(_owed.invoice_id).where(_OF_GROUPS, _any_of(_owed.invoice_id, "invoice_ids")),
            ).scalar_subquery()
        )
    )
)


async def load_receivables(work: Work, group_ids: Iterable[str], references: Iterable[str] = ()) -> Sequence[Row[Any]]:
    """What is open of these groups, and their invoices with these numbers or ids. The groups are locked."""
    parameters: dict[str, Any] = {"ids": sorted(set(group_ids))}
    named = sorted(set(references))
    if not named:
        return (await work.execute(_OPEN, parameters)).all()
    parameters |= {"numbers": named, "invoice_ids": [each for each in map(_invoice_id, named) if each is not None]}
    return (await work.execute(_OPEN_OR_NAMED, parameters)).all()


def _invoice_id(reference: str) -> UUID | None:
    """An id, if it is one as people see it."""
    try:
        invoice_id = UUID(reference)
    except ValueError:
        return None
    return invoice_id if str(invoice_id) == reference else None


async def load_shares(work: Work, invoice_ids: Iterable[UUID]) -> dict[UUID, list[Row[Any]]]:
    """What each account still owes of these invoices, and what its wallet paid. Their groups are locked."""
    statement = select(tables.receivable_share).where(
        _any_of(_share.invoice_id, "ids"), or_(_share.open_nano != 0, _share.from_wallet_nano != 0)
    )
    shares: dict[UUID, list[Row[Any]]] = {}
    for row in (await work.execute(statement, {"ids": sorted(set(invoice_ids))})).all():
        shares.setdefault(row.invoice_id, []).append(row)
    return shares


async def groups_owed(work: Work, account_ids: Iterable[str]) -> set[str]:
    """The groups of which one of these accounts owes something of an invoice."""
    statement = (
        select(_owed.group_id)
        .join(tables.receivable_share, _share.invoice_id == _owed.invoice_id)
        .where(_IS_OPEN, _any_of(_share.account_id, "ids"), _share.open_nano != literal_column("0"))
        .distinct()
    )
    return set((await work.execute(statement, {"ids": sorted(set(account_ids))})).scalars())


async def append_receivables(work: Work, rows: Sequence[Mapping[str, Any]]) -> None:
    """Invoices that were closed; their groups are locked."""
    fields = ("invoice_id", "group_id", "number", "period", "due_on", "due_nano")
    new = unnest("new", **{name: tables.receivable.c[name].type for name in fields})
    statement = insert(tables.receivable).from_select(
        [*fields, "paid_nano", "written_off_nano", "credited_nano", "version", "voided"],
        select(*[new.c[name] for name in fields], *[literal(0)] * 4, literal(False)),
    )
    await work.execute(statement, _arrays("new", fields, [[row[name] for name in fields] for row in rows]))


_SHARE = [column.name for column in tables.receivable_share.columns]
_shares = unnest("new", **{column.name: column.type for column in tables.receivable_share.columns})


async def append_shares(work: Work, rows: Sequence[tuple[UUID, str, int, int]]) -> None:
    """(invoice, account, open, paid by its wallet) of invoices that were closed."""
    statement = insert(tables.receivable_share).from_select(_SHARE, select(*[_shares.c[name] for name in _SHARE]))
    await work.execute(statement, _arrays("new", _SHARE, rows))


_MOVING = (
    "paid_nano", "written_off_nano", "credited_nano", "voided", "version", "overdue_since", "noticed_days",
    "write_off_proposed_by", "write_off_note",
)  # fmt: skip
_moved = unnest("new", **{name: tables.receivable.c[name].type for name in ("invoice_id", *_MOVING)})
_SAVE_RECEIVABLES = (
    update(tables.receivable)
    .where(_owed.invoice_id == _moved.c.invoice_id)
    .values({_owed[name]: _moved.c[name] for name in _MOVING})
)


async def save_receivables(work: Work, rows: Sequence[Mapping[str, Any]]) -> None:
    """What moved of invoices whose groups are locked."""
    fields = ("invoice_id", *_MOVING)
    await work.execute(_SAVE_RECEIVABLES, _arrays("new", fields, [[row[name] for name in fields] for row in rows]))


_SAVE_SHARES = (
    update(tables.receivable_share)
    .where(_share.invoice_id == _shares.c.invoice_id, _share.account_id == _shares.c.account_id)
    .values(open_nano=_shares.c.open_nano, from_wallet_nano=_shares.c.from_wallet_nano)
)


async def save_shares(work: Work, rows: Sequence[tuple[UUID, str, int, int]]) -> None:
    """The same of invoices that were closed before, whose groups are locked."""
    await work.execute(_SAVE_SHARES, _arrays("new", _SHARE, rows))


# ---- payments ------------------------------------------------------------------------------------------------------


async def append_payments(work: Work, rows: Sequence[Mapping[str, Any]]) -> set[tuple[str, str]]:
    """Record payments; returns (bank, reference) of those that were not recorded before.

    Another transaction that records one of them is waited for, in the order of bank and reference.
    """
    fields = [column.name for column in tables.group_payment.columns]
    new = unnest("new", **{column.name: column.type for column in tables.group_payment.columns})
    statement = (
        upsert(tables.group_payment)
        .from_select(fields, select(*[new.c[name] for name in fields]))
        .on_conflict_do_nothing()
        .returning(_payment.bank, _payment.reference)
    )
    ordered = sorted(rows, key=lambda row: (row["bank"], row["reference"]))
    found = await work.execute(statement, _arrays("new", fields, [[row[name] for name in fields] for row in ordered]))
    return {(row.bank, row.reference) for row in found.all()}


async def banks(work: Work) -> list[str]:
    """Everything through which a recorded payment came, by name: a step of the index for each, however many payments."""
    names = select(func.min(_payment.bank).label("bank")).cte("names", recursive=True)
    another = tables.group_payment.alias("another").c
    following = select(select(func.min(another.bank)).where(another.bank > names.c.bank).scalar_subquery())
    names = names.union_all(following.where(names.c.bank.is_not(None)))
    return list((await work.execute(select(names.c.bank).where(names.c.bank.is_not(None)))).scalars())


async def load_payments(work: Work, keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Any]:
    """Payments by (bank, reference)."""
    wanted = unnest("wanted", bank=Text(), reference=Text())
    statement = select(tables.group_payment).where(
        tuple_(_payment.bank, _payment.reference).in_(select(wanted.c.bank, wanted.c.reference))
    )
    rows = (await work.execute(statement, _arrays("wanted", ("bank", "reference"), sorted(set(keys))))).all()
    return {(row.bank, row.reference): row for row in rows}


async def append_card_payments(work: Work, rows: Sequence[Mapping[str, Any]]) -> None:
    """Attempts that were begun for groups; after their rows."""
    await work.execute(insert(tables.card_payment), list(rows))


async def card_payments(work: Work, attempt_ids: Iterable[UUID]) -> Sequence[Row[Any]]:
    """These attempts for groups, with their attempts."""
    attempt, card = tables.attempt.c, tables.card_payment.c
    statement = (
        select(
            tables.card_payment, attempt.account_id, attempt.state, attempt.amount_nano, attempt.currency,
            attempt.processor,
        )
        .join(tables.attempt, attempt.attempt_id == card.attempt_id)
        .where(_any_of(card.attempt_id, "ids"))
        .order_by(card.attempt_id)
    )  # fmt: skip
    return (await work.execute(statement, {"ids": sorted(set(attempt_ids))})).all()


async def end_card_payments(work: Work, attempt_ids: Iterable[UUID]) -> None:
    """These attempts have paid invoices of their groups, which are locked."""
    card = tables.card_payment.c
    statement = update(tables.card_payment).where(_any_of(card.attempt_id, "ids")).values(has_paid=True)
    await work.execute(statement, {"ids": sorted(set(attempt_ids))})


async def groups_in_flight(work: Work, group_ids: Iterable[str]) -> set[str]:
    """Which of these groups have a card payment whose result is missing or has not paid invoices. The groups are locked."""
    attempt, card = tables.attempt.c, tables.card_payment.c
    statement = (
        select(card.group_id)
        .join(tables.attempt, attempt.attempt_id == card.attempt_id)
        .where(_any_of(card.group_id, "ids"), ~card.has_paid, attempt.state.in_(["requested", "unknown", "settled"]))
    )
    return set((await work.execute(statement, {"ids": sorted(set(group_ids))})).scalars())


async def append_applications(work: Work, rows: Sequence[Mapping[str, Any]]) -> None:
    """What was paid, credited or given up of invoices, each by the version that it made."""
    fields = [column.name for column in tables.application.columns]
    new = unnest("new", **{column.name: column.type for column in tables.application.columns})
    statement = insert(tables.application).from_select(fields, select(*[new.c[name] for name in fields]))
    await work.execute(statement, _arrays("new", fields, [[row[name] for name in fields] for row in rows]))


# ---- commands ------------------------------------------------------------------------------------------------------


async def carried_out(work: Work, commands: Iterable[tuple[str, str]]) -> dict[tuple[str, str], bytes]:
    """The content of those of these (group, command) that had an answer before. The groups are locked."""
    columns = tables.group_command.c
    wanted = unnest("wanted", group_id=Text(), command_id=Text())
    statement = select(columns.group_id, columns.command_id, columns.content).where(
        tuple_(columns.group_id, columns.command_id).in_(select(wanted.c.group_id, wanted.c.command_id))
    )
    rows = await work.execute(statement, _arrays("wanted", ("group_id", "command_id"), sorted(set(commands))))
    return {(row.group_id, row.command_id): row.content for row in rows.all()}


async def append_commands(work: Work, rows: Sequence[Mapping[str, Any]]) -> None:
    """The log of commands to groups: who, when, what, and what became of it."""
    await work.execute(insert(tables.group_command), list(rows))


async def waiting_to_run(work: Work, waiting_since: datetime) -> list[int]:
    """The oldest parked commands to groups that can run by now, or that have waited since before an instant."""
    parked = work.tables.parked.c
    invoice = parked.about["invoice"].astext
    can_run = select(literal(1)).where(
        _payer.group_id == parked.about["group_id"].astext,
        or_(
            invoice.is_(None),
            select(literal(1))
            .where(
                _owed.group_id == _payer.group_id,
                or_(_owed.number == invoice, cast(_owed.invoice_id, Text) == invoice),
            )
            .exists(),
        ),
    )
    too_long = and_(parked.state == "waiting", parked.parked_at < waiting_since)
    statement = (
        select(parked.id)
        .where(
            parked.input == "group_commands",
            parked.state.in_(["waiting", "quarantined"]),
            parked.reason.in_(WAITING),
            or_(can_run.exists(), too_long),
        )
        .order_by(parked.id)
        .limit(parking.REPLAY_RECORDS_MAX)
    )
    return list((await work.execute(statement)).scalars())


# ---- terms ---------------------------------------------------------------------------------------------------------


async def suspend_after_days(connection: AsyncConnection) -> int:
    """After how many days of being overdue a group's accounts are suspended."""
    return int((await connection.execute(select(tables.overdue_terms.c.suspend_after_days))).scalar_one())


async def save_suspend_after_days(connection: AsyncConnection, days: int) -> None:
    await connection.execute(update(tables.overdue_terms).values(suspend_after_days=days))
