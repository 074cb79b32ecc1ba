"""What a room's handler works with: one transaction, its instant, and the ways out of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any, Protocol

from sqlalchemy import DateTime, Text, bindparam, delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import CursorResult
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import Executable

from contracts.topics import Topic
from services.runtime import parking
from services.runtime.database import Plain, unnest
from services.runtime.links import Link
from services.runtime.outbox import Outbox
from services.runtime.records import Record
from services.runtime.tables import RuntimeTables


class Surroundings(Protocol):
    """What a worker knows of the world outside its database."""

    async def make(self, topic: str) -> None:
        """Make sure that a topic of a family is there, and that its partitions are known."""
        ...

    def partitions(self, topic: str) -> int:
        """How many partitions a topic has."""
        ...

    async def begin_offsets(self, topic: Topic) -> dict[tuple[str, int], int]:
        """The start of the log of every partition of a topic or family, metadata refreshed."""
        ...

    async def end_offsets(self, topic: Topic) -> dict[tuple[str, int], int]:
        """The high watermark of every partition of a topic or family, metadata refreshed, read uncommitted."""
        ...


@dataclass(slots=True)
class Work:
    """One transaction of a room.

    ``lane`` is a lane whose row this transaction holds; what is published goes out on its links. ``now`` is the one clock's
    instant of this transaction. ``taken`` has the first and last seq of each link that a batch takes. Nothing here commits:
    that is the runtime's.
    """

    connection: AsyncConnection
    tables: RuntimeTables
    room: str
    lane: str
    now: datetime
    epoch: int
    outbox: Outbox
    surroundings: Surroundings
    taken: Mapping[Link, tuple[int, int]] = field(default_factory=dict)
    parked: list[parking.Parked] = field(default_factory=list)
    after_commit: list[Callable[[], None]] = field(default_factory=list)
    attempts: int = 0  # how many a handler is inside of
    version_floor: int = 0

    def next_version(self, version: int) -> int:
        """The version of an object after this one: above it, and above all that was told in a life that a restore undid, since
        outside they drop a version that they have seen.

        >>> Work(*[None] * 8, version_floor=41).next_version(7), Work(*[None] * 8).next_version(7)
        (42, 8)
        """
        return max(version, self.version_floor) + 1

    async def execute(self, statement: Executable, parameters: Any = None) -> CursorResult[Any]:
        """Run one statement of a store."""
        return await self.connection.execute(statement, parameters)

    def publish(self, topic: Topic, key: str, id: str, data: Any, *, member: str | None = None) -> None:
        """Publish with the commit. ``id`` is the message's id: the same message always has the same.

        Raises `outbox.RecordTooLarge`; a record from outside that causes it is quarantined with that reason.
        """
        self.outbox.add(topic, key, id, data, member)

    def quarantine(self, record: Record, reason: str, message: str, *, field: str | None = None, **about: Any) -> None:
        """Keep a bad record with its reason and its bytes; its neighbours go on. ``about`` is what could be read of it."""
        record.verdict = "quarantined"
        self.parked.append(parking.Parked(record, "quarantined", reason, field, message, about))

    def wait(self, record: Record, message: str, **about: Any) -> None:
        """Keep a good record that may not run yet."""
        record.verdict = "waiting"
        self.parked.append(parking.Parked(record, "waiting", "waiting", None, message, about))

    async def write_published(self) -> None:
        """Write what is published so far, before rows are locked that others wait for; what comes later is written at the end.

        Inside an attempt all of it waits for the end: what was published before must not be rolled back with it.
        """
        if not self.attempts:
            await self._flush()

    @asynccontextmanager
    async def attempt(self) -> AsyncIterator[None]:
        """A part that can fail alone: on an error its writes, and what it published and parked, are taken back with it."""
        published, parked, calls = len(self.outbox), len(self.parked), len(self.after_commit)
        self.attempts += 1
        try:
            async with self.connection.begin_nested():
                yield
        except BaseException:
            self.outbox.take_back(published)
            del self.parked[parked:]
            del self.after_commit[calls:]
            raise
        finally:
            self.attempts -= 1

    async def set_timers(self, kind: str, due: dict[str, datetime]) -> None:
        """Set (or move) the timer of each key. A key has one timer of a kind."""
        if not due:
            return
        keys = sorted(due)
        parameters = {"kind": kind, "new_key": keys, "new_due_at": [due[key] for key in keys]}
        await _set_timers(self.tables).touched(self.connection, parameters)

    async def clear_timers(self, kind: str, keys: Iterable[str]) -> None:
        """Forget timers; those that do not exist are no error."""
        columns = self.tables.due.c
        await self.execute(delete(self.tables.due).where(columns.kind == kind, columns.key.in_(sorted(keys))))

    async def timers_fired(self, kind: str, due: dict[str, datetime]) -> None:
        """Forget timers that fired; one that was set anew meanwhile, to another time, stays."""
        columns = self.tables.due.c
        fired = unnest("fired", key=Text(), due_at=DateTime(timezone=True))
        statement = delete(self.tables.due).where(
            columns.kind == kind, columns.key == fired.c.key, columns.due_at == fired.c.due_at
        )
        await self.execute(statement, {"fired_key": list(due), "fired_due_at": list(due.values())})

    async def finish(self) -> None:
        """Write what was parked and published; the last writes before the lanes advance."""
        if self.parked:
            await parking.park(self.connection, self.tables, self.parked, self.now)
        await self._flush()

    async def _flush(self) -> None:
        for topic in sorted(self.outbox.members):
            await self.surroundings.make(topic)
        await self.outbox.flush(self.connection, self.tables, self.lane, self.now, self.epoch)


@cache
def _set_timers(tables: RuntimeTables) -> Plain:
    new = unnest("new", key=Text(), due_at=DateTime(timezone=True))
    statement = insert(tables.due).from_select(
        ["kind", "key", "due_at"], select(bindparam("kind", type_=Text()), new.c.key, new.c.due_at)
    )
    return Plain(
        statement.on_conflict_do_update(
            index_elements=["kind", "key"], set_={"due_at": statement.excluded.due_at, "failures": 0}
        )
    )
