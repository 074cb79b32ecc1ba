"""What follows from a wallet's state: recharges, suspension, restoration. Looked at once per account and transaction.

Runs under the wallets' locks, always from scratch; so a timer that comes late or twice changes nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

from services.balance import levels, recharge, store, suspension
from services.balance.debts import WALLET_PAYS, pays_from_wallet
from services.balance.leases import lapse
from services.balance.orders import Orders, saved_method
from services.balance.wallets import Wallet
from services.kernel.errors import Corrupt
from services.kernel.money import format_nano
from services.runtime.work import Work

CAP_OPEN, BACKOFF_OVER, LIMIT_DAY = "cap_open", "backoff_over", "limit_day"

TEN_IN_A_DAY = "ten_in_24_hours"
"""The reason of `recharge_capped`: so many recharges lie in the window."""

Tell = Callable[[Mapping[str, bool]], None]
"""Takes, after the commit, which accounts are suspended (True) or restored (False)."""


async def load(work: Work, account_ids: Iterable[str]) -> dict[str, Wallet]:
    """The wallets of these accounts, locked in order, without what leases held that are over; unknown ones are left out."""
    return await _in_hand(work, await store.lock_wallets(work, account_ids))


def demands_attention(standing: store.Standing) -> bool:
    """Whether a wallet after charges can need a decision; cheap, for every account of a batch.

    What its group shares is left out: who lives on that alone is looked at with each batch. Money in a wallet that owes of
    invoices pays them, also what a reversal of an old charge brings.
    """
    if standing.receivable_nano < 0 < standing.wallet_nano:
        return True
    funds = (
        standing.wallet_nano
        - standing.on_its_way_nano
        + standing.credit_nano
        + standing.credit_limit_nano
        + standing.unbilled_nano
        + standing.receivable_nano
    )
    if (funds <= 0) != standing.suspended_funds:
        return True
    available = funds - standing.held_nano
    if standing.recharge_enabled and (available <= standing.threshold_nano or standing.notice is not None):
        return True
    return levels.moves(levels.Marks(standing.level_next_nano, standing.level_told_nano), available)


def has_consequences(wallet: Wallet) -> bool:
    """Whether another available credit of a locked wallet, with the same funds, can have consequences."""
    if wallet.recharge_enabled and (wallet.available_nano <= wallet.threshold_nano or wallet.notice is not None):
        return True
    return levels.moves(wallet.marks, wallet.available_nano)


async def evaluate(
    work: Work, wallets: Mapping[str, Wallet], *, tell: Tell, funds_of: Collection[str] | None = None
) -> None:
    """Decide for locked wallets, write what follows, and save those that changed.

    ``funds_of`` names the accounts whose money, limit or attempts this transaction moved, all by default: only they are
    suspended or restored. An account that the registry has not told yet is left alone until it is.
    """
    known = [wallets[account_id] for account_id in sorted(wallets) if wallets[account_id].is_known]
    own = await _attempts_of(work, known)
    orders = Orders()
    timers: dict[str, dict[str, datetime]] = defaultdict(dict)
    for wallet in known:
        attempts = own[wallet.account_id]
        asked_now = _recharge(work, wallet, attempts, orders, timers)
        if asked_now is not None:
            attempts = [*attempts, asked_now]
        if funds_of is None or wallet.account_id in funds_of:
            _judge_funds(work, wallet, attempts)
        if pays_from_wallet(wallet) and not wallet.has_paid:
            timers[WALLET_PAYS][wallet.account_id] = work.now
    await orders.write(work)
    await _tell_levels(work, [wallet for wallet in known if levels.moves(wallet.marks, wallet.available_nano)])
    changed = [wallets[account_id].row() for account_id in sorted(wallets) if wallets[account_id].changed]
    if changed:
        await store.save_wallets(work, changed)
    for kind in sorted(timers):
        await work.set_timers(kind, timers[kind])
    suspensions = {
        wallet.account_id: wallet.is_suspended
        for wallet in wallets.values()
        if wallet.is_suspended != wallet.was_suspended
    }
    if suspensions:
        work.after_commit.append(partial(tell, suspensions))


async def look_again(work: Work, keys: list[str], *, tell: Tell) -> None:
    """Timer: the cap opens, a back-off is over, a new day begins. The rule is asked again, nothing else."""
    await evaluate(work, await load(work, keys), tell=tell, funds_of=())


async def load_for_attempts(work: Work, attempt_ids: Iterable[UUID]) -> dict[str, Wallet]:
    """The wallets that these attempts belong to, locked in order."""
    return await _in_hand(work, await store.lock_wallets_of_attempts(work, attempt_ids))


async def _in_hand(work: Work, rows: Iterable[Mapping[str, Any]]) -> dict[str, Wallet]:
    wallets = {row["account_id"]: Wallet.of(row) for row in rows}
    await lapse(work.connection, wallets, work.now)
    return wallets


# ---- one wallet ----------------------------------------------------------------------------------------------------


def _recharge(
    work: Work,
    wallet: Wallet,
    attempts: list[recharge.Attempt],
    orders: Orders,
    timers: dict[str, dict[str, datetime]],
) -> store.NewAttempt | None:
    """Ask the rule; tell what it says, once; returns the new attempt if it wants one."""
    match recharge.decide(wallet, attempts, work.now):
        case recharge.Request(amount_nano=amount_nano, counted=counted):
            wallet.notice = None
            return _request(work, wallet, amount_nano, counted, orders)
        case recharge.Capped(next_allowed_at=opens_at):
            timers[CAP_OPEN][wallet.account_id] = opens_at
            _tell_once(work, wallet, "capped", next_allowed_at=opens_at)
        case recharge.Refused(reason=reason, next_allowed_at=next_allowed_at):
            if next_allowed_at is not None:
                timers[LIMIT_DAY][wallet.account_id] = next_allowed_at
            _tell_once(work, wallet, reason, next_allowed_at=next_allowed_at)
        case recharge.Wait(until=until):
            timers[BACKOFF_OVER][wallet.account_id] = until
            _forget_notice(wallet)
        case recharge.Nothing():
            _forget_notice(wallet)
    return None


def _tell_once(work: Work, wallet: Wallet, notice: str, *, next_allowed_at: datetime | None) -> None:
    if wallet.notice == notice:
        return
    wallet.notice = notice
    if notice == "capped":
        wallet.tell(work, "recharge_capped", reason=TEN_IN_A_DAY, next_allowed_at=next_allowed_at)
    else:
        wallet.tell(work, "recharge_refused", reason=notice, next_allowed_at=next_allowed_at)


def _forget_notice(wallet: Wallet) -> None:
    if wallet.notice is not None:
        wallet.notice = None
        wallet.changed = True


def _request(work: Work, wallet: Wallet, amount_nano: int, counted: int, orders: Orders) -> store.NewAttempt:
    """A new attempt: its id is the idempotency key, its request goes out with this transaction."""
    method = saved_method(wallet)
    if method is None:
        raise Corrupt(f"account {wallet.account_id} is recharged without a method")
    attempt = orders.charge(work, wallet, "auto", amount_nano, method)
    wallet.tell_attempt(work, attempt, "requested")
    if counted + 1 == recharge.EIGHTH:
        wallet.tell(work, "recharge_eighth", attempt_id=attempt.attempt_id)
    return attempt


def _judge_funds(work: Work, wallet: Wallet, attempts: list[recharge.Attempt]) -> None:
    """Suspend for want of funds, or lift that reason."""
    verdict = suspension.judge(
        funds_nano=wallet.funds_nano, suspended=wallet.suspended_funds, attempts=attempts, now=work.now
    )
    match verdict:
        case suspension.Suspend():
            wallet.add_reason(work, "funds")
        case suspension.Restore():
            wallet.lift_reason(work, "funds")
        case suspension.Unchanged():  # a delay ends with the timer of the attempt's result
            pass


async def _tell_levels(work: Work, wallets: Sequence[Wallet]) -> None:
    """Tell each low-balance level that was reached, once, and arm those that are above water again."""
    if not wallets:
        return
    own: dict[str, list[int]] = defaultdict(list)
    for account_id, nano in await store.levels_of(work, [wallet.account_id for wallet in wallets]):
        own[account_id].append(nano)
    for wallet in wallets:
        mine, available = own[wallet.account_id], wallet.available_nano
        for nano in levels.crossed(mine, wallet.marks, available):
            wallet.tell(work, "low_balance", level=format_nano(nano))
        wallet.set_marks(levels.marks(mine, available))


async def _attempts_of(work: Work, wallets: Iterable[Wallet]) -> dict[str, list[recharge.Attempt]]:
    own: dict[str, list[recharge.Attempt]] = {wallet.account_id: [] for wallet in wallets}
    if own:
        for row in await store.attempts_since(work, own, work.now - recharge.WINDOW):
            own[row.account_id].append(row)
    return own
