"""Room processes for tests on real servers: started, killed at a named step, started again."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path

from tests.support.nursery import Forked, Nursery

ROOT = Path(__file__).resolve().parents[2]
NOTHING: Mapping[str, str] = {}
STOP_S_MAX = 60.0  # a copy ends what it has in hand; the machine may be busy


@dataclass
class Processes:
    """Subprocesses of one test with the environment of its servers. `stop` ends what still runs.

    ``forked``: they are rooms, and born in a nursery instead of by a Python of their own.
    """

    environment: dict[str, str]
    logs: Path
    forked: bool = False
    running: dict[str, subprocess.Popen[bytes] | Forked] = field(default_factory=dict)
    _count: int = 0

    def start(
        self, name: str, *arguments: str, crash: str | None = None, more: Mapping[str, str] = NOTHING
    ) -> subprocess.Popen[bytes] | Forked:
        """Start `python -m <arguments>` under a name of ours; with ``crash`` it kills itself at that step; ``more`` are
        variables of its own."""
        self._count += 1
        environment = os.environ | self.environment | {"PYTHONUNBUFFERED": "1"} | dict(more)
        if crash is not None:
            environment |= {"TOLLBOOK_CRASH": crash, "TOLLBOOK_CRASH_LOG": str(self.crash_log)}
        self.running[name] = process = self._begin(arguments, environment, self.logs / f"{name}.log", more)
        return process

    def _begin(
        self, arguments: Sequence[str], environment: Mapping[str, str], path: Path, more: Mapping[str, str]
    ) -> subprocess.Popen[bytes] | Forked:
        if self.forked:
            return nursery(more).fork(arguments, environment, path)
        with path.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *arguments], cwd=ROOT, env=environment, stdout=log, stderr=log
            )

    @property
    def crash_log(self) -> Path:
        return self.logs / "crashes"

    def deaths(self) -> list[tuple[int, str]]:
        """Every process that killed itself and the step, in order: the proof that the fault happened."""
        if not self.crash_log.exists():
            return []
        lines = [line.split() for line in self.crash_log.read_text().splitlines()]
        return [(int(process_id), step) for process_id, step in lines]

    def crashed_at(self) -> list[str]:
        """The steps at which processes killed themselves, in order."""
        return [step for _, step in self.deaths()]

    async def wait_crashed(self, name: str, step: str, within_s: float = 45.0) -> None:
        """Wait until this very process has killed itself at this step; any other end fails with the end of its log."""
        process = self.running[name]
        try:
            await asyncio.to_thread(process.wait, within_s)
        except subprocess.TimeoutExpired:
            self.kill(name)
            raise AssertionError(f"{name} never came to {step}\n{self.tail(name)}") from None
        del self.running[name]
        assert (process.pid, step.partition(":")[0]) in self.deaths(), (
            f"{name} ended by {process.returncode}, not at {step}\n{self.tail(name)}"
        )

    def tail(self, name: str) -> str:
        log = self.logs / f"{name}.log"
        return log.read_text(errors="replace")[-4000:] if log.exists() else ""

    def logged_at(self, name: str) -> list[datetime]:
        """By its own clock, when a process logged each of its lines."""
        log = self.logs / f"{name}.log"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        return [datetime.fromisoformat(json.loads(line)["time"]) for line in lines if line.startswith('{"time": ')]

    def kill(self, name: str) -> None:
        """SIGKILL from outside, at whatever point it is."""
        process = self.running.pop(name)
        process.kill()
        process.wait()

    def stop(self, *names: str) -> dict[str, int]:
        """SIGTERM, wait, and the exit codes; a process that does not stop in time is killed and reported as -9."""
        chosen = names or tuple(self.running)
        for name in chosen:
            self.running[name].terminate()
        codes = {}
        for name in chosen:
            process = self.running.pop(name)
            try:
                codes[name] = process.wait(STOP_S_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                codes[name] = process.wait()
        return codes


def nursery(more: Mapping[str, str] = NOTHING) -> Nursery:
    """Where rooms with these variables of their own are born; the first call lets it begin to import, and does not wait."""
    return _nursery(tuple(sorted(more.items())))


@cache
def _nursery(more: tuple[tuple[str, str], ...]) -> Nursery:
    return Nursery(dict(more))


async def until(condition: Callable[[], Awaitable[bool]], what: str, within_s: float = 60.0) -> None:
    """Wait until the condition holds; say what was waited for when it does not come."""
    deadline = time.monotonic() + within_s
    while not await condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:.0f} s: {what}")
        await asyncio.sleep(0.1)


def wrong_clock(by: timedelta) -> dict[str, str]:
    """The variables with which a process believes that it is later by so much, or earlier, by the library of Debian's
    `faketime`. Spans of time are what they are. None with `TOLLBOOK_TEST_WITHOUT_FAKETIME=1`."""
    if os.environ.get("TOLLBOOK_TEST_WITHOUT_FAKETIME") == "1":
        return {}
    library = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)
    if library is None:
        raise AssertionError(
            "a wrong clock needs libfaketime: install Debian's `faketime`, or set TOLLBOOK_TEST_WITHOUT_FAKETIME=1 to"
            " run without that fault"
        )
    return {"LD_PRELOAD": str(library), "FAKETIME": f"{by.total_seconds():+.0f}", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
