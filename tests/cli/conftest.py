"""Runs `tollbook` commands in this process: their output, their errors, their exit codes."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from services.cli.__main__ import main
from tests.support.servers import Database


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Tollbook = Callable[..., Awaitable[Ran]]


@pytest.fixture
def on_database(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands work on the test's own database."""
    for name, value in database.environment().items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def tollbook(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Tollbook:
    """`await tollbook("account", "list")`. Without other settings there are no servers: the data folder is empty."""
    monkeypatch.setenv("TOLLBOOK_DATA", str(tmp_path / "nothing-here"))

    def run(arguments: tuple[str, ...]) -> int:
        monkeypatch.setattr(sys, "argv", ["tollbook", *arguments])
        try:
            main()
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    async def tollbook(*arguments: str) -> Ran:
        capsys.readouterr()
        code = await asyncio.to_thread(run, arguments)
        return Ran(code, *capsys.readouterr())

    return tollbook
