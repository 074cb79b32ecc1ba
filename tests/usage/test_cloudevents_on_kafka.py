"""Headers on a real broker: both content modes in one topic, and what a quarantine keeps of a fetched record."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from aiokafka import AIOKafkaProducer
from sqlalchemy import func, select

from contracts.topics import USAGE_EVENTS
from services.runtime.broker import ensure_topics
from services.runtime.database import transaction
from services.runtime.settings import load
from services.runtime.worker import Worker
from services.usage import api
from services.usage.consumer import build
from services.usage.price_files import read_price_file
from services.usage.tables import TIMELINE
from tests.support.processes import until
from tests.support.rooms import Log
from tests.support.servers import Database
from tests.support.usage_registry import LONG_AGO, TOPIC, Sender, leg
from tests.usage.test_cloudevents import PRICES, WHOLE, binary

NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
async def worker(
    database: Database, kafka: str, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Worker]:
    variables = {"TOLLBOOK_KAFKA": kafka, "TOLLBOOK_TOPIC_PREFIX": topic_prefix, "TOLLBOOK_TICK_MS": "100"}
    for name, value in database.environment(**variables).items():
        monkeypatch.setenv(name, value)
    settings = load()
    await ensure_topics(settings, {TOPIC: USAGE_EVENTS})
    made = Worker(build(), settings)
    await made.start()
    yield made
    await made.stop()


async def publish(worker: Worker, log: Log) -> None:
    """What was written into the log goes to the broker."""
    producer = AIOKafkaProducer(bootstrap_servers=worker.settings.kafka_bootstrap)
    await producer.start()
    for (topic, partition), records in log.records.items():
        for each in records:
            name = worker.settings.topic_prefix + topic
            await producer.send_and_wait(name, each.value, each.key, partition, headers=list(each.headers))
    await producer.stop()


async def test_a_structured_and_a_binary_copy_of_an_event_are_one_charge_and_a_duplicate(worker: Worker) -> None:
    await api.import_prices(worker.engine, "list", read_price_file(PRICES), LONG_AGO, is_default=True)
    registry = Log()
    send = Sender(registry)
    send.publisher()
    send.account("sales")
    await publish(worker, registry)

    async def known() -> bool:
        async with transaction(worker.engine) as connection:
            return (await connection.execute(select(func.count()).select_from(TIMELINE))).scalar_one() == 2

    await until(known, "the registry is projected")

    events = Log()
    event, stranger = leg("e1", NOW), leg("e2", NOW, "nobody")
    headers = (*binary(stranger), ("trace", None), ("trace", b""), ("raw", b"\xff\x00"))
    events.write(TOPIC, value=event, headers=(WHOLE,), partition=0)
    events.write(TOPIC, value=json.dumps(event["data"]).encode(), headers=binary(event), partition=0)
    events.write(TOPIC, value=json.dumps(stranger["data"]).encode(), headers=headers, partition=0)
    await publish(worker, events)

    async def classes() -> dict[str, int]:
        counts = await api.class_counts(worker.engine)
        return counts.get((TOPIC, 0), {}).get(0, {})

    async def counted() -> bool:
        return sum((await classes()).values()) == 3

    await until(counted, "every record is in its class")
    assert await classes() == {"rated": 1, "duplicate": 1, "quarantined": 1}
    assert [charge["event_id"] for charge in await api.charges(worker.engine, "sales")] == ["e1"]
    (row,) = await api.parked(worker.engine)
    assert (row.reason, row.about["account_id"], row.headers) == ("unknown_account", "nobody", headers)
