"""After a restore from a backup: no version and no number of an object is told again with another meaning."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from services.groups import api
from services.groups.consumer import build
from tests.groups.desk import Desk
from tests.support.rooms import Log, Rooms

FLOOR = 41


@pytest.fixture
async def desk(database):
    async with Rooms(Log(), database, [build()]) as rooms:
        made = Desk(rooms)
        await made.found()
        await made.seller()
        await made.group("g-front")
        await made.account("front", group_id="g-front")
        await made.done(
            "assign_resource", account_id="front", resource_id="main", resource="number", number="+13135550177"
        )
        await rooms.query(
            "groups", text("update groups.lanes set version_floor = :floor returning 1"), {"floor": FLOOR}
        )
        yield made


@pytest.fixture
async def owner(database):
    engine = create_async_engine(database.owner)
    yield engine
    await engine.dispose()


async def test_versions_go_on_above_all_that_was_told(desk):
    before = desk.state("groups.accounts", "front")["version"]
    assert before < FLOOR
    await desk.done("grant_level_2", account_id="front", role="operator")
    assert desk.state("groups.accounts", "front")["version"] == FLOOR + 1
    await desk.account("fresh")
    assert desk.state("groups.accounts", "fresh")["version"] == FLOOR + 1


async def test_what_stands_of_undone_objects_is_told_again_and_numbers_go_on_above_theirs(desk, owner):
    engine = desk.rooms.processors["groups"].engine
    undone = {
        "groups.accounts": [{"account_id": "front", "account_no": 1}, {"account_id": "gone", "account_no": 900}],
        "groups.billing_groups": [{"group_id": "g-front"}],
        "groups.assignments": [{"resource_id": "main"}],
        "groups.publishers": [{"publisher_id": "gone"}],
    }
    before = desk.state("groups.accounts", "front")
    for _ in range(2):  # killed, and run again
        async with owner.begin() as connection:
            await api.adopt_numbers(connection, undone["groups.accounts"])
        await api.tell_again(engine, desk.log, undone)
    await desk.rooms.pump()
    told = desk.state("groups.accounts", "front")
    assert told == before | {"version": FLOOR + 2}
    for topic, identifier in (("groups.billing_groups", "g-front"), ("groups.assignments", "main")):
        assert desk.state(topic, identifier)["version"] == FLOOR + 2
    await desk.account("fresh")
    assert desk.state("groups.accounts", "fresh")["account_no"] > 900
