"""An HTTP server inside a process that has signals and an end of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.requests import Request


class HttpServer(uvicorn.Server):
    """Stops when it is told: uvicorn takes the process's signals, and raises them again before what was opened is closed."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        """Take no more connections, answer what was asked, end."""
        self.should_exit = True


async def read_body(request: Request, bytes_max: int) -> bytes | None:
    """The raw bytes of a request; None, and the rest unread, when there are more than so many."""
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > bytes_max:
            return None
        pieces.append(piece)
    return b"".join(pieces)
