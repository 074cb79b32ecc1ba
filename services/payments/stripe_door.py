"""Where Stripe's webhooks come in: one URL, verified on the raw bytes, acknowledged when what they say is kept for good."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import stripe
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from services.kernel.errors import InvalidInput, Unavailable
from services.runtime.http_server import HttpServer, read_body

log = logging.getLogger(__name__)

PATH = "/webhooks/stripe"
BODY_BYTES_MAX = 1024 * 1024  # an event is some kilobytes
CONNECTIONS_MAX = 128  # each may have a body of that size in memory; Stripe asks again for days
TOLERANCE_S = 300  # a signature is good for so long, before and after: the library looks at the past only
STOP_S_MAX = 5  # for events that are being taken in

Take = Callable[[Mapping[str, Any]], Awaitable[None]]


def verified(body: bytes, signature: str, secret: str, now: float) -> Mapping[str, Any]:
    """The event in a body that Stripe signed within `TOLERANCE_S` of ``now``. `InvalidInput` for anything else."""
    if not signature.isascii():  # the library compares texts, and raises for these
        raise InvalidInput("is no signature", field="Stripe-Signature")
    try:
        text = body.decode()
        stripe.WebhookSignature.verify_header(text, signature, secret, None)
        # the signature holds, so its time is well formed
        signed_at = next(int(part[2:]) for part in signature.split(",") if part.startswith("t="))
    except (stripe.SignatureVerificationError, UnicodeDecodeError):
        raise InvalidInput("is no signature of this body by this endpoint's secret", field="Stripe-Signature") from None
    if abs(now - signed_at) > TOLERANCE_S:
        raise InvalidInput(f"is {now - signed_at:+.0f} s old; {TOLERANCE_S} are allowed", field="Stripe-Signature")
    event = json.loads(text)
    if not isinstance(event, dict) or not isinstance(event.get("data"), dict) or "object" not in event["data"]:
        raise InvalidInput("is no event", field="body")
    return event


class Door:
    """One HTTP server in the room's process. Copies on one machine may share the port."""

    def __init__(self, host: str, port: int, secret: str) -> None:
        self._host, self._port, self._secret = host, port, secret
        self._server: HttpServer | None = None
        self._serving: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """Where it listens: the port that was asked for, or the free one that was found for 0."""
        return self._port

    async def open(self, take: Take) -> None:
        """Listen; an event is acknowledged once ``take`` has returned."""

        async def receive(request: Request) -> Response:
            try:
                body = await read_body(request, BODY_BYTES_MAX)
            except TimeoutError:
                return PlainTextResponse("the body did not come in time", 408)
            except ClientDisconnect:
                return Response(status_code=400)  # nobody is there to read it
            if body is None:
                return PlainTextResponse(f"at most {BODY_BYTES_MAX} bytes", 413)
            try:
                event = verified(body, request.headers.get("stripe-signature", ""), self._secret, time.time())
            except (InvalidInput, ValueError) as error:
                log.warning("a webhook was refused: %s", error)
                return PlainTextResponse("not a signed event of this endpoint", 400)
            await take(event)
            return Response(status_code=200)

        app = Starlette(routes=[Route(PATH, receive, methods=["POST"])])
        try:
            listener = socket.create_server((self._host, self._port), reuse_port=True)
        except OSError as error:
            raise Unavailable(
                f"cannot listen on {self._host}:{self._port} ({error.strerror}); choose another",
                field="TOLLBOOK_STRIPE_WEBHOOK_PORT",
            ) from None
        self._port = listener.getsockname()[1]
        self._server = HttpServer(app, stop_s=STOP_S_MAX, connections_max=CONNECTIONS_MAX)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        log.info("webhooks of Stripe come in at http://%s:%s%s", self._host, self._port, PATH)

    async def close(self) -> None:
        """Finish what is under way, and stop listening."""
        if self._server is not None and self._serving is not None:
            self._server.stop()
            await self._serving
