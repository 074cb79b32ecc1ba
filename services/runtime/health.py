"""The health page of a process: `/live` (every consume loop turns) and `/ready` (nothing is stopped) as JSON, and `/metrics`.

Liveness is the age of the consume loop, not an answer of the broker: a broker that answers proves only itself.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

from services.runtime.metrics import TEXT, Metrics

log = logging.getLogger(__name__)

REQUEST_S_MAX = 5.0


async def serve(port: int, health: Callable[[], dict[str, Any]], metrics: Metrics) -> asyncio.Server:
    """Listen on this port (0: any free one) until the server is closed."""
    metrics.look_at(health)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_S_MAX):
                request = await reader.readuntil(b"\r\n\r\n")
            path = request.split(b" ", 2)[1].decode("ascii", "replace")
            writer.write(_answer(path, health, metrics))
            await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, IndexError, ConnectionError):
            pass  # not a request
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "0.0.0.0", port)  # noqa: S104 - an orchestrator asks from outside
    log.info("health on port %d", server.sockets[0].getsockname()[1])
    return server


def _answer(path: str, health: Callable[[], dict[str, Any]], metrics: Metrics) -> bytes:
    if path == "/metrics":
        status, kind, body = "200 OK", TEXT, metrics.text()
    else:
        state = health()
        known = {"/live": state["alive"], "/ready": state["alive"] and state["ready"]}
        status = "404 Not Found" if path not in known else "200 OK" if known[path] else "503 Service Unavailable"
        kind, body = "application/json", json.dumps(state).encode()
    head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    return head.encode() + body
