"""What reads and asks of rooms without Kafka: tables for people, JSON with stable keys for programs."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from services.cli.reading import room
from services.groups.consumer import build
from tests.cli.conftest import Tollbook
from tests.groups.desk import Desk
from tests.support.rooms import Log, Rooms
from tests.support.servers import Database

DEMO = Path(__file__).parents[2] / "deploy" / "demo"


@pytest.fixture
def on_database(tollbook: Tollbook, database: Database, monkeypatch: pytest.MonkeyPatch) -> Tollbook:
    """Commands on a fresh database whose clock can be moved."""
    for name, value in database.environment().items():
        monkeypatch.setenv(name, value)
    return tollbook


@pytest.mark.parametrize(
    "arguments",
    [
        ["account", "list"],
        ["group", "list"],
        ["org", "list"],
        ["org", "publishers"],
        ["org", "log"],
        ["price", "list"],
        ["invoice", "list"],
        ["charge", "list", "nobody"],
        ["quarantine", "list"],
        ["quarantine", "list", "--room", "balance", "--all"],
    ],
)
async def test_an_empty_list_is_an_empty_json_list(on_database: Tollbook, arguments: list[str]) -> None:
    ran = await on_database(*arguments, "--output", "json")
    assert (ran.code, ran.json) == (0, [])


@pytest.mark.parametrize("watched", [False, True])
async def test_an_import_by_who_may_not_publish_is_refused_before_anything_is_published(
    on_database: Tollbook, database: Database, tmp_path: Path, watched: bool
) -> None:
    """A name or source that is misspelled in the profile would quarantine every row, to be discarded one by one."""
    profile, file = str(DEMO / "switch_profile.json"), str(DEMO / "asterisk_master.csv")
    arguments = ("import", *(("--watch", str(tmp_path)) if watched else (file,)), "--profile", profile)
    ran = await on_database(*arguments)
    assert ran.code == 1
    assert ran.err.startswith("publisher: detroit is not registered; register it by `tollbook org publisher`")
    async with database.connected() as owner:
        await owner.execute(
            "insert into groups.publisher values ('detroit', 1, '{lakeside}', '{/switches/other}', 0, 0)"
        )
    ran = await on_database(*arguments)
    assert ran.code == 2
    assert ran.err.startswith("source: /switches/detroit is none of detroit (/switches/other); add it by `tollbook org")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["account", "show", "nobody"], "account: there is no account nobody"),
        (["group", "show", "none"], "payer group: there is no payer group none"),
        (["invoice", "list", "--group", "none"], "payer group: there is no payer group none"),
        (["invoice", "debts", "--group", "none"], "payer group: there is no payer group none"),
        (["org", "show", "none"], "organization: there is no organization none"),
        (["quarantine", "show", "7"], "ID: there is no record 7 in the quarantine of usage"),
        (["charge", "explain", "2046e3a9-494c-8eae-94fc-f1a3ae1e2b14"], "charge_id: there is no charge 2046e3a9-494c-8eae-94fc-f1a3ae1e2b14"),
        (["invoice", "show", "TT-1"], "invoice: no closed invoice has the number or id 'TT-1'"),
    ],
)  # fmt: skip
async def test_what_is_not_there_is_exit_1(on_database: Tollbook, arguments: list[str], sentence: str) -> None:
    ran = await on_database(*arguments)
    assert (ran.code, ran.err) == (1, f"{sentence}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["charge", "list", "a\udcff"],
        ["rerate", "plan", "--from", "2026-10-01", "--to", "2026-11-01", "--note", "\udcff"],
    ],
)
async def test_an_argument_that_no_database_can_hold_is_exit_2(on_database: Tollbook, arguments: list[str]) -> None:
    """What of the command line is no UTF-8 comes as half a character."""
    ran = await on_database(*arguments)
    sentence = (
        "a value of the command cannot be kept by PostgreSQL; give texts in UTF-8, and numbers that are not as large\n"
    )
    assert (ran.code, ran.err) == (2, sentence)


async def test_a_reader_of_our_output_that_has_gone_is_no_fault_of_the_server(on_database: Tollbook) -> None:
    with pytest.raises(BrokenPipeError):
        async with room("balance"):
            raise BrokenPipeError


async def test_a_price_file_becomes_a_version_and_what_is_refused_is_named(on_database: Tollbook) -> None:
    file = str(DEMO / "voice_prices.csv")
    imported = await on_database(
        "price", "import", file, "--book", "list", "--from", "2026-10-01", "--default", "-o", "json"
    )
    assert set(imported.json) == {"book_id", "version", "currency", "effective_from", "prices", "refused"}
    assert (imported.json["version"], imported.json["effective_from"]) == (1, "2026-10-01T00:00:00Z")
    assert [refused["message"][:30] for refused in imported.json["refused"]] == ["AN is in no number plan, so it"]
    again = await on_database("price", "import", file, "--book", "list", "--from", "2026-11-01")
    assert again.out.startswith("list version 2: 1111 prices in USD from 2026-11-01T00:00:00Z, 1 refused\n")
    listed = (await on_database("price", "list", "--output", "json")).json
    assert [(row["book_id"], row["version"], row["prices"]) for row in listed] == [("list", 1, 1111), ("list", 2, 1111)]


async def test_a_price_file_with_a_mistake_becomes_no_version_unless_it_is_left_out(
    on_database: Tollbook, tmp_path: Path
) -> None:
    """A version replaces the whole list: what a mistake leaves out would have no price any more."""
    file = tmp_path / "prices.csv"
    file.write_text("iso_country,price_per_minute,currency\nDE,0.01,USD\nFR,0.0x,USD\nAN,0.02,USD\nIT,0,03,USD\n")
    arguments = ("price", "import", str(file), "--book", "list", "--from", "2026-01-01")
    refused = await on_database(*arguments)
    assert (refused.code, [line.partition(":")[0] for line in refused.out.splitlines()]) == (1, ["refused"] * 3)
    assert refused.err == (
        "FILE: has mistakes (2), and a version replaces the whole list, so nothing was imported; mend them, or leave out"
        " what is refused by --allow-refused\n"
    )
    told = await on_database(*arguments, "-o", "json")
    assert (told.code, told.json["version"]) == (1, None)
    assert [(each["line"], each["code"]) for each in told.json["refused"]] == [
        (3, "invalid_amount"), (4, "no_numbers"), (5, "invalid"),
    ]  # fmt: skip
    assert (await on_database("price", "list", "-o", "json")).json == []
    allowed = await on_database(*arguments, "--allow-refused")
    assert (allowed.code, allowed.out.splitlines()[0]) == (
        0, "list version 1: 1 prices in USD from 2026-01-01T00:00:00Z, 3 refused",
    )  # fmt: skip


@pytest.mark.parametrize("arguments", [(), ("--allow-refused",)])
async def test_a_price_file_of_which_no_line_can_be_used_has_each_of_them_named(
    on_database: Tollbook, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    file = tmp_path / "prices.csv"
    lines = [f'voice.outbound,{prefix},"0,01",USD' for prefix in range(1000, 1030)]
    file.write_text("\n".join(["product,prefix,price_per_minute,currency", *lines]))
    command = ("price", "import", str(file), "--book", "list", "--from", "2026-01-01", *arguments)
    ran = await on_database(*command)
    assert (ran.code, len(ran.out.splitlines()), ran.out.splitlines()[-1]) == (
        2, 21, "and 10 more; --output json names all",
    )  # fmt: skip
    assert ran.err.startswith(
        "price file: holds no line that gives a price; line 2, price_per_minute: must be a decimal"
    )
    told = await on_database(*command, "-o", "json")
    assert (told.code, told.json["version"], told.json["prices"]) == (2, None, 0)
    assert [each["line"] for each in told.json["refused"]] == list(range(2, 32))
    assert (await on_database("price", "list", "-o", "json")).json == []


async def test_a_price_file_steers_no_terminal_whatever_its_names_are(on_database: Tollbook, tmp_path: Path) -> None:
    """Escapes that a terminal would run, and halves of characters that it could not be given at all."""
    file = tmp_path / "prices.json"
    prices = [
        {"product": "data", "price": "1"},
        {"product": "data", "prefix": "310", "price": "1", "window": "\ud800"},
        {"product": "data", "prefix": "311", "price": "1", "\x1b[2J": "x"},
    ]
    arguments = ("price", "import", str(file), "--book", "list", "--from", "2026-01-01")
    file.write_text(json.dumps({"currency": "USD", "prices": prices}))
    ran = await on_database(*arguments)
    assert ran.out.splitlines()[0] == (
        "refused: prices[1].window: there is no usable window \\ud800; name it among the windows"
    )
    assert ran.out.splitlines()[1].startswith("refused: prices[2].\\u001b[2J: is unknown; use ")
    assert [each["field"] for each in (await on_database(*arguments, "-o", "json")).json["refused"]] == [
        "prices[1].window", "prices[2].\x1b[2J",
    ]  # fmt: skip
    file.write_text(json.dumps({"currency": "USD", "\ud800\x1b[2J": 1, "prices": prices}))
    ran = await on_database(*arguments)
    assert (ran.code, ran.err) == (2, "\\ud800\\u001b[2J: is unknown; use currency, prices, schedules, windows\n")


WINDOWED = {
    "currency": "USD",
    "windows": [{"id": "night", "zone": "Europe/Berlin", "days": ["mon-sun"], "from": "22:00", "to": "06:00"}],
    "prices": [
        {"product": "voice.outbound", "prefix": "+49", "price": "0.02", "increment": 6},
        {"product": "voice.outbound", "prefix": "+49", "price": "0.01", "window": "night"},
        {"product": "voice.outbound", "prefix": "+4930", "price": 0.5},
        {"product": "data", "price": "1"},
    ],
}


async def test_a_json_file_is_imported_and_each_number_has_its_price_at_its_time(
    on_database: Tollbook, tmp_path: Path
) -> None:
    file = tmp_path / "prices.json"
    file.write_text(json.dumps(WINDOWED))
    arguments = (
        "price",
        "import",
        str(file),
        "--book",
        "night",
        "--from",
        "2026-01-01",
        "--allow-refused",
        "-o",
        "json",
    )
    imported = (await on_database(*arguments)).json
    assert (imported["prices"], imported["refused"][0]["field"]) == (3, "prices[2].price")
    file.write_text(json.dumps(WINDOWED | {"prices": [WINDOWED["prices"][0] | {"price": "0.03"}]}))  # type: ignore[index]
    await on_database("price", "import", str(file), "--book", "night", "--from", "2026-06-01")

    async def shown(*arguments: str) -> list[tuple[int, str, str | None]]:
        answer = (await on_database("price", "show", "night", "--number", "+4930123456", *arguments, "-o", "json")).json
        return [(each["version"], each["price"], each["window"]) for each in answer["prices"]]

    assert await shown("--at", "2026-05-01T12:00:00Z") == [(1, "0.02", None)]
    assert await shown("--at", "2026-05-01T20:00:00Z") == [(1, "0.01", "night")]
    assert await shown("--at", "2026-06-01T20:00:00Z") == [(2, "0.03", None)]
    assert await shown("--at", "2026-06-01T20:00:00Z", "--version", "1") == [(1, "0.01", "night")]
    assert await shown() == [(2, "0.03", None)]
    early = await on_database("price", "show", "night", "--number", "+4930123456", "--at", "2025-01-01")
    assert (early.code, early.err) == (1, "at: night has no version that holds at 2025-01-01T00:00:00Z\n")
    versions = (await on_database("price", "show", "night", "-o", "json")).json
    assert [(each["version"], each["prices"]) for each in versions] == [(1, 3), (2, 1)]
    first = await on_database("price", "show", "night", "--version", "1")
    assert "window night: mon-sun 22:00-06:00 Europe/Berlin" in first.out
    assert (
        await on_database("price", "show", "night", "--version", "3")
    ).err == "version: night has no version 3; it has 1, 2\n"
    assert (
        await on_database("price", "show", "day")
    ).err == "book: there is no price book day; `tollbook price list` shows them\n"


async def test_a_schedule_of_tiers_is_imported_and_shown(on_database: Tollbook, tmp_path: Path) -> None:
    """Prices in tiers are said in JSON only: a table has no place for bands."""
    file = tmp_path / "tiers.json"
    bands = [{"up_to": 1000, "price": "0"}, {"up_to": None, "price": "0.008", "fee": "5"}]
    schedule = {"id": "included", "form": "graduated", "per": 1, "bands": bands}
    entry = {"product": "message.sms.outbound", "prefix": "*", "schedule": "included"}
    file.write_text(json.dumps({"currency": "USD", "schedules": [schedule], "prices": [entry]}))
    await on_database("price", "import", str(file), "--book", "sms", "--from", "2026-01-01")
    shown = await on_database("price", "show", "sms", "--version", "1")
    assert "schedule included, graduated, prices for 1: up to 1000 at 0; above at 0.008, fee 5" in shown.out
    told = (await on_database("price", "show", "sms", "--version", "1", "-o", "json")).json
    assert told["schedules"] == [schedule | {"bands": [bands[0] | {"fee": "0"}, bands[1]]}]
    assert [(each["price"], each["schedule"]) for each in told["prices"]] == [(None, "included")]
    of_number = (await on_database("price", "show", "sms", "--number", "+12485550101", "-o", "json")).json
    assert [(each["product"], each["schedule"]) for each in of_number["prices"]] == [
        ("message.sms.outbound", "included")
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("minutes.csv", "product,prefix,price_per_minute,currency\nvoice.outbound,1,0.01,USD\n"),
        ("products.csv", "product,prefix,price,currency\nvoice.outbound,1,0.01,USD\nmessage.sms.outbound,*,0.01,USD\n"),
        (
            "prices.json",
            '{"currency": "USD", "prices": [{"product": "voice.outbound", "prefix": "1", "price": "0.01"}]}',
        ),
    ],
)
async def test_steps_that_are_asked_for_hold_in_every_kind_of_file(
    on_database: Tollbook, tmp_path: Path, name: str, text: str
) -> None:
    """A line that does not say its own would else be billed in whole minutes, without a word."""
    file = tmp_path / name
    file.write_text(text)
    arguments = ("price", "import", str(file), "--book", "list", "--from", "2026-01-01")
    for steps, sentence in (
        (("--increment-s", "0"), "increment_s: must be whole seconds from 1 to 3600, such as 60\n"),
        (("--minimum-s", "-1"), "minimum_s: must be whole seconds from 0 to 3600, such as 60\n"),
    ):
        ran = await on_database(*arguments, *steps)
        assert (ran.code, ran.err) == (2, sentence)
    assert (await on_database(*arguments, "--minimum-s", "1", "--increment-s", "6")).code == 0
    shown = (await on_database("price", "show", "list", "--version", "1", "-o", "json")).json
    found = {each["product"]: (each["minimum"], each["increment"]) for each in shown["prices"]}
    assert found.pop("message.sms.outbound", (0, 1)) == (0, 1)
    assert found == {"voice.outbound": (1, 6)}
    changed = await on_database("price", "diff", "list", "--file", str(file), "-o", "json")
    assert changed.json["counts"]["changed"] + changed.json["counts"]["raised"] == 1


async def test_a_csv_file_takes_its_windows_from_a_second_one(on_database: Tollbook, tmp_path: Path) -> None:
    prices, windows = tmp_path / "prices.csv", tmp_path / "windows.csv"
    prices.write_text(
        "product,prefix,price,currency,window\nvoice.outbound,1,0.01,USD,\nvoice.outbound,1,0.02,USD,day\n"
    )
    windows.write_text("id,zone,days,from,to\nday,America/Detroit,mon-fri,08:00,18:00\n")
    arguments = ("price", "import", str(prices), "--book", "list", "--from", "2026-01-01")
    assert (await on_database(*arguments)).out == (
        "refused: line 3, window: there is no usable window day; name it among the windows\n"
    )
    imported = await on_database(*arguments, "--windows", str(windows))
    assert imported.out == "list version 1: 2 prices in USD from 2026-01-01T00:00:00Z\n"


async def test_a_diff_says_what_a_version_a_book_or_a_file_changes(on_database: Tollbook, tmp_path: Path) -> None:
    def written(name: str, *lines: str) -> str:
        (tmp_path / name).write_text("\n".join(["product,prefix,price,currency", *lines]))
        return str(tmp_path / name)

    first = written("1.csv", "voice.outbound,1,0.01,USD", "voice.outbound,49,0.02,USD", "voice.outbound,33,0.03,USD")
    second = written("2.csv", "voice.outbound,1,0.02,USD", "voice.outbound,49,0.01,USD", "voice.outbound,4917,0.05,USD")
    for book, file in (("list", first), ("list", second), ("other", second)):
        await on_database("price", "import", file, "--book", book, "--from", "2026-01-01")
    diff = (await on_database("price", "diff", "list", "--from", "1", "--to", "2", "-o", "json")).json
    assert diff["counts"] == {"added": 1, "removed": 1, "raised": 1, "lowered": 1, "changed": 0}
    assert [(each["kind"], each["prefix"], each["percent"]) for each in diff["changes"]] == [
        ("raised", "+1", "100.00"), ("removed", "+33", None), ("lowered", "+49", "-50.00"), ("added", "+4917", None),
    ]  # fmt: skip
    assert (diff["changes"][0]["old"]["price"], diff["changes"][0]["new"]["price"]) == ("0.01", "0.02")
    assert diff["changes"][3]["covered_by"]["prefix"] == "+49"
    assert (await on_database("price", "diff", "list", "--to-book", "other")).out == (
        "from list version 2 to other version 1: no difference\n"
    )
    from_file = (await on_database("price", "diff", "list", "--file", first, "-o", "json")).json
    assert (from_file["from"]["version"], from_file["to"]) == (2, {"file": first})
    assert from_file["counts"] == {"added": 1, "removed": 1, "raised": 1, "lowered": 1, "changed": 0}
    table = (await on_database("price", "diff", "list", "--from", "1", "--to", "2")).out
    assert "from list version 1 to list version 2: 1 added, 1 removed, 1 raised, 1 lowered" in table
    assert "0.02 for 60, 60/60 (by +49)" in table
    ran = await on_database("price", "diff", "list")
    assert (ran.code, ran.err) == (2, "to: name what to compare with: --to VERSION, --to-book BOOK or --file FILE\n")


@pytest.mark.parametrize("asked", [("default",), ("use", "--account", "desk"), ("use", "--organization", "lakeside")])
async def test_a_book_that_is_to_be_asked_must_exist(on_database: Tollbook, asked: tuple[str, ...]) -> None:
    ran = await on_database("price", *asked, "no-such-book")
    assert (ran.code, ran.err) == (2, "BOOK: there is no price book no-such-book; import it first\n")


async def test_a_book_is_given_to_who_is_registered_and_taken_back_from_anybody(
    on_database: Tollbook, database: Database
) -> None:
    """A mistyped account would go on paying list prices, and nobody would know."""
    async with Rooms(Log(), database, [build()]) as rooms:
        registry = Desk(rooms)
        await registry.done("create_organization", name="Lakeside")
        await registry.done("create_account", account_id="desk", name="Desk", plan="trial")
    await on_database("price", "import", str(DEMO / "inbound_prices.csv"), "--book", "own", "--from", "2026-10-01")
    for kind, name in (("account", "desk"), ("organization", "lakeside")):
        given = await on_database("price", "use", "own", f"--{kind}", name)
        assert (given.code, given.out) == (0, f"{name} has the book own\n")
        mistyped = await on_database("price", "use", "own", f"--{kind}", "dsek")
        assert (mistyped.code, mistyped.out, mistyped.err) == (1, "", f"{kind}: there is no {kind} dsek\n")
        assert (await on_database("price", "use", f"--{kind}", "dsek")).code == 0


async def test_the_clock_of_a_movable_database_moves_forward(on_database: Tollbook) -> None:
    before = (await on_database("clock", "show", "--output", "json")).json
    assert set(before) == {"now", "ahead_s", "movable"}
    assert (before["ahead_s"], before["movable"]) == (0, True)
    moved = (await on_database("clock", "move", "49h", "--output", "json")).json
    gone = datetime.fromisoformat(moved["now"]) - datetime.fromisoformat(before["now"])
    assert 49 * 3600 <= gone.total_seconds() < 49 * 3600 + 60
    assert (await on_database("clock", "show", "--output", "json")).json["ahead_s"] == 49 * 3600


async def test_nothing_is_closed_before_invoices_has_run(on_database: Tollbook) -> None:
    ran = await on_database("invoice", "close", "--period", "2026-10")
    assert ran.code == 1
    assert "invoices has not run yet" in ran.err


async def test_all_invoices_and_all_groups_are_listed_and_a_table_says_that_there_are_more(
    on_database: Tollbook, database: Database
) -> None:
    many = 1_001
    async with database.connected() as owner:
        await owner.execute(
            "insert into invoices.invoice (invoice_id, group_id, period, state)"
            f" select gen_random_uuid(), 'g' || n, '2026-10', 'open' from generate_series(1, {many}) n"
        )
        await owner.execute(
            "insert into invoices.billing_group (group_id, version, zone, told)"
            f" select 'g' || n, 1, 'UTC', '' from generate_series(1, {many}) n"
        )
        await owner.execute("insert into invoices.terms values (true, now(), 0)")
    for asked in (("list",), ("status", "--period", "2026-10")):
        assert len((await on_database("invoice", *asked, "-o", "json")).json) == many
        table = (await on_database("invoice", *asked)).out
        assert table.endswith("these are the first 1000 of 1001; `--output json` gives all\n")
