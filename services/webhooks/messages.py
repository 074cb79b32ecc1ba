"""What is sent: the type, id and body of an event, and the signed headers around it. Pure.

Source: the Standard Webhooks specification. The body is made once and kept, so that every attempt sends the same bytes.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, get_args

from standardwebhooks import Webhook

from contracts.topics import BALANCE_EVENTS, BALANCE_GROUP_EVENTS, INVOICES_EVENTS, Topic, topic_of
from services.kernel.errors import InvalidInput
from services.kernel.ids import derived_id

MARK = "whsec_"  # a secret begins with it
SECRET_BYTES = 32
PREFIXES: Mapping[Topic, str] = {BALANCE_EVENTS: "balance", BALANCE_GROUP_EVENTS: "group", INVOICES_EVENTS: "invoice"}
"""The first word of a type, by the topic that its events come from."""

LEDGER_FIELDS = frozenset(
    {"postings", "posting_rounding", "posting_tax", "owed_by", "products", "promotion", "rounding"}
)
"""Of an invoice or a credit note: what our own ledger posts, and whose shares are open, of tens of thousands of accounts. No receiver needs it."""

OURS = frozenset({"contradiction", "drift_found", "drift_gone", "finance_alarm"})
"""Kinds that tell who runs the installation of its own books and processors. They stay on Kafka."""

TEST = "webhook.test"
DISABLED = "webhook.endpoint_disabled"


@dataclass(frozen=True, slots=True)
class Event:
    """One event as it is kept and sent. ``account_id`` is None for what is of a group or of the organization."""

    event_id: str
    organization_id: str | None
    account_id: str | None
    type: str
    body: str


def event_of(topic: str, envelope: Mapping[str, Any]) -> Event:
    """The event of a record between rooms: its own data without what is null or of our ledger only.

    Its id follows from the record's: the same record always makes the same event.
    """
    data = envelope["data"].data()
    if standing := data.get("invoice"):
        data["invoice"] = {name: value for name, value in standing.items() if name not in LEDGER_FIELDS}
    public = {name: value for name, value in data.items() if value is not None and name not in LEDGER_FIELDS}
    return event(
        str(derived_id(topic, envelope["id"])),
        f"{PREFIXES[topic_of(topic)]}.{data['kind']}",
        envelope["time"],
        public,
        organization_id=data.get("organization_id"),
        account_id=data.get("account_id"),
    )


def event(
    identifier: str,
    type: str,
    at: str,
    data: Mapping[str, Any],
    *,
    organization_id: str | None,
    account_id: str | None = None,
) -> Event:
    """An event with its body.

    >>> event("1", "webhook.test", "2026-11-01T00:00:00Z", {"text": "grüß"}, organization_id="lakeside").body
    '{"type":"webhook.test","timestamp":"2026-11-01T00:00:00Z","data":{"text":"grüß"}}'
    """
    body = json.dumps({"type": type, "timestamp": at, "data": data}, ensure_ascii=False, separators=(",", ":"))
    return Event(f"msg_{identifier.replace('-', '')}", organization_id, account_id, type, body)


def types() -> tuple[str, ...]:
    """Every type that an endpoint may ask for, as the contracts name them."""
    return (
        *(f"{prefix}.{kind}" for topic, prefix in PREFIXES.items() for kind in _kinds(topic)),
        DISABLED,
    )


def _kinds(topic: Topic) -> Iterable[str]:
    models = [topic.model] if hasattr(topic.model, "model_fields") else _members(topic.model)
    return [kind for model in models for kind in get_args(model.model_fields["kind"].annotation) if kind not in OURS]


def _members(union: Any) -> list[Any]:
    """The models of a union, annotated or not."""
    return [
        model for each in get_args(union) for model in ([each] if hasattr(each, "model_fields") else _members(each))
    ]


def wants(types: Sequence[str] | None, account_ids: Sequence[str] | None, event: Event) -> bool:
    """Whether an endpoint with these filters gets an event. One for accounts gets the events of those accounts only: what
    is of a group or of the organization says more than theirs.

    >>> closed = Event("msg_1", "lakeside", None, "invoice.closed", "{}")
    >>> wants(None, None, closed), wants(["balance.suspended"], None, closed), wants(None, ["sales"], closed)
    (True, False, False)
    """
    return (types is None or event.type in types) and (account_ids is None or event.account_id in account_ids)


def checked_types(asked: Sequence[str]) -> list[str]:
    """The types that an endpoint asks for, each once; `InvalidInput` for one that there is not."""
    known = types()
    for each in asked:
        if each not in known:
            raise InvalidInput(f"there is no type {each!r}; the types are {', '.join(known)}", field="type")
    return sorted(set(asked))


def secret_of(random: bytes) -> str:
    """A secret as receivers get it.

    >>> secret_of(bytes(24))
    'whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA'
    """
    return f"{MARK}{base64.b64encode(random).decode()}"


def headers(event_id: str, body: str, secrets: Iterable[str], at: datetime) -> dict[str, str]:
    """The headers of one attempt: signed by each secret that is valid, so that a receiver may know either.

    ``at`` is the instant of this attempt on the clock of the world: a receiver refuses what is five minutes off its own.
    """
    instant = at.astimezone(UTC).replace(microsecond=0)
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(int(instant.timestamp())),
        "webhook-signature": " ".join(Webhook(secret).sign(event_id, instant, body) for secret in secrets),
    }
