"""What failed for want of a price, an account or a number is tried again by itself when that appears.

Source: domain, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from contracts.groups import ResourceTimeline
from services.runtime import parking
from services.runtime.parking import Parked
from services.runtime.work import Work
from services.usage import renting, store
from services.usage.reassigning import parsed
from services.usage.tables import RUNTIME

BY_ITSELF = "usage"  # who asked, where nobody did
ASKED_AT_ONCE = 1_000  # records, in some hundredths of a second
UNPRICED = "unpriced"  # timers: prices have changed, by the id of the last record that was asked for
NO_PRICE = "no_price"
UNKNOWN_ACCOUNT = "unknown_account"
UNKNOWN_NUMBER = "unknown_number"
RETRIED = frozenset({NO_PRICE, UNKNOWN_ACCOUNT, UNKNOWN_NUMBER})

_ADMIT_BY = ("opened_at", "closed_at", "plans", "account_id", "owners", "number")
"""What of a timeline decides whether an event finds its account: groups and cost centers do not."""

Timelines = Mapping[tuple[str, str], Mapping[str, Any]]  # documents by (kind, id)


async def prices_changed(connection: AsyncConnection, *, of_rentals: bool) -> None:
    """Try all that had no price; what still has none goes back to quarantine without a word. A number that had no fee may
    have one now, where prices ``of_rentals`` are among them.

    The caller holds the state alone, so no batch is under way that knows the old prices and not yet the new. All charging waits
    for it, so it asks for the first of them only; a timer asks for the rest, piece by piece, however many there are.
    """
    last = await parking.ask_after(connection, RUNTIME, BY_ITSELF, reason=NO_PRICE, after=0, limit=ASKED_AT_ONCE)
    if last is not None:
        await store.fire_now(connection, UNPRICED, str(last))
    if of_rentals:
        await store.fire_now(connection, renting.PRICES, renting.ALL)


async def unpriced(work: Work, ids: list[str]) -> None:
    """Timer: ask for the next of those that had no price, behind each of these ids."""
    for after in sorted(map(int, ids)):
        last = await parking.ask_after(
            work.connection, work.tables, BY_ITSELF, reason=NO_PRICE, after=after, limit=ASKED_AT_ONCE
        )
        if last is not None:
            await work.set_timers(UNPRICED, {str(last): work.now})


async def registry_changed(connection: AsyncConnection, before: Timelines, now: Timelines) -> None:
    """Try what waited for an account or a number that is new, or is somebody's since another instant than before; and what had no
    price, of accounts that other payer groups pay for than was known. What came to a number that is another's now waited for
    whom it had been.

    Only the records of these are looked for (by index): a message of the registry costs the same however many are parked.
    The caller holds the state alone, so no batch is under way that knows the old registry and not yet the new.
    """
    accounts = [id for (kind, id), new in now.items() if kind == "account" and _differs(before, ("account", id), new)]
    numbers = {
        key: str(new["number"])
        for key, new in now.items()
        if key[0] == "resource" and new["number"] is not None and _differs(before, key, new)
    }
    moved = [
        id
        for (kind, id), new in now.items()
        if kind == "account" and (known := before.get(("account", id))) is not None and known["groups"] != new["groups"]
    ]
    for reason, ids in ((UNKNOWN_ACCOUNT, accounts), (NO_PRICE, moved)):
        if ids:
            await store.retry_records_of_accounts(connection, reason, ids, BY_ITSELF)
    if numbers:
        await store.retry_records_of_numbers(connection, list(numbers.values()), BY_ITSELF)
    had = {
        interval.account_id
        for key in numbers
        if key in before
        for interval in parsed(before[key], ResourceTimeline).owned()
    }
    if had:
        for reason in (UNKNOWN_ACCOUNT, NO_PRICE):
            await store.retry_records_of_numbers_had_by(
                connection, reason, sorted(had), list(numbers.values()), BY_ITSELF
            )


def _differs(before: Timelines, key: tuple[str, str], new: Mapping[str, Any]) -> bool:
    known = before.get(key)
    return known is None or any(known.get(name) != new.get(name) for name in _ADMIT_BY)


def is_no_news(item: Parked) -> bool:
    """It was tried by itself and still fails for the same reason: its publisher has been told."""
    return item.record.asked_by == BY_ITSELF and item.reason == item.record.parked_reason and item.reason in RETRIED
