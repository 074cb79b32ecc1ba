"""Calls in progress: the decision, and what holds when they start at once, die without a word, or come twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import select

from contracts.usage import CALL_SECONDS_MAX
from services.balance import api, tables
from services.balance.calls import forget
from services.balance.spending import Allowed, Refused, decide
from services.kernel.errors import InvalidInput, NotFound
from services.kernel.errors import Refused as RefusedError
from services.runtime.room import Tick
from tests.support.balance_factory import Town, minutes
from tests.support.callers import CENT, Callers, asking
from tests.support.servers import Database

DESK = asking("desk")
DIALER = asking("desk", outbound_profile="dialer")


@pytest.fixture
async def town(database: Database) -> AsyncIterator[Town]:
    async with Town(database) as made:
        await made.account("desk", level_2=True)
        made.open("desk", "1000")
        await made.settle()
        yield made


@pytest.fixture
async def desk(town: Town) -> AsyncIterator[Callers]:
    async with Callers(town) as made:
        yield made


async def reason(town: Town, asked=DESK) -> str | None:  # type: ignore[no-untyped-def]
    decision = await api.may_call(town.rooms.processors["balance"].engine, asked)
    return decision.reason if isinstance(decision, Refused) else None


async def in_progress(town: Town) -> list[int]:
    return [row.calls for row in await api.limits(town.rooms.processors["balance"].engine, "desk")]


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
    refused = await api.may_call(town.rooms.processors["balance"].engine, DESK)
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


async def test_a_suspended_account_may_not_call_nor_go_on(town: Town, desk: Callers) -> None:
    assert await desk.starts("before")
    town.charge("desk", "1000")
    await town.settle()
    assert await reason(town) == "suspended"
    assert await desk.refusal(desk.authorize("c1")) == "suspended"
    assert await desk.refusal(desk.renew("before", 1)) == "suspended"
    assert [row.call_leg_id for row in await town.rooms.query("balance", select(tables.call))] == ["before"]


async def test_an_account_without_money_may_not_call(town: Town, desk: Callers) -> None:
    await town.account("poor", level_2=True)
    town.open("poor", "0.0099")
    await town.settle()
    refused = await api.may_call(town.rooms.processors["balance"].engine, asking("poor"))
    assert refused == Refused(
        "insufficient_credit", "account poor has 0.0099 USD available; the first second costs 0.01"
    )
    assert await desk.authorize("c1", asking("poor")) == refused


async def test_an_unknown_account_and_another_currency_are_named(town: Town, desk: Callers) -> None:
    town.charge("early", "1")  # known by a charge only
    await town.settle()
    for name in ("nobody", "early"):
        asked = asking(name)
        for said in (reason(town, asked), desk.authorize("c1", asked)):
            with pytest.raises(NotFound) as unknown:
                await said
            assert (unknown.value.field, unknown.value.code) == ("account_id", "unknown_account")
    with pytest.raises(InvalidInput) as wrong:
        await reason(town, replace(DESK, currency="EUR"))
    assert wrong.value.field == "currency"


# ---- calls in progress ---------------------------------------------------------------------------------------------


async def test_64_calls_at_once_on_a_limit_of_ten_are_ten(town: Town, desk: Callers) -> None:
    town.limit("desk", None, 10)
    await town.settle()
    decisions = await asyncio.gather(*[desk.refusal(desk.authorize(f"c{number}")) for number in range(64)])
    assert sorted(map(str, decisions)) == ["None"] * 10 + ["concurrent_calls"] * 54
    assert await in_progress(town) == [10]


async def test_the_same_call_at_once_many_times_is_one(town: Town, desk: Callers) -> None:
    town.limit("desk", None, 1)
    await town.settle()
    grants = await asyncio.gather(*[desk.authorize("same") for _ in range(16)])
    assert len(set(grants)) == 1
    assert await in_progress(town) == [1]
    assert not await desk.starts("other")


async def test_a_profile_has_its_own_limit_within_the_accounts(town: Town, desk: Callers) -> None:
    town.limit("desk", None, 3)
    town.limit("desk", None, 1, outbound_profile="dialer")
    await town.settle()
    assert await desk.starts("c1", DIALER)
    assert await desk.authorize("c2", DIALER) == Refused(
        "concurrent_calls", "profile dialer of desk has 1 of at most 1 calls in progress"
    )
    assert [await desk.starts(call) for call in ("c3", "c4")] == [True, True]
    assert await desk.authorize("c5") == Refused(
        "concurrent_calls", "account desk has 3 of at most 3 calls in progress"
    )
    assert await in_progress(town) == [3, 1]


async def test_limits_hold_within_one_transaction_too(town: Town, desk: Callers) -> None:
    town.limit("desk", None, 2)
    town.limit("desk", None, 1, outbound_profile="dialer")
    await town.settle()
    assert await desk.starts("first", DIALER)
    # joined: they wait while the first of them is decided, and one place becomes free among them
    joined = await asyncio.gather(
        desk.refusal(desk.authorize("a", DIALER)),
        desk.refusal(desk.release("first")),
        desk.refusal(desk.authorize("b", DIALER)),
        desk.refusal(desk.authorize("c", DIALER)),
        desk.refusal(desk.authorize("d")),
        desk.refusal(desk.authorize("e")),
    )
    assert joined == ["concurrent_calls", None, None, "concurrent_calls", None, "concurrent_calls"]


async def test_a_call_that_ended_frees_its_place_once_and_does_not_come_back(town: Town, desk: Callers) -> None:
    town.limit("desk", None, 1)
    await town.settle()
    assert await desk.starts("c1")
    assert not await desk.starts("c2")
    assert await desk.release("c1") == await desk.release("c1")
    with pytest.raises(NotFound) as unknown:
        await desk.release("never")
    assert (unknown.value.field, unknown.value.code) == ("call_leg_id", "unknown_call")
    assert await desk.starts("c2")
    for said in (desk.authorize("c1"), desk.renew("c1", 1)):
        with pytest.raises(RefusedError) as ended:
            await said
        assert (ended.value.field, ended.value.code) == ("call_leg_id", "call_ended")
    assert await in_progress(town) == [1]


async def test_a_lease_that_is_over_counts_no_more_and_the_call_is_decided_anew(town: Town, desk: Callers) -> None:
    town.limit("desk", None, 1)
    await town.settle()
    assert await desk.starts("c1", seconds=60)
    await town.move(timedelta(seconds=80))
    assert await desk.refusal(desk.renew("c1", 1, seconds=60)) is None  # it says that it goes on
    await town.move(timedelta(seconds=80))
    assert not await desk.starts("c2")
    await town.move(timedelta(seconds=11))
    assert await desk.starts("c2")
    assert await desk.refusal(desk.authorize("c1")) == "concurrent_calls"
    assert await desk.refusal(desk.renew("c1", 2)) == "concurrent_calls"
    assert await in_progress(town) == [1]


async def test_a_call_that_runs_goes_on_whatever_limit_is_reached_meanwhile(town: Town, desk: Callers) -> None:
    assert await desk.starts("c1")
    town.limit("desk", "0", 0)
    await town.settle()
    assert await in_progress(town) == [1]  # calls count from before there was a limit
    assert await desk.starts("c1")
    assert await desk.refusal(desk.renew("c1", 1)) is None
    assert not await desk.starts("c2")


@pytest.mark.parametrize("seconds", [0, -1, CALL_SECONDS_MAX + 1])
async def test_what_is_asked_for_has_bounds(desk: Callers, seconds: int) -> None:
    await desk.authorize("c1")
    for said in (desk.authorize("c2", seconds=seconds), desk.renew("c1", 1, seconds=seconds)):
        with pytest.raises(InvalidInput) as wrong:
            await said
        assert wrong.value.field == "seconds"


async def test_calls_beside_charges_and_commands_never_lock_each_other_out(town: Town, desk: Callers) -> None:
    town.limit("desk", "1000000", 1000)
    await town.settle()

    async def calls(worker: int) -> None:
        for number in range(20):
            await desk.authorize(f"{worker}-{number}", DIALER)
            await desk.settle(f"{worker}-{number}", 60)

    async def money() -> None:
        for number in range(5):
            town.charge("desk", "1", outbound_profile="dialer", call_leg_id=f"1-{number}")
            town.limit("desk", "1000000", 1000 + number, outbound_profile="dialer")
            await town.rooms.pump(ticks=True)

    async with asyncio.timeout(60):
        await asyncio.gather(money(), *[calls(worker) for worker in range(4)])
    async with town.database.connected() as connection:
        sql = "select deadlocks from pg_stat_database where datname = current_database()"
        assert await connection.fetchval(sql) == 0


async def test_what_is_long_over_is_forgotten(town: Town, desk: Callers) -> None:
    now = await town.now()
    town.limit("desk", "10")
    await town.settle()
    for days in (0, 41):
        town.charge("desk", "1", event_time=f"{now - timedelta(days=days):%Y-%m-%dT%H:%M:%SZ}")
    await town.settle()
    await desk.authorize("old", seconds=30)
    await town.settle(after=timedelta(hours=2))
    await desk.authorize("new", seconds=30)
    assert await town.rooms.processors["balance"].tick(Tick("forget", forget))
    assert [row.call_leg_id for row in await town.rooms.query("balance", select(tables.call))] == ["new"]
    assert [row.day for row in await town.rooms.query("balance", select(tables.spend))] == [now.date()]
