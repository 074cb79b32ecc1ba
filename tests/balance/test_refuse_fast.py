"""The refuse-fast set on a real Valkey: kept, rebuilt, and never in the way when Valkey is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from redis.asyncio import Redis

from services.balance import refuse_fast
from services.balance.refuse_fast import RefuseFast
from services.kernel.errors import Unavailable
from tests.support.balance_factory import NO_VALKEY, Town
from tests.support.servers import Database, TestedServers


async def becomes(read: Callable[[], Awaitable[object]], wanted: object) -> None:
    """Waits a few seconds until what is read is what is wanted."""
    seen: object = None
    for _ in range(100):
        try:
            seen = await read()
        except Unavailable as error:
            seen = error
        if seen == wanted:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{seen!r} did not become {wanted!r}")


async def spend_all(town: Town, account_id: str) -> None:
    await town.account(account_id)
    town.open(account_id, "1")
    town.charge(account_id, "1")
    await town.settle()


async def test_suspended_accounts_are_in_the_set_and_restored_ones_are_not(database: Database, valkey: str) -> None:
    async with Town(database, valkey=valkey) as town:
        await spend_all(town, "sales")
        await spend_all(town, "kiosk")
        await becomes(town.refuse_fast.content, {"sales", "kiosk"})
        town.command("grant_goodwill", "sales", amount="5", currency="USD")
        await town.settle()
        await becomes(town.refuse_fast.content, {"kiosk"})


async def test_the_set_is_made_anew_at_the_start(database: Database, valkey: str) -> None:
    async with Town(database, valkey=valkey) as town:
        await spend_all(town, "sales")
        await becomes(town.refuse_fast.content, {"sales"})
        key = town.refuse_fast._key
    async with Redis.from_url(valkey) as client:
        await client.delete(key)
        await client.sadd(key, "somebody")
    again = RefuseFast(lambda: valkey, prefix=key.removesuffix(refuse_fast.KEY))
    await again.start(lambda: asyncio.sleep(0, ["sales"]))
    await becomes(again.content, {"sales"})
    await again.stop()


async def test_everything_passes_with_valkey_stopped_and_the_set_comes_back_with_it(
    database: Database,
    servers: TestedServers,
    valkey: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(refuse_fast, "REBUILD_S", 0.3)
    async with Town(database, valkey=valkey) as town:
        await spend_all(town, "sales")
        await becomes(town.refuse_fast.content, {"sales"})
        await servers.stop("valkey")
        try:
            async with asyncio.timeout(20):
                await spend_all(town, "kiosk")
                town.command("grant_goodwill", "sales", amount="5", currency="USD")
                await town.settle()
            assert town.kinds("kiosk") == ["balance_opened", "suspended"]
            assert town.kinds("sales") == ["balance_opened", "suspended", "goodwill_granted", "restored"]
            with pytest.raises(Unavailable):
                await town.refuse_fast.content()
            await asyncio.sleep(1)  # several rebuilds fail: still one line in the log
            assert sum("refuse-fast set is not kept" in record.message for record in caplog.records) == 1
        finally:
            await servers.start("valkey")
        await becomes(town.refuse_fast.content, {"kiosk"})


async def test_a_set_that_is_flushed_or_whose_server_is_killed_is_made_anew_from_postgres(
    database: Database, servers: TestedServers, valkey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refuse_fast, "REBUILD_S", 0.3)
    async with Town(database, valkey=valkey) as town:
        await spend_all(town, "sales")
        await town.account("kiosk")
        town.command("suspend", "kiosk", note="fraud")
        await town.settle()
        await becomes(town.refuse_fast.content, {"sales", "kiosk"})
        async with Redis.from_url(valkey) as client:
            await client.flushall()
            await client.sadd(town.refuse_fast._key, "somebody")
        await becomes(town.refuse_fast.content, {"sales", "kiosk"})
        await servers.kill("valkey")
        try:
            town.command("resume", "kiosk")
            town.command("suspend", "sales")
            await town.settle()
        finally:
            await servers.start("valkey")
        await becomes(town.refuse_fast.content, {"sales"})


async def test_the_set_holds_an_account_until_its_last_reason_is_lifted(database: Database, valkey: str) -> None:
    async with Town(database, valkey=valkey) as town:
        await spend_all(town, "sales")
        town.command("suspend", "sales")
        await town.settle()
        town.command("grant_goodwill", "sales", amount="5", currency="USD")
        await town.settle()
        await becomes(town.refuse_fast.content, {"sales"})
        town.command("resume", "sales")
        await town.settle()
        await becomes(town.refuse_fast.content, set())


async def test_an_address_where_nothing_listens_is_one_line_in_the_log(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    async with Town(database, valkey=NO_VALKEY) as town:
        await spend_all(town, "sales")
        await spend_all(town, "kiosk")
        await asyncio.sleep(0.2)
    assert sum("refuse-fast" in record.message for record in caplog.records) == 1


async def test_a_missing_setting_is_no_error_either() -> None:
    def unset() -> str:
        raise Unavailable("is not set", field="TOLLBOOK_VALKEY")

    kept = RefuseFast(unset)
    await kept.start(lambda: asyncio.sleep(0, ["sales"]))
    kept.tell({"sales": True})
    await asyncio.sleep(0.1)
    await kept.stop()


@pytest.mark.parametrize("turns", range(5))
async def test_a_set_that_is_told_something_just_when_it_is_to_end_ends(turns: int) -> None:
    """However many turns of the loop lie between the two: a process that keeps the set on never stops."""
    kept = RefuseFast(lambda: NO_VALKEY)
    await kept.start(lambda: asyncio.sleep(0, []))
    await asyncio.sleep(0.2)  # it waits for changes
    kept.tell({"sales": True})
    for _ in range(turns):
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await kept.stop()
