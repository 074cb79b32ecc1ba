"""What a publisher or a program is told of a wrong field says the fix, whatever is wrong with it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from contracts.balance import BalanceCommand, balance_command
from contracts.groups import groups_command
from contracts.sentences import _OF_PATTERN, _OF_TYPE, first_problem
from contracts.topics import PAYMENTS_RESULTS, TOPICS, USAGE_EVENTS
from services.balance import decoding
from services.groups import commands
from services.kernel.errors import InvalidInput
from services.usage.events import EventRefused, decode

FROM_OUTSIDE: list[TypeAdapter[Any]] = [topic.adapter for topic in TOPICS if topic.bare]
EVENT = {
    "specversion": "1.0", "id": "e1", "source": "pbx/detroit", "type": "tollbook.usage.voice.leg.v1",
    "data": {
        "account_id": "sales", "direction": "outbound", "caller": None, "called": "+12485252160",
        "started_at": "2026-10-31T23:49:00Z", "ended_at": "2026-10-31T23:50:00Z", "answered": True,
        "duration_s": 60, "billable_s": 60,
    },
}  # fmt: skip
ABOUT = {"command_id": "c1", "actor": "ann", "role": "operator"}
MOVE = ABOUT | {
    "kind": "move_accounts",
    "organization_id": "acme",
    "account_ids": ["sales"],
    "group_id": "north",
    "period": "2026-10",
}
GOODWILL = ABOUT | {"kind": "grant_goodwill", "account_id": "sales", "amount": "10.00", "currency": "USD"}
SAVE = ABOUT | {"kind": "save_method", "account_id": "sales", "processor": "sandbox", "token": "tok_1"}
CREATE = ABOUT | {
    "kind": "create_account", "organization_id": "acme", "account_id": "sales", "name": "Sales", "plan": "payg",
}  # fmt: skip
GROUP = ABOUT | {
    "kind": "create_group", "organization_id": "acme", "group_id": "north", "name": "North",
    "billing_information": {"company": "North"},
}  # fmt: skip
ENTITY = ABOUT | {
    "kind": "create_billing_entity", "organization_id": "acme", "billing_entity_id": "seller", "name": "Seller",
    "address": "1 Main Street",
}  # fmt: skip
MISSING = object()

KINDS = ", ".join(f"'{each.model_fields['kind'].default}'" for each in get_args(get_args(BalanceCommand)[0]))

WRONG = [
    (EVENT, "data.called", MISSING, "is missing; add it"),
    (EVENT, "data.colour", "red", "is no field of this record; leave it out, or mend its spelling"),
    (EVENT, "data.called", 12485252160, "must be a text in quotes"),
    (EVENT, "data.called", "12485252160", 'must be a telephone number such as "+12485252160"'),
    (EVENT, "data.account_id", "-", 'must begin with a letter or digit and hold at most 64 letters, digits, "_", "." and "-"'),
    (EVENT, "data.duration_s", "60", "must be a whole number without quotes, such as 60"),
    (EVENT, "data.duration_s", 60.5, "must be a whole number without quotes, such as 60"),
    (EVENT, "data.duration_s", -1, "must be 0 or more"),
    (EVENT, "data.duration_s", 604801, "must be 604800 or less"),
    (EVENT, "data.answered", "yes", "must be true or false, without quotes"),
    (EVENT, "data.direction", "sideways", "must be one of 'inbound' or 'outbound'"),
    (EVENT, "specversion", "0.3", "must be '1.0'"),
    (EVENT, "data.ended_at", "yesterday", 'must be an instant in UTC such as "2026-10-31T23:50:00Z"'),
    (EVENT, "id", "", "must not be empty"),
    (EVENT, "id", "x" * 257, "is too long; write at most 256 characters"),
    (EVENT, "id", "a\tb", "holds a control character; leave it out"),
    (EVENT, "data", 7, "must be a JSON object in braces"),
    (MOVE, "account_ids", "sales", "must be a list in brackets"),
    (MOVE, "account_ids", [], "must have at least 1 in the list"),
    (MOVE, "account_ids.0", "a b", 'must begin with a letter or digit and hold at most 64 letters, digits, "_", "." and "-"'),
    (MOVE, "kind", MISSING, "is missing; add it"),
    (CREATE, "opened_at", "soon", 'must be an instant in UTC such as "2026-10-31T23:50:00Z"'),
    (CREATE, "opened_at", "2026-10-31T23:50:00", 'must be an instant in UTC such as "2026-10-31T23:50:00Z"'),
    (CREATE, "opened_at", "2026-10-31T23:50:00+01:00", 'must be UTC and end with "Z"'),
    (CREATE, "plan", "gold", "must be one of 'trial', 'payg' or 'invoiced'"),
    (GROUP, "billing_information", "North", "must be a JSON object in braces"),
    (GROUP, "billing_information.emails", ["nobody"], 'must be an e-mail address such as "billing@example.com"'),
    (GROUP, "billing_information.vat_id", "hello world", 'must be a VAT id such as "DE136695976"; leave it out where there is none'),
    (ENTITY, "vat_id", "DE136695967",
     'is no VAT id of its country: a digit is wrong, missing or too many; write it whole, such as "DE136695976"'),
    (GROUP, "tax_rate", "20", 'must be a rate from 0 to 1 such as "0.20"'),
    (ENTITY, "number_prefix", "ls_", 'must hold at most 16 capital letters, digits and "-"'),
    (ENTITY, "address", "a\u0000b", "holds the character U+0000; leave it out"),
    (GOODWILL, "amount", "1e3", 'must be a decimal string such as "10.00"'),
    (GOODWILL, "amount", 10, "must be a text in quotes"),
    (GOODWILL, "currency", "usd", 'must be an ISO 4217 code such as "USD"'),
    (GOODWILL, "kind", "grant_money", f"must be one of {KINDS}"),
    (SAVE, "token", "4242 4242", 'must hold only letters, digits, "_", ".", ":" and "-"'),
]  # fmt: skip


@pytest.mark.parametrize(("good", "field", "value", "sentence"), WRONG)
def test_a_wrong_field_is_named_with_its_fix(good: dict[str, Any], field: str, value: Any, sentence: str) -> None:
    assert told(good) is None
    wrong = copy.deepcopy(good)
    place: Any = wrong
    *way, last = [int(part) if part.isdigit() else part for part in field.split(".")]
    for part in way:
        place = place[part]
    if value is MISSING:
        del place[last]
    else:
        place[last] = value
    named, said = told(wrong) or ("", "")
    assert said == sentence
    assert named == field or (isinstance(value, list) and named == f"{field}.0")  # of a list, the one that is wrong


def told(document: dict[str, Any]) -> tuple[str | None, str] | None:
    """What stands in the quarantine of the room that reads this."""
    raw = json.dumps(document).encode()
    try:
        if "specversion" in document:
            decode(raw)
        elif "organization_id" in document:
            commands.decode(raw)
        else:
            decoding.decode(balance_command, raw)
    except (InvalidInput, EventRefused) as error:
        return error.field, error.message
    return None


def test_what_is_no_json_is_said_with_the_place() -> None:
    with pytest.raises(EventRefused) as refused:
        decode(b'{"id": }')
    assert refused.value.reason == "not_json"
    assert refused.value.message.startswith("the record is not JSON in UTF-8: expected value at line 1 column 8")


def test_every_pattern_that_comes_from_outside_has_its_sentence() -> None:
    patterns = {
        node["pattern"]
        for adapter in FROM_OUTSIDE
        for node in _nodes(adapter.json_schema())
        if isinstance(node.get("pattern"), str)
    }
    assert patterns <= _OF_PATTERN.keys()


BAD = [
    None, True, 1, -1, 10**30, 1.5, "", "x" * 3000, "x y", "\u0000", [], [1], ["x"] * 3, {}, {"a": 1}, "2026-13-41T00:00:00Z",
    "2026-01-01", "2026-01-01T00:00:00", "2026-01-01T00:00:00+02:00", "+1",
]  # fmt: skip
RESULT = {
    "result_id": "r1", "attempt_id": "2046e3a9-494c-8eae-94fc-f1a3ae1e2b14", "processor": "sandbox", "kind": "settled",
    "amount": "10.00", "currency": "USD", "at": "2026-10-31T23:50:00Z",
}  # fmt: skip


@pytest.mark.parametrize("good", [EVENT, MOVE, CREATE, GROUP, ENTITY, GOODWILL, SAVE, RESULT])
def test_no_error_that_a_field_can_cause_is_without_a_sentence_of_ours(good: dict[str, Any]) -> None:
    adapter = (
        USAGE_EVENTS.adapter if good is EVENT
        else groups_command if "organization_id" in good
        else balance_command if "command_id" in good
        else PAYMENTS_RESULTS.adapter
    )  # fmt: skip
    seen = set()
    for wrong in _mistakes(good):
        try:
            adapter.validate_json(json.dumps(wrong))
        except ValidationError as error:
            problem = first_problem(error)
            seen.add(problem.type)
            ours = problem.type in _OF_TYPE or problem.type in ("string_pattern_mismatch", "value_error")
            assert ours, f"{problem} has no sentence"
            assert "should" not in problem.sentence  # that is how pydantic speaks
    assert len(seen) >= 5


def _mistakes(good: Any) -> Iterator[Any]:
    """The document with one value replaced, taken away or added, everywhere."""
    yield from BAD
    if isinstance(good, dict):
        yield good | {"zz": 1}
        for name in good:
            yield {other: value for other, value in good.items() if other != name}
            for bad in _mistakes(good[name]):
                yield good | {name: bad}
    elif isinstance(good, list):
        for number, each in enumerate(good):
            for bad in _mistakes(each):
                yield [*good[:number], bad, *good[number + 1 :]]


def _nodes(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield schema
        for value in schema.values():
            yield from _nodes(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _nodes(value)
