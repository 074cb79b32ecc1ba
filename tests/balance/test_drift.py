"""Sums are checked while the room runs: a planted drift is found, told once, holds a close back, and ends when it is mended."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from services.balance import api, drift
from services.kernel.period import instant_text
from services.runtime.room import Tick
from tests.support.balance_factory import Town
from tests.support.callers import Callers, seconds
from tests.support.servers import Database

SUMS = Tick("sums", partial(drift.watch, tell=lambda _: None))


@pytest.fixture
async def town(database: Database) -> AsyncIterator[Town]:
    async with Town(database) as made:
        for account_id in ("desk", "east"):
            await made.account(account_id, level_2=True)
            made.open(account_id, "100")
            made.charge(account_id, "1")
        await made.settle()
        yield made


def engine_of(town: Town) -> Any:
    return town.rooms.processors["balance"].engine


async def plant(town: Town, *statements: str) -> None:
    """As the owner, with every guard of the ledger switched off for as long as it takes."""
    async with town.database.connected() as owner, owner.transaction():
        for switch in ("disable", "enable"):
            for table in ("charged", "transaction", "entry"):
                await owner.execute(f"alter table balance.{table} {switch} trigger user")
            if switch == "disable":
                for statement in statements:
                    await owner.execute(statement)


def covered(town: Town) -> None:
    """Usage covers a cut of which every charge is posted."""
    boundary = "2026-11-01T00:00:00Z"
    data = {"cutoff_id": str(uuid4()), "boundary": boundary, "room": "usage", "group_id": None, "marks": []}
    town.send("closing.progress", data["cutoff_id"], data)


def answers(town: Town) -> int:
    return sum(each["room"] == "balance" for each in town.log.data("closing.progress"))


async def test_an_honest_ledger_has_no_drift_and_its_running_sums_are_those_of_its_entries(town: Town) -> None:
    for amount in ("2", "3"):
        town.charge("desk", amount)
        town.charge("far", amount, plan="invoiced")
        town.command("grant_goodwill", "desk", amount="0.5", currency="USD")
        await town.settle()
    assert await api.drifts(engine_of(town)) == []
    async with town.database.connected() as owner:
        differing = await owner.fetch(
            "select * from balance.wallet w full join balance.summed s using (account_id)"
            " where (w.wallet_nano, w.unbilled_nano, w.receivable_nano) is distinct from"
            " (s.wallet_nano, s.unbilled_nano, s.receivable_nano)"
        )
        assert differing == []
        sealed = await owner.fetch("select lane, max(seq) as seq from balance.seal group by lane order by lane")
        assert await owner.fetch("select lane, seq from balance.summed_to order by lane") == sealed


async def test_a_drift_is_told_once_holds_the_close_back_and_ends_when_it_is_mended(town: Town) -> None:
    covered(town)
    await town.settle()
    assert answers(town) == 1
    await plant(town, "update balance.wallet set wallet_nano = wallet_nano + 1 where account_id = 'desk'")
    covered(town)
    for _ in range(2):
        await town.settle()
    town.charge("desk", "1")
    await town.settle()
    assert answers(town) == 1
    assert await api.drifts(engine_of(town)) == ["wallet of desk is 99.000000001, its entries sum to 99"]
    [event] = town.events("desk", "drift_found")
    assert event["reason"] == "wallet"
    assert town.events("east", "drift_found") == []
    await plant(town, "update balance.wallet set wallet_nano = wallet_nano - 1 where account_id = 'desk'")
    await town.settle()
    assert await api.drifts(engine_of(town)) == []
    assert [each["kind"] for each in town.events("desk", "drift_found", "drift_gone")] == ["drift_found", "drift_gone"]
    assert answers(town) == 2


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        (
            "update balance.charged set wallet_nano = wallet_nano - 1, revenue_nano[1] = revenue_nano[1] + 1"
            " where account_id = 'east'",
            "wallet of east is 99, its entries sum to 98.999999999",
        ),
        (
            "update balance.entry set nano = nano + 5 where ledger = 'opening' and transaction_id ="
            " (select id from balance.transaction where ref = 'east')",
            "transaction opening east sums to 0.000000005, not to zero",
        ),
        (
            "alter table balance.charged drop constraint charged_sums_to_zero;"
            " update balance.charged set revenue_nano[1] = revenue_nano[1] + 7 where account_id = 'east'",
            "charges of east sum to 0.000000007 with what paid them, not to zero",
        ),
    ],
    ids=["an old charge was edited", "a transaction is off zero", "charges are off zero"],
)
async def test_the_sweep_finds_what_was_changed_without_anything_moving(
    town: Town, statement: str, sentence: str
) -> None:
    await plant(town, statement)
    await town.settle()
    assert sentence in await api.drifts(engine_of(town))
    covered(town)
    await town.settle()
    assert answers(town) == 0


@pytest.mark.parametrize("moves", [False, True], ids=["nothing moves", "a charge makes another"])
async def test_a_wallet_that_is_gone_is_a_drift_and_holds_the_close_back(town: Town, moves: bool) -> None:
    await plant(town, "create table public.gone as table balance.wallet", "delete from balance.wallet")
    if moves:
        town.charge("east", "1")
    await town.settle()
    covered(town)
    await town.settle()
    east = (-1, 98) if moves else (0, 99)
    sentences = [
        "wallet of desk is 0, its entries sum to 99",
        f"wallet of east is {east[0]}, its entries sum to {east[1]}",
    ]
    assert sorted(await api.drifts(engine_of(town))) == sentences
    assert [
        (each.account_id, each.kind, each.held_nano // 10**9, each.entries_nano // 10**9)
        for each in await api.wallet_differences(engine_of(town))
    ] == [("desk", "wallet", 0, 99), ("east", "wallet", *east)]
    assert answers(town) == 0
    if not moves:
        await plant(town, "insert into balance.wallet select * from public.gone")
        await town.settle()
        assert (await api.drifts(engine_of(town)), answers(town)) == ([], 1)


async def test_the_room_itself_cannot_delete_a_wallet(town: Town) -> None:
    async with town.database.connected("balance") as connection:
        for statement in ("delete from balance.wallet", "truncate balance.wallet"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)


async def test_a_transaction_that_is_off_zero_is_told_to_an_account_that_it_touches_and_holds_the_close_back(
    town: Town,
) -> None:
    edit = (
        "update balance.entry set nano = nano + {0} where account_id is null and transaction_id ="
        " (select id from balance.transaction where (kind, ref) = ('opening', 'east'))"
    )
    await plant(town, edit.format(5))
    await town.settle()
    covered(town)
    await town.settle()
    sentence = "transaction opening east sums to 0.000000005, not to zero"
    assert await api.drifts(engine_of(town)) == [sentence]
    [event] = town.events("east", "drift_found")
    assert (event["reason"], event["message"]) == ("transaction", sentence)
    assert town.events("desk", "drift_found") == []
    assert answers(town) == 0
    await plant(town, edit.format(-5))
    await town.settle()
    assert await api.drifts(engine_of(town)) == []
    [event] = town.events("east", "drift_gone")
    assert (event["reason"], event["message"]) == ("transaction", "transaction opening east sums to zero again")
    assert answers(town) == 1


@pytest.mark.parametrize(
    ("kind", "edited", "sentence"),
    [
        ("held", "wallet set held_nano = held_nano + {0}", "held of desk is 0.050000001, its calls hold 0.05"),
        ("held", "call set held_nano = held_nano + {0}", "held of desk is 0.05, its calls hold 0.050000001"),
        ("credit", "wallet set credit_nano = credit_nano + {0}", "credit of desk is 2.000000001, its credits sum to 2"),
        (
            "on_its_way",
            "wallet set on_its_way_nano = on_its_way_nano + {0}",
            "on_its_way of desk is 0.000000001, its payments for groups sum to 0",
        ),
    ],
    ids=[
        "a wallet holds what no call holds",
        "a call holds what its wallet does not",
        "a wallet has what no credit has",
        "a wallet keeps what no card brought for a group",
    ],
)
async def test_what_is_held_and_what_is_left_of_credits_are_summed_up_too(
    town: Town, kind: str, edited: str, sentence: str
) -> None:
    town.grant("desk", "2")
    await town.settle()
    async with Callers(town) as desk:
        await desk.authorize("c1")
    edit = f"update balance.{edited} where account_id = 'desk'"
    await plant(town, edit.format(1))
    await town.settle()
    covered(town)
    await town.settle()
    assert await api.drifts(engine_of(town)) == [sentence]
    [event] = town.events("desk", "drift_found")
    assert (event["reason"], event["message"]) == (kind, sentence)
    assert answers(town) == 0
    await plant(town, edit.format(-1))
    await town.settle()
    assert await api.drifts(engine_of(town)) == []
    assert [each["reason"] for each in town.events("desk", "drift_gone")] == [kind]
    assert answers(town) == 1


async def test_leases_that_are_over_and_credits_that_are_spent_shared_or_expired_are_no_drift(town: Town) -> None:
    await town.account("desk", level_2=True, group="g")
    await town.settle()
    now = await town.now()
    town.grant("desk", "2", expires_at=instant_text(now + seconds(60)))
    town.grant("desk", "1")
    town.grant("desk", "7", shared=True)
    await town.settle()
    town.charge("desk", "2.5", event_time=instant_text(await town.now()))
    await town.settle()
    assert (await town.wallet("desk")).credit_nano > 0
    async with Callers(town) as desk:
        await desk.authorize("c1")
        await desk.authorize("c2")
        await desk.settle("c2", 61)
        await town.move(seconds(331))
        assert (await desk.held())[0] == "0.02"  # nobody has taken the other one's back from the wallet
        assert (await town.wallet("desk")).held_nano == 70_000_000
        assert await town.rooms.processors["balance"].tick(SUMS)
    assert await api.drifts(engine_of(town)) == []
    await town.settle()  # and now it has been, and the credit has expired
    assert (await town.wallet("desk")).held_nano == 20_000_000
    assert await api.drifts(engine_of(town)) == []
    assert [each for each in town.kinds("desk") if each.startswith("drift")] == []
