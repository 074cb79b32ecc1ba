"""The partitions of identities and charges: a new generation every 36 days, event days ahead of their use.

A record in quarantine has no identity, and an equal event or a revision of it may have been accepted meanwhile. So while it
may still run, all that was accepted since its use is remembered, within bounds; beyond them it is refused as too old.

Source: designs/identity, points 2, 3 and 5.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from services.runtime.work import Work
from services.usage import store

GENERATION_LASTS = timedelta(days=36)  # longer than any event may be late: 35 days, and the 10 minutes it may be early
SEALED_MAX = 3  # each is a probe of every batch, 7 % of the chain; a record may stay undecided for 107 days at least
EARLY = timedelta(days=1)  # an event is told at most so long before it happens
ALWAYS = datetime.min.replace(tzinfo=UTC)
DAYS_AHEAD = 2


def remembered_from(generation: int, since: datetime, oldest: int) -> datetime:
    """The event time from which on all that was ever accepted is remembered, by the generation that is current since an
    instant and the oldest that is kept: each between them lasted 36 days or longer.

    >>> remembered_from(4, datetime(2026, 6, 30, tzinfo=UTC), 3)
    datetime.datetime(2026, 5, 26, 0, 0, tzinfo=datetime.timezone.utc)
    >>> remembered_from(4, datetime(2026, 6, 30, tzinfo=UTC), 1) is ALWAYS
    True
    """
    return since - (generation - oldest) * GENERATION_LASTS + EARLY if oldest > 1 else ALWAYS


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
    """Seal the current generation, open the next, drop those that nobody needs: all before the sealed one, but for what was
    accepted since the use of a record that nothing is decided and done about. One whose identity would be forgotten all
    the same needs none, so a quarantine that is never looked at costs no more for ever.

    Whoever holds the state alone has no batch running beside: writers of two generations never overlap.
    """
    await store.lock_state(work.connection)
    sealed = (await store.read_state(work.connection)).generation
    current = sealed + 1
    await store.open_generation(work.connection, current)
    await store.set_generation(work.connection, current, work.now)
    existing = await store.existing_generations(work.connection)
    oldest = max(existing[0], current - SEALED_MAX)
    needed = await store.earliest_open_use(work.connection, remembered_from(current, work.now, oldest))
    while oldest < sealed and (needed is None or needed >= remembered_from(current, work.now, oldest + 1)):
        oldest += 1
    for generation in existing:
        if generation < oldest:
            await store.drop_generation(work.connection, generation)
