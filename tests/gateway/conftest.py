"""Accounts with money and prices, and gateways that serve them: in this process, and as processes of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from contracts.topics import BALANCE_EVENTS, PAYMENTS_REQUESTS
from services.balance import consumer as balance_room
from services.balance.refuse_fast import RefuseFast
from services.runtime.broker import ensure_topics
from services.runtime.embedded.ports import choose
from services.runtime.settings import load
from services.usage import api as usage_api
from services.usage.consumer import build as build_usage
from services.usage.price_files import read_price_file
from tests.support.balance_factory import NO_VALKEY, Town
from tests.support.http import Connection
from tests.support.processes import Processes, until
from tests.support.servers import Database
from tests.support.usage_registry import LONG_AGO

PRICES = b"""product,prefix,price_per_minute,currency,minimum_s,increment_s
voice.outbound,1,0.014,USD,60,60
voice.outbound,44,0.02,USD,1,1
"""


@pytest.fixture
async def town(database: Database) -> AsyncIterator[Town]:
    """Balance and usage over one log; the account `desk` has a dollar, a call to +1 costs 0.014 a minute."""
    rooms = [balance_room.room(RefuseFast(lambda: NO_VALKEY)), build_usage()]
    async with Town(database, rooms=rooms) as made:
        await made.account("desk", level_2=True)
        made.open("desk", "1")
        await made.settle()
        engine = made.rooms.processors["usage"].engine
        await usage_api.import_prices(engine, "list", read_price_file(PRICES), LONG_AGO, is_default=True)
        yield made


@dataclass
class Gateways:
    """Gateway processes on one database."""

    processes: Processes
    ports: dict[str, int] = field(default_factory=dict)

    async def start(self, name: str = "gateway", *, crash: str | None = None) -> Connection:
        """A gateway that is ready, and a connection to it."""
        self.ports[name] = choose(["kafka"], {}, {})["kafka"]
        self.processes.environment["TOLLBOOK_GATEWAY_PORT"] = str(self.ports[name])
        self.processes.start(name, "services.gateway", crash=crash)

        async def ready() -> bool:
            if self.processes.running[name].poll() is not None:
                raise AssertionError(self.processes.tail(name))
            try:
                async with self.to(name) as connection:
                    return (await connection.get("/ready")).status == 200
            except OSError:
                return False

        await until(ready, f"{name} serves\n{self.processes.tail(name)}")
        return self.to(name)

    def to(self, name: str = "gateway") -> Connection:
        """A new connection."""
        return Connection("127.0.0.1", self.ports[name])


@pytest.fixture
async def gateways(
    town: Town, kafka: str, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Gateways]:
    environment = town.database.environment(
        TOLLBOOK_KAFKA=kafka, TOLLBOOK_VALKEY=NO_VALKEY, TOLLBOOK_TOPIC_PREFIX=topic_prefix
    )
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    await ensure_topics(load(), {topic.name: topic for topic in (PAYMENTS_REQUESTS, BALANCE_EVENTS)})
    async with AsyncExitStack() as stack:
        processes = Processes(environment, tmp_path)
        stack.callback(processes.stop)
        yield Gateways(processes)
