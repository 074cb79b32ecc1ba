"""What the registry tells of accounts: the wallet's copy of plan, limit, verification and first day."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime

from contracts.groups import AccountTimeline
from services.balance import credit_store, receivables_store, store
from services.balance.debts import judge_overdue
from services.balance.evaluation import Tell, evaluate, load
from services.balance.wallets import Wallet
from services.kernel.errors import Corrupt
from services.kernel.money import parse_amount
from services.runtime.records import Record
from services.runtime.work import Work


async def accounts(work: Work, records: list[Record], *, tell: Tell) -> None:
    """Take over the newest timeline of each account; a wallet that does not exist is made."""
    newest: dict[str, AccountTimeline] = {}
    for record in records:
        timeline: AccountTimeline = record.message["data"]
        if timeline.account_id not in newest or newest[timeline.account_id].version < timeline.version:
            newest[timeline.account_id] = timeline
    await _hold_groups(work, list(newest.values()))  # before the wallets, as whoever pays their invoices does
    await store.add_to_wallets(
        work, [store.Addition(each.account_id, each.organization_id, each.currency, 0, 0) for each in newest.values()]
    )
    wallets = await load(work, newest)
    fresh = [each for each in newest.values() if wallets[each.account_id].registry_version < each.version]
    for timeline in fresh:
        take_over(wallets[timeline.account_id], timeline, work.now)
    shared_before = {account_id: wallet.shared_credit_nano for account_id, wallet in wallets.items()}
    if fresh:
        await _take_over_groups(work, wallets, fresh)
    moved = {each for each, nano in shared_before.items() if nano != wallets[each].shared_credit_nano}
    await evaluate(work, wallets, funds_of=moved | _moneyed(wallets), tell=tell)


def _moneyed(wallets: Mapping[str, Wallet]) -> set[str]:
    """An account that never had money, of its own or its group's, is not suspended for having none; one that is suspended may
    be restored."""
    return {
        each.account_id
        for each in wallets.values()
        if each.wallet_nano or each.unbilled_nano or each.receivable_nano or each.credit_nano or each.suspended_funds
    }


def take_over(wallet: Wallet, timeline: AccountTimeline, now: datetime) -> None:
    """Copy what decides about money. Raises `Corrupt` when charges came in another currency than the account's."""
    if wallet.currency != timeline.currency:
        raise Corrupt(f"account {wallet.account_id} is in {timeline.currency} and its wallet in {wallet.currency}")
    begun = [interval for interval in timeline.plans if interval.start <= now] or list(timeline.plans[:1])
    wallet.organization_id = timeline.organization_id
    wallet.registry_version = timeline.version
    wallet.plan = begun[-1].plan if begun else "trial"
    wallet.level_2 = timeline.level_2
    wallet.credit_limit_nano = parse_amount(timeline.credit_limit, field="credit_limit")
    wallet.created_at = timeline.created_at
    wallet.closed_at = timeline.closed_at
    wallet.changed = True


# ---- payer groups --------------------------------------------------------------------------------------------------

GROUP_CHANGE = "group_change"
"""The timer of an account: the next instant at which another group pays for it."""


async def _hold_groups(work: Work, timelines: Collection[AccountTimeline]) -> None:
    """The groups that pay for these accounts, and those that were told to before: made when they are new, kept as they are until
    the end, before wallets. Else a group that begins to suspend meanwhile would still count an account among its members."""
    groups = {
        each.group_id: receivables_store.NewPayer(each.group_id, timeline.organization_id, each.currency, each.zone)
        for timeline in timelines
        for each in timeline.groups
    }
    if groups:
        await receivables_store.make_payers(work, groups.values())
    before = await receivables_store.groups_of(work, [timeline.account_id for timeline in timelines])
    if held := groups.keys() | before:
        await receivables_store.hold_payers(work, held)


async def _take_over_groups(work: Work, wallets: Mapping[str, Wallet], timelines: Collection[AccountTimeline]) -> None:
    accounts = [timeline.account_id for timeline in timelines]
    await receivables_store.forget_memberships(work, accounts)
    rows = [
        (timeline.account_id, each.start, each.end, each.group_id, each.account_id is not None)
        for timeline in timelines
        for each in timeline.groups
    ]
    if rows:
        await receivables_store.append_memberships(work, rows)
    for row in await credit_store.shared_with(work, accounts):
        wallets[row.account_id].shares(row)
    await _judge_overdue(work, wallets, accounts)
    moves = {
        timeline.account_id: min(each.start for each in timeline.groups if each.start > work.now)
        for timeline in timelines
        if any(each.start > work.now for each in timeline.groups)
    }
    await work.set_timers(GROUP_CHANGE, moves)


async def change_groups(work: Work, keys: list[str], *, tell: Tell) -> None:
    """Timer: another group pays from now on; an account is suspended for what its present group owes, and no other, and
    shares the credits of that group alone."""
    await receivables_store.hold_payers(work, await receivables_store.groups_of(work, keys))
    wallets = await load(work, keys)
    await _judge_overdue(work, wallets, wallets)
    await work.set_timers(GROUP_CHANGE, await receivables_store.next_moves(work, wallets, work.now))
    moneyed = _moneyed(wallets) | await credit_store.had_a_share(work, wallets)
    await evaluate(work, wallets, tell=tell, funds_of=moneyed)


async def _judge_overdue(work: Work, wallets: Mapping[str, Wallet], account_ids: Collection[str]) -> None:
    suspending = await receivables_store.suspending(work, account_ids, work.now)
    for account_id in account_ids:
        judge_overdue(work, wallets[account_id], suspends=account_id in suspending)
