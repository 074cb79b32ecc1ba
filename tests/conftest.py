"""Fixtures that every test may use. Only what a test asks for is started."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator

import pytest

from tests.support.servers import Database, TestedServers, chosen


@pytest.fixture(scope="session")
async def servers() -> AsyncIterator[TestedServers]:
    """The real servers; none runs before it is asked for."""
    tested = chosen()
    yield tested
    await tested.close()


@pytest.fixture
async def database(servers: TestedServers) -> AsyncIterator[Database]:
    """A fresh database with every revision applied, whose clock can be moved."""
    async with servers.fresh_database() as fresh:
        yield fresh


@pytest.fixture
async def kafka(servers: TestedServers) -> str:
    """The bootstrap address of Kafka."""
    return await servers.kafka()


@pytest.fixture
async def valkey(servers: TestedServers) -> str:
    """The URL of Valkey."""
    return await servers.valkey()


@pytest.fixture
def topic_prefix() -> str:
    """A prefix of topic names and groups that no other test has."""
    return f"t{uuid.uuid4().hex[:12]}."


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of the developer's shell must not steer a test."""
    for name in list(os.environ):
        if name.startswith("TOLLBOOK_") and not name.startswith("TOLLBOOK_TEST_"):
            monkeypatch.delenv(name)
