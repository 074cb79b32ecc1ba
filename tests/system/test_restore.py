"""PostgreSQL taken back to a backup while Kafka stays as it is: every event is charged once, every sum is what the model says, and
nobody outside meets a number or version again with another meaning."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from contracts.openings import OPENING
from contracts.topics import INVOICES_EVENTS
from services.usage import api as usage
from tests.support.backups import backed_up, put_back, restored
from tests.support.chain import Chain, running
from tests.support.people import Person
from tests.support.prices import price_file
from tests.support.processes import until
from tests.support.servers import TestedServers

ROLE = "tollbook_usage"
VERSIONED = (
    "balance.events", "balance.group_events", "groups.accounts", "groups.assignments", "groups.billing_groups",
    "groups.publishers",
)  # fmt: skip
STEPS = (
    "restore.begun",
    "restore.sent:3",
    "restore.opened",
    "restore.adopted",
    "restore.written",
    "restore.paid",
    "restore.told",
)
NEWCOMER = Person(
    "newcomer", "lakeside", "payg", None, "12.00", {"threshold": "12", "recharge": "10"}, "tok_ok", True
)  # is recharged at once


@pytest.mark.parametrize(
    ("seed", "deaths"),
    [(31, STEPS[2:5:2]), *(pytest.param(seed, STEPS, marks=pytest.mark.faults) for seed in (32, 33))],
)
async def test_after_a_restore_all_is_charged_once_and_no_number_has_two_meanings(
    servers: TestedServers, tmp_path: Path, seed: int, deaths: Sequence[str]
) -> None:
    async with running(servers, tmp_path, seed=seed) as chain:
        chain.start_rooms()
        await chain.found()
        await chain.end_grace()
        await chain.publish(chain.factory.mix(150))
        await asyncio.sleep(0.5)
        async with backed_up(chain) as backup:
            chain.start_rooms()
            await refused_while_rooms_run(chain)
            await life_that_is_undone(chain)
            told = await documents(chain)
            assert told
            await put_back(chain, backup)
        looked = await restored(chain, "--check")
        for step in deaths:
            await restored(chain, crash=step)
        await no_room_starts(chain)
        report = await restored(chain)
        assert report["undone"] == looked["undone"]
        assert report["documents"] == len(told)
        assert NEWCOMER.account_id in {each["account_id"] for each in report["payments"]}
        assert report["named_again"] == [chain.period]
        await do_again(chain, report)
        chain.start_rooms()
        await discard_again(chain)
        await chain.publish(chain.factory.mix(100))
        await chain.finished()
        await chain.rest()
        await chain.stop()
        assert await chain.judged() == []
        assert await chain.audited() == []
        await no_meaning_twice(chain)
        await charged_once(chain)
        await same_documents(chain, told)


async def refused_while_rooms_run(chain: Chain) -> None:
    async def connected() -> bool:
        return bool(
            await chain.rows("select 1 from pg_stat_activity where usename = $1 and datname = current_database()", ROLE)
        )

    await until(connected, "usage is connected")
    with pytest.raises(AssertionError, match=r"these are connected still: .*tollbook.usage"):
        await restored(chain)


async def life_that_is_undone(chain: Chain) -> None:
    """Use, payments, a new account, a close with prices and discards that people decide; at its end all are killed at work."""
    await chain.join(NEWCOMER, chain.newly_opened_at)
    await chain.publish(chain.factory.mix(150))
    await chain.grant("try", "0.01")
    await chain.name_period(chain.period)
    await chain.passed(chain.period)
    await chain.decide_quarantine()
    await chain.finished()
    await chain.publish(chain.factory.mix(30))
    await chain.idle()
    await chain.publish(chain.factory.mix(30))
    await asyncio.sleep(0.3)


async def no_room_starts(chain: Chain) -> None:
    """While the restore is under way."""
    chain.processes.start("early", "services.usage")
    process = chain.processes.running.pop("early")
    assert await asyncio.to_thread(process.wait, 60) == 1
    assert "run `tollbook restore` again" in chain.processes.tail("early")


async def do_again(chain: Chain, report: dict[str, Any]) -> None:
    """Before the start: the price book that a person imported after the backup."""
    first = [each for each in report["to_do"] if each["before_start"]]
    assert [(each["what"], each["about"]) for each in first] == [("price book", "list version 2")]
    rows = [each for each in chain.facts["prices"] if each["book"] == "list" and each["version"] == 2]
    async with chain.engine("usage") as engine:
        await usage.import_prices(engine, "list", price_file(rows), rows[0]["effective_from"])


async def discard_again(chain: Chain) -> None:
    """What a person had given up is in quarantine again, and holds its groups at the cut."""
    await chain.passed(chain.period)
    rows = await chain.rows('select id, topic, partition, "offset" from usage.parked where state = $1', "quarantined")
    ids = [row["id"] for row in rows if (row["topic"], row["partition"], row["offset"]) in chain.discards]
    assert len(ids) == len(chain.discards)
    async with chain.engine("usage") as engine:
        await usage.discard(engine, "ops", ids=ids)


async def documents(chain: Chain) -> dict[str, dict[str, Any]]:
    """Closed invoices as they were told, by their number: of one number always the same."""
    found: dict[str, dict[str, Any]] = {}
    for record in await chain.records(INVOICES_EVENTS.name):
        envelope = json.loads(record.value or b"")
        if envelope["type"] != OPENING and envelope["data"]["kind"] == "closed":
            told = {name: value for name, value in envelope["data"].items() if name != "sha256"}
            assert found.setdefault(told["number"], told) == told
    return found


async def same_documents(chain: Chain, before: dict[str, dict[str, Any]]) -> None:
    """A period that came out as before has its number again, another one says which it replaces, and nothing is left over."""
    after = {each["number"]: each for each in await chain.published(INVOICES_EVENTS.name) if each["kind"] == "closed"}
    kept = after.keys() & before.keys()
    assert kept, "some periods come out the same"
    replaced = {each["replaces"] for number, each in after.items() if number not in kept} - {None}
    assert kept | replaced == before.keys()
    assert {(each["group_id"], each["period"]) for each in after.values()} >= {
        (each["group_id"], each["period"]) for each in before.values()
    }


async def no_meaning_twice(chain: Chain) -> None:
    """Of all that was ever told, in whatever life: a version of an object says one thing for ever."""
    for name in VERSIONED:
        versions: dict[tuple[bytes | None, int], Any] = {}
        for record in await chain.records(name):
            envelope = json.loads(record.value or b"")
            if envelope["type"] != OPENING:
                data = envelope["data"]
                key = (record.key, data["version"])
                assert versions.setdefault(key, data) == data, (name, key)


async def charged_once(chain: Chain) -> None:
    """No id of a payment stands for two amounts, and each payment that settled in any life is in the ledger, once."""
    asked: dict[str, str] = {}
    for record in await chain.records("payments.requests"):
        envelope = json.loads(record.value or b"")
        if envelope["type"] != OPENING and envelope["data"]["kind"] == "charge":
            request = envelope["data"]
            assert asked.setdefault(request["attempt_id"], request["amount"]) == request["amount"]
    results = [json.loads(record.value or b"") for record in await chain.records("payments.results.")]
    settled = {each["attempt_id"] for each in results if each["kind"] == "settled"}
    rows = await chain.rows(
        "select ref from balance.ledger_entry where kind = 'payment' and split_part(ledger, ':', 1) = 'wallet'"
    )
    assert sorted(row["ref"] for row in rows) == sorted(settled)
