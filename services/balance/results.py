"""Results of payment processors, in any order and any number: a payment's effect is a function of the set of its results.

The topic says which processor speaks. A result that fits no attempt of that processor in amount and currency is
quarantined, and finance is told. Source: designs/recharge, section 4.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, cast
from uuid import UUID

from contracts.balance import BalanceEventKind
from contracts.payments import PaymentResult, payment_result
from contracts.topics import PAYMENTS_RESULTS
from services.balance import effects, ledger, recharge, store
from services.balance.book import Book
from services.balance.decoding import decode
from services.balance.effects import SETTLED, Said
from services.balance.evaluation import Tell, evaluate, load_for_attempts
from services.balance.wallets import PauseReason, Wallet
from services.kernel.cards import without_card_numbers
from services.kernel.errors import InvalidInput, NotFound, NotPermitted, TollbookError
from services.kernel.money import parse_amount
from services.runtime import parking
from services.runtime.records import Record
from services.runtime.work import Work

Key = tuple[str, str]  # processor, result id
OF_REFUNDS = frozenset({"refunded", "refund_failed"})
GROUP_PAID = "group_paid"
"""The timer of a payment for a group that settled: its money goes on from the wallet to the group's invoices, at once, in a
transaction of its own: groups are locked before wallets."""
REFUND_FITS = "refund_fits"
"""The timer of an attempt of which a refund failed: one that was too large beside it may fit now, and is replayed. In a
transaction of its own, since both may have come in one batch."""
TAKES_BACK = frozenset({"refunded", "disputed", "dispute_lost"})
TAKEN_BACK = "it paid invoices of a payer group: they stay paid, and the wallet bears what is taken back"
PAUSES: dict[str, PauseReason] = {
    "refunded": "refund",
    "disputed": "dispute",
    "dispute_won": "dispute",
    "dispute_lost": "dispute",
}


async def results(work: Work, records: list[Record], *, tell: Tell) -> None:
    """Store each result once, move its attempt, post what it moves, and look at the wallets again."""
    read = [(record, result) for record in records if (result := _read(work, record)) is not None]
    if not read:
        return
    ids = {result.attempt_id for _, result in read}
    wallets = await load_for_attempts(work, ids)
    payments = Payments(work, wallets, await store.load_attempts(work, ids), await store.load_results(work, ids))
    named = {result.refund_id for _, result in read if result.refund_id is not None}
    refunds = {row.refund_id: row for row in await store.refunds_named(work, named)} if named else {}
    for record, result in read:
        payment = payments.by_id.get(result.attempt_id)
        try:
            _refuse_what_does_not_fit(result, payment, PAYMENTS_RESULTS.member(record.topic))
            payments.refuse_what_was_said_otherwise(result)
            if payment is not None:
                effects.check(said_of(result), payment.attempt.amount_nano, payment.said)
                _refuse_another_refund(result, refunds)
        except TollbookError as error:
            about = {"attempt_id": str(result.attempt_id), "account_id": payment and payment.attempt.account_id}
            work.quarantine(record, error.code, error.message, field=error.field, **about)
            if payment is not None and not isinstance(error, NotPermitted) and not record.replayed:
                message = f"a result is in quarantine: {error}"
                payment.wallet.alarm(work, error.code, message, payment.attempt)
            continue
        if payment is not None:
            payments.take(result, payment)
    await payments.write()
    await evaluate(work, wallets, tell=tell)


async def refunds_that_may_fit(work: Work, keys: list[str]) -> None:
    """Timer: replay what was too large beside a refund that failed; what still is goes back to quarantine without a word."""
    ids = await store.refused_refunds(work, keys)
    if ids:
        await parking.ask(work.connection, work.tables, "replaying", "balance", ids=ids)


class Payment:
    """An attempt with what was said of it so far; its wallet is locked."""

    __slots__ = ("attempt", "said", "state", "wallet")

    def __init__(self, attempt: Any, wallet: Wallet) -> None:
        self.attempt = attempt
        self.wallet = wallet
        self.state: str = attempt.state
        self.said: set[Said] = set()


class Payments:
    """The attempts that a batch of results is about, and what the batch does to them."""

    def __init__(self, work: Work, wallets: dict[str, Wallet], attempts: Any, stored: Any) -> None:
        self._work = work
        self._book = Book()
        self._new: list[dict[str, Any]] = []
        self._states: dict[UUID, tuple[str, datetime | None]] = {}
        self._refunds: dict[UUID, str] = {}
        self._of_groups: dict[str, datetime] = {}
        self._failed_refunds: dict[str, datetime] = {}
        self._stored: dict[Key, tuple[Any, ...]] = {}
        self.by_id = {row.attempt_id: Payment(row, wallets[row.account_id]) for row in attempts}
        for row in stored:
            self._stored[row.processor, row.result_id] = _content(row, row.amount_nano)
            self.by_id[row.attempt_id].said.add(said_of(row))

    def refuse_what_was_said_otherwise(self, result: PaymentResult) -> None:
        """Raise when another result had this id before."""
        before = self._stored.get((result.processor, result.result_id))
        if before is not None and before != _content(result, parse_amount(result.amount)):
            raise InvalidInput("this id had another content before", field="result_id", code="conflict")

    def take(self, result: PaymentResult, payment: Payment) -> None:
        """One more result in the set of its attempt; nothing when it came before."""
        key = (result.processor, result.result_id)
        if key in self._stored:
            return
        self._stored[key] = _content(result, parse_amount(result.amount))
        self._new.append(_row(self._work, result))
        before, after = frozenset(payment.said), payment.said | {said_of(result)}
        if after == before:  # the same under another id
            return
        payment.said = after
        self._post(payment, before)
        self._move(payment, result)
        if effects.contradicts(after) and not effects.contradicts(before):
            reason = f"{said_of(result).what} after {', '.join(sorted({each.what for each in before}))}"
            payment.wallet.tell(
                self._work,
                "contradiction",
                reason=reason,
                attempt_id=payment.attempt.attempt_id,
                amount_nano=payment.attempt.amount_nano,
            )
            message = "the processor contradicts itself; the money stands as if it was taken, the dispute lost, the refund failed"
            payment.wallet.alarm(self._work, "contradiction", message, payment.attempt)
        if result.kind == "refund_failed":
            self._failed_refunds[str(result.attempt_id)] = self._work.now
        if result.kind in PAUSES or result.kind == "refund_failed":
            self._tell_part(payment, result, before)

    def _post(self, payment: Payment, before: frozenset[Said]) -> None:
        """Post what the larger set moves and the smaller one did not."""
        attempt = payment.attempt
        of = (attempt.attempt_id, attempt.account_id, attempt.processor)
        done = effects.movements(*of, before)
        for name, movement in effects.movements(*of, payment.said).items():
            if name not in done:
                self._book.post(self._work, movement.kind, movement.ref, attempt.currency, movement.entries)
                nano = ledger.amounts(movement.entries).get(ledger.WALLET, 0)
                payment.wallet.wallet_nano += nano
                payment.wallet.changed = True
                if attempt.kind == "group" and movement.kind == "payment":
                    payment.wallet.on_its_way_nano += nano

    def _move(self, payment: Payment, result: PaymentResult) -> None:
        """The attempt's state by the set, and what follows for its account."""
        work, wallet, attempt, state = self._work, payment.wallet, payment.attempt, payment.state
        moved = effects.state_of(payment.said) or state
        if moved == state:
            return
        payment.state = moved
        _, ended_at = self._states.get(attempt.attempt_id, (state, attempt.ended_at))
        self._states[attempt.attempt_id] = (moved, ended_at or work.now)  # when it left flight, whatever is said later
        if moved == SETTLED:
            wallet.forgive_declines()
            wallet.tell_attempt(work, attempt, "settled")
            if state == "abandoned":
                wallet.tell_attempt(work, attempt, "late")
                wallet.alarm(work, "late", "it was given up, and then it settled: it is credited", attempt)
            keep_method(work, wallet, attempt)
            if attempt.kind == "group":
                self._of_groups[str(attempt.attempt_id)] = work.now
            return
        reason = result.reason and without_card_numbers(result.reason)
        if result.kind != "failed":
            reason = result.kind
        next_allowed_at = None
        paused = False
        by_present_method = attempt.method_version == wallet.method_version
        if (
            attempt.kind == "auto" and by_present_method and state != "abandoned"
        ):  # else another may have followed since
            judge = recharge.after_decline if moved == "declined" else recharge.after_error
            after = judge(wallet.decline_streak, work.now)
            wallet.decline_streak, wallet.retry_at = after.decline_streak, after.retry_at
            next_allowed_at, paused = after.retry_at, after.paused
        told = "declined" if moved == "declined" else "failed" if result.kind == "failed" else "cancelled"
        wallet.tell_attempt(work, attempt, told, reason=reason, next_allowed_at=next_allowed_at)
        if paused:
            wallet.pause(work, "declines", attempt)

    def _tell_part(self, payment: Payment, result: PaymentResult, before: frozenset[Said]) -> None:
        """A refund or a dispute: told once each. The first that is said of one pauses auto-recharge, unless it failed: how it ends
        may come weeks after a person has switched it on again."""
        wallet, attempt = payment.wallet, payment.attempt
        if result.refund_id is not None:
            has_failed = str(result.refund_id) in effects.parts_of(payment.said, "refund_failed")
            self._refunds[result.refund_id] = "failed" if has_failed else "refunded"
        wallet.tell(
            self._work,
            cast(BalanceEventKind, result.kind),
            amount_nano=parse_amount(result.amount),
            attempt_id=attempt.attempt_id,
            refund_id=result.refund_id,
            reason=result.reason and without_card_numbers(result.reason),
            message=TAKEN_BACK if attempt.kind == "group" and result.kind in TAKES_BACK else None,
        )
        part = said_of(result).part
        if (reason := PAUSES.get(result.kind)) is not None and all(each.part != part for each in before):
            wallet.pause(self._work, reason, attempt)

    async def write(self) -> None:
        """Save what changed."""
        if self._new:
            await store.append_results(self._work, self._new)
        if self._states:
            await store.save_attempts(self._work, self._states)
        if self._refunds:
            await store.end_refunds(self._work, self._refunds)
        await self._work.set_timers(GROUP_PAID, self._of_groups)
        await self._work.set_timers(REFUND_FITS, self._failed_refunds)
        await self._book.write(self._work)


# ---- one result ----------------------------------------------------------------------------------------------------


def said_of(result: Any) -> Said:
    """What a result, or its row, says in the set of its attempt."""
    nano = parse_amount(result.amount) if isinstance(result, PaymentResult) else result.amount_nano
    part = result.dispute_id
    if result.kind in OF_REFUNDS:
        part = str(result.refund_id or result.result_id)
    return Said(result.failure or result.kind, nano, part)


def _read(work: Work, record: Record) -> PaymentResult | None:
    try:
        result: PaymentResult = decode(payment_result, record.value)
        if (result.kind == "failed") != (result.failure is not None):
            raise InvalidInput("stands with a failed result and with no other", field="failure")
        if (result.kind in effects.DISPUTES) != (result.dispute_id is not None):
            raise InvalidInput("stands with what is said of a dispute and with no other", field="dispute_id")
        if result.refund_id is not None and result.kind not in OF_REFUNDS:
            raise InvalidInput("stands with a refund and with no other", field="refund_id")
        return result
    except InvalidInput as error:
        work.quarantine(
            record, "invalid_result" if error.code == "invalid" else error.code, error.message, field=error.field
        )
        return None


def _refuse_what_does_not_fit(result: PaymentResult, payment: Payment | None, member: str) -> None:
    """Raise when finance has to look: the reason is the error's code."""
    if result.processor != member:
        raise NotPermitted(f"only {result.processor} may say this, on its own topic", field="processor")
    if payment is None:
        raise NotFound("no attempt has this id", field="attempt_id", code="unknown_attempt")
    if payment.attempt.processor != member:
        raise NotPermitted(f"this attempt went to {payment.attempt.processor}", field="processor")
    if result.currency != payment.attempt.currency:
        raise InvalidInput(f"the attempt is in {payment.attempt.currency}", field="currency", code="currency_mismatch")


def _refuse_another_refund(result: PaymentResult, refunds: dict[UUID, Any]) -> None:
    """Raise when a refund that was asked for comes back with another amount, or of another payment."""
    asked = refunds.get(result.refund_id) if result.refund_id is not None else None
    if asked is not None and asked.attempt_id != result.attempt_id:
        raise InvalidInput("is of a refund of another payment", field="refund_id", code="conflict")
    if asked is not None and asked.amount_nano != parse_amount(result.amount):
        raise InvalidInput("is not what was asked for", field="amount", code="amount_mismatch")


def keep_method(work: Work, wallet: Wallet, attempt: Any) -> None:
    """The method of a successful payment is saved when none is; not when one was deleted since the payment began."""
    if attempt.token is None or wallet.method_token is not None or attempt.method_version != wallet.method_version:
        return
    wallet.save_method(attempt.processor, attempt.method_kind, attempt.token)
    wallet.tell(work, "method_saved", attempt_id=attempt.attempt_id)


def _content(result: Any, nano: int) -> tuple[Any, ...]:
    return (result.attempt_id, result.kind, result.failure, nano, result.refund_id, result.dispute_id)


def _row(work: Work, result: PaymentResult) -> dict[str, Any]:
    return {
        "processor": result.processor,
        "result_id": result.result_id,
        "attempt_id": result.attempt_id,
        "kind": result.kind,
        "failure": result.failure,
        "reason": None if result.reason is None else without_card_numbers(result.reason),
        "at": result.at,
        "received_at": work.now,
        "amount_nano": parse_amount(result.amount),
        "refund_id": result.refund_id,
        "dispute_id": result.dispute_id,
    }
