"""Random faults against the whole chain, 20 seeds: two copies of every room, processes killed at any instant, relays killed
between acknowledgement and delete, copies that come and go (rebalances), connections that PostgreSQL cuts, PostgreSQL itself
killed, Valkey stopped, killed and emptied, aborted transactions, a second copy of everything that believes it is tomorrow, a
cut in the middle of it all. At the end the reference model, the invariants of recharges and the auditor find nothing wrong.

`make test-faults` runs it. The wrong clock needs Debian's `faketime`; without it the second copies have the right one. A failing run prints its seed, which repeats its inputs and the schedule of its faults.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.runtime.settings import ROOMS
from tests.support.chain import TOKENS, Chain, Fault, Person, running
from tests.support.processes import until, wrong_clock
from tests.support.servers import TestedServers

given = os.environ.get("TOLLBOOK_TEST_SEED")
SEEDS = [int(given)] if given else list(range(1, int(os.environ.get("TOLLBOOK_TEST_SEEDS", "20")) + 1))

COPIES = 2
GUEST = COPIES + 1
TALKING = [
    room for room in ROOMS if room not in ("invoices", "webhooks")
]  # one tells only at a cut, one nothing to Kafka
STORM_S = (14.0, 7.0)  # of faults before the cut and after it
STORMS = len(STORM_S)
PAUSE_S = (0.1, 0.9)  # between two faults
DRILL_S_MAX = 240.0  # until a relay comes to where it dies: the machine may be busy


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", SEEDS)
async def test_random_faults_lose_nothing_and_count_nothing_twice(
    servers: TestedServers, tmp_path: Path, seed: int
) -> None:
    async with running(servers, tmp_path, seed=seed, clock_of_copies=wrong_clock()) as chain:
        chain.start_rooms()
        await chain.found()
        for copy in range(2, COPIES + 1):
            chain.start_rooms(copy)
        await chain.move_clock_past_grace()
        storm = Storm(chain, servers)
        async with asyncio.TaskGroup() as both:
            raging = both.create_task(storm.rage(STORM_S[0]))
            both.create_task(feed(chain, raging))
        await storm.kill_postgres()
        await chain.name_period(chain.period)
        async with asyncio.TaskGroup() as both:
            raging = both.create_task(storm.rage(STORM_S[1]))
            both.create_task(feed(chain, raging))
        await storm.calm()
        await chain.passed(chain.period)
        await chain.decide_quarantine()
        await storm.kill()
        await storm.calm()
        await chain.finished()
        await chain.publish(chain.factory.mix(50))
        await chain.rest()
        await chain.stop()
        storm.prove()
        assert await chain.judged() == []
        assert await chain.audited() == []


async def feed(chain: Chain, while_running: asyncio.Task[None]) -> None:
    """Usage and new accounts that recharge at once, while the storm rages."""
    while not while_running.done():
        await chain.publish(chain.factory.mix(40))
        number = len(chain.facts["accounts"])
        token = TOKENS[number % len(TOKENS)]
        wish = {"threshold": "12", "recharge": "10"}
        person = Person(f"wave{number}", "lakeside", "payg", None, "12.00", wish, token)
        await chain.join(person, chain.newly_opened_at)
        await chain.forbidden(person)
        await chain.grant("try", "0.01")
        await asyncio.sleep(0.5)


class Storm:
    """One fault after the other, chosen by the seed; what was broken is counted, and mended by `calm`."""

    def __init__(self, chain: Chain, servers: TestedServers) -> None:
        self.chain = chain
        self.servers = servers
        self.random = random.Random(f"storm {chain.seed}")
        self.faults: dict[str, Callable[[], Awaitable[None]]] = {
            "kill": self.kill,
            "revive": self.revive,
            "cut connections": self.cut_connections,
            "join": self.join,
            "leave": self.leave,
            "valkey": self.switch_valkey,
            "empty valkey": self.empty_valkey,
            "abort": self.abort,
        }
        self.happened: Counter[str] = Counter()
        self.down: set[tuple[str, int]] = set()
        self.guests: set[str] = set()
        self.drilled: str | None = None  # the room whose relay is about to die: no other fault touches its copies
        self.valkey_runs = True

    async def rage(self, seconds: float) -> None:
        """Faults for so many seconds, each kind at least once; and beside them one relay dies where it hurts most."""
        async with asyncio.TaskGroup() as both:
            both.create_task(self.kill_a_relay())
            both.create_task(self.rage_at_random(seconds))

    async def rage_at_random(self, seconds: float) -> None:
        must = self.random.sample(sorted(self.faults), len(self.faults))
        kinds = [*self.faults, "kill", "revive", "revive"]
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while loop.time() < end or must:
            await self.faults[must.pop() if must else self.random.choice(kinds)]()
            await asyncio.sleep(self.random.uniform(*PAUSE_S))

    def any_room(self) -> str:
        return self.random.choice([room for room in ROOMS if room != self.drilled])

    async def kill(self) -> None:
        """SIGKILL at whatever point it is; of two copies one may be down already."""
        room, copy = self.any_room(), self.random.randint(1, COPIES)
        if (room, copy) not in self.down:
            self.chain.kill(room, copy)
            self.down.add((room, copy))
            self.happened["kill"] += 1

    async def revive(self) -> None:
        down = [each for each in sorted(self.down) if each[0] != self.drilled]
        if down:
            room, copy = self.random.choice(down)
            self.chain.start(room, copy)
            self.down.remove((room, copy))
            self.happened["revive"] += 1

    async def kill_a_relay(self) -> None:
        """A relay dies between acknowledgement and delete, so that the next one sends the same records again. The other copies
        are killed first: only one relay of a room is active."""
        room = self.drilled = self.random.choice(TALKING)
        for copy in range(1, COPIES + 1):
            if (room, copy) not in self.down:
                self.chain.kill(room, copy)
        if room in self.guests:
            self.chain.kill(room, GUEST)
            self.guests.remove(room)
        step = f"{room}.relay.acknowledged"
        self.chain.start(room, crash=step)
        await self.chain.crashed(Fault(room, step), wait_s=DRILL_S_MAX)
        self.down |= {(room, copy) for copy in range(1, COPIES + 1)}
        self.drilled = None

    async def cut_connections(self) -> None:
        """PostgreSQL ends every connection of a room that has any, in the middle of whatever it does."""
        for room in self.random.sample(ROOMS, len(ROOMS)):
            async with self.chain.database.connected(room) as connection:  # a role may end its own
                ended = await connection.fetch(
                    "select pg_terminate_backend(pid) from pg_stat_activity"
                    " where datname = current_database() and usename = current_user and pid <> pg_backend_pid()"
                )
            if ended:
                self.happened["cut connections"] += len(ended)
                return

    async def join(self) -> None:
        """A third copy joins: partitions move."""
        room = self.any_room()
        if room not in self.guests:
            self.guests.add(room)
            self.chain.start(room, GUEST)
            self.happened["join"] += 1

    async def leave(self) -> None:
        """A third copy leaves in good order: partitions move back."""
        if not self.guests - {self.drilled}:
            await self.join()
        room = self.random.choice(sorted(self.guests - {self.drilled}))
        if not self.happened["leave"]:  # of the others some leave before they have begun
            await until(lambda: self.chain.begun(room, GUEST), f"{room}{GUEST} works")
        begun = await self.chain.begun(room, GUEST)
        await self.chain.stop(f"{room}{GUEST}")
        self.guests.remove(room)
        self.happened["leave"] += begun

    async def kill_postgres(self) -> None:
        """PostgreSQL dies with all its processes while every room has work, and comes back: what was not committed never was."""
        await self.chain.publish(self.chain.factory.mix(200))
        await asyncio.sleep(self.random.uniform(0.05, 0.8))
        await self.servers.kill("postgres")
        await asyncio.sleep(self.random.uniform(0.0, 1.0))
        await self.servers.start("postgres")
        self.happened["postgres killed"] += 1

    async def empty_valkey(self) -> None:
        """Somebody empties Valkey."""
        if not self.valkey_runs:
            await self.switch_valkey()
        async with Redis.from_url(self.chain.settings.valkey_url) as client:
            await client.flushall()
        self.happened["valkey emptied"] += 1

    async def switch_valkey(self) -> None:
        """Valkey goes away, in order or not, or comes back: no money may depend on it."""
        if self.valkey_runs:
            await self.random.choice([self.servers.stop, self.servers.kill])("valkey")
            async with Redis.from_url(self.chain.settings.valkey_url) as client:
                try:
                    await client.ping()
                except RedisError:
                    self.happened["valkey gone"] += 1
        else:
            await self.servers.start("valkey")
        self.valkey_runs = not self.valkey_runs

    async def abort(self) -> None:
        """Usage in a transaction that is aborted; its offsets and the marker are taken, nobody may count it."""
        inputs = self.chain.factory.inputs[-10:]
        await self.chain.publish_aborted(inputs)
        self.happened["aborted"] += len(inputs)

    async def calm(self) -> None:
        """Everything runs again."""
        if not self.valkey_runs:
            await self.switch_valkey()
        for room, copy in sorted(self.down):
            self.chain.start(room, copy)
        self.down.clear()

    def prove(self) -> None:
        """Every kind of fault did happen."""
        for kind in (
            "kill", "revive", "cut connections", "postgres killed", "join", "leave", "valkey gone", "valkey emptied", "aborted",
        ):  # fmt: skip
            assert self.happened[kind], f"no {kind} in {dict(self.happened)}"
        died = self.chain.processes.crashed_at()
        assert len(died) == STORMS
        assert all(step.endswith(".relay.acknowledged") for step in died), died
