"""After a restore from a backup: what rooms apply, what somebody outside ends with, and what is refused."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert, text, update
from sqlalchemy.ext.asyncio import create_async_engine

from contracts.openings import ADAPTER, OPENING, Bound, EarlierLife, Opening, key_of, opening_in
from contracts.words import ID_PATTERN
from services.kernel.errors import Refused
from services.runtime import resuming
from services.runtime.database import transaction
from services.runtime.lanes import Lane, transaction_instant
from services.runtime.links import OtherEpoch, accept, load_bounds
from services.runtime.records import Record
from services.runtime.restoring import (
    Life,
    Log,
    Told,
    alone,
    begin,
    begin_epoch,
    end,
    known_epoch,
    openings_of,
    raise_versions,
    refuse_abandoned,
    refuse_old,
    refuse_other_log,
    refuse_running,
    refuse_unfinished,
    restored_life,
)
from services.runtime.resuming import LostSeqs
from services.runtime.settings import ROOMS
from services.runtime.tables import runtime_tables
from tests.support.outside import followed

TOPIC = "usage.charges"
LINKS = ("a", "b")
NOW = datetime(2026, 11, 20, tzinfo=UTC)


@dataclass
class Saved:
    """All that PostgreSQL has of two rooms, one that tells and one that reads."""

    epoch: int = 0
    history: dict[str, list[int]] = field(default_factory=lambda: {link: [] for link in LINKS})
    bounds: dict = field(default_factory=dict)
    outbox: list = field(default_factory=list)
    position: int = 0
    received: dict = field(default_factory=dict)
    applied: dict[str, list[int]] = field(default_factory=lambda: {link: [] for link in LINKS})

    @property
    def life(self) -> Life:
        last = {(link, TOPIC, 0): len(told) for link, told in self.history.items()}
        return Life(self.epoch, last, self.bounds, [], None)


class World:
    """A room that tells, a relay, a room that reads, and restores from backups; the log is never restored."""

    def __init__(self) -> None:
        self.saved = Saved()
        self.log: list[dict] = []
        self.backups: list[Saved] = []
        self.count = 0

    def tell(self, link: str) -> None:
        self.count += 1
        told = self.saved.history[link]
        told.append(self.count)
        self.saved.outbox.append(
            {"type": "usage.charge", "link": link, "seq": len(told), "epoch": self.saved.epoch, "data": self.count}
        )

    def relay(self, count: int, forgets: bool) -> None:
        self.log += self.saved.outbox[:count]
        if not forgets:
            del self.saved.outbox[:count]

    def read(self, count: int) -> None:
        saved = self.saved
        fetched = self.log[saved.position : saved.position + count]
        records = [Record(TOPIC, 0, 0, 0, None, b"", "lane", each) for each in fetched if each["type"] != OPENING]
        try:
            fresh, moved, _ = accept(records, saved.received, saved.epoch)
        except OtherEpoch:
            fresh, moved, _ = accept(records, saved.received, saved.epoch, bounds=saved.bounds)
        saved.received |= moved
        saved.position += len(fetched)
        for each in fresh:
            saved.applied[each.message["link"]].append(each.message["data"])

    def backup(self) -> None:
        self.backups.append(deepcopy(self.saved))

    def restore(self, number: int) -> bool:
        """From one of the backups, as the command does it; False where it is refused."""
        if not self.backups:
            return False
        backup = deepcopy(self.backups[number % len(self.backups)])
        life = backup.life
        found = [
            (Told("", each["type"], "", each["link"], 1, each["epoch"], msgspec.Raw(b"{}"), TOPIC, 0), each["opening"])
            for each in self.log[backup.position :]
            if each["type"] == OPENING
        ]
        try:
            refuse_abandoned(life, found)
        except Refused:
            return False
        epoch = max([life.epoch, *(each["epoch"] for each in self.log)]) + 1
        opening = openings_of(life, [(TOPIC, 0)])[TOPIC, 0]
        self.log.append(
            {"type": OPENING, "link": OPENING, "seq": 1, "epoch": epoch, "data": opening.data(), "opening": opening}
        )
        self.saved = backup
        self.saved.bounds, self.saved.epoch = life.bounds, epoch
        return True


STEPS = st.one_of(
    st.tuples(st.just("tell"), st.sampled_from(LINKS)),
    st.tuples(st.just("relay"), st.integers(1, 3), st.booleans()),
    st.tuples(st.just("read"), st.integers(1, 4)),
    st.tuples(st.just("backup")),
    st.tuples(st.just("restore"), st.integers(0, 9)),
)


@given(st.lists(STEPS, max_size=60))
def test_after_any_restores_a_room_and_somebody_outside_have_what_was_told_in_the_life_that_holds(steps):
    world = World()
    for name, *arguments in steps:
        getattr(world, name)(*arguments)
    world.relay(len(world.saved.outbox), False)
    world.read(len(world.log))
    assert world.saved.applied == world.saved.history
    outside = followed((0, each) for each in world.log)
    holds = {link: [] for link in LINKS}
    for (link, _, _), envelope in sorted(outside.holds.items()):
        holds[link].append(envelope["data"])
    assert holds == world.saved.history


def test_a_record_of_an_earlier_epoch_holds_up_to_its_bound_and_of_an_unknown_one_never():
    def record(seq, epoch):
        return Record("t", 0, 0, 0, None, b"", "lane", {"link": "a", "seq": seq, "epoch": epoch})

    bounds = {(1, ("a", "t", 0)): 2}
    records = [record(1, 1), record(2, 1), record(3, 1), record(4, 1), record(3, 7), record(3, 9)]
    fresh, moved, skipped = accept(records, {}, 9, bounds=bounds)
    assert [(each.message["seq"], each.message["epoch"]) for each in fresh] == [(1, 1), (2, 1), (3, 9)]
    assert (moved, skipped) == ({("a", "t", 0): 3}, 3)
    with pytest.raises(OtherEpoch):
        accept(records, {}, 9)


def test_where_nothing_was_restored_bounds_are_not_asked_for():
    records = [Record("t", 0, 0, 0, None, b"", "lane", {"link": "a", "seq": seq, "epoch": 0}) for seq in (1, 2)]
    assert accept(records, {}, 0)[0] == records


def test_an_opening_is_told_from_every_other_record_and_its_key_is_no_objects():
    opening = Opening(chain=(EarlierLife(epoch=0, bounds=(Bound(link="usage:a", last_seq=3),)),))
    envelope = {
        "id": "opening:1:t/0", "type": OPENING, "version": 1, "time": "2026-11-01T00:00:00Z", "link": OPENING, "seq": 1,
        "epoch": 1, "trace": None, "data": opening.data(),
    }  # fmt: skip
    found = opening_in(json.dumps(envelope).encode())
    assert found is not None
    assert found["data"] == opening
    assert ADAPTER.validate_python(found)
    for other in (envelope | {"type": "usage.charge"}, envelope | {"data": {}}, "opening"):
        assert opening_in(json.dumps(other).encode()) is None
    assert not re.match(ID_PATTERN, key_of(1))


# ---- refusals --------------------------------------------------------------------------------------------------------


def life(**more) -> Life:
    return Life(**({"epoch": 0, "last": {}, "earlier": {}, "lanes": [], "ran_until": NOW} | more))


def lane(position, topic=TOPIC, stopped=None) -> Lane:
    return Lane(f"charges/{topic}/0", topic, 0, 0, position, stopped)


def test_a_backup_that_is_older_than_what_topics_keep_is_refused():
    refuse_old(life(), NOW + timedelta(days=14))
    refuse_old(life(ran_until=None), NOW)
    with pytest.raises(Refused, match=r"the backup is of 2026-11-20T00:00:00Z, and topics between rooms keep 14 days"):
        refuse_old(life(), NOW + timedelta(days=14, seconds=1))


def test_a_log_that_ends_below_a_position_is_another_kafka():
    refuse_other_log(life(lanes=[("balance", lane(5))]), {(TOPIC, 0): 5}, {(TOPIC, 0): 5})
    for ends in ({(TOPIC, 0): 4}, {}):
        with pytest.raises(
            Refused, match=r"balance had read usage.charges/0 up to 5, and it ends at .: this is not the Kafka"
        ):
            refuse_other_log(life(lanes=[("balance", lane(5))]), {}, ends)


def test_a_log_that_begins_above_a_position_has_lost_records():
    with pytest.raises(Refused, match=r"and it begins at 6: records in between are gone"):
        refuse_other_log(life(lanes=[("balance", lane(5))]), {(TOPIC, 0): 6}, {(TOPIC, 0): 9})


def test_what_waited_for_a_person_when_the_backup_was_made_waits_still():
    refuse_other_log(life(lanes=[("balance", lane(5, stopped="gone"))]), {(TOPIC, 0): 6}, {(TOPIC, 0): 9})
    refuse_other_log(life(lanes=[("usage", lane(5, topic="usage.events.gone"))]), {}, {})


def opened(epoch, chain) -> tuple[Told, Opening]:
    bounds = tuple(
        EarlierLife(epoch=of, bounds=tuple(Bound(link=link, last_seq=last) for link, last in named.items()))
        for of, named in chain.items()
    )
    told = Told("", OPENING, "2026-11-19T00:00:00Z", OPENING, 1, epoch, msgspec.Raw(b"{}"), TOPIC, 0)
    return told, Opening(chain=bounds)


@pytest.mark.parametrize(
    ("given", "opening", "refused"),
    [
        ({"last": 5}, opened(1, {0: {"a": 5}}), False),
        ({"last": 6}, opened(1, {0: {"a": 5}}), True),
        ({"last": 1}, opened(1, {0: {}}), True),
        # of epoch 1, which a later restore gave up as a whole: refused once something was told in it
        ({"epoch": 1, "last": 5, "earlier": 5}, opened(2, {0: {"a": 5}}), False),
        ({"epoch": 1, "last": 6, "earlier": 5}, opened(2, {0: {"a": 5}}), True),
        ({"epoch": 1, "last": 6, "earlier": 5}, opened(2, {0: {"a": 5}, 1: {"a": 6}}), False),
        # its own opening says nothing of what came after it
        ({"epoch": 1, "last": 9, "earlier": 5}, opened(1, {0: {"a": 5}}), False),
    ],
)
def test_a_backup_of_a_life_that_was_given_up_is_refused(given, opening, refused):
    link = ("a", TOPIC, 0)
    earlier = {(0, link): given["earlier"]} if "earlier" in given else {}
    restored = life(epoch=given.get("epoch", 0), last={link: given["last"]}, earlier=earlier)
    if not refused:
        refuse_abandoned(restored, [opening])
        return
    with pytest.raises(
        Refused, match=r"a life that the restore of 2026-11-19T00:00:00Z gave up: link a on usage.charges/0"
    ):
        refuse_abandoned(restored, [opening])


def test_two_contents_under_one_seq_of_one_epoch_say_that_rooms_ran_before_the_restore():
    log = Log(None, None, life())

    def told(seq, id):
        return Told(id, "usage.charge", "", "a", seq, 0, msgspec.Raw(b"{}"), TOPIC, 0)

    for each in (told(4, "x"), told(5, "y"), told(4, "x"), told(8, "z"), told(3, "w")):
        log._refuse_two_lives(each)
    with pytest.raises(Refused, match=r"rooms ran on the restored database already: seq 5 of link a"):
        log._refuse_two_lives(told(5, "other"))


# ---- the database ----------------------------------------------------------------------------------------------------


@pytest.fixture
async def owner(database):
    engine = create_async_engine(database.owner)
    yield engine
    await engine.dispose()


async def gave_out(owner, room, last_seq, link="usage:a"):
    table = runtime_tables(room).link_out
    async with transaction(owner) as connection:
        await connection.execute(
            insert(table).values(link=link, topic=TOPIC, partition=0, last_seq=last_seq)
            if last_seq == 1
            else update(table).values(last_seq=last_seq)
        )


async def new_epoch(owner, epoch):
    async with transaction(owner) as connection:
        await begin_epoch(connection, await restored_life(connection), epoch)


async def test_every_room_goes_on_in_the_new_epoch_and_knows_what_holds_of_all_before(owner):
    link = ("usage:a", TOPIC, 0)
    await gave_out(owner, "usage", 1)
    await new_epoch(owner, 4)
    await gave_out(owner, "usage", 3)
    await new_epoch(owner, 9)
    for room in ROOMS:
        async with transaction(owner) as connection:
            tables = runtime_tables(room)
            assert await load_bounds(connection, tables, [(TOPIC, 0)]) == {(0, link): 1, (4, link): 3}
            assert (await transaction_instant(connection, tables))[1:] == (9, 0)
    async with transaction(owner) as connection:
        again = await restored_life(connection)
    assert (again.epoch, again.chain, again.bounds[9, link]) == (9, [0, 4, 9], 3)


async def test_versions_are_raised_and_never_lowered(owner):
    async with transaction(owner) as connection:
        for version in (41, 7):
            await raise_versions(connection, "groups", version)
        assert (await transaction_instant(connection, runtime_tables("groups")))[2] == 41


async def test_schemas_of_different_instants_are_refused(owner):
    await gave_out(owner, "usage", 1)
    async with transaction(owner) as connection:
        received = {"link": "usage:a", "topic": TOPIC, "partition": 0, "received_to": 2}
        await connection.execute(insert(runtime_tables("balance").link_in).values(**received))
        with pytest.raises(Refused, match=r"not of one instant \(balance\)"):
            await restored_life(connection)
    await gave_out(owner, "usage", 2)
    async with transaction(owner) as connection:
        await restored_life(connection)
        await connection.execute(update(runtime_tables("groups").lanes).values(epoch=3))
        with pytest.raises(Refused, match="restore the whole database from one"):
            await restored_life(connection)


async def test_what_moved_since_it_was_looked_at_is_refused(owner):
    await gave_out(owner, "usage", 1)
    async with transaction(owner) as connection:
        looked = await restored_life(connection)
    await gave_out(owner, "usage", 2)
    async with transaction(owner) as connection:
        with pytest.raises(Refused, match="a room ran meanwhile"):
            await begin_epoch(connection, looked, 1)


async def test_rooms_start_when_the_last_restore_that_began_has_ended(owner):
    async def may_start():
        async with transaction(owner) as connection:
            await refuse_unfinished(connection)

    await may_start()
    for epoch in (1, 2):  # the first was killed
        await begin(owner, epoch, "ann", "the disk died")
        with pytest.raises(Refused, match="run `tollbook restore` again"):
            await may_start()
    async with transaction(owner) as connection:
        await end(connection, 2, {"undone": 5})
        assert await known_epoch(connection) == 2
        rows = (await connection.execute(text("select epoch, by, report from runtime.restore order by 1"))).all()
    assert [tuple(row) for row in rows] == [(1, "ann", None), (2, "ann", {"undone": 5})]
    await may_start()


async def test_while_anybody_is_connected_as_a_room_nothing_is_restored_and_no_two_restore_at_once(owner, database):
    async with transaction(owner) as connection:
        await refuse_running(connection)
    async with database.connected("webhooks"), transaction(owner) as connection:
        with pytest.raises(Refused, match="these are connected still: tollbook_webhooks from"):
            await refuse_running(connection)
    async with alone(owner):
        with pytest.raises(Refused, match="another restore"):
            async with alone(owner):
                pass


async def test_when_a_room_last_ran_is_when_it_last_read_or_was_alive(owner):
    async with transaction(owner) as connection:
        assert (await restored_life(connection)).ran_until is None
        lane = {"name": "n", "input": "charges", "topic": TOPIC, "partition": 0, "position": 0, "updated_at": NOW}
        await connection.execute(insert(runtime_tables("balance").lane).values(**lane))
        await connection.execute(insert(runtime_tables("balance").lane).values(name="tick.x"))
        assert (await restored_life(connection)).ran_until == NOW
        beat = text(
            "insert into runtime.heartbeat (room, process, at, loop_age_ms, assigned, lag) values ('usage', 'p', :at, 0, 0, 0)"
        )
        await connection.execute(beat, {"at": NOW + timedelta(hours=1)})
        assert (await restored_life(connection)).ran_until == NOW + timedelta(hours=1)


async def test_a_stopped_lane_goes_on_after_what_holds_and_misses_nothing_that_was_undone(owner, monkeypatch):
    tables, link = runtime_tables("balance"), {"link": "usage:a", "topic": TOPIC, "partition": 0}
    async with transaction(owner) as connection:
        await connection.execute(insert(tables.bound).values(**link, epoch=0, last_seq=3))
        await connection.execute(insert(tables.link_in).values(**link, received_to=2))

    async def missed(*places):
        async def read_log(*_):
            for seq, epoch in places:
                yield Record(
                    TOPIC, 0, 0, 0, None, json.dumps({"link": "usage:a", "seq": seq, "epoch": epoch}).encode(), ""
                )

        monkeypatch.setattr(resuming, "read_log", read_log)
        return await resuming._gaps(owner, tables, None, lane(5), 1, 5, 9)

    assert await missed((4, 0), (3, 0), (4, 1)) == ()
    assert await missed((4, 0), (4, 1)) == (LostSeqs("usage:a", 3, 3),)
