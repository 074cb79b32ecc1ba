"""What usage reads, and what it looks at by itself."""

from __future__ import annotations

from contracts.topics import (
    CLOSING_CUTOFFS,
    CLOSING_PROGRESS,
    USAGE_EVENTS,
)
from services.runtime.room import Input, Room, Tick
from services.runtime.settings import Settings
from services.usage import handler, renting, retrying
from services.usage.closing import EVENTS, Passing, take_cut
from services.usage.generations import look_after
from services.usage.memory import Memory
from services.usage.reassignments import Reassignments
from services.usage.registry import REGISTRY_TOPICS
from services.usage.rejections import Rejections
from services.usage.rerate_plans import Execution

PARTITIONS_LOOKED_AT_S = 60.0
RERATE_S = REASSIGN_S = 0.25  # between two chunks: batches and revisions come in


def build(_: Settings | None = None) -> Room:
    """The room with a memory of its own: one for each process."""
    memory = Memory()
    events = Rejections(handler.UsageEvents(memory))
    fees = renting.Renting(memory)
    return Room(
        "usage",
        inputs=(
            Input(EVENTS, (USAGE_EVENTS,), events.handle, parked=events.parked, discarded=events.discarded),
            Input("registry", REGISTRY_TOPICS, handler.registry),
            Input("closing", (CLOSING_CUTOFFS, CLOSING_PROGRESS), handler.closing),
        ),
        ticks=(
            Tick("cut", take_cut),
            Tick("pass", Passing(memory).run),
            Tick("reassign", Reassignments(memory).run, seconds=REASSIGN_S),
            Tick("rerate", Execution(memory).run, seconds=RERATE_S),
            Tick("partitions", look_after, seconds=PARTITIONS_LOOKED_AT_S),
        ),
        timers={
            renting.NUMBER: fees.numbers,
            renting.ACCOUNT: fees.accounts,
            renting.PRICES: fees.prices,
            retrying.UNPRICED: retrying.unpriced,
        },
    )
