"""`tollbook account payments` and its neighbours, `tollbook payout`: what is shown, posted once, and refused with the field."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from services.balance import api
from services.cli import paying
from tests.cli.conftest import Tollbook
from tests.support.balance_factory import Town
from tests.support.servers import Database


@pytest.fixture
async def town(database: Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Town]:
    for name, value in database.environment().items():
        monkeypatch.setenv(name, value)
    async with Town(database) as made:
        await made.account("desk", level_2=True)
        yield made
        await made.assert_conserved()


async def test_payments_are_shown_with_their_states_and_results_and_pay_outs_are_posted_once(
    tollbook: Tollbook, town: Town, tmp_path: Path
) -> None:
    town.pay("desk", "100", "tok_ok")
    await town.settle()
    (attempt,) = await town.attempts("desk")
    town.command("refund_payment", "desk", role="finance", attempt_id=str(attempt.attempt_id), amount="30")
    await town.settle()
    (shown,) = (await tollbook("account", "payments", "desk", "--output", "json")).json
    assert (shown["payment"]["kind"], shown["payment"]["state"], shown["payment"]["amount"]) == (
        "manual",
        "settled",
        "100",
    )
    assert (shown["moved"], [each["result"] for each in shown["results"]]) == ("70", ["settled", "refunded"])
    assert "settled, refunded" in (await tollbook("account", "payments", "desk")).out

    assert (await tollbook("payout", "record", "sandbox", "po_1", "50.00", "--actor", "fin")).code == 0
    file = tmp_path / "payouts.csv"
    file.write_text("processor,payout_id,amount,currency\nsandbox,po_1,50.00,USD\nsandbox,po_2,-5,USD\n")
    for known in (1, 2):
        ran = await tollbook("payout", "import", str(file), "--output", "json")
        assert ran.json == {"posted": 2 - known, "known": known}
    listed = (await tollbook("payout", "list", "--output", "json")).json
    assert sorted((each["payout_id"], each["amount"]) for each in listed) == [("po_1", "50"), ("po_2", "-5")]
    file.write_text("processor,payout_id,currency,amount\nsandbox,po_3,USD,5\nsandbox,po_4,USD,1,234.50\n")
    cut = await tollbook("payout", "import", str(file))
    sentence = "file: line 3 has 5 fields, the header 4; quote a field that holds a comma\n"
    assert (cut.code, cut.err) == (2, sentence)
    for text, sentence in (
        ("sandbox,po_3,USD\n", 'amount: line 2: must be a decimal string of ASCII digits such as "10.00"'),
        (f"sandbox,{'x' * 200_000},USD,5\n", "file: is not CSV: field larger than field limit"),
        ("sandbox,po_3,USD,5.005\n", "amount: must have at most 2 decimals in USD"),
    ):
        file.write_text(f"processor,payout_id,currency,amount\n{text}")
        wrong = await tollbook("payout", "import", str(file))
        assert (wrong.code, wrong.err.startswith(sentence)) == (2, True), wrong.err
    engine = town.rooms.processors["balance"].engine
    totals = await api.ledger_totals(engine)
    assert (totals["USD", "bank"], totals["USD", "clearing"]) == (-45 * 10**9, (-70 + 45) * 10**9)

    other = await tollbook("payout", "record", "sandbox", "po_1", "51.00")
    said = " ".join((other.out + other.err).split())
    assert other.code == 1
    assert "was posted with 50 USD; what came back of it has an id of its own" in said


async def test_payments_in_trouble_are_found_over_all_accounts(
    tollbook: Tollbook, town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def found(*asked: str) -> list[tuple[str, str]]:
        told = (await tollbook("account", "payments", *asked, "--output", "json")).json
        return [(each["payment"]["account_id"], each["payment"]["state"]) for each in told]

    for account_id, token in (("desk", "tok_ok"), ("east", "tok_silent"), ("west", "tok_silent"), ("west", "tok_ok")):
        if account_id != "desk":
            await town.account(account_id, level_2=True)
        town.pay(account_id, "20", token)
        await town.settle()
        if account_id == "east":
            for _ in range(2):  # when it is known to be unknown, there is time to hear of it still
                await town.settle(after=timedelta(hours=25))
    await town.settle(after=timedelta(minutes=16))
    assert await found("--state", "unknown,abandoned") == [("west", "unknown"), ("east", "abandoned")]
    assert await found("--state", "abandoned") == [("east", "abandoned")]
    assert await found("west", "--state", "unknown, abandoned") == [("west", "unknown")]
    assert await found("desk", "--state", "unknown") == []
    everything = [("west", "settled"), ("west", "unknown"), ("east", "abandoned"), ("desk", "settled")]
    assert await found() == everything
    table = (await tollbook("account", "payments", "--state", "unknown")).out
    assert [line.split()[0] for line in table.strip().split("\n")] == ["account", "west"]
    assert (await tollbook("account", "payments", "--state", "declined")).out == "no payment is declined\n"

    monkeypatch.setattr(paying, "PAYMENTS_MAX", 3)
    cut = await tollbook("account", "payments", "--output", "json")
    assert [(each["payment"]["account_id"], each["payment"]["state"]) for each in cut.json] == everything[:3]
    assert cut.err == "these are the newest 3; name an account or states to see others\n"

    wrong = await tollbook("account", "payments", "--state", "unknown,lost")
    sentence = (
        "state: must be one or more of requested, unknown, settled, declined, cancelled, abandoned, with commas\n"
    )
    assert (wrong.code, wrong.err) == (2, sentence)
    async with town.database.connected("balance") as connection:
        await connection.execute("set enable_seqscan = off")
        asked = "select attempt_id from balance.attempt where state = 'unknown' order by requested_at desc limit 9"
        assert "attempt_by_state" in str(await connection.fetch(f"explain {asked}"))


async def test_a_pay_out_clears_the_transfers_of_a_bank_and_no_name_that_is_unknown(
    tollbook: Tollbook, town: Town, tmp_path: Path
) -> None:
    early = await tollbook("payout", "record", "bank", "po_1", "100")
    assert (early.code, early.err) == (2, "processor: nothing was paid through 'bank'; use one of sandbox, stripe\n")
    for reference, bank in (("R1", "bank"), ("R2", "savings"), ("R3", "bank")):
        town.command(
            "record_transfer", "desk", role="finance", amount="50", currency="USD", reference=reference, bank=bank
        )
    await town.settle()
    file = tmp_path / "payouts.csv"
    file.write_text("processor,payout_id,amount,currency\nbank,po_1,100,USD\nbnak,po_2,50,USD\n")
    wrong = await tollbook("payout", "import", str(file))
    sentence = "processor: nothing was paid through 'bnak'; use one of sandbox, stripe, bank, savings\n"
    assert (wrong.code, wrong.err) == (2, sentence)
    assert (await tollbook("payout", "list", "--output", "json")).json == []

    assert (await tollbook("payout", "record", "bank", "po_1", "100")).code == 0
    told = (await tollbook("ledger", "totals", "--output", "json")).json
    assert {each["ledger"]: each["balance"] for each in told["totals"]} == {
        "bank": "-100", "clearing:bank": "0", "clearing:savings": "-50", "wallet": "150",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("account", "schedule", "desk", "20", "--day", "31"), "day: must be a day of every month"),
        (("account", "schedule", "desk"), "amount: give an amount and a day, or --off"),
        (("account", "refund", "desk", "p1"), "payment: must be the id of a payment"),
        (("account", "pay", "desk", "1_000"), "amount: must be a decimal string"),
        (("account", "pay", "desk", "20", "--kind", "gold"), "method_kind"),
        (("payout", "record", "sandbox", "po", "ten"), "amount: must be a decimal string"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
async def test_a_wrong_command_line_names_the_field(tollbook: Tollbook, arguments: tuple[str, ...], says: str) -> None:
    ran = await tollbook(*arguments)
    assert ran.code in (1, 2)
    assert says in ran.out + ran.err
    assert "Traceback" not in ran.out + ran.err
