"""The room webhooks over an in-memory log and a real database, with a courier that calls a real receiver."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from contracts.topics import topic_of
from services.webhooks import api, consumer
from services.webhooks.calling import Caller
from services.webhooks.courier import Courier
from tests.support.balance_factory import Town
from tests.support.receiver import LOOPBACK
from tests.support.servers import Database

AT = "2026-10-31T23:50:00Z"


class Post:
    """What tests do with the room. `chance` is what jitter is made of: none."""

    def __init__(self, database: Database, caller: Any = None) -> None:
        self.caller = caller or Caller(LOOPBACK)
        self.courier = self.another_courier()
        self.town = Town(database, rooms=[consumer.room(self.courier)])
        self.engine = self.town.rooms.processors["webhooks"].engine
        self._versions: dict[str, int] = {}

    def another_courier(self) -> Courier:
        """The courier of another worker."""
        return Courier(self.caller, chance=lambda: 0.0)

    async def __aenter__(self) -> Post:
        await self.town.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.courier.stop()
        await self.town.__aexit__()

    # ---- what others write ----

    async def account(self, account_id: str, organization_id: str = "lakeside") -> None:
        """The registry tells an account."""
        self.tell(account_id, organization_id)
        await self.town.rooms.pump()

    def tell(self, account_id: str, organization_id: str = "lakeside", version: int = 1) -> None:
        self.town.send("groups.accounts", account_id, timeline(account_id, organization_id, version))

    def happens(self, account_id: str = "sales", kind: str = "suspended", **more: Any) -> int:
        """Balance tells an event of an account; returns its version."""
        version = self._versions[account_id] = self._versions.get(account_id, 0) + 1
        self.town.send("balance.events", account_id, balance_event(account_id, version, kind, **more))
        return version

    # ---- what the room does ----

    async def arrive(self) -> None:
        """What was written is in the room's tables."""
        await self.town.rooms.pump()

    async def round(self, *couriers: Courier) -> None:
        """Every courier looks, again and again, until nothing is due and nothing under way."""
        processor = self.town.rooms.processors["webhooks"]
        for _ in range(500):
            resting = not any(courier._turns for courier in couriers or (self.courier,))  # before the look
            for courier in couriers or (self.courier,):
                await courier.look(processor)
                resting &= not courier._turns
            if resting:
                return
            await asyncio.sleep(0.005)
        raise AssertionError("deliveries do not come to rest")

    async def deliver(self, after: timedelta | None = None) -> None:
        """Move the clock if asked to, take in what was written, deliver what is due."""
        if after is not None:
            await self.town.move(after)
        await self.arrive()
        await self.round()

    async def states(self, endpoint_id: str) -> list[tuple[str, int]]:
        """(state, attempts) of each delivery of an endpoint, in its order."""
        found = await api.deliveries(self.engine, endpoint_id)
        return [(each.state, each.attempts) for each in reversed(found)]


def timeline(account_id: str, organization_id: str, version: int = 1) -> dict[str, Any]:
    """What the registry tells of an account."""
    return {
        "account_id": account_id,
        "account_no": 1,
        "version": version,
        "organization_id": organization_id,
        "name": account_id,
        "currency": "USD",
        "opened_at": "2026-01-01T00:00:00Z",
        "created_at": "2026-01-01T00:00:00Z",
        "level_2": False,
        "credit_limit": "0",
        "closed_at": None,
        "plans": [],
        "groups": [],
    }


def balance_event(account_id: str, version: int, kind: str = "suspended", **more: Any) -> dict[str, Any]:
    """What balance tells of an account."""
    return {"account_id": account_id, "version": version, "kind": kind, "at": AT, **more}


def envelope(topic: str, partition: int, seq: int, data: dict[str, Any]) -> dict[str, Any]:
    """A record between rooms, as a relay sends it."""
    return {
        "id": f"{topic}:{partition}:{seq}",
        "type": topic_of(topic).type,
        "version": 1,
        "time": AT,
        "link": "test:lane",
        "seq": seq,
        "epoch": 0,
        "trace": None,
        "data": data,
    }
