"""`tollbook import --dry-run`: what would be billed to each account of a file, with every row accounted for."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from services.kernel.money import format_nano
from services.usage import api
from services.usage.books import BookVersion, PriceBooks
from services.usage.consumer import build
from services.usage.events import decode
from services.usage.importing import FORMATS, ImportReport, read_profile
from services.usage.price_files import read_price_file
from services.usage.rating import Rated, rate
from tests.cli.conftest import Tollbook
from tests.support.rooms import Log, Rooms
from tests.support.servers import Database
from tests.support.usage_registry import LONG_AGO, Sender

DEMO = Path(__file__).parents[2] / "deploy" / "demo"
FILE, PROFILE = DEMO / "asterisk_master.csv", DEMO / "switch_profile.json"
SHIFT_DAYS = (datetime.now(UTC) - datetime(2018, 12, 5, tzinfo=UTC)).days
BOOKS = {"list": "voice_prices.csv", "inbound": "inbound_prices.csv"}
UNKNOWN = "kiosk"  # an account that nobody has registered


@pytest.fixture
async def registered(database: Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rooms]:
    log = Log()
    for name, value in database.environment().items():
        monkeypatch.setenv(name, value)
    async with Rooms(log, database, [build()]) as rooms:
        send = Sender(log)
        send.publisher("detroit", ["lakeside"], ["/switches/detroit"])
        for account in sorted({leg.account_id for leg in legs()} - {UNKNOWN}):
            send.account(account)
        await rooms.pump()
        engine = rooms.processors["usage"].engine
        for book, file in BOOKS.items():
            prices = read_price_file((DEMO / file).read_bytes())
            await api.import_prices(engine, book, prices, LONG_AGO, is_default=True)
        yield rooms


def legs() -> Any:
    with FILE.open("rb") as records:
        return list(FORMATS["asterisk"](records, read_profile(PROFILE), ImportReport(), shift_days=SHIFT_DAYS))


def by_the_rules() -> dict[str, tuple[int, int, str]]:
    """(legs, seconds, amount) of each account, by the rules alone."""
    books = PriceBooks(
        [
            BookVersion(book, 1, prices.currency, LONG_AGO, prices.rows)
            for book, file in BOOKS.items()
            for prices in [read_price_file((DEMO / file).read_bytes())]
        ]
    )
    counts: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    nanos: Counter[str] = Counter()
    for leg in legs():
        call = decode(json.dumps(leg.event).encode())
        outcome = rate(call.use, call.event_time, books.chain(default=tuple(BOOKS)), "USD")
        if isinstance(outcome, Rated) and leg.account_id != UNKNOWN:
            counts[leg.account_id] += 1
            seconds[leg.account_id] += outcome.billed
            nanos[leg.account_id] += outcome.amount_nano
    return {name: (counts[name], seconds[name], format_nano(nanos[name])) for name in counts}


async def test_the_sample_file_is_priced_to_the_last_digit_for_each_account(
    registered: Rooms, tollbook: Tollbook
) -> None:
    arguments = ("import", str(FILE), "--profile", str(PROFILE), "--shift-days", str(SHIFT_DAYS), "--dry-run")
    said = (await tollbook(*arguments, "-o", "json")).json
    assert (said["rows"], said["legs"], said["published"], said["notes"]) == (1_000, 413, 386, [])
    billed = {one["account_id"]: one for one in said["accounts"] if one["legs"]}
    expected = by_the_rules()
    assert {name: (one["legs"], one["billed_s"], one["amount"]) for name, one in billed.items()} == expected
    assert {one["currency"] for one in billed.values()} == {"USD"}
    (unknown,) = [one for one in said["accounts"] if one["account_id"] == UNKNOWN]
    assert (unknown["amount"], unknown["currency"]) == ("0", None)
    assert unknown["quarantined"]["unknown_account"] == sum(1 for leg in legs() if leg.account_id == UNKNOWN)
    assert said["quarantined"][0].keys() == {"event_id", "account_id", "reason", "field", "message"}
    told = sum(sum(one["quarantined"].values()) + one["legs"] + one["not_billable"] for one in said["accounts"])
    assert told == 386
    assert registered.log.data("usage.charges") == []
    shown = await tollbook(*arguments)
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.startswith("1000 rows: 386 would be published, 572 internal, 15 no leg, 27 refused\n")
    name, (count, seconds, amount) = max(expected.items(), key=lambda item: item[1][0])
    assert any(line.split()[:5] == [name, str(count), str(seconds), amount, "USD"] for line in shown.out.splitlines())
    assert f"unknown_account, {UNKNOWN}, event " in shown.out


async def test_without_servers_the_file_is_read_and_the_note_says_why_it_is_not_priced(tollbook: Tollbook) -> None:
    said = (await tollbook("import", str(FILE), "--profile", str(PROFILE), "--dry-run", "-o", "json")).json
    assert (said["rows"], said["accounts"], said["quarantined"]) == (1_000, None, None)
    assert said["notes"][0].startswith("not priced, because usage cannot be asked: TOLLBOOK_POSTGRES: is not set")
