"""Requests in, answers out: one batch, one transaction. An attempt is carried out once, however often it is asked for."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from contracts.payments import PaymentRequest, PaymentResult
from contracts.topics import PAYMENTS_RESULTS
from services.payments import store
from services.payments.settlement import planned_answers
from services.runtime.records import Record
from services.runtime.work import Work

TIMER = "answer"


async def requests(work: Work, records: list[Record]) -> None:
    """Note each attempt, plan what its processor answers, and give the answers that are due at once."""
    asked: dict[UUID, PaymentRequest] = {}
    for record in records:
        request: PaymentRequest = record.message["data"]
        asked.setdefault(request.attempt_id, request)
    new = await store.append_attempts(
        work,
        [
            {
                "attempt_id": request.attempt_id,
                "account_id": request.account_id,
                "processor": request.processor,
                "token": request.token,
                "amount": request.amount,
                "currency": request.currency,
                "requested_at": request.requested_at,
                "received_at": work.now,
            }
            for request in asked.values()
        ],
    )
    answers = [
        {
            "attempt_id": attempt_id,
            "number": number,
            "result_id": f"{attempt_id}:{answer.result_id}",
            "kind": answer.kind,
            "failure": answer.failure,
            "reason": answer.reason,
            "due_at": work.now + answer.delay,
        }
        for attempt_id in sorted(new)
        for number, answer in enumerate(planned_answers(asked[attempt_id].processor, asked[attempt_id].token), start=1)
    ]
    if answers:
        await store.append_answers(work, answers)
        await _give(work, new)


async def due(work: Work, keys: list[str]) -> None:
    """Timer: give what is due by now."""
    await _give(work, [UUID(key) for key in keys])


async def _give(work: Work, attempt_ids: Iterable[UUID]) -> None:
    attempt_ids = sorted(attempt_ids)
    for row in await store.answers_due(work, attempt_ids):
        result = PaymentResult(
            result_id=row.result_id,
            attempt_id=row.attempt_id,
            processor=row.processor,
            kind=row.kind,
            failure=row.failure,
            reason=row.reason,
            amount=row.amount,
            currency=row.currency,
            at=work.now,
        )
        name = f"{row.attempt_id}:{row.number}"
        work.publish(PAYMENTS_RESULTS, str(row.attempt_id), name, result.data(), member=row.processor)
    await store.answers_told(work, attempt_ids)
    coming = await store.answers_to_come(work, attempt_ids)
    await work.set_timers(TIMER, {str(row.attempt_id): row.due_at for row in coming})
