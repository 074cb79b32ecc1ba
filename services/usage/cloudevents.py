"""CloudEvents on Kafka: a record of either content mode as the one form that `events` judges.

Structured mode: the value is the whole event in JSON; `content-type` says `application/cloudevents+json`, or is not there.
Binary mode: the value is the event's data, each header `ce_NAME` is its attribute NAME in UTF-8 (as it is: unlike HTTP, Kafka
has nothing percent-encoded), and `content-type` is its `datacontenttype`. Pure. Source: CloudEvents 1.0.2, Kafka Protocol
Binding, section 3.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NoReturn

import msgspec
from msgspec import MsgspecError, Raw

from contracts.usage import EVENT_BYTES_MAX
from services.usage.events import KNOWN_TYPES, EventRefused, storable

Headers = Sequence[tuple[str, bytes | None]]

CONTENT_TYPE = "content-type"
STRUCTURED = "application/cloudevents+json"
JSON = "application/json"
PREFIX = "ce_"

_REQUIRED = ("specversion", "id", "source", "type")
_NAME = re.compile(r"[a-z0-9]+", re.ASCII)
_INTEGER = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)
_CHARSET = re.compile(r";\s*charset\s*=\s*\"?([^\s\";]*)", re.IGNORECASE)
_is_json = msgspec.json.Decoder(Raw).decode
_encode = msgspec.json.encode


def structured(headers: Headers, value: bytes | None) -> bytes | None:
    """The event of a record in structured mode, or `EventRefused` with the header and the fix.

    The same event in either mode has the same content. Headers that are not of CloudEvents say nothing here.

    >>> ce = {"ce_specversion": b"1.0", "ce_id": b"7", "ce_source": b"pbx", "ce_type": b"x", "content-type": b"application/json"}
    >>> structured(list(ce.items()), b'{"account_id": "sales"}').decode()
    '{"specversion":"1.0","id":"7","source":"pbx","type":"x","datacontenttype":"application/json","data":{"account_id": "sales"}}'
    """
    if not headers:
        return value
    ours = _ours(headers)
    if not ours:
        return value
    content_type = ours.pop(CONTENT_TYPE, None)
    media_type = None if content_type is None else _media_type(content_type)
    if media_type is not None and media_type.startswith("application/cloudevents"):
        if media_type != STRUCTURED:
            _refuse_format(media_type)
        if ours:
            _compare(ours, value)
        return value
    if media_type not in (None, JSON):
        _refuse(
            CONTENT_TYPE, f"must be {STRUCTURED} for a whole event in the value, or {JSON} for the data of binary mode"
        )
    if not ours:
        _refuse(
            CONTENT_TYPE,
            f"says binary mode, and there is no header ce_specversion; say {STRUCTURED} for a whole event in the value, or"
            " send its attributes as headers ce_*",
        )
    return _assembled(ours, media_type, value)


def legible(headers: Headers, value: bytes | None) -> bytes | None:
    """What can be read of a record, right or wrong, in the form of structured mode: for `events.readable`.

    >>> legible([("ce_id", b"7"), ("ce_id", b"8"), ("ce_source", b"pbx")], b'{"account_id": "sales"}')
    b'{"source":"pbx","id":"7","data":{"account_id": "sales"}}'
    """
    try:
        return structured(headers, value)
    except EventRefused:
        pass
    first = dict(reversed(headers))
    around: dict[str, Any] = {
        name: raw.decode("utf-8", "replace")
        for name in ("source", "id")
        if (raw := first.get(PREFIX + name)) is not None
    }
    if not around or value is None or not _is_document(value) or _is_whole_event(value):
        return value
    return _encode(around | {"data": Raw(value)})


def _ours(headers: Headers) -> dict[str, str]:
    """The headers of CloudEvents, each once and readable."""
    ours: dict[str, str] = {}
    for name, raw in headers:
        if name != CONTENT_TYPE and not name.startswith(PREFIX):
            continue
        if name in ours:
            _refuse(name, "stands twice in the headers; send it once")
        if raw is None:
            _refuse(name, "has no value; leave the header out, or give it one")
        try:
            ours[name] = raw.decode()
        except UnicodeDecodeError:
            _refuse(name, "is not UTF-8; encode the header's value in UTF-8")
    return ours


def _media_type(content_type: str) -> str:
    charset = _CHARSET.search(content_type)
    if charset is not None and charset[1].lower() not in ("utf-8", "utf8", "us-ascii"):
        _refuse(
            CONTENT_TYPE,
            "names another character set than UTF-8; encode the value in UTF-8 and say so, or leave it out",
        )
    return content_type.partition(";")[0].strip().lower()


def _refuse_format(media_type: str) -> NoReturn:
    if media_type.startswith("application/cloudevents-batch"):
        _refuse(
            CONTENT_TYPE,
            f"says batch mode, which Kafka does not have; send each event as a record of its own, {STRUCTURED}",
        )
    _refuse(CONTENT_TYPE, f"must be {STRUCTURED}: a whole event is read in JSON only")


def _compare(ours: dict[str, str], value: bytes | None) -> None:
    """The binding allows the attributes as headers beside a whole event: they must say what the event says."""
    try:
        event = json.loads(value or b"")
    except (ValueError, RecursionError):
        return  # for `decode` to refuse
    if not isinstance(event, dict):
        return
    for name, text in ours.items():
        item = event.get(name.removeprefix(PREFIX))
        if text != (item if isinstance(item, str) else json.dumps(item)):
            _refuse(
                name,
                f"is not what the event in the value says; {CONTENT_TYPE} says structured mode: leave the ce_ headers out, or"
                " let them say the same",
            )


def _assembled(ours: dict[str, str], media_type: str | None, value: bytes | None) -> bytes:
    event: dict[str, Any] = {}
    for name in _REQUIRED:
        text = ours.pop(PREFIX + name, None)
        if text is None:
            known = f"; {KNOWN_TYPES}" if name == "type" else ""
            _refuse(PREFIX + name, f"is missing beside the other ce_ headers; add it{known}")
        event[name] = text
    for header, text in ours.items():
        name = header.removeprefix(PREFIX)
        if name in ("data", "datacontenttype"):
            place = "the value of the record is the data" if name == "data" else f"{CONTENT_TYPE} says it"
            _refuse(header, f"is no header of binary mode: {place}; leave it out")
        if _NAME.fullmatch(name) is None:
            _refuse(header, "is no name of an attribute: use ce_ with lower-case letters and digits")
        event[name] = int(text) if name == "revision" and _INTEGER.fullmatch(text) is not None else text
    if media_type is not None:
        event["datacontenttype"] = media_type
    if value is not None:
        if len(value) <= EVENT_BYTES_MAX:  # a larger one is refused for that
            if not _is_document(value):
                raise EventRefused(
                    "not_json", "the value of the record is not JSON in UTF-8; send the event's data as JSON"
                )
            if _is_whole_event(value):
                _refuse(
                    f"{PREFIX}specversion",
                    f"says binary mode, but the value is a whole event; leave the ce_ headers out, or say {STRUCTURED} in"
                    f" {CONTENT_TYPE}",
                )
        event["data"] = Raw(value)
    return _encode(event)


def _is_document(value: bytes) -> bool:
    """One JSON document and nothing behind it: nothing of it can get out of the data."""
    try:
        _is_json(value)
    except (MsgspecError, RecursionError):
        return False
    return True


def _is_whole_event(value: bytes) -> bool:
    if b'"specversion"' not in value:
        return False
    try:
        event = json.loads(value)
    except (ValueError, RecursionError):
        return False
    return isinstance(event, dict) and "specversion" in event


def _refuse(header: str, message: str) -> NoReturn:
    raise EventRefused("invalid_event", message, storable(header))
