"""`tollbook up` watches the servers that it runs on as it watches the rooms."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.cli import up
from services.cli.rooms import RoomProcesses
from services.runtime import embedded
from services.runtime.settings import load

TOLD_S_MAX = 30.0


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    embedded.stop(tmp_path)


async def test_a_server_that_dies_is_told_once_with_its_log(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOLLBOOK_DATA", str(data))
    monkeypatch.setenv("TOLLBOOK_POSTGRES", "postgresql://127.0.0.1:9/tollbook")
    monkeypatch.setenv("TOLLBOOK_ROOM_PASSWORD", "x")
    monkeypatch.setattr(up, "LOOK_S", 0.05)
    said: list[str] = []
    looks = asyncio.Queue[str]()

    def say(line: str) -> None:  # of each look: that the other server does not answer
        said.append(line)
        looks.put_nowait(line)

    monkeypatch.setattr(up, "say", say)
    servers = await asyncio.to_thread(embedded.start, data, ["valkey"])
    stop = asyncio.Event()
    watching = asyncio.create_task(up._watch(load(), ["valkey"], RoomProcesses(data / "logs", {}), stop))
    try:
        async with asyncio.timeout(TOLD_S_MAX):
            await looks.get()
            assert not any(line.startswith("valkey") for line in said)
            os.kill(servers.running["valkey"].pid, signal.SIGKILL)
            while not (await looks.get()).startswith("valkey"):
                pass
            for _ in range(2):
                await looks.get()
    finally:
        stop.set()
        await watching
    (told,) = [line for line in said if line.startswith("valkey")]
    log = data / "logs" / "valkey.log"
    assert told == f"valkey has ended; see {log}, then stop this by Ctrl-C and start it again"
