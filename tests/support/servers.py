"""The real servers that tests run on, each started when a test first asks for it.

By default the embedded ones, on a folder that is deleted at the end: in memory where there is plenty, since a fresh
database is a thousand small files (`TOLLBOOK_TEST_DATA` names one that stays, and whose servers stay when they ran
before). With `TOLLBOOK_TEST_SERVERS=containers` the official images, by Docker.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import psutil
from sqlalchemy import URL

from services.runtime import embedded, migrate
from services.runtime.embedded.ports import HOST, choose
from services.runtime.settings import room_role

CONTAINER_WAIT_S = 90
MEMORY = Path("/dev/shm")  # a folder that is in memory, on Linux
MEMORY_BYTES_MIN = 10 * 2**30  # PostgreSQL's log alone may grow to 4 GB


@dataclass(frozen=True)
class PostgresServer:
    """Where PostgreSQL is and who may log in."""

    host: str
    port: int
    owner_user: str
    owner_password: str = field(repr=False)
    room_password: str = field(repr=False)


@dataclass(frozen=True)
class Database:
    """A database of one test: migrated, empty, dropped afterwards."""

    name: str
    server: PostgresServer

    @property
    def owner(self) -> str:
        """The SQLAlchemy URL of the owner."""
        return self._url(self.server.owner_user, self.server.owner_password)

    def room(self, room: str) -> str:
        """The SQLAlchemy URL by which a room logs in."""
        return self._url(room_role(room), self.server.room_password)

    def environment(self, **more: str) -> dict[str, str]:
        """The variables that point a process at this database; `more` are others, e.g. `TOLLBOOK_KAFKA`."""
        return {
            "TOLLBOOK_POSTGRES": f"postgresql://{self.server.host}:{self.server.port}/{self.name}",
            "TOLLBOOK_OWNER_USER": self.server.owner_user,
            "TOLLBOOK_OWNER_PASSWORD": self.server.owner_password,
            "TOLLBOOK_ROOM_PASSWORD": self.server.room_password,
            **more,
        }

    async def drop(self) -> None:
        """End the connections of others, and drop it if it is there."""
        async with Database("postgres", self.server).connected() as maintenance:
            await _drop(maintenance, self.name)

    @asynccontextmanager
    async def connected(self, room: str | None = None) -> AsyncIterator[asyncpg.Connection[Any]]:
        """A plain connection of a room, or of the owner when none is named."""
        user = self.server.owner_user if room is None else room_role(room)
        password = self.server.owner_password if room is None else self.server.room_password
        connection = await asyncpg.connect(
            host=self.server.host, port=self.server.port, user=user, password=password, database=self.name
        )
        try:
            yield connection
        finally:
            await connection.close()

    def _url(self, user: str, password: str) -> str:
        url = URL.create("postgresql+asyncpg", user, password, self.server.host, self.server.port, self.name)
        return url.render_as_string(hide_password=False)


class TestedServers(ABC):
    """The three servers, and fresh databases on one of them."""

    __test__ = False

    def __init__(self) -> None:
        self._templates: dict[bool, str] = {}
        self._one_at_a_time = asyncio.Lock()

    @abstractmethod
    async def start(self, name: embedded.Name) -> None:
        """Starts a server, or starts it again on the address and the data it had; nothing to do when it runs."""

    @abstractmethod
    async def stop(self, name: embedded.Name) -> None:
        """Stops a server cleanly: for tests of what goes on without it."""

    @abstractmethod
    async def kill(self, name: embedded.Name) -> None:
        """Ends a server at whatever point it is, as a machine does that fails; `start` brings it back."""

    @abstractmethod
    async def kafka(self) -> str:
        """The bootstrap address of Kafka."""

    @abstractmethod
    async def postgres(self) -> PostgresServer:
        """The PostgreSQL server."""

    @abstractmethod
    async def valkey(self) -> str:
        """The URL of Valkey."""

    @abstractmethod
    async def close(self) -> None:
        """Stops what was started and deletes its data."""

    @asynccontextmanager
    async def fresh_database(self, *, movable: bool = True) -> AsyncIterator[Database]:
        """A migrated, empty database of its own; its clock can be moved unless said otherwise."""
        server = await self.postgres()
        async with self._one_at_a_time:
            if movable not in self._templates:
                self._templates[movable] = await self._make_template(server, movable)
        database, maintenance = Database(f"test_{uuid.uuid4().hex}", server), Database("postgres", server)
        async with maintenance.connected() as connection:
            async with self._one_at_a_time:  # PostgreSQL copies a template for one at a time
                await connection.execute(f"CREATE DATABASE {database.name} TEMPLATE {self._templates[movable]}")
            await migrate.close_to_others(connection, database.name)
        try:
            yield database
        finally:
            async with maintenance.connected() as connection:  # another one: a test may have killed the server
                await _drop(connection, database.name)

    async def _make_template(self, server: PostgresServer, movable: bool) -> str:
        template = Database(f"template_{uuid.uuid4().hex}", server)
        await migrate.upgrade(template.owner, room_password=server.room_password, movable=movable)
        return template.name

    async def _drop_templates(self) -> None:
        if self._templates:
            async with Database("postgres", await self.postgres()).connected() as maintenance:
                for name in self._templates.values():
                    await _drop(maintenance, name)


class EmbeddedServers(TestedServers):
    """The embedded servers on a data folder."""

    def __init__(self, kept: Path | None = None) -> None:
        super().__init__()
        self._kept = kept
        self.data = kept or Path(tempfile.mkdtemp(prefix="tollbook-test-", dir=_in_memory()))
        self._found_running = {name for name, one in embedded.status(self.data).items() if one}

    async def start(self, name: embedded.Name) -> None:
        await asyncio.to_thread(embedded.start, self.data, [name])

    async def stop(self, name: embedded.Name) -> None:
        await asyncio.to_thread(embedded.stop, self.data, [name])

    async def kill(self, name: embedded.Name) -> None:
        one = embedded.status(self.data)[name]
        if one is None:
            return
        parent = psutil.Process(one.pid)
        ended = [*parent.children(recursive=True), parent]
        for process in ended:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        await asyncio.to_thread(psutil.wait_procs, ended, 10)

    async def kafka(self) -> str:
        return (await asyncio.to_thread(embedded.start, self.data, ["kafka"])).kafka

    async def valkey(self) -> str:
        return (await asyncio.to_thread(embedded.start, self.data, ["valkey"])).valkey

    async def postgres(self) -> PostgresServer:
        servers = await asyncio.to_thread(embedded.start, self.data, ["postgres"])
        return PostgresServer(
            servers.postgres_host,
            servers.postgres_port,
            servers.owner_user,
            servers.owner_password,
            servers.room_password,
        )

    async def close(self) -> None:
        if self._kept is not None:
            await self._drop_templates()
        await asyncio.to_thread(embedded.stop, self.data, [n for n in embedded.NAMES if n not in self._found_running])
        if self._kept is None:
            shutil.rmtree(self.data)


class ContainerServers(TestedServers):
    """The official images by Docker, on fixed ports, so that a server that is started again keeps its address."""

    def __init__(self) -> None:
        super().__init__()
        self._containers: dict[str, Any] = {}
        self._ports: dict[str, int] = {}
        self._password = uuid.uuid4().hex

    async def start(self, name: embedded.Name) -> None:
        if name in self._containers:
            await asyncio.to_thread(self._containers[name].get_wrapped_container().start)
        else:
            self._ports.update(choose([name], {}, {}))
            self._containers[name] = container = self._described(name)
            await asyncio.to_thread(container.start)
        await _until(self._answers(name))

    async def stop(self, name: embedded.Name) -> None:
        await asyncio.to_thread(self._containers[name].get_wrapped_container().stop)

    async def kill(self, name: embedded.Name) -> None:
        await asyncio.to_thread(self._containers[name].get_wrapped_container().kill)

    async def kafka(self) -> str:
        await self._started("kafka")
        return f"{HOST}:{self._ports['kafka']}"

    async def valkey(self) -> str:
        await self._started("valkey")
        return f"redis://{HOST}:{self._ports['valkey']}/0"

    async def postgres(self) -> PostgresServer:
        await self._started("postgres")
        return self._postgres()

    async def close(self) -> None:
        for container in self._containers.values():
            await asyncio.to_thread(container.stop)

    async def _started(self, name: embedded.Name) -> None:
        if name not in self._containers:
            await self.start(name)

    def _postgres(self) -> PostgresServer:
        # The image makes its first user a superuser; the embedded servers hold the stricter case.
        return PostgresServer(HOST, self._ports["postgres"], "tollbook_owner", self._password, self._password)

    def _described(self, name: embedded.Name) -> Any:
        from testcontainers.core.container import DockerContainer

        port = self._ports[name]
        if name == "valkey":
            return DockerContainer("valkey/valkey:9").with_bind_ports(6379, port)
        if name == "postgres":
            container = DockerContainer("postgres:18").with_bind_ports(5432, port)
            container.with_env("POSTGRES_USER", "tollbook_owner").with_env("POSTGRES_DB", "postgres")
            container.with_env("POSTGRES_PASSWORD", self._password)
            return container.with_command(["postgres", "-c", "max_connections=200", "-c", "jit=off"])
        container = DockerContainer("apache/kafka:4.3.1").with_bind_ports(9092, port)
        for key, value in _KAFKA.items():
            container.with_env(f"KAFKA_{key}", value)
        return container.with_env("KAFKA_ADVERTISED_LISTENERS", f"CLIENT://{HOST}:{port},BROKER://localhost:9094")

    def _answers(self, name: embedded.Name) -> Callable[[], Awaitable[None]]:
        async def postgres() -> None:
            async with Database("postgres", self._postgres()).connected():
                pass

        async def kafka() -> None:
            from aiokafka.admin import AIOKafkaAdminClient

            admin = AIOKafkaAdminClient(bootstrap_servers=f"{HOST}:{self._ports['kafka']}", request_timeout_ms=2000)
            try:
                await admin.start()
            finally:
                await admin.close()

        async def valkey() -> None:
            from redis.asyncio import Redis

            async with Redis.from_url(f"redis://{HOST}:{self._ports['valkey']}/0") as client:
                await client.ping()

        return {"postgres": postgres, "kafka": kafka, "valkey": valkey}[name]


# The image takes its own settings only where no variable is given at all: so all of them are.
_KAFKA = {
    "NODE_ID": "1",
    "PROCESS_ROLES": "broker,controller",
    "LISTENERS": "CLIENT://:9092,CONTROLLER://:9093,BROKER://localhost:9094",
    "CONTROLLER_LISTENER_NAMES": "CONTROLLER",
    # For transactions the broker connects to itself, and the clients' port is not to be found inside the container.
    "INTER_BROKER_LISTENER_NAME": "BROKER",
    "LISTENER_SECURITY_PROTOCOL_MAP": "CONTROLLER:PLAINTEXT,CLIENT:PLAINTEXT,BROKER:PLAINTEXT",
    "CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
    "AUTO_CREATE_TOPICS_ENABLE": "false",
    "OFFSETS_TOPIC_NUM_PARTITIONS": "4",
    "OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
    "TRANSACTION_STATE_LOG_NUM_PARTITIONS": "4",
    "TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
    "TRANSACTION_STATE_LOG_MIN_ISR": "1",
    "SHARE_COORDINATOR_STATE_TOPIC_REPLICATION_FACTOR": "1",
    "SHARE_COORDINATOR_STATE_TOPIC_MIN_ISR": "1",
    "GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
    "GROUP_MIN_SESSION_TIMEOUT_MS": "1000",
}


async def _drop(maintenance: asyncpg.Connection[Any], name: str) -> None:
    """Drop a database. The server's own vacuum may be in it, and only a superuser may end that: then it is left, and goes with
    the server's data at the end."""
    for _ in range(50):
        try:
            await maintenance.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            return
        except asyncpg.InsufficientPrivilegeError:
            await asyncio.sleep(0.1)


async def _until(answers: Callable[[], Awaitable[None]]) -> None:
    """Waits until a server answers; the last error is raised when it does not."""
    async with asyncio.timeout(CONTAINER_WAIT_S):
        while True:
            try:
                return await asyncio.wait_for(answers(), 5)
            except Exception:  # each client has errors of its own for a server that is not there yet
                await asyncio.sleep(0.2)


def _in_memory() -> Path | None:
    """A folder in memory, if there is one with room for the servers; None: where temporary files go."""
    try:
        room = min(shutil.disk_usage(MEMORY).free, psutil.virtual_memory().available)
    except OSError:
        return None
    return MEMORY if room >= MEMORY_BYTES_MIN and os.access(MEMORY, os.W_OK) else None


def chosen() -> TestedServers:
    """The servers that the environment asks for."""
    kind = os.environ.get("TOLLBOOK_TEST_SERVERS", "embedded")
    if kind == "containers":
        return ContainerServers()
    if kind != "embedded":
        raise ValueError(f"TOLLBOOK_TEST_SERVERS is {kind!r}; it may be 'embedded' or 'containers'")
    kept = os.environ.get("TOLLBOOK_TEST_DATA")
    return EmbeddedServers(Path(kept) if kept else None)
