"""What PostgreSQL could take at best: the charges of a run, by binary COPY, into a table with one primary key."""

from __future__ import annotations

import time

from services.usage.tables import CHARGE_COLUMNS
from tests.bench.worlds import World

BATCH = 2_000


async def copy_rate(world: World, rows: int) -> float:
    """Rows a second: one connection, one transaction a batch, the columns of a charge, charges that exist."""
    columns = ", ".join(f'"{name}"' for name in CHARGE_COLUMNS)
    async with world.database.connected() as owner:
        records = [tuple(row) for row in await owner.fetch(f"select {columns} from usage.charge limit {rows}")]
        await owner.execute("create schema if not exists bench")
        await owner.execute("drop table if exists bench.charge")
        await owner.execute("create table bench.charge (like usage.charge, primary key (charge_id))")
        begin = time.monotonic()
        for at in range(0, len(records), BATCH):
            await owner.copy_records_to_table(
                "charge", schema_name="bench", columns=CHARGE_COLUMNS, records=records[at : at + BATCH]
            )
        return len(records) / (time.monotonic() - begin)
