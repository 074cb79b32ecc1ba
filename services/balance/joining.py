"""Requests of calls, joined: those that arrive while a transaction is under way are decided together in the next one.

So an idle server never waits, and a busy one pays for the log of the database once for many calls. A request that comes again
is answered as before, so whatever is not known to have been committed is simply carried out again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from itertools import groupby

from sqlalchemy.ext.asyncio import AsyncEngine

from services.balance.calls import Answer, Request, carry_out, carry_out_at_once
from services.balance.evaluation import evaluate
from services.kernel.errors import TollbookError, Unavailable
from services.runtime import faults
from services.runtime.database import each_alone, is_retryable, sqlstate, transaction
from services.runtime.lanes import internal_lane, transaction_instant
from services.runtime.outbox import Outbox
from services.runtime.tables import runtime_tables
from services.runtime.work import Surroundings, Work

log = logging.getLogger(__name__)

LANE = "holds"  # the links on which recharges leave that a hold has caused
JOINED_MAX = 256  # in one transaction: it locks as many wallets at most
WAITING_MAX = 4_096  # seconds of work; more than that is not caught up with while somebody waits for it
TRIES_MAX = 3
RETRY_S = 0.02

_Asked = tuple[Request, "asyncio.Future[Answer]"]


def _is_of_rows(error: Exception) -> bool:
    """Whether others held the rows of some account, while the server itself is well."""
    return (sqlstate(error) or "")[:2] in ("40", "55")


class Holds:
    """Authorises, renews, settles and releases calls, for one process. Any number of processes may do so.

    ``engine`` logs in as balance; ``surroundings`` knows the topics that a recharge is told on.
    """

    def __init__(self, engine: AsyncEngine, surroundings: Surroundings) -> None:
        self._engine = engine
        self._surroundings = surroundings
        self._tables = runtime_tables("balance")
        self._waiting: list[_Asked] = []
        self._running: asyncio.Task[None] | None = None

    async def ask(self, request: Request) -> Answer:
        """Decide one request; it is committed when this returns. Raises what is wrong with it, `Unavailable` among it."""
        if len(self._waiting) >= WAITING_MAX:
            raise Unavailable("too many calls wait for an answer; ask again in a moment", code="busy")
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, answered))
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await answered

    async def close(self) -> None:
        """Wait until all that was asked is answered."""
        if self._running is not None:
            await self._running

    async def _run(self) -> None:
        try:
            while self._waiting:
                joined, self._waiting = self._waiting[:JOINED_MAX], self._waiting[JOINED_MAX:]
                await self._decide([each for each in joined if not each[1].done()])
        finally:
            self._running = None

    async def _decide(self, joined: Sequence[_Asked]) -> None:
        """Together; when that fails, each account by itself, so that no account's trouble is another's."""
        if not joined:
            return
        error = await self._tried(joined)
        if error is None:
            return
        by_account = sorted(joined, key=lambda each: each[0].account_id)
        accounts = [list(own) for _, own in groupby(by_account, key=lambda each: each[0].account_id)]
        if len(accounts) > 1 and (not is_retryable(error) or _is_of_rows(error)):
            for own in accounts:
                await self._decide(own)
            return
        for _, answered in joined:
            if not answered.done():
                answered.set_exception(Unavailable("the database does not answer; ask again"))

    async def _tried(self, joined: Sequence[_Asked]) -> Exception | None:
        """Commit and answer; the error that did not go away."""
        for left in reversed(range(TRIES_MAX)):
            try:
                answers = await self._commit([request for request, _ in joined])
            except Exception as error:
                log.warning("calls are decided again: %s", type(error).__name__, exc_info=error)
                if not left or not is_retryable(error):
                    return error
                await asyncio.sleep(RETRY_S)
            else:
                for (_, answered), answer in zip(joined, answers, strict=True):
                    if answered.done():  # nobody waits any more
                        continue
                    if isinstance(answer, TollbookError):
                        answered.set_exception(answer)
                    else:
                        answered.set_result(answer)
                break
        return None

    async def _commit(self, requests: Sequence[Request]) -> list[Answer | TollbookError]:
        """At once where that is all there is to it; else under the wallets' locks."""
        async with each_alone(self._engine) as connection:
            at_once = await carry_out_at_once(connection, requests)
        if at_once is not None:
            faults.step("balance.holds.committed")
            return at_once
        async with transaction(self._engine) as connection:
            answers, wallets, now = await carry_out(connection, requests)
            faults.step("balance.holds.written")
            if wallets and now is not None:
                # After the wallets, unlike a batch: nobody who holds this lane waits for a wallet.
                await internal_lane(connection, self._tables, LANE)
                _, epoch = await transaction_instant(connection, self._tables)
                outbox = Outbox("balance", self._surroundings.partitions)
                work = Work(connection, self._tables, "balance", LANE, now, epoch, outbox, self._surroundings)
                await evaluate(work, wallets, funds_of=(), tell=lambda _: None)
                await work.finish()
        faults.step("balance.holds.committed")
        return answers
