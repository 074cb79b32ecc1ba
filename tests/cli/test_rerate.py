"""`tollbook rerate`: from plan to done, and who may do what."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from services.usage import api
from services.usage.consumer import build
from services.usage.price_files import read_price_file
from tests.cli.conftest import Tollbook
from tests.support.rooms import Log, Rooms
from tests.support.servers import Database
from tests.support.usage_registry import LONG_AGO, leg, void
from tests.support.usage_room import Usage

NOW = datetime.now(UTC).replace(microsecond=0)
RANGE = (
    "--from",
    f"{NOW - timedelta(days=2):%Y-%m-%dT%H:%M:%SZ}",
    "--to",
    f"{NOW + timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}",
)


@pytest.fixture
async def usage(database: Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Usage]:
    """Two calls that were charged by the price from before."""
    for name, value in database.environment().items():
        monkeypatch.setenv(name, value)
    log = Log()
    async with Rooms(log, database, [build()]) as rooms:
        started = Usage(log, rooms)
        await started.start()
        await started.take(leg("e1", NOW), leg("e2", NOW - timedelta(hours=1)))
        prices = b"product,prefix,price_per_minute,currency,minimum_s,increment_s\nvoice.outbound,1,0.02,USD,60,60\n"
        await api.import_prices(started.engine, "list", read_price_file(prices), LONG_AGO)
        yield started


async def test_a_re_rate_goes_from_plan_to_done_by_two_people(usage: Usage, tollbook: Tollbook) -> None:
    assert (await tollbook("rerate", "list", "-o", "json")).json == []
    made = (await tollbook("rerate", "plan", *RANGE, "--actor", "ann", "--note", "late list", "-o", "json")).json
    assert (made["state"], made["charges"], made["approved_by"], made["left_out"]) == ("planned", 2, None, [])
    assert made["sums"][-1] == {
        "of": "total", "which": "", "currency": "USD", "charges": 2, "old": "0.056", "new": "0.08",
        "difference": "0.024", "reason": None, "charged": None,
    }  # fmt: skip
    plan = made["plan_id"]
    early = await tollbook("rerate", "execute", plan, "--actor", "ann")
    assert (early.code, early.err) == (1, "plan: is planned; another person approves it first\n")
    own = await tollbook("rerate", "approve", plan, "--actor", "ann")
    assert (own.code, own.err) == (1, "actor: ann planned this re-rate; another person must approve it\n")
    viewer = await tollbook("rerate", "approve", plan, "--actor", "bob", "--role", "owner")
    assert (viewer.code, viewer.err) == (1, "role: owner may not approve a re-rate; it takes finance or operator\n")
    assert (await tollbook("rerate", "approve", plan, "--actor", "bob")).code == 0
    assert "executed by bob" in (await tollbook("rerate", "execute", plan, "--actor", "bob")).out
    await usage.take(void("e2", 1))
    await usage.rooms.pump(ticks=True)
    shown = (await tollbook("rerate", "show", plan, "-o", "json")).json
    assert (shown["state"], shown["settled"], shown["left_stale"]) == ("done", 2, 1)
    assert [(each["old"], each["new"], each["is_stale"]) for each in shown["changes"]] == [
        ("0.028", "0.04", True), ("0.028", "0.04", False),
    ]  # fmt: skip
    assert shown["sums"][-1]["difference"] == "0.024"
    assert shown["sums"][-1]["charged"] == {"charges": 1, "old": "0.028", "new": "0.04", "difference": "0.012"}
    out = (await tollbook("rerate", "show", plan, "--stale")).out
    assert re.search(r"total +USD +2 +0\.056 +0\.08 +0\.024 +1 +0\.012", out)
    assert "1 of them left as they are, corrected after the approval" in out
    assert "planned by ann (finance)" in out
    assert "done" in (await tollbook("rerate", "list")).out
    charges = (await tollbook("charge", "list", "sales", "-o", "json")).json
    live = next(each for each in charges if each["replaces"] is not None)
    explained = await tollbook("charge", "explain", live["charge_id"])
    assert f"stands in the place of charge {live['replaces']}" in explained.out


async def test_what_is_left_out_is_said_and_a_cancelled_re_rate_stays(usage: Usage, tollbook: Tollbook) -> None:
    plan = ("rerate", "plan", *RANGE, "--book", "list", "--version", "1")
    made = (await tollbook(*plan, "-o", "json")).json
    assert (made["charges"], made["book_version"]) == (0, 1)
    nothing = await tollbook("rerate", "approve", made["plan_id"], "--actor", "somebody else")
    assert (nothing.code, nothing.err) == (1, "plan: changes no charge; there is nothing to approve\n")
    prices = b"product,prefix,price_per_minute,currency\nvoice.outbound,44,0.02,USD\n"
    await api.import_prices(usage.engine, "list", read_price_file(prices), LONG_AGO)
    said = await tollbook("rerate", "plan", *RANGE)
    assert "no_price" in said.out
    assert "the new prices have none for it" in said.out
    cancelled = await tollbook("rerate", "cancel", made["plan_id"], "-o", "json")
    assert cancelled.json["state"] == "cancelled"


async def test_a_wrong_command_line_names_the_field(usage: Usage, tollbook: Tollbook) -> None:
    for arguments, code, said in (
        (("show", "7"), 2, "PLAN: must be the id of a re-rate"),
        (("plan", "--from", "2026-10-02", "--to", "2026-10-01"), 2, "to: must be after --from"),
        (("plan", "--from", "soon", "--to", "2026-10-01"), 2, "from: must be an instant"),
        (("plan", *RANGE, "--book", "none"), 1, "book: there is no price book none"),
        (("plan", *RANGE, "--account", "nobody"), 1, "account: there is no account nobody"),
        (("show", "6f0a3c52-7f0e-8d0b-9a55-2b6c3a1f4e77"), 1, "plan: there is no re-rate 6f0a3c52"),
    ):
        ran = await tollbook("rerate", *arguments)
        assert (ran.code, ran.err.startswith(said)) == (code, True), ran.err


async def test_what_is_no_id_is_said_without_any_server(tollbook: Tollbook) -> None:
    for command in ("show", "approve", "execute", "cancel"):
        ran = await tollbook("rerate", command, "7")
        assert (ran.code, ran.err) == (2, "PLAN: must be the id of a re-rate; `tollbook rerate list` shows them\n")
