"""The cut on a real broker: what only a log can do, whose head is deleted by its retention."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.records_to_delete import RecordsToDelete

from contracts.topics import USAGE_EVENTS
from services.kernel.ids import cutoff_id
from services.runtime.broker import ensure_topics
from services.runtime.database import transaction
from services.runtime.lanes import lanes_of
from services.runtime.settings import load
from services.runtime.worker import Worker
from services.usage import api, store
from services.usage.closing import EVENTS
from services.usage.consumer import build
from tests.support.processes import until
from tests.support.servers import Database

BOUNDARY = datetime(2026, 11, 1, tzinfo=UTC)
TOPIC = USAGE_EVENTS.of("lakeside")


@pytest.fixture
async def worker(
    database: Database, kafka: str, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Worker]:
    """A usage worker that is not started: nobody was assigned a partition yet. Records 0 to 4 of partition 0 are gone."""
    variables = {"TOLLBOOK_KAFKA": kafka, "TOLLBOOK_TOPIC_PREFIX": topic_prefix, "TOLLBOOK_TICK_MS": "100"}
    for name, value in database.environment(**variables).items():
        monkeypatch.setenv(name, value)
    settings = load()
    await ensure_topics(settings, {TOPIC: USAGE_EVENTS})
    producer = AIOKafkaProducer(bootstrap_servers=kafka)
    await producer.start()
    for number in range(8):
        await producer.send_and_wait(topic_prefix + TOPIC, b"%d" % number, partition=0)
    await producer.stop()
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    await admin.delete_records({TopicPartition(topic_prefix + TOPIC, 0): RecordsToDelete(before_offset=5)})
    await admin.close()
    made = Worker(build(), settings)
    await made.offsets.start()
    yield made
    await made.stop()


async def test_a_lane_that_the_cut_makes_begins_where_its_log_begins(worker: Worker) -> None:
    async with transaction(worker.engine) as connection:
        await store.name_cuts(connection, [{"cutoff_id": cutoff_id(BOUNDARY), "boundary": BOUNDARY}])
    (tick,) = (tick for tick in worker.room.ticks if tick.name == "cut")
    await worker.processor.tick(tick)
    async with transaction(worker.engine) as connection:
        born = await lanes_of(connection, worker.processor.tables, EVENTS)
    assert {lane.partition: (lane.first, lane.position) for lane in born if lane.partition < 2} == {
        0: (5, 5),
        1: (0, 0),
    }
    (cut,) = await api.cuts(worker.engine)
    assert (cut.begins[TOPIC, 0], cut.positions[TOPIC, 0]) == (5, 8)

    await worker.offsets.stop()
    await worker.start()

    async def read() -> bool:
        async with transaction(worker.engine) as connection:
            lanes = await lanes_of(connection, worker.processor.tables, EVENTS)
        assert [lane.stopped for lane in lanes if lane.stopped] == []
        return {lane.position for lane in lanes if lane.partition == 0} == {8}

    await until(read, "the records that are there are read")
