"""One server process: started detached, recognised again later, stopped without loss.

A process is ours only when both its id and its start time are the ones written down, so that a recycled process id is
never signalled.
"""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from services.kernel.errors import Unavailable

LOG_LINES_SHOWN = 15  # enough to hold the cause of a failed start, few enough to be read
_LOG_TAIL_BYTES = 64 * 1024
_LOG_HEAD_BYTES = 1024 * 1024
_POLL_S = 0.02
_KILL_WAIT_S = 10.0
_SAME_S = 0.005  # half of the tick that the system counts by


@dataclass(frozen=True)
class Command:
    """What to run: a program with its arguments, the folder it runs in, and whom it runs as (None: the caller)."""

    arguments: Sequence[str]
    folder: Path
    user: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Running:
    """A server process that was started: its id, when it started (seconds since the machine did) and its ports by name."""

    pid: int
    started_after_boot_s: float
    ports: Mapping[str, int]

    def alive(self) -> bool:
        """Whether this very process still runs; a recycled id and a dead child that nobody waited for do not count."""
        return self._process() is not None

    def _process(self) -> psutil.Process | None:
        try:
            process = psutil.Process(self.pid)
            is_another = abs(_started_after_boot_s(process) - self.started_after_boot_s) > _SAME_S
            if is_another or process.status() == psutil.STATUS_ZOMBIE:
                return None
        except psutil.NoSuchProcess:
            return None
        return process

    def stop(self, how: signal.Signals, wait_s: float) -> None:
        """Asks the process to end by the signal `how`, waits at most `wait_s` seconds, then kills it."""
        process = self._process()
        if process is None:
            return
        for step, patience_s in ((how, wait_s), (signal.SIGKILL, _KILL_WAIT_S)):
            try:
                process.send_signal(step)
                process.wait(patience_s)
                return
            except psutil.NoSuchProcess:
                return
            except psutil.TimeoutExpired:
                continue
        raise Unavailable(f"process {self.pid} does not end, not even when killed; see what it waits for and try again")


def spawn(command: Command, log: Path) -> subprocess.Popen[bytes]:
    """Starts the command in a session of its own: it outlives the caller and its terminal. Output goes to `log`."""
    with log.open("wb") as output:
        return subprocess.Popen(
            list(command.arguments),
            cwd=command.folder,
            env={**_inherited(), **command.environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=command.user,
            group=_group(command.user),
            extra_groups=None if command.user is None else [],
        )


def run(command: Command, log: Path, *, typed: str = "", wait_s: float = 120) -> None:
    """Runs a command to its end, writing what it prints to `log`; a failure carries the last lines of it."""
    with log.open("wb") as output:
        try:
            done = subprocess.run(
                list(command.arguments),
                cwd=command.folder,
                env={**_inherited(), **command.environment},
                input=typed.encode(),
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=wait_s,
                check=False,
                user=command.user,
                group=_group(command.user),
                extra_groups=None if command.user is None else [],
            )
        except subprocess.TimeoutExpired:
            raise failed(Path(command.arguments[0]).name, f"took longer than {wait_s:.0f} s", log) from None
    if done.returncode != 0:
        raise failed(Path(command.arguments[0]).name, f"ended with code {done.returncode}", log)


def started(process: subprocess.Popen[bytes], ports: Mapping[str, int]) -> Running:
    """How to recognise a process that was just spawned."""
    try:
        return Running(process.pid, _started_after_boot_s(psutil.Process(process.pid)), dict(ports))
    except psutil.NoSuchProcess:  # ended already; no living process has started before the machine
        return Running(process.pid, -1.0, dict(ports))


def _started_after_boot_s(process: psutil.Process) -> float:
    """The one start time that stays the same: what the system says in seconds since 1970 moves when the clock is set."""
    return process.create_time() - psutil.boot_time()


def failed(name: str, what: str, log: Path) -> Unavailable:
    """The error of a server that does not come up: what happened and the last lines of its log."""
    lines = "\n".join(f"  | {line}" for line in last_lines(log))
    return Unavailable(f"{name} {what}; the end of {log}:\n{lines}" if lines else f"{name} {what}; {log} is empty")


def says(log: Path, words: str) -> bool:
    """Whether the beginning of a log, where a server reports its start, holds the words."""
    try:
        with log.open("rb") as file:
            return words.encode() in file.read(_LOG_HEAD_BYTES)
    except OSError:
        return False


def last_lines(log: Path, count: int = LOG_LINES_SHOWN) -> list[str]:
    """The last lines of a log, whatever its size and encoding; none when there is no log."""
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _LOG_TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()[-count:]
    except OSError:
        return []


def pause() -> None:
    """The time between two looks at a server that is coming up."""
    time.sleep(_POLL_S)


def _inherited() -> dict[str, str]:
    # Servers must not be steered by what happens to stand in the caller's environment (PGDATA, KAFKA_OPTS, ...).
    return {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG") if name in os.environ}


def _group(user: int | None) -> int | None:
    return None if user is None else pwd.getpwuid(user).pw_gid
