"""What PostgreSQL could take at best: what a run stored, by binary COPY, into tables with one primary key each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import asyncpg

from contracts.topics import USAGE_CHARGES
from services.runtime import batches
from services.runtime.broker import Offsets, read_log
from services.usage.tables import CHARGE_COLUMNS
from tests.bench.worlds import World

BATCH = 2_000
IDENTITY_COLUMNS = ("generation", "digest", "content", "state", "day", "revision", "partition", "offset")
OUTBOX_COLUMNS = ("topic", "partition", "records", "chunk")
TABLES = """
create schema if not exists bench;
drop table if exists bench.charge, bench.identity, bench.outbox;
create table bench.charge (like usage.charge, primary key (charge_id));
create table bench.identity (like usage.identity, primary key (digest));
create table bench.outbox (like usage.outbox including all);
"""

Rows = Sequence[tuple[Any, ...]]


async def copy_rates(world: World, rows: int) -> tuple[float, float]:
    """Rows a second of charges alone, and events a second of all that usage stores for them: charge, identity and the bytes
    that are published. One connection, one transaction a batch; rows that exist."""
    async with world.database.connected() as owner:
        stored: dict[str, tuple[Sequence[str], list[Rows]]] = {}
        for table, columns in (("charge", CHARGE_COLUMNS), ("identity", IDENTITY_COLUMNS)):
            names = ", ".join(f'"{name}"' for name in columns)
            found = [tuple(row) for row in await owner.fetch(f"select {names} from usage.{table} limit {rows}")]
            stored[table] = columns, [found[at : at + BATCH] for at in range(0, rows, BATCH)]
        stored["outbox"] = OUTBOX_COLUMNS, await _outbox(world)
        charges = await _rate(owner, rows, {"charge": stored["charge"]})
        return charges, await _rate(owner, rows, stored)


async def _rate(owner: asyncpg.Connection, rows: int, stored: dict[str, tuple[Sequence[str], list[Rows]]]) -> float:
    await owner.execute(TABLES)
    begin = time.monotonic()
    for number in range(-(-rows // BATCH)):
        async with owner.transaction():
            for table, (columns, of_batches) in stored.items():
                await owner.copy_records_to_table(
                    table, schema_name="bench", columns=columns, records=of_batches[number]
                )
    return rows / (time.monotonic() - begin)


async def _outbox(world: World) -> list[Rows]:
    """The rows of the outbox, as they were before the relay deleted them."""
    offsets = Offsets(world.settings)
    await offsets.start()
    try:
        ends = await offsets.ends(USAGE_CHARGES)
    finally:
        await offsets.stop()
    published: list[tuple[bytes, bytes]] = []
    for (name, partition), end in sorted(ends.items()):
        published += [(record.key, record.value) async for record in read_log(world.settings, name, partition, 0, end)]
    return [
        [(USAGE_CHARGES.name, 0, count, chunk) for count, chunk in batches.build(published[at : at + BATCH], 0)]
        for at in range(0, len(published), BATCH)
    ]
