"""The room payments: requests through the log, answers on the topic of their processor."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from services.payments import consumer
from tests.support.balance_factory import Town
from tests.support.servers import Database


@pytest.fixture
async def town(database: Database) -> AsyncIterator[Town]:
    async with Town(database, rooms=[consumer.room()]) as made:
        yield made


def request(token: str, *, attempt_id: str | None = None, processor: str = "sandbox") -> dict[str, Any]:
    return {
        "kind": "charge",
        "attempt_id": attempt_id or str(uuid4()),
        "account_id": "frontdesk",
        "processor": processor,
        "method_kind": "card",
        "token": token,
        "amount": "50.01",
        "currency": "USD",
        "requested_at": "2026-10-31T23:50:00Z",
    }


def said(town: Town, processor: str = "sandbox") -> list[tuple[str, str | None]]:
    return [(each["kind"], each["failure"]) for each in town.log.read(f"payments.results.{processor}")]


@pytest.mark.parametrize(
    ("token", "answers"),
    [
        ("tok_ok", [("settled", None)]),
        ("tok_declined", [("failed", "declined")]),
        ("tok_error", [("failed", "error")]),
        ("tok_silent", []),
        ("tok_twice", [("settled", None), ("settled", None)]),
        ("tok_of_nobody", [("failed", "error")]),
    ],
)
async def test_the_outcome_follows_from_the_token(town: Town, token: str, answers: list[Any]) -> None:
    town.send("payments.requests", "frontdesk", request(token))
    await town.settle()
    assert said(town) == answers


async def test_the_answer_repeats_attempt_amount_and_currency(town: Town) -> None:
    asked = request("tok_ok")
    town.send("payments.requests", "frontdesk", asked)
    await town.settle()
    (answer,) = town.log.read("payments.results.sandbox")
    assert (answer["attempt_id"], answer["amount"], answer["currency"]) == (asked["attempt_id"], "50.01", "USD")
    assert answer["processor"] == "sandbox"


async def test_twice_is_the_same_result_two_times(town: Town) -> None:
    town.send("payments.requests", "frontdesk", request("tok_twice"))
    await town.settle()
    first, second = town.log.read("payments.results.sandbox")
    assert first["result_id"] == second["result_id"]


async def test_a_repeated_request_never_charges_twice(town: Town) -> None:
    attempt_id = str(uuid4())
    for _ in range(2):
        town.send("payments.requests", "frontdesk", request("tok_ok", attempt_id=attempt_id))
    await town.settle()
    town.send("payments.requests", "frontdesk", request("tok_ok", attempt_id=attempt_id))
    await town.settle()
    assert said(town) == [("settled", None)]


async def test_late_answers_after_five_seconds_of_the_one_clock(town: Town) -> None:
    town.send("payments.requests", "frontdesk", request("tok_late_5s"))
    await town.settle()
    assert said(town) == []
    await town.settle(after=timedelta(seconds=5))
    assert said(town) == [("settled", None)]


async def test_a_processor_without_adapter_fails_with_a_clear_reason(town: Town) -> None:
    town.send("payments.requests", "frontdesk", request("tok_ok", processor="acme"))
    await town.settle()
    (answer,) = town.log.read("payments.results.acme")
    assert (answer["kind"], answer["failure"]) == ("failed", "error")
    assert "acme" in answer["reason"]


async def test_result_ids_of_two_attempts_differ(town: Town) -> None:
    for _ in range(2):
        town.send("payments.requests", "frontdesk", request("tok_ok"))
    await town.settle()
    ids = {each["result_id"] for each in town.log.read("payments.results.sandbox")}
    assert len(ids) == 2
