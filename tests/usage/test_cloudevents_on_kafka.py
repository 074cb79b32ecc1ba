"""Headers on a real broker: both content modes in one topic, and what a quarantine keeps of a fetched record."""

from __future__ import annotations

import json
from collections import Counter
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
from tests.runtime.test_fetched import NoText, builder
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
    await api.import_prices(made.engine, "list", read_price_file(PRICES), LONG_AGO, is_default=True)
    registry = Log()
    send = Sender(registry)
    send.publisher()
    send.account("sales")
    await publish(made, registry)

    async def known() -> bool:
        async with transaction(made.engine) as connection:
            return (await connection.execute(select(func.count()).select_from(TIMELINE))).scalar_one() == 2

    await until(known, "the registry is projected")
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


async def classes(worker: Worker, records: int) -> dict[str, int]:
    """Records per class, as soon as so many have one."""

    async def found() -> Counter[str]:
        total: Counter[str] = Counter()
        for segments in (await api.class_counts(worker.engine)).values():
            for counts in segments.values():
                total.update(counts)
        return total

    async def counted() -> bool:
        return (await found()).total() == records

    await until(counted, "every record is in its class")
    return dict(await found())


async def test_a_structured_and_a_binary_copy_of_an_event_are_one_charge_and_a_duplicate(worker: Worker) -> None:
    events = Log()
    event, stranger = leg("e1", NOW), leg("e2", NOW, "nobody")
    headers = (*binary(stranger), ("trace", None), ("trace", b""), ("raw", b"\xff\x00"))
    events.write(TOPIC, value=event, headers=(WHOLE,), partition=0)
    events.write(TOPIC, value=json.dumps(event["data"]).encode(), headers=binary(event), partition=0)
    events.write(TOPIC, value=json.dumps(stranger["data"]).encode(), headers=headers, partition=0)
    await publish(worker, events)

    assert await classes(worker, 3) == {"rated": 1, "duplicate": 1, "quarantined": 1}
    assert [charge["event_id"] for charge in await api.charges(worker.engine, "sales")] == ["e1"]
    (row,) = await api.parked(worker.engine)
    assert (row.reason, row.about["account_id"], row.headers) == ("unknown_account", "nobody", headers)


async def test_a_header_whose_name_is_no_text_takes_no_record_with_it(worker: Worker) -> None:
    """The client cannot read such a record: without help it forgets those that it fetched together with it."""
    name = worker.settings.topic_prefix + TOPIC
    producer = AIOKafkaProducer(bootstrap_servers=worker.settings.kafka_bootstrap)
    await producer.start()
    for partition in range(3):
        batch = producer.create_batch()
        batch._builder = builder()
        for number in range(3):
            headers = [(NoText(), b"1")] if (partition, number) == (1, 1) else []
            value = json.dumps(leg(f"e{partition}{number}", NOW)).encode()
            batch.append(key=None, value=value, timestamp=None, headers=headers)
        batch.close()
        await (await producer.send_batch(batch, name, partition=partition))
    await producer.stop()
    assert await classes(worker, 9) == {"rated": 8, "quarantined": 1}
    (row,) = await api.parked(worker.engine)
    assert (row.reason, row.field, row.headers) == ("invalid_event", "ce_specversion", (("ce_\\xff", b"1"),))
