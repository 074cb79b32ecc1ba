"""Stripe behind the port, against a double of its API: every amount is taken once, whatever the network does."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import SecretStr

from contracts.topics import PAYMENTS_RESULTS
from services.balance import consumer as balance_room
from services.kernel.errors import InvalidInput, Unavailable
from services.payments import consumer
from services.payments.port import Order
from services.payments.processors import processors
from services.payments.settlement import Sandbox
from services.payments.stripe import Stripe
from services.payments.stripe_door import BODY_BYTES_MAX, TOLERANCE_S, Door, verified
from services.runtime.settings import Settings
from tests.payments.test_handler import about, request
from tests.support.balance_factory import Town
from tests.support.servers import Database
from tests.support.stripe_double import SECRET, StripeDouble, post

CALL_S_MAX = 0.5


@dataclass
class Far:
    """A town whose payments go to the double, and the door through which it tells."""

    town: Town
    double: StripeDouble
    door: Door
    adapter: Stripe

    async def charge(self, token: str = "cus_1:pm_ok", **more: Any) -> dict[str, Any]:
        asked = request(token, processor="stripe", **more)
        self.town.send("payments.requests", "frontdesk", asked)
        await self.town.settle()
        return asked

    async def ask(self, asked: dict[str, Any], kind: str, **more: Any) -> None:
        self.town.send("payments.requests", "frontdesk", about(asked, kind, **more))
        await self.town.settle()

    async def told(self) -> None:
        """All that Stripe has to tell is delivered, and taken in."""
        for event in self.double.events:
            assert await self.double.deliver(self.door.port, event) == 200
        self.double.events.clear()
        await self.town.settle()

    def said(self) -> list[dict[str, Any]]:
        """Results, each once: a repeat has the same id."""
        return list({each["result_id"]: each for each in self.town.log.read(PAYMENTS_RESULTS.of("stripe"))}.values())

    def kinds(self) -> list[str]:
        return [each["kind"] for each in self.said()]


@pytest.fixture
async def double() -> AsyncIterator[StripeDouble]:
    async with StripeDouble().serving() as made:
        yield made


@pytest.fixture
async def far(database: Database, double: StripeDouble) -> AsyncIterator[Far]:
    door = Door("127.0.0.1", 0, SECRET)
    adapter = Stripe("sk_test_1", api=double.url, door=door, call_s_max=CALL_S_MAX)
    async with Town(database, rooms=[consumer.room({"stripe": adapter})]) as town:
        yield Far(town, double, door, adapter)


async def test_a_card_is_charged_in_minor_units_for_its_attempt(far: Far) -> None:
    asked = await far.charge()
    (result,) = far.said()
    assert (result["kind"], result["amount"], result["currency"]) == ("settled", "50.01", "USD")
    intent = far.double.intent_of(asked["attempt_id"])
    assert (intent["amount"], intent["currency"], intent["customer"]) == (5001, "usd", "cus_1")
    assert intent["asked"]["payment_method"] == "pm_ok"
    assert intent["asked"]["off_session"] == "true"  # nobody is there: a recharge


async def test_a_person_who_pays_by_hand_is_there(far: Far) -> None:
    asked = request("pm_ok", processor="stripe") | {"origin": "manual"}
    far.town.send("payments.requests", "frontdesk", asked)
    await far.town.settle()
    made = far.double.intent_of(asked["attempt_id"])["asked"]
    assert "off_session" not in made
    assert "customer" not in made


@pytest.mark.parametrize(
    ("token", "reason"), [("pm_declined", "insufficient_funds"), ("pm_authentication", "authentication_required")]
)
async def test_a_decline_says_why_and_its_webhook_says_the_same(far: Far, token: str, reason: str) -> None:
    asked = await far.charge(token)
    far.double.tell("payment_intent.payment_failed", far.double.intent_of(asked["attempt_id"]))
    await far.told()
    (result,) = far.said()
    assert (result["kind"], result["failure"], result["reason"]) == ("failed", "declined", reason)


@pytest.mark.parametrize(
    ("token", "code"),
    [
        ("pm_unknown", "resource_missing"),
        ("pm_detached", "payment_method_unexpected_state"),
        ("cus_1:pm_of_another", "parameter_invalid"),
    ],
)
async def test_a_method_that_stripe_does_not_know_any_more_is_declined(far: Far, token: str, code: str) -> None:
    """It will not be known later either: an `error` would be tried again each quarter of an hour, a decline pauses."""
    await far.charge(token)
    (result,) = far.said()
    assert (result["kind"], result["failure"], result["reason"]) == ("failed", "declined", code)


async def test_another_request_that_stripe_refuses_is_an_error_and_names_no_token(far: Far) -> None:
    await far.charge("pm_switched_off")
    (result,) = far.said()
    assert (result["kind"], result["failure"]) == ("failed", "error")
    assert "parameter_invalid" in result["reason"]
    assert "pm_switched_off" not in result["reason"]


@pytest.mark.parametrize("fault", ["lost", "busy", "broken", "limited"])
async def test_an_answer_that_does_not_come_is_asked_for_again_by_the_same_key_and_charges_once(
    far: Far, fault: str
) -> None:
    far.double.faults = [fault]
    asked = await far.charge()
    assert far.kinds() == []
    await far.town.settle(after=timedelta(seconds=2))
    assert far.kinds() == ["settled"]
    assert far.double.charged() == {asked["attempt_id"]: 5001}
    keys = {key for method, path, key in far.double.requests if (method, path) == ("POST", "/v1/payment_intents")}
    assert len(keys) == 1


async def test_a_slow_answer_is_waited_for(far: Far) -> None:
    far.double.faults = ["slow"]
    await far.charge()
    assert far.kinds() == ["settled"]


async def test_a_bank_debit_settles_by_its_webhook(far: Far) -> None:
    asked = await far.charge("cus_1:pm_bank", kind="bank_debit")
    assert far.kinds() == []
    far.double.move(far.double.intent_of(asked["attempt_id"]), "succeeded")
    await far.told()
    assert far.kinds() == ["settled"]


async def test_an_inquiry_finds_what_was_charged_though_nobody_heard_it(far: Far) -> None:
    far.double.faults = ["lost"] * 100
    asked = await far.charge()
    far.double.faults = []
    await far.ask(asked, "inquire", number=1)
    await far.town.settle(after=timedelta(seconds=5))
    assert far.kinds() == ["settled"]
    assert far.double.charged() == {asked["attempt_id"]: 5001}


async def test_an_inquiry_before_the_search_shows_the_payment_says_nothing(far: Far) -> None:
    order = Order(uuid4(), "frontdesk", "50.01", "USD", datetime.now(UTC), "pm_ok", "card")
    await far.adapter.charge(order)
    far.double.search_lags = True
    assert (await far.adapter.inquire(order, 1)).answers == ()
    assert far.double.charged() == {str(order.attempt_id): 5001}


@pytest.mark.parametrize(("ask", "kind"), [("inquire", "never_seen"), ("cancel", "cancelled")])
async def test_what_stripe_never_saw_can_not_be_charged_any_more(far: Far, ask: str, kind: str) -> None:
    order = Order(uuid4(), "frontdesk", "50.01", "USD", datetime.now(UTC), "pm_ok", "card")
    for _ in range(2):  # a repeat says the same
        heard = await (far.adapter.inquire(order, 1) if ask == "inquire" else far.adapter.cancel(order))
        assert [answer.kind for answer in heard.answers] == [kind]
    late = await far.adapter.charge(order)  # it was on its way all the time
    assert late.answers == ()
    assert far.double.charged() == {}


@pytest.mark.parametrize(
    ("status", "kinds"),
    [
        ("requires_confirmation", ["cancelled"]),
        ("requires_payment_method", ["cancelled"]),
        ("processing", []),
        ("succeeded", ["settled"]),
    ],
)
async def test_an_inquiry_gives_up_what_was_left_open_and_nothing_that_a_bank_has(
    far: Far, status: str, kinds: list[str]
) -> None:
    """Stripe fell over when it had made the intent and not confirmed it."""
    order = Order(uuid4(), "frontdesk", "50.01", "USD", datetime.now(UTC), "pm_ok", "card")
    await far.adapter.charge(order)
    intent = far.double.intent_of(str(order.attempt_id))
    intent["status"] = status
    heard = await far.adapter.inquire(order, 1)
    assert [answer.kind for answer in heard.answers] == kinds
    assert intent["status"] == ("canceled" if kinds == ["cancelled"] else status)


async def test_what_succeeds_while_an_inquiry_gives_it_up_is_settled(far: Far) -> None:
    order = Order(uuid4(), "frontdesk", "50.01", "USD", datetime.now(UTC), "pm_ok", "card")
    await far.adapter.charge(order)
    far.double.intent_of(str(order.attempt_id))["status"] = "requires_confirmation"
    far.double.faults = ["", "", "overtaken"]  # it is found and read, then given up
    heard = await far.adapter.inquire(order, 1)
    assert [answer.kind for answer in heard.answers] == ["settled"]


@pytest.mark.parametrize("search_lags", [True, False])
async def test_an_intent_that_was_to_be_cancelled_when_a_process_died_is_cancelled_by_the_next_one(
    far: Far, search_lags: bool
) -> None:
    order = Order(uuid4(), "frontdesk", "50.01", "USD", datetime.now(UTC), "pm_ok", "card")
    far.double.faults = ["", "", "broken"]  # it is looked for, its key is used up, and then
    with pytest.raises(Unavailable):
        await far.adapter.inquire(order, 1)
    far.double.search_lags = search_lags
    for number in (2, 3):
        heard = await far.adapter.inquire(order, number)
        assert [answer.kind for answer in heard.answers] == ["never_seen"]


async def test_a_cancel_gives_up_what_is_open_and_tells_what_is_done(far: Far) -> None:
    settled = await far.charge()
    await far.ask(settled, "cancel")
    assert far.kinds() == ["settled"]
    under_way = await far.charge("pm_bank", kind="bank_debit")
    await far.ask(under_way, "cancel")
    assert far.kinds() == ["settled"]  # the bank has it: nobody can say yet
    far.double.intent_of(under_way["attempt_id"])["status"] = "requires_action"
    await far.adapter.cancel(Order(UUID(under_way["attempt_id"]), "frontdesk", "50.01", "USD", datetime.now(UTC)))
    assert far.double.intent_of(under_way["attempt_id"])["status"] == "canceled"


async def test_a_refund_is_given_once_by_its_own_key(far: Far) -> None:
    asked = await far.charge()
    refund_id = str(uuid4())
    far.double.faults = ["", "", "lost"]  # its payment and itself are looked for, it is given
    await far.ask(asked, "refund", refund_id=refund_id, amount="20.00")
    await far.town.settle(after=timedelta(seconds=2))
    _, refunded = far.said()
    assert (refunded["kind"], refunded["amount"], refunded["refund_id"]) == ("refunded", "20.00", refund_id)
    assert [each["amount"] for each in far.double.refunds.values()] == [2000]


async def test_a_refund_is_given_once_when_its_key_is_forgotten(far: Far) -> None:
    """Its answer was lost, and nobody asked again for days."""
    asked = await far.charge()
    far.double.faults = ["", "", "lost"]  # its payment and itself are looked for, it is given
    await far.ask(asked, "refund", refund_id=str(uuid4()), amount="20.00")
    assert far.kinds() == ["settled"]
    assert len(far.double.refunds) == 1
    far.double.forget_keys()
    await far.town.settle(after=timedelta(days=2))
    assert far.kinds() == ["settled", "refunded"]
    assert len(far.double.refunds) == 1


async def test_a_refund_that_is_too_large_fails_and_one_that_takes_time_is_told_later(far: Far) -> None:
    asked = await far.charge()
    await far.ask(asked, "refund", refund_id=str(uuid4()), amount="60.00")
    assert far.kinds() == ["settled", "refund_failed"]
    slow = await far.charge("pm_bank", kind="bank_debit")
    far.double.move(far.double.intent_of(slow["attempt_id"]), "succeeded")
    await far.told()
    refund_id = str(uuid4())
    await far.ask(slow, "refund", refund_id=refund_id, amount="10.00")
    assert sorted(far.kinds()) == ["refund_failed", "settled", "settled"]
    far.double.end_refund("succeeded")
    await far.told()
    (refunded,) = [each for each in far.said() if each["kind"] == "refunded"]
    assert (refunded["attempt_id"], refunded["refund_id"]) == (slow["attempt_id"], refund_id)


async def test_what_happens_in_stripes_own_pages_is_heard(far: Far) -> None:
    asked = await far.charge()
    intent = far.double.intent_of(asked["attempt_id"])
    far.double.refund_by_hand(intent, 1000)
    for status in ("warning_needs_response", "needs_response", "won"):
        far.double.dispute(intent, status)
    await far.told()
    assert far.kinds() == ["settled", "refunded", "disputed", "dispute_won"]
    assert {each["dispute_id"] for each in far.said()[2:]} == {f"dp_{intent['id']}"}


async def test_payments_of_others_through_the_same_account_are_acknowledged_and_overlooked(far: Far) -> None:
    """In currencies that are unknown here too, and with metadata of their own."""
    other = {"id": "pi_other", "amount": 100, "currency": "eur", "metadata": {"order": "7"}, "status": "succeeded"}
    part = {
        "id": "x_other",
        "amount": 100,
        "currency": "gbp",
        "metadata": {"refund_id": "R-17"},
        "payment_intent": "pi_other",
    }
    far.double.intents["pi_other"] = other
    far.double.tell("payment_intent.succeeded", other)
    far.double.tell("payment_intent.succeeded", other | {"metadata": {"attempt_id": "7"}})
    far.double.tell("refund.created", part | {"status": "succeeded"})
    far.double.tell("charge.dispute.created", part | {"status": "needs_response"})
    far.double.tell("charge.dispute.created", part | {"status": "needs_response", "payment_intent": None})
    far.double.tell("customer.created", {"id": "cus_9"})
    await far.told()
    assert far.said() == []


async def test_a_refund_of_ours_that_other_software_made_is_heard_whatever_it_wrote_on_it(far: Far) -> None:
    asked = await far.charge()
    far.double.refund_by_hand(far.double.intent_of(asked["attempt_id"]), 1000)
    far.double.events[-1]["data"]["object"]["metadata"] = {"refund_id": "R-17"}
    await far.told()
    assert far.kinds() == ["settled", "refunded"]


# ---- the door ------------------------------------------------------------------------------------------------------


async def test_a_webhook_is_verified_on_its_bytes_and_in_time(far: Far) -> None:
    await far.charge()
    (event,) = far.double.events
    port, now = far.door.port, time.time()
    for at in (now - TOLERANCE_S - 5, now + TOLERANCE_S + 5):  # the library itself takes those of the future
        assert await far.double.deliver(port, event, at=at) == 400
    assert await far.double.deliver(port, event, body=b"{}") == 400
    assert await post(port, b"{}", "") == 400
    assert await post(port, b"\xff", "t=1,v1=0") == 400
    assert await post(port, b" " * (BODY_BYTES_MAX + 1), "t=1,v1=0") == 413
    assert await far.double.deliver(port, event, at=now - TOLERANCE_S + 30) == 200


async def test_what_cannot_be_kept_is_not_acknowledged() -> None:
    async def away(event: Any) -> None:
        raise OSError("the database is away")

    double, door = StripeDouble(), Door("127.0.0.1", 0, SECRET)
    double.tell("payment_intent.succeeded", {"id": "pi_1"})
    await door.open(away)
    try:
        assert await double.deliver(door.port, double.events[0]) == 500  # Stripe sends it again
    finally:
        await door.close()


def test_a_body_that_is_no_event_is_refused_by_its_field() -> None:
    import stripe

    signed = stripe.WebhookSignature.generate_signature_header("[]", SECRET, 1_000)
    with pytest.raises(InvalidInput, match="is no event"):
        verified(b"[]", signed, SECRET, 1_000)
    with pytest.raises(InvalidInput, match="Stripe-Signature: is no signature"):
        verified(b"{}", "t=1000,v1=\xff", SECRET, 1_000)  # as a header of any bytes is read


# ---- with the wallet -----------------------------------------------------------------------------------------------


async def test_webhooks_twice_and_in_any_order_move_the_wallet_once(database: Database, double: StripeDouble) -> None:
    door = Door("127.0.0.1", 0, SECRET)
    adapter = Stripe("sk_test_1", api=double.url, door=door, call_s_max=CALL_S_MAX)
    async with Town(database) as plain:
        rooms = [balance_room.room(plain.refuse_fast), consumer.room({"stripe": adapter})]
    async with Town(database, rooms=rooms) as town:
        await town.account("frontdesk", level_2=True)
        town.open("frontdesk", "20.00")
        town.method("frontdesk", "cus_1:pm_ok", processor="stripe")
        town.prefer("frontdesk", "100", "50")
        await town.settle()
        assert (await town.wallet("frontdesk")).wallet_nano == 150 * 10**9
        (intent,) = double.intents.values()
        double.refund_by_hand(intent, 3000)
        double.dispute(intent, "needs_response")
        double.dispute(intent, "won")
        for event in [*reversed(double.events), *double.events]:
            assert await double.deliver(door.port, event) == 200
        await town.settle()
        assert (await town.wallet("frontdesk")).wallet_nano == 120 * 10**9
    assert double.charged() == {intent["metadata"]["attempt_id"]: 13000}


# ---- which processors there are ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "names"),
    [(None, {"sandbox"}), ("sk_test_1", {"sandbox", "stripe"}), ("sk_live_1", {"stripe"}), ("rk_live_1", {"stripe"})],
)
def test_nobody_pays_by_the_sandbox_beside_a_key_that_moves_real_money(key: str | None, names: set[str]) -> None:
    made = processors(Settings(stripe_key=None if key is None else SecretStr(key)))
    assert made.keys() == names
    assert all(isinstance(each, Sandbox | Stripe) for each in made.values())


def test_the_sandbox_can_be_switched_off() -> None:
    assert processors(Settings(sandbox=False)) == {}
