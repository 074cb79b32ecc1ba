"""After a restore from a backup: upstreams hear anew whether an account may call.

They may have acted on a suspension, or its end, that the restore undid; if it does not come again they would never know.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from sqlalchemy.ext.asyncio import AsyncEngine

from services.balance import store
from services.balance.evaluation import load
from services.runtime.processor import Processor
from services.runtime.room import Room
from services.runtime.work import Surroundings, Work

LANE = "restore"
ACCOUNTS_AT_ONCE = 500  # in one transaction


async def tell_again(engine: AsyncEngine, surroundings: Surroundings, account_ids: Collection[str]) -> None:
    """Tell of these accounts which reasons of suspension stand, or that none does, with the next version. Unknown ones are left
    out: they are told of when they are created again."""

    async def run(accounts: Collection[str], work: Work) -> None:
        wallets = await load(work, accounts)
        for account_id in sorted(wallets):
            wallet = wallets[account_id]
            wallet.tell(work, "suspended" if wallet.reasons else "restored", reasons=wallet.reasons)
        await store.save_wallets(work, [wallets[account_id].row() for account_id in sorted(wallets)])

    processor = Processor(Room("balance", ()), engine, surroundings)
    ordered = sorted(account_ids)
    for begin in range(0, len(ordered), ACCOUNTS_AT_ONCE):
        await processor.transact(partial(run, ordered[begin : begin + ACCOUNTS_AT_ONCE]), lane=LANE)
