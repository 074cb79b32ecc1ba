"""The settings of topics that exist are looked at on a real broker before any record is read."""

from __future__ import annotations

import logging
from contextlib import suppress

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from contracts.topics import GROUPS_ACCOUNTS, TOPICS, USAGE_CHARGES, USAGE_EVENTS
from services.kernel.errors import Refused
from services.runtime.room import Input, Room
from services.runtime.settings import load
from services.runtime.topic_settings import Existing, differences
from services.runtime.worker import Worker
from tests.support.processes import until

DAY_MS = 86_400_000
WRONG = [
    (GROUPS_ACCOUNTS, "cleanup.policy", "delete", "compact"),
    (GROUPS_ACCOUNTS, "min.compaction.lag.ms", "0", f"at least {14 * DAY_MS}"),
    (USAGE_CHARGES, "retention.ms", str(DAY_MS), f"at least {14 * DAY_MS}"),
    (USAGE_CHARGES, "retention.bytes", "1000000", "-1"),
    (USAGE_CHARGES, "max.message.bytes", "1048588", f"at least {8 * 1024 * 1024}"),
]


async def _nothing(work, records):
    pass


class Broker:
    """Topics as somebody else makes and mends them, and workers that start beside them."""

    def __init__(self, admin, prefix):
        self.admin, self.prefix = admin, prefix

    async def make(self, name, topic, partitions=None, **configs):
        new = NewTopic(self.prefix + name, partitions or topic.partitions, 1, topic_configs=topic.configs | configs)
        await self.admin.create_topics([new])

    async def mend(self, name, topic):
        await self.admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, self.prefix + name, topic.configs)])

    async def started(self):
        worker = Worker(Room("payments", (Input("events", (USAGE_EVENTS,), _nothing),)), load())
        try:
            await worker.start()
        except BaseException:
            await worker.stop()
            raise
        return worker

    async def starts_when_mended(self):
        """The broker takes a moment to know what was changed."""
        workers = []

        async def starts():
            with suppress(Refused):
                workers.append(await self.started())
            return bool(workers)

        await until(starts, "a worker starts beside the mended topic", within_s=20)
        return workers[0]


@pytest.fixture
async def broker(database, kafka, topic_prefix, monkeypatch):
    for name, value in database.environment(TOLLBOOK_KAFKA=kafka, TOLLBOOK_TOPIC_PREFIX=topic_prefix).items():
        monkeypatch.setenv(name, value)
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    yield Broker(admin, topic_prefix)
    await admin.close()


@pytest.mark.parametrize(("topic", "setting", "found", "wanted"), WRONG)
async def test_a_room_does_not_start_beside_a_topic_that_would_lose_money(broker, topic, setting, found, wanted):
    await broker.make(topic.name, topic, **{setting: found})
    with pytest.raises(Refused) as refused:
        await broker.started()
    told = f"topic {broker.prefix}{topic.name}: {setting} is {found} and must be {wanted}; kafka-configs.sh"
    assert refused.value.message.startswith(told)
    assert refused.value.message.endswith(f"--add-config {setting}={topic.configs[setting]}")
    await broker.mend(topic.name, topic)
    await (await broker.starts_when_mended()).stop()


async def test_a_topic_with_too_few_partitions_keeps_a_room_from_starting_and_one_with_more_does_not(broker):
    await broker.make(USAGE_CHARGES.name, USAGE_CHARGES, partitions=3)
    with pytest.raises(Refused, match=r"partitions is 3 and must be at least 6; kafka-topics.sh .* --partitions 6$"):
        await broker.started()
    await broker.admin.create_partitions({broker.prefix + USAGE_CHARGES.name: NewPartitions(9)})
    worker = await broker.starts_when_mended()
    try:
        assert worker.partitions(USAGE_CHARGES.name) == 9
    finally:
        await worker.stop()


async def test_a_topic_of_a_publisher_with_the_publishers_clock_is_told_with_the_command_and_stops_nobody(
    broker, caplog
):
    caplog.set_level(logging.ERROR)
    early, late = USAGE_EVENTS.of("early"), USAGE_EVENTS.of("late")
    await broker.make(early, USAGE_EVENTS, partitions=1, **{"message.timestamp.type": "CreateTime"})

    def told(name):
        said = f"topic {broker.prefix}{name}: message.timestamp.type is CreateTime and must be LogAppendTime; kafka-configs"
        return [record for record in caplog.records if record.message.startswith(said)]

    worker = await broker.started()
    try:
        assert len(told(early)) == 1
        await broker.make(late, USAGE_EVENTS, partitions=1, **{"message.timestamp.type": "CreateTime"})

        async def both():
            return len(told(late)) == 1

        await until(both, "the topic that came later is looked at too")
        assert len(told(early)) == 1
    finally:
        await worker.stop()


def test_three_replicas_must_two_of_them_acknowledge():
    loose = USAGE_CHARGES.configs | {"min.insync.replicas": "1", "unclean.leader.election.enable": "false"}
    assert [each.setting for each in differences(USAGE_CHARGES, Existing("t", 6, 3, loose))] == ["min.insync.replicas"]
    assert differences(USAGE_CHARGES, Existing("t", 6, 1, loose)) == []


def test_more_than_what_is_declared_is_as_good():
    for topic in TOPICS:
        more = {
            name: "-1" if name.startswith("retention") else str(int(value) * 2) if value.isdigit() else value
            for name, value in topic.configs.items()
        }
        assert differences(topic, Existing("t", topic.partitions * 2, 1, more)) == []
