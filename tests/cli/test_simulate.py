"""`tollbook simulate`: revenue now and by a draft, who would run out of money, and that nothing is written."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from contracts.usage import PRODUCT, RENTAL
from services.balance import consumer as balance_room
from services.balance.refuse_fast import RefuseFast
from services.usage import api
from services.usage.books import Price, PriceBook
from services.usage.consumer import build
from services.usage.price_documents import read_price_document
from services.usage.price_files import read_price_file
from services.usage.rating import NoPrice, TooLarge, WrongCurrency, WrongUnit
from services.usage.simulating import DRAFT, Draft
from tests.cli.conftest import Tollbook
from tests.support.balance_factory import NO_VALKEY
from tests.support.rooms import Log, Rooms
from tests.support.servers import Database
from tests.support.usage_registry import LONG_AGO, SOURCE, leg
from tests.support.usage_room import Usage

NOW = datetime.now(UTC).replace(microsecond=0)
RANGE = (
    "--from",
    f"{NOW - timedelta(days=2):%Y-%m-%dT%H:%M:%SZ}",
    "--to",
    f"{NOW + timedelta(seconds=1):%Y-%m-%dT%H:%M:%SZ}",
)
ROOMS = ("balance", "groups", "invoices", "payments", "runtime", "usage", "webhooks")


@pytest.fixture
async def usage(database: Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Usage]:
    """Legs of two accounts, one of which has 0.05 left, and lookups of the third."""
    for name, value in database.environment().items():
        monkeypatch.setenv(name, value)
    log = Log()
    balance = balance_room.room(RefuseFast(lambda: NO_VALKEY, prefix=f"t{uuid.uuid4().hex}."))
    async with Rooms(log, database, [build(), balance]) as rooms:
        started = Usage(log, rooms)
        await started.start()
        started.send.account("poor")
        started.send.account("lookups", plan="invoiced")
        await rooms.pump()
        lookups = b"product,price,currency,per,unit\napi.lookups,0.01,USD,1,request\n"
        await api.import_prices(started.engine, "products", read_price_file(lookups), LONG_AGO, is_default=True)
        for account, amount in (("sales", "10"), ("poor", "0.106")):
            command = {
                "kind": "open_balance", "command_id": f"open-{account}", "actor": "ann", "role": "operator",
                "account_id": account, "amount": amount, "currency": "USD",
            }  # fmt: skip
            log.write("balance.commands", key=account, value=command)
        await rooms.pump()
        await started.take(
            leg("e1", NOW, billable_s=60),  # 0.014
            leg("e2", NOW - timedelta(days=1), billable_s=60),
            leg("old", NOW - timedelta(days=5), billable_s=60),  # not in the range
            leg("in", NOW, direction="inbound", called="+13135550199", billable_s=60),  # 0.0085
            *(leg(f"p{n}", NOW, "poor", billable_s=60) for n in range(4)),
            *(lookup(f"l{n}", quantity) for n, quantity in enumerate((600, 300, 300))),
        )
        await rooms.pump(ticks=True)
        assert len(started.charges) == 11
        yield started


def lookup(event_id: str, quantity: int) -> dict[str, Any]:
    data = {
        "account_id": "lookups", "product": "api.lookups", "quantity": quantity, "unit": "request",
        "used_at": f"{NOW:%Y-%m-%dT%H:%M:%SZ}",
    }  # fmt: skip
    return {"specversion": "1.0", "id": event_id, "source": SOURCE, "type": PRODUCT, "data": data}


async def contents(database: Database) -> dict[str, str]:
    """Every table of every room, by a hash of all its rows."""
    async with database.connected() as owner:
        named = "select format('%I.%I', schemaname, tablename) from pg_tables where schemaname = any($1)"
        tables = [row[0] for row in await owner.fetch(named, ROOMS)]
        rows = "select md5(coalesce(string_agg(t::text, chr(10) order by t::text), '')) from "
        return {table: await owner.fetchval(f"{rows} {table} t") for table in tables}


def draft(folder: Path, *lines: str) -> str:
    file = folder / "draft.csv"
    file.write_text("product,prefix,price_per_minute,currency,minimum_s,increment_s\n" + "\n".join(lines) + "\n")
    return str(file)


async def test_a_draft_in_the_place_of_a_book_shows_revenue_now_and_then_and_writes_nothing(
    usage: Usage, tollbook: Tollbook, database: Database, tmp_path: Path
) -> None:
    before = await contents(database)
    file = draft(tmp_path, "voice.outbound,1,0.0280,USD,60,60", "voice.inbound,1,0.0085,USD,1,1")
    ran = await tollbook("simulate", "--book", file, "--in-place-of", "list", *RANGE, "-o", "json")
    assert ran.code == 0, ran.err
    found = ran.json
    assert found["total"] == [
        {
            "currency": "USD", "charges": 10, "now": "12.0925", "then": "12.1765", "difference": "0.084",
            "unpriced": 0, "unpriced_now": "0",
        }
    ]  # fmt: skip
    assert {(r["account_id"], r["charges"], r["now"], r["then"], r["difference"]) for r in found["by_account"]} == {
        ("sales", 3, "0.0365", "0.0645", "0.028"),
        ("poor", 4, "0.056", "0.112", "0.056"),
        ("lookups", 3, "12", "12", "0"),  # of a book that the draft does not touch
    }
    assert [(r["group_id"], r["difference"]) for r in found["by_group"]] == [
        ("g-lookups", "0"), ("g-poor", "0.056"), ("g-sales", "0.028"),
    ]  # fmt: skip
    assert {(r["product"], r["prefix"], r["difference"]) for r in found["by_destination"]} == {
        ("voice.outbound", "+1", "0.084"), ("voice.inbound", "+1", "0"), ("api.lookups", "*", "0"),
    }  # fmt: skip
    # 0.106 - 4 x 0.014 = 0.05 are left, and 0.056 more would have been paid
    assert found["run_out"] == [{"account_id": "poor", "currency": "USD", "available": "0.05", "difference": "0.056"}]
    assert found["notes"] == []
    assert await contents(database) == before
    read = await tollbook("simulate", "--book", file, "--in-place-of", "list", *RANGE)
    assert "accounts that would run out of money: 1" in read.out
    assert "12.1765" in read.out


async def test_of_one_account_or_group_and_before_all_books(usage: Usage, tollbook: Tollbook, tmp_path: Path) -> None:
    file = draft(tmp_path, "voice.outbound,1,0.0070,USD,60,60")
    for choice in (("--account", "poor"), ("--group", "g-poor")):
        ran = await tollbook("simulate", "--book", file, *RANGE, *choice, "-o", "json")
        (total,) = ran.json["total"]
        assert (total["charges"], total["now"], total["then"], total["difference"]) == (4, "0.056", "0.028", "-0.028")
        assert ran.json["run_out"] == []
    whole = (await tollbook("simulate", "--book", file, *RANGE, "-o", "json")).json
    # inbound legs still find their price in the next book
    assert whole["total"][0]["unpriced"] == 0
    assert whole["total"][0]["difference"] == "-0.042"


async def test_what_the_draft_has_no_price_for_is_told_apart(usage: Usage, tollbook: Tollbook, tmp_path: Path) -> None:
    file = draft(tmp_path, "voice.outbound,1,0.0140,USD,60,60")
    found = (await tollbook("simulate", "--book", file, "--in-place-of", "list", *RANGE, "-o", "json")).json
    (total,) = found["total"]
    assert (total["unpriced"], total["unpriced_now"], total["difference"]) == (1, "0.0085", "-0.0085")
    assert "quarantined" in found["notes"][0]


async def test_a_charge_of_a_book_that_was_taken_away_since_keeps_its_amount(
    usage: Usage, tollbook: Tollbook, tmp_path: Path
) -> None:
    promo = b"product,prefix,price_per_minute,currency\nvoice.outbound,49,0.05,USD\n"
    await api.import_prices(usage.engine, "promo", read_price_file(promo), LONG_AGO)
    usage.send.account("promoted", pricing_model="promo")
    await usage.take(leg("promoted", NOW, "promoted", called="+4930123456", billable_s=60))
    usage.send.account("promoted")
    await usage.rooms.pump()
    file = draft(tmp_path, "voice.outbound,1,0.0070,USD,60,60")
    for choice in ((), ("--in-place-of", "list")):
        ran = await tollbook("simulate", "--book", file, *choice, *RANGE, "--account", "promoted", "-o", "json")
        (total,) = ran.json["total"]
        assert (total["now"], total["then"], total["unpriced"]) == ("0.05", "0.05", 0)


def test_a_draft_decides_also_over_a_charge_that_it_makes_impossible() -> None:
    drafted, listed = (
        Price(book, 1, "USD", "voice.inbound.toll_free", "+1", 10, 0, 60, 60) for book in (DRAFT, "list")
    )
    draft = Draft(PriceBook(DRAFT, []))
    number = ("voice.inbound.toll_free", "+18778874413")
    for price, is_drafted in ((drafted, True), (listed, False)):
        beside = NoPrice(*number, tiers_of=price.book_id, tiers_beside="other")
        surcharge = NoPrice(*number, tiers_of="other", tiers_beside=price.book_id)
        for outcome in (WrongCurrency(price, "EUR"), WrongUnit(price, "gb"), TooLarge(price, 1), beside, surcharge):
            assert draft.decides(outcome) is is_drafted
    assert not draft.decides(NoPrice(*number))


@pytest.mark.parametrize(("form", "then"), [("graduated", "11.6"), ("volume", "9.6")])
async def test_prices_by_tiers_are_costed_by_the_months_sum(
    usage: Usage, tollbook: Tollbook, tmp_path: Path, form: str, then: str
) -> None:
    """1,200 lookups of one month: 1,000 at 0.01 and 200 at 0.008, or all at 0.008."""
    file = tmp_path / "draft.json"
    document = {
        "currency": "USD",
        "schedules": [
            {"id": "s", "form": form, "per": 1, "bands": [{"up_to": 1000, "price": "0.01"}, {"price": "0.008"}]}
        ],
        "prices": [{"product": "api.lookups", "unit": "request", "schedule": "s"}],
    }
    file.write_text(json.dumps(document))
    assert read_price_document(file.read_bytes()).refused == ()
    found = (await tollbook("simulate", "--book", str(file), *RANGE, "-o", "json")).json
    (total,) = found["total"]
    assert total["then"] == {"graduated": "11.6925", "volume": "9.6925"}[form]
    assert {r["account_id"]: r["then"] for r in found["by_account"]}["lookups"] == then
    assert "tiers" in found["notes"][0]


async def test_a_rental_is_shared_out_by_the_days_of_the_month_that_was_paid_for(
    usage: Usage, tollbook: Tollbook
) -> None:
    """It may stand in another month: of a group whose zone is another one than when the fee fell due."""
    rows = b"product,prefix,price,currency\nnumber.rental,1,1.00,USD\n"
    await api.import_prices(usage.engine, "numbers", read_price_file(rows), LONG_AGO, is_default=True)
    fees = [
        {
            "account_id": "lookups", "number": "+13135550177", "month": month, "days": 3,
            "starts_at": f"{NOW:%Y-%m-%dT%H:%M:%SZ}",
        }
        for month in ("2027-02", "2027-04", "2027-05")
    ]  # fmt: skip
    await usage.take(*(lookup(fee["month"], 1) | {"type": RENTAL, "data": fee} for fee in fees))
    ran = await tollbook("simulate", "--book", "numbers", "--in-place-of", "numbers", *RANGE, "-o", "json")
    (line,) = (row for row in ran.json["by_destination"] if row["product"] == "number.rental")
    assert line["now"] == line["then"] == "0.303917051"  # 3/28 + 3/30 + 3/31


async def test_what_was_taken_back_or_amended_counts_as_it_stands(
    usage: Usage, tollbook: Tollbook, tmp_path: Path
) -> None:
    await usage.take(leg("p0", NOW, "poor", billable_s=100, duration_s=100) | {"revision": 1})  # two minutes now
    file = draft(tmp_path, "voice.outbound,1,0.0280,USD,60,60")
    found = (await tollbook("simulate", "--book", file, *RANGE, "--account", "poor", "-o", "json")).json
    (total,) = found["total"]
    assert (total["charges"], total["now"], total["then"]) == (4, "0.07", "0.14")


async def test_a_loaded_book_can_be_the_draft_and_what_is_not_there_is_named(
    usage: Usage, tollbook: Tollbook, tmp_path: Path
) -> None:
    prices = b"product,prefix,price_per_minute,currency\nvoice.outbound,1,0.02,USD\n"
    await api.import_prices(usage.engine, "next", read_price_file(prices), LONG_AGO)
    found = (await tollbook("simulate", "--book", "next", *RANGE, "--account", "poor", "-o", "json")).json
    assert found["total"][0]["then"] == "0.08"
    for arguments, sentence in (
        (("--book", "nothing"), "book: there is no price book nothing; `tollbook price list` names them"),
        (("--book", "nothing.csv"), "book: there is no file nothing.csv"),
        (("--book", "next", "--in-place-of", "other"), "in_place_of: there is no price book other"),
        (("--book", "next", "--account", "nobody"), "account: there is no account nobody"),
    ):
        ran = await tollbook("simulate", *arguments, *RANGE)
        assert ran.code in (1, 2)
        assert sentence in ran.err
    ran = await tollbook("simulate", "--book", "next", "--from", "2026-10-02", "--to", "2026-10-02")
    assert (ran.code, ran.err) == (2, "to: must be after --from\n")
