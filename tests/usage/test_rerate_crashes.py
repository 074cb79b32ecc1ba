"""A worker that carries out a re-rate is killed at every named step, of the first chunk, one in the middle and the last one."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from services.usage import api
from services.usage.tables import CHARGE
from tests.support.processes import Processes
from tests.support.servers import Database
from tests.support.usage_registry import leg, void
from tests.support.usage_room import Usage
from tests.usage.test_rerate_tiers import charged, cost, imported, standing, tiers, total, use
from tests.usage.test_rerating import NOW, approved, live_once, price, sums

STEPS = ("usage.rerate.taken", "usage.rerate.written", "usage.tick.rerate.outbox", "usage.tick.rerate.committed")
CHARGES, CHUNK = 40, 3


@pytest.mark.timeout(600)
async def test_killed_at_every_step_each_charge_is_re_rated_once(
    usage: Usage, database: Database, tmp_path: Path
) -> None:
    await usage.take(*(leg(f"e{number}", NOW - timedelta(minutes=number)) for number in range(CHARGES)))
    await price(usage, "0.02")
    plan = await approved(usage)
    await api.execute_rerate(usage.engine, plan.plan_id, "bob", "finance")
    processes = Processes(database.environment(), tmp_path)
    crashes = [f"{step}:{passage}" for passage in (1, 2) for step in STEPS]
    settled = []
    for number, crash in enumerate(crashes):
        processes.start("rerating", "tests.support.correcting", "rerate", str(CHUNK), crash=crash)
        await processes.wait_crashed("rerating", crash)
        settled.append((await api.rerate(usage.engine, plan.plan_id)).settled)
        if number == 3:  # of the last chunk: its charge is not live any more when its turn comes
            await usage.take(void("e0", 1))
        await usage.rooms.pump()
        await live_once(usage)
    assert settled == [0, 0, 0, 3, 6, 9, 12, 18]
    assert processes.crashed_at() == [crash.partition(":")[0] for crash in crashes]
    last = f"{STEPS[2]}:{(CHARGES - settled[-1]) // CHUNK + 1}"
    processes.start("rerating", "tests.support.correcting", "rerate", str(CHUNK), crash=last)
    await processes.wait_crashed("rerating", last)
    assert (await api.rerate(usage.engine, plan.plan_id)).settled == 39
    processes.start("rerating", "tests.support.correcting", "rerate", str(CHUNK))
    assert processes.running["rerating"].wait(60) == 0
    await usage.rooms.pump()
    done = await api.rerate(usage.engine, plan.plan_id)
    assert (done.state, done.settled, done.left_stale) == ("done", CHARGES, 1)
    assert sums(usage) == {f"e{number}": "0.04" for number in range(1, CHARGES)} | {"e0": "0"}
    await live_once(usage)
    rows = await usage.rooms.query("usage", select(CHARGE.c.charge_id))
    assert sorted(str(row.charge_id) for row in rows) == sorted(charge["charge_id"] for charge in usage.charges)


@pytest.mark.timeout(600)
async def test_killed_at_every_step_each_quantity_is_in_one_counter(
    usage: Usage, database: Database, tmp_path: Path
) -> None:
    await imported(usage, tiers())
    await usage.take(*(use(f"e{number}", 90 + number, NOW - timedelta(minutes=number)) for number in range(CHARGES)))
    whole = sum(90 + number for number in range(CHARGES))
    await imported(usage, tiers("volume"))
    plan = await approved(usage)
    await api.execute_rerate(usage.engine, plan.plan_id, "bob", "finance")
    processes = Processes(database.environment(), tmp_path)
    crashes = [f"{step}:2" for step in (STEPS[0], "usage.rerate.counted", *STEPS[1:])]
    settled = []
    for number, crash in enumerate(crashes):
        processes.start("rerating", "tests.support.correcting", "rerate", str(CHUNK), crash=crash)
        await processes.wait_crashed("rerating", crash)
        settled.append((await api.rerate(usage.engine, plan.plan_id)).settled)
        if number == 1:  # the counter of the new schedule moves in between, and comes back
            await usage.take(use("new", 500))
        if number == 3:
            await usage.take(void("new", 1))
        await usage.rooms.pump()
        assert sum((await standing(usage)).values()) == whole + (500 if number in (1, 2) else 0)
        await live_once(usage)
    assert settled == [3, 6, 9, 12, 18]
    processes.start("rerating", "tests.support.correcting", "rerate", str(CHUNK))
    assert processes.running["rerating"].wait(60) == 0
    await usage.rooms.pump()
    done = await api.rerate(usage.engine, plan.plan_id)
    assert (done.state, done.settled, done.left_stale) == ("done", CHARGES, 0)
    assert (cost(usage), await standing(usage)) == ("35.04", {"2": whole})
    assert charged(done)[0] == total(done)[0] == "37.04"
    await live_once(usage)
