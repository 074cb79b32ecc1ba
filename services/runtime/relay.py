"""The relay: sends the outbox to Kafka in order, deletes what the broker has acknowledged.

One is active per room at a time (a session advisory lock), so one per topic partition. It sends from the oldest row that
still stands; a crash between acknowledgement and delete sends the same records again, with the same id, link and seq.
A zombie that has lost its lock can only repeat contiguous runs, never make a gap. Source: designs/closing, line 2.
After any failure connection, lock and producer are given up and made anew: a producer of which the broker once refused a
batch has lost count of its sequence numbers, and would be refused for ever.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from aiokafka import AIOKafkaProducer
from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.runtime import faults
from services.runtime.batches import FinishedBatch
from services.runtime.broker import abandon
from services.runtime.tables import RuntimeTables

log = logging.getLogger(__name__)

CHUNKS_PER_ROUND = 64
POLL_S = 0.1  # what another copy wrote is found this late at most
RETRY_S_FIRST = 0.1
RETRY_S_MAX = 5.0
TAKE_OVER_S = 0.5  # how soon a second copy takes over from a dead relay


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
        made: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        self._room = room
        self._engine = engine
        self._tables = tables
        self._opened = opened
        self._prefix = prefix
        self._made = made
        self._wake = asyncio.Event()
        self.active = False

    def wake(self) -> None:
        """Rows may be there: look now instead of at the next poll."""
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled: become the active relay, send, and start over after any failure."""
        wait = RETRY_S_FIRST
        while True:
            try:
                async with self._alone() as connection, self._producing() as producer:
                    while True:
                        await self._round(connection, producer)
                        wait = RETRY_S_FIRST
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

    async def _round(self, connection: AsyncConnection, producer: AIOKafkaProducer) -> None:
        self._wake.clear()
        outbox = self._tables.outbox
        rows = (
            await connection.execute(
                select(outbox.c.id, outbox.c.topic, outbox.c.partition, outbox.c.records, outbox.c.chunk)
                .order_by(outbox.c.id)
                .limit(CHUNKS_PER_ROUND)
            )
        ).all()
        if not rows:
            with suppress(TimeoutError):
                # wait_for, in Python 3.11, forgets a cancellation that meets the wake
                async with asyncio.timeout(POLL_S):
                    await self._wake.wait()
            return
        faults.step(f"{self._room}.relay.read")
        async with asyncio.TaskGroup() as sending:
            for (topic, partition), batches in _by_partition(rows).items():
                sending.create_task(self._send(producer, topic, partition, batches))
        faults.step(f"{self._room}.relay.acknowledged")
        await connection.execute(delete(outbox).where(outbox.c.id.in_([row.id for row in rows])))
        faults.step(f"{self._room}.relay.deleted")

    async def _send(self, producer: AIOKafkaProducer, topic: str, partition: int, batches: list[FinishedBatch]) -> None:
        """All batches of a partition, one after the other.

        A batch waits for the acknowledgement of the one before it: the broker takes the first that it sees of a producer,
        whatever its sequence number, so a refused batch followed by an accepted one would be a gap.
        """
        name = self._prefix + topic
        if self._made is not None:
            await self._made(topic)
        for batch in batches:
            acknowledgement = await producer.send_batch(batch, name, partition=partition)
            faults.step(f"{self._room}.relay.sent")
            await acknowledgement


def _by_partition(rows: Any) -> dict[tuple[str, int], list[FinishedBatch]]:
    """The batches of each topic partition, in the order of the rows."""
    batches: dict[tuple[str, int], list[FinishedBatch]] = {}
    for row in rows:
        batches.setdefault((row.topic, row.partition), []).append(FinishedBatch(row.chunk, row.records))
    return batches


def _reasons(error: Exception) -> str:
    """The names of what went wrong, of several partitions at once where it is so."""
    if isinstance(error, ExceptionGroup):
        return ", ".join(sorted({type(each).__name__ for each in error.exceptions}))
    return type(error).__name__
