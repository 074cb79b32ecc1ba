"""Suspension as a set of reasons: each change told once, in order, with the whole set; active only when it is empty."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import select

from contracts.balance import SuspensionReason
from services.balance import api, tables
from services.balance.evaluation import evaluate, load
from services.balance.spending import CallAsked
from services.runtime.room import Tick
from services.runtime.work import Work
from tests.support.balance_factory import Town
from tests.support.servers import Database


@pytest.fixture
async def town(database: Database) -> AsyncIterator[Town]:
    async with Town(database) as made:
        await made.account("desk", level_2=True)
        made.open("desk", "100")
        await made.settle()
        yield made


def engine_of(town: Town) -> Any:
    return town.rooms.processors["balance"].engine


def told(town: Town) -> list[tuple[str, str | None, list[str]]]:
    """(kind, what changed, the whole set) of each event of the account that speaks of its suspension."""
    return [(each["kind"], each["reason"], each["reasons"]) for each in town.events("desk", "suspended", "restored")]


async def set_overdue(town: Town, stands: bool) -> None:
    """What unpaid invoices do."""

    async def run(work: Work) -> None:
        wallets = await load(work, ["desk"])
        change = wallets["desk"].add_reason if stands else wallets["desk"].lift_reason
        change(work, "overdue")
        await evaluate(work, wallets, tell=town.refuse_fast.tell, funds_of=())

    assert await town.rooms.processors["balance"].tick(Tick("overdue", run))
    await town.settle()


async def test_reasons_come_and_go_by_themselves_and_only_the_last_one_restores(town: Town) -> None:
    town.command("suspend", "desk", note="fraud is looked into")
    await town.settle()
    town.charge("desk", "100")
    await town.settle()
    await set_overdue(town, True)
    await set_overdue(town, True)
    assert (await api.balance(engine_of(town), "desk")).suspended_for == ("funds", "overdue", "operator")
    town.command("grant_goodwill", "desk", amount="5", currency="USD")
    await town.settle()
    town.command("resume", "desk", note="it was none")
    await town.settle()
    assert (await api.balance(engine_of(town), "desk")).status == "suspended"
    await set_overdue(town, False)
    assert told(town) == [
        ("suspended", "operator", ["operator"]),
        ("suspended", "funds", ["funds", "operator"]),
        ("suspended", "overdue", ["funds", "overdue", "operator"]),
        ("suspended", "funds", ["overdue", "operator"]),
        ("suspended", "operator", ["overdue"]),
        ("restored", "overdue", []),
    ]
    assert (await api.balance(engine_of(town), "desk")).status == "active"


async def test_an_account_that_an_operator_suspended_is_charged_and_neither_calls_nor_is_recharged(town: Town) -> None:
    town.method("desk", "tok_ok")
    town.prefer("desk", "50", "50")
    town.command("suspend", "desk", note="fraud is looked into")
    await town.settle()
    town.charge("desk", "70")
    await town.settle()
    assert await town.balance("desk") == "30"
    assert await town.attempts("desk") == []
    refused = await api.may_call(engine_of(town), CallAsked("desk", None, 1, "USD", ()))
    assert refused.reason == "suspended"  # type: ignore[union-attr]
    assert await api.suspended_accounts(engine_of(town)) == ["desk"]
    town.command("resume", "desk")
    await town.settle()
    assert [row.state for row in await town.attempts("desk")] == ["settled"]
    assert await town.balance("desk") == "100"


@pytest.mark.parametrize("role", ["owner", "billing_admin", "finance"])
async def test_only_an_operator_suspends_and_resumes(town: Town, role: str) -> None:
    town.command("suspend", "desk", role=role)
    town.command("resume", "desk", role=role)
    await town.settle()
    refused = [(each["reason"], each["field"]) for each in town.events("desk", "command_refused")]
    assert refused == [("not_permitted", "role")] * 2
    assert told(town) == []


async def test_suspending_twice_is_refused_and_a_repeated_command_is_one(town: Town) -> None:
    town.command("suspend", "desk", command_id="s1", note="fraud")
    town.command("suspend", "desk", command_id="s1", note="fraud")
    town.command("suspend", "desk", command_id="s2")
    town.command("resume", "desk", command_id="r1")
    town.command("resume", "desk", command_id="r2")
    await town.settle()
    assert [(each["reason"], each["command_id"]) for each in town.events("desk", "command_refused")] == [
        ("already_suspended", "s2"),
        ("not_suspended", "r2"),
    ]
    answers = [
        (each["kind"], each["command_id"], each["message"]) for each in town.events("desk")[1:] if each["reasons"]
    ]
    assert answers == [("suspended", "s1", "fraud")]
    columns = tables.command.c
    log = await town.rooms.query(
        "balance", select(columns.actor, columns.role, columns.note).where(columns.command_id == "s1")
    )
    assert [tuple(row) for row in log] == [("ann", "operator", "fraud")]


@pytest.mark.parametrize("seed", range(3))
async def test_who_reads_the_events_in_order_of_their_versions_has_the_set(town: Town, seed: int) -> None:
    chosen = random.Random(seed)
    standing: set[SuspensionReason] = set()
    for _ in range(25):
        match chosen.choice(["suspend", "resume", "charge", "goodwill", "overdue", "paid"]):
            case "charge":
                town.charge("desk", str(chosen.choice([1, 60, 120])))
            case "goodwill":
                town.command("grant_goodwill", "desk", amount=str(chosen.choice([1, 90])), currency="USD")
            case ("overdue" | "paid") as word:
                await set_overdue(town, word == "overdue")
                standing = (standing | {"overdue"}) if word == "overdue" else (standing - {"overdue"})
            case ("suspend" | "resume") as command:
                town.command(command, "desk")
                standing = (standing | {"operator"}) if command == "suspend" else (standing - {"operator"})
        if chosen.random() < 0.5:
            await town.settle()
    await town.settle()
    if (await town.wallet("desk")).wallet_nano <= 0:
        standing.add("funds")
    seen: set[str] = set()
    for kind, changed, reasons in told(town):
        assert seen ^ set(reasons) == {changed}, "each event is one change"
        assert (kind == "restored") == (not reasons)
        seen = set(reasons)
    assert seen == standing
    assert set((await api.balance(engine_of(town), "desk")).suspended_for) == standing
