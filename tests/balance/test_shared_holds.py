"""Calls that hold of what their payer group shares: the account's own money first, then the group's credits, no cent of which
is promised twice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text

from services.balance import api, credit_store, vouchers
from services.balance.calls import Authorize, Grant, carry_out, end_leases
from services.balance.holding import Rate
from services.balance.leases import Call, Leases
from services.balance.shares import Shares
from services.balance.spending import Allowed, Refused
from services.kernel.errors import Corrupt, TollbookError, Unavailable
from services.kernel.ids import content_digest
from services.kernel.money import format_nano, parse_amount
from services.kernel.period import instant_text
from services.runtime.processor import Processor
from services.runtime.room import Tick
from tests.balance.test_credits_in_wallets import another_worker, on_both_partitions, processor_of
from tests.balance.test_daily_spend import statements
from tests.support.balance_factory import Town, minutes
from tests.support.callers import Callers, asking, seconds
from tests.support.servers import Database

END_LEASES = Tick("lease_end", partial(end_leases, tell=lambda _: None))
UNIT = (Rate(parse_amount("2"), 60, 0, 60, 60),)  # five minutes cost 10


@pytest.fixture
async def town(database: Database) -> AsyncIterator[Town]:
    """Two accounts of one group, without any money."""
    async with Town(database) as made:
        for name in ("desk", "sales"):
            await made.account(name, level_2=True, group="g")
        await made.settle()
        yield made


@pytest.fixture
async def desk(town: Town) -> AsyncIterator[Callers]:
    async with Callers(town) as made:
        yield made


@pytest.fixture
async def sales(town: Town) -> AsyncIterator[Callers]:
    async with Callers(town, "sales") as made:
        yield made


async def shared(town: Town, amount: str, **more: Any) -> None:
    town.grant("desk", amount, shared=True, **more)
    await town.settle()


async def charged(town: Town, account_id: str, amount: str, call: str | None, **more: Any) -> None:
    at = instant_text(await town.now())
    town.charge(account_id, amount, call_leg_id=call, **({"event_time": at} | more))
    await town.rooms.pump()


async def credits_held(town: Town) -> list[tuple[str, str]]:
    """(left, held) of each credit."""
    return [(format_nano(each.remaining_nano), format_nano(each.held_nano)) for each in await town.credits()]


async def sound(town: Town, desk: Callers) -> None:
    assert await desk.differences() == []
    await town.assert_conserved()
    await town.assert_credits_conserved()


# ---- whose money it is ---------------------------------------------------------------------------------------------


async def test_an_account_with_nothing_but_a_share_calls_and_its_charge_is_paid_by_the_credit(
    town: Town, desk: Callers, sales: Callers
) -> None:
    await shared(town, "0.12")
    grant = await desk.authorize("c1")
    assert (grant.granted_s, grant.max_s, grant.held_nano) == (300, 720, parse_amount("0.05"))
    assert await desk.authorize("c1") == grant
    assert await credits_held(town) == [("0.12", "0.05")]
    assert (await desk.held(), await sales.held()) == (("0.05", "0.07"), ("0", "0.07"))
    await charged(town, "desk", "0.03", "c1")
    assert await credits_held(town) == [("0.09", "0")]
    assert (await town.balance("desk"), await desk.held(), await sales.held()) == ("0", ("0", "0.09"), ("0", "0.09"))
    await sound(town, desk)


async def test_what_an_account_has_alone_is_held_first_so_that_the_other_one_can_call_too(
    town: Town, desk: Callers, sales: Callers
) -> None:
    """The example of the decision: 10 are shared, one account has 100 of its own and the other one nothing."""
    town.open("desk", "100")
    await shared(town, "10")
    ten = [asking(name, UNIT) for name in ("desk", "sales")]
    assert (await desk.authorize("c1", ten[0])).held_nano == parse_amount("10")
    assert await credits_held(town) == [("10", "0")]
    assert (await sales.authorize("c2", ten[1])).held_nano == parse_amount("10")
    assert (await desk.held(), await sales.held()) == (("10", "90"), ("10", "0"))
    await sound(town, desk)


async def test_64_calls_at_once_of_many_accounts_on_a_shared_credit_for_ten_are_ten_by_two_gateways(
    town: Town, desk: Callers
) -> None:
    names = [f"a{number}" for number in range(16)]
    for name in names:
        await town.account(name, level_2=True, group="g")
    await town.settle()
    await shared(town, "0.5")
    async with Callers(town) as another, asyncio.timeout(60):
        answers = await asyncio.gather(
            *[
                each.authorize(f"{number}", asking(name))
                for each, two in ((desk, (0, 1)), (another, (2, 3)))
                for number in two
                for name in names
            ]
        )
    assert sum(isinstance(each, Grant) and each.granted_s == 300 for each in answers) == 10
    assert {each.reason for each in answers if isinstance(each, Refused)} == {"insufficient_credit"}
    assert await credits_held(town) == [("0.5", "0.5")]
    await sound(town, desk)


async def test_the_credits_are_held_in_the_order_in_which_they_are_spent(town: Town, desk: Callers) -> None:
    now = await town.now()
    town.open("desk", "0.01")
    for amount, days in (("0.03", None), ("0.02", 9), ("0.01", 2)):
        more = {} if days is None else {"expires_at": instant_text(now + timedelta(days=days))}
        await shared(town, amount, **more)
    await desk.authorize("c1", seconds=180)
    assert (await town.wallet("desk")).held_nano == parse_amount("0.01")
    assert await credits_held(town) == [("0.03", "0"), ("0.02", "0.01"), ("0.01", "0.01")]
    await desk.renew("c1", 1, seconds=180)
    assert await credits_held(town) == [("0.03", "0.02"), ("0.02", "0.02"), ("0.01", "0.01")]
    await desk.settle("c1", 121)  # the last one first, and what is the account's own stays held
    assert await credits_held(town) == [("0.03", "0"), ("0.02", "0.01"), ("0.01", "0.01")]
    await desk.release("c1")
    await sound(town, desk)
    await charged(town, "desk", "0.03", "c1")
    assert await credits_held(town) == [("0.03", "0"), ("0", "0"), ("0", "0")]
    assert await town.balance("desk") == "0.01"
    await sound(town, desk)


async def test_the_refusal_says_how_much_of_what_the_group_shares_can_be_promised(
    town: Town, desk: Callers, sales: Callers
) -> None:
    await shared(town, "0.055")
    assert await desk.starts("c1")
    refused = Refused(
        "insufficient_credit",
        "account sales has 0.005 USD available; the first second costs 0.01; of the 0.055 that its payer group shares 0.005 can"
        " be promised to this call: other calls hold the rest, or it expires too soon",
    )
    assert await sales.authorize("c2") == refused
    assert await api.may_call(sales.engine, asking("sales")) == refused
    await desk.release("c1")
    assert await api.may_call(sales.engine, asking("sales")) != refused
    assert await sales.starts("c2")


# ---- how a call goes on and ends -----------------------------------------------------------------------------------


async def test_a_renewal_takes_what_is_the_accounts_own_first_again_and_keeps_what_it_holds_of_the_group(
    town: Town, desk: Callers, sales: Callers
) -> None:
    await shared(town, "0.1")
    assert await desk.starts("c1")
    town.open("desk", "0.03")
    await town.settle()
    renewed = await desk.renew("c1", 1)
    assert (renewed.total_s, renewed.held_nano) == (600, parse_amount("0.1"))
    assert await desk.renew("c1", 1) == renewed
    assert (await town.wallet("desk")).held_nano == parse_amount("0.03")
    assert await credits_held(town) == [("0.1", "0.07")]
    assert (await sales.authorize("c2")).granted_s == 180
    assert await desk.refusal(desk.renew("c1", 2)) == "insufficient_credit"
    assert await credits_held(town) == [("0.1", "0.1")]  # what was granted stays granted
    settled = await desk.settle("c1", 241)
    assert settled.held_nano == parse_amount("0.05")
    assert (await town.wallet("desk")).held_nano == parse_amount("0.03")
    assert await credits_held(town) == [("0.1", "0.05")]
    assert await desk.settle("c1", 241) == settled
    assert await desk.release("c1") == settled
    assert (await sales.renew("c2", 1)).granted_s == 300
    await sound(town, desk)


async def test_a_lease_that_is_over_holds_nothing_of_the_group_once_its_own_account_asks_or_the_tick_comes(
    town: Town, desk: Callers, sales: Callers
) -> None:
    await shared(town, "0.05")
    assert await desk.starts("c1")
    await town.move(seconds(330))
    assert (await desk.held(), await sales.held()) == (("0", "0.05"), ("0", "0.05"))  # read
    assert await credits_held(town) == [("0.05", "0.05")]  # nobody has given it back yet
    assert isinstance(await api.may_call(desk.engine, asking("desk")), Allowed)
    assert (await desk.release("c1")).held_nano == 0
    assert await credits_held(town) == [("0.05", "0")]
    assert (await desk.authorize("c2")).granted_s == 300
    await town.move(seconds(330))
    assert (await desk.authorize("c3")).granted_s == 300  # what its own call held, whose lease is over
    await town.move(seconds(330))
    assert await desk.refusal(sales.authorize("c4")) == "insufficient_credit"  # of another account until the tick
    assert await town.rooms.processors["balance"].tick(END_LEASES)
    assert await credits_held(town) == [("0.05", "0")]
    assert (await sales.authorize("c4")).granted_s == 300
    await sound(town, desk)


async def test_a_late_renewal_is_a_new_check_of_the_whole_call(town: Town, desk: Callers, sales: Callers) -> None:
    await shared(town, "0.1")
    assert await desk.starts("c1")
    await town.move(seconds(330))
    assert await town.rooms.processors["balance"].tick(END_LEASES)
    assert (await sales.authorize("c2", seconds=60)).held_nano == parse_amount("0.01")
    grant = await desk.renew("c1", 1)
    assert (grant.total_s, grant.held_nano) == (540, parse_amount("0.09"))
    await town.move(seconds(600))
    # Nobody has looked at any lease since: its own gives back, the other account's holds the last cent until the tick.
    assert await desk.refusal(desk.renew("c1", 2)) == "insufficient_credit"
    assert await town.rooms.processors["balance"].tick(END_LEASES)
    late = await desk.renew("c1", 2)
    assert (late.total_s, late.held_nano) == (600, parse_amount("0.1"))
    await sound(town, desk)


async def test_a_call_that_is_charged_before_its_settling_gives_back_what_it_holds_before_credits_pay(
    town: Town, desk: Callers, sales: Callers
) -> None:
    await shared(town, "0.06")
    town.limit("desk", None, 1)
    await town.settle()
    assert await desk.starts("c1")
    await charged(town, "desk", "0.06", "c1")
    assert (await town.balance("desk"), await credits_held(town)) == ("0", [("0", "0")])
    assert (await desk.settle("c1", 61)).ended_by == "charge"
    assert await desk.held() == ("0", "0")
    await sound(town, desk)


async def test_a_charge_after_the_lease_is_paid_by_what_others_do_not_hold(
    town: Town, desk: Callers, sales: Callers
) -> None:
    await shared(town, "0.05")
    assert await desk.starts("c1")
    await town.move(seconds(330))
    assert await town.rooms.processors["balance"].tick(END_LEASES)
    assert (await sales.authorize("c2", seconds=180)).granted_s == 180
    await charged(town, "desk", "0.05", "c1")
    assert (await town.balance("desk"), await credits_held(town)) == ("-0.03", [("0.03", "0.03")])
    await charged(town, "sales", "0.03", "c2")
    assert (await town.balance("sales"), await credits_held(town)) == ("0", [("0", "0")])
    await sound(town, desk)


async def test_a_charge_that_comes_first_after_an_outage_is_paid_by_what_its_own_account_still_holds(
    town: Town, desk: Callers
) -> None:
    await shared(town, "0.06")
    assert await desk.starts("c1")
    await desk.settle("c1", 300)
    await town.move(timedelta(hours=2, minutes=1))  # its lease is over for an hour, and no tick has come since
    assert await credits_held(town) == [("0.06", "0.05")]
    await charged(town, "desk", "0.05", "c1")
    assert (await town.balance("desk"), await credits_held(town)) == ("0", [("0.01", "0.01")])
    await sound(town, desk)
    await town.settle()
    assert await credits_held(town) == [("0.01", "0")]
    await sound(town, desk)


async def test_an_hour_after_its_settling_a_call_whose_charge_never_came_gives_back_what_it_holds(
    town: Town, desk: Callers
) -> None:
    await shared(town, "0.05")
    assert await desk.starts("c1")
    await desk.settle("c1", 61)
    await town.settle(after=timedelta(minutes=59))
    assert await credits_held(town) == [("0.05", "0.02")]
    await town.settle(after=minutes(1))
    assert await credits_held(town) == [("0.05", "0")]
    await sound(town, desk)


async def test_a_call_gives_nothing_back_of_credits_that_are_not_in_hand(town: Town) -> None:
    """Nor is it forgotten that it holds something of them."""
    now = await town.now()
    wallet = SimpleNamespace(account_id="desk", held_nano=0, calls_until=None)
    call = Call("desk", "c1", "", now, now + minutes(5), held_nano=5, shared_nano=5)
    with pytest.raises(Corrupt):
        Leases({"desk": wallet}, now, Shares({"sales"}, [], [])).reduce(call, 0)
    assert (call.held_nano, call.shared_nano) == (5, 5)


# ---- charges beside calls ------------------------------------------------------------------------------------------


async def test_charges_of_an_account_never_take_what_a_call_of_another_holds(
    town: Town, desk: Callers, sales: Callers
) -> None:
    await shared(town, "0.07")
    assert await desk.starts("c1")
    await charged(town, "sales", "0.06", None)
    assert (await town.balance("sales"), await credits_held(town)) == ("-0.04", [("0.05", "0.05")])
    await charged(town, "desk", "0.05", "c1")
    assert (await town.balance("desk"), await credits_held(town)) == ("0", [("0", "0")])
    await sound(town, desk)


async def test_what_a_charge_takes_of_what_its_own_account_holds_is_held_of_the_accounts_own_money(
    town: Town, desk: Callers, sales: Callers
) -> None:
    await shared(town, "0.1")
    assert await desk.starts("c1")
    assert (await desk.authorize("c2", seconds=120)).granted_s == 120
    assert (await sales.authorize("c3", seconds=120)).granted_s == 120
    await charged(town, "desk", "0.06", None)  # 0.01 are free, 0.05 are the calls' of this account
    assert await credits_held(town) == [("0.04", "0.04")]
    assert (await town.wallet("desk")).held_nano == parse_amount("0.05")
    assert [each.held for each in (await api.open_holds(desk.engine, "desk")).data] == ["0.05", "0.02"]
    assert await desk.held() == ("0.07", "-0.05")
    await sound(town, desk)
    await charged(town, "desk", "0.05", "c1")
    assert (await town.balance("desk"), await credits_held(town)) == ("-0.03", [("0.02", "0.02")])
    await charged(town, "desk", "0.02", "c2")
    await charged(town, "sales", "0.02", "c3")
    assert [await town.balance(name) for name in ("desk", "sales")] == ["-0.05", "0"]
    assert await credits_held(town) == [("0", "0")]
    assert await desk.held() == ("0", "-0.05")
    await sound(town, desk)


async def test_accounts_without_calls_cost_no_statement_more_whoever_holds_of_what_they_share(
    town: Town, desk: Callers
) -> None:
    await shared(town, "1")

    async def cost() -> int:
        town.charge("sales", "0.01", event_time=instant_text(await town.now()))
        with statements(town.rooms.processors["balance"]) as said:
            await town.rooms.pump()
        return len(said)

    await cost()
    without = await cost()
    assert await desk.starts("c1")
    assert await cost() == without


# ---- what becomes of a credit --------------------------------------------------------------------------------------


async def test_a_credit_that_ends_before_the_lease_would_is_promised_to_a_shorter_slice_or_none(
    town: Town, desk: Callers
) -> None:
    now = await town.now()
    await shared(town, "1", expires_at=instant_text(now + seconds(150)))
    grant = await desk.authorize("c1", asking("desk", (Rate(parse_amount("0.01"), 60, 0, 1, 1),)))
    [credit] = await town.credits()
    assert 115 <= grant.granted_s <= 120
    assert grant.expires_at <= credit.expires_at
    await town.move(seconds(125))
    assert await desk.refusal(desk.authorize("c2")) == "insufficient_credit"
    await sound(town, desk)


async def test_what_is_held_of_a_credit_that_expires_is_worth_nothing_and_goes_with_the_call(
    town: Town, desk: Callers, sales: Callers
) -> None:
    now = await town.now()
    await shared(town, "0.05", expires_at=instant_text(now + minutes(10)))
    town.open("desk", "0.06")
    await shared(town, "0.03")
    await town.settle()
    assert (await desk.authorize("own")).granted_s == 300
    assert (await desk.authorize("c1")).granted_s == 300  # 0.01 of its own, 0.04 of what expires first
    await desk.settle("c1", 300)
    assert await credits_held(town) == [("0.05", "0.04"), ("0.03", "0")]
    await desk.release("own")
    await town.settle(after=minutes(10))
    assert await credits_held(town) == [("0", "0.04"), ("0.03", "0")]
    assert (await desk.held(), await sales.held()) == (("0.01", "0.08"), ("0", "0.03"))
    await sound(town, desk)
    await charged(town, "desk", "0.05", "c1")
    assert await credits_held(town) == [("0", "0"), ("0", "0")]
    assert await town.balance("desk") == "0.04"  # the other credit has paid 0.03
    await sound(town, desk)


async def test_a_renewal_covers_what_a_credit_that_ends_before_it_was_to_pay(town: Town, desk: Callers) -> None:
    now = await town.now()
    await shared(town, "0.05", expires_at=instant_text(now + minutes(7)))
    await shared(town, "0.03")
    assert (await desk.authorize("c1")).granted_s == 300
    assert await credits_held(town) == [("0.05", "0.05"), ("0.03", "0")]
    shorter = await desk.renew("c1", 1)  # as long as the first one lasts
    assert (80 < shorter.granted_s <= 90, shorter.held_nano) == (True, parse_amount("0.07"))
    assert await credits_held(town) == [("0.05", "0.05"), ("0.03", "0.02")]
    assert await desk.refusal(desk.renew("c1", 2)) == "insufficient_credit"
    assert await credits_held(town) == [("0.05", "0.05"), ("0.03", "0.02")]
    town.open("desk", "0.05")
    await town.settle()
    grant = await desk.renew("c1", 2)
    assert (grant.total_s, grant.held_nano) == (480, parse_amount("0.08"))
    assert (await town.wallet("desk")).held_nano == parse_amount("0.05")
    assert await credits_held(town) == [("0.05", "0"), ("0.03", "0.03")]
    await sound(town, desk)


async def test_a_call_of_an_account_that_leaves_the_group_holds_what_it_was_promised_until_it_ends(
    town: Town, desk: Callers, sales: Callers
) -> None:
    await shared(town, "0.12")
    assert await desk.starts("c1")
    assert await desk.starts("c2")
    assert await desk.starts("c3", seconds=120)
    before = instant_text(await town.now())
    await town.account("desk", level_2=True, group="h")
    await town.settle()
    assert await credits_held(town) == [("0.12", "0.12")]
    assert await desk.held() == ("0", "0")
    assert await desk.refusal(desk.renew("c1", 1)) == "suspended"  # it has nothing any more
    town.open("desk", "0.1")
    await town.settle()
    grant = await desk.renew("c1", 1)  # the group that pays now shares nothing: all of it is the account's own
    assert (grant.total_s, grant.held_nano) == (600, parse_amount("0.1"))
    assert await credits_held(town) == [("0.12", "0.07")]
    assert (await town.wallet("desk")).held_nano == parse_amount("0.1")
    await charged(town, "desk", "0.05", "c2", event_time=before)  # used before the move: the old group pays
    assert (await town.balance("desk"), await credits_held(town)) == ("0.1", [("0.07", "0.02")])
    await charged(town, "desk", "0.02", "c3", group_id="h")  # used after the move: its own wallet
    assert (await town.balance("desk"), await credits_held(town)) == ("0.08", [("0.07", "0")])
    assert await sales.starts("c4")
    await sound(town, desk)


# ---- side by side --------------------------------------------------------------------------------------------------


async def test_who_has_enough_alone_waits_for_no_credit_and_asks_no_more_of_the_database(
    town: Town, desk: Callers
) -> None:
    await shared(town, "10")
    town.open("desk", "10")
    await town.settle()
    async with town.database.connected("balance") as holder, holder.transaction():
        await holder.execute("select from balance.credit for update")
        async with asyncio.timeout(10):
            assert (await desk.authorize("c1")).granted_s == 300
            assert (await desk.renew("c1", 1)).granted_s == 300
            assert (await desk.settle("c1", 400)).held_nano == parse_amount("0.07")
    assert await credits_held(town) == [("10", "0")]


async def test_a_credit_that_somebody_holds_delays_only_who_needs_it_and_is_looked_at_again(
    town: Town, desk: Callers, sales: Callers
) -> None:
    await town.account("other", level_2=True)
    await shared(town, "0.1")
    town.open("other", "10")
    town.limit("other", None, 10)  # decided under its lock, together with those that need the credit
    await town.settle()
    async with town.database.connected("balance") as holder:
        async with holder.transaction():
            await holder.execute("select from balance.credit for update")
            waits = [
                asyncio.ensure_future(each.authorize("c1", asking(name)))
                for each, name in ((desk, "desk"), (desk, "sales"))
            ]
            async with asyncio.timeout(5):
                assert all(
                    isinstance(each, Grant)
                    for each in await asyncio.gather(
                        *[desk.authorize(f"o{number}", asking("other")) for number in range(3)]
                    )
                )
            assert not any(each.done() for each in waits)
        assert all(isinstance(each, Grant) for each in await asyncio.gather(*waits))
    holds = api.Holds(desk.engine, town.log, held_s_max=0.1)
    await desk.release("c1")
    async with town.database.connected("balance") as holder, holder.transaction():
        await holder.execute("select from balance.credit for update")
        with pytest.raises(Unavailable) as busy:
            await holds.ask(Authorize(asking("desk"), "c2", 300, bytes(16)))
        assert busy.value.code == "busy"
    await holds.close()
    assert await credits_held(town) == [("0.1", "0.05")]
    await sound(town, desk)


async def test_a_credit_that_somebody_holds_delays_no_other_group(town: Town, desk: Callers) -> None:
    await town.account("other", level_2=True, group="another")
    await town.settle()
    await shared(town, "0.1")
    town.grant("other", "0.05", shared=True)
    await town.settle()
    async with town.database.connected("balance") as holder:
        async with holder.transaction():
            await holder.execute("select from balance.credit where group_id = 'g' for update")
            waits = asyncio.ensure_future(desk.authorize("c1"))
            async with asyncio.timeout(1.5):  # asked for together, and looked at again together
                assert await desk.starts("c2", asking("other"))
            assert not waits.done()
        assert isinstance(await waits, Grant)
    assert sorted(await credits_held(town)) == [("0.05", "0.05"), ("0.1", "0.05")]
    await sound(town, desk)


async def test_leases_that_end_keep_no_wallet_waiting_for_a_credit_that_somebody_holds(
    town: Town, desk: Callers
) -> None:
    await town.account("other", level_2=True)
    await town.account("third", level_2=True, group="another")
    await town.settle()
    town.open("other", "1")
    town.grant("third", "0.05", shared=True)
    await shared(town, "0.05")
    for name in ("desk", "other", "third"):
        assert await desk.starts("c1", asking(name))
    await town.move(seconds(331))
    balance = town.rooms.processors["balance"]
    async with town.database.connected("balance") as holder, holder.transaction():
        await holder.execute("select from balance.credit where group_id = 'g' for update")
        async with asyncio.timeout(5):
            assert await balance.tick(END_LEASES)
        assert sorted(await credits_held(town)) == [("0.05", "0"), ("0.05", "0.05")]
        assert (await town.wallet("other")).held_nano == 0
    assert await balance.tick(END_LEASES)
    assert await credits_held(town) == [("0.05", "0"), ("0.05", "0")]
    await sound(town, desk)


async def test_the_same_cent_is_promised_once_beside_charges_too(town: Town, desk: Callers) -> None:
    names = [f"a{number}" for number in range(8)]
    for name in names:
        await town.account(name, level_2=True, group="g")
    await town.settle()
    await shared(town, "0.5055")  # for ten slices and not eleven, before what is charged meanwhile and after it
    for number in range(10):
        town.charge(
            names[number % 8], "0.0001", call_leg_id=f"before-{number}", event_time=instant_text(await town.now())
        )
    async with Callers(town) as another, asyncio.timeout(60):
        *answers, _ = await asyncio.gather(
            *[
                each.authorize(f"{way}{number}", asking(name))
                for number in range(4)
                for name in names
                for way, each in (("a", desk), ("b", another))
            ],
            town.rooms.pump(),
        )
    assert sum(isinstance(each, Grant) and each.granted_s == 300 for each in answers) == 10
    assert {each.reason for each in answers if isinstance(each, Refused)} == {"insufficient_credit"}
    assert await credits_held(town) == [("0.5045", "0.5")]
    assert {await town.balance(name) for name in names} == {"0"}
    await sound(town, desk)


@pytest.mark.parametrize("seed", [1, 2])
async def test_authorisations_charges_commands_and_ends_at_once_never_lock_each_other_out(
    town: Town, desk: Callers, database: Database, seed: int
) -> None:
    chosen = random.Random(seed)
    names = on_both_partitions(3)
    for name in names:
        await town.account(name, level_2=True, group="g")
        town.command("set_levels", name, currency="USD", levels=["1", "2"])
    now = await town.now()
    for amount, hours in (("0.7", 1), ("0.5", 2), ("9", 48)):
        town.grant(names[0], amount, shared=True, expires_at=instant_text(now + timedelta(hours=hours)))
    town.grant(names[1], "0.3")
    town.open(names[2], "1")
    await town.settle()
    second = another_worker(town, database)
    calls: list[tuple[str, str]] = []

    async def call(callers: Callers, gateway: int, round_: int) -> None:
        for number in range(12):
            name, leg = chosen.choice(names), f"{gateway}-{round_}-{number}"
            if await callers.starts(leg, asking(name), seconds=chosen.choice([60, 300])):
                calls.append((name, leg))
            if calls:
                name, leg = chosen.choice(calls)
                match chosen.choice(["renew", "settle", "release", "nothing"]):
                    case "renew":
                        with suppress(TollbookError):
                            await callers.renew(leg, 1, account=name)
                    case "settle":
                        with suppress(TollbookError):
                            await callers.settle(leg, 61, account=name)
                    case "release":
                        await callers.release(leg, account=name)

    async def work(processor: Processor, partition: int) -> None:
        while await town.rooms.feed(processor, processor.room.input("charges"), partition=partition):
            pass
        await processor.tick(END_LEASES)
        await processor.fire_timers()

    async with Callers(town) as another, asyncio.timeout(120):
        for round_ in range(5):
            for _ in range(20):
                name, leg = chosen.choice(calls) if calls and chosen.random() < 0.6 else (chosen.choice(names), None)
                town.charge(name, "0.03", call_leg_id=leg, event_time=instant_text(await town.now()))
            town.grant(chosen.choice(names), "0.1", shared=True)
            await asyncio.gather(
                *[call(each, gateway, round_) for gateway, each in enumerate((desk, another, desk))],
                work(processor_of(town), 0),
                work(second, 1),
                town.rooms.pump(only=["balance"]),
            )
            assert await desk.differences() == []
            await town.assert_credits_conserved()
            await town.move(minutes(31))
    await second.engine.dispose()
    await town.settle()
    await sound(town, desk)
    async with town.database.connected() as connection:
        sql = "select deadlocks from pg_stat_database where datname = current_database()"
        assert await connection.fetchval(sql) == 0


# ---- what is seen --------------------------------------------------------------------------------------------------


async def test_what_calls_of_others_hold_is_taken_from_what_an_account_has_and_warns_it(
    town: Town, desk: Callers, sales: Callers
) -> None:
    await shared(town, "0.1")
    town.command("set_levels", "sales", currency="USD", levels=["0.06"])
    await town.settle()
    assert await desk.starts("c1")
    await town.settle()
    assert [each["available"] for each in town.events("sales", "low_balance")] == ["0.05"]
    balance = await api.balance(sales.engine, "sales")
    assert (balance.credit, balance.held, balance.held_by_others, balance.available) == ("0.1", "0", "0.05", "0.05")
    assert [each.held for each in await vouchers.credits(desk.engine)] == ["0.05"]
    await desk.release("c1")
    await town.settle()
    assert await desk.starts("c2")
    await town.settle()
    assert len(town.events("sales", "low_balance")) == 2  # it had been above the level in between
    await town.settle(after=seconds(331))
    assert await desk.starts("c3")
    await town.settle()
    assert len(town.events("sales", "low_balance")) == 3


async def test_who_is_warned_by_two_calls_that_did_not_see_each_other_is_warned_all_the_same(
    town: Town, desk: Callers
) -> None:
    """The call of `sales` looks at `desk` before the one of `desk` is committed, which looks at the credit before that of `sales`."""
    town.open("desk", "10")
    town.command("set_levels", "desk", levels=["5"])
    await shared(town, "10")
    async with desk.engine.begin() as connection:
        await carry_out(connection, [Authorize(asking("sales", UNIT), "c1", 300, content_digest(b"c1"))])
        assert await desk.starts("c2", asking("desk", UNIT))
    assert await desk.held() == ("10", "0")
    await town.settle(after=minutes(1))
    assert [event["level"] for event in town.events("desk", "low_balance")] == ["5"]
    await sound(town, desk)


async def test_whom_calls_warn_is_found_without_reading_all_accounts_of_a_group(town: Town, desk: Callers) -> None:
    await shared(town, "0.1")
    town.command("set_levels", "sales", currency="USD", levels=["0.06"])
    await town.settle()
    async with town.database.connected() as owner:
        for table in ("wallet", "membership"):
            await owner.execute(
                f"insert into balance.{table} select (jsonb_populate_record(m, jsonb_build_object('account_id', 'm' || n))).*"
                f" from balance.{table} m, generate_series(1, 3000) n where m.account_id = 'desk'"
            )
            await owner.execute(f"analyze balance.{table}")
    assert await desk.starts("c1")
    async with desk.engine.begin() as connection:
        assert await credit_store.warned(connection, {"g"}) == {"g"}
        read = (
            "select seq_tup_read + idx_tup_fetch from pg_stat_xact_user_tables where relid = 'balance.wallet'::regclass"
        )
        assert (await connection.execute(text(read))).scalar_one() < 10


async def test_nothing_is_suspended_or_recharged_while_calls_hold_all_that_a_group_shares(
    town: Town, desk: Callers, sales: Callers
) -> None:
    town.open("desk", "3")
    town.method("desk", "tok_ok")
    await shared(town, "0.05")
    town.prefer("desk", "5", "20")
    await town.settle()
    assert await sales.starts("c1")
    assert await desk.starts("c2")
    await town.settle()
    assert await town.attempts("desk") == []  # something of the shared credit is left
    assert await api.suspended_accounts(desk.engine) == []
    assert await desk.refusal(sales.authorize("c3")) == "insufficient_credit"
    await charged(town, "sales", "0.05", "c1")
    await town.settle()
    assert await api.suspended_accounts(desk.engine) == ["sales"]
    assert [format_nano(each.amount_nano) for each in await town.attempts("desk")] == ["22.05"]


async def test_an_account_that_owes_is_promised_what_is_left_of_the_share_after_that(town: Town, desk: Callers) -> None:
    await shared(town, "0.1")
    town.open("desk", "-0.06")
    await town.settle()
    grant = await desk.authorize("c1")
    assert (grant.granted_s, grant.held_nano) == (240, parse_amount("0.04"))
    assert await credits_held(town) == [("0.1", "0.04")]
    assert await desk.held() == ("0.04", "0")
    assert await desk.refusal(desk.authorize("c2")) == "insufficient_credit"
    await sound(town, desk)


@pytest.mark.parametrize(
    ("edited", "kinds"),
    [
        ("credit set held_nano = held_nano + 1", ["credit_holds"]),
        ("credit_hold set nano = nano + 1", ["call_shares", "credit_holds"]),
        ("call set held_nano = held_nano + 1, shared_nano = shared_nano + 1", ["call_shares"]),
    ],
    ids=["a credit holds what no call does", "a part was edited", "a call holds what no credit does"],
)
async def test_what_is_held_of_shared_credits_is_summed_up_too(
    town: Town, sales: Callers, edited: str, kinds: list[str]
) -> None:
    await shared(town, "1")
    assert await sales.starts("c1")
    await town.settle()
    assert await api.drifts(sales.engine) == []
    async with town.database.connected() as owner:
        await owner.execute(f"update balance.{edited}")
    assert len(await sales.differences()) == len(kinds)
    await town.settle()
    told = {"credit_holds": "desk", "call_shares": "sales"}  # who asked for the credit, and whose call it is
    for kind, account_id in told.items():
        assert [each["reason"] for each in town.events(account_id, "drift_found")] == [kind] * (kind in kinds)
    async with town.database.connected() as owner:
        await owner.execute(f"update balance.{edited.replace('+', '-')}")
    await town.settle()
    assert (await api.drifts(sales.engine), await sales.differences()) == ([], [])


async def test_the_database_refuses_to_promise_more_than_is_left(town: Town, desk: Callers) -> None:
    await shared(town, "0.05")
    assert await desk.starts("c1")
    async with town.database.connected("balance") as connection:
        for change in ("held_nano = held_nano + 1", "remaining_nano = remaining_nano - 1"):
            with pytest.raises(asyncpg.CheckViolationError):
                await connection.execute(f"update balance.credit set {change}")
