"""Seeded random usage: valid events of every type around a month boundary, repeats of them, and every kind of bad input.

Each input says which classes it may be given. The same seed makes the same inputs, so a failing run is repeated by its
seed. Records must be produced in the order given: a conflict follows its original under the same key.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from zlib import crc32

from tests.support.model import (
    CONFLICT,
    DATA,
    DUPLICATE,
    IN_FUTURE,
    INVALID_EVENT,
    MESSAGE,
    NO_PRICE,
    NOT_BILLABLE,
    NOT_JSON,
    NOT_PERMITTED,
    PRODUCT,
    RATED,
    RATED_UNGROUPED,
    REFUSED_BY_STORE,
    RENTAL,
    TOO_OLD,
    UNKNOWN_ACCOUNT,
    UNKNOWN_NUMBER,
    UNKNOWN_TYPE,
    UNREADABLE,
    USAGE_TOPICS,
    VOICE_LEG,
    VOID,
    VOIDED,
    WRONG_CURRENCY,
    WRONG_UNIT,
    RawRecord,
    instant,
    interval_at,
)

UNPRICED_NUMBER = "+88210012345"  # a satellite network that no price list here names
UNPRICED_PRODUCT = "api.other"
NOBODYS_NUMBER = "+15005550006"
EURO_NUMBER = "+87810012345"
BEFORE_BOUNDARY = timedelta(days=3)  # with a boundary at most 31 days back, all legs are younger than 35 days


@dataclass(frozen=True)
class Expectation:
    """``kind`` names how the input was made; ``allowed`` are the classes it may be given."""

    kind: str
    allowed: frozenset[str]


@dataclass(frozen=True)
class UsageInput:
    """One record to produce."""

    topic: str
    key: bytes | None
    value: bytes | None
    expectation: Expectation


@dataclass(frozen=True)
class _Revision:
    """One record of a fact that came in several revisions: where it stands, and its class if it is accepted."""

    index: int
    publisher_id: str
    event: Mapping[str, Any]
    revision: int
    accepted_class: str


@dataclass(frozen=True)
class _Sent:
    """A valid event that was made, and where it stands in the mix."""

    publisher_id: str
    event: Mapping[str, Any]
    index: int


NIGHT = {"id": "night", "zone": "Europe/London", "days": "mon-sun", "from": "19:30", "to": "07:00"}
WEEKEND = {"id": "weekend", "zone": "Europe/London", "days": "sat sun", "from": "00:00", "to": "24:00"}

BY_VOLUME = {
    "id": "volume", "form": "volume", "per": 3, "bands": [
        {"up_to": 9_000, "price": "0.0017", "fee": "0"}, {"up_to": 30_000, "price": "0.0011", "fee": "0.5"},
        {"up_to": None, "price": "0.0009", "fee": "1"},
    ],
}  # fmt: skip
WITH_INCLUDED = {
    "id": "included", "form": "graduated", "per": 7, "bands": [
        {"up_to": 300, "price": "0", "fee": "0"}, {"up_to": 1_000, "price": "0.1400", "fee": "2"},
        {"up_to": None, "price": "0.0901", "fee": "0"},
    ],
}  # fmt: skip


def example_prices(effective_from: datetime) -> list[dict[str, Any]]:
    """Three default books, each one version in one currency, that price what the factory makes: outbound to the United
    States, Great Britain and India, to some of it at other prices by night and at weekends; inbound; toll-free, with
    surcharges for callers; lookups by volume, and MMS with an included quantity; one network in euros."""
    default = {"book": "list", "version": 1, "effective_from": effective_from, "currency": "USD"}
    default |= {"minimum": 60, "increment": 60}
    inbound = default | {"book": "inbound", "minimum": 1, "increment": 1}
    services = default | {"book": "services", "minimum": 0, "increment": 1, "per": 1}
    data = {"product": "data", "unit": "byte", "per": 1_000_000, "increment": 1_000}
    euro = default | {"book": "euro", "currency": "EUR"}
    rows = [
        default | {"product": "voice.outbound", "prefix": "1", "price": "0.0140"},
        default | {"product": "voice.outbound", "prefix": "44", "price": "0.0158"},
        default | {"product": "voice.outbound", "prefix": "447", "price": "0.0325", "fee": "0.0010"},
        default | {"product": "voice.outbound", "prefix": "447", "price": "0.0101", "increment": 6, "window": NIGHT},
        default | {"product": "voice.outbound", "prefix": "4420", "price": "0.0091", "window": WEEKEND},
        default | {"product": "voice.outbound", "prefix": "91", "price": "0.0497", "increment": 6},
        euro | {"product": "voice.outbound", "prefix": "878", "price": "0.9000"},
        inbound | {"product": "voice.inbound", "prefix": "1", "price": "0.0085"},
        inbound | {"product": "voice.toll_free.surcharge", "prefix": "1248555", "price": "0.0371", "increment": 7},
        inbound
        | {"product": "voice.toll_free.surcharge", "prefix": "12485551", "price": "0", "fee": "0.6", "window": NIGHT},
        inbound | {"product": "voice.toll_free.surcharge", "prefix": "*", "price": "0.0003", "fee": "0.01"},
        services | {"product": "message.sms.outbound", "prefix": "1", "price": "0.0075", "unit": "segment"},
        services
        | {"product": "message.sms.outbound", "prefix": "44", "price": "0.04", "fee": "0.001", "unit": "segment"}
        | {"delivered_only": True},
        services | {"product": "message.sms.inbound", "prefix": "*", "price": "0", "unit": "segment"},
        services
        | {"product": "message.mms.outbound", "prefix": "*", "price": "0", "unit": "segment", "tiers": WITH_INCLUDED},
        services | {"product": "message.mms.inbound", "prefix": "*", "price": "0.0100", "unit": "segment"},
        services | data | {"prefix": "*", "price": "0.0130"},
        services | data | {"prefix": "310", "price": "0.0050", "minimum": 50_000},
        services | {"product": "number.rental", "prefix": "1", "price": "1.15", "unit": "day"},
        services | {"product": "api.lookups", "prefix": "*", "price": "0", "unit": "request", "tiers": BY_VOLUME},
    ]
    tolls = ("1800", "1833", "1844", "1855", "1866", "1877", "1888")
    return rows + [inbound | {"product": "voice.toll_free", "prefix": p, "price": "0.0220"} for p in tolls]


def as_records(inputs: Iterable[UsageInput], *, partitions: int, timestamp_ms: int) -> list[RawRecord]:
    """The inputs as a broker could hold them: by key onto partitions, offsets dense from 0."""
    ends: dict[tuple[str, int], int] = defaultdict(int)
    records = []
    for item in inputs:
        lane = item.topic, crc32(item.key or b"") % partitions
        records.append(RawRecord(*lane, ends[lane], timestamp_ms, item.key, item.value))
        ends[lane] += 1
    return records


def _text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S") + (f".{moment.microsecond:06d}" if moment.microsecond else "") + "Z"


def _encode(event: Any) -> bytes:
    return json.dumps(event, ensure_ascii=False).encode()


class UsageFactory:
    """Makes usage of the given accounts by the given publishers (facts as the model takes them) as if now were ``now``.

    An account may carry ``numbers``, those it is called on. ``refused_prefix`` is the beginning of event ids that the
    test makes the database refuse; without it, and without ``euro``, those two kinds are not made.
    """

    def __init__(
        self,
        seed: int,
        accounts: Sequence[Mapping[str, Any]],
        publishers: Sequence[Mapping[str, Any]],
        now: datetime,
        *,
        euro: bool = False,
        refused_prefix: str | None = None,
    ) -> None:
        self.random = random.Random(seed)
        self.seed = seed
        self.publishers = list(publishers)
        self.accounts = list(accounts)
        self.now = now.replace(microsecond=0)
        self.boundary = self.now.replace(day=1, hour=0, minute=0, second=0)
        self.refused_prefix = refused_prefix
        self._count = 0
        self._valid: list[_Sent] = []
        self._revised: dict[int, list[_Revision]] = {}  # by the place of the original
        self._copies: dict[int, list[int]] = defaultdict(list)  # of originals that were not revised
        self._contradicted: set[int] = set()  # originals that a conflict goes with
        self._out: list[UsageInput] = []
        self._kinds: dict[str, Callable[[], UsageInput]] = {
            "not_json": lambda: self._raw("not_json", b"account_id=frontdesk&seconds=60", {NOT_JSON}),
            "not_an_object": lambda: self._raw("not_an_object", b'["voice", 60]', UNREADABLE),
            "cut_utf8": self._cut_utf8,
            "cut_json": lambda: self._raw("cut_json", _encode(self._leg()[1])[:-9], {NOT_JSON}),
            "empty": lambda: self._raw("empty", b"", UNREADABLE),
            "tombstone": lambda: self._raw("tombstone", None, UNREADABLE),
            "huge": lambda: self._bent("huge", data={"call_leg_id": "x" * 900_000}, allowed=UNREADABLE),
            "deep": self._deep,
            "duplicate_keys": self._duplicate_keys,
            "duplicate_keys_in_data": self._duplicate_keys_in_data,
            "nan": lambda: self._bent("nan", data={"duration_s": float("nan")}, allowed=UNREADABLE),
            "infinity": lambda: self._bent("infinity", data={"billable_s": float("inf")}, allowed=UNREADABLE),
            "no_specversion": lambda: self._bent("no_specversion", without="specversion"),
            "no_id": lambda: self._bent("no_id", without="id"),
            "no_source": lambda: self._bent("no_source", without="source"),
            "no_type": lambda: self._bent("no_type", without="type"),
            "no_data": lambda: self._bent("no_data", without="data"),
            "wrong_specversion": lambda: self._bent("wrong_specversion", specversion="0.3"),
            "wrong_type": lambda: self._bent("wrong_type", type="tollbook.usage.voice.leg.v99", allowed={UNKNOWN_TYPE}),
            "empty_id": lambda: self._bent("empty_id", id=""),
            "empty_source": lambda: self._bent("empty_source", source=""),
            "empty_subject": lambda: self._bent("empty_subject", subject=""),
            "id_is_number": lambda: self._bent("id_is_number", id=self._number()),
            "time_is_number": lambda: self._bent("time_is_number", time=1_790_000_000),
            "time_is_naive": lambda: self._bent("time_is_naive", time="2026-10-31T23:50:00"),
            "wrong_datacontenttype": lambda: self._bent("wrong_datacontenttype", datacontenttype="text/xml"),
            "extension_uppercase": lambda: self._bent("extension_uppercase", myExtension="a"),
            "extension_is_object": lambda: self._bent("extension_is_object", myextension={"a": 1}),
            "data_twice": lambda: self._bent("data_twice", data_base64="e30="),
            "data_is_text": lambda: self._bent("data_is_text", data_is="60 seconds"),
            "data_is_null": lambda: self._bent("data_is_null", data_is=None),
            "account_missing": lambda: self._bent(
                "account_missing", data={"direction": "outbound"}, data_without="account_id"
            ),
            "unknown_number": lambda: self._bent(
                "unknown_number",
                data={"account_id": None, "direction": "inbound", "called": NOBODYS_NUMBER},
                allowed={UNKNOWN_NUMBER},
            ),
            "called_missing": lambda: self._bent("called_missing", data_without="called"),
            "unknown_field": lambda: self._bent("unknown_field", data={"amount": "0.10"}),
            "account_is_number": lambda: self._bent("account_is_number", data={"account_id": 7010}),
            "called_is_number": lambda: self._bent("called_is_number", data={"called": 12485550100}),
            "called_without_plus": lambda: self._bent("called_without_plus", data={"called": "12485550100"}),
            "called_full_width": lambda: self._bent("called_full_width", data={"called": "+１２４８５５５０１００"}),
            "called_is_null": lambda: self._bent("called_is_null", data={"called": None}),
            "duration_underscore": lambda: self._bent("duration_underscore", data={"duration_s": "1_000"}),
            "duration_text": lambda: self._bent("duration_text", data={"duration_s": "60"}),
            "duration_full_width": lambda: self._bent("duration_full_width", data={"duration_s": "６０"}),
            "duration_fraction": lambda: self._bent("duration_fraction", data={"duration_s": 60.5}),
            "duration_bool": lambda: self._bent("duration_bool", data={"duration_s": True}),
            "duration_negative": lambda: self._bent("duration_negative", data={"duration_s": -60}),
            "billable_negative": lambda: self._bent("billable_negative", data={"billable_s": -1}),
            "answered_is_number": lambda: self._bent("answered_is_number", data={"answered": 1}),
            "answered_is_text": lambda: self._bent("answered_is_text", data={"answered": "true"}),
            "wrong_direction": lambda: self._bent("wrong_direction", data={"direction": "sideways"}),
            "end_before_start": self._end_before_start,
            "ended_naive": lambda: self._bent("ended_naive", data={"ended_at": _text(self.now)[:-1]}),
            "ended_with_offset": lambda: self._bent(
                "ended_with_offset", data={"ended_at": _text(self.now)[:-1] + "+02:00"}
            ),
            "ended_no_such_day": lambda: self._bent("ended_no_such_day", data={"ended_at": "2026-02-30T00:00:00Z"}),
            "nul_in_id": lambda: self._bent("nul_in_id", id=f"a\0b-{self._number()}", allowed=self._unstorable),
            "nul_in_text": lambda: self._bent("nul_in_text", data={"call_leg_id": "a\0b"}, allowed=self._unstorable),
            "lone_surrogate": self._lone_surrogate,
            "unknown_account": self._unknown_account,
            "foreign_source": lambda: self._bent("foreign_source", source="pbx/nobody", allowed={NOT_PERMITTED}),
            "no_segments": lambda: self._bent_use("no_segments", MESSAGE, {"segments": 0}),
            "unknown_outcome": lambda: self._bent_use("unknown_outcome", MESSAGE, {"outcome": "lost"}),
            "message_to_nobody": lambda: self._bent_use("message_to_nobody", MESSAGE, {"recipient": "12"}),
            "bytes_negative": lambda: self._bent_use("bytes_negative", DATA, {"bytes": -1}),
            "network_of_four_digits": lambda: self._bent_use("network_of_four_digits", DATA, {"network": "2080"}),
            "days_beyond_month": lambda: self._bent_use("days_beyond_month", RENTAL, {"month": "2027-02", "days": 29}),
            "reserved_product": lambda: self._bent_use("reserved_product", PRODUCT, {"product": "voice.outbound"}),
            "quantity_text": lambda: self._bent_use("quantity_text", PRODUCT, {"quantity": "5"}),
            "wrong_unit": lambda: self._bent_use("wrong_unit", PRODUCT, {"unit": "lookup", "quantity": 1}, WRONG_UNIT),
            "no_price_of_product": lambda: self._bent_use(
                "no_price_of_product", PRODUCT, {"product": UNPRICED_PRODUCT, "quantity": 1}, NO_PRICE
            ),
            "no_price": lambda: self._outbound_to("no_price", UNPRICED_NUMBER, NO_PRICE),
            "too_old": lambda: self._dated("too_old", -timedelta(days=40), TOO_OLD),
            "tomorrow": lambda: self._dated("tomorrow", timedelta(days=1), IN_FUTURE),
            "conflict": self._conflict,
        }
        if self._foreign_pairs():
            self._kinds["foreign_account"] = self._foreign_account
        if euro:
            self._kinds["wrong_currency"] = lambda: self._outbound_to("wrong_currency", EURO_NUMBER, WRONG_CURRENCY)
        if refused_prefix is not None:
            self._kinds["refused_by_store"] = lambda: self._bent(
                "refused_by_store", id=f"{refused_prefix}{self._number()}", allowed={REFUSED_BY_STORE}
            )

    _unstorable = frozenset({INVALID_EVENT, NOT_JSON, REFUSED_BY_STORE})

    @property
    def bad_kinds(self) -> tuple[str, ...]:
        """Every kind of bad input that this factory makes."""
        return tuple(self._kinds)

    @property
    def inputs(self) -> list[UsageInput]:
        """Everything made so far, in order, with expectations that know of later repeats."""
        return list(self._out)

    def mix(
        self, count: int, *, bad_share: float = 0.1, repeat_share: float = 0.1, revised_share: float = 0.1
    ) -> list[UsageInput]:
        """``count`` inputs in the order in which they must be produced. Each bad kind comes once before one comes twice."""
        bag: list[str] = []
        start = len(self._out)
        while len(self._out) - start < count:
            dice = self.random.random()
            if self._valid and dice < bad_share:
                bag = bag or self.random.sample(self.bad_kinds, len(self._kinds))
                self.bad(bag.pop())
            elif self._valid and dice < bad_share + repeat_share:
                self.repeat()
            elif self._valid and dice < bad_share + repeat_share + revised_share:
                self.revise()
            else:
                self.valid()
        return self._out[start:]

    def valid(self) -> UsageInput:
        """An event of any type that is rated, or not billable because nobody answered and the like."""
        publisher_id, event = self._anything()
        self._valid.append(_Sent(publisher_id, event, len(self._out)))
        return self._keep(self._input(publisher_id, event, "valid", {self._class_of(event)}))

    def bad(self, kind: str) -> UsageInput:
        """One input of a kind of `bad_kinds`."""
        return self._keep(self._kinds[kind]())

    def repeat(self) -> UsageInput:
        """A second copy of a valid event: the same bytes, or the same content written in another way; sometimes under
        another key, so that the copies meet in two partitions. Which of them is accepted is open."""
        sent = self.random.choice(self._valid)
        if sent.index in self._revised:
            return self._again(sent.index, self.random.choice(self._revised[sent.index]))
        original = self._out[sent.index]
        event: dict[str, Any] = dict(sent.event)
        way = self.random.choice(("bytes", "order", "trace", "key"))
        if way == "order":
            event = dict(reversed(event.items())) | {"data": dict(reversed(event["data"].items()))}
        elif way == "trace":
            event["traceparent"] = f"00-{self.random.getrandbits(128):032x}-{self.random.getrandbits(64):016x}-01"
        allowed = original.expectation.allowed | {DUPLICATE}
        self._out[sent.index] = replace(original, expectation=replace(original.expectation, allowed=allowed))
        key = (original.key or b"") + b"-hot" if way == "key" else original.key
        copy = UsageInput(original.topic, key, _encode(event), Expectation(f"repeat_{way}", allowed))
        self._copies[sent.index].append(len(self._out))
        return self._keep(copy)

    def revise(self) -> UsageInput:
        """A higher revision of a valid event: a void, or the content of another event, in another account and partition
        perhaps. Now and then it comes before its original, or below a revision that came before it, or twice."""
        if self.random.random() < 0.2:
            publisher_id, event = self._anything()
            first = len(self._out)
            item = self._correct(_Sent(publisher_id, event, first + 1), self.random.randrange(1, 4))
            self._valid.append(_Sent(publisher_id, event, first + 1))
            self._keep(self._input(publisher_id, event, "valid", {self._class_of(event)}))
            self._expect_revisions(first + 1)
            return item
        open_ones = [sent for sent in self._valid if sent.index not in self._contradicted]
        if not open_ones:
            return self.valid()
        sent = self.random.choice(open_ones)
        known = {each.revision: each for each in self._revised.get(sent.index, ())}
        revision = self.random.randrange(1, max(known, default=0) + 3)
        if revision in known:
            return self._again(sent.index, known[revision])
        item = self._correct(sent, revision)
        self._expect_revisions(sent.index)
        return item

    def _correct(self, sent: _Sent, revision: int) -> UsageInput:
        """The next input: this revision of an event, which no other input has."""
        if sent.index not in self._revised:
            accepted_class = self._class_of(sent.event)
            self._revised[sent.index] = [_Revision(sent.index, sent.publisher_id, sent.event, 0, accepted_class)]
            self._revised[sent.index] += [
                _Revision(index, sent.publisher_id, sent.event, 0, accepted_class)
                for index in self._copies.pop(sent.index, ())
            ]
        event = dict(sent.event) | {"revision": revision}
        if self.random.random() < 0.4:
            publisher = next(each for each in self.publishers if each["publisher_id"] == sent.publisher_id)
            permitted = [a for a in self.accounts if a["organization_id"] in publisher["organization_ids"]]
            account_id = self.random.choice((sent.event["data"]["account_id"], permitted[0]["account_id"]))
            event |= {"type": VOID, "data": {"account_id": account_id, "reason": "never took place"}}
            accepted_class = VOIDED
        else:
            publisher_id, other = self._anything()
            while publisher_id != sent.publisher_id:
                publisher_id, other = self._anything()
            event |= {"type": other["type"], "data": other["data"]}
            accepted_class = self._class_of(event)
        self._revised[sent.index].append(_Revision(len(self._out), sent.publisher_id, event, revision, accepted_class))
        return self._keep(self._input(sent.publisher_id, event, "revision", {accepted_class}))

    def _again(self, original: int, of: _Revision) -> UsageInput:
        """A copy of one revision, perhaps in another partition."""
        self._revised[original].append(replace(of, index=len(self._out)))
        item = self._input(of.publisher_id, of.event, "repeat_revision", {of.accepted_class})
        key = (item.key or b"") + b"-hot" if self.random.random() < 0.5 else item.key
        self._keep(replace(item, key=key))
        self._expect_revisions(original)
        return self._out[-1]

    def _expect_revisions(self, original: int) -> None:
        """What each input of a fact may be, now that its revisions are known."""
        known = self._revised[original]
        highest = max(each.revision for each in known)
        for each in known:
            allowed = {each.accepted_class}
            if each.revision < highest or sum(other.revision == each.revision for other in known) > 1:
                allowed.add(DUPLICATE)
            if any(other.accepted_class == VOIDED for other in known if other.revision > each.revision):
                allowed.add(VOIDED)
            item = self._out[each.index]
            expectation = replace(item.expectation, allowed=frozenset(allowed))
            self._out[each.index] = replace(item, expectation=expectation)

    # ---- making one ------------------------------------------------------------------------------------------------

    def _keep(self, item: UsageInput) -> UsageInput:
        self._out.append(item)
        return item

    def _number(self) -> int:
        self._count += 1
        return self._count

    def _moment(self) -> datetime:
        """An event time around the boundary, now and then exactly on it or just before."""
        choice = self.random.random()
        if choice < 0.03:
            return self.boundary
        if choice < 0.06:
            return self.boundary - timedelta(microseconds=1)
        latest = min(self.now, self.boundary + BEFORE_BOUNDARY)
        span = int((latest - self.boundary + BEFORE_BOUNDARY).total_seconds())
        return self.boundary - BEFORE_BOUNDARY + timedelta(seconds=self.random.randrange(span + 1))

    def _publishers_of(self, account: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        return [p for p in self.publishers if account["organization_id"] in p["organization_ids"]]

    def _foreign_pairs(self) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
        return [
            (publisher, account)
            for publisher in self.publishers
            for account in self.accounts
            if account["organization_id"] not in publisher["organization_ids"]
        ]

    def _who_and_when(self) -> tuple[Mapping[str, Any], datetime]:
        """An account and an event time at which it was open."""
        for _ in range(1000):
            account, moment = self.random.choice(self.accounts), self._moment()
            if self._publishers_of(account) and interval_at(account["plans"], moment):
                return account, moment
        raise ValueError(f"no account is open around {self.boundary}: open them at least {BEFORE_BOUNDARY} before")

    def _event(self, kind: str, publisher: Mapping[str, Any], at: datetime, data: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "specversion": "1.0",
            "id": f"{self.seed}-{self._number()}",
            "source": self.random.choice(tuple(publisher["sources"])),
            "type": kind,
            "time": _text(at),
            "datacontenttype": "application/json",
            "data": data,
        }

    def _anything(self) -> tuple[str, dict[str, Any]]:
        """Publisher and event of any type, priced by `example_prices`; most are legs."""
        kind = self.random.choices((VOICE_LEG, MESSAGE, DATA, RENTAL, PRODUCT), (60, 15, 10, 5, 10))[0]
        return self._leg() if kind == VOICE_LEG else self._use(kind)

    def _use(self, kind: str) -> tuple[str, dict[str, Any]]:
        """Publisher and event of one message, data session, rental or product."""
        dice = self.random
        account, at = self._who_and_when()
        publisher = dice.choice(self._publishers_of(account))
        own = dice.choice(self._own_numbers(account))
        data: dict[str, Any] = {"account_id": account["account_id"]}
        match kind:
            case "tollbook.usage.message.v1":
                direction, channel = (
                    dice.choice(("inbound", "outbound", "outbound")),
                    dice.choice(("sms", "sms", "mms")),
                )
                abroad = dice.choice(("+12485550100", "+447700900123", "+12485550177"))
                data |= {
                    "direction": direction,
                    "channel": channel,
                    "sender": dice.choice((None, "Tollbook", "+13135550100")),
                    "recipient": own if direction == "inbound" else abroad,
                    "segments": dice.choice((1, 1, 2, 255)),
                    "outcome": dice.choice(("accepted", "rejected", "delivered", "undelivered")),
                    "sent_at": _text(at),
                }
            case "tollbook.usage.data.v1":
                data |= {
                    "bytes": dice.choice((0, 1, 999, 1_000, 50_001, dice.randrange(10**9))),
                    "started_at": _text(at - timedelta(seconds=dice.randrange(9_000))),
                    "ended_at": _text(at),
                }
                if dice.random() < 0.7:
                    data |= {"network": dice.choice(("310260", "20801", "310")), "subscriber": own}
            case "tollbook.usage.rental.v1":
                data |= {
                    "number": "+12485550100",
                    "month": f"{at:%Y-%m}",
                    "days": dice.randrange(1, 29),
                    "starts_at": _text(at),
                }
            case _:
                data |= {
                    "product": "api.lookups",
                    "quantity": dice.randrange(5_000),
                    "unit": "request",
                    "used_at": _text(at),
                }
        return publisher["publisher_id"], self._event(kind, publisher, at, data)

    def _own_numbers(self, account: Mapping[str, Any]) -> tuple[str, ...]:
        made = f"+1313555{crc32(account['account_id'].encode()) % 10_000:04d}", "+18775550100"
        return tuple(account.get("numbers") or made)

    def _leg(self) -> tuple[str, dict[str, Any]]:
        """Publisher and event of one leg, priced by `example_prices`."""
        dice = self.random
        account, ended_at = self._who_and_when()
        publisher = dice.choice(self._publishers_of(account))
        answered = dice.random() < 0.85
        billable_s = dice.choice((1, 3, 6, 23, 59, 60, 61, 95, dice.randrange(1, 7200))) if answered else 0
        duration_s = billable_s + dice.randrange(30)
        inbound = dice.random() < 0.4
        american = f"+1248555{dice.randrange(100, 200):04d}"
        if inbound:
            called, caller = dice.choice(self._own_numbers(account)), dice.choice((american, None))
        else:
            abroad = (
                f"+447700900{dice.randrange(1000):03d}",
                f"+44207946{dice.randrange(10_000):04d}",
                "+919876543210",
            )
            called, caller = dice.choice((american, american, *abroad)), f"+1313555{dice.randrange(10_000):04d}"
        data = {
            "account_id": account["account_id"],
            "direction": "inbound" if inbound else "outbound",
            "caller": caller,
            "called": called,
            "started_at": _text(ended_at - timedelta(seconds=duration_s)),
            "ended_at": _text(ended_at),
            "answered": answered,
            "duration_s": duration_s,
            "billable_s": billable_s,
        }
        if dice.random() < 0.3:
            data["call_leg_id"] = f"leg-{dice.getrandbits(48):012x}"
        return publisher["publisher_id"], self._event(VOICE_LEG, publisher, ended_at, data)

    def _class_of(self, event: Mapping[str, Any]) -> str:
        data = event["data"]
        is_free = data.get("answered") is False or data.get("outcome") == "rejected"
        bills_delivered = data.get("channel") == "sms" and data["recipient"].startswith("+44")
        is_undelivered = bills_delivered and data["outcome"] != "delivered"
        if is_free or is_undelivered or 0 in (data.get("bytes"), data.get("quantity")):
            return NOT_BILLABLE
        account = next(a for a in self.accounts if a["account_id"] == data["account_id"])
        moment = next(data[name] for name in ("ended_at", "sent_at", "starts_at", "used_at") if name in data)
        plan = interval_at(account["plans"], instant(moment))
        return RATED_UNGROUPED if plan is not None and plan["plan"] == "trial" else RATED

    def _input(self, publisher_id: str, event: Mapping[str, Any], kind: str, allowed: Iterable[str]) -> UsageInput:
        data = event.get("data")
        account = data.get("account_id") if isinstance(data, dict) else None
        key = str(account or "nobody").encode()
        return UsageInput(USAGE_TOPICS + publisher_id, key, _encode(event), Expectation(kind, frozenset(allowed)))

    # ---- bad input -------------------------------------------------------------------------------------------------

    def _raw(self, kind: str, value: bytes | None, allowed: Iterable[str]) -> UsageInput:
        topic = USAGE_TOPICS + self.random.choice(self.publishers)["publisher_id"]
        account = self.random.choice(self.accounts)["account_id"]
        key = self.random.choice((account.encode(), None))
        return UsageInput(topic, key, value, Expectation(kind, frozenset(allowed)))

    def _bent(
        self,
        kind: str,
        *,
        allowed: Iterable[str] = (INVALID_EVENT,),
        without: str | None = None,
        data: Mapping[str, Any] | None = None,
        data_without: str | None = None,
        data_is: Any = ...,
        **attributes: Any,
    ) -> UsageInput:
        """A valid event with attributes or data fields changed or left out."""
        publisher_id, event = self._answered_leg()
        event |= attributes
        event["data"] |= data or {}
        if data_without is not None:
            del event["data"][data_without]
        if data_is is not ...:
            event["data"] = data_is
        if without is not None:
            del event[without]
        return self._input(publisher_id, event, kind, allowed)

    def _bent_use(self, kind: str, type: str, data: Mapping[str, Any], reason: str = INVALID_EVENT) -> UsageInput:
        """A valid event of another type than voice with data fields changed."""
        publisher_id, event = self._use(type)
        event["data"] |= data
        return self._input(publisher_id, event, kind, {reason})

    def _answered_leg(self) -> tuple[str, dict[str, Any]]:
        """Answered, so that no fault hides behind not being billable."""
        while True:
            publisher_id, event = self._leg()
            if event["data"]["answered"]:
                return publisher_id, event

    def _cut_utf8(self) -> UsageInput:
        _, event = self._leg()
        event["data"]["call_leg_id"] = "Überlingen"
        return self._raw("cut_utf8", _encode(event).replace("Ü".encode(), "Ü".encode()[:1]), {NOT_JSON})

    def _deep(self) -> UsageInput:
        _, event = self._leg()
        value = _encode(event)[:-1] + b', "nested": ' + b"[" * 10_000 + b"]" * 10_000 + b"}"
        return self._raw("deep", value, UNREADABLE)

    def _duplicate_keys(self) -> UsageInput:
        _, event = self._leg()
        return self._raw("duplicate_keys", _encode(event)[:-1] + b', "id": "another"}', UNREADABLE)

    def _duplicate_keys_in_data(self) -> UsageInput:
        _, event = self._leg()
        return self._raw("duplicate_keys_in_data", _encode(event)[:-2] + b', "duration_s": 1}}', UNREADABLE)

    def _lone_surrogate(self) -> UsageInput:
        _, event = self._leg()
        event["data"]["call_leg_id"] = "HERE"
        return self._raw("lone_surrogate", _encode(event).replace(b"HERE", rb"\ud800"), self._unstorable)

    def _end_before_start(self) -> UsageInput:
        publisher_id, event = self._answered_leg()
        ended_at = instant(event["data"]["ended_at"])
        event["data"]["started_at"] = _text(ended_at + timedelta(seconds=1))
        return self._input(publisher_id, event, "end_before_start", {INVALID_EVENT})

    def _unknown_account(self) -> UsageInput:
        return self._bent("unknown_account", data={"account_id": f"nobody-{self._number()}"}, allowed={UNKNOWN_ACCOUNT})

    def _foreign_account(self) -> UsageInput:
        publisher, account = self.random.choice(self._foreign_pairs())
        _, event = self._answered_leg()
        event["source"] = self.random.choice(tuple(publisher["sources"]))
        event["data"]["account_id"] = account["account_id"]
        allowed = {NOT_PERMITTED}
        if interval_at(account["plans"], instant(event["data"]["ended_at"])) is None:
            allowed.add(UNKNOWN_ACCOUNT)
        return self._input(publisher["publisher_id"], event, "foreign_account", allowed)

    def _outbound_to(self, kind: str, called: str, reason: str) -> UsageInput:
        return self._bent(kind, data={"direction": "outbound", "called": called}, allowed={reason})

    def _dated(self, kind: str, distance: timedelta, reason: str) -> UsageInput:
        publisher_id, event = self._answered_leg()
        ended_at = self.now + distance
        data = event["data"]
        data["started_at"], data["ended_at"] = _text(ended_at - timedelta(seconds=data["duration_s"])), _text(ended_at)
        account = next(a for a in self.accounts if a["account_id"] == data["account_id"])
        allowed = {reason}
        if interval_at(account["plans"], ended_at) is None:  # two faults: either may be named
            allowed |= {UNKNOWN_ACCOUNT, NOT_PERMITTED}
        return self._input(publisher_id, event, kind, allowed)

    def _conflict(self) -> UsageInput:
        """The identity of an earlier event with another caller, after it in the same partition."""
        if not self._valid:
            self.valid()
        open_ones = [each for each in self._valid if each.index not in self._revised]
        if not open_ones:
            self.valid()
            open_ones = self._valid[-1:]
        sent = self.random.choice(open_ones)
        self._contradicted.add(sent.index)
        caller = f"+1734555{self._number() % 10_000:04d}"
        changed = {"caller": caller} if sent.event["type"] == VOICE_LEG else {"cost_center_id": caller[1:]}
        event = dict(sent.event) | {"data": dict(sent.event["data"]) | changed}
        return replace(
            self._input(sent.publisher_id, event, "conflict", {CONFLICT}),
            key=self._out[sent.index].key,
        )
