"""What an input asks of Kafka while nothing happens, and how soon it hears when something does."""

from __future__ import annotations

import asyncio
from collections import Counter

from aiokafka import AIOKafkaProducer
from aiokafka.conn import AIOKafkaConnection
from aiokafka.consumer import fetcher

from contracts.topics import PAYMENTS_RESULTS
from services.runtime.broker import build_broker, ensure_topics, open_producer, start_broker, subscribe
from services.runtime.settings import Settings
from tests.support import copier

IDLE_S = 3


async def test_an_idle_input_asks_seldom_and_hears_of_records_and_of_new_topics_of_its_family(
    kafka, topic_prefix, monkeypatch
):
    settings = Settings(kafka=kafka, topic_prefix=topic_prefix)
    before, after = PAYMENTS_RESULTS.of("before"), PAYMENTS_RESULTS.of("after")
    await ensure_topics(settings, {copier.SOURCE.name: copier.SOURCE, before: PAYMENTS_RESULTS})
    broker = build_broker(settings, "payments")
    handled = asyncio.Queue()

    def read(name, topic):
        async def handle(records):
            for record in records:
                handled.put_nowait((name, record.topic, record.value))

        async def assigned(partitions):
            for partition in partitions:
                input_.consumer.seek(partition, 0)

        input_ = subscribe(
            broker, settings, group=f"payments.{name}", topics=[topic], max_records=10, handle=handle, assigned=assigned
        )

    read("plain", copier.SOURCE)
    read("family", PAYMENTS_RESULTS)
    asked = Counter()
    send = AIOKafkaConnection.send

    def counted(self, request, *args, **kwargs):
        asked[type(request).__name__] += 1
        return send(self, request, *args, **kwargs)

    await start_broker(broker, settings)
    producer = await open_producer(settings, "test")
    try:
        for topic in (copier.SOURCE.name, before):
            await producer.send_and_wait(topic_prefix + topic, b"first")
            await asyncio.wait_for(handled.get(), 30)
        monkeypatch.setattr(AIOKafkaConnection, "send", counted)
        await asyncio.sleep(IDLE_S)
        monkeypatch.setattr(AIOKafkaConnection, "send", send)
        fetches = sum(count for name, count in asked.items() if name.startswith("Fetch"))
        looks = sum(count for name, count in asked.items() if name.startswith("Metadata"))
        assert fetches <= 2 * (2 * IDLE_S + 2)
        assert 1 <= looks <= IDLE_S + 2, "only the input of a family looks out for topics, once a second"

        await producer.send_and_wait(topic_prefix + copier.SOURCE.name, b"second")
        assert await asyncio.wait_for(handled.get(), 5) == ("plain", topic_prefix + copier.SOURCE.name, b"second")
        await ensure_topics(settings, {after: PAYMENTS_RESULTS})
        await producer.send_and_wait(topic_prefix + after, b"third")
        async with asyncio.timeout(20):
            while await handled.get() != ("family", topic_prefix + after, b"third"):
                pass  # read again from the start: the family's input was assigned anew
    finally:
        await producer.stop()
        await broker.stop()


async def test_what_was_read_before_a_damaged_batch_is_read_again(kafka, topic_prefix, monkeypatch):
    """The client forgets the records that it read in the same poll, and its position is beyond them."""
    settings = Settings(kafka=kafka, topic_prefix=topic_prefix)
    name = topic_prefix + copier.SOURCE.name
    await ensure_topics(settings, {copier.SOURCE.name: copier.SOURCE})
    producer = AIOKafkaProducer(bootstrap_servers=kafka)
    await producer.start()
    for partition in range(4):
        value = b"bad" if partition == 2 else b"good"
        await producer.send_and_wait(name, value, partition=partition)
    await producer.stop()
    damages = 2

    class Damaged(fetcher.MemoryRecords):
        def __init__(self, data):
            nonlocal damages
            if damages and b"bad" in data:
                damages -= 1
                data = data.replace(b"bad", b"BAD")
            super().__init__(data)

    monkeypatch.setattr(fetcher, "MemoryRecords", Damaged)
    broker = build_broker(settings, "payments")
    handled = asyncio.Queue()

    async def handle(records):
        for record in records:
            handled.put_nowait(record.value)

    async def assigned(partitions):
        for partition in partitions:
            input_.consumer.seek(partition, 0)

    input_ = subscribe(
        broker, settings, group="payments.x", topics=[copier.SOURCE], max_records=10, handle=handle, assigned=assigned
    )
    await start_broker(broker, settings)
    try:
        async with asyncio.timeout(40):
            read = sorted([await handled.get() for _ in range(4)])
    finally:
        await broker.stop()
    assert damages == 0
    assert read == [b"bad", b"good", b"good", b"good"]
    assert handled.empty()
