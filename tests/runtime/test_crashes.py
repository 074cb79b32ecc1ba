"""The runtime alone, on real servers: two rooms that only copy are killed at every numbered step, and nothing is lost or twice."""

from __future__ import annotations

from collections import Counter

import pytest
from aiokafka import AIOKafkaProducer
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import create_async_engine

from services.kernel.errors import InvalidInput, Refused
from services.runtime import resuming
from services.runtime.broker import ensure_topics
from services.runtime.database import transaction
from services.runtime.resuming import LostSeqs
from services.runtime.settings import Settings
from services.runtime.tables import runtime_tables
from tests.support import copier
from tests.support.processes import Processes, until

COPY = ("copy", "tests.support.copier", "copy")
SINK = ("sink", "tests.support.copier", "sink")
SLOW_S = 180.0  # the machine may be busy with other tests
BATCH = ("locked", "checked", "effects", "outbox", "advanced", "committed")
STEPS = (
    [(COPY, f"payments.source.{step}:2") for step in BATCH]
    + [(COPY, f"payments.relay.{step}:2") for step in ("read", "sent", "acknowledged", "deleted")]
    + [(SINK, f"invoices.copies.{step}:2") for step in BATCH]
)


class Chain:
    """Topics, tables and processes of one test."""

    def __init__(self, database, kafka, prefix, processes):
        self.database, self.kafka, self.prefix, self.processes = database, kafka, prefix, processes
        self.engine = create_async_engine(database.owner)
        self.settings = Settings(kafka=kafka, topic_prefix=prefix)
        self.written = 0
        self.committed = 0

    async def start(self):
        async with self.engine.begin() as connection:
            for table in (copier.COPIED, copier.RECEIVED):
                await connection.run_sync(table.metadata.create_all)
        await ensure_topics(self.settings, {copier.SOURCE.name: copier.SOURCE, copier.COPIES.name: copier.COPIES})

    async def write(self, count, *, transactional=False, abort=False):
        """Records with running numbers; aborted ones must never be seen."""
        options = {"transactional_id": f"{self.prefix}writer"} if transactional else {}
        producer = AIOKafkaProducer(bootstrap_servers=self.kafka, acks="all", enable_idempotence=True, **options)
        await producer.start()
        try:
            if transactional:
                await producer.begin_transaction()
            for _ in range(count):
                number = self.written
                self.written += 1
                value = b"aborted" if abort else b"%d" % number
                await producer.send(self.prefix + copier.SOURCE.name, key=b"%d" % number, value=value)
            await producer.flush()
            if transactional:
                await (producer.abort_transaction() if abort else producer.commit_transaction())
        finally:
            await producer.stop()
        if not abort:
            self.committed += count

    async def scalar(self, statement):
        async with self.engine.connect() as connection:
            return (await connection.execute(statement)).scalar_one()

    async def rows(self, statement):
        async with self.engine.connect() as connection:
            return (await connection.execute(statement)).all()

    async def settled(self):
        async def done():
            counts = [await self.scalar(select(func.count()).select_from(t)) for t in (copier.COPIED, copier.RECEIVED)]
            return counts == [self.committed, self.committed]

        await until(done, f"{self.committed} records copied and received")

    async def plan(self, room, lane, *, offset=None, earliest=False):
        """What it takes to let a lane go on."""
        return await resuming.plan(
            self.engine, runtime_tables(room), self.settings, lane, offset=offset, earliest=earliest
        )

    async def check(self):
        """Every committed record exactly once in both tables, links dense and received to their end, outbox empty."""
        for table in (copier.COPIED, copier.RECEIVED):
            values = Counter(row.value for row in await self.rows(select(table.c.value)))
            assert "aborted" not in values
            assert set(values.values()) == {1}
            assert len(values) == self.committed
        places = [
            set(await self.rows(select(t.c.topic, t.c.partition, t.c.offset))) for t in (copier.COPIED, copier.RECEIVED)
        ]
        assert places[0] == places[1]
        out = await self.rows(text("select link, topic, partition, last_seq from payments.link_out order by 1, 2, 3"))
        into = await self.rows(
            text("select link, topic, partition, received_to from invoices.link_in order by 1, 2, 3")
        )
        assert out == into
        assert sum(row.last_seq for row in out) == self.committed
        assert await self.scalar(text("select count(*) from payments.outbox")) == 0
        assert await self.rows(text("select name from payments.lane where stopped is not null")) == []


@pytest.fixture
async def chain(database, kafka, topic_prefix, tmp_path):
    environment = database.environment(
        TOLLBOOK_KAFKA=kafka, TOLLBOOK_TOPIC_PREFIX=topic_prefix, TOLLBOOK_TICK_MS="200", TOLLBOOK_SESSION_MS="2000"
    )
    processes = Processes(environment, tmp_path)
    made = Chain(database, kafka, topic_prefix, processes)
    await made.start()
    yield made
    processes.stop()
    await made.engine.dispose()


async def test_killed_at_every_step_nothing_is_lost_or_twice(chain):
    other = {COPY: SINK, SINK: COPY}
    for victim, step in STEPS:
        for name, *arguments in (victim, other[victim]):
            if name not in chain.processes.running:
                chain.processes.start(name, *arguments, crash=step if name == victim[0] else None)
        await chain.write(150)
        await chain.processes.wait_crashed(victim[0], step)
        still = chain.processes.running
        if other[victim][0] in still:
            chain.processes.stop(other[victim][0])
    for name, *arguments in (COPY, SINK):
        chain.processes.start(name, *arguments)
    await chain.settled()
    await chain.check()
    assert chain.processes.crashed_at() == [step.partition(":")[0] for _, step in STEPS]


async def test_positions_pass_transaction_markers_and_aborted_records(chain):
    for name, *arguments in (COPY, SINK):
        chain.processes.start(name, *arguments)
    await chain.write(40, transactional=True)
    await chain.write(30, transactional=True, abort=True)
    await chain.settled()
    await chain.check()

    async def at_the_end():
        ends = await _ends(chain)
        lanes = await chain.rows(text("select topic, partition, position from payments.lane where topic is not null"))
        return {(row.topic, row.partition): row.position for row in lanes} == ends

    await until(at_the_end, "positions at the end of the log, markers and aborted records included")


async def test_two_copies_of_everything_and_a_kill_share_the_work(chain):
    for copy in (1, 2):
        for name, *arguments in (COPY, SINK):
            chain.processes.start(f"{name}{copy}", *arguments)
    await chain.write(1500)
    chain.processes.kill("copy1")
    await chain.write(1500)
    chain.processes.kill("sink2")
    await chain.write(500)
    await chain.settled()
    await chain.check()


async def test_what_only_the_database_refuses_is_quarantined_and_its_neighbours_go_on(chain):
    await chain.write(60)
    producer = AIOKafkaProducer(bootstrap_servers=chain.kafka)
    await producer.start()
    await producer.send_and_wait(chain.prefix + copier.SOURCE.name, key=b"k", value=b"zero \x00 byte")
    await producer.send_and_wait(chain.prefix + copier.SOURCE.name, key=b"k", value=None)
    await producer.stop()
    await chain.write(60)
    for name, *arguments in (COPY, SINK):
        chain.processes.start(name, *arguments)
    await chain.settled()
    await chain.check()
    parked = await chain.rows(text("select reason, value, state from payments.parked order by id"))
    assert [tuple(row) for row in parked] == [
        ("refused_by_store", b"zero \x00 byte", "quarantined"),
        ("tombstone", None, "quarantined"),
    ]


async def test_a_gap_in_a_link_stops_that_partition_and_no_other(chain):
    for name, *arguments in (COPY, SINK):
        chain.processes.start(name, *arguments)
    await chain.write(90)
    await chain.settled()
    chain.processes.stop()
    async with chain.engine.begin() as connection:  # as if a record had been lost between the rooms
        lost = (
            await connection.execute(
                text("update payments.link_out set last_seq = last_seq + 1 where partition = 0 returning topic")
            )
        ).all()
    assert lost
    before = await chain.scalar(select(func.count()).select_from(copier.RECEIVED))
    for name, *arguments in (COPY, SINK):
        chain.processes.start(name, *arguments)
    await chain.write(300)

    async def stopped():
        return bool(
            await chain.rows(text("select 1 from invoices.lane where stopped like '%jumps from%' and partition = 0"))
        )

    await until(stopped, "the partition with the gap stopped", SLOW_S)

    async def others_go_on():
        behind = await chain.rows(
            text(
                "select 1 from payments.link_out o left join invoices.link_in i using (link, topic, partition)"
                " where o.partition <> 0 and o.last_seq is distinct from i.received_to"
            )
        )
        copied = await chain.scalar(select(func.count()).select_from(copier.COPIED))
        return copied == 390 and not behind

    await until(others_go_on, "the other partitions received everything", SLOW_S)
    assert await chain.scalar(select(func.count()).select_from(copier.RECEIVED)) > before


async def test_records_lost_below_the_position_and_a_topic_made_anew_stop_the_lane(chain):
    name, *arguments = COPY
    await chain.write(80)
    chain.processes.start(name, *arguments)

    async def copied():
        return await chain.scalar(select(func.count()).select_from(copier.COPIED)) == 80

    await until(copied, "80 records copied")
    chain.processes.stop()
    async with chain.engine.begin() as connection:
        await connection.execute(text("update payments.lane set position = 100000 where partition = 1"))
    await _delete_records(chain, partition=2)
    async with chain.engine.begin() as connection:
        await connection.execute(text("update payments.lane set position = 0 where partition = 2"))
    await chain.write(80)
    chain.processes.start(name, *arguments)

    async def both_stopped():
        found = await chain.rows(
            text("select partition, stopped from payments.lane where stopped is not null order by 1")
        )
        return len(found) == 2 and "truncated or made anew" in found[0].stopped and "lost range" in found[1].stopped

    await until(both_stopped, "the truncated and the overrun lane stopped")


async def test_a_gap_that_a_person_gives_up_is_kept_and_running_workers_go_on(chain):
    for name, *arguments in (COPY, SINK):
        chain.processes.start(name, *arguments)
    await chain.write(90)
    await chain.settled()
    chain.processes.stop("copy")
    async with chain.engine.begin() as connection:  # as if a record of each link had been lost between the rooms
        lost = text("update payments.link_out set last_seq = last_seq + 1 where partition = 0 returning link, last_seq")
        gaps = {LostSeqs(row.link, row.last_seq, row.last_seq) for row in (await connection.execute(lost)).all()}
    chain.processes.start(*COPY)
    await chain.write(300)
    lane = "copies/test.copies/0"
    given_up = set()

    async def goes_on():
        stopped = text("select 1 from invoices.lane where stopped is not null")
        if await chain.rows(stopped):
            plan = await chain.plan("invoices", lane)
            assert plan.links
            assert plan.lane.position == plan.to_offset  # every offset is read, only seqs are missing
            given_up.update(plan.links)
            await resuming.resume(chain.engine, runtime_tables("invoices"), plan, by="ann", reason="a test")
        return await chain.scalar(select(func.count()).select_from(copier.RECEIVED)) == 390

    await until(goes_on, "everything but the gap received, by the workers that run")
    assert given_up <= gaps
    async with transaction(chain.engine) as connection:
        kept = await resuming.resumed(connection, runtime_tables("invoices"))
    assert {(each.lane, each.by, each.reason) for each in kept} == {(lane, "ann", "a test")}
    assert {each for row in kept for each in row.links} == given_up
    assert all("jumps from" in row.stopped for row in kept)


async def test_lanes_go_on_where_a_person_says_and_nothing_is_applied_twice(chain):
    for name, *arguments in (COPY, SINK):
        chain.processes.start(name, *arguments)
    await chain.write(200)
    await chain.settled()
    chain.processes.stop()
    async with chain.engine.begin() as connection:
        await connection.execute(text("update payments.lane set position = 100000 where partition = 1"))
        await connection.execute(text("update payments.lane set position = 0 where partition = 2"))
        await connection.execute(text("update invoices.lane set position = 100000 where partition = 1"))
    await _delete_records(chain, partition=2)  # of the raw records those below 5
    for name, *arguments in (COPY, SINK):
        chain.processes.start(name, *arguments)

    async def all_stopped():
        count = "(select count(*) from {}.lane where stopped is not null)"
        return await chain.scalar(text(f"select {count.format('payments')} + {count.format('invoices')}")) == 3

    await until(all_stopped, "three lanes stopped")
    with pytest.raises(Refused, match="topic was made anew"):
        await chain.plan("payments", "source/test.source/1", earliest=True)
    with pytest.raises(InvalidInput, match="holds offsets 5 to"):
        await chain.plan("payments", "source/test.source/2", offset=3)
    with pytest.raises(Refused, match="is not stopped"):
        await chain.plan("payments", "source/test.source/0")

    again = await chain.plan("invoices", "copies/test.copies/1", earliest=True)
    assert (again.to_offset, again.gives_up) == (0, None)  # all of it was applied, and its seqs say so
    await resuming.resume(chain.engine, runtime_tables("invoices"), again, by="ann", reason="made anew")
    with pytest.raises(Refused, match="is not stopped"):
        await resuming.resume(chain.engine, runtime_tables("invoices"), again, by="bob", reason="twice")

    behind = await chain.plan("payments", "source/test.source/2", earliest=True)
    assert behind.gives_up == "offsets 0 to 4"
    before = await chain.scalar(select(func.count()).select_from(copier.COPIED))
    await resuming.resume(chain.engine, runtime_tables("payments"), behind, by="ann", reason="gone")

    async def read_again():  # the copier itself knows no repeats: what is above the lost range was moved back by hand
        ends = await _ends(chain)
        lanes = text("select partition, position from {}.lane where topic = 'test.source'".format("payments"))
        positions = {row.partition: row.position for row in await chain.rows(lanes)}
        return positions[2] == ends["test.source", 2]

    await until(read_again, "the records that are there are read")
    copied = await chain.scalar(select(func.count()).select_from(copier.COPIED))
    assert copied - before == (await _ends(chain))["test.source", 2] - 5

    async def received():
        return await chain.scalar(select(func.count()).select_from(copier.RECEIVED)) == copied

    await until(received, "what was copied is received, and nothing of before twice")


async def _ends(chain):
    from services.runtime.broker import Offsets

    offsets = Offsets(chain.settings)
    await offsets.start()
    try:
        return await offsets.ends(copier.SOURCE)
    finally:
        await offsets.stop()


async def _delete_records(chain, partition):
    """Retention overrun: the log starts above what was read."""
    from aiokafka import TopicPartition
    from aiokafka.admin import AIOKafkaAdminClient
    from aiokafka.admin.records_to_delete import RecordsToDelete

    admin = AIOKafkaAdminClient(bootstrap_servers=chain.kafka)
    await admin.start()
    tp = TopicPartition(chain.prefix + copier.SOURCE.name, partition)
    await admin.delete_records({tp: RecordsToDelete(before_offset=5)})
    await admin.close()
