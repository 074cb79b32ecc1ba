"""Results of payment processors, in any order and any number: a payment's effect is a function of the set of its results.

The topic says which processor speaks. A result that fits no attempt of that processor in amount and currency is
quarantined for finance. Source: designs/recharge, section 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import TypeAdapter

from contracts.balance import BalanceEventKind
from contracts.payments import PaymentResult
from contracts.topics import PAYMENTS_RESULTS
from services.balance import ledger, recharge, store
from services.balance.book import Book
from services.balance.decoding import decode
from services.balance.evaluation import Tell, evaluate, load_for_attempts
from services.balance.wallets import Wallet
from services.kernel.cards import without_card_numbers
from services.kernel.errors import InvalidInput, NotFound, NotPermitted, TollbookError
from services.kernel.money import parse_amount
from services.runtime.records import Record
from services.runtime.work import Work

_adapter: TypeAdapter[PaymentResult] = TypeAdapter(PaymentResult)

SETTLED = "settled"

Key = tuple[str, str]  # processor, result id
Said = tuple[UUID, str, str | None]  # attempt, kind, failure


async def results(work: Work, records: list[Record], *, tell: Tell) -> None:
    """Store each result once, move its attempt, credit what settled, and look at the wallets again."""
    read = [(record, result) for record in records if (result := _read(work, record)) is not None]
    if not read:
        return
    ids = {result.attempt_id for _, result in read}
    wallets = await load_for_attempts(work, ids)
    attempts = {row.attempt_id: row for row in await store.load_attempts(work, ids)}
    stored: dict[Key, Said] = {
        (row.processor, row.result_id): (row.attempt_id, row.kind, row.failure)
        for row in await store.load_results(work, ids)
    }
    new: list[dict[str, Any]] = []
    states: dict[UUID, tuple[str, datetime | None]] = {}
    book = Book()
    for record, result in read:
        attempt = attempts.get(result.attempt_id)
        try:
            _refuse_what_does_not_fit(result, attempt, stored, PAYMENTS_RESULTS.member(record.topic))
        except TollbookError as error:
            about = {"attempt_id": str(result.attempt_id), "account_id": attempt.account_id if attempt else None}
            work.quarantine(record, error.code, error.message, field=error.field, **about)
            continue
        key = (result.processor, result.result_id)
        if attempt is None or key in stored:
            continue
        before = frozenset(failure or kind for of, kind, failure in stored.values() if of == result.attempt_id)
        stored[key] = (result.attempt_id, result.kind, result.failure)
        new.append(_row(work, result))
        state = states.get(result.attempt_id, (attempt.state, attempt.ended_at))[0]
        moved = _move(work, wallets[attempt.account_id], attempt, state, before, result, book)
        if moved != state:
            states[result.attempt_id] = (moved, work.now)
    if new:
        await store.append_results(work, new)
        await store.save_attempts(work, states)
        await book.write(work)
        await evaluate(work, wallets, tell=tell)


def _read(work: Work, record: Record) -> PaymentResult | None:
    try:
        result: PaymentResult = decode(_adapter, record.value)
        if (result.kind == "failed") != (result.failure is not None):
            raise InvalidInput("stands with a failed result and with no other", field="failure")
        return result
    except InvalidInput as error:
        work.quarantine(
            record, "invalid_result" if error.code == "invalid" else error.code, error.message, field=error.field
        )
        return None


def _refuse_what_does_not_fit(
    result: PaymentResult, attempt: Any | None, stored: Mapping[Key, Said], member: str
) -> None:
    """Raise when finance has to look: the reason is the error's code."""
    if result.processor != member:
        raise NotPermitted(f"only {result.processor} may say this, on its own topic", field="processor")
    if attempt is None:
        raise NotFound("no attempt has this id", field="attempt_id", code="unknown_attempt")
    if attempt.processor != member:
        raise NotPermitted(f"this attempt went to {attempt.processor}", field="processor")
    if result.currency != attempt.currency:
        raise InvalidInput(f"the attempt is in {attempt.currency}", field="currency", code="currency_mismatch")
    if parse_amount(result.amount) != attempt.amount_nano:
        raise InvalidInput("is not what was asked for", field="amount", code="amount_mismatch")
    before = stored.get((result.processor, result.result_id))
    if before is not None and before != (result.attempt_id, result.kind, result.failure):
        raise InvalidInput("this id had another content before", field="result_id", code="conflict")


def state_of(said: frozenset[str]) -> str:
    """The state of an attempt by the set of what was said of it, in whatever order: what settled stays settled.

    >>> state_of(frozenset({"declined", "settled"})), state_of(frozenset({"error", "declined"})), state_of(frozenset({"error"}))
    ('settled', 'declined', 'cancelled')
    """
    if SETTLED in said:
        return SETTLED
    return "declined" if "declined" in said else "cancelled"


def contradicts(said: frozenset[str]) -> bool:
    """Whether a processor said both that it took the money and that it did not."""
    return SETTLED in said and len(said) > 1


def _move(
    work: Work,
    wallet: Wallet,
    attempt: Any,
    state: str,
    before: frozenset[str],
    result: PaymentResult,
    book: Book,
) -> str:
    """The attempt's state with one more result in its set; credits, counts declines and tells what changed."""
    said = result.failure or result.kind
    moved = state_of(before | {said})
    about: dict[str, Any] = {"amount_nano": attempt.amount_nano, "attempt_id": attempt.attempt_id}
    if contradicts(before | {said}) and not contradicts(before):
        wallet.tell(work, "contradiction", reason=f"{said} after {', '.join(sorted(before))}", **about)
    if moved == state:
        return state
    if moved == SETTLED:
        entries = ledger.payment(wallet.account_id, attempt.processor, attempt.amount_nano)
        book.post(work, "payment", str(attempt.attempt_id), attempt.currency, entries)
        wallet.wallet_nano += attempt.amount_nano
        wallet.decline_streak, wallet.retry_at, wallet.paused = 0, None, False
        wallet.tell(work, "recharge_settled", **about)
        return moved
    after = (recharge.after_decline if moved == "declined" else recharge.after_error)(wallet.decline_streak, work.now)
    told: BalanceEventKind = "recharge_declined" if moved == "declined" else "recharge_failed"
    wallet.decline_streak, wallet.retry_at = after.decline_streak, after.retry_at
    wallet.tell(
        work,
        told,
        reason=result.reason and without_card_numbers(result.reason),
        next_allowed_at=after.retry_at,
        **about,
    )
    if after.paused and not wallet.paused:
        wallet.paused, wallet.notice = True, "paused"
        wallet.tell(work, "recharge_paused", reason="declines")
    return moved


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
    }
