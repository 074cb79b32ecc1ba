"""From the judged fields of a row to its usage event: what every format has in common."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, TypeVar

from contracts.usage import CALL_SECONDS_MAX, VOICE_LEG
from contracts.words import ID_PATTERN
from services.usage.importing.clocks import utc_text
from services.usage.importing.interface import ImportReport, LegEvent, RefusedRow
from services.usage.importing.profile import SwitchProfile
from services.usage.importing.rows import Refused

RowT = TypeVar("RowT")

EVENT_ID_MAX = 256  # of the contract
NUMBER_CHARS_SHOWN = 40  # of what is no number; a telephone number has half as many

_SECONDS = re.compile(r"[0-9]{1,9}", re.ASCII)
_FRACTION = re.compile(r"([0-9]{1,9})(?:\.[0-9]{0,9})?", re.ASCII)
_ACCOUNT = re.compile(ID_PATTERN)
_PRINTABLE = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]+")  # JSON may hold half a character, which UTF-8 cannot


@dataclass(frozen=True, slots=True)
class Leg:
    """One side of a call, judged."""

    event_id: str
    account: str
    direction: Literal["inbound", "outbound"]
    caller: str | None
    called: str
    started_at: datetime
    ended_at: datetime
    answered: bool
    duration_s: int
    billable_s: int

    def event(self, profile: SwitchProfile, shift: timedelta) -> LegEvent:
        """The CloudEvents document. An unanswered leg has nothing to bill, whatever the switch counted."""
        ended = utc_text(self.ended_at, shift)
        data: dict[str, Any] = {
            "account_id": self.account,
            "direction": self.direction,
            "caller": self.caller,
            "called": self.called,
            "started_at": utc_text(self.started_at, shift),
            "ended_at": ended,
            "answered": self.answered,
            "duration_s": self.duration_s,
            "billable_s": self.billable_s if self.answered else 0,
        }
        event = {
            "specversion": "1.0",
            "id": self.event_id,
            "source": profile.source,
            "type": VOICE_LEG,
            "time": ended,
            "datacontenttype": "application/json",
            "data": data,
        }
        return LegEvent(self.account, event)


NoLeg = Literal["internal", "no_leg"]


def events_of(
    rows: Iterable[tuple[int, RowT | Refused]],
    judge: Callable[[RowT], Leg | NoLeg],
    profile: SwitchProfile,
    report: ImportReport,
    shift_days: int,
) -> Iterator[LegEvent]:
    """The events of numbered rows; the report accounts for every row. A row that cannot be read, or that the judge refuses,
    is refused by name and its neighbours go on."""
    shift = timedelta(days=shift_days)
    for line, row in rows:
        report.rows += 1
        try:
            if isinstance(row, Refused):
                raise row
            judged = judge(row)
            event = judged.event(profile, shift) if isinstance(judged, Leg) else None
        except Refused as refused:
            report.refuse(RefusedRow(line, refused.field, refused.code, refused.message))
            continue
        if event is not None:
            report.published += 1
            yield event
        elif judged == "internal":
            report.internal += 1
        else:
            report.no_leg += 1


def billable_number(called: str | None, written: str, answered: bool, field: str) -> str:
    """The called number; without one an answered leg cannot be priced, and an unanswered one is not worth publishing.
    ``written`` is what the record has in its place."""
    if called is not None:
        return called
    what = f"{written[:NUMBER_CHARS_SHOWN]!r}" if written else "is empty, and so"
    if answered:
        raise Refused(
            "no_number",
            field,
            f"{what} is no telephone number; mend the prefixes in the switch profile, where one that was dialled and is not to be"
            " billed belongs under internal",
        )
    raise Refused("unanswered_no_number", field, f"{what} is no telephone number, and nobody answered: nothing to bill")


def account_id(account: str, field: str, direction: Literal["inbound", "outbound"], number: str) -> str:
    """The account of a leg to ``number``; of an inbound one that is none of ours it is the trunk's code."""
    if _ACCOUNT.fullmatch(account) is None:
        what = "cannot be an account id (letters, digits, _ . - and at most 64 of them)" if account else "is empty"
        fix = "map it in the switch profile (accounts)"
        if direction == "inbound":
            what, fix = f"{what}, and {number} is no number of yours", "add that to the switch profile (numbers)"
        raise Refused("invalid", field, f"{what}; {fix}")
    return account


def seconds(text: str, field: str, *, fractions: bool = False) -> int:
    """Whole seconds. Of a fraction only the whole seconds count, as in the switch's own whole-number column."""
    match = (_FRACTION if fractions else _SECONDS).fullmatch(text)
    if match is None or (whole := int(match[1] if fractions else match[0])) > CALL_SECONDS_MAX:
        raise Refused("invalid", field, f"must be whole seconds from 0 to {CALL_SECONDS_MAX}")
    return whole


def billed_within(billsec: int, duration_s: int, field: str) -> None:
    if billsec > duration_s:
        raise Refused("invalid", field, f"is {billsec} s of a call of {duration_s} s; it must not be longer")


def event_id(text: str, field: str) -> str:
    if len(text) > EVENT_ID_MAX or _PRINTABLE.fullmatch(text) is None:
        raise Refused(
            "invalid",
            field,
            f"makes no event id: at most {EVENT_ID_MAX} printable characters together with the rest of the id",
        )
    return text


def own_number(source: str, profile: SwitchProfile) -> str | None:
    """The caller of an outbound leg is mostly an extension, which is no number: then it is unknown."""
    return None if profile.is_internal(source) else profile.e164(source)
