"""What the registry tells of accounts: the wallet's copy of plan, limit, verification and first day."""

from __future__ import annotations

from datetime import datetime

from contracts.groups import AccountTimeline
from services.balance import store
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
    await store.add_to_wallets(
        work, [store.Addition(each.account_id, each.organization_id, each.currency, 0, 0) for each in newest.values()]
    )
    wallets = await load(work, newest)
    for account_id, timeline in newest.items():
        if wallets[account_id].registry_version < timeline.version:
            take_over(wallets[account_id], timeline, work.now)
    # An account that never had money is not suspended for having none.
    moneyed = [each for each in wallets.values() if each.wallet_nano or each.unbilled_nano or each.receivable_nano]
    await evaluate(work, wallets, funds_of=[each.account_id for each in moneyed], tell=tell)


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
