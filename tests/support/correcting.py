"""Re-rates charges, or moves them, in a process of its own, so that it can be killed at a named step:
`python -m tests.support.correcting TICK CHUNK`, where the tick is `rerate` or `reassign`."""

from __future__ import annotations

import asyncio
import sys

from services.runtime.database import open_engine
from services.runtime.processor import Processor
from services.runtime.settings import load
from services.usage import api, reassignments, rerate_plans
from services.usage.consumer import build
from tests.support.rooms import Log


async def carry_out(name: str) -> None:
    """Ticks until nothing is to be corrected. What is published stays in the outbox."""
    engine = open_engine(load().room_database_url("usage"), application="test.correcting", pool_size=2)
    processor = Processor(build(), engine, Log())
    tick = next(each for each in processor.room.ticks if each.name == name)
    while await api.corrected_from(engine) is not None:
        await processor.tick(tick)
    await engine.dispose()


if __name__ == "__main__":
    reassignments.CHUNK = rerate_plans.CHUNK = int(sys.argv[2])
    asyncio.run(carry_out(sys.argv[1]))
