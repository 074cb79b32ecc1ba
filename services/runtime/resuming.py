"""A stopped lane goes on when a person says so. What is given up for it is named before, and kept with who and why.

A lane stops at a loss: records that are gone from the log, a gap in a link, a topic made anew. To go on without them is a
decision about money, and never a side effect of a restart. Source: designs/closing, line 3; architecture, section 4.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from contracts.topics import topic_of
from services.kernel.errors import InvalidInput, NotFound, Refused
from services.runtime.broker import Offsets, read_log
from services.runtime.database import transaction
from services.runtime.lanes import CLOCK_NOW, RETIRED, Lane, lane_named
from services.runtime.links import holds, load_bounds, load_received, save_received
from services.runtime.settings import Settings
from services.runtime.tables import RuntimeTables


@dataclass(frozen=True, slots=True)
class LostSeqs:
    """The records ``first`` to ``last`` of a link, which the lane will never have."""

    link: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Where a stopped lane would go on, and what it would never read."""

    lane: Lane
    to_offset: int
    links: tuple[LostSeqs, ...] = ()
    retires: bool = False

    @property
    def gives_up(self) -> str | None:
        """What is given up, in words; None for nothing."""
        if self.retires:
            return f"all of {self.lane.topic}/{self.lane.partition} that was not read: Kafka does not have it any more"
        return _in_words(self.lane.position, self.to_offset, self.links) or None


@dataclass(frozen=True, slots=True)
class Resumed:
    """A lane that went on, or was retired: offsets [from, to) and seqs of links were given up, unless it went back in a topic
    made anew."""

    lane: str
    topic: str
    partition: int
    stopped: str
    from_offset: int
    to_offset: int
    links: tuple[LostSeqs, ...]
    by: str
    reason: str
    at: datetime

    @property
    def sentence(self) -> str:
        """What was given up, by whom and why."""
        lost = _in_words(self.from_offset, self.to_offset, self.links) or "nothing"
        return f"{self.lane} ({self.stopped}) at {self.to_offset}, given up {lost}, by {self.by}: {self.reason}"


def _in_words(start: int, end: int, links: Sequence[LostSeqs]) -> str:
    offsets = [f"offsets {start} to {end - 1}"] if start < end else []
    return ", ".join([*offsets, *(f"seqs {each.first} to {each.last} of link {each.link}" for each in links)])


async def plan(
    engine: AsyncEngine, tables: RuntimeTables, settings: Settings, name: str, *, offset: int | None, earliest: bool
) -> Plan:
    """What it takes to go on at an offset, at the start of the log, or (neither) where the lane stands. Changes nothing.

    `Refused` for a lane that is not stopped, and for an offset below what is applied, which would be applied twice. Between
    rooms the seqs prevent that, so there a lane may go back in a topic that was made anew. A lane of a topic of a publisher
    that was deleted is retired, stopped or not; the offset is then the end that the topic had, where a cut may stand.
    """
    async with transaction(engine) as connection:
        lane = await _named(connection, tables, name)
        epoch = (await connection.execute(select(tables.lanes.c.epoch))).scalar_one()
    topic = topic_of(lane.topic)
    offsets = Offsets(settings)
    await offsets.start()
    try:
        start = (await offsets.begins(topic)).get((lane.topic, lane.partition))
        end = (await offsets.ends(topic)).get((lane.topic, lane.partition))
    finally:
        await offsets.stop()
    if start is None or end is None:
        return _retiring(lane, offset, earliest=earliest)
    _expect_stopped(lane)
    target = start if earliest else lane.position if offset is None else offset
    if lane.position > end and topic.bare:
        raise Refused(
            f"{lane.topic}/{lane.partition} ends at {end} and was applied up to {lane.position}: the topic was made anew, and"
            f" its offsets mean other records now; have it written until it ends above {lane.position}, or use another topic",
            code="topic_made_anew",
        )
    if not start <= target <= end:
        raise InvalidInput(f"the log of {lane.topic}/{lane.partition} holds offsets {start} to {end}", field="from")
    if target < lane.position <= end:
        raise Refused(
            f"everything below {lane.position} is applied already; name {lane.position} or above", field="from"
        )
    links = () if topic.bare else await _gaps(engine, tables, settings, lane, epoch, target, end)
    return Plan(lane, target, links)


def _retiring(lane: Lane, offset: int | None, *, earliest: bool) -> Plan:
    if not topic_of(lane.topic).is_family:
        raise NotFound(f"Kafka has no partition {lane.partition} of {lane.topic}; make it first", field="LANE")
    if lane.is_retired:
        raise Refused(f"lane {lane.name} is retired", field="LANE", code="retired")
    target = lane.position if offset is None else offset
    if earliest or target < lane.position:
        raise InvalidInput(
            f"{lane.topic} was deleted; name the end that it had, {lane.position} or above", field="from"
        )
    return Plan(lane, target, retires=True)


async def _gaps(
    engine: AsyncEngine, tables: RuntimeTables, settings: Settings, lane: Lane, epoch: int, start: int, end: int
) -> tuple[LostSeqs, ...]:
    """The seqs between what is applied of each link and its first record at or above an offset."""
    async with transaction(engine) as connection:
        bounds = await load_bounds(connection, tables, [(lane.topic, lane.partition)])
    first: dict[str, int] = {}
    async for record in read_log(settings, lane.topic, lane.partition, start, end):
        try:
            envelope: Any = json.loads(record.value or b"")
            link, life, seq = envelope["link"], envelope["epoch"], envelope["seq"]
        except (ValueError, KeyError, TypeError):
            continue  # it stops the lane again when its turn comes
        if holds(bounds, epoch, life, (link, lane.topic, lane.partition), seq):
            first.setdefault(link, seq)
    async with transaction(engine) as connection:
        wanted = [(link, lane.topic, lane.partition) for link in first]
        received = await load_received(connection, tables, wanted) if wanted else {}
    have = {link: received.get((link, lane.topic, lane.partition), 0) for link in first}
    return tuple(LostSeqs(link, have[link] + 1, seq - 1) for link, seq in sorted(first.items()) if seq > have[link] + 1)


async def resume(engine: AsyncEngine, tables: RuntimeTables, decided: Plan, *, by: str, reason: str) -> None:
    """Let the lane go on as planned, or retire it. `Refused` when it is not as it was then."""
    lane = decided.lane
    stopped = f"{RETIRED}{lane.topic} was deleted" if decided.retires else None
    async with transaction(engine) as connection:
        now = await _named(connection, tables, lane.name, lock=True)
        if not decided.retires:
            _expect_stopped(now)
        if now != lane:
            raise Refused(f"lane {lane.name} is at {now.position} by now; look again", code="lane_moved")
        if decided.links:
            lost = {(each.link, lane.topic, lane.partition): each.last for each in decided.links}
            await save_received(connection, tables, lost)
        await connection.execute(
            insert(tables.resumed).values(
                lane=lane.name,
                topic=lane.topic,
                partition=lane.partition,
                stopped=lane.stopped or stopped,
                from_offset=lane.position,
                to_offset=decided.to_offset,
                links=[asdict(each) for each in decided.links],
                by=by,
                reason=reason,
                at=CLOCK_NOW,
            )
        )
        await connection.execute(
            update(tables.lane)
            .where(tables.lane.c.name == lane.name)
            .values(position=decided.to_offset, stopped=stopped, updated_at=CLOCK_NOW)
        )


async def resumed(connection: AsyncConnection, tables: RuntimeTables) -> list[Resumed]:
    """Every lane that went on, in order."""
    columns = tables.resumed.c
    rows = (await connection.execute(select(tables.resumed).order_by(columns.id))).all()
    return [
        Resumed(
            row.lane,
            row.topic,
            row.partition,
            row.stopped,
            row.from_offset,
            row.to_offset,
            tuple(LostSeqs(**each) for each in row.links),
            row.by,
            row.reason,
            row.at,
        )
        for row in rows
    ]


async def _named(connection: AsyncConnection, tables: RuntimeTables, name: str, *, lock: bool = False) -> Lane:
    lane = await lane_named(connection, tables, name, lock=lock)
    if lane is None:
        raise NotFound(f"there is no lane {name!r}; `tollbook lane list` shows them", field="LANE")
    return lane


def _expect_stopped(lane: Lane) -> None:
    if lane.stopped is None:
        raise Refused(f"lane {lane.name} is not stopped", field="LANE", code="not_stopped")
