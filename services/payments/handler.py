"""Requests in, answers out. A batch of requests is one transaction that only notes them; each is then carried out by itself.

An operation is an errand: taken in one transaction, put to the processor outside of any, ended in another one together with
what was heard. Of one attempt only one is under way at a time, so that what is told as given up is not charged any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from contracts.payments import PROCESSORS, ChargeRequest, InquireRequest, PaymentRequest, PaymentResult, RefundRequest
from contracts.topics import PAYMENTS_RESULTS
from services.kernel.cards import looks_like_card_number
from services.kernel.errors import Unavailable
from services.payments import store
from services.payments.port import Answer, Heard, Order, Processor, Refund
from services.runtime import processor as runtime
from services.runtime.records import Record
from services.runtime.room import Errand
from services.runtime.work import Work

log = logging.getLogger(__name__)

ANSWER, OPERATION = "answer", "operation"  # the kinds of timers

CALL_S_MAX = 30.0  # a processor that does not answer by then is asked again
LEASE = timedelta(seconds=60)  # of a call: longer than a call and its end can take
WAIT_S_MAX = 60  # between two tries
CHARGED_FOR = timedelta(minutes=15)  # since it was requested: then its account counts it as unknown, and only asks
ASKED_FOR = timedelta(hours=24)  # then the attempt is abandoned: nobody waits for an inquiry or a cancel
UNDER_WAY = timedelta(hours=1)  # between two looks at a refund that was taken and has not ended
FINAL = frozenset({"cancelled", "never_seen"})  # answers that promise that nothing is charged any more


async def requests(work: Work, records: list[Record]) -> None:
    """Note what is asked for, each once, to be carried out at once."""
    asked: dict[str, PaymentRequest] = {}
    for record in records:
        request: PaymentRequest = record.message["data"]
        asked.setdefault(_operation_id(request), request)
    attempts: dict[UUID, dict[str, Any]] = {}
    for request in asked.values():
        if not isinstance(request, RefundRequest):  # it says its own amount, not the attempt's
            attempts.setdefault(request.attempt_id, _attempt_row(work, request))
    if attempts:
        await store.append_attempts(work, list(attempts.values()))
    rows = [_operation_row(work, operation_id, request) for operation_id, request in asked.items()]
    new = await store.append_operations(work, rows)
    await work.set_timers(OPERATION, dict.fromkeys(new, work.now))


async def note_as_over(work: Work, charges: Sequence[ChargeRequest], why: str) -> int:
    """Note charges that are not to be carried out here, and end all others that are still to be; returns how many are new."""
    attempts = {each.attempt_id: _attempt_row(work, each) for each in charges}
    over = {"tries": 1, "done_at": work.now, "outcome": why}
    rows = {(id := _operation_id(each)): _operation_row(work, id, each) | over for each in charges}
    new: set[str] = set()
    if charges:
        await store.append_attempts(work, list(attempts.values()))
        new = await store.append_operations(work, list(rows.values()))
    await work.clear_timers(OPERATION, await store.end_every(work, "charge", why))
    return len(new)


async def due(work: Work, keys: list[str]) -> None:
    """Timer: give what is due by now."""
    await _give(work, [UUID(key) for key in keys])


class Desk:
    """Carries out operations with the processors that there are."""

    def __init__(self, processors: Mapping[str, Processor]) -> None:
        self.processors = processors
        self.errand = Errand(self.carry_out, LEASE)

    async def carry_out(self, room: runtime.Processor, operation_id: str) -> None:
        """Errand: one operation, put to its processor once; tried again later when it is not known what became of it."""
        taken: list[tuple[Any, Order]] = []
        await room.transact(partial(self._take, operation_id, taken))
        for operation, order in taken:
            try:
                async with asyncio.timeout(CALL_S_MAX):
                    heard = await self._put(operation, order)
            except Exception as error:
                # Neither the text of the error nor its trace: they may hold what the processor was sent.
                log.warning("%s of attempt %s failed: %s", operation.kind, order.attempt_id, type(error).__name__)
                await room.transact(partial(self._put_off, operation))
            else:
                await room.transact(partial(self._record, operation, heard))

    async def hear(self, room: runtime.Processor, name: str, said: Sequence[tuple[UUID, Answer]]) -> None:
        """What the processor ``name`` says by itself: published when this returns."""

        async def tell(work: Work) -> None:
            for attempt_id, answer in sorted(said, key=lambda each: (each[0], each[1].result_id)):
                if answer.amount is None or answer.currency is None:
                    raise ValueError(f"{name} says {answer.kind} by itself, without amount and currency")
                attempt = await store.lock_attempt(work, attempt_id)
                if attempt is not None and answer.kind in FINAL:
                    await self._close(work, attempt_id)
                _publish(work, name, attempt_id, answer, answer.amount, answer.currency)

        await room.transact(tell)

    async def _take(self, operation_id: str, taken: list[tuple[Any, Order]], work: Work) -> None:
        """Take an operation if it is still to be done, nothing else of its attempt is under way, and it is not too late."""
        operation = await store.operation(work, operation_id)
        attempt = await store.lock_attempt(work, operation.attempt_id)
        if operation.done_at is None and (why := _given_up(work, operation, attempt)) is not None:
            await store.end_operation(work, operation_id, why)
            if operation.kind == "charge" and why == "too_late" and operation.tries == 0:
                await self._say(work, operation, (_never_sent(operation.attempt_id),))
        elif operation.done_at is None:
            if attempt is not None and (wait_until := await self._busy_until(work, operation, attempt)) is not None:
                await work.set_timers(OPERATION, {operation_id: wait_until})
                return
            await store.count_try(work, operation_id)
            if attempt is not None:
                await store.save_attempt(work, attempt.attempt_id, calling_until=work.now + LEASE)
            taken.append((operation, _order(operation, attempt)))
            return
        await work.clear_timers(OPERATION, [operation_id])

    async def _busy_until(self, work: Work, operation: Any, attempt: Any) -> datetime | None:
        """Until when an operation waits for another one of its attempt, which wakes it when it ends; None when for none.

        Nothing is asked about an attempt before its charge was tried.
        """
        if attempt.calling_until is not None and attempt.calling_until > work.now:
            ends: datetime = attempt.calling_until
            return ends
        if operation.kind != "charge" and await store.is_untried(work, f"{attempt.attempt_id}:charge"):
            return work.now + LEASE
        return None

    async def _free(self, work: Work, operation: Any, *, untried: bool = False, **values: Any) -> None:
        """The call is over: what waited for it goes on; of it only what was never tried, where that is asked."""
        await store.save_attempt(work, operation.attempt_id, calling_until=None, **values)
        waiting = await store.undone(work, operation.attempt_id, untried=untried)
        await work.set_timers(OPERATION, dict.fromkeys(set(waiting) - {operation.operation_id}, work.now))

    async def _put(self, operation: Any, order: Order) -> Heard:
        """Ask the processor; what can be said without it is said here."""
        processor = self.processors.get(operation.processor)
        if (refusal := _refusal(operation, order, self.processors)) is not None:
            return Heard((refusal,))
        if processor is None and operation.kind in ("charge", "refund"):
            raise Unavailable("nobody can say what became of it until its adapter is back")
        if processor is None:
            return Heard()
        match operation.kind:
            case "charge":
                return await processor.charge(order)
            case "inquire":
                return await processor.inquire(order, operation.number)
            case "cancel":
                return await processor.cancel(order)
        return await processor.refund(order, Refund(operation.refund_id, operation.amount))

    async def _put_off(self, operation: Any, work: Work) -> None:
        """It is not known what became of it: the same again, later each time."""
        await store.lock_attempt(work, operation.attempt_id)
        await self._free(work, operation, untried=True)  # others were put off like this one, and would wake it in turn
        wait = timedelta(seconds=min(WAIT_S_MAX, 2 ** min(operation.tries, 10)))
        await work.set_timers(OPERATION, {operation.operation_id: work.now + wait})

    async def _record(self, operation: Any, heard: Heard, work: Work) -> None:
        """End an operation with what was heard, and tell it."""
        attempt_id = operation.attempt_id
        attempt = await store.lock_attempt(work, attempt_id)
        if operation.kind == "refund" and not heard.answers:  # how it ends may be told by nobody else
            if attempt is not None:
                await self._free(work, operation, reference=heard.reference or attempt.reference)
            await work.set_timers(OPERATION, {operation.operation_id: work.now + UNDER_WAY})
            return
        await store.end_operation(work, operation.operation_id, "heard")
        await work.clear_timers(OPERATION, [operation.operation_id])
        if attempt is None:  # a refund of an attempt that was never asked for here
            for answer in heard.answers:
                _publish(work, operation.processor, attempt_id, answer, operation.amount, operation.currency)
            return
        await self._free(work, operation, reference=heard.reference or attempt.reference)
        await self._say(work, operation, heard.answers)

    async def _say(self, work: Work, operation: Any, answers: Sequence[Answer]) -> None:
        """Keep answers about an attempt that is locked, and tell those that are due."""
        attempt_id = operation.attempt_id
        if any(answer.kind in FINAL for answer in answers):
            await self._close(work, attempt_id)
        if answers:
            before = await store.last_answer(work, attempt_id)
            rows = [_answer_row(work, operation, number, answer) for number, answer in enumerate(answers, before + 1)]
            await store.append_answers(work, rows)
            await _give(work, [attempt_id])

    async def _close(self, work: Work, attempt_id: UUID) -> None:
        await store.save_attempt(work, attempt_id, closed_at=work.now)
        await store.end_operations(work, attempt_id, "closed", kind="charge")


# ---- small parts ---------------------------------------------------------------------------------------------------


def _given_up(work: Work, operation: Any, attempt: Any | None) -> str | None:
    """Why an operation is not carried out any more, if so. What is to be given back is owed until somebody answers.

    A charge is too late by when its account asked for it, however long the request lay: another may have followed it since.
    """
    if operation.kind == "refund" or attempt is None:
        return None
    if attempt.closed_at is not None:
        return "closed"
    ends = attempt.requested_at + CHARGED_FOR if operation.kind == "charge" else operation.asked_at + ASKED_FOR
    return "too_late" if work.now >= ends else None


def _never_sent(attempt_id: UUID) -> Answer:
    """What the room itself promises of a charge that it put to no processor, and does not put to one any more."""
    return Answer("cancelled", f"{attempt_id}:cancelled", reason="it was too late to charge it")


def _refusal(operation: Any, order: Order, processors: Mapping[str, Processor]) -> Answer | None:
    """What is answered to a charge or a refund that no processor is asked for. A token is never repeated.

    Where the adapter is gone, only if it was never tried: it may have been carried out, and its answer be lost.
    """
    reason = None
    name, kinds = operation.processor, PROCESSORS.get(operation.processor, ())
    if name not in processors and operation.tries:
        return None
    if name not in processors:
        reason = f"no adapter for the processor {name}; use one of {', '.join(processors)}"
    elif operation.kind == "charge":
        if order.token is None or order.method_kind is None:
            reason = "the attempt has no token"
        elif looks_like_card_number(order.token):
            reason = "the token looks like a card number; save a method with a processor's token instead"
        elif order.method_kind not in kinds:
            reason = f"{name} cannot charge a {order.method_kind}; it can charge {', '.join(kinds)}"
    if reason is None or operation.kind in ("inquire", "cancel"):
        return None
    if operation.kind == "refund":
        result_id = f"{order.attempt_id}:refund_failed:{operation.refund_id}"
        return Answer("refund_failed", result_id, reason=reason, refund_id=operation.refund_id, amount=operation.amount)
    return Answer("failed", f"{order.attempt_id}:error", "error", reason)


async def _give(work: Work, attempt_ids: Iterable[UUID]) -> None:
    attempt_ids = sorted(attempt_ids)
    for row in await store.answers_due(work, attempt_ids):
        _publish(work, row.processor, row.attempt_id, row, row.amount, row.currency)
    await store.answers_told(work, attempt_ids)
    coming = await store.answers_to_come(work, attempt_ids)
    await work.set_timers(ANSWER, {str(attempt_id): due_at for attempt_id, due_at in coming.items()})


def _publish(work: Work, processor: str, attempt_id: UUID, said: Any, amount: str, currency: str) -> None:
    """One result, of an `Answer` or of its row."""
    result = PaymentResult(
        result_id=said.result_id,
        attempt_id=attempt_id,
        processor=processor,
        kind=said.kind,
        failure=said.failure,
        reason=said.reason,
        amount=amount,
        currency=currency,
        at=work.now,
        refund_id=said.refund_id,
        dispute_id=said.dispute_id,
    )
    work.publish(PAYMENTS_RESULTS, str(attempt_id), said.result_id, result.data(), member=processor)


def _operation_id(request: PaymentRequest) -> str:
    """The same request has the same id, however often it comes."""
    name = f"{request.attempt_id}:{request.kind}"
    if isinstance(request, InquireRequest):
        return f"{name}:{request.number}"
    return f"{name}:{request.refund_id}" if isinstance(request, RefundRequest) else name


def _attempt_row(work: Work, request: PaymentRequest) -> dict[str, Any]:
    charge = request if isinstance(request, ChargeRequest) else None
    return {
        "attempt_id": request.attempt_id,
        "account_id": request.account_id,
        "processor": request.processor,
        "method_kind": charge and charge.method_kind,
        "token": charge and charge.token,
        "origin": charge.origin if charge else "auto",
        "amount": request.amount,
        "currency": request.currency,
        "requested_at": request.requested_at,
        "received_at": work.now,
    }


def _operation_row(work: Work, operation_id: str, request: PaymentRequest) -> dict[str, Any]:
    return {
        "operation_id": operation_id,
        "attempt_id": request.attempt_id,
        "processor": request.processor,
        "kind": request.kind,
        "number": request.number if isinstance(request, InquireRequest) else None,
        "refund_id": request.refund_id if isinstance(request, RefundRequest) else None,
        "amount": request.amount,
        "currency": request.currency,
        "asked_at": work.now,
        "tries": 0,
    }


def _order(operation: Any, attempt: Any | None) -> Order:
    if attempt is None:
        return Order(operation.attempt_id, "", operation.amount, operation.currency, operation.asked_at)
    return Order(
        attempt_id=attempt.attempt_id,
        account_id=attempt.account_id,
        amount=attempt.amount,
        currency=attempt.currency,
        requested_at=attempt.requested_at,
        token=attempt.token,
        method_kind=attempt.method_kind,
        origin=attempt.origin,
        reference=attempt.reference,
    )


def _answer_row(work: Work, operation: Any, number: int, answer: Answer) -> dict[str, Any]:
    return {
        "attempt_id": operation.attempt_id,
        "number": number,
        "result_id": answer.result_id,
        "kind": answer.kind,
        "failure": answer.failure,
        "reason": answer.reason,
        "amount": answer.amount,
        "currency": answer.currency,
        "refund_id": answer.refund_id,
        "dispute_id": answer.dispute_id,
        "due_at": work.now + answer.delay,
    }
