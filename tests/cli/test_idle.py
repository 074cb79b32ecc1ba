"""When everything is processed: not while charges are still to be corrected."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from services.cli.idle import Idle
from services.runtime.settings import Settings
from services.usage.consumer import build
from tests.support.rooms import Log, Rooms
from tests.support.servers import Database
from tests.support.usage_registry import leg
from tests.support.usage_room import Usage
from tests.usage.test_reassignments import looked_through, moved_to

SAID = "usage has charges to move or to re-rate"
NOW = datetime.now(UTC).replace(microsecond=0)


class NoBroker:
    """Topics without partitions: what is read from them is not asked here."""

    async def partitions(self, _: Any) -> dict[str, int]:
        return {}

    async def end_offsets(self, _: Any) -> dict[Any, int]:
        return {}


async def test_nothing_is_idle_while_charges_are_to_be_moved(database: Database) -> None:
    log = Log()
    async with Rooms(log, database, [build()]) as rooms:
        usage, broker = Usage(log, rooms), NoBroker()
        await usage.start()
        await usage.take(leg("e1", NOW))
        idle = Idle(Settings(), {"usage": usage.engine}, broker, broker)  # type: ignore[arg-type]
        assert SAID not in (await idle.look()).undone
        usage.send.account("sales", **moved_to("g2", NOW - timedelta(hours=1)))
        await rooms.pump()
        assert SAID in (await idle.look()).undone
        await looked_through(usage)
        assert SAID not in (await idle.look()).undone
