"""After a restore from a backup: a cut that was published stands where it stood."""

from __future__ import annotations

from sqlalchemy import select

from contracts.closing import Covered, LaneCount
from services.kernel.ids import cutoff_id
from services.runtime.database import transaction
from services.usage import api
from services.usage.tables import RUNTIME
from tests.support.usage_registry import TOPIC
from tests.usage.test_cut import BOUNDARY, LAST, THIS, Closing, both, closing

__all__ = ["closing"]


def undone(to_offset: int, partition: int = 0) -> Covered:
    lane = LaneCount(topic=TOPIC, partition=partition, from_offset=0, to_offset=to_offset, counts={})
    return Covered(cutoff_id=cutoff_id(BOUNDARY), boundary=BOUNDARY, room="usage", marks=(), lanes=(lane,))


async def adopt(closing: Closing, *told: Covered) -> list[object]:
    async with transaction(closing.engine) as connection:
        return [*await api.adopt_cuts(connection, told)]


async def test_what_came_after_the_cut_that_was_published_stands_on_the_next_invoice(closing: Closing) -> None:
    closing.event("before")
    closing.event("after")
    groups = undone(0).model_copy(update={"room": "groups"})
    held = undone(9).model_copy(update={"group_id": "lakeside"})
    assert await adopt(closing, groups, held, undone(1), undone(7)) == [BOUNDARY]
    await closing.close()
    assert closing.bills == {"before": both(LAST), "after": both(LAST, THIS)}
    (told,) = closing.covered()
    assert [(each["partition"], each["from_offset"], each["to_offset"]) for each in told["lanes"]] == [(0, 0, 1)]


async def test_a_cut_that_the_backup_knows_is_left_alone(closing: Closing) -> None:
    closing.event("before")
    await closing.cut()
    assert await adopt(closing, undone(0)) == [BOUNDARY]
    closing.event("after")
    await closing.close()
    assert closing.bills == {"before": both(LAST), "after": both(LAST, THIS)}


async def test_a_fence_row_is_made_for_a_partition_that_the_backup_did_not_have(closing: Closing) -> None:
    assert await adopt(closing, undone(3, partition=1)) == [BOUNDARY]
    lane = RUNTIME.lane.c
    wanted = select(lane.name, lane.first, lane.position).where(lane.topic == TOPIC, lane.partition == 1)
    rows = await closing.rooms.query("usage", wanted)
    assert [tuple(row) for row in rows] == [(f"events/{TOPIC}/1", 0, 0)]
