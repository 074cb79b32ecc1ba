"""The chain over the ledger in the database: a row a day over all lanes, and the search for what does not fit.

The search reads everything once, in order and in pieces, however much there is. It runs in one snapshot: REPEATABLE READ.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from services.balance import store
from services.balance.chain import (
    Charged,
    Head,
    LaneChecker,
    Posted,
    content_of_batch,
    content_of_transactions,
    day_hash,
)
from services.runtime.work import Work

log = logging.getLogger(__name__)

BATCHES_AT_ONCE = 100  # of up to some thousand accounts each
SEALS_AT_ONCE = 500
SHOWN_MAX = 20  # rows of one kind of finding: the first says where to look


async def seal_day(work: Work) -> None:
    """Tick: when a day of UTC is over, chain the last seals of all lanes into its row."""
    day = work.now.date() - timedelta(days=1)
    last = await store.last_sealed_day(work)
    if last is not None and last.day >= day:
        return
    heads = {row.lane: Head(row.seq, row.hash) for row in await store.lane_heads(work)}
    hash = day_hash(b"" if last is None else last.hash, day, heads)
    written = {lane: [head.seq, head.hash.hex()] for lane, head in heads.items()}
    await store.append_sealed_day(work, {"day": day, "at": work.now, "heads": written, "hash": hash})
    log.info("the ledger up to %s is sealed as %s", day, hash.hex())


@dataclass
class Found:
    """What the search looked at, and what does not fit."""

    seals: int = 0
    batches: int = 0
    transactions: int = 0
    days: int = 0
    last_day: date | None = None
    last_hash: str = ""
    problems: list[str] = field(default_factory=list)


async def search(connection: AsyncConnection) -> Found:
    """Compute every digest and every hash again: edited, dropped and swapped rows, dropped tails, rows put in by hand."""
    found = Found()
    expected = await _days(connection, found)
    await _seals(connection, found, expected)
    await _batches(connection, found)
    await _transactions(connection, found)
    found.problems += [
        f"transaction {each} was put in by hand: no seal covers it"
        for each in await store.unsealed(connection, SHOWN_MAX)
    ]
    found.problems += [
        f"entries of transaction {each} are there, it is not"
        for each in await store.orphaned_entries(connection, SHOWN_MAX)
    ]
    return found


async def _days(connection: AsyncConnection, found: Found) -> dict[tuple[str, int], tuple[date, bytes]]:
    """Follow the rows of the days; returns what they say of the lanes, the first day that says it."""
    expected: dict[tuple[str, int], tuple[date, bytes]] = {}
    previous = b""
    for row in await store.sealed_days(connection):
        found.days += 1
        heads = {lane: Head(seq, bytes.fromhex(hash)) for lane, (seq, hash) in row.heads.items()}
        if row.hash != day_hash(previous, row.day, heads):
            found.problems.append(f"the row of {row.day} does not follow from the one before")
        previous = row.hash
        found.last_day, found.last_hash = row.day, row.hash.hex()
        for lane, head in heads.items():
            expected.setdefault((lane, head.seq), (row.day, head.hash))
    return expected


async def _seals(
    connection: AsyncConnection, found: Found, expected: Mapping[tuple[str, int], tuple[date, bytes]]
) -> None:
    checker = LaneChecker(expected)
    async for row in store.seals(connection):
        found.seals += 1
        problem = checker.look_at(row.lane, row.seq, row.content, row.hash)
        if problem is not None:
            found.problems.append(problem)
    found.problems += checker.rest()


async def _batches(connection: AsyncConnection, found: Found) -> None:
    """Every batch with its rows against its seal. The pieces cover all numbers, so no row is passed over."""
    after = 0
    while True:
        rows = await store.batches_after(connection, after, BATCHES_AT_ONCE)
        to = rows[-1].batch_id if len(rows) == BATCHES_AT_ONCE else None
        charged: dict[int, list[Charged]] = defaultdict(list)
        for row in await store.charged_between(connection, after, to):
            charged[row.batch_id].append(Charged._make(row[1:]))
        for row in rows:
            found.batches += 1
            name = f"batch {row.batch_id} of charges"
            own = charged.pop(row.batch_id, [])
            if row.at is None:
                found.problems.append(f"{name} is missing: seal {row.seq} of lane {row.lane} covers it")
            elif row.content is None:
                found.problems.append(f"{name} was put in by hand: no seal covers it")
            elif content_of_batch(row.at, row.links, own) != row.content:
                found.problems.append(f"{name} is not what was written: seal {row.seq} of lane {row.lane} differs")
        found.problems += [f"rows of batch {batch_id} of charges are there, it is not" for batch_id in sorted(charged)]
        if to is None:
            return
        after = to


async def _transactions(connection: AsyncConnection, found: Found) -> None:
    """Every seal of transactions against what it covers."""
    async for seals in _in_pieces(store.seals(connection, of_transactions=True), SEALS_AT_ONCE):
        ids = [each for seal in seals for each in seal.transaction_ids]
        rows = {row.id: row for row in await store.transactions(connection, ids)}
        entries: dict[UUID, list[tuple[str, str | None, int]]] = defaultdict(list)
        for entry in await store.entries_of(connection, ids):
            entries[entry.transaction_id].append((entry.ledger, entry.account_id, entry.nano))
        for seal in seals:
            found.transactions += len(seal.transaction_ids)
            where = f"seal {seal.seq} of lane {seal.lane}"
            missing = [each for each in seal.transaction_ids if each not in rows]
            if missing:
                found.problems.append(f"transaction {missing[0]} is missing: {where} covers it")
                continue
            posted = [Posted._make((*rows[each], entries[each])) for each in seal.transaction_ids]
            if content_of_transactions(posted) != seal.content:
                names = ", ".join(f"{each.kind} {each.ref}" for each in posted[:3])
                found.problems.append(
                    f"{names}{'…' if len(posted) > 3 else ''} is not what was written: {where} differs"
                )


async def _in_pieces(rows: AsyncIterator[Any], size: int) -> AsyncIterator[list[Any]]:
    piece: list[Any] = []
    async for row in rows:
        piece.append(row)
        if len(piece) == size:
            yield piece
            piece = []
    if piece:
        yield piece
