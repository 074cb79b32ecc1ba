"""The acceptance table of the demo speaks of the records that are there, and its sums are those of the page."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cli.demo import cast as casting
from services.cli.demo import servers
from services.cli.demo.figures import Cell, shortest
from services.kernel.errors import InvalidInput
from services.kernel.money import format_nano, parse_amount

NEWEST = datetime(2018, 12, 3, 14, 15, 23, tzinfo=UTC)
INSTANTS = st.integers(0, 16 * 365 * 86_400).map(lambda s: datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=s))
OLDEST = datetime(2018, 11, 30, 1, 20, 11, tzinfo=UTC)


def charges(cell: str) -> tuple[int, int]:
    count, _, amount = cell.partition(": ")
    return (0, 0) if cell == "none" else (int(count), parse_amount(amount))


def test_the_charges_of_the_cast_are_250_of_which_106_outbound() -> None:
    counts = {
        account["account"]: [charges(account["expected"][when])[0] for when in ("before", "after")]
        for account in casting.cast()["accounts"]
    }
    assert sum(map(sum, counts.values())) == 250
    assert sum(counts.pop("support")) == 144
    assert sum(map(sum, counts.values())) == 106


def test_wallets_at_the_end_follow_from_openings_recharges_charges_and_the_close() -> None:
    for account in casting.cast()["accounts"]:
        if account["plan"] == "invoiced":
            continue
        expected = account["expected"]
        opening = parse_amount(account.get("opening") or account["goodwill"])
        recharged = 0
        for each in expected["recharges"].split(", "):
            if "settled" in each:
                times, _, rest = each.rpartition("settled ")
                recharged += int(times.removesuffix(" x ") or 1) * parse_amount(rest)
        spent = charges(expected["before"])[1] + charges(expected["after"])[1]
        close = 0 if expected["close"] == "none" else parse_amount(expected["close"], signed=True)
        assert format_nano(opening + recharged - spent + close) == shortest(expected["wallet"]), account["account"]


def test_the_sample_is_read_as_the_page_says() -> None:
    sample = casting.sample()
    assert (sample.report.rows, sample.report.legs, sample.newest) == (1000, 413, NEWEST)


@given(INSTANTS)
def test_all_shifted_records_lie_in_the_past_and_none_is_too_old(now: datetime) -> None:
    end = casting.boundary(now, NEWEST)
    shift = end - casting.SAMPLE_BOUNDARY
    assert shift == timedelta(days=shift.days)
    assert NEWEST + shift < now
    assert now - (OLDEST + shift) <= timedelta(days=34, hours=12, minutes=56)
    assert now - end > timedelta(hours=48)


@given(INSTANTS)
def test_the_demo_never_starts_in_the_last_three_minutes_of_a_day(now: datetime) -> None:
    start = now + casting.until_safe(now)
    midnight = start.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    assert midnight - start >= timedelta(seconds=casting.MIDNIGHT_S)


def test_the_demo_empties_no_folder_that_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InvalidInput, match="holds something else than an earlier demo"):
        servers.start(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_cell_compares_amounts_by_value_and_everything_else_to_the_letter() -> None:
    assert Cell("a", "b", "13: 0.9940", "13: 0.994").holds
    assert not Cell("a", "b", "13: 0.994", "12: 0.994").holds
    assert not Cell("a", "b", "settled 30.50", "declined 30.5").holds
