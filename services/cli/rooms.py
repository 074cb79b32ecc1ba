"""The rooms as processes of this machine: started together, started again after a crash, stopped cleanly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from services.kernel.errors import Unavailable
from services.runtime.embedded.process import last_lines
from services.runtime.settings import PROCESSES, ROOMS

BACK_OFF_S_MIN, BACK_OFF_S_MAX = 0.5, 30.0
STEADY_S = 60.0  # a room that ran this long before it crashed starts its back-off anew
STOP_S_MAX = 20.0  # a batch in hand ends in far less; then it is killed, which costs nothing but a repeat


@dataclass
class Copy:
    """One process of a room. ``starts_at`` is set while it waits to be started again."""

    room: str
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    starts_at: float | None = None
    back_off_s: float = BACK_OFF_S_MIN
    crashes: int = 0
    exit_code: int | None = None


@dataclass
class RoomProcesses:
    """Copies of rooms below one log folder. ``environment`` is added to the caller's."""

    logs: Path
    environment: Mapping[str, str]
    copies: list[Copy] = field(default_factory=list)

    def start(self, rooms: Iterable[str] = ROOMS, copies: int = 1) -> None:
        """Starts them all at once; they come up side by side."""
        self.logs.mkdir(parents=True, exist_ok=True)
        for room in rooms:
            for number in range(1, copies + 1):
                name = room if number == 1 else f"{room}-{number}"
                copy = Copy(room, self.logs / f"{name}.log")
                copy.log.write_bytes(b"")
                self.copies.append(copy)
                self._spawn(copy)

    def _spawn(self, copy: Copy) -> None:
        with copy.log.open("ab") as log:
            copy.process = subprocess.Popen(
                [sys.executable, "-m", f"services.{copy.room}"],
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal is ours to hand on, in order
            )
        copy.started_at, copy.starts_at = time.monotonic(), None

    def look(self) -> list[Copy]:
        """Starts again what crashed and has waited long enough; returns what crashed since the last look."""
        crashed = []
        now = time.monotonic()
        for copy in self.copies:
            if copy.process is not None and copy.process.poll() is not None:
                if now - copy.started_at > STEADY_S:
                    copy.back_off_s = BACK_OFF_S_MIN
                copy.exit_code, copy.process = copy.process.returncode, None
                copy.crashes += 1
                copy.starts_at = now + copy.back_off_s
                copy.back_off_s = min(BACK_OFF_S_MAX, copy.back_off_s * 2)
                crashed.append(copy)
            elif copy.starts_at is not None and now >= copy.starts_at:
                self._spawn(copy)
        return crashed

    def check(self) -> None:
        """For programs that do not start anything again: a room that ended is an error with the end of its log."""
        for copy in self.copies:
            if copy.process is not None and copy.process.poll() is not None:
                lines = "\n".join(f"  | {line}" for line in last_lines(copy.log))
                raise Unavailable(
                    f"ended with code {copy.process.returncode}; the end of {copy.log}:\n{lines}", field=copy.room
                )

    def stop(self, rooms: Iterable[str] = PROCESSES) -> list[str]:
        """Asks the copies of these rooms to end, waits, kills what does not; returns those that had to be killed."""
        stopped = [copy for copy in self.copies if copy.room in set(rooms)]
        running = [copy for copy in stopped if copy.process is not None and copy.process.poll() is None]
        for copy in running:
            _signal(copy, signal.SIGTERM)
        give_up = time.monotonic() + STOP_S_MAX
        killed = []
        for copy in running:
            try:
                _process(copy).wait(max(0.1, give_up - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal(copy, signal.SIGKILL)
                _process(copy).wait()
                killed.append(copy.room)
        self.copies = [copy for copy in self.copies if copy not in stopped]
        return killed


def environment(data: Path | None = None, **more: str) -> dict[str, str]:
    """The variables of a room's process: the caller's, with the data folder as an absolute path and ``more``."""
    made = os.environ | {"PYTHONUNBUFFERED": "1"} | more
    if data is not None:
        made["TOLLBOOK_DATA"] = str(data.resolve())
    return dict(made)


def own_environment(data: Path, **more: str) -> dict[str, str]:
    """As `environment`, but nothing of the caller's settings: for servers of our own on a folder of our own."""
    made = {name: value for name, value in os.environ.items() if not name.startswith("TOLLBOOK_")}
    return made | {"PYTHONUNBUFFERED": "1", "TOLLBOOK_DATA": str(data.resolve())} | more


def _process(copy: Copy) -> subprocess.Popen[bytes]:
    if copy.process is None:
        raise Unavailable("is not running", field=copy.room)
    return copy.process


def _signal(copy: Copy, number: signal.Signals) -> None:
    process = _process(copy)
    if process.poll() is None:
        process.send_signal(number)
