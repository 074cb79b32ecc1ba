"""What a user did wrong is said in one sentence that names the field and the fix; nobody sees a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Tollbook

DEMO = Path(__file__).parents[2] / "deploy" / "demo"
PROFILE = str(DEMO / "switch_profile.json")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "kitchen"], "ROOM: there is no room 'kitchen'; what runs is usage, balance, groups, invoices, payments, webhooks, gateway"),
        (["clock", "move", "5 weeks"], "BY: must be a whole number with s, m, h or d, such as 49h"),
        (["invoice", "grace", "abc"], "SPAN: must be a whole number with s, m, h or d, such as 49h"),
        (["charge", "explain", "x"], "CHARGE: must be the id of a charge; `tollbook charge list ACCOUNT` shows them"),
        (["invoice", "list", "--state", "lost"], "state: must be one of open, closed, nothing, partly_paid, paid, overdue, written_off, void"),
        (["invoice", "list", "--month", "nov"], 'period: must be a month such as "2026-10"'),
        (["invoice", "list", "--month", "2026-99"], 'period: must be a month such as "2026-10"'),
        (["quarantine", "replay"], "ID: name records by id, or all of one reason by --reason"),
        (["quarantine", "list", "--room", "x"], "room: there is no room 'x'; the rooms are usage, balance, groups, invoices, payments, webhooks"),
        (["price", "use", "list"], "account: name either an account or an organization"),
        (["account", "open-balance", "sales", "1_000"], 'amount: must be a decimal string such as "10.00" or "-2.50"'),
        (["account", "goodwill", "sales", "5.0000000001"], 'amount: must be a decimal string such as "10.00"'),
        (["account", "create", "a b", "--organization", "x", "--plan", "payg"],
         'account_id: must begin with a letter or digit and hold at most 64 letters, digits, "_", "." and "-"'),
        (["account", "create", "a", "--organization", "x", "--plan", "gold"], "plan: must be one of 'trial', 'payg' or 'invoiced'"),
        (["account", "change-plan", "a", "--organization", "x", "--plan", "trial"], "plan: must be one of 'payg' or 'invoiced'"),
        (["account", "change-plan", "a", "--organization", "x", "--plan", "invoiced", "--credit-limit", "all"],
         'credit_limit: must be a decimal string such as "10.00"'),
        (["account", "transfer", "a", "100", "--reference", ""], "reference: must not be empty"),
        (["account", "create", "a", "--organization", "x", "--plan", "payg", "--opened-at", "soon"],
         'opened_at: must be an instant such as "2026-10-01" or "2026-10-01T00:00:00Z"'),
        (["account", "create", "a", "--organization", "x", "--plan", "payg", "--opened-at", "0001-01-01T00:00:00+05:00"],
         "opened_at: must lie in the years 0001 to 9999, in UTC too"),
        (["price", "import", str(DEMO / "voice_prices.csv"), "--book", "list", "--from", "0001-01-01"],
         "from: is the first or last instant of all, which cannot be kept; write another"),
        (["group", "create", "g", "--organization", "x", "--company", "X", "--tax-rate", "20"],
         'tax_rate: must be a rate from 0 to 1 such as "0.20"'),
        (["group", "create", "g", "--organization", "x", "--company", "X", "--vat-id", "hello world"],
         'billing_information.vat_id: must be a VAT id such as "DE136695976"; leave it out where there is none'),
        (["import", "missing.csv", "--profile", PROFILE, "--dry-run"], "FILE: missing.csv cannot be read: No such file or directory"),
        (["import", PROFILE, "--profile", PROFILE, "--format", "avaya", "--dry-run"], "format: 'avaya' is no format; use one of asterisk, asterisk-realtime, freeswitch-csv, freeswitch-json, csv"),
        (["import", PROFILE, "--profile", "missing.json"], "profile: missing.json cannot be read: No such file or directory"),
    ],
)  # fmt: skip
async def test_a_wrong_command_line_is_exit_2_and_names_the_field(
    tollbook: Tollbook, arguments: list[str], sentence: str
) -> None:
    ran = await tollbook(*arguments)
    assert (ran.code, ran.err, ran.out) == (2, f"{sentence}\n", "")


@pytest.mark.parametrize("arguments", [["invoice"], ["account", "fly"], ["price", "import", "x.csv"], ["fly"]])
async def test_an_unknown_or_incomplete_command_is_exit_2(tollbook: Tollbook, arguments: list[str]) -> None:
    assert (await tollbook(*arguments)).code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["import", PROFILE, "--profile", PROFILE, "--shift-days", "99999999999"],
        ["quarantine", "show", str(2**63)],
        ["quarantine", "replay", "1", str(2**63)],
        ["quarantine", "discard", str(2**63)],
    ],
)
async def test_a_number_that_is_too_large_is_exit_2(tollbook: Tollbook, arguments: list[str]) -> None:
    ran = await tollbook(*arguments)
    assert ran.code == 2
    assert "Input should be less than or equal to" in ran.err


async def test_an_amount_below_zero_is_an_amount_and_a_mistyped_option_is_none(tollbook: Tollbook) -> None:
    ran = await tollbook("account", "open-balance", "desk", "-2.50")
    assert (ran.code, "no embedded server runs below" in ran.err) == (1, True)  # nothing is wrong with the command line
    assert (await tollbook("account", "open-balance", "desk", "-5e1")).err == (
        'amount: must be a decimal string such as "10.00" or "-2.50"\n'
    )
    assert (await tollbook("account", "open-balance", "desk", "-5", "--curency", "EUR")).code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["account", "list"],
        ["invoice", "status", "--period", "2026-10"],
        ["account", "level-2", "a", "--organization", "x"],
        ["verify"],
    ],
)
async def test_without_servers_a_command_says_how_to_start_them(tollbook: Tollbook, arguments: list[str]) -> None:
    ran = await tollbook(*arguments)
    assert ran.code == 1
    assert "no embedded server runs below" in ran.err
    assert "start them by `tollbook up`" in ran.err
    assert "Traceback" not in ran.err


async def test_a_server_that_does_not_answer_is_said_in_a_sentence(
    tollbook: Tollbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOLLBOOK_POSTGRES", "postgresql://127.0.0.1:9/tollbook")
    monkeypatch.setenv("TOLLBOOK_ROOM_PASSWORD", "x")
    ran = await tollbook("account", "list")
    assert ran.code == 1
    assert ran.err.startswith("postgres: PostgreSQL does not answer")
    assert ran.err.count("\n") == 1


async def test_verify_says_in_a_sentence_that_no_kafka_answers(
    tollbook: Tollbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOLLBOOK_POSTGRES", "postgresql://127.0.0.1:9/tollbook")
    monkeypatch.setenv("TOLLBOOK_ROOM_PASSWORD", "x")
    monkeypatch.setenv("TOLLBOOK_KAFKA", "127.0.0.1:9")
    ran = await tollbook("verify")
    assert ran.code == 1
    assert ran.err.startswith("kafka: no Kafka broker answers at 127.0.0.1:9 (")
    assert ran.err.endswith("; check TOLLBOOK_KAFKA, and how it lets us in: TOLLBOOK_KAFKA_TLS, TOLLBOOK_KAFKA_SASL\n")
    assert ran.err.count("\n") == 1


async def test_help_names_every_command(tollbook: Tollbook) -> None:
    ran = await tollbook("--help")
    assert ran.code == 0
    for name in (
        "up",
        "run",
        "demo",
        "import",
        "verify",
        "org",
        "account",
        "group",
        "price",
        "charge",
        "invoice",
        "quarantine",
        "clock",
    ):
        assert f" {name} " in ran.out
