"""What an orchestrator and Prometheus see of a process."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka import AIOKafkaProducer
from prometheus_client.parser import text_string_to_metric_families

from services.runtime.health import serve
from services.runtime.metrics import Metrics
from services.runtime.room import Input, Room
from services.runtime.settings import load
from services.runtime.worker import Worker
from tests.support import copier
from tests.support.http import Connection
from tests.support.processes import until

HELD = ["good", "good", "bad"]


async def _handle(work, records):
    for record in records:
        if record.value == b"bad":
            work.quarantine(record, "unreadable", "it is bad")


@pytest.fixture
async def worker(database, kafka, topic_prefix, monkeypatch):
    for name, value in database.environment(TOLLBOOK_KAFKA=kafka, TOLLBOOK_TOPIC_PREFIX=topic_prefix).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("services.runtime.worker.TOPICS", (copier.SOURCE,))
    worker = Worker(Room("payments", (Input("source", (copier.SOURCE,), _handle),)), load())
    try:
        await worker.start()
        yield worker
    finally:
        await worker.stop()


@pytest.fixture
async def asked(worker):
    """Asks the health page of the worker for a path."""
    server = await serve(0, worker.health, worker.processor.metrics)
    port = server.sockets[0].getsockname()[1]

    async def ask(path):
        async with Connection("127.0.0.1", port) as connection:
            return await connection.get(path)

    yield ask
    server.close()


def _samples(text):
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_what_was_committed_and_what_is_left_is_counted(worker, asked, topic_prefix):
    async with AIOKafkaProducer(bootstrap_servers=worker.settings.kafka_bootstrap) as producer:
        for value in HELD:
            await producer.send_and_wait(topic_prefix + copier.SOURCE.name, value.encode(), partition=0)
    samples = {}

    async def all_counted():
        samples.update(_samples((await asked("/metrics")).body))
        return samples.get(("tollbook_records_total", "source")) == len(HELD)

    await until(all_counted, "the records are counted")
    assert samples["tollbook_parked_records_total", "quarantined", "unreadable"] == 1
    assert 1 <= samples["tollbook_batch_seconds_count", "source"] <= len(HELD)
    assert samples["tollbook_lag_records", "source"] == 0
    assert samples["tollbook_assigned_partitions", "source"] == copier.SOURCE.partitions
    assert samples["tollbook_stopped_lanes", "source"] == 0
    assert samples["tollbook_loop_age_seconds", "source"] < 30
    assert samples["process_resident_memory_bytes",] > 0


async def test_live_and_ready_are_told_apart(worker, asked):
    assert (await asked("/live")).status == 200
    ready = await asked("/ready")
    assert (ready.status, ready.body["room"]) == (200, "payments")
    (runner,) = worker.runners
    runner._stopped[min(runner.subscriber.consumer.assignment())] = "a gap"
    assert (await asked("/live")).status == 200
    stopped = await asked("/ready")
    assert (stopped.status, list(stopped.body["inputs"][0]["stopped"].values())) == (503, ["a gap"])
    assert _samples((await asked("/metrics")).body)["tollbook_stopped_lanes", "source"] == 1
    assert (await asked("/other")).status == 404


async def test_a_batch_that_is_tried_again_counts_once(worker, asked, topic_prefix, monkeypatch):
    tries = []

    async def fails_at_first(work, records):
        tries.append(len(records))
        if len(tries) == 1:
            raise ConnectionError("the server is away")

    object.__setattr__(worker.room.inputs[0], "handle", fails_at_first)
    async with AIOKafkaProducer(bootstrap_servers=worker.settings.kafka_bootstrap) as producer:
        await producer.send_and_wait(topic_prefix + copier.SOURCE.name, b"good", partition=0)

    async def counted():
        return _samples((await asked("/metrics")).body).get(("tollbook_records_total", "source")) == 1

    await until(counted, "the record is counted")
    assert tries == [1, 1]


async def test_who_asks_for_nothing_holds_up_nobody():
    server = await serve(0, lambda: {"alive": True, "ready": True, "relay_active": False, "inputs": []}, Metrics())
    port = server.sockets[0].getsockname()[1]
    try:
        _, silent = await asyncio.open_connection("127.0.0.1", port)
        async with Connection("127.0.0.1", port) as connection:
            assert (await connection.get("/ready")).status == 200
        silent.close()
    finally:
        server.close()
