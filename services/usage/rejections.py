"""What publishers are told of records that could not be counted, and what is kept beside such a record.

Source: domain, section 3; architecture, section 3 (`usage.rejections.<publisher>`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from contracts.topics import USAGE_EVENTS, USAGE_REJECTIONS
from contracts.usage import Rejection
from contracts.words import ID_PATTERN
from services.kernel.ids import derived_id
from services.kernel.period import instant_text
from services.runtime.parking import Parked, ParkedRow
from services.runtime.records import Record
from services.runtime.work import Work
from services.usage import revising, store
from services.usage.cloudevents import legible
from services.usage.events import readable, storable
from services.usage.handler import UsageEvents, count_record
from services.usage.registry import Registry
from services.usage.retrying import is_no_news

Action = Literal["quarantined", "replayed", "discarded"]

TEXT_MAX = 2_000  # what `Rejection` takes: the name of a wrong field comes from outside and may be as long as its event


class Rejections:
    """Counts parked records, keeps what could be read of them, and tells their publishers."""

    def __init__(self, events: UsageEvents) -> None:
        self._events = events

    async def handle(self, work: Work, records: list[Record]) -> None:
        """The handler of the events, and after it the news for those who wait for a replay."""
        await self._events.handle(work, records)
        for record in records:
            if record.replayed and not record.was_waiting and record.verdict not in ("quarantined", "waiting"):
                about = readable(legible(record.headers, record.value))
                message = f"replayed: {record.verdict}"
                tell(work, "replayed", record, about, record.verdict or "", None, message)

    async def parked(self, work: Work, parked: Sequence[Parked]) -> None:
        """Of all that is parked in a transaction, by the handler or because only the database refuses it."""
        memory = self._events.memory
        await memory.share(work.connection)
        for replayed in (False, True):
            counts: Counter[store.ClassKey] = Counter()
            for item in parked:
                if item.record.replayed is replayed:
                    item.record.verdict = item.state
                    count_record(memory, counts, item.record)
            if counts:
                await store.add_class_counts(work.connection, counts, replayed=replayed)
        revised = {
            number: fact for number, item in enumerate(parked) if (fact := revising.revised_by(item.record)) is not None
        }
        live = await revising.live_of(work.connection, memory, revised)
        for number, item in enumerate(parked):
            item.about = what_is_known(memory.registry, item.record)
            if number in revised:
                digest, revision = revised[number]
                item.about["revises"] = {"digest": digest.hex(), "revision": revision}
                item.about["live"] = revising.held_by(live.get(number))
            if item.state == "quarantined" and not is_no_news(item):
                tell(work, "quarantined", item.record, item.about, item.reason, item.field, item.message)

    async def discarded(self, work: Work, rows: Sequence[ParkedRow]) -> None:
        """A person gave these up; they stay in the class they are in."""
        for row in rows:
            tell(work, "discarded", row, row.about, row.reason, row.field, row.message)


def what_is_known(registry: Registry, record: Record) -> dict[str, Any]:
    """Source, id, account, event time and payer group, as far as they can be read; of a record without account that of the
    called number. A record whose time cannot be read is taken for one of the time at which it came, so that it holds its
    group all the same."""
    about: dict[str, Any] = readable(legible(record.headers, record.value))
    number = about.get("number")
    if number is not None:
        event_time = about.get("event_time")
        at = datetime.fromisoformat(event_time) if event_time is not None else record.timestamp
        owner = registry.owner_of(number, at)
        if owner is not None:
            about["account_id"] = owner
    if "account_id" in about:
        about.setdefault("event_time", record.timestamp.isoformat())
        account = registry.accounts.get(about["account_id"])
        payer = account.payer_at(datetime.fromisoformat(about["event_time"])) if account is not None else None
        if payer is not None:
            about["group_id"] = payer.group_id
    return about


def tell(
    work: Work,
    action: Action,
    record: Record | ParkedRow,
    about: dict[str, Any],
    reason: str,
    field: str | None,
    message: str,
) -> None:
    """Publish what became of a record to the topic of its publisher.

    Whoever may create topics can write to one that is named after no publisher: there is nobody to be told.
    """
    publisher = USAGE_EVENTS.member(record.topic)
    if re.fullmatch(ID_PATTERN, publisher) is None:
        return
    rejection = Rejection(
        publisher=publisher,
        action=action,
        reason=reason,
        field=storable(field)[:TEXT_MAX] if field is not None else None,
        message=storable(message)[:TEXT_MAX],
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        source=about.get("source"),
        event_id=about.get("event_id"),
        account_id=about.get("account_id"),
        at=work.now,
    )
    id = derived_id(
        "rejection", record.topic, str(record.partition), str(record.offset), action, reason, instant_text(work.now)
    )
    work.publish(USAGE_REJECTIONS, about.get("source") or publisher, str(id), rejection.data(), member=publisher)
