"""What a call will cost before it starts, and the most that a minute may cost."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from sqlalchemy import event, select

from services.kernel.errors import InvalidInput, NotFound, Refused
from services.usage import api
from services.usage.memory import Memory
from services.usage.price_documents import read_price_document
from services.usage.price_files import read_price_file
from services.usage.tables import MAXIMUM_PRICE
from tests.support.servers import Database
from tests.support.usage_registry import LONG_AGO, leg
from tests.support.usage_room import Usage

NUMBER = "+12485550101"
CENT = 10_000_000
NOW = datetime.now(UTC).replace(microsecond=0)


async def test_a_quote_says_what_the_call_will_be_charged_by(usage: Usage) -> None:
    quote = await api.quote(usage.engine, "sales", NUMBER)
    assert (quote.product, quote.matched, quote.price_nano, quote.currency) == (
        "voice.outbound", "+1", 14_000_000, "USD",
    )  # fmt: skip
    assert (quote.minimum_s, quote.increment_s, quote.connection_fee_nano) == (60, 60, 0)
    await usage.take(leg("e1", NOW, called=NUMBER))
    (charge,) = usage.charges
    assert (quote.book_id, quote.book_version) == (charge["book_id"], charge["book_version"])
    assert (charge["unit_price"], charge["matched"], charge["product"]) == ("0.014", quote.matched, quote.product)
    inbound = await api.quote(usage.engine, "sales", NUMBER, direction="inbound")
    assert (inbound.product, inbound.price_nano, inbound.minimum_s) == ("voice.inbound", 8_500_000, 1)


async def test_a_price_of_another_time_is_asked_by_the_minute_and_by_tiers_it_is_the_dearest(usage: Usage) -> None:
    file = b"product,prefix,price,currency,per,minimum,increment,fee\nvoice.outbound,44,0.001,USD,7,1,1,0.02\n"
    await api.import_prices(usage.engine, "second", read_price_file(file), LONG_AGO, is_default=True)
    quote = await api.quote(usage.engine, "sales", "+442079460000")
    assert (quote.price_nano, quote.connection_fee_nano, quote.by_tiers) == (8_571_429, 20_000_000, False)
    tiers = b"""{"currency": "USD",
      "schedules": [{"id": "voice", "form": "graduated", "per": 60,
                     "bands": [{"up_to": 6000, "price": "0.01"}, {"up_to": null, "price": "0.03"}]}],
      "prices": [{"product": "voice.outbound", "prefix": "49", "schedule": "voice", "minimum": 1, "increment": 1}]}"""
    await api.import_prices(usage.engine, "tiers", read_price_document(tiers), LONG_AGO, is_default=True)
    quote = await api.quote(usage.engine, "sales", "+4930123456")
    assert (quote.price_nano, quote.by_tiers) == (3 * CENT, True)


async def test_a_surcharge_for_the_caller_is_part_of_the_price(usage: Usage) -> None:
    file = b"""product,prefix,price,currency,minimum,increment,fee
voice.toll_free,1877,0.022,USD,1,1,
voice.toll_free.surcharge,1248,0.05,USD,60,60,0.01
"""
    await api.import_prices(usage.engine, "toll-free", read_price_file(file), LONG_AGO, is_default=True)
    found = [
        await api.quote(usage.engine, "sales", "+18778874413", direction="inbound", caller=caller)
        for caller in (None, NUMBER)
    ]
    assert [(quote.price_nano, quote.connection_fee_nano) for quote in found] == [(22_000_000, 0), (72_000_000, CENT)]


@pytest.mark.parametrize(
    ("account", "called", "more", "error", "field", "code"),
    [
        ("nobody", NUMBER, {}, NotFound, "account_id", "unknown_account"),
        ("sales", "2485550101", {}, InvalidInput, "called", "invalid"),
        ("sales", NUMBER, {"caller": "anonymous"}, InvalidInput, "caller", "invalid"),
        ("sales", NUMBER, {"direction": "inbound", "profile": "dialer"}, InvalidInput, "outbound_profile", "invalid"),
        ("sales", "+33123456789", {}, NotFound, "called", "no_price"),
        ("sales", NUMBER, {"at": LONG_AGO - timedelta(days=1)}, Refused, "account_id", "account_closed"),
        ("euro", NUMBER, {}, Refused, "account_id", "wrong_currency"),
    ],
)  # fmt: skip
async def test_what_cannot_be_quoted_is_named(
    usage: Usage, account: str, called: str, more: dict[str, object], error: type[Exception], field: str, code: str
) -> None:
    usage.send.account("euro", currency="EUR", plan="trial")
    await usage.rooms.pump()
    with pytest.raises(error) as refused:
        await api.quote(usage.engine, account, called, **more)  # type: ignore[arg-type]
    assert (refused.value.field, refused.value.code) == (field, code)  # type: ignore[attr-defined]


async def test_the_lower_of_the_accounts_and_the_profiles_maximum_holds(usage: Usage) -> None:
    async def maximum(profile: str | None) -> tuple[int | None, str | None]:
        quote = await api.quote(usage.engine, "sales", NUMBER, profile=profile)
        return quote.maximum_nano, quote.maximum_profile

    assert await maximum("dialer") == (None, None)
    await api.set_maximum_price(usage.engine, "sales", "0.05", "ann", profile="dialer")
    assert (await maximum("dialer"), await maximum("other"), await maximum(None)) == (
        (5 * CENT, "dialer"), (None, None), (None, None),
    )  # fmt: skip
    await api.set_maximum_price(usage.engine, "sales", "0.02", "bob")
    assert (await maximum("dialer"), await maximum("other")) == ((2 * CENT, None), (2 * CENT, None))
    await api.set_maximum_price(usage.engine, "sales", "0.01", "ann", profile="dialer")
    assert await maximum("dialer") == (CENT, "dialer")
    await api.set_maximum_price(usage.engine, "sales", None, "ann", profile="dialer")
    assert await maximum("dialer") == (2 * CENT, None)
    (row,) = await api.maximum_prices(usage.engine, "sales")
    assert (row.outbound_profile, row.price, row.currency, row.set_by) == (None, "0.02", "USD", "bob")


async def test_every_word_on_a_maximum_is_kept_and_a_wrong_one_is_refused_by_field(
    usage: Usage, database: Database
) -> None:
    for price in ("0.05", "0.04", None):
        await api.set_maximum_price(usage.engine, "sales", price, "ann")
    rows = await usage.rooms.query("usage", select(MAXIMUM_PRICE).order_by(MAXIMUM_PRICE.c.id))
    assert [(row.price_nano, row.set_by) for row in rows] == [(5 * CENT, "ann"), (4 * CENT, "ann"), (None, "ann")]
    async with database.connected("usage") as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("update usage.maximum_price set price_nano = 0")
    for account, price, profile, field in (
        ("nobody", "1", None, "account_id"),
        ("sales", "-1", None, "max_price"),
        ("sales", "1000000.000000001", None, "max_price"),
        ("sales", "1", "no name", "outbound_profile"),
    ):
        with pytest.raises((InvalidInput, NotFound)) as refused:
            await api.set_maximum_price(usage.engine, account, price, "ann", profile=profile)
        assert refused.value.field == field


async def test_one_who_asks_often_looks_it_up_in_memory_and_sees_every_change(usage: Usage) -> None:
    memory = Memory()
    await api.quote(usage.engine, "sales", NUMBER, memory=memory)
    seen: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        seen.append(statement)

    event.listen(usage.engine.sync_engine, "before_cursor_execute", note)
    try:
        await api.quote(usage.engine, "sales", NUMBER, memory=memory, at=NOW)
    finally:
        event.remove(usage.engine.sync_engine, "before_cursor_execute", note)
    assert len(seen) == 1
    await api.set_maximum_price(usage.engine, "sales", "0.05", "ann")
    file = read_price_file(b"product,prefix,price_per_minute,currency\nvoice.outbound,1,0.06,USD\n")
    await api.import_prices(usage.engine, "list", file, LONG_AGO)
    quote = await api.quote(usage.engine, "sales", NUMBER, memory=memory)
    assert (quote.price_nano, quote.maximum_nano, quote.book_version) == (6 * CENT, 5 * CENT, 2)
