"""The cut and what each room says of it. Source: designs/closing."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field

from contracts.words import Id, Instant, Message, Text


class Cutoff(Message):
    """`closing.cutoffs`: a cut is to be taken for one boundary instant (the end of a period of at least one group)."""

    cutoff_id: UUID
    boundary: Instant


class Mark(Message):
    """The last seq of one link of a room's output."""

    link: Text
    topic: Text
    partition: Annotated[int, Field(ge=0)]
    last_seq: Annotated[int, Field(ge=0)]


class LaneCount(Message):
    """What became of the records of one usage partition in [from_offset, to_offset)."""

    topic: Text
    partition: Annotated[int, Field(ge=0)]
    from_offset: Annotated[int, Field(ge=0)]
    to_offset: Annotated[int, Field(ge=0)]
    counts: dict[str, int]


class SilentSource(Message):
    """A source that was seen in the month before the one that is cut, and not in it."""

    publisher_id: Id
    source: Text


SILENT_SOURCES_MAX = 1_000
"""So many silent sources are named; a thousand with the longest names are 1.3 MB."""


class Covered(Message):
    """`closing.progress`: all that a room had to do for a cut is done; for the whole cut, or for one held group."""

    cutoff_id: UUID
    boundary: Instant
    room: Literal["groups", "usage", "balance"]
    group_id: Id | None = None
    marks: tuple[Mark, ...]
    lanes: tuple[LaneCount, ...] = ()
    held: tuple[Id, ...] = ()
    counts: dict[str, int] = {}
    silent_sources: Annotated[tuple[SilentSource, ...], Field(max_length=SILENT_SOURCES_MAX)] = ()
    silent_sources_count: Annotated[
        int, Field(ge=0, description=f"How many there are; at most {SILENT_SOURCES_MAX} are named")
    ] = 0
