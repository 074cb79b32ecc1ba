"""Both content modes of CloudEvents on Kafka: one event, whichever way it came, and what is refused with which header."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from services.runtime import parking
from services.runtime.database import transaction
from services.usage import api
from services.usage.cloudevents import Headers, legible, structured
from services.usage.consumer import build
from services.usage.events import Event, EventRefused, decode, readable
from services.usage.price_files import read_price_file
from services.usage.tables import RUNTIME
from tests.support.rooms import Log, Rooms
from tests.support.servers import Database
from tests.support.usage_registry import LONG_AGO, TOPIC, Sender, leg, void

ENDED = datetime(2026, 10, 31, 23, 50, tzinfo=UTC)
GOOD = leg("e1", ENDED)
DATA = json.dumps(GOOD["data"]).encode()
WHOLE = ("content-type", b"application/cloudevents+json")
PRICES = b"product,prefix,price_per_minute,currency,minimum_s,increment_s\nvoice.outbound,1,0.0140,USD,60,60\n"


def binary(event: dict[str, Any], content_type: bytes | None = b"application/json") -> tuple[tuple[str, bytes], ...]:
    """The headers of an event in binary mode; the value is its data."""
    headers = [(f"ce_{name}", str(item).encode()) for name, item in event.items() if name != "data"]
    return (*headers, *([("content-type", content_type)] if content_type is not None else []))


def read(headers: Headers, value: bytes | None) -> Event:
    return decode(structured(headers, value))


def with_headers(*headers: tuple[str, bytes | None], without: str = "") -> Headers:
    return [*(each for each in binary(GOOD) if each[0] != without), *headers]


# ---- the same event in both modes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        (),
        (WHOLE,),
        (("content-type", b"Application/CloudEvents+JSON; charset=UTF-8"),),
        (("traceparent", b"\xff"), ("spring_json_header_types", b"{}"), ("traceparent", None)),
        (WHOLE, *binary(GOOD, None)),
        (WHOLE, ("ce_id", b"e1")),
    ],
    ids=["plain", "content type", "in capitals", "foreign headers", "attributes beside it", "one attribute beside it"],
)
def test_a_whole_event_is_read_with_the_headers_of_structured_mode(headers: Headers) -> None:
    assert read(headers, json.dumps(GOOD).encode()) == decode(json.dumps(GOOD).encode())


@pytest.mark.parametrize("content_type", [b"application/json", b'APPLICATION/JSON ; Charset="utf-8"', None])
@pytest.mark.parametrize("value", [DATA, json.dumps(GOOD["data"], indent=2).encode()])
def test_in_binary_mode_it_is_the_same_event(content_type: bytes | None, value: bytes) -> None:
    assert read(binary(GOOD, content_type), value) == decode(json.dumps(GOOD).encode())


def test_a_revision_is_a_number_in_either_mode() -> None:
    for event in (GOOD | {"revision": 12}, void("e1", 3)):
        data = json.dumps(event["data"]).encode()
        assert read(binary(event), data) == decode(json.dumps(event).encode())
        assert read((WHOLE, ("ce_revision", str(event["revision"]).encode())), json.dumps(event).encode())
    for text in (b"-1", b"1.0", b"01", b" 1", b"true", b"", b"2147483648"):
        with pytest.raises(EventRefused) as refused:
            read((*binary(GOOD), ("ce_revision", text)), DATA)
        assert refused.value.field == "revision", text


def test_attributes_and_extensions_of_binary_mode_are_judged_like_those_of_a_whole_event() -> None:
    around = {
        "time": "2026-10-31T23:50:00Z",
        "subject": "legs",
        "dataschema": "https://example.org/leg",
        "traceparent": "00-1",
    }
    assert read(binary(GOOD | around), DATA).content == decode(json.dumps(GOOD).encode()).content
    for name, wrong in {
        "time": "2026-02-30T00:00:00Z",
        "subject": "",
        "dataschema": "leg",
        "specversion": "0.3",
    }.items():
        with pytest.raises(EventRefused) as refused:
            read(binary(GOOD | around | {name: wrong}), DATA)
        assert refused.value.field == name


def test_header_values_are_utf8_and_nothing_is_percent_encoded() -> None:
    event = read(binary(GOOD | {"source": 'größe "☎"', "id": "100%25 a\\b"}), DATA)
    assert (event.source, event.event_id) == ('größe "☎"', "100%25 a\\b")


def test_the_data_stays_the_data() -> None:
    """Whatever the value is, it cannot say who sent the event, or what its id is."""
    for value in (
        b'{},"id":"e2"',
        DATA + b',"source":"other"',
        DATA + b'},"id":{"a":1',
        DATA + DATA,
        b"",
        b"\xef\xbb\xbf" + DATA,
    ):
        with pytest.raises(EventRefused) as refused:
            read(binary(GOOD), value)
        assert refused.value.reason == "not_json"


# ---- refused, with the header and the fix --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "field", "fix"),
    [
        ([("content-type", b"text/plain")], "content-type", "must be application/cloudevents+json"),
        (with_headers(("content-type", b"application/avro"), without="content-type"), "content-type", "or application/json for the data"),
        ([("content-type", b"application/cloudevents+avro")], "content-type", "must be application/cloudevents+json"),
        ([("content-type", b"application/cloudevents-batch+json; charset=utf-8")], "content-type", "send each event as a record of its own"),
        ([("content-type", b"application/json")], "content-type", "say application/cloudevents+json"),
        ([("content-type", b"application/cloudevents+json; charset=latin1")], "content-type", "in UTF-8"),
        ([("content-type", b"")], "content-type", "must be"),
        ([("content-type", None)], "content-type", "has no value"),
        ([("content-type", b"\xff")], "content-type", "is not UTF-8"),
        ([WHOLE, WHOLE], "content-type", "stands twice"),
        (with_headers(("ce_id", b"e1")), "ce_id", "stands twice"),
        (with_headers(("ce_subject", b"a\xffb")), "ce_subject", "is not UTF-8"),
        (with_headers(("ce_subject", None)), "ce_subject", "has no value"),
        (with_headers(without="ce_specversion"), "ce_specversion", "is missing"),
        (with_headers(without="ce_id"), "ce_id", "is missing"),
        (with_headers(without="ce_source"), "ce_source", "is missing"),
        (with_headers(without="ce_type"), "ce_type", "is missing"),
        ([("ce_tenant", b"x")], "ce_specversion", "is missing"),
        (with_headers(("ce_", b"x")), "ce_", "lower-case letters and digits"),
        (with_headers(("ce_MyExtension", b"x")), "ce_MyExtension", "lower-case letters and digits"),
        (with_headers(("ce_data_base64", b"e30=")), "ce_data_base64", "lower-case letters and digits"),
        (with_headers(("ce_data", b"{}")), "ce_data", "the value of the record is the data"),
        (with_headers(("ce_datacontenttype", b"application/json")), "ce_datacontenttype", "content-type says it"),
        (with_headers(("ce_a\0", b"x")), "ce_a?", "lower-case letters and digits"),
    ],
)  # fmt: skip
def test_a_wrong_header_is_named_with_its_fix(headers: Headers, field: str, fix: str) -> None:
    with pytest.raises(EventRefused) as refused:
        read(headers, DATA)
    assert (refused.value.reason, refused.value.field) == ("invalid_event", field)
    assert fix in refused.value.message


@pytest.mark.parametrize("headers", [binary(GOOD), binary(GOOD, None)])
def test_a_whole_event_under_the_headers_of_binary_mode_is_both_modes_at_once(headers: Headers) -> None:
    with pytest.raises(EventRefused) as refused:
        read(headers, json.dumps(GOOD).encode())
    assert refused.value.field == "ce_specversion"
    assert "leave the ce_ headers out" in refused.value.message


@pytest.mark.parametrize(
    ("name", "said"), [("id", b"e2"), ("source", b"other"), ("extension", b"x"), ("number", b"6"), ("flag", b"True")]
)
def test_headers_beside_a_whole_event_say_what_it_says(name: str, said: bytes) -> None:
    event = GOOD | {"number": 5, "flag": True}
    read([WHOLE, ("ce_number", b"5"), ("ce_flag", b"true")], json.dumps(event).encode())
    with pytest.raises(EventRefused) as refused:
        read([WHOLE, (f"ce_{name}", said)], json.dumps(event).encode())
    assert refused.value.field == f"ce_{name}"


def test_no_data_and_too_much_data_are_refused_as_such() -> None:
    with pytest.raises(EventRefused) as refused:
        read(binary(GOOD), None)
    assert refused.value.field == "data"
    with pytest.raises(EventRefused, match="at most 65536 are allowed"):
        read(binary(GOOD), b'"' + b"x" * 900_000)
    with pytest.raises(EventRefused, match="at most 65536 are allowed"):
        read(binary(GOOD | {"extension": "x" * 900_000}), DATA)


HEADER_NAMES = st.sampled_from([*(name for name, _ in binary(GOOD)), "ce_time", "ce_x", "ce_Y", "trace"]) | st.text(
    max_size=5
)
VALUES = (
    st.sampled_from([DATA, json.dumps(GOOD).encode(), b'{"specversion":1}', b"[" * 10_000, b"", None])
    | st.binary(max_size=50)
    | st.recursive(st.none() | st.integers() | st.text(max_size=3), st.lists).map(json.dumps).map(str.encode)
)


@given(
    st.sampled_from([(), (WHOLE,), binary(GOOD)]),
    st.lists(st.tuples(HEADER_NAMES, st.none() | st.binary(max_size=9)), max_size=4),
    VALUES,
)
def test_whatever_the_headers_and_the_bytes_are_they_are_read_or_refused(
    headers: Headers, more: list[tuple[str, bytes | None]], value: bytes | None
) -> None:
    everything = (*more, *headers)
    with suppress(EventRefused):
        event = read(everything, value)
        assert event.event_id == dict(everything).get("ce_id", b"e1").decode()
    readable(legible(everything, value))


def test_of_a_refused_record_of_binary_mode_is_kept_what_can_be_read() -> None:
    about = {
        "source": "pbx/detroit",
        "event_id": "e1",
        "account_id": "sales",
        "event_time": "2026-10-31T23:50:00+00:00",
    }
    for headers in (
        binary(GOOD),
        with_headers(("ce_id", b"e2")),
        with_headers(without="ce_type"),
        with_headers(("ce_x", b"\xff")),
    ):
        assert readable(legible(headers, DATA)) == about
    assert readable(legible(binary(GOOD), json.dumps(GOOD).encode())) == about
    assert readable(legible((("content-type", b"text/plain"),), json.dumps(GOOD).encode())) == about
    assert readable(legible(with_headers(("ce_id", b"e2")), b"junk")) == {}


# ---- in quarantine and back ----------------------------------------------------------------------------------------

NOW = datetime.now(UTC).replace(microsecond=0)


async def test_a_binary_event_in_quarantine_keeps_its_headers_and_is_charged_once_when_its_account_is_there(
    database: Database,
) -> None:
    log = Log()
    event = leg("e1", NOW, "later")
    headers = (*binary(event), ("trace", None), ("trace", b""), ("raw", b"\xff\x00"))
    async with Rooms(log, database, [build()]) as rooms:
        send = Sender(log)
        send.publisher()
        await rooms.pump()
        engine = rooms.processors["usage"].engine
        await api.import_prices(engine, "list", read_price_file(PRICES), LONG_AGO, is_default=True)
        log.write(TOPIC, value=json.dumps(event["data"]).encode(), headers=headers, partition=0)
        await rooms.pump()
        (row,) = await api.parked(engine)
        assert (row.reason, row.about["account_id"], row.headers) == ("unknown_account", "later", headers)
        (told,) = log.data("usage.rejections.")
        assert (told["source"], told["event_id"]) == ("pbx/detroit", "e1")

        send.account("later")
        await rooms.pump()
        async with transaction(engine) as connection:
            await parking.ask(connection, RUNTIME, "replaying", "ann", ids=[row.id])
        await rooms.pump()
        log.write(TOPIC, value=event, partition=0)
        log.write(TOPIC, value=json.dumps(event["data"]).encode(), headers=headers, partition=1)
        await rooms.pump()
        assert [charge["event_id"] for charge in log.data("usage.charges")] == ["e1"]
        assert await rooms.query("usage", select(RUNTIME.parked.c.state)) == [("replayed",)]
        records = [(number, each.headers, each.value) for number, each in enumerate(log.records[TOPIC, 0])]
        assert await api.classify(engine, TOPIC, 0, records) == {0: "rated", 1: "duplicate"}
        assert [each["action"] for each in log.data("usage.rejections.")] == ["quarantined", "replayed"]


async def test_a_header_without_a_value_never_keeps_a_bad_record_from_its_quarantine(database: Database) -> None:
    log = Log()
    async with Rooms(log, database, [build()]) as rooms:
        Sender(log).publisher()
        log.write(TOPIC, value=b"junk", headers=(("trace", None),), partition=0)
        await rooms.pump()
        (row,) = await api.parked(rooms.processors["usage"].engine)
        assert (row.reason, row.headers) == ("not_json", (("trace", None),))
