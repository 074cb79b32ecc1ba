"""An HTTP server inside a process that has signals and an end of its own, and whose other ends may be slow or hostile.

No connection waits for ever: for a head, for a body, for somebody to read an answer, or for the next request. There are so many
at most; when one more comes, the one that has waited longest for a request makes room.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import uvicorn
from starlette.requests import Request
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

CONNECTIONS_MAX = 512  # half of the files that a process may have open where nobody raised that
HEAD_BYTES_MAX = 65_536  # the parser keeps whatever comes
HEAD_S_MAX = 10.0  # from its first byte, of a new connection from its beginning
BODY_S_MAX = 10.0
UNREAD_S_MAX = 10.0  # of an answer that fills what the system keeps for its reader


class _Connection(HttpToolsProtocol):
    """One connection. An end by a limit drops what was not sent: whoever does not read would keep it open."""

    def __init__(self, *args: Any, connections_max: int, **more: Any) -> None:
        super().__init__(*args, **more)
        self._connections_max = connections_max
        self._waits_since = self.loop.time()
        self._in_head = False
        self._head_bytes = 0
        self._head_ends: asyncio.TimerHandle | None = None
        self._unread_ends: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._make_room()
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX:
                self.send_400_response(f"The head of a request must be at most {HEAD_BYTES_MAX} bytes.")
        if self._waits and not self.transport.is_closing():
            self._await_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_timers()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        self._waits_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread_ends = self.loop.call_later(UNREAD_S_MAX, self.transport.abort)

    def resume_writing(self) -> None:
        if self._unread_ends is not None:
            self._unread_ends.cancel()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        self.transport.abort()

    @property
    def _waits(self) -> bool:
        """Whether it is between two requests, or in the head of one."""
        return self.cycle is None or self.cycle.response_complete

    def _await_head(self) -> None:
        if self._head_ends is None:
            self._head_ends = self.loop.call_later(HEAD_S_MAX, self.transport.abort)

    def _stop_timers(self) -> None:
        for each in (self._head_ends, self._unread_ends):
            if each is not None:
                each.cancel()
        self._head_ends = None

    def _make_room(self) -> None:
        if len(self.connections) <= self._connections_max:
            return
        still_open: Any = [each for each in self.connections if not each.transport.is_closing()]
        if len(still_open) > self._connections_max:  # at least this one waits
            min((each for each in still_open if each._waits), key=lambda each: each._waits_since).transport.abort()


class HttpServer(uvicorn.Server):
    """Serves one application. Stops when it is told: uvicorn takes the process's signals, and raises them again before what was
    opened is closed.

    ``stop_s``: for the answers that are under way at the end. ``keep_s``: how long a connection waits for the next request.
    """

    def __init__(self, app: Any, *, stop_s: int, keep_s: int = 5, connections_max: int = CONNECTIONS_MAX) -> None:
        connection: Any = partial(_Connection, connections_max=connections_max)
        super().__init__(
            uvicorn.Config(
                app, http=connection, ws="none", lifespan="off", log_config=None, access_log=False,
                server_header=False, timeout_graceful_shutdown=stop_s, timeout_keep_alive=keep_s,
            )
        )  # fmt: skip

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        """Take no more connections, answer what was asked, end."""
        self.should_exit = True


async def read_body(request: Request, bytes_max: int) -> bytes | None:
    """The raw bytes of a request; None, and the rest unread, when there are more than so many. `TimeoutError` when they do not
    come within `BODY_S_MAX`."""
    pieces, size = [], 0
    async with asyncio.timeout(BODY_S_MAX):
        async for piece in request.stream():
            size += len(piece)
            if size > bytes_max:
                return None
            pieces.append(piece)
    return b"".join(pieces)
