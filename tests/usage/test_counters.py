"""Prices by tiers in the room: schedules in a price book, counters, and the charges that say how they moved."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from pydantic import TypeAdapter
from sqlalchemy import event as sql_events
from sqlalchemy import select, update

from contracts.usage import PRODUCT, RENTAL, Charge
from services.kernel.errors import InvalidInput
from services.kernel.money import NANO, format_nano, parse_amount
from services.kernel.period import period_of
from services.runtime.database import transaction
from services.usage import api
from services.usage.books import PriceRow
from services.usage.consumer import build
from services.usage.price_files import PriceFile
from services.usage.tables import COUNTER
from services.usage.tiers import Band, Form, Schedule
from tests.support.rooms import Log, Rooms
from tests.support.servers import Database
from tests.support.usage_registry import LONG_AGO, SOURCE, leg
from tests.support.usage_room import Usage

NOW = datetime.now(UTC).replace(microsecond=0)
MONTH = period_of(NOW).name
CENT = 10**7
WAITING = """
select count(*) from pg_locks join pg_stat_activity using (pid) where not granted and datname = current_database()
"""
BANDS = (Band(1_000, CENT), Band(None, 8 * 10**6))


def book(form: Form = "graduated", bands: Sequence[Band] = BANDS, *, per: int = 1) -> PriceFile:
    """Lookups and calls to +44 by one schedule, calls to +1 at a price of their own."""
    rows = (
        PriceRow("api.lookups", "*", 0, 0, 0, 1, per, "request", schedule="s"),
        PriceRow("voice.outbound", "+44", 0, 0, 60, 6, per, schedule="s"),
        PriceRow("voice.outbound", "+1", 14 * 10**6),
        PriceRow("number.rental", "*", 0, 0, 0, 1, per, "day", schedule="s"),
    )
    return PriceFile("USD", rows, (), schedules=(Schedule("s", form, per, tuple(bands)),))


def lookups(event_id: str, quantity: int, at: datetime = NOW, account: str = "sales", **changes: Any) -> dict[str, Any]:
    data = {"account_id": account, "product": "api.lookups", "quantity": quantity, "unit": "request"}
    data |= {"used_at": f"{at:%Y-%m-%dT%H:%M:%SZ}"} | changes
    return {"specversion": "1.0", "id": event_id, "source": SOURCE, "type": PRODUCT, "data": data}


@pytest.fixture
async def usage(database: Database) -> AsyncIterator[Usage]:
    log = Log()
    async with Rooms(log, database, [build()]) as rooms:
        started = Usage(log, rooms)
        started.send.publisher()
        started.send.account("sales")
        await rooms.pump()
        yield started


async def import_book(usage: Usage, prices: PriceFile, start: datetime = LONG_AGO) -> None:
    await api.import_prices(usage.engine, "list", prices, start, is_default=True)


async def counters(usage: Usage) -> dict[tuple[str, str, str, str, bool, str], int]:
    columns = [column for column in COUNTER.columns if column.name != "quantity"]
    rows = await usage.rooms.query("usage", select(*columns, COUNTER.c.quantity))
    return {tuple(row[:-1]): row[-1] for row in rows}


def shares(usage: Usage) -> list[tuple[str, str, int, int]]:
    return [(c["event_id"], c["amount"], c["tier"]["before"], c["tier"]["after"]) for c in usage.charges]


# ---- charges and counters --------------------------------------------------------------------------------------------


async def test_each_event_is_charged_what_it_moves_and_a_negative_share_is_an_adjustment(usage: Usage) -> None:
    await import_book(usage, book("volume"))
    for number, quantity in enumerate((900, 200, 300)):
        await usage.take(lookups(f"e{number}", quantity))
    assert shares(usage) == [("e0", "9", 0, 900), ("e1", "-0.2", 900, 1_100), ("e2", "2.4", 1_100, 1_400)]
    for charge in usage.charges:
        TypeAdapter(Charge).validate_python(charge)
    assert [charge.get("kind") for charge in usage.charges] == [None, "tier_adjustment", None]
    assert {(c["unit_price"], c["per"], c["tier"]["schedule"], c["tier"]["form"]) for c in usage.charges} == {
        (None, 1, "list/1/s", "volume")
    }
    assert await counters(usage) == {("sales", "g-sales", MONTH, "api.lookups", True, "list/1/s"): 1_400}


async def test_of_one_batch_the_earlier_event_comes_first_then_publisher_source_and_id(usage: Usage) -> None:
    await import_book(usage, book())
    late = NOW - timedelta(seconds=1)
    await usage.take(lookups("b", 200), lookups("a", 300), lookups("c", 900, late), lookups("a", 300))
    assert sorted(shares(usage)) == [("a", "2.6", 900, 1_200), ("b", "1.6", 1_200, 1_400), ("c", "9", 0, 900)]
    assert await usage.classes() == {"rated": 3, "duplicate": 1}


async def test_a_share_is_explained_to_the_last_digit(usage: Usage) -> None:
    await import_book(usage, book("volume", (Band(5_000, 0), Band(None, 3 * NANO, NANO)), per=7_000))
    await usage.take(lookups("e0", 4_000))
    await usage.take(lookups("e1", 2_001))
    explained = await api.charge(usage.engine, UUID(usage.charges[1]["charge_id"]))
    assert explained.steps == (
        "prefix * of book list, version 1 (api.lookups): schedule s, volume, prices for 7000 request:"
        " up to 5000 at 0; above at 3, fee 1, 0/1 requests",
        "used 2001 request; at least 0 request, then steps of 1 request: billed 2001 request",
        "the month's counter stood at 4000 request, and with these 2001 at 6001",
        "4000 request cost 4000 x 0 / 7000 = 0",
        "6001 request cost 6001 x 3 / 7000 + fee 1 = 3.571857142857…, rounded half-even to 9 decimals: 3.571857143",
        "3.571857143 - 0 = 3.571857143 USD",
    )
    assert usage.charges[1]["amount"] == "3.571857143"
    assert usage.charges[0]["amount"] == "0"  # an included quantity is rated, at zero


async def test_increments_are_applied_before_the_quantity_enters_the_counter(usage: Usage) -> None:
    await import_book(usage, book())
    for number in range(3):
        await usage.take(leg(f"e{number}", NOW, called="+442079460000", billable_s=61))
    assert shares(usage) == [("e0", "0.66", 0, 66), ("e1", "0.66", 66, 132), ("e2", "0.66", 132, 198)]


async def test_rentals_share_a_months_price_by_its_days(usage: Usage) -> None:
    await import_book(usage, book(bands=(Band(30, NANO), Band(None, 5 * 10**8))))
    rent = {
        "account_id": "sales", "number": "+12484329407", "month": MONTH, "days": 20, "starts_at": f"{NOW:%Y-%m-%dT%H:%M:%SZ}",
    }  # fmt: skip
    for number in range(2):
        event = {"specversion": "1.0", "id": f"e{number}", "source": SOURCE, "type": RENTAL, "data": rent}
        await usage.take(event)
    days = usage.charges[0]["per"]
    total = sum(parse_amount(charge["amount"]) for charge in usage.charges)
    assert days >= 28
    assert format_nano(total) == {28: "1.25", 29: "1.206896552", 30: "1.166666667", 31: "1.129032258"}[days]


async def test_who_pays_and_when_and_the_version_of_the_book_each_have_a_counter(usage: Usage) -> None:
    """A trial has no group, prepaid and postpaid use pay from two purses, and a month is that of the group's zone."""
    await import_book(usage, book())
    hour = period_of(NOW).start
    before = hour - timedelta(seconds=1)
    usage.send.account("try", plan="trial")
    usage.send.account("east", zone="Europe/Paris")
    usage.send.account(
        "moves", groups=[(LONG_AGO, hour, "g1"), (hour, None, "g2")], plans=[(LONG_AGO, hour, "invoiced"), (hour, None, "payg")]
    )  # fmt: skip
    await usage.rooms.pump()
    usage.log.write("usage.events.lakeside", value=lookups("t", 1, before, "try"), partition=0, at=hour)
    for event_id, at, account in (
        ("m1", before, "moves"), ("m2", hour, "moves"), ("m3", hour, "moves"), ("z", before, "east"), ("z2", hour, "east"),
    ):  # fmt: skip
        usage.log.write("usage.events.lakeside", value=lookups(event_id, 1, at, account), partition=0, at=hour)
    await usage.rooms.pump()
    await import_book(usage, book(), hour)
    await usage.take(lookups("new version", 5))
    last = period_of(before).name
    assert await counters(usage) == {
        ("try", "", last, "api.lookups", True, "list/1/s"): 1,
        ("moves", "g1", last, "api.lookups", False, "list/1/s"): 1,
        ("moves", "g2", MONTH, "api.lookups", True, "list/1/s"): 2,
        ("east", "g-east", MONTH, "api.lookups", True, "list/1/s"): 2,
        ("sales", "g-sales", MONTH, "api.lookups", True, "list/2/s"): 5,
    }


async def test_two_products_of_one_schedule_have_two_counters(usage: Usage) -> None:
    await import_book(usage, book(bands=(Band(100, 0), Band(None, CENT))))
    await usage.take(lookups("e1", 100), leg("e2", NOW, called="+442079460000", billable_s=100))
    assert sorted(shares(usage)) == [("e1", "0", 0, 100), ("e2", "0.02", 0, 102)]


@pytest.mark.parametrize("start", [0, 11])
async def test_what_might_cost_more_than_a_charge_may_is_refused_wherever_the_counter_stands(
    usage: Usage, start: int
) -> None:
    await import_book(usage, book(bands=(Band(10**9, 0), Band(None, CENT))))
    await usage.take(*(lookups(f"e0.{number}", 10**8 - 1) for number in range(start)))
    await usage.take(lookups("e1", 10**8 + 1), lookups("e2", 10**8 - 1))
    assert [rejection["event_id"] for rejection in usage.rejections] == ["e1"]
    assert usage.rejections[0]["field"] == "data.quantity"
    assert usage.charges[-1]["amount"] == ("999999.99" if start else "0")


async def test_a_counter_may_hold_more_than_a_bigint_does(usage: Usage) -> None:
    await import_book(usage, book("volume", (Band(10**18, 1), Band(None, 2)), per=10**9))
    await usage.take(lookups("e0", 10**15))
    async with transaction(usage.engine) as connection:  # as if thousands of such uses had come
        await connection.execute(update(COUNTER).values(quantity=2**63))
    await usage.take(lookups("e1", 10**15))
    assert usage.rejections == []
    assert list((await counters(usage)).values()) == [2**63 + 10**15]
    charge = usage.charges[1]
    assert (charge["amount"], charge["tier"]["after"]) == ("0.002", 2**63 + 10**15)
    explained = await api.charge(usage.engine, UUID(charge["charge_id"]))
    assert explained.charge["counted_after"] == 2**63 + 10**15
    assert explained.steps[-1].endswith(" = 0.002 USD")


# ---- what it costs ---------------------------------------------------------------------------------------------------


async def test_a_batch_without_tiers_has_no_statement_more_and_one_with_them_one(usage: Usage) -> None:
    await import_book(usage, book())
    statements: list[str] = []
    sql_events.listen(
        usage.engine.sync_engine, "before_cursor_execute", lambda *args: statements.append(args[2]), named=False
    )

    async def spent(*events: dict[str, Any]) -> list[str]:
        for each in events:
            usage.send.leg(each)
        source = usage.processor.room.input("events")
        statements.clear()
        await usage.rooms.feed(usage.processor, source)
        return [each for each in statements if "counter" in each or "insert" in each.lower()]

    await spent(leg("warm", NOW), lookups("warm too", 1))
    flat = await spent(leg("a", NOW), leg("b", NOW))
    tiered = await spent(leg("c", NOW), lookups("d", 1), lookups("e", 1), leg("f", NOW, called="+442079460000"))
    assert [each for each in flat if "usage.counter" in each] == []
    assert len([each for each in tiered if "usage.counter" in each]) == 1
    assert len(tiered) == len(flat) + 1


async def test_workers_that_move_the_same_counters_at_once_lose_nothing_and_never_wait_in_a_circle(
    usage: Usage, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten accounts in both batches, in opposite orders; a third transaction keeps both in the middle of it for a while."""
    await import_book(usage, book("volume"))
    accounts = [f"a{number}" for number in range(10)]
    for account in accounts:
        usage.send.account(account)
    await usage.rooms.pump()
    async with Rooms(usage.log, database, [build()]) as other:
        workers = (usage.rooms.processors["usage"], other.processors["usage"])

        async def batches(turn: int) -> None:
            """Each worker reads a partition of its own."""
            for partition, order in enumerate((accounts, accounts[::-1])):
                for account in order:
                    event_id, at = f"{turn}/{partition}/{account}", NOW - timedelta(seconds=partition)
                    usage.send.leg(lookups(event_id, 400, at, account), partition=partition)
            await asyncio.gather(
                *(usage.rooms.feed(each, each.room.input("events"), partition=n) for n, each in enumerate(workers))
            )

        await batches(0)
        async with transaction(usage.engine) as connection:
            await connection.execute(select(COUNTER).where(COUNTER.c.account_id == "a5").with_for_update())
            running = asyncio.create_task(batches(1))
            async with database.connected() as looking:
                for _ in range(500):
                    if await looking.fetchval(WAITING) == 2:
                        break
                    await asyncio.sleep(0.02)
                else:
                    pytest.fail("the two workers do not wait")
        await running
        await batches(2)
        await usage.rooms.pump()
    assert "tries a batch again" not in caplog.text
    assert {key[0]: quantity for key, quantity in (await counters(usage)).items()} == dict.fromkeys(accounts, 2_400)
    steps = sorted((c["account_id"], c["tier"]["before"], c["tier"]["after"]) for c in usage.charges)
    assert steps == [(account, 400 * n, 400 * n + 400) for account in accounts for n in range(6)]


# ---- schedules in a book ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "schedules", "field"),
    [
        ((PriceRow("api.x", "*", 0, 0, 0, 1, 1, "request", schedule="t"),), (Schedule("s", "volume", 1, BANDS),), "schedule"),
        ((PriceRow("api.x", "*", 5, 0, 0, 1, 1, "request", schedule="s"),), (Schedule("s", "volume", 1, BANDS),), "schedule"),
        ((PriceRow("api.x", "*", 0, 5, 0, 1, 1, "request", schedule="s"),), (Schedule("s", "volume", 1, BANDS),), "schedule"),
        ((PriceRow("api.x", "*", 0, 0, 0, 1, 2, "request", schedule="s"),), (Schedule("s", "volume", 1, BANDS),), "schedule"),
        ((PriceRow("api.x", "*", 5, 0, 0, 1, 1, "request"),), (Schedule("s", "volume", 1, BANDS),) * 2, "schedules"),
    ],
)  # fmt: skip
async def test_a_version_whose_rows_and_schedules_do_not_fit_is_refused(
    usage: Usage, rows: tuple[PriceRow, ...], schedules: tuple[Schedule, ...], field: str
) -> None:
    """The last one would be two of one name."""
    copies = tuple(Schedule(each.schedule_id, each.form, each.per, each.bands) for each in schedules)
    with pytest.raises(InvalidInput) as refused:
        await import_book(usage, PriceFile("USD", rows, (), schedules=copies))
    assert refused.value.field == field
    assert await api.books(usage.engine) == []
