"""Balance alone: charges that wait on their topic are posted by one worker; what bare COPY makes of the same ledger rows."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from services.balance.chain import Charged
from services.balance.consumer import CHARGES_MAX
from services.runtime import embedded
from tests.bench.events import Calls
from tests.bench.processor_time import used
from tests.bench.runs import held, measure, started
from tests.bench.worlds import World

LOOK_S = 0.02
POSTED_S_MAX = 300.0

DEBITED = "select coalesce(sum(position), 0)::bigint from balance.lane where topic = 'usage.charges'"
WRITTEN = "select (select count(*) from balance.charged), (select count(*) from balance.charge_batch)"

# One row a charge, as a ledger would be that groups nothing; then the rows that were written.
SINGLE = """
select row_number() over (), account_id, currency, 1, -amount_nano, 0::bigint, array[product], array[amount_nano],
       null::text[], null::bigint[]
  from usage.charge
"""
GROUPED = f"select batch_id, {', '.join(Charged._fields)} from balance.charged order by batch_id, account_id"


@dataclass(frozen=True)
class Posting:
    """One run of balance alone. Processor time is in microseconds a charge."""

    charges: int
    timed: int
    """Those after the first commit that was seen: a process that was let go a moment ago has no batch in hand yet."""
    seconds: float
    rows: int
    batches: int
    python_us: float
    postgres_us: float
    first_locked_ms: float
    """Of the batch that began as the process was let go."""
    locked_ms: tuple[float, ...]
    """Of those after it."""

    @property
    def rate(self) -> float:
        """Charges a second."""
        return self.timed / self.seconds

    @property
    def row_rate(self) -> float:
        """Ledger rows a second."""
        return self.rows * self.timed / self.charges / self.seconds


async def post(world: World, warm_up: Calls, made: Calls) -> Posting:
    """Once both have had their start: usage rates while balance stands still; then usage stands still and balance is let go."""
    servers = embedded.running(world.data).running
    rooms = {"usage": 1, "balance": 1}
    async with world.database.connected() as owner:
        async with started(world, rooms, under={"balance": "tests.bench.locking"}, BENCH_LOCKS=str(world.logs)):
            pids = {"balance": [world.processes.running["balance-1"].pid]}
            await measure(world, warm_up)
            await _debited(world, owner, warm_up.count)
            old = await owner.fetchrow(WRITTEN)
            with ExitStack() as usage_held:
                with held(world, "balance"):
                    await measure(world, made)
                    usage_held.enter_context(held(world, "usage"))
                    before, times = await owner.fetchval(DEBITED), await used(owner, pids, servers)
                begin = time.monotonic()
                first_seen = await _debited(world, owner, before + 1)
                first_seen_at = time.monotonic()
                await _debited(world, owner, before + made.count)
                seconds = time.monotonic() - first_seen_at
                spent = (await used(owner, pids, servers)).since(times)
        rows, batches = (now - then for now, then in zip(await owner.fetchrow(WRITTEN), old, strict=True))
    first, *locked = [ms for at, ms in json.loads((world.logs / "locks-balance.json").read_text()) if at >= begin]
    return Posting(
        made.count, before + made.count - first_seen, seconds, rows, batches, spent.python["balance"] / made.count * 1e6,
        spent.postgres.get("balance", 0.0) / made.count * 1e6, first, tuple(locked),
    )  # fmt: skip


async def _debited(world: World, owner: Any, count: int) -> int:
    """Wait until so many charges are off the wallets; how many are."""
    begin = time.monotonic()
    while (debited := await owner.fetchval(DEBITED)) < count:
        if time.monotonic() - begin > POSTED_S_MAX:
            raise RuntimeError(f"balance does not post; see {world.logs}")
        await asyncio.sleep(LOOK_S)
    return int(debited)


async def ledger_copy_rates(world: World) -> tuple[float, float]:
    """Rows a second by binary COPY into a table with one primary key: a row for each charge, and the rows that were written."""
    async with world.database.connected() as owner:
        await owner.execute("create schema if not exists bench")
        rates = []
        for statement in (SINGLE, GROUPED):
            records = [tuple(row) for row in await owner.fetch(statement)]
            await owner.execute("drop table if exists bench.charged")
            await owner.execute("create table bench.charged (like balance.charged, primary key (account_id, batch_id))")
            rates.append(await _copied(owner, records))
    return rates[0], rates[1]


async def _copied(owner: Any, records: list[tuple[Any, ...]]) -> float:
    begin = time.monotonic()
    for at in range(0, len(records), CHARGES_MAX):
        await owner.copy_records_to_table(
            "charged",
            schema_name="bench",
            columns=("batch_id", *Charged._fields),
            records=records[at : at + CHARGES_MAX],
        )
    return len(records) / (time.monotonic() - begin)
