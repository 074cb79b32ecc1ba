"""What people read of webhooks and ask of them, with the room's own role.

Every function takes an engine of that role and is one transaction, where it does not say otherwise; who asks is written into the log of the endpoint.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from contracts.topics import BALANCE_EVENTS
from services.kernel.errors import InvalidInput, NotFound, Refused
from services.kernel.period import instant_text
from services.runtime.database import transaction
from services.webhooks import calling, courier, store
from services.webhooks.addresses import Allowed
from services.webhooks.calling import allowed_by as allowed_by
from services.webhooks.messages import PREFIXES, SECRET_BYTES, TEST, Event, checked_types, event, secret_of, wants
from services.webhooks.messages import types as types
from services.webhooks.safe import OPEN, Safe
from services.webhooks.safe import new_key as new_key
from services.webhooks.safe import safe_of as safe_of

ENDPOINTS_MAX = 20  # of one organization: each event is kept once and queued for each
DESCRIPTION_CHARACTERS_MAX = 255
OVERLAP_MAX = timedelta(days=7)
OVERLAP = timedelta(hours=24)
RESENT_AT_ONCE = 1_000
LOGGED_MAX = 100


@dataclass(frozen=True, slots=True)
class NewSecret:
    """A secret, told this once. ``old_secret_until`` is until when the one before signs as well."""

    endpoint_id: str
    secret: str
    old_secret_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint as people see it: never its secrets. ``next_at`` is when the first of those that wait is tried."""

    endpoint_id: str
    organization_id: str
    url: str
    description: str
    types: tuple[str, ...] | None
    account_ids: tuple[str, ...] | None
    state: str
    disabled_reason: str | None
    disabled_at: datetime | None
    failing_since: datetime | None
    waiting: int
    next_at: datetime | None
    old_secret_until: datetime | None
    created_at: datetime
    created_by: str


@dataclass(frozen=True, slots=True)
class Action:
    """What was done to an endpoint, by whom."""

    at: datetime
    actor: str
    action: str
    detail: str


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event at one endpoint. ``next_at`` only for the first of those that wait: the others come after it."""

    event_id: str
    type: str
    account_id: str | None
    state: str
    attempts: int
    status: int | None
    error: str | None
    last_at: datetime | None
    next_at: datetime | None
    queued_at: datetime
    settled_at: datetime | None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call, with the beginning of what the receiver answered."""

    number: int
    at: datetime
    status: int | None
    error: str | None
    took_ms: int
    piece: str


# ---- endpoints -----------------------------------------------------------------------------------------------------


async def create(
    engine: AsyncEngine,
    organization_id: str,
    url: str,
    actor: str,
    allowed: Allowed,
    safe: Safe = OPEN,
    *,
    types: Sequence[str] = (),
    account_ids: Sequence[str] = (),
    description: str = "",
) -> NewSecret:
    """Register a receiver; it gets what happens from now on. No types: all; no accounts: all of the organization.

    Raises `InvalidInput` for a URL that may not be called, a type that there is not, or an account of another organization.
    """
    wanted = _checked(types, account_ids, description)
    await calling.check(url, allowed)
    made = NewSecret(f"ep_{secrets.token_hex(8)}", secret_of(secrets.token_bytes(SECRET_BYTES)))
    async with transaction(engine) as connection:
        await store.lock_organization(connection, organization_id)
        if not await store.organization_is_known(connection, organization_id):
            raise NotFound(
                f"no account of an organization {organization_id!r} is known; check its id, or create an account first",
                field="organization",
            )
        await _check_accounts(connection, organization_id, account_ids)
        if len(await store.listing(connection, organization_id=organization_id)) >= ENDPOINTS_MAX:
            raise Refused(
                f"{organization_id} has {ENDPOINTS_MAX} endpoints; delete one first",
                field="organization",
                code="too_many",
            )
        await store.insert_endpoint(
            connection,
            endpoint_id=made.endpoint_id,
            organization_id=organization_id,
            url=url,
            description=description,
            types=wanted,
            account_ids=sorted(set(account_ids)) or None,
            state="enabled",
            secret=safe.put(made.secret),
            created_by=actor,
        )
        await store.append_action(connection, made.endpoint_id, organization_id, actor, "created", url)
    return made


def _checked(types: Sequence[str], account_ids: Sequence[str], description: str) -> list[str] | None:
    """The types to ask for, None for all; what cannot be together is said."""
    if len(description) > DESCRIPTION_CHARACTERS_MAX or "\0" in description:
        raise InvalidInput(f"must have at most {DESCRIPTION_CHARACTERS_MAX} characters", field="description")
    wanted = checked_types(types) or None
    of_accounts = f"{PREFIXES[BALANCE_EVENTS]}."
    if account_ids and wanted and (others := [each for each in wanted if not each.startswith(of_accounts)]):
        raise InvalidInput(
            f"{', '.join(others)} is not told of single accounts; leave the accounts out, or make another endpoint for it",
            field="type",
        )
    return wanted


async def _check_accounts(connection: AsyncConnection, organization_id: str, account_ids: Sequence[str]) -> None:
    owners = await store.owners_of(connection, account_ids)
    for account_id in account_ids:
        if owners.get(account_id) != organization_id:
            raise NotFound(f"{organization_id} has no account {account_id!r}", field="account")


async def organization_is_known(engine: AsyncEngine, organization_id: str) -> bool:
    """Whether the registry has told this room of an account of an organization."""
    async with transaction(engine) as connection:
        return await store.organization_is_known(connection, organization_id)


async def endpoints(engine: AsyncEngine, organization_id: str | None = None) -> list[Endpoint]:
    """Every endpoint, or those of an organization."""
    async with transaction(engine) as connection:
        return [_endpoint(row) for row in await store.listing(connection, organization_id=organization_id)]


async def endpoint(engine: AsyncEngine, endpoint_id: str) -> Endpoint:
    """One endpoint; `NotFound` when there is none of this id."""
    async with transaction(engine) as connection:
        return await _one(connection, endpoint_id)


async def actions(engine: AsyncEngine, endpoint_id: str) -> list[Action]:
    """Who did what to an endpoint, newest first, also of one that was deleted."""
    async with transaction(engine) as connection:
        return [Action(**row._mapping) for row in await store.actions(connection, endpoint_id, LOGGED_MAX)]


async def rotate(
    engine: AsyncEngine, endpoint_id: str, actor: str, overlap: timedelta = OVERLAP, safe: Safe = OPEN
) -> NewSecret:
    """Give an endpoint a new secret. For the overlap the one before signs as well, and one before that no more."""
    if not timedelta(0) <= overlap <= OVERLAP_MAX:
        raise InvalidInput(f"must be from 0 hours to {OVERLAP_MAX.days} days", field="overlap")
    secret = secret_of(secrets.token_bytes(SECRET_BYTES))
    async with transaction(engine) as connection:
        found = await _locked(connection, endpoint_id)
        until = found.now + overlap if overlap else None
        await store.change_endpoint(
            connection,
            endpoint_id,
            secret=safe.put(secret),
            previous_secret=None if until is None else found.secret,
            previous_until=until,
        )
        detail = "the one before ends now" if until is None else f"the one before ends {instant_text(until)}"
        await store.append_action(connection, endpoint_id, found.organization_id, actor, "rotated", detail)
    return NewSecret(endpoint_id, secret, until)


async def put_away(engine: AsyncEngine, safe: Safe) -> int:
    """Encrypt every secret by the newest key, all or none: after it no other key is needed. Returns how many endpoints there are."""
    async with transaction(engine) as connection:
        rows = await store.lock_secrets(connection)
        for row in rows:
            previous = None if row.previous_secret is None else safe.put(safe.take(row.previous_secret))
            secret = safe.put(safe.take(row.secret))
            await store.change_endpoint(connection, row.endpoint_id, secret=secret, previous_secret=previous)
    return len(rows)


async def disable(engine: AsyncEngine, endpoint_id: str, actor: str, reason: str) -> int:
    """Send nothing more; what waits is given up. Returns how many that were."""
    if not reason.strip():
        raise InvalidInput("say why, for who asks later", field="reason")
    async with transaction(engine) as connection:
        found = await _locked(connection, endpoint_id)
        if found.state == "disabled":
            raise Refused(f"{endpoint_id} is disabled already: {found.disabled_reason}", code="disabled")
        return await courier.disable(connection, found, reason, actor)


async def enable(engine: AsyncEngine, endpoint_id: str, actor: str, allowed: Allowed) -> datetime:
    """Send again what happens from now on. Returns since when something is missing: the oldest event that was given up, or
    when it was disabled; `resend` from there on brings it all.
    """
    async with transaction(engine) as connection:
        found = await _locked(connection, endpoint_id)
    await calling.check(found.url, allowed)
    async with transaction(engine) as connection:
        found = await _locked(connection, endpoint_id)
        if found.state == "enabled":
            raise Refused(f"{endpoint_id} is enabled already", code="enabled")
        await store.change_endpoint(
            connection,
            endpoint_id,
            state="enabled",
            disabled_reason=None,
            disabled_at=None,
            failing_since=None,
            due_at=found.now,
        )
        await store.append_action(connection, endpoint_id, found.organization_id, actor, "enabled", "")
        missed = await store.missed_since(connection, endpoint_id)
    since: datetime = found.disabled_at
    return since if missed is None else min(since, missed)


async def delete(engine: AsyncEngine, endpoint_id: str, actor: str) -> None:
    """Delete an endpoint with the history of its deliveries; the log of who did what stays."""
    async with transaction(engine) as connection:
        found = await _locked(connection, endpoint_id)
        await store.append_action(connection, endpoint_id, found.organization_id, actor, "deleted", found.url)
        await store.delete_endpoint(connection, endpoint_id)


# ---- deliveries ----------------------------------------------------------------------------------------------------


async def send_test(engine: AsyncEngine, endpoint_id: str, actor: str) -> str:
    """Send an endpoint an event of type `webhook.test`, whatever it asks for, behind what waits, which is tried at once; returns
    the event's id."""
    async with transaction(engine) as connection:
        found = await _enabled(connection, endpoint_id)
        at = instant_text(found.now)
        made = event(
            secrets.token_hex(16), TEST, at, {"endpoint_id": endpoint_id}, organization_id=found.organization_id
        )
        numbers = await store.append_events(connection, [made], found.now)
        await store.queue(connection, [(endpoint_id, numbers[made.event_id])], found.now)
        await _try_now(connection, found)
        await store.append_action(connection, endpoint_id, found.organization_id, actor, "tested", made.event_id)
    return made.event_id


async def resend(
    engine: AsyncEngine, endpoint_id: str, actor: str, *, event_ids: Sequence[str] = (), since: datetime | None = None
) -> int:
    """Queue events again, behind what waits: those named, or all since an instant that the endpoint wants and has not taken.
    What waits is tried at once.

    They keep their ids, so that a receiver that had one drops it. Returns how many were queued; what waits is not queued twice.
    All since an instant are queued piece by piece, a transaction each: while an endpoint is held, no event of anybody arrives.
    """
    if bool(event_ids) == (since is not None):
        raise InvalidInput("name events, or since when", field="EVENT")
    count, after, is_more = 0, 0, True
    while is_more:
        async with transaction(engine) as connection:
            found = await _enabled(connection, endpoint_id)
            rows = await store.events_to_resend(
                connection,
                found.organization_id,
                endpoint_id,
                event_ids=event_ids,
                since=since,
                after=after,
                limit=len(event_ids) or RESENT_AT_ONCE,
            )
            if missing := sorted(set(event_ids) - {row.event_id for row in rows}):
                raise NotFound(f"{found.organization_id} has no event {', '.join(missing)}", field="EVENT")
            pairs = [(endpoint_id, row.event_no) for row in rows if event_ids or _wanted(found, row)]
            if pairs:
                count += await store.queue(connection, pairs, found.now)
            if after:
                await store.wake(connection, [endpoint_id], found.now)
            else:
                await _try_now(connection, found)
            is_more = not event_ids and len(rows) == RESENT_AT_ONCE
            if is_more:
                after = rows[-1].event_no
            else:
                what = ", ".join(event_ids) if since is None else f"since {instant_text(since)}"
                await store.append_action(
                    connection, endpoint_id, found.organization_id, actor, "resent", f"{count} events: {what}"
                )
    return count


async def _try_now(connection: AsyncConnection, endpoint: Row[Any]) -> None:
    """Who asks has mended the receiver: nobody waits hours for the next try, and none of those that there are is used up."""
    await store.forget_tries(connection, endpoint.endpoint_id)
    await store.try_now(connection, endpoint.endpoint_id, endpoint.now)


def _wanted(endpoint: Row[Any], row: Row[Any]) -> bool:
    """A test is sent to whom it was for; who asks for all since an instant means what happened."""
    return row.type != TEST and wants(
        endpoint.types,
        endpoint.account_ids,
        Event(row.event_id, row.organization_id, row.account_id, row.type, row.body),
    )


async def deliveries(
    engine: AsyncEngine, endpoint_id: str, *, state: str | None = None, limit: int = 100
) -> list[Delivery]:
    """What an endpoint got or gets, the last in its order first."""
    async with transaction(engine) as connection:
        one = await _one(connection, endpoint_id)
        rows = await store.deliveries(connection, endpoint_id, state=state, limit=limit)
        heads = {row.event_id for row in await store.heads(connection, [endpoint_id])}
    return [
        Delivery(
            row.event_id,
            row.type,
            row.account_id,
            row.state,
            row.attempts,
            row.status,
            row.error,
            row.last_at,
            one.next_at if row.event_id in heads else None,
            row.queued_at,
            row.settled_at,
        )
        for row in rows
    ]


async def attempts(engine: AsyncEngine, endpoint_id: str, event_id: str) -> list[Attempt]:
    """Every attempt to deliver an event to an endpoint."""
    async with transaction(engine) as connection:
        await _one(connection, endpoint_id)
        found = await store.event_by_id(connection, event_id)
        if found is None:
            raise NotFound(f"there is no event {event_id!r}", field="event")
        return [Attempt(**row._mapping) for row in await store.attempts(connection, endpoint_id, found.event_no)]


async def body(engine: AsyncEngine, event_id: str) -> str:
    """What is sent of an event, as it is signed."""
    async with transaction(engine) as connection:
        found = await store.event_by_id(connection, event_id)
    if found is None:
        raise NotFound(f"there is no event {event_id!r}", field="event")
    sent: str = found.body
    return sent


# ---- small parts ---------------------------------------------------------------------------------------------------


def _missing(endpoint_id: str) -> NotFound:
    return NotFound(f"there is no endpoint {endpoint_id!r}; see `tollbook webhook list`", field="ENDPOINT")


async def _one(connection: AsyncConnection, endpoint_id: str) -> Endpoint:
    rows = await store.listing(connection, endpoint_id=endpoint_id)
    if not rows:
        raise _missing(endpoint_id)
    return _endpoint(rows[0])


async def _locked(connection: AsyncConnection, endpoint_id: str) -> Row[Any]:
    found = await store.lock_endpoint(connection, endpoint_id)
    if found is None:
        raise _missing(endpoint_id)
    return found


async def _enabled(connection: AsyncConnection, endpoint_id: str) -> Row[Any]:
    found = await _locked(connection, endpoint_id)
    if found.state == "disabled":
        raise Refused(
            f"{endpoint_id} is disabled: {found.disabled_reason}; enable it first", field="ENDPOINT", code="disabled"
        )
    return found


def _endpoint(row: Row[Any]) -> Endpoint:
    return Endpoint(
        row.endpoint_id,
        row.organization_id,
        row.url,
        row.description,
        None if row.types is None else tuple(row.types),
        None if row.account_ids is None else tuple(row.account_ids),
        row.state,
        row.disabled_reason,
        row.disabled_at,
        row.failing_since,
        row.waiting,
        row.next_at,
        row.old_secret_until,
        row.created_at,
        row.created_by,
    )
