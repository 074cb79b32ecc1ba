"""CSV files of any make: the switch profile says which column is which field (``csv``)."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import BinaryIO, Literal
from urllib.parse import unquote

from services.kernel.errors import InvalidInput
from services.usage.importing.clocks import EPOCH, candidates, local_candidates, never, span
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
from services.usage.importing.parts import Column, MappedCsv
from services.usage.importing.profile import SwitchProfile
from services.usage.importing.rows import Refused, fields_of, lines, text_of

_COUNT = re.compile(r"([0-9]{1,18})(?:\.[0-9]{1,9})?", re.ASCII)
_WHOLE = re.compile(r"[0-9]{1,18}", re.ASCII)
_CLOCK = re.compile(r"(?:([0-9]{1,4}):)?([0-9]{1,2}):([0-9]{2})", re.ASCII)
_URI = re.compile(r"(?:[^<>]*<)?(?:sips?|tel):([^@;>]*)(?:[@;>].*)?", re.IGNORECASE)
_HOST_URI = re.compile(
    r"(?:[^<>]*<)?sips?:[^@>]*\.[^@>]*(?:>.*)?", re.IGNORECASE
)  # of nobody: what stands there is its host
_PER_SECOND = {"epoch_ms": 1_000, "epoch_us": 1_000_000}


def import_mapped_csv(
    records: BinaryIO, profile: SwitchProfile, report: ImportReport, *, shift_days: int = 0
) -> Iterator[LegEvent]:
    """The usage events of a CSV file whose columns the profile maps; the report accounts for every row but the header."""
    part = profile.csv
    if part is None:
        raise InvalidInput("is missing in the switch profile; add it to say which column is which field", field="csv")
    return events_of(
        _rows(records, part, report), lambda values: _leg(values, profile, part), profile, report, shift_days
    )


def _rows(records: BinaryIO, part: MappedCsv, report: ImportReport) -> Iterator[tuple[int, dict[str, str] | Refused]]:
    columns = None if part.header else _Columns(part, None)
    for line, raw, complete in lines(records, report):
        if columns is None:
            columns = _Columns(part, _header(raw, part))
            continue
        try:
            values = columns.values(raw, complete)
        except Refused as refused:
            yield line, refused
            continue
        yield line, values


def _header(raw: bytes, part: MappedCsv) -> list[str]:
    try:
        return part.dialect.split(raw.decode("utf-8", "replace"), strict=False)
    except csv.Error:
        raise InvalidInput("has a CR within it; end the lines of the file by LF or CR LF", field="header") from None


class _Columns:
    """Where each field stands."""

    def __init__(self, part: MappedCsv, header: Sequence[str] | None) -> None:
        self._part = part
        self._names = [name.strip() for name in header] if header is not None else None
        self._at = {field: self._place(field, column) for field, column in part.columns.used().items()}
        self._count = len(self._names) if self._names is not None else max(self._at.values()) + 1

    def _place(self, field: str, column: Column) -> int:
        if isinstance(column, int):
            if self._names is not None and column > len(self._names):
                raise InvalidInput(
                    f"is {column}, but the header has {len(self._names)} columns", field=f"csv.columns.{field}"
                )
            return column - 1
        names = self._names or []
        if names.count(column) != 1:
            how = (
                "twice; give its number instead"
                if column in names
                else f"nowhere in the header: {', '.join(names)[:200]}"
            )
            raise InvalidInput(f"{column!r} stands {how}", field=f"csv.columns.{field}")
        return names.index(column)

    def _name(self, index: int) -> str:
        return self._names[index] if self._names is not None and index < len(self._names) else f"column {index + 1}"

    def values(self, raw: bytes, complete: bool) -> dict[str, str]:
        """The fields of a row by what they are for."""
        dialect = self._part.dialect
        fields = fields_of(text_of(raw, complete, self._name, dialect), self._name, dialect)
        if len(fields) < self._count:
            raise Refused(
                "short_row", self._name(len(fields)), f"is missing: the row has {len(fields)} of {self._count} columns"
            )
        if self._names is not None and len(fields) > self._count:
            raise Refused(
                "long_row", self._name(self._count), f"the row has {len(fields)} columns, the header {self._count}"
            )
        values = {field: fields[at].strip() for field, at in self._at.items()}
        return values | {field: _number(values[field]) for field in ("called", "caller") if field in values}


def _number(text: str) -> str:
    """The number of a SIP or tel URI, as proxies and session border controllers write it; anything else as it is.

    >>> _number('"Ann" <sip:%2B12485252160;npdi@198.51.100.1;user=phone>;tag=1'), _number("12485252160")
    ('+12485252160', '12485252160')
    >>> _number("sip:192.168.10.50")  # whose digits are as many as a number has
    'sip:192.168.10.50'
    """
    uri = _URI.fullmatch(text)
    return text if uri is None or _HOST_URI.fullmatch(text) else unquote(uri[1])


def _leg(values: dict[str, str], profile: SwitchProfile, part: MappedCsv) -> Leg | NoLeg:
    direction = part.direction or _direction(values["direction"], part)
    trunk = profile.trunk_of_path(values["trunk"]) if "trunk" in values else None
    if direction == "internal" or ("trunk" in values and trunk is None):
        return "internal"
    dialled = trunk.bare(values["called"]) if trunk is not None else values["called"]
    if direction == "outbound" and profile.is_internal(dialled):
        return "internal"
    billable = _seconds(values["billable"], "billable", part)
    answered = _answered(values["answered"], part) if "answered" in values else billable > 0
    if direction == "inbound":
        called = profile.number_of_ours(values["called"], trunk) or profile.e164(values["called"])
    else:
        called = profile.e164(dialled, trunk)
    number = billable_number(called, values["called"], answered, "called")
    code = profile.account_of_code(values.get("account", ""))
    account = profile.numbers.get(number, code) if direction == "inbound" else code
    starts = _instants(values.get("started_at", ""), "started_at", profile, part)
    ends = _instants(values.get("ended_at", ""), "ended_at", profile, part)
    if "duration" in values:
        duration_s = _seconds(values["duration"], "duration", part)
    elif starts is not None and ends is not None:
        began, ended = span(starts, ends, billable, field="ended_at")
        duration_s = int((ended - began).total_seconds())
    else:
        duration_s = billable
    billed_within(billable, duration_s, "billable")
    if starts is None:
        if ends is None:
            raise Refused("invalid", "ended_at", "is empty, and so is the start; a leg needs one of them")
        starts = tuple(end - timedelta(seconds=duration_s) for end in ends)
    started_at, ended_at = span(starts, ends, duration_s, field="ended_at")
    source = values.get("caller", "")
    caller = profile.e164(source, trunk) if direction == "inbound" else own_number(source, profile)
    identity = "|".join(value for field, value in values.items() if field.startswith("id."))
    if not identity.strip("|"):
        raise Refused("invalid", "id", "is empty; without an id the same leg could be billed twice")
    return Leg(
        event_id(identity, "id"), account_id(account, "account", direction, number), direction, caller, number, started_at, ended_at,
        answered, duration_s, billable,
    )  # fmt: skip


def _direction(value: str, part: MappedCsv) -> Literal["inbound", "outbound", "internal"]:
    if _one_of(value, part.inbound):
        return "inbound"
    if _one_of(value, part.outbound):
        return "outbound"
    if _one_of(value, part.internal):
        return "internal"
    raise Refused(
        "invalid", "direction", "is in none of the lists inbound, outbound and internal; add the value to one of them"
    )


def _answered(value: str, part: MappedCsv) -> bool:
    if _one_of(value, part.answered):
        return True
    if _one_of(value, part.unanswered):
        return False
    raise Refused(
        "invalid", "answered", "is in neither of the lists answered and unanswered; add the value to one of them"
    )


def _one_of(value: str, patterns: tuple[str, ...]) -> bool:
    return any(re.fullmatch(pattern, value) for pattern in patterns)


def _seconds(text: str, field: str, part: MappedCsv) -> int:
    """Whole seconds; fractions are cut."""
    if part.seconds == "ms" and _WHOLE.fullmatch(text):
        return seconds(str(int(text) // 1_000), field)
    if part.seconds == "hh:mm:ss" and (clock := _CLOCK.fullmatch(text)) and int(clock[2]) < 60 and int(clock[3]) < 60:
        return seconds(str(int(clock[1] or 0) * 3_600 + int(clock[2]) * 60 + int(clock[3])), field)
    if part.seconds == "s":
        return seconds(text, field, fractions=True)
    example = {"ms": "21000 (milliseconds)", "hh:mm:ss": "0:00:21"}[part.seconds]
    raise Refused("invalid", field, f"must be a duration such as {example}; the profile's csv.seconds says so")


def _instants(text: str, field: str, profile: SwitchProfile, part: MappedCsv) -> tuple[datetime, ...] | None:
    """What a time can mean, cut to whole seconds; None where it is not mapped or stands for none."""
    if never(text):
        return None
    if part.time == "iso":
        return candidates(text, profile, field)
    if part.time.startswith("epoch"):
        count = _COUNT.fullmatch(text)
        since = int(count[1]) // _PER_SECOND.get(part.time, 1) if count else 2**36
        if since >= 2**36:  # some thousand years
            raise Refused("invalid", field, f"must be a count since 1970; the profile's csv.time says {part.time}")
        return (EPOCH + timedelta(seconds=since),)
    try:
        read = datetime.strptime(text, part.time).replace(microsecond=0)  # noqa: DTZ007 - asked in the next line
        if read.tzinfo is not None:
            return (read.astimezone(UTC),)
    except (ValueError, OverflowError):
        raise Refused("invalid", field, f"must be a time such as the profile's csv.time says, {part.time}") from None
    return local_candidates(read, profile, field)
