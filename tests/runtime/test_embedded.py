"""The embedded servers: started, found again, stopped, restarted on their data, and clear when they cannot."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import asyncpg
import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from redis.asyncio import Redis

from services.kernel.errors import InvalidInput, Unavailable
from services.runtime import embedded
from services.runtime.embedded import jars
from services.runtime.embedded import java as java_of_kafka
from services.runtime.embedded.ports import HOST, is_free
from services.runtime.embedded.servers import _usable


@pytest.fixture
def data() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="tollbook-embedded-"))
    yield folder
    embedded.stop(folder)
    shutil.rmtree(folder)


async def start(data: Path, *names: embedded.Name, **ports: int) -> embedded.Servers:
    fixed = {name: ports[name] for name in embedded.NAMES if name in ports}
    return await asyncio.to_thread(embedded.start, data, names or embedded.NAMES, ports=fixed)


async def stop(data: Path) -> None:
    await asyncio.to_thread(embedded.stop, data)


async def query(servers: embedded.Servers, *statements: str) -> object:
    user, password = servers.superuser
    connection = await asyncpg.connect(
        host=servers.postgres_host, port=servers.postgres_port, user=user, password=password, database="postgres"
    )
    try:
        for statement in statements[:-1]:
            await connection.execute(statement)
        return await connection.fetchval(statements[-1])
    finally:
        await connection.close()


async def write_record(servers: embedded.Servers, value: bytes) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=servers.kafka)
    await admin.start()
    await admin.create_topics([NewTopic("kept", num_partitions=1, replication_factor=1)])
    await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=servers.kafka, acks="all")
    await producer.start()
    await producer.send_and_wait("kept", value)
    await producer.stop()


async def read_record(servers: embedded.Servers) -> bytes | None:
    consumer = AIOKafkaConsumer(bootstrap_servers=servers.kafka)
    await consumer.start()
    try:
        consumer.assign([TopicPartition("kept", 0)])
        await consumer.seek_to_beginning()
        async with asyncio.timeout(20):
            value: bytes | None = (await consumer.getone()).value
            return value
    finally:
        await consumer.stop()


@pytest.fixture
async def started(data: Path) -> embedded.Servers:
    return await start(data)


async def test_the_three_servers_work_and_survive_a_restart_with_their_data(
    data: Path, started: embedded.Servers
) -> None:
    await query(started, "CREATE TABLE public.kept (word text)", "INSERT INTO public.kept VALUES ('row')", "SELECT 1")
    await write_record(started, b"record")
    async with Redis.from_url(started.valkey) as valkey:
        await valkey.set("word", "value")
    assert str(await query(started, "SHOW server_version")).startswith("18.")
    assert await query(started, "SELECT rolsuper FROM pg_roles WHERE rolname = 'tollbook_owner'") is False

    await stop(data)
    assert embedded.status(data) == {"kafka": None, "postgres": None, "valkey": None}
    assert not any(one.alive() for one in started.running.values())

    again = await start(data)
    assert (again.kafka, again.postgres_port, again.valkey) == (started.kafka, started.postgres_port, started.valkey)
    assert await query(again, "SELECT word FROM public.kept") == "row"
    assert await read_record(again) == b"record"
    async with Redis.from_url(again.valkey) as valkey:
        assert await valkey.get("word") == b"value"


async def test_what_runs_is_used_again(data: Path) -> None:
    first = await start(data, "postgres", "valkey")
    second = await start(data, "postgres", "valkey")
    assert second.running == first.running
    assert embedded.running(data).running == first.running


async def test_a_clock_that_is_set_meanwhile_loses_no_server(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await start(data, "valkey")
    moved = psutil.boot_time() + 60  # by the system's clock the machine seems to have started later
    monkeypatch.setattr("psutil._psplatform.boot_time", lambda: moved)
    assert embedded.status(data)["valkey"] == first.running["valkey"]
    assert (await start(data, "valkey")).running == first.running
    await stop(data)
    assert not first.running["valkey"].alive()


async def test_only_what_is_asked_for_is_started(data: Path) -> None:
    servers = await start(data, "valkey")
    assert set(servers.running) == {"valkey"}
    with pytest.raises(Unavailable, match="kafka"):
        _ = servers.kafka


async def test_two_starters_at_once_start_each_server_once(data: Path) -> None:
    # Two processes, as two terminals would be.
    command = ["-m", "services.runtime.embedded", "start", "--data", str(data), "--only", "postgres"]
    both = await asyncio.gather(*(_python(*command) for _ in range(2)))
    assert [code for code, _ in both] == [0, 0]
    assert both[0][1] == both[1][1]
    assert await query(embedded.running(data), "SELECT 1") == 1


def test_starters_that_look_at_the_folder_at_once_do_not_disturb_each_other(data: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: _usable(data), range(400))) == {data.resolve()}


async def _python(*arguments: str) -> tuple[int | None, bytes]:
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=asyncio.subprocess.PIPE)
    printed, _ = await process.communicate()
    return process.returncode, printed


async def test_a_killed_server_is_noticed_and_started_again_with_its_data(data: Path) -> None:
    servers = await start(data, "postgres")
    await query(servers, "CREATE TABLE public.kept AS SELECT 7 AS number", "SELECT 1")
    killed = servers.running["postgres"].pid
    os.kill(killed, signal.SIGKILL)
    async with asyncio.timeout(10):
        while embedded.status(data)["postgres"] is not None:  # noqa: ASYNC110 - a process tells nobody that it died
            await asyncio.sleep(0.01)
    again = await start(data, "postgres")
    assert again.running["postgres"].pid != killed
    assert await query(again, "SELECT number FROM public.kept") == 7


async def test_a_remembered_port_that_is_taken_is_replaced(data: Path) -> None:
    before = await start(data, "valkey")
    await stop(data)
    port = before.running["valkey"].ports["client"]
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind((HOST, port))
        other.listen()
        after = await start(data, "valkey")
        assert after.running["valkey"].ports["client"] != port


async def test_a_fixed_port_is_used_and_refused_when_it_is_taken(data: Path) -> None:
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InvalidInput, match=str(port)) as caught:
            await start(data, "valkey", valkey=port)
        assert caught.value.code == "port_taken"
    assert is_free(port)
    assert (await start(data, "valkey", valkey=port)).valkey == f"redis://{HOST}:{port}/0"


async def test_a_folder_that_cannot_be_written_is_named(data: Path) -> None:
    (data / "file").write_text("not a folder")
    for folder in (data / "file" / "below", Path("/proc/tollbook")):
        with pytest.raises(InvalidInput, match=str(folder)) as caught:
            await start(folder)
        assert caught.value.code == "data_folder"


async def test_a_disk_without_room_is_refused_before_anything_is_started(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.runtime.embedded.servers.FREE_BYTES_MIN", 2**62)
    with pytest.raises(InvalidInput, match="make room") as caught:
        await start(data)
    assert caught.value.code == "disk_full"
    assert embedded.status(data)["postgres"] is None


async def test_a_server_that_does_not_come_up_shows_the_end_of_its_log_and_takes_the_others_down(data: Path) -> None:
    await start(data, "postgres")
    await stop(data)
    (data / "postgres" / "cluster" / "PG_VERSION").write_text("12\n")
    with pytest.raises(Unavailable, match="not compatible with this version"):
        await start(data, "postgres", "valkey")
    assert embedded.status(data)["valkey"] is None


def test_passwords_are_for_the_user_alone_and_are_not_printed(data: Path) -> None:
    servers = embedded.start(data, ["valkey"])
    assert stat.S_IMODE((data / "passwords.json").stat().st_mode) == 0o600
    assert servers.owner_password not in repr(servers)


def test_stopping_a_folder_where_nothing_runs_is_no_error(data: Path) -> None:
    embedded.stop(data)
    embedded.stop(data / "missing")


def test_a_recycled_process_id_is_never_taken_for_a_server() -> None:
    stranger = embedded.Running(os.getpid(), started_after_boot_s=1.0, ports={})
    assert not stranger.alive()
    stranger.stop(signal.SIGKILL, 1)


def test_a_download_that_fails_says_what_to_check(
    data: Path, monkeypatch: pytest.MonkeyPatch, unused_port: int
) -> None:
    # An address where nobody listens stands for a network that does not work.
    monkeypatch.setenv("JGO_CACHE_DIR", str(data / "cache"))
    monkeypatch.setattr("jgo.constants.MAVEN_CENTRAL_URL", f"http://{HOST}:{unused_port}")
    monkeypatch.setattr(jars, "ATTEMPTS", 1)
    with pytest.raises(Unavailable, match="check the network") as caught:
        embedded.start(data, ["kafka"])
    assert caught.value.code == "download_failed"


def test_a_download_with_another_checksum_is_thrown_away(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offered = data / "repository" / "example" / "program" / "1" / "program-1.jar"
    offered.parent.mkdir(parents=True)
    offered.write_bytes(b"not what was locked")
    lock = data / "lock"
    lock.write_text(f"example:program:1 {'0' * 64}\n")
    monkeypatch.setenv("JGO_CACHE_DIR", str(data / "cache"))
    with ThreadingHTTPServer((HOST, 0), partial(SimpleHTTPRequestHandler, directory=data / "repository")) as web:
        Thread(target=web.serve_forever, daemon=True).start()
        monkeypatch.setattr("jgo.constants.MAVEN_CENTRAL_URL", f"http://{HOST}:{web.server_port}")
        with pytest.raises(InvalidInput, match="thrown away") as caught:
            jars.classpath(lambda line: None, lock)
        web.shutdown()
    assert caught.value.code == "checksum"
    assert not list((data / "cache").rglob("*.jar"))


def test_a_download_that_was_cut_short_earlier_is_fetched_again(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Path("example") / "program" / "1" / "program-1.jar"
    for folder, content in ((data / "repository", b"whole"), (data / "cache" / "repository", b"who")):
        (folder / place).parent.mkdir(parents=True)
        (folder / place).write_bytes(content)
    lock = data / "lock"
    lock.write_text(f"example:program:1 {sha256(b'whole').hexdigest()}\n")
    monkeypatch.setenv("JGO_CACHE_DIR", str(data / "cache"))
    with ThreadingHTTPServer((HOST, 0), partial(SimpleHTTPRequestHandler, directory=data / "repository")) as web:
        Thread(target=web.serve_forever, daemon=True).start()
        monkeypatch.setattr("jgo.constants.MAVEN_CENTRAL_URL", f"http://{HOST}:{web.server_port}")
        path = jars.classpath(lambda line: None, lock)
        web.shutdown()
    assert Path(path).read_bytes() == b"whole"


def test_a_machine_without_java_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    monkeypatch.setenv("PATH", str(data))
    with pytest.raises(InvalidInput, match="version 17 or newer"):
        java_of_kafka.java_on_path()
    old = data / "java"
    old.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\"' >&2\n")
    old.chmod(0o755)
    with pytest.raises(InvalidInput, match="is Java 11"):
        java_of_kafka.java_on_path()


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
