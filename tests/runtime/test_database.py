"""Statements that the driver runs as they are, in transactions and alone on a connection that is kept; and connections that are cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import asyncpg
import pytest
from sqlalchemy import Text, bindparam, func, select, text
from sqlalchemy.exc import TimeoutError as NoConnection
from sqlalchemy.ext.asyncio import AsyncEngine

from services.balance.store import UNDER_WALLET_LOCKS
from services.runtime.database import Kept, Plain, is_retryable, open_engine, transaction
from tests.support.servers import Database

SETTING = Plain(select(func.current_setting(bindparam("name", type_=Text())).label("value")))
BACKEND = Plain(select(func.pg_backend_pid().label("pid"), func.pg_current_xact_id().label("xid")))


@pytest.fixture
async def engine(database: Database) -> AsyncIterator[AsyncEngine]:
    made = open_engine(database.room("balance"), application="test.kept", pool_size=1)
    yield made
    await made.dispose()


async def test_its_settings_are_its_own(engine: AsyncEngine) -> None:
    kept = Kept(engine)
    assert (await kept.rows(SETTING, {"name": "plan_cache_mode"}))[0]["value"] == "force_generic_plan"
    await kept.close()
    async with transaction(engine) as connection:
        assert (await connection.execute(text("show plan_cache_mode"))).scalar() == "auto"


async def test_a_new_connection_has_what_runs_under_locks_prepared_and_nothing_is_changed_by_it(
    database: Database,
) -> None:
    nowhere = Plain(select(text("1")).select_from(text("balance.not_there_yet")))
    rows = "select count(*) from balance.wallet"
    async with database.connected() as owner:
        before = await owner.fetchval(rows)
        for warmed in (UNDER_WALLET_LOCKS, (nowhere, *UNDER_WALLET_LOCKS)):
            engine = open_engine(database.room("balance"), application="test.warm", pool_size=1, warmed=warmed)
            async with transaction(engine) as connection:
                found = await connection.execute(text("select statement from pg_prepared_statements"))
                prepared = set(found.scalars())
                assert {each.text for each in UNDER_WALLET_LOCKS} <= prepared or warmed[0] is nowhere
            await engine.dispose()
        assert await owner.fetchval(rows) == before == 0


async def test_each_statement_is_a_transaction_and_a_connection_that_was_cut_is_opened_again(
    engine: AsyncEngine, database: Database
) -> None:
    kept = Kept(engine)
    first, second = (await kept.rows(BACKEND, {}))[0], (await kept.rows(BACKEND, {}))[0]
    assert first["pid"] == second["pid"]
    assert first["xid"] != second["xid"]
    async with database.connected("balance") as other:
        await other.execute("select pg_terminate_backend($1)", first["pid"])
    while True:
        try:
            pid = (await kept.rows(BACKEND, {}))[0]["pid"]
        except Exception as error:  # which one, and whether any: as far as the news of the cut has come
            if not is_retryable(error):
                raise
            continue
        if pid != first["pid"]:
            break
    await kept.close()


async def test_a_transaction_whose_connection_is_cut_can_be_tried_again_at_once(
    engine: AsyncEngine, database: Database
) -> None:
    """In a pool of one: a connection that was given back broken would be the next one."""
    pid = 0

    async def cut_in_the_middle() -> None:
        nonlocal pid
        async with transaction(engine) as connection:
            pid = (await connection.execute(text("select pg_backend_pid()"))).scalar_one()
            await other.execute("select pg_terminate_backend($1)", pid)
            while True:
                await BACKEND.rows(connection, {})

    async with database.connected("balance") as other:
        for _ in range(30):
            with pytest.raises(Exception) as caught:  # which one: as far as the news of the cut has come
                await cut_in_the_middle()
            assert is_retryable(caught.value)
            async with transaction(engine) as connection:
                await connection.execute(text("select 1"))
                assert (await BACKEND.rows(connection, {}))[0]["pid"] != pid


async def test_the_server_lets_go_of_a_process_that_vanished_or_is_frozen(database: Database) -> None:
    """No more than it is told can be tested here: that it heeds the keepalives is the kernel's."""
    engine = open_engine(database.room("balance"), application="test.frozen", pool_size=2, idle_ms_max=200)
    lock = select(func.pg_advisory_xact_lock(7))
    settings = "tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count", "tcp_user_timeout"
    try:
        async with transaction(engine) as connection:
            told = [(await connection.execute(text(f"show {name}"))).scalar() for name in settings]
        assert told == ["10", "5", "3", "25000"]

        async def frozen() -> None:
            async with transaction(engine) as holder:
                await holder.execute(lock)
                async with asyncio.timeout(5), transaction(engine) as other:
                    await other.execute(lock)
                await holder.execute(lock)

        with pytest.raises(Exception) as caught:  # which one: as far as the news has come
            await frozen()
        assert is_retryable(caught.value), repr(caught.value)
    finally:
        await engine.dispose()


async def test_what_the_server_says_of_a_transaction_that_was_idle_for_too_long_can_be_tried_again() -> None:
    assert is_retryable(asyncpg.IdleInTransactionSessionTimeoutError("terminating connection"))


async def test_a_pool_whose_connections_are_all_taken_can_be_asked_again(database: Database) -> None:
    """Else a worker would take the record in hand for the fault of a database that stands still."""
    engine = open_engine(database.room("balance"), application="test.pool", pool_size=1)
    engine.sync_engine.pool._timeout = 0.1  # type: ignore[attr-defined]
    async with AsyncExitStack() as taken:
        for _ in range(5):  # one, and four that may be opened beside it
            await taken.enter_async_context(engine.connect())
        with pytest.raises(NoConnection) as raised:
            await taken.enter_async_context(engine.connect())
    assert is_retryable(raised.value)
    await engine.dispose()
