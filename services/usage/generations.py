"""The partitions of identities and charges: a new generation every 36 days, event days ahead of their use.

Source: designs/identity, points 2, 3 and 5.
"""

from __future__ import annotations

from datetime import timedelta

from services.runtime.work import Work
from services.usage import store

GENERATION_LASTS = timedelta(days=36)  # longer than any event may be late: 35 days, and the 10 minutes it may be early
DAYS_AHEAD = 2


async def look_after(work: Work) -> None:
    """Tick: open the next generation when the current one is 36 days old, and the days to come.

    The generation first: batches open days while they hold the state, and the other order would lock them out.
    """
    state = await store.read_state(work.connection)
    if work.now - state.generation_since >= GENERATION_LASTS:
        await switch_generation(work)
    today = work.now.date()
    await store.open_charge_days(work.connection, [today + timedelta(days=ahead) for ahead in range(DAYS_AHEAD + 1)])


async def switch_generation(work: Work) -> None:
    """Seal the current generation, open the next, drop all before the sealed one.

    Whoever holds the state alone has no batch running beside: writers of two generations never overlap.
    """
    await store.lock_state(work.connection)
    sealed = (await store.read_state(work.connection)).generation
    await store.open_generation(work.connection, sealed + 1)
    await store.set_generation(work.connection, sealed + 1, work.now)
    for generation in await store.existing_generations(work.connection):
        if generation < sealed:
            await store.drop_generation(work.connection, generation)
