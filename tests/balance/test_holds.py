"""Holds on real Postgres: two grants never promise the same money, only charges debit, and nothing is held for ever."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Text, cast, func, literal_column, select

from services.balance import api, store, tables
from services.balance.calls import Authorize, Desk, Ended, Grant, end_leases
from services.balance.holding import Rate
from services.balance.spending import Refused
from services.kernel.errors import Refused as RefusedError
from services.kernel.errors import TollbookError, Unavailable
from services.kernel.money import format_nano, parse_amount
from services.kernel.period import instant_text
from services.runtime.database import Kept
from services.runtime.room import Tick
from tests.support.balance_factory import Town, minutes
from tests.support.callers import Callers, asking, seconds
from tests.support.holds_model import Credit, Price
from tests.support.holds_model import Holds as Model
from tests.support.servers import Database

END_LEASES = Tick("lease_end", partial(end_leases, tell=lambda _: None))


@pytest.fixture
async def town(database: Database) -> AsyncIterator[Town]:
    async with Town(database) as made:
        await made.account("desk", level_2=True)
        yield made


@pytest.fixture
async def desk(town: Town) -> AsyncIterator[Callers]:
    async with Callers(town) as made:
        yield made


async def opened(town: Town, amount: str, account_id: str = "desk") -> None:
    town.open(account_id, amount)
    await town.settle()


async def charged(town: Town, amount: str, call: str | None, **more: Any) -> None:
    town.charge("desk", amount, call_leg_id=call, **more)
    await town.rooms.pump()


async def wallet_held(town: Town) -> str:
    """As the row has it, what is over included."""
    return format_nano((await town.wallet("desk")).held_nano)


# ---- the same money is promised once -------------------------------------------------------------------------------


async def test_64_calls_at_once_on_money_for_ten_are_ten_by_however_many_gateways(town: Town, desk: Callers) -> None:
    await opened(town, "0.5099")  # five minutes cost 0.05
    async with Callers(town) as another:
        answers = await asyncio.gather(
            *[each.authorize(f"{name}{number}") for number in range(32) for name, each in (("a", desk), ("b", another))]
        )
    assert sum(isinstance(each, Grant) for each in answers) == 10
    assert {each.reason for each in answers if isinstance(each, Refused)} == {"insufficient_credit"}
    assert await desk.held() == ("0.5", "0.0099")
    assert await desk.differences() == []


async def test_the_example_of_the_design_holds_7_cents_of_500(town: Town, desk: Callers) -> None:
    await opened(town, "500")
    grant = await desk.authorize("c1", asking("desk", (Rate(parse_amount("0.0140"), 60, 0, 60, 60),)))
    assert (grant.granted_s, grant.held_nano) == (300, parse_amount("0.0700"))
    assert await desk.held() == ("0.07", "499.93")


async def test_a_wallet_whose_money_is_all_held_refuses_calls_and_is_not_suspended(town: Town, desk: Callers) -> None:
    await opened(town, "0.05")
    first = await desk.authorize("c1")
    assert (first.granted_s, first.total_s, first.max_s, first.held_nano) == (300, 300, 300, parse_amount("0.05"))
    assert await desk.held() == ("0.05", "0")
    assert await desk.refusal(desk.authorize("c2")) == "insufficient_credit"
    assert not (await town.wallet("desk")).suspended_funds
    assert "suspended" not in town.kinds("desk")
    await desk.release("c1")
    assert await desk.starts("c2")


async def test_the_last_slice_is_shorter_and_a_renewal_without_money_is_refused(town: Town, desk: Callers) -> None:
    await opened(town, "0.07")
    assert (await desk.authorize("c1")).granted_s == 300
    grant = await desk.renew("c1", 1)
    assert (grant.number, grant.granted_s, grant.total_s, grant.held_nano) == (1, 120, 420, parse_amount("0.07"))
    assert await desk.renew("c1", 2) == Refused(
        "insufficient_credit", "account desk has 0 USD available; the next second costs 0.01"
    )
    assert await desk.held() == ("0.07", "0")  # what was granted stays granted
    town.open("desk", "0")
    town.command("grant_goodwill", "desk", amount="1", currency="USD")
    await town.settle()
    assert (await desk.renew("c1", 2)).total_s == 720


async def test_a_wallet_that_was_touched_since_it_was_read_is_read_again(town: Town, desk: Callers) -> None:
    await opened(town, "1")
    late = Authorize(asking("desk"), "late", 300, bytes(16))
    kept = Kept(desk.engine)
    rows, _ = await store.callers_at_once(kept, [("desk", "late")])
    await desk.authorize("between")
    found = Desk(rows.values())
    assert isinstance(found.answers([late])[0], Grant)
    assert await found.leases.save_if_unchanged(kept, {"desk": rows["desk"]["revision"]}, {"desk"}) == set()
    await kept.close()
    assert [each.call_leg_id for each in (await api.open_holds(desk.engine, "desk")).data] == ["between"]
    assert await desk.differences() == []


# ---- credits -------------------------------------------------------------------------------------------------------


async def test_a_credit_of_the_account_alone_is_promised_to_its_calls(town: Town, desk: Callers) -> None:
    town.grant("desk", "0.05")
    await town.settle()
    assert await town.balance("desk") == "0"
    assert (await desk.authorize("c1")).granted_s == 300
    assert await desk.held() == ("0.05", "0")
    assert await desk.refusal(desk.authorize("c2")) == "insufficient_credit"
    await charged(town, "0.05", "c1", event_time=instant_text(await town.now()))
    assert await town.balance("desk") == "0"  # the credit has paid, and nothing else was held
    assert await desk.held() == ("0", "0")


# ---- lost answers --------------------------------------------------------------------------------------------------


async def test_the_same_request_again_answers_the_same_grant(town: Town, desk: Callers) -> None:
    await opened(town, "1")
    first = await desk.authorize("c1", seconds=120)
    await town.move(seconds(30))
    assert await desk.authorize("c1", seconds=120) == first
    renewed = await desk.renew("c1", 1, seconds=60)
    await town.move(seconds(30))
    assert await desk.renew("c1", 1, seconds=60) == renewed
    assert renewed.hold_id == first.hold_id
    assert await desk.held() == ("0.03", "0.97")
    settled = await desk.settle("c1", 150)
    await town.move(minutes(3))
    assert await desk.settle("c1", 150) == settled
    assert await desk.held() == ("0.03", "0.97")


async def test_other_content_under_the_same_key_is_a_conflict(town: Town, desk: Callers) -> None:
    await opened(town, "1")
    await desk.authorize("c1")
    for said, code in (
        (desk.authorize("c1", called="+442071838750"), "idempotency_conflict"),
        (desk.renew("c1", 2), "out_of_order"),
        (desk.renew("c1", 0), "out_of_order"),
    ):
        with pytest.raises(RefusedError) as refused:
            await said
        assert refused.value.code == code
    await desk.renew("c1", 1, seconds=60)
    await desk.renew("c1", 2, seconds=60)
    for said, code in (
        (desk.authorize("c1"), "out_of_order"),
        (desk.renew("c1", 1, seconds=60), "out_of_order"),
        (desk.renew("c1", 2, seconds=61), "idempotency_conflict"),
    ):
        with pytest.raises(RefusedError) as refused:
            await said
        assert refused.value.code == code
    await desk.settle("c1", 100)
    with pytest.raises(RefusedError) as refused:
        await desk.settle("c1", 101)
    assert (refused.value.field, refused.value.code) == ("seconds", "idempotency_conflict")


# ---- leases --------------------------------------------------------------------------------------------------------


async def test_a_lease_that_is_over_holds_nothing_whoever_looks_first(town: Town, desk: Callers) -> None:
    await opened(town, "0.05")
    await desk.authorize("c1")
    await town.move(seconds(329))
    assert await desk.held() == ("0.05", "0")
    await town.move(seconds(1))
    assert await desk.held() == ("0", "0.05")  # read
    assert await wallet_held(town) == "0.05"  # nobody has decided anything since
    assert (await desk.authorize("c2")).granted_s == 300  # decided
    assert await desk.differences() == []
    await town.move(seconds(330))
    await charged(town, "0.01", None)  # posted
    assert await wallet_held(town) == "0"


async def test_what_nobody_asks_for_goes_back_by_itself(town: Town, desk: Callers) -> None:
    await opened(town, "0.05")
    await desk.authorize("c1")
    await town.move(seconds(330))
    assert await town.rooms.processors["balance"].tick(END_LEASES)
    assert await wallet_held(town) == "0"
    assert await desk.differences() == []


async def test_a_late_renewal_is_a_new_check_of_the_whole_call(town: Town, desk: Callers) -> None:
    await opened(town, "0.1099")
    await desk.authorize("c1")
    await town.move(seconds(400))
    assert await desk.starts("c2")  # it takes what the first no longer holds
    # 0.0599 are left, and with its next second the whole call costs 0.06
    assert await desk.refusal(desk.renew("c1", 1)) == "insufficient_credit"
    await desk.release("c2")
    before = await town.now()
    grant = await desk.renew("c1", 1)
    assert (grant.total_s, grant.held_nano) == (600, parse_amount("0.1"))
    assert before + seconds(330) <= grant.expires_at <= await town.now() + seconds(330)


async def test_a_renewal_that_meets_the_end_of_its_lease_holds_once(town: Town, desk: Callers) -> None:
    """Whichever comes first, the renewal or the tick that ends leases: the call holds its cost once, and the sums agree."""
    await opened(town, "100")
    for number in range(12):
        call = f"c{number}"
        await desk.authorize(call)
        await town.move(seconds(330))
        renewed, _ = await asyncio.gather(desk.renew(call, 1), town.rooms.processors["balance"].tick(END_LEASES))
        assert renewed.held_nano == parse_amount("0.1")
        assert await desk.held() == ("0.1", "99.9")
        assert await desk.differences() == []
        await desk.release(call)


async def test_the_clock_of_the_switch_has_no_say(town: Town, desk: Callers) -> None:
    """A switch whose clock leaps renews too early or too late: it is granted by the database's clock all the same."""
    await opened(town, "10")
    first = await desk.authorize("c1")
    early = [await desk.renew("c1", number) for number in (1, 2, 3)]  # at once, as if an hour had passed
    assert [each.total_s for each in early] == [600, 900, 1200]
    assert early[-1].expires_at == first.expires_at + seconds(900)
    await town.move(early[-1].expires_at - await town.now())
    before = await town.now()
    late = await desk.renew("c1", 4)
    assert late.total_s == 1500
    assert before + seconds(330) <= late.expires_at <= await town.now() + seconds(330)
    assert await desk.held() == ("0.25", "9.75")


# ---- how a call ends -----------------------------------------------------------------------------------------------


async def test_a_settled_call_holds_its_exact_cost_until_its_charge_comes(town: Town, desk: Callers) -> None:
    await opened(town, "1")
    await desk.authorize("c1")
    settled = await desk.settle("c1", 61)
    assert (settled.ended_by, settled.held_nano) == ("settle", parse_amount("0.02"))
    assert await town.balance("desk") == "1"  # settling debits nothing
    assert await desk.held() == ("0.02", "0.98")
    await charged(town, "0.02", "c1")
    assert await desk.held() == ("0", "0.98")
    again = await desk.settle("c1", 61)
    assert (again.ended_by, again.held_nano) == ("charge", 0)
    assert await desk.held() == ("0", "0.98")
    await town.assert_conserved()


async def test_a_charge_before_the_settling_closes_the_hold_and_settling_does_nothing(
    town: Town, desk: Callers
) -> None:
    await opened(town, "1")
    town.limit("desk", None, 1)
    await town.settle()
    await desk.authorize("c1")
    await charged(town, "0.02", "c1")
    assert await desk.held() == ("0", "0.98")
    assert await desk.starts("c2")  # its place is free too
    assert (await desk.settle("c1", 61)).ended_by == "charge"
    assert (await desk.release("c1")).ended_by == "charge"
    assert await desk.held() == ("0.05", "0.93")
    assert await town.balance("desk") == "0.98"


async def test_a_charge_after_the_lease_debits_all_the_same_even_below_zero(town: Town, desk: Callers) -> None:
    await opened(town, "0.05")
    await desk.authorize("c1")
    await town.move(seconds(330))
    assert await desk.starts("c2")
    await charged(town, "0.06", "c1")
    assert await town.balance("desk") == "-0.01"
    assert await desk.held() == ("0.05", "-0.06")
    with pytest.raises(RefusedError):
        await desk.renew("c1", 1)  # it was charged: it is over


async def test_a_call_whose_charge_never_comes_holds_its_cost_for_an_hour(town: Town, desk: Callers) -> None:
    await opened(town, "1")
    await desk.authorize("c1")
    await desk.settle("c1", 300)
    await town.move(timedelta(minutes=59))
    assert await desk.held() == ("0.05", "0.95")
    await town.settle(after=minutes(1))
    assert await desk.held() == ("0", "1")
    assert await wallet_held(town) == "0"
    await charged(town, "0.05", "c1")
    assert await desk.held() == ("0", "0.95")


async def test_an_unanswered_call_holds_nothing_once_it_is_released(town: Town, desk: Callers) -> None:
    await opened(town, "1")
    await desk.authorize("c1")
    released = await desk.release("c1")
    assert isinstance(released, Ended)
    assert (released.ended_by, released.held_nano) == ("release", 0)
    assert await desk.held() == ("0", "1")
    assert await desk.release("c1") == released
    assert await desk.settle("c1", 61) == released  # whoever came first is believed; a charge debits anyway


async def test_a_settling_after_the_lease_takes_no_money_back_that_others_have(town: Town, desk: Callers) -> None:
    await opened(town, "0.05")
    await desk.authorize("c1")
    await town.move(seconds(330))
    await desk.authorize("c2")
    assert (await desk.settle("c1", 300)).held_nano == 0
    assert await desk.held() == ("0.05", "0")


async def test_another_services_reference_closes_no_call(town: Town, desk: Callers) -> None:
    await opened(town, "1")
    await desk.authorize("c1")
    await charged(town, "0.01", "c1", product="message.sms.outbound", unit="segment")
    await charged(town, "0.01", None)
    await charged(town, "0.01", "c2")
    assert await desk.held() == ("0.05", "0.92")


# ---- recharges -----------------------------------------------------------------------------------------------------


async def recharged(town: Town, amount: str) -> None:
    town.open("desk", amount)
    town.method("desk", "tok_ok")
    town.prefer("desk", "100", "50")
    await town.settle()


async def test_a_hold_that_brings_available_to_the_threshold_recharges_in_its_own_transaction(
    town: Town, desk: Callers
) -> None:
    await recharged(town, "120")
    dear = asking("desk", (Rate(parse_amount("6"), 60, 0, 60, 60),))
    assert (await desk.authorize("c1", dear)).held_nano == parse_amount("30")
    attempts = await town.attempts("desk")
    assert [format_nano(each.amount_nano) for each in attempts] == ["60"]
    await town.rooms.drain("balance")
    assert town.kinds("desk")[-1] == "recharge_requested"
    assert [each["amount"] for each in town.log.data("payments.requests")] == ["60"]
    await desk.release("c1")
    await town.settle()  # no cancel: it settles
    assert await desk.held() == ("0", "180")


async def test_a_hold_above_the_threshold_or_with_one_on_its_way_asks_for_nothing(town: Town, desk: Callers) -> None:
    await recharged(town, "130.01")
    dear = asking("desk", (Rate(parse_amount("6"), 60, 0, 60, 60),))
    assert await desk.starts("c1", dear)
    assert await town.attempts("desk") == []
    assert await desk.starts("c2", asking("desk"))
    assert [format_nano(each.amount_nano) for each in await town.attempts("desk")] == ["50.04"]
    assert await desk.starts("c3", dear)
    assert len(await town.attempts("desk")) == 1


async def test_holds_that_cause_recharges_at_once_never_lock_each_other_out(town: Town, desk: Callers) -> None:
    names = [f"a{number}" for number in range(6)]
    for name in names:
        await town.account(name, level_2=True)
        town.open(name, "100.01")
        town.method(name, "tok_ok")
        town.prefer(name, "100", "50")
    await town.settle()
    async with Callers(town) as another, asyncio.timeout(60):
        await asyncio.gather(
            *[each.authorize(f"c{n}", asking(name)) for each in (desk, another) for n, name in enumerate(names)],
            town.rooms.pump(ticks=True),
        )
    await town.settle()
    for name in names:
        assert len(await town.attempts(name)) == 1
        assert town.kinds(name).count("recharge_requested") == 1
    async with town.database.connected() as connection:
        sql = "select deadlocks from pg_stat_database where datname = current_database()"
        assert await connection.fetchval(sql) == 0


# ---- joined --------------------------------------------------------------------------------------------------------


async def test_what_arrives_while_one_is_under_way_is_one_transaction(town: Town, desk: Callers) -> None:
    await opened(town, "10")
    await town.account("other", level_2=True)
    await opened(town, "10", "other")
    grants = await asyncio.gather(
        *[desk.authorize(f"c{number}", asking("desk" if number % 2 else "other")) for number in range(100)]
    )
    assert all(isinstance(each, Grant) for each in grants)
    transactions = select(func.count(func.distinct(cast(literal_column("call.xmin"), Text)))).select_from(tables.call)
    assert (await town.rooms.query("balance", transactions))[0][0] <= 2
    assert [await desk.held(each) for each in ("desk", "other")] == [("2.5", "7.5")] * 2


async def test_a_wallet_that_somebody_holds_delays_no_other_and_is_looked_at_again(town: Town, desk: Callers) -> None:
    await opened(town, "10")
    await town.account("stuck", level_2=True)
    await opened(town, "10", "stuck")
    async with town.database.connected("balance") as holder:
        async with holder.transaction():
            await holder.execute("select from balance.wallet where account_id = 'stuck' for update")
            waits = [asyncio.ensure_future(desk.authorize(f"w{number}", asking("stuck"))) for number in range(2)]
            others = await asyncio.gather(desk.authorize("c1"), desk.authorize("c2"))
            assert all(isinstance(each, Grant) for each in others)
            assert not any(each.done() for each in waits)
        assert all(isinstance(each, Grant) for each in await asyncio.gather(*waits))
    assert await desk.held("stuck") == ("0.1", "9.9")


async def test_who_waits_too_long_for_a_wallet_is_told_to_ask_again_and_nothing_is_held(
    town: Town, desk: Callers
) -> None:
    await opened(town, "10")
    holds = api.Holds(desk.engine, town.log, held_s_max=0.1)
    async with town.database.connected("balance") as holder, holder.transaction():
        await holder.execute("select from balance.wallet where account_id = 'desk' for update")
        with pytest.raises(Unavailable) as busy:
            await holds.ask(Authorize(asking("desk"), "c1", 300, bytes(16)))
        assert (busy.value.code, busy.value.retry_can_help) == ("busy", True)
    assert isinstance(await holds.ask(Authorize(asking("desk"), "c2", 300, bytes(16))), Grant)
    await holds.close()
    assert [each.call_leg_id for each in (await api.open_holds(desk.engine, "desk")).data] == ["c2"]


async def test_what_is_asked_of_a_wallet_that_somebody_holds_is_decided_in_the_order_it_came(
    town: Town, desk: Callers
) -> None:
    await opened(town, "0.05")  # for one slice
    async with town.database.connected("balance") as holder:
        async with holder.transaction():
            await holder.execute("select from balance.wallet where account_id = 'desk' for update")
            first = asyncio.ensure_future(desk.authorize("c1"))
            await asyncio.sleep(0.01)
            later = [asyncio.ensure_future(each) for each in (desk.release("c1"), desk.authorize("c2"))]
            await asyncio.sleep(0.01)
        answers = await asyncio.gather(first, *later)
    assert [type(each) for each in answers] == [Grant, Ended, Grant]


async def test_the_same_money_is_promised_once_beside_charges_too(town: Town, desk: Callers) -> None:
    await opened(town, "0.5055")  # for ten slices and not eleven, before what is charged meanwhile and after it
    for number in range(10):
        town.charge("desk", "0.0001", call_leg_id=f"before-{number}")
    async with Callers(town) as another:
        *answers, _ = await asyncio.gather(
            *[
                each.authorize(f"{name}{number}")
                for number in range(32)
                for name, each in (("a", desk), ("b", another))
            ],
            town.rooms.pump(),
        )
    assert sum(isinstance(each, Grant) for each in answers) == 10
    assert {each.reason for each in answers if isinstance(each, Refused)} == {"insufficient_credit"}
    assert await desk.held() == ("0.5", "0.0045")
    assert await desk.differences() == []
    await town.assert_conserved()


# ---- whatever happens ----------------------------------------------------------------------------------------------

PRICES = {
    "minutes": Price(10_000_000, 0, 60, 60),
    "six": Price(14_000_000, 3_333_333, 60, 6),
    "seconds": Price(7_777_777, 10_000_000, 1, 1),
    "free": Price(0, 0, 1, 1),
}


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_holds_are_those_of_the_model_whatever_comes_in_whatever_order(town: Town, seed: int) -> None:
    """Two accounts of a group: one has money of its own, both share two credits, the first of which expires meanwhile."""
    chosen = random.Random(seed)
    names = ("desk", "sales")
    for name in names:
        await town.account(name, level_2=True, group="g")
    town.open("desk", "0.3")
    await town.settle()
    started = await town.now()
    lasts_s = 2 * 3600
    town.grant("desk", "0.12", shared=True, expires_at=instant_text(started + seconds(lasts_s)))
    town.grant("desk", "0.25", shared=True)
    await town.settle()
    left = [parse_amount(amount) for amount in ("0.12", "0.25")]
    model = Model({"desk": parse_amount("0.3"), "sales": 0}, [Credit(left[0], lasts_s), Credit(left[1])])
    async with Callers(town) as desk, Callers(town, "sales") as sales:
        for step in range(160):
            account = chosen.choice(names)
            asks = desk if account == "desk" else sales
            name = f"c{chosen.randrange(8 + step // 12)}"
            match chosen.choices(
                ["authorize", "renew", "settle", "release", "charge", "move", "tick"], [6, 6, 3, 1, 2, 4, 1]
            )[0]:
                case "authorize":
                    own = PRICES[list(PRICES)[int(name[1:]) % len(PRICES)]]
                    asked = 30 * (1 + int(name[1:]) % 12)  # always the same of a call
                    rates = (Rate(own.minute, 60, own.fee, own.minimum, own.increment),)
                    got = await _said(asks.authorize(name, asking(account, rates), seconds=asked))
                    assert got == model.authorize(account, name, own, asked), f"at step {step}"
                case "renew":
                    before = model.calls.get((account, name))
                    number = max(1, (0 if before is None else before.number) + chosen.choice([0, 1, 1, 1]))
                    got = await _said(asks.renew(name, number, seconds=100))
                    assert got == model.renew(account, name, number, 100), f"at step {step}"
                case "settle":
                    length = chosen.choice([0, 59, 61, 300])
                    got = await _said(asks.settle(name, length))
                    assert got == model.settle(account, name, length), f"at step {step}"
                case "release":
                    assert await _said(asks.release(name)) == model.release(account, name), f"at step {step}"
                case "charge":
                    town.charge(account, "0.01", call_leg_id=name, event_time=instant_text(await town.now()))
                    await town.rooms.pump()
                    model.charge(account, name, parse_amount("0.01"))
                    await town.settle()  # who shares a credit that is gone is suspended
                    model.rest()
                case "move":
                    # Past the end of the first credit at once when it comes near: a lease is a little longer or shorter here.
                    near = (step > 100 or lasts_s - model.now < 3000) and not model.credits[0].expired
                    await town.move(seconds(lasts_s if near else chosen.choice([5, 40, 200, 331])))
                    if near:
                        model.now = (await town.now() - started).total_seconds()
                        await town.settle()
                        model.rest()
                case "tick":
                    await town.rooms.processors["balance"].tick(END_LEASES)
                    model.tick()
            model.now = (await town.now() - started).total_seconds()
            for each in names:
                expected = (format_nano(model.held(each)), format_nano(model.available(each)))
                assert await desk.held(each) == expected, f"{each} after step {step}"
            assert await desk.differences() == []
        assert model.credits[0].expired
    await town.assert_conserved()
    await town.assert_credits_conserved()


async def _said(asked: Any) -> tuple[object, ...]:
    """An answer in the words of the model."""
    try:
        answer = await asked
    except TollbookError as error:
        return (error.code,)
    match answer:
        case Grant():
            return ("granted", answer.total_s, answer.held_nano)
        case Ended():
            return ("ended", answer.ended_by, answer.held_nano)
    return (answer.reason,)


async def test_the_open_holds_of_an_account_are_listed(town: Town, desk: Callers) -> None:
    await opened(town, "1")
    first = await desk.authorize("c1")
    await desk.authorize("c2", seconds=30)
    await desk.authorize("c3", seconds=120)
    await desk.settle("c3", 60)
    await desk.authorize("c4")
    await desk.release("c4")
    await town.move(seconds(61))
    rows = (await api.open_holds(desk.engine, "desk")).data
    assert [(each.call_leg_id, each.state, each.held, each.seconds) for each in rows] == [
        ("c1", "in progress", "0.05", 300),
        ("c3", "settled", "0.01", 60),
    ]
    assert (rows[0].hold_id, rows[0].expires_at, rows[0].max_s) == (first.hold_id, first.expires_at, first.max_s)
