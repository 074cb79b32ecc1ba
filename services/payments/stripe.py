"""Stripe behind the port: payment intents by its official library, webhooks by `stripe_door`.

A token is a payment method, `pm_…`, or with the customer that it belongs to, `cus_…:pm_…`. The attempt id is the idempotency
key of its intent and stands in the intent's metadata; a refund has its own. Amounts are asked for in minor units.

Nothing is kept here. An intent is found by the reference of an earlier answer, else by its metadata. Where Stripe knows none,
the attempt's key is used up by an intent that is never confirmed, and cancelled: the charge, should it still come, is then
refused by Stripe itself, so `never_seen` and `cancelled` are promises. Source: domain, section 4; designs/recharge.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

import stripe

from contracts.payments import MethodKind, ResultKind
from services.kernel.currency import currency
from services.kernel.errors import InvalidInput, Unavailable
from services.kernel.ids import derived_id
from services.kernel.money import NANO, format_nano, parse_amount
from services.payments.port import Answer, Hear, Heard, Order, Refund
from services.payments.stripe_door import Door

NAME = "stripe"
CALL_S_MAX = 20.0  # of one request; below the limit that the room sets to a whole operation
METHODS: Mapping[MethodKind, str] = {"card": "card", "bank_debit": "us_bank_account", "paypal": "paypal"}
OF_THE_PAYER = ("payment_method", "customer")  # parameters of a charge
OPEN = ("requires_payment_method", "requires_confirmation", "requires_action", "requires_capture")


class Stripe:
    """One account with Stripe. ``api`` is its address; another one is for tests."""

    def __init__(
        self, key: str, *, api: str | None = None, door: Door | None = None, call_s_max: float = CALL_S_MAX
    ) -> None:
        self._client = stripe.StripeClient(
            key,
            http_client=stripe.RequestsClient(timeout=call_s_max),
            base_addresses={} if api is None else {"api": api},
            max_network_retries=0,  # the room repeats, by the one clock
        )
        self._door = door

    async def start(self, hear: Hear) -> None:
        """Open the door for webhooks, if there is one."""
        if self._door is not None:
            await self._door.open(lambda event: self._hear_event(event, hear))

    async def stop(self) -> None:
        """Close it."""
        if self._door is not None:
            await self._door.close()

    async def charge(self, order: Order) -> Heard:
        """Make and confirm the intent. Nobody is asked for anything: what wants the payer at the screen is declined."""
        try:
            amount = minor_units(order.amount, order.currency)
        except InvalidInput as error:
            return Heard((_failed(str(order.attempt_id), "error", error.message),))
        customer, _, method = (order.token or "").rpartition(":")
        asked: dict[str, Any] = {
            "amount": amount,
            "currency": order.currency.lower(),
            "payment_method": method,
            "payment_method_types": [METHODS[order.method_kind or "card"]],
            "confirm": True,
            "error_on_requires_action": True,
            "metadata": _metadata(order),
        }
        if customer:
            asked["customer"] = customer
        if order.origin != "manual":
            asked["off_session"] = True
        try:
            intent = await self._ask(self._client.v1.payment_intents.create, asked, _key(order.attempt_id))
        except stripe.IdempotencyError:
            return Heard()  # the key was used up: what became of the attempt is told already
        except stripe.CardError as error:
            return _declined(error, order)
        except stripe.InvalidRequestError as error:
            return _refused(error, order)
        return _heard(intent)

    async def inquire(self, order: Order, number: int) -> Heard:
        """What the intent became; `never_seen` once its key is used up. The time of its charge is over, so one that is still open
        is never confirmed any more, and cancelled: it was made, and Stripe or this process fell over."""
        intent = await self._find(order)
        if intent is None:
            return await self._bury(order, "never_seen")
        return _heard(intent if of_intent(intent) else await self._closed(intent))

    async def cancel(self, order: Order) -> Heard:
        """Cancel the intent while it is open; where there is none, use up its key."""
        intent = await self._find(order)
        return await self._bury(order, "cancelled") if intent is None else _heard(await self._closed(intent))

    async def refund(self, order: Order, refund: Refund) -> Heard:
        """Give back, once however late it is asked again: Stripe forgets keys after a day, not refunds. What it has only begun
        is told by a webhook."""
        try:
            amount = minor_units(refund.amount, order.currency)
            intent = await self._find(order)
            if intent is None:
                raise Unavailable("Stripe does not show the payment yet")  # its search lags, and it did settle
            asked = {
                "payment_intent": intent["id"],
                "amount": amount,
                "metadata": _metadata(order) | {"refund_id": str(refund.refund_id)},
            }
            given = await self._given(intent["id"], refund)
            if given is None:
                given = await self._ask(self._client.v1.refunds.create, asked, _key(refund.refund_id))
        except InvalidInput as error:
            return Heard((_refund_failed(refund, error.message),))
        except stripe.InvalidRequestError as error:
            return Heard((_refund_failed(refund, f"Stripe refuses the refund: {error.code or 'invalid'}"),))
        answer = of_refund(given)
        return Heard((answer,) if answer is not None else (), intent["id"])

    # ---- webhooks --------------------------------------------------------------------------------------------------

    async def _hear_event(self, event: Mapping[str, Any], hear: Hear) -> None:
        """Tell what an event says of an attempt of ours. All else is acknowledged and overlooked, before it is read: what others
        take through the same account may be in any currency and carry any metadata."""
        if event.get("account"):  # of an account that is connected to ours: its money is not ours
            return
        said = event["data"]["object"]
        kind = str(event["type"])
        answer_of: Callable[[Mapping[str, Any]], Answer | None]
        if kind.startswith("payment_intent."):
            intent, answer_of = said, of_intent
        elif kind.startswith("refund."):
            intent, answer_of = await self._intent_of(said), of_refund
        elif kind.startswith("charge.dispute."):
            intent, answer_of = await self._intent_of(said), of_dispute
        else:
            return
        attempt_id = attempt_of(intent)
        if attempt_id is not None and (answer := answer_of(said)) is not None:
            await hear([(attempt_id, answer)])

    # ---- asking ----------------------------------------------------------------------------------------------------

    async def _ask(self, call: Callable[..., Any], asked: Mapping[str, Any], key: str | None, *names: str) -> Any:
        """One request in a thread of its own. Whatever leaves the outcome open is `Unavailable`: a key that was withdrawn too,
        since the request before may have been taken and only its answer lost."""
        options = {} if key is None else {"idempotency_key": key}
        try:
            return (await asyncio.to_thread(call, *names, asked, options)).to_dict()
        except (stripe.CardError, stripe.IdempotencyError, stripe.InvalidRequestError):
            raise
        except stripe.StripeError as error:
            raise Unavailable(f"Stripe does not say what became of it ({type(error).__name__})") from None

    async def _retrieve(self, intent_id: str) -> Any:
        return await self._ask(self._client.v1.payment_intents.retrieve, {}, None, intent_id)

    async def _intent_of(self, part: Mapping[str, Any]) -> Any | None:
        """The intent that a refund or a dispute is a part of; None for a charge that was made without one."""
        return await self._retrieve(part["payment_intent"]) if part.get("payment_intent") else None

    async def _find(self, order: Order) -> Any | None:
        """The intent of an attempt as it is now, by its reference or by its metadata. Search lags behind by some seconds."""
        if order.reference is not None:
            return await self._retrieve(order.reference)
        query = f"metadata['attempt_id']:'{order.attempt_id}'"
        found = await self._ask(self._client.v1.payment_intents.search, {"query": query, "limit": 1}, None)
        return await self._retrieve(found["data"][0]["id"]) if found["data"] else None

    async def _given(self, intent_id: str, refund: Refund) -> Any | None:
        """This refund, if Stripe has it already; of the newest hundred of its payment."""
        given = await self._ask(self._client.v1.refunds.list, {"payment_intent": intent_id, "limit": 100}, None)
        mine = str(refund.refund_id)
        return next((each for each in given["data"] if (each["metadata"] or {}).get("refund_id") == mine), None)

    async def _bury(self, order: Order, kind: str) -> Heard:
        """Use up the key of an attempt that Stripe does not know, by an intent that never charges anything."""
        asked = {
            "amount": minor_units(order.amount, order.currency),
            "currency": order.currency.lower(),
            "metadata": _metadata(order) | {"buried": kind},
        }
        try:
            intent = await self._ask(self._client.v1.payment_intents.create, asked, _key(order.attempt_id))
        except stripe.IdempotencyError:
            return Heard()  # Stripe has seen the charge; its search does not show it yet
        return _heard(await self._closed(intent))

    async def _closed(self, intent: Any) -> Any:
        """The intent, cancelled where it was open. What a bank has in its hands, `processing`, is left to it."""
        if intent["status"] not in OPEN:
            return intent
        try:
            return await self._ask(self._client.v1.payment_intents.cancel, {}, None, intent["id"])
        except stripe.InvalidRequestError:  # it has just moved on
            return await self._retrieve(intent["id"])


# ---- what Stripe's objects say. Pure -------------------------------------------------------------------------------


def minor_units(amount: str, code: str) -> int:
    """An amount as Stripe counts it: whole minor units. `InvalidInput` for a part of one.

    >>> minor_units("50.01", "USD")
    5001
    >>> minor_units("0.005", "USD")
    Traceback (most recent call last):
    services.kernel.errors.InvalidInput: amount: 0.005 USD is no whole number of its minor unit
    """
    minor_nano: int = NANO // 10 ** currency(code).exponent
    units, rest = divmod(parse_amount(amount), minor_nano)
    if rest:
        raise InvalidInput(f"{amount} {code} is no whole number of its minor unit", field="amount")
    return units


def major_units(units: int, code: str) -> str:
    """The amount of a contract.

    >>> major_units(5001, "usd")
    '50.01'
    """
    row = currency(code.upper())
    return format_nano(units * (NANO // 10**row.exponent), decimals_min=row.exponent)


def attempt_of(intent: Mapping[str, Any] | None) -> UUID | None:
    """The attempt that an intent was made for; None for what others take through the same account."""
    return None if intent is None else _id_in(intent, "attempt_id")


def of_intent(intent: Mapping[str, Any]) -> Answer | None:
    """What an intent became; None while it is under way. An intent says the same, with the same id, however often.

    >>> of_intent({"id": "pi_1", "status": "succeeded", "amount": 5001, "currency": "usd"}).kind
    'settled'
    >>> of_intent({"id": "pi_1", "status": "processing", "amount": 5001, "currency": "usd"})
    """
    about = {"amount": major_units(intent["amount"], intent["currency"]), "currency": intent["currency"].upper()}
    match intent["status"]:
        case "succeeded":
            received = intent.get("amount_received", intent["amount"])
            return Answer(
                "settled", f"{intent['id']}:settled", **about | {"amount": major_units(received, intent["currency"])}
            )
        case "canceled":
            is_buried = intent.get("metadata", {}).get("buried") == "never_seen"
            kind: ResultKind = "never_seen" if is_buried else "cancelled"
            return Answer(kind, f"{intent['id']}:{kind}", **about)
        case "requires_payment_method" if intent.get("last_payment_error"):
            return _failed(intent["id"], "declined", _why(intent["last_payment_error"]), **about)
    return None


def of_refund(refund: Mapping[str, Any]) -> Answer | None:
    """What a refund became; None while it is pending. One that carries no id of ours, since it was made in Stripe's own pages or
    by other software, gets one from its name there.

    >>> of_refund({"id": "re_1", "status": "succeeded", "amount": 2000, "currency": "usd", "metadata": {}}).amount
    '20.00'
    """
    kinds: Mapping[str, Any] = {"succeeded": "refunded", "failed": "refund_failed", "canceled": "refund_failed"}
    kind = kinds.get(str(refund["status"]))
    if kind is None:
        return None
    return Answer(
        kind,
        f"{refund['id']}:{kind}",
        reason=refund.get("failure_reason") or None,
        amount=major_units(refund["amount"], refund["currency"]),
        currency=refund["currency"].upper(),
        refund_id=_id_in(refund, "refund_id") or derived_id("stripe refund", refund["id"]),
    )


def of_dispute(dispute: Mapping[str, Any]) -> Answer | None:
    """What a dispute says; None for an early warning, which withholds nothing.

    >>> dispute = {"id": "dp_1", "amount": 5001, "currency": "usd"}
    >>> [of_dispute(dispute | {"status": each}).kind for each in ("needs_response", "under_review", "won", "lost")]
    ['disputed', 'disputed', 'dispute_won', 'dispute_lost']
    >>> of_dispute(dispute | {"status": "warning_needs_response"})
    """
    status = str(dispute["status"])
    if status.startswith("warning") or status == "prevented":
        return None
    kinds: Mapping[str, Any] = {"won": "dispute_won", "lost": "dispute_lost"}
    kind = kinds.get(status, "disputed")
    return Answer(
        kind,
        f"{dispute['id']}:{kind}",
        amount=major_units(dispute["amount"], dispute["currency"]),
        currency=dispute["currency"].upper(),
        dispute_id=dispute["id"],
    )


def _heard(intent: Mapping[str, Any]) -> Heard:
    answer = of_intent(intent)
    return Heard(() if answer is None else (answer,), intent["id"])


def _declined(error: stripe.CardError, order: Order) -> Heard:
    """The payer's side refused. The intent stands in the error."""
    said: Any = error.json_body
    body: Mapping[str, Any] = (said or {}).get("error", {})
    intent_id = (body.get("payment_intent") or {}).get("id")
    about = {"amount": order.amount, "currency": order.currency}
    return Heard((_failed(intent_id or str(order.attempt_id), "declined", _why(body), **about),), intent_id)


def _refused(error: stripe.InvalidRequestError, order: Order) -> Heard:
    """The request cannot be carried out: a decline where its method or customer is the reason, which no later try will mend."""
    code = error.code or "invalid"
    if error.param in OF_THE_PAYER or code == "resource_missing" or code.startswith("payment_method_"):
        return Heard((_failed(str(order.attempt_id), "declined", code),))
    return Heard((_failed(str(order.attempt_id), "error", f"Stripe refuses the request: {code}"),))


def _failed(whose: str, failure: Any, reason: str, **about: Any) -> Answer:
    return Answer("failed", f"{whose}:{failure}", failure, reason, **about)


def _refund_failed(refund: Refund, reason: str) -> Answer:
    return Answer(
        "refund_failed", f"{refund.refund_id}:refused", reason=reason, amount=refund.amount, refund_id=refund.refund_id
    )


def _why(error: Mapping[str, Any]) -> str:
    """Stripe's code of a decline: its sentences may name what was sent."""
    return str(error.get("decline_code") or error.get("code") or "declined")


def _id_in(said: Mapping[str, Any], name: str) -> UUID | None:
    """An id of ours in the metadata of an object; None where there is none, or what others write there."""
    try:
        return UUID((said.get("metadata") or {}).get(name, ""))
    except ValueError:
        return None


def _metadata(order: Order) -> dict[str, str]:
    return {"attempt_id": str(order.attempt_id), "account_id": order.account_id}


def _key(id: UUID) -> str:
    return f"tollbook-{id}"
