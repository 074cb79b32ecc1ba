"""Statements add up to the last digit, at any cut, and name the cause of each movement."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from services.balance import api, tables
from services.balance.statement import Moved, Position, statement_of
from services.kernel.errors import InvalidInput, NotFound
from services.kernel.money import format_nano, parse_amount
from tests.support.balance_factory import Town
from tests.support.receivables_factory import Debtors

NANO = st.integers(-(4 * 10**18), 4 * 10**18)
positions = st.builds(Position, NANO, NANO, NANO)


@pytest.fixture
async def town(database: Any) -> AsyncIterator[Town]:
    async with Town(database) as made:
        yield made


def engine_of(town: Town) -> Any:
    return town.rooms.processors["balance"].engine


@given(positions, positions, st.lists(st.tuples(st.integers(0, 5), positions), max_size=12))
def test_any_movements_add_up_in_order_of_time(
    now: Position, later: Position, made: list[tuple[int, Position]]
) -> None:
    start = datetime.fromisoformat("2026-10-01T00:00:00+00:00")
    moved = [Moved(start + timedelta(days=day), "charges", str(n), parts) for n, (day, parts) in enumerate(made)]
    statement = statement_of(now, later, moved)
    position = statement.opening
    for line in statement.lines:
        position = position.plus(line.moved.parts)
        assert line.after == position
    assert position == statement.closing == now.minus(later)
    assert [line.moved.at for line in statement.lines] == sorted(each.at for each in moved)


async def test_each_movement_names_its_cause(town: Town) -> None:
    await town.account("desk", level_2=True)
    town.open("desk", "60")
    town.method("desk", "tok_ok")
    town.prefer("desk", "50", "50")
    await town.settle()
    before = await town.now()
    town.charge("desk", "6", product="voice.outbound")
    town.charge("desk", "5", product="sms")
    town.command("grant_goodwill", "desk", amount="0.5", currency="USD", note="sorry")
    await town.settle()
    (attempt,) = await town.attempts("desk")
    if attempt.state != "settled":
        town.result(attempt)
        await town.settle()
    told = await api.statement(engine_of(town), "desk", before)
    assert told.opening.balance == "60"
    assert {each.cause: each.amount for each in told.movements} == {
        "2 charges: sms, voice.outbound": "-11",
        "goodwill by ann: sorry": "0.5",
        "recharge by card (sandbox)": format_nano(attempt.amount_nano),
    }
    assert told.closing.balance == await town.balance("desk")

    later = await town.now()
    town.charge("desk", "-5", product="sms")
    await town.settle()
    town.charge("desk", "-6")
    town.charge("desk", "2")
    await town.settle()
    told = await api.statement(engine_of(town), "desk", later)
    assert [(each.cause, each.amount) for each in told.movements] == [
        ("1 charge taken back: sms", "5"),
        ("2 charges, more taken back than charged: voice.outbound", "4"),
    ]


async def test_at_any_cut_a_statement_is_the_sum_of_its_entries_and_joins_the_next(town: Town) -> None:
    chance = random.Random(11)
    for account_id in ("desk", "east"):
        await town.account(account_id, plan="invoiced" if account_id == "east" else "payg", level_2=True)
        town.open(account_id, "100")
    instants = [await town.now()]
    for _ in range(8):
        await town.settle()
        for _ in range(chance.randrange(4)):
            amount = format_nano(chance.randrange(1, 10**9))
            town.charge("desk", amount, product=chance.choice(["sms", "voice.outbound"]))
            town.charge("east", amount, plan="invoiced")
        if chance.random() < 0.5:
            town.command("grant_goodwill", "desk", amount=format_nano(chance.randrange(1, 10**9)), currency="USD")
        await town.settle()
        await town.move(timedelta(hours=chance.randrange(1, 40)))
        instants.append(await town.now())
    columns = tables.ledger_entry.c
    query = select(columns.account_id, columns.at, columns.ledger, columns.nano)
    entries = await town.rooms.query("balance", query)
    kinds = ("wallet", "unbilled", "receivable")

    def summed(account_id: str, until: datetime) -> dict[str, int]:
        own = [row for row in entries if row.account_id == account_id and row.at < until]
        return {kind: sum(row.nano for row in own if row.ledger.split(":")[0] == kind) for kind in kinds}

    instants += [row.at for row in entries]  # a movement at the very instant of a cut belongs to what comes after
    for account_id in ("desk", "east"):
        for _ in range(25):
            since, middle, until = sorted(chance.sample(instants, 3))
            whole = await api.statement(engine_of(town), account_id, since, until)
            first = await api.statement(engine_of(town), account_id, since, middle)
            second = await api.statement(engine_of(town), account_id, middle, until)
            assert first.closing == second.opening
            assert first.movements + second.movements == whole.movements
            for told, at in ((whole.opening, since), (first.closing, middle), (whole.closing, until)):
                want = summed(account_id, at)
                assert {kind: parse_amount(getattr(told, kind), signed=True) for kind in kinds} == want
                assert parse_amount(told.balance, signed=True) == sum(want.values())
            moved = sum(parse_amount(each.amount, signed=True) for each in whole.movements)
            opening, closing = (parse_amount(each.balance, signed=True) for each in (whole.opening, whole.closing))
            assert opening + moved == closing
            assert [each.balance for each in whole.movements][-1:] in ([], [whole.closing.balance])
            assert await api.position(engine_of(town), account_id, middle) == first.closing


async def test_an_account_without_a_wallet_and_a_time_that_ends_before_it_begins_are_refused(town: Town) -> None:
    now = await town.now()
    with pytest.raises(NotFound):
        await api.statement(engine_of(town), "nobody", now)
    await town.account("desk")
    await town.settle()
    with pytest.raises(InvalidInput, match="to"):
        await api.statement(engine_of(town), "desk", now, now - timedelta(days=1))


async def test_a_bank_reference_and_a_reason_are_not_taken_for_the_number_of_an_invoice(database: Any) -> None:
    async with Debtors(database) as town:
        await town.member("east")
        await town.settle()
        before = await town.now()
        await town.close("TB-1", {"east": "96"})
        town.pay("56", reference="BANK-17")
        await town.settle()
        town.order("propose_write_off", invoice="TB-1", note="gone")
        town.order("approve_write_off", invoice="TB-1", actor="cfo")
        await town.settle()
        told = await api.statement(engine_of(town), "east", before)
    assert [(each.cause, each.receivable) for each in told.movements if each.kind != "charges"] == [
        ("closing of invoice TB-1", "-96"),
        ("payment of invoice by fin: BANK-17", "56"),
        ("write-off of invoice by cfo: proposed by fin: gone", "40"),
    ]
