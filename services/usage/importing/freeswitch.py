"""FreeSWITCH's call records: lines of cdr_csv and JSON documents of json_cdr and format_cdr, one record a leg.

A record is an inbound leg if its own channel is a trunk and came in. What an outbound leg is depends on what the switch
logs (``freeswitch.legs``). ``ab``, both legs: the record whose own channel is a trunk and went out; every record is judged
by its own channel. ``a``, the calling legs only: the record of the caller, if the call was bridged to a trunk; then a call
from trunk to trunk is no leg, as with Asterisk. Source: domain, section 3.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, BinaryIO, Literal
from urllib.parse import unquote

from services.kernel.errors import InvalidInput
from services.usage.importing.clocks import candidates, never, span
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
from services.usage.importing.parts import CHANNEL_VARIABLES, PEER_VARIABLES, FreeSwitch
from services.usage.importing.profile import SwitchProfile, Trunk
from services.usage.importing.rows import Refused, lines, text_of
from services.usage.importing.templates import Ambiguous, NoMatch

DOCUMENT_BYTES_MAX = 2**20  # a real document has some ten thousand bytes; what is longer is skipped without being held

Direction = Literal["inbound", "outbound"]

_MICROSECONDS = re.compile(r"[0-9]{15,17}", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Record:
    """One leg as the switch tells it. ``profiles`` are its caller profiles, the first one first; a line has none."""

    variables: Mapping[str, str]
    profiles: tuple[Mapping[str, str], ...] = ()
    peers: tuple[str, ...] = ()  # the channels that it called
    tells: frozenset[str] = field(default=frozenset(("channel", "peer")))

    def get(self, *names: str) -> str:
        return next((value for name in names if (value := self.variables.get(name, ""))), "")

    def said(self, name: str) -> list[str]:
        """What the caller profiles say of a name, the first one first, then the variable of this name."""
        found = [value for profile in self.profiles if (value := profile.get(name, ""))]
        return [*found, value] if (value := self.get(name)) else found

    def first(self, name: str) -> str:
        return next(iter(self.said(name)), "")


def import_cdr_csv(
    records: BinaryIO, profile: SwitchProfile, report: ImportReport, *, shift_days: int = 0
) -> Iterator[LegEvent]:
    """The usage events of a file of mod_cdr_csv, written by the template in the profile."""
    part = profile.freeswitch or FreeSwitch()
    if lacks := part.lacks():
        raise InvalidInput(f"the template {part.template!r} {lacks}", field="freeswitch.template")
    return _events(_template_lines(records, report, part), profile, part, part.legs or "a", report, shift_days)


def import_json_cdr(
    records: BinaryIO, profile: SwitchProfile, report: ImportReport, *, shift_days: int = 0
) -> Iterator[LegEvent]:
    """The usage events of JSON documents of mod_json_cdr or mod_format_cdr: one a file, one a line, or one after another."""
    part = profile.freeswitch or FreeSwitch()
    return _events(_documents(records, report), profile, part, part.legs or "ab", report, shift_days)


def _events(
    records: Iterable[tuple[int, _Record | Refused]],
    profile: SwitchProfile,
    part: FreeSwitch,
    legs: Literal["a", "ab"],
    report: ImportReport,
    shift_days: int,
) -> Iterator[LegEvent]:
    def judge(record: _Record) -> Leg | NoLeg:
        judged = _own_side(record, profile) if legs == "ab" else _both_sides(record, profile, part)
        if isinstance(judged, str):
            return judged
        direction, trunk = judged
        dialled, rules = _dialled(record, trunk)
        if direction == "outbound" and profile.is_internal(dialled):
            return "internal"
        if direction == "inbound":
            called, dialled = _called_in(record, profile, trunk), record.first("destination_number")
        else:
            called = profile.e164(dialled, rules)
        return _leg(record, profile, part, direction, trunk, called, dialled)

    return events_of(records, judge, profile, report, shift_days)


# --- from bytes to a record -------------------------------------------------------------------------------------------


def _template_lines(
    records: BinaryIO, report: ImportReport, part: FreeSwitch
) -> Iterator[tuple[int, _Record | Refused]]:
    template = part.columns
    there = frozenset(template.names)
    tells = frozenset(
        kind for kind, names in (("channel", CHANNEL_VARIABLES), ("peer", PEER_VARIABLES)) if there.intersection(names)
    )
    for line, raw, complete in lines(records, report):
        try:
            values = template.read(text_of(raw, complete, lambda _: "line", Dialect()))
        except Refused as refused:
            yield line, refused
        except NoMatch as stops:
            yield (
                line,
                Refused(
                    "short_row",
                    stops.name,
                    "does not stand where the template has it; give the profile the switch's template",
                ),
            )
        except Ambiguous:
            yield (
                line,
                Refused(
                    "not_csv", "line", "has the template's separator inside a value, so that it can be read in two ways"
                ),
            )
        else:
            yield line, _Record(values, tells=tells)


def _documents(records: BinaryIO, report: ImportReport) -> Iterator[tuple[int, _Record | Refused]]:
    """Each document with the number of its first line: one that is a line, or lines from one that begins with a brace to
    one that is a brace, as the switch indents them. A broken document ends where the next begins."""
    first, size, held = 0, 0, list[bytes]()
    for number, raw, complete in lines(records, report, bytes_max=DOCUMENT_BYTES_MAX):
        begins = raw.startswith(b"{")
        if begins and size:
            yield first, _document(held, size)
            size = 0
        if not size:
            first, held = number, []
        size += len(raw) + 1 if complete else DOCUMENT_BYTES_MAX + 1
        if size <= DOCUMENT_BYTES_MAX:
            held.append(raw)
        else:
            held = []
        last = raw.rstrip()
        if last == b"}" or (begins and last.endswith(b"}")):
            yield first, _document(held, size)
            size = 0
    if size:
        yield first, _document(held, size)


def _document(held: list[bytes], size: int) -> _Record | Refused:
    if size > DOCUMENT_BYTES_MAX:
        return Refused("too_long", "document", f"is longer than {DOCUMENT_BYTES_MAX} bytes; a record never is")
    try:
        return _record(json.loads(b"\n".join(held).decode("utf-8")))
    except UnicodeDecodeError:
        return Refused("encoding", "document", "is not UTF-8; convert the file to UTF-8 and import it again")
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and _is_cut(error):
            return Refused("unended", "document", "ends before it is closed; import the file again when it is whole")
        return Refused("not_json", "document", f"is not JSON ({error}); take it from the switch again")


def _is_cut(error: json.JSONDecodeError) -> bool:
    """Whether the document is only the beginning of one: nothing in it is wrong but that it ends."""
    return error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated string")


def _record(document: Any) -> _Record | Refused:
    """The parts of a JSON record that billing reads. Only ``variables`` are URL-encoded, if ``encode-values`` is on."""
    if not isinstance(document, dict) or not isinstance(document.get("variables"), dict):
        return Refused("not_json", "variables", "is missing; only records of json_cdr and format_cdr can be read")
    variables = {name: unquote(_text(value)) for name, value in document["variables"].items()}
    flow = [part for part in _list(document.get("callflow")) if isinstance(part, dict)]
    flow.sort(key=lambda part: int(index) if (index := _text(part.get("profile_index"))).isdecimal() else 0)
    profiles, peers = list[dict[str, str]](), list[str]()
    for part in flow:
        caller = _dict(part.get("caller_profile"))
        profiles.append({name: _text(value) for name, value in caller.items()})
        called = _dict(caller.get("originatee")).get("originatee_caller_profiles")
        peers += [_text(_dict(peer).get("chan_name")) for peer in _list(called)]
    if flow:
        first, last = _dict(flow[0].get("times")), _dict(flow[-1].get("times"))
        variables.setdefault("start_uepoch", _text(first.get("created_time")))
        variables.setdefault("answer_uepoch", _text(last.get("answered_time")))
        variables.setdefault("end_uepoch", _text(last.get("hangup_time")))
        variables.setdefault("uuid", profiles[0].get("uuid", ""))
        variables.setdefault("channel_name", profiles[0].get("chan_name", ""))
    variables.setdefault("direction", _text(_dict(document.get("channel_data")).get("direction")))
    return _Record(variables, tuple(profiles), tuple(peers))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value) if type(value) is int else ""


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


# --- from a record to a leg -------------------------------------------------------------------------------------------


def _own_trunk(record: _Record, profile: SwitchProfile) -> Trunk | None:
    """A gateway is more exact than the profile that it belongs to, so it is asked first."""
    gateway, sofia = record.get("sip_gateway_name", "sip_gateway"), record.get("sofia_profile_name")
    paths = (gateway and f"sofia/gateway/{gateway}", record.get("channel_name"), sofia and f"sofia/{sofia}")
    return next((trunk for path in paths if path and (trunk := profile.trunk_of_path(path))), None)


def _peer_trunk(record: _Record, profile: SwitchProfile) -> Trunk | None:
    """The trunk that the call was bridged to: in the dial string, else a channel that it called."""
    targets = _targets(record.get("last_arg")) if record.get("last_app") in ("bridge", "") else []
    paths = [*targets, record.get("bridge_channel"), *record.peers]
    return next((trunk for path in paths if (trunk := profile.trunk_of_path(path))), None)


def _targets(dial_string: str) -> list[str]:
    """The targets of ``{var=1}[var=2]sofia/gateway/thinQ/12485252160,sofia/external/...``."""
    without_variables = re.sub(r"\{[^}]*\}|\[[^\]]*\]|<[^>]*>", "", dial_string)
    return [target.strip() for target in re.split(r"[,|]|:_:", without_variables)]


def _own_side(record: _Record, profile: SwitchProfile) -> tuple[Direction, Trunk | None] | NoLeg:
    trunk = _own_trunk(record, profile)
    if trunk is None:
        return "internal"
    match record.get("direction"):
        case "inbound":
            return "inbound", trunk
        case "outbound":
            return "outbound", trunk
    raise Refused("invalid", "direction", 'must be "inbound" or "outbound"; log ${direction}')


def _both_sides(record: _Record, profile: SwitchProfile, part: FreeSwitch) -> tuple[Direction, Trunk | None] | NoLeg:
    own = _own_trunk(record, profile)
    if record.get("direction") == "outbound":
        # Either the called leg of a call whose calling leg is a record too, or a call that the switch itself began.
        if record.get("originator"):
            return "no_leg"
        return "internal" if own is None else ("outbound", own)
    came_in = own is not None if "channel" in record.tells else record.first("context") in part.inbound_contexts
    if "peer" not in record.tells:
        return ("inbound", own) if came_in else ("outbound", None)
    peer = _peer_trunk(record, profile)
    match came_in, peer:
        case True, None:
            return "inbound", own
        case False, Trunk():
            return "outbound", peer
        case True, Trunk():
            return "no_leg"
    return "internal"


def _dialled(record: _Record, trunk: Trunk | None) -> tuple[str, Trunk | None]:
    """The number that was sent to this trunk, its prefix taken off, and the trunk, by whose rules it is read: of a calling leg
    the one in the dial string. Where that has none, the number that the caller dialled by the rules of the country."""
    number = record.first("destination_number")
    if trunk is None:
        return number, None
    if record.get("direction") == "outbound":
        return trunk.bare(number), trunk
    for target in _targets(record.get("last_arg")):
        sent = target.removeprefix(f"{trunk.channel}/").partition("@")[0].removeprefix("sip:")
        if sent and target.startswith(f"{trunk.channel}/"):
            return trunk.bare(sent), trunk
    return number, None


def _called_in(record: _Record, profile: SwitchProfile, trunk: Trunk | None) -> str | None:
    """The first number of ours that was called, else the first that was called: a transfer changes it on the way."""
    called = [*record.said("destination_number"), record.get("sip_req_user"), record.get("sip_to_user")]
    ours = (profile.number_of_ours(number, trunk) for number in called if number)
    return next((number for number in ours if number), None) or profile.e164(called[0])


def _caller(record: _Record) -> str:
    """Who calls. Of a call that the switch began itself the caller profile names the called one ("flipped")."""
    if record.get("channel_cid_flipped") == "yes":
        return record.get("origination_caller_id_number", "pre_transfer_caller_id_number") or record.first("ani")
    return record.first("caller_id_number") or record.first("ani")


def _leg(
    record: _Record,
    profile: SwitchProfile,
    part: FreeSwitch,
    direction: Direction,
    trunk: Trunk | None,
    called: str | None,
    dialled: str,
) -> Leg:
    billsec = seconds(record.get("billsec"), "billsec")
    answered = _answered(record, billsec)
    number = billable_number(called, dialled, answered, "destination_number")
    code = record.get(*part.account_variables)
    account = profile.numbers.get(number, code) if direction == "inbound" else profile.account_of_code(code)
    account = account_id(account, part.account_variables[0], direction, number)
    ends = _instants(record, "end", profile)
    if ends is None:
        raise Refused("invalid", "end_epoch", "is missing; log ${end_stamp} or ${end_epoch}")
    starts = _instants(record, "start", profile)
    if duration := record.get("duration"):
        duration_s = seconds(duration, "duration")
    elif starts is not None:
        started, ended = span(starts, ends, billsec)
        duration_s = seconds(str(int((ended - started).total_seconds())), "duration")
    else:
        duration_s = billsec
    billed_within(billsec, duration_s, "billsec")
    if starts is None:
        starts = tuple(end - timedelta(seconds=duration_s) for end in ends)
    started_at, ended_at = span(starts, ends, duration_s)
    source = _caller(record)
    caller = profile.e164(source, trunk) if direction == "inbound" else own_number(source, profile)
    uuid = event_id(record.get("uuid"), "uuid")
    return Leg(uuid, account, direction, caller, number, started_at, ended_at, answered, duration_s, billsec)


def _answered(record: _Record, billsec: int) -> bool:
    """A leg is answered if it says when; where the template does not log that, if there is something to bill."""
    written = [name for name in ("answer_uepoch", "answer_epoch", "answer_stamp") if name in record.variables]
    return any(not never(record.variables[name]) for name in written) if written else billsec > 0


def _instants(record: _Record, moment: str, profile: SwitchProfile) -> tuple[datetime, ...] | None:
    """When the leg began or ended: the switch's own count of microseconds or seconds, else by the clock of its zone."""
    for name in (f"{moment}_uepoch", f"{moment}_epoch", f"{moment}_stamp"):
        if not never(text := record.get(name)):
            return candidates(text[:-6] if _MICROSECONDS.fullmatch(text) else text, profile, name)
    return None
