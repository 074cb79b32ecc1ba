"""Payments through the rooms balance and payments: the worked examples of the recharge design that are about results, by
number, and payments that people ask for. One town; every test has accounts of its own."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import select

from services.balance import paying, tables
from services.kernel.money import format_nano
from tests.support.balance_factory import Town, minutes
from tests.support.servers import TestedServers

HOUR = timedelta(hours=1)
_count = itertools.count(1)


@pytest.fixture(scope="module")
async def town(servers: TestedServers) -> AsyncIterator[Town]:
    async with servers.fresh_database() as database, Town(database) as made:
        # Noon, so that no example meets the change of a day that it does not speak of.
        now = await made.now()
        noon = datetime(now.year, now.month, now.day, 12, tzinfo=UTC) + timedelta(days=1)
        await made.move(noon - now)
        yield made
        await made.assert_conserved()


@pytest.fixture
def name() -> str:
    """An account that no other test has."""
    return f"desk{next(_count)}"


async def opened(town: Town, name: str, balance: str, token: str | None = "tok_ok", *, level_2: bool = True) -> str:
    """An account with a balance and threshold 100, recharge amount 50."""
    await town.account(name, level_2=level_2)
    town.open(name, balance)
    if token is not None:
        town.method(name, token)
    town.prefer(name, "100", "50")
    await town.settle()
    return name


async def states(town: Town, name: str) -> list[str]:
    return [attempt.state for attempt in await town.attempts(name)]


async def quarantined(town: Town, name: str) -> list[tuple[str, str | None]]:
    """(reason, field) of what is in quarantine about an account."""
    parked = town.rooms.processors["balance"].tables.parked
    rows = await town.rooms.query(
        "balance", select(parked).where(parked.c.about["account_id"].astext == name).order_by(parked.c.id)
    )
    return [(row.reason, row.field) for row in rows]


def alarms(town: Town, name: str) -> list[str]:
    return [each["reason"] for each in town.events(name, "finance_alarm")]


def pauses(town: Town, name: str) -> list[tuple[str, str | None]]:
    """(reason, next allowed) of each pause: without an instant, since a person has to act."""
    return [(each["reason"], each["next_allowed_at"]) for each in town.events(name, "recharge_paused")]


# ---- the worked examples -------------------------------------------------------------------------------------------


async def test_example_15_and_16_usage_while_one_is_in_flight(town: Town, name: str) -> None:
    await opened(town, name, "20", "tok_late_5s")
    other = await opened(town, f"{name}b", "20", "tok_late_5s")
    town.charge(name, "10")
    town.charge(other, "60")
    await town.settle()
    assert len(await town.attempts(name)) == len(await town.attempts(other)) == 1
    await town.settle(after=timedelta(seconds=6))
    assert await town.balance(name) == "140"
    assert [format_nano(each.amount_nano) for each in await town.attempts(other)] == ["130", "60"]


async def test_example_14_a_credit_limit_is_available_credit(town: Town, name: str) -> None:
    """The registry gives a limit to invoiced accounts alone, which are not recharged; a wallet goes by the one it is told."""
    await town.account(name, level_2=True, credit_limit="50")
    town.open(name, "-30")
    town.method(name, "tok_ok")
    town.prefer(name, "100", "50")
    await town.settle()
    (requested,) = town.events(name, "recharge_requested")
    assert (requested["wallet"], requested["available"], requested["amount"]) == ("-30", "20", "130")
    assert await town.balance(name) == "100"


async def test_example_22_a_manual_payment_is_refused_naming_what_is_left_and_the_minimum(
    town: Town, name: str
) -> None:
    await town.account(name)
    town.pay(name, "100.01", "tok_ok")
    town.pay(name, "9.99", "tok_ok")
    await town.settle()
    above, below = town.events(name, "command_refused")
    assert (above["reason"], above["field"]) == ("top_up_limit", "amount")
    assert "100.00 USD" in above["message"]
    assert "10.00 USD" in above["message"]
    assert (below["field"], "10.00 USD" in below["message"]) == ("amount", True)
    assert await town.attempts(name) == []


async def test_example_32_a_new_method_asks_at_once_whatever_back_off_runs(town: Town, name: str) -> None:
    await opened(town, name, "20", "tok_declined")
    wallet, (declined,) = await town.wallet(name), town.events(name, "recharge_declined")
    assert (wallet.decline_streak, wallet.retry_at) == (1, datetime.fromisoformat(declined["at"]) + HOUR)
    await town.settle(after=minutes(20))
    assert await states(town, name) == ["declined"]
    town.command("delete_method", name)
    town.method(name, "tok_late_5s")
    await town.settle()
    first, second = await town.attempts(name)
    assert (first.state, second.state, second.amount_nano) == ("declined", "requested", first.amount_nano)
    assert minutes(20) <= second.requested_at - first.requested_at < minutes(60)
    wallet = await town.wallet(name)
    assert (wallet.decline_streak, wallet.retry_at) == (0, None)
    await town.settle(after=timedelta(seconds=6))
    assert await town.balance(name) == "150"


async def test_example_33_silence_is_unknown_and_credited_once_when_it_settles(town: Town, name: str) -> None:
    await opened(town, name, "20", "tok_late_40m")
    await town.settle(after=minutes(15))
    assert await states(town, name) == ["unknown"]
    assert await town.balance(name) == "20"
    await town.settle(after=minutes(25))
    assert await states(town, name) == ["settled"]
    assert await town.balance(name) == "150"
    assert town.kinds(name).count("recharge_settled") == 1


async def test_example_34_an_abandoned_one_that_settles_late_is_credited_beside_the_new_one(
    town: Town, name: str
) -> None:
    await opened(town, name, "20", "tok_late_25h")
    town.command("delete_method", name)
    town.method(name, "tok_ok")
    await town.settle(after=minutes(16))
    assert await states(town, name) == ["unknown"]
    await town.settle(after=24 * HOUR - minutes(16))
    assert await states(town, name) == ["abandoned", "settled"]
    assert await town.balance(name) == "150"
    assert alarms(town, name) == ["abandoned"]
    await town.settle(after=HOUR)
    assert await states(town, name) == ["settled", "settled"]
    assert await town.balance(name) == "280"
    assert town.kinds(name).count("recharge_late") == 1
    assert alarms(town, name) == ["abandoned", "late"]


async def test_example_35_settled_twice_is_credited_once(town: Town, name: str) -> None:
    await opened(town, name, "20", "tok_twice")
    (attempt,) = await town.attempts(name)
    town.result(attempt)  # and once more under another id
    await town.settle()
    assert await town.balance(name) == "150"
    assert town.kinds(name).count("recharge_settled") == 1


@pytest.mark.parametrize("token", ["tok_declined_settled", "tok_settled_declined"])
async def test_example_36_declined_and_settled_is_credited_and_a_contradiction(
    town: Town, name: str, token: str
) -> None:
    await opened(town, name, "20", token)
    before = await town.now()
    await town.settle(after=timedelta(seconds=6))
    assert await states(town, name) == ["settled"]
    assert await town.balance(name) == "150"
    assert town.kinds(name).count("contradiction") == 1
    assert (await town.wallet(name)).decline_streak == 0
    assert alarms(town, name) == ["contradiction"]
    (attempt,) = await town.attempts(name)
    assert attempt.ended_at <= before  # it left flight when the first of them came


async def test_example_37_refunded_then_settled_moves_nothing_and_pauses(town: Town, name: str) -> None:
    await opened(town, name, "20", "tok_refund_first")
    assert await town.balance(name) == "20"
    await town.settle(after=timedelta(seconds=6))
    assert await states(town, name) == ["settled"]
    assert await town.balance(name) == "20"
    assert (await town.wallet(name)).paused_by == "refund"
    assert pauses(town, name) == [("refund", None)]
    assert len(await town.attempts(name)) == 1


async def test_example_38_refunds_up_to_what_settled(town: Town, name: str) -> None:
    await opened(town, name, "20")
    (attempt,) = await town.attempts(name)
    for result_id, amount in (("a", "30"), ("a", "30"), ("b", "110")):
        town.result(attempt, "refunded", result_id=f"{name}{result_id}", amount=amount)
    await town.settle()
    assert await town.balance(name) == "120"
    assert await quarantined(town, name) == [("refund_too_large", "amount")]
    assert "100 " in town.events(name, "finance_alarm")[0]["message"]


@pytest.mark.parametrize(("token", "wallet"), [("tok_dispute_won", "150"), ("tok_dispute_lost", "20")])
async def test_example_39_a_dispute_debits_until_it_is_won_and_pauses(
    town: Town, name: str, token: str, wallet: str
) -> None:
    await opened(town, name, "20", token)
    await town.settle(after=timedelta(seconds=5))
    assert await town.balance(name) == "20"
    await town.settle(after=timedelta(seconds=5))
    assert await town.balance(name) == wallet
    assert (await town.wallet(name)).paused_by == "dispute"
    assert pauses(town, name) == [("dispute", None)]
    assert len(await town.attempts(name)) == 1


@pytest.mark.parametrize("end", ["dispute_won", "dispute_lost"])
async def test_how_a_dispute_ends_does_not_pause_again_what_a_person_switched_on(
    town: Town, name: str, end: str
) -> None:
    await opened(town, name, "20")
    (attempt,) = await town.attempts(name)
    town.result(attempt, "disputed", dispute_id=f"{name}d")
    await town.settle()
    assert (await town.wallet(name)).paused_by == "dispute"
    town.prefer(name, "100", "50")
    town.result(attempt, end, dispute_id=f"{name}d")
    await town.settle()
    assert (await town.wallet(name)).paused_by is None
    town.result(attempt, "dispute_won", dispute_id=f"{name}another")
    await town.settle()
    assert pauses(town, name) == [("dispute", None)] * 2


async def test_example_40_another_amount_is_quarantined(town: Town, name: str) -> None:
    await opened(town, name, "20", "tok_late_40m")
    (attempt,) = await town.attempts(name)
    town.result(attempt, amount="120")
    await town.settle()
    assert await town.balance(name) == "20"
    assert await quarantined(town, name) == [("amount_mismatch", "amount")]
    assert alarms(town, name) == ["amount_mismatch"]


async def test_example_41_a_recharge_on_its_way_delays_the_suspension_for_15_minutes(town: Town, name: str) -> None:
    await opened(town, name, "20", "tok_silent")
    town.charge(name, "25")
    await town.settle(after=minutes(2))
    assert (await town.wallet(name)).suspended_funds is False
    await town.settle(after=minutes(13))
    assert (await town.wallet(name)).suspended_funds is True


async def test_example_43_one_that_does_not_suffice_delays_nothing(town: Town, name: str) -> None:
    await opened(town, name, "20", "tok_silent")
    town.charge(name, "220")
    await town.settle()
    assert (await town.wallet(name)).suspended_funds is True


async def test_example_44_a_deleted_method_stays_deleted(town: Town, name: str) -> None:
    await opened(town, name, "20", "tok_late_5s")
    town.command("delete_method", name)
    await town.settle(after=timedelta(seconds=6))
    assert await town.balance(name) == "150"
    assert (await town.wallet(name)).method_token is None


@pytest.mark.parametrize("failure", ["declined", "error"])
async def test_what_failed_by_a_method_that_was_replaced_since_says_nothing_of_the_new_one(
    town: Town, name: str, failure: str
) -> None:
    await opened(town, name, "20", "tok_late_40m")
    town.command("delete_method", name)
    town.method(name, "tok_ok")
    await town.settle()
    (old,) = await town.attempts(name)
    town.result(old, "failed", failure=failure)
    await town.settle()
    wallet = await town.wallet(name)
    assert (wallet.decline_streak, wallet.retry_at) == (0, None)
    assert [each.state for each in await town.attempts(name)][1:] == ["settled"]
    assert await town.balance(name) == "150"


# ---- what nobody answers -------------------------------------------------------------------------------------------


async def test_what_is_unknown_is_asked_for_after_1_2_4_to_60_minutes_with_the_same_key(town: Town, name: str) -> None:
    await opened(town, name, "20", "tok_silent")
    (attempt,) = await town.attempts(name)

    def inquiries() -> int:
        mine = [each for each in town.log.data("payments.requests") if each["account_id"] == name]
        assert {each["attempt_id"] for each in mine} == {str(attempt.attempt_id)}
        assert [each["kind"] for each in mine].count("charge") == 1
        return [each["kind"] for each in mine].count("inquire")

    await town.settle(after=minutes(15))
    asked = []
    for wait in (1, 2, 4, 8, 16, 32, 60, 60):
        await town.settle(after=minutes(wait) - timedelta(seconds=30))
        asked.append(inquiries())
        await town.settle(after=timedelta(seconds=30))
    assert asked == list(range(8))
    assert inquiries() == 8


@pytest.mark.parametrize(
    ("token", "state", "balance"),
    [
        ("tok_silent_settled", "settled", "150"),
        ("tok_silent_declined", "declined", "20"),
        ("tok_never_seen", "cancelled", "20"),
    ],
)
async def test_an_inquiry_ends_an_unknown_attempt(town: Town, name: str, token: str, state: str, balance: str) -> None:
    await opened(town, name, "20", token)
    await town.settle(after=minutes(15))
    assert await states(town, name) == ["unknown"]
    await town.settle(after=minutes(1))
    assert await states(town, name) == [state]
    assert await town.balance(name) == balance


async def test_an_outage_of_payments_for_days_charges_one_need_once(town: Town, name: str) -> None:
    """Each day an attempt is abandoned and another one made; when payments comes back it finds them all."""
    await opened(town, name, "120")
    town.charge(name, "30")
    for after in (minutes(0), minutes(16), 24 * HOUR, minutes(16), 24 * HOUR, minutes(16)):
        await town.move(after)
        await town.rooms.pump(ticks=True, only=["balance"])
    assert await states(town, name) == ["abandoned", "abandoned", "unknown"]
    await town.settle()
    assert await states(town, name) == ["cancelled"] * 3
    await town.settle(after=minutes(15))
    assert await states(town, name) == ["cancelled"] * 3 + ["settled"]
    assert await town.balance(name) == "150"


async def test_an_outage_of_balance_for_a_day_hears_the_result_before_it_asks_again(town: Town, name: str) -> None:
    """It asked, and slept; its timers are due at once when it comes back, before it has read what was answered."""
    await opened(town, name, "120")
    town.charge(name, "30")
    balance = town.rooms.processors["balance"]
    for source in balance.room.inputs:
        await town.rooms.feed(balance, source)
    await town.rooms.drain("balance")
    await town.rooms.pump(ticks=True, only=["payments"])
    await town.move(25 * HOUR)
    while await balance.fire_timers():
        pass
    assert await states(town, name) == ["unknown"]
    await town.settle()
    assert await states(town, name) == ["settled"]
    assert await town.balance(name) == "150"


async def test_what_stays_unknown_after_such_an_outage_is_abandoned_an_hour_later(town: Town, name: str) -> None:
    await opened(town, name, "20", "tok_silent")
    await town.settle(after=25 * HOUR)
    await town.settle(after=minutes(59))
    assert await states(town, name) == ["unknown"]
    await town.settle(after=minutes(1))
    assert (await states(town, name))[0] == "abandoned"
    town.command("set_preferences", name, enabled=False)
    await town.settle()


async def test_a_bank_debit_is_not_given_up_before_its_bank_can_answer(town: Town, name: str) -> None:
    await town.account(name, level_2=True)
    town.open(name, "20")
    town.command("save_method", name, processor="sandbox", method_kind="bank_debit", token="tok_silent")
    town.prefer(name, "100", "50")
    await town.settle()
    await town.settle(after=minutes(16))
    await town.settle(after=13 * 24 * HOUR)
    assert await states(town, name) == ["unknown"]
    await town.settle(after=24 * HOUR)
    assert (await states(town, name))[0] == "abandoned"
    town.command("set_preferences", name, enabled=False)
    await town.settle()


async def test_a_cancel_is_asked_for_and_ends_it_when_the_processor_confirms(town: Town, name: str) -> None:
    await opened(town, name, "20", "tok_silent")
    (attempt,) = await town.attempts(name)
    town.command("cancel_payment", name, attempt_id=str(attempt.attempt_id))
    await town.settle()
    assert await states(town, name) == ["cancelled"]
    town.command("cancel_payment", name, attempt_id=str(attempt.attempt_id))
    await town.settle()
    (refused,) = town.events(name, "command_refused")
    assert (refused["field"], "cancelled" in refused["message"]) == ("attempt_id", True)
    town.command("delete_method", name)
    await town.settle()


# ---- manual payments and the one saved method ----------------------------------------------------------------------


async def test_a_first_payment_saves_its_method_and_the_next_one_needs_none(town: Town, name: str) -> None:
    await town.account(name, level_2=True)
    town.pay(name, "20", "tok_ok")
    await town.settle()
    assert (await town.wallet(name)).method_token == "tok_ok"
    town.pay(name, "10")
    await town.settle()
    assert await town.balance(name) == "30"
    kinds = town.kinds(name)
    assert kinds == ["payment_requested", "payment_settled", "method_saved", "payment_requested", "payment_settled"]


async def test_a_payment_by_another_method_does_not_replace_the_saved_one(town: Town, name: str) -> None:
    await town.account(name, level_2=True)
    town.method(name, "tok_twice")
    town.pay(name, "20", "tok_ok")
    await town.settle()
    assert (await town.wallet(name)).method_token == "tok_twice"
    assert await town.balance(name) == "20"


@pytest.mark.parametrize("token", ["tok_declined", "tok_error"])
async def test_a_payment_that_fails_saves_no_method_and_is_no_decline_of_auto_recharge(
    town: Town, name: str, token: str
) -> None:
    await town.account(name, level_2=True)
    town.pay(name, "20", token)
    await town.settle()
    wallet = await town.wallet(name)
    assert (wallet.method_token, wallet.decline_streak, wallet.retry_at) == (None, 0, None)
    assert town.kinds(name)[1] in ("payment_declined", "payment_failed")


async def test_a_late_result_never_brings_a_deleted_method_back(town: Town, name: str) -> None:
    await town.account(name, level_2=True)
    town.pay(name, "20", "tok_late_5s")
    town.method(name, "tok_ok")
    town.command("delete_method", name)
    await town.settle()
    await town.settle(after=timedelta(seconds=6))
    assert await town.balance(name) == "20"
    assert (await town.wallet(name)).method_token is None
    town.pay(name, "20", "tok_ok")  # begun after the deletion
    await town.settle()
    assert (await town.wallet(name)).method_token == "tok_ok"


async def test_a_refusal_is_told_again_after_a_reversal_lifted_the_account_above_its_threshold(
    town: Town, name: str
) -> None:
    await opened(town, name, "120", token=None)
    charge_id = town.charge(name, "30")
    await town.settle()
    town.charge(name, "1")
    await town.settle()
    assert [each["reason"] for each in town.events(name, "recharge_refused")] == ["no_method"]
    town.charge(name, "-30", reverses=charge_id)
    await town.settle()
    town.charge(name, "30")
    await town.settle()
    assert [each["reason"] for each in town.events(name, "recharge_refused")] == ["no_method"] * 2


async def test_preferences_end_a_pause_for_a_refund_and_leave_that_for_declines(town: Town, name: str) -> None:
    await opened(town, name, "200", token=None)
    town.pay(name, "10", "tok_ok")
    town.command("delete_method", name)
    town.method(name, "tok_declined")
    await town.settle()
    town.charge(name, "150")
    await town.settle()
    for hours in (1, 2):
        await town.settle(after=hours * HOUR)
    by_hand, *declined = await town.attempts(name)
    assert ((await town.wallet(name)).paused_by, len(declined)) == ("declines", 3)
    town.result(by_hand, "refunded", amount="5")
    await town.settle()
    assert (await town.wallet(name)).paused_by == "refund"
    town.prefer(name, "100", "50")
    await town.settle(after=HOUR)
    assert (await town.wallet(name)).paused_by == "declines"
    assert len(await town.attempts(name)) == 4
    town.command("delete_method", name)
    town.method(name, "tok_ok")
    await town.settle()
    assert (await states(town, name))[4:] == ["settled"]


async def test_a_payment_by_hand_ends_a_pause_for_declines_and_not_one_for_a_dispute(town: Town, name: str) -> None:
    await opened(town, name, "20", "tok_declined")
    for hours in (1, 2):
        await town.settle(after=hours * HOUR)
    assert (await town.wallet(name)).paused_by == "declines"
    town.pay(name, "10", "tok_ok")
    await town.settle()
    wallet = await town.wallet(name)
    assert (wallet.paused_by, wallet.decline_streak <= 1) == (None, True)
    other = await opened(town, f"{name}b", "20", "tok_disputed")
    await town.settle(after=timedelta(seconds=6))
    town.pay(other, "10", "tok_ok")
    await town.settle()
    assert (await town.wallet(other)).paused_by == "dispute"
    town.prefer(other, "100", "50")  # a person has looked
    await town.settle()
    assert (await town.wallet(other)).paused_by is None
    for each in (name, other):
        town.command("set_preferences", each, enabled=False)
    await town.settle()


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"amount": "20"}, "no_method", "token"),
        ({"amount": "20", "token": "tok_ok"}, "invalid", "processor"),
        ({"amount": "20", "processor": "sandbox"}, "invalid", "token"),
        ({"amount": "20", "processor": "acme", "token": "tok_ok"}, "invalid", "processor"),
        (
            {"amount": "20", "processor": "sandbox", "token": "tok_ok", "method_kind": "transfer"},
            "invalid",
            "method_kind",
        ),
        ({"amount": "20.001", "processor": "sandbox", "token": "tok_ok"}, "invalid", "amount"),
        ({"amount": "10000000.01", "processor": "sandbox", "token": "tok_ok"}, "invalid", "amount"),
        ({"amount": "20", "processor": "sandbox", "token": "4111111111111111"}, "card_number", "token"),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_payments_that_cannot_be_made_are_refused_with_the_field(
    town: Town, name: str, fields: dict[str, Any], reason: str, field: str
) -> None:
    await town.account(name, level_2=True)
    town.command("pay", name, **fields)
    await town.settle()
    (refused,) = town.events(name)
    assert (refused["kind"], refused["reason"], refused["field"]) == ("command_refused", reason, field)


async def test_two_payments_of_one_batch_share_the_limit_of_the_day(town: Town, name: str) -> None:
    await town.account(name)
    town.pay(name, "60", "tok_ok")
    town.pay(name, "60", "tok_ok")
    town.pay(name, "40", "tok_ok")
    await town.settle()
    assert await town.balance(name) == "100"
    (refused,) = town.events(name, "command_refused")
    assert "40.00 USD" in refused["message"]


async def test_manual_payments_do_not_count_for_the_ten(town: Town, name: str) -> None:
    await town.account(name, level_2=True)
    for _ in range(12):
        town.pay(name, "10", "tok_ok")
    town.command("set_preferences", name, enabled=True, mode="target", threshold="120", recharge="150")
    await town.settle()
    assert await town.balance(name) == "150"


# ---- scheduled payments --------------------------------------------------------------------------------------------


async def test_a_scheduled_payment_is_made_each_month_by_the_one_clock(town: Town, name: str) -> None:
    await town.account(name, level_2=True)
    town.method(name, "tok_ok")
    town.command("set_schedule", name, amount="25", day="last")
    await town.settle()
    (told,) = town.events(name, "schedule_set")
    first = datetime.fromisoformat(told["next_allowed_at"])
    assert (first.hour, (first + timedelta(days=1)).day) == (0, 1)
    await town.move(first - await town.now() - timedelta(seconds=5))
    await town.settle()
    assert await town.attempts(name) == []
    await town.settle(after=timedelta(seconds=5))
    assert [(each.kind, each.state) for each in await town.attempts(name)] == [("scheduled", "settled")]
    await town.settle(after=timedelta(days=75))  # two were missed: one is made
    assert await town.balance(name) == "50"
    town.command("set_schedule", name)
    await town.settle(after=timedelta(days=40))
    assert await town.balance(name) == "50"


async def test_a_scheduled_payment_that_is_not_possible_is_told_and_left_out(town: Town, name: str) -> None:
    await town.account(name)
    town.command("set_schedule", name, amount="25", day=1)
    await town.settle()
    await town.settle(after=timedelta(days=32))
    (refused,) = town.events(name, "payment_refused")
    assert (refused["reason"], refused["amount"]) == ("no_method", "25")
    assert refused["next_allowed_at"].endswith("-01T00:00:00Z")
    assert await town.attempts(name) == []
    town.command("set_schedule", name)
    await town.settle()


async def test_a_scheduled_payment_counts_for_the_limit_of_its_day_and_is_refused_above_it(
    town: Town, name: str
) -> None:
    now = await town.now()
    first = paying.next_scheduled(1, now)
    await town.account(name, created_at=first)  # 100 may be topped up on that day
    town.method(name, "tok_ok")
    town.command("set_schedule", name, amount="60", day=1)
    await town.settle()
    await town.settle(after=first - now)
    assert [(each.kind, each.state) for each in await town.attempts(name)] == [("scheduled", "settled")]
    town.pay(name, "40.01")
    town.pay(name, "40")
    await town.settle()
    (refused,) = town.events(name, "command_refused")
    assert (refused["reason"], "40.00 USD" in refused["message"]) == ("top_up_limit", True)
    assert await town.balance(name) == "100"
    town.command("set_schedule", name)
    await town.settle()
    other = f"{name}b"
    now = await town.now()
    second = paying.next_scheduled(1, now)
    await town.account(other, created_at=second)
    town.method(other, "tok_ok")
    town.command("set_schedule", other, amount="100.01", day=1)
    await town.settle()
    await town.settle(after=second - now)
    (refused,) = town.events(other, "payment_refused")
    assert (refused["reason"], refused["amount"]) == ("top_up_limit", "100.01")
    assert datetime.fromisoformat(refused["next_allowed_at"]) == paying.next_scheduled(1, second)
    assert await town.attempts(other) == []
    town.command("set_schedule", other)
    await town.settle()


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"amount": "9.99", "day": 1}, "amount"), ({"amount": "20"}, "day"), ({"day": 3}, "amount")],
)
async def test_a_schedule_that_makes_no_sense_is_refused(
    town: Town, name: str, fields: dict[str, Any], field: str
) -> None:
    await town.account(name, level_2=True)
    town.command("set_schedule", name, **fields)
    await town.settle()
    assert [each["field"] for each in town.events(name, "command_refused")] == [field]


# ---- refunds that finance asks for ---------------------------------------------------------------------------------


async def paid(town: Town, name: str, token: str = "tok_ok") -> Any:
    await town.account(name, level_2=True)
    town.pay(name, "100", token)
    await town.settle()
    (attempt,) = await town.attempts(name)
    return attempt


def give_back(town: Town, name: str, attempt: Any, **more: Any) -> None:
    town.command("refund_payment", name, attempt_id=str(attempt.attempt_id), **({"role": "finance"} | more))


async def test_a_refund_is_asked_for_once_and_debits_when_it_is_confirmed(town: Town, name: str) -> None:
    attempt = await paid(town, name)
    give_back(town, name, attempt, amount="30", command_id=f"{name}r")
    give_back(town, name, attempt, amount="30", command_id=f"{name}r")
    give_back(town, name, attempt, amount="71")
    await town.settle()
    assert await town.balance(name) == "70"
    (refused,) = town.events(name, "command_refused")
    assert (refused["reason"], "70.00 USD" in refused["message"]) == ("refund_too_large", True)
    give_back(town, name, attempt)  # all that is left
    give_back(town, name, attempt)
    await town.settle()
    assert await town.balance(name) == "0"
    assert [each["reason"] for each in town.events(name, "command_refused")][1:] == ["nothing_left"]
    rows = await town.rooms.query("balance", select(tables.refund).where(tables.refund.c.account_id == name))
    assert sorted((row.amount_nano // 10**9, row.state) for row in rows) == [(30, "refunded"), (70, "refunded")]


async def test_a_refund_is_of_whole_minor_units(town: Town, name: str) -> None:
    attempt = await paid(town, name)
    for amount in ("10.001", "0.000000001"):
        give_back(town, name, attempt, amount=amount)
    await town.settle()
    said = [(each["field"], each["message"]) for each in town.events(name, "command_refused")]
    assert said == [("amount", "must have at most 2 decimals in USD")] * 2
    assert await town.balance(name) == "100"


async def test_a_refund_that_fails_leaves_the_money_and_can_be_asked_for_again(town: Town, name: str) -> None:
    attempt = await paid(town, name, "tok_refund_fails")
    for _ in range(2):
        give_back(town, name, attempt)
        await town.settle()
    assert await town.balance(name) == "100"
    assert town.kinds(name).count("refund_failed") == 2
    assert (await town.wallet(name)).paused_by is None


async def test_only_finance_gives_back_and_only_payments_of_the_account(town: Town, name: str) -> None:
    attempt = await paid(town, name)
    other = f"{name}b"
    await town.account(other)
    give_back(town, name, attempt, role="owner")
    give_back(town, other, attempt)
    town.command("refund_payment", name, role="finance", attempt_id=str(uuid4()))
    await town.settle()
    assert [each["reason"] for each in town.events(name, "command_refused")] == ["not_permitted", "unknown_attempt"]
    assert [each["reason"] for each in town.events(other, "command_refused")] == ["unknown_attempt"]
    assert await town.balance(name) == "100"


@pytest.mark.parametrize("in_one_batch", [True, False])
async def test_a_refund_that_was_too_large_is_taken_when_one_before_it_has_failed(
    town: Town, name: str, in_one_batch: bool
) -> None:
    """The processor said it in another order: given, failed, given again."""
    attempt = await paid(town, name)
    first, second = str(uuid4()), str(uuid4())
    for kind, refund_id in (("refunded", first), ("refunded", second), ("refund_failed", first)):
        town.result(attempt, kind, refund_id=refund_id)
        if not in_one_batch:
            await town.settle()
    await town.settle()
    assert await town.balance(name) == "0"
    parked = town.rooms.processors["balance"].tables.parked
    rows = await town.rooms.query("balance", select(parked).where(parked.c.about["account_id"].astext == name))
    assert [(row.reason, row.state) for row in rows] == [("refund_too_large", "replayed")]


async def test_the_same_refund_said_by_two_results_is_one(town: Town, name: str) -> None:
    attempt = await paid(town, name)
    refund_id = str(uuid4())
    for number in range(2):
        town.result(attempt, "refunded", result_id=f"{name}{number}", amount="30", refund_id=refund_id)
    town.result(attempt, "refunded", amount="31", refund_id=refund_id)
    await town.settle()
    assert await town.balance(name) == "70"
    assert await quarantined(town, name) == [("amount_mismatch", "amount")]


async def test_a_result_that_names_the_refund_of_another_payment_is_quarantined(town: Town, name: str) -> None:
    attempt, other = await paid(town, name), await paid(town, f"{name}b")
    give_back(town, name, attempt, amount="30")
    await town.settle()
    asked = select(tables.refund).where(tables.refund.c.account_id == name)
    (refund,) = await town.rooms.query("balance", asked)
    for kind in ("refund_failed", "refunded"):
        town.result(other, kind, amount="30", refund_id=str(refund.refund_id))
    await town.settle()
    assert (await town.balance(name), await town.balance(f"{name}b")) == ("70", "100")
    assert [row.state for row in await town.rooms.query("balance", asked)] == ["refunded"]
    assert await quarantined(town, f"{name}b") == [("conflict", "refund_id")] * 2


async def test_what_is_said_wrongly_of_refunds_and_disputes_is_quarantined_with_the_field(
    town: Town, name: str
) -> None:
    attempt = await paid(town, name)
    town.result(attempt, "disputed", dispute_id="d", amount="100.01")
    town.result(attempt, "refunded", amount="0")
    town.result(attempt, "disputed", dispute_id="d", amount="50")
    town.result(attempt, "dispute_lost", dispute_id="d", amount="60")
    await town.settle()
    assert await quarantined(town, name) == [("amount_mismatch", "amount")] * 3
    assert await town.balance(name) == "50"
    before = len(await town.quarantined())
    town.result(attempt, "disputed")
    town.result(attempt, "settled", dispute_id="d")
    town.result(attempt, "settled", refund_id=str(uuid4()))
    await town.settle()
    new = (await town.quarantined())[before:]
    assert sorted(field for _, field in new) == ["dispute_id", "dispute_id", "refund_id"]
