"""A past that is made at once, rows like one that is there, and how many rows the server reads.

before = await rows_read(database, town.rooms)
await copies(owner, "balance.command", "account_id = 'desk'", "'command_id', 'old-' || n", "generate_series(1, 9) n")
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import asyncpg

from tests.support.processes import until
from tests.support.rooms import Rooms
from tests.support.servers import Database

_READ = """
select schemaname || '.' || relname as name, seq_tup_read as read from pg_stat_user_tables
union all
select schemaname || '.' || indexrelname, idx_tup_read from pg_stat_user_indexes
"""
# The server's own vacuum has no user, takes its time on a busy machine, and what it reads is not counted.
_HAVE_ENDED = "select count(*) = 1 from pg_stat_activity where datname = current_database() and usesysid is not null"


async def rows_read(database: Database, rooms: Rooms) -> Counter[str]:
    """What was read until now, by table where it was read as a whole and by index. A process of the server tells it at the latest
    when it ends: the rooms connect anew afterwards, and what is planned then is planned by what the tables hold now."""
    for processor in rooms.processors.values():
        await processor.engine.dispose()
    async with database.connected() as owner:
        await owner.execute("vacuum analyze")
    async with database.connected() as owner:

        async def have_ended() -> bool:
            return bool(await owner.fetchval(_HAVE_ENDED))

        await until(have_ended, "all other connections have ended")
        return Counter({row["name"]: row["read"] for row in await owner.fetch(_READ)})


async def copies(owner: asyncpg.Connection[Any], table: str, which: str, other: str, times: str) -> int:
    """Rows like the first ``which``, one for each row of ``times``, but for ``other``: names and values. Returns how many."""
    columns = await owner.fetchval(
        "select string_agg(attname, ', ') from pg_attribute where attrelid = $1::text::regclass and attnum > 0"
        " and not attisdropped and attgenerated = '' and attidentity = ''",
        table,
    )
    done: str = await owner.execute(
        f"insert into {table} ({columns}) select {columns} from ("
        f"select (jsonb_populate_record(null::{table}, to_jsonb(one) || jsonb_build_object({other}))).*"
        f" from (select * from {table} where {which} limit 1) one, {times}) past"
    )
    return int(done.rpartition(" ")[2])
