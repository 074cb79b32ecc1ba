"""Asterisk's call records: one row a channel pair, whichever of its backends wrote them.

``Master.csv`` of cdr_csv has no header and 16 to 21 columns; cdr_custom writes the columns that its mapping names; an
export of the Realtime table ``cdr`` (cdr_odbc, cdr_adaptive_odbc, cdr_pgsql, cdr_mysql) has them by name in a header row.
Each row is judged by itself, except that an inbound row may need the number that the first row of its trunk channel was
called on. Source: domain, section 3.
"""

from __future__ import annotations

import csv
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import BinaryIO, Literal

from services.kernel.errors import InvalidInput
from services.usage.importing.clocks import candidates, local_candidates, never, span, wall_clock
from services.usage.importing.dialect import Dialect
from services.usage.importing.interface import ImportReport, LegEvent
from services.usage.importing.legs import (
    Leg,
    NoLeg,
    account_id,
    billable_number,
    billed_within,
    event_id,
    events_of,
    own_number,
    seconds,
)  # fmt: skip
from services.usage.importing.parts import NAMED_COLUMNS, missing_columns
from services.usage.importing.profile import SwitchProfile, Trunk
from services.usage.importing.rows import Refused, fields_of, lines, text_of

CHANNELS_REMEMBERED_MAX = 65_536  # trunk channels whose called number is kept for later rows of the same call

# The columns in the order of Asterisk's cdr_csv. The last five are written or not by its settings loguniqueid,
# loguserfield and newcdrcolumns (the last three together).
COLUMNS = (
    "accountcode", "src", "dst", "dcontext", "clid", "channel", "dstchannel", "lastapp", "lastdata",
    "start", "answer", "end", "duration", "billsec", "disposition", "amaflags",
)  # fmt: skip
COLUMNS_MIN, COLUMNS_MAX = len(COLUMNS), len(COLUMNS) + 5
DISPOSITIONS = frozenset({"ANSWERED", "NO ANSWER", "BUSY", "FAILED", "CONGESTION"})

# What a table holds whose disposition column is a number (cdr_odbc without dispositionstring, CDR(disposition,u)). The
# documentation of the function counts otherwise than the program: a 4 with seconds to bill is therefore refused.
DISPOSITION_NUMBERS = {
    "0": "NO ANSWER", "1": "NO ANSWER", "2": "FAILED", "4": "BUSY", "8": "ANSWERED", "16": "CONGESTION",
}  # fmt: skip

LASTDATA_MAX = 79  # characters; what is longer the switch cuts

HEADER_DELIMITERS = ",;\t|"
NULLS = frozenset({"\\N", "NULL"})

_SIP = re.compile(r"sips?:(?:([^@]*)@)?.*")
_WAITS = str.maketrans("", "", "wW")
_LINE_GROUP = re.compile(r"[gGrR][0-9]+[cdr0-9]*", re.ASCII)
_UNIQUEID = re.compile(r"(?:.*-)?([0-9]{9,10})\.[0-9]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Row:
    accountcode: str
    src: str
    dst: str
    channel: str
    dstchannel: str
    lastapp: str
    lastdata: str
    start: str
    end: str
    duration: str
    billsec: str
    disposition: str
    uniqueid: str  # empty where the switch does not log it
    linkedid: str
    sequence: str
    did: str = ""  # the number that was called from outside, where a table keeps it, as FreePBX's does
    named: bool = False  # its columns have names: what a database or a mapping may write is read


def import_master_csv(
    records: BinaryIO, profile: SwitchProfile, report: ImportReport, *, shift_days: int = 0
) -> Iterator[LegEvent]:
    """The usage events of a ``Master.csv``, in its order; the report accounts for every row.

    Where the profile names the columns (``asterisk.columns``) the file is one of cdr_custom.
    """
    return _events(_headless_rows(records, profile, report), profile, report, shift_days)


def import_realtime_csv(
    records: BinaryIO, profile: SwitchProfile, report: ImportReport, *, shift_days: int = 0
) -> Iterator[LegEvent]:
    """The usage events of an export of the table ``cdr`` with a header row; the report accounts for every other row."""
    return _events(_rows_below_header(records, report), profile, report, shift_days)


def _events(
    rows: Iterable[tuple[int, _Row | Refused]], profile: SwitchProfile, report: ImportReport, shift_days: int
) -> Iterator[LegEvent]:
    called_on = _CalledNumbers(profile)

    def judge(row: _Row) -> Leg | NoLeg:
        called_on.remember(row)
        match profile.trunk(row.channel), profile.trunk(row.dstchannel):
            case (None, None):
                return "internal"
            case (Trunk() as trunk, None):
                return _inbound(row, profile, trunk, called_on)
            case (None, Trunk() as trunk) if row.lastapp != "ConfBridge":
                return _outbound(row, profile, trunk)
        return "no_leg"

    return events_of(rows, judge, profile, report, shift_days)


# --- from bytes to a row ----------------------------------------------------------------------------------------------


def _headless_rows(
    records: BinaryIO, profile: SwitchProfile, report: ImportReport
) -> Iterator[tuple[int, _Row | Refused]]:
    mapping = profile.asterisk
    columns = _Columns(mapping.columns, mapping.dialect) if mapping else None
    for line, raw, complete in lines(records, report):
        try:
            row = _master_row(raw, complete) if columns is None else columns.row(raw, complete)
        except Refused as refused:
            if refused.code == "header" and report.rows == 0:
                # Its columns may stand in another order: the same calls would have other ids, and be billed twice.
                raise InvalidInput(refused.message, field="FILE") from None
            yield line, refused
            continue
        yield line, row


def _rows_below_header(records: BinaryIO, report: ImportReport) -> Iterator[tuple[int, _Row | Refused]]:
    columns: _Columns | None = None
    for line, raw, complete in lines(records, report):
        if columns is None:
            columns = _header(raw, complete)
            continue
        try:
            row = columns.row(raw, complete)
        except Refused as refused:
            yield line, refused
            continue
        yield line, row


def _column(index: int) -> str:
    return COLUMNS[index] if index < len(COLUMNS) else f"column {index + 1}"


def _master_row(raw: bytes, complete: bool) -> _Row:
    fields = fields_of(text_of(raw, complete, _column), _column)
    count = len(fields)
    if not {"channel", "dstchannel", "disposition"}.difference(map(str.lower, map(str.strip, fields))):
        raise Refused(
            "header",
            _column(0),
            "is a header line, and Master.csv has none; import a table that names its columns by --format asterisk-realtime",
        )
    if count < COLUMNS_MIN:
        raise Refused("short_row", _column(count), f"is missing: the row has {count} of at least {COLUMNS_MIN} columns")
    if count > COLUMNS_MAX:
        raise Refused("long_row", _column(COLUMNS_MAX), f"the row has {count} columns, at most {COLUMNS_MAX} are known")
    if fields[13] in DISPOSITIONS and fields[14] not in DISPOSITIONS:
        raise Refused(
            "invalid",
            "disposition",
            "stands where cdr_custom writes it; name the columns of its mapping in the switch profile: asterisk.columns",
        )
    uniqueid, linkedid, sequence = _settings_columns(fields[COLUMNS_MIN:])
    accountcode, src, dst, _, _, channel, dstchannel, lastapp, lastdata = fields[:9]
    start, _, end, duration, billsec, disposition = fields[9:15]
    return _Row(
        accountcode, src, dst, channel, dstchannel, lastapp, lastdata, start, end, duration, billsec, disposition,
        uniqueid, linkedid, sequence,
    )  # fmt: skip


def _settings_columns(extra: list[str]) -> tuple[str, str, str]:
    """(uniqueid, linkedid, sequence) of the columns that depend on the switch's settings; empty where not written."""
    linkedid = sequence = ""
    if len(extra) >= 3:
        *extra, _peeraccount, linkedid, sequence = extra
    if len(extra) == 1 and _UNIQUEID.fullmatch(extra[0]) is None:
        extra = []  # a userfield alone
    return (extra[0] if extra else ""), linkedid, sequence


def _header(raw: bytes, complete: bool) -> _Columns:
    """The columns that a header row names, whatever separates them."""
    text = raw.decode("utf-8", "replace") if complete else ""
    known = {*NAMED_COLUMNS, "start", "calldate"}
    found: tuple[list[str], Dialect] | None = None
    for delimiter in HEADER_DELIMITERS:
        dialect = Dialect(delimiter)
        try:
            names = [name.strip().strip("`[]").lower() for name in dialect.split(text)]
        except csv.Error:
            continue
        if found is None or len(known.intersection(names)) > len(known.intersection(found[0])):
            found = names, dialect
    if found is None or not known.intersection(found[0]):
        raise InvalidInput(
            "the first line names none of the columns of the table cdr; export it with a header row", field="header"
        )
    return _Columns(found[0], found[1])


class _Columns:
    """Where the columns stand in rows whose columns have names."""

    def __init__(self, names: Sequence[str], dialect: Dialect) -> None:
        if missing := missing_columns(names):
            raise InvalidInput(f"has no such column; add {', '.join(missing)} to the export", field=missing[0])
        self._names = tuple(names)
        self._at: Mapping[str, int] = {name: names.index(name) for name in names}
        self._dialect = dialect
        # MySQL's INTO OUTFILE has a backslash before a quote, where the others double it.
        self._backslashes = Dialect(dialect.delimiter, dialect.quote, "\\")
        delimiter = re.escape(dialect.delimiter)
        self._null = re.compile(rf"(?:(?<={delimiter})|^)\\N(?={delimiter}|$)")

    def _name(self, index: int) -> str:
        return self._names[index] if index < len(self._names) else f"column {index + 1}"

    def row(self, raw: bytes, complete: bool) -> _Row:
        fields = self._fields(self._null.sub("", text_of(raw, complete, self._name, self._dialect)))
        values = {name: self._of(fields, name) for name in NAMED_COLUMNS}
        start = self._of(fields, "start")
        return _Row(
            **values,
            start=self._of(fields, "calldate") if never(start) else start,
            end=self._of(fields, "end"),
            uniqueid=self._of(fields, "uniqueid"),
            linkedid=self._of(fields, "linkedid"),
            sequence=self._of(fields, "sequence"),
            did=self._of(fields, "did"),
            named=True,
        )

    def _of(self, fields: list[str], name: str) -> str:
        at = self._at.get(name)
        value = "" if at is None else fields[at]
        return "" if value in NULLS else value

    def _fields(self, text: str) -> list[str]:
        count = len(self._names)
        try:
            fields = fields_of(text, self._name, self._dialect)
        except Refused:
            fields = self._backslashed(text)
            if len(fields) != count:
                raise
        if len(fields) < count:
            raise Refused(
                "short_row", self._name(len(fields)), f"is missing: the row has {len(fields)} of {count} columns"
            )
        if len(fields) > count:
            raise Refused("long_row", self._name(count), f"the row has {len(fields)} columns, {count} are named")
        return fields

    def _backslashed(self, text: str) -> list[str]:
        try:
            return self._backslashes.split(text)
        except csv.Error:
            return []


# --- from a row to a leg ----------------------------------------------------------------------------------------------


class _CalledNumbers:
    """The number that the first row of each trunk channel was called on; the longest unused channel is forgotten."""

    def __init__(self, profile: SwitchProfile) -> None:
        self._profile = profile
        self._dst: OrderedDict[tuple[str, str], str] = OrderedDict()

    def remember(self, row: _Row) -> None:
        if self._profile.trunk(row.channel) is None:
            return
        key = (row.channel, row.uniqueid)
        if key in self._dst:
            self._dst.move_to_end(key)
            # Channel names begin anew when the switch restarts: without a uniqueid a number of ours starts a new call.
            if row.uniqueid or self._profile.e164(row.dst) not in self._profile.numbers:
                return
        self._dst[key] = row.dst
        if len(self._dst) > CHANNELS_REMEMBERED_MAX:
            self._dst.popitem(last=False)

    def first_of(self, row: _Row) -> str:
        return self._dst.get((row.channel, row.uniqueid), row.dst)


def _sent(row: _Row, trunk: Trunk) -> list[str]:
    """The numbers that ``lastdata`` sends to this row's trunk, its prefix taken off; a Dial may name several targets.

    Drivers take ``TECH/number@trunk`` or ``TECH/trunk/number``, chan_pjsip a SIP URI in the place of the number, and chan_dahdi
    a group of lines in the place of the trunk, and a ``w`` where it is to wait.
    """
    technology, _, name = trunk.channel.partition("/")
    dialled, comma, _ = row.lastdata.partition(",")
    targets = dialled.split("&")
    if not comma and len(dialled) >= LASTDATA_MAX:
        targets.pop()  # it may be half of one
    numbers = []
    for target in targets:
        if not target.startswith(f"{technology}/"):
            continue
        line, slash, number = target.removeprefix(f"{technology}/").partition("/")
        endpoint = line.rpartition("@")[2]
        if slash:
            uri = _SIP.fullmatch(number)
            number = uri[1] or "" if uri else number.partition("@")[0]
        else:
            number = line.removesuffix(f"@{name}") if "@" in line else ""
        if technology == "DAHDI":
            number = number.translate(_WAITS)
        if number and (endpoint == name or (technology == "DAHDI" and _LINE_GROUP.fullmatch(endpoint))):
            numbers.append(trunk.bare(number))
    return numbers


def _inbound(row: _Row, profile: SwitchProfile, trunk: Trunk, called_on: _CalledNumbers) -> Leg:
    first = called_on.first_of(row)
    ours = (profile.number_of_ours(number, trunk) for number in (row.dst, row.did, first))
    called = next((number for number in ours if number), None) or profile.e164(row.did) or profile.e164(first)
    # A number that is not in the profile is told by its trunk's code, which usage does not know as an account.
    account = profile.numbers.get(called, row.accountcode) if called else row.accountcode
    number = billable_number(called, row.did or first, _answered(row), "did" if row.did else "dst")
    return _leg(row, profile, account, "inbound", number, profile.e164(row.src, trunk))


def _outbound(row: _Row, profile: SwitchProfile, trunk: Trunk) -> Leg | NoLeg:
    # The caller dialled dst by the rules of the country; only what is sent to the trunk is written by the trunk's.
    sent = _sent(row, trunk)
    rules = trunk if sent else None
    called, *others = ("internal" if profile.is_internal(n) else profile.e164(n, rules) for n in sent or [row.dst])
    if any(other != called for other in others) and _answered(row):
        raise Refused(
            "invalid",
            "lastdata",
            "calls several numbers on this trunk, and nothing in the row tells which of them it is; dial each over a channel "
            "of its own (Local/...), so that its row has one number",
        )
    if called == "internal":
        return "internal"
    account = profile.account_of_code(row.accountcode)
    field, written = ("lastdata", sent[0]) if sent else ("dst", row.dst)
    number = billable_number(called, written, _answered(row), field)
    return _leg(row, profile, account, "outbound", number, own_number(row.src, profile))


def _leg(
    row: _Row,
    profile: SwitchProfile,
    account: str,
    direction: Literal["inbound", "outbound"],
    number: str,
    caller: str | None,
) -> Leg:
    answered = _answered(row)
    account = account_id(account, "accountcode", direction, number)
    duration_s = seconds(row.duration, "duration", fractions=row.named)
    billsec = seconds(row.billsec, "billsec", fractions=row.named)
    # With initiatedseconds the switch rounds billsec by half seconds, while it cuts the duration.
    lasted_s = billsec if billsec == duration_s + 1 else duration_s
    billed_within(billsec, lasted_s, "billsec")
    starts, ends = _times(row, profile)
    started_at, ended_at = span(starts, ends, duration_s, not_before=lambda: _created(row))
    start = starts[0].astimezone(profile.tz).strftime("%Y-%m-%d %H:%M:%S") if row.named else row.start
    return Leg(
        _event_id(row, start), account, direction, caller, number, started_at, ended_at, answered, lasted_s, billsec
    )


def _answered(row: _Row) -> bool:
    disposition = row.disposition
    if row.named:
        disposition = DISPOSITION_NUMBERS.get(disposition, disposition.upper())
        if row.disposition == "4" and row.billsec.strip("0.") != "":
            raise Refused(
                "invalid",
                "disposition",
                "is 4, which Asterisk writes for BUSY, yet there are seconds to bill; export the disposition as text",
            )
    if disposition not in DISPOSITIONS:
        raise Refused("invalid", "disposition", f"must be one of {', '.join(sorted(DISPOSITIONS))}")
    return disposition == "ANSWERED"


def _times(row: _Row, profile: SwitchProfile) -> tuple[tuple[datetime, ...], tuple[datetime, ...] | None]:
    """What start and end can mean; no end where the table has none."""
    if row.named:
        starts = candidates(row.start, profile, "start")
        return starts, None if never(row.end) else candidates(row.end, profile, "end")
    return (
        local_candidates(wall_clock(row.start, "start"), profile, "start"),
        local_candidates(wall_clock(row.end, "end"), profile, "end"),
    )


def _created(row: _Row) -> datetime | None:
    """The instant at which the channel came to be: ``uniqueid`` begins with it."""
    known = _UNIQUEID.fullmatch(row.uniqueid)
    return datetime.fromtimestamp(int(known[1]), UTC) if known else None


def _event_id(row: _Row, start: str) -> str:
    """The same row has the same id in every file and with every shift. ``uniqueid`` alone repeats: one call has many rows."""
    call = row.uniqueid or row.linkedid
    parts = (call, row.sequence) if call and row.sequence else (call, row.channel, row.dstchannel, start)
    return event_id("|".join(parts), "uniqueid" if row.sequence else "channel")
