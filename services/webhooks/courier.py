"""Delivers: takes endpoints that are due, calls each outside of any transaction, and notes what came of it.

An endpoint in hand is held by a lease on its row, never by a lock: the call waits for the world, and a transaction must not.
One delivery of an endpoint is under way at a time, so its order holds; endpoints have nothing to do with each other, and each
has a turn of its own. Who dies between the call and the note leaves a lease that runs out, and the same message is sent again
with the same id: at least once. A call is cut off long before its lease is over, so no two are under way.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.kernel.ids import derived_id
from services.kernel.period import instant_text
from services.runtime import faults
from services.runtime.database import is_retryable, transaction
from services.runtime.ending import end
from services.runtime.processor import Processor
from services.webhooks import store
from services.webhooks.delivering import Again, Answer, Delivered, Disabled, decide
from services.webhooks.handler import spread
from services.webhooks.messages import DISABLED, event, headers
from services.webhooks.safe import OPEN, Safe

log = logging.getLogger(__name__)

ENDPOINTS_AT_ONCE = 100  # in one worker: each costs a socket and a few kilobytes
LEASE_S = 60.0  # three times what a call may take and be noted in
TURN_S = 2.0  # one endpoint after another: a long queue gives its place back now and then
NOTES_AT_ONCE = 4  # connections of the pool that are left to batches are as many
NOTE_S_MAX = 20.0  # to note what came of a call, if the database is away; then the lease runs out
SAID_CHARACTERS_MAX = 200


class Calls(Protocol):
    """What calls a receiver; `calling.Caller`, which never raises for what a receiver does."""

    async def call(self, url: str, headers: dict[str, str], body: str) -> Answer: ...


@dataclass(frozen=True, slots=True)
class Parcel:
    """One delivery in hand: what to send where, and the lease under which it is sent. ``secrets`` are as they are kept. ``sent_at`` is the database's time of
    day: receivers refuse what is signed minutes off, and this process may have the wrong time."""

    endpoint_id: str
    lease: UUID
    url: str
    secrets: tuple[str, ...]
    event_no: int
    event_id: str
    body: str
    tries: int
    attempts: int
    sent_at: datetime


class Courier:
    """The deliveries of one worker."""

    def __init__(self, caller: Calls, chance: Callable[[], float] = random.random, safe: Safe = OPEN) -> None:
        self._caller = caller
        self._safe = safe
        self._chance = chance
        self._turns: set[asyncio.Task[None]] = set()
        self._notes = asyncio.Semaphore(NOTES_AT_ONCE)

    async def check(self, processor: Processor) -> None:
        """At the start: `InvalidInput` when a key is missing. Every delivery would fail, and its endpoint be disabled in the end."""
        async with transaction(processor.engine) as connection:
            for row in await store.lock_secrets(connection):
                for kept in filter(None, (row.secret, row.previous_secret)):
                    self._safe.take(kept)

    async def look(self, processor: Processor) -> bool:
        """Start a turn for each endpoint that is due, as far as there is room; whether more may be due."""
        room = ENDPOINTS_AT_ONCE - len(self._turns)
        if room <= 0:
            return False
        parcels = await _take(processor.engine, room)
        for parcel in parcels:
            turn = asyncio.create_task(self._turn(processor.engine, parcel))
            self._turns.add(turn)
            turn.add_done_callback(self._turns.discard)
        return len(parcels) == room

    async def rest(self) -> None:
        """Wait until no turn is under way."""
        while self._turns:
            await asyncio.gather(*self._turns)

    async def stop(self) -> None:
        """Cut off the calls that are under way; their leases run out, and they are made again."""
        await end(self._turns)

    async def _turn(self, engine: AsyncEngine, parcel: Parcel) -> None:
        """Deliver one after the other at an endpoint, while they are taken and for as long as a turn lasts."""
        ends_at = time.monotonic() + TURN_S
        following: Parcel | None = parcel
        try:
            while following is not None:
                faults.step("webhooks.call.taken")
                answer = await self._call(following)
                faults.step("webhooks.call.answered")
                following = await self._note(engine, following, answer, go_on=time.monotonic() < ends_at)
                faults.step("webhooks.call.noted")
        except Exception as error:
            log.error("endpoint %s is tried again when its lease is over", parcel.endpoint_id, exc_info=error)

    async def _call(self, parcel: Parcel) -> Answer:
        """The call; what we could not do ourselves counts as a failed attempt, or it would be repeated without an end."""
        try:
            secrets = [self._safe.take(each) for each in parcel.secrets]
            signed = headers(parcel.event_id, parcel.body, secrets, parcel.sent_at)
            return await self._caller.call(parcel.url, signed, parcel.body)
        except Exception as error:
            log.error("event %s cannot be sent to %s", parcel.event_id, parcel.endpoint_id, exc_info=error)
            return Answer(error=f"could not be sent ({type(error).__name__})")

    async def _note(self, engine: AsyncEngine, parcel: Parcel, answer: Answer, *, go_on: bool) -> Parcel | None:
        """Note the attempt, and take the next delivery if this one is settled; tried again while the database is away."""
        give_up = time.monotonic() + NOTE_S_MAX
        while True:
            try:
                async with self._notes, transaction(engine) as connection:
                    return await note(connection, parcel, answer, self._chance(), go_on=go_on)
            except Exception as error:
                if not is_retryable(error) or time.monotonic() > give_up:
                    raise
                log.warning("an attempt is noted again: %s", type(error).__name__)
                await asyncio.sleep(0.5)


async def note(
    connection: AsyncConnection, parcel: Parcel, answer: Answer, chance: float, *, go_on: bool = False
) -> Parcel | None:
    """Write down what came of a call and what follows from it; the next parcel of the endpoint if there is one to go on with.

    Nothing is written when the lease is not ours any more: somebody else has the endpoint, or it was disabled or deleted.
    """
    endpoint = await store.lock_endpoint(connection, parcel.endpoint_id, lease=parcel.lease)
    if endpoint is None:
        log.warning("what %s answered to %s came after its lease", parcel.endpoint_id, parcel.event_id)
        return None
    now, tries, attempts = endpoint.now, parcel.tries + 1, parcel.attempts + 1
    decision = decide(answer, tries, endpoint.failing_since, now, chance)
    state = "delivered" if isinstance(decision, Delivered) else "waiting" if isinstance(decision, Again) else "given_up"
    await store.append_attempt(connection, parcel.endpoint_id, parcel.event_no, attempts, now, answer)
    await store.settle(connection, parcel.endpoint_id, parcel.event_no, state, tries, attempts, now)
    failing_since = None if isinstance(decision, Delivered) else endpoint.failing_since or now
    if failing_since != endpoint.failing_since:
        await store.change_endpoint(connection, parcel.endpoint_id, failing_since=failing_since)
    if isinstance(decision, Disabled):
        await _disable(connection, endpoint, decision, answer)
        return None
    if isinstance(decision, Again):
        await store.give_back(connection, [parcel.endpoint_id], decision.at)
        return None
    following = await store.heads(connection, [parcel.endpoint_id])
    if following and go_on:
        await store.take_lease(connection, [parcel.endpoint_id], parcel.lease, LEASE_S)
        return _parcel(following[0], parcel.lease)
    await store.give_back(connection, [parcel.endpoint_id], now if following else None)
    return None


async def disable(connection: AsyncConnection, endpoint: Row[Any], reason: str, actor: str) -> int:
    """Send nothing more to an endpoint whose row is locked, and give up what waits; returns how many that were."""
    await store.change_endpoint(
        connection,
        endpoint.endpoint_id,
        state="disabled",
        disabled_reason=reason,
        disabled_at=endpoint.now,
        due_at=None,
        lease=None,
    )
    given_up = await store.give_up_waiting(connection, endpoint.endpoint_id, endpoint.now)
    await store.append_action(
        connection, endpoint.endpoint_id, endpoint.organization_id, actor, "disabled", f"{reason}; {given_up} given up"
    )
    return given_up


async def _disable(connection: AsyncConnection, endpoint: Row[Any], decision: Disabled, answer: Answer) -> None:
    """Disable an endpoint that fails, and tell it: in the log, and to the organization's other endpoints."""
    since = endpoint.failing_since or endpoint.now
    said = answer.error or f"status {answer.status}"
    reason = (
        "it answered 410 Gone"
        if decision.reason == "gone"
        else f"nothing was taken since {instant_text(since)}; last: {said[:SAID_CHARACTERS_MAX]}"
    )
    given_up = await disable(connection, endpoint, reason, "tollbook")
    log.error("endpoint %s of %s is disabled: %s", endpoint.endpoint_id, endpoint.organization_id, reason)
    at = instant_text(endpoint.now)
    told = event(
        str(derived_id(DISABLED, endpoint.endpoint_id, at)),
        DISABLED,
        at,
        {
            "endpoint_id": endpoint.endpoint_id,
            "url": endpoint.url,
            "reason": reason,
            "deliveries_given_up": given_up,
        },
        organization_id=endpoint.organization_id,
    )
    await spread(connection, [told], endpoint.now)


async def _take(engine: AsyncEngine, count: int) -> list[Parcel]:
    """Lease endpoints that are due, with the first delivery that waits at each."""
    async with transaction(engine) as connection:
        due = await store.lock_due(connection, count)
        if not due:
            return []
        lease = uuid.uuid4()
        found = await store.heads(connection, due)
        waiting = {row.endpoint_id for row in found}
        if waiting:
            await store.take_lease(connection, sorted(waiting), lease, LEASE_S)
        if idle := [endpoint_id for endpoint_id in due if endpoint_id not in waiting]:
            await store.give_back(connection, idle, None)
    return [_parcel(row, lease) for row in found]


def _parcel(row: Row[Any], lease: UUID) -> Parcel:
    secrets = (row.secret,) if row.previous is None else (row.secret, row.previous)
    return Parcel(
        row.endpoint_id,
        lease,
        row.url,
        secrets,
        row.event_no,
        row.event_id,
        row.body,
        row.tries,
        row.attempts,
        row.sent_at,
    )
