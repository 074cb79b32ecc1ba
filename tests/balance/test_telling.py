"""After a restore from a backup: upstreams hear anew whether an account may call, with versions that nobody has seen."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import text

from services.balance import api
from tests.support.balance_factory import Town
from tests.support.servers import Database

FLOOR = 41


@pytest.fixture
async def town(database: Database) -> AsyncIterator[Town]:
    async with Town(database) as made:
        for account_id in ("desk", "kiosk"):
            await made.account(account_id)
            made.open(account_id, "100")
        await made.settle()
        await made.rooms.query(
            "balance", text("update balance.lanes set version_floor = :floor returning 1"), {"floor": FLOOR}
        )
        yield made


def told(town: Town, account_id: str, *kinds: str) -> list[dict[str, Any]]:
    return [e for e in town.log.data("balance.events") if e["account_id"] == account_id and e["kind"] in kinds]


async def test_what_stands_is_told_with_the_next_version_above_all_that_was_told(town: Town) -> None:
    town.command("suspend", "desk", note="fraud is looked into")
    await town.settle()
    (first,) = told(town, "desk", "suspended")
    assert first["version"] == FLOOR + 1
    await api.tell_again(town.rooms.processors["balance"].engine, town.log, {"desk", "kiosk", "nobody"})
    await town.settle()
    (*_, again) = told(town, "desk", "suspended")
    assert (again["version"], again["reason"], again["reasons"]) == (FLOOR + 2, None, ["operator"])
    (restored,) = told(town, "kiosk", "restored")
    assert (restored["version"], restored["reasons"]) == (FLOOR + 1, [])
    assert told(town, "nobody", "suspended", "restored") == []
