"""Calls that hold of what their payer group shares: the account's own money first, then the group's credits, no cent of which
is promised twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from services.balance import api
from services.balance.calls import Grant, end_leases
from services.balance.holding import Rate
from services.balance.spending import Allowed, Refused
from services.kernel.money import format_nano, parse_amount
from services.kernel.period import instant_text
from services.runtime.room import Tick
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
    assert [each.held for each in await api.open_holds(desk.engine, "desk")] == ["0.05", "0.02"]
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
    await shared(town, "0.1")
    assert await desk.starts("c1")
    assert await desk.starts("c2")
    before = instant_text(await town.now())
    await town.account("desk", level_2=True, group="h")
    await town.settle()
    assert await credits_held(town) == [("0.1", "0.1")]
    assert await desk.held() == ("0", "0")
    assert await desk.refusal(desk.renew("c1", 1)) == "suspended"  # it has nothing any more
    town.open("desk", "0.1")
    await town.settle()
    grant = await desk.renew("c1", 1)  # the group that pays now shares nothing: all of it is the account's own
    assert (grant.total_s, grant.held_nano) == (600, parse_amount("0.1"))
    assert await credits_held(town) == [("0.1", "0.05")]
    assert (await town.wallet("desk")).held_nano == parse_amount("0.1")
    await charged(town, "desk", "0.05", "c2", event_time=before)  # used before the move: the old group pays
    assert (await town.balance("desk"), await credits_held(town)) == ("0.1", [("0.05", "0")])
    assert await sales.starts("c3")
    await sound(town, desk)
