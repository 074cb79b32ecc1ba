"""Credits on real Postgres: granted, redeemed, spent, given back, expired; nothing of it lost, doubled or overspent."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from services.balance import api, promotions, tables, vouchers
from services.balance import consumer as balance_room
from services.balance.refuse_fast import RefuseFast
from services.kernel.errors import NotPermitted
from services.kernel.money import NANO, format_nano
from services.kernel.period import instant_text
from services.runtime.database import open_engine
from services.runtime.outbox import partition_of
from services.runtime.processor import Processor
from tests.balance.test_daily_spend import statements
from tests.balance.test_handler_commands import everything_stored
from tests.support.balance_factory import NO_VALKEY, Town
from tests.support.receivables_factory import Debtors
from tests.support.servers import Database


@pytest.fixture
async def town(database: Database) -> AsyncIterator[Town]:
    async with Town(database) as made:
        yield made


def processor_of(town: Town) -> Processor:
    return town.rooms.processors["balance"]


def left(credits: list[Any]) -> list[str]:
    return [format_nano(credit.remaining_nano) for credit in credits]


async def spend(town: Town, account_id: str, amount: str, **more: Any) -> str:
    """A call that ends now."""
    return town.charge(account_id, amount, event_time=instant_text(await town.now()), **more)


def refusals(town: Town, account_id: str) -> list[tuple[str, str | None]]:
    return [(each["reason"], each["field"]) for each in town.events(account_id, "command_refused")]


def postings(town: Town) -> list[tuple[str, str, str, str]]:
    told = town.log.data("balance.postings")
    return [(each["charged"], each["credits"], each["wallet"], each["unbilled"]) for each in told]


async def conserved(town: Town) -> None:
    await town.assert_conserved()
    await town.assert_credits_conserved()
    assert await api.credit_differences(processor_of(town).engine) == []


# ---- spending ------------------------------------------------------------------------------------------------------


async def test_a_trial_spends_its_credit_before_its_cash_and_the_posting_says_so(town: Town) -> None:
    await town.account("desk", plan="trial")
    town.open("desk", "10")
    town.grant("desk", "2", note="welcome")
    await town.settle()
    assert town.events("desk", "credit_granted")[0]["available"] == "12"
    await spend(town, "desk", "1.5", plan="trial", group_id=None, bill_to=None)
    await spend(town, "desk", "3.5", plan="trial", group_id=None, bill_to=None)
    await town.settle()
    assert await town.balance("desk") == "7"
    assert left(await town.credits()) == ["0"]
    assert postings(town) == [("5", "2", "3", "0")]
    await spend(town, "desk", "1", plan="trial", group_id=None, bill_to=None)
    await town.settle()
    assert postings(town)[1:] == [("1", "0", "1", "0")]
    await conserved(town)


async def test_a_postpaid_charge_is_paid_by_credit_before_the_limit(town: Town) -> None:
    await town.account("east", plan="invoiced", credit_limit="100", group="g")
    town.grant("east", "2")
    await town.settle()
    await spend(town, "east", "5", plan="invoiced")
    await town.settle()
    assert postings(town) == [("5", "2", "0", "3")]
    assert (await town.wallet("east")).unbilled_nano == -3 * NANO
    await conserved(town)


async def test_accounts_of_a_group_share_a_credit_and_are_recharged_only_when_it_is_gone(town: Town) -> None:
    for name in ("desk", "sales"):
        await town.account(name, level_2=True, group="g")
        town.open(name, "5")
        town.method(name, "tok_ok")
        town.prefer(name, "20", "30")
    await town.account("other", group="h")
    await town.settle()
    recharged = {name: len(await town.attempts(name)) for name in ("desk", "sales")}
    assert recharged == {"desk": 1, "sales": 1}
    for name in ("desk", "sales"):
        town.charge(name, "40")
    town.grant("desk", "10", shared=True)
    await town.settle()
    before = {name: len(await town.attempts(name)) for name in ("desk", "sales")}
    await spend(town, "desk", "6")
    await spend(town, "sales", "3")
    await spend(town, "other", "1", group_id="h")
    await town.settle()
    assert left(await town.credits()) == ["1"]
    assert {name: len(await town.attempts(name)) for name in before} == before
    await spend(town, "sales", "2")
    await town.settle()
    assert left(await town.credits()) == ["0"]
    assert {name: len(await town.attempts(name)) - 1 for name in before} == before
    await conserved(town)


async def test_a_shared_credit_restores_every_account_of_its_group(town: Town) -> None:
    for name in ("desk", "sales"):
        await town.account(name, group="g")
        town.open(name, "1")
        town.charge(name, "2")
    await town.settle()
    assert await api.suspended_accounts(processor_of(town).engine) == ["desk", "sales"]
    town.grant("desk", "10", shared=True)
    await town.settle()
    assert await api.suspended_accounts(processor_of(town).engine) == []
    await spend(town, "desk", "10")
    await town.settle()
    assert await api.suspended_accounts(processor_of(town).engine) == ["desk", "sales"]


async def test_no_account_is_recharged_by_the_batch_in_which_its_group_was_granted_a_shared_credit(town: Town) -> None:
    for name in ("desk", "sales"):
        await town.account(name, level_2=True, group="g")
    town.open("sales", "5")
    town.method("sales", "tok_ok")
    await town.settle()
    town.grant("desk", "500", shared=True)
    town.prefer("sales", "100", "50")
    await town.settle()
    assert await town.attempts("sales") == []
    assert town.events("sales", "preferences_set")[0]["available"] == "505"


async def test_a_shared_credit_that_is_approved_is_nothing_to_who_has_left_its_group(town: Town) -> None:
    for name in ("desk", "sales"):
        await town.account(name, group="g")
        town.open(name, "-1")
    town.grant("desk", "2000", shared=True)
    await town.settle()
    [proposed] = town.events("desk", "credit_proposed")
    await town.account("desk", group="h")
    await town.settle()
    town.command("approve_credit", "desk", credit_id=proposed["credit_id"], actor="bea")
    await town.settle()
    assert town.events("desk", "credit_granted")[0]["available"] == "-1"
    assert await api.suspended_accounts(processor_of(town).engine) == ["desk"]


async def test_what_others_spend_of_a_shared_credit_and_get_back_suspends_warns_and_restores(town: Town) -> None:
    for name in ("desk", "sales", "kiosk"):
        await town.account(name, group="g")
    town.grant("desk", "100", shared=True)
    town.open("desk", "-20")
    town.command("set_levels", "kiosk", currency="USD", levels=["50"])
    await town.settle()
    taken = await spend(town, "sales", "90")
    await town.settle()
    assert await api.suspended_accounts(processor_of(town).engine) == ["desk"]
    assert [each["level"] for each in town.events("kiosk", "low_balance")] == ["50"]
    await spend(town, "sales", "-90", reverses=taken)
    await town.settle()
    assert await api.suspended_accounts(processor_of(town).engine) == []
    await spend(town, "sales", "60")
    await town.settle()
    assert await api.suspended_accounts(processor_of(town).engine) == []
    assert len(town.events("kiosk", "low_balance")) == 2


async def test_what_one_account_gives_back_to_a_spent_credit_pays_for_another_one_in_the_same_batch(town: Town) -> None:
    for name in ("desk", "sales"):
        await town.account(name, group="g")
    town.open("sales", "5")
    town.grant("desk", "10", shared=True)
    await town.settle()
    taken = await spend(town, "desk", "10")
    await town.settle()
    at = instant_text(await town.now())
    town.charge("desk", "-10", event_time=at, reverses=taken)
    town.charge("sales", "3", event_time=at)
    await town.settle()
    assert (await town.balance("sales"), left(await town.credits())) == ("5", ["7"])
    await conserved(town)


async def test_who_lived_on_a_shared_credit_alone_is_suspended_when_it_leaves_the_group(database: Database) -> None:
    async with Debtors(database) as town:
        soon = await town.now() + timedelta(days=1)
        for name in ("desk", "poor"):
            await town.member(name, "northwind", plan="payg")
        await town.member("later", "northwind", plan="payg", moves=[(soon, "southwind")])
        await town.member("never", "southwind", plan="payg", moves=[(soon, "eastwind")])
        town.grant("poor", "100", shared=True)
        await town.settle()
        await spend(town, "desk", "30", group_id="northwind")
        await town.settle()
        await town.member("desk", "southwind", plan="payg")
        await town.settle()
        assert await api.suspended_accounts(processor_of(town).engine) == ["desk"]
        await town.settle(after=timedelta(days=1))
        assert await api.suspended_accounts(processor_of(town).engine) == ["desk", "later"]
        await town.member("desk", "northwind", plan="payg")
        await town.settle()
        assert await api.suspended_accounts(processor_of(town).engine) == ["later"]


async def test_who_joins_a_group_shares_its_credit_and_who_has_left_does_not(town: Town) -> None:
    await town.account("desk", group="g")
    await town.account("sales", group="h")
    for name in ("desk", "sales"):
        town.open(name, "1")
    town.grant("desk", "10", shared=True)
    await town.settle()
    assert town.events("sales")[-1]["available"] == "1"
    await town.account("sales", group="g")
    await town.account("desk", group="h")
    await town.settle()
    for name in ("desk", "sales"):
        town.command("suspend", name)
    await town.settle()
    assert [town.events(name)[-1]["available"] for name in ("desk", "sales")] == ["1", "11"]


async def test_a_reversal_gives_a_credit_back_and_breakage_once_it_has_expired(town: Town) -> None:
    await town.account("desk", group="g")
    town.open("desk", "10")
    now = await town.now()
    town.grant("desk", "4", expires_at=instant_text(now + timedelta(days=2)))
    await town.settle()
    first, second = await spend(town, "desk", "3"), await spend(town, "desk", "3")
    await town.settle()
    assert (await town.balance("desk"), left(await town.credits())) == ("8", ["0"])
    await spend(town, "desk", "-3", reverses=second)
    await town.settle()
    assert (await town.balance("desk"), left(await town.credits())) == ("10", ["1"])
    await conserved(town)
    await town.settle(after=timedelta(days=3))
    await spend(town, "desk", "-3", reverses=first)
    await town.settle()
    assert (await town.balance("desk"), left(await town.credits())) == ("10", ["0"])
    assert (await town.credits())[0].breakage_nano == 4 * NANO
    assert postings(town)[-1] == ("-3", "-3", "0", "0")
    await conserved(town)


@pytest.mark.parametrize("split", [False, True])
async def test_a_price_that_falls_after_the_end_of_the_credit_that_paid_it_costs_no_cash(
    town: Town, split: bool
) -> None:
    await town.account("desk", group="g")
    town.open("desk", "10")
    town.grant("desk", "6", expires_at=instant_text(await town.now() + timedelta(days=2)))
    await town.settle()
    at = instant_text(await town.now())
    charged = town.charge("desk", "5", event_time=at)
    await town.settle()
    await town.settle(after=timedelta(days=3))
    town.charge("desk", "-5", event_time=at, reverses=charged)
    if split:
        await town.settle()
    town.charge("desk", "4", event_time=at, replaces=charged)
    await town.settle()
    assert (await town.balance("desk"), (await town.credits())[0].breakage_nano) == ("10", 2 * NANO)
    await conserved(town)


async def test_a_charge_and_its_reversal_in_one_batch_leave_everything_as_it_was(town: Town) -> None:
    await town.account("desk", group="g")
    town.open("desk", "10")
    town.grant("desk", "2")
    await town.settle()
    charged = await spend(town, "desk", "5")
    await spend(town, "desk", "-5", reverses=charged)
    await town.settle()
    assert (await town.balance("desk"), left(await town.credits())) == ("10", ["2"])
    await conserved(town)


async def test_what_is_left_at_the_end_is_breakage_and_suspends_who_has_nothing_else(town: Town) -> None:
    await town.account("desk", plan="trial")
    now = await town.now()
    town.grant("desk", "4", expires_at=instant_text(now + timedelta(hours=1)))
    await town.settle()
    late = instant_text(now + timedelta(hours=1))
    town.charge("desk", "1", plan="trial", group_id=None, bill_to=None, event_time=late)
    await spend(town, "desk", "1.5", plan="trial", group_id=None, bill_to=None)
    await town.settle()
    assert (await town.balance("desk"), left(await town.credits())) == ("-1", ["2.5"])
    await town.settle(after=timedelta(minutes=61))
    assert town.kinds("desk") == ["credit_granted", "credit_expired", "suspended"]
    assert town.events("desk", "credit_expired")[0]["amount"] == "2.5"
    assert ("breakage", "2.5") in await town.entries()
    await conserved(town)


async def test_accounts_without_credits_cost_no_statement_whoever_has_one(town: Town) -> None:
    for name in ("desk", "sales"):
        await town.account(name)
        town.open(name, "100")
    await town.settle()

    async def cost() -> int:
        town.charge("desk", "1")
        with statements(processor_of(town)) as said:
            await town.rooms.pump()
        return len(said)

    await cost()
    without = await cost()
    town.grant("sales", "50")
    await town.settle()
    assert await cost() == without


# ---- granting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ({"role": "owner"}, ("not_permitted", "role")),
        ({"amount": "0"}, ("invalid", "amount")),
        ({"shared": True}, ("needs_organization_group", "shared")),
        ({"expires_at": "2026-01-01T00:00:00Z"}, ("invalid", "expires_at")),
    ],
)
async def test_a_grant_that_a_rule_forbids_is_refused_with_its_field(
    town: Town, fields: dict[str, Any], refused: tuple[str, str]
) -> None:
    await town.account("desk", group="desk", scoped=True)
    town.command("grant_credit", "desk", **({"amount": "5", "currency": "USD"} | fields))
    await town.settle()
    assert refusals(town, "desk") == [refused]
    assert await town.credits() == []


async def test_a_credit_that_ends_at_the_last_instant_of_all_stops_no_charge(town: Town) -> None:
    """Programs write that instant for "never": it is refused with the fix, and the neighbours of the grant are carried out."""
    await town.account("desk")
    town.open("desk", "10")
    town.grant("desk", "1", expires_at="9999-12-31T23:59:59.999999Z")
    town.grant("desk", "1", expires_at="9999-12-31T23:59:59Z")
    town.grant("desk", "1")
    await town.settle()
    await spend(town, "desk", "1.5")
    await town.settle()
    assert await town.quarantined() == [("invalid_command", "expires_at")]
    assert left(await town.credits()) == ["0", "0.5"]
    assert await town.balance("desk") == "10"
    await conserved(town)


async def test_a_credit_over_the_limit_begins_when_another_person_approves_it(town: Town) -> None:
    await town.account("desk")
    town.grant("desk", "1000.01")
    await town.settle()
    proposed = town.events("desk", "credit_proposed")[0]
    assert proposed["available"] == "0"
    credit_id = proposed["credit_id"]
    town.command("approve_credit", "desk", credit_id=credit_id)
    await town.settle()
    assert refusals(town, "desk") == [("needs_second_person", "actor")]
    for _ in range(2):
        town.command("approve_credit", "desk", credit_id=credit_id, actor="bea")
    await town.settle()
    assert refusals(town, "desk")[1:] == [("unknown_credit", "credit_id")]
    assert [each["available"] for each in town.events("desk", "credit_granted")] == ["1000.01"]
    await conserved(town)


# ---- codes ---------------------------------------------------------------------------------------------------------


async def make(town: Town, **fields: Any) -> list[vouchers.NewVoucher]:
    wanted: dict[str, Any] = {"actor": "ann", "role": "finance", "amount": "5"} | fields
    return await vouchers.create_vouchers(processor_of(town).engine, **wanted)


async def test_a_code_becomes_a_credit_once_for_each_and_stands_nowhere(town: Town) -> None:
    [made] = await make(town, redemptions=2, credit_days=30)
    for name in ("desk", "sales", "kiosk"):
        await town.account(name)
    await town.settle()
    written = made.code.lower().replace("-", " ")
    town.command("redeem_code", "desk", code=written)
    town.command("redeem_code", "desk", code=made.code)
    town.command("redeem_code", "sales", code=made.code)
    town.command("redeem_code", "kiosk", code=made.code)
    town.command("redeem_code", "kiosk", code="AAAAA-AAAAA-AAAAA-AAAAA")
    await town.settle()
    assert refusals(town, "desk") == [("already_redeemed", "code")]
    assert refusals(town, "kiosk") == [("used_up", "code"), ("unknown_code", "code")]
    assert [town.events(name, "credit_granted")[0]["amount"] for name in ("desk", "sales")] == ["5", "5"]
    [row] = await vouchers.vouchers(processor_of(town).engine)
    assert (row.state, row.redeemed) == ("used_up", 2)
    stored = (await everything_stored(town)).upper()
    assert made.code not in stored
    assert made.code.replace("-", "") not in stored
    await conserved(town)


async def test_a_shared_code_is_the_groups_and_without_a_group_of_the_organization_the_accounts(town: Town) -> None:
    [made] = await make(town, redemptions=9, shared=True)
    await town.account("desk", group="g")
    await town.account("sales", group="g")
    await town.account("alone", group="alone", scoped=True)
    await town.account("trial", plan="trial")
    await town.settle()
    for name in ("desk", "sales", "alone", "trial"):
        town.command("redeem_code", name, code=made.code)
    await town.settle()
    assert refusals(town, "sales") == [("already_redeemed", "code")]
    owners = sorted((credit.account_id or "", credit.group_id or "") for credit in await town.credits())
    assert owners == [("", "g"), ("alone", "alone"), ("trial", "")]


async def test_a_code_of_another_organization_or_too_late_or_not_approved_is_no_code(town: Town) -> None:
    [foreign] = await make(town, organization_id="northwind")
    [short] = await make(town, redeem_until=await town.now() + timedelta(hours=1))
    [large] = await make(town, redemptions=201)
    assert (foreign.needs_approval, large.needs_approval) == (False, True)
    await town.account("desk")
    await town.settle(after=timedelta(hours=2))
    for each in (foreign, short, large):
        town.command("redeem_code", "desk", code=each.code)
    await town.settle()
    assert refusals(town, "desk") == [("unknown_code", "code"), ("expired", "code"), ("unknown_code", "code")]
    engine = processor_of(town).engine
    with pytest.raises(NotPermitted):
        await vouchers.approve_voucher(engine, large.voucher_id, actor="ann", role="finance")
    await vouchers.approve_voucher(engine, large.voucher_id, actor="bea", role="operator")
    town.command("redeem_code", "desk", code=large.code)
    await town.settle()
    assert len(await town.credits()) == 1


# ---- races ---------------------------------------------------------------------------------------------------------


def another_worker(town: Town, database: Database) -> Processor:
    engine = open_engine(database.room("balance"), application="test.second", pool_size=3)
    return Processor(balance_room.room(RefuseFast(lambda: NO_VALKEY)), engine, town.log)


def on_both_partitions(count: int) -> list[str]:
    """So many account ids on each of two partitions, in turn."""
    sides: list[list[str]] = [[], []]
    number = 0
    while min(map(len, sides)) < count:
        sides[partition_of(f"a{number}", 2)].append(f"a{number}")
        number += 1
    return [name for pair in zip(sides[0], sides[1], strict=False) for name in pair][: 2 * count]


async def test_callers_that_race_redeem_a_code_as_often_as_allowed(town: Town, database: Database) -> None:
    [made] = await make(town, redemptions=3)
    names = on_both_partitions(4)
    for name in names:
        await town.account(name)
    await town.settle()
    for name in names:
        town.command("redeem_code", name, code=made.code)
    second = another_worker(town, database)
    source = second.room.input("commands")
    await asyncio.gather(
        town.rooms.feed(processor_of(town), source, partition=0), town.rooms.feed(second, source, partition=1)
    )
    await second.engine.dispose()
    await town.settle()
    assert len(await town.credits()) == 3
    assert sum(len(refusals(town, name)) for name in names) == 5
    await conserved(town)


@pytest.mark.parametrize("seed", range(2))
async def test_workers_that_race_for_the_last_cent_and_for_the_end_never_overspend(
    town: Town, database: Database, seed: int
) -> None:
    chosen = random.Random(seed)
    names = on_both_partitions(3)
    for name in names:
        await town.account(name, group="g")
    now = await town.now()
    for amount, hours in (("7", 1), ("5", 2), ("9", 3)):
        town.grant(names[0], amount, shared=True, expires_at=instant_text(now + timedelta(hours=hours)))
    town.grant(names[1], "3", expires_at=instant_text(now + timedelta(hours=1)))
    await town.settle()
    second = another_worker(town, database)
    source = second.room.input("charges")

    async def work(processor: Processor, partition: int) -> None:
        while await town.rooms.feed(processor, source, partition=partition):
            pass

    charged: list[str] = []
    for _ in range(5):
        for _ in range(12):
            name = chosen.choice(names)
            if charged and chosen.random() < 0.2:
                await spend(town, name, "-0.5", reverses=charged.pop())
            else:
                made = await spend(town, name, "0.5")
                if name == names[0]:
                    charged.append(made)
        await town.move(timedelta(minutes=35))
        await asyncio.gather(work(processor_of(town), 0), work(second, 1), second.fire_timers())
        await conserved(town)
    await second.engine.dispose()
    await town.settle()
    await conserved(town)
    ended = [credit for credit in await town.credits() if credit.expired_at is not None]
    assert len(ended) >= 3
    told = town.log.data("balance.postings")
    assert sum(float(each["charged"]) for each in told) == pytest.approx(
        sum(float(each["credits"]) + float(each["wallet"]) for each in told)
    )


async def test_any_split_into_batches_gives_the_same_credits(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each group has the same charges; one is posted in one batch, the others in smaller ones."""
    totals: set[tuple[int, ...]] = set()
    for size in (1, 4, 40):
        names = [f"{size}-desk", f"{size}-sales"]
        for name in names:
            await town.account(name, group=f"g{size}")
            town.open(name, "50")
        town.grant(names[0], "6", shared=True)
        town.grant(names[1], "2")
        await town.settle()
        chosen, charged = random.Random(7), []
        for number in range(40):
            name = names[number % 2]
            if number % 7 == 6:
                owner, amount, charge_id = charged[number // 2]
                await spend(town, owner, f"-{amount}", group_id=f"g{size}", reverses=charge_id)
            else:
                amount = f"0.{chosen.randint(1, 9)}"
                charged.append((name, amount, await spend(town, name, amount, group_id=f"g{size}")))
            if number % size == size - 1:
                await town.rooms.pump()
        await town.settle()
        own = [credit.remaining_nano for credit in await town.credits() if credit.asked_for in names]
        cash = [(await town.wallet(name)).wallet_nano for name in names]
        totals.add((sum(own), sum(cash)))
    assert len(totals) == 1
    await conserved(town)


async def test_an_expiry_that_comes_twice_or_early_changes_nothing(town: Town) -> None:
    await town.account("desk")
    town.grant("desk", "4", expires_at=instant_text(await town.now() + timedelta(hours=1)))
    await town.settle()
    [credit] = await town.credits()

    async def again() -> None:
        async def run(work: Any) -> None:
            await promotions.expire(work, [str(credit.credit_id)], tell=town.refuse_fast.tell)

        from services.runtime.room import Tick

        assert await processor_of(town).tick(Tick("again", run))

    await again()
    assert left(await town.credits()) == ["4"]
    await town.settle(after=timedelta(hours=2))
    await again()
    await town.settle()
    assert len(town.events("desk", "credit_expired")) == 1
    await conserved(town)


async def test_a_credit_or_a_wallet_that_was_edited_by_hand_is_found(town: Town, database: Database) -> None:
    await town.account("desk")
    town.grant("desk", "4")
    await town.settle()
    await spend(town, "desk", "1")
    await town.settle()
    async with database.connected() as connection:
        await connection.execute("update balance.credit set remaining_nano = 2000000000")
    credit, wallet = await api.credit_differences(processor_of(town).engine)
    assert credit.endswith(" of 4: spent, left and lapsed are 3, 2 is left, its entries sum to 3")
    assert wallet == "desk has credits of 3, they sum to 2"


async def test_a_credit_that_was_taken_away_or_changed_its_currency_by_hand_is_found(
    town: Town, database: Database
) -> None:
    await town.account("desk")
    town.grant("desk", "4")
    await town.settle()
    engine = processor_of(town).engine
    assert await api.credit_differences(engine) == []
    async with database.connected() as connection:
        await connection.execute("update balance.credit set currency = 'EUR'")
        assert await api.credit_differences(engine)
        await connection.execute("delete from balance.credit")
        await connection.execute("update balance.wallet set credit_nano = 0")
    (gone,) = await api.credit_differences(engine)
    assert gone.endswith(" of 0: spent, left and lapsed are 0, 0 is left, its entries sum to 4")


async def test_an_old_event_time_is_not_paid_by_a_credit_that_came_later(town: Town) -> None:
    await town.account("desk")
    town.open("desk", "10")
    town.grant("desk", "4")
    await town.settle()
    town.charge("desk", "1", event_time=instant_text(datetime.fromisoformat("2026-01-05T00:00:00Z")))
    await town.settle()
    assert (await town.balance("desk"), left(await town.credits())) == ("9", ["4"])
    rows = await town.rooms.query("balance", select(tables.funding))
    assert rows == []
