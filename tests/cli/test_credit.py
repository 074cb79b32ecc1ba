"""`tollbook credit`: codes are made, shown once, approved by another person and listed; what is left of a credit is shown."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.cli.conftest import Tollbook
from tests.support.balance_factory import Town
from tests.support.servers import Database


@pytest.fixture
async def town(database: Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Town]:
    for name, value in database.environment().items():
        monkeypatch.setenv(name, value)
    async with Town(database) as made:
        await made.account("desk")
        await made.settle()
        yield made


async def test_codes_are_shown_once_and_a_large_promise_needs_another_person(tollbook: Tollbook, town: Town) -> None:
    create = ("credit", "codes", "create", "10", "--redemptions", "101", "--actor", "ann", "--output", "json")
    [made] = (await tollbook(*create)).json
    assert made["needs_approval"]
    approve = ("credit", "codes", "approve", made["voucher_id"], "--actor")
    refused = await tollbook(*approve, "ann")
    assert refused.code == 1
    assert "another person has to" in " ".join(refused.err.split())
    assert (await tollbook(*approve, "bea")).code == 0
    listed = await tollbook("credit", "codes", "list", "--output", "json")
    assert made["code"] not in listed.out
    [row] = listed.json
    assert (row["state"], row["redemptions_max"], row["approved_by"]) == ("open", 101, "bea")
    town.command("redeem_code", "desk", code=made["code"])
    await town.settle()
    [credit] = (await tollbook("credit", "list", "--account", "desk", "--output", "json")).json
    assert (credit["state"], credit["granted"], credit["spent"], credit["remaining"]) == ("open", "10", "0", "10")


async def test_the_id_of_a_credit_stands_in_one_piece_to_be_copied_into_its_approval(
    tollbook: Tollbook, town: Town
) -> None:
    note = "for a winter in which nothing went as it was promised to them"
    town.command("grant_credit", "desk", amount="1500", currency="USD", note=note, expires_at="2099-01-01T00:00:00Z")
    await town.settle()
    [credit] = (await tollbook("credit", "list", "--output", "json")).json
    assert credit["credit_id"] in (await tollbook("credit", "list")).out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("credit", "codes", "create", "0"), "amount: must be above zero"),
        (("credit", "codes", "create", "5", "--count", "0"), "count: must be from 1 to 10000"),
        (
            ("credit", "codes", "create", "5", "--role", "owner"),
            "role: voucher codes need the role operator or finance",
        ),
        (("credit", "codes", "approve", "7"), "voucher_id: must be an id such as"),
        (("credit", "redeem", "desk", "!"), "code: "),
    ],
)
async def test_a_wrong_field_is_named(
    tollbook: Tollbook, town: Town, arguments: tuple[str, ...], sentence: str
) -> None:
    ran = await tollbook(*arguments)
    assert ran.code in (1, 2)
    assert sentence in " ".join(ran.err.split())
