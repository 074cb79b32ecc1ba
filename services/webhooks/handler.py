"""Events in, deliveries out: one batch, one transaction. Each event waits at every endpoint of its organization that wants it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from contracts.groups import AccountTimeline
from services.runtime.records import Record
from services.runtime.work import Work
from services.webhooks import store
from services.webhooks.messages import OURS, Event, event_of, wants
from services.webhooks.store import Executing, Owner, Rows

KEPT = timedelta(days=30)  # events that nobody waits for: long enough to ask for a resend after a long outage
FORGOTTEN_AT_ONCE = 2_000  # a short transaction; the next look goes on


async def accounts(work: Work, records: list[Record]) -> None:
    """Learn whose each account is, and spread what came before that was known."""
    owners: dict[str, Owner] = {}
    for record in records:
        told: AccountTimeline = record.message["data"]
        owner = Owner(told.account_id, told.organization_id, told.version)
        owners[told.account_id] = max(owner, owners.get(told.account_id, owner), key=lambda each: each.version)
    await store.take_over_accounts(work, owners.values())
    early = await store.events_of_nobody(work, owners)
    if early:
        await store.own_events(work, owners)
        events = [
            Event(row.event_id, owners[row.account_id].organization_id, row.account_id, row.type, row.body)
            for row in early
        ]
        endpoints = await store.endpoints_of_organizations(work, {owner.organization_id for owner in owners.values()})
        await _queue(work, events, {row.event_id: row.event_no for row in early}, endpoints, work.now)


async def events(work: Work, records: list[Record]) -> None:
    """Keep each event once, and queue it where it is wanted. One of an account that is not known yet waits for the registry."""
    public = [record for record in records if record.message["data"].kind not in OURS]
    found = [event_of(record.topic, record.message) for record in public]
    asked = {event.account_id for event in found if event.organization_id is None and event.account_id is not None}
    owners = await store.owners_of(work, asked) if asked else {}
    unknown = {account_id for account_id in asked if owners.get(account_id) is None}
    if unknown:
        await store.expect_accounts(work, unknown)
        owners |= await store.owners_of(work, unknown, lock=True)
    await spread(
        work,
        [
            event
            if event.organization_id is not None or event.account_id is None
            else replace(event, organization_id=owners[event.account_id])
            for event in found
        ],
        work.now,
    )


async def spread(executing: Executing, events: Sequence[Event], now: datetime) -> None:
    """Keep events and queue them. What is of an organization without endpoints is not kept: nobody could ask for it."""
    organizations = {event.organization_id for event in events if event.organization_id is not None}
    endpoints = await store.endpoints_of_organizations(executing, organizations)
    served = {endpoint.organization_id for endpoint in endpoints}
    kept = [event for event in events if event.organization_id is None or event.organization_id in served]
    if kept:
        await _queue(executing, kept, await store.append_events(executing, kept, now), endpoints, now)


async def _queue(
    executing: Executing, events: Sequence[Event], numbers: dict[str, int], endpoints: Rows, now: datetime
) -> None:
    """Queue events that are kept under these numbers, in their order, at the endpoints that want them."""
    enabled: dict[str | None, list[Any]] = defaultdict(list)
    for endpoint in endpoints:
        if endpoint.state == "enabled":
            enabled[endpoint.organization_id].append(endpoint)
    pairs = [
        (endpoint.endpoint_id, numbers[event.event_id])
        for event in events
        if event.event_id in numbers
        for endpoint in enabled.get(event.organization_id, ())
        if wants(endpoint.types, endpoint.account_ids, event)
    ]
    if pairs:
        await store.queue(executing, pairs, now)
        await store.wake(executing, {endpoint_id for endpoint_id, _ in pairs}, now)


async def forget(work: Work) -> None:
    """Tick: events of long ago that no endpoint waits for, so that what is kept does not grow for ever."""
    await store.forget_events(work, work.now - KEPT, FORGOTTEN_AT_ONCE)
