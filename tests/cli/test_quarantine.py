"""`tollbook quarantine` on a real database."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime

import pytest

from services.usage import api
from services.usage.consumer import build
from tests.cli.conftest import Tollbook
from tests.support.rooms import Log, Rooms
from tests.support.servers import Database
from tests.support.usage_registry import TOPIC, Sender, leg

pytestmark = pytest.mark.usefixtures("on_database")


async def test_records_are_given_up_by_name_only_and_replayed_by_reason_too(
    tollbook: Tollbook, database: Database
) -> None:
    log = Log()
    async with Rooms(log, database, [build()]) as rooms:
        for number in range(4):
            log.write(TOPIC, value=f"record {number}".encode(), partition=0)
        await rooms.pump()

    async def stands() -> list[int]:
        return [row["id"] for row in (await tollbook("quarantine", "list", "--output", "json")).json]

    first, second, third, fourth = await stands()
    for arguments in ([], ["--reason", "not_json"], [str(first), "--reason", "not_json"]):
        assert (await tollbook("quarantine", "discard", *arguments)).code == 2
    assert await stands() == [first, second, third, fourth]
    ran = await tollbook("quarantine", "discard", str(first), str(third), "--output", "json")
    assert ran.json == {"asked": 2, "decision": "discarding"}
    assert await stands() == [second, fourth]
    ran = await tollbook("quarantine", "discard", str(first), str(second))
    assert (ran.code, ran.out) == (1, "1 record asked for: discarding\n")
    assert "1 of 2 do not stand in the quarantine of usage" in ran.err
    ran = await tollbook("quarantine", "replay", "--reason", "not_json", "--output", "json")
    assert ran.json == {"asked": 1, "decision": "replaying"}


async def test_a_record_is_shown_with_its_headers(tollbook: Tollbook, database: Database) -> None:
    log = Log()
    headers = (("ce_id", b"e1"), ("ce_source", "größe".encode()), ("trace", None), ("raw", b"\xff"))
    async with Rooms(log, database, [build()]) as rooms:
        Sender(log).publisher()
        log.write(TOPIC, value=b'{"account_id": "sales"}', headers=headers, partition=0)
        await rooms.pump()
        (row,) = await api.parked(rooms.processors["usage"].engine)
    shown = await tollbook("quarantine", "show", str(row.id))
    assert shown.code == 0
    assert shown.out.endswith('\n\nce_id: e1\nce_source: größe\ntrace: (no value)\nraw: �\n\n{"account_id": "sales"}\n')
    as_json = (await tollbook("quarantine", "show", str(row.id), "--output", "json")).json
    assert as_json["headers"] == [["ce_id", "e1"], ["ce_source", "größe"], ["trace", None], ["raw", "�"]]


async def test_the_list_names_the_account_of_each_record(tollbook: Tollbook, database: Database) -> None:
    log = Log()
    async with Rooms(log, database, [build()]) as rooms:
        sender = Sender(log)
        sender.publisher()
        await rooms.pump()
        sender.leg(leg("e1", datetime.now(UTC), "nobody"))
        log.write(TOPIC, value=b"no JSON", partition=0)
        await rooms.pump()
    table = (await tollbook("quarantine", "list")).out
    assert re.search(r"quarantined +unknown_account +nobody +data\.account_id +is not registered", table), table
    assert re.search(r"quarantined +not_json +the record is not JSON", table), table


async def test_a_record_is_shown_without_what_steers_a_terminal(tollbook: Tollbook, database: Database) -> None:
    log = Log()
    event = leg("e1", datetime.now(UTC), "nobody") | {"source": "\x1b[2J\x9b31m"}
    hostile = json.dumps(event | {"\u202eext\x1b]0;x\x07": 1}, ensure_ascii=False).replace("\\u001b", "\x1b").encode()
    async with Rooms(log, database, [build()]) as rooms:
        Sender(log).publisher()
        log.write(TOPIC, value=hostile, headers=(("x\x1b[A", b"\x1b[1mbold\r"),), partition=0)
        log.write(TOPIC, value=json.dumps(event | {"\u202eext\x1b\x9b": 1}).encode(), partition=0)
        await rooms.pump()
        rows = await api.parked(rooms.processors["usage"].engine)
    assert len(rows) == 2
    for output in ("table", "json"):
        for arguments in (("list",), ("show", str(rows[0].id)), ("show", str(rows[1].id))):
            ran = await tollbook("quarantine", *arguments, "--output", output)
            assert ran.code == 0
            assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", ran.out), ran.out
            if output == "json" and arguments[0] == "show":
                shown = next(row for row in rows if str(row.id) == arguments[1])
                assert ran.json["value"].encode() == shown.value  # the same JSON
