"""Payments that people ask for: into the wallet now or every month, given back, given up.

Runs under the wallets' locks, inside the batch of commands or of timers. Source: domain, section 4; designs/recharge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from uuid import UUID

from contracts.balance import CancelPayment, Pay, RefundPayment, SetSchedule
from services.balance import effects, ledger, orders, paying, recharge, store
from services.balance.claiming import Claims
from services.balance.evaluation import Tell, evaluate, load
from services.balance.orders import Method, Orders
from services.balance.results import keep_method, said_of
from services.balance.wallets import Wallet
from services.kernel.cards import without_card_numbers
from services.kernel.currency import check_decimals, currency
from services.kernel.errors import InvalidInput, NotFound, NotPermitted, Refused, TollbookError
from services.kernel.ids import derived_id
from services.kernel.money import format_nano, parse_amount
from services.runtime.work import Work

SCHEDULE = "schedule"

PaymentCommand = Pay | SetSchedule | RefundPayment | CancelPayment


class Till:
    """What the payment commands of a batch look at, and what they begin."""

    def __init__(
        self,
        own: dict[str, list[recharge.Attempt]],
        claims: Claims,
        by_id: dict[UUID, Any],
        said: Any,
        refunds: Any,
    ) -> None:
        self.orders = Orders()
        self.claims = claims
        self._own = own
        self._by_id = by_id
        self._said: dict[UUID, set[effects.Said]] = {attempt_id: set() for attempt_id in by_id}
        for row in said:
            self._said[row.attempt_id].add(said_of(row))
        self._asked: dict[UUID, int] = {}  # refunds on their way
        self._known_refunds = {row.refund_id: row for row in refunds}
        self._named: dict[UUID, tuple[str, str | None]] = {}
        for row in refunds:
            if row.state == "requested":
                self._asked[row.attempt_id] = self._asked.get(row.attempt_id, 0) + row.amount_nano
        self._refunds: list[dict[str, Any]] = []
        self._timers: dict[str, Any] = {}

    @classmethod
    async def load(cls, work: Work, payers: Iterable[str], attempt_ids: Iterable[UUID] = ()) -> Till:
        """With the attempts of the last 24 hours of these accounts, and these attempts with what was said of them."""
        own: dict[str, list[recharge.Attempt]] = {account_id: [] for account_id in payers}
        if own:
            for row in await store.attempts_since(work, own, work.now - recharge.WINDOW):
                own[row.account_id].append(row)
        claims = await Claims.load(work, own)
        ids = set(attempt_ids)
        if not ids:
            return cls(own, claims, {}, (), ())
        by_id = {row.attempt_id: row for row in await store.load_attempts(work, ids)}
        return cls(own, claims, by_id, await store.load_results(work, ids), await store.load_refunds(work, ids))

    def attempts_of(self, account_id: str) -> list[recharge.Attempt]:
        """What counts for an account today, with what this batch began."""
        return [*self._own[account_id], *self.orders.of(account_id)]

    def attempt(self, account_id: str, attempt_id: UUID) -> Any:
        """A payment of this account; `NotFound` for any other."""
        found = self._by_id.get(attempt_id)
        if found is None or found.account_id != account_id:
            raise NotFound("the account has no payment of this id", field="attempt_id", code="unknown_attempt")
        return found

    def left_of(self, attempt: Any) -> int:
        """What can be given back of a payment: what it moved, without what is being given back already."""
        said = self._said[attempt.attempt_id]
        moved = effects.moved(attempt.attempt_id, attempt.account_id, attempt.processor, said)
        return moved - self._asked.get(attempt.attempt_id, 0)

    def undone_refund(self, work: Work, attempt: Any, refund_id: UUID, actor: str, note: str) -> int | None:
        """What was asked for by this command in an earlier life, if it was; asked for again by the same id while it has no answer."""
        known = self._known_refunds.get(refund_id)
        if known is None:
            return None
        self._named[refund_id] = (without_card_numbers(actor), without_card_numbers(note) or None)
        nano: int = known.amount_nano
        if known.state == "requested":
            orders.refund(work, attempt, refund_id, nano)
        return nano

    def refund(self, work: Work, attempt: Any, refund_id: UUID, nano: int, actor: str, note: str) -> None:
        """A refund that is asked for."""
        self._asked[attempt.attempt_id] = self._asked.get(attempt.attempt_id, 0) + nano
        orders.refund(work, attempt, refund_id, nano)
        self._refunds.append(
            {
                "refund_id": refund_id,
                "attempt_id": attempt.attempt_id,
                "account_id": attempt.account_id,
                "amount_nano": nano,
                "state": "requested",
                "requested_at": work.now,
                "actor": without_card_numbers(actor),
                "note": without_card_numbers(note) or None,
            }
        )

    def schedule(self, wallet: Wallet) -> None:
        """The timer of a wallet's next scheduled payment."""
        if wallet.schedule_at is not None:
            self._timers[wallet.account_id] = wallet.schedule_at

    async def write(self, work: Work) -> None:
        """Append all of it; to be called before the wallets are looked at."""
        await self.orders.write(work)
        await self.claims.write(work)
        if self._refunds:
            await store.append_refunds(work, self._refunds)
        for refund_id, (actor, note) in self._named.items():
            await store.name_refund(work, refund_id, actor, note)
        await work.set_timers(SCHEDULE, self._timers)


# ---- commands ------------------------------------------------------------------------------------------------------


def pay(work: Work, wallet: Wallet, command: Pay, till: Till) -> None:
    """Charge the method of the command, or the saved one, now; not again where an earlier life did."""
    amount = parse_amount(command.amount)
    undone = till.claims.take("manual", wallet.account_id, command.command_id, amount, command.token)
    if undone is not None:
        _take_over(work, wallet, command, undone, till)
        return
    nano = _payable(work, wallet, command.amount, command.currency, till)
    if command.token is not None:
        if command.processor is None:
            raise InvalidInput("is missing: name the processor that gave the token", field="processor")
        paying.check_method(command.processor, command.method_kind)
        method = Method(command.processor, command.method_kind, command.token, given=True)
    elif command.processor is not None:
        raise InvalidInput(
            "is missing: a processor is named for a token; leave both out for the saved method", field="token"
        )
    else:
        method = _saved_method(wallet)
    attempt = till.orders.charge(work, wallet, "manual", nano, method)
    wallet.tell_attempt(work, attempt, "requested", command_id=command.command_id)


def _take_over(work: Work, wallet: Wallet, command: Pay, attempt: store.Unclaimed, till: Till) -> None:
    """The command is read again: what it asked for is known already, whatever became of it."""
    if command.token is not None:
        attempt = attempt._replace(token=command.token, method_version=wallet.method_version)
        if attempt.state == effects.SETTLED:
            keep_method(work, wallet, attempt)
    till.claims.end(attempt)
    wallet.tell_attempt(work, attempt, "requested", command_id=command.command_id)


def set_schedule(work: Work, wallet: Wallet, command: SetSchedule, till: Till) -> None:
    """Pay an amount every month, or no more."""
    if command.amount is None:
        if command.day is not None:
            raise InvalidInput("is missing: a day needs an amount; leave both out to end the schedule", field="amount")
        wallet.schedule_nano = wallet.schedule_day = wallet.schedule_at = None
    else:
        if command.day is None:
            raise InvalidInput("is missing: name the day of the month, 1 to 28 or last", field="day")
        _need_currency(wallet, command.currency)
        nano = parse_amount(command.amount)
        paying.check_amount(nano, currency(wallet.currency))  # the limit counts on the day it is paid
        day = paying.LAST_DAY if command.day == "last" else command.day
        wallet.schedule_nano, wallet.schedule_day = nano, day
        wallet.schedule_at = paying.next_scheduled(day, work.now)
        till.schedule(wallet)
    wallet.tell(
        work,
        "schedule_set",
        command_id=command.command_id,
        amount_nano=wallet.schedule_nano,
        next_allowed_at=wallet.schedule_at,
    )


def refund_payment(work: Work, wallet: Wallet, command: RefundPayment, till: Till) -> None:
    """Have a payment given back; what is left of it bounds the amount."""
    if command.role not in ("finance", "operator"):
        raise NotPermitted("refund_payment needs the role finance or operator", field="role")
    attempt = till.attempt(wallet.account_id, command.attempt_id)
    if not paying.CAPABILITIES[attempt.method_kind].refundable:
        raise Refused(f"a {attempt.method_kind} cannot be given back by its processor", field="attempt_id")
    refund_id = derived_id("refund", wallet.account_id, command.command_id)
    nano = till.undone_refund(work, attempt, refund_id, command.actor, command.note)
    if nano is None:
        nano = _to_give_back(attempt, command, till.left_of(attempt))
        till.refund(work, attempt, refund_id, nano, command.actor, command.note)
    wallet.tell(
        work,
        "refund_requested",
        command_id=command.command_id,
        amount_nano=nano,
        attempt_id=attempt.attempt_id,
        refund_id=refund_id,
    )


def _to_give_back(attempt: Any, command: RefundPayment, left: int) -> int:
    nano = left if command.amount is None else parse_amount(command.amount)
    if left <= 0:
        raise Refused("nothing of this payment is left to give back", field="attempt_id", code="nothing_left")
    check_decimals(nano, attempt.currency)
    if not 0 < nano <= left:
        text = format_nano(left, decimals_min=currency(attempt.currency).exponent)
        raise Refused(
            f"must be above zero and at most the {text} {attempt.currency} that is left of the payment",
            field="amount",
            code="refund_too_large",
        )
    return nano


def cancel_payment(work: Work, wallet: Wallet, command: CancelPayment, till: Till) -> None:
    """Ask that a payment without a result is given up; it is, once the processor confirms it."""
    attempt = till.attempt(wallet.account_id, command.attempt_id)
    if attempt.state not in recharge.IN_FLIGHT:
        raise Refused(f"the payment is {attempt.state}; only one without a result can be given up", field="attempt_id")
    orders.cancel(work, attempt)
    wallet.tell(
        work,
        "cancel_requested",
        command_id=command.command_id,
        attempt_id=attempt.attempt_id,
        amount_nano=attempt.amount_nano,
    )


CARRY_OUT: dict[type[Any], Callable[[Work, Wallet, Any, Till], None]] = {
    Pay: pay,
    SetSchedule: set_schedule,
    RefundPayment: refund_payment,
    CancelPayment: cancel_payment,
}


# ---- the schedule --------------------------------------------------------------------------------------------------


async def scheduled(work: Work, keys: list[str], *, tell: Tell) -> None:
    """Timer: pay what is scheduled, once however late the timer is; what is not possible is told and left out."""
    wallets = await load(work, keys)
    due = [wallet for wallet in wallets.values() if wallet.schedule_at is not None and wallet.schedule_at <= work.now]
    till = await Till.load(work, [wallet.account_id for wallet in due])
    for wallet in due:
        nano = wallet.schedule_nano or 0
        wallet.schedule_at = paying.next_scheduled(wallet.schedule_day or paying.LAST_DAY, work.now)
        wallet.changed = True
        till.schedule(wallet)
        try:
            if wallet.paused_by in ("refund", "dispute"):
                raise Refused(f"payments wait for a person since a {wallet.paused_by}", code="paused")
            if wallet.suspended_operator:
                raise Refused("an operator has suspended the account", code="suspended")
            _payable(work, wallet, format_nano(nano), wallet.currency, till)
            attempt = till.orders.charge(work, wallet, "scheduled", nano, _saved_method(wallet))
        except TollbookError as error:
            wallet.tell(
                work,
                "payment_refused",
                amount_nano=nano,
                reason=error.code,
                message=error.message,
                next_allowed_at=wallet.schedule_at,
            )
        else:
            wallet.tell_attempt(work, attempt, "requested")
    await till.write(work)
    await evaluate(work, wallets, tell=tell, funds_of=())


# ---- small parts ---------------------------------------------------------------------------------------------------


def _payable(work: Work, wallet: Wallet, text: str, code: str, till: Till) -> int:
    """Nanos of a payment that this account may make now."""
    if wallet.closed_at is not None:
        raise Refused("the account is closed", field="account_id", code="closed")
    _need_currency(wallet, code)
    nano = parse_amount(text)
    paying.check_payment(wallet, till.attempts_of(wallet.account_id), nano, currency(wallet.currency), work.now)
    ledger.check_wallet(wallet.wallet_nano + nano)
    return nano


def _saved_method(wallet: Wallet) -> Method:
    """The saved method; `Refused` when none is saved."""
    method = orders.saved_method(wallet)
    if method is None:
        raise Refused(
            "no payment method is saved; save one, or give one with the payment", field="token", code="no_method"
        )
    return method


def _need_currency(wallet: Wallet, code: str) -> None:
    if code != wallet.currency:
        raise InvalidInput(f"the wallet is in {wallet.currency}", field="currency", code="wrong_currency")
