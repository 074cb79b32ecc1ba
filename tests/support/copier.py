"""The smallest chain there is: one room copies raw records into a table and publishes each, another stores what it gets.

No billing: what the crash suite finds here is the runtime's. The rooms borrow the schemas and roles of `payments` and
`invoices`. Run a process by `python -m tests.support.copier copy|sink`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import BigInteger, Column, Integer, MetaData, Table, Text, insert

from contracts import topics
from contracts.topics import Topic
from contracts.words import Message
from services.kernel.ids import derived_id
from services.runtime.records import Record
from services.runtime.room import Input, Room
from services.runtime.settings import Settings
from services.runtime.work import Work


class Copy(Message):
    topic: str
    partition: int
    offset: int
    value: str


SOURCE = Topic("test.source", "test.source", Copy, "any", "raw records", (), (), bare=True, partitions=4)
COPIES = Topic("test.copies", "test.copy", Copy, "any", "copied records", (), (), partitions=3)


@contextmanager
def declared() -> Iterator[None]:
    """While it lasts, the test's topics are among those that every room knows, and not longer: no contract has them."""
    before = topics.TOPICS
    topics.TOPICS = (*before, SOURCE, COPIES)
    topics.topic_of.cache_clear()
    try:
        yield
    finally:
        topics.TOPICS = before
        topics.topic_of.cache_clear()


def _table(schema: str) -> Table:
    return Table(
        "copied",
        MetaData(schema=schema),
        Column("topic", Text, nullable=False),
        Column("partition", Integer, nullable=False),
        Column("offset", BigInteger, nullable=False),
        Column("value", Text, nullable=False),
    )


COPIED = _table("payments")
RECEIVED = _table("invoices")


async def _copy(work: Work, records: list[Record]) -> None:
    rows = []
    for record in records:
        if record.value is None:
            work.quarantine(record, "tombstone", "the record has no value")
            continue
        # U+0000 passes here on purpose: only the database refuses it
        rows.append(
            {
                "topic": record.topic,
                "partition": record.partition,
                "offset": record.offset,
                "value": record.value.decode("latin-1"),
            }
        )
    if rows:
        await work.execute(insert(COPIED), rows)
    for row in rows:
        place = f"{row['topic']}/{row['partition']}/{row['offset']}"
        work.publish(COPIES, place, str(derived_id("copy", place)), row)


async def _sink(work: Work, records: list[Record]) -> None:
    await work.execute(insert(RECEIVED), [record.message["data"].data() for record in records])


def copier(_: Settings | None = None) -> Room:
    return Room("payments", (Input("source", (SOURCE,), _copy, max_records=50),))


def sink(_: Settings | None = None) -> Room:
    return Room("invoices", (Input("copies", (COPIES,), _sink, max_records=50),))


if __name__ == "__main__":
    with declared():
        from services.runtime.main import run  # which reads the topics as it is imported

        run({"copy": copier, "sink": sink}[sys.argv[1]])
