"""Decoding of usage events: what is refused, with which reason and field, and what makes two events the same."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contracts.usage import VOICE_LEG
from services.usage import events
from services.usage.events import Event, EventRefused, Void, canonical, decode, readable
from tests.support.usage_registry import leg, void

ENDED = datetime(2026, 10, 31, 23, 50, tzinfo=UTC)
GOOD = leg("e1", ENDED)
VOID = void("e1", 1)


def encoded(event: Any = GOOD, **around: Any) -> bytes:
    return json.dumps(event | around if isinstance(event, dict) else event).encode()


def with_data(**changes: Any) -> bytes:
    return encoded(GOOD | {"data": GOOD["data"] | changes})


def without(name: str, *, in_data: bool = False) -> bytes:
    event = json.loads(encoded())
    del (event["data"] if in_data else event)[name]
    return encoded(event)


def test_a_good_event_is_read() -> None:
    event = decode(encoded())
    assert (event.event_id, event.source, event.event_time) == ("e1", "pbx/detroit", ENDED)
    assert event.use.billable_s == 95


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"not json", "not_json"),
        (encoded()[:-9], "not_json"),
        (b'{"id": "\xff"}', "not_json"),
        (b"\xef\xbb\xbf" + encoded(), "not_json"),
        (b"", "not_json"),
        (None, "not_json"),
        (b"[" * 10_000, "not_json"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "not_json"),
        (b"[]", "invalid_event"),
        (encoded(myextension="x" * 900_000), "invalid_event"),
    ],
    ids=["text", "cut", "utf8", "bom", "empty", "tombstone", "deep list", "deep object", "list", "900 KB"],
)
def test_what_is_no_event_is_refused(value: bytes | None, reason: str) -> None:
    with pytest.raises(EventRefused) as refused:
        decode(value)
    assert refused.value.reason == reason
    assert refused.value.message


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (without("specversion"), "specversion"),
        (without("id"), "id"),
        (without("source"), "source"),
        (without("type"), "type"),
        (without("data"), "data"),
        (encoded(specversion="0.3"), "specversion"),
        (encoded(id=""), "id"),
        (encoded(id=7), "id"),
        (encoded(id="a\0b"), "id"),
        (encoded(id="a\x85b"), "id"),
        (encoded(id="x" * 257), "id"),
        (encoded(source="a\nb"), "source"),
        (encoded(time="2026-10-31T23:50:00"), "time"),
        (encoded(time="2026-02-30T00:00:00Z"), "time"),
        (encoded(time=1), "time"),
        (encoded(datacontenttype="text/xml"), "datacontenttype"),
        (encoded(dataschema="not a uri"), "dataschema"),
        (encoded(subject=""), "subject"),
        (encoded(myExtension="a"), "myExtension"),
        (encoded(data_base64="e30="), "data_base64"),
        (encoded(extension={"a": 1}), "extension"),
        (encoded(extension=[1]), "extension"),
        (encoded(extension=1.5), "extension"),
        (encoded(extension=2**31), "extension"),
        (encoded(revision=-1), "revision"),
        (encoded(revision=2**31), "revision"),
        (encoded(revision="1"), "revision"),
        (encoded(revision=1.0), "revision"),
        (encoded(revision=True), "revision"),
        (encoded(VOID | {"revision": 0}), "revision"),
        (encoded(VOID | {"revision": None}), "revision"),
        (encoded({name: VOID[name] for name in VOID if name != "revision"}), "revision"),
        (encoded(VOID | {"data": {"account_id": "sales"}}), "data.reason"),
        (encoded(VOID | {"data": {"account_id": "sales", "reason": ""}}), "data.reason"),
        (encoded(VOID | {"data": {"account_id": "sales", "reason": "x" * 257}}), "data.reason"),
        (encoded(VOID | {"data": VOID["data"] | {"called": "+12485550100"}}), "data.called"),
        (encoded(extension=float("nan")), "extension"),
        (encoded(extension="a\0b"), "extension"),
        (encoded(data="60 seconds"), "data"),
        (encoded(data=None), "data"),
        (without("account_id", in_data=True), "data.account_id"),
        (with_data(account_id=None), "data.account_id"),
        (without("account_id", in_data=True).replace(b'"caller"', b'"caller": "+13135550199", "caller"'), "caller"),
        (with_data(account_id=None, direction="inbound").replace(b'"caller"', b'"caller":null, "caller"'), "caller"),
        (without("billable_s", in_data=True), "data.billable_s"),
        (with_data(amount="0.10"), "data.amount"),
        (with_data(account_id=7010), "data.account_id"),
        (with_data(account_id="a b"), "data.account_id"),
        (with_data(called="12485550100"), "data.called"),
        (with_data(called="+１２４８５５５０１００"), "data.called"),
        (with_data(called=None), "data.called"),
        (with_data(direction="sideways"), "data.direction"),
        (with_data(duration_s=-1), "data.duration_s"),
        (with_data(duration_s="100"), "data.duration_s"),
        (with_data(duration_s="1_000"), "data.duration_s"),
        (with_data(duration_s="６０"), "data.duration_s"),
        (with_data(duration_s=100.5), "data.duration_s"),
        (with_data(duration_s=True), "data.duration_s"),
        (with_data(duration_s=float("nan")), "data.duration_s"),
        (with_data(answered=1), "data.answered"),
        (with_data(billable_s=101), "data.billable_s"),
        (with_data(answered=False), "data.billable_s"),
        (with_data(started_at="2026-10-31T23:50:01Z"), "data.ended_at"),
        (with_data(ended_at="2026-11-31T23:50:00Z"), "data.ended_at"),
        (with_data(ended_at="2026-10-31T23:50:00+01:00"), "data.ended_at"),
        (with_data(ended_at="2026-10-31T23:50:60Z"), "data.ended_at"),
        (with_data(duration_s=103), "data.duration_s"),
        (with_data(call_leg_id="a\0b"), "data.call_leg_id"),
        (encoded().replace(b'"id": "e1"', b'"id": "e1", "id": "e2"'), "id"),
        (encoded().replace(b'"id": "e1"', b'"id": "e1", "id" : "e2"'), "id"),
        (encoded().replace(b'"id": "e1"', b'"id": "e1", "id"\n: "e2"'), "id"),
        (encoded().replace(b'"id": "e1"', b'"id": "e1", "\\u0069d": "e2"'), "id"),
        (encoded().replace(b'"duration_s": 100', b'"duration_s": 1, "duration_s": 100'), "duration_s"),
        (encoded(a=1).replace(b'"a": 1', b'"a": 1, "a": 1'), "a"),
    ],
)  # fmt: skip
def test_a_wrong_event_is_refused_and_the_field_named(value: bytes, field: str) -> None:
    with pytest.raises(EventRefused) as refused:
        decode(value)
    assert (refused.value.reason, refused.value.field) == ("invalid_event", field)
    assert refused.value.message


@pytest.mark.parametrize(
    "value",
    [
        encoded(id='":'),
        encoded(id='a"b'),
        encoded(source="größe ☎"),
        encoded(time=None, subject="x", dataschema="https://example.org/leg", traceparent="00-1"),
        encoded(extension=True, other=None, number=-5),
        json.dumps(GOOD, indent=2).encode(),
        json.dumps(GOOD, separators=(" , ", " : ")).encode(),
        with_data(duration_s=102),
        with_data(caller=None, answered=False, billable_s=0),
        with_data(duration_s=0, billable_s=0, started_at=GOOD["data"]["ended_at"]),
    ],
)
def test_unusual_but_right_events_are_read(value: bytes) -> None:
    decode(value)


def test_the_same_content_in_other_words_has_the_same_hash() -> None:
    content = decode(encoded()).content
    backwards = dict(reversed(GOOD.items())) | {"data": dict(reversed(GOOD["data"].items()))}
    assert decode(encoded(backwards)).content == content
    assert decode(encoded(traceparent="00-1", time="2026-10-31T23:50:01Z")).content == content
    assert decode(with_data(call_leg_id=None)).content == content
    inbound = GOOD | {"data": {k: v for k, v in GOOD["data"].items() if k != "account_id"} | {"direction": "inbound"}}
    assert decode(encoded(inbound)).content == decode(with_data(direction="inbound", account_id=None)).content
    assert decode(encoded(inbound)).content != decode(with_data(direction="inbound")).content
    assert decode(with_data(ended_at="2026-10-31T23:50:00.000Z")).content == content


@pytest.mark.parametrize(
    "changes",
    [{"billable_s": 94}, {"called": "+12485550102"}, {"caller": None}, {"call_leg_id": "7"}, {"cost_center_id": "x"}],
)
def test_other_content_has_another_hash(changes: dict[str, Any]) -> None:
    assert decode(with_data(**changes)).content != decode(encoded()).content


def test_the_revision_says_which_content_holds_and_is_none() -> None:
    first, amended = decode(encoded()), decode(encoded(revision=3))
    assert (first.revision, amended.revision, decode(encoded(revision=None)).revision) == (0, 3, 0)
    assert first.content == amended.content == decode(encoded(revision=0)).content


def test_a_void_says_whose_event_never_was_from_which_revision_on() -> None:
    void_event = decode(encoded(VOID))
    assert isinstance(void_event, Void)
    assert (void_event.source, void_event.event_id, void_event.account_id) == ("pbx/detroit", "e1", "sales")
    assert void_event.revision == 1
    other = decode(encoded(VOID | {"data": VOID["data"] | {"reason": "another"}}))
    assert other.content != void_event.content != decode(encoded()).content


def test_the_canonical_form_does_not_change() -> None:
    assert canonical(VOICE_LEG, GOOD["data"]) == (
        b"tollbook.usage.voice.leg.v1\0"
        b'{"account_id":"sales","answered":true,"billable_s":95,"called":"+12485550101","caller":"+13135550100",'
        b'"direction":"outbound","duration_s":100,"ended_at":"2026-10-31T23:50:00Z","started_at":"2026-10-31T23:48:20Z"}'
    )


PIECES = (
    "", "x", "A.b-c", "a b", "\x7f", "\x1f", 'a"b', "é", "None", "null", "+12485550101", "+0123", "+123456789012345", "12",
    "2026-10-31T23:50:00Z", "2026-10-31T23:50:00.1Z", "2026-W01-1T00:00:00Z", "2026-02-30T00:00:00Z", "inbound", "1.0",
    "application/json",
)  # fmt: skip
ITEMS = (
    st.sampled_from(PIECES) | st.text(max_size=4) | st.none() | st.booleans() | st.integers(-2, 700_000) | st.floats()
)
LEG_NAMES = (*GOOD["data"], "call_leg_id", "cost_center_id", "outbound_profile", "other")
EVENT_NAMES = (*(name for name in GOOD if name != "data"), "time", "datacontenttype", "subject", "other")


@settings(max_examples=1000, suppress_health_check=[HealthCheck.too_slow])  # the first draw, on a busy machine
@given(
    in_data=st.dictionaries(st.sampled_from(LEG_NAMES), ITEMS, max_size=3),
    around=st.dictionaries(st.sampled_from(EVENT_NAMES), ITEMS, max_size=2),
    left_out=st.sampled_from((None, *LEG_NAMES)),
    said_twice=st.sampled_from((b"", b'"id": "e1", ', b'"id" : "e2", ', b'"data"\n:{}, ')),
    separators=st.sampled_from(((", ", ": "), (",", ":"))),
)
def test_what_is_recognised_as_plain_is_what_the_contract_accepts(
    in_data: dict[str, Any],
    around: dict[str, Any],
    left_out: str | None,
    said_twice: bytes,
    separators: tuple[str, str],
) -> None:
    data = {name: item for name, item in (GOOD["data"] | in_data).items() if name != left_out}
    text = json.dumps(GOOD | around | {"data": data}, separators=separators, ensure_ascii=False)
    value = text.encode("utf-8", "replace").replace(b"{", b"{" + said_twice, 1)
    with pytest.MonkeyPatch.context() as patch:
        recognised = decoded(value)
        patch.setattr(events, "_plain", lambda _: None)
        assert recognised == decoded(value)


def decoded(value: bytes) -> Event | Void | None:
    try:
        return decode(value)
    except EventRefused:
        return None


def test_ordinary_events_are_recognised_as_plain_without_pydantic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_validate", None)
    decode(encoded())
    decode(encoded(time="2026-10-31T23:50:00Z", datacontenttype="application/json"))
    decode(json.dumps(GOOD, separators=(",", ":")).encode())
    decode(with_data(caller=None, call_leg_id="7", cost_center_id="x", outbound_profile="p"))


@pytest.mark.parametrize("code", [*range(0x20), 0x7F])
def test_no_control_character_slips_through_as_plain(code: int) -> None:
    for name in (b"id", b"source"):
        with pytest.raises(EventRefused):
            decode(encoded().replace(b'"%b": "' % name, b'"%b": "%c' % (name, code)))
    with pytest.raises(EventRefused):
        decode(with_data(call_leg_id="xyz").replace(b"xyz", b"%c" % code))


@given(
    st.binary(max_size=300)
    | st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists).map(json.dumps).map(str.encode)
)
def test_whatever_the_bytes_are_they_are_read_or_refused(value: bytes) -> None:
    with suppress(EventRefused):
        decode(value)
    readable(value)


@given(st.lists(st.tuples(st.sampled_from(["id", "source", "x", "y"]), st.text(max_size=5)), max_size=6))
def test_a_name_that_stands_twice_is_never_overlooked(extra: list[tuple[str, str]]) -> None:
    pairs = [(name, json.dumps(item)) for name, item in GOOD.items()] + [
        (name, json.dumps(item)) for name, item in extra
    ]
    value = ("{" + ",".join(f'"{name}":{item}' for name, item in pairs) + "}").encode()
    names = [name for name, _ in pairs]
    try:
        decode(value)
    except EventRefused:
        return
    assert len(set(names)) == len(names)


def test_of_a_refused_record_is_kept_what_can_be_read() -> None:
    assert readable(with_data(called=5)) == {
        "source": "pbx/detroit", "event_id": "e1", "account_id": "sales", "event_time": "2026-10-31T23:50:00+00:00",
    }  # fmt: skip
    assert readable(encoded(id="\ud800a\0")) == {
        "source": "pbx/detroit", "event_id": "?a?", "account_id": "sales", "event_time": "2026-10-31T23:50:00+00:00",
    }  # fmt: skip
    assert readable(b"[" * 100_000) == {}
    assert readable(None) == {}
