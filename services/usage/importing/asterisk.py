"""Asterisk ``Master.csv``: one row a channel pair, without a header, in 16 to 21 columns.

The switch writes one line a row. Each row is judged by itself, except that an inbound row may need the number that the
first row of its trunk channel was called on. Source: domain, section 3.
"""

from __future__ import annotations

import csv
import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO

from contracts.usage import CALL_SECONDS_MAX, VOICE_LEG
from contracts.words import ID_PATTERN
from services.usage.importing.interface import ImportReport, LegEvent, RefusalCode, RefusedRow
from services.usage.importing.profile import SwitchProfile, Trunk

ROW_BYTES_MAX = 65_536  # a real row has a few hundred bytes; what is longer is skipped without being held
CHANNELS_REMEMBERED_MAX = 65_536  # trunk channels whose called number is kept for later rows of the same call
EVENT_ID_MAX = 256  # of the contract

# The columns in the order of Asterisk's cdr_csv. The last five are written or not by its settings loguniqueid,
# loguserfield and newcdrcolumns (the last three together).
COLUMNS = (
    "accountcode", "src", "dst", "dcontext", "clid", "channel", "dstchannel", "lastapp", "lastdata",
    "start", "answer", "end", "duration", "billsec", "disposition", "amaflags",
)  # fmt: skip
COLUMNS_MIN, COLUMNS_MAX = len(COLUMNS), len(COLUMNS) + 5
DISPOSITIONS = frozenset({"ANSWERED", "NO ANSWER", "BUSY", "FAILED", "CONGESTION"})

_UNIQUEID = re.compile(r"(?:.*-)?([0-9]{9,10})\.[0-9]+", re.ASCII)
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}", re.ASCII)
_SECONDS = re.compile(r"[0-9]{1,9}", re.ASCII)
_ACCOUNT = re.compile(ID_PATTERN)
_PRINTABLE = re.compile(r"[^\x00-\x1f\x7f]+")


class _Refused(Exception):
    def __init__(self, code: RefusalCode, field: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.field = field
        self.message = message


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


def import_master_csv(
    records: BinaryIO, profile: SwitchProfile, report: ImportReport, *, shift_days: int = 0
) -> Iterator[LegEvent]:
    """The usage events of a ``Master.csv``, in its order; the report accounts for every row."""
    called_on = _CalledNumbers(profile)
    shift = timedelta(days=shift_days)
    for line, raw, complete in _lines(records, report):
        report.rows += 1
        try:
            row = _row(raw, complete)
            called_on.remember(row)
            sides = (profile.trunk(row.channel), profile.trunk(row.dstchannel))
            match sides:
                case (None, None):
                    report.internal += 1
                    continue
                case (Trunk(), None):
                    event = _inbound(row, profile, called_on, shift)
                case (None, Trunk() as trunk) if row.lastapp != "ConfBridge":
                    dialled = _dialled(row, trunk)
                    if profile.is_internal(dialled):
                        report.internal += 1
                        continue
                    event = _outbound(row, profile, trunk, dialled, shift)
                case _:
                    report.no_leg += 1
                    continue
        except _Refused as refused:
            report.refuse(RefusedRow(line, refused.field, refused.code, refused.message))
            continue
        report.published += 1
        yield event


# --- from bytes to a row ----------------------------------------------------------------------------------------------


def _lines(records: BinaryIO, report: ImportReport) -> Iterator[tuple[int, bytes, bool]]:
    """(line number, bytes, whole) of every line that is not blank. Of a line that is too long only the beginning is
    held. A quote that is not closed ends with its line, so it cannot swallow the rows behind it."""
    number = 0
    while raw := records.readline(ROW_BYTES_MAX):
        number += 1
        report.bytes_read += len(raw)
        complete = raw.endswith(b"\n") or len(raw) < ROW_BYTES_MAX
        rest = raw
        while not complete and rest and not rest.endswith(b"\n"):
            rest = records.readline(ROW_BYTES_MAX)
            report.bytes_read += len(rest)
        stripped = raw.rstrip(b"\r\n")
        if stripped:
            yield number, stripped, complete


def _fields(text: str, *, strict: bool = True) -> list[str]:
    return next(csv.reader((text,), strict=strict), [])


_FIELD = re.compile(r'"(?:[^"]|"")*"(?=,|$)|(?!")[^,]*')


def _misquoted(text: str) -> int:
    """The index of the first field whose quotes are wrong: not closed, or followed by something else than a comma."""
    index = at = 0
    while (field := _FIELD.match(text, at)) is not None and field.end() < len(text):
        index, at = index + 1, field.end() + 1
    return index


def _column(index: int) -> str:
    return COLUMNS[index] if index < len(COLUMNS) else f"column {index + 1}"


def _row(raw: bytes, complete: bool) -> _Row:
    if not complete:
        index = max(len(_fields(raw.decode("latin-1"), strict=False)) - 1, 0)
        raise _Refused(
            "too_long",
            _column(index),
            f"the row is longer than {ROW_BYTES_MAX} bytes in this field; a row of the switch never is",
        )
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        before = _fields(raw[: error.start].decode("latin-1") + "x", strict=False)
        raise _Refused(
            "encoding", _column(len(before) - 1), "is not UTF-8; convert the file to UTF-8 and import it again"
        ) from None
    try:
        fields = _fields(text)
    except csv.Error as error:
        raise _Refused(
            "not_csv", _column(_misquoted(text)), f"is not CSV ({error}); check the quotes of the row"
        ) from None
    count = len(fields)
    if count < COLUMNS_MIN:
        raise _Refused(
            "short_row", _column(count), f"is missing: the row has {count} of at least {COLUMNS_MIN} columns"
        )
    if count > COLUMNS_MAX:
        raise _Refused(
            "long_row", _column(COLUMNS_MAX), f"the row has {count} columns, at most {COLUMNS_MAX} are known"
        )
    if fields[9].strip().lower() in ("start", "calldate") or fields[0].strip().lower() == "accountcode":
        raise _Refused("header", _column(0), "is a header line; Master.csv has none: remove it")
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


# --- from a row to an event -------------------------------------------------------------------------------------------


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


def _dialled(row: _Row, trunk: Trunk) -> str:
    """The number in ``TECH/number@trunk`` of this row's trunk, else ``dst``. A Dial may name several targets."""
    technology, _, name = trunk.channel.partition("/")
    for target in row.lastdata.partition(",")[0].split("&"):
        address, at, endpoint = target.rpartition("@")
        number = address.removeprefix(f"{technology}/")
        if at and endpoint == name and number != address and number:
            return number
    return row.dst


def _inbound(row: _Row, profile: SwitchProfile, called_on: _CalledNumbers, shift: timedelta) -> LegEvent:
    called = profile.e164(row.dst)
    if called not in profile.numbers:
        called = profile.e164(called_on.first_of(row))
    # A number that is not in the profile is told by its trunk's code, which usage does not know as an account.
    account = profile.numbers.get(called, row.accountcode) if called else row.accountcode
    return _event(row, profile, account, "inbound", called, shift)


def _outbound(row: _Row, profile: SwitchProfile, trunk: Trunk, dialled: str, shift: timedelta) -> LegEvent:
    account = profile.account_of_code(row.accountcode)
    return _event(row, profile, account, "outbound", profile.e164(dialled, trunk), shift)


def _event(
    row: _Row, profile: SwitchProfile, account: str, direction: str, called: str | None, shift: timedelta
) -> LegEvent:
    if row.disposition not in DISPOSITIONS:
        raise _Refused("invalid", "disposition", f"must be one of {', '.join(sorted(DISPOSITIONS))}")
    answered = row.disposition == "ANSWERED"
    if called is None:
        number = "lastdata" if direction == "outbound" and "@" in row.lastdata else "dst"
        if answered:
            raise _Refused("no_number", number, "is no telephone number; mend the prefixes in the switch profile")
        raise _Refused("unanswered_no_number", number, "is no telephone number, and nobody answered: nothing to bill")
    if _ACCOUNT.fullmatch(account) is None:
        raise _Refused(
            "invalid",
            "accountcode",
            "cannot be an account id (letters, digits, _ . - and at most 64 of them); map it in the switch profile",
        )
    duration_s = _seconds(row.duration, "duration")
    billsec = _seconds(row.billsec, "billsec")
    if billsec > duration_s:
        raise _Refused("invalid", "billsec", f"is {billsec} s of a call of {duration_s} s; it must not be longer")
    started_at, ended_at = _instants(row, profile, duration_s)
    started, ended = _utc_text(started_at, shift), _utc_text(ended_at, shift)
    caller = profile.e164(row.src) if direction == "inbound" else _own_number(row.src, profile)
    data: dict[str, Any] = {
        "account_id": account,
        "direction": direction,
        "caller": caller,
        "called": called,
        "started_at": started,
        "ended_at": ended,
        "answered": answered,
        "duration_s": duration_s,
        "billable_s": billsec if answered else 0,
    }
    event = {
        "specversion": "1.0",
        "id": _event_id(row),
        "source": profile.source,
        "type": VOICE_LEG,
        "time": ended,
        "datacontenttype": "application/json",
        "data": data,
    }
    return LegEvent(account, event)


def _own_number(src: str, profile: SwitchProfile) -> str | None:
    """The caller of an outbound leg is mostly an extension, which is no number: then it is unknown."""
    return None if profile.is_internal(src) else profile.e164(src)


def _event_id(row: _Row) -> str:
    """The same row has the same id in every file and with every shift. ``uniqueid`` alone repeats: one call has many rows."""
    call = row.uniqueid or row.linkedid
    parts = (call, row.sequence) if call and row.sequence else (call, row.channel, row.dstchannel, row.start)
    event_id = "|".join(parts)
    if len(event_id) > EVENT_ID_MAX or _PRINTABLE.fullmatch(event_id) is None:
        raise _Refused(
            "invalid",
            "uniqueid" if row.sequence else "channel",
            f"makes no event id: at most {EVENT_ID_MAX} printable characters together with the rest of the id",
        )
    return event_id


def _seconds(text: str, field: str) -> int:
    if _SECONDS.fullmatch(text) is None or int(text) > CALL_SECONDS_MAX:
        raise _Refused("invalid", field, f"must be whole seconds from 0 to {CALL_SECONDS_MAX}")
    return int(text)


def _local(text: str, field: str) -> datetime:
    try:
        if _TIME.fullmatch(text):
            return datetime.fromisoformat(text)
    except ValueError:
        pass
    raise _Refused("invalid", field, 'must be a time such as "2018-11-29 20:19:34"')


def _candidates(local: datetime, profile: SwitchProfile, field: str) -> tuple[datetime, ...]:
    """The instants that a wall clock of the switch's zone can mean: two in the hour that is set back."""
    earlier = local.replace(tzinfo=profile.tz)
    later = earlier.replace(fold=1)
    if earlier.utcoffset() == later.utcoffset():
        return (earlier.astimezone(UTC),)
    candidates = tuple(sorted((earlier.astimezone(UTC), later.astimezone(UTC))))
    if candidates[0].astimezone(profile.tz).replace(tzinfo=None) != local:
        raise _Refused(
            "invalid", field, f"does not exist in {profile.zone} (the clock was set forward); check the profile's zone"
        )
    return candidates


def _instants(row: _Row, profile: SwitchProfile, duration_s: int) -> tuple[datetime, datetime]:
    """Start and end in UTC. Where a clock that was set back leaves a choice, the pair that fits the duration is meant,
    and of two such pairs the one that does not begin before the channel existed (``uniqueid`` begins with that instant).
    """
    starts = _candidates(_local(row.start, "start"), profile, "start")
    ends = _candidates(_local(row.end, "end"), profile, "end")
    if len(starts) == len(ends) == 1:
        start, end = starts[0], ends[0]
    else:
        known = _UNIQUEID.fullmatch(row.uniqueid)
        created = datetime.fromtimestamp(int(known[1]), UTC) if known else datetime.min.replace(tzinfo=UTC)
        duration = timedelta(seconds=duration_s)
        start, end = min(
            ((start, end) for start in starts for end in ends),
            key=lambda pair: (abs(pair[1] - pair[0] - duration), pair[0] < created, pair[0]),
        )
    if end < start:
        raise _Refused("invalid", "end", "is before the start; check the switch's clock")
    return start, end


def _utc_text(instant: datetime, shift: timedelta) -> str:
    try:
        return (instant + shift).strftime("%Y-%m-%dT%H:%M:%SZ")
    except OverflowError:
        raise _Refused("invalid", "end", "is outside the calendar after the shift; shift by fewer days") from None
