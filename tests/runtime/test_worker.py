"""What a worker does around its batches; the position of a consumer is no word about what was applied."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.errors import NoOffsetForPartitionError, TopicAuthorizationFailedError
from sqlalchemy import select

from services.kernel.errors import Unavailable
from services.runtime.broker import LINGER_FROM, HandedConsumer, ensure_topics
from services.runtime.database import transaction
from services.runtime.lanes import advance_lanes, give_birth, lanes_of, lock_lanes, lock_parent
from services.runtime.records import Record
from services.runtime.room import Input, Room
from services.runtime.settings import load
from services.runtime.worker import Worker
from tests.support import copier

PARTITION = TopicPartition("test.source", 0)
LANE = "source/test.source/0"


class HandedOut:
    """A consumer that has handed out the records 0 to 2 of one partition; its position is beyond them already."""

    handed = True
    polled_at = 0.0

    def assignment(self):
        return {PARTITION}

    async def position(self, _):
        return 3


async def test_a_batch_that_is_cancelled_at_the_stop_stays_unread(database, monkeypatch):
    """A stop that runs out of patience cancels the handler, while the look for markers may still run once more."""
    for name, value in database.environment(TOLLBOOK_KAFKA="127.0.0.1:1").items():
        monkeypatch.setenv(name, value)

    async def handle(work, records):
        pytest.fail("the batch must not get that far")

    worker = Worker(Room("payments", (Input("source", (copier.SOURCE,), handle),)), load())
    runner = worker.runners[0]
    runner.subscriber.consumer = HandedOut()
    runner._next[PARTITION] = 0
    tables = worker.processor.tables
    try:
        async with transaction(worker.engine) as connection:
            await give_birth(connection, tables, "source", [(LANE, "test.source", 0, 0)])
        async with transaction(worker.engine) as other_copy:
            await lock_lanes(other_copy, tables, [LANE])
            batch = tuple(Record("test.source", 0, offset, 0, None, b"1", "") for offset in range(3))
            handling = asyncio.create_task(runner.handle(batch))
            await asyncio.sleep(0.3)
            handling.cancel()
            with suppress(asyncio.CancelledError):
                await handling
        await runner.pass_markers()
        async with transaction(worker.engine) as connection:
            (lane,) = await lanes_of(connection, tables, "source")
            assert lane.position == 0
            assert (await connection.execute(select(tables.parked.c.id))).all() == []
    finally:
        runner.subscriber.consumer = None
        await worker.engine.dispose()


async def test_a_position_that_another_copy_moves_while_partitions_are_assigned_is_no_truncated_log(
    database, kafka, topic_prefix, monkeypatch
):
    for name, value in database.environment(TOLLBOOK_KAFKA=kafka, TOLLBOOK_TOPIC_PREFIX=topic_prefix).items():
        monkeypatch.setenv(name, value)
    settings = load()
    await ensure_topics(settings, {copier.SOURCE.name: copier.SOURCE})
    worker = Worker(copier.copier(), settings)
    runner, tables = worker.runners[0], worker.processor.tables
    partition = TopicPartition(f"{topic_prefix}{copier.SOURCE.name}", 0)
    consumer = runner.subscriber.consumer = HandedConsumer(bootstrap_servers=kafka, enable_auto_commit=False)
    producer = AIOKafkaProducer(bootstrap_servers=kafka, acks="all")
    await consumer.start()
    await producer.start()
    await worker.offsets.start()
    try:
        consumer.assign([partition])
        await runner.assigned({partition})
        async with transaction(worker.engine) as other_copy:
            await lock_parent(other_copy, tables)  # so that the assignment waits for PostgreSQL
            assigning = asyncio.create_task(runner.assigned({partition}))
            await asyncio.sleep(1)
            await producer.send_and_wait(partition.topic, b"1", partition=0)
            await advance_lanes(other_copy, tables, {f"source/{copier.SOURCE.name}/0": 1})
        await assigning
        async with transaction(worker.engine) as connection:
            (lane,) = await lanes_of(connection, tables, "source")
        assert (lane.position, lane.stopped) == (1, None)
        assert runner.health()["stopped"] == {}
        assert await consumer.position(partition) == 1
    finally:
        await consumer.stop()
        await producer.stop()
        await worker.offsets.stop()
        runner.subscriber.consumer = None
        await worker.engine.dispose()


@pytest.fixture
async def starting(database, kafka, topic_prefix, monkeypatch):
    """A worker that starts while PostgreSQL lets nobody in."""
    for name, value in database.environment(TOLLBOOK_KAFKA=kafka, TOLLBOOK_TOPIC_PREFIX=topic_prefix).items():
        monkeypatch.setenv(name, value)
    settings = load()
    await ensure_topics(settings, {copier.SOURCE.name: copier.SOURCE})
    worker = Worker(copier.copier(), settings)
    async with database.connected() as owner:
        await owner.execute(f"alter database {database.name} connection limit 0")
        yield worker, owner
    await worker.stop()


async def test_a_worker_that_starts_before_postgresql_lets_it_in_waits(database, starting):
    worker, owner = starting
    start = asyncio.create_task(worker.start())
    await asyncio.wait([start], timeout=3)
    assert not start.done()
    await owner.execute(f"alter database {database.name} connection limit -1")
    async with asyncio.timeout(20):
        await start
    assert worker.health()["alive"]


async def test_a_worker_that_postgresql_never_lets_in_says_so(starting, monkeypatch):
    monkeypatch.setattr("services.runtime.worker.DATABASE_S_MAX", 1.0)
    worker, _ = starting
    with pytest.raises(Unavailable, match="check TOLLBOOK_POSTGRES"):
        await worker.start()


@pytest.mark.parametrize("error", [NoOffsetForPartitionError, TopicAuthorizationFailedError])
async def test_an_error_of_another_partition_never_takes_records_in_hand_along(monkeypatch, error):
    """The client raises an error of one partition at the call after the one that returned the records of another."""
    fetched = [{PARTITION: ["record"] * LINGER_FROM}, error("another partition"), {}]

    async def getmany(self, *partitions, timeout_ms=0, max_records=None):
        answer = fetched.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(AIOKafkaConsumer, "getmany", getmany)
    monkeypatch.setattr(AIOKafkaConsumer, "__del__", lambda self: None)
    consumer = object.__new__(HandedConsumer)
    consumer._subscription = SubscriptionState()
    assert await consumer.getmany(max_records=20_000) == {PARTITION: ["record"] * LINGER_FROM}
    assert consumer.handed
