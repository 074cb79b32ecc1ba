"""How many requests came, how they were answered and how long that took: for Prometheus."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ANSWER_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Counted:
    """Counts what passes. A path is told as it is declared, so that ids make no series of their own."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry) -> None:
        self._app = app
        self._answers = Histogram(
            "tollbook_http_request_seconds", "From the head of a request to the end of its answer",
            ["method", "path", "status"], buckets=ANSWER_S, registry=registry,
        )  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500  # of an error that is told further out

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        begun = time.monotonic()
        try:
            await self._app(scope, receive, sent)
        finally:
            route = scope.get("route")
            path, method = (route.path, scope["method"]) if route is not None else ("", "")
            self._answers.labels(method, path, status).observe(time.monotonic() - begun)
