"""Re-rates on a real database: planned by one, approved by another, carried out once, and never against a correction."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any
from uuid import UUID

import pytest
from pydantic import TypeAdapter
from sqlalchemy import select

from contracts.usage import Charge
from services.kernel.errors import InvalidInput, NotFound, NotPermitted, Refused
from services.kernel.ids import charge_id, identity_digest, replacement_id, reversal_id
from services.kernel.money import format_nano, parse_amount
from services.kernel.period import period_of
from services.usage import api, rerate_plans, store
from services.usage.consumer import build
from services.usage.price_files import read_price_file
from services.usage.rerate_plans import Plan
from services.usage.tables import CHARGE
from tests.support import model
from tests.support.rooms import Rooms
from tests.support.servers import Database
from tests.support.usage_registry import LONG_AGO, PUBLISHER, SOURCE, leg, void
from tests.support.usage_room import Usage

NOW = datetime.now(UTC).replace(microsecond=0)
START, END = NOW - timedelta(days=30), NOW + timedelta(minutes=1)


async def price(usage: Usage, per_minute: str, book: str = "list", **more: Any) -> None:
    """A new version, dated back to where the first one begins."""
    rows = f"product,prefix,price_per_minute,currency,minimum_s,increment_s\nvoice.outbound,1,{per_minute},USD,60,60\n"
    await api.import_prices(usage.engine, book, read_price_file(rows.encode()), LONG_AGO, **more)


async def planned(usage: Usage, **more: Any) -> Plan:
    return await api.plan_rerate(usage.engine, START, END, "ann", "finance", **more)


async def approved(usage: Usage, **more: Any) -> Plan:
    made = await planned(usage, **more)
    return await api.approve_rerate(usage.engine, made.plan_id, "bob", "operator")


async def executed(usage: Usage, plan: Plan | None = None, **more: Any) -> Plan:
    plan = plan or await approved(usage, **more)
    await api.execute_rerate(usage.engine, plan.plan_id, "bob", "operator")
    await usage.rooms.pump(ticks=True)
    await carry_out(usage)
    return await api.rerate(usage.engine, plan.plan_id)


async def carry_out(usage: Usage) -> None:
    """Ticks until nothing is to be done."""
    tick = next(each for each in usage.processor.room.ticks if each.name == "rerate")
    while any(plan.state == "executing" for plan in await api.rerates(usage.engine)):
        await usage.processor.tick(tick)
    await usage.rooms.pump()


def amounts(usage: Usage) -> list[str]:
    return [charge["amount"] for charge in usage.charges]


def sums(usage: Usage) -> dict[str, str]:
    """What each fact is charged in all."""
    found: dict[str, int] = defaultdict(int)
    for charge in usage.charges:
        found[charge["event_id"]] += parse_amount(charge["amount"], signed=True)
    return {name: format_nano(nano) for name, nano in found.items()}


# ---- the whole way -------------------------------------------------------------------------------------------------


async def test_a_re_rate_reverses_and_replaces_each_charge_whose_amount_changes(usage: Usage) -> None:
    usage.send.account("other")
    await usage.rooms.pump()
    await usage.take(
        leg("e1", NOW), leg("e2", NOW, "other", billable_s=10), leg("free", NOW, answered=False, billable_s=0)
    )
    await price(usage, "0.02")
    await usage.take(leg("after", NOW))
    plan = await planned(usage, note="the carrier's list was late")
    assert (plan.state, plan.charges, plan.left_out) == ("planned", 2, ())
    assert {(line.of, line.which): (line.charges, line.old, line.new, line.difference) for line in plan.sums} == {
        ("total", ""): (2, "0.042", "0.06", "0.018"),
        ("account", "sales"): (1, "0.028", "0.04", "0.012"),
        ("account", "other"): (1, "0.014", "0.02", "0.006"),
        ("group", "g-sales"): (1, "0.028", "0.04", "0.012"),
        ("group", "g-other"): (1, "0.014", "0.02", "0.006"),
        ("product", "voice.outbound"): (2, "0.042", "0.06", "0.018"),
    }
    before = usage.charges
    await usage.rooms.pump(ticks=True)
    await api.approve_rerate(usage.engine, plan.plan_id, "bob", "operator")
    await usage.rooms.pump(ticks=True)
    assert usage.charges == before
    done = await executed(usage, plan)
    assert (done.state, done.settled, done.left_stale) == ("done", 2, 0)
    assert sums(usage) == {"e1": "0.04", "e2": "0.02", "after": "0.04"}
    first = next(charge for charge in before if charge["event_id"] == "e1")
    of_first = charge_id(identity_digest(PUBLISHER, SOURCE, "e1"))
    reversal, replacement = [each for each in usage.charges if each["event_id"] == "e1" and each not in before]
    assert reversal == first | {
        "charge_id": str(reversal_id(of_first, plan.plan_id)), "reverses": str(of_first), "amount": "-0.028",
        "quantity": -120,
    }  # fmt: skip
    assert replacement == first | {
        "charge_id": str(replacement_id(of_first, plan.plan_id)), "amount": "0.04", "unit_price": "0.02",
        "book_version": 2, "replaces": str(of_first),
    }  # fmt: skip
    for charge in usage.charges:
        TypeAdapter(Charge).validate_python(charge)
    explained = await api.charge(usage.engine, UUID(replacement["charge_id"]))
    assert explained.charge["replaces"] == of_first
    assert explained.steps[-1] == "rounded half-even to 9 decimals: 0.04 USD"


async def test_a_repeat_of_a_re_rate_reverses_what_the_first_one_charged(usage: Usage) -> None:
    await usage.take(leg("e1", NOW))
    for number, per_minute in enumerate(("0.02", "0.03", "0.014")):
        await price(usage, per_minute)
        plan = await executed(usage)
        assert (plan.state, plan.charges) == ("done", 1), number
        assert (await planned(usage)).charges == 0
    assert amounts(usage) == ["0.028", "-0.028", "0.04", "-0.04", "0.06", "-0.06", "0.028"]
    taken_back = [charge["reverses"] for charge in usage.charges if charge["reverses"] is not None]
    assert len(set(taken_back)) == 3


async def test_a_revision_after_a_re_rate_reverses_what_the_re_rate_charged(usage: Usage) -> None:
    await usage.take(leg("void", NOW), leg("amended", NOW), leg("twice", NOW))
    await price(usage, "0.02")
    await executed(usage)
    await price(usage, "0.03")
    await executed(usage, account_ids=["sales"])
    assert sums(usage) == {"void": "0.06", "amended": "0.06", "twice": "0.06"}
    await usage.take(void("void", 1), leg("amended", NOW, billable_s=10) | {"revision": 1})
    await usage.take(leg("twice", NOW, billable_s=10) | {"revision": 4})
    await price(usage, "0.05")
    await executed(usage)
    await usage.take(void("twice", 5), leg("void", NOW), leg("amended", NOW))
    assert sums(usage) == {"void": "0", "amended": "0.05", "twice": "0"}
    await live_once(usage)


async def live_once(usage: Usage) -> None:
    """No charge is taken back twice, and of each fact at most one stands; the auditor says the same."""
    assert (await api.tiers_and_reversals(usage.engine)).findings == ()
    _, problems = model.standing(map(model.published, usage.charges))
    assert problems == []


# ---- who decides ---------------------------------------------------------------------------------------------------


async def test_only_a_second_person_of_finance_or_operations_approves(usage: Usage) -> None:
    await usage.take(leg("e1", NOW))
    await price(usage, "0.02")
    with pytest.raises(NotPermitted, match="owner may not plan a re-rate; it takes finance or operator"):
        await api.plan_rerate(usage.engine, START, END, "ann", "owner")
    plan = await planned(usage)
    with pytest.raises(Refused, match="another person approves it first"):
        await api.execute_rerate(usage.engine, plan.plan_id, "ann", "finance")
    for actor, role, said in (
        ("ann", "operator", "actor: ann planned this re-rate; another person must approve it"),
        (" Ann", "finance", "another person must approve it"),
        ("bob", "billing_admin", "role: billing_admin may not approve"),
    ):
        with pytest.raises(NotPermitted) as refused:
            await api.approve_rerate(usage.engine, plan.plan_id, actor, role)
        assert said in str(refused.value)
    told = await api.approve_rerate(usage.engine, plan.plan_id, "bob", "finance")
    assert (told.state, told.approved_by, told.approved_role) == ("approved", "bob", "finance")
    with pytest.raises(Refused, match="is approved; only a planned re-rate can be approved"):
        await api.approve_rerate(usage.engine, plan.plan_id, "eve", "finance")


async def test_what_is_cancelled_is_not_executed_and_what_is_executed_is_not_cancelled(usage: Usage) -> None:
    await usage.take(leg("e1", NOW))
    await price(usage, "0.02")
    plan = await approved(usage)
    cancelled = await api.cancel_rerate(usage.engine, plan.plan_id, "ann", "finance")
    assert (cancelled.state, cancelled.cancelled_by) == ("cancelled", "ann")
    with pytest.raises(Refused, match="is cancelled; plan again"):
        await api.execute_rerate(usage.engine, plan.plan_id, "bob", "finance")
    done = await executed(usage)
    with pytest.raises(Refused, match="is done; what is charged is taken back by another re-rate"):
        await api.cancel_rerate(usage.engine, done.plan_id, "bob", "finance")
    assert amounts(usage) == ["0.028", "-0.028", "0.04"]
    assert [each.state for each in await api.rerates(usage.engine)] == ["done", "cancelled"]


async def test_what_is_wrong_with_a_plan_is_said_by_its_field(usage: Usage) -> None:
    for more, error, field in (
        ({"account_ids": ["nobody"]}, NotFound, "account"),
        ({"group_id": "nobodies"}, NotFound, "group"),
        ({"book_id": "none"}, NotFound, "book"),
        ({"book_version": 3}, InvalidInput, "book"),
        ({"book_id": "list", "book_version": 3}, NotFound, "version"),
    ):
        with pytest.raises(error) as refused:
            await planned(usage, **more)
        assert refused.value.field == field
    with pytest.raises(InvalidInput, match="to: must be after --from"):
        await api.plan_rerate(usage.engine, END, START, "ann", "finance")
    with pytest.raises(NotFound):
        await api.rerate(usage.engine, UUID(int=5))
    empty = await planned(usage)
    with pytest.raises(Refused, match="changes no charge"):
        await api.approve_rerate(usage.engine, empty.plan_id, "bob", "finance")
    assert [plan.plan_id for plan in await api.rerates(usage.engine)] == [empty.plan_id]


# ---- what changes meanwhile ----------------------------------------------------------------------------------------


async def test_a_plan_of_which_a_charge_was_corrected_is_stale(usage: Usage) -> None:
    await usage.take(leg("e1", NOW), leg("e2", NOW))
    await price(usage, "0.02")
    plan, other = await planned(usage), await planned(usage)
    await usage.take(leg("late", NOW))  # by the new price already: no charge of the plan
    await usage.take(void("e1", 1))
    for _ in range(2):
        with pytest.raises(Refused, match="stale"):
            await api.approve_rerate(usage.engine, plan.plan_id, "bob", "finance")
    assert (await api.rerate(usage.engine, plan.plan_id)).state == "stale"
    await executed(usage)
    with pytest.raises(Refused, match="is stale: a charge of it was corrected"):
        await api.approve_rerate(usage.engine, other.plan_id, "bob", "finance")
    assert sums(usage) == {"e1": "0", "e2": "0.04", "late": "0.04"}


async def test_a_charge_that_is_revised_after_the_approval_is_left_and_reported(usage: Usage) -> None:
    await usage.take(*(leg(f"e{number}", NOW - timedelta(hours=number)) for number in range(4)))
    await price(usage, "0.02")
    plan, again = await approved(usage), await approved(usage)
    await usage.take(void("e1", 1), leg("e2", NOW, billable_s=10) | {"revision": 1})
    done = await executed(usage, plan)
    assert (done.state, done.settled, done.left_stale) == ("done", 4, 2)
    left = await api.rerate(usage.engine, plan.plan_id, stale_only=True)
    digests = [identity_digest(PUBLISHER, SOURCE, name) for name in ("e2", "e1")]
    assert [each.charge_id for each in left.changes] == [charge_id(digest) for digest in digests]
    assert sums(usage) == {"e0": "0.04", "e1": "0", "e2": "0.02", "e3": "0.04"}
    done = await executed(usage, again)  # approved as well, and all of it is settled already
    assert (done.state, done.left_stale) == ("done", 4)
    assert sums(usage) == {"e0": "0.04", "e1": "0", "e2": "0.02", "e3": "0.04"}


async def test_prices_that_change_after_the_plan_do_not_change_what_was_approved(usage: Usage) -> None:
    await usage.take(leg("e1", NOW))
    await price(usage, "0.02")
    plan = await approved(usage)
    await price(usage, "0.05")
    await executed(usage, plan)
    assert amounts(usage) == ["0.028", "-0.028", "0.04"]


# ---- which prices, which charges -----------------------------------------------------------------------------------


async def test_a_book_or_one_version_of_it_stands_before_all_others(usage: Usage) -> None:
    await usage.take(leg("e1", NOW), leg("e2", NOW, called="+12485550199"), leg("e3", NOW, called="+13135550199"))
    row = "product,prefix,price_per_minute,currency,minimum_s,increment_s\nvoice.outbound,1248,{},USD,1,1\n"
    for per_minute in ("0.06", "0.12"):
        await api.import_prices(usage.engine, "special", read_price_file(row.format(per_minute).encode()), END)
    assert (await planned(usage, book_id="special")).charges == 0  # it begins later
    plan = await executed(usage, book_id="special", book_version=1)
    assert (plan.book_version, plan.charges) == (1, 2)
    assert sums(usage) == {"e1": "0.095", "e2": "0.095", "e3": "0.028"}
    assert {charge["quantity"] for charge in usage.charges} == {
        120,
        -120,
        95,
    }  # what is billed, by the rule of the price


async def test_only_the_charges_that_are_asked_for_are_planned(usage: Usage) -> None:
    usage.send.account("other")
    usage.send.account("third", group="g-other")
    await usage.rooms.pump()
    await usage.take(leg("e1", NOW), leg("e2", NOW, "other"), leg("e3", NOW, "third"))
    await usage.take(leg("old", NOW - timedelta(days=31)), leg("in", NOW, direction="inbound", called="+13135550100"))
    await price(usage, "0.02")
    assert (await planned(usage)).charges == 3
    assert (await planned(usage, account_ids=["sales", "third"])).charges == 2
    assert (await planned(usage, group_id="g-other")).charges == 2
    assert (await planned(usage, product="voice.outbound", group_id="g-sales")).charges == 1
    assert (await planned(usage, product="voice.inbound")).charges == 0


async def test_what_cannot_be_re_rated_is_left_out_and_said(usage: Usage) -> None:
    usage.send.account("moved")
    usage.send.account("try", plan="trial")
    await usage.rooms.pump()
    message = {
        "account_id": "sales", "direction": "outbound", "channel": "sms", "sender": "+13135550100",
        "recipient": "+12485550101", "segments": 2, "outcome": "accepted", "sent_at": f"{NOW:%Y-%m-%dT%H:%M:%SZ}",
    }  # fmt: skip
    sms = leg("sms", NOW) | {"type": "tollbook.usage.message.v1", "data": message}
    delivered = leg("delivered", NOW) | {"type": "tollbook.usage.message.v1", "data": message | {"channel": "mms"}}
    delivered["data"]["outcome"] = "delivered"
    rows = "product,prefix,price,currency,bill_on\nmessage.sms.outbound,1,{},USD,{}\nmessage.mms.outbound,1,{},USD,delivered\n"
    await api.import_prices(
        usage.engine,
        "sms",
        read_price_file(rows.format("0.01", "accepted", "0.03").encode()),
        LONG_AGO,
        is_default=True,
    )
    await usage.take(sms, delivered, leg("moves", NOW, "moved"), leg("tried", NOW, "try"))
    await usage.take(leg("gone", NOW, called="+12485550101"), leg("dear", NOW, called="+13135550101"))
    usage.send.account("moved", group="g-another")
    await usage.rooms.pump()
    await api.import_prices(
        usage.engine, "sms", read_price_file(rows.format("0.02", "delivered", "0.05").encode()), LONG_AGO
    )
    await api.import_prices(
        usage.engine, "list", read_price_file(
            b"product,prefix,price_per_minute,currency,minimum_s,increment_s\nvoice.outbound,1313,999999,USD,60,60\n"
        ), LONG_AGO,
    )  # fmt: skip
    plan = await planned(usage)
    assert {line.which: (line.charges, line.old) for line in plan.left_out} == {
        "outcome_unknown": (1, "0.02"), "payer_changed": (1, "0.028"), "no_price": (2, "0.056"), "too_large": (1, "0.028"),
    }  # fmt: skip
    assert all(line.reason for line in plan.left_out)
    assert [line.which for line in plan.sums if line.of == "product"] == ["message.mms.outbound"]
    await price(usage, "0.02")
    await executed(usage)
    assert sums(usage) == {
        "sms": "0.02", "delivered": "0.1", "moves": "0.028", "tried": "0.04", "gone": "0.04", "dear": "0.04",
    }  # fmt: skip
    assert {each["bill_to"] for each in usage.charges if each["event_id"] == "tried"} == {None}


async def test_a_message_that_was_delivered_is_re_rated_back_to_where_only_delivered_ones_cost(usage: Usage) -> None:
    rows = "product,prefix,price,currency,unit,bill_on\nmessage.sms.outbound,1,{},USD,segment,{}\n"
    for book, amount, bill_on in (("sent", "0.02", "accepted"), ("arrived", "0.01", "delivered")):
        prices = read_price_file(rows.format(amount, bill_on).encode())
        await api.import_prices(usage.engine, book, prices, LONG_AGO, is_default=book == "arrived")
    data = {
        "account_id": "sales", "direction": "outbound", "channel": "sms", "sender": "desk", "recipient": "+12485550101",
        "segments": 1, "outcome": "delivered", "sent_at": f"{NOW:%Y-%m-%dT%H:%M:%SZ}",
    }  # fmt: skip
    await usage.take(leg("e1", NOW) | {"type": "tollbook.usage.message.v1", "data": data})
    for book, amount in (("sent", "0.02"), ("arrived", "0.01"), ("sent", "0.02")):
        await executed(usage, book_id=book)
        assert sums(usage) == {"e1": amount}
    await executed(usage)
    assert sums(usage) == {"e1": "0.01"}


# ---- invoices ------------------------------------------------------------------------------------------------------


async def test_after_the_cut_has_passed_both_stand_on_the_open_invoice_and_before_on_the_closing_one(
    usage: Usage,
) -> None:
    this = period_of(NOW)
    before = period_of(this.start - timedelta(days=1))
    for name in ("e1", "e2"):
        await usage.take(leg(name, this.start - timedelta(hours=1 if name == "e1" else 2)))
    await usage.take(leg("held", this.start - timedelta(hours=3), called="+447700900123"))  # holds the group
    await price(usage, "0.02")
    start = before.start
    usage.send.cutoff(this.start)
    usage.send.groups_covered(this.start)
    for _ in range(3):
        await usage.rooms.pump(ticks=True)
    (cut,) = await api.cuts(usage.engine)
    assert (cut.passed_at is not None, cut.held) == (True, {"g-sales": False})
    plan = await api.plan_rerate(usage.engine, start, this.start - timedelta(minutes=90), "ann", "finance")
    await api.approve_rerate(usage.engine, plan.plan_id, "bob", "finance")
    await executed(usage, plan)
    e2 = [each for each in usage.charges if each["event_id"] == "e2"]
    assert [(each["amount"], each["bill_to"]) for each in e2] == [
        ("0.028", before.name), ("-0.028", before.name), ("0.04", before.name),
    ]  # fmt: skip
    parked = await api.parked(usage.engine)
    await api.discard(usage.engine, "bob", ids=[each.id for each in parked])
    for _ in range(3):
        await usage.rooms.pump(ticks=True)
    assert (await api.cuts(usage.engine))[0].held == {"g-sales": True}
    plan = await api.plan_rerate(usage.engine, start, this.start, "ann", "finance")
    await api.approve_rerate(usage.engine, plan.plan_id, "bob", "finance")
    assert plan.charges == 1
    await executed(usage, plan)
    e1 = [each for each in usage.charges if each["event_id"] == "e1"]
    assert [(each["amount"], each["period"], each["bill_to"]) for each in e1] == [
        ("0.028", before.name, before.name), ("-0.028", before.name, this.name), ("0.04", before.name, this.name),
    ]  # fmt: skip


async def test_a_cut_passes_when_the_re_rate_of_what_is_before_it_is_done(
    usage: Usage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rerate_plans, "CHUNK", 2)
    this = period_of(NOW)
    last = period_of(this.start - timedelta(days=1))
    names = [f"e{number}" for number in range(7)]
    await usage.take(*(leg(name, this.start - timedelta(hours=1)) for name in names), leg("now", NOW))
    await usage.take(leg("held", this.start - timedelta(hours=1), called="+447700900123"))
    await price(usage, "0.02")
    plan = await api.plan_rerate(usage.engine, last.start, NOW + timedelta(minutes=1), "ann", "finance")
    await api.approve_rerate(usage.engine, plan.plan_id, "bob", "finance")
    await api.execute_rerate(usage.engine, plan.plan_id, "bob", "finance")
    usage.send.cutoff(this.start)
    usage.send.groups_covered(this.start)
    await usage.rooms.pump()
    tick = {each.name: each for each in usage.processor.room.ticks}
    await usage.processor.tick(tick["cut"])

    async def looked_at(*chunks: str) -> Any:
        """The cut, after a chunk if one is named, and a look at whether it may pass."""
        for name in (*chunks, "pass"):
            await usage.processor.tick(tick[name])
        (cut,) = await api.cuts(usage.engine)
        return cut

    for _ in range(3):
        assert (await looked_at("rerate")).passed_at is None
    cut = await looked_at("rerate")
    assert ((await api.rerate(usage.engine, plan.plan_id)).state, cut.held) == ("done", {"g-sales": False})
    assert cut.passed_at is not None

    await price(usage, "0.03")
    await usage.rooms.pump()
    of_this = await api.plan_rerate(usage.engine, this.start, NOW + timedelta(minutes=1), "ann", "finance")
    plan = await api.plan_rerate(usage.engine, last.start, this.start, "ann", "finance")
    for each in (plan, of_this):
        await api.approve_rerate(usage.engine, each.plan_id, "bob", "finance")
        await api.execute_rerate(usage.engine, each.plan_id, "bob", "finance")
    await api.discard(usage.engine, "bob", ids=[each.id for each in await api.parked(usage.engine)])
    await usage.rooms.pump()
    for _ in range(3):
        assert (await looked_at("rerate")).held == {"g-sales": False}
    assert (await looked_at("rerate")).held == {"g-sales": True}  # the re-rate of this month is not done yet
    assert (await api.rerate(usage.engine, of_this.plan_id)).state == "executing"
    await carry_out(usage)
    assert {each["bill_to"] for each in usage.charges if each["event_id"] in names} == {last.name}
    assert sums(usage) == dict.fromkeys([*names, "now"], "0.06")


# ---- once, whatever happens ----------------------------------------------------------------------------------------


async def test_two_executions_at_once_are_one(
    usage: Usage, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rerate_plans, "CHUNK", 7)
    await usage.take(*(leg(f"e{number}", NOW - timedelta(hours=number)) for number in range(60)))
    await price(usage, "0.02")
    plan, same = await approved(usage), await approved(usage)
    await asyncio.gather(
        *(
            api.execute_rerate(usage.engine, each.plan_id, actor, "finance")
            for actor, each in (("bob", plan), ("eve", plan), ("eve", same))
        )
    )
    async with Rooms(usage.log, database, [build()]) as other:
        workers = (usage.processor, other.processors["usage"])
        tick = [next(each for each in worker.room.ticks if each.name == "rerate") for worker in workers]
        for number in range(40):
            await asyncio.gather(*(worker.tick(each) for worker, each in zip(workers, tick, strict=True)))
            if number == 3:
                usage.send.leg(void("e59", 1))
                await usage.rooms.pump()
    await usage.rooms.pump()
    states = {each.plan_id: (each.state, each.settled) for each in await api.rerates(usage.engine)}
    assert set(states.values()) == {("done", 60)}
    assert sums(usage) == {f"e{number}": "0.04" for number in range(59)} | {"e59": "0"}
    await live_once(usage)


async def other_waits_for(
    monkeypatch: pytest.MonkeyPatch, first: Callable[[], Awaitable[Any]], other: Callable[[], Awaitable[Any]]
) -> None:
    """The first writes charges and is not committed yet when the other begins: the other waits, then both are carried out."""
    in_the_middle, go_on = asyncio.Event(), asyncio.Event()
    append = store.append_charges

    async def append_slowly(*arguments: Any) -> None:
        await append(*arguments)
        if not in_the_middle.is_set():
            in_the_middle.set()
            await go_on.wait()

    monkeypatch.setattr(store, "append_charges", append_slowly)
    slow = asyncio.ensure_future(first())
    await in_the_middle.wait()
    waiting = asyncio.ensure_future(other())
    await asyncio.sleep(0.5)
    assert not waiting.done()
    go_on.set()
    await asyncio.gather(slow, waiting)


@pytest.mark.parametrize("first", ["re-rate", "revision"])
async def test_a_revision_and_a_chunk_at_once_take_a_charge_back_once(
    usage: Usage, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    await usage.take(leg("e1", NOW), leg("e2", NOW))
    await price(usage, "0.02")
    plan = await approved(usage)
    await api.execute_rerate(usage.engine, plan.plan_id, "bob", "finance")
    tick = next(each for each in usage.processor.room.ticks if each.name == "rerate")
    usage.send.leg(void("e1", 1))
    steps = {"re-rate": lambda: usage.processor.tick(tick), "revision": usage.rooms.pump}
    await other_waits_for(monkeypatch, steps.pop(first), *steps.values())
    await usage.rooms.pump()
    assert sums(usage) == {"e1": "0", "e2": "0.04"}
    assert (await api.rerate(usage.engine, plan.plan_id)).left_stale == (1 if first == "revision" else 0)
    await live_once(usage)


@pytest.mark.parametrize("seed", range(2))
async def test_whatever_the_prices_and_the_charges_each_fact_costs_what_the_last_re_rate_says(
    usage: Usage, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    dice = random.Random(seed)
    monkeypatch.setattr(rerate_plans, "CHUNK", dice.choice((1, 3, 8, 1_000)))
    seconds: dict[str, int] = {}
    revisions: dict[str, int] = defaultdict(int)
    rates: dict[str, tuple[str, int, int]] = {}
    rate = ("0.014", 60, 60)
    for _ in range(5):
        for _ in range(dice.randrange(1, 12)):
            name = f"fact{len(seconds)}"
            seconds[name], rates[name] = dice.randrange(1, 4_000), rate
            await usage.take(call(name, seconds[name], 0))
        for name in dice.sample(sorted(seconds), min(3, len(seconds))):
            revisions[name] += 1
            seconds[name], rates[name] = (dice.randrange(1, 4_000), rate) if dice.random() < 0.7 else (0, rate)
            event = call(name, seconds[name], revisions[name]) if seconds[name] else void(name, revisions[name])
            await usage.take(event)
        rate = (f"0.{dice.randrange(10**9):09d}", dice.randrange(90), dice.randrange(1, 90))
        rows = (
            "product,prefix,price_per_minute,currency,minimum_s,increment_s\n"
            f"voice.outbound,1,{rate[0]},USD,{rate[1]},{rate[2]}\n"
        )
        await api.import_prices(usage.engine, "list", read_price_file(rows.encode()), LONG_AGO)
        await executed(usage)
        rates = dict.fromkeys(rates, rate)
        assert sums(usage) == {name: costs(seconds[name], *rates[name]) for name in seconds}
        await live_once(usage)
    totals = (await api.charge_totals(usage.engine))["g-sales", f"{NOW:%Y-%m}"]
    assert totals.amount_nano == sum(parse_amount(each) for each in sums(usage).values())
    rows = await usage.rooms.query("usage", select(CHARGE.c.charge_id))
    assert {str(row.charge_id) for row in rows} == {charge["charge_id"] for charge in usage.charges}


def call(name: str, seconds: int, revision: int) -> dict[str, Any]:
    return leg(name, NOW, duration_s=seconds, billable_s=seconds) | {"revision": revision}


def costs(seconds: int, per_minute: str, minimum: int, increment: int) -> str:
    """Of the page, in decimals: not the code under test."""
    billed = 0
    if seconds:
        billed = minimum
        while billed < seconds:
            billed += increment
    return format_nano(int((Decimal(per_minute) * billed / 60).quantize(Decimal("1e-9"), ROUND_HALF_EVEN) * 10**9))
