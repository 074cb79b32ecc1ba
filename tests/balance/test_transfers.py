"""Transfers of a bank that top wallets up, recorded by finance, on a real database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from services.balance import api, receivables_api, tables
from services.runtime import faults
from tests.support.receivables_factory import Debtors
from tests.support.servers import Database

CARD = "4242 4242 4242 4242"


@pytest.fixture
async def town(database: Database) -> AsyncIterator[Debtors]:
    async with Debtors(database) as made:
        await made.member("desk", plan="payg")
        await made.settle()
        yield made
        await made.assert_conserved()


def transfer(town: Debtors, amount: str = "100", account_id: str = "desk", **more: Any) -> str:
    fields = {"reference": "R1", "currency": "USD", "role": "finance", "actor": "fin"} | more
    return town.command("record_transfer", account_id, amount=amount, **fields)


def refusals(town: Debtors, account_id: str = "desk") -> list[tuple[str, str | None]]:
    return [(each["reason"], each["field"]) for each in town.events(account_id, "command_refused")]


async def test_a_transfer_tops_a_wallet_up_and_stands_on_its_statement(town: Debtors) -> None:
    command_id = transfer(town, bank="savings", note="by hand")
    await town.settle()
    assert await town.balance("desk") == "100"
    assert await town.entries("desk") == [("clearing:savings", "-100"), ("wallet", "100")]
    (told,) = town.events("desk", "transfer_recorded")
    assert (told["amount"], told["reference"], told["command_id"]) == ("100", "R1", command_id)
    engine = town.rooms.processors["balance"].engine
    said = await api.statement(engine, "desk", await town.now() - timedelta(days=1))
    assert [(each.cause, each.wallet) for each in said.movements] == [("bank transfer (savings) by fin: R1", "100")]


async def test_it_counts_neither_for_the_ten_nor_for_the_limit_of_a_day(town: Debtors) -> None:
    await town.account("new", created_at=await town.now())  # a day's limit of 100
    transfer(town, "5000", "new")
    town.command("pay", "new", amount="100", token="tok_ok", processor="sandbox")
    await town.settle()
    assert await town.balance("new") == "5100"
    assert len(await town.attempts("new")) == 1


async def test_a_suspended_account_is_restored_by_it(town: Debtors) -> None:
    town.open("desk", "-5")
    await town.settle()
    transfer(town, "5.01")
    await town.settle()
    assert town.kinds("desk") == ["balance_opened", "suspended", "transfer_recorded", "restored"]


async def test_one_reference_of_a_bank_is_one_transfer_of_whomever(town: Debtors) -> None:
    await town.member("other", "southwind", plan="payg")
    for amount in ("100", "100", "101"):  # the first of a batch is recorded
        transfer(town, amount)
    await town.settle()
    transfer(town)
    transfer(town, "101")
    transfer(town, account_id="other")
    transfer(town, account_id="other", bank="second-bank")
    town.pay("100", reference="R1")
    town.pay("7", reference="R2")
    await town.settle()
    transfer(town, "7", reference="R2")
    await town.settle()
    assert (await town.balance("desk"), await town.balance("other"), await town.unapplied()) == ("100", "100", "7")
    assert town.kinds("desk").count("transfer_known") == 2
    assert refusals(town) == [("reference_used", "reference")] * 3
    assert refusals(town, "other") == [("reference_used", "reference")]
    assert [each["reason"] for each in town.told("northwind", "command_refused")] == ["reference_used"]


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ({"role": "owner"}, ("not_permitted", "role")),
        ({"role": "operator"}, ("not_permitted", "role")),
        ({"amount": "0"}, ("invalid_amount", "amount")),
        ({"amount": "0.001"}, ("invalid_amount", "amount")),
        ({"amount": "10000000.01"}, ("invalid_amount", "amount")),
        ({"reference": CARD}, ("card_number", "reference")),
        ({"note": CARD}, ("card_number", "note")),
    ],
)
async def test_one_that_cannot_be_is_refused_with_its_field_and_recorded_nowhere(
    town: Debtors, fields: dict[str, Any], refusal: tuple[str, str]
) -> None:
    transfer(town, **fields)
    await town.settle()
    assert (refusals(town), await town.balance("desk")) == ([refusal], "0")
    assert await town.rooms.query("balance", select(tables.group_payment)) == []


async def test_a_wallet_and_a_group_at_once_get_a_transfer_once(town: Debtors) -> None:
    await town.member("east")
    await town.close("TB-1", {"east": "60"})
    for number in range(6):
        transfer(town, "10", "east", reference=f"R{number}")
        town.pay("10", reference=f"R{number}")
    processor = town.rooms.processors["balance"]
    sources = [processor.room.input(name) for name in ("commands", "group_commands")]
    await asyncio.gather(*(town.rooms.feed(processor, source) for source in sources))
    await town.settle()
    assert await town.owes("east") == "0"
    recorded = len(town.events("east", "transfer_recorded")) + len(town.told("northwind", "payment_recorded"))
    assert (recorded, await town.balance("east"), await town.unapplied()) == (6, "0", "0")


@pytest.mark.parametrize("step", ["balance.commands.effects", "balance.commands.outbox", "balance.commands.committed"])
async def test_it_is_posted_once_wherever_its_worker_dies(town: Debtors, monkeypatch: Any, step: str) -> None:
    def stop(name: str) -> None:
        if name == step:
            raise asyncio.CancelledError

    transfer(town)
    with monkeypatch.context() as patched:
        patched.setattr(faults, "step", stop)
        with pytest.raises(asyncio.CancelledError):
            await town.rooms.pump()
    await town.settle()
    assert (await town.balance("desk"), town.kinds("desk")) == ("100", ["transfer_recorded"])


async def test_the_auditor_reads_what_was_recorded_and_what_was_posted(town: Debtors) -> None:
    transfer(town)
    town.pay("30")
    await town.settle()
    kept = await receivables_api.audit(town.rooms.processors["balance"].engine)
    assert {payment.through: kept.posted[payment_id] for payment_id, payment in kept.payments.items()} == {
        "wallet": {"wallet": 100 * 10**9, "clearing": -100 * 10**9},
        "bank": {"unapplied": 30 * 10**9, "clearing": -30 * 10**9},
    }
