"""The picture that the tasks of one worker share: whoever reads it late never takes it back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from services.runtime.database import transaction
from services.usage import api, store
from services.usage.books import PriceBook
from services.usage.consumer import build
from services.usage.memory import Memory
from services.usage.price_files import read_price_file
from tests.support.rooms import Log, Rooms
from tests.support.servers import Database
from tests.support.usage_registry import LONG_AGO, Sender

PRICES = read_price_file(b"product,prefix,price_per_minute,currency\nvoice.outbound,1,0.0140,USD\n")


@pytest.fixture
async def town(database: Database) -> AsyncIterator[tuple[Sender, Rooms, AsyncEngine]]:
    log = Log()
    async with Rooms(log, database, [build()]) as rooms:
        send = Sender(log)
        send.account("sales", group="g1")
        await rooms.pump()
        yield send, rooms, rooms.processors["usage"].engine


async def test_a_look_without_locks_that_comes_back_late_changes_nothing(
    town: tuple[Sender, Rooms, AsyncEngine],
) -> None:
    send, rooms, engine = town
    memory = Memory()
    async with engine.connect() as look:
        await look.execution_options(isolation_level="REPEATABLE READ")  # the look sees the world before the changes
        before = await store.read_state(look)
        send.account("sales", group="g2")
        send.cutoff(LONG_AGO.replace(year=2026) + timedelta(days=31))
        await rooms.pump(ticks=True)
        await api.import_prices(engine, "list", PRICES, LONG_AGO, is_default=True)
        async with transaction(engine) as batch:
            await memory.share(batch)
            assert len(list(memory.cuts)) == 1
            # both calls of the interleaving: one that reads, and one that had begun to read before the batch did
            await memory.refresh(look, before)
            await memory._read_registry(look, before.registry_version)
            await memory._read_books(look, before.books_version)
            await memory._read_cuts(look, before.cuts_version)
            payer = memory.registry.accounts["sales"].payer_at(LONG_AGO)
            assert payer is not None
            assert payer.group_id == "g2"
            assert len(list(memory.cuts)) == 1
            assert [book.exists for book in memory.prices.chain("sales", None, "lakeside")] == [True]


async def test_a_new_version_is_read_alone_and_the_other_books_stay_as_they_are(
    town: tuple[Sender, Rooms, AsyncEngine],
) -> None:
    _, _, engine = town
    memory = Memory()

    async def share() -> tuple[PriceBook, ...]:
        async with transaction(engine) as batch:
            await memory.share(batch)
        return memory.prices.chain("sales", None, "lakeside")

    await api.import_prices(engine, "list", PRICES, LONG_AGO, is_default=True)
    await api.import_prices(engine, "other", PRICES, LONG_AGO, is_default=True)
    before = await share()
    price = before[0].find("voice.outbound", "+1", LONG_AGO)
    await api.import_prices(engine, "list", PRICES, LONG_AGO + timedelta(days=1))
    after = await share()
    assert [book.book_id for book in after] == ["list", "other"]
    assert after[1] is before[1]
    assert after[0].find("voice.outbound", "+1", LONG_AGO) is price, "the first version was not read again"
    newest = after[0].find("voice.outbound", "+1", LONG_AGO + timedelta(days=1))
    assert newest is not None
    assert newest.version == 2


async def test_tasks_that_find_the_same_change_at_once_read_it_once(town: tuple[Sender, Rooms, AsyncEngine]) -> None:
    _, _, engine = town
    await api.import_prices(engine, "list", PRICES, LONG_AGO, is_default=True)
    memory = Memory()

    async def share() -> PriceBook:
        async with transaction(engine) as batch:
            await memory.share(batch)
            return memory.prices.chain("sales", None, "lakeside")[0]

    first, second = await asyncio.gather(share(), share())
    assert first is second


async def test_fifty_thousand_prefixes_are_imported_and_read_in_seconds(
    town: tuple[Sender, Rooms, AsyncEngine],
) -> None:
    _, _, engine = town
    lines = [f"voice.outbound,{prefix},0.{prefix},USD" for prefix in range(100_000, 150_000)]
    begun = time.perf_counter()
    prices = read_price_file("\n".join(["product,prefix,price,currency", *lines]).encode())
    await api.import_prices(engine, "carrier", prices, LONG_AGO, is_default=True)
    imported = time.perf_counter()
    memory = Memory()
    async with transaction(engine) as batch:
        await memory.share(batch)
    read = time.perf_counter()
    found = memory.prices.chain("sales", None, "lakeside")[0].find("voice.outbound", "+1234567890", LONG_AGO)
    assert found is not None
    assert (found.prefix, found.unit_price) == ("+123456", "0.123456")
    assert imported - begun < 10
    assert read - imported < 5
