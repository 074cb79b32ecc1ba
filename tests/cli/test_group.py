"""`tollbook group`: what programs read of a payer group."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Tollbook
from tests.groups.desk import APPROVED, Desk, open_desk
from tests.support.servers import Database


async def test_the_figures_of_an_approval_are_decimal_strings(
    tollbook: Tollbook, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in database.environment().items():
        monkeypatch.setenv(name, value)
    async with open_desk(database) as rooms:
        desk = Desk(rooms)
        await desk.seller()
        await desk.found()
        await desk.group("alone")
        await desk.group("shared")
        await desk.done("approve_sharing", group_id="shared", **APPROVED)
    shown = (await tollbook("group", "show", "shared", "-o", "json")).json
    assert (shown["sharing"]["yearly_spend"], shown["sharing"]["threshold"]) == ("120000", "100000")
    listed = (await tollbook("group", "list", "-o", "json")).json
    assert [each["sharing"] for each in listed] == [None, shown["sharing"]]
    assert "_nano" not in str(listed)
