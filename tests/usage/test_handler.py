"""Batches of usage events on a real database: classes, quarantine, rejections, identities."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from pydantic import TypeAdapter
from sqlalchemy import func, select

from contracts.topics import USAGE_CHARGES
from contracts.usage import Charge
from services.kernel.errors import InvalidInput, NotFound
from services.kernel.ids import charge_id, identity_digest
from services.runtime.database import transaction
from services.runtime.records import Record
from services.usage import api, store
from services.usage.consumer import build
from services.usage.generations import SEALED_MAX
from services.usage.price_files import read_price_file
from services.usage.tables import CHARGE, IDENTITY, STATE
from tests.support.rooms import Rooms
from tests.support.servers import Database
from tests.support.usage_registry import LONG_AGO, PUBLISHER, SOURCE, TOPIC, leg, void
from tests.support.usage_room import PRICES, Usage

NOW = datetime.now(UTC).replace(microsecond=0)


# ---- rating --------------------------------------------------------------------------------------------------------


async def test_an_event_becomes_one_charge_with_all_that_the_contract_asks(usage: Usage) -> None:
    await usage.take(leg("e1", NOW, call_leg_id="leg-1"))
    (charge,) = usage.charges
    TypeAdapter(Charge).validate_python(charge)
    assert charge["charge_id"] == str(charge_id(identity_digest(PUBLISHER, SOURCE, "e1")))
    assert (charge["amount"], charge["quantity"], charge["duration_s"]) == ("0.028", 120, 100)
    assert (charge["group_id"], charge["period"], charge["bill_to"]) == ("g-sales", f"{NOW:%Y-%m}", f"{NOW:%Y-%m}")
    assert (charge["matched"], charge["book_id"], charge["book_version"]) == ("+1", "list", 1)
    assert charge["call_leg_id"] == "leg-1"
    explained = await api.charge(usage.engine, UUID(charge["charge_id"]))
    assert explained.charge["destination"] == "+12485550101"
    assert explained.steps[-1] == "rounded half-even to 9 decimals: 0.028 USD"
    with pytest.raises(NotFound):
        await api.charge(usage.engine, UUID(int=0))


async def test_a_charge_says_the_same_to_the_last_byte(usage: Usage) -> None:
    """Consumers may rely on the order of names too."""
    usage.send.resource("dialer", "desk", "cc-dialer")
    usage.send.account("desk", group="payers", plan="invoiced", version=7)
    await usage.rooms.pump()
    ended_at = NOW.replace(microsecond=0)
    await usage.take(leg('e"é', ended_at, "desk", call_leg_id="leg-1", outbound_profile="dialer", billable_s=61))
    (value,) = [
        each.value for (topic, _), of in usage.log.records.items() for each in of if topic == USAGE_CHARGES.name
    ]
    assert value is not None
    text = f"{ended_at:%Y-%m-%dT%H:%M:%SZ}"
    id = charge_id(identity_digest(PUBLISHER, SOURCE, 'e"é'))
    expected = (
        f'"data":{{"charge_id":"{id}","revision":0,"reverses":null,"account_id":"desk","organization_id":"lakeside",'
        f'"plan":"invoiced","group_id":"payers","period":"{NOW:%Y-%m}","bill_to":"{NOW:%Y-%m}",'
        f'"cost_center_id":"cc-dialer","outbound_profile":"dialer","assignment_version":7,"event_time":"{text}",'
        f'"publisher":"lakeside","source":"pbx/detroit","event_id":"e\\"é","call_leg_id":"leg-1",'
        f'"product":"voice.outbound","unit":"second","quantity":120,"duration_s":100,"amount":"0.028","currency":"USD",'
        f'"book_id":"list","book_version":1,"matched":"+1","unit_price":"0.014","per":60,"connection_fee":"0","minimum":60,'
        f'"increment":60}}}}'
    )
    assert value.decode().endswith(expected)


async def test_an_unanswered_call_is_not_billable_whatever_the_prices(usage: Usage) -> None:
    unanswered = leg("e1", NOW, called="+999912345", answered=False, billable_s=0)
    await usage.take(unanswered, unanswered)
    assert usage.charges == []
    assert usage.rejections == []
    assert await usage.classes() == {"not_billable": 1, "duplicate": 1}


async def test_a_trial_account_is_charged_on_no_invoice(usage: Usage) -> None:
    usage.send.account("try", plan="trial")
    await usage.rooms.pump()
    await usage.take(leg("e1", NOW, "try"))
    (charge,) = usage.charges
    assert (charge["plan"], charge["group_id"], charge["period"], charge["bill_to"]) == ("trial", None, None, None)
    assert await usage.classes() == {"rated_ungrouped": 1}


async def test_usage_before_an_upgrade_stays_with_the_trial(usage: Usage) -> None:
    upgraded = NOW - timedelta(hours=1)
    usage.send.account(
        "try",
        plans=[(LONG_AGO, upgraded, "trial"), (upgraded, None, "payg")],
        groups=[(upgraded, None, "g-try")],
    )
    await usage.rooms.pump()
    await usage.take(leg("e1", upgraded - timedelta(seconds=1), "try"), leg("e2", upgraded, "try"))
    assert {charge["event_id"]: charge["group_id"] for charge in usage.charges} == {"e1": None, "e2": "g-try"}


async def test_the_period_is_that_of_the_groups_zone(usage: Usage) -> None:
    usage.send.account("paris", zone="Pacific/Kiritimati")
    usage.send.account("hawaii", zone="Pacific/Honolulu")
    await usage.rooms.pump()
    start = NOW.replace(day=1, hour=0, minute=0, second=0)
    if NOW - start < timedelta(hours=11):
        start = (start - timedelta(days=1)).replace(day=1)
    before = f"{start - timedelta(days=1):%Y-%m}"
    await usage.take(leg("e1", start - timedelta(hours=1), "paris"), leg("e2", start + timedelta(hours=1), "hawaii"))
    assert {c["account_id"]: c["period"] for c in usage.charges} == {"paris": f"{start:%Y-%m}", "hawaii": before}


async def test_the_books_are_asked_in_their_order(usage: Usage) -> None:
    def book(price: str) -> Any:
        return read_price_file(f"product,prefix,price_per_minute,currency\nvoice.outbound,1,{price},USD\n".encode())

    for name, price in (("own", "0.01"), ("model", "0.02"), ("house", "0.03")):
        await api.import_prices(usage.engine, name, book(price), LONG_AGO)
    await api.set_book_of(usage.engine, "account", "a-own", "own")
    await api.set_book_of(usage.engine, "organization", "lakeside", "house")
    usage.send.account("a-own", pricing_model="model")
    usage.send.account("a-model", pricing_model="model")
    await usage.rooms.pump()
    await usage.take(*(leg(name, NOW, name) for name in ("a-own", "a-model", "sales")))
    assert {c["account_id"]: c["book_id"] for c in usage.charges} == {
        "a-own": "own", "a-model": "model", "sales": "house",
    }  # fmt: skip
    await api.set_book_of(usage.engine, "organization", "lakeside", None)
    await usage.take(leg("later", NOW))
    assert {c["event_id"]: c["book_id"] for c in usage.charges}["later"] == "list"
    listed = await api.books(usage.engine)
    assert [(each.book_id, each.version, each.prices) for each in listed] == [
        ("house", 1, 1), ("list", 1, 3), ("model", 1, 1), ("own", 1, 1),
    ]  # fmt: skip


async def test_a_book_keeps_its_currency(usage: Usage) -> None:
    prices = read_price_file(PRICES)
    assert await api.import_prices(usage.engine, "list", prices, LONG_AGO) == 2
    other = type(prices)("EUR", prices.rows, ())
    with pytest.raises(InvalidInput):
        await api.import_prices(usage.engine, "list", other, LONG_AGO)


async def test_the_cost_center_is_the_override_else_that_of_the_profile_or_number(usage: Usage) -> None:
    usage.send.resource("dialer", "sales", "cc-profile")
    usage.send.resource("main-number", "sales", "cc-number", number="+13135550199")
    usage.send.resource("foreign", "other", "cc-foreign")
    usage.send.cost_center("cc-new")  # no resource has it yet
    usage.send.cost_center("cc-theirs", organization="northwind")
    await usage.rooms.pump()
    inbound = {"direction": "inbound", "called": "+13135550199"}
    await usage.take(
        leg("none", NOW),
        leg("profile", NOW, outbound_profile="dialer"),
        leg("other profile", NOW, outbound_profile="foreign"),
        leg("number", NOW, **inbound),
        leg("override", NOW, cost_center_id="cc-number"),
        leg("new override", NOW, cost_center_id="cc-new"),
        leg("foreign override", NOW, cost_center_id="cc-theirs", outbound_profile="dialer"),
        leg("unknown override", NOW, cost_center_id="nobody", outbound_profile="dialer"),
    )
    assert {c["event_id"]: c["cost_center_id"] for c in usage.charges} == {
        "none": None, "profile": "cc-profile", "other profile": None, "number": "cc-number",
        "override": "cc-number", "new override": "cc-new", "foreign override": "cc-profile", "unknown override": "cc-profile",
    }  # fmt: skip


async def test_a_lower_version_of_a_timeline_is_dropped(usage: Usage) -> None:
    usage.send.account("moved", group="new", version=7)
    await usage.rooms.pump()
    usage.send.account("moved", group="old", version=6)
    await usage.rooms.pump()
    await usage.take(leg("e1", NOW, "moved"))
    assert (usage.charges[0]["group_id"], usage.charges[0]["assignment_version"]) == ("new", 7)
    assert sum(mark.last_seq for mark in await api.registry_received(usage.engine)) == 4


# ---- quarantine ----------------------------------------------------------------------------------------------------


async def test_every_bad_record_is_quarantined_with_its_reason_and_disturbs_no_other(usage: Usage) -> None:
    euro = read_price_file(b"product,prefix,price_per_minute,currency\nvoice.outbound,44,0.01,USD\n")
    await api.import_prices(usage.engine, "euro", type(euro)("EUR", euro.rows, ()), LONG_AGO, is_default=True)
    usage.send.account("elsewhere", organization="northwind")
    usage.send.account("closed", closed_at=NOW - timedelta(days=1))
    usage.send.account("new", opened_at=NOW - timedelta(hours=1))
    await usage.rooms.pump()
    old, tomorrow = NOW - timedelta(days=40), NOW + timedelta(days=1)
    twice = json.dumps(leg("twice", NOW)).encode().replace(b'"id"', b'"id": "x", "id"')
    bad: list[tuple[Any, str, str | None]] = [
        (b"not json", "not_json", None),
        (json.dumps(leg("cut", NOW)).encode()[:-5], "not_json", None),
        (b"\xff\xfe", "not_json", None),
        (b"", "not_json", None),
        (None, "not_json", None),
        (b"[" * 10_000, "not_json", None),
        (b'"' + b"x" * 900_000 + b'"', "invalid_event", None),
        (twice, "invalid_event", "id"),
        (leg("v", NOW) | {"specversion": "0.3"}, "invalid_event", "specversion"),
        (leg("t", NOW) | {"type": "other"}, "unknown_type", "type"),
        (leg("m", NOW, duration_s="1_000"), "invalid_event", "data.duration_s"),
        (leg("f", NOW, duration_s="６０"), "invalid_event", "data.duration_s"),
        (leg("n", NOW, duration_s=float("nan")), "invalid_event", "data.duration_s"),
        (leg("a", NOW, amount=0.1), "invalid_event", "data.amount"),
        (leg("neg", NOW, billable_s=-1), "invalid_event", "data.billable_s"),
        (leg("e", NOW, started_at="2099-01-01T00:00:00Z"), "invalid_event", "data.ended_at"),
        (leg("nul", NOW, call_leg_id="a\0b"), "invalid_event", "data.call_leg_id"),
        (leg("u", NOW, "nobody"), "unknown_account", "data.account_id"),
        (leg("before", NOW - timedelta(hours=2), "new"), "unknown_account", "data.account_id"),
        (leg("c", NOW, "closed"), "account_closed", "data.account_id"),
        (leg("s", NOW, source="pbx/other"), "not_permitted", "source"),
        (leg("o", NOW, "elsewhere"), "not_permitted", "data.account_id"),
        (leg("p", NOW, called="+999912345"), "no_price", "data.called"),
        (leg("w", NOW, called="+447700900123"), "wrong_currency", "data.account_id"),
        (leg("big", NOW, called="+919876543210"), "invalid_event", "data.billable_s"),
        (leg("old", old), "too_old", "data.ended_at"),
        (leg("tomorrow", tomorrow), "in_future", "data.ended_at"),
    ]
    records: list[Any] = []
    for number, (value, _, _) in enumerate(bad):
        records += [leg(f"good{number}", NOW), value]
    await usage.take(*records, leg("last", NOW))
    assert {c["event_id"] for c in usage.charges} == {f"good{n}" for n in range(len(bad))} | {"last"}
    told = {r["offset"]: r for r in usage.rejections}
    seen = [(told[2 * n + 1]["reason"], told[2 * n + 1]["field"]) for n in range(len(bad))]
    assert seen == [(reason, field) for _, reason, field in bad]
    assert all(r["message"] and r["action"] == "quarantined" for r in told.values())
    said = {r["event_id"]: r["message"] for r in told.values()}
    assert said["before"].startswith("was opened at ")  # when, and how it is mended
    assert said["before"].endswith("Z, after the event; who used before is created with an earlier opened_at")
    assert (said["s"].endswith("; add it, and replay the record"), "Z, before the event" in said["c"]) == (True, True)
    assert await usage.classes() == {"rated": len(bad) + 1, "quarantined": len(bad)}
    parked = {row.offset: row for row in await api.parked(usage.engine)}
    assert parked[1].value == b"not json"
    assert parked[2 * 22 + 1].about == {
        "source": SOURCE, "event_id": "p", "account_id": "sales", "event_time": NOW.isoformat(), "group_id": "g-sales",
    }  # fmt: skip


async def test_an_unregistered_publisher_may_send_nothing(usage: Usage) -> None:
    usage.send.leg(leg("e1", NOW), publisher="stranger")
    await usage.rooms.pump()
    assert usage.charges == []
    assert usage.log.data("usage.rejections.stranger")[0]["reason"] == "not_permitted"


async def test_the_tolerance_is_that_of_the_publisher_and_of_the_brokers_clock(usage: Usage) -> None:
    broker = NOW - timedelta(days=3)
    for name, late in (("exact", timedelta(days=35)), ("older", timedelta(days=35, seconds=1))):
        usage.send.leg(leg(name, broker - late), at=broker)
    for name, early in (("early", timedelta(seconds=600)), ("earlier", timedelta(seconds=601))):
        usage.send.leg(leg(name, broker + early), at=broker)
    await usage.rooms.pump()
    assert {c["event_id"] for c in usage.charges} == {"exact", "early"}
    assert {r["event_id"]: r["reason"] for r in usage.rejections} == {"older": "too_old", "earlier": "in_future"}


async def test_a_record_that_only_the_database_refuses_is_found_among_its_neighbours(usage: Usage) -> None:
    """A broker whose clock runs years ahead: no partition is made for such a day, so only the table refuses the row."""
    far = NOW + timedelta(days=3_650)
    for number in range(20):
        if number == 13:
            usage.send.leg(leg("far", far), at=far)
        else:
            usage.send.leg(leg(f"e{number}", NOW))
    await usage.rooms.pump()
    assert {c["event_id"] for c in usage.charges} == {f"e{n}" for n in range(20) if n != 13}
    (rejection,) = usage.rejections
    assert (rejection["reason"], rejection["offset"], rejection["account_id"]) == ("refused_by_store", 13, "sales")
    assert await usage.classes() == {"rated": 19, "quarantined": 1}


async def test_whatever_stands_in_a_header_a_bad_record_can_be_kept(usage: Usage) -> None:
    await usage.take(leg("e1", NOW))
    lane = f"events/{TOPIC}/0"
    record = Record(TOPIC, 0, 1, 0, b"\0", b"\0", lane, headers=(("a\0b", b"\0"),))
    await usage.processor.process(usage.processor.room.input("events"), [record], {lane: (1, 2)})
    (row,) = await api.parked(usage.engine)
    assert (row.reason, row.value) == ("not_json", b"\0")


async def test_a_replay_after_the_cause_is_gone_counts_the_record_where_it_belongs(usage: Usage) -> None:
    await usage.take(
        leg("e1", NOW, "field"), leg("e2", NOW, "field", answered=False, billable_s=0), leg("e1", NOW, "field")
    )
    assert await usage.classes() == {"quarantined": 3}
    assert await api.replay(usage.engine, "ann", reason="unknown_account") == 3
    await usage.rooms.pump()
    assert await usage.classes() == {"quarantined": 3}
    usage.send.account("field")
    await usage.rooms.pump()  # by itself
    assert await usage.classes() == {"rated": 1, "not_billable": 1, "duplicate": 1}
    (charge,) = usage.charges
    assert charge["account_id"] == "field"
    told = [(r["action"], r["reason"]) for r in usage.rejections]
    assert told.count(("quarantined", "unknown_account")) == 6
    assert sorted(each for each in told if each[0] == "replayed") == [
        ("replayed", "duplicate"), ("replayed", "not_billable"), ("replayed", "rated"),
    ]  # fmt: skip


async def test_a_price_that_comes_later_rates_the_record_with_its_date(usage: Usage) -> None:
    await usage.take(leg("e1", NOW, called="+447700900123"))
    assert usage.rejections[0]["reason"] == "no_price"
    prices = read_price_file(b"product,prefix,price_per_minute,currency\nvoice.outbound,44,0.01,USD\n")
    await api.import_prices(usage.engine, "more", prices, NOW - timedelta(days=2))
    await usage.rooms.pump()
    assert await usage.classes() == {"quarantined": 1}  # nobody is rated by that book yet
    await api.set_default_books(usage.engine, ["list", "more"])
    await usage.rooms.pump()
    assert (usage.charges[0]["amount"], usage.charges[0]["book_id"]) == ("0.02", "more")
    assert [r["action"] for r in usage.rejections] == ["quarantined", "replayed"]


async def test_a_discarded_record_is_told_and_stays_in_its_class(usage: Usage) -> None:
    await usage.take(leg("e1", NOW, "nobody"))
    (row,) = await api.parked(usage.engine)
    assert await api.discard(usage.engine, "ann", ids=[row.id]) == 1
    await usage.rooms.pump()
    assert [(r["action"], r["reason"]) for r in usage.rejections] == [
        ("quarantined", "unknown_account"), ("discarded", "unknown_account"),
    ]  # fmt: skip
    assert await usage.classes() == {"quarantined": 1}
    assert await api.replay(usage.engine, "ann", ids=[row.id]) == 0


# ---- identities ----------------------------------------------------------------------------------------------------


async def test_the_same_event_counts_once_wherever_its_copies_meet(usage: Usage) -> None:
    event = leg("e1", NOW)
    usage.send.leg(event, partition=0)
    usage.send.leg(event, partition=0)
    usage.send.leg(event, partition=1)
    await usage.rooms.pump()
    await usage.take(event)
    assert len(usage.charges) == 1
    assert await usage.classes() == {"rated": 1, "duplicate": 3}
    assert usage.rejections == []


async def test_the_same_id_with_other_content_is_a_conflict(usage: Usage) -> None:
    await usage.take(leg("e1", NOW), leg("e1", NOW, billable_s=60))
    await usage.take(leg("e1", NOW, billable_s=61))
    assert [c["quantity"] for c in usage.charges] == [120]
    assert [(r["reason"], r["field"]) for r in usage.rejections] == [("conflict", "id")] * 2


async def test_the_same_id_thirty_days_apart_with_another_event_time_is_a_conflict(usage: Usage) -> None:
    before = NOW - timedelta(days=30)
    usage.send.leg(leg("e1", before), at=before)
    usage.send.leg(leg("e1", NOW), at=NOW)
    await usage.rooms.pump()
    assert [c["event_time"] for c in usage.charges] == [before.isoformat().replace("+00:00", "Z")]
    assert [r["reason"] for r in usage.rejections] == ["conflict"]


async def test_an_identical_copy_is_a_duplicate_or_too_old_after_any_time(usage: Usage) -> None:
    ended = NOW - timedelta(days=90)
    event = leg("e1", ended)
    usage.send.leg(event, at=ended)
    await usage.rooms.pump()
    usage.send.leg(event, at=ended + timedelta(days=35))
    await usage.rooms.pump()
    assert await usage.classes() == {"rated": 1, "duplicate": 1}
    for _ in range(2):
        await usage.switch_generation()
    usage.send.leg(event, at=ended + timedelta(days=80))
    await usage.rooms.pump()
    assert await usage.classes() == {"rated": 1, "duplicate": 1, "quarantined": 1}
    assert [r["reason"] for r in usage.rejections] == ["too_old"]
    assert len(usage.charges) == 1


async def test_identities_are_known_across_a_switch_of_generations(usage: Usage) -> None:
    await usage.take(leg("e1", NOW))
    await usage.switch_generation()
    await usage.take(leg("e1", NOW), leg("e1", NOW, billable_s=60), leg("e2", NOW))
    assert await usage.classes() == {"rated": 2, "duplicate": 1, "quarantined": 1}
    rows = await usage.rooms.query("usage", select(IDENTITY.c.generation, func.count()).group_by(IDENTITY.c.generation))
    assert dict(rows) == {1: 1, 2: 1}
    await usage.switch_generation()
    rows = await usage.rooms.query("usage", select(IDENTITY.c.generation))
    assert [row.generation for row in rows] == [2]


UNPRICED = "+99912345678"


async def park_and_accept(usage: Usage, day: datetime) -> None:
    """Park three events, then accept an amendment, a void and an identical copy of them."""
    usage.send.leg(leg("amended", day, called=UNPRICED), at=day)
    usage.send.leg(leg("voided", day, called=UNPRICED), at=day)
    usage.send.leg(leg("again", day, source="pbx/new"), at=day)
    await usage.rooms.pump()
    usage.send.publisher(sources=(SOURCE, "pbx/new"))
    await usage.rooms.pump()
    usage.send.leg(leg("amended", day) | {"revision": 1}, at=day + timedelta(hours=1))
    usage.send.leg(void("voided", 1), at=day + timedelta(hours=1))
    usage.send.leg(leg("again", day, source="pbx/new"), at=day + timedelta(hours=1))
    await usage.rooms.pump()


async def run_again(usage: Usage) -> None:
    """What had no price is tried again by itself, the rest as somebody asks."""
    prices = read_price_file(b"product,prefix,price_per_minute,currency\nvoice.outbound,999,0.01,USD\n")
    await api.import_prices(usage.engine, "more", prices, LONG_AGO, is_default=True)
    await api.replay(usage.engine, "ann", reason="not_permitted")
    await usage.rooms.pump()


async def generations(usage: Usage) -> list[int]:
    async with transaction(usage.engine) as connection:
        return await store.existing_generations(connection)


async def test_what_was_accepted_while_a_record_is_parked_is_remembered_until_that_is_decided(usage: Usage) -> None:
    await park_and_accept(usage, NOW - timedelta(days=80))
    for _ in range(2):
        await usage.switch_generation()
    assert await generations(usage) == [1, 2, 3]
    await run_again(usage)
    assert sorted(c["event_id"] for c in usage.charges) == ["again", "amended"]
    assert await usage.classes() == {"rated": 2, "voided": 2, "duplicate": 2}
    await usage.switch_generation()
    assert await generations(usage) == [3, 4]


async def test_a_record_that_is_parked_for_too_long_costs_no_more_and_is_charged_no_more(usage: Usage) -> None:
    await park_and_accept(usage, NOW - timedelta(days=150))
    for _ in range(SEALED_MAX):
        await usage.switch_generation()
    assert await generations(usage) == [1, 2, 3, 4]
    await usage.switch_generation()
    assert await generations(usage) == [4, 5]
    await run_again(usage)
    assert sorted(c["event_id"] for c in usage.charges) == ["again", "amended"]
    told = [(r["action"], r["event_id"], r["reason"]) for r in usage.rejections[3:]]
    assert sorted(told) == [("quarantined", id, "too_old") for id in ("again", "amended", "voided")]
    assert "publish it anew" in usage.rejections[-1]["message"]
    await api.replay(usage.engine, "ann", reason="too_old")
    await usage.take(leg("e1", NOW))
    assert sorted(c["event_id"] for c in usage.charges) == ["again", "amended", "e1"]


async def test_a_generation_is_switched_when_it_is_36_days_old(usage: Usage) -> None:
    async def generation_after(days: int) -> int:
        await usage.rooms.query("usage", select(func.runtime.clock_move(timedelta(days=days))))
        await usage.rooms.pump(ticks=True)
        return int((await usage.rooms.query("usage", select(STATE.c.generation)))[0][0])

    assert [await generation_after(days) for days in (35, 1, 35, 1)] == [1, 2, 2, 3]


async def test_a_duplicate_is_one_even_when_its_price_has_gone(usage: Usage) -> None:
    await usage.take(leg("e1", NOW))
    await api.set_default_books(usage.engine, [])
    await usage.take(leg("e1", NOW), leg("e2", NOW), leg("e1", NOW, billable_s=1))
    assert await usage.classes() == {"rated": 1, "duplicate": 1, "quarantined": 2}
    assert {r["event_id"]: r["reason"] for r in usage.rejections} == {"e1": "conflict", "e2": "no_price"}


async def test_repeats_among_many_new_events_are_recognised_and_all_others_charged(usage: Usage) -> None:
    await usage.take(*(leg(f"e{n}", NOW) for n in range(0, 300, 3)))
    await usage.take(*(leg(f"e{n}", NOW) for n in range(300)), leg("e0", NOW, billable_s=1))
    assert sorted(c["event_id"] for c in usage.charges) == sorted(f"e{n}" for n in range(300))
    assert await usage.classes() == {"rated": 300, "duplicate": 100, "quarantined": 1}
    await usage.take(*(leg(f"e{n}", NOW) for n in range(200, 400)))
    assert await usage.classes() == {"rated": 400, "duplicate": 200, "quarantined": 1}


async def test_two_workers_that_get_the_same_event_at_once_charge_it_once(usage: Usage, database: Database) -> None:
    events = [leg(f"e{n}", NOW) for n in range(200)]
    for event in events:
        usage.send.leg(event, partition=0)
    for event in reversed(events):
        usage.send.leg(event, partition=1)
    async with Rooms(usage.log, database, [build()]) as other:
        source = usage.processor.room.input("events")
        await usage.rooms.pump()  # gives birth to the lanes
        for event in events:
            usage.send.leg(event | {"id": event["id"] + "b"}, partition=0)
        for event in reversed(events):
            usage.send.leg(event | {"id": event["id"] + "b"}, partition=1)

        def batch(partition: int) -> tuple[list[Record], dict[str, tuple[int, int]]]:
            lane = f"events/{TOPIC}/{partition}"
            logged = usage.log.records[TOPIC, partition]
            return [
                Record(TOPIC, partition, offset, each.timestamp_ms, each.key, each.value, lane)
                for offset, each in enumerate(logged)
                if offset >= 200
            ], {lane: (200, 400)}

        await asyncio.gather(
            usage.processor.process(source, *batch(0)),
            other.processors["usage"].process(other.processors["usage"].room.input("events"), *batch(1)),
        )
        await usage.rooms.pump()
    assert len(usage.charges) == 400
    assert len({c["charge_id"] for c in usage.charges}) == 400
    assert await usage.classes() == {"rated": 400, "duplicate": 400}


@pytest.mark.parametrize("size", [1, 3, 7])
async def test_any_split_into_batches_gives_the_same_charges(usage: Usage, size: int) -> None:
    mixed = [leg(f"e{n % 17}", NOW - timedelta(seconds=n % 17), billable_s=90 - (n == 20)) for n in range(40)]
    for event in mixed:
        usage.send.leg(event)
    source = usage.processor.room.input("events")
    object.__setattr__(source, "max_records", size)
    await usage.rooms.pump()
    assert {c["event_id"]: c["amount"] for c in usage.charges} == {f"e{n}": "0.028" for n in range(17)}
    assert await usage.classes() == {"rated": 17, "duplicate": 22, "quarantined": 1}


# ---- what the auditor asks -----------------------------------------------------------------------------------------


async def test_the_auditor_finds_every_record_in_the_class_it_was_counted_in(usage: Usage) -> None:
    usage.send.account("try", plan="trial")
    await usage.rooms.pump()
    await usage.take(
        leg("e1", NOW), leg("e1", NOW), leg("e2", NOW, answered=False, billable_s=0), leg("e3", NOW, "try"), b"junk",
        leg("e1", NOW, billable_s=1), leg("e4", NOW, called="+999912345"),
    )  # fmt: skip
    records = [(offset, each.headers, each.value) for offset, each in enumerate(usage.log.records[TOPIC, 0])]
    assert await api.classify(usage.engine, TOPIC, 0, [*records, (99, (), json.dumps(leg("new", NOW)).encode())]) == {
        0: "rated", 1: "duplicate", 2: "not_billable", 3: "rated_ungrouped", 4: "quarantined", 5: "quarantined",
        6: "quarantined", 99: None,
    }  # fmt: skip


async def test_totals_add_up_to_what_was_published(usage: Usage) -> None:
    usage.send.account("try", plan="trial")
    await usage.rooms.pump()
    await usage.take(leg("e1", NOW), leg("e2", NOW, billable_s=1), leg("e3", NOW, "try"))
    totals = await api.charge_totals(usage.engine)
    of_group = totals["g-sales", f"{NOW:%Y-%m}"]
    assert (of_group.count, of_group.amount_nano) == (2, 42_000_000)
    assert of_group.accounts["sales"].xor == of_group.xor != 0
    assert totals[None, None].count == 1
    links = await api.charge_links(usage.engine)
    assert sum(mark.last_seq for mark in links) == 3 == len(usage.log.read(USAGE_CHARGES.name))
    stored = await usage.rooms.query("usage", select(func.count()).select_from(CHARGE))
    assert stored[0][0] == 3
    assert [row["event_id"] for row in await api.charges(usage.engine, "try")] == ["e3"]
