"""An HTTP server inside a process that has signals and an end of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn


class HttpServer(uvicorn.Server):
    """Stops when it is told: uvicorn takes the process's signals, and raises them again before what was opened is closed."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        """Take no more connections, answer what was asked, end."""
        self.should_exit = True
