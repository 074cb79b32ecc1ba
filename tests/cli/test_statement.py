"""`tollbook account statement` and `show --at`: one table, one JSON document, one CSV file that all add up alike."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from services.balance import consumer as balance_room
from services.balance.refuse_fast import RefuseFast
from services.kernel.money import parse_amount
from services.kernel.period import instant_text
from tests.cli.conftest import Tollbook
from tests.support.balance_factory import NO_VALKEY, Town
from tests.support.servers import Database


@pytest.fixture
async def town(database: Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Town]:
    """The account desk with an opening balance, and a day later charges and goodwill."""
    for name, value in database.environment().items():
        monkeypatch.setenv(name, value)
    async with Town(database, rooms=[balance_room.room(RefuseFast(lambda: NO_VALKEY))]) as made:
        await made.account("desk")
        made.open("desk", "25")
        await made.settle()
        await made.move(timedelta(days=1))
        made.charge("desk", "0.014")
        made.charge("desk", "0.0280001")
        made.command("grant_goodwill", "desk", amount="0.5", currency="USD", note="sorry, =1+1")
        await made.settle()
        yield made


async def test_table_json_and_csv_say_the_same_and_add_up(tollbook: Tollbook, town: Town) -> None:
    day_after = instant_text(await town.now() - timedelta(hours=12))
    asked = ("account", "statement", "desk", "--from", day_after)
    told = (await tollbook(*asked, "--output", "json")).json
    assert (told["opening"]["balance"], told["closing"]["balance"]) == ("25", "25.4579999")
    assert {each["cause"]: each["amount"] for each in told["movements"]} == {
        "2 charges: voice.outbound": "-0.0420001",
        "goodwill by ann: sorry, =1+1": "0.5",
    }
    rows = list(csv.DictReader(io.StringIO((await tollbook(*asked, "--output", "csv")).out)))
    assert [row["cause"] for row in rows] == [
        "opening balance", *[each["cause"] for each in told["movements"]], "closing balance",
    ]  # fmt: skip
    opening, *moved, closing = [parse_amount(row["amount"] or row["balance"], signed=True) for row in rows]
    assert opening + sum(moved) == closing
    table = (await tollbook(*asked)).out
    for text in ("opening balance", "2 charges: voice.outbound", "-0.0420001", "25.4579999"):
        assert text in table
    assert "unbilled" not in table  # of a prepaid account the wallet is all there is


async def test_a_past_balance_and_what_is_asked_wrongly(tollbook: Tollbook, town: Town) -> None:
    day_after = instant_text(await town.now() - timedelta(hours=12))
    shown = await tollbook("account", "show", "desk", "--at", day_after, "--output", "json")
    assert (shown.json["balance"], shown.json["wallet"], shown.json["unbilled"]) == ("25", "25", "0")
    wrong = await tollbook("account", "statement", "desk", "--from", "yesterday")
    assert wrong.code != 0
    assert "from: must be an instant" in wrong.err + wrong.out
    future = await tollbook("account", "statement", "desk", "--from", "2099-01-01")
    assert (future.code, future.err.startswith("from: lies in the future; now is 20")) == (2, True), future.err
    whole = await tollbook("account", "statement", "desk", "--from", "0001-01-01", "--output", "json")
    assert whole.json["opening"]["balance"] == "0"
    unknown = await tollbook("account", "statement", "nobody")
    assert unknown.code != 0
    assert "no wallet of an account nobody" in unknown.err + unknown.out


async def test_what_has_not_come_is_refused_and_the_end_of_today_is_now(tollbook: Tollbook, town: Town) -> None:
    for arguments, field in (
        (("account", "show", "desk", "--at", "2099-01-01"), "at"),
        (("ledger", "totals", "--at", "2099-01-01"), "at"),
        (("account", "statement", "desk", "--to", "2099-01-01"), "to"),
        (("ledger", "entries", "--to", "2099-01-01"), "to"),
    ):
        ran = await tollbook(*arguments, "--output", "json")
        assert (ran.code, ran.out, ran.err.startswith(f"{field}: lies in the future; now is 20")) == (2, "", True), (
            ran.err
        )
    today = (await town.now()).date()
    asked = ("account", "statement", "desk", "--from", str(today), "--to", str(today + timedelta(days=1)))
    told = (await tollbook(*asked, "--output", "json")).json
    assert told["start"] == f"{today}T00:00:00Z"
    assert told["closing"]["balance"] == "25.4579999"
    assert told["start"] < told["end"] <= instant_text(await town.now())
    later = await tollbook(*asked[:-1], str(today + timedelta(days=2)))
    assert (later.code, later.err.startswith("to: lies in the future")) == (2, True)
