"""Random faults against the whole chain, 20 seeds: two copies of every room, processes killed at any instant, copies that
come and go (rebalances), connections that PostgreSQL cuts, Valkey stopped, aborted transactions, a cut in the middle of it
all. At the end the reference model, the invariants of recharges and the auditor find nothing wrong.

`make test-faults` runs it. A failing run prints its seed, which repeats its inputs and the schedule of its faults.
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
from tests.support.chain import TOKENS, Chain, Person, running
from tests.support.servers import TestedServers

given = os.environ.get("TOLLBOOK_TEST_SEED")
SEEDS = [int(given)] if given else list(range(1, int(os.environ.get("TOLLBOOK_TEST_SEEDS", "20")) + 1))

COPIES = 2
STORM_S = 14.0  # of faults before the cut, and half of it after
PAUSE_S = (0.1, 0.9)  # between two faults


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", SEEDS)
async def test_random_faults_lose_nothing_and_count_nothing_twice(
    servers: TestedServers, tmp_path: Path, seed: int
) -> None:
    async with running(servers, tmp_path, seed=seed) as chain:
        chain.start_rooms()
        await chain.found()
        for copy in range(2, COPIES + 1):
            chain.start_rooms(copy)
        await chain.move_clock_past_grace()
        storm = Storm(chain, servers)
        async with asyncio.TaskGroup() as both:
            raging = both.create_task(storm.rage(STORM_S))
            both.create_task(feed(chain, raging))
        await chain.name_period(chain.period)
        async with asyncio.TaskGroup() as both:
            raging = both.create_task(storm.rage(STORM_S / 2))
            both.create_task(feed(chain, raging))
        await storm.calm()
        await chain.passed(chain.period)
        await chain.decide_quarantine()
        await storm.kill_one()
        await storm.calm()
        await chain.finished()
        await chain.publish(chain.factory.mix(50))
        await chain.rest()
        chain.processes.stop()
        storm.prove()
        assert await chain.judged() == []
        assert await chain.audited() == []


async def feed(chain: Chain, while_running: asyncio.Task[None]) -> None:
    """Usage and new accounts that recharge at once, while the storm rages."""
    while not while_running.done():
        await chain.publish(chain.factory.mix(40))
        if chain.random.random() < 0.2:
            await chain.publish_aborted(chain.factory.inputs[-10:])
        number = len(chain.facts["accounts"])
        token = TOKENS[number % len(TOKENS)]
        wish = {"threshold": "12", "recharge": "10"}
        await chain.join(Person(f"wave{number}", "lakeside", "payg", None, "12.00", wish, token), chain.newly_opened_at)
        await chain.grant("try", "0.01")
        await asyncio.sleep(0.5)


class Storm:
    """One fault after the other, chosen by the seed; what was broken is counted, and mended by `calm`."""

    def __init__(self, chain: Chain, servers: TestedServers) -> None:
        self.chain = chain
        self.servers = servers
        self.random = random.Random(f"storm {chain.seed}")
        self.happened: Counter[str] = Counter()
        self.down: set[tuple[str, int]] = set()
        self.guests: set[str] = set()
        self.valkey_runs = True

    async def rage(self, seconds: float) -> None:
        """Faults for so many seconds; each kind happens at least once in a storm."""
        faults: dict[str, Callable[[], Awaitable[None]]] = {
            "kill": self.kill_one,
            "revive": self.revive_one,
            "cut connections": self.cut_connections,
            "guest": self.guest,
            "valkey": self.switch_valkey,
        }
        order = self.random.sample(sorted(faults), len(faults))
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while loop.time() < end or order:
            kinds = ["kill", "kill", "revive", "revive", "revive", "cut connections", "guest", "valkey"]
            await faults[order.pop() if order else self.random.choice(kinds)]()
            await asyncio.sleep(self.random.uniform(*PAUSE_S))

    async def kill_one(self) -> None:
        """SIGKILL at whatever point it is; of two copies one may be down already."""
        room, copy = self.random.choice(ROOMS), self.random.randint(1, COPIES)
        if (room, copy) not in self.down:
            self.chain.kill(room, copy)
            self.down.add((room, copy))
            self.happened["kill"] += 1

    async def revive_one(self) -> None:
        if self.down:
            room, copy = self.random.choice(sorted(self.down))
            self.chain.start(room, copy)
            self.down.remove((room, copy))
            self.happened["revive"] += 1

    async def cut_connections(self) -> None:
        """PostgreSQL ends every connection of a room, in the middle of whatever it does."""
        room = self.random.choice(ROOMS)
        async with self.chain.database.connected(room) as connection:  # a role may end its own
            ended = await connection.fetch(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and usename = current_user and pid <> pg_backend_pid()"
            )
        self.happened["cut connections"] += len(ended)

    async def guest(self) -> None:
        """A third copy joins, or leaves in good order: partitions move both times."""
        room = self.random.choice(ROOMS)
        if room in self.guests:
            self.guests.remove(room)
            (code,) = (await asyncio.to_thread(self.chain.processes.stop, f"{room}3")).values()
            # -15: it was asked to stop before it had begun
            assert code in (0, -15), f"{room}3 ended by {code}\n{self.chain.processes.tail(f'{room}3')}"
        else:
            self.guests.add(room)
            self.chain.start(room, 3)
        self.happened["rebalance"] += 1

    async def switch_valkey(self) -> None:
        """Valkey goes away, or comes back: no money may depend on it."""
        if self.valkey_runs:
            await self.servers.stop("valkey")
            async with Redis.from_url(self.chain.settings.valkey_url) as client:
                try:
                    await client.ping()
                except RedisError:
                    self.happened["valkey gone"] += 1
        else:
            await self.servers.start("valkey")
        self.valkey_runs = not self.valkey_runs

    async def calm(self) -> None:
        """Everything runs again."""
        if not self.valkey_runs:
            await self.switch_valkey()
        for room, copy in sorted(self.down):
            self.chain.start(room, copy)
        self.down.clear()

    def prove(self) -> None:
        """Every kind of fault did happen."""
        for kind in ("kill", "revive", "cut connections", "rebalance", "valkey gone"):
            assert self.happened[kind], f"no {kind} in {dict(self.happened)}"
