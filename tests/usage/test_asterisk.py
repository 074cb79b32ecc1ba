"""The importer of Asterisk's ``Master.csv``, as a specification."""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from contracts.topics import USAGE_EVENTS
from services.kernel.errors import InvalidInput
from services.usage.importing import FORMATS, ImportReport, LegEvent, SwitchProfile, read_profile
from services.usage.importing.asterisk import COLUMNS
from services.usage.importing.interface import REFUSALS_KEPT_MAX
from services.usage.importing.profile import parse_profile

PROFILE: dict[str, Any] = {
    "publisher": "detroit",
    "source": "/switches/detroit",
    "zone": "America/Detroit",
    "country": "US",
    "international_prefixes": ["011"],
    "trunks": [
        {"channel": "PJSIP/VIOrig"},
        {"channel": "PJSIP/thinQ"},
        {"channel": "PJSIP/IDT", "prefix": "99901", "plus_missing": True},
    ],
    "internal": [r"^\d{3,5}$", r"^\*"],
    "accounts": [{"code": "1115", "account": "frontdesk"}, {"code": "22..", "account": "field"}],
    "numbers": {"+12484329407": "support"},
}


def profile(**changes: Any) -> SwitchProfile:
    return SwitchProfile.model_validate(PROFILE | changes)


def columns(**changes: str) -> list[str]:
    """An answered outbound row of 18 columns; the last two are uniqueid and userfield."""
    values = dict.fromkeys(COLUMNS, "") | {
        "accountcode": "1115",
        "src": "1115",
        "dst": "2485242544",
        "channel": "PJSIP/1115-00000001",
        "dstchannel": "PJSIP/thinQ-00000002",
        "lastapp": "Dial",
        "lastdata": "PJSIP/12485252160@thinQ,,XL(81520000:60000:15000)",
        "start": "2018-11-29 20:20:17",
        "answer": "2018-11-29 20:20:18",
        "end": "2018-11-29 20:20:38",
        "duration": "21",
        "billsec": "20",
        "disposition": "ANSWERED",
        "amaflags": "DOCUMENTATION",
    }
    uniqueid = changes.pop("uniqueid", "1543540817.1")
    return [*(values | changes).values(), uniqueid, ""]


def inbound(**changes: str) -> list[str]:
    values = {
        "accountcode": "VIOrig",
        "src": "12485252160",
        "dst": "2484329407",
        "channel": "PJSIP/VIOrig-0000000e",
        "dstchannel": "",
        "lastapp": "AGI",
        "lastdata": "",
        "uniqueid": "1543598928.14",
    }
    return columns(**(values | changes))


def line(fields: list[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerow(fields)
    return text.getvalue().encode()


def read(
    *rows: list[str] | bytes, switch: SwitchProfile | None = None, shift_days: int = 0
) -> tuple[list[LegEvent], ImportReport]:
    report = ImportReport()
    data = b"".join(row if isinstance(row, bytes) else line(row) for row in rows)
    events = list(FORMATS["asterisk"](io.BytesIO(data), switch or profile(), report, shift_days=shift_days))
    assert report.rows == report.published + report.internal + report.no_leg + report.refused
    for event in events:
        USAGE_EVENTS.adapter.validate_python(event.event)
    return events, report


def only(*rows: list[str] | bytes, switch: SwitchProfile | None = None, shift_days: int = 0) -> dict[str, Any]:
    events, report = read(*rows, switch=switch, shift_days=shift_days)
    assert report.refusals == []
    (event,) = events
    data: dict[str, Any] = event.event["data"]
    return data


# --- legs -------------------------------------------------------------------------------------------------------------


def test_a_row_with_the_trunk_on_its_destination_side_is_an_outbound_leg() -> None:
    events, report = read(columns())
    assert (report.rows, report.published, report.legs) == (1, 1, 1)
    assert events[0].account_id == "frontdesk"
    assert events[0].event == {
        "specversion": "1.0",
        "id": "1543540817.1|PJSIP/1115-00000001|PJSIP/thinQ-00000002|2018-11-29 20:20:17",
        "source": "/switches/detroit",
        "type": "tollbook.usage.voice.leg.v1",
        "time": "2018-11-30T01:20:38Z",
        "datacontenttype": "application/json",
        "data": {
            "account_id": "frontdesk",
            "direction": "outbound",
            "caller": None,
            "called": "+12485252160",
            "started_at": "2018-11-30T01:20:17Z",
            "ended_at": "2018-11-30T01:20:38Z",
            "answered": True,
            "duration_s": 21,
            "billable_s": 20,
        },
    }
    assert json.loads(json.dumps(events[0].event)) == events[0].event


def test_a_row_with_the_trunk_on_its_source_side_is_an_inbound_leg_of_our_numbers_account() -> None:
    data = only(inbound())
    assert (data["account_id"], data["direction"], data["called"]) == ("support", "inbound", "+12484329407")
    assert data["caller"] == "+12485252160"


@pytest.mark.parametrize(
    ("fields", "counted"),
    [
        (columns(dstchannel="Local/1141@stasis-dial-00000032;1"), "internal"),
        (columns(dstchannel=""), "internal"),
        (columns(channel="PJSIP/VIOrig-00000001"), "no_leg"),
        (columns(lastapp="ConfBridge", dst="6112", lastdata=""), "no_leg"),
        (columns(lastdata="PJSIP/6112@thinQ"), "internal"),
        (columns(lastdata="", dst="*67"), "internal"),
        (columns(dstchannel="PJSIP/IDT-00000002", lastdata="PJSIP/999016112@IDT"), "internal"),
    ],
)
def test_other_rows_are_no_legs_and_are_counted(fields: list[str], counted: str) -> None:
    events, report = read(fields)
    assert events == []
    assert (getattr(report, counted), report.legs, report.refused) == (1, 0, 0)


def test_a_conference_row_with_the_trunk_on_its_source_side_is_a_leg() -> None:
    assert only(inbound(lastapp="ConfBridge"))["direction"] == "inbound"


def test_a_channel_that_only_begins_like_a_trunk_is_none() -> None:
    assert read(columns(dstchannel="PJSIP/thinQ2-00000002"))[1].internal == 1


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trunk", "dialled", "called"),
    [
        ("thinQ", "12485252160", "+12485252160"),
        ("thinQ", "2485252160", "+12485252160"),
        ("thinQ", "+919885988143", "+919885988143"),
        ("thinQ", "011919885975953", "+919885975953"),
        ("IDT", "99901011919885988143", "+919885988143"),
        ("IDT", "919885997641", "+919885997641"),
        ("IDT", "12485252160", "+12485252160"),
    ],
)
def test_the_number_in_lastdata_is_normalised_by_the_rules_of_its_trunk(trunk: str, dialled: str, called: str) -> None:
    row = columns(dstchannel=f"PJSIP/{trunk}-00000002", lastdata=f"PJSIP/{dialled}@{trunk},,X")
    assert only(row)["called"] == called


@pytest.mark.parametrize(
    "lastdata", ["", "PJSIP/99901", "PJSIP/1115/sip:1115@203.0.113.18:1317", "PJSIP/13135550100@VIOrig"]
)
def test_without_a_number_for_this_trunk_in_lastdata_dst_is_the_number(lastdata: str) -> None:
    assert only(columns(lastdata=lastdata))["called"] == "+12485242544"


@pytest.mark.parametrize(
    ("country", "prefix", "dst", "called"),
    [("US", "9", "9195551234", "+19195551234"), ("DE", "00", "00442079460000", "+442079460000")],
)
def test_dst_is_what_the_caller_dialled_so_the_prefix_of_the_trunk_is_not_taken_off_it(
    country: str, prefix: str, dst: str, called: str
) -> None:
    international = {"US": "011", "DE": "00"}[country]
    switch = profile(
        country=country, international_prefixes=[international], trunks=[{"channel": "PJSIP/thinQ", "prefix": prefix}]
    )
    assert only(columns(lastdata="", dst=dst), switch=switch)["called"] == called
    assert only(columns(lastdata=f"PJSIP/{prefix}{dst}@thinQ", dst="s"), switch=switch)["called"] == called


@pytest.mark.parametrize(
    ("trunk", "channel", "target"),
    [
        ("SIP/carrier", "SIP/carrier-0000002a", "SIP/carrier/7000301234567"),
        ("SIP/carrier", "SIP/carrier-0000002a", "SIP/7000301234567@carrier"),
        ("IAX2/carrier", "IAX2/carrier-12345", "IAX2/me:secret@carrier/7000301234567@calls"),
        ("PJSIP/carrier", "PJSIP/carrier-0000002a", "PJSIP/carrier/sip:7000301234567@198.51.100.7:5060"),
        ("DAHDI/i1", "DAHDI/i1/7000301234567-2a", "DAHDI/g1/7000301234567"),
        ("DAHDI/i1", "DAHDI/i1/7000301234567-2a", "DAHDI/i1/7000301234567"),
        ("DAHDI/1", "DAHDI/1-1", "DAHDI/g0/ww700w0301234567"),
    ],
)
def test_the_number_is_found_however_a_driver_takes_it(trunk: str, channel: str, target: str) -> None:
    """The caller dials a 0 for a line, with which the number would be one in Greece."""
    switch = profile(country="DE", international_prefixes=["00"], trunks=[{"channel": trunk, "prefix": "700"}])
    both = f"SIP/other/2135550100&{target},60,tT"
    assert (
        only(columns(dst="00301234567", dstchannel=channel, lastdata=both), switch=switch)["called"] == "+49301234567"
    )


def test_the_host_of_a_sip_uri_that_names_nobody_is_no_number() -> None:
    """Its digits may be as many as a number has."""
    assert only(columns(dst="2485252160", lastdata="PJSIP/thinQ/sip:192.168.10.50"))["called"] == "+12485252160"


def test_a_target_that_the_switch_has_cut_is_no_number() -> None:
    """It cuts lastdata at 79 characters, and in some countries half a number may be one."""
    switch = profile(country="DE", international_prefixes=["00"], trunks=[{"channel": "SIP/carrier"}])
    targets = "&".join([*(f"SIP/desk-{number:02}" for number in range(5)), "SIP/carrier/0301234567"])

    def called(lastdata: str) -> Any:
        row = columns(dst="0897654321", dstchannel="SIP/carrier-0000002a", lastdata=lastdata)
        return only(row, switch=switch)["called"]

    assert called(targets[:79]) == "+49897654321"  # and not +49301234
    assert called(targets[12:]) == called(f"{targets[12:]},60,tT") == "+49301234567"


def test_dst_is_what_the_caller_dialled_so_it_is_read_by_the_country_though_the_trunk_leaves_the_plus_out() -> None:
    row = columns(dst="2485242544", dstchannel="PJSIP/IDT-00000002", lastdata="PJSIP/${EXTEN}")
    assert only(row)["called"] == "+12485242544"  # and not Seychelles, +248


def test_of_several_targets_the_one_of_this_rows_trunk_counts() -> None:
    assert only(columns(lastdata="PJSIP/13135550100@VIOrig&PJSIP/17345550100@thinQ,30"))["called"] == "+17345550100"


@pytest.mark.parametrize("other", ["7345550100", "6112", "0806779"])
def test_an_answered_row_of_a_trunk_that_was_called_on_several_numbers_at_once_is_refused(other: str) -> None:
    """Each of its targets has a row, and all of them have the same lastdata."""
    both = f"PJSIP/13135550100@thinQ&PJSIP/{other}@thinQ,30"
    same = "PJSIP/13135550100@thinQ&PJSIP/3135550100@thinQ,30"
    unanswered = columns(lastdata=both, disposition="NO ANSWER", billsec="0", uniqueid="1543540817.2")
    events, report = read(columns(lastdata=both), unanswered, columns(lastdata=same, uniqueid="1543540817.3"))
    assert [(event.event["data"]["called"], event.event["data"]["answered"]) for event in events] == [
        ("+13135550100", False),
        ("+13135550100", True),
    ]
    assert [(refused.line, refused.field, refused.code) for refused in report.refusals] == [(1, "lastdata", "invalid")]


@pytest.mark.parametrize("dialled", ["08023366360", "24848380964", "919490535813", "881142", "0806779"])
def test_an_answered_leg_without_a_usable_number_is_refused_and_an_unanswered_one_is_not_published(
    dialled: str,
) -> None:
    lastdata = f"PJSIP/{dialled}@thinQ"
    events, report = read(columns(lastdata=lastdata), columns(lastdata=lastdata, disposition="FAILED"), columns())
    assert len(events) == 1
    assert [(refused.line, refused.field, refused.code) for refused in report.refusals] == [
        (1, "lastdata", "no_number"),
        (2, "lastdata", "unanswered_no_number"),
    ]
    assert report.legs == 3


def test_what_is_no_number_and_a_code_that_is_missing_are_said_with_the_fix() -> None:
    _, report = read(
        columns(lastdata="PJSIP/5252160@thinQ", dst="7"),
        inbound(dst=""),
        inbound(dst="s" * 100, uniqueid="1543598928.15"),
        columns(accountcode=""),
    )
    assert [str(refusal).partition(";")[0] for refusal in report.refusals] == [
        "line 1, lastdata: '5252160' is no telephone number",
        "line 2, dst: is empty, and so is no telephone number",
        f"line 3, dst: {'s' * 40!r} is no telephone number",
        "line 4, accountcode: is empty",
    ]
    assert report.refusals[0].message.endswith("is not to be billed belongs under internal")
    assert report.refusals[3].message == "is empty; map it in the switch profile (accounts)"
    (refusal,) = read(inbound(dst="3135550100", accountcode=""))[1].refusals
    assert (refusal.field, refusal.message) == (
        "accountcode",
        "is empty, and +13135550100 is no number of yours; add that to the switch profile (numbers)",
    )
    assert only(columns(accountcode=""), switch=profile(accounts=[{"code": "", "account": "main"}]))


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_compressed_file_is_refused_as_that(format_name: str) -> None:
    switch = profile(csv={"columns": {"id": 1, "called": 2, "billable": 3, "ended_at": 4}, "direction": "outbound"})
    for packed in (gzip.compress(line(columns())), lzma.compress(line(columns()))):
        with pytest.raises(InvalidInput, match=r"is compressed; unpack it"):
            list(FORMATS[format_name](io.BytesIO(packed), switch, ImportReport()))


def test_an_inbound_number_that_is_not_ours_is_that_of_the_first_row_of_the_same_trunk_channel_and_uniqueid() -> None:
    first = inbound(lastapp="ForkCDR")
    queue = inbound(dst="6001", lastapp="Queue", dstchannel="Local/1127@callback-agent-00000024;1")
    other_call = inbound(dst="6001", uniqueid="1543598929.20")
    events, report = read(first, queue, other_call)
    assert [event.event["data"]["called"] for event in events] == ["+12484329407"] * 2
    assert [(refused.line, refused.field) for refused in report.refusals] == [(3, "dst")]


def test_an_inbound_number_that_is_not_in_the_profile_is_published_under_the_accountcode() -> None:
    data = only(inbound(dst="3135550100"))
    assert (data["account_id"], data["called"]) == ("VIOrig", "+13135550100")


def test_both_numbers_of_an_inbound_leg_are_known_without_their_plus_where_the_trunk_leaves_it_out() -> None:
    trunks = [{"channel": "PJSIP/VIOrig", "plus_missing": True}]
    berlin = profile(country="DE", international_prefixes=["00"], trunks=trunks, numbers={"+4930123456": "support"})
    data = only(inbound(dst="4930123456", src="491711234567"), switch=berlin)
    assert (data["account_id"], data["called"], data["caller"]) == ("support", "+4930123456", "+491711234567")
    assert only(inbound(dst="030123456"), switch=berlin)["account_id"] == "support"


def test_a_number_that_a_national_plan_allows_and_e164_does_not_is_none() -> None:
    """An odd caller must not keep the leg from being billed."""
    switch = profile(country="DE", international_prefixes=["00"], numbers={"+4930123456": "support"})
    came_in = only(inbound(dst="030123456", src="0301234567890123"), switch=switch)
    assert (came_in["called"], came_in["caller"]) == ("+4930123456", None)
    _, report = read(columns(lastdata="PJSIP/0301234567890123@thinQ"), switch=switch)
    assert report.refused_by_code == {"no_number": 1}


@pytest.mark.parametrize(
    ("src", "caller"),
    [
        ("Anonymous", None),
        ("Restricted", None),
        ("", None),
        ("+917930101452", "+917930101452"),
        ("2485252160", "+12485252160"),
    ],
)
def test_a_caller_may_be_unknown(src: str, caller: str | None) -> None:
    assert only(inbound(src=src))["caller"] == caller


# --- accounts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "account"), [("1115", "frontdesk"), ("2215", "field"), ("22155", "22155"), ("9", "9")]
)
def test_a_code_is_mapped_as_a_whole_and_one_without_an_entry_is_itself_the_account(code: str, account: str) -> None:
    events, _ = read(columns(accountcode=code))
    assert (events[0].account_id, events[0].event["data"]["account_id"]) == (account, account)


def test_of_two_codes_that_match_the_first_holds() -> None:
    switch = profile(accounts=[{"code": "2215", "account": "one"}, {"code": ".*", "account": "rest"}])
    events, _ = read(columns(accountcode="2215"), columns(accountcode="x y"), switch=switch)
    assert [event.account_id for event in events] == ["one", "rest"]


@pytest.mark.parametrize("code", ["", "a b", "front\x00desk", "é", "x" * 65])
def test_a_code_that_cannot_be_an_account_id_is_refused(code: str) -> None:
    _, report = read(columns(accountcode=code), columns())
    assert [(refused.line, refused.field) for refused in report.refusals] == [(1, "accountcode")]
    assert report.published == 1


# --- seconds and instants ---------------------------------------------------------------------------------------------


def test_a_billsec_that_the_switch_rounded_up_is_billed_and_the_leg_lasted_as_long() -> None:
    """With ``initiatedseconds`` billsec is rounded by half seconds, and the duration is cut."""
    data = only(columns(billsec="22"))
    assert (data["duration_s"], data["billable_s"]) == (22, 22)
    assert data["ended_at"] == only(columns())["ended_at"]


def test_an_unanswered_leg_is_published_with_nothing_to_bill_whatever_billsec_says() -> None:
    data = only(columns(disposition="NO ANSWER", duration="13", billsec="13"))
    assert (data["answered"], data["duration_s"], data["billable_s"]) == (False, 13, 0)


@pytest.mark.parametrize(
    ("start", "end", "uniqueid", "duration", "started_at", "ended_at"),
    [
        # summer and winter
        ("2018-07-01 12:00:00", "2018-07-01 12:00:21", "1.1", "21", "2018-07-01T16:00:00Z", "2018-07-01T16:00:21Z"),
        ("2018-12-01 12:00:00", "2018-12-01 12:00:21", "1.1", "21", "2018-12-01T17:00:00Z", "2018-12-01T17:00:21Z"),
        # the hour that comes twice: the uniqueid tells which, 05:30Z is 1541309400
        ("2018-11-04 01:30:00", "2018-11-04 01:30:21", "1541309399.1", "21", "2018-11-04T05:30:00Z", "2018-11-04T05:30:21Z"),
        ("2018-11-04 01:30:00", "2018-11-04 01:30:21", "1541313000.1", "21", "2018-11-04T06:30:00Z", "2018-11-04T06:30:21Z"),
        # a call across the moment the clock is set back, and one across the moment it is set forward
        ("2018-11-04 01:59:50", "2018-11-04 01:00:11", "1541311190.1", "21", "2018-11-04T05:59:50Z", "2018-11-04T06:00:11Z"),
        ("2018-11-04 01:30:00", "2018-11-04 02:30:00", "", "7200", "2018-11-04T05:30:00Z", "2018-11-04T07:30:00Z"),
        ("2018-03-11 01:59:50", "2018-03-11 03:00:11", "1520751590.1", "21", "2018-03-11T06:59:50Z", "2018-03-11T07:00:11Z"),
    ],
)  # fmt: skip
def test_wall_clocks_of_the_profiles_zone_become_instants(
    start: str, end: str, uniqueid: str, duration: str, started_at: str, ended_at: str
) -> None:
    data = only(columns(start=start, end=end, uniqueid=uniqueid, duration=duration))
    assert (data["started_at"], data["ended_at"]) == (started_at, ended_at)


def test_a_wall_clock_that_does_not_exist_is_refused() -> None:
    _, report = read(columns(start="2018-03-11 02:30:00", end="2018-03-11 03:30:00"))
    assert (report.refusals[0].field, report.refusals[0].line) == ("start", 1)


def test_a_shift_is_by_whole_days_after_conversion_and_keeps_the_event_id() -> None:
    summer = columns(start="2018-07-01 12:00:00", end="2018-07-01 12:00:21")
    assert only(summer, shift_days=153)["ended_at"] == "2018-12-01T16:00:21Z"
    assert read(summer, shift_days=153)[0][0].event["id"] == read(summer)[0][0].event["id"]


# --- event ids --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "event_id"),
    [
        ([], "|PJSIP/1115-00000001|PJSIP/thinQ-00000002|2018-11-29 20:20:17"),
        (["my note"], "|PJSIP/1115-00000001|PJSIP/thinQ-00000002|2018-11-29 20:20:17"),
        (["a1-1543540817.1"], "a1-1543540817.1|PJSIP/1115-00000001|PJSIP/thinQ-00000002|2018-11-29 20:20:17"),
        (["1543540817.1", "my note"], "1543540817.1|PJSIP/1115-00000001|PJSIP/thinQ-00000002|2018-11-29 20:20:17"),
        (["", "1543540816.9", "7"], "1543540816.9|7"),
        (["1543540817.1", "", "1543540816.9", "7"], "1543540817.1|7"),
        (["my note", "", "1543540816.9", "7"], "1543540816.9|7"),
        (["1543540817.1", "my note", "", "1543540816.9", "7"], "1543540817.1|7"),
    ],
)
def test_16_to_21_columns_are_read_by_what_the_switch_was_told_to_log(extra: list[str], event_id: str) -> None:
    events, _ = read([*columns()[:16], *extra])
    assert [event.event["id"] for event in events] == [event_id]


def test_without_uniqueids_a_channel_name_that_comes_again_after_a_restart_is_a_new_call() -> None:
    other = profile(numbers={"+12484329407": "support", "+18778874413": "free"})
    first, queue = inbound()[:16], inbound(dst="6001", lastapp="Queue")[:16]
    again = inbound(dst="8778874413")[:16]
    events, _ = read(first, queue, again, queue, switch=other)
    assert [event.account_id for event in events] == ["support", "support", "free", "free"]


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "field", "code"),
    [
        (b"1115,1115,2485242544\r\n", "dcontext", "short_row"),
        (line([*columns(), "", "", "", "one too many"]), "column 22", "long_row"),
        (line([*COLUMNS, "uniqueid", "userfield"]), "accountcode", "header"),
        (line(columns(dst="24852x2544")).replace(b"x", b"\xe9"), "dst", "encoding"),
        (line(columns(dst="24852x2544")).replace(b"1115", b"11\r15").replace(b"x", b"\xe9"), "dst", "encoding"),
        (line(columns()).replace(b"2485242544", b'"2485242544'), "dst", "not_csv"),
        (line(columns(clid="x" * 10_000_000)), "clid", "too_long"),
        (line(columns(clid="x" * 10_000_000)).replace(b"1115", b"11\r15"), "clid", "too_long"),
        (line(columns(duration="-1")), "duration", "invalid"),
        (line(columns(duration="２１")), "duration", "invalid"),
        (line(columns(duration="604801")), "duration", "invalid"),
        (line(columns(billsec="23")), "billsec", "invalid"),
        (line(columns(billsec="1_0")), "billsec", "invalid"),
        (line(columns(disposition="MAYBE")), "disposition", "invalid"),
        (line(columns(end="")), "end", "invalid"),
        (line(columns(end="2018-11-31 00:00:00")), "end", "invalid"),
        (line(columns(end="2018-11-29 20:20:16")), "end", "invalid"),
        (line(columns(start="29.11.2018 20:20")), "start", "invalid"),
        (line(columns(end="9999-12-31 23:59:59")), "end", "invalid"),
        (line(columns(channel="PJSIP/" + "x" * 300)), "channel", "invalid"),
        (line(columns(channel="PJSIP/11\x0015-00000001")), "channel", "invalid"),
    ],
)
def test_a_bad_row_is_refused_with_its_line_and_field_and_its_neighbours_go_on(
    bad: bytes, field: str, code: str
) -> None:
    events, report = read(columns(), bad, columns(uniqueid="1543540818.2"))
    assert len(events) == 2
    assert [(refused.line, refused.field, refused.code) for refused in report.refusals] == [(2, field, code)]
    assert report.refusals[0].message
    assert str(report.refusals[0]).startswith(f"line 2, {field}: ")


def test_blank_lines_are_no_rows_and_a_last_line_needs_no_end() -> None:
    events, report = read(line(columns()), b"\r\n", line(columns(uniqueid="1543540818.2")).rstrip())
    assert (len(events), report.rows) == (2, 2)


def test_memory_stays_bounded_by_a_field_of_any_size() -> None:
    class Field(io.RawIOBase):
        """A row whose last field goes on for 200 MB."""

        left = 200 * 2**20

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            size = min(len(buffer), self.left)
            buffer[:size] = b"x" * size
            self.left -= size
            return size

    report = ImportReport()
    tracemalloc.start()
    events = list(FORMATS["asterisk"](io.BufferedReader(Field()), profile(), report))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (events, report.rows, report.refused) == ([], 1, 1)
    assert peak < 4 * 2**20


def test_refusals_are_named_up_to_a_bound_and_counted_beyond_it() -> None:
    _, report = read(b"short,row\n" * (REFUSALS_KEPT_MAX + 10))
    assert (len(report.refusals), report.refused) == (REFUSALS_KEPT_MAX, REFUSALS_KEPT_MAX + 10)


# --- the profile ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"zone": "Mars/Olympus"}, "zone: 'Mars/Olympus' is no IANA time zone"),
        ({"country": "UK"}, "country: 'UK' is no country with a number plan"),
        ({"internal": ["("]}, r"internal.0: '\(' is no regular expression"),
        ({"trunks": []}, "trunks: must name at least one channel that leads out of the switch"),
        ({"trunks": [{"channel": "thinQ"}]}, "trunks.0.channel: must be a technology, a slash and a name, such as"),
        ({"trunks": [{"channel": "PJSIP/x", "plus_missing": "yes"}]}, "trunks.0.plus_missing: must be true or false"),
        ({"international_prefixes": ["+"]}, "international_prefixes.0: must be 1 to 15 digits"),
        ({"accounts": [{"code": "1115"}]}, "accounts.0.account: is missing in switch.json"),
        ({"numbers": {"2484329407": "support"}}, "numbers.2484329407: must be a telephone number such as"),
        ({"internal": ["1{99999999999}"]}, r"internal.0: '1\{99999999999\}' is no regular expression"),
        ({"colour": "red"}, "colour: is no field of a switch profile"),
        ({"publisher": 7}, "publisher: must be a text in quotes"),
    ],
)
def test_a_wrong_profile_is_refused_by_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        parse_profile(json.dumps(PROFILE | changes).encode(), "switch.json")


@pytest.mark.parametrize(
    ("data", "name", "message"),
    [
        (b"{", "switch.json", "switch.json cannot be read"),
        (b"[" * 100_000, "switch.json", "switch.json"),
        (b'{"zone": "UTC", "zone": "UTC"}', "switch.json", "the field 'zone' stands twice"),
        (b"\xff", "switch.toml", "switch.toml cannot be read"),
        (b"zone = ", "switch.toml", "switch.toml cannot be read"),
        (b"zone: UTC", "switch.yaml", "neither .json nor .toml"),
    ],
)
def test_a_file_that_is_no_profile_is_refused(data: bytes, name: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        parse_profile(data, name)


TOML = (
    'publisher = "detroit"\nsource = "/switches/detroit"\nzone = "America/Detroit"\ncountry = "US"\n'
    "international_prefixes = [\"011\"]\ninternal = ['^\\d{3,5}$']\n"
    '[[trunks]]\nchannel = "PJSIP/thinQ"\n[[accounts]]\ncode = "22.."\naccount = "field"\n'
    '[numbers]\n"+12484329407" = "support"\n'
)


def test_a_profile_may_be_toml(tmp_path: Path) -> None:
    file = tmp_path / "switch.toml"
    file.write_text(TOML)
    switch = read_profile(file)
    assert (switch.account_of_code("2215"), switch.is_internal("1115")) == ("field", True)


@pytest.mark.parametrize(("text", "name"), [(json.dumps(PROFILE), "switch.json"), (TOML, "switch.toml")])
def test_a_byte_order_mark_is_no_part_of_a_profile(text: str, name: str) -> None:
    assert parse_profile(text.encode("utf-8-sig"), name) == parse_profile(text.encode(), name)


def test_a_profile_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"none\.json cannot be read: No such file"):
        read_profile(tmp_path / "none.json")
