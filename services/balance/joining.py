"""Requests of calls, joined: those that arrive while a transaction is under way are decided together in the next one.

So an idle server never waits, and a busy one pays for the log of the database once for many calls. A request that comes again
is answered as before, so whatever is not known to have been committed is simply carried out again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field

from sqlalchemy.ext.asyncio import AsyncEngine

from services.balance.calls import Again, Answer, Authorize, Decided, Renew, Request, carry_out, carry_out_at_once
from services.balance.evaluation import evaluate
from services.balance.funding import GROUP_CREDIT
from services.kernel.errors import TollbookError, Unavailable
from services.runtime import faults
from services.runtime.database import Kept, is_retryable, sqlstate, transaction
from services.runtime.lanes import internal_lane, transaction_instant
from services.runtime.outbox import Outbox
from services.runtime.tables import runtime_tables
from services.runtime.work import Surroundings, Work

log = logging.getLogger(__name__)

LANE = "holds"  # the links on which recharges leave that a hold has caused
JOINED_MAX = 128  # in one transaction: it locks as many wallets at most
WAITING_MAX = 4_096  # seconds of work; more than that is not caught up with while somebody waits for it
TRIES_MAX = 3
RETRY_S = 0.02
HELD_S_MAX = 2.0  # a wallet that others hold for so long is given up, and its callers are told to ask again
# A batch of charges holds its wallets for some milliseconds; to look again costs about as much as a request.
LOOK_AGAIN_S, LOOK_AGAIN_S_MAX = 0.002, 0.016

_Commit = Callable[[Sequence[Request]], Awaitable[tuple[Decided, Collection[str]]]]
"""Takes requests; gives what was decided, and the accounts that have to be decided under their locks."""


@dataclass(slots=True)
class _Asked:
    request: Request
    answered: asyncio.Future[Answer]
    since: float

    @property
    def is_pointless(self) -> bool:
        """Nobody waits any more for what it would promise. How a call ended is noted all the same."""
        return self.answered.done() and isinstance(self.request, Authorize | Again | Renew)

    def answer(self, answer: Answer | TollbookError) -> None:
        if self.answered.done():  # nobody waits any more
            return
        if isinstance(answer, TollbookError):
            self.answered.set_exception(answer)
        else:
            self.answered.set_result(answer)


@dataclass(slots=True)
class _Queue:
    """What is asked of one account, in the order it came: what is being decided, and what waits behind it."""

    decided: list[_Asked] = field(default_factory=list)
    behind: list[_Asked] = field(default_factory=list)
    pause_s: float = LOOK_AGAIN_S


class _Clerk:
    """Decides accounts that were handed to it, one transaction after the other."""

    def __init__(self, commit: _Commit) -> None:
        self.commit = commit
        self.accounts: list[str] = []
        self.running: asyncio.Task[None] | None = None


class Holds:
    """Authorises, renews, settles and releases calls, for one process. Any number of processes may do so.

    ``engine`` logs in as balance; ``surroundings`` knows the topics that a recharge is told on. What is asked of an account is
    decided in the order it came. A wallet that somebody else holds is looked at again, and delays no other account.
    """

    def __init__(self, engine: AsyncEngine, surroundings: Surroundings, *, held_s_max: float = HELD_S_MAX) -> None:
        self._engine = engine
        self._kept = Kept(engine)
        self._surroundings = surroundings
        self._held_s_max = held_s_max
        self._tables = runtime_tables("balance")
        self._waiting = 0
        self._queues: dict[str, _Queue] = {}
        self._at_once = _Clerk(self._commit_at_once)
        self._under_locks = _Clerk(self._commit_under_locks)
        self._all_answered = asyncio.Event()
        self._all_answered.set()

    async def ask(self, request: Request) -> Answer:
        """Decide one request; it is committed when this returns. Raises what is wrong with it, `Unavailable` among it."""
        if self._waiting >= WAITING_MAX:
            raise Unavailable("too many calls wait for an answer; ask again in a moment", code="busy")
        loop = asyncio.get_running_loop()
        asked = _Asked(request, loop.create_future(), loop.time())
        self._waiting += 1
        queue = self._queues.get(request.account_id)
        if queue is None:
            queue = self._queues[request.account_id] = _Queue()
            self._all_answered.clear()
            self._hand(self._at_once, request.account_id)
        queue.behind.append(asked)
        return await asked.answered

    async def close(self) -> None:
        """Wait until all that was asked is answered, and end the connection."""
        await self._all_answered.wait()
        await self._kept.close()

    def _hand(self, clerk: _Clerk, account_id: str) -> None:
        clerk.accounts.append(account_id)
        if clerk.running is None:
            clerk.running = asyncio.create_task(self._run(clerk))

    async def _run(self, clerk: _Clerk) -> None:
        try:
            while clerk.accounts:
                if accounts := self._taken(clerk):
                    await self._decide(clerk, accounts)
        finally:
            clerk.running = None

    def _taken(self, clerk: _Clerk) -> list[str]:
        """The accounts that are decided in one transaction, with their requests in hand."""
        taken, joined = [], 0
        while clerk.accounts and joined < JOINED_MAX:
            account_id = clerk.accounts.pop(0)
            queue = self._queues[account_id]
            more = JOINED_MAX - len(queue.decided)
            in_hand = queue.decided + queue.behind[:more]
            del queue.behind[:more]
            queue.decided = [asked for asked in in_hand if not asked.is_pointless]
            self._waiting -= len(in_hand) - len(queue.decided)
            if queue.decided:
                taken.append(account_id)
                joined += len(queue.decided)
            else:
                self._go_on(account_id, [])
        return taken

    async def _decide(self, clerk: _Clerk, accounts: Sequence[str]) -> None:
        """Together; when that fails, each account by itself, so that no account's trouble is another's."""
        error = await self._tried(clerk, accounts)
        if error is None:
            return
        if len(accounts) > 1 and (not is_retryable(error) or _is_of_rows(error)):
            for each in accounts:
                await self._decide(clerk, [each])
            return
        for each in accounts:
            for asked in self._queues[each].decided:
                asked.answer(Unavailable("the database does not answer; ask again"))
            self._go_on(each, [])

    async def _tried(self, clerk: _Clerk, accounts: Sequence[str]) -> Exception | None:
        """Commit and answer; the error that did not go away."""
        joined = [asked for each in accounts for asked in self._queues[each].decided]
        for left in reversed(range(TRIES_MAX)):
            try:
                decided, need_locks = await clerk.commit([asked.request for asked in joined])
            except Exception as error:
                log.warning("calls are decided again: %s", type(error).__name__, exc_info=error)
                if not left or not is_retryable(error):
                    return error
                await asyncio.sleep(RETRY_S)
            else:
                undecided: dict[str, list[_Asked]] = {each: [] for each in accounts}
                for asked, answer in zip(joined, decided, strict=True):
                    if answer is None:
                        undecided[asked.request.account_id].append(asked)
                    else:
                        asked.answer(answer)
                for each, left_over in undecided.items():
                    self._go_on(each, left_over, need_locks)
                break
        return None

    def _go_on(self, account_id: str, undecided: list[_Asked], need_locks: Collection[str] = ()) -> None:
        """With an account after a transaction: under its locks, after a pause, with what came meanwhile, or not at all."""
        queue = self._queues[account_id]
        answered = len(queue.decided) - len(undecided)
        queue.decided = undecided
        if undecided and account_id not in need_locks:
            answered += self._give_up(queue)
        if account_id in need_locks:
            self._hand(self._under_locks, account_id)
        elif queue.decided:
            pause_s, queue.pause_s = queue.pause_s, min(2 * queue.pause_s, LOOK_AGAIN_S_MAX)
            asyncio.get_running_loop().call_later(pause_s, self._hand, self._at_once, account_id)
        elif queue.behind:
            queue.pause_s = LOOK_AGAIN_S
            self._hand(self._at_once, account_id)
        else:
            del self._queues[account_id]
        self._waiting -= answered
        if not self._queues:
            self._all_answered.set()

    def _give_up(self, queue: _Queue) -> int:
        """Answer those that have waited too long for a wallet that others hold; how many."""
        too_long = asyncio.get_running_loop().time() - self._held_s_max
        gone = [asked for asked in queue.decided if asked.since < too_long]
        for asked in gone:
            asked.answer(Unavailable("the account is busy; ask again", code="busy"))
        queue.decided = [asked for asked in queue.decided if asked.since >= too_long]
        return len(gone)

    # ---- the two transactions ----

    async def _commit_at_once(self, requests: Sequence[Request]) -> tuple[Decided, Collection[str]]:
        decided = await carry_out_at_once(self._kept, requests)
        faults.step("balance.holds.committed")
        return decided

    async def _commit_under_locks(self, requests: Sequence[Request]) -> tuple[Decided, Collection[str]]:
        async with transaction(self._engine) as connection:
            decided, follows = await carry_out(connection, requests)
            faults.step("balance.holds.written")
            if follows:
                # After the wallets, unlike a batch: nobody who holds this lane waits for a wallet, or a credit.
                await internal_lane(connection, self._tables, LANE)
                moment = await transaction_instant(connection, self._tables)
                outbox = Outbox("balance", self._surroundings.partitions)
                work = Work(
                    connection, self._tables, "balance", LANE, follows.now, moment.epoch, outbox, self._surroundings,
                    version_floor=moment.version_floor,
                )  # fmt: skip
                await evaluate(work, follows.wallets, funds_of=(), tell=lambda _: None)
                await work.set_timers(GROUP_CREDIT, dict.fromkeys(follows.groups, work.now))
                await work.finish()
        faults.step("balance.holds.committed")
        return decided, ()


def _is_of_rows(error: Exception) -> bool:
    """Whether others held the rows of some account, while the server itself is well."""
    return (sqlstate(error) or "")[:2] in ("40", "55")
