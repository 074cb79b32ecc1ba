"""The usage room, started with one publisher, the account `sales` and a price list."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.usage.consumer import build
from tests.support.rooms import Log, Rooms
from tests.support.servers import Database
from tests.support.usage_room import Usage


@pytest.fixture
async def usage(database: Database) -> AsyncIterator[Usage]:
    log = Log()
    async with Rooms(log, database, [build()]) as rooms:
        started = Usage(log, rooms)
        await started.start()
        yield started
