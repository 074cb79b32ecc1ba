"""Low balance: each level of the user's own is told once per crossing downwards, and armed again above it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.balance import levels
from tests.balance.test_daily_spend import statements
from tests.support.balance_factory import Town
from tests.support.servers import Database


@pytest.fixture
async def town(database: Database) -> AsyncIterator[Town]:
    async with Town(database) as made:
        await made.account("desk", level_2=True)
        made.open("desk", "100")
        await made.settle()
        yield made


def low(town: Town) -> list[tuple[str, str]]:
    return [(each["level"], each["available"]) for each in town.events("desk", "low_balance")]


async def moved(town: Town, amount: str) -> None:
    town.charge("desk", amount)
    await town.settle()


async def test_a_level_is_told_when_it_is_reached_and_again_after_it_was_left_upwards(town: Town) -> None:
    town.command("set_levels", "desk", levels=["20", "50.00", "5"])
    await town.settle()
    assert town.events("desk", "levels_set")[0]["levels"] == ["50", "20", "5"]
    await moved(town, "49.999999999")
    assert low(town) == []
    await moved(town, "0.000000001")
    await moved(town, "10")
    assert low(town) == [("50", "50")]
    await moved(town, "-10")  # back to the level, not above it
    await moved(town, "1")
    assert low(town) == [("50", "50")]
    town.command("grant_goodwill", "desk", amount="2", currency="USD")
    await town.settle()
    await moved(town, "1")
    assert low(town) == [("50", "50"), ("50", "50")]


async def test_what_leaps_over_several_levels_tells_each_of_them_from_above(town: Town) -> None:
    town.command("set_levels", "desk", levels=["50", "20", "5"])
    await town.settle()
    await moved(town, "90")
    assert low(town) == [("50", "10"), ("20", "10")]
    await moved(town, "20")
    assert low(town)[2:] == [("5", "-10")]
    town.command("grant_goodwill", "desk", amount="100", currency="USD")
    await town.settle()
    await moved(town, "60")
    assert low(town)[3:] == [("50", "30")]


async def test_a_level_that_is_set_below_water_waits_until_it_has_been_above(town: Town) -> None:
    town.command("set_levels", "desk", levels=["150"])
    await town.settle()
    await moved(town, "1")
    assert low(town) == []
    town.command("grant_goodwill", "desk", amount="100", currency="USD")
    await town.settle()
    await moved(town, "49")
    assert low(town) == [("150", "150")]
    town.command("set_levels", "desk", levels=[])
    town.command("grant_goodwill", "desk", amount="100", currency="USD")
    await town.settle()
    await moved(town, "200")
    assert len(low(town)) == 1


async def test_a_level_above_what_a_wallet_may_hold_is_refused_with_the_field(town: Town) -> None:
    town.command("set_levels", "desk", levels=["5", "4000000001"])
    await town.settle()
    assert [(each["reason"], each["field"]) for each in town.events("desk", "command_refused")] == [
        ("invalid", "levels")
    ]


async def test_accounts_without_levels_and_levels_that_are_not_reached_cost_no_statement(town: Town) -> None:
    async def cost() -> int:
        town.charge("desk", "1")
        with statements(town.rooms.processors["balance"]) as said:
            await town.rooms.pump()
        return len(said)

    await cost()
    without = await cost()
    town.command("set_levels", "desk", levels=["50"])
    await town.settle()
    assert await cost() == without


LEVELS = st.lists(st.integers(0, 100), max_size=4, unique=True)


@given(chosen=LEVELS, path=st.lists(st.integers(-20, 120), min_size=1, max_size=20))
def test_each_crossing_downwards_is_told_once(chosen: list[int], path: list[int]) -> None:
    before = levels.marks(chosen, path[0])
    for last, available in pairwise(path):
        told = levels.crossed(chosen, before, available) if levels.moves(before, available) else []
        assert told == sorted((level for level in chosen if available <= level < last), reverse=True)
        before = levels.marks(chosen, available) if levels.moves(before, available) else before
        assert before == levels.marks(chosen, available)
