"""SQL of webhooks and nothing else: one function, one statement. Endpoints are locked in the order of their ids.

An endpoint's row is locked by FOR NO KEY UPDATE: who appends deliveries refers to it and need not wait for that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    DateTime,
    Row,
    Select,
    Text,
    and_,
    case,
    delete,
    exists,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime.database import unnest
from services.runtime.lanes import CLOCK_NOW
from services.runtime.work import Work
from services.webhooks import tables
from services.webhooks.delivering import Answer
from services.webhooks.messages import Event

Executing = Work | AsyncConnection
"""The transaction of a batch or tick, or one of a command or of an attempt."""

Rows = Sequence[Any]

_account, _event, _endpoint = tables.account.c, tables.event.c, tables.endpoint.c
_delivery, _attempt = tables.delivery.c, tables.attempt.c


# ---- whose events --------------------------------------------------------------------------------------------------


class Owner(NamedTuple):
    """Whose an account is, by a version of its timeline."""

    account_id: str
    organization_id: str
    version: int


async def take_over_accounts(work: Work, owners: Iterable[Owner]) -> None:
    """Note whose each account is; a lower version changes nothing."""
    ordered = sorted(owners)
    new = unnest("new", account_id=Text(), organization_id=Text(), version=BigInteger())
    statement = upsert(tables.account).from_select(
        ["account_id", "organization_id", "version"], select(new.c.account_id, new.c.organization_id, new.c.version)
    )
    statement = statement.on_conflict_do_update(
        index_elements=["account_id"],
        set_={"organization_id": statement.excluded.organization_id, "version": statement.excluded.version},
        where=_account.version < statement.excluded.version,
    )
    parameters = {
        "new_account_id": [owner.account_id for owner in ordered],
        "new_organization_id": [owner.organization_id for owner in ordered],
        "new_version": [owner.version for owner in ordered],
    }
    await work.execute(statement, parameters)


async def expect_accounts(work: Work, account_ids: Iterable[str]) -> None:
    """Rows for accounts that were never heard of: whoever tells of them meets who keeps events for them at this row."""
    rows = [{"account_id": each, "version": 0} for each in sorted(account_ids)]
    await work.execute(upsert(tables.account).on_conflict_do_nothing(), rows)


async def owners_of(executing: Executing, account_ids: Iterable[str], *, lock: bool = False) -> dict[str, str | None]:
    """The organization of each account there is a row of; None where the registry has not told it."""
    statement = (
        select(_account.account_id, _account.organization_id)
        .where(_account.account_id.in_(sorted(set(account_ids))))
        .order_by(_account.account_id)
    )
    if lock:
        statement = statement.with_for_update(read=True)
    return {row.account_id: row.organization_id for row in await executing.execute(statement)}


async def organization_is_known(connection: AsyncConnection, organization_id: str) -> bool:
    """Whether the registry has told of an account of this organization."""
    statement = select(exists().where(_account.organization_id == organization_id))
    return bool((await connection.execute(statement)).scalar_one())


# ---- events --------------------------------------------------------------------------------------------------------


async def append_events(executing: Executing, events: Sequence[Event], now: datetime) -> dict[str, int]:
    """Keep events in their order; returns (id → number) of those that were not kept before."""
    rows = [
        {
            "event_id": event.event_id,
            "organization_id": event.organization_id,
            "account_id": event.account_id,
            "type": event.type,
            "body": event.body,
            "received_at": now,
        }
        for event in events
    ]
    statement = upsert(tables.event).on_conflict_do_nothing().returning(_event.event_id, _event.event_no)
    return {row.event_id: row.event_no for row in await executing.execute(statement, rows)}


def _events() -> Select[Any]:
    return select(
        _event.event_no, _event.event_id, _event.organization_id, _event.account_id, _event.type, _event.body
    ).order_by(_event.event_no)


async def events_of_nobody(work: Work, account_ids: Iterable[str]) -> Rows:
    """Events that wait for the registry to tell of these accounts, in order."""
    statement = _events().where(_event.organization_id.is_(None), _event.account_id.in_(sorted(account_ids)))
    return (await work.execute(statement)).all()


async def own_events(work: Work, account_ids: Iterable[str]) -> None:
    """Give what waited for these accounts to their organizations."""
    statement = (
        update(tables.event)
        .where(
            _event.organization_id.is_(None),
            _event.account_id.in_(sorted(account_ids)),
            _account.account_id == _event.account_id,
        )
        .values(organization_id=_account.organization_id)
    )
    await work.execute(statement)


async def forget_events(executing: Executing, before: datetime, count: int) -> int:
    """Delete events that came before an instant and that no endpoint waits for, with their deliveries and attempts; the
    oldest first, so many at most."""
    waits = exists().where(_delivery.event_no == _event.event_no, _delivery.state == "waiting")
    old = (
        select(_event.event_no)
        .where(_event.received_at < before, ~waits)
        .order_by(_event.received_at)
        .limit(count)
        .scalar_subquery()
    )
    return (await executing.execute(delete(tables.event).where(_event.event_no.in_(old)))).rowcount


# ---- endpoints -----------------------------------------------------------------------------------------------------


async def endpoints_of_organizations(executing: Executing, organization_ids: Iterable[str]) -> Rows:
    """Every endpoint of these organizations with its filters; none of them can be deleted until the end of the transaction."""
    statement = (
        select(
            _endpoint.endpoint_id, _endpoint.organization_id, _endpoint.state, _endpoint.types, _endpoint.account_ids
        )
        .where(_endpoint.organization_id.in_(sorted(set(organization_ids))))
        .order_by(_endpoint.endpoint_id)
        .with_for_update(read=True, key_share=True)
    )
    return (await executing.execute(statement)).all()


async def lock_endpoint(connection: AsyncConnection, endpoint_id: str, *, lease: UUID | None = None) -> Row[Any] | None:
    """One endpoint with all its fields and the one clock's ``now``; with a lease only while it is held."""
    statement = select(tables.endpoint, CLOCK_NOW.label("now")).where(_endpoint.endpoint_id == endpoint_id)
    if lease is not None:
        statement = statement.where(_endpoint.lease == lease)
    return (await connection.execute(statement.with_for_update(key_share=True))).one_or_none()


async def lock_secrets(connection: AsyncConnection) -> Sequence[Any]:
    """What is kept of every endpoint's secrets."""
    statement = select(_endpoint.endpoint_id, _endpoint.secret, _endpoint.previous_secret).order_by(
        _endpoint.endpoint_id
    )
    return (await connection.execute(statement.with_for_update(key_share=True))).all()


async def lock_organization(connection: AsyncConnection, organization_id: str) -> None:
    """One at a time makes endpoints of an organization, until the end of the transaction."""
    await connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(organization_id, literal(0)))))


async def insert_endpoint(connection: AsyncConnection, **fields: Any) -> None:
    """A new endpoint; its first instant is the one clock's."""
    await connection.execute(insert(tables.endpoint).values(created_at=CLOCK_NOW, **fields))


async def change_endpoint(connection: AsyncConnection, endpoint_id: str, **fields: Any) -> None:
    """Set fields of an endpoint whose row is locked."""
    await connection.execute(update(tables.endpoint).where(_endpoint.endpoint_id == endpoint_id).values(**fields))


async def delete_endpoint(connection: AsyncConnection, endpoint_id: str) -> None:
    """An endpoint with its deliveries and their attempts."""
    await connection.execute(delete(tables.endpoint).where(_endpoint.endpoint_id == endpoint_id))


async def append_action(
    connection: AsyncConnection, endpoint_id: str, organization_id: str, actor: str, action: str, detail: str
) -> None:
    """Who did what, for the log."""
    await connection.execute(
        insert(tables.action).values(
            endpoint_id=endpoint_id,
            organization_id=organization_id,
            at=CLOCK_NOW,
            actor=actor,
            action=action,
            detail=detail,
        )
    )


async def actions(connection: AsyncConnection, endpoint_id: str, limit: int) -> Rows:
    """The log of an endpoint, newest first; it is kept when the endpoint is deleted."""
    columns = tables.action.c
    statement = (
        select(columns.at, columns.actor, columns.action, columns.detail)
        .where(columns.endpoint_id == endpoint_id)
        .order_by(columns.action_no.desc())
        .limit(limit)
    )
    return (await connection.execute(statement)).all()


_SHOWN = (
    _endpoint.endpoint_id, _endpoint.organization_id, _endpoint.url, _endpoint.description, _endpoint.types,
    _endpoint.account_ids, _endpoint.state, _endpoint.disabled_reason, _endpoint.disabled_at, _endpoint.created_at,
    _endpoint.created_by, _endpoint.failing_since,
)  # fmt: skip


async def listing(
    connection: AsyncConnection, *, organization_id: str | None = None, endpoint_id: str | None = None
) -> Rows:
    """Endpoints without their secrets, with how many deliveries wait and when the first of them is tried next."""
    waiting = (
        select(func.count())
        .where(_delivery.endpoint_id == _endpoint.endpoint_id, _delivery.state == "waiting")
        .scalar_subquery()
    )
    statement = select(
        *_SHOWN,
        case((_endpoint.previous_until > CLOCK_NOW, _endpoint.previous_until), else_=null()).label("old_secret_until"),
        waiting.label("waiting"),
        case((_endpoint.lease.is_(None), _endpoint.due_at), else_=null()).label("next_at"),
    ).order_by(_endpoint.organization_id, _endpoint.created_at, _endpoint.endpoint_id)
    if organization_id is not None:
        statement = statement.where(_endpoint.organization_id == organization_id)
    if endpoint_id is not None:
        statement = statement.where(_endpoint.endpoint_id == endpoint_id)
    return (await connection.execute(statement)).all()


# ---- deliveries ----------------------------------------------------------------------------------------------------


async def queue(executing: Executing, pairs: Sequence[tuple[str, int]], now: datetime) -> int:
    """Let events (endpoint, number) wait behind all that waits there, in the order given; what waits already stays. Returns
    how many were queued."""
    wanted = unnest("wanted", endpoint_id=Text(), event_no=BigInteger(), ordinal=BigInteger())
    statement = upsert(tables.delivery).from_select(
        ["endpoint_id", "event_no", "state", "tries", "attempts", "queued_at"],
        select(
            wanted.c.endpoint_id,
            wanted.c.event_no,
            literal("waiting"),
            literal(0),
            literal(0),
            literal(now, DateTime(timezone=True)),
        ).order_by(wanted.c.ordinal),
    )
    fresh = statement.excluded
    statement = statement.on_conflict_do_update(
        index_elements=["endpoint_id", "event_no"],
        set_={"place": fresh.place, "state": fresh.state, "tries": 0, "queued_at": fresh.queued_at, "settled_at": None},
        where=_delivery.state != "waiting",
    )
    parameters = {
        "wanted_endpoint_id": [endpoint_id for endpoint_id, _ in pairs],
        "wanted_event_no": [event_no for _, event_no in pairs],
        "wanted_ordinal": list(range(len(pairs))),
    }
    return (await executing.execute(statement, parameters)).rowcount


async def wake(executing: Executing, endpoint_ids: Iterable[str], now: datetime) -> None:
    """Have endpoints looked at now that have nothing to wait for; who is waiting for a retry, or in work, stays so.

    All are held until the commit, those in work too: who notes that nothing more waits at one either sees what was queued
    here, or has said so before this looks whether it is idle.
    """
    held = (
        select(_endpoint.endpoint_id, _endpoint.due_at)
        .where(_endpoint.endpoint_id.in_(sorted(set(endpoint_ids))))
        .order_by(_endpoint.endpoint_id)
        .with_for_update(key_share=True)
        .cte("held")
    )
    idle = select(held.c.endpoint_id).where(held.c.due_at.is_(None))
    statement = update(tables.endpoint).where(_endpoint.endpoint_id.in_(idle))
    await executing.execute(statement.values(due_at=now))


async def try_now(connection: AsyncConnection, endpoint_id: str, now: datetime) -> None:
    """Have an endpoint looked at now, whatever it waits for; one in work is looked at again by itself."""
    statement = update(tables.endpoint).where(_endpoint.endpoint_id == endpoint_id, _endpoint.lease.is_(None))
    await connection.execute(statement.values(due_at=now))


async def forget_tries(connection: AsyncConnection, endpoint_id: str) -> None:
    """The delivery that is being tried at an endpoint, the first that waits there, has all its tries again."""
    statement = update(tables.delivery).where(
        _delivery.endpoint_id == endpoint_id, _delivery.state == "waiting", _delivery.tries > 0
    )
    await connection.execute(statement.values(tries=0))


async def lock_due(connection: AsyncConnection, count: int) -> list[str]:
    """Endpoints that are due, the longest first; those that another worker has in hand are left to it."""
    statement = (
        select(_endpoint.endpoint_id)
        .where(_endpoint.state == "enabled", _endpoint.due_at <= CLOCK_NOW)
        .order_by(_endpoint.due_at)
        .limit(count)
        .with_for_update(key_share=True, skip_locked=True)
    )
    return list((await connection.execute(statement)).scalars())


async def take_lease(connection: AsyncConnection, endpoint_ids: Sequence[str], lease: UUID, seconds: float) -> None:
    """Nobody else tries these endpoints until the lease is given back, or is over."""
    until = CLOCK_NOW + func.make_interval(0, 0, 0, 0, 0, 0, seconds)
    statement = update(tables.endpoint).where(_endpoint.endpoint_id.in_(endpoint_ids))
    await connection.execute(statement.values(lease=lease, due_at=until))


async def heads(connection: AsyncConnection, endpoint_ids: Sequence[str]) -> Rows:
    """The first delivery that waits at each endpoint, with its event and all that an attempt needs."""
    first = (
        select(_delivery.event_no, _delivery.tries, _delivery.attempts)
        .where(_delivery.endpoint_id == _endpoint.endpoint_id, _delivery.state == "waiting")
        .order_by(_delivery.place)
        .limit(1)
        .lateral("first")
    )
    statement = (
        select(
            _endpoint.endpoint_id,
            _endpoint.url,
            _endpoint.secret,
            case((_endpoint.previous_until > CLOCK_NOW, _endpoint.previous_secret), else_=null()).label("previous"),
            first.c.event_no,
            first.c.tries,
            first.c.attempts,
            _event.event_id,
            _event.body,
            func.now().label("sent_at"),
        )
        .select_from(tables.endpoint)
        .join(first, true())
        .join(tables.event, _event.event_no == first.c.event_no)
        .where(_endpoint.endpoint_id.in_(endpoint_ids))
    )
    return (await connection.execute(statement)).all()


async def give_back(connection: AsyncConnection, endpoint_ids: Sequence[str], due_at: datetime | None) -> None:
    """End the lease; ``due_at`` is when the first delivery that waits is tried, None where none does."""
    statement = update(tables.endpoint).where(_endpoint.endpoint_id.in_(endpoint_ids))
    await connection.execute(statement.values(lease=None, due_at=due_at))


async def append_attempt(
    connection: AsyncConnection, endpoint_id: str, event_no: int, number: int, now: datetime, answer: Answer
) -> None:
    """What came of one attempt."""
    await connection.execute(
        insert(tables.attempt).values(
            endpoint_id=endpoint_id,
            event_no=event_no,
            number=number,
            at=now,
            status=answer.status,
            error=answer.error,
            piece=answer.piece,
            took_ms=answer.took_ms,
        )
    )


async def settle(
    connection: AsyncConnection, endpoint_id: str, event_no: int, state: str, tries: int, attempts: int, now: datetime
) -> None:
    """Where a delivery stands after an attempt."""
    statement = update(tables.delivery).where(
        _delivery.endpoint_id == endpoint_id, _delivery.event_no == event_no, _delivery.state == "waiting"
    )
    settled_at = None if state == "waiting" else now
    await connection.execute(statement.values(state=state, tries=tries, attempts=attempts, settled_at=settled_at))


async def give_up_waiting(connection: AsyncConnection, endpoint_id: str, now: datetime) -> int:
    """Give up all that waits at an endpoint; returns how many."""
    statement = update(tables.delivery).where(_delivery.endpoint_id == endpoint_id, _delivery.state == "waiting")
    return (await connection.execute(statement.values(state="given_up", settled_at=now))).rowcount


async def missed_since(connection: AsyncConnection, endpoint_id: str) -> datetime | None:
    """When the oldest event came that was given up at an endpoint; None where none was."""
    statement = (
        select(func.min(_event.received_at))
        .select_from(tables.delivery)
        .join(tables.event, _event.event_no == _delivery.event_no)
        .where(_delivery.endpoint_id == endpoint_id, _delivery.state == "given_up")
    )
    found: datetime | None = (await connection.execute(statement)).scalar_one()
    return found


async def deliveries(connection: AsyncConnection, endpoint_id: str, *, state: str | None = None, limit: int) -> Rows:
    """What an endpoint got or gets, the last in its order first, each with its last attempt."""
    last = (
        select(_attempt.at, _attempt.status, _attempt.error)
        .where(_attempt.endpoint_id == _delivery.endpoint_id, _attempt.event_no == _delivery.event_no)
        .order_by(_attempt.number.desc())
        .limit(1)
        .lateral("last")
    )
    statement = (
        select(
            _event.event_id,
            _event.type,
            _event.account_id,
            _delivery.state,
            _delivery.attempts,
            last.c.at.label("last_at"),
            last.c.status,
            last.c.error,
            _delivery.queued_at,
            _delivery.settled_at,
        )
        .select_from(tables.delivery)
        .join(tables.event, _event.event_no == _delivery.event_no)
        .outerjoin(last, true())
        .where(_delivery.endpoint_id == endpoint_id)
        .order_by(_delivery.place.desc())
        .limit(limit)
    )
    if state is not None:
        statement = statement.where(_delivery.state == state)
    return (await connection.execute(statement)).all()


async def event_by_id(connection: AsyncConnection, event_id: str) -> Row[Any] | None:
    """One event."""
    found: Row[Any] | None = (await connection.execute(_events().where(_event.event_id == event_id))).one_or_none()
    return found


async def attempts(connection: AsyncConnection, endpoint_id: str, event_no: int) -> Rows:
    """Every attempt to deliver one event, in order."""
    statement = (
        select(_attempt.number, _attempt.at, _attempt.status, _attempt.error, _attempt.took_ms, _attempt.piece)
        .where(_attempt.endpoint_id == endpoint_id, _attempt.event_no == event_no)
        .order_by(_attempt.number)
    )
    return (await connection.execute(statement)).all()


async def events_to_resend(
    connection: AsyncConnection,
    organization_id: str,
    endpoint_id: str,
    *,
    event_ids: Sequence[str] = (),
    since: datetime | None = None,
    after: int = 0,
    limit: int,
) -> Rows:
    """Events of an organization by id, or since an instant those that this endpoint has not taken; in order, a piece at once."""
    statement = _events().where(_event.organization_id == organization_id, _event.event_no > after).limit(limit)
    if since is None:
        statement = statement.where(_event.event_id.in_(sorted(set(event_ids))))
    else:
        taken = exists().where(
            and_(
                _delivery.endpoint_id == endpoint_id,
                _delivery.event_no == _event.event_no,
                or_(_delivery.state == "delivered", _delivery.state == "waiting"),
            )
        )
        statement = statement.where(_event.received_at >= since, ~taken)
    rows: Rows = (await connection.execute(statement)).all()
    return rows
