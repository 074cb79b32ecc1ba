"""Stopped lanes as an operator sees them: listed, and resumed by name with what is given up."""

from __future__ import annotations

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient

from contracts.topics import USAGE_EVENTS
from services.cli import verify
from services.runtime.broker import ensure_topics
from services.runtime.database import open_engine, transaction
from services.runtime.lanes import give_birth, stop_lane
from services.runtime.settings import load
from services.runtime.tables import runtime_tables
from tests.cli.conftest import Tollbook
from tests.support.servers import Database

TOPIC = USAGE_EVENTS.of("lakeside")
LANE = f"events/{TOPIC}/0"
STOPPED = "records 3 to 7 are gone from the log: lost range"


@pytest.fixture
async def stopped(
    tollbook: Tollbook, database: Database, kafka: str, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> Tollbook:
    """A lane of usage that stands at offset 3 of 8 and is stopped; another is not."""
    variables = {"TOLLBOOK_KAFKA": kafka, "TOLLBOOK_TOPIC_PREFIX": topic_prefix}
    for name, value in database.environment(**variables).items():
        monkeypatch.setenv(name, value)
    await ensure_topics(load(), {TOPIC: USAGE_EVENTS})
    producer = AIOKafkaProducer(bootstrap_servers=kafka)
    await producer.start()
    for number in range(8):
        await producer.send_and_wait(topic_prefix + TOPIC, b"%d" % number, partition=0)
    await producer.stop()
    engine = open_engine(database.room("usage"), application="test")
    async with transaction(engine) as connection:
        tables = runtime_tables("usage")
        await give_birth(connection, tables, "events", [(LANE, TOPIC, 0, 3), (f"events/{TOPIC}/1", TOPIC, 1, 0)])
        await stop_lane(connection, tables, LANE, STOPPED)
    await engine.dispose()
    return tollbook


async def test_stopped_lanes_are_listed_with_why(stopped: Tollbook) -> None:
    listed = (await stopped("lane", "list", "--output", "json")).json
    assert [(row["room"], row["name"], row["position"], row["stopped"]) for row in listed] == [
        ("usage", LANE, 3, STOPPED),
        ("usage", f"events/{TOPIC}/1", 0, None),
    ]
    ran = await stopped("lane", "list", "--stopped")
    assert LANE in ran.out
    assert "lost range" in ran.out
    assert f"events/{TOPIC}/1" not in ran.out
    assert (await stopped("lane", "list", "--room", "balance", "-o", "json")).json == []


async def test_what_is_given_up_is_named_first_and_kept_with_who_and_why(stopped: Tollbook) -> None:
    resume = ("lane", "resume", "usage", LANE, "--from", "7", "--reason", "the disk is gone", "--actor", "ann")
    ran = await stopped(*resume)
    assert ran.code == 1
    assert ran.err == f"{LANE} at 7 would give up offsets 3 to 6, for good; bring them back, or say --give-up\n"
    assert (await stopped("lane", "list", "--stopped", "-o", "json")).json[0]["position"] == 3

    ran = await stopped(*resume, "--give-up", "--output", "json")
    assert (ran.code, ran.json) == (
        0, {"room": "usage", "lane": LANE, "from_offset": 3, "to_offset": 7, "links": []},
    )  # fmt: skip
    assert (await stopped("lane", "list", "--stopped", "-o", "json")).json == []
    facts = (await verify.run(load())).facts
    assert facts["lanes that a person let go on"] == (
        f"usage: {LANE} ({STOPPED}) at 7, given up offsets 3 to 6, by ann: the disk is gone"
    )
    again = await stopped(*resume, "--give-up")
    assert (again.code, again.err) == (1, f"LANE: lane {LANE} is not stopped\n")


async def test_a_lane_that_was_only_stopped_gives_up_nothing(stopped: Tollbook) -> None:
    ran = await stopped("lane", "resume", "usage", LANE, "--reason", "looked at")
    assert (ran.code, ran.out) == (0, f"{LANE} goes on at 3; given up: nothing\n")


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["nowhere", LANE], 2, "ROOM: there is no room 'nowhere'; the rooms are usage, balance, groups, invoices, payments, webhooks"),
        (["usage", "events/x/0"], 1, "LANE: there is no lane 'events/x/0'; `tollbook lane list` shows them"),
        (["usage", LANE, "--from", "9"], 2, f"from: the log of {TOPIC}/0 holds offsets 0 to 8"),
        (["usage", LANE, "--earliest"], 1, "from: everything below 3 is applied already; name 3 or above"),
        (["usage", LANE, "--earliest", "--from", "3"], 2, "from: name an offset or --earliest, not both"),
    ],
)  # fmt: skip
async def test_what_cannot_be_is_said_in_a_sentence(
    stopped: Tollbook, arguments: list[str], code: int, sentence: str
) -> None:
    ran = await stopped("lane", "resume", *arguments, "--reason", "a test")
    assert (ran.code, ran.err) == (code, f"{sentence}\n")


async def test_a_lane_whose_topic_was_deleted_is_retired_and_kept(
    stopped: Tollbook, kafka: str, topic_prefix: str
) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    await admin.delete_topics([topic_prefix + TOPIC])
    await admin.close()
    resume = ("lane", "resume", "usage", f"events/{TOPIC}/1", "--reason", "lakeside has left", "--actor", "ann")
    rest = f"all of {TOPIC}/1 that was not read: Kafka does not have it any more"
    ran = await stopped(*resume)
    assert (ran.code, ran.err) == (
        1, f"events/{TOPIC}/1 at 0 would give up {rest}, for good; bring them back, or say --give-up\n",
    )  # fmt: skip
    ran = await stopped(*resume, "--earliest", "--give-up")
    assert (ran.code, ran.err) == (2, f"from: {TOPIC} was deleted; name the end that it had, 0 or above\n")

    ran = await stopped(*resume, "--from", "4", "--give-up")
    assert (ran.code, ran.out) == (0, f"events/{TOPIC}/1 is retired at 4; given up: {rest}\n")
    listed = (await stopped("lane", "list", "--stopped", "-o", "json")).json
    assert [(row["position"], row["stopped"]) for row in listed] == [(3, STOPPED), (4, f"retired: {TOPIC} was deleted")]
    assert (
        "given up offsets 0 to 3, by ann: lakeside has left"
        in ((await verify.run(load())).facts["lanes that a person let go on"])
    )
    again = await stopped(*resume, "--give-up")
    assert (again.code, again.err) == (1, f"LANE: lane events/{TOPIC}/1 is retired\n")


async def test_a_reason_is_needed(stopped: Tollbook) -> None:
    ran = await stopped("lane", "resume", "usage", LANE, "--reason", " ")
    assert (ran.code, ran.err) == (2, "reason: say why the lane may go on\n")
