"""Commands from outside: what is refused, and that the refusal names the field."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.groups.commands import decode, readable
from services.kernel.errors import InvalidInput

GOOD = {
    "kind": "create_account",
    "command_id": "c1",
    "actor": "Erin",
    "organization_id": "lakeside",
    "name": "Front desk",
    "plan": "payg",
}


def raw(**changes: object) -> bytes:
    return json.dumps(GOOD | changes).encode()


def refusal(value: bytes | None) -> tuple[str, str | None]:
    with pytest.raises(InvalidInput) as raised:
        decode(value)
    return raised.value.code, raised.value.field


def test_a_good_command_is_read():
    command = decode(raw())
    assert (command.kind, command.command_id, command.role) == ("create_account", "c1", "owner")


@pytest.mark.parametrize(
    "value",
    [b"", b"not json", b'{"kind": ', b'{"name": "\xc3', b"[" * 10_000, b'{"a":' * 10_000, raw()[:-1], b"9" * 5000],
)
def test_what_is_not_json_is_refused(value):
    assert refusal(value) == ("not_json", None)


def test_what_is_larger_than_any_command_is_refused_unread():
    assert refusal(raw() + b" " * 2**20) == ("too_large", None)
    assert readable(raw() + b" " * 2**20) == {}


def test_a_tombstone_is_refused():
    assert refusal(None) == ("tombstone", None)


@pytest.mark.parametrize("value", [b"[]", b"1", b"null", b'"text"'])
def test_what_is_no_object_is_refused(value):
    assert refusal(value) == ("invalid_command", None)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"kind": "close_account"}, "kind"),
        ({"kind": None}, "kind"),
        ({"command_id": ""}, "command_id"),
        ({"actor": "a\x00b"}, "actor"),
        ({"name": None}, "name"),
        ({"plan": "prepaid"}, "plan"),
        ({"currency": "usd"}, "currency"),
        ({"credit_limit": 100}, "credit_limit"),
        ({"credit_limit": "1_000"}, "credit_limit"),
        ({"credit_limit": "NaN"}, "credit_limit"),
        ({"credit_limit": "１００"}, "credit_limit"),
        ({"credit_limit": "-1"}, "credit_limit"),
        ({"opened_at": "2026-10-01"}, "opened_at"),
        ({"opened_at": "2026-10-01T00:00:00+02:00"}, "opened_at"),
        ({"role": "root"}, "role"),
        ({"organisation": "x"}, "organisation"),
        ({"kind": "create_publisher", "publisher_id": "p", "organization_ids": [], "sources": ["a\x00"]}, "name"),
    ],
)
def test_a_wrong_field_is_named(changes, field):
    assert refusal(raw(**changes)) == ("invalid_command", field)


def test_a_missing_field_is_named():
    assert refusal(b'{"kind": "create_account", "command_id": "c1", "actor": "Erin", "name": "x", "plan": "payg"}') == (
        "invalid_command",
        "organization_id",
    )


def test_a_field_that_stands_twice_is_named():
    assert refusal(raw()[:-1] + b', "plan": "invoiced"}') == ("invalid_command", "plan")


def test_a_zero_character_in_a_list_is_refused():
    publisher = {"kind": "create_publisher", "publisher_id": "p", "organization_ids": [], "sources": ["a\x00"]}
    value = json.dumps({key: GOOD[key] for key in ("command_id", "actor", "organization_id")} | publisher).encode()
    assert refusal(value) == ("invalid_command", "sources")


def test_no_number_that_is_none():
    assert refusal(raw().replace(b'"payg"', b"NaN")) == ("not_json", None)


def test_what_can_be_read_of_a_refused_command_is_well_formed_or_left_out():
    assert readable(raw(plan=7)) == {"command_id": "c1", "organization_id": "lakeside", "kind": "create_account"}
    assert readable(raw(command_id="a b", organization_id=7, kind="\ud800")) == {}
    assert readable(b'{"command_id": "c\\u0000"}') == {}
    assert readable(b"\xff") == readable(None) == readable(b"[" * 10_000) == {}


changed = st.dictionaries(st.sampled_from([*GOOD, "x"]), st.text(max_size=20) | st.none())


@settings(suppress_health_check=[HealthCheck.too_slow])  # the first text of a process loads the tables of Unicode
@given(st.binary(max_size=200) | changed.map(lambda changes: json.dumps(GOOD | changes).encode()))
def test_whatever_comes_is_read_or_refused_and_the_refusal_can_be_stored(value):
    readable(value)
    try:
        decode(value)
    except InvalidInput as error:
        for text in (error.message, error.field or ""):
            assert "\x00" not in text
            assert len(text.encode()) < 4_000
