"""The accounts of the demo's cast, and each outcome of a recharge, through the rooms balance and payments together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import pytest

from services.balance import api
from tests.support.balance_factory import Town, minutes
from tests.support.servers import Database

HOUR = timedelta(hours=1)


@pytest.fixture
async def town(database: Database) -> AsyncIterator[Town]:
    async with Town(database) as made:
        yield made
        await made.assert_conserved()


def instant(event: dict[str, Any]) -> datetime:
    """When it was told."""
    return datetime.fromisoformat(event["at"])


def next_allowed(event: dict[str, Any]) -> datetime:
    """From when on it is possible again."""
    return datetime.fromisoformat(event["next_allowed_at"])


# ---- the cast ------------------------------------------------------------------------------------------------------


async def test_frontdesk_is_brought_up_to_threshold_plus_recharge_amount(town: Town) -> None:
    await town.account("frontdesk", level_2=True)
    town.open("frontdesk", "100.02")
    town.method("frontdesk", "tok_ok")
    town.prefer("frontdesk", "100", "50")
    await town.settle()
    assert await town.attempts("frontdesk") == []
    town.charge("frontdesk", "0.028")
    await town.settle()
    (requested,) = town.events("frontdesk", "recharge_requested")
    assert (requested["amount"], requested["available"]) == ("50.01", "99.992")
    assert await town.balance("frontdesk") == "150.002"


async def test_night_is_cut_to_the_top_up_limit_of_its_first_day(town: Town) -> None:
    await town.account("night")
    town.open("night", "10.10")
    town.method("night", "tok_ok")
    town.prefer("night", "10", "150")
    town.charge("night", "0.252")
    await town.settle()
    assert [attempt.amount_nano for attempt in await town.attempts("night")] == [100 * 10**9]
    assert await town.balance("night") == "109.848"


async def test_kiosk_is_declined_and_waits_an_hour(town: Town) -> None:
    await town.account("kiosk")
    town.open("kiosk", "10.01")
    town.method("kiosk", "tok_declined")
    town.prefer("kiosk", "10", "20")
    town.charge("kiosk", "0.014")
    await town.settle()
    (declined,) = town.events("kiosk", "recharge_declined")
    assert (declined["amount"], declined["reason"]) == ("20.01", "the card was declined")
    assert next_allowed(declined) == instant(declined) + HOUR
    assert await town.balance("kiosk") == "9.996"
    await town.settle(after=minutes(59))
    assert len(await town.attempts("kiosk")) == 1
    await town.settle(after=minutes(2))
    assert [attempt.state for attempt in await town.attempts("kiosk")] == ["declined", "declined"]
    _, again = town.events("kiosk", "recharge_declined")
    assert next_allowed(again) == instant(again) + 2 * HOUR
    assert town.events("kiosk", "recharge_paused") == []


async def test_sales_is_suspended_without_a_method_and_restored_by_one(town: Town) -> None:
    await town.account("sales")
    town.open("sales", "0.50")
    for amount in ("0.294", "0.2", "0.006", "0.494"):
        town.charge("sales", amount)
        await town.settle()
    assert await town.balance("sales") == "-0.494"
    (suspended,) = town.events("sales", "suspended")
    assert (suspended["wallet"], suspended["reasons"]) == ("0", ["funds"])
    town.method("sales", "tok_ok")
    town.prefer("sales", "10", "20")
    await town.settle()
    (requested,) = town.events("sales", "recharge_requested")
    assert requested["amount"] == "30.5"
    assert await town.balance("sales") == "30.006"
    (restored,) = town.events("sales", "restored")
    assert restored["version"] > suspended["version"]


async def test_burst_recharges_ten_times_then_is_capped_and_opens_by_itself(town: Town) -> None:
    await town.account("burst", level_2=True)
    town.open("burst", "95")
    town.method("burst", "tok_ok")
    town.prefer("burst", "200", "10", mode="fixed")
    await town.settle()
    attempts = await town.attempts("burst")
    assert [attempt.state for attempt in attempts] == ["settled"] * 10
    assert await town.balance("burst") == "195"
    town.charge("burst", "0.182")
    await town.settle()
    (capped,) = town.events("burst", "recharge_capped")
    assert (capped["reason"], next_allowed(capped)) == ("ten_in_24_hours", attempts[0].requested_at + 24 * HOUR)
    (eighth,) = town.events("burst", "recharge_eighth")
    assert eighth["attempt_id"] == str(attempts[7].attempt_id)
    await town.settle(after=24 * HOUR - minutes(5))
    assert len(await town.attempts("burst")) == 10
    await town.settle(after=minutes(5))  # the instant at which the window opens
    assert len(await town.attempts("burst")) == 11
    assert await town.balance("burst") == "204.818"
    assert len(town.events("burst", "recharge_capped")) == 1


async def test_trial_and_invoiced_accounts_are_charged_and_never_recharged(town: Town) -> None:
    await town.account("try", plan="trial")
    await town.account("east", plan="invoiced", credit_limit="100")
    town.command("grant_goodwill", "try", amount="5", currency="USD", note="welcome", role="finance")
    for name in ("try", "east"):
        town.method(name, "tok_ok")
        town.prefer(name, "1000", "50")
    town.charge("try", "0.070", plan="trial", group_id=None, bill_to=None)
    town.charge("east", "0.3630", plan="invoiced", group_id="northwind")
    await town.settle()
    assert await town.balance("try") == "4.93"
    east = await api.balance(town.rooms.processors["balance"].engine, "east")
    assert (east.wallet, east.unbilled, east.available) == ("0", "0.363", "99.637")
    assert await town.attempts("try") == await town.attempts("east") == []


# ---- each outcome of an attempt ------------------------------------------------------------------------------------


async def poor(town: Town, token: str, *, balance: str = "20", level_2: bool = True) -> None:
    """An account `poor` at 20 with threshold 100 and recharge amount 50: it asks for 130."""
    await town.account("poor", level_2=level_2)
    town.open("poor", balance)
    town.method("poor", token)
    town.prefer("poor", "100", "50")
    await town.settle()


async def test_a_result_that_comes_twice_is_credited_once(town: Town) -> None:
    await poor(town, "tok_twice")
    assert await town.balance("poor") == "150"
    assert town.kinds("poor").count("recharge_settled") == 1


async def test_a_late_result_is_credited_when_it_comes_and_nothing_is_asked_for_meanwhile(town: Town) -> None:
    await poor(town, "tok_late_5s")
    town.charge("poor", "5")
    await town.settle()
    assert await town.balance("poor") == "15"
    await town.settle(after=timedelta(seconds=6))
    assert await town.balance("poor") == "145"
    assert len(await town.attempts("poor")) == 1


async def test_silence_becomes_unknown_is_never_charged_again_and_a_late_success_is_credited(town: Town) -> None:
    await poor(town, "tok_silent")
    await town.settle(after=minutes(14))
    assert [attempt.state for attempt in await town.attempts("poor")] == ["requested"]
    await town.settle(after=minutes(2))
    (attempt,) = await town.attempts("poor")
    assert attempt.state == "unknown"
    assert len(town.events("poor", "recharge_unknown")) == 1
    town.charge("poor", "1")
    await town.settle(after=23 * HOUR)
    assert [each["kind"] for each in town.log.data("payments.requests")].count("charge") == 1
    town.result(attempt)
    await town.settle()
    assert await town.balance("poor") == "149"
    assert [attempt.state for attempt in await town.attempts("poor")] == ["settled"]


async def test_an_error_of_the_processor_is_no_decline_and_is_tried_again_after_15_minutes(town: Town) -> None:
    await poor(town, "tok_error")
    assert [attempt.state for attempt in await town.attempts("poor")] == ["cancelled"]
    assert (await town.wallet("poor")).decline_streak == 0
    await town.settle(after=minutes(14))
    assert len(await town.attempts("poor")) == 1
    await town.settle(after=minutes(2))
    assert len(await town.attempts("poor")) == 2


async def test_three_declines_pause_and_a_new_method_starts_anew(town: Town) -> None:
    await poor(town, "tok_declined")
    for hours in (1, 2):
        await town.settle(after=hours * HOUR)
    assert [attempt.state for attempt in await town.attempts("poor")] == ["declined"] * 3
    first, second, third = town.events("poor", "recharge_declined")
    for declined, back_off in ((first, HOUR), (second, 2 * HOUR)):
        assert (declined["reason"], next_allowed(declined)) == ("the card was declined", instant(declined) + back_off)
    assert (third["reason"], third["next_allowed_at"]) == ("the card was declined", None)  # a person has to act
    (paused,) = town.events("poor", "recharge_paused")
    assert (paused["reason"], paused["attempt_id"]) == ("declines", third["attempt_id"])
    assert (paused["at"], paused["next_allowed_at"]) == (third["at"], None)
    town.charge("poor", "1")
    await town.settle(after=24 * HOUR)
    assert len(await town.attempts("poor")) == 3
    town.command("delete_method", "poor")
    town.method("poor", "tok_ok")
    await town.settle()
    assert await town.balance("poor") == "150"


async def test_declined_then_settled_is_credited_and_told_as_a_contradiction(town: Town) -> None:
    await poor(town, "tok_declined")
    (attempt,) = await town.attempts("poor")
    town.result(attempt)
    await town.settle()
    assert await town.balance("poor") == "150"
    (contradiction,) = town.events("poor", "contradiction")
    assert contradiction["attempt_id"] == str(attempt.attempt_id)
    assert (await town.wallet("poor")).decline_streak == 0


async def test_settled_then_declined_is_the_same_set_and_the_same_wallet(town: Town) -> None:
    await poor(town, "tok_ok")
    (attempt,) = await town.attempts("poor")
    town.result(attempt, "failed", failure="declined")
    await town.settle()
    assert await town.balance("poor") == "150"
    assert [each.state for each in await town.attempts("poor")] == ["settled"]
    assert len(town.events("poor", "contradiction")) == 1


async def test_results_that_fit_no_attempt_are_quarantined_with_the_field(town: Town) -> None:
    await poor(town, "tok_silent")
    (attempt,) = await town.attempts("poor")
    town.result(attempt, amount="120")
    town.result(attempt, currency="EUR")
    town.result(attempt, attempt_id="00000000-0000-8000-8000-000000000000")
    town.result(attempt, topic_of_processor="acme")
    town.result(attempt, processor="acme", topic_of_processor="acme")
    town.result(attempt, amount=130)
    town.log.write("payments.results.sandbox", value=b"\xff{", key="x")
    await town.settle()
    assert sorted(await town.quarantined(), key=str) == sorted(
        [
            ("amount_mismatch", "amount"),
            ("currency_mismatch", "currency"),
            ("unknown_attempt", "attempt_id"),
            ("not_permitted", "processor"),
            ("not_permitted", "processor"),
            ("invalid_result", "amount"),
            ("not_json", None),
        ],
        key=str,
    )
    assert await town.balance("poor") == "20"


async def test_the_limit_of_a_day_refuses_once_and_the_next_day_goes_on_by_itself(town: Town) -> None:
    await poor(town, "tok_ok", level_2=False)
    assert await town.balance("poor") == "120"  # 130 cut to the 100 of the first day
    town.charge("poor", "30")
    await town.settle()
    town.charge("poor", "1")
    await town.settle()
    (refused,) = town.events("poor", "recharge_refused")
    assert refused["reason"] == "top_up_limit"
    midnight = instant(refused).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    assert next_allowed(refused) == midnight
    await town.settle(after=24 * HOUR)
    assert await town.balance("poor") == "150"  # 89 + 61, within the 150 of the second day


async def test_level_2_lifts_the_limit_at_once(town: Town) -> None:
    await poor(town, "tok_ok", level_2=False)
    town.charge("poor", "30")
    await town.settle()
    await town.account("poor", level_2=True)
    await town.settle()
    assert await town.balance("poor") == "150"


async def test_a_deleted_method_stays_deleted_when_its_attempt_settles(town: Town) -> None:
    await poor(town, "tok_late_5s")
    town.command("delete_method", "poor")
    await town.settle(after=timedelta(seconds=6))
    assert await town.balance("poor") == "150"
    assert (await town.wallet("poor")).method_token is None


# ---- suspension ----------------------------------------------------------------------------------------------------


async def test_a_recharge_on_its_way_delays_the_suspension_15_minutes(town: Town) -> None:
    await poor(town, "tok_silent")
    town.charge("poor", "25")
    await town.settle(after=minutes(2))
    assert not (await town.wallet("poor")).suspended_funds
    await town.settle(after=minutes(14))
    assert (await town.wallet("poor")).suspended_funds
    assert len(town.events("poor", "suspended")) == 1


async def test_a_recharge_that_does_not_suffice_delays_nothing(town: Town) -> None:
    await poor(town, "tok_silent")
    town.charge("poor", "220")
    await town.settle()
    assert (await town.wallet("poor")).suspended_funds


async def test_an_account_that_never_had_money_is_not_suspended_for_having_none(town: Town) -> None:
    await town.account("empty")
    await town.settle()
    await town.account("empty", level_2=True)
    await town.settle()
    assert town.kinds("empty") == []


async def test_the_limit_of_an_invoiced_account_suspends_and_a_higher_one_restores(town: Town) -> None:
    await town.account("east", plan="invoiced", credit_limit="10")
    town.charge("east", "10", plan="invoiced")
    await town.settle()
    assert town.kinds("east") == ["suspended"]
    await town.account("east", plan="invoiced", credit_limit="20")
    await town.settle()
    assert town.kinds("east") == ["suspended", "restored"]
