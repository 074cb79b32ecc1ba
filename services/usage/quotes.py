"""Quotes from memory, for one who asks often: no statement, and at most a second behind what was changed.

What a call holds is decided by balance under the wallet's lock; a quote only says by which price. So a price that changes in
the second before a call may be held at the old one; its charge is rated by the new.
"""

from __future__ import annotations

import asyncio
import time
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncEngine

from services.kernel.errors import NotFound, Unavailable
from services.runtime.database import transaction
from services.usage import quoting, store
from services.usage.books import Direction
from services.usage.memory import Memory
from services.usage.quoting import Quote

REFRESH_S = 1.0


class Quotes:
    """The registry, the books and the maxima of one process. Call `refresh` before the first quote and every second."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._memory = Memory()
        self._one_at_a_time = asyncio.Lock()
        self._read: tuple[datetime, float] | None = None  # the one clock, and this process's at the same moment

    async def refresh(self) -> None:
        """Read what has changed, and the one clock."""
        async with self._one_at_a_time:
            await self._refresh()

    @property
    def age_s(self) -> float:
        """Since the last look; infinite before the first."""
        return float("inf") if self._read is None else time.monotonic() - self._read[1]

    async def quote(
        self,
        account_id: str,
        called: str,
        *,
        direction: Direction = "outbound",
        caller: str | None = None,
        profile: str | None = None,
    ) -> Quote:
        """What a call that begins now costs; see `quoting.quote`. What is not found is looked for once more in the tables."""
        asked_at = time.monotonic()
        try:
            return self._quote(account_id, called, direction, caller, profile)
        except NotFound:
            async with self._one_at_a_time:
                if self._read is None or self._read[1] < asked_at:  # else another one has just looked
                    await self._refresh()
            return self._quote(account_id, called, direction, caller, profile)

    async def _refresh(self) -> None:
        asked_at = time.monotonic()
        async with transaction(self._engine) as connection:
            await self._memory.refresh(connection, await store.read_state(connection))
            self._read = await store.clock_now(connection), asked_at

    def _quote(
        self, account_id: str, called: str, direction: Direction, caller: str | None, profile: str | None
    ) -> Quote:
        if self._read is None:
            raise Unavailable("the price books have not been read yet; ask again in a moment")
        read_at, at = self._read
        account = self._memory.registry.accounts.get(account_id)
        if account is None:
            raise NotFound(f"there is no account {account_id}", field="account_id", code="unknown_account")
        return quoting.quote(
            account,
            self._memory.prices,
            self._memory.maximum_prices,
            direction=direction,
            called=called,
            caller=caller,
            at=read_at + timedelta(seconds=time.monotonic() - at),
            profile=profile,
        )
