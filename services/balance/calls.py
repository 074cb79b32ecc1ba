"""Calls in progress: asked for, started, ended. What authorises calls asks here, inside its own transaction.

The wallet is locked before anything is read, so that calls that start at once are decided one after the other. A call holds
its place for as long as its lease runs, by the one clock: what dies without a word is forgotten by itself.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from services.balance import store
from services.balance.daily_spend import WHOLE
from services.balance.spending import Allowed, CallAsked, Limit, decide
from services.balance.spending import Refused as RefusedCall
from services.kernel.errors import InvalidInput, NotFound, Refused
from services.runtime.work import Work

LEASE_S_MAX = 86_400  # a call that says nothing for a day is over
KEPT = timedelta(hours=1)  # after its lease: longer than any copy of its start is under way
CALLS_AT_ONCE = 10_000  # deleted in one go
DAYS_KEPT = timedelta(days=40)  # of spend: events come 35 days late at most

Decision = Allowed | RefusedCall


async def ask(connection: AsyncConnection, asked: CallAsked) -> Decision:
    """Whether a call could start now; nothing is changed, and nothing is promised."""
    return await _decide(connection, asked, await _caller(connection, asked))


async def start(connection: AsyncConnection, asked: CallAsked, call_leg_id: str, lease_s: int) -> Decision:
    """Start a call if it may; from then on it is in progress until it ends or its lease does.

    The same call again is one call: while its lease runs it is allowed whatever has been reached since, and the lease is made
    longer, never shorter. After its lease it is decided anew. Raises `Refused` for one that has ended.
    """
    if not 0 < lease_s <= LEASE_S_MAX:
        raise InvalidInput(f"must be from 1 to {LEASE_S_MAX} seconds", field="lease_s")
    caller = await _caller(connection, asked, lock=True)
    expires_at = caller.now + timedelta(seconds=lease_s)
    known = await store.call(connection, asked.account_id, call_leg_id)
    if known is not None and known.ended_at is not None:
        raise Refused(
            f"call {call_leg_id} has ended; give each call an id of its own", field="call_leg_id", code="call_ended"
        )
    if known is not None and known.expires_at > caller.now:
        if known.expires_at < expires_at:
            await store.lengthen_lease(connection, asked.account_id, call_leg_id, expires_at)
        return Allowed()
    decision = await _decide(connection, asked, caller)
    if isinstance(decision, Allowed):
        profile = asked.outbound_profile or WHOLE
        await store.start_call(connection, asked.account_id, call_leg_id, profile, caller.now, expires_at)
    return decision


async def end(connection: AsyncConnection, account_id: str, call_leg_id: str) -> bool:
    """End a call; False when it is not known or has ended before, which is no error."""
    return await store.end_call(connection, account_id, call_leg_id)


async def forget(work: Work) -> None:
    """Tick: calls whose leases ended long ago, and days that no event can reach any more."""
    await store.forget_calls(work, work.now - KEPT, CALLS_AT_ONCE)
    await store.forget_days(work, (work.now - DAYS_KEPT).date())


async def _caller(connection: AsyncConnection, asked: CallAsked, *, lock: bool = False) -> Any:
    """The wallet's state and the one clock's instant; `NotFound` when the registry never told the account."""
    caller = await store.caller(connection, asked.account_id, lock=lock)
    if caller is None or caller.registry_version == 0:
        raise NotFound(
            f"no account {asked.account_id} is known; create it first", field="account_id", code="unknown_account"
        )
    if caller.currency != asked.currency:
        raise InvalidInput(f"the wallet is in {caller.currency}", field="currency", code="wrong_currency")
    return caller


async def _decide(connection: AsyncConnection, asked: CallAsked, caller: Any) -> Decision:
    profiles = {WHOLE, asked.outbound_profile or WHOLE}
    rows = await store.limits_now(connection, asked.account_id, caller.now, profiles)
    limits = [
        Limit(row.outbound_profile or None, row.daily_spend_nano, row.calls_max, row.spent_nano, row.calls)
        for row in rows
    ]
    return decide(asked, limits, closed=caller.closed_at is not None, suspended=caller.suspended)
