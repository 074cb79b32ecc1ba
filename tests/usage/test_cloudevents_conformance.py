"""The cases of CloudEvents' own conformance corpus for its JSON format: 25 that are no event, 10 that are one.

Each is tried with a type that is not ours, so that the envelope alone is judged, and with ours around good data; and, where
attributes are all it is about, in binary mode.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from contracts.usage import USAGE_EVENT_TYPES
from services.usage.cloudevents import structured
from services.usage.events import EventRefused, decode
from tests.support.usage_registry import leg

OURS = leg("a1", datetime(2026, 10, 31, 23, 50, tzinfo=UTC))
FOREIGN = {"specversion": "1.0", "id": "a1", "type": "org.example.probe", "source": "https://example.org"}

# What is done to a minimal event (None: the attribute is left out), and the field that it must be refused for.
NO_EVENT: dict[str, tuple[dict[str, Any], str]] = {
    "no specversion": ({"specversion": None}, "specversion"),
    "no id": ({"id": None}, "id"),
    "no type": ({"type": None}, "type"),
    "no source": ({"source": None}, "source"),
    "time is a word": ({"time": "noon"}, "time"),
    "time without seconds": ({"time": "2026-10-31T23:50Z"}, "time"),
    "time with a letter for its offset": ({"time": "2026-10-31T23:50:00Q"}, "time"),
    "time with an offset of more than a day": ({"time": "2026-10-31T23:50:00+25:00"}, "time"),
    "time with letters in its offset": ({"time": "2026-10-31T23:50:00+ab:00"}, "time"),
    "time with hours alone in its offset": ({"time": "2026-10-31T23:50:00+05"}, "time"),
    "empty id": ({"id": ""}, "id"),
    "empty type": ({"type": ""}, "type"),
    "empty source": ({"source": ""}, "source"),
    "empty specversion": ({"specversion": ""}, "specversion"),
    "another specversion": ({"specversion": "0.9"}, "specversion"),
    "content type of one part": ({"datacontenttype": "json"}, "datacontenttype"),
    "empty content type": ({"datacontenttype": ""}, "datacontenttype"),
    "empty schema": ({"dataschema": ""}, "dataschema"),
    "empty subject": ({"subject": ""}, "subject"),
    "id is a number": ({"id": 25}, "id"),
    "id is an object": ({"id": {"a": "b"}}, "id"),
    "extension in capitals": ({"MyTenant": "x"}, "MyTenant"),
    "extension with a point": ({"my.tenant": "x"}, "my.tenant"),
    "extension that is a fraction": ({"my.tenant": 1.5}, "my.tenant"),
    "data in both forms": ({"data": "text", "data_base64": "e30="}, "data_base64"),
}  # fmt: skip

AN_EVENT: dict[str, dict[str, Any]] = {
    "the least": {},
    "null for all that may be left out": dict.fromkeys(("datacontenttype", "dataschema", "subject", "time")),
    "every attribute": {
        "datacontenttype": "text/plain", "dataschema": "https://example.org/leg", "subject": "legs",
        "time": "2026-10-31T23:50:00Z",
    },
    "time": {"time": "2026-10-31T23:50:00Z"},
    "time to the nanosecond": {"time": "2026-10-31T23:50:00.000000000Z"},
    "time east of Greenwich": {"time": "2026-11-01T00:50:00+01:00"},
    "time west of Greenwich": {"time": "2026-10-31T22:50:00-01:00"},
    "a relative source": {"source": "#part"},
    "data that are text": {"datacontenttype": "text/plain", "data": "plain words"},
    "extensions of every kind": {
        "number": 10, "flag": True, "text": "x", "uri": "https://example.org", "reference": "//example.org/leg",
        "instant": "2026-10-31T23:50:00Z", "bytes": "TWE=",
    },
}  # fmt: skip


def changed(event: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {name: item for name, item in (event | changes).items() if item is not None}


def refused(event: dict[str, Any]) -> EventRefused:
    with pytest.raises(EventRefused) as caught:
        decode(json.dumps(event).encode())
    return caught.value


def test_the_corpus_is_whole() -> None:
    assert (len(NO_EVENT), len(AN_EVENT)) == (25, 10)


@pytest.mark.parametrize("case", NO_EVENT)
def test_what_is_no_event_is_refused_for_its_own_reason(case: str) -> None:
    changes, field = NO_EVENT[case]
    problem = refused(changed(FOREIGN, changes))
    assert (problem.reason, problem.field) == ("invalid_event", field)
    of_ours = {name: item for name, item in changes.items() if name != "data"}
    problem = refused(changed(OURS, of_ours))
    assert (problem.reason, problem.field) == ("invalid_event", field)


@pytest.mark.parametrize("case", AN_EVENT)
def test_what_is_an_event_is_accepted_whatever_its_type(case: str) -> None:
    problem = refused(FOREIGN | AN_EVENT[case])
    assert (problem.reason, problem.field) == ("unknown_type", "type")  # all else was found right before


@pytest.mark.parametrize("case", [case for case in AN_EVENT if AN_EVENT[case].get("datacontenttype") is None])
def test_it_is_read_when_type_and_data_are_ours(case: str) -> None:
    changes = AN_EVENT[case]
    event = decode(json.dumps(OURS | changes).encode())
    assert (event.source, event.content) == (
        changes.get("source", OURS["source"]), decode(json.dumps(OURS).encode()).content,
    )  # fmt: skip


@pytest.mark.parametrize("case", [case for case in AN_EVENT if AN_EVENT[case].get("datacontenttype") is not None])
def test_of_our_types_the_data_are_json(case: str) -> None:
    problem = refused(OURS | {"datacontenttype": AN_EVENT[case]["datacontenttype"]})
    assert (problem.reason, problem.field) == ("invalid_event", "datacontenttype")


def in_binary_mode(event: dict[str, Any]) -> bytes | None:
    headers = [
        ("content-type" if name == "datacontenttype" else f"ce_{name}", item.encode())
        for name, item in event.items()
        if name != "data"
    ]
    return structured(headers, json.dumps(OURS["data"]).encode())


@pytest.mark.parametrize(
    "case",
    [case for case, (changes, _) in NO_EVENT.items() if all(isinstance(item, str | None) for item in changes.values()) and "data" not in changes],
)  # fmt: skip
def test_in_binary_mode_the_same_is_no_event(case: str) -> None:
    changes, field = NO_EVENT[case]
    for event in (FOREIGN, OURS):
        with pytest.raises(EventRefused) as caught:
            decode(in_binary_mode(changed(event, changes)))
        header = "content-type" if field == "datacontenttype" else f"ce_{field}"
        assert caught.value.reason == "invalid_event"
        assert caught.value.field in (field, header)


@pytest.mark.parametrize("changes", [{"type": None}, {"type": ""}, {"type": "org.example.probe"}, {"type": 7}])
def test_who_names_no_type_of_ours_is_told_them_all(changes: dict[str, Any]) -> None:
    for event in (FOREIGN, OURS):
        problem = refused(changed(event, changes))
        assert problem.field == "type"
        assert problem.message.endswith(f"; the types are {', '.join(USAGE_EVENT_TYPES)}")
        if not isinstance(changes["type"], int):
            with pytest.raises(EventRefused, match="; the types are tollbook"):
                decode(in_binary_mode(changed(event, changes)))


@pytest.mark.parametrize(
    ("time", "is_right"),
    [
        ("2026-10-31t23:50:00z", True),
        ("2016-12-31T23:59:60Z", True),
        ("2026-02-30T00:00:00+01:00", False),
        ("0000-01-01T00:00:00Z", False),
        ("2026-10-31T24:00:00Z", False),
        ("2026-10-31T23:60:00Z", False),
        ("2026-10-31 23:50:00Z", False),
        ("2026-10-31T23:50:00.Z", False),
        ("2026-10-31T23:50:00-01:60", False),
        ("٢026-10-31T23:50:00Z", False),
        ("2026-10-31T23:50:00Z\n", False),
    ],
)
def test_time_is_an_instant_of_rfc_3339(time: str, is_right: bool) -> None:
    if is_right:
        decode(json.dumps(OURS | {"time": time}).encode())
    else:
        assert refused(OURS | {"time": time}).field == "time"


@pytest.mark.parametrize(
    ("content_type", "is_right"),
    [
        ("application/vnd.example+json; charset=utf-8", True),
        ('text/plain;a="b c";d=e', True),
        ("text/", False),
        ("/plain", False),
        ("text/plain;", False),
        ("text plain/x", False),
        ("text/plain; charset", False),
    ],
)
def test_a_content_type_is_a_media_type_of_rfc_2046(content_type: str, is_right: bool) -> None:
    reason, field = ("unknown_type", "type") if is_right else ("invalid_event", "datacontenttype")
    problem = refused(FOREIGN | {"datacontenttype": content_type})
    assert (problem.reason, problem.field) == (reason, field)


@pytest.mark.parametrize(
    ("text", "is_right"), [("", True), ("TWE=", True), ("TWE", False), ("TW E=", False), (5, False)]
)
def test_data_of_a_foreign_type_may_be_bytes_in_base64(text: Any, is_right: bool) -> None:
    assert refused(FOREIGN | {"data_base64": text}).field == ("type" if is_right else "data_base64")
