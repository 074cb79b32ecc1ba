"""`tollbook quarantine` on a real database."""

from __future__ import annotations

import pytest

from services.usage import api
from services.usage.consumer import build
from tests.cli.conftest import Tollbook
from tests.support.rooms import Log, Rooms
from tests.support.servers import Database
from tests.support.usage_registry import TOPIC, Sender


async def test_a_record_is_shown_with_its_headers(
    tollbook: Tollbook, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in database.environment().items():
        monkeypatch.setenv(name, value)
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
