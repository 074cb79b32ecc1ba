"""The chain's database taken back to a backup while Kafka stays as it is, and `tollbook restore` as an operator runs it.

async with backed_up(chain) as backup:
    chain.start_rooms()
    ...                                    # the life that will be undone
    await put_back(chain, backup)          # every room is dead
    report = await restored(chain)
    chain.start_rooms()
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from services.runtime import migrate
from tests.support.chain import Chain
from tests.support.processes import ROOT
from tests.support.servers import Database

COPY_S_MAX = 30.0


@asynccontextmanager
async def backed_up(chain: Chain) -> AsyncIterator[Database]:
    """A copy of the database at the instant at which every room was killed: outboxes are full, lanes are behind."""
    kill_rooms(chain)
    backup = Database(f"backup_{uuid.uuid4().hex}", chain.database.server)
    await _copy(chain, chain.database.name, backup.name)
    try:
        yield backup
    finally:
        await backup.drop()


async def put_back(chain: Chain, backup: Database) -> None:
    """The backup in the place of the database. Every room is killed."""
    kill_rooms(chain)
    await chain.database.drop()
    await _copy(chain, backup.name, chain.database.name)
    chain.restored = True


def kill_rooms(chain: Chain) -> None:
    """SIGKILL to all, in the middle of whatever they do."""
    for name in [*chain.processes.running]:
        chain.processes.kill(name)


async def _copy(chain: Chain, source: str, name: str) -> None:
    """By a template, which nobody may be connected to: the server takes a moment to see that the dead are gone."""
    await chain.owner.expire_connections()
    async with Database("postgres", chain.database.server).connected() as connection, asyncio.timeout(COPY_S_MAX):
        while True:
            try:
                await connection.execute(f"CREATE DATABASE {name} TEMPLATE {source}")
                break
            except asyncpg.ObjectInUseError:
                await connection.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity"
                    " where datname = $1 and usename = current_user and pid <> pg_backend_pid()",
                    source,
                )
                await asyncio.sleep(0.1)
        await migrate.close_to_others(connection, name)


async def restored(chain: Chain, *options: str, crash: str | None = None) -> dict[str, Any]:
    """The answer of `tollbook restore`; with ``crash`` it kills itself at that step, and there is none."""
    more = {} if crash is None else {"TOLLBOOK_CRASH": crash, "TOLLBOOK_CRASH_LOG": str(chain.processes.crash_log)}
    command = [sys.executable, "-m", "services.cli", "restore", "--by", "ann", "--reason", "the disk died", *options]
    process = await asyncio.create_subprocess_exec(
        *command, "--output", "json", cwd=ROOT, env=os.environ | chain.processes.environment | more,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    said, error = await process.communicate()
    if crash is not None:
        assert process.returncode == -9, error.decode()
        assert (process.pid, crash.partition(":")[0]) in chain.processes.deaths()
        return {}
    if process.returncode != 0:
        raise AssertionError(error.decode())
    report: dict[str, Any] = json.loads(said)
    return report
