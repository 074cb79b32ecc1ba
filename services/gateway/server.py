"""The gateway's process: it joins the rooms' `api.py` and serves them over HTTP until it is told to stop.

It owns no table and decides nothing. It logs in as the rooms that it speaks for, each with that room's role.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from typing import Any

import uvloop
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from prometheus_client import generate_latest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts.topics import BALANCE_EVENTS, PAYMENTS_REQUESTS
from services.balance.api import Holds
from services.gateway import accounts, calls, errors
from services.gateway.counting import Counted
from services.kernel.errors import TollbookError, Unavailable
from services.runtime import logs
from services.runtime.database import open_engine, transaction
from services.runtime.http_server import HttpServer
from services.runtime.known_topics import KnownTopics
from services.runtime.metrics import TEXT, registry_of_process
from services.runtime.restoring import refuse_unfinished
from services.runtime.settings import GATEWAY, Settings, load
from services.usage.api import REFRESH_S, Quotes

log = logging.getLogger(__name__)

STALE_S = 10.0  # without a look at the registry and the books: the database is away, or this process stands still
STOP_S = 15  # for the answers that are under way
KEEP_S = 75  # a connection without requests: one that is closed just as a switch asks costs it its answer
LOCK_MS = 2_000  # a wallet that somebody holds this long is given up, and its callers are told to ask again
POOL_SIZE = 4  # one transaction of calls at a time, beside what people read


def application(quotes: Quotes, holds: Holds, balance: AsyncEngine, *, answer_s_max: float = 3.0) -> FastAPI:
    """All paths of the gateway. ``answer_s_max``: whoever waits for longer is told to ask again."""
    app = FastAPI(title="Tollbook", version=version("tollbook"), docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.answer_s_max = answer_s_max
    registry = registry_of_process()
    app.add_middleware(Counted, registry=registry)
    errors.explain(app)
    app.include_router(calls.routes(quotes, holds))
    app.include_router(accounts.routes(balance))

    @app.get("/live", include_in_schema=False)
    async def live() -> dict[str, Any]:
        """It answers: that is all that it has to prove."""
        return {"room": GATEWAY, "alive": True}

    @app.get("/ready", include_in_schema=False)
    async def ready() -> JSONResponse:
        """Whether it has seen the database lately."""
        is_ready = quotes.age_s < STALE_S
        return JSONResponse({"room": GATEWAY, "alive": True, "ready": is_ready}, 200 if is_ready else 503)

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(registry), media_type=TEXT)

    return app


def run() -> None:
    """Serve until SIGTERM; exit 1 with a sentence when it cannot start."""
    try:
        settings = load()
        logs.configure(GATEWAY, settings.log_level)
        with _listening(settings) as listener, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(settings, listener))
    except TollbookError as error:
        sys.exit(f"{error}")


def _listening(settings: Settings) -> socket.socket:
    try:
        return socket.create_server((settings.gateway_host, settings.gateway_port))
    except OSError as error:
        raise Unavailable(
            f"cannot listen on {settings.gateway_host}:{settings.gateway_port} ({error.strerror}); choose another by"
            " TOLLBOOK_GATEWAY_HOST and TOLLBOOK_GATEWAY_PORT",
            field="TOLLBOOK_GATEWAY_PORT",
        ) from None


async def _serve(settings: Settings, listener: socket.socket) -> None:
    async with _opened(settings) as app:
        server = HttpServer(app, stop_s=STOP_S, keep_s=KEEP_S)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, server.stop)
        log.info("gateway on http://%s:%d", *listener.getsockname()[:2])
        await server.serve(sockets=[listener])
    log.info("gateway stopped")


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[FastAPI]:
    """The rooms' ways in, opened; what was asked is answered before they close."""
    topics = await KnownTopics.asked(settings, (PAYMENTS_REQUESTS, BALANCE_EVENTS))
    engines = {room: _engine(settings, room) for room in ("usage", "balance")}
    quotes = Quotes(engines["usage"])
    holds = Holds(engines["balance"], topics)
    look: asyncio.Task[None] | None = None
    try:
        async with transaction(engines["balance"]) as connection:
            await refuse_unfinished(connection)
        await quotes.refresh()
        look = asyncio.create_task(_look(quotes, engines["balance"]))
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        yield application(quotes, holds, engines["balance"], answer_s_max=settings.gateway_answer_ms / 1000)
        await holds.close()
    finally:
        if look is not None:
            look.cancel()
            with suppress(asyncio.CancelledError):
                await look
        for engine in engines.values():
            await engine.dispose()


def _engine(settings: Settings, room: str) -> AsyncEngine:
    return open_engine(
        settings.room_database_url(room),
        application=f"tollbook.{GATEWAY}.{room}",
        pool_size=POOL_SIZE,
        lock_timeout_ms=LOCK_MS,
    )


async def _look(quotes: Quotes, engine: AsyncEngine) -> None:
    """Every second: what has changed, and a sign of life. A database that is away is waited for."""
    name = f"{socket.gethostname()}-{os.getpid()}"
    beat = text(
        "insert into runtime.heartbeat (room, process, at, loop_age_ms, assigned, lag)"
        " values (:room, :process, now(), 0, 0, 0) on conflict (room, process) do update set at = excluded.at"
    )
    while True:
        await asyncio.sleep(REFRESH_S)
        try:
            await quotes.refresh()
            async with transaction(engine) as connection:
                await connection.execute(beat, {"room": GATEWAY, "process": name})
        except Exception as error:
            log.warning("the database does not answer: %s", type(error).__name__, exc_info=error)
