"""Re-rates of what tiers price, before a cut, between cut and pass and after the close, beside uses in any order of arrival:
wallets and invoices are the same to the last digit, and what the page says in fractions.

Each world has the same events in an order of its own (`test_tiers`). Their charges go through four versions of the list.
"""

from __future__ import annotations

import asyncio
import random

import pytest

from services.balance.consumer import room as balance_room
from services.balance.refuse_fast import RefuseFast
from services.invoices import api as invoices_api
from services.invoices.consumer import build as invoices_room
from services.kernel.money import parse_amount
from services.runtime.settings import Settings
from services.usage import api as usage_api
from services.usage import rerate_plans
from services.usage.consumer import build as usage_room
from tests.support.rooms import Log, Rooms
from tests.support.servers import Database
from tests.system.test_tiers import (
    BOUNDARY,
    LAST,
    PLANS,
    THIS,
    WORLDS,
    Arrival,
    Entry,
    Event,
    check_purses,
    entries,
    expected_lines,
    money_of,
    replace,
    some_events,
    some_schedule,
    timedelta,
)

SPAN = BOUNDARY - timedelta(days=1), BOUNDARY + timedelta(days=1)


def moved(events: list[Event]) -> list[Entry]:
    """What all invoices take in. Until the pass each re-rate takes back on the same invoice what was there, so that only the
    third version is on the closed one; after it all that stands goes from the third to the fourth on the open one."""
    by_third = [replace(each, schedule="list/3/s") for each in entries(events)]
    again = [
        replace(each, quantity=sign * each.quantity, schedule=f"list/{version}/s", bill_to=THIS)
        for each in by_third
        for version, sign in ((3, -1), (4, 1))
    ]
    return by_third + again


class ReRates:
    """Plans of all there is, carried out by either worker."""

    def __init__(self, arrival: Arrival) -> None:
        self.arrival, self.chance = arrival, arrival.chance
        self.engine = arrival.workers[0].engine

    async def begin(self) -> int:
        """Plan, approve and ask for it; the number of charges."""
        plan = await usage_api.plan_rerate(self.engine, *SPAN, "ann", "finance")
        if plan.charges:
            await usage_api.approve_rerate(self.engine, plan.plan_id, "bob", "operator")
            await usage_api.execute_rerate(self.engine, plan.plan_id, "bob", "operator")
        return plan.charges

    async def chunk(self) -> None:
        worker = self.chance.choice(self.arrival.workers)
        await worker.tick(next(tick for tick in worker.room.ticks if tick.name == "rerate"))

    async def finish(self) -> None:
        while any(plan.state == "executing" for plan in await usage_api.rerates(self.engine)):
            await self.chunk()


@pytest.mark.parametrize("seed", range(2))
async def test_any_order_of_arrival_and_re_rates_is_the_same_money_to_the_last_digit(
    database: Database, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance = random.Random(seed)
    monkeypatch.setattr(rerate_plans, "CHUNK", chance.choice((5, 17, 1_000)))
    first, second, fourth = (some_schedule(chance) for _ in range(3))
    schedules = {"list/1/s": first, "list/2/s": second, "list/3/s": first, "list/4/s": fourth}
    events = some_events(chance)
    early, late = ([event for event in events if event.late is is_late] for is_late in (False, True))
    log = Log()
    balance = balance_room(RefuseFast(lambda: None, prefix="t."))
    async with (
        Rooms(log, database, [usage_room(), balance, invoices_room(Settings())]) as rooms,
        Rooms(log, database, [usage_room()]) as other,
    ):
        arrival = Arrival(log, rooms, other, chance)
        re_rates = ReRates(arrival)
        await arrival.start(first)
        await arrival.publish(arrival.order(early))
        await rooms.pump()

        await arrival.new_prices(second)
        assert await re_rates.begin()
        await re_rates.finish()
        await arrival.cut()
        await arrival.new_prices(first)
        assert await re_rates.begin()
        for event in arrival.order(late):  # what revises a charge that no chunk has come to yet leaves it nothing to do
            await arrival.publish([event])
            if chance.random() < 0.3:
                await asyncio.gather(re_rates.chunk(), arrival.read())
        await re_rates.finish()
        await arrival.settle()
        engine = rooms.processors["invoices"].engine
        closed = {
            each.group_id: (await invoices_api.show(engine, each.number or "")).document
            for each in await invoices_api.list_invoices(engine, state="closed")
        }

        await arrival.new_prices(fourth)
        assert await re_rates.begin()
        await re_rates.finish()
        await rooms.pump(ticks=True)
        assert await re_rates.begin() == 0
        for each in await invoices_api.list_invoices(engine, state="closed"):
            assert (await invoices_api.show(engine, each.number or "")).document == closed[each.group_id]
        assert (await invoices_api.audit(engine)).findings == ()
        assert (await usage_api.tiers_and_reversals(re_rates.engine)).findings == ()
        seen = [await money_of(arrival, world) for world in range(WORLDS)]
    assert seen[0] == seen[1] == seen[2]
    for invoice in (LAST, THIS):
        lines = expected_lines(schedules, moved(events), invoice)
        assert seen[0]["documents"].get(invoice, {"lines": []})["lines"] == lines
        cost = dict.fromkeys(PLANS, 0)
        for line in lines:
            cost[line["account_id"]] += parse_amount(line["exact"], signed=True)
        assert {name: seen[0]["charged"].get(f"{name} {invoice}", 0) for name in PLANS} == cost
    check_purses(seen[0])
