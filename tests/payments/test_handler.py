"""The room payments: requests through the log, answers on the topic of their processor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from services.kernel.errors import Unavailable
from services.kernel.period import instant_text
from services.payments import consumer
from services.payments.port import Answer, Hear, Heard, Order, Processor, Refund
from tests.support.balance_factory import Town
from tests.support.servers import Database


@pytest.fixture
async def town(database: Database) -> AsyncIterator[Town]:
    async with Town(database, rooms=[consumer.room()]) as made:
        yield made


def request(
    token: str, *, attempt_id: str | None = None, processor: str = "sandbox", kind: str = "card"
) -> dict[str, Any]:
    """As asked for in this moment."""
    return {
        "kind": "charge",
        "attempt_id": attempt_id or str(uuid4()),
        "account_id": "frontdesk",
        "processor": processor,
        "method_kind": kind,
        "token": token,
        "amount": "50.01",
        "currency": "USD",
        "requested_at": instant_text(datetime.now(UTC)),
    }


def about(asked: dict[str, Any], kind: str, **more: Any) -> dict[str, Any]:
    """Another request about the attempt of a charge."""
    kept = {
        name: asked[name] for name in ("attempt_id", "account_id", "processor", "amount", "currency", "requested_at")
    }
    return kept | {"kind": kind} | more


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


@pytest.mark.parametrize("token", ["4242424242424242", "tok_4242-4242-4242-4242"])
async def test_a_card_number_reaches_no_processor_and_is_not_repeated(town: Town, token: str) -> None:
    town.send("payments.requests", "frontdesk", request(token))
    await town.settle()
    (answer,) = town.log.read("payments.results.sandbox")
    assert (answer["kind"], answer["failure"]) == ("failed", "error")
    assert "card number" in answer["reason"]
    assert "4242" not in answer["reason"]


async def test_a_kind_of_method_that_the_processor_cannot_charge_fails_and_is_named(town: Town) -> None:
    town.send("payments.requests", "frontdesk", request("tok_ok", kind="transfer"))
    await town.settle()
    (answer,) = town.log.read("payments.results.sandbox")
    assert (answer["kind"], answer["reason"]) == (
        "failed",
        "sandbox cannot charge a transfer; it can charge card, paypal, bank_debit",
    )


# ---- inquiries, cancels, refunds -----------------------------------------------------------------------------------


async def test_an_inquiry_finds_what_was_silent_and_each_is_asked_once(town: Town) -> None:
    asked = request("tok_silent_settled")
    town.send("payments.requests", "frontdesk", asked)
    await town.settle()
    assert said(town) == []
    for number in (1, 1, 2):
        town.send("payments.requests", "frontdesk", about(asked, "inquire", number=number))
    await town.settle()
    assert said(town) == [("settled", None)] * 2
    assert len({each["result_id"] for each in town.log.read("payments.results.sandbox")}) == 1


async def test_an_inquiry_about_an_attempt_that_was_never_asked_for_is_never_seen(town: Town) -> None:
    town.send("payments.requests", "frontdesk", about(request("tok_ok"), "inquire", number=1))
    await town.settle()
    assert said(town) == [("never_seen", None)]


async def test_a_cancel_is_confirmed_or_told_that_it_settled(town: Town) -> None:
    for token in ("tok_silent", "tok_silent_settled"):
        asked = request(token)
        town.send("payments.requests", "frontdesk", asked)
        town.send("payments.requests", "frontdesk", about(asked, "cancel"))
    await town.settle()
    assert sorted(said(town)) == [("cancelled", None), ("settled", None)]


async def test_a_refund_is_asked_for_once_by_its_own_id(town: Town) -> None:
    asked = request("tok_ok")
    town.send("payments.requests", "frontdesk", asked)
    refund = about(asked, "refund", refund_id=str(uuid4()), amount="20")
    for _ in range(2):
        town.send("payments.requests", "frontdesk", refund)
    await town.settle()
    settled, refunded = sorted(town.log.read("payments.results.sandbox"), key=lambda each: each["kind"], reverse=True)
    assert settled["amount"] == "50.01"
    assert (refunded["kind"], refunded["amount"], refunded["refund_id"]) == ("refunded", "20", refund["refund_id"])


# ---- processors over a network -------------------------------------------------------------------------------------


@dataclass
class Remote:
    """A processor behind a bad network: what it is asked, what it charged, and what goes wrong next."""

    failures: list[BaseException] = field(default_factory=list)
    asked: list[tuple[str, UUID]] = field(default_factory=list)
    charged: set[UUID] = field(default_factory=set)
    refunded: set[UUID] = field(default_factory=set)
    references: list[str | None] = field(default_factory=list)
    hear: Hear | None = None
    seconds: float = 0.01
    under_way: int = 0
    most_under_way: int = 0

    async def charge(self, order: Order) -> Heard:
        await self._asked("charge", order)
        self.charged.add(order.attempt_id)  # by the key: a repeat charges nothing more
        self._fail()
        return Heard((Answer("settled", f"pay_{order.attempt_id}"),), reference="pay_1")

    async def inquire(self, order: Order, number: int) -> Heard:
        await self._asked("inquire", order)
        known = order.attempt_id in self.charged
        return Heard((Answer("settled" if known else "never_seen", f"{known}_{order.attempt_id}"),))

    async def cancel(self, order: Order) -> Heard:
        await self._asked("cancel", order)
        return Heard((Answer("cancelled", f"cancelled_{order.attempt_id}"),))

    async def refund(self, order: Order, refund: Refund) -> Heard:
        await self._asked("refund", order)
        self.refunded.add(refund.refund_id)
        self._fail()
        return Heard((Answer("refunded", f"ref_{refund.refund_id}", amount=refund.amount, refund_id=refund.refund_id),))

    async def start(self, hear: Hear) -> None:
        self.hear = hear

    async def stop(self) -> None:
        self.hear = None

    async def _asked(self, kind: str, order: Order) -> None:
        self.asked.append((kind, order.attempt_id))
        self.references.append(order.reference)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await asyncio.sleep(self.seconds)
        self.under_way -= 1

    def _fail(self) -> None:
        if self.failures:
            raise self.failures.pop(0)


@pytest.fixture
def remote() -> Remote:
    return Remote()


@pytest.fixture
def adapters(remote: Remote) -> dict[str, Processor]:
    return {"sandbox": remote}


@pytest.fixture
async def far(database: Database, adapters: dict[str, Processor]) -> AsyncIterator[Town]:
    async with Town(database, rooms=[consumer.room(adapters)]) as made:
        yield made
        await made.settle(after=timedelta(days=2))
        async with database.connected() as connection:
            assert await connection.fetchval("select count(*) from payments.due") == 0, "something is never ended"


@pytest.mark.parametrize("failure", [Unavailable("away"), TimeoutError(), OSError(), RuntimeError("a bug")], ids=repr)
async def test_a_call_whose_end_is_not_known_is_repeated_with_the_same_key_later_each_time(
    far: Town, remote: Remote, failure: Exception
) -> None:
    remote.failures += [failure, failure]
    asked = request("tok_ok")
    far.send("payments.requests", "frontdesk", asked)
    await far.settle()
    assert said(far) == []
    await far.settle(after=timedelta(seconds=1))
    await far.settle(after=timedelta(seconds=1))
    assert len(remote.asked) == 2
    await far.settle(after=timedelta(seconds=1))
    assert (said(far), len(remote.asked)) == ([("settled", None)], 3)
    assert remote.charged == {UUID(asked["attempt_id"])}


async def test_what_a_processor_calls_an_attempt_is_given_back_to_it(far: Town, remote: Remote) -> None:
    asked = request("tok_ok")
    far.send("payments.requests", "frontdesk", asked)
    await far.settle()
    far.send("payments.requests", "frontdesk", about(asked, "refund", refund_id=str(uuid4()), amount="1"))
    await far.settle()
    assert remote.references == [None, "pay_1"]


async def test_a_refund_that_nobody_carried_out_for_days_is_given(far: Town, remote: Remote) -> None:
    """The processor is away for two days: what is to be given back is owed all the same."""
    asked = request("tok_ok")
    far.send("payments.requests", "frontdesk", asked)
    await far.settle()
    remote.failures += [Unavailable("away")] * 2
    refund = about(asked, "refund", refund_id=str(uuid4()), amount="1")
    far.send("payments.requests", "frontdesk", refund)
    await far.settle()
    await far.settle(after=timedelta(days=2))
    assert said(far) == [("settled", None)]
    await far.settle(after=timedelta(minutes=1))
    assert said(far) == [("settled", None), ("refunded", None)]
    assert remote.refunded == {UUID(refund["refund_id"])}


async def test_what_a_processor_may_have_done_is_not_denied_because_its_adapter_is_gone(
    far: Town, remote: Remote, adapters: dict[str, Processor]
) -> None:
    """Its key was taken away while a charge and a refund were under way, and comes back: it had carried both out."""
    paid, asked = request("tok_ok"), request("tok_ok")
    far.send("payments.requests", "frontdesk", paid)
    await far.settle()
    remote.failures += [Unavailable("away")] * 2
    refund = about(paid, "refund", refund_id=str(uuid4()), amount="1")
    far.send("payments.requests", "frontdesk", refund)
    far.send("payments.requests", "frontdesk", asked)
    await far.settle()
    assert (remote.charged, len(remote.refunded)) == ({UUID(paid["attempt_id"]), UUID(asked["attempt_id"])}, 1)
    del adapters["sandbox"]
    await far.settle(after=timedelta(seconds=2))
    assert said(far) == [("settled", None)]
    adapters["sandbox"] = remote
    await far.settle(after=timedelta(minutes=1))
    assert sorted(said(far)) == [("refunded", None), ("settled", None), ("settled", None)]


async def test_operations_of_one_attempt_never_overlap_and_those_of_others_do(far: Town, remote: Remote) -> None:
    asked = request("tok_ok")
    far.send("payments.requests", "frontdesk", asked)
    for number in range(1, 6):
        far.send("payments.requests", "frontdesk", about(asked, "inquire", number=number))
    await far.settle()
    assert remote.most_under_way == 1
    remote.seconds = 0.5
    for _ in range(3):
        far.send("payments.requests", "frontdesk", request("tok_ok"))
    await far.settle()
    assert remote.most_under_way > 1


async def test_what_was_told_as_given_up_is_not_charged_any_more(far: Town, remote: Remote) -> None:
    """The charge fails on its way and would be repeated; the cancel comes first."""
    remote.failures += [Unavailable("away")] * 3
    asked = request("tok_ok")
    far.send("payments.requests", "frontdesk", asked)
    await far.settle()
    far.send("payments.requests", "frontdesk", about(asked, "cancel"))
    await far.settle(after=timedelta(seconds=1))
    await far.settle(after=timedelta(minutes=5))
    kinds = [kind for kind, _ in remote.asked]
    assert said(far) == [("cancelled", None)]
    assert "charge" not in kinds[kinds.index("cancel") :]


async def test_two_that_fail_do_not_wake_each_other(far: Town, remote: Remote) -> None:
    """Each waits for its own time, however long the processor is away."""
    asked = request("tok_ok")
    far.send("payments.requests", "frontdesk", asked)
    await far.settle()
    remote.failures += [Unavailable("away")] * 100
    for _ in range(2):
        refund = about(asked, "refund", refund_id=str(uuid4())) | {"amount": "5"}
        far.send("payments.requests", "frontdesk", refund)
    await far.settle()
    assert len(remote.asked) == 1 + 2
    for _ in range(4):
        await far.settle(after=timedelta(minutes=1))
    assert 4 <= len(remote.asked) - 3 <= 8
    remote.failures.clear()


async def test_a_processor_that_stays_away_is_not_charged_after_a_quarter_of_an_hour(far: Town, remote: Remote) -> None:
    remote.failures += [Unavailable("away")] * 100
    far.send("payments.requests", "frontdesk", request("tok_ok"))
    for _ in range(20):
        await far.settle(after=timedelta(minutes=1))
    tried = len(remote.asked)
    assert 10 < tried <= 20
    await far.settle(after=timedelta(hours=2))
    assert len(remote.asked) == tried


async def test_a_charge_that_lay_too_long_is_put_to_no_processor_and_promised_not_to_be(
    far: Town, remote: Remote
) -> None:
    """The room was away; what it finds then was asked for long ago, and may have been followed by another charge."""
    asked = request("tok_ok")
    far.send("payments.requests", "frontdesk", asked)
    far.send("payments.requests", "frontdesk", about(asked, "inquire", number=1))
    await far.settle(after=timedelta(minutes=15))
    await far.settle(after=timedelta(minutes=2))
    assert (said(far), remote.asked) == ([("cancelled", None)], [])


async def test_a_charge_that_was_tried_is_not_promised_to_have_been_nothing(far: Town, remote: Remote) -> None:
    remote.failures.append(TimeoutError())
    far.send("payments.requests", "frontdesk", request("tok_ok"))
    await far.settle()
    await far.settle(after=timedelta(minutes=15))
    assert (said(far), len(remote.asked)) == ([], 1)


async def test_what_a_processor_says_by_itself_is_published_when_hear_returns(far: Town, remote: Remote) -> None:
    asked = request("tok_ok")
    far.send("payments.requests", "frontdesk", asked)
    await far.settle()
    assert remote.hear is not None
    opened = Answer("disputed", "evt_1", amount="50.01", currency="USD", dispute_id="dp_1")
    await remote.hear([(UUID(asked["attempt_id"]), opened)])
    await far.settle()
    _, dispute = far.log.read("payments.results.sandbox")
    assert (dispute["kind"], dispute["dispute_id"], dispute["result_id"]) == ("disputed", "dp_1", "evt_1")
    with pytest.raises(ValueError, match="without amount"):
        await remote.hear([(UUID(asked["attempt_id"]), replace(opened, amount=None))])


async def test_a_process_that_dies_in_a_call_leaves_it_to_the_next_one(far: Town, remote: Remote) -> None:
    remote.failures.append(asyncio.CancelledError())
    asked = request("tok_ok")
    far.send("payments.requests", "frontdesk", asked)
    with pytest.raises(asyncio.CancelledError):
        await far.rooms.pump(ticks=True)
    assert said(far) == []
    await far.settle(after=timedelta(seconds=30))
    assert len(remote.asked) == 1  # the lease of the dead one still stands
    await far.settle(after=timedelta(seconds=31))
    await far.settle(after=timedelta(seconds=1))
    assert (said(far), remote.charged) == ([("settled", None)], {UUID(asked["attempt_id"])})
