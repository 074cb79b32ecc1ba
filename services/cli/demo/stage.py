"""What the demo plays on: settings of its own, an empty database, all topics, one process of each room."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from contracts.topics import PAYMENTS_RESULTS, TOPICS, USAGE_EVENTS, USAGE_REJECTIONS
from services.cli.rooms import RoomProcesses, own_environment
from services.runtime import migrate
from services.runtime.broker import ensure_topics
from services.runtime.settings import ROOMS, Settings

TICK_MS, BATCH_WAIT_MS = 250, 20  # a demonstration is watched by a person: it looks more often than a server must
PROCESSOR = "sandbox"


class Stage:
    """What the demo runs on. `close` may be called at any time."""

    def __init__(self, data: Path, *, movable: bool = False) -> None:
        self.data = data
        self._movable = movable
        self.logs = data.resolve() / "logs"
        self.settings = Settings(data=data, kafka=None, postgres=None, valkey=None, topic_prefix="")
        more = {"TOLLBOOK_TICK_MS": str(TICK_MS), "TOLLBOOK_BATCH_WAIT_MS": str(BATCH_WAIT_MS)}
        self.rooms = RoomProcesses(self.logs, own_environment(data, **more))

    async def migrate(self) -> None:
        """Makes the database and its roles."""
        settings = self.settings
        await migrate.upgrade(
            settings.owner_database_url(), room_password=settings.room_password_text(), movable=self._movable
        )

    async def make_topics(self, publishers: Sequence[str]) -> None:
        """Makes every topic before any room looks, so that nobody has to notice one later."""
        names = {topic.name: topic for topic in TOPICS if not topic.is_family}
        names[PAYMENTS_RESULTS.of(PROCESSOR)] = PAYMENTS_RESULTS
        for publisher in publishers:
            names |= {USAGE_EVENTS.of(publisher): USAGE_EVENTS, USAGE_REJECTIONS.of(publisher): USAGE_REJECTIONS}
        await ensure_topics(self.settings, names)

    def start_rooms(self) -> None:
        """Starts one process of each room."""
        self.rooms.start(ROOMS)

    async def close(self) -> None:
        """Stops the rooms; the servers go on."""
        await asyncio.to_thread(self.rooms.stop)
