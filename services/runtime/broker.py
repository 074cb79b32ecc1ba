"""Kafka, constructed once with the settings that keep money: the consumer of each input, the relay's producer, topics.

FastStream's and aiokafka's defaults lose records (early acknowledgement, offset `latest`, `acks=1`, auto-created topics);
nothing else in the house builds a client. Postgres is the position: on assignment every partition is sought to its lane's
position, and Kafka's committed offset serves lag monitors only. Source: architecture, sections 4 and 6.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    ProducerClosed,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    for_code,
)
from faststream import AckPolicy
from faststream.kafka import KafkaBroker
from faststream.kafka.message import KafkaAckableMessage

from contracts.topics import RECORD_BYTES_MAX, Topic
from services.kernel.errors import Unavailable
from services.runtime.fetched import as_ours, read_our_way
from services.runtime.kafka_access import client_options, not_let_in, security
from services.runtime.records import Record
from services.runtime.settings import Settings
from services.runtime.topic_settings import REPLICAS, Existing, wanted

log = logging.getLogger(__name__)

read_our_way()

FETCH_BYTES_MAX = RECORD_BYTES_MAX

IDLE_MS = 1000  # an input that has nothing to do waits this long at a time: the first record ends the wait
FETCH_WAIT_MS = 500  # the broker holds a fetch that finds nothing this long; it answers at once when a record comes
METADATA_MAX_AGE_MS = 60_000  # a topic of a fixed name: moves are told at once, added partitions are seen this late

LINGER_FROM = 100  # records: fewer are no stream, and somebody may be waiting for them
LINGER_S = 0.16  # the whole chain settles a sixth more than with 0.04
STOP_S_MAX = 10.0  # a consumer leaves its group at once, or its broker is away
OFFSETS_S_MAX = 5.0  # the cut holds every lane while it reads; longer than this it lets go and tries again

Records = tuple[Record, ...]


class HandedConsumer(AIOKafkaConsumer):  # type: ignore[misc]
    """A consumer that knows whether records it returned are still with the handler.

    Its position moves when records are handed out, before they are applied; only while nothing is handed out does the
    position speak of applied records and of markers passed. Its records are ours, with the topic's full name and no lane yet.
    """

    handed = False
    polled_at = 0.0

    def __init__(self, *topics: str, **options: Any) -> None:
        super().__init__(*topics, **options | {"value_deserializer": as_ours})

    async def getmany(self, *partitions: TopicPartition, timeout_ms: int = 0, max_records: int | None = None) -> Any:
        # FastStream's own timeout is slept once more after every empty poll, and nothing would end that sleep.
        wait_ms = max(timeout_ms, IDLE_MS)
        try:
            records = await self._fetched(*partitions, timeout_ms=wait_ms, max_records=max_records)
            if max_records is not None:
                await self._linger(records, max_records)
        except NoOffsetForPartitionError:
            records = {}  # the client looked for a committed offset before the listener had sought the lane's position
        except OffsetOutOfRangeError as error:
            # The log has left the position: the lane is compared with it as at an assignment, and stops. The records of
            # others are read at the next poll; here nothing is in hand, for an error while we linger is met again.
            records = {}
            await self._subscription.listener.on_partitions_assigned(set(error.args[0]))
        self.handed = bool(records)
        self.polled_at = time.monotonic()
        return records

    async def stop(self) -> None:
        """Leave the group and close. The client's own stop waits for a fetch that a rebalance can hide from it, for ever."""
        try:
            async with asyncio.timeout(STOP_S_MAX):
                await super().stop()
        except TimeoutError:
            log.warning("a consumer did not stop within %.0f s and is abandoned", STOP_S_MAX)
            await self._client.close()

    async def _fetched(self, *partitions: TopicPartition, **limits: Any) -> Any:
        """Records; on an error, such as a damaged batch, those that were read before it are read again at the next poll.

        The client forgets them, while its position is beyond them: the lane would be advanced over what nobody has seen.
        """
        before = self._positions()
        try:
            return await super().getmany(*partitions, **limits)
        except Exception:
            now = self._positions()
            for partition, position in before.items():
                if now.get(partition, position) != position:
                    self.seek(partition, position)
            raise

    def _positions(self) -> dict[TopicPartition, int]:
        assignment = getattr(self._subscription.subscription, "assignment", None)
        if assignment is None:
            return {}
        states = {partition: assignment.state_value(partition) for partition in assignment.tps}
        return {partition: state.position for partition, state in states.items() if state.has_valid_position}

    async def _linger(self, records: Any, max_records: int) -> None:
        """In a stream, wait a moment for a fuller batch: a transaction costs the same for few records as for many."""
        count = sum(map(len, records.values()))
        if not LINGER_FROM <= count < max_records // 2:
            return
        self.handed = True  # what is in hand already must not be taken for applied while we wait
        await asyncio.sleep(LINGER_S)
        try:
            more = await self._fetched(max_records=max_records - count)
        except KafkaError as error:
            # The client keeps an error of one partition for the call after the one that returned another's records. Those
            # are in hand, and its position is beyond them: raised from here, they would never be handled.
            log.warning("a batch is not filled up: %s", type(error).__name__)
            return
        for partition, added in more.items():
            records.setdefault(partition, []).extend(added)


class Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Seeks what was assigned before the first fetch."""

    def __init__(self, assigned: Callable[[set[TopicPartition]], Awaitable[None]]) -> None:
        self._assigned = assigned

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """Nothing to give up: a batch in hand commits or finds its offsets done."""

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        if assigned:
            await self._assigned(assigned)


def build_broker(settings: Settings, room: str) -> KafkaBroker:
    """The FastStream broker of a room: it only consumes; what a room publishes goes through the outbox."""
    return KafkaBroker(
        settings.kafka_bootstrap,
        security=security(settings),
        client_id=f"tollbook-{room}",
        metadata_max_age_ms=METADATA_MAX_AGE_MS,
        consumer_only=True,
        allow_auto_create_topics=False,
        apply_types=False,
        logger=logging.getLogger("services.runtime.faststream"),
        log_level=logging.DEBUG,
        graceful_timeout=15.0,
    )


def subscribe(
    broker: KafkaBroker,
    settings: Settings,
    *,
    group: str,
    topics: Iterable[Topic],
    max_records: int,
    handle: Callable[[Records], Awaitable[None]],
    assigned: Callable[[set[TopicPartition]], Awaitable[None]],
) -> Any:
    """One input: raw batches, nothing acknowledged before it is applied, read_committed, sticky assignment."""
    names = list(topics)
    families = [topic for topic in names if topic.is_family]
    where: dict[str, Any] = {}
    if families:
        where["pattern"] = "|".join(
            rf"^{re.escape(settings.topic_prefix + topic.name)}[A-Za-z0-9_.-]+$" for topic in families
        )
    plain = [settings.topic_prefix + topic.name for topic in names if not topic.is_family]
    if families and plain:
        where = {"pattern": "|".join([where["pattern"], *(f"^{re.escape(name)}$" for name in plain)])}
        plain = []

    async def parse(message: Records) -> KafkaAckableMessage:
        # the stock parser decodes every header as UTF-8 and would raise on a bad record
        return KafkaAckableMessage(
            body=b"", headers={}, raw_message=message, message_id="", correlation_id="", consumer=subscriber.consumer
        )

    async def decode(message: KafkaAckableMessage) -> Any:
        return message.raw_message

    subscriber = broker.subscriber(
        *plain,
        batch=True,
        group_id=f"{settings.topic_prefix}tollbook.{group}",
        auto_offset_reset="none",
        isolation_level="read_committed",
        max_records=max_records,
        batch_timeout_ms=settings.batch_wait_ms,
        fetch_max_wait_ms=FETCH_WAIT_MS,
        fetch_max_bytes=FETCH_BYTES_MAX,
        max_partition_fetch_bytes=FETCH_BYTES_MAX,
        partition_assignment_strategy=[StickyPartitionAssignor],
        session_timeout_ms=settings.session_ms,
        heartbeat_interval_ms=settings.session_ms // 3,
        max_poll_interval_ms=300_000,
        listener=Listener(assigned),
        parser=parse,
        decoder=decode,
        ack_policy=AckPolicy.NACK_ON_ERROR,
        **where,
    )
    subscriber(handle)
    return subscriber


async def start_broker(broker: KafkaBroker, settings: Settings) -> None:
    """Connect, make every consumer a `HandedConsumer`, and start consuming.

    Only those of a family look out for new topics; for all others that would be one request a second for nothing.
    """
    await broker.connect()
    config = broker.config.broker_config
    given: Any = config.builder
    subscribers: Any = broker.subscribers
    families = {each.group_id for each in subscribers if each.pattern}

    def build(**options: Any) -> HandedConsumer:
        options = given.keywords | options
        if options["group_id"] in families:
            options["metadata_max_age_ms"] = settings.metadata_max_age_ms
        return HandedConsumer(**options)

    config.builder = build
    await broker.start()


async def open_producer(settings: Settings, client: str) -> AIOKafkaProducer:
    """A started producer: idempotent, acks=all, zstd (a fifth of the time aiokafka spends on lz4, and smaller)."""
    producer = AIOKafkaProducer(
        **client_options(settings),
        client_id=f"tollbook-{client}",
        acks="all",
        enable_idempotence=True,
        compression_type="zstd",
        linger_ms=5,
        max_batch_size=900_000,
        max_request_size=RECORD_BYTES_MAX,
        request_timeout_ms=30_000,
        metadata_max_age_ms=METADATA_MAX_AGE_MS,
    )
    try:
        await producer.start()
    except BaseException as error:
        await producer.stop()
        if not isinstance(error, KafkaConnectionError):
            raise
        raise await not_let_in(settings) from error
    return producer


async def abandon(producer: AIOKafkaProducer) -> None:
    """Close a producer without waiting for what is not acknowledged: the outbox has it still.

    Its own `stop` waits for that, for ever when the broker is away or refuses it again and again.
    """
    producer._message_accumulator.fail_all(ProducerClosed())
    producer._sender.sender_task.cancel()
    await producer.client.close()  # what is under way ends now instead of at its timeout
    await producer.stop()


async def ensure_topics(settings: Settings, topics: dict[str, Topic]) -> None:
    """Create the topics (full name without prefix → declaration) that are missing, with their settings."""
    admin = AIOKafkaAdminClient(**client_options(settings))
    await start_client(admin, settings)
    try:
        existing = set(await admin.list_topics())
        brokers = len((await admin.describe_cluster())["brokers"])
        copies = min(REPLICAS, brokers)
        new = [
            NewTopic(
                name=settings.topic_prefix + name,
                num_partitions=topic.partitions,
                replication_factor=copies,
                topic_configs=wanted(topic, copies),
            )
            for name, topic in sorted(topics.items())
            if settings.topic_prefix + name not in existing
        ]
        if not new:
            return
        answer = await admin.create_topics(new)
        for error in answer.to_object()["topic_errors"]:
            code = error["error_code"]
            if code and for_code(code) is not TopicAlreadyExistsError:
                text = error.get("error_message") or for_code(code).__name__
                raise Unavailable(f"topic {error['topic']} could not be created: {text}", field="kafka")
    finally:
        await admin.close()


class Offsets:
    """Reads partition counts and high watermarks with a client of its own, outside every consumer group."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._consumer: AIOKafkaConsumer | None = None
        self._admin: AIOKafkaAdminClient | None = None

    async def start(self) -> None:
        self._admin = AIOKafkaAdminClient(**client_options(self._settings))
        await start_client(self._admin, self._settings)
        self._consumer = AIOKafkaConsumer(
            **client_options(self._settings),
            client_id="tollbook-offsets",
            isolation_level="read_uncommitted",
            enable_auto_commit=False,
            metadata_max_age_ms=METADATA_MAX_AGE_MS,
        )
        await start_client(self._consumer, self._settings)

    async def stop(self) -> None:
        if self._consumer is not None:
            await self._consumer.stop()
            self._consumer = None
        if self._admin is not None:
            await self._admin.close()
            self._admin = None

    async def partitions(self, topics: Iterable[Topic]) -> dict[str, int]:
        """Partitions of every existing topic of these declarations, by name without prefix, as the broker has them now."""
        if self._admin is None:
            raise Unavailable("the offsets client is not started")
        prefix = self._settings.topic_prefix
        sought = list(topics)
        names = [
            full
            for full in await self._admin.list_topics()
            if full.startswith(prefix) and any(topic.holds(full.removeprefix(prefix)) for topic in sought)
        ]
        if not names:
            return {}
        found = await self._admin.describe_topics(names)
        return {each["topic"].removeprefix(prefix): len(each["partitions"]) for each in found}

    async def existing(self, names: Iterable[str]) -> dict[str, Existing]:
        """These topics (without prefix) as the broker has them now; one that it does not know yet is left out."""
        if self._admin is None:
            raise Unavailable("the offsets client is not started")
        prefix = self._settings.topic_prefix
        full = [prefix + name for name in names]
        if not full:
            return {}
        resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in full]
        configs: dict[str, dict[str, str] | None] = {}
        for answer in await self._admin.describe_configs(resources):
            for resource in answer.to_object()["resources"]:
                if not resource["error_code"]:
                    entries = resource["config_entries"]
                    configs[resource["resource_name"]] = {
                        each["config_names"]: each["config_value"] for each in entries
                    }
                elif for_code(resource["error_code"]) is TopicAuthorizationFailedError:
                    configs[resource["resource_name"]] = None
        return {
            each["topic"].removeprefix(prefix): Existing(
                each["topic"],
                len(each["partitions"]),
                min((len(partition["replicas"]) for partition in each["partitions"]), default=0),
                configs[each["topic"]],
            )
            for each in await self._admin.describe_topics(full)
            if not each["error_code"] and each["topic"] in configs
        }

    async def begins(self, *topics: Topic) -> dict[tuple[str, int], int]:
        """The start of the log of every partition of topics or families: what is below was deleted."""
        return await self._each(topics, lambda consumer, partitions: consumer.beginning_offsets(partitions))

    async def ends(self, *topics: Topic) -> dict[tuple[str, int], int]:
        """The high watermark of every partition of topics or families, transactions still open included."""
        return await self._each(topics, lambda consumer, partitions: consumer.end_offsets(partitions))

    async def _each(
        self,
        topics: Sequence[Topic],
        ask: Callable[[AIOKafkaConsumer, list[TopicPartition]], Awaitable[dict[TopicPartition, int]]],
    ) -> dict[tuple[str, int], int]:
        if self._consumer is None:
            raise Unavailable("the offsets client is not started")
        prefix = self._settings.topic_prefix
        async with asyncio.timeout(OFFSETS_S_MAX):
            counts = await self.partitions(topics)
            partitions = [
                TopicPartition(prefix + name, number) for name, count in counts.items() for number in range(count)
            ]
            found = await ask(self._consumer, partitions) if partitions else {}
        return {(tp.topic.removeprefix(prefix), tp.partition): offset for tp, offset in found.items()}


async def read_log(settings: Settings, name: str, partition: int, start: int, end: int) -> AsyncIterator[Any]:
    """The committed records of [start, end) of a partition (topic without prefix), outside every consumer group."""
    async for record in read_logs(settings, {(name, partition): (start, end)}):
        yield record


async def read_logs(settings: Settings, ranges: Mapping[tuple[str, int], tuple[int, int]]) -> AsyncIterator[Any]:
    """The committed records of [start, end) of each partition, in order within it, outside every consumer group."""
    ends = {
        TopicPartition(settings.topic_prefix + name, number): end
        for (name, number), (start, end) in ranges.items()
        if start < end
    }
    if not ends:
        return
    consumer = AIOKafkaConsumer(
        **client_options(settings),
        isolation_level="read_committed",
        enable_auto_commit=False,
        auto_offset_reset="none",
        fetch_max_bytes=FETCH_BYTES_MAX,
        max_partition_fetch_bytes=FETCH_BYTES_MAX,
    )
    await start_client(consumer, settings)
    try:
        consumer.assign(list(ends))
        for place in ends:
            consumer.seek(place, ranges[place.topic.removeprefix(settings.topic_prefix), place.partition][0])
        left = set(ends)
        while left:
            for place, records in (await consumer.getmany(*left, timeout_ms=500)).items():
                for record in records:
                    if record.offset < ends[place]:
                        yield record
            for place in [*left]:
                if await consumer.position(place) >= ends[place]:
                    left.remove(place)
                    consumer.pause(place)
    finally:
        await consumer.stop()


async def start_client(client: Any, settings: Settings) -> None:
    """Start a client of Kafka; `Unavailable` when no broker answers."""
    try:
        await client.start()
    except KafkaConnectionError as error:
        raise await not_let_in(settings) from error
