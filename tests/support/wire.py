"""A wire to a server that can be held still: what is sent is neither lost nor refused, it does not come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from sqlalchemy import make_url


class Wire:
    """``url`` leads to the same database through it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._moves = asyncio.Event()
        self._moves.set()

    @classmethod
    @asynccontextmanager
    async def to(cls, url: str) -> AsyncIterator[Wire]:
        there = make_url(url)
        tasks: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            far_reader, far_writer = await asyncio.open_connection(there.host, there.port)
            for each in ((reader, far_writer), (far_reader, writer)):
                tasks.add(asyncio.create_task(wire._pump(*each)))

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        wire = cls(there.set(host="127.0.0.1", port=port).render_as_string(hide_password=False))
        try:
            yield wire
        finally:
            server.close()
            for each in tasks:
                each.cancel()

    def freeze(self) -> None:
        self._moves.clear()

    def thaw(self) -> None:
        self._moves.set()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                await self._moves.wait()
                writer.write(data)
        writer.close()
