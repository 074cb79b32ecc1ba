"""Topics of a family appear while a worker runs, made by anybody, with any number of partitions."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from contracts.topics import USAGE_REJECTIONS
from services.runtime.room import Room, Tick
from services.runtime.settings import load
from services.runtime.worker import Worker
from tests.support.processes import until

KEYS = [f"k{number}" for number in range(60)]
TOPIC = USAGE_REJECTIONS.of("lakeside")


async def _tell(work):
    for key in KEYS:
        work.publish(USAGE_REJECTIONS, key, key, {}, member="lakeside")


TELL = Tick("tell", _tell, seconds=10_000)


@pytest.fixture
async def worker(database, kafka, topic_prefix, monkeypatch):
    for name, value in database.environment(TOLLBOOK_KAFKA=kafka, TOLLBOOK_TOPIC_PREFIX=topic_prefix).items():
        monkeypatch.setenv(name, value)
    made = Worker(Room("payments", ()), load())
    await made.start()
    yield made
    await made.stop()


@pytest.mark.parametrize("partitions", [1, 11, None])
async def test_a_topic_that_appears_later_is_used_as_it_is(worker, kafka, topic_prefix, partitions):
    """The declaration says 6; None: nobody made it before."""
    name = topic_prefix + TOPIC
    if partitions is not None:
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
        await admin.start()
        await admin.create_topics([NewTopic(name, partitions, 1)])
        await admin.close()
    await worker.processor.tick(TELL)
    found = await everything(kafka, name, partitions or USAGE_REJECTIONS.partitions)
    assert set(found.values()) == set(range(partitions or USAGE_REJECTIONS.partitions))


async def test_a_topic_that_was_deleted_is_made_again_for_what_is_to_be_sent(worker, kafka, topic_prefix):
    name = topic_prefix + TOPIC
    await worker.processor.tick(TELL)
    await everything(kafka, name, USAGE_REJECTIONS.partitions)
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()

    async def is_there():
        return name in await admin.list_topics()

    async def is_gone():
        return not await is_there()

    await admin.delete_topics([name])
    await until(is_gone, "the topic is deleted")
    await worker.processor.tick(TELL)
    await until(is_there, "the topic is made again")
    await admin.close()
    await everything(kafka, name, USAGE_REJECTIONS.partitions)


async def everything(kafka, name, partitions):
    """The partition of each key, when all are there."""
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka, auto_offset_reset="earliest")
    await consumer.start()
    try:
        consumer.assign([TopicPartition(name, number) for number in range(partitions)])
        found = {}
        async with asyncio.timeout(20):
            while len(found) < len(KEYS):
                for place, records in (await consumer.getmany(timeout_ms=200)).items():
                    found |= {record.key.decode(): place.partition for record in records}
        assert set(found) == set(KEYS)
        return found
    finally:
        await consumer.stop()
