"""After PostgreSQL was restored from a backup: what an earlier life asked of payment processors, and this database does not know.

Processors are not restored. They may have charged what is *undone* here: requests that stand in the log above what the backup
knew. So each undone attempt is adopted as in flight, with its id, amount and instant, and its end is asked for at once; its
results, which are read again or answer the inquiry, are booked like those of any other. Meanwhile its account is not recharged,
and it counts for the ten of its day and for the limit of its day. The next attempt of the account has a number above all of
them, so that no id ever stands for two amounts. What asked for an attempt is not adopted: a command comes again and takes its
attempt over (`claiming`), a schedule goes on after the day that it paid.

Runs while the room stands still, as often as wanted. Source: designs/closing, RESTORE (e); designs/recharge.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from contracts.balance import BalanceEvent
from contracts.payments import ChargeRequest, InquireRequest, PaymentRequest, RefundRequest
from contracts.receivables import GroupEvent
from services.balance import paying, silence, store
from services.balance.evaluation import load
from services.balance.payments import SCHEDULE
from services.balance.wallets import Wallet
from services.kernel.errors import Corrupt
from services.kernel.ids import attempt_id
from services.kernel.money import format_nano, parse_amount
from services.runtime.database import OnlyLooked
from services.runtime.known_topics import KnownTopics
from services.runtime.processor import Processor
from services.runtime.room import Room
from services.runtime.work import Work

LANE = "restore"
ACCOUNTS_AT_ONCE = 500  # in one transaction
NUMBERS_MAX = 1_000  # of an account, of which no request reached the log
ADOPTED_BY = "restore"  # asked for a refund, until the command says who did
NOBODY = ""  # the organization of an account that the registry has not told again


@dataclass(frozen=True)
class UndoneAttempt:
    """One that was adopted, as it stands now. ``kind`` may be `manual` for what a group's command asked for, until that is read."""

    attempt_id: UUID
    account_id: str
    kind: str
    processor: str
    amount: str
    currency: str
    requested_at: datetime
    state: str


@dataclass(frozen=True)
class UndoneRefund:
    """One that was adopted, as it stands now."""

    refund_id: UUID
    attempt_id: UUID
    account_id: str
    amount: str
    state: str


class Adopted(NamedTuple):
    """What was adopted, now or by a run before, in the order of accounts and time."""

    attempts: list[UndoneAttempt]
    refunds: list[UndoneRefund]


class AskedBy(NamedTuple):
    """Which command asked for an attempt, as far as it is known, and what that makes it."""

    kind: str
    command_id: str | None


async def adopt(
    engine: AsyncEngine,
    requests: Sequence[PaymentRequest],
    events: Iterable[BalanceEvent | GroupEvent] = (),
    *,
    write: bool = True,
) -> Adopted:
    """Adopt undone requests; those that are known already, by the backup or by a run before, change nothing.

    ``events`` are those of the same lives, of accounts and of groups: they say which command asked for what. Without them the
    amount tells. Without ``write`` all is taken back.
    """
    charges: dict[str, dict[UUID, ChargeRequest]] = defaultdict(dict)
    refunds: dict[str, dict[UUID, RefundRequest]] = defaultdict(dict)
    inquiries: dict[str, dict[UUID, int]] = defaultdict(dict)
    for each in requests:
        match each:
            case ChargeRequest():
                charges[each.account_id][each.attempt_id] = each
            case RefundRequest():
                refunds[each.account_id][each.refund_id] = each
            case InquireRequest():
                own = inquiries[each.account_id]
                own[each.attempt_id] = max(own.get(each.attempt_id, 0), each.number)
    asked_by = dict(_asked_by(events))
    adopted = Adopted([], [])
    processor = Processor(Room("balance", ()), engine, KnownTopics({}))

    async def run(accounts: Collection[str], work: Work) -> None:
        of_charges = {id: each for name in accounts for id, each in charges.get(name, {}).items()}
        of_inquiries = {id: number for name in accounts for id, number in inquiries.get(name, {}).items()}
        of_refunds = {id: each for name in accounts for id, each in refunds.get(name, {}).items()}
        await _adopt_attempts(work, of_charges, of_inquiries, asked_by)
        await _adopt_refunds(work, of_refunds)
        await _number_inquiries(work, of_inquiries)
        adopted.attempts.extend(await _attempts(work, of_charges))
        adopted.refunds.extend(await _refunds(work, of_refunds))
        if not write:
            raise OnlyLooked

    every = sorted({*charges, *refunds, *inquiries})
    for begin in range(0, len(every), ACCOUNTS_AT_ONCE):
        with suppress(OnlyLooked):
            await processor.transact(partial(run, every[begin : begin + ACCOUNTS_AT_ONCE]), lane=LANE)
    if write:
        await processor.transact(_give_time, lane=LANE)
    return adopted


def _asked_by(events: Iterable[BalanceEvent | GroupEvent]) -> Iterable[tuple[UUID, AskedBy]]:
    """Those of accounts first: of a group's payment they name no command, its own events do."""
    for each in sorted(events, key=lambda each: isinstance(each, GroupEvent)):
        match each:
            case BalanceEvent(kind="payment_requested", attempt_id=UUID() as about, command_id=command_id):
                yield about, AskedBy("manual" if command_id is not None else "group", command_id)
            case GroupEvent(kind="card_payment_requested", payment_id=UUID() as about, command_id=command_id):
                yield about, AskedBy("group", command_id)


async def _adopt_attempts(
    work: Work,
    charges: Mapping[UUID, ChargeRequest],
    inquiries: Mapping[UUID, int],
    asked_by: Mapping[UUID, AskedBy],
) -> None:
    known = {row.attempt_id for row in await store.load_attempts(work, charges)}
    fresh: dict[str, list[ChargeRequest]] = defaultdict(list)
    for each in charges.values():
        if each.attempt_id not in known:
            fresh[each.account_id].append(each)
    if not fresh:
        return
    missing = [store.Addition(account_id, NOBODY, own[0].currency, 0, 0) for account_id, own in fresh.items()]
    await store.add_to_wallets(work, missing)
    wallets = await load(work, fresh)
    attempts: list[store.NewAttempt] = []
    waiting: list[dict[str, Any]] = []
    schedules: dict[str, datetime] = {}
    for account_id, own in sorted(fresh.items()):
        wallet = wallets[account_id]
        numbers = numbers_of(account_id, wallet.trigger_version, {each.attempt_id for each in own})
        for each in sorted(own, key=lambda each: numbers[each.attempt_id]):
            kind: str = each.origin
            if kind == "manual":  # of a group's command too
                kind, command_id = asked_by.get(each.attempt_id, AskedBy("manual", None))
                waiting.append(
                    {
                        "attempt_id": each.attempt_id,
                        "account_id": account_id,
                        "command_id": command_id,
                        "charged": each.token,
                    }
                )
            attempts.append(_attempt(wallet, each, numbers[each.attempt_id], kind, inquiries.get(each.attempt_id, 0)))
            if kind == "scheduled" and wallet.schedule_at is not None and wallet.schedule_at <= each.requested_at:
                day = wallet.schedule_day or paying.LAST_DAY
                schedules[account_id] = wallet.schedule_at = paying.next_scheduled(day, each.requested_at)
        wallet.trigger_version = max(numbers.values())
    await store.append_attempts(work, attempts)
    if waiting:
        await store.append_unclaimed(work, waiting)
    await silence.ask_about(work, attempts, first_at=work.now)
    await work.set_timers(SCHEDULE, schedules)
    await store.save_wallets(work, [wallets[account_id].row() for account_id in sorted(wallets)])


def _attempt(wallet: Wallet, asked: ChargeRequest, number: int, kind: str, inquiries: int) -> store.NewAttempt:
    return store.NewAttempt(
        attempt_id=asked.attempt_id,
        account_id=asked.account_id,
        trigger_version=number,
        processor=asked.processor,
        method_kind=asked.method_kind,
        amount_nano=parse_amount(asked.amount),
        currency=asked.currency,
        requested_at=asked.requested_at,
        kind=kind,
        state="unknown",
        method_version=wallet.method_version,
        inquiries=inquiries,
        undone=True,
    )


def numbers_of(account_id: str, after: int, ids: Collection[UUID]) -> dict[UUID, int]:
    """Which number of an account each of these attempts has: the next ones after that of the backup. A request does not say it, but
    its id follows from it.

    >>> numbers_of("frontdesk", 7, {attempt_id("frontdesk", 9), attempt_id("frontdesk", 8)}) == {
    ...     attempt_id("frontdesk", 8): 8, attempt_id("frontdesk", 9): 9}
    True
    """
    numbers: dict[UUID, int] = {}
    for number in range(after + 1, after + len(ids) + NUMBERS_MAX + 1):
        if len(numbers) == len(ids):
            break
        if (made := attempt_id(account_id, number)) in ids:
            numbers[made] = number
    if strange := sorted(str(each) for each in ids if each not in numbers):
        raise Corrupt(
            f"account {account_id} cannot have asked for payment {strange[0]}: it has no number after {after}"
        )
    return numbers


async def _adopt_refunds(work: Work, refunds: Mapping[UUID, RefundRequest]) -> None:
    """Asked for again by their command, with the same id and amount."""
    known = {row.refund_id for row in await store.refunds_named(work, refunds)}
    payments = {
        row.attempt_id for row in await store.load_attempts(work, [each.attempt_id for each in refunds.values()])
    }
    rows = [
        {
            "refund_id": refund_id,
            "attempt_id": each.attempt_id,
            "account_id": each.account_id,
            "amount_nano": parse_amount(each.amount),
            "state": "requested",
            "requested_at": each.requested_at,
            "actor": ADOPTED_BY,
            "note": None,
        }
        for refund_id, each in sorted(refunds.items())
        if refund_id not in known and each.attempt_id in payments
    ]
    if rows:
        await store.append_refunds(work, rows)


async def _number_inquiries(work: Work, inquiries: Mapping[UUID, int]) -> None:
    """The next inquiry about an attempt has a number that none had."""
    rows = await store.load_attempts(work, inquiries)
    numbers = {row.attempt_id: inquiries[row.attempt_id] for row in rows if row.inquiries < inquiries[row.attempt_id]}
    if numbers:
        await store.save_inquiries(work, numbers)


async def _give_time(work: Work) -> None:
    """What the backup knew as unknown may have its result in the log: it is given up when there was time to read that."""
    await store.put_off_abandoning(work, silence.ABANDON, work.now + paying.HEARD_WITHIN)


async def _attempts(work: Work, ids: Collection[UUID]) -> list[UndoneAttempt]:
    rows = [row for row in await store.load_attempts(work, ids) if row.undone]
    return [
        UndoneAttempt(
            row.attempt_id, row.account_id, row.kind, row.processor, format_nano(row.amount_nano), row.currency,
            row.requested_at, row.state,
        )
        for row in sorted(rows, key=lambda row: (row.account_id, row.trigger_version))
    ]  # fmt: skip


async def _refunds(work: Work, ids: Collection[UUID]) -> list[UndoneRefund]:
    rows = await store.refunds_named(work, ids)
    return [
        UndoneRefund(row.refund_id, row.attempt_id, row.account_id, format_nano(row.amount_nano), row.state)
        for row in sorted(rows, key=lambda row: (row.account_id, row.requested_at))
    ]
