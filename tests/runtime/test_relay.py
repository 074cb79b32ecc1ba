"""The relay on real servers: it sends whatever the outbox took, and comes back from every error of its producer."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections import Counter
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from functools import partial

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from sqlalchemy import func, select

from contracts.topics import AROUND_BYTES_MAX
from services.runtime.broker import ensure_topics, open_producer
from services.runtime.database import open_engine, transaction
from services.runtime.lanes import internal_lane, transaction_instant
from services.runtime.outbox import Outbox
from services.runtime.relay import Relay
from services.runtime.settings import Settings
from services.runtime.tables import runtime_tables
from tests.support import copier
from tests.support.processes import until

NOISE = random.Random(7)  # its bytes are made no smaller by any compression


def seq_of(record):
    return int(re.search(rb'"seq":([0-9]+)', record.value)[1])


class Publisher:
    """A room that only publishes, and its relay."""

    def __init__(self, database, kafka, prefix):
        self.settings = Settings(kafka=kafka, topic_prefix=prefix)
        self.tables = runtime_tables("payments")
        self.engine = open_engine(database.room("payments"), application="test.relay", pool_size=3)
        self.topic = copier.COPIES

    async def publish(self, values):
        """One transaction; each value is (key, text)."""
        async with transaction(self.engine) as connection:
            await internal_lane(connection, self.tables, "test")
            now, epoch, _ = await transaction_instant(connection, self.tables)
            outbox = Outbox("payments", lambda name: self.topic.partitions)
            for key, value in values:
                outbox.add(self.topic, key, key, value)
            await outbox.flush(connection, self.tables, "test", now, epoch)

    def stand(self, count):
        """Whether so many batches are not acknowledged."""

        async def so_many():
            async with transaction(self.engine) as connection:
                rows = await connection.execute(select(func.count()).select_from(self.tables.outbox))
                return rows.scalar_one() == count

        return so_many

    @asynccontextmanager
    async def relaying(self):
        opened = partial(open_producer, self.settings, "test")
        relay = Relay("payments", self.engine, self.tables, opened, self.settings.topic_prefix)
        self.running = asyncio.create_task(relay.run())
        try:
            yield relay
        finally:
            self.running.cancel()
            with suppress(asyncio.CancelledError):
                await self.running

    async def limit(self, bytes_max):
        """Let the broker take only batches up to this size from now on."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.settings.kafka_bootstrap)
        await admin.start()
        name = self.settings.topic_prefix + self.topic.name
        configs = self.topic.configs | {"max.message.bytes": str(bytes_max)}
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, configs)])
        await admin.close()

    async def received(self, count, within_s=30.0):
        """The first records of the topic as they stand there."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self.settings.kafka_bootstrap, auto_offset_reset="earliest")
        await consumer.start()
        try:
            name = self.settings.topic_prefix + self.topic.name
            consumer.assign([TopicPartition(name, number) for number in range(self.topic.partitions)])
            records = []
            async with asyncio.timeout(within_s):
                while len(records) < count:
                    for found in (await consumer.getmany(timeout_ms=200)).values():
                        records += found
            return records
        finally:
            await consumer.stop()


@pytest.fixture
async def publisher(database, kafka, topic_prefix):
    made = Publisher(database, kafka, topic_prefix)
    await ensure_topics(made.settings, {made.topic.name: made.topic})
    yield made
    await made.engine.dispose()


async def test_the_largest_record_that_the_outbox_takes_is_sent_with_its_neighbours(publisher):
    size = publisher.topic.record_bytes_max - AROUND_BYTES_MAX - 4 * len("large")
    await publisher.publish([("before", 1), ("large", NOISE.randbytes(size)), ("after", 2)])
    async with publisher.relaying():
        records = await publisher.received(3)
    assert {record.key for record in records} == {b"before", b"large", b"after"}
    assert max(len(record.value) for record in records) > size


async def test_records_leave_however_far_the_one_clock_was_moved(publisher, database):
    async with database.connected() as owner:
        await owner.execute("select runtime.clock_move($1)", timedelta(days=40))
        now = await owner.fetchval("select runtime.clock_now()")
    await publisher.publish([("k", "from the future")])
    async with publisher.relaying():
        (record,) = await publisher.received(1)
    assert json.loads(record.value)["time"][:10] == f"{now:%Y-%m-%d}"
    assert abs(record.timestamp / 1000 - time.time()) < 600  # the broker's: it would refuse one of the future


async def refused(caplog, times):
    async def often_enough():
        said = [record.message for record in caplog.records]
        return sum(" apart: " in each or "cannot send" in each for each in said) >= times

    await until(often_enough, f"the relay was refused {times} times")


async def test_after_a_batch_was_refused_the_relay_goes_on_by_itself(publisher, caplog):
    await publisher.publish([("k", "first")])
    async with publisher.relaying():
        await publisher.received(1)
        await publisher.limit(1_000)
        await publisher.publish([("k", NOISE.randbytes(2_000))])
        await refused(caplog, 2)
        await publisher.limit(publisher.topic.record_bytes_max)
        records = await publisher.received(2)
    assert [seq_of(record) for record in records] == [1, 2]


async def test_no_batch_overtakes_one_that_was_refused(publisher, caplog):
    await publisher.limit(200_000)
    await publisher.publish([("k", NOISE.randbytes(850_000)), ("k", NOISE.randbytes(100_000))])  # two batches
    async with publisher.relaying():
        await refused(caplog, 2)
        await publisher.limit(publisher.topic.record_bytes_max)
        records = await publisher.received(2)
    assert [seq_of(record) for record in records] == [1, 2]


@pytest.mark.parametrize("turns", range(5))
async def test_a_relay_that_is_woken_just_when_it_is_to_end_ends(publisher, turns):
    """However many turns of the loop lie between the two: a process whose relay goes on never stops."""
    async with publisher.relaying() as relay:
        await until(lambda: asyncio.sleep(0, relay.active), "the relay is active")
        await asyncio.sleep(0.3)  # it waits for rows
        relay.wake()
        for _ in range(turns):
            await asyncio.sleep(0)
        publisher.running.cancel()
        assert await asyncio.wait([publisher.running], timeout=5) == ({publisher.running}, set())


async def test_a_partition_that_cannot_be_sent_to_holds_up_no_other_and_is_sent_in_order_when_it_can(
    publisher, caplog, monkeypatch
):
    """However many of its batches stand before theirs."""
    monkeypatch.setattr("services.runtime.relay.CHUNKS_PER_ROUND", 4)
    await publisher.publish([("k", 0)])
    async with publisher.relaying():
        await publisher.received(1)
        await publisher.limit(1_000)
        for number in range(6):
            await publisher.publish([("k", [number, NOISE.randbytes(2_000).hex()])])
        for number in range(20):
            await publisher.publish([("a", number)])
        records = await publisher.received(21, within_s=15)
        assert Counter(record.key for record in records) == {b"k": 1, b"a": 20}
        await until(publisher.stand(6), "only what was refused stands")
        await refused(caplog, 3)
        await publisher.limit(publisher.topic.record_bytes_max)
        await publisher.publish([("k", 7), ("a", 20)])
        records = await publisher.received(29)
    assert [seq_of(record) for record in records if record.key == b"k"] == list(range(1, 9))
    assert [seq_of(record) for record in records if record.key == b"a"] == list(range(1, 22))
