"""Credit notes against closed invoices, on a real database: what is owed no more, what is kept, and what goes back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from contracts.invoices import CreditNoteIssued, CreditNotePosting, ProductCredit
from services.balance import api, receivables_api, tables
from services.balance.applying import spread
from services.kernel.ids import derived_id
from services.kernel.money import format_nano
from services.runtime.lanes import all_lanes
from tests.balance.test_receivables import DAY, Crash, crash_at, founded, of_balance, refusals, suspended
from tests.support.receivables_factory import Debtors, nanos
from tests.support.servers import Database, TestedServers

CENT = 10**7
ISSUED_ON = datetime(2026, 11, 20, tzinfo=UTC)


@pytest.fixture
async def town(database: Database) -> AsyncIterator[Debtors]:
    made = Debtors(database)
    async with made:
        yield made
        await made.assert_conserved()


async def credit(
    town: Debtors,
    number: str,
    invoice: str,
    owed: Mapping[str, str] | None = None,
    *,
    wallets: Mapping[str, str] | None = None,
    tax: str = "0",
    promotion: str = "0",
    rounding: str = "0",
    voids: bool = False,
    settled: bool = True,
) -> None:
    """A credit note, per account of what its group owes for it and into its wallet; of one product, tax included."""
    owed, wallets = owed or {}, wallets or {}
    total = sum(nanos(amount) for given in (owed, wallets) for amount in given.values())
    net = total - nanos(tax)
    note = CreditNoteIssued(
        credit_note_id=derived_id("test credit note", number),
        number=number,
        invoice_id=derived_id("test invoice", invoice),
        invoice_number=invoice,
        group_id="northwind",
        organization_id="northwind",
        period="2026-10",
        issued_on=ISSUED_ON,
        currency="USD",
        net=format_nano(net),
        tax=tax,
        total=format_nano(total),
        voids=voids,
        document="",
        sha256="",
        postings=tuple(
            CreditNotePosting(account_id=each, wallet=wallets.get(each, "0"), owed=owed.get(each, "0"))
            for each in sorted({*owed, *wallets})
        ),
        products=(
            ProductCredit(product="voice.outbound", exact=format_nano(net + nanos(promotion) - nanos(rounding))),
        ),
        promotion=promotion,
        rounding=rounding,
    )
    town.send("invoices.events", "northwind", note.data())
    if settled:
        await town.settle()


class Standing(NamedTuple):
    state: str
    paid: str
    written_off: str
    credited: str
    open: str


async def standing(town: Debtors, number: str = "TB-1") -> Standing:
    """An invoice as it stands and was told last; its parts sum to what was due."""
    kept = await town.invoice(number)
    told = [each["invoice"] for each in town.told() if each["invoice"] and each["invoice"]["number"] == number]
    newest = max(told, key=lambda each: int(each["version"]))
    seen = Standing(*(newest[name] for name in Standing._fields))
    assert (seen.state, seen.paid, seen.written_off, seen.open) == tuple(
        kept[name] for name in ("state", "paid", "written_off", "open")
    )
    assert nanos(newest["due"]) == sum(map(nanos, seen[1:]))
    return seen


def credited(town: Debtors) -> list[tuple[str, str, str]]:
    """(number of the note, amount, unapplied after it) of what was told of credit notes."""
    told = town.told("northwind", "invoice_credited")
    return [(each["reference"], each["amount"], each["unapplied"]) for each in told if each["source"] == "credit_note"]


async def posted(town: Debtors, number: str) -> dict[str, str]:
    """What a credit note posted, by ledger account."""
    entry = tables.ledger_entry.c
    ref = str(derived_id("test credit note", number))
    statement = select(entry.ledger, entry.nano).where(entry.kind == "credit_note", entry.ref == ref)
    sums: dict[str, int] = {}
    for row in await town.rooms.query("balance", statement):
        sums[row.ledger] = sums.get(row.ledger, 0) + int(row.nano)
    return {ledger: format_nano(nano) for ledger, nano in sums.items()}


async def written_off_but_50(town: Debtors) -> None:
    """Of an invoice of 96, 50 is paid and the rest is given up by two persons."""
    await founded(town)
    await town.close("TB-1", {"east": "96"})
    town.pay("50")
    town.order("propose_write_off", invoice="TB-1", note="insolvent", actor="ann")
    town.order("approve_write_off", invoice="TB-1", actor="bob")
    await town.settle()
    assert await standing(town) == ("written_off", "50", "46", "0", "0")


# ---- what is owed --------------------------------------------------------------------------------------------------


async def test_what_is_not_paid_is_owed_no_more(town: Debtors) -> None:
    await founded(town)
    await town.close("TB-1", {"east": "96"})
    await credit(town, "CN-1", "TB-1", {"east": "12"}, tax="2")
    assert await standing(town) == ("closed", "0", "0", "12", "84")
    assert (await town.owes("east"), await town.unapplied()) == ("84", "0")
    assert await posted(town, "CN-1") == {
        "receivable:northwind": "12",
        "revenue:voice.outbound": "-10",
        "tax:group": "-2",
    }
    (told,) = town.told()
    assert (told["kind"], told["source"], told["reference"], told["amount"], told["message"]) == (
        "invoice_credited", "credit_note", "CN-1", "12", "credit note CN-1",
    )  # fmt: skip
    assert told["invoice"]["owed_by"] == ["east"]
    town.pay("84", invoice="TB-1")
    await town.settle()
    assert await standing(town) == ("paid", "84", "0", "12", "0")


async def test_what_was_paid_of_it_is_kept_and_pays_the_next_invoice(town: Debtors) -> None:
    await founded(town)
    await town.close("TB-1", {"east": "96"})
    town.pay("50")
    await town.settle()
    await credit(town, "CN-1", "TB-1", {"east": "60"}, tax="10")
    assert await standing(town) == ("paid", "50", "0", "46", "0")
    assert (await town.owes("east"), await town.unapplied()) == ("0", "14")
    assert await posted(town, "CN-1") == {
        "receivable:northwind": "46", "unapplied:northwind": "14", "revenue:voice.outbound": "-50", "tax:group": "-10",
    }  # fmt: skip
    assert credited(town) == [("CN-1", "46", "14")]
    assert town.told()[-1]["message"] == "credit note CN-1; 14 was paid and is for other invoices"
    await town.close("TB-2", {"east": "20"})
    assert await standing(town, "TB-2") == ("partly_paid", "14", "0", "0", "6")
    assert (await town.unapplied(), town.told()[-1]["source"]) == ("0", "overpayment")


async def test_of_a_paid_invoice_all_is_kept(town: Debtors) -> None:
    await founded(town)
    await town.close("TB-1", {"east": "96"})
    town.pay("96")
    await town.settle()
    await credit(town, "CN-1", "TB-1", {"east": "12"}, tax="2")
    assert await standing(town) == ("paid", "96", "0", "0", "0")
    assert await posted(town, "CN-1") == {
        "unapplied:northwind": "12",
        "revenue:voice.outbound": "-10",
        "tax:group": "-2",
    }
    assert credited(town) == [("CN-1", "0", "12")]
    await credit(town, "CN-2", "TB-1", {"east": "84"}, voids=True)
    assert await standing(town) == ("void", "96", "0", "0", "0")
    assert (await town.unapplied(), await town.owes("east")) == ("96", "0")


@pytest.mark.parametrize(
    ("paid", "stands", "kept"),
    [
        ("0", ("void", "0", "0", "96", "0"), "0"),
        ("50", ("void", "50", "0", "46", "0"), "50"),
        ("96", ("void", "96", "0", "0", "0"), "96"),
    ],
)
async def test_an_invoice_of_which_nothing_is_left_is_void(
    town: Debtors, paid: str, stands: tuple[str, ...], kept: str
) -> None:
    await founded(town)
    await town.close("TB-1", {"east": "96"}, due_on=await town.now())
    if paid != "0":
        town.pay(paid)
        await town.settle()
    await credit(town, "CN-1", "TB-1", {"east": "96"}, tax="16", voids=True)
    assert await standing(town) == stands
    assert (await town.owes("east"), await town.unapplied()) == ("0", kept)
    told = town.told_kinds()
    await town.settle(after=60 * DAY)
    assert town.told_kinds() == told  # what is void is never overdue
    town.pay("10", invoice="TB-1")
    await town.settle()
    assert await standing(town) == stands
    assert nanos(await town.unapplied()) == nanos(kept) + nanos("10")


async def test_what_was_written_off_is_no_loss_any_more_and_gives_nothing_back(town: Debtors) -> None:
    await written_off_but_50(town)
    await credit(town, "CN-1", "TB-1", {"east": "20"})
    assert await standing(town) == ("written_off", "50", "26", "20", "0")
    assert await town.unapplied() == "0"
    assert await posted(town, "CN-1") == {"write_off": "20", "revenue:voice.outbound": "-20"}
    await credit(town, "CN-2", "TB-1", {"east": "30"})
    assert await standing(town) == ("paid", "50", "0", "46", "0")
    assert credited(town) == [("CN-1", "20", "0"), ("CN-2", "26", "4")]


async def test_of_what_was_paid_and_written_off_only_what_was_paid_is_kept(town: Debtors) -> None:
    await written_off_but_50(town)
    await credit(town, "CN-1", "TB-1", {"east": "96"}, voids=True)
    assert await standing(town) == ("void", "50", "0", "46", "0")
    assert (await town.unapplied(), await town.owes("east")) == ("50", "0")
    assert await posted(town, "CN-1") == {
        "write_off": "46", "unapplied:northwind": "50", "revenue:voice.outbound": "-96",
    }  # fmt: skip


async def test_the_share_of_who_is_credited_is_freed_before_those_of_others(town: Debtors) -> None:
    await founded(town, "a", "b")
    await town.close("TB-1", {"a": "48", "b": "48"})
    town.pay("48")
    await town.settle()
    assert (await town.owes("a"), await town.owes("b")) == ("24", "24")
    await credit(town, "CN-1", "TB-1", {"a": "10"})
    assert (await town.owes("a"), await town.owes("b")) == ("14", "24")
    await credit(town, "CN-2", "TB-1", {"a": "30"})
    assert (await town.owes("a"), await town.owes("b"), await town.unapplied()) == ("0", "8", "0")
    assert town.told()[-1]["invoice"]["owed_by"] == ["b"]
    await credit(town, "CN-3", "TB-1", {"a": "8", "b": "2"})
    assert (await town.owes("b"), await town.unapplied()) == ("0", "2")
    assert await standing(town) == ("paid", "48", "0", "48", "0")


async def test_what_promotion_had_paid_is_not_given_back_and_rounding_is_undone(town: Debtors) -> None:
    await founded(town)
    await town.close("TB-1", {"east": "96"})
    await credit(town, "CN-1", "TB-1", {"east": "12"}, tax="2", promotion="3", rounding="-0.004")
    assert await posted(town, "CN-1") == {
        "receivable:northwind": "12", "breakage": "3", "rounding": "0.004", "revenue:voice.outbound": "-13.004",
        "tax:group": "-2",
    }  # fmt: skip
    await credit(town, "CN-2", "TB-1", {"east": "12"}, tax="2", rounding="0.003")
    assert await posted(town, "CN-2") == {
        "receivable:northwind": "12", "rounding": "-0.003", "revenue:voice.outbound": "-9.997", "tax:group": "-2",
    }  # fmt: skip
    assert await town.owes("east") == "72"


# ---- what is kept ---------------------------------------------------------------------------------------------------


async def test_what_is_kept_is_sent_back_once_and_never_more_than_is_kept(town: Debtors) -> None:
    await founded(town)
    await town.close("TB-1", {"east": "96"})
    town.pay("96")
    await town.settle()
    await credit(town, "CN-1", "TB-1", {"east": "96"}, voids=True)
    money = {"currency": "USD", "reference": "R-9"}
    for amount, more in (("96.01", {}), ("0.001", {}), ("50", {"role": "owner"}), ("50", {"bank": "stripe"})):
        town.order("return_money", amount=amount, **(money | more))
    town.order("return_money", amount="50", command_id="back", note="left us", **money)
    town.order("return_money", amount="50", command_id="back", note="left us", **money)
    town.order("return_money", amount="46", **money)
    await town.settle()
    assert refusals(town) == [
        ("more_than_kept", "amount"), ("invalid_amount", "amount"), ("not_permitted", "role"), ("not_a_bank", "bank"),
        ("reference_used", "reference"),
    ]  # fmt: skip
    assert await town.unapplied() == "46"
    (told,) = town.told("northwind", "money_returned")
    assert (told["amount"], told["unapplied"], told["reference"], told["command_id"]) == ("50", "46", "R-9", "back")
    town.order("return_money", amount="46", currency="USD", reference="R-10")
    await town.settle()
    assert await town.unapplied() == "0"
    sums = await api.transaction_totals(town.rooms.processors["balance"].engine, "unapplied_returned")
    assert sorted(each["clearing"] for each in sums.values()) == [46 * 10**9, 50 * 10**9]


# ---- wallets -------------------------------------------------------------------------------------------------------


async def test_a_prepaid_account_gets_it_back_and_is_restored_when_it_is_above_zero(town: Debtors) -> None:
    await town.member("east", plan="payg")
    town.open("east", "5")
    town.charge("east", "7", group_id="northwind")
    await town.settle()
    assert (await town.balance("east"), await suspended(town)) == ("-2", {"east"})
    await credit(town, "CN-1", "TB-1", wallets={"east": "2"}, tax="0.40")
    assert (await town.balance("east"), await suspended(town)) == ("0", {"east"})
    assert await posted(town, "CN-1") == {"wallet": "2", "revenue:voice.outbound": "-1.6", "tax:group": "-0.4"}
    await credit(town, "CN-2", "TB-1", wallets={"east": "3"}, tax="0.50", voids=True)
    assert (await town.balance("east"), await suspended(town)) == ("3", set())
    assert town.kinds("east")[-3:] == ["credit_note_posted", "credit_note_posted", "restored"]
    (_, told) = town.events("east", "credit_note_posted")
    assert (told["amount"], told["wallet"], told["message"]) == ("3", "3", "credit note CN-2 for invoice TB-1")
    assert (town.told(), await town.unapplied()) == ([], "0")  # nothing was owed
    said = await api.statement(town.rooms.processors["balance"].engine, "east", await town.now() - DAY)
    assert [(each.cause, each.wallet) for each in said.movements[-2:]] == [
        ("credit note CN-1", "2"),
        ("credit note CN-2", "3"),
    ]


async def test_one_note_gives_wallets_back_and_frees_what_is_owed(town: Debtors) -> None:
    await founded(town)
    await town.member("prepaid", plan="payg")
    town.open("prepaid", "1")
    await town.settle()
    await town.close("TB-1", {"east": "96"})
    await credit(town, "CN-1", "TB-1", {"east": "12"}, wallets={"prepaid": "5"}, tax="2")
    assert (await town.owes("east"), await town.balance("prepaid")) == ("84", "6")
    assert credited(town) == [("CN-1", "12", "0")]
    assert town.kinds("prepaid") == ["balance_opened", "credit_note_posted"]
    assert town.events("east", "credit_note_posted") == []


async def test_a_last_note_that_is_all_of_prepaid_use_voids_what_was_owed_too(town: Debtors) -> None:
    await founded(town)
    await town.member("prepaid", plan="payg")
    town.open("prepaid", "1")
    await town.close("TB-1", {"east": "96"})
    await credit(town, "CN-1", "TB-1", {"east": "96"})
    assert await standing(town) == ("paid", "0", "0", "96", "0")
    await credit(town, "CN-2", "TB-1", wallets={"prepaid": "5"}, voids=True)
    assert await standing(town) == ("void", "0", "0", "96", "0")
    assert (await town.balance("prepaid"), credited(town)) == ("6", [("CN-1", "96", "0"), ("CN-2", "0", "0")])


async def test_what_goes_back_into_the_wallet_of_who_is_invoiced_by_now_pays_what_it_owes(town: Debtors) -> None:
    await founded(town)
    await town.close("TB-1", {"east": "96"})
    await credit(town, "CN-1", "TB-0", wallets={"east": "10"})
    assert (await town.balance("east"), await town.owes("east")) == ("0", "86")
    assert town.kinds("east")[-2:] == ["credit_note_posted", "balance_used"]


async def test_what_a_note_brings_in_the_batch_of_a_close_pays_too(town: Debtors) -> None:
    await founded(town)
    town.open("east", "1")
    await town.settle()
    await town.close("TB-1", {"east": "96"}, settled=False)
    await credit(town, "CN-1", "TB-0", wallets={"east": "10"})
    assert (await town.balance("east"), await town.owes("east")) == ("0", "85")


async def test_what_its_own_wallet_paid_goes_back_into_it_and_restores_the_account(town: Debtors) -> None:
    await town.member("east", credit_limit="0")
    town.open("east", "48")
    await town.settle()
    await town.close("TB-1", {"east": "48"})
    assert (await town.balance("east"), await suspended(town)) == ("0", {"east"})
    await credit(town, "CN-1", "TB-1", {"east": "48"}, voids=True)
    assert (await town.balance("east"), await town.unapplied(), await suspended(town)) == ("48", "0", set())
    assert await standing(town) == ("void", "48", "0", "0", "0")
    assert await posted(town, "CN-1") == {"wallet": "48", "revenue:voice.outbound": "-48"}
    assert credited(town) == [("CN-1", "0", "0")]
    assert town.kinds("east")[-2:] == ["credit_note_posted", "restored"]


async def test_what_a_wallet_paid_of_its_own_share_pays_no_share_of_another(town: Debtors) -> None:
    await founded(town, "a", "b")
    town.open("a", "48")
    await town.settle()
    await town.close("TB-1", {"a": "48", "b": "48"})
    await credit(town, "CN-1", "TB-1", {"a": "30"})
    assert (await town.balance("a"), await town.owes("b"), await town.unapplied()) == ("30", "48", "0")
    await credit(town, "CN-2", "TB-1", {"a": "18"})
    assert (await town.balance("a"), await town.owes("b"), await town.unapplied()) == ("48", "48", "0")
    await credit(town, "CN-3", "TB-1", {"b": "48"}, voids=True)
    assert (await town.balance("a"), await town.owes("b"), await town.unapplied()) == ("48", "0", "0")


async def test_a_share_paid_by_wallet_and_transfer_goes_back_into_the_wallet_first(town: Debtors) -> None:
    await founded(town)
    town.open("east", "40")
    await town.settle()
    await town.close("TB-1", {"east": "96"})
    town.pay("50")
    await town.settle()
    await credit(town, "CN-1", "TB-1", {"east": "26"})
    assert (await town.owes("east"), await town.balance("east"), await town.unapplied()) == ("0", "20", "0")
    await credit(town, "CN-2", "TB-1", {"east": "70"}, voids=True)
    assert (await town.balance("east"), await town.unapplied()) == ("40", "50")


async def test_what_was_written_off_is_regained_before_a_wallet_gets_anything_back(town: Debtors) -> None:
    await founded(town)
    town.open("east", "50")
    await town.settle()
    await town.close("TB-1", {"east": "96"})
    town.order("propose_write_off", invoice="TB-1", note="insolvent", actor="ann")
    town.order("approve_write_off", invoice="TB-1", actor="bob")
    await town.settle()
    await credit(town, "CN-1", "TB-1", {"east": "20"})
    assert (await town.balance("east"), (await standing(town)).written_off) == ("0", "26")
    await credit(town, "CN-2", "TB-1", {"east": "76"}, voids=True)
    assert (await town.balance("east"), await town.unapplied()) == ("50", "0")
    assert await standing(town) == ("void", "50", "0", "46", "0")


@pytest.mark.parametrize("together", [True, False])
async def test_a_wallet_that_pays_at_a_close_pays_what_it_owes_of_another_group_too(
    town: Debtors, together: bool
) -> None:
    await town.member("east", "lakeside")
    await town.close("TB-1", {"east": "50"}, group_id="lakeside")
    await town.member("east")
    await town.close("TB-2", {"east": "20"}, settled=False)
    if not together:
        await town.settle()
    await credit(town, "CN-1", "TB-0", wallets={"east": "100"})
    assert (await town.balance("east"), await town.owes("east")) == ("30", "0")


# ---- once ----------------------------------------------------------------------------------------------------------


async def test_a_note_is_posted_once_and_may_come_in_one_batch_with_its_invoice(town: Debtors) -> None:
    await founded(town, "east", "west")
    await town.close("TB-1", {"east": "60", "west": "36"}, settled=False)
    for _ in range(2):
        await credit(town, "CN-1", "TB-1", {"east": "12"}, wallets={"west": "1"}, tax="2", settled=False)
    await town.rooms.feed(*of_balance(town, "charges"))
    await town.rooms.feed(*of_balance(town, "invoices"))
    assert (await town.owes("east"), await town.owes("west")) == ("48", "36")
    await town.settle()  # what came into the wallet of west pays
    assert await standing(town) == ("partly_paid", "1", "0", "12", "83")
    await credit(town, "CN-1", "TB-1", {"east": "12"}, wallets={"west": "1"}, tax="2")
    assert await standing(town) == ("partly_paid", "1", "0", "12", "83")
    assert (await town.balance("west"), credited(town)) == ("0", [("CN-1", "12", "0")])
    assert len(town.events("west", "credit_note_posted")) == 1


async def test_an_invoice_that_is_void_in_the_batch_of_its_close_is_owed_by_nobody(town: Debtors) -> None:
    await founded(town)
    town.pay("50")
    await town.settle()
    await town.close("TB-1", {"east": "96"}, settled=False)
    await credit(town, "CN-1", "TB-1", {"east": "90"}, settled=False)
    await credit(town, "CN-2", "TB-1", {"east": "6"}, voids=True)
    assert await standing(town) == ("void", "50", "0", "46", "0")
    assert (await town.owes("east"), await town.unapplied()) == ("0", "50")
    assert credited(town) == [("CN-1", "46", "44"), ("CN-2", "0", "50")]


async def test_what_a_note_before_a_close_keeps_pays_it_in_one_batch_too(town: Debtors) -> None:
    await founded(town)
    await town.close("TB-1", {"east": "96"})
    town.pay("96")
    await town.settle()
    await credit(town, "CN-1", "TB-1", {"east": "12"}, settled=False)
    await town.close("TB-2", {"east": "20"}, settled=False)
    await town.settle()
    assert (await town.owes("east"), await town.unapplied()) == ("8", "0")


@pytest.mark.parametrize("together", [True, False])
async def test_what_a_note_after_a_close_keeps_pays_it_however_the_log_is_cut(town: Debtors, together: bool) -> None:
    await founded(town)
    await town.close("TB-1", {"east": "96"})
    town.pay("96")
    await town.settle()
    await town.close("TB-2", {"east": "50"}, settled=False)
    if not together:
        await town.settle()
    await credit(town, "CN-1", "TB-1", {"east": "96"}, voids=True)
    assert (await town.owes("east"), await town.unapplied()) == ("0", "46")
    kinds = [(each["kind"], each["source"], each["invoice"]["number"]) for each in town.told()[-2:]]
    assert kinds == [("invoice_credited", "credit_note", "TB-1"), ("invoice_paid", "overpayment", "TB-2")]


# ---- overdue and write-offs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("voids", "state"), [(False, "paid"), (True, "void")])
async def test_a_note_that_leaves_nothing_overdue_lifts_the_suspension(town: Debtors, voids: bool, state: str) -> None:
    await founded(town, "east", "west")
    await town.close("TB-1", {"east": "96"}, due_on=await town.now())
    await town.settle(after=22 * DAY)
    assert await suspended(town) == {"east", "west"}
    await credit(town, "CN-1", "TB-1", {"east": "12"})
    assert (await suspended(town), (await standing(town)).state) == ({"east", "west"}, "overdue")
    await credit(town, "CN-2", "TB-1", {"east": "84"}, voids=voids)
    assert (await suspended(town), await standing(town)) == (set(), (state, "0", "0", "96", "0"))
    assert town.kinds("west") == ["suspended", "restored"]


async def test_nobody_is_suspended_while_what_a_note_kept_covers_what_is_open(town: Debtors) -> None:
    await founded(town)
    await town.close("TB-1", {"east": "96"}, due_on=await town.now())
    await town.close("TB-2", {"east": "50"}, due_on=await town.now())
    town.pay("96", invoice="TB-1")
    await town.settle()
    await credit(town, "CN-1", "TB-1", {"east": "96"}, voids=True)
    await town.settle(after=22 * DAY)
    assert (await suspended(town), await town.owes("east"), await town.unapplied()) == (set(), "0", "46")


async def test_a_proposed_write_off_is_forgotten_when_nothing_is_open(town: Debtors) -> None:
    await founded(town)
    for number in ("TB-1", "TB-2"):
        await town.close(number, {"east": "96"})
        town.order("propose_write_off", invoice=number, note="insolvent", actor="ann")
    await town.settle()
    await credit(town, "CN-1", "TB-1", {"east": "96"})
    await credit(town, "CN-2", "TB-2", {"east": "12"})
    for number in ("TB-1", "TB-2"):
        town.order("approve_write_off", invoice=number, actor="bob")
    await town.settle()
    assert [reason for reason, _ in refusals(town)] == ["not_open"]
    assert await standing(town, "TB-1") == ("paid", "0", "0", "96", "0")
    assert await standing(town, "TB-2") == ("written_off", "0", "84", "12", "0")
    rows = await town.rooms.query("balance", select(tables.receivable).where(tables.receivable.c.number == "TB-1"))
    assert (rows[0].write_off_proposed_by, rows[0].write_off_note) == (None, None)


# ---- what cannot be and crashes ------------------------------------------------------------------------------------


async def test_a_note_against_an_invoice_that_is_not_known_stops_the_lane(
    town: Debtors, caplog: pytest.LogCaptureFixture
) -> None:
    await founded(town)
    await credit(town, "CN-1", "TB-1", {"east": "12"}, wallets={"east": "1"}, settled=False)
    processor, source = of_balance(town, "invoices")
    await town.rooms.feed(processor, source)
    async with processor.engine.connect() as connection:
        (stopped,) = [each for each in await all_lanes(connection, processor.tables) if each.stopped]
    assert (stopped.topic, stopped.position) == ("invoices.events", 0)
    assert str(stopped.stopped).endswith("cannot be applied: Corrupt corrupt")
    assert "credit note CN-1 is against invoice TB-1, which is not known" in caplog.text
    assert (await town.balance("east"), await town.entries()) == ("0", [])


CREDIT_STEPS = (
    "balance.invoices.locked", "balance.invoices.checked", "balance.invoices.advanced", "balance.invoices.posted",
    "balance.invoices.effects", "balance.invoices.outbox", "balance.invoices.committed",
)  # fmt: skip


async def test_a_note_is_carried_out_once_wherever_its_worker_dies(town: Debtors, monkeypatch: Any) -> None:
    await founded(town)
    await town.member("prepaid", plan="payg")
    town.open("prepaid", "1")
    await town.close("TB-1", {"east": "96"})
    town.pay("50")
    await town.settle()
    for number, step in enumerate(CREDIT_STEPS, start=1):
        await credit(town, f"CN-{number}", "TB-1", {"east": "10"}, wallets={"prepaid": "1"}, tax="2", settled=False)
        with monkeypatch.context() as patched:
            crash_at(patched, step)
            with pytest.raises(Crash):
                await town.rooms.feed(*of_balance(town, "invoices"))
        await town.settle()
        freed = min(10 * number, 46)
        assert await standing(town) == (
            "paid" if freed == 46 else "partly_paid", "50", "0", str(freed), str(46 - freed),
        )  # fmt: skip
        assert await town.unapplied() == str(10 * number - freed)
        assert await town.balance("prepaid") == str(1 + number)
    assert len(credited(town)) == len(town.events("prepaid", "credit_note_posted")) == len(CREDIT_STEPS)


# ---- a model -------------------------------------------------------------------------------------------------------


@dataclass
class Owed:
    """An invoice, the obvious way: what of it is left to credit for each account, what each owes and what its wallet paid, and
    where the rest is, in cents."""

    number: str
    left: dict[str, int]
    owes: dict[str, int]
    from_wallets: dict[str, int] = field(default_factory=lambda: {"a": 0, "b": 0})
    paid: int = 0
    written_off: int = 0
    credited: int = 0

    @property
    def open(self) -> int:
        return sum(self.owes.values())

    def free(self, parts: Mapping[str, int]) -> None:
        self.owes = {each: owed - parts.get(each, 0) for each, owed in self.owes.items()}

    @property
    def state(self) -> str:
        if not any(self.left.values()):
            return "void"
        if self.open:
            return "partly_paid" if self.paid else "closed"
        return "written_off" if self.written_off else "paid"


@dataclass
class Model:
    """One group: invoices in the order in which they are due, and what it has to its credit."""

    invoices: list[Owed] = field(default_factory=list)
    wallets: dict[str, int] = field(default_factory=lambda: {"a": 0, "b": 0})
    kept: int = 0

    def close(self, invoice: Owed) -> None:
        self.invoices.append(invoice)
        self.wallets_pay()
        self.kept = self._apply(self.kept)

    def pay(self, cents: int) -> None:
        self.kept += self._apply(cents)

    def wallets_pay(self) -> None:
        for invoice in self.invoices:
            for each, wallet in self.wallets.items():
                part = min(wallet, invoice.owes[each])
                invoice.free({each: part})
                invoice.paid += part
                invoice.from_wallets[each] += part
                self.wallets[each] -= part

    def _apply(self, cents: int) -> int:
        for invoice in self.invoices:
            if part := min(cents, invoice.open):
                invoice.free(spread(part, invoice.owes, 1))
                invoice.paid += part
                cents -= part
        return cents

    def credit(self, invoice: Owed, parts: Mapping[str, int]) -> None:
        invoice.left = {each: left - parts[each] for each, left in invoice.left.items()}
        own = {each: min(cents, invoice.owes[each]) for each, cents in parts.items()}
        invoice.free(own)
        back = {each: min(cents - own[each], invoice.from_wallets[each]) for each, cents in parts.items()}
        rest = sum(parts.values()) - sum(own.values()) - sum(back.values())
        others = min(rest, invoice.open)
        if others:
            invoice.free(spread(others, invoice.owes, 1))
        rest -= others
        paid = rest + sum(back.values())
        regained = min(paid, invoice.written_off)
        paid -= regained
        if paid < sum(back.values()):
            back = {"a": 0, "b": 0} | (spread(paid, back, 1) if paid else {})
        invoice.written_off -= regained
        invoice.credited += sum(own.values()) + others + regained
        for each, cents in back.items():
            invoice.from_wallets[each] -= cents
            self.wallets[each] += cents
        self.kept += self._apply(paid - sum(back.values()))
        self.wallets_pay()


CENTS = st.integers(0, 3_000)
SOME = st.integers(0, 9)  # which invoice, if there are so many
STEP = st.one_of(
    st.tuples(st.just("close"), CENTS, CENTS),
    st.tuples(st.just("pay"), st.integers(1, 3_000)),
    st.tuples(st.just("credit"), SOME, CENTS, CENTS),
    st.tuples(st.just("credit"), SOME, CENTS, st.just(0)),
    st.tuples(st.just("top_up"), st.sampled_from("ab"), st.integers(1, 3_000)),
    st.tuples(st.just("void"), SOME),
    st.tuples(st.just("write_off"), SOME),
)


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(STEP, min_size=5, max_size=12))
async def test_whatever_is_credited_is_what_the_model_says(servers: TestedServers, steps: list[Any]) -> None:
    async with servers.fresh_database() as database:
        town = Debtors(database)
        async with town:
            await founded(town, "a", "b")
            await compare(town, await live(town, [("close", 5_000, 1_000), *steps]))
            await town.assert_conserved()


async def live(town: Debtors, steps: list[Any]) -> Model:
    """Carries the steps out on both; the first of them is a close."""
    model = Model()
    for number, (kind, *values) in enumerate(steps):
        if kind == "close":
            left = {each: cents + 1 for each, cents in zip("ab", values, strict=True)}
            model.close(Owed(f"TB-{number}", left, dict(left)))
            amounts = {each: format_nano(cents * CENT) for each, cents in left.items()}
            await town.close(f"TB-{number}", amounts, settled=False)
            await town.settle()
            continue
        if kind == "top_up":
            account_id, cents = values
            model.wallets[account_id] += cents
            model.wallets_pay()
            goodwill = {"role": "operator", "amount": format_nano(cents * CENT), "currency": "USD"}
            town.command("grant_goodwill", account_id, **goodwill)
            await town.settle()
            continue
        if kind == "pay":
            model.pay(values[0])
            town.pay(format_nano(values[0] * CENT))
            await town.settle()
            continue
        invoice = model.invoices[values[0] % len(model.invoices)]
        if kind == "write_off" and invoice.open:
            invoice.written_off += invoice.open
            invoice.free(invoice.owes)
            town.order("propose_write_off", invoice=invoice.number, note="insolvent", actor="ann")
            town.order("approve_write_off", invoice=invoice.number, actor="bob")
        elif kind in ("credit", "void") and invoice.state != "void":
            asked = dict(zip("ab", values[1:], strict=True)) if kind == "credit" else invoice.left
            parts = {each: min(asked[each], invoice.left[each]) for each in "ab"}
            if not any(parts.values()):
                continue
            model.credit(invoice, parts)
            owed = {each: format_nano(count * CENT) for each, count in parts.items()}
            await credit(town, f"CN-{number}", invoice.number, owed, voids=invoice.state == "void", settled=False)
        await town.settle()
    return model


async def compare(town: Debtors, model: Model) -> None:
    for each in model.invoices:
        seen = await town.invoice(each.number)
        amounts = {"paid": each.paid, "written_off": each.written_off, "open": each.open}
        want = {"state": each.state} | {name: format_nano(cents * CENT) for name, cents in amounts.items()}
        assert {name: seen[name] for name in want} == want, each.number
    assert nanos(await town.unapplied()) == model.kept * CENT
    for account_id, cents in model.wallets.items():
        assert nanos(await town.balance(account_id)) == cents * CENT
        assert nanos(await town.owes(account_id)) == sum(each.owes[account_id] for each in model.invoices) * CENT
    engine = town.rooms.processors["balance"].engine
    assert (await api.broken_seals(engine)).problems == []
    for total in (await receivables_api.audit(engine)).invoices:
        assert total.applied_by_credit_notes_nano == total.credited_nano
        assert total.applied_as_written_off_nano == total.written_off_nano
