"""Timers on a real database: one that fails holds up no other, and none ever waits in a circle with a batch."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.ext.asyncio import create_async_engine

from services.runtime.database import transaction
from services.runtime.lanes import transaction_instant
from services.runtime.room import Room
from tests.support import copier
from tests.support.processes import until
from tests.support.rooms import Log, Rooms

WALLET = copier.COPIED  # any table with rows to lock; a wallet's name is its value


class Bank:
    """A room with two kinds of timers: a key names a wallet, which is locked; what is in `broken` cannot fire."""

    def __init__(self, database):
        self.database = database
        self.fired = []
        self.broken = set()
        self.rooms = Rooms(Log(), database, [Room("payments", (), timers={"early": self._fire, "late": self._fire})])
        self.processor = self.rooms.processors["payments"]

    async def _fire(self, work, keys):
        await self.lock(work, *keys)
        if self.broken & set(keys):
            raise KeyError("a bug")
        self.fired += keys

    async def lock(self, work, *wallets):
        wanted = select(WALLET.c.value).where(WALLET.c.value.in_(wallets)).order_by(WALLET.c.value)
        assert (await work.execute(wanted.with_for_update())).scalars().all() == sorted(wallets)

    @asynccontextmanager
    async def batch(self):
        """A transaction as a batch has it."""
        async with transaction(self.processor.engine) as connection:
            moment = await transaction_instant(connection, self.processor.tables)
            yield self.processor._work(connection, "test", moment)

    async def set(self, kind, *keys, after=timedelta(0)):
        async with self.batch() as work:
            await work.set_timers(kind, dict.fromkeys(keys, work.now + after))

    async def move_clock(self, by):
        async with self.database.connected() as owner:
            await owner.execute("select runtime.clock_move($1)", by)

    async def timers(self):
        return await self.rooms.query(
            "payments", text("select kind, key, failures, due_at - runtime.clock_now() as left from payments.due")
        )

    async def start(self):
        """The timers fire meanwhile, and wait for a wallet by now."""
        firing = asyncio.create_task(self.processor.fire_timers())
        waits = (
            "select count(*) > 0 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        )

        async def waiting():
            async with self.database.connected("payments") as connection:
                return await connection.fetchval(waits)

        await until(waiting, "the timers wait for a wallet", within_s=10)
        return firing


@pytest.fixture
async def bank(database):
    engine = create_async_engine(database.owner)
    async with engine.begin() as connection:
        await connection.run_sync(WALLET.metadata.create_all)
    await engine.dispose()
    async with (made := Bank(database)).rooms:
        async with made.batch() as work:
            await work.execute(
                insert(WALLET), [{"topic": "", "partition": 0, "offset": 0, "value": name} for name in "abcd"]
            )
        yield made


async def test_a_timer_that_fails_is_tried_later_each_time_and_its_neighbours_fire(bank):
    bank.broken = {"b"}
    await bank.set("early", "a", "b", "c")
    await bank.set("late", "d")
    assert await bank.processor.fire_timers() == 3
    assert bank.fired == ["a", "c", "d"]
    waits = []
    for _ in range(12):
        [(kind, key, failures, left)] = await bank.timers()
        assert (kind, key, failures) == ("early", "b", len(waits) + 1)
        waits.append(round(left.total_seconds()))
        assert await bank.processor.fire_timers() == 0  # not before it is due
        await bank.move_clock(left)
        bank.broken = bank.broken if len(waits) < 12 else set()
        assert await bank.processor.fire_timers() == (0 if bank.broken else 1)
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 512, 512]
    assert bank.fired == ["a", "c", "d", "b"]
    assert await bank.timers() == []


async def test_a_timer_that_is_set_anew_starts_anew(bank):
    bank.broken = {"b"}
    await bank.set("early", "b")
    await bank.processor.fire_timers()
    await bank.set("early", "b")
    [(_, _, failures, left)] = await bank.timers()
    assert failures == 0
    assert left <= timedelta(0)


async def test_a_kind_that_this_version_does_not_know_stays_and_is_told_once(bank, caplog):
    await bank.set("of tomorrow", *(str(number) for number in range(600)))  # older, and more than one round takes
    await bank.set("late", "a")
    for _ in range(3):
        await bank.processor.fire_timers()
    assert bank.fired == ["a"]
    assert len(await bank.timers()) == 600
    assert sum("of tomorrow" in record.message for record in caplog.records) == 1


async def test_a_batch_that_holds_a_wallet_can_move_its_timer_while_the_timer_waits_for_the_wallet(bank):
    await bank.set("early", "a")
    async with bank.batch() as work:
        await bank.lock(work, "a")
        firing = await bank.start()
        async with asyncio.timeout(5):
            await work.set_timers("early", {"a": work.now + timedelta(hours=1)})
    await firing
    [(_, key, _, left)] = await bank.timers()
    assert key == "a"
    assert left > timedelta(minutes=59)


async def test_timers_of_two_kinds_lock_wallets_against_the_order_of_a_batch_and_neither_fails(bank):
    await bank.set("early", "b")
    await bank.set("late", "a")
    async with bank.batch() as work:
        await bank.lock(work, "a")
        firing = await bank.start()
        async with asyncio.timeout(5):
            await bank.lock(work, "b")
    await firing
    assert sorted(bank.fired) == ["a", "b"]
