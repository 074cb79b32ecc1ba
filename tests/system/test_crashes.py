"""The whole chain killed at every step: each consumer and each relay once at each numbered step of the pattern, and at each
named effect of a cut, a pass and a close. All rooms run, usage, commands and payments go on meanwhile, the victim is started
again; at the end the reference model and the auditor find nothing, and the log of crashes is the plan.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import random
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from services.runtime.settings import ROOMS, Settings
from tests.support.chain import Chain, running
from tests.support.people import TOKENS, Person
from tests.support.servers import TestedServers

given = os.environ.get("TOLLBOOK_TEST_SEED")
SEEDS = [int(given)] if given else list(range(1, int(os.environ.get("TOLLBOOK_TEST_DEATHS", "20")) + 1))

BATCH = ("locked", "checked", "effects", "outbox", "advanced", "committed")
RELAY = ("read", "sent", "acknowledged", "deleted")

# What happens only while a cut is under way: any cut will do. Invoices tells nobody anything in between.
OF_A_CUT = {
    "groups": [f"groups.closing.{step}" for step in BATCH] + ["groups.covered"],
    "usage": [f"usage.closing.{step}" for step in BATCH]
    + ["usage.cut.locked", "usage.cut.read", "usage.cut.committed", "usage.pass.insert"],
    "balance": [f"balance.progress.{step}" for step in BATCH] + ["balance.covered"],
    "invoices": [f"invoices.progress.{step}" for step in BATCH]
    + ["invoices.cutoff.insert"]
    + [f"invoices.relay.{step}" for step in RELAY],
    "payments": [],
    "webhooks": [],
}
# What happens only when invoices close: each step but the last takes everything back, so that it all comes again.
OF_A_CLOSE = {
    "usage": ["usage.replay.taken", "usage.replay.outbox", "usage.replay.committed", "usage.grouppass.insert"],
    "invoices": ["invoices.close.locked", "invoices.close.numbered", "invoices.close.events"],
    "balance": [f"balance.invoices.{step}" for step in BATCH],
    "webhooks": [f"webhooks.invoices.{step}" for step in BATCH],
    "groups": [f"groups.invoices.{step}" for step in BATCH],
}
# What happens only when an invoice is credited.
OF_A_NOTE = {
    "invoices": ["invoices.credit_notes.numbered", "invoices.credit_notes.issued"],
    "balance": ["balance.invoices.posted"],
}
# What happens all the time: every other input, every relay, the timers that answer and time out payments, and replays.
ANY_TIME = {
    room: [
        f"{room}.{source.name}.{step}"
        for source in importlib.import_module(f"services.{room}.consumer").build(Settings()).inputs
        for step in BATCH
        if f"{room}.{source.name}.{step}" not in OF_A_CUT[room] + OF_A_CLOSE.get(room, [])
    ]
    + [f"{room}.relay.{step}" for step in RELAY if room not in ("invoices", "webhooks")]  # webhooks publishes nothing
    for room in ROOMS
}
ANY_TIME["payments"] += [f"payments.{lane}.{step}" for lane in ("due", "errand") for step in ("outbox", "committed")]
# Timers of balance inquire about who is silent and give up; commands that came before their account are replayed.
ANY_TIME["balance"] += [f"balance.due.{step}" for step in ("outbox", "committed")]
ANY_TIME["balance"] += [f"balance.replay.{step}" for step in ("taken", "outbox", "committed")]
PLANS = (ANY_TIME, OF_A_CUT, OF_A_CLOSE, OF_A_NOTE)

WAVE_S = 1.0
WAVE_AHEAD = timedelta(seconds=30)  # the clock is moved: balance inquires about who has been silent for minutes
CUT_S = 0.2
KILL_S_MAX = 480.0  # to come to a step, all kills of other rooms before it included: the machine may be busy


def test_the_plan_names_every_input_of_every_room_at_every_step() -> None:
    planned = Counter(step for plan in PLANS for steps in plan.values() for step in steps)
    assert set(planned.values()) == {1}
    for room in ROOMS:
        inputs = importlib.import_module(f"services.{room}.consumer").build(Settings()).inputs
        assert {f"{room}.{source.name}.{step}" for source in inputs for step in BATCH} <= planned.keys()


@pytest.mark.faults
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("seed", SEEDS)
async def test_killed_at_every_step_the_chain_is_what_the_model_says(
    servers: TestedServers, tmp_path: Path, seed: int
) -> None:
    async with running(servers, tmp_path, seed=seed, session_ms=1500) as chain:
        chain.start_rooms()
        await chain.found()
        await chain.end_grace()

        await beside(drill_all(chain, ANY_TIME), traffic(chain))
        await beside(drill_all(chain, OF_A_CUT), traffic(chain), cuts(chain))

        await close(chain)
        await credit(chain)
        await chain.publish(chain.factory.mix(100))
        await chain.rest()
        chain.processes.stop()
        planned = Counter(step for plan in PLANS for steps in plan.values() for step in steps)
        assert Counter(chain.processes.crashed_at()) == planned
        assert await chain.judged() == []
        assert await chain.audited() == []


def shuffled(seed: int, steps: Sequence[str]) -> list[str]:
    """The seed chooses the order."""
    return random.Random(f"{seed} {sorted(steps)}").sample(steps, len(steps))


async def drill(chain: Chain, room: str, steps: Sequence[str]) -> None:
    """Kill a room at one step after the other; it is started again each time, and runs at the end."""
    chain.kill(room)
    for step in steps:
        chain.start(room, crash=step)
        await chain.processes.wait_crashed(f"{room}1", step, KILL_S_MAX)
    chain.start(room)


async def close(chain: Chain) -> None:
    """Close the month with everybody killed on the way: what holds it is decided while usage dies as well."""
    async with asyncio.TaskGroup() as group:
        for room in ("invoices", "balance", "webhooks", "groups"):
            group.create_task(drill(chain, room, OF_A_CLOSE[room]))
        await chain.name_period(chain.period)
        await chain.publish(chain.factory.mix(60))
        await chain.passed(chain.period)
        group.create_task(drill(chain, "usage", OF_A_CLOSE["usage"]))
        await asyncio.sleep(0)  # the usage that was not armed is dead before anything is decided
        await chain.decide_quarantine()
    await chain.finished()


async def credit(chain: Chain) -> None:
    """All of two invoices is taken back, one postpaid and one prepaid, with those who number and post that killed on the way."""
    async with asyncio.TaskGroup() as group:
        for room, steps in OF_A_NOTE.items():
            group.create_task(drill(chain, room, steps))
        for group_id in ("northwind", "late-payers"):
            await chain.credit(group_id)


async def drill_all(chain: Chain, plan: Mapping[str, Sequence[str]]) -> None:
    """All rooms side by side, each in an order that the seed chooses."""
    await asyncio.gather(*(drill(chain, room, shuffled(chain.seed, steps)) for room, steps in plan.items() if steps))


async def traffic(chain: Chain) -> None:
    """Usage of every kind, and in each wave a new account that is charged automatically at once; time flies meanwhile."""
    while True:
        await chain.publish(chain.factory.mix(20))
        number = len(chain.facts["accounts"])
        wish = {"threshold": "12", "recharge": "10"}
        token = TOKENS[number % len(TOKENS)]
        person = Person(f"wave{number}", "lakeside", "payg", None, "12.00", wish, token)
        await chain.join(person, chain.newly_opened_at)
        await chain.forbidden(person)
        await chain.grant("try", "0.01")
        await chain.forbidden_payment("northwind")
        await chain.move_clock(WAVE_AHEAD)
        await asyncio.sleep(WAVE_S)


async def cuts(chain: Chain) -> None:
    """Older and older periods are named, each when the one before has passed: nobody used anything in them."""
    for months in range(1, 1000):
        await chain.name_period(chain.period_before(months))
        await chain.passed(chain.period_before(months), 2 * KILL_S_MAX)  # every step of it may be a death
        await asyncio.sleep(CUT_S)


async def beside(work: Coroutine[Any, Any, None], *others: Coroutine[Any, Any, None]) -> None:
    """Runs until the work is done; the others never end, but their errors are errors of all."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(other) for other in others]
        await work
        for task in tasks:
            task.cancel()
