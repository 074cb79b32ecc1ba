"""What people and the auditor read of balance, with the room's own role. Calls are changed by `Holds` alone."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncGenerator, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, get_args
from uuid import UUID

from pydantic import AwareDatetime, TypeAdapter
from pydantic_core import to_json
from sqlalchemy import ColumnElement, Row, Text, and_, case, cast, func, literal, or_, select, true, tuple_, union_all
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.sql import Select

from contracts.balance import SUSPENSION_REASONS, BalanceEvent
from contracts.cloudevents import Attribute
from contracts.payments import PaymentRequest
from contracts.receivables import GroupEvent
from contracts.topics import USAGE_CHARGES
from services.balance import adopting, calls, effects, ledger, paying, payouts, recharge, sealing, store, tables
from services.balance.adopting import Adopted as Adopted
from services.balance.adopting import UndoneAttempt as UndoneAttempt
from services.balance.adopting import UndoneRefund as UndoneRefund
from services.balance.credit_store import SHARED
from services.balance.drift import Drift
from services.balance.joining import Holds as Holds
from services.balance.payouts import Payout as Payout
from services.balance.results import said_of
from services.balance.spending import Allowed, CallAsked, Refused
from services.balance.statement import Line, Moved, Position, statement_of
from services.balance.telling import tell_again as tell_again
from services.kernel.errors import InvalidInput, NotFound
from services.kernel.money import format_nano
from services.kernel.period import instant_text
from services.runtime import parking
from services.runtime.database import transaction
from services.runtime.lanes import CLOCK_NOW
from services.runtime.parking import ParkedRow
from services.runtime.tables import runtime_tables

ROOM = "balance"
_ledger = tables.ledger_entry.c
_wallet = tables.wallet.c


@dataclass(frozen=True)
class Balance:
    """One account as people see it; amounts are decimal strings, `unbilled` and `receivable` what is owed, `held` what its calls
    in progress may still cost, `held_by_others` what calls of other accounts hold of the credits that its group shares."""

    account_id: str
    organization_id: str
    currency: str
    plan: str | None
    status: str
    suspended_for: tuple[str, ...]
    wallet: str
    credit: str
    held: str
    held_by_others: str
    available: str
    credit_limit: str
    unbilled: str
    receivable: str
    method: str | None
    recharge: str
    schedule: str | None
    notice: str | None
    paused: bool
    event_version: int


@dataclass(frozen=True)
class PositionRow:
    """What an account has and owes at an instant, in the signs of the ledger: below zero is owed."""

    balance: str
    wallet: str
    unbilled: str
    receivable: str


@dataclass(frozen=True)
class Movement:
    """One movement of a statement: `amount` is the sum of its three parts, `balance` what there is after it."""

    at: datetime
    kind: str
    cause: str
    amount: str
    balance: str
    wallet: str
    unbilled: str
    receivable: str
    charges: int
    ref: str


@dataclass(frozen=True)
class AccountStatement:
    """opening + the amounts = closing, to the last digit. Half-open: from the start, before the end."""

    account_id: str
    currency: str
    start: datetime
    end: datetime
    opening: PositionRow
    movements: tuple[Movement, ...]
    closing: PositionRow


@dataclass(frozen=True)
class EntryRow:
    """One entry: kind and ref name its transaction, `account_id` the customer account that it is about, if any."""

    at: datetime
    kind: str
    ref: str
    account_id: str | None
    ledger: str
    amount: str
    currency: str
    charges: int
    actor: str | None
    note: str | None


@dataclass(frozen=True)
class LedgerTotal:
    """What stands on one ledger account in one currency: above zero is owed or earned, below zero had or spent."""

    ledger: str
    currency: str
    balance: str


@dataclass(frozen=True)
class TrialBalance:
    """All ledger accounts before an instant, or now, and what they sum to per currency: "0"."""

    at: datetime | None
    totals: tuple[LedgerTotal, ...]
    sums: dict[str, str]


@dataclass(frozen=True)
class AttemptRow:
    """One payment: `auto`, `manual` or `scheduled`."""

    attempt_id: UUID
    account_id: str
    kind: str
    state: str
    amount: str
    currency: str
    processor: str
    requested_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True)
class PaymentRow:
    """One payment as people see it: what it moved into the wallet, and everything its processor said of it."""

    payment: AttemptRow
    method_kind: str
    moved: str
    refunds_requested: str
    results: tuple[ResultRow, ...]


@dataclass(frozen=True)
class ResultRow:
    """One thing that a processor said of a payment."""

    received_at: datetime
    result: str
    amount: str
    reason: str | None
    result_id: str


@dataclass(frozen=True)
class PayoutRow:
    """One pay-out of a processor to the bank."""

    at: datetime
    processor: str
    payout_id: str
    amount: str
    currency: str
    actor: str | None
    note: str | None


@dataclass(frozen=True)
class WalletDifference:
    """A wallet row that is not the sum of its entries; nanos. There must be none."""

    account_id: str
    kind: str
    held_nano: int
    entries_nano: int


@dataclass(frozen=True)
class ChargeTotals:
    """What was posted for one account by transactions of charges; nanos, as charged (above zero)."""

    account_id: str
    charges: int
    charged_nano: int
    wallet_nano: int
    unbilled_nano: int


@dataclass(frozen=True)
class LinkReceived:
    """How far a link of the charges is applied."""

    link: str
    topic: str
    partition: int
    received_to: int


async def _all(engine: AsyncEngine, statement: Select[Any]) -> Sequence[Row[Any]]:
    async with transaction(engine) as connection:
        rows: Sequence[Row[Any]] = (await connection.execute(statement)).all()
        return rows


# ---- people --------------------------------------------------------------------------------------------------------


_over = (
    select(func.coalesce(func.sum(tables.call.c.held_nano - tables.call.c.shared_nano), 0))
    .where(
        tables.call.c.account_id == _wallet.account_id,
        tables.call.c.held_nano > 0,
        tables.call.c.expires_at <= CLOCK_NOW,
    )
    .scalar_subquery()
)
"""What calls hold of their wallets whose leases are over: nobody has looked at those since."""

_hold, _credit = tables.credit_hold.c, tables.credit.c
_is_own = _hold.account_id == _wallet.account_id
_held_of_shared = (
    select(
        func.coalesce(func.sum(_hold.nano).filter(_is_own), 0).label("own_share_nano"),
        func.coalesce(func.sum(_hold.nano).filter(~_is_own), 0).label("others_share_nano"),
    )
    .select_from(
        tables.credit_hold.join(tables.credit, _credit.credit_id == _hold.credit_id).join(
            tables.call,
            and_(tables.call.c.account_id == _hold.account_id, tables.call.c.call_leg_id == _hold.call_leg_id),
        )
    )
    .where(
        _credit.group_id == SHARED.c.shared_group_id,
        _credit.account_id.is_(None),
        _credit.remaining_nano > 0,
        tables.call.c.expires_at > CLOCK_NOW,
    )
    .correlate(tables.wallet, SHARED)
    .lateral("held_of_shared")
)
"""What calls whose leases run hold of what the account's group shares: its own calls, and those of others."""


async def balances(engine: AsyncEngine, account_ids: Sequence[str] | None = None) -> list[Balance]:
    """Every account's balance and state, or those asked for, by account id."""
    statement = (
        select(tables.wallet, *SHARED.c, *_held_of_shared.c, _over.label("over_nano"))
        .join_from(tables.wallet, SHARED, true())
        .join(_held_of_shared, true())
        .order_by(_wallet.account_id)
    )
    if account_ids is not None:
        statement = statement.where(_wallet.account_id.in_(list(account_ids)))
    return [_balance(row) for row in await _all(engine, statement)]


async def balance(engine: AsyncEngine, account_id: str) -> Balance:
    """One account's balance and state; `NotFound` when the registry never told it and it was never charged."""
    found = await balances(engine, [account_id])
    if not found:
        raise _unknown(account_id)
    return found[0]


def _unknown(account_id: str) -> NotFound:
    return NotFound(
        f"no wallet of an account {account_id}; `tollbook account list` shows which accounts there are",
        field="account_id",
        code="unknown_account",
    )


def _balance(row: Any) -> Balance:
    credit = row.credit_nano + row.shared_credit_nano
    own = row.wallet_nano - row.on_its_way_nano
    funds = own + credit + row.credit_limit_nano + row.unbilled_nano + row.receivable_nano
    reasons = tuple(reason for reason in SUSPENSION_REASONS if row._mapping[f"suspended_{reason}"])
    status = "closed" if row.closed_at is not None else "suspended" if reasons else "active"
    held, held_by_others = row.held_nano - int(row.over_nano) + int(row.own_share_nano), int(row.others_share_nano)
    recharges = "off"
    if row.recharge_enabled:
        recharges = f"{row.recharge_mode} {format_nano(row.recharge_nano)} at {format_nano(row.threshold_nano)}"
    return Balance(
        account_id=row.account_id,
        organization_id=row.organization_id,
        currency=row.currency,
        plan=row.plan,
        status=status,
        suspended_for=reasons,
        wallet=format_nano(row.wallet_nano),
        credit=format_nano(credit),
        held=format_nano(held),
        held_by_others=format_nano(held_by_others),
        available=format_nano(funds - held - held_by_others),
        credit_limit=format_nano(row.credit_limit_nano),
        unbilled=format_nano(-row.unbilled_nano),
        receivable=format_nano(-row.receivable_nano),
        method=row.method_processor and f"{row.method_processor} {row.method_kind}",
        recharge=recharges,
        schedule=_schedule(row),
        notice=row.notice,
        paused=row.paused_by is not None,
        event_version=row.event_version,
    )


def _schedule(row: Any) -> str | None:
    """A payment of every month in words."""
    if row.schedule_nano is None:
        return None
    day = "the last day" if row.schedule_day == paying.LAST_DAY else f"day {row.schedule_day}"
    return f"{format_nano(row.schedule_nano)} on {day} of each month, next {row.schedule_at:%Y-%m-%d}"


async def entries(engine: AsyncEngine, account_id: str, *, limit: int = 1000) -> list[EntryRow]:
    """The newest entries on the ledger accounts of one account, oldest of them first."""
    query = (
        select(tables.ledger_entry)
        .where(_ledger.account_id == account_id)
        .order_by(_ledger.at.desc(), _ledger.kind.desc(), _ledger.ref.desc(), _ledger.ledger.desc())
        .limit(limit)
    )
    return [_entry(row) for row in reversed(await _all(engine, query))]


def _entry(row: Any) -> EntryRow:
    return EntryRow(
        row.at, row.kind, row.ref, row.account_id, row.ledger, format_nano(row.nano), row.currency, row.charges,
        row.actor, row.note,
    )  # fmt: skip


ENTRIES_AT_ONCE = 1000  # held in memory, however many are asked for


async def ledger_entries(
    engine: AsyncEngine,
    since: datetime,
    until: datetime | None = None,
    *,
    account_id: str | None = None,
    ledger_account: str | None = None,
) -> AsyncGenerator[Sequence[EntryRow]]:
    """Entries from ``since`` on and before ``until`` (now), oldest first, in pages; those of a transaction follow each other.

    ``account_id``: those about this account. ``ledger_account``: a full name such as clearing:bank, or a kind for all of
    it. Costs what was posted in that time, whatever was before. `InvalidInput` when the end is before the start, or after
    today; `NotFound` for an account without a wallet and for a ledger account on which nothing was ever posted.
    """
    async with transaction(engine.execution_options(isolation_level="REPEATABLE READ")) as connection:
        end = await _end(connection, since, until)
        wanted = [_ledger.at >= since, _ledger.at < end]
        if account_id is not None:
            known = await connection.execute(select(_wallet.account_id).where(_wallet.account_id == account_id))
            if known.scalar() is None:
                raise _unknown(account_id)
            wanted.append(_ledger.account_id == account_id)
        if ledger_account is not None:
            wanted.append(_is_on(ledger_account))
        batch = tables.charge_batch.c
        # Counted too, because the least number alone is looked for from the first batch there ever was.
        numbers = select(func.min(batch.id), func.max(batch.id), func.count())
        first, last, _ = (await connection.execute(numbers.where(batch.at >= since, batch.at < end))).one()
        of_charges = select(tables.ledger_entry).where(
            _ledger.kind == "charges", _ledger.batch_id.between(first, last), *wanted
        )
        of_others = select(tables.ledger_entry).where(_ledger.kind != "charges", *wanted)
        both = of_charges.union_all(of_others).subquery()
        found = both.c
        query = select(both).order_by(found.at, found.kind, found.ref, found.account_id, found.ledger)
        is_empty = True
        async for page in (await connection.stream(query)).partitions(ENTRIES_AT_ONCE):
            is_empty = False
            yield [_entry(row) for row in page]
        if is_empty and ledger_account is not None:
            known = await connection.execute(select(select(_ledger.ledger).where(_is_on(ledger_account)).exists()))
            if not known.scalar():
                raise NotFound(
                    f"nothing was ever posted on {ledger_account}; `tollbook ledger totals` shows which ledger accounts"
                    " there are",
                    field="ledger",
                    code="unknown_ledger",
                )


async def _end(connection: AsyncConnection, since: datetime, until: datetime | None) -> datetime:
    """The end of a time that begins at ``since``: ``until``, else now. `InvalidInput` when it is before the start or in the future.

    The end of today is not in the future but now: a day that is asked for whole ends there.
    """
    now = await _now(connection)
    if until is not None and until < since:
        raise InvalidInput("must not be before the start", field="to")
    if since > now:
        raise _in_the_future("from", now)
    if until is not None and until > _midnight(now) + timedelta(days=1):
        raise _in_the_future("to", now)
    return now if until is None else min(until, now)


async def _now(connection: AsyncConnection) -> datetime:
    now: datetime = (await connection.execute(select(CLOCK_NOW))).scalar_one()
    return now


def _midnight(now: datetime) -> datetime:
    return now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def _in_the_future(field: str, now: datetime) -> InvalidInput:
    return InvalidInput(f"lies in the future; now is {instant_text(now)}", field=field)


async def _check_has_come(engine: AsyncEngine, at: datetime) -> None:
    async with transaction(engine) as connection:
        now = await _now(connection)
    if at > now:
        raise _in_the_future("at", now)


def _is_on(ledger_account: str) -> ColumnElement[bool]:
    """Whether an entry is on this ledger account, or on one of this kind."""
    return or_(_ledger.ledger == ledger_account, _ledger.ledger.startswith(f"{ledger_account}:", autoescape=True))


async def statement(
    engine: AsyncEngine, account_id: str, since: datetime, until: datetime | None = None
) -> AccountStatement:
    """What an account had at ``since``, each movement from then on and before ``until`` (now), and what it has after.

    `NotFound` for an account without a wallet; `InvalidInput` when the end is before the start, or after today.
    """
    async with transaction(engine) as connection:
        end = await _end(connection, since, until)
        found = await store.movements(connection, account_id, since, end)
        currency = (await connection.execute(select(_wallet.currency).where(_wallet.account_id == account_id))).scalar()
        if found is None or currency is None:
            raise _unknown(account_id)
        now, later, moved = found
        named = await store.attempts_named(connection, _attempt_ids(moved))
    moved = [
        replace(each, attempt=named[each.ref].kind, method=named[each.ref].method_kind) if each.ref in named else each
        for each in moved
    ]
    made = statement_of(now, later, moved)
    return AccountStatement(
        account_id, currency, since, end, _position(made.opening),
        tuple(_movement(line) for line in made.lines), _position(made.closing),
    )  # fmt: skip


async def start_of_month(engine: AsyncEngine) -> datetime:
    """When this month began in UTC, by the one clock."""
    async with transaction(engine) as connection:
        return _midnight(await _now(connection)).replace(day=1)


async def position(engine: AsyncEngine, account_id: str, at: datetime) -> PositionRow:
    """What an account had and owed just before an instant; `InvalidInput` for one that has not come."""
    await _check_has_come(engine, at)
    return (await statement(engine, account_id, at, at)).closing


def _attempt_ids(moved: Iterable[Moved]) -> list[UUID]:
    ids = []
    for each in moved:
        if each.kind == "payment":
            with suppress(ValueError):  # a payment that was not asked for here is named by its processor
                ids.append(UUID(each.ref))
    return ids


def _position(at: Position) -> PositionRow:
    return PositionRow(
        format_nano(at.balance), format_nano(at.wallet), format_nano(at.unbilled), format_nano(at.receivable)
    )


def _movement(line: Line) -> Movement:
    moved = line.moved
    parts = _position(moved.parts)
    return Movement(
        moved.at, moved.kind, line.cause, parts.balance, format_nano(line.after.balance), parts.wallet, parts.unbilled,
        parts.receivable, moved.charges, moved.ref,
    )  # fmt: skip


async def attempts(
    engine: AsyncEngine, account_id: str | None = None, *, kind: str | None = None, limit: int = 1000
) -> list[AttemptRow]:
    """Payments, or those of a kind, newest first."""
    columns = tables.attempt.c
    wanted = []
    if account_id is not None:
        wanted.append(columns.account_id == account_id)
    if kind is not None:
        wanted.append(columns.kind == kind)
    return [_attempt(row) for row in await _all(engine, _newest_attempts(limit, *wanted))]


def _newest_attempts(limit: int, *wanted: ColumnElement[bool]) -> Select[Any]:
    columns = tables.attempt.c
    newest_first = (columns.requested_at.desc(), columns.trigger_version.desc())
    return select(tables.attempt).where(*wanted).order_by(*newest_first).limit(limit)


def _attempt(row: Any) -> AttemptRow:
    return AttemptRow(
        row.attempt_id, row.account_id, row.kind, row.state, format_nano(row.amount_nano), row.currency, row.processor,
        row.requested_at, row.ended_at,
    )  # fmt: skip


PAYMENT_STATES: tuple[str, ...] = get_args(recharge.State)


async def payments(
    engine: AsyncEngine, account_id: str | None = None, *, states: Collection[str] | None = None, limit: int = 1000
) -> list[PaymentRow]:
    """The payments of an account, or of all, with what became of each, newest first; or those in these states.

    `InvalidInput` for a state that there is not.
    """
    unknown = [each for each in states or () if each not in PAYMENT_STATES]
    if unknown or (states is not None and not states):
        raise InvalidInput(f"must be one or more of {', '.join(PAYMENT_STATES)}, with commas", field="state")
    results, refunds, attempt = tables.result.c, tables.refund.c, tables.attempt.c
    if account_id is not None:
        query = _newest_attempts(
            limit, attempt.account_id == account_id, attempt.state.in_(sorted(states or PAYMENT_STATES))
        )
    else:
        # The newest of each state by itself: all of a state are never read, and of most states there are many.
        of_each = [
            _newest_attempts(limit, attempt.state == state).subquery().select()
            for state in sorted(set(states or PAYMENT_STATES))
        ]
        some = union_all(*of_each).subquery()
        query = select(some).order_by(some.c.requested_at.desc(), some.c.trigger_version.desc()).limit(limit)
    rows = {row.attempt_id: row for row in await _all(engine, query)}
    said: dict[UUID, list[Any]] = {}
    query = select(tables.result).where(results.attempt_id.in_(rows)).order_by(results.received_at, results.result_id)
    for row in await _all(engine, query):
        said.setdefault(row.attempt_id, []).append(row)
    asked = (
        select(refunds.attempt_id, func.sum(refunds.amount_nano).label("nano"))
        .where(refunds.attempt_id.in_(rows), refunds.state == "requested")
        .group_by(refunds.attempt_id)
    )
    on_its_way = {row.attempt_id: int(row.nano) for row in await _all(engine, asked)}
    return [
        PaymentRow(
            _attempt(row),
            row.method_kind,
            format_nano(
                effects.moved(attempt_id, row.account_id, row.processor, map(said_of, said.get(attempt_id, ())))
            ),
            format_nano(on_its_way.get(attempt_id, 0)),
            tuple(
                ResultRow(
                    each.received_at,
                    each.failure or each.kind,
                    format_nano(each.amount_nano),
                    each.reason,
                    each.result_id,
                )
                for each in said.get(attempt_id, ())
            ),
        )
        for attempt_id, row in rows.items()
    ]


async def moved_by_payments(engine: AsyncEngine) -> dict[str, int]:
    """Per attempt, what its results say it moves into its wallet, nanos: to be compared with the ledger."""
    said: dict[UUID, list[Any]] = {}
    attempt, results = tables.attempt.c, tables.result.c
    query = select(tables.result, attempt.account_id).join_from(
        tables.result, tables.attempt, attempt.attempt_id == results.attempt_id
    )
    owners: dict[UUID, Any] = {}
    for row in await _all(engine, query):
        said.setdefault(row.attempt_id, []).append(row)
        owners[row.attempt_id] = row
    return {
        str(attempt_id): effects.moved(
            attempt_id, owners[attempt_id].account_id, owners[attempt_id].processor, map(said_of, rows)
        )
        for attempt_id, rows in said.items()
    }


async def record_payouts(engine: AsyncEngine, rows: Sequence[Payout], actor: str, note: str = "") -> list[Payout]:
    """Take pay-outs over into the ledger; see `payouts.record`."""
    return await payouts.record(engine, rows, actor, note)


async def adopt_undone_requests(
    engine: AsyncEngine,
    requests: Sequence[PaymentRequest],
    events: Iterable[BalanceEvent | GroupEvent] = (),
    *,
    write: bool = True,
) -> Adopted:
    """After a restore, while no room runs: every request of `payments.requests` above what the backup knew, in the order of the log.
    Each attempt among them is in flight from now on and asked about first; a second run changes nothing. ``events`` are the undone
    ones of `balance.events` and `balance.group_events`. Without ``write``: what it would adopt, and nothing is changed."""
    return await adopting.adopt(engine, requests, events, write=write)


async def list_payouts(engine: AsyncEngine, *, limit: int = 1000) -> list[PayoutRow]:
    """Pay-outs, newest first."""
    transactions, entries = tables.transaction.c, tables.entry.c
    query = (
        select(tables.transaction, entries.nano)
        .join_from(tables.transaction, tables.entry, entries.transaction_id == transactions.id)
        .where(transactions.kind == "payout", entries.ledger == ledger.BANK)
        .order_by(transactions.at.desc(), transactions.ref)
        .limit(limit)
    )
    found = []
    for row in await _all(engine, query):
        processor, _, payout_id = row.ref.partition(":")
        found.append(PayoutRow(row.at, processor, payout_id, format_nano(-row.nano), row.currency, row.actor, row.note))
    return found


async def has_reached_version(engine: AsyncEngine, account_versions: dict[str, int]) -> bool:
    """Whether balance knows these accounts at least in these versions of the registry."""
    query = select(_wallet.account_id, _wallet.registry_version).where(_wallet.account_id.in_(list(account_versions)))
    known = {row.account_id: row.registry_version for row in await _all(engine, query)}
    return all(known.get(account_id, 0) >= version for account_id, version in account_versions.items())


@dataclass(frozen=True)
class CarriedOut:
    """What became of a command. ``content`` is the digest of what it asked: another under the same id is a conflict."""

    content: bytes
    accepted: bool


async def command_done(engine: AsyncEngine, account_id: str, command_id: str) -> CarriedOut | None:
    """What became of a command to an account, if it was one."""
    columns = tables.command.c
    query = select(columns.content, columns.accepted)
    query = query.where(columns.account_id == account_id, columns.command_id == command_id)
    for row in await _all(engine, query):
        return CarriedOut(row.content, row.accepted)
    return None


async def levels(engine: AsyncEngine, account_id: str) -> list[str]:
    """The low-balance levels of an account, the highest first."""
    columns = tables.level.c
    query = select(columns.nano).where(columns.account_id == account_id).order_by(columns.nano.desc())
    return [format_nano(row.nano) for row in await _all(engine, query)]


# ---- spend control -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LimitRow:
    """A limit of an account (no profile) or of an outbound profile, and what counts against it now. None: no limit."""

    outbound_profile: str | None
    daily_spend: str | None
    spent_today: str
    calls_max: int | None
    calls: int


async def limits(engine: AsyncEngine, account_id: str) -> list[LimitRow]:
    """The limits of an account and of its profiles, the account's first. Spend is counted since its first limit."""
    async with transaction(engine) as connection:
        now = (await connection.execute(select(CLOCK_NOW))).scalar_one()
        return [
            LimitRow(
                row.outbound_profile or None,
                None if row.daily_spend_nano is None else format_nano(row.daily_spend_nano),
                format_nano(row.spent_nano),
                row.calls_max,
                row.calls,
            )
            for row in await store.limits_of_account(connection, account_id, now)
        ]


async def may_call(engine: AsyncEngine, asked: CallAsked) -> Allowed | Refused:
    """Whether a call could start now, by suspension, price, daily spend, calls in progress and credit; starts nothing."""
    async with transaction(engine) as connection:
        return await calls.ask(connection, asked)


# ---- holds ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HoldRow:
    """A call that is in progress, or that ended and waits for its charge; ``held`` is in the currency of the account, ``shared``
    what of it is of credits that its payer group shares.

    ``seconds`` is how long the call may be as it is granted now; once it has ended, how long it was.
    """

    account_id: str
    call_leg_id: str
    hold_id: UUID
    state: str
    held: str
    shared: str
    currency: str
    seconds: int
    max_s: int
    number: int
    outbound_profile: str | None
    started_at: datetime
    expires_at: datetime


@dataclass(frozen=True)
class HoldPage:
    """Some of the calls of an account, oldest first; ``next`` is the cursor of those that come after them, None where there are
    none."""

    data: list[HoldRow]
    next: str | None


HOLDS_AT_ONCE, HOLDS_AT_ONCE_MAX = 100, 1000


async def open_holds(
    engine: AsyncEngine, account_id: str, *, limit: int = HOLDS_AT_ONCE, after: str | None = None
) -> HoldPage:
    """The calls of an account whose leases run, in progress or settled, oldest first; from the beginning, or ``after`` a cursor.

    A call that starts anew since its lease was over moves to the end: it may be seen twice, and none is left out.
    """
    columns = tables.call.c
    query = (
        select(tables.call, _wallet.currency)
        .join_from(tables.call, tables.wallet, columns.account_id == _wallet.account_id)
        .where(columns.account_id == account_id, columns.expires_at > CLOCK_NOW)
        .where(or_(columns.ended_at.is_(None), columns.held_nano > 0))
        .order_by(columns.started_at, columns.call_leg_id)
        .limit(limit + 1)
    )
    if after is not None:
        query = query.where(tuple_(columns.started_at, columns.call_leg_id) > _place(after))
    rows = await _all(engine, query)
    shown = [
        HoldRow(
            row.account_id,
            row.call_leg_id,
            calls.hold_id(row.account_id, row.call_leg_id),
            "settled" if row.ended_at is not None else "in progress",
            format_nano(row.held_nano),
            format_nano(row.shared_nano),
            row.currency,
            row.total_s if row.settled_s is None else row.settled_s,
            row.max_s,
            row.number,
            row.outbound_profile or None,
            row.started_at,
            row.expires_at,
        )
        for row in rows[:limit]
    ]
    return HoldPage(shown, _cursor(shown[-1]) if len(rows) > limit else None)


def _cursor(row: HoldRow) -> str:
    return urlsafe_b64encode(to_json([row.started_at, row.call_leg_id])).decode()


_PLACE = TypeAdapter(tuple[AwareDatetime, Attribute])


def _place(cursor: str) -> tuple[datetime, str]:
    try:
        return _PLACE.validate_json(urlsafe_b64decode(cursor))
    except ValueError:
        raise InvalidInput("is no cursor; take the `next` of the answer before", field="after") from None


@dataclass(frozen=True)
class HeldDifference:
    """A wallet that does not hold what its calls hold; nanos. There must be none."""

    account_id: str
    held_nano: int
    calls_nano: int


async def held_differences(engine: AsyncEngine) -> tuple[int, list[HeldDifference]]:
    """How many calls hold something, and the wallets that do not hold the sum of it but for their parts of shared credits, in one
    snapshot."""
    columns = tables.call.c
    own_nano = columns.held_nano - columns.shared_nano
    sums = (
        select(columns.account_id, func.sum(own_nano).label("nano"), func.count().label("calls"))
        .where(columns.held_nano > 0)
        .group_by(columns.account_id)
        .subquery()
    )
    query = (
        select(
            func.coalesce(_wallet.account_id, sums.c.account_id).label("account_id"),
            func.coalesce(_wallet.held_nano, 0).label("held_nano"),
            func.coalesce(sums.c.nano, 0).label("nano"),
            func.coalesce(sums.c.calls, 0).label("calls"),
        )
        .join_from(tables.wallet, sums, sums.c.account_id == _wallet.account_id, full=True)
        .where(or_(_wallet.held_nano != 0, sums.c.calls.is_not(None)))
        .order_by("account_id")
    )
    rows = await _all(engine, query)
    wrong = [
        HeldDifference(row.account_id, row.held_nano, int(row.nano)) for row in rows if row.held_nano != int(row.nano)
    ]
    return sum(row.calls for row in rows), wrong


async def share_differences(engine: AsyncEngine) -> list[str]:
    """Credits that do not hold the sum of what calls hold of them, and calls that do not hold the sum of their parts, in one
    snapshot; more held than is left of a credit that has not expired."""
    hold, credit, call = tables.credit_hold.c, tables.credit.c, tables.call.c
    by_credit = select(hold.credit_id, func.sum(hold.nano).label("nano")).group_by(hold.credit_id).subquery()
    by_call = (
        select(hold.account_id, hold.call_leg_id, func.sum(hold.nano).label("nano"))
        .group_by(hold.account_id, hold.call_leg_id)
        .subquery()
    )
    parts = func.coalesce(by_credit.c.nano, 0)
    too_much = and_(credit.expired_at.is_(None), credit.held_nano > credit.remaining_nano)
    of_credits = (
        select(
            literal("credit").label("kind"), cast(credit.credit_id, Text).label("name"), credit.held_nano.label("held"),
            parts.label("parts"), credit.remaining_nano.label("left"),
        )
        .join_from(tables.credit, by_credit, by_credit.c.credit_id == credit.credit_id, isouter=True)
        .where(or_(credit.held_nano != parts, too_much))
    )  # fmt: skip
    whole = func.coalesce(by_call.c.nano, 0)
    name = func.concat(
        func.coalesce(call.call_leg_id, by_call.c.call_leg_id), " of ",
        func.coalesce(call.account_id, by_call.c.account_id),
    )  # fmt: skip
    of_calls = (
        select(literal("call"), name, func.coalesce(call.shared_nano, 0), whole, literal(0))
        .join_from(
            tables.call,
            by_call,
            and_(by_call.c.account_id == call.account_id, by_call.c.call_leg_id == call.call_leg_id),
            full=True,
        )
        .where(func.coalesce(call.shared_nano, 0) != whole)
    )
    both = of_credits.union_all(of_calls).subquery()
    return [
        f"{row.kind} {row.name}: {format_nano(int(row.held))} held"
        + (f" of {format_nano(int(row.left))} left" if row.kind == "credit" else " of shared credits")
        + f", its parts sum to {format_nano(int(row.parts))}"
        for row in await _all(engine, select(both).order_by(both.c.kind, both.c.name))
    ]


async def credit_differences(engine: AsyncEngine) -> list[str]:
    """What is wrong with credits: granted = spent + left + lapsed, left = its entries, a wallet's = the sum of its own. Of one
    that waits for a second person nothing is granted; one that is not there has nothing left."""
    credit, funding = tables.credit.c, tables.funding.c
    spent = select(funding.credit_id, func.sum(funding.nano).label("nano")).group_by(funding.credit_id).subquery()
    entries = (
        select(_ledger.ledger, _ledger.currency, func.sum(_ledger.nano).label("nano"))
        .where(_ledger.ledger.startswith("credit:"))
        .group_by(_ledger.ledger, _ledger.currency)
        .subquery()
    )
    left = func.coalesce(credit.remaining_nano, 0)
    whole = func.coalesce(spent.c.nano, 0) + left + func.coalesce(credit.breakage_nano, 0)
    granted = case((credit.valid_from.is_not(None), credit.granted_nano), else_=0)
    posted = func.coalesce(entries.c.nano, 0)
    of_credits = (
        select(
            func.coalesce(cast(credit.credit_id, Text), func.split_part(entries.c.ledger, ":", 2)).label("credit_id"),
            granted.label("granted"), left.label("left"), whole.label("whole"), posted.label("posted"),
        )
        .join_from(tables.credit, spent, spent.c.credit_id == credit.credit_id, isouter=True)
        .join(
            entries,
            and_(
                entries.c.ledger == func.concat("credit:", credit.credit_id), entries.c.currency == credit.currency
            ),
            full=True,
        )
        .where(or_(whole != granted, posted != left))
        .order_by("credit_id")
    )  # fmt: skip
    wrong = [
        f"credit {row.credit_id} of {format_nano(row.granted)}: spent, left and lapsed are {format_nano(int(row.whole))},"
        f" {format_nano(row.left)} is left, its entries sum to {format_nano(int(row.posted))}"
        for row in await _all(engine, of_credits)
    ]
    own = (
        select(credit.account_id, func.sum(credit.remaining_nano).label("nano"))
        .where(credit.account_id.is_not(None))
        .group_by(credit.account_id)
        .subquery()
    )
    of_wallets = (
        select(_wallet.account_id, _wallet.credit_nano, func.coalesce(own.c.nano, 0).label("nano"))
        .join_from(tables.wallet, own, own.c.account_id == _wallet.account_id, isouter=True)
        .where(_wallet.credit_nano != func.coalesce(own.c.nano, 0))
        .order_by(_wallet.account_id)
    )
    return wrong + [
        f"{row.account_id} has credits of {format_nano(row.credit_nano)}, they sum to {format_nano(int(row.nano))}"
        for row in await _all(engine, of_wallets)
    ]


async def quarantine(engine: AsyncEngine, *, reason: str | None = None) -> list[ParkedRow]:
    """Commands and results that stand in quarantine."""
    async with transaction(engine) as connection:
        return await parking.listing(connection, runtime_tables(ROOM), reason=reason)


async def suspended_accounts(engine: AsyncEngine) -> list[str]:
    """Every suspended account: what the refuse-fast set must hold."""
    query = select(_wallet.account_id).where(tables.IS_SUSPENDED).order_by(_wallet.account_id)
    return [row.account_id for row in await _all(engine, query)]


# ---- the auditor ---------------------------------------------------------------------------------------------------


async def ledger_totals(engine: AsyncEngine) -> dict[tuple[str, str], int]:
    """(currency, kind of ledger account) to the sum of all entries, nanos. Over a currency they sum to zero."""
    kind = func.split_part(_ledger.ledger, ":", 1)
    query = select(_ledger.currency, kind.label("ledger"), func.sum(_ledger.nano).label("nano")).group_by(
        _ledger.currency, kind
    )
    return {(row.currency, row.ledger): int(row.nano) for row in await _all(engine, query)}


async def trial_balance(engine: AsyncEngine, at: datetime | None = None) -> TrialBalance:
    """The balance of every ledger account by its full name and currency, of all entries or of those before an instant.

    `InvalidInput` for an instant that has not come. Reads the whole ledger. After a payment of 100 through sandbox: clearing:sandbox -100, wallet 100, the sum is 0.
    """
    if at is not None:
        await _check_has_come(engine, at)
    nano = func.sum(_ledger.nano)
    query = select(_ledger.ledger, _ledger.currency, nano.label("nano"))
    query = query.group_by(_ledger.currency, _ledger.ledger).order_by(_ledger.currency, _ledger.ledger)
    rows = await _all(engine, query if at is None else query.where(_ledger.at < at))
    sums: dict[str, int] = {}
    for row in rows:
        sums[row.currency] = sums.get(row.currency, 0) + int(row.nano)
    return TrialBalance(
        at,
        tuple(LedgerTotal(row.ledger, row.currency, format_nano(int(row.nano))) for row in rows),
        {currency: format_nano(nano) for currency, nano in sums.items()},
    )


async def wallet_differences(engine: AsyncEngine) -> list[WalletDifference]:
    """Wallet rows that are not the sum of their entries, in one snapshot; one that is missing is 0."""
    kind = func.split_part(_ledger.ledger, ":", 1)
    sums = (
        select(_ledger.account_id, kind.label("kind"), func.sum(_ledger.nano).label("nano"))
        .where(kind.in_([ledger.WALLET, ledger.UNBILLED, ledger.RECEIVABLE]))
        .group_by(_ledger.account_id, kind)
        .subquery()
    )
    held = [
        func.coalesce(column, 0).label(column.name)
        for column in (_wallet.wallet_nano, _wallet.unbilled_nano, _wallet.receivable_nano)
    ]
    account_id = func.coalesce(_wallet.account_id, sums.c.account_id, "no account").label("account_id")
    query = select(account_id, *held, sums.c.kind, sums.c.nano).outerjoin_from(
        tables.wallet, sums, sums.c.account_id == _wallet.account_id, full=True
    )
    found: dict[str, dict[str, list[int]]] = {}
    for row in await _all(engine, query):
        mine = found.setdefault(
            row.account_id,
            {
                "wallet": [row.wallet_nano, 0],
                "unbilled": [row.unbilled_nano, 0],
                "receivable": [row.receivable_nano, 0],
            },
        )
        if row.kind is not None:
            mine[row.kind][1] = int(row.nano)
    return [
        WalletDifference(account_id, name, pair[0], pair[1])
        for account_id, kinds in sorted(found.items())
        for name, pair in kinds.items()
        if pair[0] != pair[1]
    ]


async def charge_totals(engine: AsyncEngine) -> list[ChargeTotals]:
    """What transactions of charges posted, per account: to be compared with the charges themselves."""
    columns = tables.charged.c
    wallet, unbilled = func.sum(columns.wallet_nano), func.sum(columns.unbilled_nano)
    query = (
        select(columns.account_id, func.sum(columns.charges).label("charges"), wallet.label("w"), unbilled.label("u"))
        .group_by(columns.account_id)
        .order_by(columns.account_id)
    )
    return [
        ChargeTotals(row.account_id, int(row.charges), -int(row.w + row.u), -int(row.w), -int(row.u))
        for row in await _all(engine, query)
    ]


async def charges_received(engine: AsyncEngine) -> list[LinkReceived]:
    """How far each link of `usage.charges` is applied."""
    columns = runtime_tables(ROOM).link_in.c
    query = (
        select(columns.link, columns.topic, columns.partition, columns.received_to)
        .where(columns.topic == USAGE_CHARGES.name)
        .order_by(columns.topic, columns.partition, columns.link)
    )
    return [LinkReceived(row.link, row.topic, row.partition, row.received_to) for row in await _all(engine, query)]


async def batch_gaps(engine: AsyncEngine) -> list[tuple[str, int, int]]:
    """Links whose batches do not follow each other seamlessly from 1 to what is received: (link, expected seq, found seq).

    There must be none.
    """
    received = {
        f"{each.link}|{each.topic}/{each.partition}": each.received_to for each in await charges_received(engine)
    }
    columns = tables.charge_batch.c
    spans: dict[str, list[tuple[int, int]]] = {link: [] for link in received}
    for row in await _all(engine, select(columns.id, columns.links).order_by(columns.id)):
        for link, (first, last) in row.links.items():
            spans.setdefault(link, []).append((first, last))
    gaps = []
    for link, taken in sorted(spans.items()):
        expected = 1
        for first, last in sorted(taken):
            if first != expected:
                gaps.append((link, expected, first))
            expected = last + 1
        if expected <= received.get(link, 0):
            gaps.append((link, expected, received[link] + 1))
    return gaps


async def drifts(engine: AsyncEngine) -> list[str]:
    """Sums that were found wrong and are not mended, in words; while there is one, no cut is answered."""
    async with transaction(engine) as connection:
        rows = await store.drifts(connection)
    return [Drift(row.about, row.kind, int(row.held_nano), int(row.entries_nano)).sentence for row in rows]


async def broken_seals(engine: AsyncEngine) -> sealing.Found:
    """What was edited, dropped, swapped or put into the ledger by hand, in one snapshot: `sealing.search`."""
    async with transaction(engine.execution_options(isolation_level="REPEATABLE READ")) as connection:
        return await sealing.search(connection)


async def unbalanced_transactions(engine: AsyncEngine) -> list[tuple[str, int]]:
    """(kind and ref, sum in nanos) of every transaction whose entries do not sum to zero. There must be none."""
    nano = func.sum(_ledger.nano)
    # the charges of one account in one batch are a transaction of their own
    own = case((_ledger.kind == "charges", _ledger.account_id), else_=literal(""))
    query = (
        select(_ledger.kind, _ledger.ref, own.label("own"), nano.label("nano"))
        .group_by(_ledger.kind, _ledger.ref, own)
        .having(nano != 0)
        .order_by(_ledger.kind, _ledger.ref, own)
    )
    return [(f"{row.kind} {row.ref} {row.own}".strip(), int(row.nano)) for row in await _all(engine, query)]


async def transaction_totals(engine: AsyncEngine, kind: str) -> dict[str, dict[str, int]]:
    """Per transaction of a kind, by its ref: the sum in nanos per kind of ledger account; of one without entries none."""
    made, entry = tables.transaction.c, tables.entry.c
    ledger = func.split_part(entry.ledger, ":", 1)
    query = (
        select(made.ref, ledger.label("ledger"), func.sum(entry.nano).label("nano"))
        .select_from(tables.transaction.outerjoin(tables.entry, entry.transaction_id == made.id))
        .where(made.kind == kind)
        .group_by(made.ref, ledger)
    )
    totals: dict[str, dict[str, int]] = {}
    for row in await _all(engine, query):
        sums = totals.setdefault(row.ref, {})
        if row.ledger is not None:
            sums[row.ledger] = int(row.nano)
    return totals
