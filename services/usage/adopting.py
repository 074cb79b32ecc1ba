"""After a restore from a backup: the cuts that were published and that the restore undid are taken as they were.

Their invoices may have gone out. Taken anew a cut would stand higher, and a late event would come to the invoice of another month
than the one that was published. Source: designs/closing, RESTORE (d).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from contracts.closing import Covered
from services.runtime.lanes import give_birth
from services.runtime.records import lane_name
from services.usage import store
from services.usage.closing import EVENTS
from services.usage.tables import BOOK_VERSION, RUNTIME


async def adopt_cuts(connection: AsyncConnection, undone: Sequence[Covered]) -> list[datetime]:
    """Take these cuts, in the order that they were told, with the fence rows that they name; one that is taken already, when the
    backup was made or by a run before, stays as it is. Returns their boundaries."""
    known = {row.cutoff_id for row in await store.taken_cuts(connection)}
    whole = {each.cutoff_id: each for each in reversed(undone) if each.room == "usage" and each.group_id is None}
    for covered in undone:
        if covered is not whole.get(covered.cutoff_id) or covered.cutoff_id in known:
            continue
        lanes = [
            (lane_name(EVENTS, each.topic, each.partition), each.topic, each.partition, each.from_offset)
            for each in covered.lanes
        ]
        await give_birth(connection, RUNTIME, EVENTS, lanes)
        await store.name_cuts(connection, [{"cutoff_id": covered.cutoff_id, "boundary": covered.boundary}])
        await store.take_cut(connection, covered.cutoff_id, await store.clock_now(connection))
        if covered.lanes:
            positions = {(each.topic, each.partition): each.to_offset for each in covered.lanes}
            await store.insert_cut_positions(connection, covered.cutoff_id, positions)
    if whole.keys() - known:
        await store.bump(connection, "cuts_version")
    return sorted(each.boundary for each in whole.values())


async def known_books(connection: AsyncConnection) -> set[tuple[str, int]]:
    """Every (price book, version) that was imported."""
    rows = await connection.execute(select(BOOK_VERSION.c.book_id, BOOK_VERSION.c.version))
    return {(row.book_id, row.version) for row in rows.all()}
