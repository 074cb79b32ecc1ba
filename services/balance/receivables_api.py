"""What people and the auditor read of what payer groups owe, and the one term that is set: with the room's own role."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple
from uuid import UUID

from sqlalchemy import DateTime, Text, case, func, literal, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from services.balance import ledger, receivables_store, tables
from services.balance.api import CarriedOut
from services.balance.debts import OVERDUE, Receivable
from services.balance.overdue import SUSPEND_AFTER_DAYS_MAX
from services.balance.transfers import payment_id_of
from services.kernel.errors import InvalidInput
from services.kernel.money import format_nano
from services.runtime.database import transaction
from services.runtime.lanes import CLOCK_NOW
from services.runtime.tables import runtime_tables

_owed = tables.receivable.c
_share = tables.receivable_share.c
_applied = tables.application.c
_entry = tables.ledger_entry.c


@dataclass(frozen=True)
class GroupDebt:
    """What a payer group owes and has paid too much; decimal strings."""

    group_id: str
    currency: str
    invoices: int
    open: str
    unapplied: str
    suspends: bool


async def group_debts(engine: AsyncEngine, group_id: str | None = None) -> list[GroupDebt]:
    """Payer groups with open invoices or unapplied money, by id; or this one, if it is known."""
    open_nano = _owed.due_nano - _owed.paid_nano - _owed.written_off_nano - _owed.credited_nano
    query = (
        select(
            tables.payer,
            func.count(_owed.invoice_id).label("invoices"),
            func.coalesce(func.sum(open_nano), 0).label("open_nano"),
        )
        .outerjoin_from(tables.payer, tables.receivable, (_owed.group_id == tables.payer.c.group_id) & (open_nano != 0))
        .group_by(tables.payer.c.group_id)
        .order_by(tables.payer.c.group_id)
    )
    if group_id is not None:
        query = query.where(tables.payer.c.group_id == group_id)
    else:
        query = query.having((func.count(_owed.invoice_id) > 0) | (tables.payer.c.unapplied_nano > 0))
    async with transaction(engine) as connection:
        rows = (await connection.execute(query)).all()
    return [
        GroupDebt(
            row.group_id, row.currency, row.invoices, format_nano(int(row.open_nano)),
            format_nano(int(row.unapplied_nano)), row.suspends,
        )
        for row in rows
    ]  # fmt: skip


async def command_done(engine: AsyncEngine, group_id: str, command_id: str) -> CarriedOut | None:
    """What became of a command to a group, if it was one."""
    columns = tables.group_command.c
    query = select(columns.content, columns.accepted)
    query = query.where(columns.group_id == group_id, columns.command_id == command_id)
    async with transaction(engine) as connection:
        row = (await connection.execute(query)).one_or_none()
    return None if row is None else CarriedOut(row.content, row.accepted)


# ---- terms ---------------------------------------------------------------------------------------------------------


async def suspend_after_days(engine: AsyncEngine) -> int:
    """After how many days of being overdue an invoice suspends its group's invoiced accounts."""
    async with transaction(engine) as connection:
        return await receivables_store.suspend_after_days(connection)


async def set_suspend_after_days(engine: AsyncEngine, days: int) -> None:
    """Set it; what is overdue by now is judged again at once. Who is suspended stays so until no invoice is overdue."""
    if not 0 <= days <= SUSPEND_AFTER_DAYS_MAX:
        raise InvalidInput(f"must be between 0 and {SUSPEND_AFTER_DAYS_MAX}", field="days")
    due = runtime_tables("balance").due
    owing = select(literal(OVERDUE, Text()), _owed.group_id, CLOCK_NOW.cast(DateTime(timezone=True))).where(
        _owed.due_nano != _owed.paid_nano + _owed.written_off_nano + _owed.credited_nano
    )
    statement = insert(due).from_select(["kind", "key", "due_at"], owing.distinct())
    async with transaction(engine) as connection:
        await receivables_store.save_suspend_after_days(connection, days)
        await connection.execute(
            statement.on_conflict_do_update(
                index_elements=["kind", "key"], set_={"due_at": statement.excluded.due_at, "failures": 0}
            )
        )


# ---- the auditor ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReceivableTotals:
    """What is known of an invoice, each figure from a source of its own; nanos, what is owed above zero."""

    invoice_id: UUID
    group_id: str
    number: str
    period: str
    due_on: datetime
    state: str
    due_nano: int
    paid_nano: int
    written_off_nano: int
    credited_nano: int
    shares_nano: int
    closing_nano: int
    applied_nano: int
    applied_as_written_off_nano: int
    applied_by_credit_notes_nano: int
    applied_from_balance_nano: int
    from_wallets_nano: int
    applied: Mapping[int, tuple[str, int]]
    """By version where from, and how much."""


class About(NamedTuple):
    """What a payment is besides its amount: as it is recorded, and as its transaction says."""

    currency: str
    actor: str | None
    at: datetime
    group_id: str | None
    account_id: str | None


class RecordedPayment(NamedTuple):
    """One that is recorded: what of it was applied to invoices, and which way it came or went: from a bank to a group, by
    card through a wallet to a group, or from a bank into a wallet; whether its id follows from its bank and reference."""

    amount_nano: int
    applied_nano: int
    through: Literal["bank", "card", "wallet"]
    is_named_so: bool
    about: About


@dataclass(frozen=True)
class ReceivableAudit:
    """Everything that must agree; see `verify`."""

    invoices: tuple[ReceivableTotals, ...]
    payments: dict[str, RecordedPayment]
    posted: dict[str, dict[str, int]]
    """Per recorded payment the sums of its transaction per kind of ledger account."""
    posted_about: dict[str, About]
    """Per recorded payment what its transaction and the ledger accounts of its entries say."""
    unapplied: dict[str, tuple[int, int]]
    """Per group what it keeps, and the sum of its entries."""
    accounts: dict[str, tuple[int, int]]
    """Per account its receivable, and the sum of its shares of open invoices."""
    wallets: dict[tuple[str, str], tuple[int, int]]
    """Per invoice and account what its wallet paid of it less what it got back, and what its entries say that it paid."""
    unknown: frozenset[str]
    """Invoices of which a close posted a receivable, or of which there is a share or a payment, and that are not there."""


async def audit(engine: AsyncEngine) -> ReceivableAudit:
    """Read what must agree, in one snapshot."""
    kind = func.split_part(_entry.ledger, ":", 1)
    async with transaction(engine.execution_options(isolation_level="REPEATABLE READ")) as connection:

        async def sums(query: Any) -> dict[Any, int]:
            return {row[0]: int(row[1]) for row in (await connection.execute(query)).all()}

        owed = (await connection.execute(select(tables.receivable).order_by(_owed.number, _owed.invoice_id))).all()
        shares = await sums(select(_share.invoice_id, func.sum(_share.open_nano)).group_by(_share.invoice_id))
        of_account = await sums(select(_share.account_id, func.sum(_share.open_nano)).group_by(_share.account_id))
        applied = await sums(select(_applied.invoice_id, func.sum(_applied.nano)).group_by(_applied.invoice_id))
        steps: dict[UUID, dict[int, tuple[str, int]]] = defaultdict(dict)
        for row in (await connection.execute(select(tables.application))).all():
            if row.source != "write_off" or row.nano > 0:  # what a credit note makes no loss any more is told by it
                steps[row.invoice_id][row.version] = row.source, int(row.nano)
        given_up = case((_applied.source == "write_off", _applied.nano), else_=0)
        written_off = await sums(select(_applied.invoice_id, func.sum(given_up)).group_by(_applied.invoice_id))
        credited = case((_applied.source == "credit_note", _applied.nano), else_=0)
        by_notes = await sums(select(_applied.invoice_id, func.sum(credited)).group_by(_applied.invoice_id))
        from_balance = case((_applied.source == "balance", _applied.nano), else_=0)
        by_balance = await sums(select(_applied.invoice_id, func.sum(from_balance)).group_by(_applied.invoice_id))
        of_invoice = func.split_part(_entry.ref, ":", 1)
        by_wallet = select(of_invoice, _entry.account_id, -func.sum(_entry.nano)).where(
            _entry.kind == "balance_used", kind == ledger.WALLET
        )
        used = {
            (row[0], row[1]): int(row[2])
            for row in await connection.execute(by_wallet.group_by(of_invoice, _entry.account_id))
        }
        from_wallets: dict[str, int] = defaultdict(int)
        for (invoice_id, _), nano in used.items():
            from_wallets[invoice_id] += nano
        kept_of = {
            (str(row.invoice_id), row.account_id): row.from_wallet_nano
            for row in await connection.execute(select(tables.receivable_share))
        }
        of_payment = await sums(
            select(_applied.payment_id, func.sum(_applied.nano))
            .where(_applied.payment_id.is_not(None))
            .group_by(_applied.payment_id)
        )
        closings = await sums(
            select(_entry.ref, -func.sum(_entry.nano))
            .where(_entry.kind == "closing", kind == ledger.RECEIVABLE)
            .group_by(_entry.ref)
        )
        payments = (await connection.execute(select(tables.group_payment))).all()
        kept = await sums(
            select(func.split_part(_entry.ledger, ":", 2), func.sum(_entry.nano))
            .where(kind == "unapplied")
            .group_by(_entry.ledger)
        )
        unapplied = await sums(select(tables.payer.c.group_id, tables.payer.c.unapplied_nano))
        wallet = tables.wallet.c
        receivables = await sums(select(wallet.account_id, -wallet.receivable_nano))
        posted: dict[str, dict[str, int]] = defaultdict(dict)
        posted_about: dict[str, About] = {}
        of_payments = select(tables.ledger_entry).where(_entry.kind.in_(["invoice_paid", "transfer"]))
        for row in (await connection.execute(of_payments)).all():
            ledger_kind, _, of = row.ledger.partition(":")
            posted[row.ref][ledger_kind] = posted[row.ref].get(ledger_kind, 0) + row.nano
            about = posted_about.setdefault(row.ref, About(row.currency, row.actor, row.at, None, None))
            if ledger_kind == ledger.WALLET:
                posted_about[row.ref] = about._replace(account_id=row.account_id)
            elif ledger_kind in ("receivable", "unapplied"):
                posted_about[row.ref] = about._replace(group_id=of)
    return ReceivableAudit(
        invoices=tuple(
            ReceivableTotals(
                row.invoice_id, row.group_id, row.number, row.period, row.due_on, Receivable.of(row, ()).state,
                int(row.due_nano), int(row.paid_nano), int(row.written_off_nano), int(row.credited_nano),
                shares.get(row.invoice_id, 0), closings.get(str(row.invoice_id), 0), applied.get(row.invoice_id, 0),
                written_off.get(row.invoice_id, 0), by_notes.get(row.invoice_id, 0), by_balance.get(row.invoice_id, 0),
                from_wallets.get(str(row.invoice_id), 0), steps.get(row.invoice_id, {}),
            )
            for row in owed
        ),
        payments={
            str(row.payment_id): RecordedPayment(
                row.amount_nano,
                of_payment.get(row.payment_id, 0),
                through := "wallet" if row.group_id is None else "bank" if row.account_id is None else "card",
                row.reference == str(row.payment_id)
                if through == "card"
                else row.payment_id == payment_id_of(row.bank, row.reference),
                About(row.currency, row.actor, row.received_at, row.group_id, row.account_id),
            )
            for row in payments
        },
        posted=dict(posted),
        posted_about=posted_about,
        unapplied={
            group_id: (unapplied.get(group_id, 0), kept.get(group_id, 0)) for group_id in unapplied.keys() | kept.keys()
        },
        accounts={
            account_id: (receivables.get(account_id, 0), of_account.get(account_id, 0))
            for account_id in receivables.keys() | of_account.keys()
        },
        wallets={each: (kept_of.get(each, 0), used.get(each, 0)) for each in kept_of.keys() | used.keys()},
        unknown=frozenset(closings.keys() | {str(each) for each in shares.keys() | applied.keys()})
        - {str(row.invoice_id) for row in owed},
    )  # fmt: skip
