"""The cut and its pass on a real database: designs/closing, lines 6 and 8 to 10a."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from contracts.topics import Topic
from services.kernel.errors import Corrupt
from services.kernel.ids import cutoff_id
from services.kernel.period import Period, next_period, period_named, period_of
from services.runtime.database import transaction
from services.runtime.lanes import Lane, lane_named
from services.runtime.parking import ParkedRow
from services.runtime.records import Record
from services.runtime.resuming import Plan, resume
from services.runtime.room import Tick
from services.usage import api, store
from services.usage.closing import months_around
from services.usage.consumer import build
from services.usage.price_files import read_price_file
from tests.support.rooms import Log, Rooms
from tests.support.servers import Database
from tests.support.usage_registry import LONG_AGO, SOURCE, TOPIC, Sender, leg, void

NOW = datetime.now(UTC).replace(microsecond=0)
THIS = period_of(NOW)  # its start is the boundary of the period before
BOUNDARY = THIS.start
LAST = period_of(BOUNDARY - timedelta(seconds=1))
BEFORE = BOUNDARY - timedelta(minutes=5)  # an event of the period that is closed
AFTER = BOUNDARY + timedelta(minutes=5)
PRICES = read_price_file(b"product,prefix,price_per_minute,currency\nvoice.outbound,1,0.0140,USD\n")
ID = str(cutoff_id(BOUNDARY))


class Closing:
    """The room over a log; records carry a broker time at which their events are in time."""

    def __init__(self, log: Log, rooms: Rooms) -> None:
        self.log = log
        self.rooms = rooms
        self.send = Sender(log)
        self.processor = rooms.processors["usage"]
        self.engine = self.processor.engine

    async def start(self) -> None:
        self.send.publisher()
        for account in ("sales", "main"):
            self.send.account(account)
        await self.rooms.pump()
        await api.import_prices(self.engine, "list", PRICES, LONG_AGO, is_default=True)

    def event(self, event_id: str, ended_at: datetime = BEFORE, account_id: str = "sales", **changes: Any) -> int:
        partition = changes.pop("partition", 0)
        around = {"revision": changes.pop("revision")} if "revision" in changes else {}
        at = max(ended_at, BOUNDARY) + timedelta(hours=1)
        event = leg(event_id, ended_at, account_id, **changes) | around
        return self.send.leg(event, partition=partition, at=at)

    async def run(self, *, ticks: bool = True) -> None:
        await self.rooms.pump(ticks=ticks)

    async def tick(self, name: str) -> None:
        await self.processor.tick(self.tick_named(name))

    def tick_named(self, name: str) -> Tick:
        return next(tick for tick in self.processor.room.ticks if tick.name == name)

    async def cut(self, boundary: datetime = BOUNDARY) -> None:
        """The cut is asked for and taken; groups has not covered it, so it does not pass yet."""
        self.send.cutoff(boundary)
        await self.run()

    async def close(self, boundary: datetime = BOUNDARY) -> None:
        await self.cut(boundary)
        self.send.groups_covered(boundary)
        await self.run()

    async def move_clock(self, **by: float) -> None:
        await self.rooms.query("usage", select(func.runtime.clock_move(timedelta(**by))))

    @property
    def bills(self) -> dict[str, tuple[str, str]]:
        return {c["event_id"]: (c["period"], c["bill_to"]) for c in self.log.data("usage.charges")}

    def covered(self, boundary: datetime = BOUNDARY) -> list[dict[str, Any]]:
        told = self.log.data("closing.progress")
        return [each for each in told if each["room"] == "usage" and each["cutoff_id"] == str(cutoff_id(boundary))]

    async def parked(self, *states: str) -> list[ParkedRow]:
        return await api.parked(self.engine, states=states)


@pytest.fixture
async def closing(database: Database) -> AsyncIterator[Closing]:
    log = Log()
    async with Rooms(log, database, [build()]) as rooms:
        started = Closing(log, rooms)
        await started.start()
        yield started


def both(period: Period, bill_to: Period | None = None) -> tuple[str, str]:
    return period.name, (bill_to or period).name


async def test_the_cut_holds_the_end_of_every_partition_and_never_changes(closing: Closing) -> None:
    for number in range(3):
        closing.event(f"e{number}")
    closing.event("other", partition=1)
    await closing.cut()
    (state,) = await api.cuts(closing.engine)
    assert state.positions == {(TOPIC, 0): 3, (TOPIC, 1): 1}
    closing.event("late")
    await closing.cut()
    assert (await api.cuts(closing.engine))[0].positions == state.positions


async def test_a_cut_passes_when_its_lanes_and_the_registry_are_there(closing: Closing) -> None:
    closing.event("e1")
    closing.event("junk", called="5")
    closing.event("e1")
    await closing.cut()
    assert closing.covered() == []
    closing.send.groups_covered(BOUNDARY, more=1)
    await closing.run()
    assert closing.covered() == []  # a move from before the cut is still on its way
    closing.send.groups_covered(BOUNDARY)
    await closing.run()
    (told,) = closing.covered()
    assert (told["group_id"], told["boundary"]) == (None, BOUNDARY.isoformat().replace("+00:00", "Z"))
    assert told["counts"] == {"duplicate": 1, "quarantined": 1, "rated": 1}
    lane = next(each for each in told["lanes"] if each["partition"] == 0)
    assert (lane["from_offset"], lane["to_offset"], lane["counts"]) == (0, 3, told["counts"])
    assert sum(mark["last_seq"] for mark in told["marks"]) == 1
    assert told["held"] == ["g-sales"]


async def test_a_topic_that_was_deleted_stops_the_cuts_until_a_person_retires_its_lanes(closing: Closing) -> None:
    closing.event("e1")
    closing.log.write("usage.events.gone", value=b"x", partition=0)
    await closing.run()
    for partition in (0, 1):
        closing.log.records.pop(("usage.events.gone", partition), None)
    closing.send.cutoff(BOUNDARY)
    await closing.run(ticks=False)

    async def lane(partition: int) -> Lane:
        async with transaction(closing.engine) as connection:
            found = await lane_named(connection, closing.processor.tables, f"events/usage.events.gone/{partition}")
        assert found is not None
        return found

    for partition in (0, 1):
        with pytest.raises(Corrupt, match=rf"usage\.events\.gone/{partition} ends below position"):
            await closing.tick("cut")
        gone = await lane(partition)
        plan = Plan(gone, gone.position, retires=True)
        await resume(closing.engine, closing.processor.tables, plan, by="ann", reason="gone has left")
    await closing.close()
    (told,) = closing.covered()
    assert {each["topic"] for each in told["lanes"]} == {TOPIC}

    closing.log.write("usage.events.gone", value=b"y", partition=0)
    await closing.run()  # made again, and not read: its offsets mean other records now
    assert [((await lane(each)).position, (await lane(each)).is_retired) for each in (0, 1)] == [(1, True), (0, True)]


async def test_a_cut_does_not_pass_before_its_records_are_handled(closing: Closing) -> None:
    closing.event("e1")
    closing.send.cutoff(BOUNDARY)
    closing.send.groups_covered(BOUNDARY)
    for name in ("registry", "closing"):
        await closing.rooms.feed(closing.processor, closing.processor.room.input(name))
    await closing.tick("cut")
    await closing.tick("pass")
    await closing.rooms.drain("usage")
    assert closing.covered() == []
    await closing.run()
    assert closing.covered()[0]["counts"] == {"rated": 1}
    assert closing.bills == {"e1": both(LAST)}


async def test_a_late_record_waits_for_the_pass_and_stands_on_the_next_invoice(closing: Closing) -> None:
    closing.event("in time")
    await closing.cut()
    closing.event("late")
    closing.event("new", AFTER)
    await closing.run()
    assert closing.bills == {"in time": both(LAST), "new": both(THIS)}
    (waiting,) = await closing.parked("waiting")
    assert waiting.about["event_id"] == "late"
    assert closing.log.data("usage.rejections.") == []
    closing.send.groups_covered(BOUNDARY)
    await closing.run()
    assert closing.bills == {"in time": both(LAST), "new": both(THIS), "late": both(LAST, THIS)}
    assert closing.covered()[0]["counts"] == {"rated": 1}
    assert await closing.parked("waiting", "replaying") == []
    segments = (await api.class_counts(closing.engine))[TOPIC, 0]
    assert segments == {0: {"rated": 1}, 1: {"rated": 2}}
    assert closing.log.data("usage.rejections.") == []  # waiting is nothing a publisher has to know


async def test_a_late_copy_of_a_charged_event_is_a_duplicate_and_waits_for_nothing(closing: Closing) -> None:
    closing.event("e1")
    await closing.cut()
    closing.event("e1")
    closing.event("e1", billable_s=1)
    await closing.run()
    assert await closing.parked("waiting") == []
    assert (await api.class_counts(closing.engine))[TOPIC, 0][1] == {"duplicate": 1, "quarantined": 1}


async def test_all_of_a_partition_that_is_born_after_the_cut_is_late(closing: Closing) -> None:
    closing.event("e1")
    await closing.close()
    closing.log._partitions = 3
    closing.event("late", partition=2)
    await closing.run()
    assert closing.bills["late"] == both(LAST, THIS)


async def test_a_quarantined_record_holds_its_group_until_its_price_appears(closing: Closing) -> None:
    closing.event("e1", called="+447700900123")
    closing.event("e2", account_id="main")
    await closing.close()
    (told,) = closing.covered()
    assert told["held"] == ["g-sales"]
    (state,) = await api.cuts(closing.engine)
    (holder,) = state.holders
    assert (holder.group_id, holder.reason, holder.state, holder.offset) == ("g-sales", "no_price", "quarantined", 0)
    prices = read_price_file(b"product,prefix,price_per_minute,currency\nvoice.outbound,44,0.01,USD\n")
    await api.import_prices(closing.engine, "more", prices, LONG_AGO, is_default=True)
    await closing.run()
    assert closing.bills == {"e1": both(LAST), "e2": both(LAST)}
    whole, group = closing.covered()
    assert (group["group_id"], group["counts"]) == ("g-sales", {"rated": 2})
    assert sum(m["last_seq"] for m in group["marks"]) == 2 > sum(m["last_seq"] for m in whole["marks"])
    assert (await api.cuts(closing.engine))[0].held == {"g-sales": True}


async def test_the_quarantine_is_read_again_only_when_what_held_a_group_is_settled(
    closing: Closing, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Sequence[int] | None] = []
    read = store.records_that_may_hold

    async def looking(connection: AsyncConnection, ids: Sequence[int] | None = None) -> store.Rows:
        looks.append(ids)
        return await read(connection, ids)

    monkeypatch.setattr(store, "records_that_may_hold", looking)
    for number in range(3):
        closing.event(f"e{number}", called="+447700900123")
    closing.event("other", account_id="main", called="+447700900123")
    await closing.close()
    first, *rest, other = [row.id for row in await closing.parked("quarantined")]
    await closing.tick("pass")
    looks.clear()
    for _ in range(3):
        await closing.tick("pass")
    assert looks == [(first, other)] * 3
    await api.discard(closing.engine, "ann", ids=[first])
    await closing.run()
    assert [each["group_id"] for each in closing.covered()] == [None]  # the others still hold it
    looks.clear()
    await closing.tick("pass")
    assert looks == [(rest[0], other)]
    await api.discard(closing.engine, "ann", ids=rest)
    await closing.run()
    assert [each["group_id"] for each in closing.covered()] == [None, "g-sales"]
    await closing.tick("pass")
    looks.clear()
    await closing.tick("pass")
    assert looks == [(rest[0], other)]  # one of a group that has passed costs nothing and is left there
    await closing.move_clock(hours=73)
    await closing.run()
    assert [each["group_id"] for each in closing.covered()] == [None, "g-sales", "g-main"]


async def test_a_discarded_record_holds_nobody_any_more(closing: Closing) -> None:
    closing.event("e1", called="+447700900123")
    await closing.close()
    (row,) = await closing.parked("quarantined")
    await api.discard(closing.engine, "ann", ids=[row.id])
    await closing.run()
    assert [each["group_id"] for each in closing.covered()] == [None, "g-sales"]
    assert closing.bills == {}


async def test_a_held_group_passes_72_hours_after_the_lanes_and_a_later_retry_is_late(closing: Closing) -> None:
    closing.event("e1", called="+447700900123")
    await closing.close()
    await closing.move_clock(hours=71, minutes=59)
    await closing.run()
    assert len(closing.covered()) == 1
    await closing.move_clock(minutes=2)
    await closing.run()
    assert [each["group_id"] for each in closing.covered()] == [None, "g-sales"]
    assert (await api.cuts(closing.engine))[0].holders == ()
    prices = read_price_file(b"product,prefix,price_per_minute,currency\nvoice.outbound,44,0.01,USD\n")
    await api.import_prices(closing.engine, "more", prices, LONG_AGO, is_default=True)
    await closing.run()
    assert closing.bills == {"e1": both(LAST, THIS)}


async def test_a_waived_record_holds_no_later_cut(closing: Closing) -> None:
    closing.event("e1", called="+447700900123")
    await closing.close()
    await closing.move_clock(hours=73)
    await closing.run()
    await closing.close(THIS.end)
    (told,) = closing.covered(THIS.end)
    assert told["held"] == []


@pytest.mark.parametrize(
    "bad",
    [
        {"account_id": "nobody"},
        {"source": "pbx/other", "account_id": "sales"},
        {"ended_at": AFTER, "called": "+447700900123"},
    ],
    ids=["unknown account", "not permitted", "after the boundary"],
)
async def test_who_is_unknown_or_may_not_send_or_comes_later_holds_nobody(
    closing: Closing, bad: dict[str, Any]
) -> None:
    closing.event("e1", **bad)
    await closing.close()
    (told,) = closing.covered()
    assert (told["held"], told["counts"]) == ([], {"quarantined": 1})


async def test_an_unreadable_time_holds_the_group_of_the_day_it_came(closing: Closing) -> None:
    event = leg("e1", BEFORE)
    event["data"]["ended_at"] = "yesterday"
    closing.send.leg(event, at=BOUNDARY - timedelta(seconds=5))
    await closing.close()
    assert closing.covered()[0]["held"] == ["g-sales"]


async def test_a_late_record_of_a_held_group_waits_for_the_group(closing: Closing) -> None:
    closing.event("held", called="+447700900123")
    await closing.close()
    closing.event("late")
    closing.event("late too", account_id="main")
    await closing.run()
    assert closing.bills == {"late too": both(LAST, THIS)}
    (row,) = await closing.parked("quarantined")
    await api.discard(closing.engine, "ann", ids=[row.id])
    await closing.run()
    assert closing.bills == {"late too": both(LAST, THIS), "late": both(LAST, THIS)}


async def test_groups_of_two_zones_share_the_lanes_and_pass_by_themselves(closing: Closing) -> None:
    east = period_of(BOUNDARY, "Asia/Tokyo")  # its month begins some hours before that of UTC
    closing.send.account("tokyo", zone="Asia/Tokyo")
    await closing.run()
    between = east.start + timedelta(hours=1)  # in Tokyo the new month, in UTC still the old one
    closing.event("t-old", east.start - timedelta(hours=1), "tokyo", called="+447700900123")
    closing.event("s-old", between, "sales", called="+447700900123")
    await closing.close(east.start)
    assert closing.covered(east.start)[0]["held"] == ["g-tokyo"]
    closing.event("s-late", between, "sales")
    closing.event("t-late", east.start - timedelta(hours=1), "tokyo")
    await closing.run()
    assert closing.bills == {"s-late": both(LAST)}  # only Tokyo's month is cut
    await closing.close(BOUNDARY)
    assert closing.covered(BOUNDARY)[0]["held"] == ["g-sales"]
    lane = closing.covered(BOUNDARY)[0]["lanes"][0]
    assert (lane["from_offset"], lane["to_offset"]) == (2, 4)


async def test_a_record_late_for_two_cuts_waits_for_both(closing: Closing) -> None:
    """Both periods are cut before it comes; it stands on the first invoice that is open."""
    following = next_period(THIS)
    closing.send.cutoff(BOUNDARY)
    closing.send.cutoff(THIS.end)
    closing.event("first")
    await closing.run()
    closing.event("late")
    await closing.run()
    closing.send.groups_covered(BOUNDARY)
    await closing.run()
    assert closing.bills == {"first": both(LAST)}
    closing.send.groups_covered(THIS.end)
    await closing.run()
    assert closing.bills["late"] == (LAST.name, following.name)


async def test_a_waiting_record_below_a_later_cut_holds_its_group_there(closing: Closing) -> None:
    closing.event("first")
    await closing.cut(BOUNDARY)
    closing.event("late")
    await closing.run()
    await closing.close(THIS.end)
    assert closing.covered(THIS.end)[0]["held"] == ["g-sales"]
    await closing.move_clock(hours=100)
    await closing.run()
    assert len(closing.covered(THIS.end)) == 1  # a waiting record is never over
    closing.send.groups_covered(BOUNDARY)
    await closing.run()
    assert closing.bills["late"] == both(LAST, THIS)
    assert [each["group_id"] for each in closing.covered(THIS.end)] == [None, "g-sales"]


async def test_no_batch_runs_beside_the_cut(closing: Closing, database: Database) -> None:
    """A batch commits before the cut reads the offsets, or it sees the cut: nothing is late and unnoticed."""
    closing.event("birth")
    await closing.run()
    closing.send.cutoff(BOUNDARY)
    await closing.rooms.feed(closing.processor, closing.processor.room.input("closing"))
    async with Rooms(closing.log, database, [build()]) as other:
        worker = other.processors["usage"]
        source = worker.room.input("events")
        for round_number in range(10):
            first = len(closing.log.records[TOPIC, 0])
            for number in range(20):
                closing.event(f"r{round_number}-{number}")
            lane = f"events/{TOPIC}/0"
            records = [
                Record(TOPIC, 0, first + n, each.timestamp_ms, each.key, each.value, lane)
                for n, each in enumerate(closing.log.records[TOPIC, 0][first:])
            ]
            batch = worker.process(source, records, {lane: (first, first + 20)})
            await asyncio.gather(batch, closing.tick("cut") if round_number == 5 else asyncio.sleep(0))
    (state,) = await api.cuts(closing.engine)
    end = state.positions[TOPIC, 0]
    assert end == 1 + 6 * 20
    segments = (await api.class_counts(closing.engine))[TOPIC, 0]
    assert sum(segments[0].values()) == end
    assert segments[1] == {"waiting": 4 * 20}
    closing.send.groups_covered(BOUNDARY)
    await closing.run()
    assert sum(bill == both(LAST) for bill in closing.bills.values()) == end
    assert sum(bill == both(LAST, THIS) for bill in closing.bills.values()) == 80


async def test_a_source_that_fell_silent_is_told_of_the_whole_cut_and_holds_nobody(closing: Closing) -> None:
    closing.send.publisher(sources=("pbx/on", "pbx/off", "pbx/new", "pbx/odd"))
    await closing.run()
    month_before = LAST.start - timedelta(days=1)  # its events come as late as may be
    for source in ("pbx/on", "pbx/off", "pbx/odd"):
        event = leg(f"before {source}", month_before, source=source)
        closing.send.leg(event, at=month_before + timedelta(hours=1))
    closing.event("on", source="pbx/on", called="+447700900123")  # in quarantine for want of a price, but seen
    closing.event("new", source="pbx/new")
    too_late = BOUNDARY + timedelta(days=90)  # what is too old may name any month, so it shows nothing
    closing.send.leg(leg("odd", BEFORE, source="pbx/odd"), at=too_late)
    await closing.close()
    parked = {each.reason: each.id for each in await closing.parked("quarantined")}
    assert parked.keys() == {"no_price", "too_old"}
    await api.discard(closing.engine, "ann", ids=list(parked.values()))
    await closing.run()
    whole, group = closing.covered()
    assert [each["source"] for each in whole["silent_sources"]] == ["pbx/odd", "pbx/off"]
    assert (whole["silent_sources_count"], whole["held"]) == (2, ["g-sales"])
    assert (group["group_id"], group["silent_sources_count"]) == ("g-sales", 0)


async def test_a_source_is_noted_once_a_month_and_not_by_a_batch_that_failed(
    closing: Closing, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    note, count = store.note_sources, store.add_class_counts

    async def noting(connection: AsyncConnection, seen: set[store.Seen]) -> None:
        asked.extend(month for month, _, _ in seen)
        await note(connection, seen)

    async def failing(connection: AsyncConnection, counts: Any, *, replayed: bool) -> None:
        if len(asked) == 1:
            raise ConnectionError("the database went away after the source was noted")
        await count(connection, counts, replayed=replayed)

    monkeypatch.setattr(store, "note_sources", noting)
    monkeypatch.setattr(store, "add_class_counts", failing)
    for number in range(3):
        closing.event(f"e{number}")
        await closing.run()
    closing.event("new month", AFTER)
    await closing.run()
    names = {(month, "lakeside", SOURCE) for month in (LAST.name, THIS.name)}
    assert asked == [LAST.name, LAST.name, THIS.name]
    async with transaction(closing.engine) as connection:
        assert set(await store.sources_seen(connection, [LAST.name, THIS.name])) == names


async def test_two_workers_note_the_same_sources(closing: Closing, database: Database) -> None:
    seen = [(month, "lakeside", source) for month in ("2026-09", "2026-10") for source in ("pbx/1", "pbx/2")]
    async with transaction(closing.engine) as one:
        await store.note_sources(one, seen)

        async def other() -> None:
            async with transaction(closing.engine) as two:
                await store.note_sources(two, seen[::-1])

        waiting = asyncio.create_task(other())
        await asyncio.sleep(0.05)
        assert not waiting.done()
    await waiting
    async with transaction(closing.engine) as connection:
        assert sorted(await store.sources_seen(connection, ["2026-10"])) == seen[2:]


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "Etc/GMT+12", "Asia/Tokyo", "America/Detroit"])
def test_a_boundary_of_any_zone_ends_the_same_month(zone: str) -> None:
    for name, before in (("2026-10", "2026-09"), ("2027-01", "2026-12"), ("2028-02", "2028-01")):
        assert months_around(period_named(name, zone).end) == (name, before)


async def test_a_cut_that_cannot_read_the_offsets_leaves_nothing_behind(
    closing: Closing, monkeypatch: pytest.MonkeyPatch
) -> None:
    closing.event("e1")
    await closing.run()
    closing.send.cutoff(BOUNDARY)
    await closing.rooms.feed(closing.processor, closing.processor.room.input("closing"))

    async def away(_: Topic) -> dict[tuple[str, int], int]:
        raise TimeoutError

    with monkeypatch.context() as broken:
        broken.setattr(closing.log, "end_offsets", away)
        with pytest.raises(TimeoutError):
            await closing.tick("cut")
    assert (await api.cuts(closing.engine))[0].taken_at is None
    await closing.run()
    assert (await api.cuts(closing.engine))[0].positions[TOPIC, 0] == 1


# ---- revisions -----------------------------------------------------------------------------------------------------


def corrected(closing: Closing) -> list[tuple[str, str, str, str]]:
    """Of each charge the amount, account, period and invoice."""
    return [(c["amount"], c["account_id"], c["period"], c["bill_to"]) for c in closing.log.data("usage.charges")]


def take_back(closing: Closing, event_id: str, **changes: Any) -> None:
    closing.send.leg(void(event_id, 1, **changes), at=BOUNDARY + timedelta(hours=2))


async def test_a_void_before_the_cut_takes_back_on_the_same_invoice(closing: Closing) -> None:
    closing.event("e1")
    await closing.run()
    take_back(closing, "e1")
    await closing.close()
    assert corrected(closing) == [("0.028", "sales", *both(LAST)), ("-0.028", "sales", *both(LAST))]
    assert closing.covered()[0]["counts"] == {"rated": 1, "voided": 1}


@pytest.mark.parametrize("account_id", ["nobody", "main"])
async def test_a_revision_that_was_parked_before_its_original_came_holds_the_group_of_that(
    closing: Closing, account_id: str
) -> None:
    unpriced = {} if account_id == "nobody" else {"called": "+447700900123"}
    closing.event("e1", account_id=account_id, revision=1, **unpriced)
    await closing.run()
    closing.event("e1", partition=1)
    await closing.close()
    (told,) = closing.covered()
    assert told["held"] == (["g-sales"] if account_id == "nobody" else ["g-main", "g-sales"])
    assert {holder.group_id for holder in (await api.cuts(closing.engine))[0].holders} == set(told["held"])
    (row,) = await closing.parked("quarantined")
    await api.discard(closing.engine, "ann", ids=[row.id])
    await closing.run()
    assert [each["group_id"] for each in closing.covered()] == [None, *told["held"]]


async def test_a_revision_that_is_parked_holds_the_group_of_what_it_would_take_back_now(closing: Closing) -> None:
    closing.event("e1", account_id="nobody", revision=2)
    closing.event("e1")
    await closing.run()
    closing.event("e1", account_id="main", revision=1)
    await closing.close()
    assert closing.covered()[0]["held"] == ["g-main"]


async def test_a_void_after_the_cut_waits_for_the_pass_and_stands_on_the_next_invoice(closing: Closing) -> None:
    closing.event("e1")
    closing.event("e2")
    await closing.cut()
    take_back(closing, "e1")
    closing.event("e2", BEFORE, "main", billable_s=10, revision=1)
    await closing.run()
    assert [row.reason for row in await closing.parked("waiting")] == ["waiting"] * 2
    closing.send.groups_covered(BOUNDARY)
    await closing.run()
    assert corrected(closing)[2:] == [
        ("-0.028", "sales", *both(LAST, THIS)),
        ("-0.028", "sales", *both(LAST, THIS)),
        ("0.014", "main", *both(LAST, THIS)),
    ]
    assert closing.covered()[0]["counts"] == {"rated": 2}


async def test_an_amendment_into_the_open_period_waits_to_take_back_what_was_cut(closing: Closing) -> None:
    closing.event("e1")
    await closing.cut()
    closing.event("e1", AFTER, revision=1)
    await closing.run()
    assert corrected(closing) == [("0.028", "sales", *both(LAST))]
    closing.send.groups_covered(BOUNDARY)
    await closing.run()
    assert corrected(closing)[1:] == [("-0.028", "sales", *both(LAST, THIS)), ("0.028", "sales", *both(THIS))]


async def test_a_late_original_that_waits_is_absorbed_by_its_void(closing: Closing) -> None:
    await closing.cut()
    closing.event("e1")
    await closing.run()
    take_back(closing, "e1")
    closing.send.groups_covered(BOUNDARY)
    await closing.run()
    assert corrected(closing) == []
    assert sum(counts.get("voided", 0) for counts in await counted(closing)) == 2


@pytest.mark.parametrize("at", [None, BEFORE, AFTER])
async def test_a_late_revision_of_what_is_not_read_yet_waits_for_it(closing: Closing, at: datetime | None) -> None:
    """The original came before the cut, in a partition that is read later: it stands on the invoice that is cut, and the
    revision on the next, as if it had been read first. A void that ran at once would have absorbed it."""
    await closing.run()
    source = closing.processor.room.input("events")
    closing.event("other")
    await closing.run()
    closing.event("e1", partition=1)
    closing.send.cutoff(BOUNDARY)
    await closing.rooms.feed(closing.processor, closing.processor.room.input("closing"))
    await closing.tick("cut")
    if at is None:
        take_back(closing, "e1")
    else:
        closing.event("e1", at, revision=1)
    await closing.rooms.feed(closing.processor, source, partition=0)
    assert [row.reason for row in await closing.parked("waiting")] == ["waiting"]
    closing.send.groups_covered(BOUNDARY)
    await closing.run()
    period = both(THIS) if at == AFTER else both(LAST, THIS)
    assert corrected(closing)[1:] == [
        ("0.028", "sales", *both(LAST)),
        ("-0.028", "sales", *both(LAST, THIS)),
        *([] if at is None else [("0.028", "sales", *period)]),
    ]


async def counted(closing: Closing) -> list[dict[str, int]]:
    return [counts for lanes in (await api.class_counts(closing.engine)).values() for counts in lanes.values()]


async def test_a_revision_in_quarantine_holds_the_group_of_the_charge_that_it_would_take_back(closing: Closing) -> None:
    closing.event("e1")
    closing.event("e2", account_id="main")
    await closing.run()
    closing.event("e1", AFTER, "nobody", revision=1)
    take_back(closing, "e2", account="nobody")
    closing.event("e3", AFTER, "nobody", revision=1)
    await closing.close()
    assert closing.covered()[0]["held"] == ["g-main", "g-sales"]
    (state,) = await api.cuts(closing.engine)
    assert {(each.group_id, each.account_id, each.event_time) for each in state.holders} == {
        ("g-main", "main", BEFORE), ("g-sales", "sales", BEFORE),
    }  # fmt: skip
    closing.send.account("nobody")
    await closing.run()
    assert sorted(corrected(closing)) == [
        ("-0.028", "main", *both(LAST)),
        ("-0.028", "sales", *both(LAST)),
        ("0.028", "main", *both(LAST)),
        ("0.028", "nobody", *both(THIS)),
        ("0.028", "nobody", *both(THIS)),
        ("0.028", "sales", *both(LAST)),
    ]
    await closing.run()
    assert [told["group_id"] for told in closing.covered()[1:]] == ["g-main", "g-sales"]
