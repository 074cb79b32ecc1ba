"""The relay: sends the outbox to Kafka in order, deletes what the broker has acknowledged.

One is active per room at a time (a session advisory lock), so one per topic partition. It sends from the oldest row that
still stands; a crash between acknowledgement and delete sends the same records again, with the same id, link and seq.
A zombie that has lost its lock can only repeat contiguous runs, never make a gap. Source: designs/closing, line 2.
A partition that cannot be sent to holds up no other: it is sent apart, by a producer of its own, until that goes well.
After any failure the producer is given up and made anew: one of which the broker once refused a batch has lost count of its
sequence numbers, and would be refused for ever. So a partition that comes back from apart meets a producer that never sent
to it. What the old one may still have under way is a run that was sent before, and is only repeated.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol

from aiokafka import AIOKafkaProducer
from sqlalchemy import Delete, Select, delete, func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.runtime import faults
from services.runtime.batches import FinishedBatch
from services.runtime.broker import abandon
from services.runtime.database import transaction
from services.runtime.tables import RuntimeTables

log = logging.getLogger(__name__)

CHUNKS_PER_ROUND = 64
POLL_S = 0.1  # what another copy wrote is found this late at most
RETRY_S_FIRST = 0.1
RETRY_S_MAX = 5.0
TAKE_OVER_S = 0.5  # how soon a second copy takes over from a dead relay
STUCK_S = 3.0  # a round in which nothing is acknowledged for so long waits no longer

Partition = tuple[str, int]  # a topic without prefix, and a number
Batches = list[tuple[int, FinishedBatch]]  # with the ids of their rows


class Made(Protocol):
    """Makes sure that a topic of a family is there; ``again`` though it was there before."""

    def __call__(self, topic: str, *, again: bool) -> Awaitable[None]: ...


class Relay:
    """``opened`` makes a started producer; ``prefix`` stands before our topic names on the broker.

    ``made`` is called with each topic before it is sent to: one of a family (one per publisher or processor) may not be
    there, and a producer would wait for it for ever.
    """

    def __init__(
        self,
        room: str,
        engine: AsyncEngine,
        tables: RuntimeTables,
        opened: Callable[[], Awaitable[AIOKafkaProducer]],
        prefix: str,
        made: Made | None = None,
    ) -> None:
        self._room = room
        self._engine = engine
        self._tables = tables
        self._opened = opened
        self._prefix = prefix
        self._made = made
        self._wake = asyncio.Event()
        self._apart: set[Partition] = set()
        self.active = False

    def wake(self) -> None:
        """Rows may be there: look now instead of at the next poll."""
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled: become the active relay, send, and start over after any failure."""
        wait = RETRY_S_FIRST
        while True:
            try:
                async with self._alone() as connection, asyncio.TaskGroup() as apart:
                    self._apart.clear()
                    while True:
                        async with self._producing() as producer:
                            while not (failed := await self._round(connection, producer)):
                                wait = RETRY_S_FIRST
                        for partition in failed:
                            apart.create_task(self._send_apart(partition))
            except asyncio.CancelledError:
                raise
            except Exception as error:
                log.warning("relay of %s starts over: %s", self._room, _reasons(error), exc_info=error)
                await asyncio.sleep(wait)
                wait = min(RETRY_S_MAX, wait * 2)

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[AsyncConnection]:
        """A connection that holds the relay's lock."""
        lock = select(func.pg_try_advisory_lock(func.hashtext(f"tollbook.relay.{self._tables.schema}")))
        async with self._engine.connect() as connection:
            try:
                await connection.execution_options(isolation_level="AUTOCOMMIT")
                while not (await connection.execute(lock)).scalar_one():  # noqa: ASYNC110 - another process frees it
                    await asyncio.sleep(TAKE_OVER_S)
                self.active = True
                yield connection
            finally:
                self.active = False
                await connection.invalidate()  # the lock is the session's: back in the pool it would keep everybody out

    @asynccontextmanager
    async def _producing(self) -> AsyncIterator[AIOKafkaProducer]:
        producer = await self._opened()
        try:
            yield producer
        finally:
            await abandon(producer)

    async def _round(self, connection: AsyncConnection, producer: AIOKafkaProducer) -> set[Partition]:
        """Send the oldest rows of the partitions that are not sent apart. Returns those that from now on are."""
        self._wake.clear()
        outbox = self._tables.outbox.c
        oldest = self._oldest()
        if self._apart:
            oldest = oldest.where(tuple_(outbox.topic, outbox.partition).not_in(sorted(self._apart)))
        rows = (await connection.execute(oldest)).all()
        if not rows:
            with suppress(TimeoutError):
                # wait_for, in Python 3.11, forgets a cancellation that meets the wake
                async with asyncio.timeout(POLL_S):
                    await self._wake.wait()
            return set()
        faults.step(f"{self._room}.relay.read")
        acknowledged: list[int] = []
        sending = {
            partition: asyncio.create_task(self._send(producer, partition, batches, acknowledged))
            for partition, batches in _by_partition(rows).items()
        }
        failures = await _failures(sending, acknowledged)
        faults.step(f"{self._room}.relay.acknowledged")
        await connection.execute(self._deleted(acknowledged))
        faults.step(f"{self._room}.relay.deleted")
        for (topic, number), error in failures.items():
            log.error("relay of %s sends %s/%d apart: %s", self._room, topic, number, _reasons(error), exc_info=error)
        self._apart |= failures.keys()
        return set(failures)

    async def _send_apart(self, partition: Partition) -> None:
        """Try a partition by itself until its oldest rows are acknowledged; then it is one of the others again."""
        topic, number = partition
        outbox = self._tables.outbox.c
        oldest = self._oldest().where(outbox.topic == topic, outbox.partition == number)
        wait = RETRY_S_FIRST
        try:
            while True:
                await asyncio.sleep(wait)
                wait = min(RETRY_S_MAX, wait * 2)
                acknowledged: list[int] = []
                try:
                    async with transaction(self._engine) as connection:
                        batches = _by_partition((await connection.execute(oldest)).all()).get(partition, [])
                    try:
                        async with self._producing() as producer:
                            await self._send(producer, partition, batches, acknowledged, again=True)
                    finally:
                        async with transaction(self._engine) as connection:
                            await connection.execute(self._deleted(acknowledged))
                    return
                except Exception as error:
                    log.warning("relay of %s cannot send to %s/%d: %s", self._room, topic, number, _reasons(error))
        finally:
            self._apart.discard(partition)

    def _oldest(self) -> Select[Any]:
        outbox = self._tables.outbox.c
        columns = (outbox.id, outbox.topic, outbox.partition, outbox.records, outbox.chunk)
        return select(*columns).order_by(outbox.id).limit(CHUNKS_PER_ROUND)

    def _deleted(self, ids: Sequence[int]) -> Delete:
        return delete(self._tables.outbox).where(self._tables.outbox.c.id.in_(ids))

    async def _send(
        self,
        producer: AIOKafkaProducer,
        partition: Partition,
        batches: Batches,
        acknowledged: list[int],
        *,
        again: bool = False,
    ) -> None:
        """All batches of a partition, one after the other; ``acknowledged`` takes the ids of those that are.

        A batch waits for the acknowledgement of the one before it: the broker takes the first that it sees of a producer,
        whatever its sequence number, so a refused batch followed by an accepted one would be a gap.
        """
        topic, number = partition
        if self._made is not None:
            await self._made(topic, again=again)
        for id, batch in batches:
            acknowledgement = await producer.send_batch(batch, self._prefix + topic, partition=number)
            faults.step(f"{self._room}.relay.sent")
            await acknowledgement
            acknowledged.append(id)


async def _failures(
    sending: Mapping[Partition, asyncio.Task[None]], acknowledged: Sequence[int]
) -> dict[Partition, Exception]:
    """Wait for all, while anything is acknowledged: why each failed that did."""
    pending = set(sending.values())
    try:
        while pending:
            before = len(acknowledged)
            _, pending = await asyncio.wait(pending, timeout=STUCK_S)
            if len(acknowledged) == before:
                break
    finally:
        for task in pending:
            task.cancel()
        ended = await asyncio.gather(*sending.values(), return_exceptions=True)
    found: dict[Partition, Exception] = {}
    for partition, error in zip(sending, ended, strict=True):
        if isinstance(error, asyncio.CancelledError):
            found[partition] = TimeoutError(f"nothing was acknowledged for {STUCK_S:.0f} s")
        elif isinstance(error, Exception):
            found[partition] = error
    return found


def _by_partition(rows: Any) -> dict[Partition, Batches]:
    """The batches of each topic partition with the ids of their rows, in their order."""
    batches: dict[Partition, Batches] = {}
    for row in rows:
        batches.setdefault((row.topic, row.partition), []).append((row.id, FinishedBatch(row.chunk, row.records)))
    return batches


def _reasons(error: Exception) -> str:
    """The names of what went wrong, of several partitions at once where it is so."""
    if isinstance(error, ExceptionGroup):
        return ", ".join(sorted({_reasons(each) for each in error.exceptions}))
    return type(error).__name__
