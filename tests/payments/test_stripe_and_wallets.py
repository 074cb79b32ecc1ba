"""Stripe and balance together: whatever becomes of an answer, the wallet says in the end what Stripe took and gave."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from services.balance import consumer as balance_room
from services.balance import tables
from services.payments import consumer
from services.payments.stripe import Stripe
from services.payments.stripe_door import Door
from tests.support.balance_factory import Town
from tests.support.servers import Database
from tests.support.stripe_double import SECRET, StripeDouble

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@dataclass
class Till:
    """An account that pays by Stripe, and Stripe."""

    town: Town
    double: StripeDouble
    door: Door

    async def pay(self, token: str = "cus_1:pm_ok", **more: Any) -> None:
        self.town.pay("frontdesk", "100", token, processor="stripe", **more)
        await self.town.settle()

    async def refund(self, amount: str) -> None:
        (attempt,) = await self.town.attempts("frontdesk")
        self.town.command(
            "refund_payment", "frontdesk", attempt_id=str(attempt.attempt_id), amount=amount, role="finance"
        )
        await self.town.settle()

    async def refunds(self) -> list[str]:
        return [row.state for row in await self.town.rooms.query("balance", select(tables.refund))]

    async def wallet(self) -> str:
        return await self.town.balance("frontdesk")

    async def told(self) -> None:
        for event in self.double.events:
            assert await self.double.deliver(self.door.port, event) == 200
        self.double.events.clear()
        await self.town.settle()

    async def later(self, by: timedelta, times: int = 1) -> None:
        for _ in range(times):
            await self.town.settle(after=by)


@pytest.fixture
async def till(database: Database) -> AsyncIterator[Till]:
    async with StripeDouble().serving() as double:
        door = Door("127.0.0.1", 0, SECRET)
        adapter = Stripe("sk_test_1", api=double.url, door=door, call_s_max=0.5)
        async with Town(database) as plain:
            rooms = [balance_room.room(plain.refuse_fast), consumer.room({"stripe": adapter})]
        async with Town(database, rooms=rooms) as town:
            await town.account("frontdesk", level_2=True)
            await town.settle()
            yield Till(town, double, door)


async def test_a_charge_whose_answer_was_lost_is_no_failure_when_the_key_is_withdrawn(till: Till) -> None:
    """Stripe took it; whether it did cannot be asked until there is a key again."""
    till.double.faults = ["lost", *["withdrawn"] * 50]
    await till.pay()
    await till.later(timedelta(seconds=5))
    assert not {"payment_failed", "payment_settled"} & set(till.town.kinds("frontdesk"))
    till.double.faults = []
    await till.later(HOUR, 3)
    assert await till.wallet() == "100"


async def test_a_refund_whose_answer_was_lost_is_no_failure_when_the_key_is_withdrawn(till: Till) -> None:
    await till.pay()
    till.double.faults = ["", "", "lost", *["withdrawn"] * 50]  # its payment and itself are looked for, it is given
    await till.refund("30")
    await till.later(timedelta(seconds=5))
    assert (await till.refunds(), await till.wallet()) == (["requested"], "100")
    till.double.faults = []
    await till.later(DAY)
    assert (await till.refunds(), await till.wallet()) == (["refunded"], "70")
    assert len(till.double.refunds) == 1


async def test_a_part_that_stripe_refuses_to_give_back_can_be_asked_for_again(till: Till) -> None:
    await till.pay()
    (intent,) = till.double.intents.values()
    till.double.events.clear()
    till.double.refund_by_hand(intent, 9000)  # we do not hear of it yet
    await till.refund("30")
    assert await till.refunds() == ["failed"]
    assert await till.town.quarantined() == []
    await till.told()
    await till.refund("10")
    assert (sorted(await till.refunds()), await till.wallet()) == (["failed", "refunded"], "0")


async def test_what_an_account_that_is_connected_to_ours_took_is_not_ours(till: Till) -> None:
    """Whatever it wrote on it: the id of an attempt stands in our events."""
    await till.pay("cus_1:pm_bank", method_kind="bank_debit")
    (intent,) = till.double.intents.values()
    theirs = {
        "id": "pi_theirs", "object": "payment_intent", "status": "succeeded", "amount": 10_000, "amount_received": 10_000,
        "currency": "usd", "metadata": intent["metadata"],
    }  # fmt: skip
    part = {"object": "refund", "status": "succeeded", "amount": 1, "currency": "usd", "payment_intent": "pi_theirs"}
    for kind, said in (
        ("payment_intent.succeeded", theirs),
        ("refund.created", part | {"id": "re_1", "metadata": {}}),
        ("charge.dispute.created", part | {"id": "dp_1", "object": "dispute", "metadata": {}}),
    ):
        event = {
            "id": f"evt_{kind}",
            "object": "event",
            "type": kind,
            "account": "acct_other",
            "data": {"object": said},
        }
        assert await till.double.deliver(till.door.port, event) == 200
    await till.town.settle()
    assert (await till.wallet(), await till.town.quarantined()) == ("0", [])
    assert [each.state for each in await till.town.attempts("frontdesk")] == ["requested"]


async def test_a_refund_that_takes_its_time_is_looked_after_without_webhooks(till: Till) -> None:
    await till.pay("cus_1:pm_bank", method_kind="bank_debit")
    (intent,) = till.double.intents.values()
    intent["status"] = "succeeded"
    await till.later(HOUR, 2)
    await till.refund("30")
    await till.later(HOUR, 2)
    assert (await till.refunds(), await till.wallet()) == (["requested"], "100")
    for refund in till.double.refunds.values():
        refund["status"] = "succeeded"
    await till.later(HOUR)
    assert (await till.refunds(), await till.wallet()) == (["refunded"], "70")
    assert len(till.double.refunds) == 1


@pytest.mark.parametrize("in_order", [True, False])
async def test_a_refund_that_fails_after_it_was_given_comes_back_and_finance_hears_of_it(
    till: Till, in_order: bool
) -> None:
    await till.pay()
    till.double.events.clear()
    (intent,) = till.double.intents.values()
    till.double.refund_by_hand(intent, 3000)
    (refund,) = till.double.refunds.values()
    refund["status"] = "failed"
    till.double.tell("refund.failed", refund)
    if not in_order:
        till.double.events.reverse()
    await till.told()
    assert await till.wallet() == "100"
    assert "contradiction" in till.town.kinds("frontdesk")
    await till.refund("100")  # nothing of it is given back
    assert (await till.refunds(), await till.wallet()) == (["refunded"], "0")
