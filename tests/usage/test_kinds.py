"""Every kind of use: messages, data, rentals and products of the publisher's own, from the event to the charge."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any
from uuid import UUID

import pytest
from pydantic import TypeAdapter
from sqlalchemy import select

from contracts.usage import DATA, MESSAGE, PRODUCT, RENTAL, Charge
from services.kernel.errors import InvalidInput
from services.usage import api
from services.usage.books import BookVersion, PriceBook, PriceRow
from services.usage.events import EventRefused, decode
from services.usage.price_files import read_price_file
from services.usage.tables import CHARGE
from tests.support.usage_registry import LONG_AGO, SOURCE, leg
from tests.support.usage_room import Usage

NOW = datetime.now(UTC).replace(microsecond=0)
AT = f"{NOW:%Y-%m-%dT%H:%M:%SZ}"
PRICES = b"""product,prefix,price,currency,per,minimum,increment,fee,unit,bill_on
message.sms.outbound,1,0.0075,USD,,,,,,
message.sms.outbound,44,0.04,USD,,,,0.001,,delivered
message.sms.inbound,*,0,USD,,,,,,
message.mms.outbound,1,0.02,USD,,,,,,accepted
data,*,0.01,USD,1000000,1000000,1000000,,,
data,310,0.005,USD,1000000,1000000,1000000,,,
number.rental,1,1.00,USD,,,,,,
api.lookups,,0.40,USD,1000,,,,request,
"""

SMS: dict[str, Any] = {
    "account_id": "sales", "direction": "outbound", "channel": "sms", "sender": "Lakeside", "recipient": "+12485550101",
    "segments": 3, "outcome": "accepted", "sent_at": AT,
}  # fmt: skip
BYTES: dict[str, Any] = {
    "account_id": "sales",
    "bytes": 1_000_001,
    "started_at": AT,
    "ended_at": AT,
    "network": "20801",
}
RENT: dict[str, Any] = {
    "account_id": "sales", "number": "+12484329407", "month": f"{NOW:%Y-%m}", "days": 1, "starts_at": AT,
}  # fmt: skip
LOOKUPS: dict[str, Any] = {
    "account_id": "sales", "product": "api.lookups", "quantity": 2_500, "unit": "request", "used_at": AT,
}  # fmt: skip


def event(kind: str, data: dict[str, Any], event_id: str = "e1", **changes: Any) -> dict[str, Any]:
    return {"specversion": "1.0", "id": event_id, "source": SOURCE, "type": kind, "data": data | changes}


@pytest.fixture
async def usage(usage: Usage) -> Usage:
    since = datetime(2020, 1, 1, tzinfo=UTC)
    await api.import_prices(usage.engine, "services", read_price_file(PRICES), since, is_default=True)
    return usage


# ---- what an event may say -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "data", "changes", "field"),
    [
        (MESSAGE, SMS, {"segments": 0}, "data.segments"),
        (MESSAGE, SMS, {"segments": 256}, "data.segments"),
        (MESSAGE, SMS, {"segments": 1.0}, "data.segments"),
        (MESSAGE, SMS, {"outcome": "lost"}, "data.outcome"),
        (MESSAGE, SMS, {"recipient": "12"}, "data.recipient"),
        (MESSAGE, SMS, {"sender": "a\nb"}, "data.sender"),
        (MESSAGE, SMS, {"called": "+12485550101"}, "data.called"),
        (MESSAGE, SMS, {"sent_at": "2026-02-30T00:00:00Z"}, "data.sent_at"),
        (DATA, BYTES, {"bytes": -1}, "data.bytes"),
        (DATA, BYTES, {"bytes": 2**50 + 1}, "data.bytes"),
        (DATA, BYTES, {"network": "2080"}, "data.network"),
        (DATA, BYTES, {"started_at": "2099-01-01T00:00:00Z"}, "data.ended_at"),
        (RENTAL, RENT, {"days": 0}, "data.days"),
        (RENTAL, RENT, {"month": "2027-02", "days": 29}, "data.days"),
        (RENTAL, RENT, {"month": "2026-13"}, "data.month"),
        (RENTAL, RENT, {"month": "0000-01"}, "data.month"),
        (PRODUCT, LOOKUPS, {"product": "voice.outbound"}, "data.product"),
        (PRODUCT, LOOKUPS, {"product": "data"}, "data.product"),
        (PRODUCT, LOOKUPS, {"quantity": "2500"}, "data.quantity"),
        (PRODUCT, LOOKUPS, {"unit": ""}, "data.unit"),
    ],
)
def test_what_an_event_may_not_say_is_refused_by_its_field(
    kind: str, data: dict[str, Any], changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(EventRefused) as refused:
        decode(json.dumps(event(kind, data, **changes)).encode())
    assert (refused.value.reason, refused.value.field) == ("invalid_event", field)


@pytest.mark.parametrize("kind", ["tollbook.usage.fax.v1", "", 5, None])
def test_a_type_that_is_none_names_the_types_there_are(kind: Any) -> None:
    with pytest.raises(EventRefused) as refused:
        decode(json.dumps(event(kind, SMS)).encode())
    assert refused.value.field == "type"
    if isinstance(kind, str):
        assert "tollbook.usage.message.v1" in refused.value.message


def test_data_is_a_name_of_its_own_and_database_is_not() -> None:
    assert decode(json.dumps(event(PRODUCT, LOOKUPS, product="database")).encode()).use.product == "database"


def test_the_kind_is_content_and_null_is_the_same_as_absent() -> None:
    def content(kind: str, data: dict[str, Any], **changes: Any) -> bytes:
        return decode(json.dumps(event(kind, data, **changes)).encode()).content

    assert content(MESSAGE, SMS) == content(MESSAGE, SMS, message_id=None, sent_at=AT.replace("Z", ".000Z"))
    assert content(MESSAGE, SMS) != content(MESSAGE, SMS, segments=2)
    assert content(PRODUCT, LOOKUPS) != content(PRODUCT, LOOKUPS, unit="requests")


# ---- what it costs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "data", "changes", "billed", "amount"),
    [
        (MESSAGE, SMS, {}, ("message.sms.outbound", "segment", 3, 1), "0.0225"),
        (MESSAGE, SMS, {"outcome": "undelivered"}, ("message.sms.outbound", "segment", 3, 1), "0.0225"),
        (MESSAGE, SMS, {"recipient": "+447400123456", "outcome": "delivered"}, ("message.sms.outbound", "segment", 3, 1), "0.121"),
        (MESSAGE, SMS, {"channel": "mms", "segments": 1}, ("message.mms.outbound", "segment", 1, 1), "0.02"),
        (MESSAGE, SMS, {"direction": "inbound", "recipient": "72345"}, ("message.sms.inbound", "segment", 3, 1), "0"),
        (DATA, BYTES, {}, ("data", "byte", 2_000_000, 1_000_000), "0.02"),
        (DATA, BYTES, {"network": "310260", "bytes": 1}, ("data", "byte", 1_000_000, 1_000_000), "0.005"),
        (DATA, BYTES, {"network": None}, ("data", "byte", 2_000_000, 1_000_000), "0.02"),
        (PRODUCT, LOOKUPS, {}, ("api.lookups", "request", 2_500, 1_000), "1"),
    ],
)  # fmt: skip
async def test_each_kind_costs_its_units_at_the_price_of_its_product(
    usage: Usage, kind: str, data: dict[str, Any], changes: dict[str, Any], billed: tuple[Any, ...], amount: str
) -> None:
    await usage.take(event(kind, data, **changes))
    (charge,) = usage.charges
    TypeAdapter(Charge).validate_python(charge)
    assert (charge["product"], charge["unit"], charge["quantity"], charge["per"]) == billed
    assert (charge["amount"], charge["duration_s"], charge["event_time"]) == (amount, 0, AT)
    explained = await api.charge(usage.engine, UUID(charge["charge_id"]))
    assert explained.steps[-1] == f"rounded half-even to 9 decimals: {amount} USD"


async def test_a_rental_costs_its_days_share_of_the_months_price(usage: Usage) -> None:
    """One of 30 days of February would be 1/28: the divisor is the month's own length."""
    await usage.take(event(RENTAL, RENT, days=28))
    (charge,) = usage.charges
    days = charge["per"]
    assert days in (28, 29, 30, 31)
    assert charge["amount"] == {28: "1", 29: "0.965517241", 30: "0.933333333", 31: "0.903225806"}[days]
    assert (charge["quantity"], charge["unit"], charge["unit_price"]) == (28, "day", "1")


@pytest.mark.parametrize(
    ("kind", "data", "changes"),
    [
        (MESSAGE, SMS, {"outcome": "rejected"}),
        (MESSAGE, SMS, {"outcome": "rejected", "recipient": "+999123456"}),
        (MESSAGE, SMS, {"recipient": "+447400123456"}),
        (MESSAGE, SMS, {"recipient": "+447400123456", "outcome": "undelivered"}),
        (DATA, BYTES, {"bytes": 0}),
        (PRODUCT, LOOKUPS, {"quantity": 0}),
    ],
)
async def test_what_was_rejected_or_not_used_or_not_delivered_costs_nothing(
    usage: Usage, kind: str, data: dict[str, Any], changes: dict[str, Any]
) -> None:
    await usage.take(event(kind, data, **changes))
    assert (usage.charges, await usage.classes()) == ([], {"not_billable": 1})


@pytest.mark.parametrize(
    ("kind", "data", "changes", "reason", "field"),
    [
        (MESSAGE, SMS, {"recipient": "+33123456789"}, "no_price", "data.recipient"),
        (RENTAL, RENT, {"number": "+4930123456"}, "no_price", "data.number"),
        (PRODUCT, LOOKUPS, {"product": "api.other"}, "no_price", "data.product"),
        (PRODUCT, LOOKUPS, {"unit": "lookup"}, "wrong_unit", "data.unit"),
        (PRODUCT, LOOKUPS, {"quantity": 10**15}, "invalid_event", "data.quantity"),
        (MESSAGE, SMS, {"sent_at": "2020-01-01T00:00:00Z"}, "too_old", "data.sent_at"),
    ],
)
async def test_what_cannot_be_priced_is_quarantined_with_its_field(
    usage: Usage, kind: str, data: dict[str, Any], changes: dict[str, Any], reason: str, field: str
) -> None:
    await usage.take(event(kind, data, **changes))
    (rejection,) = usage.rejections
    assert (rejection["reason"], rejection["field"], usage.charges) == (reason, field, [])


async def test_cost_centers_are_the_profiles_outbound_and_the_numbers_else(usage: Usage) -> None:
    usage.send.resource("profile-1", "sales", "north")
    usage.send.resource("n1", "sales", "south", number=RENT["number"])
    await usage.rooms.pump()
    await usage.take(
        event(MESSAGE, SMS, "out", outbound_profile="profile-1"),
        event(MESSAGE, SMS, "in", direction="inbound", recipient=RENT["number"]),
        event(RENTAL, RENT, "rent"),
        event(DATA, BYTES, "data", subscriber=RENT["number"]),
        event(PRODUCT, LOOKUPS, "none"),
        event(PRODUCT, LOOKUPS, "own", cost_center_id="north"),
    )
    found = {charge["event_id"]: charge["cost_center_id"] for charge in usage.charges}
    assert found == {"out": "north", "in": "south", "rent": "south", "data": "south", "none": None, "own": "north"}


async def test_a_surcharge_stands_in_the_charge_and_its_amount_can_be_computed_from_it(usage: Usage) -> None:
    prices = b"""product,prefix,price,currency,minimum,increment,fee
voice.toll_free,1877,0.022,USD,1,1,
voice.toll_free.surcharge,1248,0.05,USD,60,60,0.01
"""
    await api.import_prices(usage.engine, "toll-free", read_price_file(prices), LONG_AGO, is_default=True)
    await usage.take(
        leg("known", NOW, direction="inbound", caller="+12485550101", called="+18778874413"),
        leg("unknown", NOW, direction="inbound", caller=None, called="+18778874413"),
    )
    known, unknown = usage.charges
    assert known["surcharge"] == {
        "book_id": "toll-free", "book_version": 1, "matched": "+1248", "quantity": 120, "unit_price": "0.05", "per": 60,
        "connection_fee": "0.01", "minimum": 60, "increment": 60,
    }  # fmt: skip
    explained = await api.charge(usage.engine, UUID(known["charge_id"]))
    row = explained.charge
    parts = [known | {"quantity": row["quantity"]}, row["surcharge"]]
    exact = sum(
        Fraction(part["connection_fee"]) + Fraction(part["quantity"]) * Fraction(part["unit_price"]) / part["per"]
        for part in parts
    )
    assert known["amount"] == "0.144833333"
    assert row["amount_nano"] == round(exact * 10**9)
    assert explained.steps[-1] == "rounded half-even to 9 decimals: 0.144833333 USD"
    assert ("surcharge" in unknown, unknown["amount"]) == (False, "0.034833333")
    assert "surcharge" not in " ".join((await api.charge(usage.engine, UUID(unknown["charge_id"]))).steps)


async def test_a_charge_names_the_profile_that_the_use_went_out_by(usage: Usage) -> None:
    await usage.take(
        event(MESSAGE, SMS, "out", outbound_profile="profile-1"),
        event(MESSAGE, SMS, "none"),
        event(MESSAGE, SMS, "in", direction="inbound", recipient=RENT["number"], outbound_profile="profile-1"),
        event(DATA, BYTES, "data"),
    )
    named = {"out": "profile-1", "none": None, "in": None, "data": None}
    assert {charge["event_id"]: charge.get("outbound_profile") for charge in usage.charges} == named
    rows = await usage.rooms.query("usage", select(CHARGE.c.event_id, CHARGE.c.outbound_profile))
    assert {row.event_id: row.outbound_profile for row in rows} == named


# ---- price files by product ------------------------------------------------------------------------------------------


def test_a_file_by_product_prices_every_product() -> None:
    file = read_price_file(PRICES + b"voice.outbound,49,0.01,USD,,30,6,,,\n")
    assert file.refused == ()
    assert file.rows[1] == PriceRow("message.sms.outbound", "+44", 40_000_000, 1_000_000, 0, 1, 1, "segment", True)
    assert file.rows[4] == PriceRow("data", "*", 10_000_000, 0, 10**6, 10**6, 10**6, "byte")
    assert file.rows[6] == PriceRow("number.rental", "+1", 10**9, 0, 0, 1, 1, "day")
    assert file.rows[7] == PriceRow("api.lookups", "*", 400_000_000, 0, 0, 1, 1_000, "request")
    assert file.rows[8] == PriceRow("voice.outbound", "+49", 10_000_000, 0, 30, 6, 60, "second")


def test_a_short_code_is_priced_by_itself_and_never_as_the_beginning_of_a_number_or_of_a_longer_one() -> None:
    file = read_price_file(
        b"product,prefix,price,currency\n"
        b"message.sms.outbound,=44123,5,USD\nmessage.sms.outbound,+44123,0.04,USD\nmessage.sms.outbound,*,0.01,USD\n"
    )
    assert file.refused == ()
    book = PriceBook("sms", [BookVersion("sms", 1, "USD", LONG_AGO, file.rows)])
    found = {
        number: price.prefix
        for number in ("44123", "441234", "4412", "+441234567890", "+4412")
        if (price := book.find("message.sms.outbound", number, NOW)) is not None
    }
    assert found == {"44123": "=44123", "441234": "*", "4412": "*", "+441234567890": "+44123", "+4412": "*"}


def test_digits_that_may_be_a_short_code_or_begin_a_number_are_refused_with_both_ways_to_write_them() -> None:
    header = b"product,prefix,price,currency\n"
    file = read_price_file(header + b"message.sms.outbound,44,1,USD\nmessage.sms.outbound,44123,5,USD\n")
    assert [row.prefix for row in file.rows] == ["+44"]
    assert [str(refused) for refused in file.refused] == [
        "line 3, prefix: may be a short code or begin a number; write =44123 for the short code alone, or +44123 for the"
        " numbers that begin with it"
    ]
    longer = read_price_file(header + b"message.sms.outbound,441234567,1,USD\nvoice.outbound,44123,5,USD\n")
    assert [row.prefix for row in longer.rows] == ["+441234567", "+44123"]


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("voice.sideways,1,0.01,USD,,,,,,", "product"),
        ("fax!,,0.01,USD,,,,,page,", "product"),
        ("message.sms.outbound,,0.01,USD,,,,,,", "prefix"),
        ("message.sms.outbound,=44,0.01,USD,,,,,,", "prefix"),
        ("message.sms.outbound,=+44123,0.01,USD,,,,,,", "prefix"),
        ("voice.outbound,=44123,0.01,USD,,,,,,", "prefix"),
        ("data,+310,0.01,USD,,,,,,", "prefix"),
        ("api.lookups,1,0.01,USD,,,,,request,", "prefix"),
        ("api.lookups,,0.01,USD,,,,,,", "unit"),
        ("data,,0.01,USD,,,,,megabyte,", "unit"),
        ("data,,0.01,USD,0,,,,,", "per"),
        ("data,,0.01,USD,,,0,,,", "increment"),
        ("data,,0.01,USD,,1.5,,,,", "minimum"),
        ("number.rental,1,0.01,USD,30,,,,,", "per"),
        ("data,,0.01,USD,,,,,,delivered", "bill_on"),
        ("message.sms.outbound,1,0.01,USD,,,,,,sent", "bill_on"),
        ("message.sms.outbound,1,-1,USD,,,,,,", "price"),
        ("message.sms.outbound,1,99999999999,USD,,,,,,", "price"),
        ("message.sms.outbound,1,1,USD,,,,x,,", "fee"),
        ("message.sms.outbound,1,1,USD,,,,99999999999,,", "fee"),
    ],
)
def test_a_line_by_product_that_cannot_be_used_is_named(line: str, field: str) -> None:
    header = PRICES.splitlines()[0].decode()
    file = read_price_file(f"{header}\nvoice.outbound,1,0.01,USD,,,,,,\n{line}\n".encode())
    assert [(refused.line, refused.field) for refused in file.refused] == [(3, field)]


def test_a_header_by_product_says_what_it_lacks() -> None:
    with pytest.raises(InvalidInput, match="lacks currency"):
        read_price_file(b"product,price\napi,1\n")
