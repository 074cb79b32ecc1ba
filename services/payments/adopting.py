"""After PostgreSQL was restored from a backup: what an earlier life put to processors, and this database does not know.

Processors are not restored. A charge that was asked for before the restore may have been tried, whatever stands here, so it is put
to no processor any more: its account asks what became of it, and that needs what the request said. What is to be given back is
owed until somebody answers, and is asked for again by its id.

Runs while the room stands still, as often as wanted. Source: designs/closing, RESTORE (e).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from sqlalchemy.ext.asyncio import AsyncEngine

from contracts.payments import ChargeRequest, PaymentRequest
from services.payments import handler
from services.runtime.known_topics import KnownTopics
from services.runtime.processor import Processor
from services.runtime.room import Room
from services.runtime.work import Work

LANE = "restore"
RESTORED = "restored"  # why a charge is over
AT_ONCE = 5_000  # in one transaction


async def adopt(engine: AsyncEngine, requests: Sequence[PaymentRequest]) -> int:
    """Note charges as tried and over, those that were never read here too; returns how many were not noted before."""
    charges = [each for each in requests if isinstance(each, ChargeRequest)]
    new = 0

    async def run(some: Sequence[ChargeRequest], work: Work) -> None:
        nonlocal new
        new += await handler.note_as_over(work, some, RESTORED)

    processor = Processor(Room("payments", ()), engine, KnownTopics({}))
    for begin in range(0, max(1, len(charges)), AT_ONCE):
        await processor.transact(partial(run, charges[begin : begin + AT_ONCE]), lane=LANE)
    return new
