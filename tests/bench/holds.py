"""What holds cost: one caller after the other in this process, and a switch over HTTP beside the usage of a busy day.

The switch asks by the clock and not when it was answered, so an answer that comes late delays no question; a latency counts
from the instant at which the question was due.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import count

from aiokafka import AIOKafkaProducer

from contracts.topics import BALANCE_EVENTS, PAYMENTS_REQUESTS
from services.balance.api import Holds, held_differences
from services.balance.calls import Authorize, Grant
from services.balance.holding import Rate
from services.balance.spending import CallAsked
from services.runtime.database import open_engine
from services.runtime.embedded.ports import choose
from services.runtime.known_topics import KnownTopics
from services.runtime.settings import GATEWAY
from tests.bench.events import Calls, calls, customers
from tests.bench.runs import WHOLE_CHAIN, started
from tests.bench.worlds import EVENTS_TOPIC, World
from tests.support.http import Connection
from tests.support.processes import until

ALONE, ALONE_WARM_UP = 3_000, 300
PER_S = 500
BUSY_S, BUSY_WARM_UP_S = 20, 3
EVENTS_PER_S = 5_000
TURNS_PER_S = 20  # of the producer: as many events at once as a twentieth of a second has
CONNECTIONS = 64
PREPAID = [each.account_id for each in customers() if each.plan == "payg" and not each.recharges]
NUMBER = "+12485252160"


async def alone(world: World) -> list[float]:
    """Milliseconds of authorisations, one after the other, each committed to disk before it is answered; sorted."""
    topics = await KnownTopics.asked(world.settings, (PAYMENTS_REQUESTS, BALANCE_EVENTS))
    engine = open_engine(world.settings.room_database_url("balance"), application="tollbook.bench", pool_size=1)
    holds = Holds(engine, topics)
    took = []
    try:
        for number in range(ALONE_WARM_UP + ALONE):
            asked = CallAsked(
                PREPAID[number % len(PREPAID)], None, 14_000_000, "USD", (Rate(14_000_000, 60, 0, 60, 60),)
            )
            begun = time.perf_counter()
            answer = await holds.ask(Authorize(asked, f"alone-{number}", 300, bytes(16)))
            if number >= ALONE_WARM_UP:
                took.append((time.perf_counter() - begun) * 1000)
            if not isinstance(answer, Grant):
                raise RuntimeError(f"a call was refused: {answer}")
    finally:
        await holds.close()
        await engine.dispose()
    return sorted(took)


async def beside_usage(world: World, seed: int) -> tuple[list[float], float]:
    """Milliseconds of authorisations over HTTP at a steady rate, sorted, and the events a second that were settled beside."""
    seconds = BUSY_WARM_UP_S + BUSY_S
    made = calls(EVENTS_PER_S * seconds, seed=seed, now=datetime.now(UTC), partitions=6)
    async with started(world, WHOLE_CHAIN), _gateway(world) as port:
        publishing = asyncio.create_task(_publish(world, made, seconds))
        try:
            took = await _ask(port, seconds)
        finally:
            await publishing
        rate = await _debited(world, seconds)
    return sorted(took), rate


@asynccontextmanager
async def _gateway(world: World) -> AsyncIterator[int]:
    port = choose(["kafka"], {}, {})["kafka"]
    world.processes.environment = world.processes.environment | {"TOLLBOOK_GATEWAY_PORT": str(port)}
    world.processes.start(GATEWAY, f"services.{GATEWAY}")

    async def ready() -> bool:
        try:
            async with Connection("127.0.0.1", port) as connection:
                return (await connection.get("/ready")).status == 200
        except OSError:
            return False

    await until(ready, "the gateway serves")
    yield port


async def _publish(world: World, made: Calls, seconds: int) -> None:
    """The events in their order, at a steady rate."""
    producer = AIOKafkaProducer(bootstrap_servers=world.kafka, acks="all", compression_type="lz4", linger_ms=5)
    await producer.start()
    turns = seconds * TURNS_PER_S
    begun = time.monotonic()
    try:
        for turn in range(turns):
            await asyncio.sleep(max(0.0, begun + turn / TURNS_PER_S - time.monotonic()))
            for partition, records in enumerate(made.partitions):
                part = records[len(records) * turn // turns : len(records) * (turn + 1) // turns]
                batch = producer.create_batch()
                for key, value in part:
                    batch.append(key=key, value=value, timestamp=None)
                batch.close()
                await producer.send_batch(batch, world.prefix + EVENTS_TOPIC, partition=partition)
        await producer.flush()
    finally:
        await producer.stop()
    world.loaded += made.count


async def _ask(port: int, seconds: int) -> list[float]:
    idle: asyncio.Queue[Connection] = asyncio.Queue()
    everyone = [Connection("127.0.0.1", port) for _ in range(CONNECTIONS)]
    for each in everyone:
        idle.put_nowait(each)
    took: list[float] = []
    numbers = count()

    async def authorize(due: float, counts: bool) -> None:
        connection = await idle.get()
        number = next(numbers)
        body = {"account_id": PREPAID[number % len(PREPAID)], "call_leg_id": f"busy-{number}", "called": NUMBER}
        answered = await connection.post("/v1/calls/authorize", body)
        idle.put_nowait(connection)
        if answered.status != 200 or answered.body["decision"] != "granted":
            raise RuntimeError(f"a call was not granted: {answered}")
        if counts:
            took.append((time.perf_counter() - due) * 1000)

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as asking:
        for turn in range(seconds * PER_S):
            due = begun + turn / PER_S
            wait = due - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            asking.create_task(authorize(due, turn >= BUSY_WARM_UP_S * PER_S))
    for each in everyone:
        await each.close()
    return took


async def problems(world: World) -> list[str]:
    """Wallets that do not hold what their calls hold."""
    engine = open_engine(world.settings.room_database_url("balance"), application="tollbook.bench", pool_size=1)
    try:
        _, wrong = await held_differences(engine)
    finally:
        await engine.dispose()
    return [f"{each.account_id} holds {each.held_nano}, its calls {each.calls_nano}" for each in wrong]


async def _debited(world: World, seconds: int) -> float:
    """Events a second that came off the wallets while calls were asked for; all of them a moment later."""
    async with world.database.connected() as owner:
        debited = await owner.fetchval("select coalesce(sum(charges), 0)::bigint from balance.charged")
    return float(debited) / seconds
