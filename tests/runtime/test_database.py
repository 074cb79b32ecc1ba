"""The connection that is kept for small statements: each is a transaction of its own, planned once, and none of the pool's."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import Text, bindparam, func, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

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
