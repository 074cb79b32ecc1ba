"""When a delivery is tried again, given up, or its endpoint disabled; what is signed and sent."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError

from contracts.balance import BalanceEvent
from contracts.topics import BALANCE_EVENTS, INVOICES_EVENTS
from services.kernel.errors import InvalidInput
from services.webhooks.delivering import (
    FAILING_MAX,
    JITTER,
    RETRY_AFTER_MAX,
    WAITS,
    Again,
    Answer,
    Delivered,
    Disabled,
    GivenUp,
    decide,
    retry_after,
    wait,
)
from services.webhooks.messages import checked_types, event, event_of, headers, secret_of, types

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
SECRET = secret_of(bytes(range(32)))

failures = st.one_of(
    st.integers(100, 599)
    .filter(lambda code: not 200 <= code < 300 and code != 410)
    .map(lambda code: Answer(status=code)),
    st.just(Answer(error="ConnectError: refused")),
)
chances = st.floats(0, 1, exclude_max=True)


@given(st.integers(200, 299), st.integers(1, 10))
def test_every_2xx_is_a_success_at_any_attempt(code: int, tries: int) -> None:
    assert decide(Answer(status=code), tries, NOON - timedelta(days=30), NOON, 0.0) == Delivered()


@given(failures, st.integers(1, len(WAITS)), chances)
def test_a_failure_is_tried_again_after_the_wait_of_its_attempt_and_a_little_more(
    answer: Answer, tries: int, chance: float
) -> None:
    decision = decide(answer, tries, NOON, NOON, chance)
    assert isinstance(decision, Again)
    assert WAITS[tries - 1] <= decision.at - NOON <= WAITS[tries - 1] * (1 + JITTER)


def test_waits_grow_and_a_delivery_is_tried_for_about_three_days() -> None:
    assert all(earlier * (1 + JITTER) < later for earlier, later in pairwise(WAITS[:4]))
    assert all(earlier < later for earlier, later in pairwise(WAITS))
    assert timedelta(days=3) < sum(WAITS, timedelta()) < timedelta(days=4) < FAILING_MAX


@given(failures, chances)
def test_after_the_last_wait_it_is_given_up(answer: Answer, chance: float) -> None:
    assert decide(answer, len(WAITS) + 1, NOON - timedelta(days=4), NOON, chance) == GivenUp()


@given(failures, st.timedeltas(FAILING_MAX, timedelta(days=900)))
def test_an_endpoint_that_took_nothing_for_days_is_disabled_when_a_delivery_is_given_up(
    answer: Answer, failing: timedelta
) -> None:
    assert decide(answer, len(WAITS) + 1, NOON - failing, NOON, 0.0) == Disabled("failing")
    assert isinstance(decide(answer, 1, NOON - failing, NOON, 0.0), Again)


@pytest.mark.parametrize("tries", range(1, len(WAITS) + 2))
def test_gone_disables_at_once(tries: int) -> None:
    assert decide(Answer(status=410), tries, None, NOON, 0.0) == Disabled("gone")


@given(st.integers(1, len(WAITS)), chances, st.timedeltas(timedelta(0), timedelta(days=400)))
def test_retry_after_makes_a_wait_longer_never_shorter_and_never_longer_than_a_day(
    tries: int, chance: float, asked: timedelta
) -> None:
    waited = wait(tries, chance, asked)
    assert waited == max(wait(tries, chance), min(asked, RETRY_AFTER_MAX))


@given(st.text())
def test_any_retry_after_header_is_read_or_passed_over(text: str) -> None:
    found = retry_after(text, NOON)
    assert found is None or timedelta(0) <= found <= RETRY_AFTER_MAX


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("99999999999999999999", 86_400),
        ("Sun, 01 Nov 2026 12:00:30 GMT", 30),
        ("Sun, 01 Nov 2020 12:00:30 GMT", 0),
        ("Fri, 01 Jan 2100 00:00:00 GMT", 86_400),
        ("Fri, 01 Jan 99999999999999999999 00:00:00 GMT", None),
        ("Sun, 01 Nov 2026 12:00:30 +99999999999999999999", None),
        ("soon", None),
        ("-5", None),
        ("", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str, seconds: int | None) -> None:
    assert retry_after(text, NOON) == (None if seconds is None else timedelta(seconds=seconds))


# ---- what is sent --------------------------------------------------------------------------------------------------


@given(st.dictionaries(st.text(), st.text()), st.binary(min_size=24, max_size=64), st.binary(min_size=24, max_size=64))
def test_a_receiver_verifies_by_either_secret_while_both_are_valid(
    data: dict[str, str], new: bytes, old: bytes
) -> None:
    made = event("1", "webhook.test", "2026-11-01T00:00:00Z", data, organization_id="lakeside")
    sent = headers(made.event_id, made.body, (secret_of(new), secret_of(old)), datetime.now(UTC))
    for secret in (new, old):
        assert Webhook(secret_of(secret)).verify(made.body, sent)["data"] == data
    other = Webhook(secret_of(bytes(24) + b"x"))
    with pytest.raises(WebhookVerificationError):
        other.verify(made.body, sent)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret_of(new)).verify(made.body + " ", sent)


def test_a_signature_of_long_ago_is_refused_by_the_receiver() -> None:
    made = event("1", "webhook.test", "2026-11-01T00:00:00Z", {}, organization_id="lakeside")
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(made.body, headers(made.event_id, made.body, (SECRET,), NOON - timedelta(days=900)))


def told(**fields: object) -> dict[str, Any]:
    data = BalanceEvent.model_validate_json(json.dumps(fields))
    return {"id": "m1", "time": "2026-10-31T23:50:00Z", "data": data}


def test_an_event_is_its_public_record_with_amounts_as_strings_and_the_same_id_always() -> None:
    record = told(
        account_id="sales",
        version=7,
        kind="recharge_settled",
        at="2026-10-31T23:50:00Z",
        amount="50.01",
        currency="USD",
    )
    made = event_of(BALANCE_EVENTS.name, record)
    assert made == event_of(BALANCE_EVENTS.name, record)
    assert made.event_id != event_of(BALANCE_EVENTS.name, record | {"id": "m2"}).event_id
    assert "." not in made.event_id  # the point stands between id, timestamp and body where they are signed
    sent = json.loads(made.body)
    data = sent.pop("data")
    assert sent == {"type": "balance.recharge_settled", "timestamp": "2026-10-31T23:50:00Z"}
    assert data == {name: value for name, value in record["data"].data().items() if value is not None}
    assert data["amount"] == "50.01"


def test_every_type_has_a_name_of_its_own_and_one_that_there_is_not_is_refused_with_all_there_are() -> None:
    assert len(set(types())) == len(types())
    assert {
        "balance.suspended",
        "group.overdue_notice",
        "invoice.closed",
        "invoice.paid",
        "webhook.endpoint_disabled",
    } <= set(types())
    assert checked_types(["invoice.closed", "balance.restored", "invoice.closed"]) == [
        "balance.restored",
        "invoice.closed",
    ]
    with pytest.raises(InvalidInput, match=r"type: there is no type 'invoice\.opened'.*balance\.restored"):
        checked_types(["invoice.opened"])
    assert INVOICES_EVENTS.name == "invoices.events"
