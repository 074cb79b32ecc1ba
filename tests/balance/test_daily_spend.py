"""Daily spend limits: set by command, counted by the day of the event, told once."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, select

from services.balance import tables
from services.kernel.money import format_nano, parse_amount
from services.runtime.lanes import give_birth
from services.runtime.processor import Processor
from services.runtime.records import Record, lane_name
from tests.support.balance_factory import Town, charge
from tests.support.servers import Database, TestedServers
from tests.support.spending_model import NEAR, REACHED, DailySpend, Spent

DAY = timedelta(days=1)


@pytest.fixture
async def town(database: Database) -> AsyncIterator[Town]:
    async with Town(database) as made:
        await made.account("desk", level_2=True)
        made.open("desk", "1000")
        await made.settle()
        yield made
        await made.assert_conserved()


def at(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


async def spent(town: Town) -> dict[tuple[str, str, date], str]:
    rows = await town.rooms.query("balance", select(tables.spend))
    return {(row.account_id, row.outbound_profile, row.day): format_nano(row.spent_nano) for row in rows}


# ---- the command ---------------------------------------------------------------------------------------------------


async def test_limits_are_set_told_and_logged(town: Town) -> None:
    town.limit("desk", "100", 10)
    town.limit("desk", None, 2, outbound_profile="trunk-a")
    await town.settle()
    told = town.events("desk", "limits_set")
    assert [(each["outbound_profile"], each["limit"], each["calls_max"]) for each in told] == [
        (None, "100", 10),
        ("trunk-a", None, 2),
    ]
    rows = await town.rooms.query("balance", select(tables.spend_limit).order_by(tables.spend_limit.c.outbound_profile))
    assert [(row.outbound_profile, row.daily_spend_nano, row.calls_max) for row in rows] == [
        ("", 100 * 10**9, 10),
        ("trunk-a", None, 2),
    ]
    log = await town.rooms.query("balance", select(tables.command).where(tables.command.c.kind == "set_limits"))
    assert [(row.actor, row.accepted) for row in log] == [("ann", True)] * 2


async def test_a_command_says_all_of_a_limit_and_a_repeat_changes_nothing(town: Town) -> None:
    town.limit("desk", "100", 10, command_id="first")
    town.limit("desk", "50")
    await town.settle()
    town.limit("desk", "100", 10, command_id="first")
    await town.settle()
    (row,) = await town.rooms.query("balance", select(tables.spend_limit))
    assert (row.daily_spend_nano, row.calls_max) == (50 * 10**9, None)
    assert len(town.events("desk", "limits_set")) == 2
    town.limit("desk", "7", command_id="first")
    await town.settle()
    (refused,) = town.events("desk", "command_refused")
    assert (refused["reason"], refused["field"]) == ("idempotency_conflict", "command_id")


async def test_what_is_no_limit_is_refused_by_field(town: Town) -> None:
    town.limit("desk", "4000000000.000000001")
    await town.settle()
    (refused,) = town.events("desk", "command_refused")
    assert (refused["field"], refused["message"]) == ("daily_spend", "must be at most 4000000000")
    town.limit("desk", "-1")
    town.limit("desk", "1", -1)
    town.limit("desk", "1", currency="XXX")
    town.limit("desk", "1", outbound_profile="no name")
    await town.settle()
    fields = [field for _, field in await town.quarantined()]
    assert sorted(fields, key=str) == ["calls_max", "currency", "daily_spend", "outbound_profile"]
    assert await town.rooms.query("balance", select(tables.spend_limit)) == []


# ---- counting ------------------------------------------------------------------------------------------------------


async def test_charges_count_on_the_day_of_their_event_for_the_account_and_for_the_profile(town: Town) -> None:
    now = await town.now()
    town.limit("desk", "100")
    await town.settle()
    town.charge("desk", "3", event_time=at(now))
    town.charge("desk", "2", event_time=at(now), outbound_profile="trunk-a")
    town.charge("desk", "5", event_time=at(now - DAY), outbound_profile="trunk-a")
    town.charge("desk", "-1", event_time=at(now - DAY), outbound_profile="trunk-a")
    town.charge("desk", "0.5", event_time=at(now), outbound_profile=None)
    await town.settle()
    today, yesterday = now.date(), (now - DAY).date()
    assert await spent(town) == {
        ("desk", "", today): "5.5",
        ("desk", "trunk-a", today): "2",
        ("desk", "", yesterday): "4",
        ("desk", "trunk-a", yesterday): "4",
    }


async def test_accounts_without_a_limit_are_not_counted_and_one_that_lost_its_limit_still_is(town: Town) -> None:
    now = await town.now()
    town.charge("desk", "3", event_time=at(now))
    await town.settle()
    assert await spent(town) == {}
    town.limit("desk", "100")
    town.limit("desk", None)
    await town.settle()
    assert await spent(town) == {("desk", "", now.date()): "3"}
    town.charge("desk", "4", event_time=at(now))
    await town.settle()
    assert await spent(town) == {("desk", "", now.date()): "7"}


async def test_the_first_limit_takes_over_what_was_posted_for_the_account_that_day(town: Town) -> None:
    now = await town.now()
    town.charge("desk", "50", event_time=at(now))
    await town.settle()
    await town.settle(after=DAY)
    town.charge("desk", "8", event_time=at(now + DAY), outbound_profile="trunk-a")
    town.charge("desk", "-1", event_time=at(now), plan="invoiced")
    town.charge("other", "9", event_time=at(now + DAY))
    await town.settle()
    town.limit("desk", "100", outbound_profile="trunk-a")
    town.limit("desk", "7")
    await town.settle()
    tomorrow = (now + DAY).date()
    assert await spent(town) == {("desk", "", tomorrow): "7", ("desk", "trunk-a", tomorrow): "0"}
    assert [each["amount"] for each in town.events("desk", REACHED)] == ["7"]
    town.limit("desk", "8")
    await town.settle()
    assert (await spent(town))["desk", "", tomorrow] == "7"


async def test_a_limit_is_told_near_at_80_percent_and_reached_once_a_day(town: Town) -> None:
    now = await town.now()
    town.limit("desk", "10")
    await town.settle()
    told = []
    for amount in ("7.999999999", "0.000000001", "1.9", "0.1", "-5", "9", "3"):
        town.charge("desk", amount, event_time=at(now))
        await town.settle()
        told.append(
            [(each["kind"], each["amount"]) for each in town.events("desk", NEAR, REACHED)][sum(map(len, told)) :]
        )
    assert told == [[], [(NEAR, "8")], [], [(REACHED, "10")], [], [], []]
    (reached,) = town.events("desk", REACHED)
    assert (reached["limit"], reached["day"], reached["outbound_profile"]) == ("10", now.date().isoformat(), None)
    tomorrow = now + DAY
    await town.settle(after=DAY)
    town.charge("desk", "20", event_time=at(tomorrow))
    await town.settle()
    assert [each["day"] for each in town.events("desk", NEAR, REACHED)][2:] == [tomorrow.date().isoformat()]


async def test_a_limit_below_todays_spend_is_reached_at_once_and_a_day_that_is_over_is_not_spoken_of(
    town: Town,
) -> None:
    now = await town.now()
    town.limit("desk", "100", outbound_profile="trunk-a")
    await town.settle()
    town.charge("desk", "50", event_time=at(now), outbound_profile="trunk-a")
    town.charge("desk", "500", event_time=at(now - DAY), outbound_profile="trunk-a")
    await town.settle()
    assert town.events("desk", NEAR, REACHED) == []
    town.limit("desk", "50", outbound_profile="trunk-a")
    await town.settle()
    (reached,) = town.events("desk", REACHED)
    assert (reached["outbound_profile"], reached["amount"], reached["limit"]) == ("trunk-a", "50", "50")
    town.limit("desk", "50", 3, outbound_profile="trunk-a")  # the same amount: nothing new
    town.limit("desk", "0")
    await town.settle()
    assert [each["outbound_profile"] for each in town.events("desk", REACHED)] == ["trunk-a", None]


# ---- the charge path -----------------------------------------------------------------------------------------------


@contextmanager
def statements(processor: Processor) -> Iterator[list[str]]:
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement)

    engine = processor.engine.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", note)


async def test_limits_cost_one_statement_a_batch_and_accounts_without_one_none(database: Database) -> None:
    async with Town(database, partitions=1) as town:
        names = [f"a{number}" for number in range(40)]
        for name in names:
            await town.account(name)
            town.open(name, "100")
        await town.settle()
        processor = town.rooms.processors["balance"]
        lane = lane_name("charges", "usage.charges", 0)
        async with processor.engine.begin() as connection:
            await give_birth(connection, processor.tables, "charges", [(lane, "usage.charges", 0, 0)])
        now = at(await town.now())
        counts = []
        for first, limited in ((0, []), (40, names[:1]), (80, names)):
            for name in limited:
                town.limit(name, "1000")
            await town.rooms.feed(processor, processor.room.input("commands"))
            records = []
            for number, name in enumerate(names):
                data = charge(name, "1") | {"event_time": now, "outbound_profile": f"p{number % 3}"}
                town.send("usage.charges", name, data)
                logged = town.log.records["usage.charges", 0][first + number]
                records.append(Record("usage.charges", 0, first + number, 0, logged.key, logged.value, lane))
            with statements(processor) as seen:
                await processor.process(processor.room.input("charges"), records, {lane: (first, first + len(records))})
            counts.append(len(seen))
        assert [count - counts[0] for count in counts] == [0, 1, 1]
        assert len(await spent(town)) == 1 + 1 + 40 + 40 - 2


async def test_a_batch_that_comes_again_is_counted_and_told_once(database: Database) -> None:
    async with Town(database, partitions=1) as town:
        await town.account("desk")
        town.open("desk", "100")
        town.limit("desk", "10")
        await town.settle()
        now = await town.now()
        data = charge("desk", "12") | {"event_time": at(now)}
        town.send("usage.charges", "desk", data)
        again = json.loads(town.log.records["usage.charges", 0][0].value)
        town.log.write("usage.charges", key="desk", value=again, partition=0)  # the same seq, as a relay repeats it
        await town.settle()
        assert await spent(town) == {("desk", "", now.date()): "12"}
        assert [each["amount"] for each in town.events("desk", NEAR, REACHED)] == ["12"]


# ---- any charges, days and corrections -----------------------------------------------------------------------------

ACCOUNTS = ("ant", "bee")
PROFILES = (None, "p", "q")
CHARGE = st.tuples(
    st.sampled_from(ACCOUNTS), st.sampled_from(PROFILES), st.sampled_from([-1, 0, 0, 0, 1]), st.integers(-6, 12)
)
STEP = st.one_of(
    st.tuples(st.just("charges"), st.lists(CHARGE, min_size=1, max_size=6)),
    st.tuples(
        st.just("limit"),
        st.tuples(st.sampled_from(ACCOUNTS), st.sampled_from(PROFILES), st.sampled_from([None, 0, 5, 10, 20])),
    ),
    st.tuples(st.just("hours"), st.integers(1, 30)),
)


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(STEP, min_size=3, max_size=20))
async def test_days_and_notices_are_those_of_the_model(servers: TestedServers, steps: list[Any]) -> None:
    model = DailySpend()
    async with servers.fresh_database() as database, Town(database, partitions=1) as town:
        for account_id in ACCOUNTS:
            await town.account(account_id)
            town.open(account_id, "1000")
        await town.settle()
        for kind, value in steps:
            now = await town.now()
            today = now.date()
            if kind == "charges":
                batch = [Spent(who, profile, today + days * DAY, nano * 10**9) for who, profile, days, nano in value]
                for each in batch:
                    moment = f"{each.day.isoformat()}T{23 if each.day < today else 0:02d}:30:00Z"
                    amount = format_nano(each.nano)
                    town.charge(each.account_id, amount, event_time=moment, outbound_profile=each.outbound_profile)
                model.charge(batch, today)
            elif kind == "limit":
                who, profile, units = value
                limit = None if units is None else units * 10**9
                town.limit(who, None if limit is None else format_nano(limit), outbound_profile=profile)
                model.set_limit((who, profile), limit, today)
            else:
                await town.move(timedelta(hours=value))
            await town.settle()
        for (account_id, profile, day), amount in (await spent(town)).items():
            assert parse_amount(amount, signed=True) == model.spent((account_id, profile or None), day)
        kept = {(account_id, day) for account_id, _, day in await spent(town)}
        assert {(each.account_id, each.day) for each in model.charges} <= kept
        for account_id in ACCOUNTS:
            told = [
                (
                    account_id, each["outbound_profile"], each["kind"], date.fromisoformat(each["day"]),
                    parse_amount(each["limit"]), parse_amount(each["amount"], signed=True),
                )
                for each in town.events(account_id, NEAR, REACHED)
            ]  # fmt: skip
            assert told == [notice for notice in model.notices if notice[0] == account_id]
