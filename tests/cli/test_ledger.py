"""`tollbook ledger`: balances that sum to zero, both legs of a payment, the same entries as table, CSV and JSON."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from services.balance import api
from services.cli import ledger
from services.kernel.money import parse_amount
from services.kernel.period import instant_text
from tests.cli.conftest import Tollbook
from tests.support.balance_factory import Town
from tests.support.servers import Database


@pytest.fixture
async def town(database: Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Town]:
    """An opening balance; a day later a payment, charges of two accounts and goodwill."""
    for name, value in database.environment().items():
        monkeypatch.setenv(name, value)
    async with Town(database) as made:
        await made.account("desk", level_2=True)
        await made.account("east", plan="invoiced")
        made.open("desk", "25")
        await made.settle()
        await made.move(timedelta(days=1))
        made.pay("desk", "100", "tok_ok")
        made.charge("desk", "0.014")
        made.charge("desk", "0.02", product="sms")
        made.charge("east", "0.0280001", plan="invoiced")
        made.command("grant_goodwill", "desk", amount="0.5", currency="USD", note="sorry, again")
        await made.settle()
        yield made


async def day_after(town: Town) -> str:
    return instant_text(await town.now() - timedelta(hours=12))


async def test_totals_are_one_row_per_ledger_account_and_sum_to_zero(tollbook: Tollbook, town: Town) -> None:
    told = (await tollbook("ledger", "totals", "--output", "json")).json
    assert {each["ledger"]: each["balance"] for each in told["totals"]} == {
        "clearing:sandbox": "-100",
        "opening": "-25",
        "promotion": "-0.5",
        "revenue:sms": "0.02",
        "revenue:voice.outbound": "0.0420001",
        "unbilled": "-0.0280001",
        "wallet": "125.466",
    }
    assert told["sums"] == {"USD": "0"}
    rows = list(csv.DictReader(io.StringIO((await tollbook("ledger", "totals", "--output", "csv")).out)))
    assert rows == [*told["totals"], {"ledger": "sum", "currency": "USD", "balance": "0"}]
    table = (await tollbook("ledger", "totals")).out.split("\n")
    assert [line.split() for line in table[1:] if line] == [list(row.values()) for row in rows]

    before = (await tollbook("ledger", "totals", "--at", await day_after(town), "--output", "json")).json
    assert {each["ledger"]: each["balance"] for each in before["totals"]} == {"opening": "-25", "wallet": "25"}


async def test_a_ledger_that_does_not_sum_to_zero_is_exit_1(tollbook: Tollbook, town: Town) -> None:
    async with town.database.connected() as owner, owner.transaction():
        await owner.execute("alter table balance.entry disable trigger user")
        await owner.execute("update balance.entry set nano = nano + 1 where ledger = 'opening'")
        await owner.execute("alter table balance.entry enable trigger user")
    ran = await tollbook("ledger", "totals")
    assert (ran.code, ran.err) == (1, "the entries do not sum to zero; `tollbook verify` says which\n")
    assert ran.out.split("\n")[-2].split() == ["sum", "USD", "0.000000001"]


async def test_a_payment_shows_both_legs_and_every_transaction_sums_to_zero(tollbook: Tollbook, town: Town) -> None:
    told = (await tollbook("ledger", "entries", "--from", await day_after(town), "--output", "json")).json
    (attempt,) = await town.attempts("desk")
    assert [
        (each["ref"], each["ledger"], each["account_id"], each["amount"]) for each in told if each["kind"] == "payment"
    ] == [
        (str(attempt.attempt_id), "clearing:sandbox", "desk", "-100"),
        (str(attempt.attempt_id), "wallet", "desk", "100"),
    ]
    assert [each["at"] for each in told] == sorted(each["at"] for each in told)
    sums: dict[Any, int] = defaultdict(int)
    for each in told:
        own = each["account_id"] if each["kind"] == "charges" else None
        sums[each["kind"], each["ref"], own] += parse_amount(each["amount"], signed=True)
    assert set(sums.values()) == {0}
    assert sorted(kind for kind, _, _ in sums) == ["charges", "charges", "goodwill", "payment"]
    assert [each["amount"] for each in told if each["ledger"].startswith("revenue:") and each["account_id"] == "desk"] == [
        "0.02", "0.014",
    ]  # fmt: skip
    (granted,) = [each for each in told if each["ledger"] == "promotion"]
    assert (granted["actor"], granted["note"]) == ("ann", "sorry, again")


async def test_csv_json_and_table_say_the_same_in_pages(
    tollbook: Tollbook, town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("ledger", "entries", "--from", "2020-01-01")
    whole = (await tollbook(*asked, "--output", "json")).json
    assert len(whole) == 11
    monkeypatch.setattr(api, "ENTRIES_AT_ONCE", 3)
    assert (await tollbook(*asked, "--output", "json")).json == whole
    rows = list(csv.DictReader(io.StringIO((await tollbook(*asked, "--output", "csv")).out)))
    assert rows == [
        {name: "" if value is None else str(value) for name, value in each.items()} for each in whole
    ]  # fmt: skip
    table = (await tollbook(*asked)).out
    assert table.count("clearing:sandbox") == 1
    assert len(table.strip().split("\n")) == 12
    monkeypatch.setattr(ledger, "TABLE_ROWS_MAX", 4)
    short = (await tollbook(*asked)).out.strip().split("\n")
    assert (len(short), short[-1]) == (6, "these are the first 4; `--output csv` and `--output json` give all")


async def test_a_spreadsheet_runs_no_note_as_a_formula_and_reads_every_amount(tollbook: Tollbook, town: Town) -> None:
    notes = (
        '=HYPERLINK("https://example.com","pay")',
        "+1+1",
        "-2+3",
        "@SUM(A1)",
        "＝1+1",
        "-5.00",
        "sorry = so sorry",
    )
    for note in notes:
        town.command("grant_goodwill", "desk", amount="0.5", currency="USD", note=note)
    await town.settle()
    asked = ("ledger", "entries", "--from", "2020-01-01", "--ledger", "promotion", "--output")
    whole = (await tollbook(*asked, "json")).json
    assert {each["note"] for each in whole} == {"sorry, again", *notes}
    rows = list(csv.DictReader(io.StringIO((await tollbook(*asked, "csv")).out)))
    assert {row["note"] for row in rows} == {
        "sorry, again", "-5.00", "sorry = so sorry", *(f"'{note}" for note in notes[:5]),
    }  # fmt: skip
    assert {row["amount"] for row in rows} == {"-0.5"}


async def test_entries_of_an_account_a_ledger_account_a_kind_and_a_time(tollbook: Tollbook, town: Town) -> None:
    async def amounts(*asked: str) -> list[tuple[str, str]]:
        told = (await tollbook("ledger", "entries", "--from", "2020-01-01", *asked, "--output", "json")).json
        return [(each["ledger"], each["amount"]) for each in told]

    later = await day_after(town)
    assert await amounts("--account", "east") == [("revenue:voice.outbound", "0.0280001"), ("unbilled", "-0.0280001")]
    assert await amounts("--ledger", "clearing:sandbox") == [("clearing:sandbox", "-100")]
    assert await amounts("--ledger", "clearing") == [("clearing:sandbox", "-100")]
    assert sorted(await amounts("--ledger", "revenue", "--account", "desk")) == [
        ("revenue:sms", "0.02"), ("revenue:voice.outbound", "0.014"),
    ]  # fmt: skip
    assert sorted(await amounts("--to", later)) == [("opening", "-25"), ("wallet", "25")]
    assert await amounts("--ledger", "clearing:sandbox", "--to", later) == []  # it exists, and nothing moved it then
    empty = ("ledger", "entries", "--from", "2020-01-01", "--to", "2020-02-01", "--output")
    assert (await tollbook(*empty, "json")).json == []
    assert (await tollbook(*empty, "csv")).out == "at,kind,ref,account_id,ledger,amount,currency,charges,actor,note\n"


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (("--account", "nobody"), "account_id: no wallet of an account nobody; `tollbook account list` shows"),
        (("--ledger", "clearing:strpe"), "ledger: nothing was ever posted on clearing:strpe; `tollbook ledger totals` shows"),
        (("--ledger", "clear%"), "ledger: nothing was ever posted on clear%"),
        (("--from", "soon"), "from: must be an instant"),
        (("--from", "2026-10-02", "--to", "2026-10-01"), "to: must not be before the start"),
        (("--from", "2099-01-01"), "from: lies in the future; now is 20"),
        (("--from", "0001-01-01T00:00:00+05:00"), "from: must lie in the years 0001 to 9999, in UTC too"),
        (("--from", "2020-01-01", "--to", "9999-12-31T23:00:00-05:00"), "to: must lie in the years 0001 to 9999"),
    ],
)  # fmt: skip
async def test_what_is_asked_wrongly_names_the_field_and_the_fix(
    tollbook: Tollbook, town: Town, asked: tuple[str, ...], says: str
) -> None:
    ran = await tollbook("ledger", "entries", *asked, "--output", "json")
    assert ran.code != 0
    assert (ran.out, ran.err.startswith(says)) == ("", True), ran.err
