"""Errands on a real database: what runs outside of a transaction, at least once, and by one copy at a time."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import text

from services.runtime.room import Errand, Room
from tests.support.rooms import Log, Rooms

LEASE = timedelta(minutes=1)


class Office:
    """A room with one kind of errand; what is in `broken` raises, what is in `dying` takes its process with it."""

    def __init__(self, database):
        self.database = database
        self.run = []
        self.broken = set()
        self.dying = set()
        self.open_transactions = []
        self.rooms = Rooms(Log(), database, [Room("payments", (), errands={"walk": Errand(self._walk, LEASE)})])
        self.processor = self.rooms.processors["payments"]

    async def _walk(self, processor, key):
        self.run.append(key)
        count = (
            "select count(*) from pg_stat_activity where datname = current_database() and state = 'idle in transaction'"
        )
        async with self.database.connected("payments") as connection:
            self.open_transactions.append(await connection.fetchval(count))
        if key in self.broken:
            raise KeyError("a bug")
        if key in self.dying:
            raise asyncio.CancelledError
        await processor.transact(lambda work: work.clear_timers("walk", [key]))

    async def set(self, *keys):
        async def run(work):
            await work.set_timers("walk", dict.fromkeys(keys, work.now))

        await self.processor.transact(run)

    async def move_clock(self, by):
        async with self.database.connected() as owner:
            await owner.execute("select runtime.clock_move($1)", by)

    async def timers(self):
        return await self.rooms.query("payments", text("select key, failures from payments.due order by key"))


@pytest.fixture
async def office(database):
    async with (made := Office(database)).rooms:
        yield made


async def test_errands_run_once_each(office):
    await office.set("a", "b", "c")
    assert await office.processor.run_errands() == 3
    assert sorted(office.run) == ["a", "b", "c"]
    assert await office.timers() == []
    assert await office.processor.run_errands() == 0


async def test_an_errand_runs_outside_of_any_transaction(office):
    await office.set("a")
    await office.processor.run_errands()
    assert office.open_transactions == [0]


async def test_two_copies_share_errands_and_none_is_run_by_both(office):
    await office.set(*"abcdefgh")
    ran = await asyncio.gather(office.processor.run_errands(), office.processor.run_errands())
    assert sum(ran) == 8
    assert sorted(office.run) == list("abcdefgh")


async def test_one_that_fails_is_tried_later_each_time_and_its_neighbours_run(office):
    office.broken = {"b"}
    await office.set("a", "b", "c")
    await office.processor.run_errands()
    assert [tuple(row) for row in await office.timers()] == [("b", 1)]
    await office.move_clock(timedelta(seconds=0.5))
    assert await office.processor.run_errands() == 0
    for failures in (2, 3):
        await office.move_clock(timedelta(seconds=4))
        assert await office.processor.run_errands() == 1
        assert [tuple(row) for row in await office.timers()] == [("b", failures)]
    office.broken = set()
    await office.move_clock(timedelta(seconds=8))
    await office.processor.run_errands()
    assert await office.timers() == []


async def test_one_whose_process_dies_is_run_again_when_its_lease_is_over(office):
    office.dying = {"a"}
    await office.set("a")
    with pytest.raises(asyncio.CancelledError):
        await office.processor.run_errands()
    office.dying = set()
    await office.move_clock(LEASE - timedelta(seconds=5))
    assert await office.processor.run_errands() == 0
    await office.move_clock(timedelta(seconds=5))
    assert await office.processor.run_errands() == 1
    assert (office.run, await office.timers()) == (["a", "a"], [])
