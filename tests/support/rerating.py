"""Carries re-rates out in a process of its own, so that it can be killed at a named step: `python -m tests.support.rerating CHUNK`."""

from __future__ import annotations

import asyncio
import sys

from services.runtime.database import open_engine
from services.runtime.processor import Processor
from services.runtime.settings import load
from services.usage import api, rerate_plans
from services.usage.consumer import build
from tests.support.rooms import Log


async def carry_out() -> None:
    """Ticks until no re-rate is being executed. What is published stays in the outbox."""
    engine = open_engine(load().room_database_url("usage"), application="test.rerating", pool_size=2)
    processor = Processor(build(), engine, Log())
    tick = next(each for each in processor.room.ticks if each.name == "rerate")
    while any(plan.state == "executing" for plan in await api.rerates(engine)):
        await processor.tick(tick)
    await engine.dispose()


if __name__ == "__main__":
    rerate_plans.CHUNK = int(sys.argv[1])
    asyncio.run(carry_out())
