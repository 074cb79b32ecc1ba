"""A process that has imported every room and forks them, so that a copy of a room starts in a moment.

Python needs two seconds of a core to import what a room is made of; a run with faults starts a hundred copies. What a copy
does from its start on is the same: its own environment, its own log, no connection of anybody else.

    room = Nursery().fork(["services.balance"], environment, log)
    room.kill()
    room.wait()
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import queue
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("usage", "balance", "groups", "invoices", "payments", "webhooks")
MESSAGE_BYTES_MAX = 150_000  # an environment and some words; the sockets of a Linux machine take that much at once
BORN_S_MAX = 60.0  # the first one waits for the imports, on a machine that may be busy


class Forked:
    """A forked process, with what tests use of `subprocess.Popen`. Its parent tells when and how it ended."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = threading.Event()

    def end(self, code: int) -> None:
        self.returncode = code
        self._ended.set()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Nursery:
    """Our end of it. ``more`` are variables that it is started with itself, such as a library that changes its clock."""

    def __init__(self, more: Mapping[str, str] | None = None) -> None:
        self._door, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "tests.support.nursery", str(theirs.fileno())]
            environment = os.environ | {"PYTHONUNBUFFERED": "1"} | dict(more or {})
            self._process = subprocess.Popen(command, cwd=ROOT, env=environment, pass_fds=[theirs.fileno()])
        self._born: queue.SimpleQueue[Forked] = queue.SimpleQueue()
        self._one_at_a_time = threading.Lock()
        threading.Thread(target=self._listen, daemon=True).start()
        atexit.register(self.close)

    def fork(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> Forked:
        """`python -m <arguments>` with this environment and no other, its output at the end of the log."""
        order = {"arguments": list(arguments), "environment": dict(environment), "log": str(log)}
        with self._one_at_a_time:
            self._door.send(json.dumps(order).encode())
            return self._born.get(timeout=BORN_S_MAX)

    def close(self) -> None:
        """It ends, and with it whoever of its children still runs."""
        if self._process.poll() is None:
            self._door.shutdown(socket.SHUT_WR)
            self._process.wait()

    def _listen(self) -> None:
        living: dict[int, Forked] = {}
        while said := self._door.recv(MESSAGE_BYTES_MAX):
            pid, code = json.loads(said)
            if code is None:
                living[pid] = Forked(pid)
                self._born.put(living[pid])
            else:
                living.pop(pid).end(code)


def serve(door: socket.socket) -> list[str]:
    """Fork whatever is asked for. Returns in each child, with what it is to run; the parent leaves when nobody asks any more."""
    children: dict[int, int] = {}  # by the descriptor that becomes readable at the end of each
    ready = selectors.DefaultSelector()
    ready.register(door, selectors.EVENT_READ)
    while True:
        for key, _ in ready.select():
            if key.fd in children:
                pid = children.pop(key.fd)
                _, status = os.waitpid(pid, 0)
                ready.unregister(key.fd)
                os.close(key.fd)
                _tell(door, pid, os.waitstatus_to_exitcode(status))
                continue
            asked = door.recv(MESSAGE_BYTES_MAX)
            if not asked:
                for pid in children.values():
                    os.kill(pid, signal.SIGKILL)
                sys.exit()
            order = json.loads(asked)
            pid = os.fork()
            if pid == 0:
                ready.close()
                door.close()
                for descriptor in children:
                    os.close(descriptor)
                return _become(order)
            child = os.pidfd_open(pid)
            children[child] = pid
            ready.register(child, selectors.EVENT_READ)
            _tell(door, pid, None)


def _tell(door: socket.socket, pid: int, code: int | None) -> None:
    with contextlib.suppress(BrokenPipeError):  # whoever asked is gone; the next look at the door ends us
        door.send(json.dumps([pid, code]).encode())


def _become(order: dict[str, Any]) -> list[str]:
    """In the child: nothing of the parent's environment and output is left."""
    with open(order["log"], "ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(order["environment"])
    importlib.reload(importlib.import_module("services.runtime.faults"))  # it reads its variable when it is imported
    arguments: list[str] = order["arguments"]
    return arguments


if __name__ == "__main__":
    for name in (*(f"services.{room}.consumer" for room in ROOMS), "services.runtime.main"):
        importlib.import_module(name)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who asks for processes says when they end
    gc.collect()
    gc.freeze()  # what is shared with the children stays shared
    sys.argv = serve(socket.socket(fileno=int(sys.argv[1])))
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
