"""One process of a room: consumers, relay, timers, ticks, replay and heartbeat, started and stopped together.

Any number of workers of a room may run; partitions, lane rows and locks share the work.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import partial
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError
from sqlalchemy import text

from contracts.topics import TOPICS, Topic, topic_of
from services.kernel.errors import Refused, Unavailable
from services.runtime.broker import (
    OFFSETS_S_MAX,
    Offsets,
    Records,
    build_broker,
    ensure_topics,
    open_producer,
    start_broker,
    subscribe,
)
from services.runtime.database import is_retryable, open_engine, transaction
from services.runtime.ending import end, stacks
from services.runtime.lanes import LaneStopped, give_birth, lanes_of, stop_lane
from services.runtime.processor import Behind, Processor
from services.runtime.records import Record, lane_name
from services.runtime.relay import Relay
from services.runtime.restoring import refuse_unfinished
from services.runtime.room import Input, Room, Tick
from services.runtime.settings import Settings
from services.runtime.topic_settings import differences

log = logging.getLogger(__name__)

HEARTBEAT_S = 2.0
TOPICS_S_MAX = 60.0  # a topic that was just created is not known to every broker at once
DATABASE_S_MAX = 30.0  # at the start: then whoever started us shall know
ERRANDS_S = 0.1  # a person may wait for what an errand brings
STOP_S_MAX = 30.0  # a batch in hand is given half of it
STALL_S = 30.0  # a consume loop that has not polled for this long is not alive


class InputRunner:
    """Feeds one input's batches to the processor and keeps the lanes' positions true."""

    def __init__(self, worker: Worker, source: Input) -> None:
        self._worker = worker
        self._source = source
        self._prefix = worker.settings.topic_prefix
        self._next: dict[TopicPartition, int] = {}
        self._stopped: dict[TopicPartition, str] = {}
        self.handled_at = time.monotonic()
        self.subscriber = subscribe(
            worker.broker,
            worker.settings,
            group=f"{worker.room.name}.{source.name}",
            topics=source.topics,
            max_records=min(source.max_records, worker.settings.batch_max_records),
            handle=self.handle,
            assigned=self.assigned,
        )

    def _lane(self, tp: TopicPartition) -> str:
        return lane_name(self._source.name, tp.topic.removeprefix(self._prefix), tp.partition)

    async def assigned(self, assigned: set[TopicPartition]) -> None:
        """Seek each partition to its lane's position; stop what is lost or truncated. Retried until the servers answer."""
        wait = 0.2
        while True:
            try:
                await self._seek(assigned)
                return
            except IllegalStateError:
                return  # assigned to another copy meanwhile
            except Exception as error:
                log.warning("%s cannot seek yet: %s", self._worker.room.name, type(error).__name__, exc_info=error)
                await asyncio.sleep(wait)
                wait = min(5.0, wait * 2)

    async def _seek(self, assigned: set[TopicPartition]) -> None:
        consumer = self.subscriber.consumer
        partitions = sorted(assigned)
        worker = self._worker
        await worker.look_at(tp.topic.removeprefix(self._prefix) for tp in partitions)
        # The copy that had a partition before may go on with it for a moment: a position is compared with a start that was
        # read before it and an end that was read after it, or what is only newer would look lost.
        starts = await consumer.beginning_offsets(partitions)
        async with transaction(worker.engine) as connection:
            born = [
                (self._lane(tp), tp.topic.removeprefix(self._prefix), tp.partition, starts[tp]) for tp in partitions
            ]
            await give_birth(connection, worker.processor.tables, self._source.name, born)
            lanes = {lane.name: lane for lane in await lanes_of(connection, worker.processor.tables, self._source.name)}
        ends = await consumer.end_offsets(partitions)
        async with transaction(worker.engine) as connection:
            for tp in partitions:
                lane = lanes[self._lane(tp)]
                reason = lane.stopped
                if reason is None and lane.position < starts[tp]:
                    reason = f"records {lane.position} to {starts[tp]} are gone from the log: lost range"
                elif reason is None and lane.position > ends[tp]:
                    reason = f"the log ends at {ends[tp]}, below position {lane.position}: topic truncated or made anew"
                if reason is not None:
                    if lane.stopped is None:
                        await stop_lane(connection, worker.processor.tables, lane.name, reason)
                    self._stop(tp, reason)
        for tp in partitions:
            position = lanes[self._lane(tp)].position
            if tp not in self._stopped:
                consumer.seek(tp, position)
                self._next[tp] = position
            else:
                consumer.seek(tp, max(starts[tp], min(position, ends[tp])))
                consumer.pause(tp)

    async def go_on(self) -> None:
        """Read those stopped lanes again that a person resumed."""
        if not self._stopped:
            return
        worker = self._worker
        async with transaction(worker.engine) as connection:
            lanes = await lanes_of(connection, worker.processor.tables, self._source.name)
        still = {lane.name for lane in lanes if lane.stopped is not None}
        resumed = {tp for tp in self._stopped if self._lane(tp) not in still}
        for tp in resumed:
            log.warning("%s goes on with %s", worker.room.name, self._lane(tp))
            del self._stopped[tp]
        consumer = self.subscriber.consumer
        mine = resumed & consumer.assignment()
        if mine:
            await self.assigned(mine)
            consumer.resume(*(mine & consumer.assignment() - self._stopped.keys()))

    def _stop(self, tp: TopicPartition, reason: str) -> None:
        log.critical("%s stops %s: %s", self._worker.room.name, self._lane(tp), reason)
        self._stopped[tp] = reason

    async def handle(self, batch: Records) -> None:
        """One batch as fetched, of one or several partitions."""
        consumer = self.subscriber.consumer
        records: list[Record] = []
        ranges: dict[str, tuple[int, int]] = {}
        touched: dict[TopicPartition, int] = {}
        lane, topic, end = "", "", 0
        current: TopicPartition | None = None
        for record in batch:
            if current is None or record.partition != current.partition or record.topic != current.topic:
                if current is not None:
                    touched[current] = end
                current = TopicPartition(record.topic, record.partition)
                lane, topic = self._lane(current), record.topic.removeprefix(self._prefix)
                ranges[lane] = (self._next.get(current, record.offset), record.offset)
                end = 0
            if record.offset < end:
                continue  # fetched twice: a rebalance sought back while the batch was being filled
            end = record.offset + 1
            record.topic, record.lane = topic, lane
            records.append(record)
        if current is not None:
            touched[current] = end
        for tp, end in touched.items():
            ranges[self._lane(tp)] = (ranges[self._lane(tp)][0], end)
        for tp in set(touched) & set(self._stopped):
            stopped_lane = self._lane(tp)
            del ranges[stopped_lane]
            records = [record for record in records if record.lane != stopped_lane]
        try:
            if ranges:
                stopped = await self._worker.processor.process(self._source, records, ranges)
                for tp in touched:
                    self._next[tp] = max(self._next.get(tp, 0), touched[tp])
                    if self._lane(tp) in stopped:
                        self._stop(tp, "link lost, or stopped elsewhere")
                        consumer.pause(tp)
        except Behind:
            log.warning("%s.%s reads again from its lanes' positions", self._worker.room.name, self._source.name)
            await self.assigned({tp for tp in touched if tp in consumer.assignment()})
        finally:
            self.handled_at = time.monotonic()
        # Not when it failed or was cancelled: then the consumer's position is beyond records that were not applied.
        consumer.handed = False

    async def pass_markers(self) -> None:
        """Advance lanes over transaction markers and aborted records, when no record is out with the handler."""
        consumer = self.subscriber.consumer
        if consumer is None or consumer.handed:
            return
        ranges = {}
        passed = {}
        for tp in consumer.assignment():
            if tp not in self._next or tp in self._stopped:
                continue
            try:
                position = await consumer.position(tp)
            except IllegalStateError:
                continue
            if consumer.handed:
                return  # a batch came while a position was awaited: it speaks for itself
            if position > self._next[tp]:
                ranges[self._lane(tp)] = (self._next[tp], position)
                passed[tp] = position
        if ranges:
            try:
                await self._worker.processor.pass_markers(ranges)
            except LaneStopped as error:
                for tp in passed:
                    if self._lane(tp) == error.lane:
                        self._stop(tp, error.message)
                        consumer.pause(tp)
                return
            for tp, position in passed.items():
                self._next[tp] = max(self._next[tp], position)

    def health(self) -> dict[str, Any]:
        """Age of the loop, lag and assignment: what liveness means."""
        consumer = self.subscriber.consumer
        assignment = sorted(consumer.assignment()) if consumer is not None else []
        lag = 0
        for tp in assignment:
            end = consumer.highwater(tp)
            if end is not None and tp in self._next:
                lag += max(0, end - self._next[tp])
        polled = consumer.polled_at if consumer is not None and consumer.polled_at else self.handled_at
        return {
            "input": self._source.name,
            "loop_age_ms": int((time.monotonic() - max(polled, self.handled_at)) * 1000),
            "assigned": len(assignment),
            "lag": lag,
            "stopped": {self._lane(tp): reason for tp, reason in self._stopped.items()},
        }


class Worker:
    """A running copy of a room. Also the `Surroundings` of its work."""

    def __init__(self, room: Room, settings: Settings) -> None:
        self.room = room
        self.settings = settings
        self.name = f"{socket.gethostname()}-{os.getpid()}"
        self.engine = open_engine(
            settings.room_database_url(room.name), application=f"tollbook.{room.name}", warmed=room.warmed
        )
        self.processor = Processor(room, self.engine, self)
        self.broker = build_broker(settings, room.name)
        self.offsets = Offsets(settings)
        self.runners = [InputRunner(self, source) for source in room.inputs]
        self._partitions: dict[str, int] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._stop = asyncio.Event()
        self.relay: Relay | None = None

    # ---- surroundings ----------------------------------------------------------------------------------------------

    def partitions(self, topic: str) -> int:
        """Partitions of a topic as they were read once: in a process a key keeps its partition."""
        return self._partitions[topic]

    async def make(self, topic: str, *, again: bool = False) -> None:
        """Create a topic of a family that is not there, and ask how many partitions it has; the first time only.

        Whoever was first, a publisher or an operator, may have given it any number. ``again`` though it was there: somebody
        may have deleted it since; its partitions stay those that were asked for first.
        """
        if topic in self._partitions and not (again and topic_of(topic).is_family):
            return
        try:
            async with asyncio.timeout(OFFSETS_S_MAX):
                await ensure_topics(self.settings, {topic: topic_of(topic)})
                while topic not in self._partitions:  # it may be known a moment later
                    await self.look_at([topic])
                    await asyncio.sleep(0.05)
        except (KafkaError, TimeoutError) as error:
            raise Unavailable(f"Kafka does not tell of the topic {topic}; check its brokers", field="kafka") from error

    async def _make_ours(self) -> None:
        """Create what is missing of our topics; go on when all are there and looked at."""
        ours = {topic.name: topic for topic in TOPICS if not topic.is_family}
        await ensure_topics(self.settings, ours)
        try:
            async with asyncio.timeout(TOPICS_S_MAX):
                while not ours.keys() <= self._partitions.keys():
                    await self.look_at(await self.offsets.partitions(TOPICS))
                    await asyncio.sleep(0.05)
        except TimeoutError:
            missing = ", ".join(sorted(ours.keys() - self._partitions.keys()))
            raise Unavailable(
                f"Kafka does not tell of the topics {missing}; check its brokers", field="kafka"
            ) from None

    async def look_at(self, topics: Iterable[str]) -> None:
        """Learn partitions and settings of topics that this process does not know yet; the partitions are kept.

        Each setting that differs is told with the command that mends it: `Refused` for a topic of ours; one of a publisher
        or processor is another's to mend, and keeps nobody waiting.
        """
        existing = await self.offsets.existing(sorted(set(topics) - self._partitions.keys()))
        ours: list[str] = []
        for name, found in sorted(existing.items()):
            if found.configs is None:
                log.warning("the settings of topic %s cannot be read without the right DESCRIBE_CONFIGS", found.name)
            for each in differences(topic_of(name), found):
                sentence = each.sentence(self.settings.kafka_bootstrap)
                if topic_of(name).is_family:
                    log.error(sentence)
                else:
                    ours.append(sentence)
        if ours:
            raise Refused("\n".join(ours), code="topic_settings")
        for name, found in existing.items():
            self._partitions.setdefault(name, found.partitions)

    async def begin_offsets(self, topic: Topic) -> dict[tuple[str, int], int]:
        return await self.offsets.begins(topic)

    async def end_offsets(self, topic: Topic) -> dict[tuple[str, int], int]:
        return await self.offsets.ends(topic)

    # ---- life ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        await self.offsets.start()
        await self._make_ours()
        await self._answered(self._ask_the_database)
        opened = partial(open_producer, self.settings, self.room.name)
        self.relay = Relay(
            self.room.name, self.engine, self.processor.tables, opened, self.settings.topic_prefix, self.make
        )
        self.processor.committed = self.relay.wake
        if self.room.started is not None:
            await self._answered(partial(self.room.started, self.processor))
        await start_broker(self.broker, self.settings)
        self._spawn(self.relay.run())
        self._spawn(self._every(self.settings.tick_ms / 1000, self._pass_markers, "markers"))
        self._spawn(self._every(self.settings.tick_ms / 1000, self._timers, "timers"))
        self._spawn(self._every(min(0.25, self.settings.tick_ms / 1000), self._replay, "replay"))
        if self.room.errands:
            self._spawn(self._every(min(ERRANDS_S, self.settings.tick_ms / 1000), self._errands, "errands"))
        self._spawn(self._every(HEARTBEAT_S, self._heartbeat, "heartbeat"))
        for tick in self.room.ticks:
            self._spawn(
                self._every(tick.seconds * self.settings.tick_ms / 1000, self._ticker(tick), f"tick {tick.name}")
            )
        for job in self.room.jobs:
            run = partial(job.run, self.processor)
            self._spawn(self._every(job.seconds * self.settings.tick_ms / 1000, run, f"job {job.name}"))
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        log.info("%s runs as %s", self.room.name, self.name)

    async def _ask_the_database(self) -> None:
        async with transaction(self.engine) as connection:
            await connection.execute(text("select runtime.clock_now()"))
            await refuse_unfinished(connection)

    async def _answered(self, ask: Callable[[], Awaitable[None]]) -> None:
        """What the start asks of PostgreSQL is asked again for a while: it may be starting as well, or cut us off just now."""
        try:
            async with asyncio.timeout(DATABASE_S_MAX):
                while True:
                    try:
                        return await ask()
                    except Exception as error:
                        if not is_retryable(error):
                            raise
                        log.warning("%s waits for PostgreSQL: %s", self.room.name, type(error).__name__)
                    await asyncio.sleep(0.2)
        except TimeoutError:
            raise Unavailable(
                f"PostgreSQL does not answer for {DATABASE_S_MAX:.0f} s; check TOLLBOOK_POSTGRES", field="postgres"
            ) from None

    async def stop(self) -> None:
        """Finish the batch in hand, then close; what is not sent stays in the outbox for the next copy."""
        late = asyncio.get_running_loop().call_later(STOP_S_MAX, self._tell_what_stands)
        try:
            await self.broker.stop()
            await end(self._tasks)
            await self.offsets.stop()
            if self.room.stopped is not None:
                await self.room.stopped()
            await self.engine.dispose()
        finally:
            late.cancel()
        log.info("%s stopped", self.room.name)

    def _tell_what_stands(self) -> None:
        log.error("%s has not stopped for %.0f s; it waits at:\n%s", self.room.name, STOP_S_MAX, stacks())

    async def run(self) -> None:
        """Until SIGTERM or SIGINT."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        try:
            await self.start()
            await self._stop.wait()
        finally:
            await self.stop()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(coroutine))

    async def _every(self, seconds: float, run: Callable[[], Awaitable[bool | None]], what: str) -> None:
        """Run again and again; at once when the run says that more is waiting. A failing server is waited for."""
        wait = seconds
        while True:
            try:
                more = await run()
                wait = 0.0 if more else seconds
            except asyncio.CancelledError:
                raise
            except Exception as error:
                level = logging.WARNING if is_retryable(error) else logging.ERROR
                log.log(level, "%s %s failed: %s", self.room.name, what, type(error).__name__, exc_info=error)
                wait = min(5.0, max(seconds, 0.2) * 2)
            await asyncio.sleep(wait)

    async def _pass_markers(self) -> None:
        for runner in self.runners:
            await runner.go_on()
            await runner.pass_markers()

    async def _timers(self) -> bool:
        return await self.processor.fire_timers() > 0

    async def _replay(self) -> bool:
        return await self.processor.replay() > 0

    async def _errands(self) -> bool:
        return await self.processor.run_errands() > 0

    def _ticker(self, tick: Tick) -> Callable[[], Awaitable[None]]:
        async def run() -> None:
            await self.processor.tick(tick)

        return run

    # ---- health ----------------------------------------------------------------------------------------------------

    def health(self) -> dict[str, Any]:
        """What `alive` means: every consume loop has turned lately and nothing is stopped."""
        inputs = [runner.health() for runner in self.runners]
        return {
            "room": self.room.name,
            "process": self.name,
            "alive": all(each["loop_age_ms"] < STALL_S * 1000 for each in inputs),
            "ready": all(not each["stopped"] for each in inputs),
            "relay_active": bool(self.relay and self.relay.active),
            "inputs": inputs,
        }

    async def _heartbeat(self) -> None:
        inputs = self.health()["inputs"]
        async with transaction(self.engine) as connection:
            await connection.execute(
                text(
                    "insert into runtime.heartbeat (room, process, at, loop_age_ms, assigned, lag)"
                    " values (:room, :process, now(), :age, :assigned, :lag) on conflict (room, process) do update"
                    " set at = excluded.at, loop_age_ms = excluded.loop_age_ms, assigned = excluded.assigned, lag = excluded.lag"
                ),
                {
                    "room": self.room.name,
                    "process": self.name,
                    "age": max((each["loop_age_ms"] for each in inputs), default=0),
                    "assigned": sum(each["assigned"] for each in inputs),
                    "lag": sum(each["lag"] for each in inputs),
                },
            )
