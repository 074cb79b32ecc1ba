"""What a process that consumes nothing knows of the topics that it publishes on: how many partitions each has.

They are asked for once, at the start: in a process a key keeps its partition, and Kafka may be away from then on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping

from contracts.topics import Topic
from services.kernel.errors import Corrupt, Unavailable
from services.runtime.broker import Offsets
from services.runtime.settings import Settings

TOPICS_S_MAX = 60.0  # the rooms make them; a new installation has none yet


class KnownTopics:
    """The `Surroundings` of transactions that publish on a few topics of ours, or on none, and read none."""

    def __init__(self, partitions: Mapping[str, int]) -> None:
        self._partitions = partitions

    @classmethod
    async def asked(cls, settings: Settings, topics: Iterable[Topic]) -> KnownTopics:
        """Ask Kafka; `Unavailable` when it, or one of the topics, is not there for a minute."""
        sought = list(topics)
        offsets = Offsets(settings)
        give_up = time.monotonic() + TOPICS_S_MAX
        try:
            await offsets.start()
            while True:
                found = await offsets.partitions(sought)
                missing = sorted({topic.name for topic in sought} - found.keys())
                if not missing:
                    return cls(found)
                if time.monotonic() > give_up:
                    raise Unavailable(
                        f"Kafka has no topics {', '.join(missing)}; start the rooms, which make them", field="kafka"
                    )
                await asyncio.sleep(0.5)
        finally:
            await offsets.stop()

    def partitions(self, topic: str) -> int:
        """How many partitions a topic had at the start."""
        if topic not in self._partitions:
            raise Corrupt(f"{topic} is no topic that this process publishes on")
        return self._partitions[topic]

    async def make(self, topic: str) -> None:
        """Nothing of a family is published here."""
        raise Corrupt(f"{topic} is no topic that this process publishes on")

    async def begin_offsets(self, topic: Topic) -> dict[tuple[str, int], int]:
        """Nothing is read here."""
        raise Corrupt(f"{topic.name} is not read by this process")

    async def end_offsets(self, topic: Topic) -> dict[tuple[str, int], int]:
        """Nothing is read here."""
        raise Corrupt(f"{topic.name} is not read by this process")
