"""A number's life through the registry and usage: registered, called, moved to another account, released."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from contracts.topics import USAGE_EVENTS
from services.groups.consumer import build as groups_room
from services.kernel.period import instant_text
from services.usage import api
from services.usage.consumer import build as usage_room
from services.usage.price_files import read_price_file
from tests.groups.desk import Desk
from tests.support.rooms import Log, Rooms
from tests.support.servers import Database
from tests.support.usage_registry import LONG_AGO, PUBLISHER, SOURCE, leg

DETROIT = "America/Detroit"
BOUGHT = datetime(2027, 3, 20, 23, 30, tzinfo=ZoneInfo(DETROIT)).astimezone(UTC)
NUMBER = "+13135550177"
PRICES = b"""product,prefix,price,currency,minimum,increment
voice.inbound,1,0.0085,USD,1,1
number.rental,1,1.00,USD,,
"""


class Town(Desk):
    """The registry and usage over one log, by a clock that is moved."""

    async def at(self, database: Database, instant: datetime) -> None:
        async with database.connected() as owner:
            now = await owner.fetchval("select runtime.clock_now()")
            await owner.execute("select runtime.clock_move($1)", instant - now)
        await self.rooms.pump(ticks=True)

    def called(self, event_id: str, ended_at: datetime) -> None:
        """An inbound call of a minute to the number; who has it is not said."""
        event = leg(event_id, ended_at, direction="inbound", called=NUMBER, billable_s=60)
        del event["data"]["account_id"]
        self.log.write(USAGE_EVENTS.of(PUBLISHER), key=NUMBER, value=event, at=ended_at + timedelta(seconds=5))

    @property
    def charged(self) -> list[tuple[Any, ...]]:
        """(event, account, group, amount) of every charge, in the order of time."""
        charges = sorted(self.log.data("usage.charges"), key=lambda each: each["event_time"])
        return [(c["event_id"], c["account_id"], c["group_id"], c["amount"]) for c in charges]


async def test_a_number_is_paid_and_called_for_whoever_has_it(database: Database) -> None:
    async with Rooms(Log(), database, [groups_room(), usage_room()]) as rooms:
        town = Town(rooms)
        await town.found()
        await town.seller()
        publisher = {"publisher_id": PUBLISHER, "organization_ids": ["lakeside"], "sources": [SOURCE]}
        await town.done("create_publisher", role="operator", **publisher)
        for name in ("desk", "other"):
            await town.group(f"g-{name}", zone=DETROIT)
            await town.account(name, group_id=f"g-{name}")
        await api.import_prices(
            rooms.processors["usage"].engine, "list", read_price_file(PRICES), LONG_AGO, is_default=True
        )
        # it was bought, and called, before anybody registered it
        await town.at(database, BOUGHT + timedelta(hours=3))
        town.called("early", BOUGHT + timedelta(hours=1))
        await rooms.pump(ticks=True)
        assert [each["reason"] for each in town.log.data("usage.rejections.")] == ["unknown_number"]
        number = {"resource_id": "main", "resource": "number", "number": NUMBER}
        await town.done("assign_resource", account_id="desk", since=instant_text(BOUGHT), **number)
        await rooms.pump(ticks=True)
        first = [
            ("main:2027-03", "desk", "g-desk", "0.387096774"),  # 12 of 31 days of 1.00
            ("early", "desk", "g-desk", "0.0085"),
        ]
        assert town.charged == first
        # it moves within the month, which stays paid by the first
        await town.at(database, BOUGHT + timedelta(days=5))
        moved = await town.done("assign_resource", account_id="other", **number)
        instant = datetime.fromisoformat(moved["at"])
        town.called("before", instant - timedelta(seconds=1))
        town.called("after", instant + timedelta(seconds=1))
        await town.at(database, datetime(2027, 4, 1, 4, 0, 1, tzinfo=UTC))
        second = [
            ("before", "desk", "g-desk", "0.0085"),
            ("after", "other", "g-other", "0.0085"),
            ("main:2027-04", "other", "g-other", "1"),
        ]
        assert town.charged == first + second
        await town.done("release_resource", resource_id="main")
        await town.at(database, datetime(2027, 6, 2, tzinfo=UTC))
        assert town.charged == first + second
        assert [each["action"] for each in town.log.data("usage.rejections.")] == ["quarantined", "replayed"]
