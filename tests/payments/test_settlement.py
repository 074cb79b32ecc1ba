"""The sandbox answers by its token."""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from services.payments import settlement
from services.payments.port import Order, Refund
from services.payments.settlement import SANDBOX, Sandbox


def order(token):
    return Order(uuid4(), "frontdesk", "50.01", "USD", datetime(2026, 10, 31, tzinfo=UTC), token, "card")


def said(heard):
    return [(each.kind, each.failure, each.delay / timedelta(seconds=1)) for each in heard.answers]


@pytest.mark.parametrize(
    ("token", "answers"),
    [
        ("tok_ok", [("settled", None, 0)]),
        ("tok_declined", [("failed", "declined", 0)]),
        ("tok_error", [("failed", "error", 0)]),
        ("tok_silent", []),
        ("tok_twice", [("settled", None, 0), ("settled", None, 0)]),
        ("tok_late_5s", [("settled", None, 5)]),
        ("tok_declined_settled", [("failed", "declined", 0), ("settled", None, 5)]),
        ("tok_refund_first", [("refunded", None, 0), ("settled", None, 5)]),
        ("tok_dispute_lost", [("settled", None, 0), ("disputed", None, 5), ("dispute_lost", None, 10)]),
        ("tok_other", [("failed", "error", 0)]),
    ],
)
async def test_outcomes_follow_from_the_token(token, answers):
    assert said(await Sandbox().charge(order(token))) == answers


@pytest.mark.parametrize(
    ("token", "found", "given_up"),
    [
        ("tok_ok", ["settled"], ["settled"]),
        ("tok_silent", [], ["cancelled"]),
        ("tok_silent_settled", ["settled"], ["settled"]),
        ("tok_silent_declined", ["failed"], ["failed"]),
        ("tok_never_seen", ["never_seen"], ["cancelled"]),
        (None, ["never_seen"], ["cancelled"]),
    ],
)
async def test_what_an_inquiry_finds_and_a_cancel_is_told(token, found, given_up):
    assert [each.kind for each in (await Sandbox().inquire(order(token), 1)).answers] == found
    assert [each.kind for each in (await Sandbox().cancel(order(token))).answers] == given_up


async def test_twice_is_the_same_result_and_an_inquiry_repeats_it():
    asked = order("tok_twice")
    first, second = (await Sandbox().charge(asked)).answers
    (found,) = (await Sandbox().inquire(asked, 1)).answers
    assert first.result_id == second.result_id == found.result_id
    assert first.result_id != (await Sandbox().charge(order("tok_twice"))).answers[0].result_id


@pytest.mark.parametrize(("token", "kind"), [("tok_ok", "refunded"), ("tok_refund_fails", "refund_failed")])
async def test_a_refund_is_answered_with_its_own_id_and_amount(token, kind):
    refund = Refund(UUID(int=7), "20")
    (answer,) = (await Sandbox().refund(order(token), refund)).answers
    assert (answer.kind, answer.refund_id, answer.amount) == (kind, UUID(int=7), "20")


async def test_what_is_said_of_one_dispute_has_one_id():
    asked = order("tok_dispute_won")
    _, opened, won = (await Sandbox().charge(asked)).answers
    assert opened.dispute_id == won.dispute_id
    assert str(asked.attempt_id) in opened.dispute_id


async def test_no_token_is_repeated():
    (answer,) = (await Sandbox().charge(order("tok_other_4242"))).answers
    assert "4242" not in answer.reason


def test_the_table_of_the_docstring_names_every_token():
    rows = [line for line in settlement.__doc__.splitlines() if line.startswith("| `tok_")]
    assert [row.split("`")[1] for row in rows] == list(SANDBOX)
