"""The importers of FreeSWITCH 1.10: lines of cdr_csv and JSON documents of json_cdr and format_cdr."""

from __future__ import annotations

import io
import json
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.topics import USAGE_EVENTS
from services.kernel.errors import InvalidInput
from services.usage.importing import FORMATS, ImportReport, LegEvent, SwitchProfile
from services.usage.importing.freeswitch import DOCUMENT_BYTES_MAX
from services.usage.importing.profile import parse_profile
from services.usage.importing.templates import SHIPPED, Ambiguous, NoMatch, parse

PROFILE: dict[str, Any] = {
    "publisher": "berlin",
    "source": "/switches/berlin",
    "zone": "Europe/Berlin",
    "country": "US",
    "international_prefixes": ["011"],
    "trunks": [
        {"channel": "sofia/gateway/idt", "prefix": "99901", "plus_missing": True},
        {"channel": "sofia/external"},
    ],
    "internal": [r"^\d{3,5}$", r"^\*"],
    "accounts": [{"code": "1001", "account": "frontdesk"}],
    "numbers": {"+12484329407": "support"},
}
UUID, OTHER_UUID = "3da8bf84-c133-4959-9e24-e72875cb33a1", "f52c26f1-b018-4963-bf6d-a3111d1a0320"


def profile(**freeswitch: Any) -> SwitchProfile:
    return SwitchProfile.model_validate(PROFILE | ({"freeswitch": freeswitch} if freeswitch else {}))


def read(
    data: bytes, format_name: str, switch: SwitchProfile | None = None, shift_days: int = 0
) -> tuple[list[LegEvent], ImportReport]:
    report = ImportReport()
    events = list(FORMATS[format_name](io.BytesIO(data), switch or profile(), report, shift_days=shift_days))
    assert report.rows == report.published + report.internal + report.no_leg + report.refused
    assert report.bytes_read == len(data)
    for event in events:
        USAGE_EVENTS.adapter.validate_python(event.event)
    return events, report


def only(data: bytes, format_name: str, switch: SwitchProfile | None = None) -> dict[str, Any]:
    events, report = read(data, format_name, switch)
    assert report.refusals == []
    (event,) = events
    return event.event


# --- cdr_csv ----------------------------------------------------------------------------------------------------------

# Winter in Berlin: an hour before UTC.
CALL = {
    "caller_id_name": "Front Desk",
    "caller_id_number": "1001",
    "caller_id": '"Front Desk" <1001>',
    "ani": "1001",
    "destination_number": "12485252160",
    "context": "default",
    "channel_name": "sofia/internal/1001@203.0.113.7",
    "bridge_channel": "sofia/external/12485252160@198.51.100.1",
    "last_app": "bridge",
    "last_arg": "{absolute_codec_string=PCMU}sofia/external/12485252160@198.51.100.1",
    "start_stamp": "2025-11-12 10:21:42",
    "answer_stamp": "2025-11-12 10:21:45",
    "end_stamp": "2025-11-12 10:22:53",
    "duration": "71",
    "billsec": "68",
    "hangup_cause": "NORMAL_CLEARING",
    "uuid": UUID,
    "bleg_uuid": OTHER_UUID,
    "accountcode": "1001",
    "direction": "inbound",
}
INBOUND = {
    "caller_id_name": "WIRELESS CALLER",
    "caller_id_number": "+12485252160",
    "destination_number": "2484329407",
    "context": "public",
    "channel_name": "sofia/external/+12485252160@198.51.100.1",
    "bridge_channel": "sofia/internal/1001@203.0.113.7",
    "last_arg": "user/1001@203.0.113.7",
    "accountcode": "",
}
LEG = {
    "account_id": "frontdesk",
    "direction": "outbound",
    "caller": None,
    "called": "+12485252160",
    "started_at": "2025-11-12T09:21:42Z",
    "ended_at": "2025-11-12T09:22:53Z",
    "answered": True,
    "duration_s": 71,
    "billable_s": 68,
}


def line(template: str = "example", **changes: str) -> bytes:
    """A line as the switch writes it: the values as they are, whatever they hold."""
    text = SHIPPED.get(template, template).replace("${regex('${original_caller_id_name}'|^.)}", "F")
    for name in parse(text).names:
        text = text.replace(f"${{{name}}}", (CALL | changes).get(name, ""))
    return text.encode() + b"\n"


@pytest.mark.parametrize("template", [name for name in SHIPPED if name != "opencdrrate"])
def test_every_shipped_template_is_read(template: str) -> None:
    event = only(line(template), "freeswitch-csv", profile(template=template))
    assert (event["id"], event["source"], event["time"]) == (UUID, "/switches/berlin", "2025-11-12T09:22:53Z")
    assert event["data"] == LEG


@pytest.mark.parametrize("legs", ["a", "ab"])
def test_the_shipped_opencdrrate_is_read_with_a_channel_added_since_its_gateway_is_that_of_outgoing_calls_only(
    legs: str,
) -> None:
    with pytest.raises(InvalidInput, match=r"the template has no .*\$\{channel_name\}.*; add it to the template"):
        parse_profile(
            json.dumps(PROFILE | {"freeswitch": {"template": "opencdrrate", "legs": legs}}).encode(), "switch.json"
        )
    own = SHIPPED["opencdrrate"] + ',"${channel_name}"'
    switch = profile(template=own, legs=legs)
    sent = {"direction": "outbound", "sip_gateway_name": "idt", "destination_number": "9990112485252160"}
    # It does not log when the call began: the time before the answer is unknown.
    known = LEG | {"started_at": "2025-11-12T09:21:45Z", "duration_s": 68}
    assert only(line(own, **sent), "freeswitch-csv", switch)["data"] == known
    came_in = only(line(own, **(INBOUND | {"ani": "+12485252160"})), "freeswitch-csv", switch)["data"]
    assert came_in == known | {
        "account_id": "support", "direction": "inbound", "caller": "+12485252160", "called": "+12484329407",
    }  # fmt: skip


def test_a_template_of_both_legs_with_the_gateway_of_one_direction_only_is_refused() -> None:
    own = "${uuid};${direction};${destination_number};${end_epoch};${billsec};${accountcode};${sip_gateway}"
    with pytest.raises(InvalidInput, match=r"has no \$\{sofia_profile_name\} or \$\{channel_name\}; add it"):
        parse_profile(json.dumps(PROFILE | {"freeswitch": {"template": own, "legs": "ab"}}).encode(), "switch.json")
    parse_profile(json.dumps(PROFILE | {"freeswitch": {"template": own}}).encode(), "switch.json")


def test_without_a_template_in_the_profile_the_shipped_default_is_meant() -> None:
    assert only(line("example"), "freeswitch-csv")["data"] == LEG


@pytest.mark.parametrize("template", ["example", "asterisk"])
def test_a_call_from_outside_is_an_inbound_leg_of_our_numbers_account(template: str) -> None:
    data = only(line(template, **INBOUND), "freeswitch-csv", profile(template=template))["data"]
    assert data == LEG | {
        "account_id": "support", "direction": "inbound", "caller": "+12485252160", "called": "+12484329407",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("template", "changes", "counted"),
    [
        ("example", {"destination_number": "1002"}, "internal"),
        ("example", {"destination_number": "*97"}, "internal"),
        ("asterisk", {"bridge_channel": "sofia/internal/1002@203.0.113.8", "last_arg": "user/1002"}, "internal"),
        ("asterisk", {"bridge_channel": "", "last_app": "voicemail", "last_arg": "default sofia/external"}, "internal"),
        ("asterisk", {"channel_name": "sofia/external/+13135550100@198.51.100.1"}, "no_leg"),
        ("asterisk", {"last_arg": "sofia/external/911"}, "internal"),
        ("asterisk", {"last_arg": "sofia/gateway/idt/99901911"}, "internal"),
    ],
)
def test_other_records_are_no_legs_and_are_counted(template: str, changes: dict[str, str], counted: str) -> None:
    events, report = read(line(template, **changes), "freeswitch-csv", profile(template=template))
    assert events == []
    assert (getattr(report, counted), report.refused) == (1, 0)


@pytest.mark.parametrize(
    ("last_arg", "called"),
    [
        ("sofia/external/12485252160@198.51.100.1", "+12485252160"),
        ("[leg_timeout=20]sofia/gateway/idt/99901919885988143|sofia/external/13135550100@x", "+919885988143"),
        ("{a=b,c=sofia/external/1}user/1002,sofia/external/sip:17345550100@x", "+17345550100"),
        ("sofia/gateway/other/13135550100", "+12485252160"),
        ("", "+12485252160"),
    ],
)
def test_the_number_in_the_dial_string_is_normalised_by_the_rules_of_its_trunk(last_arg: str, called: str) -> None:
    row = line("asterisk", last_arg=last_arg)
    assert only(row, "freeswitch-csv", profile(template="asterisk"))["data"]["called"] == called


@pytest.mark.parametrize("last_arg", ["", "sofia/external/99195551234@198.51.100.1"])
def test_the_prefix_of_a_trunk_is_taken_off_what_was_sent_to_it_not_off_what_the_caller_dialled(last_arg: str) -> None:
    trunks = [{"channel": "sofia/external", "prefix": "9"}]
    switch = SwitchProfile.model_validate(PROFILE | {"trunks": trunks, "freeswitch": {"template": "asterisk"}})
    row = line("asterisk", destination_number="9195551234", last_arg=last_arg)
    assert only(row, "freeswitch-csv", switch)["data"]["called"] == "+19195551234"


def test_what_the_caller_dialled_is_read_by_the_country_though_the_trunk_leaves_the_plus_out() -> None:
    switch = SwitchProfile.model_validate(
        PROFILE
        | {
            "trunks": [{"channel": "sofia/external", "plus_missing": True}],
            "freeswitch": {"template": "asterisk"},
        }
    )
    row = line("asterisk", destination_number="2485242544", last_arg="")
    assert only(row, "freeswitch-csv", switch)["data"]["called"] == "+12485242544"  # and not Seychelles, +248


def test_an_unanswered_call_is_published_with_nothing_to_bill() -> None:
    row = line(answer_stamp="", billsec="0", hangup_cause="ORIGINATOR_CANCEL")
    assert only(row, "freeswitch-csv")["data"] == LEG | {"answered": False, "billable_s": 0}


def test_a_template_that_does_not_log_the_answer_is_answered_if_there_is_something_to_bill() -> None:
    own = "${uuid};${context};${destination_number};${start_epoch};${end_epoch};${billsec};${accountcode}"
    switch = profile(template=own)
    row = line(own, start_epoch="1762939302", end_epoch="1762939373")
    assert only(row, "freeswitch-csv", switch)["data"] == LEG
    silent = line(own, start_epoch="1762939302", end_epoch="1762939373", billsec="0")
    assert only(silent, "freeswitch-csv", switch)["data"] == LEG | {"answered": False, "billable_s": 0}


def test_the_hour_that_comes_twice_is_told_by_the_duration() -> None:
    row = line(start_stamp="2025-10-26 02:59:50", answer_stamp="2025-10-26 02:59:51", end_stamp="2025-10-26 02:01:01")
    data = only(row, "freeswitch-csv")["data"]
    assert (data["started_at"], data["ended_at"]) == ("2025-10-26T00:59:50Z", "2025-10-26T01:01:01Z")


def test_a_shift_keeps_the_event_id() -> None:
    (event,), _ = read(line(), "freeswitch-csv", shift_days=10)
    assert (event.event["id"], event.event["data"]["ended_at"]) == (UUID, "2025-11-22T09:22:53Z")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"caller_id_name": 'A","B'}, "line"),
        ({"uuid": ""}, "uuid"),
        ({"uuid": "\x07"}, "uuid"),
        ({"billsec": "-1"}, "billsec"),
        ({"billsec": "72"}, "billsec"),
        ({"duration": "x"}, "duration"),
        ({"end_stamp": ""}, "end_epoch"),
        ({"start_stamp": "yesterday"}, "start_stamp"),
        ({"end_stamp": "2025-11-12 10:21:41"}, "end"),
        ({"accountcode": ""}, "accountcode"),
        ({"destination_number": "0806779"}, "destination_number"),
    ],
)
def test_a_bad_line_is_refused_by_field_and_its_neighbours_go_on(changes: dict[str, str], field: str) -> None:
    events, report = read(line() + line(**changes) + line(uuid=OTHER_UUID), "freeswitch-csv")
    assert [event.event["id"] for event in events] == [UUID, OTHER_UUID]
    assert [(refused.line, refused.field) for refused in report.refusals] == [(2, field)]


@pytest.mark.parametrize(
    "data", [b"nothing of it\n", b"\xff\n", b"a\rb\xff\n", b"x" * 200_000 + b"\n", line("asterisk"), line("sql")]
)
def test_a_line_of_another_template_is_refused(data: bytes) -> None:
    _, report = read(data + line(), "freeswitch-csv")
    assert (report.refused, report.published) == (1, 1)


# --- templates --------------------------------------------------------------------------------------------------------


def test_values_are_read_as_they_are_quotes_and_all() -> None:
    values = parse(SHIPPED["asterisk"]).read(line("asterisk").decode().rstrip())
    assert values["caller_id"] == '"Front Desk" <1001>'
    assert {name: values[name] for name in values if name in CALL} == {n: CALL[n] for n in values if n in CALL}


def readings(line: str, separator: str, separators: int) -> int:
    """In how many ways a line can hold this many separators."""
    if separators == 0:
        return 1
    places = [at for at in range(len(line)) if line.startswith(separator, at)]
    return sum(readings(line[at + len(separator) :], separator, separators - 1) for at in places)


@given(st.lists(st.text('a",; ', max_size=4), min_size=2, max_size=5), st.sampled_from(['","', ",", ";", '", "', ",,"]))
def test_a_line_is_read_as_it_was_written_and_refused_exactly_where_it_can_be_read_otherwise(
    values: list[str], separator: str
) -> None:
    template = parse('"' + separator.join(f"${{v{index}}}" for index in range(len(values))) + '"')
    written = separator.join(values)
    if readings(written, separator, len(values) - 1) > 1:
        with pytest.raises(Ambiguous):
            template.read(f'"{written}"')
    else:
        assert list(template.read(f'"{written}"').values()) == values


def test_a_line_that_stops_to_fit_names_the_variable() -> None:
    with pytest.raises(NoMatch, match="c"):
        parse("${a},${b};${c}").read("1,2")


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"template": "mine"}, "freeswitch.template: .*is neither one of sql, example, .* nor a text with"),
        ({"template": "${a}${b}"}, r"freeswitch.template: .*has nothing between \$\{a\} and the next variable"),
        ({"template": "${a"}, "freeswitch.template: .*not closed"),
        (
            {"template": "${uuid},${billsec},${end_stamp},${accountcode},${context}"},
            r"no \$\{destination_number\}; add",
        ),
        ({"template": "example", "legs": "ab"}, r"no \$\{direction\}; add it to the template of the switch"),
        ({"template": "example", "account_variables": ["user_name"]}, r"no \$\{user_name\}; add"),
        ({"legs": "b"}, "freeswitch.legs: must be one of 'a' or 'ab'"),
        ({"account_variables": []}, "freeswitch.account_variables: must have at least 1 in the list"),
        ({"colour": "red"}, "freeswitch.colour: is no field of a switch profile"),
    ],
)
def test_a_wrong_part_of_the_profile_is_refused_by_field(part: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        parse_profile(json.dumps(PROFILE | {"freeswitch": part}).encode(), "switch.json")


def test_both_legs_cannot_be_read_by_the_shipped_template_though_json_can() -> None:
    with pytest.raises(InvalidInput, match=r"freeswitch\.template: the template 'example' has no \$\{direction\}"):
        read(b"", "freeswitch-csv", profile(legs="ab"))
    assert only(document(), "freeswitch-json", profile(legs="ab"))["id"] == UUID


# --- JSON -------------------------------------------------------------------------------------------------------------


def record(
    *, peers: tuple[str, ...] = (), dialled: tuple[str, ...] = ("9990112485252160",), **changes: str
) -> dict[str, Any]:
    """The called leg of an answered outbound call over a gateway; ``dialled`` is the first dialled number first."""
    variables = {
        "direction": "outbound", "is_outbound": "true", "uuid": UUID, "session_id": "15", "sip_gateway_name": "idt",
        "sip_profile_name": "gateway", "channel_name": "sofia/external/9990112485252160", "originator": OTHER_UUID,
        "accountcode": "1001", "caller_id": '"Front Desk" <1001>', "hangup_cause": "NORMAL_CLEARING",
        "start_stamp": "2025-11-12 10:21:42", "answer_stamp": "2025-11-12 10:21:45", "end_stamp": "2025-11-12 10:22:53",
        "start_epoch": "1762939302", "start_uepoch": "1762939302707743", "answer_epoch": "1762939305",
        "answer_uepoch": "1762939305107743", "end_epoch": "1762939373", "end_uepoch": "1762939373247748",
        "duration": "71", "billsec": "68", "DP_MATCH": "ARRAY::1002|:1002",
    }  # fmt: skip
    variables |= changes
    flow = [
        {
            "dialplan": "XML",
            "profile_index": str(index),
            "caller_profile": {
                "username": "1001", "caller_id_number": changes.get("caller_id_number", "1001"), "context": "default",
                "destination_number": number, "uuid": variables["uuid"], "chan_name": variables["channel_name"],
                "originatee": {"originatee_caller_profiles": [{"chan_name": peer} for peer in peers]},
            },
            "times": {"created_time": "1762939302707743", "answered_time": "1762939305107743", "hangup_time": "1762939373247748"},
        }
        for index, number in enumerate(dialled, 1)
    ]  # fmt: skip
    return {
        "core-uuid": "eb8bcdd2-d9eb-4f8f-80c3-1a4042aabe31",
        "switchname": "berlin",
        "channel_data": {"state": "CS_REPORTING", "direction": variables["direction"], "state_number": "11"},
        "callStats": {"audio": {"inbound": {"mos": 4.5}}},
        "variables": variables,
        "callflow": flow[::-1],
    }


def document(*, encoded: bool = True, indented: bool = True, **changes: Any) -> bytes:
    """The record as the switch prints it, its variables URL-encoded unless ``encode-values`` is off."""
    one = record(**changes)
    if encoded:
        one["variables"] = {name: quote(value, safe="") for name, value in one["variables"].items()}
    text = json.dumps(one, indent="\t", separators=(",", ":\t")) if indented else json.dumps(one)
    return text.encode() + b"\n"


def inbound(**changes: Any) -> dict[str, Any]:
    return {
        "direction": "inbound", "sip_gateway_name": "", "sofia_profile_name": "external", "originator": "",
        "channel_name": "sofia/external/+12485252160@198.51.100.1", "caller_id_number": "+12485252160",
        "accountcode": "", "dialled": ("2484329407", "6001", "1001"), "peers": ("sofia/internal/1001@203.0.113.7",),
    } | changes  # fmt: skip


def caller(**changes: Any) -> dict[str, Any]:
    return {
        "direction": "inbound", "sip_gateway_name": "", "sofia_profile_name": "internal", "originator": "",
        "channel_name": "sofia/internal/1001@203.0.113.7", "dialled": ("12485252160",),
        "last_app": "bridge", "last_arg": "sofia/gateway/idt/9990112485252160",
        "bridge_channel": "sofia/external/9990112485252160", "peers": ("sofia/external/9990112485252160",),
    } | changes  # fmt: skip


@pytest.mark.parametrize("encoded", [True, False])
@pytest.mark.parametrize("indented", [True, False])
def test_the_called_leg_over_a_gateway_is_an_outbound_leg(encoded: bool, indented: bool) -> None:
    event = only(document(encoded=encoded, indented=indented), "freeswitch-json")
    assert (event["id"], event["data"]) == (UUID, LEG)


@pytest.mark.parametrize("encoded", [True, False])
def test_the_leg_that_came_in_over_a_trunk_is_an_inbound_leg_of_the_number_that_was_called_first(encoded: bool) -> None:
    data = only(document(encoded=encoded, **inbound()), "freeswitch-json")["data"]
    assert data == LEG | {
        "account_id": "support", "direction": "inbound", "caller": "+12485252160", "called": "+12484329407",
    }  # fmt: skip


def test_an_inbound_number_that_is_not_in_the_profile_is_published_under_the_accountcode() -> None:
    data = only(document(**inbound(dialled=("3135550100", "1001"), accountcode="trunk-a")), "freeswitch-json")["data"]
    assert (data["account_id"], data["called"]) == ("trunk-a", "+13135550100")


def test_a_number_of_ours_is_known_without_its_plus_where_the_gateway_leaves_it_out() -> None:
    changes = {"country": "DE", "international_prefixes": ["00"], "numbers": {"+4930123456": "support"}}
    came_in = inbound(sip_gateway_name="idt", dialled=("4930123456", "1001"))
    event = only(document(**came_in), "freeswitch-json", SwitchProfile.model_validate(PROFILE | changes))
    assert (event["data"]["account_id"], event["data"]["called"]) == ("support", "+4930123456")


def test_where_both_legs_are_logged_the_callers_own_leg_is_internal() -> None:
    events, report = read(document(**caller(uuid=OTHER_UUID)) + document(), "freeswitch-json")
    assert ([event.event["id"] for event in events], report.internal) == ([UUID], 1)


def test_where_only_calling_legs_are_logged_the_caller_is_the_leg_and_both_records_are_billed_once() -> None:
    events, report = read(document(**caller(uuid=OTHER_UUID)) + document(), "freeswitch-json", profile(legs="a"))
    assert ([event.event["id"] for event in events], report.no_leg) == ([OTHER_UUID], 1)
    assert events[0].event["data"] == LEG


def test_the_caller_of_a_call_that_the_switch_began_itself_is_not_the_called_one() -> None:
    flipped = {"channel_cid_flipped": "yes", "caller_id_number": "12485252160", "originator": ""}
    data = only(document(**flipped, origination_caller_id_number="3135550100"), "freeswitch-json")["data"]
    assert data == LEG | {"caller": "+13135550100"}


def test_a_call_that_the_switch_began_itself_is_a_leg_in_either() -> None:
    for legs in ("a", "ab"):
        assert only(document(originator=""), "freeswitch-json", profile(legs=legs))["data"] == LEG


@pytest.mark.parametrize("originator", ["", OTHER_UUID])
def test_an_internal_number_is_internal_behind_the_prefix_of_its_trunk_too(originator: str) -> None:
    _, report = read(document(dialled=("999016112",), originator=originator), "freeswitch-json")
    assert (report.rows, report.internal) == (1, 1)


@pytest.mark.parametrize("legs", ["a", "ab"])
def test_a_leg_between_phones_is_internal(legs: str) -> None:
    phone = document(
        **caller(last_arg="user/1002", bridge_channel="sofia/internal/1002@x", peers=("sofia/internal/1002@x",))
    )
    called = document(
        sip_gateway_name="", channel_name="sofia/internal/1002@203.0.113.8", dialled=("1002",), originator=""
    )
    _, report = read(phone + called, "freeswitch-json", profile(legs=legs))
    assert (report.rows, report.internal) == (2, 2)


def test_from_trunk_to_trunk_each_record_is_a_leg_where_both_are_logged_and_none_where_one_is() -> None:
    through = inbound(
        peers=("sofia/external/13135550100",), uuid=OTHER_UUID, last_app="bridge", last_arg="sofia/external/13135550100"
    )
    events, _ = read(document(**through) + document(), "freeswitch-json")
    assert [event.event["data"]["direction"] for event in events] == ["inbound", "outbound"]
    assert read(document(**through), "freeswitch-json", profile(legs="a"))[1].no_leg == 1


def test_an_unanswered_record_is_published_with_nothing_to_bill() -> None:
    quiet = {"answer_epoch": "0", "answer_uepoch": "0", "billsec": "0", "hangup_cause": "ORIGINATOR_CANCEL"}
    one = record(**quiet)
    del one["variables"]["answer_stamp"]
    data = only(json.dumps(one).encode(), "freeswitch-json")["data"]
    assert data == LEG | {"answered": False, "billable_s": 0}


def test_what_the_variables_do_not_say_the_callflow_does() -> None:
    one = record()
    for name in ("uuid", "channel_name", "direction", *(n for n in one["variables"] if n.endswith(("stamp", "epoch")))):
        del one["variables"][name]
    event = only(json.dumps(one).encode(), "freeswitch-json")
    assert (event["id"], event["data"]) == (UUID, LEG)


def test_the_code_of_the_account_may_be_another_variable() -> None:
    switch = profile(account_variables=["accountcode", "sip_auth_username"])
    assert only(document(accountcode="", sip_auth_username="1001"), "freeswitch-json", switch)["data"] == LEG


@given(st.lists(st.sampled_from(["pretty", "line", "blank", "cut", "text", "empty"]), max_size=8))
def test_documents_follow_each_other_in_any_form_and_a_broken_one_ends_where_the_next_begins(kinds: list[str]) -> None:
    forms = {
        "pretty": document(), "line": document(indented=False), "blank": b"\r\n", "cut": document()[:700] + b"\n",
        "text": b"{broken\n", "empty": b"{}\n",
    }  # fmt: skip
    events, report = read(b"".join(forms[kind] for kind in kinds), "freeswitch-json")
    assert report.rows == sum(1 for kind in kinds if kind != "blank")
    assert len(events) == sum(1 for kind in kinds if kind in ("pretty", "line"))


@pytest.mark.parametrize(
    ("bad", "field", "code"),
    [
        (b"[1]\n", "variables", "not_json"),
        (b'{"variables": []}\n', "variables", "not_json"),
        (b'{"variables": {"uuid": "a"}\n', "document", "unended"),
        (b"{" * 100_000 + b"\n", "document", "not_json"),
        (b'{"variables": {"uuid": "\xff"}}\n', "document", "encoding"),
        (b'{"variables": {"x": "' + b"x" * 2 * DOCUMENT_BYTES_MAX + b'"}}\n', "document", "too_long"),
        (b"{\n" + b" " * 4_000 * 300 + b"\n}\n", "document", "too_long"),
        (document(uuid=""), "uuid", "invalid"),
        (document(encoded=False, uuid="\ud800"), "uuid", "invalid"),
        (document(direction="sideways"), "direction", "invalid"),
        (document(billsec="1.5"), "billsec", "invalid"),
        (document(end_uepoch="soon"), "end_uepoch", "invalid"),
        (document(accountcode="a b"), "accountcode", "invalid"),
        (document(dialled=("0806779",)), "destination_number", "no_number"),
    ],
)
def test_a_bad_document_is_refused_and_its_neighbours_go_on(bad: bytes, field: str, code: str) -> None:
    events, report = read(document() + bad + document(indented=False), "freeswitch-json")
    assert len(events) == 2
    assert [(refused.field, refused.code) for refused in report.refusals] == [(field, code)]


def test_values_of_any_kind_stop_nothing() -> None:
    one = record()
    one["variables"] |= {"uuid": 7, "billsec": 68, "list": ["a"], "none": None, "end_uepoch": 1762939373247748}
    one["callflow"] += ["x", {"caller_profile": 3, "times": [], "profile_index": "²"}]
    assert only(json.dumps(one).encode(), "freeswitch-json")["id"] == "7"
