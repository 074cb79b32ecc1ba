"""What payer groups owe: closes, payments, overdue invoices and write-offs, on a real database."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from services.balance import api, receivables_api, registry, tables
from services.balance.overdue import begins
from services.kernel.cards import looks_like_card_number
from services.kernel.ids import derived_id
from services.kernel.money import format_nano
from services.kernel.period import instant_text
from services.runtime import faults
from services.runtime.processor import Processor
from services.runtime.room import Input
from tests.support.callers import Callers, asking
from tests.support.receivables_factory import Debtors, nanos
from tests.support.servers import Database

DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)


@pytest.fixture
async def town(database: Database) -> AsyncIterator[Debtors]:
    async with Debtors(database) as made:
        yield made
        await made.assert_conserved()


async def founded(town: Debtors, *accounts: str) -> None:
    for account_id in accounts or ("east",):
        await town.member(account_id)
    await town.settle()


async def available(town: Debtors, account_id: str) -> str:
    return (await api.balance(town.rooms.processors["balance"].engine, account_id)).available


async def suspended(town: Debtors) -> set[str]:
    return set(await api.suspended_accounts(town.rooms.processors["balance"].engine))


def refusals(town: Debtors) -> list[tuple[str, str | None]]:
    return [(each["reason"], each["field"]) for each in town.told("northwind", "command_refused")]


# ---- payments ------------------------------------------------------------------------------------------------------


async def test_80_004_with_tax_is_96_and_a_transfer_of_it_frees_the_limit(town: Debtors) -> None:
    await founded(town)
    town.charge("east", "80.004", plan="invoiced", group_id="northwind")
    await town.settle()
    town.send(
        "invoices.events",
        "northwind",
        {
            "kind": "closed", "invoice_id": "6f0a3c52-7f0e-8d0b-9a55-2b6c3a1f4e77", "number": "TB-1",
            "group_id": "northwind", "organization_id": "northwind", "period": "2026-10",
            "boundary": "2026-11-01T00:00:00Z", "issued_on": "2026-11-03T00:00:00Z",
            "due_on": instant_text(await town.now() + 14 * DAY), "currency": "USD", "net": "80.00", "tax": "16.00",
            "total": "96.00", "paid_from_balance": "0.00", "due": "96.00", "charges": 1, "document": "", "sha256": "",
            "postings": [{"account_id": "east", "unbilled": "80.004", "receivable": "-96"}],
            "posting_rounding": "-0.004", "posting_tax": "16",
        },
    )  # fmt: skip
    await town.settle()
    assert (await town.owes("east"), await available(town, "east")) == ("96", "904")
    command_id = town.pay("96", reference="R1", invoice="TB-1")
    await town.settle()
    assert await town.invoice("TB-1") == {"state": "paid", "paid": "96", "written_off": "0", "open": "0"}
    assert await available(town, "east") == "1000"
    paid, recorded = town.told()
    assert (paid["kind"], paid["amount"], paid["source"], paid["reference"]) == ("invoice_paid", "96", "transfer", "R1")
    assert (recorded["kind"], recorded["command_id"], recorded["unapplied"]) == ("payment_recorded", command_id, "0")
    assert ("receivable:northwind", "96") in await town.entries("east")
    assert ("clearing:bank", "-96") in await town.entries()


async def test_what_is_paid_too_much_is_kept_and_pays_the_next_invoice(town: Debtors) -> None:
    await founded(town)
    await town.close("TB-1", {"east": "96"})
    town.pay("100")
    await town.settle()
    assert await town.unapplied() == "4"
    assert ("unapplied:northwind", "4") in await town.entries()
    await town.close("TB-2", {"east": "10"})
    await town.settle()
    assert await town.unapplied() == "0"
    assert await town.invoice("TB-2") == {
        "state": "partly_paid", "paid": "4", "written_off": "0", "open": "6", "east": "6",
    }  # fmt: skip
    used = town.told()[-1]
    assert (used["kind"], used["source"], used["amount"], used["unapplied"]) == (
        "invoice_paid",
        "overpayment",
        "4",
        "0",
    )


async def test_northwinds_0_72_is_shared_by_cents_and_paid_in_two_halves(town: Debtors) -> None:
    await founded(town, "east", "west", "offshore")
    await town.close("TB-1", {"east": "0.44", "west": "0.15", "offshore": "0.13"})
    town.pay("0.36", invoice="TB-1")
    await town.settle()
    assert await town.invoice("TB-1") == {
        "state": "partly_paid", "paid": "0.36", "written_off": "0", "open": "0.36",
        "east": "0.22", "offshore": "0.06", "west": "0.08",
    }  # fmt: skip
    assert await town.owes("west") == "0.08"
    town.pay("0.36")
    await town.settle()
    assert (await town.invoice("TB-1"))["state"] == "paid"
    assert [await town.owes(each) for each in ("east", "west", "offshore")] == ["0", "0", "0"]


async def test_what_is_due_first_is_paid_first_unless_the_payment_names_another(town: Debtors) -> None:
    await founded(town)
    now = await town.now()
    await town.close("TB-2", {"east": "50"}, due_on=now + 20 * DAY)
    await town.close("TB-1", {"east": "96"}, due_on=now + 10 * DAY)
    town.pay("100")
    await town.settle()
    assert ((await town.invoice("TB-1"))["state"], (await town.invoice("TB-2"))["open"]) == ("paid", "46")
    second = await town.close("TB-3", {"east": "10"}, due_on=now + 30 * DAY)
    town.pay("4", invoice=str(second))
    await town.settle()
    assert ((await town.invoice("TB-3"))["open"], (await town.invoice("TB-2"))["open"]) == ("6", "46")
    town.pay("10", invoice="TB-3")  # names it, so the rest goes to no other
    await town.settle()
    assert ((await town.invoice("TB-3"))["open"], (await town.invoice("TB-2"))["open"]) == ("0", "46")
    assert await town.unapplied() == "4"


async def test_one_reference_of_a_bank_is_one_payment(town: Debtors) -> None:
    await founded(town)
    await town.member("other", "southwind")
    await town.close("TB-1", {"east": "96"})
    for amount in ("20", "20", "19"):  # the first of a batch is recorded
        town.pay(amount, reference="R1")
    await town.settle()
    assert refusals(town) == [("reference_used", "reference")]
    town.pay("20", reference="R1")
    town.pay("21", reference="R1")
    town.pay("20", reference="R1", group_id="southwind")
    town.pay("20", reference="R1", bank="second-bank")
    await town.settle()
    assert (await town.invoice("TB-1"))["paid"] == "40"
    assert len(town.told("northwind", "payment_recorded")) == 2
    assert len(town.told("northwind", "payment_known")) == 2
    assert refusals(town) == [("reference_used", "reference")] * 2
    assert [each["reason"] for each in town.told("southwind", "command_refused")] == ["reference_used"]


async def test_the_same_command_id_is_carried_out_once(town: Debtors) -> None:
    await founded(town)
    await town.close("TB-1", {"east": "96"})
    for _ in range(2):
        town.pay("20", reference="R1", command_id="p1")
    town.pay("30", reference="R2", command_id="p1")
    await town.settle()
    assert (await town.invoice("TB-1"))["paid"] == "20"
    assert refusals(town) == [("idempotency_conflict", "command_id")]
    town.pay("30", reference="R2")  # the refused one recorded nothing
    await town.settle()
    assert (await town.invoice("TB-1"))["paid"] == "50"


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ({"role": "owner"}, ("not_permitted", "role")),
        ({"role": "operator"}, ("not_permitted", "role")),
        ({"amount": "0"}, ("invalid_amount", "amount")),
        ({"amount": "0.001"}, ("invalid_amount", "amount")),
        ({"amount": "10000000.01"}, ("invalid_amount", "amount")),
    ],
)
async def test_a_payment_that_cannot_be_is_refused_with_its_field(
    town: Debtors, fields: dict[str, Any], refusal: tuple[str, str]
) -> None:
    await founded(town)
    town.pay(fields.pop("amount", "1"), **fields)
    await town.settle()
    assert refusals(town) == [refusal]
    assert await town.rooms.query("balance", select(tables.group_payment)) == []


async def test_what_cannot_be_read_is_quarantined_and_holds_no_card_number(town: Debtors) -> None:
    await founded(town)
    town.pay("1", currency="XYZ")
    town.pay("1", note="paid with 4111 1111 1111 1111")
    town.order("record_payment", amount=1)
    town.order("record_gift")
    await town.settle()
    reasons = [reason for reason, _ in await town.quarantined()]
    assert reasons == ["unknown_currency", "card_number", "invalid_command", "invalid_command"]
    parked = town.rooms.processors["balance"].tables.parked
    rows = await town.rooms.query("balance", select(parked.c.value))
    assert not any(b"4111" in row.value for row in rows)


async def test_a_payment_may_name_an_invoice_whose_id_looks_like_a_card_number(town: Debtors) -> None:
    """One in three hundred does; a reference that does is refused, as anybody may have written it."""
    await founded(town)
    names = (f"TB-{number}" for number in itertools.count())
    number = next(name for name in names if looks_like_card_number(str(derived_id("test invoice", name))))
    invoice_id = await town.close(number, {"east": "96"})
    town.pay("96", invoice=str(invoice_id))
    town.pay("1", reference=str(invoice_id))
    await town.settle()
    assert (await town.invoice(number))["state"] == "paid"
    assert await town.quarantined() == [("card_number", "reference")]


async def test_a_payment_waits_for_its_group_and_its_invoice(town: Debtors) -> None:
    town.pay("5", group_id="northwind", reference="early")
    town.pay("96", invoice="TB-1", reference="named")
    await town.settle()
    assert town.told() == []
    await town.settle(after=timedelta(seconds=61))
    assert sorted(await town.quarantined()) == [("unknown_group", "group_id"), ("unknown_group", "group_id")]
    await founded(town)
    assert await town.unapplied() == "5"
    assert await town.quarantined() == [("unknown_group", "group_id")]  # as it was shown; now it waits for the invoice
    await town.close("TB-1", {"east": "96"})
    await town.settle()
    assert await town.quarantined() == []
    assert (await town.invoice("TB-1"))["state"] == "paid"
    assert await town.unapplied() == "5"  # 5 was used by the close, so that 5 of the 96 are left


async def test_two_workers_with_payments_of_one_invoice_pay_it_once(town: Debtors) -> None:
    """Written with other keys they are in two partitions, which two workers read."""
    await founded(town, "east", "west")
    await town.close("TB-1", {"east": "60", "west": "36"})
    for number in range(8):
        value = {
            "command_id": f"w{number}", "actor": "fin", "role": "finance", "group_id": "northwind",
            "kind": "record_payment", "amount": "20", "currency": "USD", "reference": f"R{number // 2}",
        }  # fmt: skip
        town.log.write("balance.group_commands", value=value, partition=number % 2)
    processor = town.rooms.processors["balance"]
    source = processor.room.input("group_commands")
    await asyncio.gather(*(town.rooms.feed(processor, source, partition=each) for each in (0, 1)))
    await town.settle()
    assert (await town.invoice("TB-1"))["paid"] == "80"  # each reference came once to each worker
    assert len(town.told("northwind", "payment_recorded")) == len(town.told("northwind", "payment_known")) == 4
    assert [await town.owes(each) for each in ("east", "west")] == ["10", "6"]


async def test_a_close_and_payments_at_once_never_lock_each_other_out(town: Debtors) -> None:
    accounts = [f"a{number}" for number in range(6)]
    await founded(town, *accounts)
    for number in range(3):
        await town.close(f"TB-{number}", dict.fromkeys(accounts, "10"))
    for number in range(6):
        await town.close(f"TB-1{number}", dict.fromkeys(accounts, "1"), settled=False)
        town.pay("25")
    processor = town.rooms.processors["balance"]
    sources = [processor.room.input(name) for name in ("group_commands", "invoices", "charges")]
    await asyncio.gather(*(town.rooms.feed(processor, source) for source in sources))
    await town.settle()
    paid = [each for each in town.told("northwind", "invoice_paid") if each["source"] == "transfer"]
    assert sum(nanos(each["amount"]) for each in paid) == nanos("150")


async def test_an_invoice_below_zero_is_to_the_groups_credit(town: Debtors) -> None:
    await founded(town, "east", "west")
    await town.close("TB-1", {"east": "-10", "west": "4"})
    await town.settle()
    assert await town.invoice("TB-1") == {"state": "paid", "paid": "-6", "written_off": "0", "open": "0"}
    assert (await town.unapplied(), await town.owes("east"), await town.owes("west")) == ("6", "0", "0")
    await town.close("TB-2", {"east": "10", "west": "-4"})
    await town.settle()
    assert (await town.invoice("TB-2"))["state"] == "paid"
    assert await town.unapplied() == "0"


# ---- by card -------------------------------------------------------------------------------------------------------


async def with_card(town: Debtors, token: str = "tok_ok") -> None:
    await founded(town, "east", "west")
    await town.close("TB-1", {"east": "60", "west": "36"})
    town.method("east", token)
    await town.settle()


async def test_an_invoice_of_96_is_paid_by_card(town: Debtors) -> None:
    await with_card(town)
    command_id = town.order("pay_by_card", account_id="east", currency="USD", role="owner")
    await town.settle()
    assert (await town.invoice("TB-1"))["state"] == "paid"
    assert (await town.balance("east"), await town.owes("west")) == ("0", "0")
    assert ("clearing:sandbox", "-96") in await town.entries()
    (attempt,) = await town.attempts("east")
    requested, paid, recorded = town.told()
    assert (requested["kind"], requested["command_id"]) == ("card_payment_requested", command_id)
    assert (paid["source"], paid["amount"]) == ("card", "96")
    assert requested["payment_id"] == recorded["payment_id"] == str(attempt.attempt_id)
    assert town.kinds("east")[-2:] == ["payment_requested", "payment_settled"]


async def test_a_declined_card_pays_nothing_and_another_try_has_a_key_of_its_own(town: Debtors) -> None:
    await with_card(town, "tok_declined")
    for _ in range(2):
        town.order("pay_by_card", account_id="east", currency="USD", invoice="TB-1")
        await town.settle()
    assert (await town.invoice("TB-1"))["open"] == "96"
    first, second = await town.attempts("east")
    assert (first.state, second.state, first.attempt_id != second.attempt_id) == ("declined", "declined", True)
    assert (await town.wallet("east")).decline_streak == 0  # no recharge was declined


async def test_one_card_payment_of_a_group_is_on_its_way_and_no_limit_of_a_day_holds_it(town: Debtors) -> None:
    await with_card(town, "tok_silent")
    await town.close("TB-2", {"east": "500"})
    town.order("pay_by_card", account_id="east", currency="USD", amount="596")
    town.order("pay_by_card", account_id="east", currency="USD", amount="1")
    await town.settle()
    town.order("pay_by_card", account_id="east", currency="USD", amount="1")
    await town.settle()
    assert [attempt.amount_nano for attempt in await town.attempts("east")] == [596 * 10**9]
    assert [reason for reason, _ in refusals(town)] == ["in_flight", "in_flight"]


async def test_a_card_payment_is_on_its_way_until_it_has_paid_the_invoices(town: Debtors) -> None:
    await with_card(town)
    town.order("pay_by_card", account_id="east", currency="USD")
    await town.rooms.pump()  # it is settled into the wallet, and no timer has run
    town.order("pay_by_card", account_id="east", currency="USD")
    await town.settle()
    assert [reason for reason, _ in refusals(town)] == ["in_flight"]
    assert ((await town.invoice("TB-1"))["open"], await town.unapplied()) == ("0", "0")
    await town.close("TB-2", {"east": "5"})
    town.order("pay_by_card", account_id="east", currency="USD")
    await town.settle()
    assert [attempt.amount_nano for attempt in await town.attempts("east")] == [96 * 10**9, 5 * 10**9]


async def test_a_card_payment_that_cannot_be_is_refused(town: Debtors) -> None:
    await founded(town, "east")
    await town.member("elsewhere", "southwind")
    town.order("pay_by_card", account_id="elsewhere", currency="USD")
    town.order("pay_by_card", account_id="east", currency="USD")
    await town.settle()
    town.method("east", "tok_ok")
    await town.settle()
    town.order("pay_by_card", account_id="east", currency="USD")
    await town.settle()
    assert [reason for reason, _ in refusals(town)] == ["not_of_this_group", "no_method", "nothing_open"]


@pytest.mark.parametrize("step", ["balance.card.applied", "balance.due.outbox", "balance.due.committed"])
async def test_a_settled_card_payment_pays_once_wherever_its_worker_dies(
    town: Debtors, monkeypatch: Any, step: str
) -> None:
    await with_card(town)
    town.order("pay_by_card", account_id="east", currency="USD", amount="100")
    await town.rooms.pump()
    assert await town.balance("east") == "100"
    with monkeypatch.context() as patched:
        crash_at(patched, step)
        with pytest.raises(Crash):
            await town.rooms.processors["balance"].fire_timers()
    await town.settle()
    assert ((await town.invoice("TB-1"))["state"], await town.unapplied(), await town.balance("east")) == (
        "paid",
        "4",
        "0",
    )


# ---- from the balance ----------------------------------------------------------------------------------------------


async def funded(town: Debtors, **wallets: str) -> None:
    """Invoiced accounts that kept what they had when they were prepaid."""
    await founded(town, *wallets)
    for account_id, amount in wallets.items():
        town.open(account_id, amount)
    await town.settle()


async def test_a_wallet_pays_its_share_at_the_close_before_what_the_group_paid_too_much(town: Debtors) -> None:
    await funded(town, east="50", west="7.005", offshore="-3")
    town.pay("30")
    await town.settle()
    await town.close("TB-1", {"east": "40", "west": "20", "offshore": "9"})
    assert await town.invoice("TB-1") == {"state": "paid", "paid": "69", "written_off": "0", "open": "0"}
    assert [await town.balance(each) for each in ("east", "west", "offshore")] == ["10", "0.005", "-3"]
    assert await town.unapplied() == "8"
    assert [
        (each["source"], each["amount"], each["invoice"]["owed_by"]) for each in town.told("northwind", "invoice_paid")
    ] == [("balance", "47", ["offshore", "west"]), ("overpayment", "22", [])]
    (used,) = town.events("west", "balance_used")
    assert (used["amount"], used["message"], used["wallet"]) == ("7", "invoice TB-1 of 2026-10", "0.005")
    assert town.events("offshore", "balance_used") == []


async def test_paying_from_the_balance_leaves_available_credit_as_it_is_and_stands_on_the_statement(
    town: Debtors,
) -> None:
    await funded(town, east="50")
    before = await available(town, "east")
    await town.close("TB-1", {"east": "40"})
    assert await available(town, "east") == format_nano(nanos(before) - nanos("40"))
    engine = town.rooms.processors["balance"].engine
    told = await api.statement(engine, "east", await town.now() - DAY)
    assert [(each.cause, each.wallet, each.receivable, each.balance) for each in told.movements[-2:]] == [
        ("closing of invoice TB-1", "0", "-40", "10"),
        ("invoice paid from balance TB-1", "-40", "40", "10"),
    ]
    assert town.kinds("east") == ["balance_opened", "invoice_posted", "balance_used"]


async def test_money_that_comes_later_pays_what_is_open_at_once_what_is_due_first_before_others(town: Debtors) -> None:
    await funded(town, east="1", west="0")
    now = await town.now()
    await town.close("TB-2", {"east": "50", "west": "5"}, due_on=now + 20 * DAY)
    await town.close("TB-1", {"east": "96"}, due_on=now + 10 * DAY)
    assert [(await town.invoice(each))["open"] for each in ("TB-1", "TB-2")] == ["96", "54"]
    town.command("grant_goodwill", "east", amount="100", currency="USD")
    await town.settle()
    assert [(await town.invoice(each))["open"] for each in ("TB-1", "TB-2")] == ["0", "50"]
    assert (await town.balance("east"), await town.owes("east"), await town.owes("west")) == ("0", "45", "5")


async def test_a_pay_as_you_go_wallet_pays_no_invoice_until_its_account_is_invoiced(town: Debtors) -> None:
    await town.member("east", plan="payg")
    town.open("east", "50")
    await town.settle()
    await town.close("TB-1", {"east": "40"})  # of a time when it was invoiced
    assert ((await town.invoice("TB-1"))["open"], await town.balance("east")) == ("40", "50")
    await town.member("east")
    await town.settle()
    assert ((await town.invoice("TB-1"))["state"], await town.balance("east")) == ("paid", "10")


async def test_who_pays_the_last_of_an_invoice_settles_what_was_taken_back_from_others(town: Debtors) -> None:
    await funded(town, east="50", west="0")
    await town.close("TB-1", {"east": "10", "west": "-4"})
    assert (await town.invoice("TB-1"))["state"] == "paid"
    assert (await town.balance("east"), await town.owes("east"), await town.owes("west")) == ("44", "0", "0")


async def test_a_wallet_that_can_pay_nothing_of_what_is_open_is_asked_once(town: Debtors) -> None:
    """Of the one cent that is open in all, the larger share owes it; the rooms come to rest all the same."""
    await funded(town, east="1", west="0", offshore="0")
    await town.close("TB-1", {"east": "0.05", "west": "5", "offshore": "-5.04"})
    assert ((await town.invoice("TB-1"))["open"], await town.balance("east")) == ("0.01", "1")
    due = town.rooms.processors["balance"].tables.due
    assert await town.rooms.query("balance", select(due).where(due.c.kind == "wallet_pays")) == []
    town.pay("0.01")
    await town.settle()
    assert (await town.owes("east"), await town.balance("east")) == ("0", "1")


async def test_what_a_card_brought_for_a_group_is_not_taken_for_another_invoice(town: Debtors) -> None:
    """It settled into the wallet and has yet to go on when the next invoice closes."""
    await with_card(town)
    town.order("pay_by_card", account_id="east", currency="USD", amount="96", invoice="TB-1")
    await town.rooms.pump()
    assert await town.balance("east") == "96"
    await town.close("TB-2", {"east": "50"}, settled=False)
    await town.rooms.pump()
    assert (await town.balance("east"), (await town.invoice("TB-2"))["open"]) == ("96", "50")
    await town.settle()
    assert [(await town.invoice(each))["open"] for each in ("TB-1", "TB-2")] == ["0", "50"]
    assert await town.balance("east") == "0"


async def test_what_a_card_brought_for_a_group_is_promised_to_no_call_and_restores_nobody(town: Debtors) -> None:
    await town.member("east", credit_limit="10")
    await founded(town, "west")
    town.method("east", "tok_ok")
    town.open("east", "-15")
    await town.settle()
    assert await suspended(town) == {"east"}
    await town.close("TB-1", {"west": "96"})
    town.order("pay_by_card", account_id="east", currency="USD", role="owner")
    await town.rooms.pump()
    assert (await town.balance("east"), await available(town, "east")) == ("81", "-5")  # it is yet to go on
    async with Callers(town, "east") as desk:
        assert (await desk.authorize("c1", asking("east"))).reason == "suspended"
    await town.settle()
    assert (await town.balance("east"), await available(town, "east")) == ("-15", "-5")
    assert (await town.invoice("TB-1"))["open"] == "0"
    assert town.kinds("east").count("suspended") == 1
    assert "restored" not in town.kinds("east")


@pytest.mark.parametrize(("back", "left"), [("-10", "30"), ("-50", "0")])
async def test_what_comes_back_of_an_old_prepaid_charge_pays_what_is_open(town: Debtors, back: str, left: str) -> None:
    """It comes by the charge path, where a wallet is looked at only when its state demands it."""
    await founded(town)
    town.open("east", "0")
    await town.settle()
    await town.close("TB-1", {"east": "40"})
    town.charge("east", back, plan="payg", group_id="northwind")
    await town.settle()
    assert await town.owes("east") == left
    assert await town.balance("east") == ("0" if left != "0" else "10")


async def test_what_a_close_brings_to_a_wallet_pays_what_it_owes_of_other_invoices(town: Debtors) -> None:
    """Of prepaid use alone, which gives tax back: no group owes anything by this close."""
    await founded(town)
    await town.close("TB-1", {"east": "40"})
    town.send(
        "invoices.events",
        "northwind",
        {
            "kind": "closed", "invoice_id": str(derived_id("test invoice", "TB-2")), "number": "TB-2",
            "group_id": "northwind", "organization_id": "northwind", "period": "2026-11",
            "boundary": "2026-12-01T00:00:00Z", "issued_on": "2026-12-03T00:00:00Z", "due_on": "2026-12-17T00:00:00Z",
            "currency": "USD", "net": "-5", "tax": "-1", "total": "-6", "paid_from_balance": "-6", "due": "0",
            "charges": 1, "document": "", "sha256": "", "zone": "UTC",
            "postings": [{"account_id": "east", "wallet": "1", "unbilled": "0", "receivable": "0"}],
            "posting_rounding": "0", "posting_tax": "-1",
        },
    )  # fmt: skip
    await town.settle()
    assert (await town.balance("east"), await town.owes("east")) == ("0", "39")


async def test_what_a_processor_settled_is_not_recorded_by_hand_as_well(town: Debtors) -> None:
    await founded(town, "east", "west")
    town.method("east", "tok_ok")
    await town.settle()
    await town.close("TB-1", {"west": "96"})
    town.order("pay_by_card", account_id="east", currency="USD", role="owner")
    await town.rooms.pump()
    (attempt,) = await town.attempts("east")
    town.pay("96", reference=str(attempt.attempt_id), bank="sandbox")
    town.command(
        "record_transfer", "east", amount="96", currency="USD", bank="sandbox", reference=str(attempt.attempt_id),
        role="finance",
    )  # fmt: skip
    await town.settle()
    assert refusals(town) == [("not_a_bank", "bank")]
    assert [(each["reason"], each["field"]) for each in town.events("east") if each["kind"] == "command_refused"] == [
        ("not_a_bank", "bank")
    ]
    assert ((await town.invoice("TB-1"))["open"], await town.unapplied()) == ("0", "0")


async def test_a_timeline_and_a_close_never_lock_each_other_out(town: Debtors) -> None:
    """Both hold the group before the wallet."""
    await founded(town)
    await town.member("east", credit_limit="500")
    async with town.database.connected() as closer, closer.transaction():
        await closer.execute("select 1 from balance.payer where group_id = 'northwind' for update")
        told = asyncio.create_task(town.rooms.feed(*of_balance(town, "registry")))
        await asyncio.sleep(0.5)  # it waits for the group
        await closer.execute("set local lock_timeout = '5s'")
        await closer.execute("select 1 from balance.wallet where account_id = 'east' for update")
    await told


async def test_what_a_dispute_withholds_pays_no_invoice(town: Debtors) -> None:
    await founded(town, "east")
    town.command("pay", "east", amount="100", token="tok_ok", processor="sandbox")
    await town.settle()
    (attempt,) = await town.attempts("east")
    town.result(attempt, "disputed", amount="70", dispute_id="d")
    await town.settle()
    await town.close("TB-1", {"east": "40"})
    assert (await town.balance("east"), (await town.invoice("TB-1"))["open"]) == ("0", "10")
    town.result(attempt, "dispute_won", amount="70", dispute_id="d")
    await town.settle()
    assert (await town.balance("east"), (await town.invoice("TB-1"))["open"]) == ("60", "0")


async def test_a_dispute_of_a_card_payment_debits_the_wallet_and_leaves_the_invoice_paid(town: Debtors) -> None:
    await with_card(town)
    town.order("pay_by_card", account_id="east", currency="USD")
    await town.settle()
    (attempt,) = await town.attempts("east")
    town.result(attempt, "disputed", dispute_id="d")
    await town.settle()
    assert ((await town.invoice("TB-1"))["state"], await town.balance("east")) == ("paid", "-96")
    assert await available(town, "east") == "904"
    (told,) = town.events("east", "disputed")
    assert (told["attempt_id"], told["amount"]) == (str(attempt.attempt_id), "96")
    assert (
        told["message"] == "it paid invoices of a payer group: they stay paid, and the wallet bears what is taken back"
    )
    engine = town.rooms.processors["balance"].engine
    said = await api.statement(engine, "east", await town.now() - DAY)
    assert [each.cause for each in said.movements if each.wallet != "0"] == [
        "payment for invoices by card (sandbox)",
        "payment of invoice by card by fin",
        "dispute of a payment (sandbox)",
    ]
    await town.close("TB-2", {"east": "10"})  # a wallet below zero pays nothing
    town.result(attempt, "dispute_won", dispute_id="d")
    await town.settle()
    assert (await town.balance("east"), (await town.invoice("TB-2"))["open"]) == ("0", "10")


async def test_a_recharge_in_flight_settles_into_the_wallet_of_who_is_invoiced_by_then(town: Debtors) -> None:
    await town.member("east", plan="payg")
    town.method("east", "tok_silent")
    town.prefer("east", "5", "20")
    town.open("east", "4")
    await town.settle()
    (attempt,) = await town.attempts("east")
    await town.member("east")
    await town.close("TB-1", {"east": "10"})
    assert (await town.balance("east"), (await town.invoice("TB-1"))["open"]) == ("0", "6")
    town.result(attempt)
    await town.settle()
    assert (await town.balance("east"), (await town.invoice("TB-1"))["state"]) == ("15", "paid")
    assert len(await town.attempts("east")) == 1  # no recharge of an invoiced account


def of_balance(town: Debtors, name: str) -> tuple[Processor, Input]:
    processor = town.rooms.processors["balance"]
    return processor, processor.room.input(name)


CLOSE_STEPS = (
    "balance.invoices.locked", "balance.invoices.checked", "balance.invoices.effects", "balance.invoices.outbox",
    "balance.invoices.advanced", "balance.invoices.committed",
)  # fmt: skip


async def test_a_close_pays_from_the_balance_once_wherever_its_worker_dies(town: Debtors, monkeypatch: Any) -> None:
    await funded(town, east="100")
    for number, step in enumerate(CLOSE_STEPS):
        await town.close(f"TB-{number}", {"east": "10"}, settled=False)
        await town.rooms.feed(*of_balance(town, "charges"))
        with monkeypatch.context() as patched:
            crash_at(patched, step)
            with pytest.raises(Crash):
                await town.rooms.feed(*of_balance(town, "invoices"))
        await town.settle()
        assert await town.balance("east") == str(90 - 10 * number)
    assert len(town.events("east", "balance_used")) == len(CLOSE_STEPS)


@pytest.mark.parametrize("step", ["balance.wallets.paid", "balance.due.outbox", "balance.due.committed"])
async def test_what_comes_later_pays_once_wherever_the_worker_dies(town: Debtors, monkeypatch: Any, step: str) -> None:
    await founded(town)
    await town.close("TB-1", {"east": "96"})
    town.command("grant_goodwill", "east", amount="100", currency="USD")
    await town.rooms.pump()
    assert await town.balance("east") == "100"
    with monkeypatch.context() as patched:
        crash_at(patched, step)
        with pytest.raises(Crash):
            await town.rooms.processors["balance"].fire_timers()
    await town.settle()
    assert (await town.balance("east"), (await town.invoice("TB-1"))["state"]) == ("4", "paid")
    assert len(town.events("east", "balance_used")) == 1


async def test_closes_charges_and_money_at_once_never_lock_each_other_out(town: Debtors) -> None:
    accounts = [f"a{number}" for number in range(6)]
    await funded(town, **dict.fromkeys(accounts, "15"))
    for number in range(6):
        await town.close(f"TB-{number}", dict.fromkeys(accounts, "4"), settled=False)
        town.command("grant_goodwill", accounts[number], amount="2", currency="USD")
        town.pay("3")
    await town.rooms.feed(*of_balance(town, "charges"))
    for account_id in accounts:
        town.charge(account_id, "1", plan="payg")
    sources = ("group_commands", "invoices", "charges", "commands")
    await asyncio.gather(*(town.rooms.feed(*of_balance(town, source)) for source in sources))
    await town.settle()
    owed = sum([nanos(await town.owes(each)) for each in accounts])
    kept = sum([nanos(await town.balance(each)) for each in accounts])
    assert owed - kept - nanos(await town.unapplied()) == nanos("144") - nanos("90") - nanos("12") + nanos("6") - nanos(
        "18"
    )
    assert not [each for each in accounts if nanos(await town.owes(each)) and nanos(await town.balance(each)) > 0]


async def test_an_account_suspended_for_want_of_funds_is_restored_by_its_credit_limit(town: Debtors) -> None:
    await town.member("east", plan="payg")
    town.open("east", "5")
    town.charge("east", "5", group_id="northwind")
    await town.settle()
    assert (await town.balance("east"), await suspended(town)) == ("0", {"east"})
    await town.member("east", credit_limit="100")
    await town.settle()
    assert (await suspended(town), town.kinds("east")[-1]) == (set(), "restored")


# ---- overdue -------------------------------------------------------------------------------------------------------


async def test_an_invoice_is_overdue_at_midnight_of_the_zone_and_told_of_on_its_days_once(town: Debtors) -> None:
    await town.member("east", zone="America/Detroit")
    await town.settle()
    now = await town.now()
    await town.close("TB-1", {"east": "96"}, due_on=now + 2 * DAY, zone="America/Detroit")
    (payer,) = await town.rooms.query("balance", select(tables.payer))
    assert payer.zone == "America/Detroit"
    for days, expected in (
        (0, ("invoice_overdue", 0)),
        (7, ("overdue_notice", 7)),
        (14, ("overdue_notice", 14)),
    ):
        at = begins(now + 2 * DAY, "America/Detroit", days)
        before = len(town.told())
        await town.to(at - 10 * MINUTE)  # the clock goes on while the rooms run
        assert len(town.told()) == before
        due = town.rooms.processors["balance"].tables.due
        (timer,) = await town.rooms.query("balance", select(due.c.due_at).where(due.c.kind == "overdue"))
        assert timer.due_at == at
        await town.to(at)
        await town.settle(after=timedelta(hours=1))
        assert [(each["kind"], each["days"]) for each in town.told()[before:]] == [expected]
    assert (await town.invoice("TB-1"))["state"] == "overdue"
    assert town.told()[0]["invoice"]["overdue_since"] == instant_text(begins(now + 2 * DAY, "America/Detroit"))


async def test_after_21_days_the_invoiced_accounts_of_the_group_are_suspended_until_nothing_is_overdue(
    town: Debtors,
) -> None:
    await founded(town, "east", "west")
    await town.member("prepaid", plan="payg")
    town.open("prepaid", "10")
    await town.member("elsewhere", "southwind")
    now = await town.now()
    await town.close("TB-1", {"east": "96"}, due_on=now)
    await town.close("TB-2", {"west": "10"}, due_on=now + 7 * DAY)
    await town.settle(after=22 * DAY)
    assert await suspended(town) == {"east", "west"}
    assert town.events("west", "suspended")[0]["reasons"] == ["overdue"]
    town.pay("95.99")
    await town.settle()
    assert await suspended(town) == {"east", "west"}
    town.pay("0.01")
    await town.settle()
    assert await suspended(town) == {"east", "west"}  # the second one is overdue too, if not so long
    town.pay("10")
    await town.settle()
    assert await suspended(town) == set()
    assert town.kinds("west")[-2:] == ["suspended", "restored"]
    assert town.kinds("prepaid") == ["balance_opened"]


async def test_money_in_the_wallet_restores_who_was_suspended_for_an_overdue_invoice(town: Debtors) -> None:
    await founded(town, "east", "west")
    await town.close("TB-1", {"east": "96"}, due_on=await town.now())
    await town.settle(after=22 * DAY)
    assert await suspended(town) == {"east", "west"}
    town.command("record_transfer", "east", role="finance", amount="96", currency="USD", reference="R1")
    await town.settle()
    assert (await suspended(town), (await town.invoice("TB-1"))["state"]) == (set(), "paid")


async def test_a_group_is_paid_before_the_last_instant_and_nothing_is_told(town: Debtors) -> None:
    await founded(town)
    await town.close("TB-1", {"east": "96"})
    town.pay("96")
    await town.settle(after=60 * DAY)
    assert town.told_kinds() == ["invoice_paid", "payment_recorded"]
    assert await suspended(town) == set()


async def test_what_was_leapt_over_is_not_told_any_more(town: Debtors) -> None:
    await founded(town)
    await town.close("TB-1", {"east": "96"}, due_on=await town.now() - 9 * DAY)
    await town.settle()
    assert [(each["kind"], each["days"]) for each in town.told()] == [("invoice_overdue", 7)]


async def test_an_account_is_suspended_for_the_group_that_pays_for_it_now(town: Debtors) -> None:
    await founded(town)
    now = await town.now()
    await town.member("comes", "southwind", moves=[(now + 30 * DAY, "northwind")])
    await town.member("leaves", "northwind", moves=[(now + 30 * DAY, "southwind")])
    await town.close("TB-1", {"east": "96"}, due_on=now)
    await town.settle(after=25 * DAY)
    assert await suspended(town) == {"east", "leaves"}
    await town.settle(after=5 * DAY)
    assert await suspended(town) == {"east", "comes"}
    await town.member("joins", "northwind")
    await town.member("comes", "northwind", plan="payg")
    await town.settle()
    assert await suspended(town) == {"east", "joins"}


async def test_an_account_that_leaves_while_its_group_begins_to_suspend_is_not_suspended(
    town: Debtors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it turns out that the group never paid for it."""
    await founded(town, "east", "leaves")
    await town.close("TB-1", {"east": "96"}, due_on=await town.now())
    await town.move(25 * DAY)
    await town.member("leaves", "southwind")
    judge, begun = registry._judge_overdue, []

    async def meanwhile(*args: Any) -> None:
        begun.append(asyncio.create_task(town.rooms.processors["balance"].fire_timers()))
        await asyncio.sleep(0.5)  # it waits for the group
        await judge(*args)

    monkeypatch.setattr(registry, "_judge_overdue", meanwhile)
    await town.rooms.feed(*of_balance(town, "registry"))
    monkeypatch.undo()
    await asyncio.gather(*begun)
    await town.settle()
    assert await suspended(town) == {"east"}


async def test_the_term_of_suspension_can_be_set_and_holds_at_once(town: Debtors) -> None:
    await founded(town)
    await town.close("TB-1", {"east": "96"}, due_on=await town.now())
    await town.settle(after=10 * DAY)
    assert await suspended(town) == set()
    engine = town.rooms.processors["balance"].engine
    assert await receivables_api.suspend_after_days(engine) == 21
    await receivables_api.set_suspend_after_days(engine, 9)
    await town.settle()
    assert await suspended(town) == {"east"}
    await receivables_api.set_suspend_after_days(engine, 90)
    await town.settle()
    assert await suspended(town) == {"east"}  # until no invoice is overdue


# ---- write-offs ----------------------------------------------------------------------------------------------------


async def test_what_is_open_is_written_off_by_a_second_person(town: Debtors) -> None:
    await founded(town)
    await town.close("TB-1", {"east": "96"}, due_on=await town.now())
    town.order("approve_write_off", invoice="TB-1")
    town.order("propose_write_off", invoice="TB-1", note="insolvent", role="operator")
    town.order("propose_write_off", invoice="TB-1", note="insolvent", actor="ann")
    await town.settle(after=22 * DAY)
    assert await suspended(town) == {"east"}
    town.order("approve_write_off", invoice="TB-1", actor="ann")
    town.pay("50")
    await town.settle()
    assert refusals(town) == [("not_proposed", "invoice"), ("not_permitted", "role"), ("second_person", "actor")]
    town.order("approve_write_off", invoice="TB-1", actor="bob")
    town.order("approve_write_off", invoice="TB-1", actor="bob")
    await town.settle()
    assert await town.invoice("TB-1") == {"state": "written_off", "paid": "50", "written_off": "46", "open": "0"}
    assert ("write_off", "-46") in await town.entries()
    assert refusals(town)[-1] == ("not_open", "invoice")
    assert await suspended(town) == set()


# ---- crashes -------------------------------------------------------------------------------------------------------

COMMAND_STEPS = (
    "balance.group_commands.locked", "balance.group_commands.checked", "balance.receivables.posted",
    "balance.group_commands.effects", "balance.group_commands.outbox", "balance.group_commands.advanced",
    "balance.group_commands.committed",
)  # fmt: skip


class Crash(asyncio.CancelledError):
    """A process that ends here: nothing of its own cleans up after it."""


def crash_at(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def stop(name: str) -> None:
        if name == step:
            raise Crash

    monkeypatch.setattr(faults, "step", stop)


async def test_a_payment_is_applied_once_wherever_its_worker_dies(town: Debtors, monkeypatch: Any) -> None:
    await founded(town)
    await town.close("TB-1", {"east": "96"})
    for number, step in enumerate(COMMAND_STEPS):
        town.pay("10", reference=f"R{number}")
        with monkeypatch.context() as patched:
            crash_at(patched, step)
            with pytest.raises(Crash):
                await town.rooms.pump()
        await town.settle()
        assert (await town.invoice("TB-1"))["paid"] == str(10 * (number + 1))
    assert len(town.told("northwind", "payment_recorded")) == len(COMMAND_STEPS)


@pytest.mark.parametrize("step", ["balance.overdue.judged", "balance.due.outbox", "balance.due.committed"])
async def test_an_invoice_is_overdue_once_wherever_its_worker_dies(town: Debtors, monkeypatch: Any, step: str) -> None:
    await founded(town)
    await town.close("TB-1", {"east": "96"}, due_on=await town.now())
    for days, kinds in ((8, ["invoice_overdue"]), (14, ["invoice_overdue", "overdue_notice"])):
        await town.move(days * DAY)
        with monkeypatch.context() as patched:
            crash_at(patched, step)
            with pytest.raises(Crash):
                await town.rooms.processors["balance"].fire_timers()
        await town.settle()
        assert town.told_kinds() == kinds
    assert town.kinds("east").count("suspended") == 1


# ---- a model -------------------------------------------------------------------------------------------------------


class Model:
    """Money of one group, the obvious way: a list of invoices and what was paid too much, in cents."""

    def __init__(self) -> None:
        self.invoices: list[list[Any]] = []  # [due on, number, open]
        self.kept = 0
        self.paid = 0

    def close(self, due_on: Any, number: str, cents: int) -> None:
        self.invoices.append([due_on, number, max(0, cents)])
        self.kept += max(0, -cents)
        self.kept = self._apply(self.kept, self.invoices)

    def pay(self, cents: int, number: str | None = None) -> None:
        self.paid += cents
        self.kept += self._apply(cents, [each for each in self.invoices if number in (None, each[1])])

    def _apply(self, cents: int, invoices: list[list[Any]]) -> int:
        for invoice in sorted(invoices):
            part = min(cents, invoice[2])
            invoice[2] -= part
            cents -= part
        return cents


@pytest.mark.parametrize("seed", [1, 2])
async def test_random_closes_and_payments_conserve_every_nano(town: Debtors, seed: int) -> None:
    chance = random.Random(seed)
    accounts = ["east", "offshore", "west"]
    await founded(town, *accounts)
    model, now, closed = Model(), await town.now(), 0
    for number in range(24):
        if chance.random() < 0.4:
            shares = {each: chance.randint(-300, 5_000) for each in accounts if chance.random() < 0.8} or {"east": 1}
            due_on = now + chance.randint(20, 40) * DAY
            amounts = {each: format_nano(cents * 10**7) for each, cents in shares.items()}
            await town.close(f"TB-{number}", amounts, due_on=due_on, settled=False)
            model.close(due_on, f"TB-{number}", sum(shares.values()))
            closed += sum(shares.values())
        else:
            cents = chance.randint(1, 4_000)
            named = chance.choice([None, *(each[1] for each in model.invoices)])
            town.pay(format_nano(cents * 10**7), **({"invoice": named} if named else {}))
            model.pay(cents, named)
        await town.rooms.pump()
    await town.settle()
    for _, name, cents in model.invoices:
        assert nanos((await town.invoice(name))["open"]) == cents * 10**7
    assert nanos(await town.unapplied()) == model.kept * 10**7
    owed = sum([nanos(await town.owes(each)) for each in accounts])
    assert owed - nanos(await town.unapplied()) == (closed - model.paid) * 10**7


@pytest.mark.parametrize("seed", [1, 2])
async def test_whatever_comes_wallets_pay_first_and_every_nano_is_somewhere(town: Debtors, seed: int) -> None:
    """Money that came in is in wallets or with the group, or it paid; nobody owes who has the money for it."""
    chance = random.Random(seed)
    accounts = ["east", "offshore", "west"]
    await founded(town, *accounts)
    came, closed = 0, 0
    for number in range(16):
        match chance.choice(["close", "close", "wallet", "transfer", "plan"]):
            case "close":
                cents = {each: chance.randint(-300, 5_000) for each in accounts if chance.random() < 0.8} or {"east": 1}
                shares = {each: format_nano(count * 10**7) for each, count in cents.items()}
                due_on = await town.now() + chance.randint(20, 40) * DAY
                await town.close(f"TB-{number}", shares, due_on=due_on, settled=False)
                closed += sum(cents.values()) * 10**7
            case "wallet":
                nano = chance.randint(1, 5_000 * 10**7)
                town.command("grant_goodwill", chance.choice(accounts), amount=format_nano(nano), currency="USD")
                came += nano
            case "transfer":
                nano = chance.randint(1, 4_000) * 10**7
                town.pay(format_nano(nano))
                came += nano
            case "plan":
                await town.member(chance.choice(accounts), plan=chance.choice(["payg", "invoiced", "invoiced"]))
        await (town.rooms.pump() if chance.random() < 0.5 else town.settle())
        wallets = await town.rooms.query("balance", select(tables.wallet))
        assert all(each.wallet_nano >= 0 for each in wallets)
        kept = sum(each.wallet_nano for each in wallets) + nanos(await town.unapplied())
        owed, unbilled = -sum(each.receivable_nano for each in wallets), -sum(each.unbilled_nano for each in wallets)
        assert kept - owed - unbilled == came - closed
    await town.settle()
    for each in await town.rooms.query("balance", select(tables.wallet)):
        assert each.plan == "payg" or each.receivable_nano >= 0 or each.wallet_nano < 10**7
    engine = town.rooms.processors["balance"].engine
    assert (await api.broken_seals(engine)).problems == []
    audit = await receivables_api.audit(engine)
    assert all(each.from_wallets_nano == each.applied_from_balance_nano for each in audit.invoices)
