"""The three servers together: started in parallel, found again, stopped.

Everything lives below one data folder: `kafka/`, `postgres/`, `valkey/`, `logs/`, the passwords (`passwords.json`) and
what runs (`run/`). A lock on the folder lets one program at a time start or stop.
"""

from __future__ import annotations

import errno
import fcntl
import json
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from services.kernel.errors import InvalidInput, Unavailable
from services.runtime.embedded import ports as free_ports
from services.runtime.embedded import secrets
from services.runtime.embedded.kafka import Kafka
from services.runtime.embedded.ports import HOST
from services.runtime.embedded.postgres import OWNER, SUPERUSER, Postgres
from services.runtime.embedded.process import Command, Running, failed, last_lines, pause, spawn, started
from services.runtime.embedded.secrets import Secrets
from services.runtime.embedded.valkey import Valkey

Name = Literal["kafka", "postgres", "valkey"]
NAMES: tuple[Name, ...] = ("kafka", "postgres", "valkey")

LOCK_WAIT_S = 180.0  # longer than the slowest first start with its download
FREE_BYTES_MIN = 512 * 1024 * 1024  # three empty servers take 150 MB; a database whose disk fills up stops in pain
PORT_ATTEMPTS = 3  # another program can take a free port in the moment between the choice and the start


class Server(Protocol):
    """What each of the three files offers."""

    name: str
    port_names: tuple[str, ...]
    stop_signal: signal.Signals
    stop_wait_s: float
    start_wait_s: float

    def prepare(self, ports: Mapping[str, int]) -> Command: ...
    def ready(self, ports: Mapping[str, int], log: Path) -> bool: ...


@dataclass(frozen=True)
class Servers:
    """The addresses of the servers that run on a data folder, and the passwords to them.

    Asking for one that does not run raises `Unavailable`.
    """

    data: Path
    running: Mapping[Name, Running]
    _secrets: Secrets = field(repr=False)

    @property
    def kafka(self) -> str:
        """The bootstrap address of Kafka, `host:port`."""
        return f"{HOST}:{self._port('kafka')}"

    @property
    def postgres_host(self) -> str:
        """The address that PostgreSQL listens on."""
        return HOST

    @property
    def postgres_port(self) -> int:
        """The port that PostgreSQL listens on."""
        return self._port("postgres")

    @property
    def owner_user(self) -> str:
        """The role that owns databases and migrates them."""
        return OWNER

    @property
    def owner_password(self) -> str:
        """The password of the owner role."""
        return self._secrets.owner_password

    @property
    def room_password(self) -> str:
        """The password that the rooms' roles are given."""
        return self._secrets.room_password

    @property
    def superuser(self) -> tuple[str, str]:
        """User and password of the superuser: for faults in tests, never for the application."""
        return SUPERUSER, self._secrets.superuser_password

    @property
    def valkey(self) -> str:
        """The URL of Valkey."""
        return f"redis://{HOST}:{self._port('valkey')}/0"

    def _port(self, name: Name) -> int:
        if name not in self.running:
            raise Unavailable(f"{name} does not run on {self.data}; start it by `tollbook up`", field=name)
        return self.running[name].ports["client"]


def start(
    data: Path,
    names: Iterable[Name] = NAMES,
    *,
    ports: Mapping[Name, int] | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Servers:
    """Starts the named servers on a data folder and returns when all of them can be used.

    A server that already runs there is left as it is. `ports` fixes the client port of a server (refused with
    `InvalidInput` when it is taken); else the port of the last start is used again when it is free. `tell` is called
    with a line for people when something takes long. Blocks for some seconds: call it through `asyncio.to_thread`
    where a loop runs.

    Errors: `InvalidInput` for a folder, a port or a machine that will not do; `Unavailable` for a failed download and
    for a server that does not come up, with the last lines of its log.
    """
    data = _usable(data)
    with _locked(data), _disk_errors_named(data):
        passwords = secrets.of(data)
        before = _alive(_read(data))
        with ThreadPoolExecutor(len(NAMES)) as pool:
            futures = {
                name: pool.submit(_start_one, data, _server(name, data, passwords, tell), (ports or {}).get(name))
                for name in dict.fromkeys(names)
            }
        errors = [error for future in futures.values() if (error := future.exception())]
        if errors:
            # Nothing half started stays behind; what ran before goes on.
            _stop_all(data, [name for name in futures if name not in before])
            raise errors[0]
        return Servers(data, _alive(_read(data)), passwords)


def stop(data: Path, names: Iterable[Name] = NAMES) -> None:
    """Stops the named servers of a data folder cleanly, all at once; one that does not run is no error."""
    data = data.resolve()
    if not data.exists():
        return
    with _locked(data):
        _stop_all(data, names)


def status(data: Path) -> dict[Name, Running | None]:
    """What runs on a data folder; None for a server that does not."""
    known = _alive(_read(data.resolve()))
    return {name: known.get(name) for name in NAMES}


def running(data: Path) -> Servers:
    """The servers that run on a data folder, without starting any."""
    data = data.resolve()
    known = _alive(_read(data))
    if not known:
        raise Unavailable(f"no embedded server runs on {data}; start them by `tollbook up`", field="data")
    return Servers(data, known, secrets.of(data))


def log_of(data: Path, name: str) -> Path:
    """The log file of a server."""
    return data.resolve() / "logs" / f"{name}.log"


def _server(name: Name, data: Path, passwords: Secrets, tell: Callable[[str], None]) -> Server:
    if name == "kafka":
        return Kafka(data / name, tell)
    if name == "postgres":
        return Postgres(data / name, tell, passwords)
    return Valkey(data / name, tell)


def _start_one(data: Path, server: Server, fixed: int | None) -> None:
    log = log_of(data, server.name)
    known = _read_one(data, server.name)
    if known and known.alive():
        # Its starter may have been ended before the server was ready.
        _wait_until_ready(server, known, log)
        return
    for attempt in range(1, PORT_ATTEMPTS + 1):
        own = {} if fixed is None else {"client": fixed}
        chosen = free_ports.choose(server.port_names, own, known.ports if known else {})
        command = server.prepare(chosen)
        if log.exists():
            log.replace(log.with_suffix(".log.1"))
        one = started(spawn(command, log), chosen)
        _write_one(data, server.name, one)
        try:
            _wait_until_ready(server, one, log)
            return
        except Unavailable:
            if attempt == PORT_ATTEMPTS or not any("in use" in line for line in last_lines(log)):
                raise


def _wait_until_ready(server: Server, one: Running, log: Path) -> None:
    give_up = time.monotonic() + server.start_wait_s
    while not server.ready(one.ports, log):
        if not one.alive():
            raise failed(server.name, "ended while starting", log)
        if time.monotonic() > give_up:
            one.stop(signal.SIGKILL, server.stop_wait_s)
            raise failed(server.name, f"was not ready after {server.start_wait_s:.0f} s", log)
        pause()


def _stop_all(data: Path, names: Iterable[Name]) -> None:
    passwords = secrets.of(data)
    with ThreadPoolExecutor(len(NAMES)) as pool:
        stopping = []
        for name in names:
            known = _read_one(data, name)
            if known:
                server = _server(name, data, passwords, lambda line: None)
                stopping.append(pool.submit(known.stop, server.stop_signal, server.stop_wait_s))
    for one in stopping:
        one.result()


def _usable(data: Path) -> Path:
    data = data.resolve()
    try:
        for part in ("logs", "run"):
            (data / part).mkdir(parents=True, exist_ok=True)
        probe = data / ".probe"
        probe.write_bytes(b"")
        probe.unlink(missing_ok=True)  # another starter probes the same file
    except OSError as error:
        raise InvalidInput(
            f"cannot write to the data folder {data}: {error.strerror}; name another one by TOLLBOOK_DATA",
            field="data",
            code="data_folder",
        ) from error
    free = shutil.disk_usage(data).free
    if free < FREE_BYTES_MIN:
        raise InvalidInput(
            f"the disk of {data} has {free // 2**20} MB left; the servers need {FREE_BYTES_MIN // 2**20} MB: "
            "make room or name another folder by TOLLBOOK_DATA",
            field="data",
            code="disk_full",
        )
    return data


@contextmanager
def _disk_errors_named(data: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InvalidInput(f"the disk of {data} is full; make room", field="data", code="disk_full") from error
        raise Unavailable(f"the servers on {data} could not be started: {error}") from error


@contextmanager
def _locked(data: Path) -> Iterator[None]:
    with (data / ".lock").open("w") as file:
        give_up = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up:
                    raise Unavailable(
                        f"another program has been starting or stopping servers on {data} for {LOCK_WAIT_S:.0f} s",
                        field="data",
                    ) from None
                pause()
        yield


def _alive(known: Mapping[Name, Running]) -> dict[Name, Running]:
    return {name: one for name, one in known.items() if one.alive()}


def _read(data: Path) -> dict[Name, Running]:
    found = {name: _read_one(data, name) for name in NAMES}
    return {name: one for name, one in found.items() if one}


def _read_one(data: Path, name: str) -> Running | None:
    try:
        return Running(**json.loads((data / "run" / f"{name}.json").read_text()))
    except (OSError, ValueError, TypeError):  # never started, or cut short by a crash: then nothing is known
        return None


def _write_one(data: Path, name: str, one: Running) -> None:
    new = data / "run" / f"{name}.new"
    new.write_text(json.dumps(asdict(one)))
    new.replace(data / "run" / f"{name}.json")
