"""A database that is restored from a backup while the log stays as it is, and a processor that remembers what it took.

    async with backup_of(town) as backup:
        ...                                                   # the life that will be undone
        async with restored(town, backup, rooms) as new:      # a Town over the backup, with the log of before
            await adopt(new)                                  # what the command of a restore asks of balance and payments
            await new.settle()

Of what rooms told each other only what the backup knows holds: the log of the new life has nothing in the place of the rest,
which is what a room makes of records of an epoch that does not hold.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

from pydantic import TypeAdapter

from contracts.balance import BalanceEvent
from contracts.payments import PaymentRequest
from contracts.receivables import GroupEvent
from contracts.topics import BALANCE_EVENTS, BALANCE_GROUP_EVENTS, PAYMENTS_REQUESTS
from services.balance import api
from services.kernel.errors import Unavailable
from services.kernel.money import parse_amount
from services.payments import api as payments
from services.payments.port import Answer, Hear, Heard, Order, Refund
from services.runtime import migrate
from services.runtime.room import Room
from tests.support.balance_factory import Town
from tests.support.rooms import Log, Logged
from tests.support.servers import Database

Bounds = dict[tuple[str, str, int], int]


class RestoredLog(Log):
    """The log of before; what does not hold any more is out of sight."""

    def read(self, topic: str) -> list[Any]:
        return [each for each in super().read(topic) if each is not None]


@asynccontextmanager
async def backup_of(town: Town) -> AsyncIterator[Database]:
    """A copy of the town's database as it is now. Nobody may be in it meanwhile, so the town has to have begun."""
    for processor in town.rooms.processors.values():
        await processor.engine.dispose()
    async with _copied(town.database) as copy:
        yield copy


@asynccontextmanager
async def _copied(database: Database) -> AsyncIterator[Database]:
    copy, maintenance = Database(f"test_{uuid.uuid4().hex}", database.server), Database("postgres", database.server)
    async with maintenance.connected() as connection:
        await connection.execute(f"CREATE DATABASE {copy.name} TEMPLATE {database.name}")
        await migrate.close_to_others(connection, copy.name)
    try:
        yield copy
    finally:
        await copy.drop()


@asynccontextmanager
async def restored(old: Town, backup: Database, rooms: Sequence[Room] | None = None) -> AsyncIterator[Town]:
    """The life after: the database is a copy of the backup, time goes on. ``undone`` and ``unread`` say what it does not know."""
    async with _copied(backup) as database:
        bounds = await _bounds(database)
        log = RestoredLog(old.log._partitions)
        for (topic, partition), records in old.log.records.items():
            for each in records:
                log.records[topic, partition].append(
                    each if _holds(each.json, topic, partition, bounds) else Logged(each.timestamp_ms, each.key, None)
                )
        made = type(old)(database, rooms=rooms, log=log)
        made._seqs, made._versions, made._count = old._seqs.copy(), old._versions.copy(), old._count
        made.before = old  # type: ignore[attr-defined]
        made.bounds = bounds  # type: ignore[attr-defined]
        async with made:
            await made.move(max(await old.now() - await made.now(), timedelta()))
            yield made


async def _bounds(database: Database) -> Bounds:
    found: Bounds = {}
    for room in ("balance", "payments"):
        async with database.connected() as connection:
            for row in await connection.fetch(f"select link, topic, partition, last_seq from {room}.link_out"):
                found[row["link"], row["topic"], row["partition"]] = row["last_seq"]
    return found


def _holds(record: Any, topic: str, partition: int, bounds: Bounds) -> bool:
    link = record.get("link") if isinstance(record, dict) else None
    if link is None or link.partition(":")[0] not in ("balance", "payments"):
        return True
    return bool(record["seq"] <= bounds.get((link, topic, partition), 0))


def undone(town: Town, topic: str) -> list[Any]:
    """The data of what was told on a topic before and does not hold any more, in the order of the log."""
    before, bounds = town.before, town.bounds  # type: ignore[attr-defined]
    return [
        each.json["data"]
        for (name, partition), records in sorted(before.log.records.items())
        for each in records
        if name == topic and each.json is not None and not _holds(each.json, name, partition, bounds)
    ]


async def adopt(town: Town, *, with_events: bool = True, write: bool = True, more: Sequence[Any] = ()) -> api.Adopted:
    """What the command of a restore asks of the two rooms. ``more`` are requests of lives that were undone before."""
    asked = _requests([*more, *undone(town, PAYMENTS_REQUESTS.name)])
    events: list[BalanceEvent | GroupEvent] = []
    if with_events:
        events += [BalanceEvent.model_validate_json(json.dumps(each)) for each in undone(town, BALANCE_EVENTS.name)]
        told = undone(town, BALANCE_GROUP_EVENTS.name)
        events += [GroupEvent.model_validate_json(json.dumps(each)) for each in told]
    if write:
        everything = _requests([*more, *town.before.log.data(PAYMENTS_REQUESTS.name)])  # type: ignore[attr-defined]
        await payments.adopt_requests(town.rooms.processors["payments"].engine, everything)
    return await api.adopt_undone_requests(town.rooms.processors["balance"].engine, asked, events, write=write)


def _requests(data: Iterable[Any]) -> list[PaymentRequest]:
    adapter: TypeAdapter[PaymentRequest] = TypeAdapter(PaymentRequest)
    return [adapter.validate_json(json.dumps(each)) for each in data]


@dataclass
class Bank:
    """A processor that no backup takes back. What a token says becomes of each charge by it:

    `tok_ok` settles; `tok_declined` declines; `tok_lost` settles, and the answer is lost; `tok_dead` never arrives;
    `tok_mute` settles, and nothing is said of it before `speaks`.

    It is as forgetful as one may be about keys: a charge that comes again when ``remembers`` is off is another charge.
    """

    taken: Counter[UUID] = field(default_factory=Counter)  # how often, by attempt
    amounts: dict[UUID, int] = field(default_factory=dict)
    accounts: dict[UUID, str] = field(default_factory=dict)
    requested: dict[UUID, Any] = field(default_factory=dict)
    origins: dict[UUID, str] = field(default_factory=dict)
    declined: set[UUID] = field(default_factory=set)
    mute: set[UUID] = field(default_factory=set)
    closed: set[UUID] = field(default_factory=set)
    given: dict[UUID, tuple[UUID, int]] = field(default_factory=dict)  # refunds
    asked: list[tuple[str, UUID]] = field(default_factory=list)
    remembers: bool = True
    speaks: bool = False
    is_open: bool = True  # for inquiries and cancels

    async def charge(self, order: Order) -> Heard:
        self.asked.append(("charge", order.attempt_id))
        if order.token == "tok_dead":
            raise Unavailable("nothing arrives")
        id, nano = order.attempt_id, parse_amount(order.amount)
        if id in self.closed:
            return Heard()
        if id in self.amounts:
            assert self.amounts[id] == nano, "one id stands for two amounts"
            if self.remembers:
                return self._said(order)
        self.amounts[id], self.accounts[id] = nano, order.account_id
        self.requested[id], self.origins[id] = order.requested_at, order.origin
        if order.token == "tok_mute":
            self.mute.add(id)
        if order.token == "tok_declined":
            self.declined.add(id)
        else:
            self.taken[id] += 1
        if order.token == "tok_lost":
            raise Unavailable("the answer is lost")
        return self._said(order)

    async def inquire(self, order: Order, number: int) -> Heard:
        self.asked.append(("inquire", order.attempt_id))
        if not self.is_open:
            raise Unavailable("nobody answers")
        if order.attempt_id not in self.amounts:
            self.closed.add(order.attempt_id)
            return Heard((Answer("never_seen", f"{order.attempt_id}:never_seen"),))
        return self._said(order)

    async def cancel(self, order: Order) -> Heard:
        self.asked.append(("cancel", order.attempt_id))
        if not self.is_open:
            raise Unavailable("nobody answers")
        if order.attempt_id not in self.amounts:
            self.closed.add(order.attempt_id)
            return Heard((Answer("cancelled", f"{order.attempt_id}:cancelled"),))
        return self._said(order)

    async def refund(self, order: Order, refund: Refund) -> Heard:
        self.asked.append(("refund", refund.refund_id))
        asked = (order.attempt_id, parse_amount(refund.amount))
        assert self.given.setdefault(refund.refund_id, asked) == asked, "one refund stands for two amounts"
        answer = Answer("refunded", f"refund:{refund.refund_id}", amount=refund.amount, refund_id=refund.refund_id)
        return Heard((answer,))

    async def start(self, hear: Hear) -> None:
        """Nothing to open."""

    async def stop(self) -> None:
        """Nothing to close."""

    def _said(self, order: Order) -> Heard:
        id = order.attempt_id
        if id in self.declined:
            return Heard((Answer("failed", f"{id}:declined", "declined", "no funds"),))
        if id in self.mute and not self.speaks:
            return Heard()
        return Heard((Answer("settled", f"{id}:settled"),))

    def moved(self) -> dict[str, int]:
        """What it took of each account, less what it gave back."""
        sums: dict[str, int] = defaultdict(int)
        for id, times in self.taken.items():
            sums[self.accounts[id]] += times * self.amounts[id]
        for id, nano in self.given.values():
            sums[self.accounts[id]] -= nano
        return dict(sums)
