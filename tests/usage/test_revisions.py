"""Voids and amendments on a real database: whatever comes in whatever order, the highest revision is what is charged."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from pydantic import TypeAdapter
from sqlalchemy import select

from contracts.usage import Charge
from services.cli.charge import explanation
from services.kernel.ids import charge_id, identity_digest, reversal_id
from services.kernel.money import parse_amount
from services.runtime.records import Record
from services.usage import api, store
from services.usage.books import PriceRow
from services.usage.consumer import build
from services.usage.price_files import PriceFile, read_price_file
from services.usage.tables import CHARGE, IDENTITY, SUPERSEDED
from services.usage.tiers import Band, Form, Schedule
from tests.support.rooms import Log, Rooms
from tests.support.servers import Database
from tests.support.usage_registry import LONG_AGO, PUBLISHER, SOURCE, TOPIC, leg, void
from tests.support.usage_room import Usage

NOW = datetime.now(UTC).replace(microsecond=0)
ORIGINAL = "0.028"


def amended(event_id: str, revision: int, ended_at: datetime = NOW, account: str = "sales", **changes: Any) -> Any:
    return leg(event_id, ended_at, account, **changes) | {"revision": revision}


def amounts(usage: Usage) -> list[str]:
    return [charge["amount"] for charge in usage.charges]


# ---- one step ------------------------------------------------------------------------------------------------------


async def test_a_void_takes_back_exactly_what_was_charged(usage: Usage) -> None:
    usage.send.resource("dialer", "sales", "cc-1")
    await usage.rooms.pump()
    await usage.take(leg("e1", NOW, outbound_profile="dialer", call_leg_id="x"))
    await usage.take(void("e1", 1))
    await usage.take(void("e1", 1))
    charge, reversal = usage.charges
    TypeAdapter(Charge).validate_python(reversal)
    digest = identity_digest(PUBLISHER, SOURCE, "e1")
    assert reversal == charge | {
        "charge_id": str(reversal_id(charge_id(digest), 1)),
        "reverses": charge["charge_id"],
        "amount": "-0.028",
        "quantity": -120,
    }
    assert await usage.classes() == {"rated": 1, "voided": 1, "duplicate": 1}
    rows = await usage.rooms.query("usage", select(CHARGE.c.amount_nano, CHARGE.c.reverses, CHARGE.c.used))
    assert sorted((row.amount_nano, row.reverses, row.used) for row in rows) == [
        (-28_000_000, UUID(charge["charge_id"]), 95), (28_000_000, None, 95),
    ]  # fmt: skip


async def test_an_amendment_takes_back_the_charge_and_charges_its_own_content(usage: Usage) -> None:
    usage.send.account("other")
    await usage.rooms.pump()
    before = NOW - timedelta(days=3)
    await usage.take(leg("e1", NOW))
    await usage.take(amended("e1", 2, before, "other", billable_s=10))
    charge, reversal, replacement = usage.charges
    assert (reversal["reverses"], reversal["account_id"], reversal["revision"]) == (charge["charge_id"], "sales", 0)
    assert replacement["charge_id"] == str(charge_id(identity_digest(PUBLISHER, SOURCE, "e1"), 2))
    assert (replacement["account_id"], replacement["group_id"], replacement["revision"]) == ("other", "g-other", 2)
    assert (replacement["amount"], replacement["reverses"]) == ("0.014", None)
    assert replacement["event_time"].startswith(before.date().isoformat())
    assert await usage.classes() == {"rated": 2}


async def test_each_step_up_takes_back_what_the_last_one_charged(usage: Usage) -> None:
    for number, event in enumerate(
        (
            leg("e1", NOW),
            amended("e1", 1, billable_s=10),
            void("e1", 5),
            amended("e1", 6),
            amended("e1", 7, billable_s=0),
        )
    ):
        event["data"] |= {"answered": False} if number == 4 else {}
        await usage.take(event)
    assert amounts(usage) == ["0.028", "-0.028", "0.014", "-0.014", "0.028", "-0.028"]
    assert await usage.classes() == {"rated": 3, "voided": 1, "not_billable": 1}


async def test_a_batch_with_several_revisions_goes_up_to_the_highest_at_once(usage: Usage) -> None:
    await usage.take(leg("e1", NOW))
    await usage.take(amended("e1", 1, billable_s=10), void("e1", 3), amended("e1", 2))
    assert amounts(usage) == ["0.028", "-0.028"]
    assert await usage.classes() == {"rated": 1, "voided": 3}
    await usage.take(leg("e2", NOW), amended("e2", 2, billable_s=10), amended("e2", 1))
    assert amounts(usage)[2:] == ["0.014"]
    assert await usage.classes() == {"rated": 2, "voided": 3, "duplicate": 2}


async def test_a_charge_and_its_reversal_name_each_other(usage: Usage) -> None:
    await usage.take(leg("e1", NOW))
    await usage.take(amended("e1", 3, billable_s=10))
    charge, reversal, replacement = [await api.charge(usage.engine, UUID(each["charge_id"])) for each in usage.charges]
    assert charge.reversed_by == reversal.charge["charge_id"]
    assert reversal.charge["reverses"] == charge.charge["charge_id"]
    assert (reversal.reversed_by, replacement.reversed_by) == (None, None)
    assert reversal.steps == (*charge.steps, "taken back: -0.028 USD")
    told = [explanation(each) for each in (charge, reversal, replacement)]
    assert f"taken back by charge {reversal.charge['charge_id']}" in told[0]
    assert f"takes back charge {charge.charge['charge_id']}" in told[1]
    assert any(line.endswith(f"published by {PUBLISHER}, revision 3") for line in told[2])


# ---- order ---------------------------------------------------------------------------------------------------------


async def test_a_void_that_comes_first_absorbs_the_original_and_every_lower_revision(usage: Usage) -> None:
    await usage.take(void("e1", 2))
    await usage.take(leg("e1", NOW))
    await usage.take(amended("e1", 1), leg("e1", NOW), amended("e1", 1))
    assert usage.charges == []
    assert await usage.classes() == {"voided": 3, "duplicate": 2}


async def test_an_amendment_that_comes_first_absorbs_the_original(usage: Usage) -> None:
    await usage.take(amended("e1", 1, billable_s=10))
    await usage.take(leg("e1", NOW))
    (charge,) = usage.charges
    assert (charge["amount"], charge["revision"], charge["reverses"]) == ("0.014", 1, None)
    assert await usage.classes() == {"rated": 1, "duplicate": 1}


async def test_another_content_of_the_same_revision_is_a_conflict(usage: Usage) -> None:
    await usage.take(leg("e1", NOW))
    await usage.take(amended("e1", 1))
    await usage.take(amended("e1", 1, billable_s=10), void("e1", 1))
    await usage.take(void("e1", 2), void("e1", 2, reason="another"))
    assert [(r["reason"], r["field"]) for r in usage.rejections] == [("conflict", "id")] * 3
    assert sum(parse_amount(each, signed=True) for each in amounts(usage)) == 0


async def test_only_the_same_publisher_and_source_can_revise(usage: Usage) -> None:
    usage.send.publisher("another", sources=("pbx/other", SOURCE))
    usage.send.publisher(sources=(SOURCE, "pbx/second"))
    await usage.rooms.pump()
    await usage.take(leg("e1", NOW), void("e1", 1, source="pbx/second"))
    usage.send.leg(void("e1", 1), publisher="another")
    await usage.rooms.pump()
    assert amounts(usage) == [ORIGINAL]


# ---- what cannot be done -------------------------------------------------------------------------------------------


async def test_an_amendment_that_cannot_be_rated_leaves_the_charge_until_its_replay(usage: Usage) -> None:
    await usage.take(leg("e1", NOW))
    await usage.take(amended("e1", 1, called="+447700900123"), amended("e1", 2, account="nobody"))
    assert amounts(usage) == [ORIGINAL]
    assert [r["reason"] for r in usage.rejections] == ["unknown_account", "no_price"]
    await api.import_prices(
        usage.engine, "list", read_price_file(b"product,prefix,price_per_minute,currency\nvoice.outbound,44,1,USD\n"), LONG_AGO
    )  # fmt: skip
    await usage.rooms.pump()
    assert amounts(usage) == [ORIGINAL, "-0.028", "2"]
    usage.send.account("nobody")
    await usage.rooms.pump()
    await api.replay(usage.engine, "ann", reason="unknown_account")
    await usage.rooms.pump()
    assert await usage.classes() == {"rated": 2, "quarantined": 1}  # the new book does not know the first number


async def test_a_void_of_an_account_that_the_publisher_may_not_bill_is_refused(usage: Usage) -> None:
    usage.send.account("theirs", organization="northwind")
    await usage.rooms.pump()
    await usage.take(leg("e1", NOW), void("e1", 1, account="theirs"), void("e1", 1, account="nobody"))
    assert amounts(usage) == [ORIGINAL]
    assert [r["reason"] for r in usage.rejections] == ["not_permitted", "unknown_account"]


async def test_a_void_of_a_closed_account_takes_back_what_it_used(usage: Usage) -> None:
    await usage.take(leg("e1", NOW - timedelta(hours=2)))
    usage.send.account("sales", closed_at=NOW - timedelta(hours=1))
    await usage.rooms.pump()
    await usage.take(void("e1", 1))
    assert amounts(usage) == [ORIGINAL, "-0.028"]


async def test_a_trial_account_is_given_back_what_is_on_no_invoice(usage: Usage) -> None:
    usage.send.account("try", plan="trial")
    await usage.rooms.pump()
    await usage.take(leg("e1", NOW, "try"))
    await usage.take(void("e1", 1, account="try"))
    assert [(c["amount"], c["group_id"], c["bill_to"]) for c in usage.charges] == [
        ("0.028", None, None), ("-0.028", None, None),
    ]  # fmt: skip


@pytest.mark.parametrize(("form", "parts"), [("graduated", ["9", "1.8", "2.4"]), ("volume", ["9", "-0.2", "2.4"])])
async def test_what_tiers_priced_leaves_its_counter_as_if_it_had_never_come(
    usage: Usage, form: Form, parts: list[str]
) -> None:
    await api.import_prices(usage.engine, "tiers", tiered("sms", form), LONG_AGO, is_default=True)
    events = {name: used(name, quantity) for name, quantity in (("a", 900), ("b", 200), ("c", 300))}
    for event in events.values():
        await usage.take(event)
    assert amounts(usage) == parts
    await usage.take(void("b", 1))
    await usage.take(events["c"] | {"revision": 1, "data": events["c"]["data"] | {"quantity": 50}})
    assert sum(parse_amount(each, signed=True) for each in amounts(usage)) == parse_amount("9.5")
    reversal, out, again = usage.charges[3:]
    assert (reversal["quantity"], reversal["tier"]["before"], reversal["tier"]["after"]) == (-200, 1_400, 1_200)
    assert (out["tier"]["after"], again["tier"]["before"], again["tier"]["after"]) == (900, 900, 950)
    for charge in usage.charges:
        TypeAdapter(Charge).validate_python(charge)


def used(event_id: str, quantity: int) -> Any:
    data = {
        "account_id": "sales", "product": "sms", "quantity": quantity, "unit": "piece",
        "used_at": NOW.isoformat().replace("+00:00", "Z"),
    }  # fmt: skip
    return leg(event_id, NOW) | {"type": "tollbook.usage.product.v1", "data": data}


def tiered(product: str, form: Form) -> PriceFile:
    bands = (Band(1_000, 10_000_000), Band(None, 8_000_000))
    rows = (PriceRow(product, "*", 0, 0, 0, 1, 1, "piece", schedule="s"),)
    return PriceFile("USD", rows, (), schedules=(Schedule("s", form, 1, bands),))


TAKEN_BACK = "from usage.charge where reverses is not null and schedule is null"
WRONG = {
    "a counter moved": ("update usage.counter set quantity = quantity + 1", "stands at 851, its charges sum to 850"),
    "a counter is gone": ("delete from usage.counter", "stands at 0, its charges sum to 850"),
    "a share is a nano more": (
        "update usage.charge set amount_nano = amount_nano + 1 where counted_before = 0", "costs 8.5, its charges sum to 8.500000001",
    ),
    "more is given back": (
        "update usage.charge set amount_nano = amount_nano - 1 where reverses is not null and schedule is null", "is not the one exact negative",
    ),
    "twice": (
        f"create temporary table again as select * {TAKEN_BACK}; update again set charge_id = gen_random_uuid();"
        " insert into usage.charge select * from again",
        "is not the one exact negative",
    ),
    "one stands beside its correction": (
        "delete from usage.charge where reverses is not null and schedule is not null;"
        " update usage.counter set quantity = (select sum(quantity) from usage.charge where schedule is not null)",
        "event a of pbx/detroit, published by lakeside, is charged twice",
    ),
    "of nothing": ("update usage.charge set reverses = gen_random_uuid() where reverses is not null", "exact negative"),
    "on another account": ("update usage.charge set account_id = 'a' where reverses is not null and schedule is null", "exact negative"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
async def test_the_auditor_finds_what_does_not_hang_together(usage: Usage, database: Database, wrong: str) -> None:
    await api.import_prices(usage.engine, "tiers", tiered("sms", "graduated"), LONG_AGO)
    await api.set_default_books(usage.engine, ["list", "tiers"])
    await usage.take(used("a", 900), used("b", 50), leg("e1", NOW), leg("e2", NOW))
    await usage.take(void("e1", 1))
    await usage.take(used("a", 800) | {"revision": 1})
    right = await api.tiers_and_reversals(usage.engine)
    assert (right.counters, right.reversals, right.findings) == (1, 2, ())
    statement, told = WRONG[wrong]
    async with database.connected() as owner:
        await owner.execute(statement)
    found = await api.tiers_and_reversals(usage.engine)
    assert any(told in finding for finding in found.findings), found.findings


# ---- generations ---------------------------------------------------------------------------------------------------


async def test_a_fact_of_a_sealed_generation_is_revised_in_the_current_one(usage: Usage) -> None:
    await usage.take(leg("e1", NOW), leg("e2", NOW))
    await usage.take(amended("e1", 1, billable_s=10))
    await usage.switch_generation()
    await usage.take(amended("e1", 2), void("e2", 1))
    await usage.take(leg("e1", NOW), amended("e1", 1, billable_s=10), leg("e2", NOW), void("e2", 1), amended("e1", 2))
    sums: dict[str, int] = defaultdict(int)
    for charge in usage.charges:
        sums[charge["event_id"]] += parse_amount(charge["amount"], signed=True)
    assert sums == {"e1": 28_000_000, "e2": 0}
    assert await usage.classes() == {"rated": 4, "voided": 1, "duplicate": 5}
    rows = await usage.rooms.query("usage", select(IDENTITY.c.generation, IDENTITY.c.revision))
    assert sorted(map(tuple, rows)) == [(1, 0), (1, 1), (2, 1), (2, 2)]
    await usage.switch_generation()
    for table in (IDENTITY, SUPERSEDED):
        rows = await usage.rooms.query("usage", select(table.c.generation).distinct())
        assert {row.generation for row in rows} <= {2}
    await usage.take(void("e1", 3))
    assert amounts(usage)[-1] == "-0.028"


async def test_a_revision_of_what_is_forgotten_is_told_and_changes_nothing(usage: Usage) -> None:
    long_ago = NOW - timedelta(days=80)
    usage.send.leg(leg("e1", long_ago), at=long_ago)
    await usage.rooms.pump()
    for _ in range(2):
        await usage.switch_generation()
    await usage.take(void("e1", 1), amended("e1", 2), void("never seen", 1), amended("never seen either", 1))
    assert [(r["event_id"], r["reason"], r["field"]) for r in usage.rejections] == [
        ("e1", "too_old", "id"), ("e1", "too_old", "id"),
    ]  # fmt: skip
    assert sorted(amounts(usage)) == [ORIGINAL, ORIGINAL]


# ---- the auditor ---------------------------------------------------------------------------------------------------


async def test_the_auditor_finds_every_revision_in_the_class_it_was_counted_in(usage: Usage) -> None:
    await usage.take(leg("e1", NOW), leg("e2", NOW), void("e3", 4))
    await usage.take(amended("e1", 1), void("e2", 1), leg("e3", NOW))
    await usage.take(void("e1", 2), leg("e1", NOW), leg("e2", NOW), leg("e3", NOW), amended("e3", 4))
    await usage.switch_generation()
    await usage.take(amended("e1", 3), amended("e1", 1), leg("e3", NOW), amended("e3", 2))
    records = [(offset, each.headers, each.value) for offset, each in enumerate(usage.log.records[TOPIC, 0])]
    found: dict[str, int] = defaultdict(int)
    for name in (await api.classify(usage.engine, TOPIC, 0, records)).values():
        found[str(name)] += 1
    assert found == await usage.classes()
    totals = (await api.charge_totals(usage.engine))["g-sales", f"{NOW:%Y-%m}"]
    assert (totals.count, totals.amount_nano) == (len(usage.charges), 28_000_000)


async def test_two_workers_that_revise_a_fact_at_once_take_each_charge_back_once(
    usage: Usage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await usage.take(leg("e1", NOW))
    usage.send.leg(amended("e1", 1, billable_s=10), partition=0)
    usage.send.leg(amended("e1", 2, billable_s=130, duration_s=130), partition=1)
    look, beside = store.lock_identities, []

    async def look_beside_another(*args: Any) -> dict[bytes, Any]:
        monkeypatch.setattr(store, "lock_identities", look)
        found = await look(*args)
        beside.append(asyncio.create_task(_process(usage, 1, 0)))
        await asyncio.wait(beside, timeout=1.0)  # it waits for the row that is held here
        return found

    monkeypatch.setattr(store, "lock_identities", look_beside_another)
    await _process(usage, 0, 1)
    await asyncio.gather(*beside)
    await usage.rooms.pump()
    assert sorted(amounts(usage)) == ["-0.014", "-0.028", "0.014", "0.028", "0.042"]


async def _process(usage: Usage, partition: int, offset: int) -> None:
    """One record as a batch of its own."""
    lane, logged = f"events/{TOPIC}/{partition}", usage.log.records[TOPIC, partition][offset]
    record = Record(TOPIC, partition, offset, logged.timestamp_ms, logged.key, logged.value, lane)
    source = usage.processor.room.input("events")
    await usage.processor.process(source, [record], {lane: (offset, offset + 1)})


async def test_a_worker_that_loses_the_race_for_a_fact_revises_what_the_other_has_charged(
    usage: Usage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await usage.take(leg("first", NOW, answered=False, billable_s=0))  # gives birth to the lanes
    usage.send.leg(amended("e1", 1, billable_s=10), partition=0)
    usage.send.leg(leg("e1", NOW), partition=1)
    look = store.lock_identities

    async def look_and_be_overtaken(*args: Any) -> dict[bytes, Any]:
        monkeypatch.setattr(store, "lock_identities", look)
        found = await look(*args)
        await _process(usage, 1, 0)
        return found

    monkeypatch.setattr(store, "lock_identities", look_and_be_overtaken)
    await _process(usage, 0, 1)
    await usage.rooms.pump()
    assert sorted(amounts(usage)) == ["-0.028", "0.014", "0.028"]
    assert not [each for each in caplog.records if each.levelname in ("WARNING", "ERROR")]


# ---- whatever comes in whatever order ------------------------------------------------------------------------------

CONTENTS = 4  # of the revisions of a fact, from 0


class Fact:
    """A fact with the contents of its revisions, and what it costs when one of them holds."""

    def __init__(self, dice: random.Random, name: str) -> None:
        self.name = name
        self.revisions: dict[int, tuple[dict[str, Any], int]] = {}
        for revision in sorted({0, *dice.sample(range(1, 9), dice.randrange(CONTENTS))}):
            kind = dice.choice(("rated", "moved", "unanswered", "unpriced", "void"))
            if kind == "void" and revision:
                self.revisions[revision] = void(name, revision), 0
                continue
            minutes = dice.randrange(1, 6)
            changes: dict[str, Any] = {"billable_s": minutes * 60, "duration_s": minutes * 60}
            cost = minutes * 14_000_000
            if kind == "unanswered":
                changes |= {"billable_s": 0, "answered": False}
                cost = 0
            elif kind == "unpriced":
                changes |= {"called": "+447700900123"}
                cost = minutes * 44_000_000
            account, ended_at = "sales", NOW
            if kind == "moved":
                account, ended_at = "other", NOW - timedelta(days=dice.randrange(20))
            self.revisions[revision] = amended(name, revision, ended_at, account, **changes), cost

    @property
    def cost(self) -> int:
        return self.revisions[max(self.revisions)][1]


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_the_order_the_batches_and_the_workers_each_fact_costs_its_highest_revision(
    usage: Usage, database: Database, seed: int
) -> None:
    dice = random.Random(seed)
    usage.send.account("other")
    await usage.rooms.pump()
    facts = [Fact(dice, f"fact{number}") for number in range(60)]
    events = [event for fact in facts for event, _ in fact.revisions.values()]
    events += dice.sample(events, len(events) // 2)  # copies
    dice.shuffle(events)
    third = len(events) // 3
    async with Rooms(usage.log, database, [build()]) as other:
        workers, done = (usage.rooms, other), [1, 0]
        await usage.take(leg("first", NOW, answered=False, billable_s=0))  # gives birth to the lanes
        for number, part in enumerate((events[:third], events[third : 2 * third], events[2 * third :])):
            for event in part:
                usage.send.leg(event, partition=dice.randrange(2))
            await asyncio.gather(
                *(_work_off(dice, usage.log, worker, partition, done) for partition, worker in enumerate(workers))
            )
            if number == 0 and seed % 2:
                await usage.switch_generation()
            if number == 1 and seed % 3 == 0:
                await price_the_unpriced(usage)
        await price_the_unpriced(usage)
        await usage.rooms.pump()
    sums = dict.fromkeys((fact.name for fact in facts), 0)
    charges = usage.charges
    by_id = {charge["charge_id"]: charge for charge in charges}
    assert len(by_id) == len(charges)
    for charge in charges:
        sums[charge["event_id"]] += parse_amount(charge["amount"], signed=True)
        if charge["reverses"] is not None:
            taken_back = by_id[charge["reverses"]]
            assert parse_amount(charge["amount"], signed=True) == -parse_amount(taken_back["amount"])
            assert charge["quantity"] == -taken_back["quantity"]
    assert sums == {fact.name: fact.cost for fact in facts}
    reversed_ids = [charge["reverses"] for charge in charges if charge["reverses"] is not None]
    assert len(set(reversed_ids)) == len(reversed_ids)
    stood = {
        (charge["event_id"], charge["revision"])
        for charge in charges
        if charge["reverses"] is None and charge["charge_id"] not in reversed_ids
    }
    assert stood == {(fact.name, max(fact.revisions)) for fact in facts if fact.cost}
    records = {
        partition: [
            (offset, each.headers, each.value) for offset, each in enumerate(usage.log.records[TOPIC, partition])
        ]
        for partition in range(2)
    }
    found: dict[str, int] = defaultdict(int)
    for partition, each in records.items():
        for name in (await api.classify(usage.engine, TOPIC, partition, each)).values():
            found[str(name)] += 1
    assert found == await usage.classes()
    assert "quarantined" not in found


async def price_the_unpriced(usage: Usage) -> None:
    prices = read_price_file(b"product,prefix,price_per_minute,currency\nvoice.outbound,44,0.044,USD\n")
    await api.import_prices(usage.engine, "abroad", prices, LONG_AGO, is_default=True)
    await usage.rooms.pump()


async def _work_off(dice: random.Random, log: Log, rooms: Rooms, partition: int, done: list[int]) -> None:
    """Process what a partition holds in batches of any size; the other worker is at its own meanwhile."""
    processor = rooms.processors["usage"]
    source = processor.room.input("events")
    lane = f"events/{TOPIC}/{partition}"
    position = done[partition]
    while position < len(log.records[TOPIC, partition]):
        end = min(len(log.records[TOPIC, partition]), position + dice.choice((1, 2, 5, 20)))
        records = [
            Record(TOPIC, partition, offset, each.timestamp_ms, each.key, each.value, lane)
            for offset, each in enumerate(log.records[TOPIC, partition][position:end], start=position)
        ]
        await processor.process(source, records, {lane: (position, end)})
        position = end
    done[partition] = position
