"""The batch pattern on a real database, without Kafka: redelivery, bisecting, replay, timers, ticks, the one clock."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert, select, text
from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlalchemy.ext.asyncio import create_async_engine

from contracts.topics import AROUND_BYTES_MAX
from services.kernel.errors import Corrupt
from services.runtime import parking
from services.runtime.database import transaction
from services.runtime.lanes import lanes_of, stop_lane
from services.runtime.processor import Behind, cuts_before_lanes, split_at
from services.runtime.records import Record, lane_name
from services.runtime.room import Input, Room, Tick
from services.runtime.tables import runtime_tables
from tests.support import copier
from tests.support.rooms import Log, Rooms

SOURCE = copier.SOURCE.name


@pytest.fixture
async def tables(database):
    engine = create_async_engine(database.owner)
    async with engine.begin() as connection:
        for table in (copier.COPIED, copier.RECEIVED):
            await connection.run_sync(table.metadata.create_all)
    yield
    await engine.dispose()


@pytest.fixture
async def rooms(database, tables):
    async with Rooms(Log(), database, [copier.copier(), copier.sink()]) as made:
        yield made


async def values(rooms, table=copier.COPIED, room="payments"):
    return Counter(row.value for row in await rooms.query(room, select(table.c.value)))


def batch(log, topic=SOURCE, partition=0, start=0, end=None, source="source"):
    """Records of the log as a fetch would bring them, with their range."""
    lane = lane_name(source, topic, partition)
    found = log.records[topic, partition][start:end]
    records = [
        Record(topic, partition, start + number, each.timestamp_ms, each.key, each.value, lane)
        for number, each in enumerate(found)
    ]
    return records, {lane: (start, start + len(found))}


async def test_what_is_published_arrives_once_and_the_same_batch_again_changes_nothing(rooms):
    for number in range(40):
        rooms.log.write(SOURCE, value=b"%d" % number, key=str(number))
    await rooms.pump()
    copy = rooms.processors["payments"]
    for partition in (0, 1):
        await copy.process(copy.room.inputs[0], *batch(rooms.log, partition=partition))
    await rooms.pump()
    assert set((await values(rooms)).values()) == {1}
    assert await values(rooms) == await values(rooms, copier.RECEIVED, "invoices")
    assert len(await values(rooms)) == 40


async def test_a_batch_that_starts_above_the_position_is_not_applied(rooms):
    for number in range(10):
        rooms.log.write(SOURCE, value=b"%d" % number, partition=0)
    await rooms.pump()
    rooms.log.write(SOURCE, value=b"10", partition=0)
    rooms.log.write(SOURCE, value=b"11", partition=0)
    copy = rooms.processors["payments"]
    with pytest.raises(Behind):
        await copy.process(copy.room.inputs[0], *batch(rooms.log, start=11))
    assert "11" not in await values(rooms)
    await rooms.pump()
    assert len(await values(rooms)) == 12


async def test_a_lane_that_was_stopped_elsewhere_does_not_hold_up_its_neighbours(rooms):
    for number in range(4):
        rooms.log.write(SOURCE, value=b"%d" % number, partition=number % 2)
    await rooms.pump()
    for number in range(4, 8):
        rooms.log.write(SOURCE, value=b"%d" % number, partition=number % 2)
    copy = rooms.processors["payments"]
    records, ranges = batch(rooms.log, partition=0, start=2)
    more, more_ranges = batch(rooms.log, partition=1, start=2)
    stopped = next(iter(ranges))
    async with transaction(copy.engine) as connection:
        await stop_lane(connection, copy.tables, stopped, "a person looks at it")
    async with asyncio.timeout(10):
        assert await copy.process(copy.room.inputs[0], records + more, ranges | more_ranges) == {stopped}
    assert set(await values(rooms)) == {"0", "1", "2", "3", "5", "7"}
    async with transaction(copy.engine) as connection:
        lanes = {lane.name: lane.stopped for lane in await lanes_of(connection, copy.tables, "source")}
    assert lanes[stopped] == "a person looks at it"


@st.composite
def batches(draw):
    """Records of some lanes as they are fetched, with what is missing before, among and behind them; and how many keys fit."""
    records, ranges = [], {}
    for name in "abc"[: draw(st.integers(1, 3))]:
        steps = draw(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 4)), max_size=12))
        begin = offset = draw(st.integers(0, 3))
        for step, key in steps:
            offset += step
            records.append(Record("t", 0, offset, 0, f"{name}{key}".encode(), None, name))
        ranges[name] = (begin, offset + draw(st.integers(1, 3)))
    return records, ranges, draw(st.integers(1, 6))


@given(batches())
def test_the_parts_of_a_batch_are_all_of_it_in_order_and_no_two_lanes_of_one_have_too_many_keys(batch):
    records, ranges, most = batch
    parts = split_at(records, ranges, cuts_before_lanes(records, most))
    assert [record for part, _ in parts for record in part] == records
    positions = {lane: first for lane, (first, _) in ranges.items()}
    for part, own in parts:
        assert len({record.key for record in part}) <= most or len({record.lane for record in part}) == 1
        assert {record.lane for record in part} <= own.keys()
        for lane, (first, end) in own.items():
            assert first == positions[lane]
            assert all(first <= record.offset < end for record in part if record.lane == lane)
            positions[lane] = end
    assert positions == {lane: end for lane, (_, end) in ranges.items()}
    keys = [key for part, _ in parts for key in {record.key for record in part}]
    assert len(keys) == len({*keys})  # each is in one part


async def test_a_server_that_fails_between_two_parts_of_a_batch_loses_and_doubles_nothing(database, tables):
    """The first part is committed when the second one fails: it is not applied again, and the rest is."""
    seen = []

    async def sink(work, records):
        seen.append(len({record.key for record in records}))
        if len(seen) == 2:
            raise OperationalError("", None, ConnectionError("cut"))
        await work.execute(insert(copier.RECEIVED), [record.message["data"].data() for record in records])

    copies = Input("copies", (copier.COPIES,), sink, max_keys=3)
    async with Rooms(Log(), database, [copier.copier(), Room("invoices", (copies,))]) as made:
        for number in range(20):
            made.log.write(SOURCE, value=b"%d" % number, partition=number % 2)
        await made.pump()
        assert await values(made, copier.RECEIVED, "invoices") == await values(made)
        assert len(await values(made)) == 20
    assert seen == [10, 10, 10]  # a part is a lane; the second one came again


async def test_every_record_the_database_refuses_is_found_among_its_neighbours(rooms):
    bad = {3, 4, 17, 39}
    for number in range(40):
        rooms.log.write(
            SOURCE, value=b"bad \x00 %d" % number if number in bad else b"%d" % number, partition=number % 2
        )
    await rooms.pump()
    assert len(await values(rooms)) == 36
    parked = await rooms.query(
        "payments", text('select reason, value, partition, "offset" from payments.parked order by id')
    )
    assert {row.reason for row in parked} == {"refused_by_store"}
    assert {(row.partition, row.offset) for row in parked} == {(number % 2, number // 2) for number in bad}
    assert all(b"bad" in row.value for row in parked)


async def test_what_would_publish_more_than_a_record_holds_is_quarantined_and_its_neighbours_go_on(rooms):
    for value in (b"a", b"x" * copier.COPIES.record_bytes_max, b"b"):
        rooms.log.write(SOURCE, value=value, partition=0)
    await rooms.pump()
    assert set(await values(rooms, copier.RECEIVED, "invoices")) == {"a", "b"}
    assert set(await values(rooms)) == {"a", "b"}
    [row] = await rooms.query("payments", text('select reason, message, "offset" from payments.parked'))
    assert (row.reason, row.offset) == ("record_too_large", 1)
    assert "test.copies" in row.message
    assert str(copier.COPIES.record_bytes_max - AROUND_BYTES_MAX) in row.message


@pytest.mark.parametrize("timestamp_ms", [-(10**14), -(2**63), 2**63 - 1, -1])
async def test_a_bad_record_with_an_impossible_timestamp_is_kept_with_its_place_and_its_bytes(rooms, timestamp_ms):
    rooms.log.write(SOURCE, value=None, key="k", partition=0)
    rooms.log.records[SOURCE, 0][0].timestamp_ms = timestamp_ms
    rooms.log.write(SOURCE, value=b"good", partition=1)
    async with asyncio.timeout(10):
        await rooms.pump()
    processor = rooms.processors["payments"]
    assert set(await values(rooms)) == {"good"}
    async with transaction(processor.engine) as connection:
        [row] = await parking.listing(connection, processor.tables)
        assert (row.reason, row.partition, row.offset) == ("tombstone", 0, 0)
        await parking.ask(connection, processor.tables, "replaying", "ann", ids=[row.id])
    await rooms.pump()  # and read again


async def test_a_database_that_is_not_migrated_yet_is_waited_for_and_no_record_is_blamed(database, rooms):
    engine = create_async_engine(database.owner)
    async with engine.begin() as connection:
        await connection.execute(text("alter table payments.copied rename to not_there_yet"))
    for number in range(4):
        rooms.log.write(SOURCE, value=b"%d" % number, partition=0)
    pumping = asyncio.create_task(rooms.pump())
    await asyncio.sleep(0.5)
    async with engine.begin() as connection:
        await connection.execute(text("alter table payments.not_there_yet rename to copied"))
    async with asyncio.timeout(10):
        await pumping
    await engine.dispose()
    assert set(await values(rooms)) == {"0", "1", "2", "3"}
    assert await rooms.query("payments", text("select id from payments.parked")) == []


async def test_what_came_before_a_gap_is_applied_and_the_lane_stands_at_it(rooms):
    for number in range(12):
        rooms.log.write(SOURCE, value=b"%d" % number, partition=number % 2)
    await rooms.pump(only=["payments"])
    copies = rooms.log.records[copier.COPIES.name, 0]
    assert len(copies) > 4
    lost = copies.pop(3).json["data"]["value"]
    before = {each.json["data"]["value"] for each in copies[:3]}
    elsewhere = {each.json["data"]["value"] for each in rooms.log.records[copier.COPIES.name, 1]}
    await rooms.feed(rooms.processors["invoices"], rooms.processors["invoices"].room.inputs[0])
    assert set(await values(rooms, copier.RECEIVED, "invoices")) == before | elsewhere
    assert lost not in before | elsewhere
    async with transaction(rooms.processors["invoices"].engine) as connection:
        lanes = {lane.partition: lane for lane in await lanes_of(connection, runtime_tables("invoices"), "copies")}
    assert lanes[0].position == 3
    assert lanes[0].stopped is not None
    assert lanes[0].stopped.endswith("jumps from 3 to 5 at offset 3")
    assert lanes[1].stopped is None


async def test_a_record_that_is_read_again_before_a_gap_keeps_nobody_waiting(rooms, monkeypatch):
    """A consumer may have fetched before it sought: what it has then is applied already, and the gap is where the lane stands."""
    for number in range(12):
        rooms.log.write(SOURCE, value=b"%d" % number, partition=number % 2)
    await rooms.pump(only=["payments"])
    copies = list(rooms.log.records[copier.COPIES.name, 0])
    elsewhere = rooms.log.records[copier.COPIES.name, 1]
    processor = rooms.processors["invoices"]
    source = processor.room.inputs[0]
    rooms.log.records[copier.COPIES.name, 0] = copies[:3]
    await rooms.feed(processor, source, partition=0)
    rooms.log.records[copier.COPIES.name, 0] = copies[:3] + copies[4:]
    process = processor.process

    async def with_an_old_one(source, records, ranges):
        first = records[0]
        old = Record(first.topic, 0, 2, first.timestamp_ms, b"k", copies[2].value, first.lane)
        return await process(source, [old, *records], ranges)

    monkeypatch.setattr(processor, "process", with_an_old_one)
    async with asyncio.timeout(20):
        await rooms.feed(processor, source)
    async with transaction(processor.engine) as connection:
        lanes = {lane.partition: lane for lane in await lanes_of(connection, runtime_tables("invoices"), "copies")}
    assert (lanes[0].position, lanes[1].position) == (3, len(elsewhere))
    assert lanes[0].stopped is not None
    assert lanes[0].stopped.endswith("jumps from 3 to 5 at offset 3")


@pytest.mark.parametrize(
    ("refuse", "why"),
    [
        (lambda work: work.execute(text("select 1 / 0")), "DBAPIError 22012"),
        (lambda work: _raise(Corrupt("it does not add up", code="sums_differ")), "Corrupt sums_differ"),
        (lambda work: _raise(KeyError("a bug")), "KeyError"),
    ],
)
async def test_a_record_between_rooms_that_cannot_be_applied_stops_its_lane_and_no_other(database, tables, refuse, why):
    broken = True

    async def receive(work, records):
        for record in records:
            copied = record.message["data"].data()
            if broken and copied["value"] == "bad":
                await refuse(work)
            await work.execute(insert(copier.RECEIVED), [copied])

    sink = Room("invoices", (Input("copies", (copier.COPIES,), receive),))
    async with Rooms(Log(), database, [copier.copier(), sink]) as rooms:
        for number in range(12):
            rooms.log.write(SOURCE, value=b"bad" if number == 5 else b"%d" % number, partition=0)
        await rooms.pump(only=["payments"])
        partitions = [rooms.log.records[copier.COPIES.name, number] for number in (0, 1)]
        copies = [[each.json["data"]["value"] for each in records] for records in partitions]
        [bad] = [number for number, each in enumerate(copies) if "bad" in each]
        offset = copies[bad].index("bad")
        async with asyncio.timeout(10):
            await rooms.feed(rooms.processors["invoices"], sink.inputs[0])
        before = copies[bad][:offset]
        assert set(await values(rooms, copier.RECEIVED, "invoices")) == {*before, *copies[1 - bad]}
        async with transaction(rooms.processors["invoices"].engine) as connection:
            lanes = {lane.partition: lane for lane in await lanes_of(connection, runtime_tables("invoices"), "copies")}
        assert lanes[bad].position == offset
        assert lanes[bad].stopped == f"record at test.copies/{bad} offset {offset} cannot be applied: {why}"
        assert lanes[1 - bad].stopped is None

        broken = False  # the fix is there, and a person says so
        async with database.connected() as owner:
            await owner.execute("update invoices.lane set stopped = null")
        await rooms.pump()
        assert await values(rooms, copier.RECEIVED, "invoices") == Counter(copies[0] + copies[1])


async def _raise(error):
    raise error


async def test_a_bug_in_a_handler_parks_the_record_and_a_replay_after_the_fix_applies_it(database, tables):
    broken = True

    async def handle(work, records):
        for record in records:
            if broken and record.value == b"odd":
                raise KeyError("a bug")
            await work.execute(
                insert(copier.COPIED).values(
                    topic=record.topic, partition=record.partition, offset=record.offset, value=record.value.decode()
                )
            )

    room = Room("payments", (Input("source", (copier.SOURCE,), handle),))
    async with Rooms(Log(), database, [room]) as rooms:
        for value in (b"a", b"odd", b"b"):
            rooms.log.write(SOURCE, value=value, partition=0)
        await rooms.pump()
        assert set(await values(rooms)) == {"a", "b"}
        processor = rooms.processors["payments"]
        async with transaction(processor.engine) as connection:
            [row] = await parking.listing(connection, processor.tables)
            assert (row.reason, row.value, row.offset) == ("internal_error", b"odd", 1)
            assert await parking.ask(connection, processor.tables, "replaying", "ann", ids=[row.id]) == 1
        await rooms.pump()  # not mended yet: it is parked again, with its first place
        async with transaction(processor.engine) as connection:
            [row] = await parking.listing(connection, processor.tables)
            assert row.state == "quarantined"
            assert row.offset == 1
            broken = False
            await parking.ask(connection, processor.tables, "replaying", "ann", ids=[row.id])
        await rooms.pump()
        assert set(await values(rooms)) == {"a", "b", "odd"}
        async with transaction(processor.engine) as connection:
            [row] = await parking.listing(connection, processor.tables, states=["replayed"])
            assert row.decided_by == "ann"
            assert await parking.ask(connection, processor.tables, "replaying", "bob", ids=[row.id]) == 0


async def test_a_discarded_record_is_told_and_never_applied(database, tables):
    told = []

    async def handle(work, records):
        for record in records:
            work.quarantine(record, "unwanted", "nobody wants it", account_id="a\x00b")

    async def discarded(work, rows):
        told.extend(row.value for row in rows)

    room = Room("payments", (Input("source", (copier.SOURCE,), handle, discarded=discarded),))
    async with Rooms(Log(), database, [room]) as rooms:
        rooms.log.write(SOURCE, value=b"x", partition=0)
        await rooms.pump()
        processor = rooms.processors["payments"]
        async with transaction(processor.engine) as connection:
            [row] = await parking.listing(connection, processor.tables)
            assert row.about == {"account_id": "a\\u0000b"}
            await parking.ask(connection, processor.tables, "discarding", "ann", reason="unwanted")
        await rooms.pump()
        assert told == [b"x"]
        async with transaction(processor.engine) as connection:
            assert [r.state for r in await parking.listing(connection, processor.tables, states=["discarded"])] == [
                "discarded"
            ]


async def test_a_discard_that_cannot_be_told_is_kept_and_its_neighbours_are_discarded(database, tables):
    async def handle(work, records):
        for record in records:
            work.quarantine(record, "unwanted", "nobody wants it")

    async def discarded(work, rows):
        if any(row.value == b"odd" for row in rows):
            await work.execute(text("select 1 / 0"))

    room = Room("payments", (Input("source", (copier.SOURCE,), handle, discarded=discarded),))
    async with Rooms(Log(), database, [room]) as rooms:
        for value in (b"a", b"odd", b"b"):
            rooms.log.write(SOURCE, value=value, partition=0)
        await rooms.pump()
        processor = rooms.processors["payments"]
        async with transaction(processor.engine) as connection:
            await parking.ask(connection, processor.tables, "discarding", "ann", reason="unwanted")
        await rooms.pump()
        async with transaction(processor.engine) as connection:
            rows = await parking.listing(connection, processor.tables, states=["discarded", "quarantined"])
        assert [(row.value, row.state, row.reason) for row in rows] == [
            (b"a", "discarded", "unwanted"),
            (b"odd", "quarantined", "refused_by_store"),
            (b"b", "discarded", "unwanted"),
        ]


@pytest.mark.parametrize("error", ["not migrated", "corrupt"])
async def test_a_replay_blames_no_record_for_what_is_none_of_its_fault(database, tables, error):
    handled = "waits"

    async def handle(work, records):
        for record in records:
            if handled == "waits":
                work.wait(record, "waits")
            elif handled == "corrupt":
                raise Corrupt("what we wrote does not add up")
            else:
                table = "copied" if handled == "well" else "not_there_yet"
                await work.execute(text(f"insert into payments.{table} values ('t', 0, 0, :value)"), {"value": "x"})

    room = Room("payments", (Input("source", (copier.SOURCE,), handle),))
    async with Rooms(Log(), database, [room]) as rooms:
        for value in (b"a", b"b"):
            rooms.log.write(SOURCE, value=value, partition=0)
        await rooms.pump()
        processor = rooms.processors["payments"]
        async with transaction(processor.engine) as connection:
            await parking.ask(connection, processor.tables, "replaying", "cut", reason="waiting", states=["waiting"])
        handled = error
        with pytest.raises((Corrupt, ProgrammingError)):
            await processor.replay()
        async with transaction(processor.engine) as connection:
            rows = await parking.listing(connection, processor.tables, states=["replaying"])
        assert [row.reason for row in rows] == ["waiting", "waiting"]
        handled = "well"
        await rooms.pump()
        assert await values(rooms) == {"x": 2}


async def test_timers_fire_in_order_once_by_the_one_clock(database, tables):
    fired = []

    async def due(work, keys):
        fired.extend((key, work.now) for key in keys)

    async def handle(work, records):
        await work.set_timers("wake", {f"k{n}": work.now + timedelta(hours=n) for n in (1, 2, 3)})
        await work.clear_timers("wake", ["k2", "none"])

    room = Room("payments", (Input("source", (copier.SOURCE,), handle),), timers={"wake": due})
    async with Rooms(Log(), database, [room]) as rooms:
        rooms.log.write(SOURCE, value=b"x", partition=0)
        await rooms.pump(ticks=True)
        assert fired == []
        async with database.connected() as owner:
            await owner.execute("select runtime.clock_move(interval '2 hours')")
        await rooms.pump(ticks=True)
        assert [key for key, _ in fired] == ["k1"]
        async with database.connected() as owner:
            await owner.execute("select runtime.clock_move(interval '1 day')")
        await rooms.pump(ticks=True)
        await rooms.pump(ticks=True)
        assert [key for key, _ in fired] == ["k1", "k3"]


async def test_what_a_tick_publishes_has_a_link_of_its_own_and_arrives(database, tables):
    async def run(work):
        work.publish(copier.COPIES, "k", "tick-1", {"topic": "t", "partition": 0, "offset": 1, "value": "from a tick"})

    room = replace(copier.copier(), ticks=(Tick("hello", run),))
    async with Rooms(Log(), database, [room, copier.sink()]) as rooms:
        await rooms.processors["payments"].tick(room.ticks[0])
        await rooms.pump()
        [record] = rooms.log.read(copier.COPIES.name)
        assert record["link"] == "payments:tick.hello"
        assert record["seq"] == 1
        assert await values(rooms, copier.RECEIVED, "invoices") == {"from a tick": 1}


async def test_what_is_written_early_arrives_once_in_order_and_what_an_attempt_published_goes_with_it(database, tables):
    def publish(work, value):
        work.publish(copier.COPIES, "k", value, {"topic": "t", "partition": 0, "offset": 1, "value": value})

    async def run(work):
        publish(work, "before")
        with suppress(KeyError):
            async with work.attempt():
                publish(work, "inside")
                await work.write_published()
                raise KeyError
        publish(work, "between")
        await work.write_published()
        publish(work, "after")

    room = replace(copier.copier(), ticks=(Tick("hello", run),))
    async with Rooms(Log(), database, [room, copier.sink()]) as rooms:
        await rooms.processors["payments"].tick(room.ticks[0])
        await rooms.pump()
        records = rooms.log.read(copier.COPIES.name)
        assert [(record["id"], record["seq"]) for record in records] == [("before", 1), ("between", 2), ("after", 3)]
        assert set(await values(rooms, copier.RECEIVED, "invoices")) == {"before", "between", "after"}


async def test_a_room_cannot_read_another_rooms_tables(database):
    async with database.connected("payments") as payments:
        with pytest.raises(Exception, match="permission denied"):
            await payments.fetch("select * from invoices.lane")
