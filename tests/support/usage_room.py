"""The usage room over a log: what its tests start, publish to and ask."""

from __future__ import annotations

from typing import Any

from services.runtime.database import transaction
from services.runtime.lanes import transaction_instant
from services.usage import api
from services.usage.generations import switch_generation
from services.usage.price_files import read_price_file
from tests.support.rooms import Log, Rooms
from tests.support.usage_registry import LONG_AGO, TOPIC, Sender

PRICES = b"""product,prefix,price_per_minute,currency,minimum_s,increment_s
voice.outbound,1,0.0140,USD,60,60
voice.outbound,91,1000000,USD,60,60
voice.inbound,1,0.0085,USD,1,1
"""


class Usage:
    """The room over a log, with one publisher and the account `sales`."""

    def __init__(self, log: Log, rooms: Rooms) -> None:
        self.log = log
        self.rooms = rooms
        self.send = Sender(log)
        self.processor = rooms.processors["usage"]
        self.engine = self.processor.engine

    async def start(self) -> None:
        self.send.publisher()
        self.send.account("sales")
        await self.rooms.pump()
        await api.import_prices(self.engine, "list", read_price_file(PRICES), LONG_AGO, is_default=True)

    async def take(self, *events: Any) -> None:
        """Publish events (dictionaries or raw bytes) and let the room run."""
        for event in events:
            if isinstance(event, dict):
                self.send.leg(event)
            else:
                self.log.write(TOPIC, value=event, partition=0)
        await self.rooms.pump()

    @property
    def charges(self) -> list[dict[str, Any]]:
        return self.log.data("usage.charges")

    @property
    def rejections(self) -> list[dict[str, Any]]:
        return self.log.data("usage.rejections.")

    async def switch_generation(self) -> None:
        """As the tick of partitions does when a generation is old."""
        async with transaction(self.engine) as connection:
            moment = await transaction_instant(connection, self.processor.tables)
            await switch_generation(self.processor._work(connection, "tick.partitions", moment))

    async def classes(self) -> dict[str, int]:
        """Records per class over all partitions and segments."""
        found: dict[str, int] = {}
        for segments in (await api.class_counts(self.engine)).values():
            for counts in segments.values():
                for name, number in counts.items():
                    found[name] = found.get(name, 0) + number
        return found
