"""Attempts that had no result: unknown after 15 minutes, inquired about with the same key, abandoned after a day, and never
before there was time to hear an answer.

Each timer looks at the attempt anew, so one that comes late or twice changes nothing. Source: designs/recharge, section 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any
from uuid import UUID

from services.balance import orders, recharge, store
from services.balance.evaluation import Tell, evaluate, load_for_attempts
from services.balance.paying import CAPABILITIES, HEARD_WITHIN, inquiry_wait
from services.runtime.work import Work

INQUIRY, ABANDON = "inquiry", "abandon"


async def unknown(work: Work, keys: list[str], *, tell: Tell) -> None:
    """Timer: no result for 15 minutes. The attempt stays in flight; its end is asked for, never asked for anew."""
    ids = [UUID(key) for key in keys]
    wallets = await load_for_attempts(work, ids)
    silent = [row for row in await store.load_attempts(work, ids) if row.state == "requested"]
    silent = [row for row in silent if work.now >= row.requested_at + recharge.RESULT_TIMEOUT]
    if silent:
        await store.save_attempts(work, {row.attempt_id: ("unknown", None) for row in silent})
        await ask_about(work, silent, first_at=work.now + inquiry_wait(0))
    for row in sorted(silent, key=lambda row: str(row.attempt_id)):
        wallets[row.account_id].tell_attempt(work, row, "unknown", reason="no_result")
    await evaluate(work, wallets, tell=tell)


async def ask_about(work: Work, attempts: Iterable[Any], *, first_at: datetime) -> None:
    """Set the timers of attempts that are unknown from now on: the first inquiry, and when they are given up."""
    attempts = list(attempts)
    await work.set_timers(INQUIRY, {str(each.attempt_id): first_at for each in attempts})
    # After an outage of ours the day may be over already, and the result be written and not read yet.
    heard_by = work.now + HEARD_WITHIN
    await work.set_timers(ABANDON, {str(each.attempt_id): max(_given_up_at(each), heard_by) for each in attempts})


async def inquire(work: Work, keys: list[str], *, tell: Tell) -> None:
    """Timer: ask what became of unknown attempts, with the same key, and again after 1, 2, 4 .. 60 minutes."""
    ids = [UUID(key) for key in keys]
    wallets = await load_for_attempts(work, ids)
    rows = [row for row in await store.load_attempts(work, ids) if row.state == "unknown"]
    numbers = {row.attempt_id: row.inquiries + 1 for row in rows}
    for row in sorted(rows, key=lambda row: str(row.attempt_id)):
        orders.inquire(work, row, numbers[row.attempt_id])
    if numbers:
        await store.save_inquiries(work, numbers)
    due = {str(attempt_id): work.now + inquiry_wait(number) for attempt_id, number in numbers.items()}
    await work.set_timers(INQUIRY, due)
    await evaluate(work, wallets, tell=tell, funds_of=())


async def abandon(work: Work, keys: list[str], *, tell: Tell) -> None:
    """Timer: nobody says what became of it. It is not in flight any more; finance is told, a late success is credited."""
    ids = [UUID(key) for key in keys]
    wallets = await load_for_attempts(work, ids)
    rows = [row for row in await store.load_attempts(work, ids) if row.state == "unknown"]
    rows = [row for row in rows if work.now >= _given_up_at(row)]
    if rows:
        await store.save_attempts(work, {row.attempt_id: ("abandoned", work.now) for row in rows})
    for row in sorted(rows, key=lambda row: str(row.attempt_id)):
        wallet = wallets[row.account_id]
        wallet.tell_attempt(work, row, "abandoned", reason="no_result")
        wallet.alarm(work, "abandoned", "no result came, however often it was asked for", row)
    await evaluate(work, wallets, tell=tell)


def _given_up_at(row: Any) -> datetime:
    at: datetime = row.requested_at + CAPABILITIES[row.method_kind].abandoned_after
    return at
