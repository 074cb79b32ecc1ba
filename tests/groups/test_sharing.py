"""The rules of the registry by example."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.groups import BillingEntity, BillingInformation
from services.groups import sharing
from services.groups.objects import Account, Organization, PayerGroup, SharingApproval
from services.groups.timeline import Span, from_then_on
from services.kernel.errors import InvalidInput, NotPermitted, Refused
from services.kernel.money import NANO, WALLET_NANO_MAX
from services.kernel.period import is_boundary

NOW = datetime(2026, 11, 5, 12, tzinfo=UTC)
STRICT = Organization("lakeside", "Lakeside", "strict", None, NOW)
OPEN = replace(STRICT, consolidation="open")
APPROVAL = SharingApproval(NOW, "Olga", 120_000 * NANO, 100_000 * NANO)
GROUP = PayerGroup(
    "g1", 1, "lakeside", None, "Group", BillingEntity(
        billing_entity_id="seller", name="Seller", address="", vat_id=None, number_prefix=""
    ), BillingInformation(company="Lakeside"), "UTC", "USD", "0", None, None, NOW,
)  # fmt: skip


def account(name: str, plan: str = "invoiced", *groups: Span, **changes: object) -> Account:
    made = Account(
        name, 1, 1, "lakeside", name, "USD", NOW, NOW, False, 0, (Span(NOW, None, plan),), groups,
    )  # fmt: skip
    return replace(made, **changes)


def member(name: str, plan: str = "invoiced") -> Account:
    return account(name, plan, Span(NOW, None, "g1"))


def join(who: Account, *members: Account, organization=STRICT, group=GROUP, start=NOW) -> None:
    sharing.check_joining(organization, group, who, start, members, field="group_id")


def refusal(call) -> tuple[str, str | None]:
    with pytest.raises((Refused, InvalidInput, NotPermitted)) as raised:
        call()
    assert raised.value.message
    return raised.value.code, raised.value.field


# ---- who may share


@pytest.mark.parametrize("plan", ["payg", "invoiced"])
def test_anybody_may_be_alone_in_a_group(plan):
    join(account("a", plan))


def test_in_strict_a_prepaid_account_is_alone():
    approved = replace(GROUP, sharing=APPROVAL)
    assert refusal(lambda: join(account("a", "payg"), member("b"), group=approved)) == ("payg_alone", "group_id")
    assert refusal(lambda: join(account("a"), member("b", "payg"), group=approved)) == ("payg_alone", "group_id")


def test_in_strict_invoiced_accounts_share_only_after_an_approval():
    assert refusal(lambda: join(account("a"), member("b"))) == ("sharing_not_approved", "group_id")
    join(account("a"), member("b"), group=replace(GROUP, sharing=APPROVAL))


@pytest.mark.parametrize("plan", ["payg", "invoiced"])
def test_in_open_any_accounts_share(plan):
    join(account("a", plan), member("b", "payg"), organization=OPEN)


def test_who_has_left_by_then_does_not_count_and_who_is_to_come_does():
    later = NOW + timedelta(days=30)
    left = account("b", "payg", Span(NOW, later, "g1"), Span(later, None, "g2"))
    coming = account("b", "payg", Span(NOW, later, "g2"), Span(later, None, "g1"))
    join(account("a", "payg"), left, start=later)
    assert refusal(lambda: join(account("a", "payg"), left)) == ("payg_alone", "group_id")
    assert refusal(lambda: join(account("a", "payg"), coming)) == ("payg_alone", "group_id")


def test_plans_from_before_an_account_is_in_the_group_do_not_count():
    approved, later = replace(GROUP, sharing=APPROVAL), NOW + timedelta(days=30)
    coming = account("b", "payg", Span(NOW, later, "g2"), Span(later, None, "g1"))
    coming = replace(coming, plans=from_then_on(coming.plans, NOW + timedelta(days=1), "invoiced"))
    join(account("a"), coming, group=approved)


def _timeline(values: list[str], day: timedelta = timedelta(days=1)) -> tuple[Span, ...]:
    """One value for each day from now on, the last one for ever."""
    made: tuple[Span, ...] = ()
    for number, value in enumerate(values):
        made = from_then_on(made, NOW + number * day, value)
    return made


DAYS = 5
PLANS = st.lists(st.sampled_from(["payg", "invoiced", "invoiced"]), min_size=DAYS, max_size=DAYS)
STAYS = st.lists(st.sampled_from(["g1", "g2"]), min_size=DAYS, max_size=DAYS)


@given(
    plans=PLANS, others=st.lists(st.tuples(PLANS, STAYS), max_size=3), first=st.integers(0, DAYS - 1),
    days=st.none() | st.integers(1, DAYS - 1), approved=st.booleans(),
)  # fmt: skip
def test_in_strict_a_joining_is_refused_when_and_only_when_some_day_would_be_against_the_rule(
    plans: list[str], others: list[tuple[list[str], list[str]]], first: int, days: int | None, approved: bool
) -> None:
    """Judged day by day: who shares a day is invoiced on it, in a group that is approved."""
    until = DAYS if days is None else min(DAYS, first + days)
    beside = [(day, theirs[day]) for day in range(first, until) for theirs, stays in others if stays[day] == "g1"]
    is_wrong = any("payg" in (plans[day], plan) for day, plan in beside) or (bool(beside) and not approved)
    members = [
        account(f"other{number}", "", *_timeline(stays), plans=_timeline(theirs))
        for number, (theirs, stays) in enumerate(others)
    ]
    group = replace(GROUP, sharing=APPROVAL if approved else None)
    try:
        sharing.check_joining(
            STRICT, group, account("a", "", plans=_timeline(plans)), NOW + timedelta(days=first), members, field="group_id",
            end=None if days is None else NOW + timedelta(days=until),
        )  # fmt: skip
    except Refused:
        assert is_wrong
    else:
        assert not is_wrong


@pytest.mark.parametrize("organization", [STRICT, OPEN])
def test_all_accounts_of_a_group_share_its_currency(organization):
    euro = replace(GROUP, currency="EUR")
    assert refusal(lambda: join(account("a"), organization=organization, group=euro))[0] == "currency_differs"


@pytest.mark.parametrize("organization", [STRICT, OPEN])
def test_nothing_crosses_an_organization(organization):
    foreign = replace(GROUP, organization_id="northwind")
    assert refusal(lambda: join(account("a"), organization=organization, group=foreign))[0] == "not_found"


def test_a_group_of_one_account_takes_no_other():
    own = replace(GROUP, account_id="b")
    assert refusal(lambda: join(account("a"), organization=OPEN, group=own))[0] == "group_of_one_account"
    join(account("b"), group=own)


# ---- approval


def approve(role="operator", spend=120_000, threshold=100_000, passed=True, group=GROUP):
    return sharing.approval(
        role,
        "Olga",
        NOW,
        group,
        yearly_spend_nano=spend * NANO,
        threshold_nano=threshold * NANO,
        credit_check_passed=passed,
    )


def test_an_approval_records_who_when_and_its_figures():
    assert approve() == APPROVAL
    assert approve(spend=100_000).yearly_spend_nano == 100_000 * NANO


def test_an_approval_needs_an_operator_the_spend_and_the_credit_check():
    assert refusal(lambda: approve(role="owner")) == ("not_permitted", "role")
    assert refusal(lambda: approve(role="finance")) == ("not_permitted", "role")
    assert refusal(lambda: approve(spend=99_999)) == ("spend_below_threshold", "yearly_spend")
    assert refusal(lambda: approve(passed=False)) == ("credit_check_not_passed", "credit_check_passed")
    assert refusal(lambda: approve(group=replace(GROUP, account_id="a")))[0] == "group_of_one_account"


# ---- which group a new account gets

PRIMARY = {"strict": replace(STRICT, primary_group_id="p"), "open": replace(OPEN, primary_group_id="p")}
OWN, NONE, JOINS = sharing.OwnGroup(), sharing.NoGroup(), sharing.Joins


@pytest.mark.parametrize(
    ("plan", "organization", "expected"),
    [
        ("trial", STRICT, NONE),
        ("trial", PRIMARY["open"], NONE),
        ("payg", STRICT, OWN),
        ("payg", OPEN, OWN),
        ("payg", PRIMARY["strict"], OWN),
        ("payg", PRIMARY["open"], JOINS("p")),
        ("invoiced", STRICT, OWN),
        ("invoiced", OPEN, OWN),
        ("invoiced", PRIMARY["strict"], JOINS("p")),
        ("invoiced", PRIMARY["open"], JOINS("p")),
    ],
)
def test_a_new_account_joins_the_primary_group_or_gets_its_own(plan, organization, expected):
    assert sharing.destination(plan, organization, None) == expected
    if plan == "trial":
        assert refusal(lambda: sharing.destination(plan, organization, "g")) == ("trial_has_no_group", "group_id")
    else:
        assert sharing.destination(plan, organization, "g") == JOINS("g")


def test_only_invoiced_accounts_have_a_credit_limit_within_what_a_wallet_holds():
    assert sharing.credit_limit("invoiced", 100 * NANO) == 100 * NANO
    assert sharing.credit_limit("trial", 0) == 0
    for plan in ("trial", "payg"):
        assert refusal(lambda plan=plan: sharing.credit_limit(plan, 1)) == ("credit_limit_not_allowed", "credit_limit")
    assert refusal(lambda: sharing.credit_limit("invoiced", WALLET_NANO_MAX + 1))[0] == "credit_limit_too_high"


# ---- when an account opens

OCTOBER, NOVEMBER = datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC)
PARIS_NOVEMBER = datetime(2026, 10, 31, 23, tzinfo=UTC)


def test_an_account_opens_now_or_earlier_within_what_is_not_cut():
    assert sharing.opening(None, NOW, "UTC", [NOVEMBER]) == NOW
    assert sharing.opening(NOW, NOW, "UTC", []) == NOW
    assert sharing.opening(OCTOBER, NOW, "UTC", []) == OCTOBER
    assert sharing.opening(NOVEMBER, NOW, "UTC", [OCTOBER, NOVEMBER]) == NOVEMBER


def test_an_opening_before_the_oldest_uncut_period_is_refused_and_the_instant_named():
    with pytest.raises(Refused, match="2026-11-01T00:00:00Z") as raised:
        sharing.opening(NOVEMBER - timedelta(seconds=1), NOW, "UTC", [NOVEMBER, OCTOBER])
    assert (raised.value.code, raised.value.field) == ("opened_too_early", "opened_at")


def test_cuts_of_other_zones_do_not_bind():
    assert sharing.opening(OCTOBER, NOW, "UTC", [PARIS_NOVEMBER]) == OCTOBER
    code = refusal(lambda: sharing.opening(OCTOBER, NOW, "Europe/Paris", [PARIS_NOVEMBER]))[0]
    assert code == "opened_too_early"


def test_an_opening_in_the_future_or_in_another_age_is_refused():
    assert refusal(lambda: sharing.opening(NOW + timedelta(seconds=1), NOW, "UTC", []))[0] == "opened_in_future"
    assert refusal(lambda: sharing.opening(datetime(1, 1, 1, tzinfo=UTC), NOW, "UTC", []))[0] == "opened_too_early"


# ---- when a move takes effect


def test_a_move_takes_effect_at_the_start_of_a_coming_period():
    assert sharing.move_start("2026-12", NOW, "UTC", "UTC") == datetime(2026, 12, 1, tzinfo=UTC)
    assert sharing.move_start("2027-02", NOW, "UTC", "UTC") == datetime(2027, 2, 1, tzinfo=UTC)
    paris = sharing.move_start("2026-12", NOW, "Europe/Paris", "Europe/Paris")
    assert paris == datetime(2026, 11, 30, 23, tzinfo=UTC)


@pytest.mark.parametrize("period", ["2026-11", "2026-10", "0000-01", "2028-12", "9999-12"])
def test_any_other_move_is_refused_with_the_next_possible_period(period):
    with pytest.raises(Refused, match=r"start of a coming period .* next possible one is 2026-12") as raised:
        sharing.move_start(period, NOW, "UTC", "UTC")
    assert (raised.value.code, raised.value.field) == ("not_a_coming_period", "period")


def test_a_period_that_starts_this_very_instant_is_not_coming():
    assert refusal(lambda: sharing.move_start("2026-12", datetime(2026, 12, 1, tzinfo=UTC), "UTC", "UTC"))[0]
    before = datetime(2026, 12, 1, tzinfo=UTC) - timedelta(microseconds=1)
    assert sharing.move_start("2026-12", before, "UTC", "UTC")


def test_both_groups_need_the_same_start():
    summer = datetime(2026, 6, 10, tzinfo=UTC)
    with pytest.raises(Refused, match="2026-11"):  # London is at UTC in winter only
        sharing.move_start("2026-08", summer, "Europe/London", "UTC")
    assert sharing.move_start("2026-11", summer, "Europe/London", "UTC") == NOVEMBER
    assert refusal(lambda: sharing.move_start("2026-12", NOW, "Europe/Paris", "UTC")) == ("zones_differ", "period")


@given(
    now=st.integers(0, 20 * 365 * 86_400).map(
        lambda seconds: datetime(2020, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    ),
    period=st.from_regex(r"20[1-5][0-9]-(0[1-9]|1[0-2])", fullmatch=True),
    zones=st.tuples(
        *[st.sampled_from(["UTC", "Europe/London", "Europe/Paris", "America/Detroit", "Asia/Kolkata"])] * 2
    ),
)
def test_a_move_never_touches_what_has_begun(now, period, zones):
    try:
        start = sharing.move_start(period, now, *zones)
    except Refused:
        return
    assert start > now
    assert is_boundary(start, zones[0])
    assert is_boundary(start, zones[1])
    moved = from_then_on((Span(now - timedelta(days=9), None, "old"),), start, "new")
    assert moved[0].value == "old"
    assert moved[0].end == start
