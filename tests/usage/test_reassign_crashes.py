"""A worker that moves charges is killed at every named step, of the first chunk and of one in the middle."""

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
from tests.usage.test_counters import counters
from tests.usage.test_reassignments import HOUR, MOVED, NOW, by, live, moved_to
from tests.usage.test_rerate_tiers import cost, imported, tiers, use
from tests.usage.test_rerating import live_once, sums

STEPS = (
    "usage.reassign.taken", "usage.reassign.written", "usage.tick.reassign.outbox", "usage.tick.reassign.committed",
)  # fmt: skip
CHARGES, CHUNK = 40, 3


@pytest.mark.timeout(600)
async def test_killed_at_every_step_each_charge_is_moved_once(usage: Usage, database: Database, tmp_path: Path) -> None:
    names = [f"e{number}" for number in range(CHARGES)]
    await usage.take(*(leg(name, NOW - timedelta(minutes=number)) for number, name in enumerate(names)))
    await usage.take(leg("before", MOVED - HOUR))
    usage.send.account("sales", **moved_to("g2"))
    await usage.rooms.pump()
    processes = Processes(database.environment(), tmp_path)
    crashes = [f"{step}:{passage}" for passage in (1, 2) for step in STEPS]
    for number, crash in enumerate(crashes):
        processes.start("reassigning", "tests.support.correcting", "reassign", str(CHUNK), crash=crash)
        await processes.wait_crashed("reassigning", crash)
        if number == 3:  # of the last chunk: its charge is not live any more when its turn comes
            await usage.take(void("e0", 1))
        if number == 5:  # the registry says another thing while charges are looked through
            usage.send.account("sales", **moved_to("g3"))
        await usage.rooms.pump()
        await live_once(usage)
    assert processes.crashed_at() == [crash.partition(":")[0] for crash in crashes]
    assert any(each.state == "open" for each in await api.reassignments(usage.engine))
    processes.start("reassigning", "tests.support.correcting", "reassign", str(CHUNK))
    assert processes.running["reassigning"].wait(120) == 0
    await usage.rooms.pump()
    assert {name: each["group_id"] for name, each in live(usage).items()} == (
        dict.fromkeys(names[1:], "g3") | {"before": "g-sales"}
    )
    assert sums(usage) == dict.fromkeys([*names, "before"], "0.028") | {"e0": "0"}
    await live_once(usage)
    rows = await usage.rooms.query("usage", select(CHARGE.c.charge_id))
    assert sorted(str(row.charge_id) for row in rows) == sorted(charge["charge_id"] for charge in usage.charges)


@pytest.mark.timeout(600)
async def test_killed_at_every_step_each_quantity_is_in_one_counter(
    usage: Usage, database: Database, tmp_path: Path
) -> None:
    await imported(usage, tiers("volume"))
    await usage.take(*(use(f"e{number}", 90 + number, NOW - timedelta(minutes=number)) for number in range(CHARGES)))
    whole = sum(90 + number for number in range(CHARGES))
    usage.send.account("sales", **moved_to("g2"))
    await usage.rooms.pump()
    processes = Processes(database.environment(), tmp_path)
    for crash in [f"{step}:2" for step in (STEPS[0], "usage.reassign.counted", *STEPS[1:])]:
        processes.start("reassigning", "tests.support.correcting", "reassign", str(CHUNK), crash=crash)
        await processes.wait_crashed("reassigning", crash)
        await usage.rooms.pump()
        assert sum((await counters(usage)).values()) == whole
        await live_once(usage)
    processes.start("reassigning", "tests.support.correcting", "reassign", str(CHUNK))
    assert processes.running["reassigning"].wait(120) == 0
    await usage.rooms.pump()
    assert {key[1]: quantity for key, quantity in (await counters(usage)).items() if quantity} == {"g2": whole}
    assert by(usage, "group_id") == {("g2",): "35.04"}
    assert cost(usage) == "35.04"
    await live_once(usage)
