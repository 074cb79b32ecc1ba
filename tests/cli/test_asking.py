"""Commands that change something travel through Kafka to a room that runs; the answer comes back to the user."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest

from services.cli import asking, wire
from services.cli.commands import build
from tests.cli.conftest import Tollbook
from tests.support.processes import Processes
from tests.support.receivables_factory import Debtors
from tests.support.servers import Database


@pytest.fixture
def rooms(
    database: Database, kafka: str, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Processes]:
    """Rooms that a test may start, on the servers that its commands talk to."""
    environment = database.environment(TOLLBOOK_KAFKA=kafka, TOLLBOOK_TOPIC_PREFIX=topic_prefix)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    processes = Processes(environment, tmp_path)
    yield processes
    processes.stop()


async def test_a_command_that_waits_for_its_account_says_so(
    tollbook: Tollbook, rooms: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a program has it that sends without looking, or where the registry is ahead of balance."""
    monkeypatch.setattr(wire, "ANSWER_S_MAX", 2.0)
    monkeypatch.setattr(asking, "_refuse_unknown", AsyncMock())
    command = ("account", "open-balance", "nobody", "1.00", "--currency", "USD", "--command-id", "c-1")
    nobody_runs = await tollbook(*command)
    assert (nobody_runs.code, "no answer within 2 s" in nobody_runs.err) == (1, True)
    rooms.start("balance", "services.balance")
    for _ in range(15):
        waiting = await tollbook(*command)
        if "no answer" not in waiting.err:
            break
    assert waiting.code == 1, rooms.tail("balance")
    said = " ".join(waiting.err.split())
    assert "account_id: command c-1 waits for the account nobody" in said
    assert "`tollbook quarantine list --room balance --all`" in said
    listed = (await tollbook("quarantine", "list", "--room", "balance", "--all", "--output", "json")).json
    assert any(f"discard record {row['id']};" in said for row in listed)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("account", "pay", "vip", "30", "--token", "tok_ok"), "account: there is no account vip"),
        (("account", "goodwill", "vip", "5"), "account: there is no account vip"),
        (("invoice", "pay", "5", "--group", "vip", "--reference", "R1"), "payer group: there is no payer group vip"),
        (("account", "goodwill", "vip", "5", "--currency", "XTS"), "currency: XTS has no row in the currency table"),
    ],
)
async def test_a_mistyped_account_group_or_currency_is_refused_before_anything_is_sent(
    tollbook: Tollbook, database: Database, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], says: str
) -> None:
    for name, value in database.environment(TOLLBOOK_KAFKA="127.0.0.1:1").items():
        monkeypatch.setenv(name, value)
    refused = await tollbook(*command)
    assert refused.code in (1, 2)
    assert says in " ".join(refused.err.split())


async def test_an_answer_comes_back_and_a_refusal_is_exit_1_with_reason_and_field(
    tollbook: Tollbook, rooms: Processes
) -> None:
    rooms.start("groups", "services.groups")
    accepted = await tollbook("org", "create", "lakeside", "--name", "Lakeside Dental", "--output", "json")
    assert accepted.code == 0, rooms.tail("groups")
    assert set(accepted.json) == {"command_id", "accepted", "message", "reason", "field", "objects", "warnings"}
    assert (accepted.json["accepted"], accepted.json["reason"]) == (True, None)
    again = await tollbook("org", "create", "lakeside", "--name", "Lakeside Dental")
    assert again.code == 1
    assert again.out.startswith("refused (already_exists): organization_id: ")
    entity = await tollbook("org", "entity", "seller", "--organization", "lakeside", "--name", "S", "--address", "A")
    assert entity.code == 0
    publisher = await tollbook("org", "publisher", "pbx", "--organization", "lakeside", "--source", "a")
    assert publisher.code == 0, publisher.out
    change = ("org", "change-publisher", "pbx", "--organization", "lakeside")
    assert (await tollbook(*change, "--source", "b", "--without-source", "a", "--late-s", "60")).code == 0
    assert (await tollbook(*change, "--not-bill", "lakeside")).out.startswith("refused (invalid): without_organization")
    (row,) = (await tollbook("org", "publishers", "--output", "json")).json
    assert (row["organization_ids"], row["sources"], row["late_s_max"]) == (["lakeside"], ["b"], 60)
    account = await tollbook("account", "create", "sales", "--organization", "lakeside", "--plan", "payg")
    assert account.out == "account sales created; payer group sales\n"
    listed = (await tollbook("account", "list", "--output", "json")).json
    assert [(row["account_id"], row["plan"], row["group_id"], row["wallet"]) for row in listed] == [
        ("sales", "payg", "sales", None)
    ]
    shown = (await tollbook("account", "show", "sales", "--output", "json")).json
    assert set(shown) == {"account", "plans", "groups", "balance"}


async def test_an_id_that_was_used_answers_for_the_command_that_used_it_and_refuses_every_other(
    tollbook: Tollbook, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in database.environment().items():
        monkeypatch.setenv(name, value)
    mine = ("--currency", "USD", "--command-id", "c-1", "--actor", "ann")
    opening: dict[str, Any] = {"kind": "open_balance", "role": "operator", "account_id": "desk", "amount": "25"}
    payment: dict[str, Any] = {"kind": "record_payment", "role": "finance", "group_id": "northwind", "amount": "96"}
    async with Debtors(database) as town:
        await town.member("desk")
        await town.settle()
        for asked in (opening, payment | {"reference": "R1"}):
            topic, key, command = build(asked | {"currency": "USD", "command_id": "c-1", "actor": "ann"})
            town.log.write(topic.name, key=key, value=command.data())
        await town.settle()
        for key, *command in (
            ("desk", "account", "open-balance", "desk", "25"),
            ("northwind", "invoice", "pay", "96", "--group", "northwind", "--reference", "R1"),
        ):
            same = await tollbook(*command, *mine)
            assert (same.code, same.out) == (0, "was carried out before\n"), same.err
            other = await tollbook(*(f"{each}.5" if each.isdigit() else each for each in command), *mine)
            assert (other.code, " ".join(other.err.split())) == (
                1,
                f"command_id: c-1 was used for another command to {key}, so this one was not sent; give it an id of its own",
            )
