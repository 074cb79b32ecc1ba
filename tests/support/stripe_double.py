"""A double of Stripe's API on this machine, as strict as Stripe about idempotency keys, and as unreliable as a network.

It knows payment intents, refunds and disputes, answers a repeated key with what it answered first, refuses a key that comes
with other parameters, and signs webhooks. Faults are set by the test: slow, lost answers, errors before and after the effect.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qsl
from uuid import uuid4

import httpcore
import stripe
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from services.runtime.http_server import HttpServer

SECRET = "whsec_of_the_double"
DECLINES = {"pm_declined": "insufficient_funds", "pm_authentication": "authentication_required"}
REFUSALS: dict[str | None, tuple[str, str | None]] = {  # code, parameter
    "pm_unknown": ("resource_missing", "payment_method"),
    "pm_detached": ("payment_method_unexpected_state", None),
    "pm_of_another": ("parameter_invalid", "customer"),
    "pm_switched_off": ("parameter_invalid", "payment_method_types"),
}


class StripeDouble:
    """``faults`` are used up one a request: `lost` and `slow` after the effect, `busy` and `broken` instead of it, `overtaken`
    when all intents have succeeded just before it."""

    def __init__(self) -> None:
        self.intents: dict[str, dict[str, Any]] = {}
        self.refunds: dict[str, dict[str, Any]] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.faults: list[str] = []
        self.search_lags = False
        self.events: list[dict[str, Any]] = []
        self.url = ""
        self._answers: dict[str, tuple[str, int, dict[str, Any]]] = {}
        self._numbers = itertools.count(1)

    # ---- what a test asks --------------------------------------------------------------------------------------------

    def charged(self) -> dict[str, int]:
        """How much was taken for each attempt, minor units."""
        sums: dict[str, int] = {}
        for each in self.intents.values():
            if each["status"] == "succeeded":
                attempt_id = each["metadata"]["attempt_id"]
                sums[attempt_id] = sums.get(attempt_id, 0) + each["amount"]
        return sums

    def intent_of(self, attempt_id: str) -> dict[str, Any]:
        (found,) = [each for each in self.intents.values() if each["metadata"].get("attempt_id") == attempt_id]
        return found

    def move(self, intent: dict[str, Any], status: str) -> None:
        """A payment that was under way ends, and Stripe tells it."""
        intent["status"] = status
        self.tell("payment_intent.succeeded" if status == "succeeded" else "payment_intent.payment_failed", intent)

    def end_refund(self, status: str) -> None:
        """The refund that is pending ends, and Stripe tells it."""
        (refund,) = [each for each in self.refunds.values() if each["status"] == "pending"]
        refund["status"] = status
        self.tell("refund.updated", refund)

    def forget_keys(self) -> None:
        """A day has passed: what was asked with a key is asked anew."""
        self._answers.clear()

    def refund_by_hand(self, intent: dict[str, Any], amount: int) -> None:
        """Somebody refunds in Stripe's own pages."""
        refund = self._new_refund(intent, amount, "succeeded", {})
        self.tell("refund.created", refund)

    def dispute(self, intent: dict[str, Any], status: str) -> None:
        """The payer's bank disputes, or the dispute ends."""
        dispute = {
            "id": f"dp_{intent['id']}", "object": "dispute", "amount": intent["amount"], "currency": "usd",
            "payment_intent": intent["id"], "status": status, "metadata": {},
        }  # fmt: skip
        closed = status in ("won", "lost")
        self.tell("charge.dispute.closed" if closed else "charge.dispute.created", dispute)

    def tell(self, kind: str, about: dict[str, Any]) -> None:
        """An event that is to be delivered."""
        event = {"id": f"evt_{next(self._numbers)}", "object": "event", "type": kind}
        self.events.append(event | {"data": {"object": json.loads(json.dumps(about))}})

    async def deliver(
        self, port: int, event: dict[str, Any], *, at: float | None = None, body: bytes | None = None
    ) -> int:
        """Post an event, signed at an instant; another body is one that somebody changed on the way. Returns the status."""
        text = json.dumps(event, indent=2)
        signed = stripe.WebhookSignature.generate_signature_header(text, SECRET, int(time.time() if at is None else at))
        return await post(port, text.encode() if body is None else body, signed)

    # ---- the API -----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[StripeDouble]:
        """Listens on this machine."""
        app = Starlette(routes=[Route("/{path:path}", self._serve, methods=["GET", "POST"])])
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = HttpServer(app, stop_s=1)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield self
        finally:
            server.stop()
            await task

    async def _serve(self, request: Request) -> JSONResponse:
        body = (await request.body()).decode()
        key = request.headers.get("idempotency-key") if request.method == "POST" else None
        path = request.url.path
        self.requests.append((request.method, path, key))
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "busy":
            return _error(409, "idempotency_error", "idempotency_key_in_use")
        if fault == "broken":
            return _error(500, "api_error", None)
        if fault == "withdrawn":
            return _error(401, "invalid_request_error", "api_key_expired")
        if fault == "limited":
            return _error(429, "invalid_request_error", "rate_limit")
        if fault == "overtaken":
            for intent in self.intents.values():
                intent["status"] = "succeeded"
        asked = _nested(parse_qsl(body if request.method == "POST" else request.url.query))
        if key is not None and key in self._answers:
            before, status, answer = self._answers[key]
            if before != path + body:
                return _error(400, "idempotency_error", None)
        else:
            status, answer = self._handle(request.method, path, asked)
            if key is not None:
                self._answers[key] = (path + body, status, json.loads(json.dumps(answer)))
        if fault == "lost":
            await asyncio.sleep(2.0)  # longer than the client waits
        if fault == "slow":
            await asyncio.sleep(0.2)
        return JSONResponse(answer, status)

    def _handle(self, method: str, path: str, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        match method, path.removeprefix("/v1/").split("/"):
            case "POST", ["payment_intents"]:
                return self._create(asked)
            case "GET", ["payment_intents", "search"]:
                wanted = re.fullmatch(r"metadata\['attempt_id'\]:'([0-9a-f-]+)'", asked["query"])
                assert wanted is not None
                found = [each for each in self.intents.values() if each["metadata"].get("attempt_id") == wanted[1]]
                return 200, {"object": "search_result", "data": [] if self.search_lags else found, "has_more": False}
            case "GET", ["payment_intents", id]:
                return 200, self.intents[id]
            case "POST", ["payment_intents", id, "cancel"]:
                intent = self.intents[id]
                if intent["status"] in ("succeeded", "canceled", "processing"):
                    return _said(400, "invalid_request_error", "payment_intent_unexpected_state")
                intent["status"] = "canceled"
                return 200, intent
            case "GET", ["refunds"]:
                given = self._refunds_of(asked["payment_intent"])
                return 200, {"object": "list", "data": given[::-1], "has_more": False, "url": "/v1/refunds"}
            case "POST", ["refunds"]:
                return self._refund(asked)
        raise AssertionError(f"the double knows no {method} {path}")

    def _create(self, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        method = asked.get("payment_method")
        if method in REFUSALS:
            return _said(400, "invalid_request_error", *REFUSALS[method])
        intent = {
            "id": f"pi_{uuid4().hex[:16]}", "object": "payment_intent", "amount": int(asked["amount"]),
            "currency": asked["currency"], "metadata": asked.get("metadata", {}), "status": "requires_payment_method",
            "last_payment_error": None, "customer": asked.get("customer"), "asked": asked,
        }  # fmt: skip
        self.intents[intent["id"]] = intent
        if asked.get("confirm") != "true":
            return 200, intent
        if method in DECLINES:
            error = {"type": "card_error", "code": "card_declined", "decline_code": DECLINES[method]}
            intent["last_payment_error"] = dict(error)
            return 402, {"error": error | {"message": f"{method} was declined", "payment_intent": dict(intent)}}
        is_slow = asked["payment_method_types"] == ["us_bank_account"]
        intent["status"] = "processing" if is_slow else "succeeded"
        if not is_slow:
            self.tell("payment_intent.succeeded", intent)
        return 200, intent

    def _refunds_of(self, intent_id: str) -> list[dict[str, Any]]:
        return [each for each in self.refunds.values() if each["payment_intent"] == intent_id]

    def _refund(self, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        intent, amount = self.intents[asked["payment_intent"]], int(asked["amount"])
        given = sum(each["amount"] for each in self._refunds_of(intent["id"]) if each["status"] != "failed")
        if amount + given > intent["amount"]:
            return _said(400, "invalid_request_error", "charge_already_refunded")
        is_slow = intent["asked"]["payment_method_types"] == ["us_bank_account"]
        return 200, self._new_refund(intent, amount, "pending" if is_slow else "succeeded", asked["metadata"])

    def _new_refund(self, intent: dict[str, Any], amount: int, status: str, metadata: dict[str, Any]) -> dict[str, Any]:
        refund = {
            "id": f"re_{uuid4().hex[:16]}", "object": "refund", "amount": amount, "currency": intent["currency"],
            "payment_intent": intent["id"], "status": status, "metadata": metadata,
        }  # fmt: skip
        self.refunds[refund["id"]] = refund
        return refund


async def post(port: int, body: bytes, signature: str) -> int:
    """A webhook as Stripe sends it."""
    async with httpcore.AsyncConnectionPool() as pool:
        answered = await pool.request(
            "POST",
            f"http://127.0.0.1:{port}/webhooks/stripe",
            headers={"stripe-signature": signature, "content-type": "application/json"},
            content=body,
        )
    return answered.status


def _said(status: int, kind: str, code: str | None, param: str | None = None) -> tuple[int, dict[str, Any]]:
    return status, {"error": {"type": kind, "code": code, "param": param, "message": f"the double says {code}"}}


def _error(status: int, kind: str, code: str | None) -> JSONResponse:
    return JSONResponse(_said(status, kind, code)[1], status)


def _nested(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """`metadata[a]=1` and `types[0]=x` as objects and lists."""
    made: dict[str, Any] = {}
    for name, value in pairs:
        outer, _, inner = name.partition("[")
        if not inner:
            made[outer] = value
        elif inner[:-1].isdigit():
            made.setdefault(outer, []).append(value)
        else:
            made.setdefault(outer, {})[inner[:-1]] = value
    return made
