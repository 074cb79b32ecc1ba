"""The room over a real database, and a receiver on the loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.receiver import Receiver
from tests.support.servers import Database
from tests.webhooks.post import Post


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as made:
        yield made


@pytest.fixture
async def post(database: Database) -> AsyncIterator[Post]:
    """The account `sales` of `lakeside` is known."""
    async with Post(database) as made:
        await made.account("sales")
        yield made
