"""The judge: what the whole system must have done, computed again from what went in. Obvious rather than fast.

It is written from the domain page and the designs alone and imports nothing of `services` or `contracts`, so an error has
to be made twice, in two ways, to go unseen. It takes plain dictionaries as they went onto the wire, raw Kafka records and
the observed cut vectors, and says which class each record may have, which charges exist, what stands on each ledger
account and invoice, and which payment attempts there must be.

Where the pages leave two answers open (which of two conflicting events came first; which of two faults of one event is
named) the model allows both, and nothing else.

Shape of the facts (as in the timelines of the registry; instants are text with ``Z`` or aware datetimes)::

    {"publishers":     [{"publisher_id", "organization_ids", "sources", "late_s_max"?, "early_s_max"?}],
     "accounts":       [{"account_id", "organization_id", "currency"?, "plans": [{"from", "to", "plan"}],
                         "groups": [{"from", "to", "group_id"}]}],
     "billing_groups": [{"group_id", "zone"?, "currency"?, "tax_rate"?, "pricing_model"?}],
     "resources":      [{"resource_id", "kind", "number"?, "account_id", "owners"?: [{"from", "to", "account_id"}],
                         "cost_centers": [{"from", "to", "cost_center_id"}]}],
     "cost_centers":   {organization_id: [cost_center_id]},                      # absent: every override is one of ours
     "prices":         [{"book"?, "version"?, "effective_from", "currency"?, "product", "prefix", "price", "per"?, "unit"?,
                         "fee"?, "minimum", "increment", "delivered_only"?,
                         "window"?: {"id", "zone", "days", "from", "to", "holidays"?},  # texts as in a price file
                         "tiers"?: {"id", "form", "per", "bands": [{"up_to", "price", "fee"}]},  # instead of price and fee
                         one of "account_id" | "pricing_model" | "organization_id", or none for a default book}]}

Default books are asked in the order of their first rows. A version of a book is a complete list.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from hashlib import blake2b
from itertools import pairwise
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

Facts = Mapping[str, Any]
Position = tuple[str, int, int]  # topic, partition, offset
Lane = tuple[str, int]  # topic, partition
Vector = Mapping[Lane, int]  # end offset of each partition at a cut

NANO = 10**9
CENT = NANO // 100
EXPONENT = {"USD": 2}
USAGE_TOPICS = "usage.events."
VOICE_LEG = "tollbook.usage.voice.leg.v1"
MESSAGE = "tollbook.usage.message.v1"
DATA = "tollbook.usage.data.v1"
RENTAL = "tollbook.usage.rental.v1"
PRODUCT = "tollbook.usage.product.v1"
VOID = "tollbook.usage.voided.v1"
SCOPES = ("account_id", "pricing_model", "organization_id")  # of a price book; without any it is a default one
TOLL_FREE = tuple(f"1{code}" for code in (800, 833, 844, 855, 866, 877, 888))

# Classes of a record. A quarantined record has the reason as its class.
RATED, RATED_UNGROUPED, DUPLICATE, NOT_BILLABLE = "rated", "rated_ungrouped", "duplicate", "not_billable"
NOT_JSON, INVALID_EVENT, UNKNOWN_ACCOUNT, NOT_PERMITTED = (
    "not_json",
    "invalid_event",
    "unknown_account",
    "not_permitted",
)
VOIDED = "voided"
UNKNOWN_TYPE, UNKNOWN_NUMBER = "unknown_type", "unknown_number"
NO_PRICE, WRONG_CURRENCY, TOO_OLD, IN_FUTURE = "no_price", "wrong_currency", "too_old", "in_future"
CONFLICT, REFUSED_BY_STORE, WRONG_UNIT = "conflict", "refused_by_store", "wrong_unit"
REASONS = frozenset(
    {NOT_JSON, INVALID_EVENT, UNKNOWN_ACCOUNT, NOT_PERMITTED, NO_PRICE, WRONG_CURRENCY, TOO_OLD, IN_FUTURE, CONFLICT}
    | {REFUSED_BY_STORE, UNKNOWN_TYPE, UNKNOWN_NUMBER, WRONG_UNIT}
)
UNREADABLE = frozenset(
    {NOT_JSON, INVALID_EVENT}
)  # bytes that one parser calls no JSON and another JSON of a wrong form

# Limits of the public usage contract.
EVENT_BYTES_MAX = 65_536
CALL_SECONDS_MAX = 7 * 86_400
DEPTH_MAX = 100
CHARGE_NANO_MAX = 10**6 * NANO
NO_TIME = datetime.max.replace(tzinfo=UTC)  # of a void


class OutsideTheModel(Exception):
    """The input asks for what the pages do not decide; the model does not guess."""


# ---- money and time ------------------------------------------------------------------------------------------------


def nano(text: str) -> int:
    """Nanos of a decimal string, exactly.

    >>> nano("0.0140"), nano("-2.5")
    (14000000, -2500000000)
    """
    if not re.fullmatch(r"-?[0-9]+(\.[0-9]{1,9})?", text, re.ASCII):
        raise ValueError(f"not an amount: {text!r}")
    return int(Fraction(text) * NANO)


def half_even(value: Fraction, step: int = 1) -> int:
    """The multiple of ``step`` nearest to ``value``, ties to the even multiple.

    >>> half_even(Fraction(5, 2)), half_even(Fraction(7, 2)), half_even(Fraction(125), 50)
    (2, 4, 100)
    """
    return round(Fraction(value) / step) * step  # Fraction.__round__ is half-even


def minor_step(currency: str) -> int:
    """Nanos of the smallest unit that can be paid."""
    return int(10 ** (9 - EXPONENT[currency]))


def instant(value: Any) -> datetime:
    """An aware UTC datetime of a fact: text with Z, or a datetime."""
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(value.replace("Z", "+00:00"))
    if moment.tzinfo is None:
        raise ValueError(f"naive time: {value!r}")
    return moment.astimezone(UTC)


def month_of(moment: datetime, zone: str) -> str:
    """Name of the billing month of an instant.

    >>> month_of(datetime(2026, 10, 31, 23, 30, tzinfo=UTC), "Europe/Paris")
    '2026-11'
    """
    return moment.astimezone(ZoneInfo(zone)).strftime("%Y-%m")


def month_after(name: str) -> str:
    year, month = int(name[:4]), int(name[5:])
    return f"{year + 1:04d}-01" if month == 12 else f"{year:04d}-{month + 1:02d}"


def month_end(name: str, zone: str) -> datetime:
    """The boundary instant at which a billing month ends.

    >>> month_end("2026-10", "Europe/Paris").isoformat()
    '2026-10-31T23:00:00+00:00'
    """
    after = month_after(name)
    return datetime(int(after[:4]), int(after[5:]), 1, tzinfo=ZoneInfo(zone)).astimezone(UTC)


def interval_at(intervals: Iterable[Mapping[str, Any]], moment: datetime) -> Mapping[str, Any] | None:
    """The half-open interval [from, to) that holds an instant."""
    for interval in intervals:
        if instant(interval["from"]) <= moment and (interval.get("to") is None or moment < instant(interval["to"])):
            return interval
    return None


# ---- ids -----------------------------------------------------------------------------------------------------------


def identity_of(publisher: str, source: str, event_id: str) -> bytes:
    """16-byte BLAKE2b(publisher, 0, source, 0, id)."""
    return blake2b(b"\0".join(part.encode() for part in (publisher, source, event_id)), digest_size=16).digest()


def charge_id_of(identity: bytes, revision: int = 0) -> str:
    """UUIDv8 of BLAKE2b-16(digest, revision as 4 bytes)."""
    return _uuid8(identity + revision.to_bytes(4, "big"))


def reversal_id_of(charge_id: str, revision: int) -> str:
    """UUIDv8 of BLAKE2b-16('rev', charge id, the revision that took it back)."""
    return _uuid8(b"rev" + UUID(charge_id).bytes + revision.to_bytes(4, "big"))


def _uuid8(named: bytes) -> str:
    raw = bytearray(blake2b(named, digest_size=16).digest())
    raw[6] = raw[6] & 0x0F | 0x80
    raw[8] = raw[8] & 0x3F | 0x80
    return str(UUID(bytes=bytes(raw)))


def evidence_hash(charge_id: str) -> int:
    """First 8 bytes of the BLAKE2b (64-byte digest) of a charge id, as a signed 64-bit number."""
    return int.from_bytes(blake2b(UUID(charge_id).bytes).digest()[:8], "big", signed=True)


# ---- reading one record --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RawRecord:
    """One record of a `usage.events.*` partition, as the broker holds it."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None

    @property
    def position(self) -> Position:
        return self.topic, self.partition, self.offset

    @property
    def publisher(self) -> str:
        return self.topic.removeprefix(USAGE_TOPICS)

    @property
    def broker_time(self) -> datetime:
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=self.timestamp_ms)


class Unacceptable(Exception):
    """The record is quarantined; ``reasons`` are the classes it may be given."""

    def __init__(self, reasons: Iterable[str]) -> None:
        self.reasons = frozenset(reasons)
        super().__init__(", ".join(sorted(self.reasons)))


def _need(condition: bool, *reasons: str) -> None:
    if not condition:
        raise Unacceptable(reasons or (INVALID_EVENT,))


def _depth(text: str) -> int:
    """How deep brackets nest outside of strings."""
    depth = deepest = 0
    for bracket in re.sub(r'"(?:[^"\\]|\\.)*"', "", text):
        if bracket in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif bracket in "]}":
            depth -= 1
    return deepest


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _need(len({name for name, _ in pairs}) == len(pairs), *UNREADABLE)
    return dict(pairs)


def _no_constant(name: str) -> Any:
    raise Unacceptable(UNREADABLE)  # NaN and Infinity are not JSON


def read_json(value: bytes | None) -> dict[str, Any]:
    """The one object in these bytes: strict UTF-8, no name twice, no NaN, not too large, not too deep."""
    if not value:
        raise Unacceptable(UNREADABLE)  # a tombstone or nothing at all
    _need(len(value) <= EVENT_BYTES_MAX, *UNREADABLE)
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        raise Unacceptable({NOT_JSON}) from None
    _need(_depth(text) <= DEPTH_MAX, *UNREADABLE)
    try:
        document = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except (json.JSONDecodeError, RecursionError):
        raise Unacceptable({NOT_JSON}) from None
    except ValueError:  # a number of thousands of digits
        raise Unacceptable(UNREADABLE) from None
    _need(isinstance(document, dict), *UNREADABLE)
    _no_unstorable_text(document)
    assert isinstance(document, dict)
    return document


def _no_unstorable_text(value: Any) -> None:
    if isinstance(value, str):
        _need("\0" not in value, INVALID_EVENT, NOT_JSON, REFUSED_BY_STORE)
        _need(not re.search("[\ud800-\udfff]", value), INVALID_EVENT, NOT_JSON, REFUSED_BY_STORE)
    elif isinstance(value, dict):
        for name, item in value.items():
            _no_unstorable_text(name)
            _no_unstorable_text(item)
    elif isinstance(value, list):
        for item in value:
            _no_unstorable_text(item)


_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)
_E164 = re.compile(r"\+[1-9][0-9]{4,14}", re.ASCII)
_UTC_TEXT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?Z", re.ASCII)
_RFC_3339 = re.compile(
    r"[0-9-]{10}[Tt]([01][0-9]|2[0-3]):[0-5][0-9]:([0-5][0-9]|60)(\.[0-9]+)?([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])",
    re.ASCII,
)
_ATTRIBUTES = {"specversion", "id", "source", "type", "time", "subject", "datacontenttype", "dataschema", "data"}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= 256 and not re.search(r"[\x00-\x1f\x7f-\x9f]", value)


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def _is_number(value: Any) -> bool:
    return isinstance(value, str) and _E164.fullmatch(value) is not None


def _is_whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _utc(value: Any) -> datetime:
    _need(isinstance(value, str) and _UTC_TEXT.fullmatch(value) is not None)
    try:
        whole, _, fraction = value[:-1].partition(".")
        return datetime.fromisoformat(whole).replace(tzinfo=UTC, microsecond=int(fraction.ljust(6, "0") or 0))
    except ValueError:
        raise Unacceptable({INVALID_EVENT}) from None


def _timestamp(value: Any) -> None:
    """An instant of RFC 3339 in any zone."""
    _need(isinstance(value, str) and _RFC_3339.fullmatch(value) is not None)
    try:
        datetime.fromisoformat(value[:10])
    except ValueError:
        raise Unacceptable({INVALID_EVENT}) from None


@dataclass(frozen=True)
class Use:
    """What one valid event says was used; two uses with equal ``content`` say the same."""

    source: str
    event_id: str
    account_id: str | None
    event_time: datetime
    product: str
    destination: str  # the number or network that decides the price
    used: int
    unit: str
    is_free: bool  # costs nothing whatever the prices are
    content: tuple[Any, ...]
    duration_s: int = 0
    caller: str | None = None  # of a leg
    is_delivered: bool = True
    days_of_month: int | None = None  # of a rental
    profile: str | None = None  # the resource whose cost center it takes is an outbound profile,
    number: str | None = None  # or a number
    cost_center_id: str | None = None
    revision: int = 0
    is_void: bool = False  # says that what was told never was; it has no time of its own


def read_use(value: bytes | None) -> Use:
    """The use in the bytes of a record, or `Unacceptable`."""
    event = read_json(value)
    _need(event.get("specversion") == "1.0")
    _need(_is_text(event.get("id")))
    _need(_is_text(event.get("source")))
    kind = event.get("type")
    _need(_is_text(kind))
    if event.get("time") is not None:
        _timestamp(event["time"])
    _need(event.get("subject") is None or _is_text(event["subject"]))
    media_type = event.get("datacontenttype")
    _need(media_type is None or (_is_text(media_type) and re.fullmatch(r"[\w.+-]+/[\w.+-]+", media_type) is not None))
    schema = event.get("dataschema")
    _need(schema is None or (_is_text(schema) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", schema) is not None))
    for name in event.keys() - _ATTRIBUTES:
        extension = event[name]
        _need(re.fullmatch(r"[a-z0-9]+", name, re.ASCII) is not None)  # data_base64 fails here too
        _need(
            extension is None
            or isinstance(extension, str | bool)
            or _is_whole(extension, -(2**31), 2**31 - 1)  # no fraction, object or array
        )

    if kind not in _KINDS:  # an event of somebody, but not of ours
        raise Unacceptable({UNKNOWN_TYPE})
    _need(media_type in (None, "application/json"))
    data = event.get("data")
    _need(isinstance(data, dict))
    assert isinstance(data, dict)
    assert isinstance(kind, str)
    fields = _KINDS[kind]
    required = {name for name in fields if not name.endswith("?")}
    _need(required <= data.keys() <= {name.rstrip("?") for name in fields})
    for name, is_right in fields.items():
        field_value = data.get(name.rstrip("?"))
        _need((name.endswith("?") and field_value is None) or is_right(field_value))
    instants = {
        name: _utc(data[name]) for name in ("started_at", "ended_at", "sent_at", "starts_at", "used_at") if name in data
    }
    _need(data.get("account_id") is not None or data["direction"] == "inbound")
    if "started_at" in instants:
        _need(instants["started_at"] <= instants["ended_at"])
    said = {name: item for name, item in (data | instants).items() if item is not None}
    timed = [instants[name] for name in ("ended_at", "sent_at", "starts_at", "used_at") if name in instants]
    revision = event.get("revision")
    _need(revision is None or _is_whole(revision, 0, 2**31 - 1))
    _need(kind != VOID or (revision is not None and revision > 0))
    common = {
        "source": event["source"],
        "event_id": event["id"],
        "account_id": data.get("account_id"),
        "event_time": timed[0] if timed else NO_TIME,
        "revision": revision or 0,
        "content": (kind, *sorted(said.items())),
        "cost_center_id": data.get("cost_center_id"),
    }
    return _USES[kind](common, data)


def _leg(common: Mapping[str, Any], data: Mapping[str, Any]) -> Use:
    _need(data["billable_s"] <= data["duration_s"])
    _need(data["answered"] or data["billable_s"] == 0)
    outbound = data["direction"] == "outbound"
    toll_free = "voice.toll_free" if data["called"][1:].startswith(TOLL_FREE) else "voice.inbound"
    return Use(
        **common,
        product="voice.outbound" if outbound else toll_free,
        destination=data["called"],
        used=data["billable_s"],
        unit="second",
        is_free=not data["answered"] or data["billable_s"] == 0,
        duration_s=data["duration_s"],
        caller=data.get("caller"),
        profile=data.get("outbound_profile") if outbound else None,
        number=None if outbound else data["called"],
    )


def _message(common: Mapping[str, Any], data: Mapping[str, Any]) -> Use:
    outbound = data["direction"] == "outbound"
    return Use(
        **common,
        product=f"message.{data['channel']}.{data['direction']}",
        destination=data["recipient"],
        used=data["segments"],
        unit="segment",
        is_free=data["outcome"] == "rejected",
        is_delivered=data["outcome"] == "delivered",
        profile=data.get("outbound_profile") if outbound else None,
        number=None if outbound else data["recipient"],
    )


def _data(common: Mapping[str, Any], data: Mapping[str, Any]) -> Use:
    return Use(
        **common,
        product="data",
        destination=data.get("network") or "",
        used=data["bytes"],
        unit="byte",
        is_free=data["bytes"] == 0,
        number=data.get("subscriber"),
    )


def _rental(common: Mapping[str, Any], data: Mapping[str, Any]) -> Use:
    year, month = int(data["month"][:4]), int(data["month"][5:])
    _need(year >= 1)
    following = date(year + month // 12, month % 12 + 1, 1) if year < 9999 else date(year, 12, 31)
    days = (following - date(year, month, 1)).days
    _need(data["days"] <= days)
    return Use(
        **common,
        product="number.rental",
        destination=data["number"],
        used=data["days"],
        unit="day",
        is_free=False,
        days_of_month=days,
        number=data["number"],
    )


def _product(common: Mapping[str, Any], data: Mapping[str, Any]) -> Use:
    _need(not data["product"].startswith(("voice.", "message.", "number.")) and data["product"] != "data")
    return Use(
        **common,
        product=data["product"],
        destination="",
        used=data["quantity"],
        unit=data["unit"],
        is_free=data["quantity"] == 0,
    )


def _void(common: Mapping[str, Any], data: Mapping[str, Any]) -> Use:
    return Use(**common, product="", destination="", used=0, unit="", is_free=True, is_void=True)


def _matches(pattern: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value, re.ASCII) is not None


def _one_of(*words: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in words


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: _is_whole(value, low, high)


_is_instant = _matches(_UTC_TEXT.pattern)
_KINDS: dict[str, dict[str, Callable[[Any], bool]]] = {
    VOICE_LEG: {
        "account_id?": _is_id,
        "direction": _one_of("inbound", "outbound"),
        "caller": lambda value: value is None or _is_number(value),
        "called": _is_number,
        "started_at": _is_instant,
        "ended_at": _is_instant,
        "answered": lambda value: isinstance(value, bool),
        "duration_s": _whole(0, CALL_SECONDS_MAX),
        "billable_s": _whole(0, CALL_SECONDS_MAX),
        "outbound_profile?": _is_id,
        "cost_center_id?": _is_id,
        "call_leg_id?": _is_text,
    },
    MESSAGE: {
        "account_id?": _is_id,
        "direction": _one_of("inbound", "outbound"),
        "channel": _one_of("sms", "mms"),
        "sender": lambda value: value is None or _is_text(value),
        "recipient": _matches(r"\+[1-9][0-9]{4,14}|[0-9]{3,8}"),
        "segments": _whole(1, 255),
        "outcome": _one_of("accepted", "rejected", "delivered", "undelivered"),
        "sent_at": _is_instant,
        "outbound_profile?": _is_id,
        "cost_center_id?": _is_id,
        "message_id?": _is_text,
    },
    DATA: {
        "account_id": _is_id,
        "bytes": _whole(0, 2**50),
        "started_at": _is_instant,
        "ended_at": _is_instant,
        "network?": _matches(r"[0-9]{3}([0-9]{2,3})?"),
        "subscriber?": _is_number,
        "cost_center_id?": _is_id,
        "session_id?": _is_text,
    },
    RENTAL: {
        "account_id": _is_id,
        "number": _is_number,
        "month": _matches(r"[0-9]{4}-(0[1-9]|1[0-2])"),
        "days": _whole(1, 31),
        "starts_at": _is_instant,
        "cost_center_id?": _is_id,
    },
    PRODUCT: {
        "account_id": _is_id,
        "product": _is_id,
        "quantity": _whole(0, 10**15),
        "unit": _is_id,
        "used_at": _is_instant,
        "cost_center_id?": _is_id,
        "reference?": _is_text,
    },
    VOID: {"account_id": _is_id, "reason": _is_text},
}
"""What may stand in the data of each kind of event; a question mark: may be absent or null."""
_USES = {VOICE_LEG: _leg, MESSAGE: _message, DATA: _data, RENTAL: _rental, PRODUCT: _product, VOID: _void}


# ---- rating --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Charge:
    """One rated use, in the words of the charge that is published."""

    charge_id: str
    account_id: str
    organization_id: str
    plan: str
    group_id: str | None
    period: str | None
    bill_to: str | None
    cost_center_id: str | None
    publisher: str
    source: str
    event_id: str
    event_time: datetime
    product: str
    matched: str
    quantity: int
    duration_s: int
    amount_nano: int
    currency: str
    revision: int = 0
    reverses: str | None = None
    schedule: str | None = (
        None  # of tiers: what it costs depends on what came before it, and is then taken from what is seen
    )


_PUBLISHED = (
    "charge_id", "account_id", "organization_id", "plan", "group_id", "period", "bill_to", "cost_center_id", "publisher",
    "source", "event_id", "product", "matched", "quantity", "duration_s", "currency", "revision", "reverses",
)  # fmt: skip


def billed_quantity(used: int, minimum: int, increment: int) -> int:
    """The minimum, then started increments.

    >>> billed_quantity(95, 60, 60), billed_quantity(95, 60, 6), billed_quantity(3, 1, 1), billed_quantity(23, 60, 6)
    (120, 96, 3, 60)
    """
    beyond = max(0, used - minimum)
    return minimum + -(-beyond // increment) * increment


def charge_amount(billed: int, price: str, fee: str = "0", per: int = 60, more: Fraction = Fraction(0)) -> int:
    """Nanos of fee + billed / per x price, and of a surcharge, rounded once, half-even to 9 decimals.

    >>> charge_amount(96, "0.0120", "0.0010"), charge_amount(1, "0.0085"), charge_amount(10, "1", per=31)
    (20200000, 141667, 322580645)
    """
    return half_even((Fraction(fee) + Fraction(billed, per) * Fraction(price) + more) * NANO)


def surcharge_of(use: Use, prices: PriceBooks, organization_id: str | None, pricing_model: str | None) -> Fraction:
    """What a toll-free leg costs more, exactly: by the price of the surcharge for its caller, if there is one."""
    if use.product != "voice.toll_free":
        return Fraction(0)
    by_caller = replace(use, product="voice.toll_free.surcharge", destination=use.caller or "")
    price = prices.find(by_caller, organization_id, pricing_model)
    if price is None:
        return Fraction(0)
    billed = billed_quantity(use.used, price["minimum"], price["increment"])
    return Fraction(price.get("fee", "0")) + Fraction(billed, price.get("per", 60)) * Fraction(price["price"])


def tiers_total(tiers: Mapping[str, Any], quantity: int) -> int:
    """Nanos that a quantity costs in all by tiers, rounded once.

    >>> tiers = {"per": 1, "bands": [{"up_to": 1000, "price": "0.010", "fee": "0"}, {"up_to": None, "price": "0.008", "fee": "0"}]}
    >>> [tiers_total(tiers | {"form": form}, 1400) // 10**7 for form in ("graduated", "volume")]
    [1320, 1120]
    """
    cost, below = Fraction(0), 0
    for band in tiers["bands"]:
        if quantity <= below:
            break
        top = quantity if band["up_to"] is None else min(quantity, band["up_to"])
        price, fee = Fraction(band["price"]) / tiers["per"], Fraction(band["fee"])
        cost = cost + (top - below) * price + fee if tiers["form"] == "graduated" else quantity * price + fee
        below = top
    return half_even(cost * NANO)


def counter_of(charge: Charge) -> tuple[Any, ...]:
    """Which counter a charge moves; prepaid and postpaid use have one each."""
    month = charge.period or month_of(charge.event_time, "UTC")
    return charge.account_id, charge.group_id, month, charge.product, charge.plan == "invoiced", charge.schedule


def check_counters(
    charges: Iterable[tuple[Charge, Mapping[str, Any]]], schedules: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """What is wrong with the charges that tiers priced, each with how it was seen. Each costs what its counter's quantity
    after it costs more than that before it; those steps go from zero to what was used in all; and the charges up to each
    invoice sum to what the quantity up to it costs, whatever came first."""
    counters: dict[tuple[Any, ...], list[tuple[Charge, Mapping[str, Any]]]] = defaultdict(list)
    for charge, seen in charges:
        counters[counter_of(charge)].append((charge, seen))
    problems = []
    for key, moved in counters.items():
        tiers, used = schedules[key[-1]], sum(charge.quantity for charge, _ in moved)
        steps = [(seen["tier"]["before"], seen["tier"]["after"]) for _, seen in moved]
        if Counter([before for before, _ in steps] + [used]) != Counter([after for _, after in steps] + [0]):
            problems.append(f"counter {key}: {sorted(steps)} do not go from 0 to {used}")
        for (charge, seen), (before, after) in zip(moved, steps, strict=True):
            cost = tiers_total(tiers, after) - tiers_total(tiers, before)
            if (after - before, nano(seen["amount"])) != (charge.quantity, cost):
                problems.append(f"counter {key}: {dict(seen)} should cost {cost} nanos for {charge.quantity}")
        for invoice in {charge.bill_to or "" for charge, _ in moved}:
            so_far = [(charge, seen) for charge, seen in moved if (charge.bill_to or "") <= invoice]
            cost, told = (
                tiers_total(tiers, sum(c.quantity for c, _ in so_far)),
                sum(nano(s["amount"]) for _, s in so_far),
            )
            if cost != told:
                problems.append(f"counter {key}: up to invoice {invoice} {told} nanos were charged, expected {cost}")
    return problems


def published(seen: Mapping[str, Any]) -> Charge:
    """A charge as it was published."""
    return Charge(
        **{name: seen[name] for name in _PUBLISHED},
        event_time=instant(seen["event_time"]),
        amount_nano=nano(seen["amount"]),
        schedule=seen["tier"]["schedule"] if "tier" in seen else None,
    )


def standing(charges: Iterable[Charge]) -> tuple[dict[tuple[str, str, str], Charge], list[str]]:
    """The charge that stands of each fact (publisher, source, id), whatever took its place by revisions and re-rates, and what
    is wrong: a charge that is taken back twice, otherwise than it was charged, or on an earlier invoice; two that stand."""
    by_id: dict[str, Charge] = {}
    problems: list[str] = []
    for charge in charges:
        if charge.charge_id in by_id:
            problems.append(f"charge {charge.charge_id} exists twice")
        by_id[charge.charge_id] = charge
    taken_back: set[str] = set()
    for reversal in (each for each in by_id.values() if each.reverses is not None):
        of = by_id.get(reversal.reverses or "")
        if of is None or of.reverses is not None or of.charge_id in taken_back:
            problems.append(f"{reversal} takes back what is not there")
            continue
        taken_back.add(of.charge_id)
        changed = {"charge_id": reversal.charge_id, "reverses": of.charge_id, "quantity": -of.quantity}
        amount = reversal.amount_nano if of.schedule is not None else -of.amount_nano
        if reversal != replace(of, **changed, amount_nano=amount, bill_to=reversal.bill_to):
            problems.append(f"{reversal} is not the negative of {of}")
        if (reversal.bill_to or "") < (of.bill_to or ""):
            problems.append(f"{reversal} stands on an earlier invoice than {of}")
    stands: dict[tuple[str, str, str], Charge] = {}
    for charge in by_id.values():
        if charge.reverses is None and charge.charge_id not in taken_back:
            fact = charge.publisher, charge.source, charge.event_id
            if fact in stands:
                problems.append(f"{charge} and {stands[fact]} stand of one fact")
            stands[fact] = charge
    return stands, problems


def unmoved(
    observed: Iterable[Mapping[str, Any]],
) -> tuple[list[Mapping[str, Any]], dict[str, list[Mapping[str, Any]]]]:
    """What was charged, with what stands after corrections by the registry under the name of the charge that was first; and by
    that name the whole row: the charge, what takes it back, what stands in its place, and so on to the one that stands."""
    by_id = {each["charge_id"]: each for each in observed}
    taken_back = {each["reverses"]: each for each in by_id.values() if each.get("reverses") is not None}
    follows = {each["replaces"]: each for each in by_id.values() if each.get("replaces") is not None}
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for first in follows.keys() - {each["charge_id"] for each in follows.values()}:
        row = rows[first] = [by_id[first]]
        while (after := follows.get(row[-1]["charge_id"])) is not None:
            reversal = taken_back.get(row[-1]["charge_id"])
            row += [after] if reversal is None else [reversal, after]
    gone = {each["charge_id"] for row in rows.values() for each in row}
    charges = [each for charge_id, each in by_id.items() if charge_id not in gone]
    return charges + [{**row[-1], "charge_id": first} for first, row in rows.items()], rows


def moved_back(
    charges: Mapping[str, Charge], before: Mapping[str, Charge], rows: Mapping[str, Sequence[Mapping[str, Any]]]
) -> tuple[dict[str, Charge], list[str]]:
    """All charges that must exist, of those that must stand (`unmoved`), and what is wrong with the others. ``before``: what
    must have been charged while nobody knew of the move, by which each was moved once."""
    found = dict(charges)
    problems: list[str] = []
    for first, row in rows.items():
        if len(row) != 3 or first not in before or first not in charges:
            problems.append(f"charge {first} was moved otherwise than once: {row}")
            continue
        original, reversal, stands = row
        if differences := _differences(before[first], original):
            problems.append(f"charge {first}, before it was moved: {differences}")
        problems += standing(map(published, row))[1]
        found |= {first: published(original), reversal["charge_id"]: published(reversal)}
        found[stands["charge_id"]] = replace(charges[first], charge_id=stands["charge_id"])
    return found, problems


class PriceBooks:
    """Price rows as books of versions. A version is one complete list, valid until the next of the same book."""

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self.books: dict[tuple[str, str], dict[str, dict[tuple[datetime, int], list[Mapping[str, Any]]]]] = {}
        for row in rows:
            scope = next(((name, row[name]) for name in SCOPES if row.get(name) is not None), ("default", ""))
            versions = self.books.setdefault(scope, {}).setdefault(row.get("book", ""), {})
            versions.setdefault((instant(row["effective_from"]), row.get("version", 1)), []).append(row)

    def find(self, use: Use, organization_id: str | None, pricing_model: str | None) -> Mapping[str, Any] | None:
        """Account override, pricing model, organization, default: the first book with a match. In a book the version
        with the latest date that has come at event time (of two, the higher), in it the longest prefix that has a price
        when the use began, and of that the price of a window before the one without."""
        began = use.event_time - timedelta(seconds=use.duration_s)
        scopes = [
            ("account_id", use.account_id),
            ("pricing_model", pricing_model),
            ("organization_id", organization_id),
            ("default", ""),
        ]
        for name, value in scopes:
            for versions in self.books.get((name, value), {}).values() if value is not None else ():
                begun = [version for version in versions if version[0] <= use.event_time]
                rows = versions[max(begun)] if begun else []
                rows = [row for row in rows if row["product"] == use.product]
                rows = [row for row in rows if use.destination.lstrip("+").startswith(_digits(row))]
                rows = [row for row in rows if row.get("window") is None or _is_open(row["window"], began)]
                if rows:
                    return max(rows, key=lambda row: (len(_digits(row)), row.get("window") is not None))
        return None


def _digits(row: Mapping[str, Any]) -> str:
    """The prefix of a price; ``*`` is a prefix of everything."""
    return str(row["prefix"]).lstrip("+*")


def _is_open(window: Mapping[str, Any], moment: datetime) -> bool:
    """Whether a window is open by the clock on the wall. The hours after midnight are of the day before."""
    local = moment.astimezone(ZoneInfo(window["zone"]))
    clock, day = local.strftime("%H:%M"), local.date()
    if window["from"] >= window["to"] and clock < window["to"]:
        return _is_day_of(window, day - timedelta(days=1))
    is_late_enough = clock >= window["from"]
    is_early_enough = window["from"] >= window["to"] or clock < window["to"]
    return is_late_enough and is_early_enough and _is_day_of(window, day)


def _is_day_of(window: Mapping[str, Any], day: date) -> bool:
    week = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
    name = "holiday" if day.isoformat() in window.get("holidays", "").split() else week[day.weekday()]
    for word in window["days"].split():
        first, _, last = word.partition("-")
        if name == word or (last and name in week and week.index(first) <= week.index(name) <= week.index(last)):
            return True
    return False


class Registry:
    """The facts, found by id."""

    def __init__(self, facts: Facts) -> None:
        self.publishers = {row["publisher_id"]: row for row in facts["publishers"]}
        self.accounts = {row["account_id"]: row for row in facts["accounts"]}
        self.groups = {row["group_id"]: row for row in facts.get("billing_groups", ())}
        self.resources = list(facts.get("resources", ()))
        self.cost_centers = facts.get("cost_centers")
        self.prices = PriceBooks(facts["prices"])


def _owner(resource: Mapping[str, Any], moment: datetime) -> Any:
    """Whose a resource was; without intervals it is its account's for as long as it has cost centers."""
    if resource.get("owners"):
        interval = interval_at(resource["owners"], moment)
        return interval["account_id"] if interval else None
    return resource["account_id"] if interval_at(resource["cost_centers"], moment) else None


def _account_of(registry: Registry, use: Use) -> Any:
    """The account of a use: the one it names, else that of the called number at that time."""
    if use.account_id is not None:
        return use.account_id
    owners = [_owner(each, use.event_time) for each in registry.resources if each.get("number") == use.number]
    return next((owner for owner in owners if owner is not None), None)


def _cost_center(registry: Registry, account: Mapping[str, Any], use: Use) -> str | None:
    override = use.cost_center_id
    known = registry.cost_centers
    if override is not None and (known is None or override in known.get(account["organization_id"], ())):
        return override
    for resource in registry.resources:
        is_it = (
            resource["kind"] == "outbound_profile" and resource["resource_id"] == use.profile
            if use.profile is not None
            else resource["kind"] == "number" and use.number is not None and resource.get("number") == use.number
        )
        if is_it and _owner(resource, use.event_time) == use.account_id:
            interval = interval_at(resource["cost_centers"], use.event_time)
            return interval["cost_center_id"] if interval else None
    return None


def bill_to(period: str, zone: str, passed: Collection[datetime]) -> str:
    """The first period from ``period`` on whose cut the charge has not passed."""
    while month_end(period, zone) in passed:
        period = month_after(period)
    return period


def rate(record: RawRecord, use: Use, registry: Registry, passed: Collection[datetime]) -> Charge | None:
    """The charge of a use, None when it costs nothing, or `Unacceptable` with all its reasons."""
    reasons: set[str] = set()
    publisher = registry.publishers.get(record.publisher)
    if publisher is None or use.source not in publisher["sources"]:
        reasons.add(NOT_PERMITTED)
    if publisher is not None and not use.is_void:
        late = timedelta(seconds=publisher.get("late_s_max", 35 * 86_400))
        early = timedelta(seconds=publisher.get("early_s_max", 600))
        if use.event_time < record.broker_time - late:
            reasons.add(TOO_OLD)
        if use.event_time > record.broker_time + early:
            reasons.add(IN_FUTURE)
    use = replace(use, account_id=_account_of(registry, use))
    account = registry.accounts.get(use.account_id)
    if account is None or use.account_id is None:
        raise Unacceptable(reasons | {UNKNOWN_ACCOUNT if use.account_id is not None else UNKNOWN_NUMBER})
    if publisher is not None and account["organization_id"] not in publisher["organization_ids"]:
        reasons.add(NOT_PERMITTED)
    if use.is_void:
        if reasons:
            raise Unacceptable(reasons)
        return None
    plan = interval_at(account["plans"], use.event_time)
    if plan is None:  # not yet opened at event time
        raise Unacceptable(reasons | {UNKNOWN_ACCOUNT, NOT_PERMITTED})

    group: Mapping[str, Any] | None = None
    membership = interval_at(account.get("groups", ()), use.event_time)
    if plan["plan"] != "trial":
        if membership is None and reasons:
            raise Unacceptable(reasons)
        if membership is None:
            raise OutsideTheModel(f"account {use.account_id} has no payer group at {use.event_time}")
        group = registry.groups[membership["group_id"]]
    if use.is_free:
        if reasons:
            raise Unacceptable(reasons)
        return None

    pricing_model = group.get("pricing_model") if group else None
    price = registry.prices.find(use, account["organization_id"], pricing_model)
    if price is None:
        raise Unacceptable(reasons | {NO_PRICE})
    currency = (group or account).get("currency", "USD")
    if price.get("currency", "USD") != currency:
        reasons.add(WRONG_CURRENCY)
    if price.get("unit", use.unit) != use.unit:
        reasons.add(WRONG_UNIT)
    elif price.get("delivered_only", False) and not use.is_delivered:
        if reasons:
            raise Unacceptable(reasons)
        return None
    billed = billed_quantity(use.used, price["minimum"], price["increment"])
    per = use.days_of_month or price.get("per", 60)
    more = surcharge_of(use, registry.prices, account["organization_id"], pricing_model)
    amount_nano = charge_amount(billed, price["price"], price.get("fee", "0"), per, more)
    if amount_nano > CHARGE_NANO_MAX:
        reasons |= {REFUSED_BY_STORE, INVALID_EVENT}
    if reasons:
        raise Unacceptable(reasons)

    zone = group.get("zone", "UTC") if group else "UTC"
    period = month_of(use.event_time, zone) if group else None
    return Charge(
        charge_id=charge_id_of(identity_of(record.publisher, use.source, use.event_id), use.revision),
        account_id=use.account_id,
        organization_id=account["organization_id"],
        plan=plan["plan"],
        group_id=group["group_id"] if group else None,
        period=period,
        bill_to=bill_to(period, zone, passed) if period else None,
        cost_center_id=_cost_center(registry, account, use),
        publisher=record.publisher,
        source=use.source,
        event_id=use.event_id,
        event_time=use.event_time,
        product=use.product,
        matched=price["prefix"].lstrip("+"),
        quantity=billed,
        duration_s=use.duration_s,
        amount_nano=amount_nano,
        currency=currency,
        revision=use.revision,
        schedule=schedule_of(price),
    )


def schedule_of(price: Mapping[str, Any]) -> str | None:
    """The name that charges give to the tiers of a price."""
    tiers = price.get("tiers")
    return f"{price.get('book', '')}/{price.get('version', 1)}/{tiers['id']}" if tiers is not None else None


# ---- judging all records -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Finding:
    """One record looked at by itself, before it is known what else has its identity."""

    record: RawRecord
    phase: int
    use: Use | None
    charge: Charge | None
    reasons: frozenset[str]  # empty: nothing is wrong with the record itself
    passed: frozenset[datetime]
    replayed: bool

    @property
    def identity(self) -> bytes | None:
        return identity_of(self.record.publisher, self.use.source, self.use.event_id) if self.use else None

    @property
    def waits(self) -> bool:
        """Runs at a later time than its place in the partition says: late for a cut, or replayed."""
        if self.charge is None:  # whether a free use waits is left open
            return self.replayed or (self.use is not None and any(self.use.event_time < t for t in self.passed))
        return self.replayed or self.charge.bill_to != self.charge.period

    @property
    def accepted_class(self) -> str:
        if self.use is not None and self.use.is_void:
            return VOIDED
        if self.charge is None:
            return NOT_BILLABLE
        return RATED if self.charge.group_id else RATED_UNGROUPED


FactKey = tuple[str, str, str]  # publisher, source, id


@dataclass(frozen=True)
class Fact:
    """A fact that came in several revisions. Any of them may have been charged for a while, and was then taken back; at the
    end the highest stands. ``charges``: what each revision may have cost, by which of its copies was first; ``passed``: the
    cuts that each of its copies came after."""

    charges: Mapping[int, tuple[Charge, ...]]
    passed: Mapping[int, tuple[frozenset[datetime], ...]]
    zones: Mapping[str, str]

    @property
    def highest(self) -> int:
        return max(self.charges)

    def reversals(self, charge: Charge) -> list[Charge]:
        """Every reversal that a charge may have, by which record took it back."""
        return [
            replace(
                charge,
                charge_id=reversal_id_of(charge.charge_id, revision),
                bill_to=bill_to(charge.bill_to, self.zones[charge.group_id], passed)
                if charge.bill_to and charge.group_id
                else None,
                quantity=-charge.quantity,
                amount_nano=-charge.amount_nano,
                reverses=charge.charge_id,
            )
            for revision, copies in self.passed.items()
            for passed in copies
            if revision > charge.revision
        ]

    def check(self, seen: Sequence[Mapping[str, Any]]) -> tuple[list[Charge], list[str]]:
        """What was charged and taken back, as far as it is right, and what is wrong with it."""
        charged = {each["revision"]: each for each in seen if each.get("reverses") is None}
        taken_back: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for each in seen:
            if each.get("reverses") is not None:
                taken_back[each["reverses"]].append(each)
        right: list[Charge] = []
        problems: list[str] = []
        if self.charges[self.highest] and self.highest not in charged:
            problems.append(f"revision {self.highest} is not charged: {self.charges[self.highest]}")
        for revision, there in charged.items():
            fitting = [each for each in self.charges.get(revision, ()) if not _differences(each, there)]
            if not fitting:
                problems.append(f"{dict(there)} is none of {self.charges.get(revision)}")
                continue
            right.append(fitting[0])
            reversals = taken_back.pop(fitting[0].charge_id, [])
            if len(reversals) != (revision < self.highest):
                problems.append(f"charge {fitting[0].charge_id} is taken back {len(reversals)} times")
            for reversal in reversals:
                found = [each for each in self.reversals(fitting[0]) if not _differences(each, reversal)]
                right += found[:1]
                if not found:
                    problems.append(f"{dict(reversal)} does not take {fitting[0]} back")
        problems += [f"{each} is taken back and was never charged" for each in taken_back]
        return right, problems


@dataclass
class Judgement:
    """What may be seen. ``verdicts``: the classes each record may have; ``charges``: those that must exist;
    ``contested``: for one charge id the candidates of which exactly one must exist (None: no charge)."""

    verdicts: dict[Position, frozenset[str]] = field(default_factory=dict)
    charges: dict[str, Charge] = field(default_factory=dict)
    contested: dict[str, tuple[Charge | None, ...]] = field(default_factory=dict)
    identities: dict[bytes, tuple[Position, ...]] = field(default_factory=dict)  # of records that were acceptable
    revisions: list[tuple[tuple[Position, ...], bool]] = field(
        default_factory=list
    )  # of each one, and if it is the highest
    facts: dict[FactKey, Fact] = field(default_factory=dict)  # those of several revisions
    totals: Counter[str] = field(default_factory=Counter)
    undecided: list[_Finding] = field(default_factory=list)
    schedules: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def check_classes(self, observed: Mapping[Position, str]) -> list[str]:
        """What is wrong with the observed class of every record; empty when nothing is."""
        problems = [
            f"{p}: no such record, but classified {observed[p]}" for p in observed.keys() - self.verdicts.keys()
        ]
        for position, allowed in self.verdicts.items():
            seen = observed.get(position)
            if seen is None:
                problems.append(f"{position}: not accounted for, expected one of {sorted(allowed)}")
            elif seen not in allowed:
                problems.append(f"{position}: {seen}, expected one of {sorted(allowed)}")
        accepted = {RATED, RATED_UNGROUPED, NOT_BILLABLE}
        for positions in self.identities.values():
            count = sum(observed.get(position) in accepted for position in positions)
            if count != 1:
                problems.append(f"{positions}: one identity was accepted {count} times")
        for positions, is_highest in self.revisions:
            count = sum(observed.get(position) in accepted | {VOIDED} for position in positions)
            if count > 1 or (is_highest and not count):
                problems.append(f"{positions}: one revision was accepted {count} times")
        return sorted(problems)

    def resolve(self, observed: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Charge], list[str]]:
        """The charges that must exist, contested ones decided by what was seen, and what is wrong with the observed
        charges (dictionaries as published on `usage.charges`)."""
        problems: list[str] = []
        seen: dict[str, Mapping[str, Any]] = {}
        for charge in observed:
            if charge["charge_id"] in seen:
                problems.append(f"charge {charge['charge_id']}: exists twice")
            seen[charge["charge_id"]] = charge
        decided = dict(self.charges)
        for charge_id, candidates in self.contested.items():
            there = seen.get(charge_id)
            fitting = [
                c for c in candidates if (c is None and there is None) or (c and there and not _differences(c, there))
            ]
            if not fitting:
                problems.append(f"charge {charge_id}: {there} is none of the candidates {candidates}")
            elif fitting[0] is not None:
                decided[charge_id] = fitting[0]
        of_facts: dict[FactKey, list[Mapping[str, Any]]] = {key: [] for key in self.facts}
        for charge in seen.values():
            key = charge["publisher"], charge["source"], charge["event_id"]
            if key in of_facts:
                of_facts[key].append(charge)
        for key, fact in self.facts.items():
            right, wrong = fact.check(of_facts[key])
            decided |= {each.charge_id: each for each in right}
            problems += [f"{key}: {each}" for each in wrong]
        known = decided.keys() | self.contested.keys()
        known |= {each["charge_id"] for charges in of_facts.values() for each in charges}
        problems += [f"charge {i}: nothing in the input makes it: {dict(seen[i])}" for i in seen.keys() - known]
        for charge_id, expected in decided.items():
            if charge_id not in seen:
                problems.append(f"charge {charge_id}: missing, expected {expected}")
            elif differences := _differences(expected, seen[charge_id]):
                problems.append(f"charge {charge_id}: {differences}")
        by_tiers = [(each, seen[i]) for i, each in decided.items() if each.schedule is not None and i in seen]
        problems += check_counters(by_tiers, self.schedules)
        decided |= {each.charge_id: replace(each, amount_nano=nano(there["amount"])) for each, there in by_tiers}
        return decided, sorted(problems)

    def held_groups(self, boundary: datetime, vector: Vector, facts: Facts) -> tuple[frozenset[str], frozenset[str]]:
        """Groups that must be, and that may be held at a cut by undecided quarantined records below it: their own, and that of
        the charge which a revision would take back, wherever that was read. A record that could not be read holds nobody
        here; whether one that was not permitted holds is left open."""
        must: set[str] = set()
        may: set[str] = set()
        registry = Registry(facts)
        for finding in self.undecided:
            lane = finding.record.topic, finding.record.partition
            if finding.use is None or finding.record.offset >= vector.get(lane, 0):
                continue
            account = registry.accounts.get(_account_of(registry, finding.use))
            membership = interval_at(account.get("groups", ()), finding.use.event_time) if account else None
            live, is_certain = self._would_take_back(finding, vector)
            holding = [(charge.group_id, charge.event_time, is_certain) for charge in live if charge.group_id]
            if membership is not None:
                holding.append((membership["group_id"], finding.use.event_time, True))
            allowed = self.verdicts[finding.record.position]
            for group_id, event_time, is_sure in holding:
                zone = registry.groups[group_id].get("zone", "UTC")
                is_its_end = month_end(month_of(boundary - timedelta(microseconds=1), zone), zone) == boundary
                if event_time >= boundary or not is_its_end:
                    continue
                may.add(group_id)
                if is_sure and allowed <= REASONS and NOT_PERMITTED not in allowed and UNKNOWN_ACCOUNT not in allowed:
                    must.add(group_id)
        return frozenset(must), frozenset(may)

    def _would_take_back(self, finding: _Finding, vector: Vector) -> tuple[list[Charge], bool]:
        """Of an undecided revision the charges one of which it may take back, and whether it surely does: where the fact has
        no other revision but its original, and that was read before the cut."""
        use = finding.use
        if use is None or finding.identity is None or not use.revision:
            return [], False
        fact = self.facts.get((finding.record.publisher, use.source, use.event_id))
        if fact is not None:
            return [each for revision, of in fact.charges.items() if revision < use.revision for each in of], False
        charge_id = charge_id_of(finding.identity)
        charges = [each for each in self.contested.get(charge_id, (self.charges.get(charge_id),)) if each is not None]
        copies = self.identities.get(finding.identity, ())
        are_read = all(offset < vector.get((topic, partition), 0) for topic, partition, offset in copies)
        return charges, len(charges) == 1 and are_read


def _differences(expected: Charge, seen: Mapping[str, Any]) -> str:
    wrong = []
    for name in expected.__dataclass_fields__:
        want = getattr(expected, name)
        have: Any
        if name == "amount_nano":
            have = nano(seen["amount"]) if expected.schedule is None else want
        elif name == "schedule":
            have = seen.get("tier", {}).get("schedule")
        elif name == "event_time":
            have = instant(seen["event_time"])
        elif name == "matched":
            have = str(seen.get("matched")).lstrip("+")
        else:
            have = seen.get(name)
        if have != want:
            wrong.append(f"{name} is {have!r}, expected {want!r}")
    return "; ".join(wrong)


def judge(
    phases: Sequence[tuple[Facts, Iterable[RawRecord]]],
    *,
    cuts: Mapping[datetime, Vector] | None = None,
    replays: Mapping[Position, Collection[datetime]] | None = None,
    discards: Collection[Position] = (),
    facts_at_replay: Facts | None = None,
    store_refuses: Callable[[Use], bool] = lambda use: False,
) -> Judgement:
    """Judges all records of a run.

    ``phases``: the facts as they stood, and the records that were read while they stood so (often one phase).
    ``cuts``: the vector of each boundary as it was taken; a partition it does not name was born after it (C = 0).
    ``replays``: each record released from quarantine, with the boundaries whose cut its group had passed when it ran. (It
    passes by its offset as well: "a record keeps its (partition, offset) wherever it runs", designs/closing, line 8.)
    ``discards``: records given up by name. ``facts_at_replay``: the facts when replays ran (default: the last phase's).
    ``store_refuses``: says which valid legs the test made the database refuse.
    """
    cuts, replays = cuts or {}, replays or {}
    registry_at_replay = Registry(facts_at_replay or phases[-1][0])
    findings: list[_Finding] = []
    for phase, (facts, records) in enumerate(phases):
        registry = Registry(facts)
        for record in records:
            replayed = record.position in replays
            passed = frozenset(
                t for t, c in cuts.items() if record.offset >= c.get((record.topic, record.partition), 0)
            ) | frozenset(replays.get(record.position, ()))
            use, charge, reasons = None, None, frozenset[str]()
            try:
                use = read_use(record.value)
                if store_refuses(use):
                    raise Unacceptable({REFUSED_BY_STORE})
                charge = rate(record, use, registry_at_replay if replayed else registry, passed)
            except Unacceptable as refusal:
                reasons = refusal.reasons
            findings.append(_Finding(record, phase, use, charge, reasons, passed, replayed))

    judgement = Judgement(
        schedules={
            name: row["tiers"]
            for facts in [*(facts for facts, _ in phases), facts_at_replay or {}]
            for row in facts.get("prices", ())
            if (name := schedule_of(row)) is not None
        }
    )
    accepted: dict[bytes, list[_Finding]] = defaultdict(list)
    for finding in findings:
        if not finding.reasons and finding.identity is not None:
            accepted[finding.identity].append(finding)

    for identity, copies in accepted.items():
        if any(copy.use and copy.use.revision for copy in copies):
            _judge_revisions(judgement, copies, registry_at_replay)
        else:
            _judge_identity(judgement, identity, copies, cuts)

    for finding in findings:
        if not finding.reasons:
            continue
        allowed = set(finding.reasons)
        # Whether the identity is looked up before or after these faults are found is not decided by the pages.
        if finding.identity in accepted and allowed & {TOO_OLD, IN_FUTURE, NO_PRICE, WRONG_CURRENCY}:
            for copy in accepted[finding.identity]:
                assert copy.use is not None
                assert finding.use is not None
                allowed.add(DUPLICATE if copy.use.content == finding.use.content else CONFLICT)
        judgement.verdicts[finding.record.position] = frozenset(allowed)
        judgement.totals["quarantined"] += 1
    judgement.undecided = [
        finding
        for finding in findings
        if judgement.verdicts[finding.record.position] & REASONS and finding.record.position not in discards
    ]
    return judgement


def _judge_identity(
    judgement: Judgement, identity: bytes, copies: list[_Finding], cuts: Mapping[datetime, Vector]
) -> None:
    """One identity is accepted once. Copies with the same content are duplicates, others conflicts with the accepted."""
    judgement.identities[identity] = tuple(copy.record.position for copy in copies)
    winners = [
        copy
        for copy in copies
        if not any(
            o.use.content != copy.use.content and _surely_before(o, copy, cuts) for o in copies if o.use and copy.use
        )
    ]
    contents = {copy.use.content for copy in winners if copy.use}
    for copy in copies:
        assert copy.use is not None
        twins = [other for other in copies if other.use and other.use.content == copy.use.content]
        allowed: set[str] = set()
        if copy.use.content in contents:
            allowed.add(copy.accepted_class)
            if len(twins) > 1:
                allowed.add(DUPLICATE)
        if contents - {copy.use.content}:
            allowed.add(CONFLICT)
        judgement.verdicts[copy.record.position] = frozenset(allowed)

    outcomes: dict[tuple[Any, ...], list[Charge | None]] = defaultdict(list)
    for copy in winners:
        assert copy.use is not None
        outcomes[copy.use.content].append(copy.charge)
    candidates: list[Charge | None] = []
    replayed = any(copy.replayed for copy in copies)
    for charges in outcomes.values():
        # A copy that passed fewer cuts was classified before the pass for which the later ones had to wait.
        candidates += charges if replayed else [min(charges, key=lambda c: (c.bill_to or "") if c else "")]
    candidates = list(dict.fromkeys(candidates))
    if len(candidates) > 1:
        judgement.contested[charge_id_of(identity)] = tuple(candidates)
    elif candidates[0] is not None:
        judgement.charges[candidates[0].charge_id] = candidates[0]

    if len(contents) == 1:
        same = sum(copy.use is not None and copy.use.content in contents for copy in copies)
        judgement.totals[winners[0].accepted_class] += 1
        judgement.totals[DUPLICATE] += same - 1
        judgement.totals["quarantined"] += len(copies) - same
    else:
        judgement.totals["contested"] += len(copies)


def _judge_revisions(judgement: Judgement, copies: list[_Finding], registry: Registry) -> None:
    """Whatever came in whatever order, the highest revision holds. A lower one was accepted for a while, or came too late:
    then it is a duplicate, or voided where a void has absorbed it."""
    by_revision: dict[int, list[_Finding]] = defaultdict(list)
    for copy in copies:
        assert copy.use is not None
        by_revision[copy.use.revision].append(copy)
    highest = max(by_revision)
    for revision, same in by_revision.items():
        if len({copy.use.content for copy in same if copy.use}) > 1:
            raise OutsideTheModel(f"revision {revision} of {same[0].use} came with two contents")
        allowed = {same[0].accepted_class}
        if revision < highest or len(same) > 1:
            allowed.add(DUPLICATE)
        if any(each[0].accepted_class == VOIDED for higher, each in by_revision.items() if higher > revision):
            allowed.add(VOIDED)
        judgement.verdicts |= {copy.record.position: frozenset(allowed) for copy in same}
        judgement.revisions.append((tuple(copy.record.position for copy in same), revision == highest))
    use = copies[0].use
    assert use is not None
    judgement.facts[copies[0].record.publisher, use.source, use.event_id] = Fact(
        {
            revision: tuple(dict.fromkeys(copy.charge for copy in same if copy.charge))
            for revision, same in by_revision.items()
        },
        {revision: tuple(copy.passed for copy in same) for revision, same in by_revision.items()},
        {group_id: group.get("zone", "UTC") for group_id, group in registry.groups.items()},
    )
    judgement.totals["revised"] += len(copies)


def _surely_before(first: _Finding, second: _Finding, cuts: Mapping[datetime, Vector]) -> bool:
    """Whether ``first`` is classified before ``second`` however the workers run."""
    if first.waits:
        return False
    if first.phase != second.phase:
        return first.phase < second.phase
    same_lane = (first.record.topic, first.record.partition) == (second.record.topic, second.record.partition)
    if same_lane and first.record.offset < second.record.offset:
        return True
    skipped = _skipped(second)
    return any(first.record.offset < cuts[t].get((first.record.topic, first.record.partition), 0) for t in skipped)


def _skipped(finding: _Finding) -> frozenset[datetime]:
    """The cuts that a late record waits for: none for a replay, which runs when a person says so."""
    if finding.replayed or finding.charge is None or finding.charge.bill_to == finding.charge.period:
        return frozenset()
    return frozenset(t for t in finding.passed if t > finding.charge.event_time)


# ---- invoices ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InvoiceLine:
    """Charges of one account, product, cost center and period of use."""

    account_id: str
    product: str
    cost_center_id: str | None
    period: str
    charges: int
    quantity: int
    exact_nano: int
    amount_nano: int


@dataclass(frozen=True)
class Invoice:
    """One payer group, one period. ``exact_nano`` is the sum before any rounding."""

    group_id: str
    period: str
    currency: str
    prepaid: bool
    lines: tuple[InvoiceLine, ...]
    rounding_nano: int
    tax_nano: int
    exact_nano: int
    charges: int
    xor: int

    @property
    def is_nothing(self) -> bool:
        """All that was used was taken back: it is closed without a document."""
        return not any(line.quantity or line.exact_nano for line in self.lines)

    @property
    def net_nano(self) -> int:
        return sum(line.amount_nano for line in self.lines) + self.rounding_nano

    @property
    def total_nano(self) -> int:
        return self.net_nano + self.tax_nano

    @property
    def due_nano(self) -> int:
        """Prepaid use is paid from the balance."""
        return 0 if self.prepaid else self.total_nano


def make_invoice(
    group_id: str, period: str, charges: Iterable[Charge], *, tax_rate: str = "0", currency: str = "USD"
) -> Invoice:
    """Lines rounded once each, one rounding line, tax of the rounded sum, all half-even to the minor unit."""
    charges = list(charges)
    if len({charge.plan == "invoiced" for charge in charges}) > 1:
        raise OutsideTheModel(f"group {group_id}, {period}: prepaid and postpaid use on one invoice")
    step = minor_step(currency)
    by_line: dict[tuple[str, str, str | None, str], list[Charge]] = defaultdict(list)
    xor = 0
    for charge in charges:
        assert charge.period is not None
        by_line[charge.account_id, charge.product, charge.cost_center_id, charge.period].append(charge)
        xor ^= evidence_hash(charge.charge_id)
    lines = []
    for key in sorted(by_line, key=str):
        exact = sum(charge.amount_nano for charge in by_line[key])
        quantity = sum(charge.quantity for charge in by_line[key])
        lines.append(InvoiceLine(*key, len(by_line[key]), quantity, exact, half_even(Fraction(exact), step)))
    exact = sum(line.exact_nano for line in lines)
    net = half_even(Fraction(exact), step)
    return Invoice(
        group_id=group_id,
        period=period,
        currency=currency,
        prepaid=all(charge.plan != "invoiced" for charge in charges),
        lines=tuple(lines),
        rounding_nano=net - sum(line.amount_nano for line in lines),
        tax_nano=half_even(net * Fraction(tax_rate), step),
        exact_nano=exact,
        charges=len(charges),
        xor=xor,
    )


def make_invoices(charges: Iterable[Charge], facts: Facts) -> dict[tuple[str, str], Invoice]:
    """Every invoice and running estimate, by (group, period): all charges whose bill_to it is."""
    groups = Registry(facts).groups
    bundles: dict[tuple[str, str], list[Charge]] = defaultdict(list)
    for charge in charges:
        if charge.group_id is not None and charge.bill_to is not None:
            bundles[charge.group_id, charge.bill_to].append(charge)
    return {
        (group_id, period): make_invoice(
            group_id,
            period,
            bundle,
            tax_rate=groups[group_id].get("tax_rate", "0"),
            currency=groups[group_id].get("currency", "USD"),
        )
        for (group_id, period), bundle in bundles.items()
    }


# ---- promotional credits -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Credit:
    """Promotional money as it was given: to one account, or shared by the accounts of a group.

    ``seen_from``: an instant at which it was surely there; what was used later, it has to pay for.
    """

    credit_id: str
    account_ids: frozenset[str]
    shared: bool
    granted_nano: int
    valid_from: datetime
    expires_at: datetime | None = None
    seen_from: datetime | None = None

    @property
    def turn(self) -> tuple[bool, datetime, datetime, str]:
        """Restricted before shared, then the earliest expiry, then creation, then id."""
        return self.shared, self.expires_at or NO_TIME, self.valid_from, self.credit_id

    def may_pay_for(self, charge: Charge) -> bool:
        is_valid = self.valid_from <= charge.event_time and (
            self.expires_at is None or charge.event_time < self.expires_at
        )
        return is_valid and charge.account_id in self.account_ids

    def must_pay_for(self, charge: Charge) -> bool:
        """If something is left of it."""
        return self.may_pay_for(charge) and self.seen_from is not None and charge.event_time >= self.seen_from


def check_credits(
    credits: Sequence[Credit],
    charges: Iterable[Charge],
    spent: Mapping[tuple[str, str], int],
    remaining: Mapping[str, int],
    lapsed: Mapping[str, int],
    now: datetime,
) -> list[str]:
    """What is wrong with what credits paid, whatever the order in which charges, grants and ends were committed.

    ``spent``: by (credit, account); ``remaining`` and ``lapsed`` by credit. Which account gets the last cent of a shared
    credit is left open, its total is not: while something is left, every charge that it has to pay for is paid by credits,
    and none is paid by a credit whose turn comes later. Charges that a credit may pay for are not taken back here.

    >>> day = datetime(2026, 3, 1, tzinfo=UTC)
    >>> summer = Credit("summer", frozenset({"desk"}), False, 5, day)
    >>> check_credits([summer], [], {("summer", "desk"): 2}, {"summer": 2}, {}, day)
    ['account desk: credits summer paid 2 of charges of 0', 'credit summer: granted 5, spent 2, remaining 2, lapsed 0']
    """
    charges = list(charges)
    problems = []
    for credit in credits:
        name = credit.credit_id
        used = sum(amount for (credit_id, _), amount in spent.items() if credit_id == name)
        left, gone = remaining.get(name, 0), lapsed.get(name, 0)
        if credit.granted_nano != used + left + gone or min(used, left, gone) < 0:
            problems.append(
                f"credit {name}: granted {credit.granted_nano}, spent {used}, remaining {left}, lapsed {gone}"
            )
        is_over = credit.expires_at is not None and credit.expires_at <= now
        if left if is_over else gone:
            problems.append(f"credit {name}: remaining {left}, lapsed {gone}, though {'' if is_over else 'not '}over")
    known = {credit.credit_id: credit for credit in credits}
    problems += [
        f"account {account_id}: credit {name} is none of its own"
        for (name, account_id), amount in spent.items()
        if amount and (name not in known or account_id not in known[name].account_ids)
    ]
    for account_id in sorted({each for credit in credits for each in credit.account_ids}):
        problems += _check_credits_of(
            account_id,
            sorted((credit for credit in credits if account_id in credit.account_ids), key=lambda each: each.turn),
            [charge for charge in charges if charge.account_id == account_id],
            {name: amount for (name, owner), amount in spent.items() if owner == account_id},
            remaining,
        )
    return sorted(problems)


def _check_credits_of(
    account_id: str, own: Sequence[Credit], charges: Sequence[Charge], spent: Mapping[str, int],
    remaining: Mapping[str, int],
) -> list[str]:  # fmt: skip
    problems = []
    charges = [charge for charge in charges if any(credit.may_pay_for(charge) for credit in own)]
    if any(charge.amount_nano < 0 for charge in charges):
        raise OutsideTheModel(f"account {account_id}: a charge that a credit may pay for is taken back")

    def paid(some: Iterable[Credit]) -> int:
        return sum(spent.get(credit.credit_id, 0) for credit in some)

    # No cent of a charge is paid twice: whatever span of time is looked at, the credits that are valid in it alone paid at most
    # what was used in it. That is enough, since the uses that a credit may pay for are all those of one span.
    for begin in {credit.valid_from for credit in own}:
        for end in {credit.expires_at or NO_TIME for credit in own}:
            inside = [each for each in own if begin <= each.valid_from and (each.expires_at or NO_TIME) <= end]
            most = sum(charge.amount_nano for charge in charges if begin <= charge.event_time < end)
            if paid(inside) > most:
                names = ", ".join(credit.credit_id for credit in inside)
                problems.append(f"account {account_id}: credits {names} paid {paid(inside)} of charges of {most}")
    for place, credit in enumerate(own):
        if not remaining.get(credit.credit_id, 0):
            continue
        sure = sum(charge.amount_nano for charge in charges if credit.must_pay_for(charge))
        if paid(own) < sure:
            problems.append(f"account {account_id}: credits paid {paid(own)} of {sure}, while {credit} is not used up")
        later = own[place + 1 :]
        most = sum(
            charge.amount_nano
            for charge in charges
            if not credit.must_pay_for(charge) and any(each.may_pay_for(charge) for each in later)
        )
        if paid(later) > most:
            problems.append(f"account {account_id}: {paid(later)} was paid by credits that come after {credit}")
    return problems


def check_redemptions(most: int, asked: Iterable[tuple[str, str | None]]) -> list[str]:
    """What is wrong with the answers to all who asked for one code, in any order: (beneficiary, reason of the refusal).

    >>> check_redemptions(1, [("a", None), ("a", "already_redeemed"), ("b", "used_up")])
    []
    >>> check_redemptions(2, [("a", None), ("a", None), ("b", "used_up")])
    ['redeemed 2 times for a']
    """
    asked = list(asked)
    times = Counter(beneficiary for beneficiary, reason in asked if reason is None)
    problems = [f"redeemed {count} times for {beneficiary}" for beneficiary, count in times.items() if count > 1]
    want = min(most, len({beneficiary for beneficiary, _ in asked}))
    if times.total() != want:
        problems.append(f"redeemed {times.total()} times, expected {want}")
    for beneficiary, reason in asked:
        fits = {None: True, "already_redeemed": beneficiary in times, "used_up": times.total() >= most}
        if not fits.get(reason, False):
            problems.append(f"{beneficiary} was refused: {reason}")
    return problems


# ---- ledger --------------------------------------------------------------------------------------------------------


class Result(NamedTuple):
    """One thing that a processor said of a payment; ``part`` names the refund or dispute it is about."""

    kind: str
    amount_nano: int
    part: str | None = None


def payment_effect(said: Iterable[Result]) -> tuple[int, int]:
    """(what a payment moved into its wallet, what its processor withholds for open disputes) by the set of its results.

    E = 0 if not settled, else settled - refunds - disputes that are open or lost. A dispute told as won and lost is lost; a
    refund told as given and as failed is none.

    >>> payment_effect([Result("settled", 130), Result("refunded", 30, "r"), Result("refunded", 30, "r")])
    (100, 0)
    >>> payment_effect([Result("settled", 130), Result("dispute_won", 130, "d"), Result("disputed", 130, "d")])
    (130, 0)
    >>> payment_effect([Result("disputed", 130, "d"), Result("settled", 130)]), payment_effect([Result("refunded", 130, "r")])
    ((0, 130), (0, 0))
    """
    said = set(said)
    settled = {each.amount_nano for each in said if each.kind == "settled"}
    if not settled:
        return 0, 0
    disputes: dict[str | None, set[str]] = defaultdict(set)
    amounts: dict[str | None, int] = {}
    for each in said:
        if each.kind.startswith("dispute"):
            disputes[each.part].add(each.kind)
            amounts[each.part] = each.amount_nano
    lost = sum(amounts[part] for part, kinds in disputes.items() if "dispute_lost" in kinds)
    withheld = sum(amounts[part] for part, kinds in disputes.items() if kinds == {"disputed"})
    failed = {each.part for each in said if each.kind == "refund_failed"}
    refunds = sum(each.amount_nano for each in said if each.kind == "refunded" and each.part not in failed)
    return settled.pop() - refunds - lost - withheld, withheld


@dataclass
class Ledger:
    """Ledger accounts by name; > 0 credits, < 0 debits; every transaction sums to zero."""

    balances: Counter[str] = field(default_factory=Counter)
    _from_wallets: dict[str, dict[str, int]] = field(default_factory=dict)  # by group: what paid its invoice

    def post(self, entries: Mapping[str, int]) -> None:
        if sum(entries.values()) != 0:
            raise ValueError(f"does not sum to zero: {dict(entries)}")
        for account, amount_nano in entries.items():
            self.balances[account] += amount_nano

    def opening(self, account_id: str, amount_nano: int) -> None:
        self.post({f"wallet:{account_id}": amount_nano, "opening": -amount_nano})

    def goodwill(self, account_id: str, amount_nano: int) -> None:
        self.post({f"wallet:{account_id}": amount_nano, "promotion": -amount_nano})

    def credit(self, credit: Credit, spent: Mapping[str, tuple[str, int]], lapsed_nano: int) -> None:
        """A promotional credit: granted, spent (per account: the payer whom it relieved, and how much), what lapsed of it."""
        name = f"credit:{credit.credit_id}"
        self.post({name: credit.granted_nano, "promotion": -credit.granted_nano})
        for account_id, (payer, amount_nano) in spent.items():
            self.post({name: -amount_nano, f"{payer}:{account_id}": amount_nano})
        self.post({name: -lapsed_nano, "breakage": lapsed_nano})

    def payment(self, account_id: str, amount_nano: int, processor: str = "sandbox") -> None:
        self.post({f"wallet:{account_id}": amount_nano, f"clearing:{processor}": -amount_nano})

    def transfer(self, account_id: str, amount_nano: int, bank: str = "bank") -> None:
        """Into a wallet."""
        self.payment(account_id, amount_nano, bank)

    def group_payment(self, group_id: str, amount_nano: int, bank: str = "bank") -> None:
        """What a group sends by its bank pays what it owes; the rest is kept for it."""
        paid = min(amount_nano, max(0, self.receivable(group_id)))
        kept = amount_nano - paid
        self.post({f"receivable:{group_id}": paid, f"unapplied:{group_id}": kept, f"clearing:{bank}": -amount_nano})

    def write_off(self, group_id: str) -> None:
        """What a group still owes is given up."""
        owed = self.receivable(group_id)
        self.post({f"receivable:{group_id}": owed, "write_off": -owed})

    def credit_note(self, invoice: Invoice) -> None:
        """All of an invoice is taken back: what its close and its charges said of it. What a wallet paid goes back into it; what a
        group still owes, it owes no more; what it has paid is kept for it."""
        entries: Counter[str] = Counter({"tax": -invoice.tax_nano})
        if invoice.prepaid:
            entries[f"wallet:{invoice.lines[0].account_id}"] = invoice.total_nano
        else:
            back = self._from_wallets.get(invoice.group_id, {})
            rest = invoice.total_nano - sum(back.values())
            freed = min(rest, self.receivable(invoice.group_id))
            entries[f"receivable:{invoice.group_id}"] = freed
            entries[f"unapplied:{invoice.group_id}"] = rest - freed
            entries.update({f"wallet:{account_id}": paid for account_id, paid in back.items()})
        entries["rounding"] -= invoice.net_nano - invoice.exact_nano
        for line in invoice.lines:
            entries[f"revenue:{line.product}"] -= line.exact_nano
        self.post(entries)

    def results(self, account_id: str, said: Iterable[Result], processor: str = "sandbox") -> None:
        """All that a processor said of one payment."""
        wallet, withheld = payment_effect(said)
        entries = {f"wallet:{account_id}": wallet, f"disputes:{processor}": withheld}
        self.post(entries | {f"clearing:{processor}": -wallet - withheld})

    def charge(self, charge: Charge) -> None:
        payer = "unbilled" if charge.plan == "invoiced" else "wallet"
        self.post(
            {f"{payer}:{charge.account_id}": -charge.amount_nano, f"revenue:{charge.product}": charge.amount_nano}
        )

    def close(self, invoice: Invoice) -> None:
        entries: Counter[str] = Counter({"rounding": invoice.net_nano - invoice.exact_nano, "tax": invoice.tax_nano})
        if invoice.prepaid:
            accounts = {line.account_id for line in invoice.lines}
            if len(accounts) > 1:
                raise OutsideTheModel(f"group {invoice.group_id}: prepaid accounts share an invoice")
            entries[f"wallet:{accounts.pop()}"] += invoice.exact_nano - invoice.total_nano
        else:
            for line in invoice.lines:
                entries[f"unbilled:{line.account_id}"] += line.exact_nano
            entries[f"receivable:{invoice.group_id}"] -= invoice.total_nano
        self.post(entries)
        if not invoice.prepaid:
            self._pay_from_wallet(invoice)

    def _pay_from_wallet(self, invoice: Invoice) -> None:
        """Whole cents of an invoiced account's wallet pay its invoice, as far as they go, whenever they came."""
        purses = {line.account_id: max(0, self.wallet(line.account_id)) // CENT * CENT for line in invoice.lines}
        if not any(purses.values()):
            return
        if len(purses) > 1:
            raise OutsideTheModel(f"group {invoice.group_id}: accounts with wallets share a postpaid invoice")
        account_id, purse_nano = purses.popitem()
        paid = min(purse_nano, max(0, invoice.total_nano))
        self.post({f"wallet:{account_id}": -paid, f"receivable:{invoice.group_id}": paid})
        self._from_wallets[invoice.group_id] = {account_id: paid}

    def wallet(self, account_id: str) -> int:
        return self.balances[f"wallet:{account_id}"]

    def unbilled(self, account_id: str) -> int:
        """What is rated postpaid and on no closed invoice, as a positive amount."""
        return -self.balances[f"unbilled:{account_id}"]

    def receivable(self, group_id: str) -> int:
        """What is due on closed invoices, as a positive amount."""
        return -self.balances[f"receivable:{group_id}"]

    def unapplied(self, group_id: str) -> int:
        """What a group has paid too much."""
        return self.balances[f"unapplied:{group_id}"]


def make_ledger(
    charges: Iterable[Charge],
    *,
    openings: Iterable[tuple[str, int]] = (),
    goodwill: Iterable[tuple[str, int]] = (),
    payments: Iterable[tuple[str, int]] = (),
    results: Iterable[tuple[str, Iterable[Result]]] = (),
    credits: Iterable[tuple[Credit, Mapping[str, tuple[str, int]], int]] = (),
    closed: Iterable[Invoice] = (),
    transfers: Iterable[tuple[str, int]] = (),
    group_payments: Iterable[tuple[str, int]] = (),
    write_offs: Iterable[str] = (),
    credited: Iterable[Invoice] = (),
) -> Ledger:
    """The whole ledger of a run: opening balances, goodwill, settled payments (account, nanos) or all that was said of each
    payment (account, results), credits (what was spent of each, what lapsed), charges, closings, transfers of a bank (account,
    nanos), and what groups paid (group, nanos) or were let off, and which invoices were credited, after the last close."""
    ledger = Ledger()
    for account_id, amount_nano in openings:
        ledger.opening(account_id, amount_nano)
    for account_id, amount_nano in goodwill:
        ledger.goodwill(account_id, amount_nano)
    for account_id, amount_nano in payments:
        ledger.payment(account_id, amount_nano)
    for account_id, said in results:
        ledger.results(account_id, said)
    for credit, spent, lapsed_nano in credits:
        ledger.credit(credit, spent, lapsed_nano)
    for charge in charges:
        ledger.charge(charge)
    for invoice in closed:
        ledger.close(invoice)
    for account_id, amount_nano in transfers:
        ledger.transfer(account_id, amount_nano)
    for group_id, amount_nano in group_payments:
        ledger.group_payment(group_id, amount_nano)
    for group_id in write_offs:
        ledger.write_off(group_id)
    for invoice in credited:
        ledger.credit_note(invoice)
    return ledger


def must_be_suspended(
    funds_nano: int, in_flight: tuple[int, datetime] | None, now: datetime, *, is_suspended: bool = False
) -> bool:
    """Funds at or below zero suspend, unless a recharge (amount, requested_at) asked for less than 15 minutes ago would
    lift them above zero. That only delays: who is suspended is restored by funds above zero and by nothing else."""
    if funds_nano > 0:
        return False
    if is_suspended or in_flight is None:
        return True
    amount_nano, requested_at = in_flight
    return now - requested_at >= timedelta(minutes=15) or funds_nano + amount_nano <= 0


# ---- auto-recharge -------------------------------------------------------------------------------------------------

MINIMUM_NANO = 10 * NANO
FIRST_DAY_NANO, RISE_NANO = 100 * NANO, 50 * NANO
CAP, WINDOW = 10, timedelta(hours=24)
COUNTED = frozenset({"requested", "unknown", "settled", "abandoned"})
IN_FLIGHT = frozenset({"requested", "unknown"})
MODES = frozenset({"up_to_sum", "target", "fixed"})


def day_limit(created_at: datetime, day: date) -> int:
    """100 on the UTC date of creation, 50 more each day after.

    >>> day_limit(datetime(2026, 10, 1, 23, 59, tzinfo=UTC), date(2026, 10, 2)) // NANO
    150
    """
    return FIRST_DAY_NANO + RISE_NANO * (day - created_at.astimezone(UTC).date()).days


def next_midnight(now: datetime) -> datetime:
    return datetime(now.year, now.month, now.day, tzinfo=UTC) + timedelta(days=1)


@dataclass
class Attempt:
    """One payment attempt. ``kind`` is auto or manual; ``ended_at`` is when it left flight, ``given_up_at`` when an unknown
    one is abandoned: after 24 hours, and not within an hour of becoming unknown."""

    attempt_id: str
    account_id: str
    amount_nano: int
    requested_at: datetime
    state: str = "requested"
    kind: str = "auto"
    ended_at: datetime | None = None
    given_up_at: datetime | None = None


@dataclass(frozen=True)
class Refund:
    """A refund that was asked for, or one that the processor gave."""

    refund_id: str
    attempt_id: str
    amount_nano: int


def check_refunds(asked: Sequence[Refund], given: Sequence[Refund], attempts: Iterable[Attempt]) -> list[str]:
    """What is wrong with refunds that were asked for and accepted: each is given once, and no payment more than whole.

    >>> asked = [Refund("r", "a", 3)]
    >>> check_refunds(asked, asked * 2, [Attempt("a", "desk", 2, datetime(2026, 3, 1, tzinfo=UTC))])
    ['payment a of 2: 3 was asked back', 'refund r: asked for 1 times, given 2 times']
    """
    problems = [
        f"refund {each.refund_id}: asked for {asked.count(each)} times, given {given.count(each)} times"
        for each in {*asked, *given}
        if (asked.count(each), given.count(each)) != (1, 1)
    ]
    for attempt in attempts:
        back = sum(each.amount_nano for each in asked if each.attempt_id == attempt.attempt_id)
        if back > attempt.amount_nano:
            problems.append(f"payment {attempt.attempt_id} of {attempt.amount_nano}: {back} was asked back")
    return sorted(problems)


@dataclass(frozen=True)
class Decision:
    """What is to be done now: ``nothing``, ``refused``, ``wait`` (back-off), ``capped`` or ``request``."""

    outcome: str
    amount_nano: int = 0
    reason: str | None = None
    until: datetime | None = None


@dataclass
class RechargeModel:
    """One account, facts in the order of their times; ``attempts`` and ``notices`` say what must have come of them.

    ``preferences`` are as on the wire: enabled, mode, threshold, recharge (for mode target the target). Every method
    first moves the clock to ``at``, letting each timer on the way fire at its own instant.
    """

    now: datetime
    created_at: datetime
    available_nano: int = 0
    plan: str = "payg"
    level_2: bool = True
    preferences: Mapping[str, Any] | None = None
    method: bool = True
    paused: bool = False
    shared_credit: bool = False
    stopped: bool = False  # closed, or suspended by an operator
    account_id: str = "account"
    streak: int = 0
    retry_at: datetime | None = None
    look_again: datetime | None = None
    attempts: list[Attempt] = field(default_factory=list)
    notices: list[tuple[datetime, str, str | None]] = field(default_factory=list)
    _standing: tuple[str, str | None] | None = None

    # -- facts --

    def change(self, at: datetime, amount_nano: int) -> None:
        """A charge (negative), an opening, a hold: whatever moves available credit."""
        self.advance(at)
        self.available_nano += amount_nano
        self._evaluate()

    def prefer(self, at: datetime, preferences: Mapping[str, Any] | None) -> None:
        self.advance(at)
        self.preferences = preferences
        self._evaluate()

    def save_method(self, at: datetime) -> None:
        """A new method clears the streak, the back-off and the pause that declines made."""
        self.advance(at)
        self.method, self.paused, self.streak, self.retry_at = True, False, 0, None
        self._evaluate()

    def delete_method(self, at: datetime) -> None:
        self.advance(at)
        self.method = False
        self._evaluate()

    def pay_by_hand(self, at: datetime, amount_nano: int) -> Attempt:
        """A manual payment: counts for the limit of the day, not for the ten."""
        self.advance(at)
        manual = Attempt(f"manual-{len(self.attempts)}", self.account_id, amount_nano, at, kind="manual")
        self.attempts.append(manual)
        return manual

    def settle(self, at: datetime, attempt: Attempt) -> None:
        """Credited once, whatever was said before."""
        self.advance(at)
        if attempt.state == "settled":
            return
        if attempt.state == "declined":
            self._notice("contradiction")
        self._end(attempt, "settled")
        self.available_nano += attempt.amount_nano
        if self.streak >= 3:  # the pause was made of the declines that are cleared now
            self.paused = False
        self.streak, self.retry_at = 0, None
        self._evaluate()

    def decline(self, at: datetime, attempt: Attempt) -> None:
        """The first makes it wait 1 h, the second 2 h, the third pauses."""
        self.advance(at)
        if attempt.state not in IN_FLIGHT:
            return
        self._end(attempt, "declined")
        if attempt.kind == "auto":
            self.streak += 1
            if self.streak >= 3:
                self.paused, self.retry_at = True, None
                self._notice("paused")
            else:
                self.retry_at = at + timedelta(hours=self.streak)
        self._evaluate()

    def fail(self, at: datetime, attempt: Attempt) -> None:
        """An error of the processor: nothing was charged, looked at again after 15 minutes."""
        self.advance(at)
        if attempt.state in IN_FLIGHT:
            self._end(attempt, "cancelled")
            self.retry_at = at + timedelta(minutes=15)
            self._evaluate()

    def advance(self, to: datetime) -> None:
        """Lets time pass: every timer due on the way fires, and the rule is evaluated from scratch."""
        while (due := self._next_due()) is not None and due <= to:
            self.now = max(self.now, due)
            for attempt in self.attempts:
                if attempt.state == "requested" and self.now >= attempt.requested_at + timedelta(minutes=15):
                    attempt.state = "unknown"
                    a_day_later = attempt.requested_at + timedelta(hours=24)
                    attempt.given_up_at = max(a_day_later, self.now + timedelta(hours=1))
                if attempt.given_up_at is not None and attempt.state == "unknown" and self.now >= attempt.given_up_at:
                    self._end(attempt, "abandoned")
            self._evaluate()
        self.now = max(self.now, to)

    # -- the rule --

    def decide(self) -> Decision:
        """Points 1 to 10 of the decision, in their order."""
        wish = self.preferences
        if not wish or not wish["enabled"] or self.plan != "payg" or self.stopped:
            return Decision("nothing")
        threshold, recharge = nano(wish["threshold"]), nano(wish["recharge"])
        if self.shared_credit or self.available_nano > threshold:
            return Decision("nothing")
        if self.in_flight:
            return Decision("nothing")
        if self.paused or not self.method:
            return Decision("refused", reason="paused" if self.paused else "no_method")
        if self.retry_at is not None and self.now < self.retry_at:
            return Decision("wait", until=self.retry_at)
        counted = sorted(
            a.requested_at
            for a in self.attempts
            if a.kind == "auto" and a.state in COUNTED and self.now - WINDOW < a.requested_at <= self.now
        )
        if len(counted) >= CAP:
            return Decision("capped", until=counted[-CAP] + WINDOW)
        need = {
            "up_to_sum": threshold + recharge - self.available_nano,
            "target": recharge - self.available_nano,
            "fixed": recharge,
        }[wish["mode"]]
        step = minor_step("USD")
        amount = max(-(-need // step) * step, MINIMUM_NANO)
        if not self.level_2:
            amount = min(amount, self.left_today() // step * step)
            if amount < MINIMUM_NANO:
                return Decision("refused", reason="top_up_limit", until=next_midnight(self.now))
        return Decision("request", amount)

    @property
    def in_flight(self) -> Attempt | None:
        return next((a for a in self.attempts if a.kind == "auto" and a.state in IN_FLIGHT), None)

    def left_today(self) -> int:
        """What the limit of this UTC day still allows; manual and automatic count."""
        today = self.now.date()
        used = sum(a.amount_nano for a in self.attempts if a.state in COUNTED and a.requested_at.date() == today)
        return day_limit(self.created_at, today) - used

    def _evaluate(self) -> None:
        decision = self.decide()
        self.look_again = decision.until
        if decision.outcome == "request":
            self.attempts.append(
                Attempt(f"auto-{len(self.attempts)}", self.account_id, decision.amount_nano, requested_at=self.now)
            )
        standing = (decision.outcome, decision.reason) if decision.outcome in ("refused", "capped") else None
        if standing is not None and standing != self._standing:
            self._notice(*standing)
        self._standing = standing

    def _notice(self, kind: str, reason: str | None = None) -> None:
        self.notices.append((self.now, kind, reason))

    def _end(self, attempt: Attempt, state: str) -> None:
        attempt.state = state
        attempt.ended_at = attempt.ended_at or self.now

    def _next_due(self) -> datetime | None:
        due = [a.requested_at + timedelta(minutes=15) for a in self.attempts if a.state == "requested"]
        due += [a.given_up_at for a in self.attempts if a.state == "unknown" and a.given_up_at is not None]
        due += [self.look_again] if self.look_again else []
        return min(due, default=None)


# ---- recharge invariants after a random run ------------------------------------------------------------------------


@dataclass(frozen=True)
class RestingAccount:
    """An account when nothing moves any more. ``available_nano`` is without shared credits."""

    account_id: str
    created_at: datetime
    available_nano: int
    preferences: Mapping[str, Any] | None
    plan: str = "payg"
    method: bool = True
    paused: bool = False
    retry_at: datetime | None = None
    level_2: bool = False
    level_2_since: datetime | None = None  # None with level_2: always
    stopped: bool = False


def check_recharge_invariants(
    attempts: Iterable[Attempt],
    accounts: Iterable[RestingAccount],
    credited: Iterable[tuple[str, int]],
    now: datetime,
) -> list[str]:
    """What is wrong with the attempts of a run; empty when nothing is.

    ``credited``: (attempt id, nanos) of every payment entry on a wallet. ``now``: the instant of rest, all timers run.
    """
    attempts = list(attempts)
    by_account: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in attempts:
        by_account[attempt.account_id].append(attempt)
    problems = [f"attempt {i}: exists {n} times" for i, n in Counter(a.attempt_id for a in attempts).items() if n > 1]
    for attempt in attempts:
        if attempt.amount_nano % minor_step("USD"):
            problems.append(f"attempt {attempt.attempt_id}: {attempt.amount_nano} is not whole minor units")
        if attempt.amount_nano < MINIMUM_NANO:
            problems.append(f"attempt {attempt.attempt_id}: {attempt.amount_nano} is below the minimum payment")
    problems += _check_money_moved_once(attempts, credited)
    known = {account.account_id: account for account in accounts}
    problems += [f"account {i}: has attempts but is unknown" for i in by_account.keys() - known.keys()]
    for account in known.values():
        own = sorted(by_account[account.account_id], key=lambda a: a.requested_at)
        problems += _check_ten_in_a_day(account, own)
        problems += _check_one_in_flight(account, own)
        problems += _check_day_limit(account, own)
        if why := _forgotten(account, own, now):
            problems.append(f"account {account.account_id}: {why}")
    return sorted(problems)


def _check_money_moved_once(attempts: list[Attempt], credited: Iterable[tuple[str, int]]) -> list[str]:
    problems = []
    posted: dict[str, list[int]] = defaultdict(list)
    for attempt_id, amount_nano in credited:
        posted[attempt_id].append(amount_nano)
    for attempt in attempts:
        want = [attempt.amount_nano] if attempt.state == "settled" else []
        if (have := posted.pop(attempt.attempt_id, [])) != want:
            problems.append(f"attempt {attempt.attempt_id} ({attempt.state}): credited {have}, expected {want}")
    return problems + [f"attempt {attempt_id}: credited but never made" for attempt_id in posted]


def _check_ten_in_a_day(account: RestingAccount, own: list[Attempt]) -> list[str]:
    counted = [a.requested_at for a in own if a.kind == "auto" and a.state in COUNTED]
    problems = []
    for end in counted:
        inside = sum(end - WINDOW < requested_at <= end for requested_at in counted)
        if inside > CAP:
            problems.append(
                f"account {account.account_id}: {inside} counted recharges in the 24 h to {end.isoformat()}"
            )
    return problems


def _check_one_in_flight(account: RestingAccount, own: list[Attempt]) -> list[str]:
    problems = []
    auto = [a for a in own if a.kind == "auto"]
    if sum(a.state in IN_FLIGHT for a in auto) > 1:
        problems.append(f"account {account.account_id}: more than one recharge in flight")
    for earlier, later in pairwise(auto):
        abandoned_at = earlier.requested_at + timedelta(hours=24)
        landed_at = min(earlier.ended_at or abandoned_at, abandoned_at)
        if later.requested_at < landed_at:
            problems.append(
                f"account {account.account_id}: {later.attempt_id} was asked for while {earlier.attempt_id} flew"
            )
    return problems


def _check_day_limit(account: RestingAccount, own: list[Attempt]) -> list[str]:
    if account.level_2 and account.level_2_since is None:
        return []
    used: Counter[date] = Counter()
    for attempt in own:
        limited = account.level_2_since is None or attempt.requested_at < account.level_2_since
        if attempt.state in COUNTED and limited:
            used[attempt.requested_at.astimezone(UTC).date()] += attempt.amount_nano
    return [
        f"account {account.account_id}: {total} attempted on {day}, limit {day_limit(account.created_at, day)}"
        for day, total in used.items()
        if total > day_limit(account.created_at, day)
    ]


def _forgotten(account: RestingAccount, own: list[Attempt], now: datetime) -> str | None:
    """Why a recharge should be under way at rest, or None. The same rule that the deterministic model runs by."""
    model = RechargeModel(
        now=now,
        created_at=account.created_at,
        available_nano=account.available_nano,
        plan=account.plan,
        level_2=account.level_2 and (account.level_2_since is None or account.level_2_since <= now),
        preferences=account.preferences,
        method=account.method,
        paused=account.paused,
        stopped=account.stopped,
        retry_at=account.retry_at,
        attempts=own,
    )
    decision = model.decide()
    if decision.outcome == "request":
        return (
            f"a trigger was forgotten: available {account.available_nano}, {decision.amount_nano} should be on its way"
        )
    return None
