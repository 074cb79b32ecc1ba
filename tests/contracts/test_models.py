"""What the contracts accept and refuse."""

import json

import pytest
from pydantic import TypeAdapter, ValidationError

from contracts.balance import balance_command
from contracts.groups import AccountTimeline, BillingInformation, GivenBillingInformation
from contracts.topics import BALANCE_COMMANDS, USAGE_EVENTS
from contracts.words import Amount, Instant, SignedAmount

EVENT = {
    "specversion": "1.0",
    "id": "1543540817.1",
    "source": "//switch.example/pbx",
    "type": "tollbook.usage.voice.leg.v1",
    "data": {
        "account_id": "frontdesk",
        "direction": "outbound",
        "caller": None,
        "called": "+12485252160",
        "started_at": "2026-10-30T20:20:17Z",
        "ended_at": "2026-10-30T20:20:38Z",
        "answered": True,
        "duration_s": 21,
        "billable_s": 20,
    },
}


def event(**changes):
    return json.dumps(EVENT | {"data": EVENT["data"] | changes}).encode()


def test_a_voice_leg_event_is_accepted_with_extension_attributes():
    assert USAGE_EVENTS.adapter.validate_json(json.dumps(EVENT | {"myextension": "x"}).encode())["id"] == "1543540817.1"


@pytest.mark.parametrize(
    "changes",
    [
        {"billable_s": -1},
        {"billable_s": 1.5},
        {"billable_s": "20"},
        {"billable_s": True},
        {"answered": "true"},
        {"called": "12485252160"},
        {"called": "+1248525\u0000"},
        {"started_at": "2026-10-30T20:20:17"},
        {"started_at": "2026-10-30T20:20:17+02:00"},
        {"account_id": ""},
        {"unknown_field": 1},
    ],
    ids=str,
)
def test_what_is_not_exactly_a_voice_leg_is_refused(changes):
    with pytest.raises(ValidationError):
        USAGE_EVENTS.adapter.validate_json(event(**changes))


@pytest.mark.parametrize(
    "text", ["1_000", "1e2", "NaN", "Infinity", "", " 1", "+1", "1.", ".5", "1.0000000001", "１０", "-0.5", "1\n"]
)
def test_an_amount_is_ascii_digits_only(text):
    with pytest.raises(ValidationError):
        TypeAdapter(Amount).validate_python(text)


@pytest.mark.parametrize("text", ["0", "10.00", "0.000000001", "999999999999.999999999"])
def test_amounts_that_are_amounts(text):
    assert TypeAdapter(Amount).validate_python(text) == text
    assert TypeAdapter(SignedAmount).validate_python(f"-{text}") == f"-{text}"


@pytest.mark.parametrize(
    "text", ["9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.9999999Z", "0001-01-01T00:00:00Z"], ids=str
)
def test_the_first_and_the_last_instant_of_all_are_no_instants(text):
    """Programs write them for "never", and the database for infinity, which comes back without a zone."""
    with pytest.raises(ValidationError, match="which cannot be kept"):
        TypeAdapter(Instant).validate_json(f'"{text}"')


@pytest.mark.parametrize("text", ["9999-12-31T23:59:59Z", "0001-01-01T00:00:00.000001Z", "2026-10-31T23:50:00Z"])
def test_any_other_instant_in_utc_is_one(text):
    assert TypeAdapter(Instant).validate_json(f'"{text}"').tzinfo is not None


@pytest.mark.parametrize("text", ["2026-10-31T24:00:00Z", "2026-10-31T23:60:00Z", "2026-10-31T23:59:60Z"])
def test_an_hour_of_the_next_day_is_no_instant_whatever_python_reads_it(text):
    """Python 3.14 reads 24:00 as the next day, those before it do not: an event is one everywhere or nowhere."""
    with pytest.raises(ValidationError):
        USAGE_EVENTS.adapter.validate_json(event(ended_at=text))


def test_a_json_number_is_never_an_amount():
    command = {
        "kind": "open_balance",
        "command_id": "c1",
        "actor": "op",
        "role": "operator",
        "account_id": "a",
        "currency": "USD",
    }
    with pytest.raises(ValidationError) as caught:
        BALANCE_COMMANDS.adapter.validate_json(json.dumps(command | {"amount": 10.5}).encode())
    assert caught.value.errors()[0]["loc"][-1] == "amount"
    assert balance_command.validate_json(json.dumps(command | {"amount": "10.5"}).encode()).amount == "10.5"


def test_a_timeline_comes_back_as_it_was_sent():
    timeline = {
        "account_id": "a", "account_no": 1, "version": 3, "organization_id": "o", "name": "A", "currency": "USD",
        "opened_at": "2026-10-01T00:00:00Z", "created_at": "2026-11-21T08:00:00Z", "level_2": False, "credit_limit": "0",
        "closed_at": None, "plans": [{"from": "2026-10-01T00:00:00Z", "to": None, "plan": "payg"}],
        "groups": [{"from": "2026-10-01T00:00:00Z", "to": None, "group_id": "g", "zone": "UTC", "currency": "USD", "pricing_model": None,
                    "account_id": None}],
    }  # fmt: skip
    decoded = AccountTimeline.model_validate_json(json.dumps(timeline))
    assert json.loads(json.dumps(decoded.data())) == timeline


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("DE136695976", "DE136695976"),
        (" de 136.695.976", "DE136695976"),
        ("FR 61 954 506 077", "FR61954506077"),
        ("EL 094259216", "EL094259216"),
        ("BE697449992", "BE0697449992"),  # as it was written before 2005
        ("GB 980 7806 84", "GB 980 7806 84"),
        ("12-3456789", "12-3456789"),
        (None, None),
    ],
)
def test_vat_ids_of_the_eu_are_kept_compact_and_others_as_they_are(written, kept):
    assert GivenBillingInformation(company="X", vat_id=written).vat_id == kept


@pytest.mark.parametrize(
    "written", ["DE136695967", "DE13669597", "EL094259217", "XI980780685", "FR", "hello world", ""]
)
def test_a_vat_id_whose_digits_are_wrong_is_refused_when_it_is_given_and_readable_when_it_is_kept(written):
    with pytest.raises(ValidationError):
        GivenBillingInformation(company="X", vat_id=written)
    assert BillingInformation(company="X", vat_id=written).vat_id == written
