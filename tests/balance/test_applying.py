"""Which invoices a payment pays, whose shares of them, and when they are overdue: the rules."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.balance import overdue
from services.balance.applying import OpenInvoice, apply, spread
from services.kernel.period import zone

CENT = 10**7
MICROSECOND = timedelta(microseconds=1)

invoices = st.lists(st.tuples(st.integers(0, 400), st.integers(-50, 500)), max_size=8).map(
    lambda drawn: [
        OpenInvoice(datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=day), f"TB-{n}", UUID(int=n), cents * CENT)
        for n, (day, cents) in enumerate(drawn)
    ]
)


@given(invoices, st.integers(1, 2_000))
def test_a_payment_is_applied_whole_to_what_is_due_first_and_the_rest_is_left(
    owed: list[OpenInvoice], cents: int
) -> None:
    amount = cents * CENT
    applied = apply(amount, owed)
    assert sum(nano for _, nano in applied.pays) + applied.left_nano == amount
    open_of = {each.invoice_id: each.open_nano for each in owed}
    assert all(0 < nano <= open_of[invoice_id] for invoice_id, nano in applied.pays)
    paid = dict(applied.pays)
    in_order = sorted(each for each in owed if each.open_nano > 0)
    whole = [each for each in in_order if paid.get(each.invoice_id) == each.open_nano]
    assert whole == in_order[: len(whole)]  # nothing is paid while something that is due before it is open
    assert applied.left_nano == 0 or len(whole) == len(in_order)


@given(invoices, st.integers(1, 2_000), st.integers(0, 7))
def test_a_named_invoice_is_paid_and_no_other(owed: list[OpenInvoice], cents: int, number: int) -> None:
    named = UUID(int=number)
    applied = apply(cents * CENT, owed, named)
    assert {invoice_id for invoice_id, _ in applied.pays} <= {named}
    assert sum(nano for _, nano in applied.pays) + applied.left_nano == cents * CENT


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 10_000), min_size=1), st.data())
def test_payments_are_shared_to_the_last_cent_and_nobody_pays_more_than_it_owes(
    cents: dict[str, int], data: st.DataObject
) -> None:
    owed = {account_id: each * CENT for account_id, each in cents.items()}
    for last in (False, False, False, True):
        whole = sum(owed.values()) // CENT
        if not whole:
            break
        paid = (whole if last else data.draw(st.integers(1, whole))) * CENT
        parts = spread(paid, owed, CENT)
        assert sum(parts.values()) == paid
        assert all(0 < nano <= owed[account_id] and nano % CENT == 0 for account_id, nano in parts.items())
        owed = {account_id: nano - parts.get(account_id, 0) for account_id, nano in owed.items()}
        assert not last or not any(owed.values())


@given(st.lists(st.integers(-500, 1_000), min_size=2, max_size=6), st.data())
def test_a_share_below_zero_is_given_up_as_far_as_the_others_are_paid(cents: list[int], data: st.DataObject) -> None:
    owed = {str(number): each * CENT for number, each in enumerate(cents)}
    whole = sum(cents)
    if whole <= 0:
        return
    paid = data.draw(st.integers(1, whole)) * CENT
    parts = spread(paid, owed, CENT)
    assert sum(parts.values()) == paid
    for account_id, nano in parts.items():
        assert min(0, owed[account_id]) <= nano <= max(0, owed[account_id])


def test_more_than_is_open_is_no_payment() -> None:
    with pytest.raises(ValueError, match="cannot be paid"):
        spread(2, {"a": 1}, 1)


@pytest.mark.parametrize(
    ("zone_name", "due_on", "overdue_at"),
    [
        ("UTC", datetime(2026, 11, 17, tzinfo=UTC), datetime(2026, 11, 18, tzinfo=UTC)),
        ("UTC", datetime(2026, 11, 17, 23, 59, 59, tzinfo=UTC), datetime(2026, 11, 18, tzinfo=UTC)),
        # the due date is that of the group's calendar: still the 16th in Detroit
        ("America/Detroit", datetime(2026, 11, 17, 3, tzinfo=UTC), datetime(2026, 11, 17, 5, tzinfo=UTC)),
        ("Pacific/Auckland", datetime(2026, 11, 17, 12, tzinfo=UTC), datetime(2026, 11, 18, 11, tzinfo=UTC)),
        # clocks go forward in the night after the 28th of March, back in the night before the 26th of October
        ("Europe/Paris", datetime(2026, 3, 28, 12, tzinfo=UTC), datetime(2026, 3, 28, 23, tzinfo=UTC)),
        ("Europe/Paris", datetime(2026, 3, 29, 12, tzinfo=UTC), datetime(2026, 3, 29, 22, tzinfo=UTC)),
        ("Europe/Paris", datetime(2026, 10, 25, 12, tzinfo=UTC), datetime(2026, 10, 25, 23, tzinfo=UTC)),
        # a day that begins at 01:00, for clocks are put forward at its midnight
        ("Africa/Cairo", datetime(2026, 4, 23, 12, tzinfo=UTC), datetime(2026, 4, 23, 22, tzinfo=UTC)),
    ],
)
def test_the_day_after_the_due_date_begins_at_midnight_of_the_zone(
    zone_name: str, due_on: datetime, overdue_at: datetime
) -> None:
    assert overdue.begins(due_on, zone_name) == overdue_at
    assert not overdue.stage(due_on, zone_name, overdue_at - MICROSECOND).is_overdue
    assert overdue.stage(due_on, zone_name, overdue_at - MICROSECOND).next_at == overdue_at
    assert overdue.stage(due_on, zone_name, overdue_at).is_overdue


@given(
    st.sampled_from(["UTC", "Europe/Paris", "America/Detroit", "Africa/Cairo", "Australia/Lord_Howe"]),
    st.integers(0, 5 * 10**14).map(lambda us: datetime(2020, 1, 1, tzinfo=UTC) + us * MICROSECOND),
    st.integers(0, 60),
)
def test_each_step_is_found_at_its_instant_and_not_before(zone_name: str, due_on: datetime, days: int) -> None:
    seen = []
    now = due_on
    while (at := overdue.stage(due_on, zone_name, now, days).next_at) is not None:
        assert at > now
        before, after = (overdue.stage(due_on, zone_name, at + step, days) for step in (-MICROSECOND, timedelta(0)))
        assert (before.notice, before.suspends) != (after.notice, after.suspends)
        local = at.astimezone(zone(zone_name))
        passed = (local.date() - due_on.astimezone(zone(zone_name)).date()).days - 1
        seen.append(passed)
        now = at
    assert seen == sorted({*overdue.NOTICE_DAYS, days})
