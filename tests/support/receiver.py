"""A receiver of webhooks: a real HTTP server on the loopback that does to each request what a test says."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from standardwebhooks import Webhook

from services.webhooks.addresses import Allowed, networks

LOOPBACK = Allowed(networks("127.0.0.0/8"), http=True)
"""What an installation must allow to call it."""

Answer = bytes | float | asyncio.Event | None
"""What is sent back: bytes, 200 after a number of seconds or when an event is set, or None to close without a word."""


def status(code: int, *, body: str = "", **headers: str) -> bytes:
    """An answer with this status; `retry_after="5"` is a header."""
    lines = [f"HTTP/1.1 {code} Said", f"Content-Length: {len(body.encode())}"]
    lines += [f"{name.replace('_', '-').title()}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


OK = status(200, body="taken")


@dataclass(frozen=True)
class Received:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: str
    at: float

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def verified(self, secret: str) -> Any:
        """The body, checked as a receiver checks it, by the library of the specification."""
        return Webhook(secret).verify(self.body, self.headers)


@dataclass
class Receiver:
    """`answer` says what each request is answered by; `tls` makes it speak HTTPS, `names` are those it was asked for by."""

    answer: Callable[[Received], Answer] = lambda _: OK
    tls: ssl.SSLContext | None = None
    requests: list[Received] = field(default_factory=list)
    names: list[str | None] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    connections: int = 0
    open_now: Counter[str] = field(default_factory=Counter)
    open_max: Counter[str] = field(default_factory=Counter)
    _server: asyncio.Server | None = None

    async def __aenter__(self) -> Receiver:
        if self.tls is not None:
            self.tls.sni_callback = lambda _, name, __: self.names.append(name)
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.tls)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def ids(self, path: str = "/") -> list[str]:
        """The ids of what came to a path, in order, repeats included."""
        return [each.id for each in self.requests if each.path == path]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        path = ""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
            body = (await reader.readexactly(int(headers.get("content-length", 0)))).decode()
            path = first.split(" ")[1]
            received = Received(path, headers, body, asyncio.get_running_loop().time())
            self.requests.append(received)
            self.asked.set()
            self.open_now[path] += 1
            self.open_max[path] = max(self.open_max[path], self.open_now[path])
            answer = self.answer(received)
            if isinstance(answer, float):
                await asyncio.sleep(answer)
                answer = OK
            if isinstance(answer, asyncio.Event):
                await answer.wait()
                answer = OK
            if answer is not None:
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            return  # who called has hung up, or the test is over
        finally:
            self.open_now[path] -= 1
            writer.close()
