"""How a room declares itself: its inputs, ticks, timers and jobs. The runtime does the rest."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from contracts.reading import Reading
from contracts.topics import Topic, topic_of
from services.runtime.database import Plain
from services.runtime.parking import Parked, ParkedRow
from services.runtime.records import Record
from services.runtime.work import Work

if TYPE_CHECKING:
    from services.runtime.processor import Processor

BATCH_RECORDS_MAX = 2_000  # one transaction: large enough that a dozen statements cost little, small enough to repeat

Handle = Callable[[Work, list[Record]], Awaitable[None]]


@dataclass(frozen=True)
class Input:
    """Topics a room reads in one consumer group.

    Records between rooms arrive decoded and exactly once, in order per link. Records from outside arrive raw: their room
    decodes them and quarantines what it refuses. ``parked`` is told every record quarantined in the same transaction,
    ``discarded`` every one a person gave up. ``reading`` is how records are read of which only some fields are needed, where
    that is worth it: the handler then judges what it reads, see `contracts.reading`. One transaction takes at most
    ``max_records``, of several lanes only as far as they have at most ``max_keys`` keys: where a key stands for a row that
    others wait for, hardly more are locked at once.
    """

    name: str
    topics: tuple[Topic, ...]
    handle: Handle
    parked: Callable[[Work, Sequence[Parked]], Awaitable[None]] | None = None
    discarded: Callable[[Work, Sequence[ParkedRow]], Awaitable[None]] | None = None
    max_records: int = BATCH_RECORDS_MAX
    max_keys: int | None = None
    reading: Reading | None = None

    @property
    def bare(self) -> bool:
        return self.topics[0].bare

    def decoder(self, topic: str) -> Callable[[bytes], Any]:
        """What decodes the records of a topic between rooms. Raises what `links.unreadable` takes."""
        return topic_of(topic).adapter.validator.validate_json if self.reading is None else self.reading.read


@dataclass(frozen=True)
class Tick:
    """Something to look at every ``seconds``, by one worker at a time, holding the lane ``tick.<name>``."""

    name: str
    run: Callable[[Work], Awaitable[None]]
    seconds: float = 1.0


@dataclass(frozen=True)
class Errand:
    """A timer whose work is done outside of any transaction: a call to a server that may take seconds or never answer.

    ``run`` gets the processor and one key that is due. While it runs the timer stands ``lease`` ahead, so that nobody else
    takes it; it ends with `Processor.transact`, where it clears its timer or sets it anew. One that raises is tried again,
    later each time; one whose process dies when the lease is over. So it is run at least once: what it calls must take a
    repeat for the same. ``lease`` must be longer than ``run`` can take.
    """

    run: Callable[[Processor, str], Awaitable[None]]
    lease: timedelta = timedelta(minutes=1)


@dataclass(frozen=True)
class Job:
    """Something that every worker looks at every ``seconds``, outside of any transaction, and that keeps its own work apart:
    errands run in rounds, and the slowest of a round holds up the next.

    ``run`` opens transactions of its own and says whether more is waiting. What it leaves running is ended by the room's
    ``stopped``.
    """

    name: str
    run: Callable[[Processor], Awaitable[bool]]
    seconds: float = 1.0


@dataclass(frozen=True)
class Room:
    """A room: name (also its schema), inputs, ticks, and what to do when a timer of a kind is due (keys in order).

    The kinds of ``errands`` are timers as well, set in the same way; no kind is in both.
    """

    name: str
    inputs: tuple[Input, ...]
    ticks: tuple[Tick, ...] = ()
    timers: dict[str, Callable[[Work, list[str]], Awaitable[None]]] = field(default_factory=dict)
    errands: dict[str, Errand] = field(default_factory=dict)
    jobs: tuple[Job, ...] = ()
    started: Callable[[Processor], Awaitable[None]] | None = None
    stopped: Callable[[], Awaitable[None]] | None = None
    warmed: Sequence[Plain] = ()  # statements that run under locks for which others wait

    def input(self, name: str) -> Input:
        return next(each for each in self.inputs if each.name == name)
