"""Asterisk's other files: exports of the Realtime table ``cdr`` with a header row, and what cdr_custom writes."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from contracts.topics import USAGE_EVENTS
from services.kernel.errors import InvalidInput
from services.usage.importing import FORMATS, ImportReport, LegEvent, SwitchProfile
from services.usage.importing.asterisk import COLUMNS
from services.usage.importing.parts import NAMED_COLUMNS
from services.usage.importing.profile import parse_profile
from services.usage.importing.rows import ROW_BYTES_MAX
from tests.usage.test_asterisk import PROFILE, columns, line, profile

# The table of Asterisk 11 to 22's own migrations, in its order.
TABLE = (
    "accountcode", "src", "dst", "dcontext", "clid", "channel", "dstchannel", "lastapp", "lastdata", "start", "answer",
    "end", "duration", "billsec", "disposition", "amaflags", "userfield", "uniqueid", "linkedid", "peeraccount",
    "sequence",
)  # fmt: skip
# The older table of cdr_odbc and cdr_mysql, as most distributions create it.
OLD_TABLE = (
    "calldate", "clid", "src", "dst", "dcontext", "channel", "dstchannel", "lastapp", "lastdata", "duration", "billsec",
    "disposition", "amaflags", "accountcode", "uniqueid", "userfield",
)  # fmt: skip
# The mapping of the sample configuration of cdr_custom.
MAPPING = (
    "clid", "src", "dst", "dcontext", "channel", "dstchannel", "lastapp", "lastdata", "start", "answer", "end",
    "duration", "billsec", "disposition", "amaflags", "accountcode", "uniqueid", "userfield", "sequence",
)  # fmt: skip


def call(**changes: str) -> dict[str, str]:
    """The same answered outbound call as `columns()`, with everything the newest table has."""
    values = dict(zip(COLUMNS, columns(), strict=False))
    values |= {"clid": '"Front, desk" <1115>', "uniqueid": "1543540817.1", "userfield": "", "linkedid": "1543540817.1"}
    values |= {"peeraccount": "", "sequence": "7", "calldate": values["start"]}
    return values | changes


def table(names: tuple[str, ...], *calls: dict[str, str], delimiter: str = ",") -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(names)
    writer.writerows([one[name] for name in names] for one in calls)
    return text.getvalue().encode()


def read(
    data: bytes, *, format_name: str = "asterisk-realtime", switch: SwitchProfile | None = None
) -> tuple[list[LegEvent], ImportReport]:
    report = ImportReport()
    events = list(FORMATS[format_name](io.BytesIO(data), switch or profile(), report))
    assert report.rows == report.published + report.internal + report.no_leg + report.refused
    for event in events:
        USAGE_EVENTS.adapter.validate_python(event.event)
    return events, report


def only(data: bytes, **how: Any) -> dict[str, Any]:
    events, report = read(data, **how)
    assert report.refusals == []
    (event,) = events
    return event.event


MASTER = [*columns()[:16], "1543540817.1", "", "", "1543540817.1", "7"]


def test_a_row_of_the_table_gives_the_event_that_the_same_row_of_master_csv_gives() -> None:
    assert only(table(TABLE, call())) == only(line(MASTER), format_name="asterisk")


@pytest.mark.parametrize(
    ("dst", "did", "called"),
    [
        ("6001", "2484329407", "+12484329407"),
        ("s", "+12484329407", "+12484329407"),
        ("2484329407", "", "+12484329407"),
        ("2484329407", "3135550100", "+12484329407"),
        ("6001", "3135550100", "+13135550100"),
    ],
)
def test_the_number_that_was_called_from_outside_may_have_a_column_of_its_own(dst: str, did: str, called: str) -> None:
    """FreePBX's table has one; its dst is the extension, queue or menu that the call came to."""
    came_in = {"channel": "PJSIP/VIOrig-0000000e", "dstchannel": "PJSIP/6001-0000000f", "src": "3135550177"}
    row = call(**came_in, dst=dst, lastdata="PJSIP/6001,,HhTtr") | {"did": did}
    data = only(table((*OLD_TABLE, "did", "linkedid"), row))["data"]
    assert (data["direction"], data["called"]) == ("inbound", called)
    assert data["account_id"] == ("support" if called == "+12484329407" else "1115")


def test_the_older_table_has_calldate_and_no_end() -> None:
    event = only(table(OLD_TABLE, call()))
    assert event["id"] == "1543540817.1|PJSIP/1115-00000001|PJSIP/thinQ-00000002|2018-11-29 20:20:17"
    assert event == only(line([*columns()[:16], "1543540817.1", ""]), format_name="asterisk")


@given(st.permutations(TABLE), st.sampled_from(",;\t|"), st.sampled_from([str.lower, str.upper, str.title]))
def test_the_columns_stand_in_any_order_and_case_with_any_separator(
    names: list[str], delimiter: str, case: Any
) -> None:
    header, rest = table(tuple(names), call(), delimiter=delimiter).split(b"\r\n", 1)
    assert only(case(header.decode()).encode() + b"\r\n" + rest) == only(line(MASTER), format_name="asterisk")


@given(st.sets(st.sampled_from([name for name in TABLE if name not in (*NAMED_COLUMNS, "start")])))
def test_whatever_else_the_table_lacks_the_same_call_is_billed(lacking: set[str]) -> None:
    event = only(table(tuple(name for name in TABLE if name not in lacking), call()))
    assert event["data"] == only(line(MASTER), format_name="asterisk")["data"]
    if not {"uniqueid", "sequence"} & lacking:
        assert event["id"] == "1543540817.1|7"


@pytest.mark.parametrize("lacking", [*NAMED_COLUMNS, "start"])
def test_a_table_without_a_column_that_billing_needs_is_refused_by_name(lacking: str) -> None:
    names = tuple(name for name in TABLE if name != lacking)
    with pytest.raises(InvalidInput, match=f"^{lacking}: has no such column; add {lacking} to the export"):
        read(table(names, call()))


@pytest.mark.parametrize("data", [line(MASTER), b"nothing,of,it\r\n", b"\xff\xfe\x00", b'"open\r\n', b"x" * 200_000])
def test_a_file_whose_first_line_is_no_header_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput, match="names none of the columns of the table cdr"):
        read(data)


@pytest.mark.parametrize("names", [TABLE, OLD_TABLE, (*OLD_TABLE, *("more",) * 9)])
def test_a_table_that_is_taken_for_master_csv_is_refused_with_the_format_that_reads_it(names: tuple[str, ...]) -> None:
    """One whose columns stand almost in the order of Master.csv would be billed under ids of its own."""
    with pytest.raises(InvalidInput, match=r"is a header line, .* by --format asterisk-realtime$"):
        read(table(names, call(more="")), format_name="asterisk")


def test_an_empty_table_is_an_empty_report() -> None:
    assert read(b"")[1].rows == read(table(TABLE))[1].rows == 0


def test_a_byte_order_mark_and_quoted_names_are_no_part_of_the_names() -> None:
    header, rest = table(TABLE, call()).split(b"\r\n", 1)
    quoted = b",".join(b'"' + name + b'"' for name in header.split(b","))
    assert only(b"\xef\xbb\xbf" + quoted + b"\n" + rest)["id"] == "1543540817.1|7"


@pytest.mark.parametrize(
    "start", ["2018-11-29 20:20:17", "2018-11-29T20:20:17", "2018-11-29 20:20:17.123456", "2018-11-30 01:20:17+00",
              "2018-11-29 20:20:17-05:00", "2018-11-30T01:20:17Z", "1543540817", "1543540817.654321"],
)  # fmt: skip
def test_one_instant_in_every_way_a_database_writes_it_is_one_event(start: str) -> None:
    without_sequence = tuple(name for name in TABLE if name != "sequence")
    event = only(table(without_sequence, call(start=start, end="")))
    assert (event["data"]["started_at"], event["data"]["ended_at"]) == ("2018-11-30T01:20:17Z", "2018-11-30T01:20:38Z")
    assert event["id"] == "1543540817.1|PJSIP/1115-00000001|PJSIP/thinQ-00000002|2018-11-29 20:20:17"


@pytest.mark.parametrize("end", ["", "\\N", "NULL", "0", "0000-00-00 00:00:00", "1970-01-01 00:00:00"])
def test_where_the_end_is_missing_it_is_start_and_duration(end: str) -> None:
    assert only(table(TABLE, call(end=end)))["data"]["ended_at"] == "2018-11-30T01:20:38Z"


def test_an_end_without_value_in_the_hour_that_comes_twice_is_told_by_the_uniqueid() -> None:
    late = call(start="2018-11-04 01:30:00", end="", uniqueid="1541313000.1")
    assert only(table(TABLE, late))["data"]["ended_at"] == "2018-11-04T06:30:21Z"


@pytest.mark.parametrize(
    ("disposition", "answered"),
    [("8", True), ("ANSWERED", True), ("Answered", True), ("0", False), ("1", False), ("2", False), ("4", False),
     ("16", False), ("NO ANSWER", False), ("BUSY", False), ("FAILED", False), ("CONGESTION", False)],
)  # fmt: skip
def test_a_disposition_is_a_text_or_asterisks_number(disposition: str, answered: bool) -> None:
    row = call(disposition=disposition, billsec="20" if answered else "0")
    assert only(table(TABLE, row))["data"]["answered"] is answered


def test_fractions_of_seconds_are_cut_as_in_the_switchs_whole_number_column() -> None:
    data = only(table(TABLE, call(duration="21.987654", billsec="20.5")))["data"]
    assert (data["duration_s"], data["billable_s"]) == (21, 20)


def test_mysqls_backslashes_are_understood() -> None:
    header, rest = table(TABLE, call(clid="x", userfield="\\N")).split(b"\r\n", 1)
    data = header + b"\n" + rest.replace(b",x,", b',"\\"Front, desk\\" <1115>",')
    assert only(data)["data"]["billable_s"] == 20


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"disposition": "4"}, "disposition"),
        ({"disposition": "3"}, "disposition"),
        ({"disposition": ""}, "disposition"),
        ({"start": ""}, "start"),
        ({"start": "29/11/2018 20:20"}, "start"),
        ({"start": "2018-11-31 00:00:00"}, "start"),
        ({"start": "2018-03-11 02:30:00"}, "start"),
        ({"end": "2018-11-29 20:20:16"}, "end"),
        ({"duration": "-1"}, "duration"),
        ({"duration": "1e3"}, "duration"),
        ({"billsec": ".5"}, "billsec"),
        ({"billsec": "23"}, "billsec"),
        ({"accountcode": "a b"}, "accountcode"),
    ],
)
def test_a_bad_row_is_refused_by_field_and_its_neighbours_go_on(changes: dict[str, str], field: str) -> None:
    calldate = {"calldate": ""} if "start" in changes else {}
    events, report = read(table(TABLE, call(), call(**changes, **calldate), call(sequence="8")))
    assert len(events) == 2
    assert [(refused.line, refused.field) for refused in report.refusals] == [(3, field)]


def test_a_row_with_more_or_fewer_fields_than_the_header_is_refused() -> None:
    data = table(TABLE, call()) + b"too,short\r\n" + line([*MASTER, "too", "long"])
    assert [refused.code for refused in read(data)[1].refusals] == ["short_row", "long_row"]


@given(st.lists(st.binary(max_size=200), max_size=8))
@example([b"a\rb,\xff", b"a\rb", b'"a\rb"', b"a\r," + b"x" * ROW_BYTES_MAX])
def test_whatever_the_lines_hold_the_report_accounts_for_every_one(garbage: list[bytes]) -> None:
    rows = [one.replace(b"\n", b"").rstrip(b"\r") for one in garbage]
    events, report = read(table(TABLE, call()) + b"".join(row + b"\n" for row in rows) + table(TABLE, call()))
    # The second header is a row like any other: it names no trunk.
    assert report.rows == 3 + sum(1 for row in rows if row)
    assert [event.event["id"] for event in events] == ["1543540817.1|7"] * 2


# --- cdr_custom -------------------------------------------------------------------------------------------------------


def custom(names: tuple[str, ...] | list[str] = MAPPING, **changes: Any) -> SwitchProfile:
    return profile(asterisk={"columns": list(names)} | changes)


def test_cdr_custom_writes_the_columns_of_its_mapping() -> None:
    row = line([call()[name] for name in MAPPING])
    assert only(row, format_name="asterisk", switch=custom()) == only(line(MASTER), format_name="asterisk")


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=30)


@given(
    clid=TEXTS, userfield=TEXTS, dcontext=TEXTS, answered=st.booleans(), billsec=st.integers(0, 21),
    uniqueid=st.from_regex(r"([a-z]{1,8}-)?15[0-9]{8}\.[0-9]{1,6}", fullmatch=True), sequence=st.integers(0, 2**31 - 1),
)  # fmt: skip
def test_the_same_call_is_the_same_event_whichever_backend_wrote_it(
    clid: str, userfield: str, dcontext: str, answered: bool, billsec: int, uniqueid: str, sequence: int
) -> None:
    one = call(
        clid=clid, userfield=userfield, dcontext=dcontext, disposition="ANSWERED" if answered else "BUSY",
        billsec=str(billsec) if answered else "0", uniqueid=uniqueid, sequence=str(sequence),
    )  # fmt: skip
    extra = ("uniqueid", "userfield", "peeraccount", "linkedid", "sequence")
    master = only(line([one[name] for name in (*COLUMNS, *extra)]), format_name="asterisk")
    assert master["id"] == f"{uniqueid}|{sequence}"
    assert only(table(TABLE, one)) == master
    assert only(line([one[name] for name in MAPPING]), format_name="asterisk", switch=custom()) == master


def test_the_columns_may_be_copied_from_the_fields_of_an_advanced_mapping() -> None:
    names = [
        "Uniqueid(noquote)" if name == "uniqueid" else "a literal" if name == "userfield" else name for name in MAPPING
    ]
    row = "\t".join(f"'{call()[name]}'" for name in MAPPING).encode() + b"\n"
    event = only(row, format_name="asterisk", switch=custom(names, separator="\t", quote="'", escape="\\"))
    assert event == only(line(MASTER), format_name="asterisk")


def test_a_file_of_cdr_custom_without_its_mapping_in_the_profile_is_refused_with_the_fix() -> None:
    _, report = read(line([call()[name] for name in MAPPING]), format_name="asterisk")
    assert "asterisk.columns" in report.refusals[0].message


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"columns": [name for name in MAPPING if name != "dst"]}, r"asterisk\.columns: .*has no dst; add"),
        ({"columns": [name for name in MAPPING if name != "start"]}, r"asterisk\.columns: .*has no start; add"),
        ({}, r"asterisk\.columns: is missing in switch\.json; add it"),
        ({"columns": list(MAPPING), "separator": ""}, r"asterisk\.separator: "),
        ({"columns": list(MAPPING), "colour": "red"}, r"asterisk\.colour: is no field of a switch profile"),
    ],
)
def test_a_wrong_mapping_is_refused_by_field(part: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        parse_profile(json.dumps(PROFILE | {"asterisk": part}).encode(), "switch.json")
