"""The room as the runtime runs it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from contracts.topics import PAYMENTS_REQUESTS, PAYMENTS_RESULTS
from services.payments import handler
from services.payments.port import Processor
from services.payments.processors import processors
from services.payments.settlement import Sandbox
from services.runtime import processor as runtime
from services.runtime.broker import ensure_topics
from services.runtime.room import Input, Room
from services.runtime.settings import Settings


def build(settings: Settings) -> Room:
    """Payments, with the processors that are set up and the topics in which they answer."""
    adapters = processors(settings)

    async def topics() -> None:
        await ensure_topics(settings, {PAYMENTS_RESULTS.of(name): PAYMENTS_RESULTS for name in adapters})

    return room(adapters, topics)


def room(adapters: Mapping[str, Processor] | None = None, topics: Callable[[], Awaitable[None]] | None = None) -> Room:
    """Requests to the processors, by default to the one that is built in, and the timers of their answers."""
    adapters = {"sandbox": Sandbox()} if adapters is None else adapters
    desk = handler.Desk(adapters)

    async def started(room: runtime.Processor) -> None:
        if topics is not None:
            await topics()
        for name, adapter in adapters.items():
            await adapter.start(partial(desk.hear, room, name))

    async def stopped() -> None:
        for adapter in adapters.values():
            await adapter.stop()

    return Room(
        name="payments",
        inputs=(Input("requests", (PAYMENTS_REQUESTS,), handler.requests),),
        timers={handler.ANSWER: handler.due},
        errands={handler.OPERATION: desk.errand},
        started=started,
        stopped=stopped,
    )
