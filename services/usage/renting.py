"""The fees of numbers: timers that publish an event for each fee that falls due, once a number and period.

The row (resource, period) and the event leave in one transaction. From then on the event is one like those of every
publisher: cut, recognised, rated, quarantined. Source: domain, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from contracts.topics import USAGE_EVENTS
from contracts.usage import RECURRING_SOURCE, RENTAL, TOLLBOOK
from services.kernel.period import instant_text
from services.runtime.work import Work
from services.usage import books, store
from services.usage.memory import Memory
from services.usage.recurring import LOOKED_BACK, Due, Fee, due, stretches
from services.usage.registry import Number

NUMBER = "rental"  # timers of one number each, by its resource
ACCOUNT = "rental.account"  # something of an account has changed: look at its numbers
PRICES = "rental.prices"  # prices have changed: look at all numbers
ALL = "all"


class Renting:
    """The timers of numbers. A timer that fires twice, or too early, publishes nothing twice."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    async def numbers(self, work: Work, resource_ids: list[str]) -> None:
        """Publish what is due for these numbers, and look again when more will be."""
        memory = self._memory
        await memory.share(work.connection)
        paid = await store.last_rentals(work.connection, resource_ids, LOOKED_BACK)
        found: dict[str, tuple[Number, Due]] = {}
        for resource_id in resource_ids:
            number = memory.registry.number(resource_id)
            if number is not None:
                parts = stretches(number, memory.registry.accounts)
                since = memory.rentals_from
                found[resource_id] = number, due(parts, paid.get(resource_id, ()), since, work.now, self._has_fee)
        rows = [
            (resource_id, fee.period, fee.account_id, number.number, fee.starts_at, fee.days)
            for resource_id, (number, each) in sorted(found.items())
            for fee in each.fees
        ]
        new = await store.insert_rentals(work.connection, rows, work.now) if rows else set()
        for resource_id, (number, each) in sorted(found.items()):
            for fee in each.fees:
                if (resource_id, fee.period) in new:
                    id, event = event_of(number, fee)
                    work.publish(USAGE_EVENTS, fee.account_id, id, event, member=TOLLBOOK)
        again = {id: each.look_again for id, (_, each) in found.items() if each.look_again is not None}
        await work.set_timers(NUMBER, again)

    async def accounts(self, work: Work, account_ids: list[str]) -> None:
        """Look at the numbers that these accounts ever had."""
        await self._memory.share(work.connection)
        registry = self._memory.registry
        ids = {id for account_id in account_ids for id in registry.numbers_of(account_id)}
        await work.set_timers(NUMBER, dict.fromkeys(ids, work.now))

    async def prices(self, work: Work, _: list[str]) -> None:
        """Look at every number."""
        await self._memory.share(work.connection)
        await work.set_timers(NUMBER, dict.fromkeys(self._memory.registry.all_numbers(), work.now))

    def _has_fee(self, account_id: str, at: datetime) -> bool:
        """Whether any book that is asked for an account has, at an instant, a price for renting numbers."""
        account = self._memory.registry.accounts[account_id]
        chain = account.chain(account.payer_at(at), self._memory.prices)
        return any(book.sells(books.RENTAL, at) for book in chain)


def event_of(number: Number, fee: Fee) -> tuple[str, dict[str, Any]]:
    """The id and the event of a fee; the same fee always has the same.

    >>> from contracts.groups import ResourceTimeline
    >>> main = ResourceTimeline(resource_id="main", version=1, kind="number", number="+13135550100", account_id="sales",
    ...                         organization_id="lakeside", cost_centers=())
    >>> event_of(Number(main), Fee("2027-03", "sales", datetime.fromisoformat("2027-03-21T03:30:00+00:00"), 12))[0]
    'main:2027-03'
    """
    id = f"{number.resource_id}:{fee.period}"
    starts_at = instant_text(fee.starts_at)
    data = {
        "account_id": fee.account_id,
        "number": number.number,
        "month": fee.period,
        "days": fee.days,
        "starts_at": starts_at,
    }
    event = {
        "specversion": "1.0", "id": id, "source": RECURRING_SOURCE, "type": RENTAL, "time": starts_at, "data": data,
    }  # fmt: skip
    return id, event


async def registry_changed(work: Work, accounts: Sequence[str], resources: Sequence[str]) -> None:
    """Look at these numbers, and at those of these accounts, when the registry is committed."""
    await work.set_timers(ACCOUNT, dict.fromkeys(accounts, work.now))
    await work.set_timers(NUMBER, dict.fromkeys(resources, work.now))
