"""The room as the runtime runs it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from contracts.topics import PAYMENTS_REQUESTS, PAYMENTS_RESULTS
from services.payments import handler
from services.payments.settlement import PROCESSORS
from services.runtime.broker import ensure_topics
from services.runtime.processor import Processor
from services.runtime.room import Input, Room
from services.runtime.settings import Settings


def build(settings: Settings) -> Room:
    """Payments, with the topics in which the processors that are built in answer."""

    async def started(processor: Processor) -> None:
        await ensure_topics(settings, {PAYMENTS_RESULTS.of(name): PAYMENTS_RESULTS for name in PROCESSORS})

    return room(started)


def room(started: Callable[[Processor], Awaitable[None]] | None = None) -> Room:
    """Requests to the processor that is built in, and the timers of its answers."""
    return Room(
        name="payments",
        inputs=(Input("requests", (PAYMENTS_REQUESTS,), handler.requests),),
        timers={handler.TIMER: handler.due},
        started=started,
    )
