"""The worked examples of the recharge design that are about the decision, by number, on the pure rule; and what must hold for
any input. Those that only the rooms can show, 14, 22 and 32 to 44, are in `test_payments.py`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.balance import recharge, suspension
from services.balance.recharge import Capped, Nothing, Refused, Request, Wait, decide
from services.kernel.currency import currency
from services.kernel.errors import InvalidInput
from services.kernel.money import NANO, PAYMENT_NANO_MAX, parse_amount

USD = currency("USD")
DAY = datetime(2026, 3, 10, tzinfo=UTC)


def usd(text):
    return parse_amount(text, signed=True)


def at(hour, minute=0, second=0, micro=0, day=0):
    return DAY + timedelta(days=day, hours=hour, minutes=minute, seconds=second, microseconds=micro)


@dataclass(frozen=True)
class Account:
    available_nano: int
    threshold_nano: int = usd("100")
    recharge_nano: int = usd("50")
    recharge_mode: str = "up_to_sum"
    recharge_enabled: bool = True
    level_2: bool = True
    plan: str = "payg"
    currency: str = "USD"
    created_at: datetime = DAY
    closed_at: datetime | None = None
    suspended_operator: bool = False
    method_token: str | None = "tok_ok"
    retry_at: datetime | None = None
    paused: bool = False
    shared_credit_nano: int = 0


@dataclass(frozen=True)
class Attempt:
    amount_nano: int
    requested_at: datetime
    state: str = "settled"
    kind: str = "auto"
    undone: bool = False


@dataclass
class Scene:
    """An account with its attempts; `ask` decides."""

    account: Account
    attempts: list = field(default_factory=list)

    def ask(self, now=None):
        return decide(self.account, self.attempts, now or at(12))


def scene(available, attempts=(), **changes):
    return Scene(replace(Account(usd(available)), **changes), list(attempts))


def amount(decision):
    assert isinstance(decision, Request), decision
    return decision.amount_nano


@pytest.mark.parametrize(
    ("number", "available", "changes", "requested"),
    [
        (2, "100.00", {}, "50.00"),
        (3, "20.00", {}, "130.00"),
        (4, "-40.00", {}, "190.00"),
        (5, "19.996", {}, "130.01"),
        (6, "99.999999999", {}, "50.01"),
        (7, "5", {"threshold_nano": usd("5"), "recharge_nano": usd("2")}, "10.00"),
        (8, "-20", {"threshold_nano": usd("5"), "recharge_nano": usd("2")}, "27.00"),
        (9, "20", {"recharge_mode": "target", "recharge_nano": usd("200")}, "180.00"),
        (10, "100", {"recharge_mode": "target", "recharge_nano": usd("105")}, "10.00"),
        (12, "90", {}, "60.00"),  # balance 120, hold 30
    ],
    ids=lambda value: f"example {value}" if isinstance(value, int) else "",
)
def test_examples_of_the_amount(number, available, changes, requested):
    assert amount(scene(available, **changes).ask()) == usd(requested)


def test_example_1_above_the_threshold_nothing():
    assert scene("100.01").ask() == Nothing()


def test_example_5_ends_above_threshold_plus_amount():
    assert usd("19.996") + amount(scene("19.996").ask()) == usd("150.006")


def test_example_11_fixed_goes_on_until_above_the_threshold():
    available, requested, attempts = usd("-40"), [], []
    while isinstance(decision := scene("0", attempts, available_nano=available, recharge_mode="fixed").ask(), Request):
        requested.append(decision.amount_nano)
        attempts.append(Attempt(decision.amount_nano, at(11)))
        available += decision.amount_nano
    assert requested == [usd("50")] * 3
    assert available == usd("110")


def test_example_13_a_released_hold_asks_for_nothing_more():
    assert scene("180", [Attempt(usd("60"), at(11))]).ask() == Nothing()


def test_examples_15_and_16_one_in_flight():
    flying = Attempt(usd("130"), at(11, 59), "requested")
    assert scene("10", [flying]).ask() == Nothing()
    assert scene("-40", [flying]).ask() == Nothing()
    settled = replace(flying, state="settled")
    assert scene("140", [settled]).ask() == Nothing()
    assert amount(scene("90", [settled]).ask()) == usd("60")


def test_examples_17_and_18_cut_to_the_top_up_limit():
    assert amount(scene("20", level_2=False).ask()) == usd("100")
    manual = Attempt(usd("60"), at(9), kind="manual")
    assert amount(scene("20", [manual], level_2=False).ask()) == usd("40")
    both = [manual, Attempt(usd("40"), at(12))]
    assert scene("60", both, level_2=False).ask(at(13)) == Refused("top_up_limit", at(0, day=1))
    assert amount(scene("60", both, level_2=False).ask(at(0, day=1))) == usd("90")


@pytest.mark.parametrize(("number", "attempted", "outcome"), [(19, "90.01", None), (20, "90.00", "10.00")])
def test_examples_19_and_20_at_the_minimum(number, attempted, outcome):
    decision = scene("20", [Attempt(usd(attempted), at(9))], level_2=False).ask()
    if outcome is None:
        assert decision == Refused("top_up_limit", at(0, day=1))
    else:
        assert amount(decision) == usd(outcome)


def test_example_21_the_minimum_is_above_what_is_left():
    decision = scene(
        "4", [Attempt(usd("92"), at(9))], level_2=False, threshold_nano=usd("5"), recharge_nano=usd("2")
    ).ask()
    assert decision == Refused("top_up_limit", at(0, day=1))


def test_example_23_a_new_day_begins_at_midnight():
    created = at(23, 59, 30)
    paid = [Attempt(usd("100"), at(23, 59, 45), kind="manual")]
    assert recharge.left_today(created, paid, USD, at(23, 59, 59)) == 0
    assert recharge.left_today(created, paid, USD, at(0, day=1)) == usd("150")


@pytest.mark.parametrize("kind", ["auto", "manual", "scheduled"])
@pytest.mark.parametrize(
    ("state", "left"),
    [("declined", "100"), ("unknown", "0"), ("cancelled", "100"), ("abandoned", "0"), ("settled", "0")],
)
def test_example_24_what_counts_for_the_day(state, left, kind):
    assert recharge.left_today(DAY, [Attempt(usd("100"), at(9), state, kind)], USD, at(12)) == usd(left)


def test_example_25_an_attempt_counts_on_the_day_it_was_requested():
    settled_after_midnight = [Attempt(usd("100"), at(23, 59, 59))]
    assert recharge.left_today(DAY, settled_after_midnight, USD, at(0, 0, 5, day=1)) == usd("150")


def ten(**changes):
    attempts = [Attempt(usd("50"), at(hour)) for hour in range(10)]
    for hour, state in changes.get("states", {}).items():
        attempts[hour] = replace(attempts[hour], state=state)
    return attempts


def test_example_26_the_eleventh_is_capped_until_the_first_leaves_the_window():
    assert scene("90", ten()).ask(at(10)) == Capped(at(0, day=1))
    assert scene("80", ten()).ask(at(11)) == Capped(at(0, day=1))
    assert isinstance(scene("80", ten()).ask(at(0, day=1)), Request)


@pytest.mark.parametrize("kind", ["manual", "scheduled", "group"])
def test_only_recharges_count_for_the_ten(kind):
    others = [Attempt(usd("50"), at(hour), kind=kind) for hour in range(10)]
    assert amount(scene("90", others).ask(at(10))) == usd("60")
    assert scene("90", [*others, *ten()]).ask(at(10)) == Capped(at(0, day=1))


def test_example_27_enough_by_then_asks_for_nothing():
    assert scene("140", ten()).ask(at(0, day=1)) == Nothing()


def test_example_28_a_declined_one_does_not_count():
    attempts = ten(states={5: "declined"})
    assert isinstance(scene("90", attempts).ask(at(10)), Request)
    attempts.append(Attempt(usd("60"), at(10)))
    assert scene("90", attempts).ask(at(10, 30)) == Capped(at(0, day=1))


def test_example_29_an_unknown_one_is_in_flight_and_counts():
    attempts = ten(states={9: "unknown"})
    assert scene("90", attempts).ask(at(10)) == Nothing()
    assert scene("90", ten()).ask(at(10, 20)) == Capped(at(0, day=1))


def test_an_attempt_of_a_transaction_that_began_later_counts_for_the_ten():
    attempts = [Attempt(usd("10"), at(hour)) for hour in range(9)] + [Attempt(usd("10"), at(12, micro=1))]
    assert scene("90", attempts).ask(at(12)) == Capped(at(0, day=1))


def test_example_30_the_window_is_open_on_its_old_side():
    assert isinstance(scene("90", ten()).ask(at(0, day=1)), Request)
    assert isinstance(scene("90", ten()).ask(at(0, day=1) - timedelta(microseconds=1)), Capped)


def test_example_31_declines_back_off_and_pause():
    first = recharge.after_decline(0, at(10))
    assert (first.decline_streak, first.retry_at, first.paused) == (1, at(11), False)
    assert scene("90", retry_at=first.retry_at).ask(at(10, 59)) == Wait(at(11))
    assert isinstance(scene("90", retry_at=first.retry_at).ask(at(11)), Request)
    second = recharge.after_decline(1, at(11))
    assert second.retry_at == at(13)
    third = recharge.after_decline(2, at(13))
    assert (third.retry_at, third.paused) == (None, True)
    assert scene("90", paused=True).ask(at(14)) == Refused("paused", None)


def test_an_error_of_the_processor_is_looked_at_again_after_15_minutes_and_is_no_decline():
    after = recharge.after_error(1, at(10))
    assert (after.decline_streak, after.retry_at, after.paused) == (1, at(10, 15), False)


def test_example_42_available_credit_that_is_held_asks_for_a_recharge_and_does_not_suspend():
    """Balance 50, hold 50."""
    assert isinstance(scene("0").ask(), Request)
    verdict = suspension.judge(funds_nano=usd("50"), suspended=False, attempts=(), now=at(12))
    assert verdict == suspension.Unchanged()


def test_no_method_is_refused_until_a_person_acts():
    assert scene("90", method_token=None).ask() == Refused("no_method", None)


@pytest.mark.parametrize(
    "changes",
    [
        {"recharge_enabled": False},
        {"plan": "trial"},
        {"plan": "invoiced"},
        {"plan": None},
        {"closed_at": DAY},
        {"suspended_operator": True},
    ],
    ids=str,
)
def test_off_where_it_is_off(changes):
    assert scene("-5", **changes).ask() == Nothing()


@pytest.mark.parametrize(
    ("preferences", "wrong"),
    [
        ({"mode": "up_to_sum", "threshold_nano": -1, "recharge_nano": NANO}, "threshold"),
        ({"mode": "up_to_sum", "threshold_nano": 0, "recharge_nano": 0}, "recharge"),
        ({"mode": "target", "threshold_nano": 5 * NANO, "recharge_nano": 5 * NANO}, "recharge"),
        ({"mode": "fixed", "threshold_nano": 0, "recharge_nano": 10 * NANO - 1}, "recharge"),
        ({"mode": "up_to_sum", "threshold_nano": PAYMENT_NANO_MAX + 1, "recharge_nano": NANO}, "threshold"),
        ({"mode": "fixed", "threshold_nano": 0, "recharge_nano": PAYMENT_NANO_MAX + 1}, "recharge"),
    ],
)
def test_preferences_that_make_no_sense_name_the_field(preferences, wrong):
    with pytest.raises(InvalidInput) as caught:
        recharge.check_preferences(row=USD, **preferences)
    assert caught.value.field == wrong


def test_preferences_at_their_limits():
    recharge.check_preferences(mode="up_to_sum", threshold_nano=0, recharge_nano=1, row=USD)
    recharge.check_preferences(mode="target", threshold_nano=5 * NANO, recharge_nano=5 * NANO + 1, row=USD)
    recharge.check_preferences(mode="fixed", threshold_nano=0, recharge_nano=10 * NANO, row=USD)
    recharge.check_preferences(
        mode="up_to_sum", threshold_nano=PAYMENT_NANO_MAX, recharge_nano=PAYMENT_NANO_MAX, row=USD
    )


def test_one_payment_is_at_most_ten_million_however_deep_the_fall():
    assert amount(scene("-3999999999").ask()) == PAYMENT_NANO_MAX


# ---- for any input -------------------------------------------------------------------------------------------------

nanos = st.integers(-500 * NANO, 500 * NANO)
attempts_of_a_day = st.lists(
    st.builds(
        Attempt,
        st.integers(10, 200).map(lambda units: units * NANO),
        st.integers(0, 30 * 3600).map(lambda seconds: at(30) - timedelta(seconds=seconds)),
        st.sampled_from(["settled", "declined", "cancelled", "unknown", "requested", "abandoned"]),
        st.sampled_from(["auto", "auto", "manual", "scheduled"]),
    ),
    max_size=14,
)
accounts = st.builds(
    Account,
    nanos,
    st.integers(0, 200 * NANO),
    st.integers(10 * NANO, 300 * NANO),
    st.sampled_from(["up_to_sum", "fixed"]),
    level_2=st.booleans(),
)


@given(accounts, attempts_of_a_day)
def test_no_request_breaks_a_limit(account, attempts):
    now = at(30)
    decision = decide(account, attempts, now)
    if not isinstance(decision, Request):
        return
    counted = [
        each
        for each in attempts
        if each.kind == "auto"
        and each.state in ("requested", "unknown", "settled", "abandoned")
        and each.requested_at > now - timedelta(hours=24)
    ]
    assert len(counted) < 10
    assert decision.counted == len(counted)
    assert not any(each.kind == "auto" and each.state in ("requested", "unknown") for each in attempts)
    assert decision.amount_nano % (NANO // 100) == 0
    assert decision.amount_nano >= 10 * NANO
    if not account.level_2:
        assert decision.amount_nano <= recharge.left_today(account.created_at, attempts, USD, now)


@given(accounts, attempts_of_a_day)
def test_a_capped_account_may_ask_exactly_when_the_window_opens(account, attempts):
    decision = decide(account, attempts, at(30))
    if isinstance(decision, Capped):
        assert decision.next_allowed_at > at(30)
        just_before = decide(account, attempts, decision.next_allowed_at - timedelta(microseconds=1))
        assert isinstance(just_before, Capped)
        assert not isinstance(decide(account, attempts, decision.next_allowed_at), Capped)


@given(nanos, st.integers(0, 200 * NANO), st.integers(1, 300 * NANO))
def test_one_recharge_up_to_sum_ends_at_or_just_above_the_sum(available, threshold, wanted):
    decision = decide(Account(available, threshold, wanted), [], at(12))
    if available > threshold:
        assert decision == Nothing()
        return
    after = available + decision.amount_nano
    assert after >= threshold + wanted
    assert after - (threshold + wanted) < NANO // 100 or decision.amount_nano == 10 * NANO


@given(nanos, nanos, st.integers(0, 200 * NANO), st.integers(1, 300 * NANO), st.booleans())
def test_a_deeper_fall_never_asks_for_less(one, other, threshold, wanted, level_2):
    deeper, higher = sorted((one, other))
    account = Account(deeper, threshold, wanted, level_2=level_2)
    asked = decide(replace(account, available_nano=higher), [], at(12))
    if isinstance(asked, Request):
        assert amount(decide(account, [], at(12))) >= asked.amount_nano


@given(accounts, attempts_of_a_day, st.integers(10, 200))
def test_one_more_attempt_never_allows_more(account, attempts, units):
    before = decide(account, attempts, at(30))
    after = decide(account, [*attempts, Attempt(units * NANO, at(30))], at(30))
    if isinstance(after, Request):
        assert amount(before) >= after.amount_nano
        assert after.counted == before.counted + 1
