"""Kafka as the command uses it: commands and usage go out, answers and events come in.

What comes in is only shown or waited for, never stored: the reader has no group, no position and starts at the end.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from contracts.openings import OPENING
from contracts.topics import (
    BALANCE_COMMANDS,
    BALANCE_EVENTS,
    BALANCE_GROUP_COMMANDS,
    BALANCE_GROUP_EVENTS,
    GROUPS_COMMANDS,
    GROUPS_EVENTS,
    Topic,
)
from services.cli.commands import build
from services.kernel.errors import Unavailable
from services.runtime.broker import Offsets, ensure_topics, open_producer
from services.runtime.kafka_access import client_options
from services.runtime.settings import Settings, load

ANSWER_S_MAX = 30.0  # a room that runs answers in well under a second; a first start of a consumer takes some

Heard = Callable[[str, dict[str, Any]], None]


class NoAnswer(Unavailable):
    """A command was taken by Kafka, and its room has not said what became of it."""


@dataclass(frozen=True)
class Answer:
    """What became of a command. A refusal names the reason and, where one is to blame, the field."""

    command_id: str
    accepted: bool
    message: str
    reason: str | None = None
    field: str | None = None
    objects: Mapping[str, str] | None = None
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.accepted:
            return self.message
        return f"refused ({self.reason}): " + (f"{self.field}: {self.message}" if self.field else self.message)


class Wire:
    """One producer and one reader. ``heard`` is called with (topic, data) of every record of ``topics``."""

    def __init__(self, settings: Settings, topics: Iterable[Topic] = (), heard: Heard | None = None) -> None:
        self.settings = settings
        self._topics = {GROUPS_EVENTS, BALANCE_EVENTS, BALANCE_GROUP_EVENTS, *topics}
        self._heard = heard
        self._waiting: dict[str, asyncio.Future[Answer]] = {}
        self._producer: Any = None
        self._consumer: Any = None
        self._listening: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        settings = self.settings
        single = {
            topic.name: topic
            for topic in (GROUPS_COMMANDS, BALANCE_COMMANDS, BALANCE_GROUP_COMMANDS, *self._topics)
            if not topic.is_family
        }
        await ensure_topics(settings, single)
        self._producer = await open_producer(settings, "cli")
        try:
            await self._listen()
        except BaseException:
            await self._producer.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
        if self._consumer is not None:
            await self._consumer.stop()
        await self._producer.stop()

    async def _listen(self) -> None:
        offsets = Offsets(self.settings)
        await offsets.start()
        try:
            counts = await offsets.partitions(self._topics)
        finally:
            await offsets.stop()
        consumer = AIOKafkaConsumer(
            **client_options(self.settings),
            client_id="tollbook-cli",
            isolation_level="read_committed",
            enable_auto_commit=False,
            fetch_max_wait_ms=100,
        )
        await consumer.start()
        self._consumer = consumer
        prefix = self.settings.topic_prefix
        partitions = [
            TopicPartition(prefix + name, number) for name, count in counts.items() for number in range(count)
        ]
        consumer.assign(partitions)
        for partition, end in (await consumer.end_offsets(partitions)).items():
            consumer.seek(partition, end)
        self._listening = asyncio.create_task(self._read(consumer, prefix))

    async def _read(self, consumer: Any, prefix: str) -> None:
        while True:
            fetched = await consumer.getmany(timeout_ms=200)
            for partition, records in fetched.items():
                topic = partition.topic.removeprefix(prefix)
                for record in records:
                    envelope = json.loads(record.value)
                    if envelope["type"] != OPENING:
                        self._hear(topic, envelope["data"])

    def _hear(self, topic: str, data: dict[str, Any]) -> None:
        waiting = self._waiting.pop(data.get("command_id") or "", None)
        if waiting is not None and not waiting.done():
            waiting.set_result(_answer(topic, data))
        if self._heard is not None:
            self._heard(topic, data)

    async def carry_out(self, *, timeout_s: float = ANSWER_S_MAX, **fields: Any) -> Answer:
        """Publishes a command to the registry or to a wallet and waits for its answer.

        ``fields`` are those of the command's contract; a wrong one is `InvalidInput` before anything is sent.
        """
        return (await self.carry_out_all([fields], timeout_s=timeout_s))[0]

    async def carry_out_all(
        self, commands: Iterable[Mapping[str, Any]], *, timeout_s: float = ANSWER_S_MAX
    ) -> list[Answer]:
        """Publishes commands in this order without waiting for each other's answers, then waits for all of them.

        Those of one organization, and those of one account, are carried out in this order.
        """
        built = [build(fields) for fields in commands]
        if self._listening is None or self._listening.done():
            raise Unavailable("the connection to Kafka was lost", field="kafka")
        loop = asyncio.get_running_loop()
        waiting = [self._waiting.setdefault(command.command_id, loop.create_future()) for _, _, command in built]
        try:
            sent = [
                await self._producer.send(
                    self.settings.topic_prefix + topic.name, command.model_dump_json().encode(), key=key.encode()
                )
                for topic, key, command in built
            ]
            await asyncio.gather(*sent)
            async with asyncio.timeout(timeout_s):
                return list(await asyncio.gather(*waiting))
        except TimeoutError:
            silent = next(
                one for one, answer in zip(built, waiting, strict=True) if not answer.done() or answer.cancelled()
            )
            room = silent[0].name.partition(".")[0]
            raise NoAnswer(
                f"no answer within {timeout_s:.0f} s; the command {silent[2].command_id} is kept and carried out when the "
                f"room runs: start it by `tollbook up` or `tollbook run {room}`",
                field=room,
            ) from None
        except KafkaError as error:
            raise Unavailable(f"Kafka did not take the command: {type(error).__name__}", field="kafka") from error
        finally:
            for _, _, command in built:
                self._waiting.pop(command.command_id, None)


@asynccontextmanager
async def opened(settings: Settings | None = None) -> AsyncIterator[Wire]:
    """The wire of the settings."""
    async with Wire(settings or load()) as wire:
        yield wire


def _answer(topic: str, data: dict[str, Any]) -> Answer:
    if topic == GROUPS_EVENTS.name:
        return Answer(
            data["command_id"], data["accepted"], data["message"], data["reason"], data["field"], data["objects"],
            tuple(data["warnings"]),
        )  # fmt: skip
    if data["kind"] == "command_refused":
        return Answer(data["command_id"], False, data["message"] or "", data["reason"], data["field"])
    what = data["kind"].replace("_", " ")
    if topic == BALANCE_GROUP_EVENTS.name:
        said = f": {data['message']}" if data["message"] else ""
        amount = f" {data['amount']} {data['currency']}" if data["amount"] else ""
        return Answer(
            data["command_id"], True, f"{what}{amount} for {data['group_id']}{said}",
            objects={"group_id": data["group_id"]},
        )  # fmt: skip
    if data["reasons"]:  # an account that an operator resumes may be suspended still
        what += f" ({', '.join(data['reasons'])})"
    wallet = f"; wallet {data['wallet']} {data['currency']}" if data["wallet"] is not None else ""
    return Answer(
        data["command_id"], True, f"{what} for {data['account_id']}{wallet}", objects={"account_id": data["account_id"]}
    )
