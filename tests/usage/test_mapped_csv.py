"""CSV files of any make, read by the mapping in the switch profile."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from contracts.topics import USAGE_EVENTS
from services.kernel.errors import InvalidInput
from services.usage.importing import FORMATS, ImportReport, LegEvent, SwitchProfile
from services.usage.importing.profile import parse_profile, read_profile
from services.usage.importing.rows import ROW_BYTES_MAX

MAPPING: dict[str, Any] = {
    "columns": {
        "id": ["CallId", "Leg"],
        "account": "Customer",
        "direction": "Dir",
        "caller": "From",
        "called": "To",
        "started_at": "Start",
        "ended_at": "End",
        "duration": "Seconds",
        "billable": "Billed",
        "answered": "Result",
    },
    "inbound": ["IN"],
    "outbound": ["OUT", "FORWARD"],
    "internal": ["LOCAL.*"],
    "answered": ["200"],
    "unanswered": ["[3-6]..", "CANCEL"],
}
PROFILE: dict[str, Any] = {
    "publisher": "berlin",
    "source": "/switches/berlin",
    "zone": "Europe/Berlin",
    "country": "US",
    "international_prefixes": ["011"],
    "internal": [r"^\d{3,5}$"],
    "accounts": [{"code": "C-17", "account": "frontdesk"}],
    "numbers": {"+12484329407": "support"},
}
CALL = {
    "CallId": "a1", "Leg": "2", "Customer": "C-17", "Dir": "OUT", "From": "1001", "To": "12485252160",
    "Start": "2025-11-12 10:21:42", "End": "2025-11-12 10:22:53", "Seconds": "71", "Billed": "68", "Result": "200",
    "Note": "nothing",
}  # fmt: skip
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


def profile(columns: dict[str, Any] | None = None, trunks: list[Any] | None = None, **changes: Any) -> SwitchProfile:
    mapped = MAPPING["columns"] | (columns or {})
    mapping = MAPPING | {"columns": {name: column for name, column in mapped.items() if column is not None}} | changes
    return SwitchProfile.model_validate(PROFILE | {"csv": mapping, "trunks": trunks or []})


def table(*calls: dict[str, str], header: bool = True, **dialect: Any) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, **dialect)
    if header:
        writer.writerow(CALL)
    writer.writerows((CALL | call).values() for call in calls)
    return text.getvalue().encode()


def read(data: bytes, switch: SwitchProfile | None = None, shift_days: int = 0) -> tuple[list[LegEvent], ImportReport]:
    report = ImportReport()
    events = list(FORMATS["csv"](io.BytesIO(data), switch or profile(), report, shift_days=shift_days))
    assert report.rows == report.published + report.internal + report.no_leg + report.refused
    assert report.bytes_read == len(data)
    for event in events:
        USAGE_EVENTS.adapter.validate_python(event.event)
    return events, report


def only(data: bytes, switch: SwitchProfile | None = None) -> dict[str, Any]:
    events, report = read(data, switch)
    assert report.refusals == []
    (event,) = events
    return event.event


def test_a_row_is_the_leg_that_the_mapping_says() -> None:
    event = only(table({}))
    assert (event["id"], event["source"], event["time"]) == ("a1|2", "/switches/berlin", "2025-11-12T09:22:53Z")
    assert event["data"] == LEG


def test_an_inbound_leg_is_our_numbers_accounts_and_of_another_number_the_codes() -> None:
    ours, other = {"Dir": "IN", "From": "+12485252160", "To": "2484329407"}, {"Dir": "IN", "To": "3135550100"}
    inbound = {"direction": "inbound", "caller": "+12485252160", "called": "+12484329407", "account_id": "support"}
    assert only(table(ours))["data"] == LEG | inbound
    assert only(table(other))["data"]["account_id"] == "frontdesk"


def test_columns_may_be_named_by_number_and_without_a_header_must_be() -> None:
    numbers = {"id": [1, 2], "account": 3, "direction": 4, "caller": 5, "called": 6, "started_at": 7, "ended_at": 8}
    switch = profile(numbers | {"duration": 9, "billable": 10, "answered": 11}, header=False)
    assert only(table({}, header=False), switch)["data"] == LEG
    assert only(table({}), profile({"called": 6}))["data"] == LEG


@pytest.mark.parametrize(("separator", "quote"), [(";", '"'), ("\t", "'"), ("|", "'")])
def test_separator_and_quote_are_those_of_the_profile(separator: str, quote: str) -> None:
    data = table({"Note": f"a{separator}b"}, delimiter=separator, quotechar=quote)
    assert only(data, profile(separator=separator, quote=quote))["data"] == LEG


@pytest.mark.parametrize(
    ("time", "start", "end"),
    [
        ("iso", "2025-11-12T10:21:42.9", "2025-11-12T04:22:53-05:00"),
        ("epoch", "1762939302", "1762939373.25"),
        ("epoch_ms", "1762939302707", "1762939373247"),
        ("epoch_us", "1762939302707743", "1762939373247748"),
        ("%d.%m.%Y %H:%M:%S", "12.11.2025 10:21:42", "12.11.2025 10:22:53"),
        ("%m/%d/%y %I:%M:%S %p", "11/12/25 10:21:42 AM", "11/12/25 10:22:53 AM"),
        ("%Y%m%d%H%M%S%z", "20251112102142+0100", "20251112092253+0000"),
    ],
)
def test_times_are_read_as_the_profile_says(time: str, start: str, end: str) -> None:
    assert only(table({"Start": start, "End": end}), profile(time=time))["data"] == LEG


@pytest.mark.parametrize(
    ("seconds", "duration", "billed"),
    [("s", "71.9", "68"), ("ms", "71999", "68000"), ("hh:mm:ss", "0:01:11", "01:08")],
)
def test_seconds_are_read_as_the_profile_says(seconds: str, duration: str, billed: str) -> None:
    assert only(table({"Seconds": duration, "Billed": billed}), profile(seconds=seconds))["data"] == LEG


def test_what_is_not_mapped_follows_from_the_rest() -> None:
    for lacking in ("started_at", "ended_at", "duration"):
        assert only(table({}), profile({lacking: None}))["data"] == LEG
    assert only(table({"Dir": "x"}), profile({"direction": None}, direction="outbound"))["data"] == LEG
    assert only(table({"Billed": "0"}), profile({"answered": None}))["data"]["answered"] is False
    assert only(table({}), profile({"answered": None}))["data"] == LEG


@pytest.mark.parametrize(
    "changes", [{"Dir": "LOCAL-1"}, {"To": "1002"}, {"Note": "carrier/other"}],
)  # fmt: skip
def test_a_call_inside_the_switch_is_internal(changes: dict[str, str]) -> None:
    trunks = [{"channel": "sofia/idt"}]
    switch = profile({"trunk": "Note"}, trunks) if "Note" in changes else profile()
    assert read(table(changes), switch)[1].internal == 1


def test_the_rules_of_the_rows_trunk_hold_for_the_called_number() -> None:
    trunks = [{"channel": "carrier/idt", "prefix": "99901", "plus_missing": True}]
    row = table({"To": "99901919885988143", "Note": "carrier/idt"})
    assert only(row, profile({"trunk": "Note"}, trunks))["data"]["called"] == "+919885988143"
    inside = table({"To": "999016112", "Note": "carrier/idt"})
    assert read(inside, profile({"trunk": "Note"}, trunks))[1].internal == 1


@pytest.mark.parametrize(
    "uri",
    [
        "sip:{}@198.51.100.1",
        "<sip:{}@198.51.100.1:5060;user=phone>",
        '"A, B" <sips:{}@sbc.example;transport=tls>;tag=a',
        "sip:{};npdi=yes;rn=+13135550100@198.51.100.1",
        "tel:{};phone-context=+1",
        "SIP:{}",
    ],
)
def test_numbers_may_be_uris(uri: str) -> None:
    data = only(table({"To": uri.format("+12485252160"), "From": uri.format("%2B13135550101")}))["data"]
    assert data == LEG | {"caller": "+13135550101"}
    assert read(table({"To": uri.format("1002")}))[1].internal == 1
    came_in = only(table({"Dir": "IN", "To": uri.format("2484329407"), "From": "sip:anonymous@anonymous.invalid"}))
    assert (came_in["data"]["account_id"], came_in["data"]["caller"]) == ("support", None)


@pytest.mark.parametrize(
    "uri",
    [
        "sip:192.168.10.50",
        "sips:192.168.10.50;transport=tls",
        '"A" <sip:192.168.10.50:5060>;tag=a@b',
        "<sip:203.0.113.100>",
    ],
)
def test_the_host_of_a_uri_that_names_nobody_is_no_number(uri: str) -> None:
    """Its digits may be as many as a number has."""
    (refusal,) = read(table({"To": uri}))[1].refusals
    assert (refusal.field, refusal.code) == ("called", "no_number")
    assert only(table({"From": uri}))["data"]["caller"] is None


def test_an_unanswered_leg_has_nothing_to_bill() -> None:
    assert only(table({"Result": "486"}))["data"] == LEG | {"answered": False, "billable_s": 0}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"Dir": "SIDEWAYS"}, "direction"),
        ({"Dir": "in"}, "direction"),
        ({"Result": "2000"}, "answered"),
        ({"Result": ""}, "answered"),
        ({"CallId": "", "Leg": ""}, "id"),
        ({"CallId": "x" * 300}, "id"),
        ({"Customer": "a b"}, "account"),
        ({"To": "0806779"}, "called"),
        ({"Start": "12.11.2025"}, "started_at"),
        ({"Start": "2025-03-30 02:30:00"}, "started_at"),
        ({"End": "2025-11-12 10:21:41"}, "ended_at"),
        ({"Seconds": "-1"}, "duration"),
        ({"Billed": "72"}, "billable"),
        ({"Billed": "1:08"}, "billable"),
    ],
)
def test_a_bad_row_is_refused_by_field_and_its_neighbours_go_on(changes: dict[str, str], field: str) -> None:
    events, report = read(table({}, changes, {"Leg": "3"}))
    assert [event.event["id"] for event in events] == ["a1|2", "a1|3"]
    assert [(refused.line, refused.field) for refused in report.refusals] == [(3, field)]


@pytest.mark.parametrize("time", ["epoch", "epoch_ms", "epoch_us", "%d.%m.%Y %H:%M:%S", "%Y%m%d%H%M%S%z"])
@pytest.mark.parametrize("text", ["soon", "9" * 40, "-5", "12.11.0000 00:00:00", "99991231235959-2359"])
def test_a_time_that_is_none_is_refused(time: str, text: str) -> None:
    _, report = read(table({"Start": text}), profile(time=time))
    assert (report.refusals[0].field, report.published) == ("started_at", 0)


@pytest.mark.parametrize(
    ("columns", "data", "message"),
    [
        ({"called": "Callee"}, table({}), r"^csv\.columns\.called: 'Callee' stands nowhere in the header: CallId, Leg"),
        ({"called": 13}, table({}), r"^csv\.columns\.called: is 13, but the header has 12 columns"),
        ({"called": "To"}, b"To,To\n", r"^csv\.columns\."),
        (
            {},
            table({}).replace(b"\r\n", b"\r"),
            "^header: has a CR within it; end the lines of the file by LF or CR LF",
        ),
    ],
)
def test_a_file_without_a_mapped_column_is_refused(columns: dict[str, Any], data: bytes, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        read(data, profile(columns))


def test_a_file_cannot_be_read_without_a_mapping() -> None:
    switch = SwitchProfile.model_validate(PROFILE | {"trunks": [{"channel": "PJSIP/x"}]})
    with pytest.raises(InvalidInput, match=r"^csv: is missing in the switch profile; add it"):
        read(table({}), switch)


@given(st.lists(st.binary(max_size=120), max_size=8))
@example([b"a\rb,\xff", b"a\rb", b'"a\rb"', b"a\r," + b"x" * ROW_BYTES_MAX])
def test_whatever_the_lines_hold_the_report_accounts_for_every_one(garbage: list[bytes]) -> None:
    rows = [one.replace(b"\n", b"").rstrip(b"\r") for one in garbage]
    _, report = read(table({}) + b"".join(row + b"\n" for row in rows))
    assert report.rows == 1 + sum(1 for row in rows if row)


def test_the_sample_file_by_a_mapping_gives_the_seconds_and_times_that_its_own_importer_gives() -> None:
    demo = Path(__file__).parents[2] / "deploy" / "demo"
    own = read_profile(demo / "switch_profile.json")
    mapping = {
        "header": False,
        "columns": {"id": [6, 7, 10], "account": 1, "called": 3, "started_at": 10, "ended_at": 12, "duration": 13,
                    "billable": 14, "answered": 15},
        "direction": "outbound", "answered": ["ANSWERED"], "unanswered": [".*"],
    }  # fmt: skip
    switch = SwitchProfile.model_validate(json.loads((demo / "switch_profile.json").read_bytes()) | {"csv": mapping})
    data = (demo / "asterisk_master.csv").read_bytes()

    def by_channels(events: list[LegEvent]) -> dict[str, tuple[Any, ...]]:
        what = ("started_at", "ended_at", "duration_s", "billable_s", "answered")
        return {
            event.event["id"].split("|", 1)[1]: tuple(event.event["data"][name] for name in what) for event in events
        }

    theirs = list(FORMATS["asterisk"](io.BytesIO(data), own, ImportReport()))
    mapped = {f"{event.event['id']}": event for event in read(data, switch)[0]}
    both = by_channels(theirs).keys() & mapped.keys()
    assert len(both) > 100
    for identity in both:
        assert by_channels(theirs)[identity] == tuple(
            mapped[identity].event["data"][name]
            for name in ("started_at", "ended_at", "duration_s", "billable_s", "answered")
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"columns": {"id": "a", "called": "b", "billable": "c"}},
            "csv: columns has no ended_at; add it, or started_at",
        ),
        ({"columns": {"id": "a", "called": "b"}}, r"csv\.columns\.billable: is missing"),
        ({"columns": MAPPING["columns"] | {"id": []}}, r"csv\.columns\.id: must be the name of a column, or"),
        ({"columns": MAPPING["columns"] | {"id": ["a", 1.5]}}, r"csv\.columns\.id: must be the name of a column, or"),
        ({"columns": MAPPING["columns"] | {"called": 0}}, r"csv\.columns\.called: must be the name of a column, or"),
        ({"columns": MAPPING["columns"] | {"called": None}}, r"csv\.columns\.called: must be the name of a column, or"),
        ({"header": False}, r"csv: columns\.id\.0 must be the number of a column"),
        ({"direction": "inbound"}, "csv: direction must be either a column"),
        (
            {"columns": {n: c for n, c in MAPPING["columns"].items() if n != "direction"}},
            "csv: direction must be either",
        ),
        ({"inbound": [], "outbound": []}, r"csv: columns\.direction needs the values"),
        ({"answered": []}, r"csv: columns\.answered needs the values"),
        ({"answered": ["("]}, r"csv\.answered\.0: '\(' is no regular expression"),
        ({"time": "soon"}, r"csv\.time: 'soon' does not hold a date"),
        ({"time": "%H:%M:%S"}, r"csv\.time: '%H:%M:%S' does not hold a date with hours and minutes"),
        ({"time": "%Y-%m-%d %H:%M:%S %Z"}, r"csv\.time: has %Z"),
        ({"seconds": "minutes"}, r"csv\.seconds: must be one of 's', 'ms' or 'hh:mm:ss'"),
        ({"separator": ";;"}, r"csv\.separator: must be one character"),
        ({"colour": "red"}, r"csv\.colour: is no field"),
    ],
)
def test_a_wrong_mapping_is_refused_by_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        parse_profile(json.dumps(PROFILE | {"csv": MAPPING | changes}).encode(), "switch.json")
