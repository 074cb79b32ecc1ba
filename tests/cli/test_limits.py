"""`tollbook account limits` and `tollbook call check`: limits set and shown, a price quoted, a call allowed or refused."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.balance import api as balance_api
from services.balance import consumer as balance_room
from services.balance.calls import Authorize
from services.balance.refuse_fast import RefuseFast
from services.balance.spending import CallAsked
from services.usage import api as usage_api
from services.usage.consumer import build as build_usage
from services.usage.price_files import read_price_file
from tests.cli.conftest import Tollbook
from tests.support.balance_factory import NO_VALKEY, Town
from tests.support.processes import Processes
from tests.support.servers import Database
from tests.support.usage_registry import LONG_AGO

PRICES = b"product,prefix,price_per_minute,currency,minimum_s,increment_s\nvoice.outbound,1,0.014,USD,60,6\n"
CHECK = ("call", "check", "desk", "+12485550101")


@pytest.fixture
async def town(database: Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Town]:
    """The account desk in balance and usage, with one price."""
    for name, value in database.environment().items():
        monkeypatch.setenv(name, value)
    rooms = [balance_room.room(RefuseFast(lambda: NO_VALKEY)), build_usage()]
    async with Town(database, rooms=rooms) as made:
        await made.account("desk")
        made.open("desk", "100")
        await made.settle()
        engine = made.rooms.processors["usage"].engine
        await usage_api.import_prices(engine, "list", read_price_file(PRICES), LONG_AGO, is_default=True)
        yield made


async def test_a_call_is_quoted_and_allowed_until_a_limit_is_against_it(tollbook: Tollbook, town: Town) -> None:
    ran = await tollbook(*CHECK, "--profile", "dialer", "--output", "json")
    assert (ran.code, ran.json["allowed"], ran.json["reason"]) == (0, True, None)
    quote = ran.json["quote"]
    assert (quote["price_per_minute"], quote["minimum_s"], quote["increment_s"]) == ("0.014", 60, 6)
    assert (quote["book_id"], quote["book_version"], quote["maximum_price"]) == ("list", 1, None)
    assert (await tollbook("account", "limits", "desk", "--profile", "dialer", "--max-price", "0.01")).code == 0
    refused = await tollbook(*CHECK, "--profile", "dialer")
    assert refused.code == 1
    assert (
        "refused (price_too_high): a minute costs 0.014 USD; profile dialer of desk allows at most 0.01" in refused.out
    )
    assert (await tollbook(*CHECK)).code == 0
    town.limit("desk", "5", 1)
    await town.settle()
    engine = town.rooms.processors["balance"].engine
    holds = balance_api.Holds(engine, town.log)
    await holds.ask(Authorize(CallAsked("desk", None, 14_000_000, "USD", ()), "c1", 30, bytes(16)))
    refused = await tollbook(*CHECK, "--output", "json")
    assert (refused.code, refused.json["reason"]) == (1, "concurrent_calls")
    shown = (await tollbook("account", "limits", "desk", "--output", "json")).json
    assert shown == [
        {
            "outbound_profile": None, "daily_spend": "5", "spent_today": "0", "calls_max": 1, "calls": 1,
            "maximum_price": None, "currency": "USD",
        },
        {
            "outbound_profile": "dialer", "daily_spend": None, "spent_today": None, "calls_max": None, "calls": None,
            "maximum_price": "0.01", "currency": "USD",
        },
    ]  # fmt: skip
    assert (await tollbook("account", "limits", "desk", "--profile", "dialer", "--max-price", "none")).code == 0
    table = (await tollbook("account", "limits", "desk")).out
    assert "dialer" not in table


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("account", "limits", "desk", "--calls-max", "ten"), "calls_max: must be a whole number such as 10, or none"),
        (("account", "limits", "desk", "--daily-spend", "-1"), 'daily_spend: must be a decimal string such as "10.00"'),
        (("account", "limits", "desk", "--max-price", "a cent", "--calls-max", "1"), "max_price: must be a decimal string"),
        (("call", "check", "desk", "2485550101"), "called: must be an E.164 number with its plus, such as +12485252160"),
    ],
)  # fmt: skip
async def test_a_wrong_option_is_named(
    tollbook: Tollbook, town: Town, arguments: tuple[str, ...], sentence: str
) -> None:
    ran = await tollbook(*arguments)
    assert (ran.code, sentence in ran.err) == (2, True), ran.err


@pytest.fixture
def rooms(
    database: Database, kafka: str, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Processes]:
    environment = database.environment(TOLLBOOK_KAFKA=kafka, TOLLBOOK_TOPIC_PREFIX=topic_prefix)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    processes = Processes(environment, tmp_path)
    yield processes
    processes.stop()


async def test_limits_are_set_one_by_one_and_the_others_stay(tollbook: Tollbook, rooms: Processes) -> None:
    for name in ("groups", "balance"):
        rooms.start(name, f"services.{name}")
    assert (await tollbook("org", "create", "lakeside", "--name", "Lakeside")).code == 0, rooms.tail("groups")
    await tollbook("org", "entity", "seller", "--organization", "lakeside", "--name", "S", "--address", "A")
    assert (await tollbook("account", "create", "sales", "--organization", "lakeside", "--plan", "payg")).code == 0
    for option, value in (("--daily-spend", "100.00"), ("--calls-max", "10"), ("--daily-spend", "none")):
        ran = await tollbook("account", "limits", "sales", option, value)
        assert ran.code == 0, ran.out + ran.err + rooms.tail("balance")
        assert ran.out.startswith("limits set for sales")
    (row,) = (await tollbook("account", "limits", "sales", "--output", "json")).json
    assert (row["daily_spend"], row["calls_max"]) == (None, 10)
