"""The refuse-fast set: suspended accounts in Valkey, where upstream services look before they let a call through.

It is a copy that only makes refusing fast: what is true stands in Postgres. It is brought up to date after each commit and
made anew at the start and every `REBUILD_S`. With Valkey gone everything goes on; what it missed it gets when it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping

from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.kernel.errors import Unavailable
from services.runtime.ending import end

log = logging.getLogger(__name__)

KEY = "balance.suspended"
TIMEOUT_S = 0.5  # Valkey answers in well under a millisecond; what takes longer is not worth waiting for
REBUILD_S = 10.0  # how long the set may be wrong after Valkey was away, or two processes told of one account at once
ACCOUNTS_PER_COMMAND = 10_000  # keeps one command short for the server's other callers
WAITING_CHANGES_MAX = 10_000  # more than these are dropped: the next rebuild brings them

Changes = Mapping[str, bool]


class RefuseFast:
    """Keeps the set; every failure of Valkey is one line in the log and nothing else.

    One task does all of it in order, so a rebuild never takes back what was told after it was read.
    """

    def __init__(self, url: Callable[[], str], prefix: str = "") -> None:
        self._url = url
        self._key = prefix + KEY
        self._changes: asyncio.Queue[Changes] = asyncio.Queue(WAITING_CHANGES_MAX)
        self._task: asyncio.Task[None] | None = None
        self._client: Redis | None = None
        self._failing = False

    async def start(self, suspended: Callable[[], Awaitable[list[str]]]) -> None:
        """Begin; ``suspended`` reads the suspended accounts from Postgres."""
        self._task = asyncio.create_task(self._run(suspended))

    async def stop(self) -> None:
        """End; what was not told yet is brought by the rebuild at the next start."""
        if self._task is not None:
            await end([self._task])
            self._task = None
        await self._forget_client()

    def tell(self, changes: Changes) -> None:
        """After a commit: accounts that are suspended (True) or restored (False). Never waits, never fails."""
        try:
            self._changes.put_nowait(dict(changes))
        except asyncio.QueueFull:
            log.warning("refuse-fast: %d changes wait already; the next rebuild brings the others", WAITING_CHANGES_MAX)

    async def content(self) -> set[str]:
        """The set as it stands in Valkey; raises `Unavailable` when Valkey does not answer."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return {str(name) for name in await self._connected().smembers(self._key)}
        except (RedisError, OSError, TimeoutError) as error:
            await self._forget_client()
            raise Unavailable(f"Valkey does not answer ({type(error).__name__})", field="TOLLBOOK_VALKEY") from error

    async def _run(self, suspended: Callable[[], Awaitable[list[str]]]) -> None:
        loop = asyncio.get_running_loop()
        rebuild_at = loop.time()
        while True:
            changes: Changes | None = None
            if loop.time() < rebuild_at:
                with contextlib.suppress(TimeoutError):
                    # wait_for, in Python 3.11, forgets a cancellation that meets a change
                    async with asyncio.timeout_at(rebuild_at):
                        changes = await self._changes.get()
            try:
                if changes is not None:
                    await self._apply(changes)
                else:
                    rebuild_at = loop.time() + REBUILD_S
                    await self._rebuild(await suspended())
            except Exception as error:  # Valkey or Postgres away, whatever the way: the next rebuild mends it
                await self._failed(error)
            else:
                if self._failing:
                    log.info("the refuse-fast set is kept again")
                self._failing = False

    async def _apply(self, changes: Changes) -> None:
        async with asyncio.timeout(TIMEOUT_S), self._connected().pipeline(transaction=True) as pipe:
            for account_id in sorted(changes):
                (pipe.sadd if changes[account_id] else pipe.srem)(self._key, account_id)
            await pipe.execute()

    async def _rebuild(self, accounts: list[str]) -> None:
        async with asyncio.timeout(TIMEOUT_S), self._connected().pipeline(transaction=True) as pipe:
            pipe.delete(self._key)
            for chunk in _chunks(accounts):
                pipe.sadd(self._key, *chunk)
            await pipe.execute()

    async def _failed(self, error: Exception) -> None:
        if not self._failing:
            log.warning("the refuse-fast set is not kept for now (%s); everything passes", type(error).__name__)
        self._failing = True
        await self._forget_client()

    def _connected(self) -> Redis:
        if self._client is None:
            self._client = Redis.from_url(
                self._url(), decode_responses=True, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S
            )
        return self._client

    async def _forget_client(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(RedisError, OSError, TimeoutError):
                await client.aclose()


def _chunks(accounts: list[str]) -> list[list[str]]:
    return [accounts[at : at + ACCOUNTS_PER_COMMAND] for at in range(0, len(accounts), ACCOUNTS_PER_COMMAND)]
