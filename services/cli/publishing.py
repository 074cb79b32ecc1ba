"""The way of imported events to the brokers: many on their way at once, none counted as sent before it is acknowledged."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from pydantic_core import to_json

from contracts.topics import USAGE_EVENTS, USAGE_REJECTIONS
from services.kernel.errors import Unavailable
from services.runtime.broker import abandon, ensure_topics, open_producer
from services.runtime.settings import Settings
from services.usage.importing import LegEvent

UNACKNOWLEDGED_MAX = 5_000  # records on their way at once; bounds the memory of an import of any size


class Publishing:
    """``async with Publishing(settings, publisher) as publishing``: sends events (acks=all) to the publisher's topic.

    Every method raises `Unavailable` when a record was not acknowledged; what was sent since the last `acknowledged` must
    then be sent again, which harms nothing, as every event keeps its id.
    """

    def __init__(self, settings: Settings, publisher: str) -> None:
        self._settings = settings
        self._publisher = publisher
        self._topic = settings.topic_prefix + USAGE_EVENTS.of(publisher)
        self._under_way: list[Any] = []
        self._producer: AIOKafkaProducer

    async def __aenter__(self) -> Self:
        names = {
            USAGE_EVENTS.of(self._publisher): USAGE_EVENTS,
            USAGE_REJECTIONS.of(self._publisher): USAGE_REJECTIONS,
        }
        await ensure_topics(self._settings, names)
        self._producer = await open_producer(self._settings, "import")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            await self._producer.stop()
        else:
            await abandon(self._producer)  # its stop would wait for ever for a broker that is away

    async def send(self, event: LegEvent) -> bool:
        """Sends one event; whether all that were sent are now acknowledged."""
        try:
            sent = await self._producer.send(self._topic, to_json(event.event), key=event.account_id.encode())
        except KafkaError as error:
            raise _not_acknowledged(1, len(self._under_way) + 1, error) from error
        self._under_way.append(sent)
        if len(self._under_way) < UNACKNOWLEDGED_MAX:
            return False
        await self.acknowledged()
        return True

    async def acknowledged(self) -> None:
        """Returns when every record that was sent is acknowledged."""
        answers = await asyncio.gather(*self._under_way, return_exceptions=True)
        self._under_way.clear()
        failed = [answer for answer in answers if isinstance(answer, BaseException)]
        if failed:
            raise _not_acknowledged(len(failed), len(answers), failed[0])


def _not_acknowledged(failed: int, of: int, error: BaseException) -> Unavailable:
    return Unavailable(
        f"{failed} of {of} records were not acknowledged ({type(error).__name__}); the file is not done: import it again "
        "when Kafka answers, what came through is not counted twice",
        field="kafka",
    )
