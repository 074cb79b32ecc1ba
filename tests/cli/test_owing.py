"""`tollbook invoice` about money: what groups owe, the term of suspension, and how a payment is asked for and answered."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from contracts.topics import BALANCE_GROUP_COMMANDS, BALANCE_GROUP_EVENTS
from services.cli import wire
from services.cli.commands import build
from services.cli.reading import room
from services.cli.verify import Auditor, Check
from tests.cli.conftest import Tollbook
from tests.invoices.neighbours import neighbours
from tests.invoices.test_room import close_two_invoices
from tests.invoices.test_settlements import closed, told
from tests.support.receivables_factory import Debtors
from tests.support.servers import Database

DAY = timedelta(days=1)


@pytest.fixture
async def town(database: Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Debtors]:
    """Northwind owes 96 since a month, of which it has paid 20; Southwind has paid 4 too much."""
    for name, value in database.environment().items():
        monkeypatch.setenv(name, value)
    async with Debtors(database) as made:
        await made.member("east")
        await made.member("south", "southwind")
        await made.settle()
        await made.close("TB-1", {"east": "96"}, due_on=await made.now() - 30 * DAY)
        made.pay("20", reference="R1")
        made.pay("4", group_id="southwind")
        await made.settle()
        yield made


async def test_debts_say_what_is_to_pay_and_what_was_paid_too_much(tollbook: Tollbook, town: Debtors) -> None:
    rows = (await tollbook("invoice", "debts", "--output", "json")).json
    assert rows == [
        {"group_id": "northwind", "currency": "USD", "invoices": 1, "open": "76", "unapplied": "0", "suspends": True},
        {"group_id": "southwind", "currency": "USD", "invoices": 0, "open": "0", "unapplied": "4", "suspends": False},
    ]
    assert [
        row["group_id"] for row in (await tollbook("invoice", "debts", "--group", "southwind", "-o", "json")).json
    ] == ["southwind"]


async def test_the_term_of_suspension_is_shown_and_set(tollbook: Tollbook, town: Debtors) -> None:
    assert (await tollbook("invoice", "suspend-after", "-o", "json")).json == {"suspend_after_days": 21}
    assert (await tollbook("invoice", "suspend-after", "40", "-o", "json")).json == {"suspend_after_days": 40}
    assert (await tollbook("invoice", "suspend-after", "366")).err == "days: must be between 0 and 365\n"


async def test_what_was_paid_of_an_invoice_is_a_table_for_people_and_a_list_for_programs(
    tollbook: Tollbook, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in database.environment().items():
        monkeypatch.setenv(name, value)
    made = await neighbours(database)
    await close_two_invoices(made)
    asked = ("invoice", "show", closed(made)["number"], "--payments")
    assert (await tollbook(*asked)).out.endswith("\n\nno payment yet\n")
    told(made, "invoice_paid", 1, "partly_paid", "0.30", amount="0.30", source="transfer", reference="R1")
    await made.settle()
    table = (await tollbook(*asked)).out
    assert re.search(r"^\S+Z +invoice_paid +partly_paid +0\.3 +transfer +R1 +0\.42$", table, re.MULTILINE), table
    assert "{" not in table
    (paid,) = (await tollbook(*asked, "-o", "json")).json["payments"]
    assert (paid["amount"], paid["reference"], paid["open"]) == ("0.3", "R1", "0.42")
    await made.rooms.__aexit__()


async def checked() -> Check:
    """The auditor's check of what is owed, of balance alone."""
    async with room("balance") as engine:
        log: Any = None
        return await Auditor({"balance": engine}, log, None, lambda _: None)._receivables(is_at_rest=False)


async def test_the_auditor_compares_every_figure_of_a_payment(town: Debtors) -> None:
    whole = await checked()
    assert whole.ok, whole.differences
    assert whole.looked_at == "1 invoices, 2 payments"
    async with town.database.connected() as owner:  # who owns the database may do that too
        for row in await owner.fetch(
            "select conrelid::regclass::text as own, conname from pg_constraint where contype = 'f'"
            " and confrelid in ('balance.receivable'::regclass, 'balance.payer'::regclass)"
        ):
            await owner.execute(f"alter table {row['own']} drop constraint {row['conname']}")
    for statement, difference in (
        ("update balance.application set nano = nano + 1", "what was applied to it"),
        (
            "update balance.application set source = 'balance' where source = 'transfer'",
            "paid from the balance, and what wallets paid",
        ),
        ("update balance.group_payment set amount_nano = amount_nano + 1 where reference = 'R1'", "payment "),
        ("delete from balance.application", "what was applied to it"),
        ("delete from balance.receivable", "nothing is known of what is owed of it"),
        ("delete from balance.payer where group_id = 'southwind'", "unapplied of southwind, and its entries: 0"),
        ("update balance.group_payment set bank = 'another' where reference = 'R1'", "another bank or reference"),
        ("update balance.group_payment set reference = 'R9' where reference = 'R1'", "another bank or reference"),
        ("update balance.group_payment set currency = 'EUR' where reference = 'R1'", "and its transaction: "),
        ("update balance.group_payment set group_id = 'southwind' where reference = 'R1'", "and its transaction: "),
        ("update balance.group_payment set actor = 'eve' where reference = 'R1'", "and its transaction: "),
        ("update balance.receivable_share set from_wallet_nano = 1", "the wallet of east has paid"),
        ("update balance.wallet set receivable_nano = receivable_nano + 1 where account_id = 'east'", "and its shares"),
        ("delete from balance.wallet where account_id = 'east'", "receivable of east, and its shares"),
    ):
        async with town.database.connected() as owner:
            kept = statement.split()[2] if statement.startswith("delete") else statement.split()[1]
            await owner.execute(f"create table public.before as table {kept}")
            await owner.execute(statement)
            broken = await checked()
            assert any(difference in each for each in broken.differences), (statement, broken.differences)
            await owner.execute(f"delete from {kept}")
            await owner.execute(f"insert into {kept} select * from public.before")
            await owner.execute("drop table public.before")
    assert (await checked()).ok


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["pay", "96", "--reference", "R1"], "group: give --group or --invoice\n"),
        (["pay", "9,6", "--reference", "R1", "--group", "g"], 'amount: must be a decimal string such as "10.00"\n'),
        (["write-off", "TB-1"], "note: give either --note, to propose it, or --approve\n"),
        (["list", "--paid", "--overdue"], "state: give one of --state, --paid, --unpaid and --overdue\n"),
        (
            ["list", "--state", "lost"],
            "state: must be one of open, closed, nothing, partly_paid, paid, overdue, written_off, void\n",
        ),
    ],
)
async def test_a_wrong_command_line_names_the_field(tollbook: Tollbook, arguments: list[str], sentence: str) -> None:
    ran = await tollbook("invoice", *arguments)
    assert (ran.code, ran.err) == (2, sentence)


def test_a_payment_goes_to_its_group_and_its_answer_is_read_aloud() -> None:
    topic, key, command = build(
        {"kind": "record_payment", "actor": "fin", "role": "finance", "group_id": "northwind", "amount": "100",
         "currency": "USD", "reference": "R1", "invoice": None}
    )  # fmt: skip
    assert (topic, key, command.bank) == (BALANCE_GROUP_COMMANDS, "northwind", "bank")
    event = {
        "command_id": "p1", "kind": "payment_recorded", "amount": "100", "currency": "USD", "group_id": "northwind",
        "message": "96 of invoices is paid; 4 is kept for the next invoice", "reason": None, "field": None,
    }  # fmt: skip
    answer = wire._answer(BALANCE_GROUP_EVENTS.name, event)
    assert answer.accepted
    assert str(answer) == (
        "payment recorded 100 USD for northwind: 96 of invoices is paid; 4 is kept for the next invoice"
    )
