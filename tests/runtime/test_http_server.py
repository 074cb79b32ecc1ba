"""The HTTP server against other ends that are slow, many or hostile."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from services.runtime import http_server
from services.runtime.http_server import HttpServer, read_body

GET = b"GET /small HTTP/1.1\r\nhost: here\r\n\r\n"
LIMIT_S = 0.3
MANY = 20

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _small(_: Request) -> Response:
    return PlainTextResponse("small")


async def _large(_: Request) -> Response:
    return PlainTextResponse("x" * 50_000_000)


async def _taken(request: Request) -> Response:
    try:
        body = await read_body(request, 1000)
    except TimeoutError:
        return PlainTextResponse("late", 408)
    return PlainTextResponse("large", 413) if body is None else PlainTextResponse("taken")


class Served:
    """A server with short limits, and raw connections to it."""

    def __init__(self, port: int, server: HttpServer) -> None:
        self.port, self.server = port, server

    async def connect(self) -> Streams:
        return await asyncio.open_connection("127.0.0.1", self.port)

    @property
    def connections(self) -> int:
        return len(self.server.server_state.connections)


@pytest.fixture
async def served(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    for name in ("HEAD_S_MAX", "BODY_S_MAX", "UNREAD_S_MAX"):
        monkeypatch.setattr(http_server, name, LIMIT_S)
    app = Starlette(
        routes=[Route("/small", _small), Route("/large", _large), Route("/taken", _taken, methods=["POST"])]
    )
    listener = socket.create_server(("127.0.0.1", 0))  # who connects before it serves is served later
    server = HttpServer(app, stop_s=1, keep_s=30, connections_max=MANY)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    yield Served(listener.getsockname()[1], server)
    server.stop()
    await task


async def answer(streams: Streams, request: bytes = GET) -> str:
    streams[1].write(request)
    return await read(streams)


async def read(streams: Streams) -> str:
    head = (await streams[0].readuntil(b"\r\n\r\n")).decode()
    length = int(head.lower().partition("content-length: ")[2].partition("\r\n")[0])
    await streams[0].readexactly(length)
    return head.split()[1]


async def is_ended(streams: Streams) -> bool:
    """Within a few limits."""
    try:
        async with asyncio.timeout(10 * LIMIT_S):
            await streams[0].read()
            return True
    except ConnectionError:
        return True
    except TimeoutError:
        return False


async def is_ended_though_fed(streams: Streams, more: bytes) -> bool:
    ends = asyncio.create_task(is_ended(streams))
    while not ends.done():
        streams[1].write(more)
        await asyncio.sleep(LIMIT_S / 10)
    return await ends


@pytest.mark.parametrize("start", [b"", b"GET /small HT", GET[:-2] + b"x: 1\r\n", b"\r\n"])
async def test_a_head_that_does_not_come_ends_its_connection(served: Served, start: bytes) -> None:
    streams = await served.connect()
    streams[1].write(start)
    assert await is_ended(streams)


@pytest.mark.parametrize(("start", "more"), [(b"GET /small HTTP/1.1\r\nx: ", b"y"), (b"\r\n", b"\r\n")])
async def test_so_does_the_head_of_a_later_request_though_it_comes_byte_by_byte(
    served: Served, start: bytes, more: bytes
) -> None:
    streams = await served.connect()
    assert await answer(streams) == "200"
    await asyncio.sleep(2 * LIMIT_S)  # between two requests a connection may wait for longer
    assert await answer(streams) == "200"
    streams[1].write(start)
    assert await is_ended_though_fed(streams, more)


async def test_a_body_that_does_not_come_is_said_and_its_rest_is_not_waited_for(served: Served) -> None:
    post = b"POST /taken HTTP/1.1\r\nhost: here\r\ncontent-length: "
    streams = await served.connect()
    assert await answer(streams, post + b"5\r\n\r\nabc") == "408"
    streams = await served.connect()
    assert await answer(streams, post + b"1000000\r\n\r\n" + b"x" * 2000) == "413"
    assert await is_ended_though_fed(streams, b"x")


async def test_a_head_without_end_is_refused(served: Served) -> None:
    streams = await served.connect()
    streams[1].write(b"GET /small HTTP/1.1\r\nx: " + b"y" * http_server.HEAD_BYTES_MAX)
    assert (await streams[0].readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
    assert await is_ended(streams)


async def test_an_answer_that_nobody_reads_ends_its_connection(served: Served) -> None:
    for request in (b"GET /large HTTP/1.1\r\nhost: here\r\n\r\n", b"GET /large HTTP/1.0\r\n\r\n"):
        _, writer = await served.connect()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(request)
        await asyncio.sleep(0.5 * LIMIT_S)
        assert served.connections == 1
        await asyncio.sleep(3 * LIMIT_S)
        assert served.connections == 0
        writer.close()


async def test_there_are_so_many_connections_at_most_and_a_new_one_is_served(served: Served) -> None:
    first = await served.connect()
    assert await answer(first) == "200"
    idle = [await served.connect() for _ in range(5 * MANY)]
    assert await answer(idle[-1]) == "200"
    assert served.connections <= MANY
    assert await is_ended(first)
    assert await answer(await served.connect()) == "200"


async def test_requests_that_come_together_are_all_answered(served: Served) -> None:
    streams = await served.connect()
    streams[1].write(GET * 3 + GET[:20])
    assert [await read(streams) for _ in range(3)] == ["200"] * 3
    assert await answer(streams, GET[20:]) == "200"
