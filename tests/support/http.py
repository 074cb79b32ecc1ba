"""A client of HTTP/1.1 that keeps its connections: as much of it as a switch needs, and no more time than that takes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple


class Answered(NamedTuple):
    """What came back; ``body`` is decoded JSON, or the text where it is something else."""

    status: int
    body: Any
    headers: Mapping[str, str]


@dataclass
class Connection:
    """One connection; one request at a time. Opened by its first request."""

    host: str
    port: int
    _streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def post(self, path: str, body: Any) -> Answered:
        """A JSON document, or bytes as they are."""
        return await self.ask("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode())

    async def get(self, path: str) -> Answered:
        return await self.ask("GET", path)

    async def ask(self, method: str, path: str, body: bytes = b"") -> Answered:
        """Raises `ConnectionError` when the answer is lost."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(self.host, self.port)
        reader, writer = self._streams
        head = f"{method} {path} HTTP/1.1\r\nhost: {self.host}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        try:
            lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
            content = await reader.readexactly(int(headers.get("content-length", "0")))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            await self.close()
            raise ConnectionError("the answer was lost") from error
        if headers.get("connection") == "close":
            await self.close()
        is_json = headers.get("content-type", "application/json").startswith("application/json")
        body_of = json.loads if is_json else bytes.decode
        return Answered(int(lines[0].split()[1]), body_of(content) if content else None, headers)
