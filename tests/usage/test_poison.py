"""Records made to hurt: none of them may stop a lane, or be charged where nothing is accepted."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.runtime import parking
from services.runtime.database import transaction
from services.usage import api
from services.usage.consumer import build
from services.usage.price_files import read_price_file
from tests.support.rooms import Log, Rooms
from tests.support.servers import Database
from tests.support.usage_registry import LONG_AGO, TOPIC, Sender, leg

NOW = datetime.now(UTC).replace(microsecond=0)
PRICES = b"""product,prefix,price_per_minute,currency,minimum_s,increment_s
voice.outbound,1,0.0140,USD,60,60
"""
LONG = "x" * 3_000


def with_data(name: str) -> bytes:
    event = leg("bad", NOW)
    event["data"] = {**event["data"], name: 1}
    return json.dumps(event).encode()


def with_attribute(name: str) -> bytes:
    return json.dumps({**leg("bad", NOW), name: 1}).encode()


@pytest.mark.parametrize(
    ("topic", "value"),
    [
        (TOPIC, with_data(LONG)),
        (TOPIC, with_attribute("X" * 3_000)),
        (TOPIC, with_attribute("\0")),
        (TOPIC, json.dumps(leg("bad", NOW)).encode()[:-1] + b',"' + LONG.encode() + b'":1,"' + LONG.encode() + b'":2}'),
        (TOPIC, with_attribute("extension")[:-2] + b"9" * 5_000 + b"}"),
        ("usage.events._test", json.dumps(leg("bad", NOW)).encode()),
        ("usage.events." + "p" * 100, json.dumps(leg("bad", NOW)).encode()),
    ],
)
async def test_a_record_made_to_hurt_is_quarantined_and_its_neighbours_go_on(
    database: Database, topic: str, value: bytes
) -> None:
    log = Log()
    async with Rooms(log, database, [build()]) as rooms:
        send = Sender(log)
        send.publisher()
        send.account("sales")
        await rooms.pump()
        engine = rooms.processors["usage"].engine
        await api.import_prices(engine, "list", read_price_file(PRICES), LONG_AGO, is_default=True)
        send.leg(leg("before", NOW))
        log.write(topic, value=value, partition=0)
        send.leg(leg("after", NOW))
        async with asyncio.timeout(15):
            await rooms.pump()
        assert {charge["event_id"] for charge in log.data("usage.charges")} == {"before", "after"}
        (row,) = await api.parked(engine)
        assert row.reason in ("invalid_event", "not_permitted", "not_json")


async def test_a_replayed_record_that_the_database_refuses_is_charged_nowhere(database: Database) -> None:
    """A record older than the days that are kept: replayed, it is refused again, and nobody is told of a charge."""
    log = Log()
    async with Rooms(log, database, [build()]) as rooms:
        send = Sender(log)
        send.publisher()
        send.account("sales")
        await rooms.pump()
        processor = rooms.processors["usage"]
        await api.import_prices(processor.engine, "list", read_price_file(PRICES), LONG_AGO, is_default=True)
        far = NOW + timedelta(days=3_650)
        send.leg(leg("far", far), at=far)
        await rooms.pump()
        (row,) = await api.parked(processor.engine)
        assert row.reason == "refused_by_store"
        async with transaction(processor.engine) as connection:
            await parking.ask(connection, processor.tables, "replaying", "ann", ids=[row.id])
        await rooms.pump()
        (row,) = await api.parked(processor.engine)
        assert row.reason == "refused_by_store"
        assert log.data("usage.charges") == []
        told: list[dict[str, Any]] = log.data("usage.rejections.")
        assert [each["action"] for each in told] == ["quarantined", "quarantined"]
