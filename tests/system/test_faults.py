"""Random faults against the whole chain, 20 seeds: two copies of every room, processes killed at any instant, relays killed
between acknowledgement and delete, copies that come and go (rebalances), connections that PostgreSQL cuts, PostgreSQL itself
killed, Valkey stopped, killed and emptied, aborted transactions, a second copy of everything that believes it is tomorrow (by
an even seed: yesterday), a cut in the middle of it all, and then a clock that is moved by a day. Meanwhile credits are granted
and codes redeemed, payments made and refunded, calls promised money by two gateways, an account moved to another payer group,
another one re-rated, webhooks posted, and at last invoices paid by transfers and by card and written off. At the end the reference model, the invariants of recharges and the auditor find nothing wrong.

`make test-faults` runs it. The wrong clock needs Debian's `faketime`; without it the run fails, unless
`TOLLBOOK_TEST_WITHOUT_FAKETIME=1` gives the second copies the right one. A failing run prints its seed, which repeats its
inputs and the schedule of its faults.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.invoices.credit_notes import Asked
from services.kernel.money import NANO
from services.runtime.settings import ROOMS
from tests.support.chain import Chain, running
from tests.support.model import nano
from tests.support.money_paths import CORRECTED, OVERBILLED, PEOPLE, SORRY, WITH_WEBHOOKS, MoneyPaths
from tests.support.people import TOKENS, Person
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
DAY = timedelta(days=1)  # by which the clock of the copies is wrong, and the one clock is moved
RUN_MAX = timedelta(hours=1)  # from the first line of a log to the proof
PAUSE_S = (0.1, 0.9)  # between two faults
LATER = timedelta(
    minutes=61
)  # leases of webhooks whose copy died are over, and what has been unknown since is abandoned
TRANSFERS = 3  # times that they arrive, with every copy of balance killed
WRITES_S_MAX = 10.0  # until some room is in the middle of a transaction
DRILL_S_MAX = 240.0  # until a relay comes to where it dies: the machine may be busy


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", SEEDS)
async def test_random_faults_lose_nothing_and_count_nothing_twice(
    servers: TestedServers, tmp_path: Path, seed: int
) -> None:
    wrong_by = DAY if seed % 2 else -DAY
    async with running(servers, tmp_path, seed=seed, clock_of_copies=wrong_clock(wrong_by)) as chain:
        chain.start_rooms()
        await chain.found(PEOPLE)
        for copy in range(2, COPIES + 1):
            chain.start_rooms(copy)
        await chain.end_grace()
        chain.paths = paths = MoneyPaths(chain)
        await paths.open()
        storm = Storm(chain, servers)
        async with asyncio.TaskGroup() as both:
            raging = both.create_task(storm.rage(STORM_S[0]))
            both.create_task(feed(chain, paths, raging, ("dialer", "ringer"), waves=len(TOKENS), expiring=True))
            both.create_task(paths.move())
            both.create_task(paths.rerate())
        async with asyncio.TaskGroup() as both:
            both.create_task(storm.kill_postgres())
            both.create_task(paths.calls("dialer", 8))
        await chain.name_period(chain.period)
        async with asyncio.TaskGroup() as both:
            raging = both.create_task(storm.rage(STORM_S[1]))
            both.create_task(feed(chain, paths, raging, (), waves=1, expiring=False))
            both.create_task(evening(storm, paths, raging))
        await storm.calm()
        await chain.passed(chain.period)
        await chain.decide_quarantine()
        await paths.refund_at_last()
        await paths.replay_early_results()
        await storm.kill()
        await storm.calm()
        await chain.finished()
        await debts(storm, paths)
        await credits(storm, chain)
        await transfers(storm, paths)
        await chain.publish(chain.factory.mix(50))
        await chain.grant("evening", "0.50")
        for account_id in WITH_WEBHOOKS:  # a slow storm may have had no event for one of them
            await chain.grant(account_id, "0.01")
        await chain.rest()
        await chain.move_clock(LATER)
        await chain.rest()
        await until(paths.delivered, "all webhooks are taken", DRILL_S_MAX)
        await paths.calls("evening", 3, hang_up=False)
        await paths.close()
        await chain.stop()
        assert await chain.judged() == []
        assert await chain.audited() == []
        await storm.prove()
        if chain.clock_of_copies:
            storm.prove_wrong_clock(wrong_by)


async def feed(
    chain: Chain, paths: MoneyPaths, while_running: asyncio.Task[None], callers: Sequence[str], *, waves: int,
    expiring: bool,
) -> None:  # fmt: skip
    """Usage, new accounts that recharge at once, money of every kind, and calls, while the storm rages; so many waves at
    least, each of which pays in another way."""
    wave = 0
    async with asyncio.TaskGroup() as calls:
        while not while_running.done() or wave < waves:
            await chain.publish(chain.factory.mix(40))
            number = len(chain.facts["accounts"])
            token = TOKENS[wave % len(TOKENS)]
            wave += 1
            wish = {"threshold": "12", "recharge": "10"}
            person = Person(f"wave{number}", "lakeside", "payg", None, "12.00", wish, token)
            await chain.join(person, chain.newly_opened_at)
            await chain.forbidden(person)
            await chain.grant("try", "0.01")
            await paths.wave(expiring=expiring)
            for account_id in callers:
                calls.create_task(paths.calls(account_id, 3))
            await asyncio.sleep(0.3)


async def evening(storm: Storm, paths: MoneyPaths, while_running: asyncio.Task[None]) -> None:
    """The clock is moved by a day, and only then does somebody call: a lease that ends frees money whose charge is to come."""
    await storm.move_clock()
    while not while_running.done():
        await paths.calls("evening", 3)


async def debts(storm: Storm, paths: MoneyPaths) -> None:
    """Invoices are paid by card and written off, with every copy of balance and of payments killed on the way."""
    await until(paths.invoices_known, "balance knows the invoices", DRILL_S_MAX)
    await paths.settle_debts()
    await asyncio.sleep(storm.random.uniform(0.0, 0.4))
    storm.happened["killed with debts under way"] += not await paths.debts_settled()
    storm.kill_all("balance")
    storm.kill_all("payments")
    storm.revive_all()
    await until(paths.debts_settled, "what was to be paid by card or written off is settled", DRILL_S_MAX)


async def credits(storm: Storm, chain: Chain) -> None:
    """A part of an invoice is credited, then all of it, and all of one that was paid from the balance, with every copy of
    invoices and of balance killed on the way."""
    line = Asked(OVERBILLED, "voice.outbound", NANO)
    for asked in ([(OVERBILLED, line), (SORRY,)], [(OVERBILLED,)]):
        for each in asked:
            await chain.credit(*each)
        await asyncio.sleep(storm.random.uniform(0.0, 1.0))
        storm.happened["killed with credit notes under way"] += not await chain.credits_carried_out()
        storm.kill_all("invoices")
        storm.kill_all("balance")
        storm.revive_all()
        await until(chain.credits_carried_out, "credit notes are carried out", DRILL_S_MAX)


async def transfers(storm: Storm, paths: MoneyPaths) -> None:
    """Transfers for invoices and for a wallet, the last too much, with every copy of balance killed before all are recorded."""

    async def all_recorded() -> bool:
        return not await paths.unrecorded()

    for number in range(TRANSFERS):
        await paths.transfer(number == TRANSFERS - 1)
        await asyncio.sleep(storm.random.uniform(0.0, 0.1))
        storm.happened["killed with transfers under way"] += len(await paths.unrecorded())
        storm.kill_all("balance")
        storm.revive_all()
        await until(all_recorded, "transfers are recorded", DRILL_S_MAX)
        await until(
            paths.invoices_known, "balance knows the invoices", DRILL_S_MAX
        )  # the first may come before its invoice


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
        self.revive_all()

    async def rage_at_random(self, seconds: float) -> None:
        must = self.random.sample(sorted(self.faults), len(self.faults))
        kinds = [*self.faults, "kill", "revive", "revive"]
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while loop.time() < end or must:
            await self.faults[must.pop() if must else self.random.choice(kinds)]()
            await asyncio.sleep(self.random.uniform(*PAUSE_S))
        self.revive_all()  # the relay that is to die may wait for the work of another room

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
        """One of those that were killed comes back; where all run, one is killed first."""
        while not (down := [each for each in sorted(self.down) if each[0] != self.drilled]):
            await self.kill()
        room, copy = self.random.choice(down)
        self.chain.start(room, copy)
        self.down.remove((room, copy))
        self.happened["revive"] += 1

    async def kill_a_relay(self) -> None:
        """A relay dies between acknowledgement and delete, so that the next one sends the same records again. The other copies
        are killed first: only one relay of a room is active."""
        room = self.drilled = self.random.choice(TALKING)
        self.kill_all(room)
        step = f"{room}.relay.acknowledged"
        self.chain.start(room, crash=step)
        await self.chain.processes.wait_crashed(f"{room}1", step, DRILL_S_MAX)
        self.drilled = None

    def kill_all(self, room: str) -> None:
        """Every copy of it that runs; a guest does not come back."""
        copies = {(room, copy) for copy in range(1, COPIES + 1)}
        for each in sorted(copies - self.down):
            self.chain.kill(*each)
        self.down |= copies
        if room in self.guests:
            self.chain.kill(room, GUEST)
            self.guests.remove(room)

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
        """PostgreSQL dies with all its processes while some room is in the middle of a transaction, and comes back: what was not
        committed never was."""
        await self.chain.publish(self.chain.factory.mix(200))
        await asyncio.sleep(self.random.uniform(0.05, 0.8))
        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):  # who watches is cut off too
            async with AsyncExitStack() as stack:
                watching = [await stack.enter_async_context(self.chain.database.connected(room)) for room in ROOMS]
                self.happened["transaction cut off"] += await self.somebody_writes(watching)
                await self.servers.kill("postgres")
        await asyncio.sleep(self.random.uniform(0.0, 1.0))
        await self.servers.start("postgres")
        self.happened["postgres killed"] += 1

    async def somebody_writes(self, watching: Sequence[asyncpg.Connection[Any]]) -> bool:
        """Wait for a transaction that has written something and is not at its end; each role sees only its own."""
        deadline = time.monotonic() + WRITES_S_MAX
        while time.monotonic() < deadline:
            for connection in watching:
                if await connection.fetchval(
                    "select count(*) from pg_stat_activity where datname = current_database() and usename = current_user"
                    " and xact_start is not null and backend_xid is not null and state <> 'idle'"
                ):
                    return True
            await asyncio.sleep(0.005)
        return False

    async def move_clock(self) -> None:
        """It is tomorrow: payments are given up, days begin anew, credits and leases end, while everything else goes on. What no
        processor has been asked for by then is never charged, so before that each has been asked in each way."""

        async def asked(which: str) -> set[str]:
            rows = await self.chain.rows(
                "select distinct theirs.token from payments.attempt as theirs join payments.operation using (attempt_id)"
                " join balance.attempt as mine using (attempt_id)"
                f" where operation.kind = 'charge' and operation.tries > 0 and mine.kind = 'auto' {which}"
            )
            return {row["token"] for row in rows}

        async def everybody_was_asked() -> bool:
            return await asked("") >= {*TOKENS}

        async def somebody_is_silent() -> bool:
            return "tok_silent" in await asked("and mine.state = 'requested'")

        async def something_expires() -> bool:
            return bool(await self.chain.rows("select 1 from balance.credit where expires_at is not null"))

        await asyncio.sleep(self.random.uniform(0.3, 2.0))
        await until(everybody_was_asked, "recharges of every kind", DRILL_S_MAX)
        await until(somebody_is_silent, "a payment that nobody answers", DRILL_S_MAX)
        await until(something_expires, "a credit that will expire", DRILL_S_MAX)
        await self.chain.move_clock(DAY)
        self.happened["clock moved"] += 1

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
        self.revive_all()

    def revive_all(self) -> None:
        """But for the copies of the room whose relay is about to die."""
        for room, copy in sorted(self.down):
            if room != self.drilled:
                self.chain.start(room, copy)
        self.down = {(room, copy) for room, copy in self.down if room == self.drilled}

    async def prove(self) -> None:
        """Every kind of fault did happen, and every kind of money was moved meanwhile."""
        for kind in (
            "kill", "revive", "cut connections", "postgres killed", "join", "leave", "valkey gone", "valkey emptied", "aborted",
            "clock moved", "transaction cut off", "killed with transfers under way", "killed with debts under way",
            "killed with credit notes under way",
        ):  # fmt: skip
            assert self.happened[kind], f"no {kind} in {dict(self.happened)}"
        died = self.chain.processes.crashed_at()
        assert len(died) == STORMS
        assert all(step.endswith(".relay.acknowledged") for step in died), died
        await self.prove_processors()
        await self.prove_money()

    def prove_wrong_clock(self, by: timedelta) -> None:
        """Every copy but the first dated what it logged by a day that it was not. PostgreSQL was killed, so all had to say
        something."""
        now = datetime.now(UTC)
        for room in ROOMS:
            for copy in (2, GUEST):
                logged = self.chain.processes.logged_at(f"{room}{copy}")
                assert logged or copy == GUEST, f"{room}{copy} logged nothing"
                right = [at for at in logged if not now - RUN_MAX <= at - by <= now]
                assert not right, f"the clock of {room}{copy} was not wrong by {by}: {right}"

    async def prove_processors(self) -> None:
        """They were silent, spoke twice, late, before they were asked, out of order, and against themselves."""
        chain, paths = self.chain, self.chain.paths
        assert paths is not None
        asked = {row["token"] for row in await chain.rows("select distinct token from payments.attempt")}
        assert asked >= {*TOKENS}, f"nobody was charged by {sorted({*TOKENS} - asked)}"
        results = [json.loads(record.value or b"") for record in await chain.records("payments.results.")]
        said = Counter(result.get("data", result)["result_id"] for result in results)
        assert max(said.values()) > 1, "no result came twice"
        early = [row["state"] for row in await paths.early_results()]
        assert early, "no result came before its request was known"
        assert {*early} == {"replayed"}

    async def prove_money(self) -> None:
        """Each kind of event of balance at least once; and calls of every end."""
        paths = self.chain.paths
        assert paths is not None
        told = Counter(said["kind"] for said in await self.chain.published("balance.events"))
        missing = {
            "balance_opened", "goodwill_granted", "credit_granted", "credit_expired", "command_refused",
            "recharge_requested", "recharge_settled", "recharge_declined", "recharge_failed", "recharge_abandoned",
            "payment_requested", "payment_settled", "payment_declined", "refund_requested", "refunded", "disputed",
            "dispute_won", "dispute_lost", "contradiction", "finance_alarm", "suspended", "transfer_recorded",
            "transfer_known",
        } - told.keys()  # fmt: skip
        assert not missing, f"never told: {sorted(missing)} in {dict(told)}"
        owed = await self.chain.published("balance.group_events")
        missing = {
            "payment_recorded", "payment_known", "invoice_paid", "card_payment_requested", "write_off_proposed",
            "invoice_written_off",
        } - {said["kind"] for said in owed}  # fmt: skip
        assert not missing, f"never told of a group: {sorted(missing)}"
        assert any(nano(said["unapplied"]) for said in owed), "no group paid too much"
        used = await self.chain.rows("select 1 from balance.ledger_entry where kind = 'credit_used' limit 1")
        assert used, "no credit paid for anything"
        corrected = await self.chain.rows("select distinct account_id from usage.charge where replaces is not null")
        assert {row["account_id"] for row in corrected} == {*CORRECTED}
        by_card = [said for said in owed if said["kind"] == "payment_recorded" and said["source"] == "card"]
        assert len(by_card) == 1, "an invoice is paid by card once"
        assert paths.webhooks_lost, "every webhook was taken at once"
        for what in ("call granted", "call renewed", "call refused", "release", "settle", "silence", "answer lost"):
            assert paths.happened[what], f"no {what} in {dict(paths.happened)}"
