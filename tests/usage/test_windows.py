"""Windows: the clock on the wall of their zone decides, whatever the clocks do."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.kernel.errors import InvalidInput
from services.usage import api
from services.usage.books import OUTBOUND, BookVersion, PriceBook, PriceRow
from services.usage.price_files import read_price_file, read_windows
from services.usage.windows import Window, window_of
from tests.support.usage_registry import leg
from tests.support.usage_room import Usage

DETROIT, BERLIN, LORD_HOWE = "America/Detroit", "Europe/Berlin", "Australia/Lord_Howe"
EVERY_DAY = "mon-sun"


def instants(window: Window, *texts: str) -> list[bool]:
    return [window.holds(datetime.fromisoformat(text)) for text in texts]


# ---- when a window holds ---------------------------------------------------------------------------------------------


def test_a_window_holds_from_its_first_minute_to_before_its_last() -> None:
    peak = window_of("peak", BERLIN, "mon-fri", "08:00", "18:00")
    monday = ("2026-11-02T06:59:59Z", "2026-11-02T07:00:00Z", "2026-11-02T16:59:59Z", "2026-11-02T17:00:00Z")
    assert instants(peak, *monday) == [False, True, True, False]
    assert instants(peak, "2026-11-01T11:00:00Z") == [False], "a Sunday"


def test_a_window_that_passes_midnight_belongs_to_the_day_it_begins_on() -> None:
    night = window_of("night", "UTC", "fri", "22:00", "06:00")
    assert instants(night, "2026-11-06T05:00:00Z", "2026-11-06T22:00:00Z") == [False, True]
    assert instants(night, "2026-11-07T05:59:00Z", "2026-11-07T06:00:00Z", "2026-11-07T22:00:00Z") == [
        True,
        False,
        False,
    ]


def test_a_holiday_is_no_day_of_the_week() -> None:
    christmas = "2026-12-25"  # a Friday
    peak = window_of("peak", "UTC", "mon-fri", "08:00", "18:00", christmas)
    cheap = window_of("cheap", "UTC", "sat sun holiday", "00:00", "24:00", christmas)
    at = ("2026-12-24T12:00:00Z", "2026-12-25T12:00:00Z", "2026-12-26T12:00:00Z")
    assert instants(peak, *at) == [True, False, False]
    assert instants(cheap, *at) == [False, True, True]


@pytest.mark.parametrize(
    ("zone", "start", "end", "inside", "outside"),
    [
        # Detroit: 01:00 to 02:00 comes twice on 1 November 2026, at 05:00Z and 06:00Z
        (DETROIT, "01:00", "02:00", ["2026-11-01T05:00:00Z", "2026-11-01T05:59:59Z", "2026-11-01T06:59:59Z"],
         ["2026-11-01T04:59:59Z", "2026-11-01T07:00:00Z"]),
        # a window that ends in the repeated hour ends, comes again with the hour, and ends again
        (DETROIT, "00:00", "01:30", ["2026-11-01T05:29:00Z", "2026-11-01T06:00:00Z", "2026-11-01T06:29:00Z"],
         ["2026-11-01T05:30:00Z", "2026-11-01T06:30:00Z"]),
        # 02:00 to 03:00 does not come on 8 March 2026: what begins in it begins at 03:00, 07:00Z
        (DETROIT, "02:30", "05:00", ["2026-03-08T07:00:00Z", "2026-03-08T08:59:59Z"],
         ["2026-03-08T06:59:59Z", "2026-03-08T09:00:00Z"]),
        # and one that lies in it wholly does not come either
        (DETROIT, "02:00", "03:00", ["2026-03-09T06:30:00Z"], ["2026-03-08T06:59:59Z", "2026-03-08T07:00:00Z"]),
        # Berlin: 02:00 to 03:00 comes twice on 25 October 2026 (00:00Z, 01:00Z) and not on 29 March 2026
        (BERLIN, "02:00", "03:00", ["2026-10-25T00:00:00Z", "2026-10-25T01:59:59Z"],
         ["2026-10-24T23:59:59Z", "2026-10-25T02:00:00Z", "2026-03-29T00:59:59Z", "2026-03-29T01:00:00Z"]),
        # Lord Howe moves its clocks by half an hour: 01:30 to 02:00 comes twice on 5 April 2026 (14:30Z, 15:00Z the day before)
        (LORD_HOWE, "01:30", "02:00", ["2026-04-04T14:30:00Z", "2026-04-04T15:29:59Z"],
         ["2026-04-04T14:29:59Z", "2026-04-04T15:30:00Z"]),
        # and 02:00 to 02:30 does not come on 4 October 2026, when it is 02:30 at 15:30Z
        (LORD_HOWE, "02:15", "03:00", ["2026-10-03T15:30:00Z", "2026-10-03T15:59:59Z"],
         ["2026-10-03T15:29:59Z", "2026-10-03T16:00:00Z"]),
    ],
)  # fmt: skip
def test_when_clocks_change_the_clock_on_the_wall_decides(
    zone: str, start: str, end: str, inside: list[str], outside: list[str]
) -> None:
    window = window_of("w", zone, EVERY_DAY, start, end)
    assert instants(window, *inside, *outside) == [True] * len(inside) + [False] * len(outside)


@pytest.mark.parametrize("zone", [DETROIT, BERLIN, LORD_HOWE])
def test_day_and_night_share_out_every_instant_of_a_year(zone: str) -> None:
    day = window_of("day", zone, EVERY_DAY, "02:15", "14:30")
    night = window_of("night", zone, EVERY_DAY, "14:30", "02:15")
    at = datetime(2026, 1, 1, tzinfo=UTC)
    for quarter in range(366 * 96):
        moment = at + timedelta(minutes=15 * quarter)
        assert day.holds(moment) != night.holds(moment), moment


@pytest.mark.parametrize(
    ("texts", "field"),
    [
        (("a b", "UTC", "mon", "08:00", "18:00"), "id"),
        (("a", "Mars", "mon", "08:00", "18:00"), "zone"),
        (("a", "UTC", "", "08:00", "18:00"), "days"),
        (("a", "UTC", "mon-", "08:00", "18:00"), "days"),
        (("a", "UTC", "Monday", "08:00", "18:00"), "days"),
        (("a", "UTC", "mon", "24:00", "18:00"), "from"),
        (("a", "UTC", "mon", "08:00", "18:60"), "to"),
        (("a", "UTC", "mon", "08:00", "18:00", "2026-02-30"), "holidays"),
        (("a", "UTC", "mon", "08:00", "18:00", "25.12.2026"), "holidays"),
        (("a", "UTC", "holiday", "08:00", "18:00"), "holidays"),
    ],
)
def test_what_is_no_window_is_named_by_its_field(texts: tuple[str, ...], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        window_of(*texts)
    assert refused.value.field == field


# ---- overlaps --------------------------------------------------------------------------------------------------------


def test_overlaps_are_told_with_the_day_and_the_time() -> None:
    work = window_of("work", "UTC", "mon-fri", "08:00", "18:00")
    late = window_of("late", "UTC", "fri", "20:00", "09:00")
    assert work.overlap(late) is None, "Saturday morning is no work"
    assert work.overlap(window_of("late", "UTC", "thu", "20:00", "09:00")) == "Fri 08:00"
    assert (
        work.overlap(window_of("free", "UTC", "holiday", "00:00", "24:00", "2026-12-26 2026-12-25"))
        == "2026-12-25 08:00"
    )
    christmas = "2026-12-25"
    work = window_of("work", "UTC", "mon-fri", "08:00", "18:00", christmas)
    assert work.overlap(window_of("free", "UTC", "holiday", "00:00", "24:00", christmas)) is None
    assert work.overlap(window_of("eve", "UTC", "holiday", "20:00", "09:00", "2026-12-27")) == "2026-12-28 08:00"


WINDOWS = st.builds(
    lambda days, start, end, holidays: Window("w", BERLIN, frozenset(days), start * 60, end * 60, frozenset(holidays)),
    st.sets(st.integers(0, 7), min_size=1),
    st.integers(0, 23),
    st.integers(0, 24),
    st.sets(st.dates(date(2026, 3, 30), date(2026, 4, 9)), max_size=2),
)


@settings(deadline=None, max_examples=150)
@given(WINDOWS, WINDOWS)
def test_windows_that_are_let_pass_together_never_hold_together(one: Window, other: Window) -> None:
    """Hour by hour over the weeks around a change of clocks: told overlaps are seen, and none is seen that was not told. No
    holiday is at the change itself, where one could be told for the hour that does not come."""
    begin = datetime(2026, 3, 1, tzinfo=UTC)
    both = [at for hour in range(24 * 60) if one.holds(at := begin + timedelta(hours=hour)) and other.holds(at)]
    assert (one.overlap(other) is None) == (not both)
    assert other.overlap(one) == one.overlap(other)


# ---- prices in windows -----------------------------------------------------------------------------------------------

PEAK = window_of("peak", "UTC", "mon-fri", "08:00", "18:00")
NIGHT = window_of("night", "UTC", EVERY_DAY, "22:00", "06:00")
MONDAY = datetime(2026, 11, 2, tzinfo=UTC)


def found(rows: list[tuple[str, str, int]], number: str, hour: float, duration_s: int = 0) -> int | None:
    version = BookVersion(
        "list", 1, "USD", MONDAY - timedelta(days=90),
        tuple(PriceRow(OUTBOUND, prefix, nano, window=window) for prefix, window, nano in rows), (PEAK, NIGHT),
    )  # fmt: skip
    price = PriceBook("list", [version]).find(OUTBOUND, number, MONDAY + timedelta(hours=hour), duration_s)
    return price.price_nano if price is not None else None


def test_the_price_of_the_window_wins_over_the_one_without() -> None:
    rows = [("+49", "", 3), ("+49", "peak", 5), ("+49", "night", 1)]
    assert [found(rows, "+4930123456", hour) for hour in (5, 7, 12, 19, 23)] == [1, 3, 5, 3, 1]


def test_the_longest_prefix_with_a_price_at_that_time_wins_over_any_window() -> None:
    rows = [("+49", "peak", 5), ("+4930", "", 3), ("+4989", "night", 1), ("*", "", 9)]
    assert found(rows, "+4930123456", 12) == 3
    assert found(rows, "+4989123456", 12) == 5, "+4989 has no price by day"
    assert found(rows, "+4989123456", 19) == 9
    assert found(rows[:-1], "+4989123456", 19) is None


def test_the_window_counts_in_which_the_use_began() -> None:
    rows = [("+49", "", 3), ("+49", "peak", 5)]
    assert found(rows, "+4930123456", 18.5, 1_800) == 3, "began at 18:00"
    assert found(rows, "+4930123456", 18.5, 1_801) == 5
    assert found(rows, "+4930123456", 8.5, 1_801) == 3


def test_the_version_follows_the_end_of_a_use_and_its_window_the_beginning() -> None:
    old, new = (
        BookVersion(
            "list",
            number,
            "USD",
            start,
            (PriceRow(OUTBOUND, "+49", number), PriceRow(OUTBOUND, "+49", 10 * number, window="night")),
            (NIGHT,),
        )
        for number, start in ((1, MONDAY - timedelta(days=1)), (2, MONDAY + timedelta(hours=6)))
    )
    price = PriceBook("list", [old, new]).find(OUTBOUND, "+4930123456", MONDAY + timedelta(hours=6), 60)
    assert price is not None
    assert price.price_nano == 20


# ---- files -----------------------------------------------------------------------------------------------------------

WINDOW_FILE = b"""id,zone,days,from,to,holidays
peak,America/Detroit,mon-fri,08:00,18:00,2026-12-25 2027-01-01
night,America/Detroit,mon-sun,22:00,06:00,
early,America/Detroit,mon,05:00,09:00,
abroad,Europe/Berlin,sun,00:00,01:00,
"""
HEADER = "product,prefix,price,currency,window\n"


def test_a_file_of_windows_gives_windows_to_a_file_of_prices() -> None:
    windows = read_windows(WINDOW_FILE)
    assert windows[0] == window_of("peak", DETROIT, "mon-fri", "08:00", "18:00", "2027-01-01 2026-12-25")
    file = read_price_file(
        (HEADER + "voice.outbound,1,0.01,USD,\nvoice.outbound,1,0.02,USD,peak\n").encode(), windows=windows
    )
    assert (file.refused, file.windows) == ((), windows)
    assert [(row.prefix, row.window, row.price_nano) for row in file.rows] == [
        ("+1", "", 10_000_000),
        ("+1", "peak", 20_000_000),
    ]


@pytest.mark.parametrize(
    ("line", "refusal"),
    [
        ("voice.outbound,1,0.03,USD,dusk", "line 4, window: there is no usable window dusk; name it among the windows"),
        ("voice.outbound,1,0.03,USD,peak", "line 4, prefix: +1 has a price on line 3 already; keep one"),
        ("voice.outbound,1,0.03,USD,early",
         "line 4, window: early and peak, which +1 has on line 3, overlap (Mon 08:00); end one where the other begins"),
        ("voice.outbound,1,0.03,USD,abroad",
         "line 4, window: abroad and peak, which +1 has on line 3, are of two zones (Europe/Berlin, America/Detroit);"
         " give one prefix windows of one"),
    ],
)  # fmt: skip
def test_a_row_whose_window_cannot_be_is_refused_by_name(line: str, refusal: str) -> None:
    lines = f"voice.outbound,1,0.01,USD,\nvoice.outbound,1,0.02,USD,peak\n{line}\nvoice.outbound,44,0.02,USD,early\n"
    file = read_price_file((HEADER + lines).encode(), windows=read_windows(WINDOW_FILE))
    assert [str(refused) for refused in file.refused] == [refusal]
    assert [(row.prefix, row.window) for row in file.rows] == [("+1", ""), ("+1", "peak"), ("+44", "early")]


def test_a_country_may_have_prices_in_windows() -> None:
    file = read_price_file(
        b"iso_country,price_per_minute,currency,window\n"
        b"DE,0.01,USD,\nDE,0.02,USD,peak\nDE,0.03,USD,early\nKZ,0.25,USD,peak\nRU,0.30,USD,peak\nDE,0.05,USD,peak\n",
        windows=read_windows(WINDOW_FILE),
    )
    assert [str(refused) for refused in file.refused] == [
        "line 4, window: early and peak, which DE has on line 3, overlap (Mon 08:00); end one where the other begins",
        "line 7, iso_country: DE has a price on line 3 already; keep one",
    ]
    found = {(row.prefix, row.window): row.price_nano for row in file.rows}
    assert (found["+49", ""], found["+49", "peak"]) == (10_000_000, 20_000_000)
    assert (found["+77", "peak"], found["+74", "peak"]) == (250_000_000, 300_000_000)
    assert {window for _, window in found} == {"", "peak"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"id,zone,days,from\n", "the header must be id, zone, days, from and to"),
        (b"id,zone,days,from,to\na,UTC,mon,8,18:00\n", 'line 2, from: must be a time such as "08:00"'),
        (b"id,zone,days,from,to\na,UTC,mon\n", "line 2, from"),
        (
            b"id,zone,days,from,to,holidays\na,UTC,mon,08:00,18:00,2026-12-25,2026-12-26\n",
            "line 2, column 7: the line has 7 fields, the header 6; quote a field that holds a comma",
        ),
        (
            b"id,zone,days,from,to\na,UTC,mon,08:00,09:00\na,UTC,tue,08:00,09:00\n",
            "line 3, id: there is a window a already",
        ),
    ],
)
def test_a_file_of_windows_with_a_line_that_is_none_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as refused:
        read_windows(data)
    assert refused.value.field == "windows"


# ---- from the event to the charge ------------------------------------------------------------------------------------


async def test_a_charge_names_the_window_and_explains_it(usage: Usage) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    hour = timedelta(hours=1)
    windows: list[dict[str, Any]] = [
        {"id": name, "zone": "UTC", "days": "mon-sun", "from": f"{start:%H}:00", "to": f"{start + hour:%H}:00"}
        for name, start in (("now", now), ("before", now - hour))
    ]
    header = "id,zone,days,from,to\n"
    text = header + "\n".join(",".join(window.values()) for window in windows)
    prices = "voice.outbound,1,0.01,USD,\nvoice.outbound,1,0.02,USD,now\nvoice.outbound,1,0.03,USD,before\n"
    file = read_price_file((HEADER + prices).encode(), windows=read_windows(text.encode()))
    assert file.refused == ()
    await api.import_prices(usage.engine, "list", file, now - timedelta(days=2))
    top = now.replace(minute=0, second=0)
    await usage.take(
        leg("in", top, billable_s=60, duration_s=60, called="+12485550101"),
        leg("out", top - hour, billable_s=60, duration_s=60),
    )
    within, without = usage.charges
    assert (within["window"], within["unit_price"], within["matched"]) == ("before", "0.03", "+1")
    assert ("window" in without, without["unit_price"]) == (False, "0.01")
    steps = (await api.charge(usage.engine, UUID(within["charge_id"]))).steps
    assert steps[0].startswith(
        f"began {top - timedelta(minutes=1):%a %Y-%m-%d %H:%M:%S} (UTC), which is in window before:"
    )
    assert steps[1].startswith("prefix +1 in window before of book list, version 2 (voice.outbound): 0.03 USD a minute")
    assert steps[-1] == "rounded half-even to 9 decimals: 0.03 USD"
    explained = await api.charge(usage.engine, UUID(without["charge_id"]))
    assert explained.charge["window"] is None
    assert json.dumps(explained.steps).count("window") == 0
