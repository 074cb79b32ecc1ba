"""Calls in progress: the decision, and what holds when they start at once, die without a word, or come twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from services.balance import api, tables
from services.balance.calls import LEASE_S_MAX, forget
from services.balance.spending import Allowed, CallAsked, Refused, decide
from services.kernel.errors import InvalidInput, NotFound
from services.kernel.errors import Refused as RefusedError
from services.runtime.room import Tick
from tests.support.balance_factory import Town, minutes
from tests.support.servers import Database

CENT = 10_000_000
DESK = CallAsked("desk", None, CENT, "USD")
DIALER = replace(DESK, outbound_profile="dialer")


@pytest.fixture
async def town(database: Database) -> AsyncIterator[Town]:
    async with Town(database) as made:
        await made.account("desk", level_2=True)
        made.open("desk", "1000")
        await made.settle()
        yield made


def engine_of(town: Town) -> Any:
    return town.rooms.processors["balance"].engine


async def start(town: Town, call: str, asked: CallAsked = DESK, *, lease_s: int = 330) -> Allowed | Refused:
    return await api.start_call(engine_of(town), asked, call, lease_s=lease_s)


async def reason(town: Town, asked: CallAsked = DESK) -> str | None:
    decision = await api.may_call(engine_of(town), asked)
    return decision.reason if isinstance(decision, Refused) else None


async def in_progress(town: Town) -> list[int]:
    return [row.calls for row in await api.limits(engine_of(town), "desk")]


# ---- the decision --------------------------------------------------------------------------------------------------


def test_a_price_may_be_as_high_as_the_maximum_and_the_refusal_names_both() -> None:
    asked = replace(DIALER, maximum_nano=CENT, maximum_profile="dialer")
    assert decide(asked, [], closed=False, suspended=False) == Allowed()
    assert decide(replace(asked, price_nano=CENT + 1), [], closed=False, suspended=False) == Refused(
        "price_too_high", "a minute costs 0.010000001 USD; profile dialer of desk allows at most 0.01"
    )


async def test_a_days_spend_refuses_from_the_limit_on_until_midnight(town: Town) -> None:
    now = await town.now()
    town.limit("desk", "10")
    town.limit("desk", "5", outbound_profile="dialer")
    await town.settle()
    today = f"{now:%Y-%m-%dT%H:%M:%SZ}"
    town.charge("desk", "4.999999999", event_time=today, outbound_profile="dialer")
    await town.settle()
    assert (await reason(town), await reason(town, DIALER)) == (None, None)
    town.charge("desk", "0.000000001", event_time=today, outbound_profile="dialer")
    await town.settle()
    assert (await reason(town), await reason(town, DIALER)) == (None, "daily_spend")
    town.charge("desk", "5", event_time=today)
    await town.settle()
    refused = await api.may_call(engine_of(town), DESK)
    assert refused == Refused(
        "daily_spend",
        "account desk has spent 10 USD today; its limit is 10 a day, and the next day begins at 00:00 UTC",
    )
    town.charge("desk", "-1", event_time=today)
    await town.settle()
    assert await reason(town) is None
    town.charge("desk", "1", event_time=today)
    midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    await town.settle(after=midnight - now - minutes(1))
    assert await reason(town) == "daily_spend"
    await town.settle(after=minutes(1))
    assert (await reason(town), await reason(town, DIALER)) == (None, None)


async def test_a_suspended_account_may_not_call(town: Town) -> None:
    town.charge("desk", "1000")
    await town.settle()
    assert await reason(town) == "suspended"
    assert isinstance(await start(town, "c1"), Refused)
    assert await town.rooms.query("balance", select(tables.call)) == []


async def test_an_unknown_account_and_another_currency_are_named(town: Town) -> None:
    town.charge("early", "1")  # known by a charge only
    await town.settle()
    for name in ("nobody", "early"):
        with pytest.raises(NotFound) as unknown:
            await reason(town, replace(DESK, account_id=name))
        assert (unknown.value.field, unknown.value.code) == ("account_id", "unknown_account")
    with pytest.raises(InvalidInput) as wrong:
        await reason(town, replace(DESK, currency="EUR"))
    assert wrong.value.field == "currency"


# ---- calls in progress ---------------------------------------------------------------------------------------------


async def test_64_calls_at_once_on_a_limit_of_ten_are_ten(town: Town) -> None:
    town.limit("desk", None, 10)
    await town.settle()
    decisions = await asyncio.gather(*[start(town, f"c{number}") for number in range(64)])
    assert sum(isinstance(decision, Allowed) for decision in decisions) == 10
    assert {decision.reason for decision in decisions if isinstance(decision, Refused)} == {"concurrent_calls"}
    assert await in_progress(town) == [10]


async def test_the_same_call_at_once_many_times_is_one(town: Town) -> None:
    town.limit("desk", None, 1)
    await town.settle()
    assert set(await asyncio.gather(*[start(town, "same") for _ in range(16)])) == {Allowed()}
    assert await in_progress(town) == [1]
    assert isinstance(await start(town, "other"), Refused)


async def test_a_profile_has_its_own_limit_within_the_accounts(town: Town) -> None:
    town.limit("desk", None, 3)
    town.limit("desk", None, 1, outbound_profile="dialer")
    await town.settle()
    assert await start(town, "c1", DIALER) == Allowed()
    assert await start(town, "c2", DIALER) == Refused(
        "concurrent_calls", "profile dialer of desk has 1 of at most 1 calls in progress"
    )
    assert [await start(town, call) for call in ("c3", "c4")] == [Allowed(), Allowed()]
    assert await start(town, "c5") == Refused("concurrent_calls", "account desk has 3 of at most 3 calls in progress")
    assert await in_progress(town) == [3, 1]


async def test_a_call_that_ended_frees_its_place_once_and_does_not_come_back(town: Town) -> None:
    town.limit("desk", None, 1)
    await town.settle()
    engine = engine_of(town)
    assert await start(town, "c1") == Allowed()
    assert await start(town, "c2") != Allowed()
    assert [await api.end_call(engine, "desk", call) for call in ("c1", "c1", "never")] == [True, False, False]
    assert await start(town, "c2") == Allowed()
    with pytest.raises(RefusedError) as ended:
        await start(town, "c1")
    assert (ended.value.field, ended.value.code) == ("call_leg_id", "call_ended")
    assert await in_progress(town) == [1]


async def test_a_lease_that_is_over_counts_no_more_and_the_call_is_decided_anew(town: Town) -> None:
    town.limit("desk", None, 1)
    await town.settle()
    assert await start(town, "c1", lease_s=60) == Allowed()
    await town.move(timedelta(seconds=50))
    assert await start(town, "c1", lease_s=60) == Allowed()  # it says that it goes on
    assert await start(town, "c1", lease_s=1) == Allowed()  # which makes no lease shorter
    await town.move(timedelta(seconds=50))
    assert await start(town, "c2") != Allowed()
    await town.move(timedelta(seconds=11))
    assert await start(town, "c2") == Allowed()
    assert await start(town, "c1") != Allowed()
    assert await in_progress(town) == [1]


async def test_a_call_that_runs_goes_on_whatever_is_reached_meanwhile(town: Town) -> None:
    assert await start(town, "c1") == Allowed()
    town.limit("desk", "0", 0)
    await town.settle()
    assert await in_progress(town) == [1]  # calls count from before there was a limit
    assert await start(town, "c1") == Allowed()
    assert await start(town, "c2") != Allowed()


@pytest.mark.parametrize("lease_s", [0, -1, LEASE_S_MAX + 1])
async def test_a_lease_has_bounds(town: Town, lease_s: int) -> None:
    with pytest.raises(InvalidInput) as wrong:
        await start(town, "c1", lease_s=lease_s)
    assert wrong.value.field == "lease_s"


async def test_calls_start_beside_charges_and_commands_without_a_deadlock(town: Town) -> None:
    town.limit("desk", "1000000", 1000)
    await town.settle()

    async def calls(worker: int) -> None:
        for number in range(20):
            await start(town, f"{worker}-{number}", DIALER)
            await api.end_call(engine_of(town), "desk", f"{worker}-{number}")

    async def money() -> None:
        for number in range(5):
            town.charge("desk", "1", outbound_profile="dialer")
            town.limit("desk", "1000000", 1000 + number, outbound_profile="dialer")
            await town.rooms.pump()

    async with asyncio.timeout(60):
        await asyncio.gather(money(), *[calls(worker) for worker in range(4)])
    async with town.database.connected() as connection:
        sql = "select deadlocks from pg_stat_database where datname = current_database()"
        assert await connection.fetchval(sql) == 0


async def test_what_is_long_over_is_forgotten(town: Town) -> None:
    now = await town.now()
    town.limit("desk", "10")
    await town.settle()
    for days in (0, 41):
        town.charge("desk", "1", event_time=f"{now - timedelta(days=days):%Y-%m-%dT%H:%M:%SZ}")
    await town.settle()
    await start(town, "old", lease_s=60)
    await town.move(timedelta(hours=2))
    await start(town, "new", lease_s=60)
    assert await town.rooms.processors["balance"].tick(Tick("forget", forget))
    assert [row.call_leg_id for row in await town.rooms.query("balance", select(tables.call))] == ["new"]
    assert [row.day for row in await town.rooms.query("balance", select(tables.spend))] == [now.date()]
