"""`tollbook reassignment`: what a change of the registry moved, and what it left."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from services.cli.invoice import with_corrections
from services.invoices.api import GroupStatus
from services.usage.consumer import build
from tests.cli.conftest import Tollbook
from tests.support.rooms import Log, Rooms
from tests.support.servers import Database
from tests.support.usage_registry import LONG_AGO, leg
from tests.support.usage_room import Usage
from tests.usage.test_reassignments import MOVED, NOW, inbound, told

NUMBER = "+13135550199"


@pytest.fixture
async def usage(database: Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Usage]:
    """An account that moved, and a number that was released, each after its calls were charged."""
    for name, value in database.environment().items():
        monkeypatch.setenv(name, value)
    log = Log()
    async with Rooms(log, database, [build()]) as rooms:
        started = Usage(log, rooms)
        await started.start()
        started.send.resource("main", "sales", None, number=NUMBER)
        await rooms.pump()
        await started.take(leg("e1", NOW), leg("e2", NOW), inbound("in"))
        started.send.account("sales", groups=[(LONG_AGO, MOVED, "g-sales"), (MOVED, None, "north")])
        await told(started)
        started.send.resource("main", "sales", None, number=NUMBER, owners=[(LONG_AGO, MOVED, "sales")])
        await told(started)
        yield started


async def test_what_was_moved_and_what_was_left_is_shown(usage: Usage, tollbook: Tollbook) -> None:
    left, moved = (await tollbook("reassignment", "list", "-o", "json")).json
    assert {**moved, "reassignment_id": 0, "noticed_at": 0, "reached_at": 0, "done_at": 0} == {
        "reassignment_id": 0, "state": "done", "kind": "account", "object_id": "sales", "number": None, "version": 2,
        "starts_at": f"{MOVED:%Y-%m-%dT%H:%M:%SZ}", "ends_at": None, "reprices": False, "noticed_at": 0,
        "reached_at": 0, "done_at": 0, "moved": 3, "left": 0, "lines": [], "left_out": [], "left_charges": [],
    }  # fmt: skip
    assert (left["kind"], left["number"], left["moved"], left["left"]) == ("number", NUMBER, 0, 1)
    assert (
        len((await tollbook("reassignment", "list", "--all", "-o", "json")).json) == 3
    )  # the number, when it appeared
    table = (await tollbook("reassignment", "list")).out
    assert f"number main {NUMBER}" in table

    shown = (await tollbook("reassignment", "show", moved["reassignment_id"], "-o", "json")).json
    assert shown["lines"] == [
        {
            "from_account": "sales", "from_group": "g-sales", "from_cost_center": None, "to_account": "sales",
            "to_group": "north", "to_cost_center": None, "currency": "USD", "charges": 3, "taken_back": "0.069458333",
            "charged": "0.069458333",
        }
    ]  # fmt: skip
    out = (await tollbook("reassignment", "show", moved["reassignment_id"])).out
    assert "version 2 of the timeline of account sales changed what holds from" in out
    assert "3 charges moved, 0 left as they are" in out
    assert re.search(r"sales / g-sales / -\s+sales / north / -\s+USD\s+3\s+0\.069458333", out)

    out = (await tollbook("reassignment", "show", left["reassignment_id"])).out
    assert "nobody had the number at that time, by the registry as it is now" in out
    (charge,) = (await tollbook("reassignment", "show", left["reassignment_id"], "-o", "json")).json["left_charges"]
    explained = await tollbook("charge", "explain", charge["charge_id"])
    assert "stays as it is, whatever version 2 of the timeline of number main says" in explained.out


async def test_one_that_is_not_there_is_named(usage: Usage, tollbook: Tollbook) -> None:
    none = await tollbook("reassignment", "show", "00000000-0000-0000-0000-000000000005")
    assert (none.code, "there is no reassignment" in none.err) == (1, True)
    wrong = await tollbook("reassignment", "show", "main")
    assert (wrong.code, "REASSIGNMENT: must be the id of a reassignment" in wrong.err) == (2, True)


def test_a_month_that_waits_for_usage_says_that_charges_are_moved_of_before_its_end() -> None:
    end = datetime(2026, 12, 1, tzinfo=UTC)
    rows = [
        GroupStatus("a", "2026-11", end, "waiting", None, "usage"),
        GroupStatus("b", "2026-11", end, "waiting", None, "balance"),
        GroupStatus("c", "2026-11", end - timedelta(hours=9), "waiting", None, "usage"),  # in Tokyo it ended before
    ]
    said = [row.waiting_for for row in with_corrections(rows, end - timedelta(hours=1))]
    assert said == ["usage, which moves or re-rates charges since 2026-11-30T23:00:00Z", "balance", "usage"]
    assert with_corrections(rows, None) == rows
