"""What a worker does around its batches; the position of a consumer is no word about what was applied."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.errors import NoOffsetForPartitionError, TopicAuthorizationFailedError
from sqlalchemy import select

from services.kernel.errors import Unavailable
from services.runtime.broker import LINGER_FROM, HandedConsumer, ensure_topics
from services.runtime.database import transaction
from services.runtime.lanes import advance_lanes, give_birth, lanes_of, lock_lanes, lock_parent
from services.runtime.records import Record
from services.runtime.room import Input, Job, Room
from services.runtime.settings import load
from services.runtime.worker import Worker
from tests.support import copier
from tests.support.processes import until

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


async def test_a_loop_whose_driver_answers_the_stop_with_an_error_is_ended(database, kafka, topic_prefix, monkeypatch):
    for name, value in database.environment(TOLLBOOK_KAFKA=kafka, TOLLBOOK_TOPIC_PREFIX=topic_prefix).items():
        monkeypatch.setenv(name, value)
    begun = asyncio.Event()

    async def cut_off(_):
        first = not begun.is_set()
        begun.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError as error:
            if first:
                raise ConnectionResetError from error
            raise

    worker = Worker(Room("payments", (), jobs=(Job("cut off", cut_off, 0.1),)), load())
    try:
        await worker.start()
        await asyncio.wait_for(begun.wait(), 20)
    finally:
        async with asyncio.timeout(20):
            await worker.stop()


async def test_a_consumer_whose_fetch_outlives_the_stop_is_abandoned(kafka, topic_prefix, monkeypatch):
    """A fetch that waits for a rebalance takes the cancellation for that of the request that it cancels itself."""
    monkeypatch.setattr("services.runtime.broker.STOP_S_MAX", 1.0)
    consumer = HandedConsumer(bootstrap_servers=kafka, enable_auto_commit=False)
    await consumer.start()

    async def outlives():
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        await asyncio.sleep(3600)

    consumer._fetcher._fetch_task.cancel()
    hidden = consumer._fetcher._fetch_task = asyncio.create_task(outlives())
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await consumer.stop()
    assert hidden.done()
    assert not any(conn.connected() for conn in consumer._client._conns.values())


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


@pytest.fixture
async def reading(database, kafka, topic_prefix, monkeypatch):
    """A worker that has read the records 0 to 4 of partition 0, with what writes to its topic and what deletes from it."""
    for name, value in database.environment(TOLLBOOK_KAFKA=kafka, TOLLBOOK_TOPIC_PREFIX=topic_prefix).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("services.runtime.worker.TOPICS", (copier.SOURCE, copier.COPIES))
    read = []

    async def handle(work, records):
        values = [(record.partition, record.value) for record in records]
        work.after_commit.append(lambda: read.extend(values))

    worker = Worker(Room("payments", (Input("source", (copier.SOURCE,), handle),)), load())
    producer, admin = AIOKafkaProducer(bootstrap_servers=kafka), AIOKafkaAdminClient(bootstrap_servers=kafka)
    await worker.start()
    await producer.start()
    await admin.start()
    try:
        made = Reading(worker, producer, admin, read)
        await made.write(0, 0, 5)
        await made.has_read(0, 5)
        yield made
    finally:
        await admin.close()
        await producer.stop()
        await worker.stop()


class Reading:
    """A worker, and the world around its one input."""

    def __init__(self, worker, producer, admin, read):
        self.worker, self.producer, self.admin, self.read = worker, producer, admin, read
        self.partition = TopicPartition(worker.settings.topic_prefix + copier.SOURCE.name, 0)

    async def write(self, partition, first, end):
        for number in range(first, end):
            await self.producer.send_and_wait(self.partition.topic, b"%d" % number, partition=partition)

    async def has_read(self, partition, count):
        async def all_of_them():
            return sum(of == partition for of, _ in self.read) == count

        await until(all_of_them, f"{count} records of partition {partition} are read", 20)

    async def has_stopped(self, why):
        """The lane says why; the others go on at once, and nothing more of this one is read."""
        runner, engine = self.worker.runners[0], self.worker.engine

        async def stopped():
            async with transaction(engine) as connection:
                lanes = await lanes_of(connection, self.worker.processor.tables, "source")
            return [lane.stopped for lane in lanes if lane.stopped] == [why] and runner.health()["stopped"] == {
                LANE: why
            }

        await until(stopped, f"the lane stops: {why}", 20)
        assert not self.worker.health()["ready"]
        before = [value for of, value in self.read if of == 0]
        await self.write(0, 100, 110)
        await self.write(1, 0, 3)
        await self.has_read(1, 3)
        await asyncio.sleep(1)
        assert [value for of, value in self.read if of == 0] == before


async def test_records_that_go_from_the_log_before_a_running_worker_read_them_stop_their_lane(reading):
    async with transaction(reading.worker.engine) as other_copy:
        await lock_lanes(other_copy, reading.worker.processor.tables, [LANE])
        await reading.write(0, 5, 6)  # its batch waits for the lane
        await asyncio.sleep(1)
        await reading.write(0, 6, 7)  # fetched already
        await asyncio.sleep(1)
        await reading.write(0, 7, 20)
        await reading.admin.delete_records({reading.partition: RecordsToDelete(before_offset=15)})
    await reading.has_stopped("records 7 to 15 are gone from the log: lost range")
    assert [value for _, value in reading.read[:7]] == [b"%d" % number for number in range(7)]


async def test_a_log_that_is_cut_below_the_position_of_a_running_worker_stops_its_lane(reading):
    runner = reading.worker.runners[0]
    async with transaction(reading.worker.engine) as connection:  # as if 5 to 7 had been read, and lost by the broker
        await advance_lanes(connection, reading.worker.processor.tables, {LANE: 8})
    runner._next[reading.partition] = 8
    runner.subscriber.consumer.seek(reading.partition, 8)
    await reading.has_stopped("the log ends at 5, below position 8: topic truncated or made anew")
