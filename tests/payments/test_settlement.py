"""The sandbox answers by its token."""

from datetime import timedelta

import pytest

from services.payments.settlement import planned_answers


@pytest.mark.parametrize(
    ("token", "answers"),
    [
        ("tok_ok", [("settled", None, 0)]),
        ("tok_declined", [("failed", "declined", 0)]),
        ("tok_error", [("failed", "error", 0)]),
        ("tok_silent", []),
        ("tok_twice", [("settled", None, 0), ("settled", None, 0)]),
        ("tok_late_5s", [("settled", None, 5)]),
        ("tok_other", [("failed", "error", 0)]),
    ],
)
def test_outcomes_follow_from_the_token(token, answers):
    planned = planned_answers("sandbox", token)
    assert [(each.kind, each.failure, each.delay / timedelta(seconds=1)) for each in planned] == answers


def test_twice_is_the_same_result():
    first, second = planned_answers("sandbox", "tok_twice")
    assert first.result_id == second.result_id


@pytest.mark.parametrize("token", ["4242424242424242", "tok_4242-4242-4242-4242", "tok_other_4242"])
def test_a_card_number_is_refused_and_no_token_is_repeated(token):
    [answer] = planned_answers("sandbox", token)
    assert (answer.kind, answer.failure) == ("failed", "error")
    assert ("card number" in answer.reason) == (token != "tok_other_4242")
    assert "4242" not in answer.reason


def test_an_unknown_processor_fails_with_the_reason():
    [answer] = planned_answers("acme", "tok_ok")
    assert (answer.kind, answer.failure) == ("failed", "error")
    assert "acme" in answer.reason
