"""Charges that were made before the registry told of a change are moved to whom it says now, once, and sum to the same."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any
from uuid import UUID

import pytest
from pydantic import TypeAdapter
from sqlalchemy import select, text

from contracts.usage import Charge
from services.kernel.money import format_nano, parse_amount
from services.kernel.period import period_of
from services.usage import api, reassignments
from services.usage.books import PriceRow
from services.usage.consumer import build
from services.usage.price_files import PriceFile, read_price_file
from services.usage.tables import REASSIGNED_CHARGE, REASSIGNMENT
from services.usage.tiers import Band
from tests.support.rooms import Rooms
from tests.support.servers import Database
from tests.support.usage_registry import LONG_AGO, leg, void
from tests.support.usage_room import Usage
from tests.usage.test_counters import counters
from tests.usage.test_rerate_tiers import CENT, cost, imported, tiers, use
from tests.usage.test_rerating import approved, carry_out, executed, live_once, other_waits_for, planned, price, sums

HOUR = timedelta(hours=1)
STARTED = datetime.now(UTC).replace(microsecond=0)
NOW = min(STARTED, period_of(STARTED - 4 * HOUR).end - HOUR)  # of one month with the hours before it
MOVED = NOW - 2 * HOUR  # an event at NOW is after it, one at NOW - 3 hours before
NUMBER = "+13135550199"


async def looked_through(usage: Usage) -> None:
    """Ticks until every reassignment is done."""
    tick = next(each for each in usage.processor.room.ticks if each.name == "reassign")
    for _ in range(500):
        if not await usage.rooms.query("usage", select(REASSIGNMENT).where(REASSIGNMENT.c.done_at.is_(None))):
            break
        await usage.processor.tick(tick)
    else:
        raise AssertionError("the reassignments do not come to an end")
    await usage.rooms.pump()


async def told(usage: Usage) -> None:
    """What the registry sent arrives, and charges are moved by it."""
    await usage.rooms.pump()
    await looked_through(usage)


def moved_to(group: str, at: datetime = MOVED, before: str = "g-sales") -> dict[str, Any]:
    return {"groups": [(LONG_AGO, at, before), (at, None, group)]}


def by(usage: Usage, *names: str) -> dict[tuple[Any, ...], str]:
    """What is charged in all under each of these stamps."""
    found: dict[tuple[Any, ...], int] = defaultdict(int)
    for charge in usage.charges:
        found[tuple(charge[name] for name in names)] += parse_amount(charge["amount"], signed=True)
    return {key: format_nano(nano) for key, nano in found.items() if nano}


def inbound(name: str, at: datetime = NOW, **more: Any) -> dict[str, Any]:
    """A call to the number, which names no account unless it is said."""
    data = {"direction": "inbound", "called": NUMBER, "account_id": None} | more
    return leg(name, at, **data)


def live(usage: Usage) -> dict[str, Mapping[str, Any]]:
    """The charge that stands of each event."""
    taken_back = {charge["reverses"] for charge in usage.charges}
    return {
        charge["event_id"]: charge
        for charge in usage.charges
        if charge["reverses"] is None and charge["charge_id"] not in taken_back
    }


async def test_a_move_that_becomes_known_later_moves_what_was_charged_since(usage: Usage) -> None:
    await usage.take(leg("before", NOW - 3 * HOUR), leg("at", MOVED), leg("after", NOW))
    usage.send.account("sales", **moved_to("g2"))
    await told(usage)
    assert by(usage, "group_id") == {("g-sales",): "0.028", ("g2",): "0.056"}
    assert sums(usage) == {"before": "0.028", "at": "0.028", "after": "0.028"}
    first = next(charge for charge in usage.charges if charge["event_id"] == "after")
    reversal, replacement = (each for each in usage.charges if each["event_id"] == "after" and each != first)
    assert reversal == first | {
        "charge_id": reversal["charge_id"], "reverses": first["charge_id"], "amount": "-0.028", "quantity": -120,
    }  # fmt: skip
    assert replacement == first | {
        "charge_id": replacement["charge_id"], "group_id": "g2", "assignment_version": 2,
        "replaces": first["charge_id"],
    }  # fmt: skip
    for charge in usage.charges:
        TypeAdapter(Charge).validate_python(charge)
    await live_once(usage)


async def test_of_moves_in_one_second_the_last_word_holds(usage: Usage) -> None:
    await usage.take(leg("e1", NOW))
    usage.send.account("sales", **moved_to("g2"))
    usage.send.account("sales", **moved_to("g3"))
    await told(usage)
    assert by(usage, "group_id") == {("g3",): "0.028"}
    assert len(usage.charges) == 3
    await live_once(usage)


async def test_moves_that_come_in_reverse_are_moves_to_the_last(usage: Usage) -> None:
    await usage.take(leg("e1", NOW))
    usage.send.account("sales", version=3, **moved_to("g3"))
    await told(usage)
    usage.send.account("sales", version=2, **moved_to("g2"))
    await told(usage)
    assert by(usage, "group_id") == {("g3",): "0.028"}
    assert len(usage.charges) == 3


async def test_a_move_there_and_back_leaves_nothing(usage: Usage) -> None:
    await usage.take(leg("e1", NOW))
    usage.send.account("sales", **moved_to("g2"))
    await told(usage)
    usage.send.account("sales")
    await told(usage)
    assert by(usage, "group_id", "bill_to") == {("g-sales", NOW.strftime("%Y-%m")): "0.028"}
    assert [charge["amount"] for charge in usage.charges] == ["0.028", "-0.028", "0.028", "-0.028", "0.028"]
    await live_once(usage)


async def test_a_move_that_comes_while_charges_are_looked_through_is_moved_to_as_well(
    usage: Usage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reassignments, "CHUNK", 2)
    await usage.take(*(leg(f"e{number}", NOW - timedelta(minutes=number)) for number in range(7)))
    usage.send.account("sales", **moved_to("g2"))
    await usage.rooms.pump()
    tick = next(each for each in usage.processor.room.ticks if each.name == "reassign")
    await usage.processor.tick(tick)
    usage.send.account("sales", **moved_to("g3"))
    await usage.rooms.pump()
    await usage.take(leg("new", NOW))
    assert by(usage, "group_id") == {("g-sales",): "0.14", ("g2",): "0.056", ("g3",): "0.028"}
    await told(usage)
    assert by(usage, "group_id") == {("g3",): "0.224"}
    assert {charge["event_id"]: charge["group_id"] for charge in live(usage).values()} == dict.fromkeys(
        [*(f"e{number}" for number in range(7)), "new"], "g3"
    )
    assert len(usage.charges) == 8 + 2 * 7 + 2 * 2  # those of the first chunk twice, all others once
    await live_once(usage)


async def test_where_the_new_group_has_other_prices_the_charge_is_by_them(usage: Usage) -> None:
    await price(usage, "0.01", "cheap")
    await usage.take(leg("e1", NOW), leg("e2", NOW, called="+919876543210", billable_s=1))
    before = usage.charges
    usage.send.account("sales", pricing_models={"g2": "cheap"}, **moved_to("g2"))
    await told(usage)
    assert by(usage, "group_id", "event_id") == {("g2", "e1"): "0.02", ("g2", "e2"): before[1]["amount"]}
    assert {each["event_id"]: each["book_id"] for each in live(usage).values()} == {"e1": "cheap", "e2": "list"}
    await live_once(usage)


async def test_another_pricing_model_of_the_same_group_prices_what_was_charged_since(usage: Usage) -> None:
    await price(usage, "0.01", "cheap")
    await usage.take(leg("e1", NOW), leg("same", NOW, called="+919876543210", billable_s=1))
    usage.send.account("sales", pricing_model="cheap")
    await told(usage)
    assert by(usage, "group_id", "event_id")["g-sales", "e1"] == "0.02"
    assert len(usage.charges) == 4  # what costs as much as before stays as it is


async def test_a_price_stays_where_the_same_books_are_asked(usage: Usage) -> None:
    """Only a re-rate gives charges the prices of a version that was dated back."""
    await usage.take(leg("e1", NOW))
    await price(usage, "0.02")
    usage.send.account("sales", **moved_to("g2"))
    await told(usage)
    assert by(usage, "group_id") == {("g2",): "0.028"}


@pytest.mark.parametrize("pricing_model", [None, "cheap"])
async def test_a_price_stays_where_the_book_that_gave_it_is_asked_again(
    usage: Usage, pricing_model: str | None
) -> None:
    """There and back in one look, or to a pricing model that has no price for it: nothing of a version that was dated back."""
    await price(usage, "0.01", "cheap")
    await usage.take(leg("e1", NOW, called="+919876543210", billable_s=60), leg("e2", NOW))
    before = usage.charges
    usage.send.account("sales", pricing_models={"g2": "cheap"}, **moved_to("g2"))
    await usage.rooms.pump()
    rows = b"product,prefix,price_per_minute,currency,minimum_s,increment_s\nvoice.outbound,1,7,USD,60,60\nvoice.outbound,91,7,USD,60,60\n"
    await api.import_prices(usage.engine, "list", read_price_file(rows), LONG_AGO)
    usage.send.account("sales", pricing_model=pricing_model)
    await told(usage)
    assert by(usage, "group_id", "event_id") == {
        ("g-sales", "e1"): before[0]["amount"], ("g-sales", "e2"): before[1]["amount"] if pricing_model is None else "0.02",
    }  # fmt: skip
    await live_once(usage)


async def test_a_number_that_was_moved_takes_along_what_came_to_it_without_a_name(usage: Usage) -> None:
    usage.send.account("main")
    for center in ("desk", "hall"):
        usage.send.cost_center(center)
    usage.send.resource("n", "sales", "desk", number=NUMBER)
    await usage.rooms.pump()
    await usage.take(
        inbound("before", NOW - 3 * HOUR), inbound("after"), inbound("named", account_id="sales"),
        inbound("override", cost_center_id="hall"), leg("out", NOW),
    )  # fmt: skip
    usage.send.resource(
        "n", "main", "desk", number=NUMBER, owners=[(LONG_AGO, MOVED, "sales"), (MOVED, None, "main")]
    )  # fmt: skip
    await told(usage)
    assert {
        name: (each["account_id"], each["group_id"], each["cost_center_id"], each.get("replaces") is not None)
        for name, each in live(usage).items()
    } == {
        "before": ("sales", "g-sales", "desk", False),
        "after": ("main", "g-main", "desk", False),  # of another account's charge it says nothing
        "named": ("sales", "g-sales", None, True),  # whoever named the account meant it; the center is the new owner's
        "override": ("main", "g-main", "hall", False),
        "out": ("sales", "g-sales", None, False),
    }
    moved = live(usage)["after"]
    assert moved["assignment_version"] == 1
    assert (await api.charge(usage.engine, UUID(moved["charge_id"]))).who_pays[-1] == (
        "moved to main, group g-main, cost center desk, by version 2 of the timeline of number n"
    )
    await live_once(usage)


async def test_an_override_of_a_foreign_organization_counts_nowhere(usage: Usage) -> None:
    usage.send.cost_center("theirs", "northwind")
    usage.send.resource("p", "sales", "desk")
    usage.send.account("foreign", organization="northwind")
    await usage.rooms.pump()
    await usage.take(
        leg("theirs", NOW, outbound_profile="p", cost_center_id="theirs"),
        leg("ours", NOW, outbound_profile="p", cost_center_id="desk"),
    )
    usage.send.resource("p", "sales", None, cost_centers=[(LONG_AGO, MOVED, "desk"), (MOVED, None, "hall")])
    await told(usage)
    assert {name: each["cost_center_id"] for name, each in live(usage).items()} == {"theirs": "hall", "ours": "desk"}
    await live_once(usage)


async def test_a_number_that_appears_gives_its_cost_center_to_what_came_to_it(usage: Usage) -> None:
    await usage.take(inbound("e1", account_id="sales"), inbound("nobodys"))
    assert len(usage.charges) == 1
    usage.send.resource("n", "sales", "desk", number=NUMBER)
    await told(usage)
    assert {name: each["cost_center_id"] for name, each in live(usage).items()} == {"e1": "desk", "nobodys": "desk"}
    assert sums(usage) == {"e1": "0.013458333", "nobodys": "0.013458333"}


async def test_a_plan_that_becomes_known_later_says_how_it_is_paid(usage: Usage) -> None:
    await usage.take(leg("before", NOW - 3 * HOUR), leg("after", NOW))
    usage.send.account("sales", plans=[(LONG_AGO, MOVED, "payg"), (MOVED, None, "invoiced")])
    await told(usage)
    assert by(usage, "plan", "group_id") == {("payg", "g-sales"): "0.028", ("invoiced", "g-sales"): "0.028"}
    usage.send.account("sales", plan="trial")
    await told(usage)
    assert by(usage, "plan", "group_id", "bill_to") == {("trial", None, None): "0.056"}
    await live_once(usage)


async def test_the_fee_of_a_number_stays_with_whoever_had_it_and_follows_its_account(usage: Usage) -> None:
    usage.send.account("main")
    usage.send.resource("n", "sales", "desk", number=NUMBER)
    await usage.rooms.pump()
    rows = b"product,prefix,price,currency,unit\nnumber.rental,*,1,USD,day\n"
    await api.import_prices(usage.engine, "rent", read_price_file(rows), LONG_AGO, is_default=True)
    data = {
        "account_id": "sales", "number": NUMBER, "month": f"{NOW:%Y-%m}", "days": 3,
        "starts_at": f"{NOW - 3 * HOUR:%Y-%m-%dT%H:%M:%SZ}",
    }  # fmt: skip
    await usage.take(leg("fee", NOW) | {"type": "tollbook.usage.rental.v1", "data": data})
    (fee,) = usage.charges
    at = NOW - 4 * HOUR
    usage.send.resource("n", "main", "desk", number=NUMBER, owners=[(LONG_AGO, at, "sales"), (at, None, "main")])
    await told(usage)
    assert by(usage, "account_id", "group_id", "cost_center_id") == {("sales", "g-sales", None): fee["amount"]}
    usage.send.account("sales", **moved_to("g2", at))
    await told(usage)
    assert by(usage, "account_id", "group_id") == {("sales", "g2"): fee["amount"]}
    assert live(usage)["fee"]["per"] == fee["per"]
    await live_once(usage)


# ---- what cannot be moved ------------------------------------------------------------------------------------------


async def test_what_has_no_price_there_stays_and_is_shown_with_the_reason(usage: Usage) -> None:
    await usage.take(leg("e1", NOW), leg("e2", NOW), leg("before", NOW - 3 * HOUR))
    before = usage.charges
    usage.send.account("sales", pricing_models={"g2": "not-loaded"}, **moved_to("g2"))
    await told(usage)
    assert usage.charges == before
    (found,) = await api.reassignments(usage.engine)
    assert (found.state, found.kind, found.object_id, found.version, found.moved, found.left) == (
        "done", "account", "sales", 2, 0, 2,
    )  # fmt: skip
    shown = await api.reassignment(usage.engine, found.reassignment_id, limit=1)
    (line,) = shown.left_out
    assert (line.reason, line.charges, len(shown.left_charges)) == ("no_price", 2, 1)
    assert (await api.charge(usage.engine, UUID(before[0]["charge_id"]))).who_pays[-1] == (
        "stays as it is, whatever version 2 of the account's timeline says: the prices of who pays now have none for it"
    )
    await live_once(usage)


@pytest.mark.parametrize("what", ["group", "cost center"])
async def test_what_was_left_for_want_of_a_price_takes_its_own_price_nowhere(usage: Usage, what: str) -> None:
    """A later change of another kind asks no other books, but the charge is still by those of the group that it left."""
    models = dict.fromkeys(["g2", "g3", "g4"], "cheap")
    usage.send.resource("p", "sales", "desk")
    await usage.rooms.pump()
    await usage.take(leg("e1", NOW, outbound_profile="p"))
    usage.send.account("sales", pricing_models=models, **moved_to("g2"))
    await told(usage)

    async def change(group: str, center: str) -> None:
        if what == "group":
            usage.send.account("sales", pricing_models=models, **moved_to(group))
        else:
            usage.send.resource("p", "sales", center)
        await told(usage)

    await change("g3", "hall")
    assert by(usage, "group_id", "cost_center_id") == {("g-sales", "desk"): "0.028"}
    await price(usage, "0.01", "cheap")
    await change("g4", "yard")
    now = ("g4", "desk") if what == "group" else ("g2", "yard")
    assert by(usage, "group_id", "cost_center_id") == {now: "0.02"}
    await live_once(usage)


async def test_what_asks_other_books_holds_for_a_change_that_is_looked_through_before_it(
    usage: Usage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reassignments, "JOBS_AT_ONCE", 1)
    await price(usage, "0.01", "cheap")
    usage.send.resource("p", "sales", "desk")
    await usage.rooms.pump()
    await usage.take(leg("e1", NOW, outbound_profile="p"))
    models = {"g2": "cheap", "g3": "not-loaded"}
    for group, center, left in (("g2", "hall", 0), ("g3", "yard", 1)):
        usage.send.resource("p", "sales", center)
        await usage.rooms.pump()
        usage.send.account("sales", pricing_models=models, **moved_to(group))
        await told(usage)
        assert by(usage, "group_id", "cost_center_id") == {("g2", "hall"): "0.02"}
        assert len(usage.charges) == 3  # it was moved once
        assert {each.left for each in await api.reassignments(usage.engine, limit=2)} == {left}
    await live_once(usage)


async def test_what_would_be_in_another_currency_stays(usage: Usage) -> None:
    await usage.take(leg("e1", NOW))
    usage.send.account("sales", currency="EUR", **moved_to("g2"))
    await told(usage)
    assert len(usage.charges) == 1
    rows = await usage.rooms.query("usage", select(REASSIGNED_CHARGE.c.reason))
    assert [row.reason for row in rows] == ["wrong_currency"]
    await live_once(usage)


async def test_a_message_whose_outcome_nobody_recorded_stays_where_only_delivered_ones_cost(usage: Usage) -> None:
    for book, rows in (
        ("sent", "product,prefix,price,currency,unit\nmessage.sms.outbound,1,0.01,USD,segment\n"),
        ("arrived", "product,prefix,price,currency,unit,bill_on\nmessage.sms.outbound,1,0.01,USD,segment,delivered\n"),
    ):
        await api.import_prices(usage.engine, book, read_price_file(rows.encode()), LONG_AGO, is_default=book == "sent")
    data = {
        "account_id": "sales", "direction": "outbound", "channel": "sms", "sender": "desk", "recipient": "+12485550101",
        "segments": 1, "outcome": "accepted", "sent_at": f"{NOW:%Y-%m-%dT%H:%M:%SZ}",
    }  # fmt: skip
    await usage.take(leg("e1", NOW) | {"type": "tollbook.usage.message.v1", "data": data})
    assert len(usage.charges) == 1
    usage.send.account("sales", pricing_models={"g2": "arrived"}, **moved_to("g2"))
    await told(usage)
    assert len(usage.charges) == 1
    (found,) = await api.reassignments(usage.engine)
    assert (await api.reassignment(usage.engine, found.reassignment_id)).left_out[0].reason == "outcome_unknown"


async def test_a_message_that_was_delivered_goes_back_to_where_only_delivered_ones_cost(usage: Usage) -> None:
    for book, rows in (
        ("arrived", "product,prefix,price,currency,unit,bill_on\nmessage.sms.outbound,1,0.01,USD,segment,delivered\n"),
        ("sent", "product,prefix,price,currency,unit\nmessage.sms.outbound,1,0.02,USD,segment\n"),
    ):
        await api.import_prices(
            usage.engine, book, read_price_file(rows.encode()), LONG_AGO, is_default=book == "arrived"
        )
    data = {
        "account_id": "sales", "direction": "outbound", "channel": "sms", "sender": "desk", "recipient": "+12485550101",
        "segments": 1, "outcome": "delivered", "sent_at": f"{NOW:%Y-%m-%dT%H:%M:%SZ}",
    }  # fmt: skip
    await usage.take(leg("e1", NOW) | {"type": "tollbook.usage.message.v1", "data": data})
    for group in ("g2", "g3"):
        usage.send.account("sales", pricing_models={"g2": "sent", "g3": "sent"}, **moved_to(group))
        await told(usage)
        assert by(usage, "group_id") == {(group,): "0.02"}
    usage.send.account("sales")
    await told(usage)
    assert by(usage, "group_id") == {("g-sales",): "0.01"}
    await live_once(usage)


async def test_nothing_is_moved_to_who_is_closed_or_foreign_or_nobody(usage: Usage) -> None:
    usage.send.account("shut", closed_at=NOW - 3 * HOUR)
    usage.send.account("foreign", organization="northwind")
    numbers = {name: f"+1313555020{index}" for index, name in enumerate(("shut", "foreign", "released", "stranger"))}
    for name, number in numbers.items():
        usage.send.resource(name, "sales", None, number=number)
    await usage.rooms.pump()
    await usage.take(*(inbound(name, called=number) for name, number in numbers.items()))
    before = usage.charges
    for name, number in numbers.items():
        after = [] if name == "released" else [(MOVED, None, name)]
        usage.send.resource(name, name, None, number=number, owners=[(LONG_AGO, MOVED, "sales"), *after])
    await told(usage)
    assert usage.charges == before
    rows = await usage.rooms.query("usage", select(REASSIGNED_CHARGE.c.reason))
    assert sorted(row.reason for row in rows) == [
        "account_closed", "not_permitted", "unknown_account", "unknown_number",
    ]  # fmt: skip
    await live_once(usage)
    usage.send.account("stranger")
    usage.send.resource("again", "stranger", None, number=numbers["released"], owners=[(MOVED, None, "stranger")])
    await told(usage)
    assert by(usage, "account_id", "event_id")["stranger", "released"] == "0.013458333"
    await live_once(usage)


async def test_a_number_may_be_known_before_the_account_that_takes_it_over(usage: Usage) -> None:
    usage.send.resource("n", "sales", "desk", number=NUMBER)
    await usage.rooms.pump()
    await usage.take(inbound("e1"))
    usage.send.resource("n", "new", "desk", number=NUMBER, owners=[(LONG_AGO, MOVED, "sales"), (MOVED, None, "new")])
    await told(usage)
    assert by(usage, "account_id") == {("sales",): "0.013458333"}
    usage.send.account("new", opened_at=NOW + HOUR)
    await told(usage)
    assert by(usage, "account_id") == {("sales",): "0.013458333"}
    usage.send.account("new", opened_at=MOVED)
    await told(usage)
    assert by(usage, "account_id", "cost_center_id") == {("new", "desk"): "0.013458333"}
    assert [(each.version, each.moved, each.left) for each in await api.reassignments(usage.engine)] == [
        (2, 1, 0), (2, 0, 1), (2, 0, 1),
    ]  # fmt: skip
    usage.send.account("new", opened_at=MOVED, group="g2")
    await told(usage)
    assert by(usage, "account_id", "group_id") == {("new", "g2"): "0.013458333"}
    await live_once(usage)


async def test_of_charges_from_before_it_was_kept_account_and_cost_center_stay(
    usage: Usage, database: Database
) -> None:
    usage.send.account("main")
    usage.send.resource("n", "sales", "desk", number=NUMBER)
    await usage.rooms.pump()
    await usage.take(inbound("e1"))
    async with database.connected() as owner:
        await owner.execute("update usage.charge set named = null")
    usage.send.resource("n", "main", "hall", number=NUMBER, owners=[(LONG_AGO, MOVED, "sales"), (MOVED, None, "main")])
    await told(usage)
    assert len(usage.charges) == 1
    usage.send.account("sales", **moved_to("g2"))
    await told(usage)
    assert by(usage, "account_id", "group_id", "cost_center_id") == {("sales", "g2", "desk"): "0.013458333"}
    await live_once(usage)


async def test_a_group_that_no_timeline_names_any_more_is_taken_back_from(usage: Usage, database: Database) -> None:
    usage.send.account("sales", zones={"g2": "America/Detroit"}, **moved_to("g2"))
    await usage.take(leg("e1", NOW))
    usage.send.account("sales")
    await usage.rooms.pump()
    async with Rooms(usage.log, database, [build()]) as fresh:  # a worker that never saw the timeline with the group
        tick = next(each for each in fresh.processors["usage"].room.ticks if each.name == "reassign")
        await fresh.processors["usage"].tick(tick)
    await told(usage)
    assert by(usage, "group_id") == {("g-sales",): "0.028"}
    assert live(usage)["e1"]["period"] == period_of(NOW).name


# ---- beside other corrections --------------------------------------------------------------------------------------


async def test_a_void_and_an_amendment_after_a_move_take_back_what_was_moved(usage: Usage) -> None:
    await usage.take(leg("void", NOW), leg("amended", NOW), leg("stays", NOW))
    usage.send.account("sales", **moved_to("g2"))
    await told(usage)
    await usage.take(void("void", 1), leg("amended", NOW, billable_s=10) | {"revision": 1})
    assert by(usage, "group_id", "event_id") == {("g2", "amended"): "0.014", ("g2", "stays"): "0.028"}
    usage.send.account("sales", **moved_to("g3"))
    await told(usage)
    assert by(usage, "group_id", "event_id") == {("g3", "amended"): "0.014", ("g3", "stays"): "0.028"}
    await live_once(usage)


async def test_a_void_that_comes_between_the_timeline_and_the_chunk_leaves_nothing_to_move(usage: Usage) -> None:
    await usage.take(leg("void", NOW), leg("stays", NOW))
    usage.send.account("sales", **moved_to("g2"))
    await usage.take(void("void", 1))
    await told(usage)
    assert by(usage, "group_id", "event_id") == {("g2", "stays"): "0.028"}
    await live_once(usage)


@pytest.mark.parametrize("first", ["re-rate", "move"])
async def test_a_re_rate_and_a_move_together_come_to_the_same(usage: Usage, first: str) -> None:
    await usage.take(*(leg(f"e{number}", NOW - timedelta(minutes=number)) for number in range(5)))
    await price(usage, "0.02")
    plan = await approved(usage)
    await api.execute_rerate(usage.engine, plan.plan_id, "bob", "operator")
    usage.send.account("sales", **moved_to("g2"))
    await usage.rooms.pump()
    if first == "move":
        await looked_through(usage)
        assert (await executed(usage, plan)).left_stale == 5
        assert by(usage, "group_id") == {("g2",): "0.14"}
        await executed(usage)
    else:
        await carry_out(usage)
        await looked_through(usage)
    assert by(usage, "group_id") == {("g2",): "0.2"}
    await live_once(usage)


async def test_a_re_rate_waits_while_the_charges_of_its_instants_are_looked_through(
    usage: Usage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replacement has another id: one that sorted before those which were looked at would never be moved."""
    monkeypatch.setattr(reassignments, "CHUNK", 4)
    await usage.take(*(leg(f"e{number}", NOW) for number in range(12)), leg("later", NOW + timedelta(seconds=1)))
    await price(usage, "0.02")
    plan = await approved(usage)
    usage.send.account("sales", **moved_to("g2"))
    await usage.rooms.pump()
    reassign, rerate = (
        next(each for each in usage.processor.room.ticks if each.name == name) for name in ("reassign", "rerate")
    )
    await usage.processor.tick(reassign)
    await api.execute_rerate(usage.engine, plan.plan_id, "bob", "operator")
    await usage.processor.tick(rerate)
    assert (await api.rerate(usage.engine, plan.plan_id)).settled == 0
    await told(usage)
    await carry_out(usage)
    done = await api.rerate(usage.engine, plan.plan_id)
    assert (done.state, done.left_stale) == ("done", 13)
    assert by(usage, "group_id") == {("g2",): "0.364"}
    await live_once(usage)


async def test_a_re_rate_leaves_out_what_is_to_be_moved_and_plans_it_afterwards(usage: Usage) -> None:
    await usage.take(leg("e1", NOW))
    await price(usage, "0.02")
    usage.send.account("sales", **moved_to("g2"))
    await usage.rooms.pump()
    (line,) = (await planned(usage)).left_out
    assert (line.which, line.charges) == ("payer_changed", 1)
    await looked_through(usage)
    assert (await planned(usage)).charges == 1


# ---- cuts ----------------------------------------------------------------------------------------------------------

THIS = period_of(NOW)
LAST = period_of(THIS.start - HOUR)
BEFORE = THIS.start - HOUR


async def test_a_cut_passes_when_the_charges_before_it_are_looked_through(
    usage: Usage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reassignments, "CHUNK", 2)
    names = [f"e{number}" for number in range(5)]
    await usage.take(
        *(leg(name, BEFORE + timedelta(minutes=number)) for number, name in enumerate(names)), leg("now", NOW)
    )
    usage.send.account("sales", **moved_to("g2", BEFORE))
    usage.send.cutoff(THIS.start)
    usage.send.groups_covered(THIS.start)
    await usage.rooms.pump()
    tick = {each.name: each for each in usage.processor.room.ticks}
    await usage.processor.tick(tick["cut"])
    chunks = 0
    while (await api.reassignments(usage.engine))[0].reached_at < THIS.start:
        assert await api.corrected_from(usage.engine) == (await api.reassignments(usage.engine))[0].reached_at
        await usage.processor.tick(tick["pass"])
        assert (await api.cuts(usage.engine))[0].passed_at is None
        await usage.processor.tick(tick["reassign"])
        chunks += 1
    (under_way,) = await api.reassignments(usage.engine)
    assert (under_way.state, chunks > 2) == ("open", True)  # what is after the boundary holds nothing
    await usage.processor.tick(tick["pass"])
    assert (await api.cuts(usage.engine))[0].passed_at is not None
    await told(usage)
    assert by(usage, "group_id", "bill_to") == {("g2", LAST.name): "0.14", ("g2", THIS.name): "0.028"}
    assert {each["bill_to"] for each in usage.charges if each["event_id"] in names} == {LAST.name}
    await live_once(usage)


async def test_after_the_cut_both_are_lines_of_a_prior_period(usage: Usage) -> None:
    await usage.take(leg("e1", BEFORE))
    usage.send.cutoff(THIS.start)
    usage.send.groups_covered(THIS.start)
    await usage.rooms.pump(ticks=True)
    assert (await api.cuts(usage.engine))[0].passed_at is not None
    usage.send.account("sales", **moved_to("g2", BEFORE))
    await told(usage)
    assert [(each["group_id"], each["period"], each["bill_to"], each["amount"]) for each in usage.charges] == [
        ("g-sales", LAST.name, LAST.name, "0.028"),
        ("g-sales", LAST.name, THIS.name, "-0.028"),
        ("g2", LAST.name, THIS.name, "0.028"),
    ]
    await live_once(usage)


async def test_another_zone_puts_a_use_into_the_month_of_the_new_group(usage: Usage) -> None:
    await usage.take(leg("e1", BEFORE))
    usage.send.account("sales", zones={"g2": "Asia/Tokyo"}, **moved_to("g2", BEFORE))
    await told(usage)
    assert by(usage, "group_id", "period", "bill_to") == {("g2", THIS.name, THIS.name): "0.028"}


# ---- many at once --------------------------------------------------------------------------------------------------


async def test_many_accounts_that_change_together_are_looked_through_together(usage: Usage) -> None:
    names = [f"a{number}" for number in range(150)]
    for name in names:
        usage.send.account(name)
    await usage.rooms.pump()
    await usage.take(*(leg(f"of {name}", NOW, name) for name in names), leg("sales", NOW))
    for name in names:
        usage.send.account(name, **moved_to(f"new-{name}", before=f"g-{name}"))
    await usage.rooms.pump()
    tick = next(each for each in usage.processor.room.ticks if each.name == "reassign")
    for _ in range(2):
        await usage.processor.tick(tick)
    assert [each.state for each in await api.reassignments(usage.engine, limit=200)] == ["done"] * 150
    await usage.rooms.pump()
    assert by(usage, "group_id") == {(f"new-{name}",): "0.028" for name in names} | {("g-sales",): "0.028"}


async def test_what_changes_nothing_that_decides_stamps_is_not_looked_through(usage: Usage) -> None:
    usage.send.account("sales", closed_at=NOW + HOUR)
    usage.send.account("new")
    usage.send.resource("p", "sales", None)
    await usage.rooms.pump()
    usage.send.resource("p", "new", None, owners=[(LONG_AGO, NOW, "sales"), (NOW, None, "new")])
    await usage.rooms.pump()
    assert await api.reassignments(usage.engine, idle=True) == []


async def test_each_day_has_an_index_that_skips_hours(usage: Usage) -> None:
    await usage.take(leg("e1", NOW))
    definitions = text(
        "select indexdef from pg_indexes where schemaname = 'usage' and tablename = :day and indexdef like '%brin%'"
    )
    rows = await usage.rooms.query("usage", definitions, {"day": f"charge_{NOW:%Y%m%d}"})
    assert [row.indexdef.partition("USING ")[2] for row in rows] == ["brin (event_time) WITH (autosummarize='on')"]


# ---- the auditor ---------------------------------------------------------------------------------------------------


async def test_the_auditor_finds_what_was_not_moved_or_moved_otherwise(usage: Usage, database: Database) -> None:
    await usage.take(leg("e1", NOW), leg("e2", NOW))
    usage.send.account("sales", **moved_to("g2"))
    await told(usage)
    (found,) = await api.reassignments(usage.engine)
    assert (await api.tiers_and_reversals(usage.engine)).findings == ()
    async with database.connected() as owner:
        await owner.execute("update usage.charge set replaces = null where replaces is not null and event_id = 'e1'")
        await owner.execute("update usage.charge set group_id = 'g3' where event_id = 'e2' and replaces is not null")
    assert (await api.tiers_and_reversals(usage.engine)).findings == (
        f"reassignment {found.reassignment_id} says that it moved 2 charges; 1 were taken back and replaced",
        f"charge {live(usage)['e2']['charge_id']} of sales, group g3, was not moved; it should stand under sales, group g2",
    )


async def test_the_auditor_knows_what_was_left_also_after_a_re_rate(usage: Usage) -> None:
    usage.send.account("shut", closed_at=NOW - 3 * HOUR)
    usage.send.resource("n", "sales", None, number=NUMBER)
    await usage.rooms.pump()
    await usage.take(inbound("e1"))
    usage.send.resource("n", "shut", None, number=NUMBER, owners=[(LONG_AGO, MOVED, "sales"), (MOVED, None, "shut")])
    await told(usage)
    for rate in (2, 3):
        rows = f"product,prefix,price_per_minute,currency,minimum_s,increment_s\nvoice.inbound,1,{rate},USD,60,60\n"
        await api.import_prices(usage.engine, "list", read_price_file(rows.encode()), LONG_AGO)
        await executed(usage)
        assert by(usage, "account_id") == {("sales",): str(2 * rate)}
        await live_once(usage)


async def test_what_was_moved_is_told_from_where_to_where(usage: Usage) -> None:
    await price(usage, "0.01", "cheap")
    await usage.take(leg("e1", NOW), leg("e2", NOW))
    usage.send.account("sales", pricing_models={"g2": "cheap"}, **moved_to("g2"))
    await told(usage)
    (found,) = await api.reassignments(usage.engine)
    (line,) = (await api.reassignment(usage.engine, found.reassignment_id)).lines
    assert (line.from_group, line.to_group, line.charges, line.taken_back, line.charged) == (
        "g-sales", "g2", 2, "0.056", "0.04",
    )  # fmt: skip
    taken_back = next(each for each in usage.charges if each["reverses"] is not None)
    assert (await api.charge(usage.engine, UUID(taken_back["charge_id"]))).who_pays[-1] == (
        "taken from sales, group g-sales, ungrouped, by version 2 of the account's timeline"
    )


# ---- tiers ---------------------------------------------------------------------------------------------------------


async def filled(usage: Usage) -> dict[tuple[str, str, bool], int]:
    """What is in each counter that is not empty: by account, group and whether it is prepaid."""
    return {(key[0], key[1], key[4]): each for key, each in (await counters(usage)).items() if each}


@pytest.mark.parametrize("chunk", [1, 2_000])
async def test_the_counters_of_both_groups_cost_what_their_quantity_costs(
    usage: Usage, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """First 1,000 at 0.010, then 0.008: 900, 200 and 300 cost 13.20. When 200 and 300 are another group's, 9.00 and 5.00."""
    monkeypatch.setattr(reassignments, "CHUNK", chunk)
    await imported(usage, tiers())
    await usage.take(use("e900", 900, NOW - 3 * HOUR), use("e200", 200, NOW - HOUR), use("e300", 300, NOW))
    assert by(usage, "group_id") == {("g-sales",): "13.2"}
    usage.send.account("sales", **moved_to("g2"))
    await told(usage)
    assert by(usage, "group_id") == {("g-sales",): "9", ("g2",): "5"}
    assert await filled(usage) == {("sales", "g-sales", True): 900, ("sales", "g2", True): 500}
    await live_once(usage)
    usage.send.account("sales")
    await told(usage)
    assert by(usage, "group_id") == {("g-sales",): "13.2"}
    assert await filled(usage) == {("sales", "g-sales", True): 1_400}
    await usage.take(void("e200", 1))
    assert by(usage, "group_id") == {("g-sales",): "11.6"}
    await live_once(usage)


async def test_another_plan_moves_quantities_into_a_counter_of_its_own(usage: Usage) -> None:
    await imported(usage, tiers())
    await usage.take(use("e900", 900, NOW - 3 * HOUR), use("e300", 300, NOW))
    usage.send.account("sales", plans=[(LONG_AGO, MOVED, "payg"), (MOVED, None, "invoiced")])
    await told(usage)
    assert await filled(usage) == {("sales", "g-sales", True): 900, ("sales", "g-sales", False): 300}
    assert by(usage, "plan") == {("payg",): "9", ("invoiced",): "3"}
    await live_once(usage)


async def test_a_cost_center_moves_in_a_counter_without_moving_it(usage: Usage) -> None:
    await api.import_prices(
        usage.engine, "tiers",
        PriceFile("USD", (PriceRow("data", "*", 0, 0, 0, 1, 1, "byte", schedule="s"),), (), schedules=tiers().schedules),
        LONG_AGO, is_default=True,
    )  # fmt: skip
    usage.send.resource("n", "sales", "desk", number=NUMBER)
    await usage.rooms.pump()
    for name, quantity in (("e1", 900), ("e2", 400)):
        data = {
            "account_id": "sales", "bytes": quantity, "subscriber": NUMBER, "started_at": f"{NOW:%Y-%m-%dT%H:%M:%SZ}",
            "ended_at": f"{NOW:%Y-%m-%dT%H:%M:%SZ}",
        }  # fmt: skip
        await usage.take(leg(name, NOW) | {"type": "tollbook.usage.data.v1", "data": data})
    usage.send.resource(
        "n", "sales", None, number=NUMBER, owners=[(LONG_AGO, None, "sales")],
        cost_centers=[(LONG_AGO, MOVED, "desk"), (MOVED, None, "hall")],
    )  # fmt: skip
    await told(usage)
    assert {name: each["cost_center_id"] for name, each in live(usage).items()} == {"e1": "hall", "e2": "hall"}
    assert (cost(usage), await filled(usage)) == ("12.4", {("sales", "g-sales", True): 1_300})
    await live_once(usage)


# ---- whatever happens ----------------------------------------------------------------------------------------------

GROUPS = {"g1": None, "g2": None, "g3": "cheap", "g4": None}
GROUP_ZONES = {"g4": "Asia/Tokyo"}
EDGES = [NOW - timedelta(hours=each) for each in (20, 12, 6, 3)]


class Town:
    """Two accounts and a number, of which the registry says one thing after another; and use, before it is known and after."""

    def __init__(self, usage: Usage, dice: random.Random) -> None:
        self.usage, self.dice = usage, dice
        self.plans: dict[str, list[tuple[datetime, datetime | None, str]]] = {}
        self.groups: dict[str, list[tuple[datetime, datetime | None, str]]] = {}
        self.owners: list[tuple[datetime, datetime | None, str]] = []
        self.centers: list[tuple[datetime, datetime | None, str | None]] = []
        self.uses: dict[
            str, tuple[str | None, datetime, int, int, str | None]
        ] = {}  # account, when, how much, revision
        self.versions: dict[str, int] = defaultdict(int)

    def some(self, values: Sequence[Any]) -> list[Any]:
        """A value for each stretch between some instants."""
        edges = [LONG_AGO, *sorted(self.dice.sample(EDGES, self.dice.randrange(3)))]
        return [
            (start, end, self.dice.choice(values)) for start, end in zip(edges, [*edges[1:], None], strict=True)
        ]  # fmt: skip

    def word(self, what: str) -> None:
        """The registry says something else of an account or of the number; now and then it comes after a later word."""
        self.versions[what] += 1
        if what == "n":
            self.owners = self.some(["sales", "main"])
            self.centers = self.some(["desk", "hall", None])
            self.usage.send.resource("n", "sales", None, number=NUMBER, owners=self.owners, cost_centers=self.centers)
            return
        plans, groups = self.some(["payg", "payg", "invoiced", "trial"]), self.some(list(GROUPS))
        if self.dice.random() < 0.3:  # one that nobody hears before the next
            self._tell(what, self.some(["payg", "trial"]), self.some(list(GROUPS)), 2 * self.versions[what])
        self._tell(what, plans, groups, 2 * self.versions[what] + 1)
        if self.dice.random() < 0.3:
            self._tell(what, self.some(["payg"]), self.some(list(GROUPS)), 2 * self.versions[what])  # in reverse
        self.plans[what], self.groups[what] = plans, groups

    def _tell(self, account: str, plans: Any, groups: Any, version: int) -> None:
        self.usage.send.account(
            account, plans=plans, groups=groups, version=version, zones=GROUP_ZONES,
            pricing_models={name: model for name, model in GROUPS.items() if model is not None},
        )  # fmt: skip

    def use(self) -> None:
        """Calls to the number, with and without a name, and pieces that tiers price; and revisions of some that there are."""
        dice, at = self.dice, NOW - timedelta(minutes=self.dice.randrange(24 * 60))
        name = f"use{len(self.uses)}" if dice.random() < 0.7 or not self.uses else dice.choice(sorted(self.uses))
        revision = self.uses[name][3] + 1 if name in self.uses else 0
        account = dice.choice(["sales", "main", None])
        kind = "call" if account is None else dice.choice(["call", "pieces"])
        quantity = dice.randrange(1, 900) if dice.random() < 0.9 or not revision else 0
        self.uses[name] = account, at, quantity, revision, kind
        if not quantity:
            self.usage.send.leg(void(name, revision))
        elif kind == "pieces":
            self.usage.send.leg(use(name, quantity, at, account or "", revision=revision))
        else:
            event = inbound(name, at, account_id=account, duration_s=quantity, billable_s=quantity)
            self.usage.send.leg(event | {"revision": revision})

    def must_be(self) -> dict[str, tuple[Any, ...]]:
        """What the charge of each use says by the last words: plainly, interval by interval."""
        found = {}
        for name, (named, at, quantity, revision, kind) in self.uses.items():
            if not quantity:
                continue
            account = named or held(self.owners, at)
            plan, group = held(self.plans[account], at), held(self.groups[account], at)
            group = None if plan == "trial" else group
            period = None if group is None else period_of(at, GROUP_ZONES.get(group, "UTC")).name
            center = held(self.centers, at) if kind == "call" and held(self.owners, at) == account else None
            rate = 2 * 10**9 if group is not None and GROUPS[group] == "cheap" else 3 * 10**9
            amount = round(Fraction(rate * quantity, 60)) if kind == "call" else None
            found[name] = account, plan, group, period, center, quantity, revision, amount
        return found


def held(intervals: Sequence[tuple[datetime, datetime | None, Any]], at: datetime) -> Any:
    return next(each for start, end, each in intervals if start <= at and (end is None or at < end))


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_becomes_known_when_the_live_charges_are_those_of_who_knew_it_first(
    usage: Usage, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    dice = random.Random(seed)
    monkeypatch.setattr(reassignments, "CHUNK", dice.choice([1, 3, 2_000]))
    monkeypatch.setattr(reassignments, "JOBS_AT_ONCE", dice.choice([1, 2, 1_000]))
    for book, rate in (("list", 3), ("cheap", 2)):
        rows = f"product,prefix,price_per_minute,currency,minimum_s,increment_s\nvoice.inbound,1,{rate},USD,0,1\n"
        await api.import_prices(usage.engine, book, read_price_file(rows.encode()), LONG_AGO)
    bands = (Band(1_000, CENT), Band(None, 8 * 10**6, 15 * 10**8))
    await imported(usage, tiers(dice.choice(["graduated", "volume"]), bands))
    town = Town(usage, dice)
    for what in ("sales", "main", "n"):
        town.word(what)
    await usage.rooms.pump()
    tick = next(each for each in usage.processor.room.ticks if each.name == "reassign")
    for _ in range(25):
        for _ in range(dice.randrange(4)):
            town.use()
        if dice.random() < 0.5:
            town.word(dice.choice(["sales", "main", "n"]))
        if dice.random() < 0.6:
            await asyncio.gather(usage.processor.tick(tick), usage.rooms.pump())
        if dice.random() < 0.2:
            await live_once(usage)
    await told(usage)
    names = ("account_id", "plan", "group_id", "period", "cost_center_id", "quantity", "revision")
    found = {
        name: (*(each[key] for key in names), None if "tier" in each else parse_amount(each["amount"], signed=True))
        for name, each in live(usage).items()
    }
    assert found == town.must_be()
    await live_once(usage)


# ---- at once -------------------------------------------------------------------------------------------------------


async def test_two_workers_that_look_through_at_once_move_each_charge_once(
    usage: Usage, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reassignments, "CHUNK", 7)
    names = [f"e{number}" for number in range(40)]
    await usage.take(*(leg(name, NOW - timedelta(minutes=number)) for number, name in enumerate(names)))
    usage.send.account("sales", **moved_to("g2"))
    await usage.rooms.pump()
    async with Rooms(usage.log, database, [build()]) as other:
        workers = (usage.processor, other.processors["usage"])
        tick = [next(each for each in worker.room.ticks if each.name == "reassign") for worker in workers]
        for number in range(12):
            await asyncio.gather(*(worker.tick(each) for worker, each in zip(workers, tick, strict=True)))
            if number == 2:
                usage.send.leg(void("e39", 1))
                await usage.rooms.pump()
    await told(usage)
    assert sums(usage) == dict.fromkeys(names[:-1], "0.028") | {"e39": "0"}
    assert {each["group_id"] for each in live(usage).values()} == {"g2"}
    await live_once(usage)


@pytest.mark.parametrize("first", ["move", "revision"])
async def test_a_revision_and_a_chunk_at_once_take_a_charge_back_once(
    usage: Usage, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    await usage.take(leg("e1", NOW), leg("e2", NOW))
    usage.send.account("sales", **moved_to("g2"))
    await usage.rooms.pump()
    tick = next(each for each in usage.processor.room.ticks if each.name == "reassign")
    usage.send.leg(void("e1", 1))
    steps = {"move": lambda: usage.processor.tick(tick), "revision": usage.rooms.pump}
    await other_waits_for(monkeypatch, steps.pop(first), *steps.values())
    await told(usage)
    assert by(usage, "group_id", "event_id") == {("g2", "e2"): "0.028"}
    await live_once(usage)


async def test_a_group_that_is_held_waits_until_its_charges_are_looked_through(usage: Usage) -> None:
    await usage.take(leg("e1", BEFORE), leg("held", BEFORE, called="+447700900123"))
    usage.send.cutoff(THIS.start)
    usage.send.groups_covered(THIS.start)
    await usage.rooms.pump(ticks=True)
    assert (await api.cuts(usage.engine))[0].held == {"g-sales": False}
    usage.send.account("sales", **moved_to("g2", BEFORE))
    await usage.rooms.pump()
    await api.discard(usage.engine, "bob", ids=[each.id for each in await api.parked(usage.engine)])
    await usage.rooms.pump()
    tick = {each.name: each for each in usage.processor.room.ticks}
    await usage.processor.tick(tick["pass"])
    assert (await api.cuts(usage.engine))[0].held == {"g-sales": False}
    await looked_through(usage)
    await usage.processor.tick(tick["pass"])
    assert (await api.cuts(usage.engine))[0].held == {"g-sales": True}
    assert [(each["group_id"], each["bill_to"]) for each in usage.charges] == [
        ("g-sales", LAST.name), ("g-sales", LAST.name), ("g2", THIS.name),
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_becomes_known_no_charge_stands_at_the_price_of_another_group(
    usage: Usage, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Of four groups two have no prices: what turns out to be theirs stays where it was."""
    dice = random.Random(seed)
    monkeypatch.setattr(reassignments, "CHUNK", dice.choice([3, 2_000]))
    monkeypatch.setattr(reassignments, "JOBS_AT_ONCE", dice.choice([1, 2]))
    for book, rate in (("list", 3), ("two", 2)):
        rows = f"product,prefix,price_per_minute,currency,minimum_s,increment_s\nvoice.inbound,1,{rate},USD,0,1\n"
        await api.import_prices(usage.engine, book, read_price_file(rows.encode()), LONG_AGO, is_default=False)
    models = {"g1": "list", "g2": "two", "g3": "none", "g4": "nothing"}
    town = Town(usage, dice)
    usage.send.account("sales", group="g1", pricing_models=models)
    await usage.rooms.pump()
    tick = next(each for each in usage.processor.room.ticks if each.name == "reassign")
    for number in range(50):
        match dice.randrange(4):
            case 0:
                usage.send.account("sales", groups=town.some(sorted(models)), pricing_models=models)
            case 1:
                centers = town.some(["desk", "hall", None])
                usage.send.resource("n", "sales", None, number=NUMBER, cost_centers=centers)
            case _:
                at = NOW - timedelta(minutes=dice.randrange(24 * 60))
                usage.send.leg(inbound(f"e{number}", at, account_id="sales"))
        if dice.random() < 0.4:
            await asyncio.gather(usage.processor.tick(tick), usage.rooms.pump())
    await told(usage)
    stands = live(usage).values()
    assert {(each["group_id"], each["book_id"]) for each in stands} <= {("g1", "list"), ("g2", "two")}
    assert stands
    await live_once(usage)
