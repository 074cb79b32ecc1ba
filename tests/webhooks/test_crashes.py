"""The room as a process on the real broker, killed at each step of a delivery: every event arrives, in order, signed."""

from __future__ import annotations

import json
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from contracts.topics import BALANCE_EVENTS, GROUPS_ACCOUNTS, TOPICS
from services.runtime.broker import ensure_topics
from services.runtime.database import open_engine
from services.runtime.settings import load
from services.webhooks import api
from services.webhooks.courier import LEASE_S
from tests.support.processes import Processes, until
from tests.support.receiver import LOOPBACK, OK, Received, Receiver, status
from tests.support.servers import Database
from tests.webhooks.post import balance_event, envelope, timeline

STEPS = (
    "webhooks.balance.effects:1",
    "webhooks.call.taken:2",
    "webhooks.call.answered:2",
    "webhooks.call.noted:2",
)
EACH = 4  # events before each death


async def test_killed_at_each_step_every_event_arrives_in_order(
    database: Database,
    kafka: str,
    topic_prefix: str,
    receiver: Receiver,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment = database.environment(
        TOLLBOOK_KAFKA=kafka, TOLLBOOK_TOPIC_PREFIX=topic_prefix, TOLLBOOK_TICK_MS="50", TOLLBOOK_SESSION_MS="1500",
        TOLLBOOK_BATCH_WAIT_MS="20", TOLLBOOK_WEBHOOKS_ALLOW="127.0.0.0/8", TOLLBOOK_WEBHOOKS_HTTP="1",
    )  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    processes = Processes(environment, tmp_path)
    settings = load()
    engine = open_engine(settings.room_database_url("webhooks"), application="test.webhooks", pool_size=2)
    await ensure_topics(settings, {topic.name: topic for topic in TOPICS if not topic.is_family})
    producer = AIOKafkaProducer(bootstrap_servers=kafka, acks="all", enable_idempotence=True)
    await producer.start()
    unwell = [True]  # the first answer is a 503
    receiver.answer = lambda _: status(503) if unwell and unwell.pop() else OK

    async def publish(topic: Any, seq: int, data: dict[str, Any]) -> None:
        record = envelope(topic.name, 0, seq, data)
        await producer.send_and_wait(topic_prefix + topic.name, json.dumps(record).encode(), key=b"sales", partition=0)

    async def move(forward: timedelta) -> None:
        async with database.connected() as connection:
            await connection.execute("select runtime.clock_move($1)", forward)

    async def delivered() -> bool:
        await move(timedelta(seconds=LEASE_S))  # what a death has left behind is over
        found = await api.deliveries(engine, made.endpoint_id)
        return len(found) == sent and all(each.state == "delivered" for each in found)

    try:
        await publish(GROUPS_ACCOUNTS, 1, timeline("sales", "lakeside"))
        processes.start("webhooks", "services.webhooks", crash=STEPS[0])

        async def known() -> bool:
            return await api.organization_is_known(engine, "lakeside")

        await until(known, "the account is known")
        made = await api.create(engine, "lakeside", receiver.url, "ann", LOOPBACK)
        sent = 0
        for step, following in zip(STEPS, [*STEPS[1:], None], strict=True):
            for _ in range(EACH):
                sent += 1
                await publish(BALANCE_EVENTS, sent, balance_event("sales", sent))
            await processes.wait_crashed("webhooks", step)
            await move(timedelta(seconds=LEASE_S))
            processes.start("webhooks", "services.webhooks", crash=following)
        await until(delivered, "all is delivered")
        assert processes.crashed_at() == [step.partition(":")[0] for step in STEPS]
        assert processes.stop() == {"webhooks": 0}
    finally:
        processes.stop()
        await producer.stop()
        await engine.dispose()
    assert in_order(receiver.requests) == list(range(1, sent + 1))
    assert len(receiver.requests) > sent  # some came twice, and by its id each is known
    assert len(set(receiver.ids())) == sent
    for received in receiver.requests:
        assert received.verified(made.secret)["data"]["version"] <= sent


def in_order(requests: list[Received]) -> list[int]:
    """The versions in the order in which they came, each repeat right behind its first."""
    return [version for version, _ in groupby(each.json["data"]["version"] for each in requests)]
