"""The sample file with the demo's books gives the demo's charges, to the last digit, without any server."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from datetime import UTC, datetime
from pathlib import Path

import pytest

from contracts.topics import USAGE_EVENTS
from services.kernel.money import format_nano
from services.usage.books import TOLL_FREE, BookVersion, PriceBooks
from services.usage.events import Event, decode
from services.usage.importing import FORMATS, ImportReport, LegEvent, read_profile
from services.usage.price_files import read_price_file
from services.usage.rating import NoPrice, NotBillable, Outcome, Rated, explain, rate

DEMO = Path(__file__).parents[2] / "deploy" / "demo"
T = datetime(2026, 11, 1, tzinfo=UTC)
MONTH_BEFORE = datetime(2026, 10, 1, tzinfo=UTC)
SHIFT_DAYS = (T - datetime(2018, 12, 1, tzinfo=UTC)).days
WHOLESALE = {"east", "west", "offshore"}

Charges = list[tuple[LegEvent, Event, Outcome]]


def version(book_id: str, number: int, file: str) -> BookVersion:
    prices = read_price_file((DEMO / file).read_bytes())
    return BookVersion(book_id, number, prices.currency, MONTH_BEFORE, prices.rows)


VERSIONS = [
    version("list", 1, "voice_prices.csv"),
    version("inbound", 1, "inbound_prices.csv"),
    version("inbound", 2, "inbound_prices_v2.csv"),
    version("wholesale", 1, "wholesale_prices.csv"),
]


def imported() -> tuple[list[LegEvent], ImportReport]:
    report = ImportReport()
    profile = read_profile(DEMO / "switch_profile.json")
    with (DEMO / "asterisk_master.csv").open("rb") as records:
        return list(FORMATS["asterisk"](records, profile, report, shift_days=SHIFT_DAYS)), report


def rated_with(books: PriceBooks) -> Charges:
    charges: Charges = []
    for leg_event in imported()[0]:
        call = decode(json.dumps(leg_event.event).encode())
        model = "wholesale" if leg_event.account_id in WHOLESALE else None
        chain = books.chain(pricing_model=model, default=("list", "inbound"))
        charges.append((leg_event, call, rate(call.use, call.event_time, chain, "USD")))
    return charges


@pytest.fixture(scope="module")
def charges() -> Charges:
    return rated_with(PriceBooks(VERSIONS))


def test_every_row_of_the_sample_is_accounted_for() -> None:
    events, report = imported()
    assert report.rows == 1_000
    assert report.legs == 413
    assert report.rows == report.published + report.internal + report.no_leg + report.refused
    assert (report.published, len(events)) == (386, 386)
    assert set(report.refused_by_code) == {"unanswered_no_number"}
    assert report.bytes_read == (DEMO / "asterisk_master.csv").stat().st_size


def test_every_published_event_is_of_the_contract_and_has_an_id_of_its_own() -> None:
    events, _ = imported()
    for leg_event in events:
        USAGE_EVENTS.adapter.validate_python(leg_event.event)
        assert leg_event.account_id == leg_event.event["data"]["account_id"]
    assert len({leg_event.event["id"] for leg_event in events}) == len(events)


def test_the_file_gives_the_same_events_again() -> None:
    assert imported()[0] == imported()[0]


def test_a_wall_clock_of_the_switch_is_the_instant_its_uniqueid_names() -> None:
    first = imported()[0][0].event
    created = datetime.fromtimestamp(int(first["id"].split(".")[0]), UTC)
    started = datetime.fromisoformat(first["data"]["started_at"])
    assert (started.time(), (started - created).days) == (created.time(), SHIFT_DAYS)


def test_250_charges_result(charges: Charges) -> None:
    billed = [(call, outcome) for _, call, outcome in charges if isinstance(outcome, Rated)]
    outbound = [call for call, _ in billed if call.use.direction == "outbound"]
    inbound = [call for call, _ in billed if call.use.direction == "inbound"]
    assert (len(billed), len(outbound), len(inbound)) == (250, 106, 144)
    assert Counter("India" if call.use.called.startswith("+91") else "US" for call in outbound) == {
        "US": 101,
        "India": 5,
    }
    assert len({call.use.called for call in outbound}) == 60
    assert all(isinstance(outcome, Rated | NotBillable) for _, _, outcome in charges)


def test_the_numbers_of_ours_carry_the_rows_they_should(charges: Charges) -> None:
    rows = Counter(call.use.called for _, call, _ in charges if call.use.direction == "inbound")
    assert len(rows) == 8
    assert (rows["+12484329407"], rows["+18778874413"]) == (181, 12)


@pytest.mark.parametrize(
    ("account", "before", "after"),
    [
        ("frontdesk", (1, "0.028"), (0, "0")),
        ("night", (0, "0"), (1, "0.252")),
        ("kiosk", (1, "0.014"), (0, "0")),
        ("sales", (13, "0.994"), (0, "0")),
        ("burst", (0, "0"), (9, "0.182")),
        ("support", (75, "0.915758333"), (69, "1.360425001")),
        ("main", (13, "0.322"), (8, "0.224")),
        ("field", (0, "0"), (7, "0.154")),
        ("try", (0, "0"), (2, "0.07")),
        ("east", (21, "0.363"), (15, "0.1974")),
        ("west", (8, "0.1244"), (0, "0")),
        ("offshore", (4, "0.108"), (3, "0.123")),
    ],
)
def test_each_account_has_its_charges(
    charges: Charges, account: str, before: tuple[int, str], after: tuple[int, str]
) -> None:
    sums: dict[bool, list[int]] = defaultdict(list)
    for leg_event, call, outcome in charges:
        if leg_event.account_id == account and isinstance(outcome, Rated):
            sums[call.event_time < T].append(outcome.amount_nano)
    assert (len(sums[True]), format_nano(sum(sums[True]))) == before
    assert (len(sums[False]), format_nano(sum(sums[False]))) == after


def test_no_account_but_the_cast_is_charged(charges: Charges) -> None:
    cast = {"frontdesk", "night", "kiosk", "sales", "burst", "support", "main", "field", "try", *WHOLESALE}
    assert {leg_event.account_id for leg_event, _, outcome in charges if isinstance(outcome, Rated)} == cast


def test_without_book_version_2_three_toll_free_records_have_no_price(charges: Charges) -> None:
    first = rated_with(PriceBooks([book for book in VERSIONS if (book.book_id, book.version) != ("inbound", 2)]))
    waiting = [event.event["id"] for event, _, outcome in first if isinstance(outcome, NoPrice)]
    toll_free = {
        event.event["id"]: outcome.amount_nano
        for event, _, outcome in charges
        if isinstance(outcome, Rated) and outcome.price.product == TOLL_FREE
    }
    assert len(waiting) == 3
    assert set(waiting) == set(toll_free)
    assert format_nano(sum(toll_free.values())) == "0.3498"
    held = {event.account_id for event, call, outcome in first if isinstance(outcome, NoPrice) and call.event_time < T}
    assert held == {"support"}


def test_the_account_that_is_not_registered_has_twelve_records_seven_answered(charges: Charges) -> None:
    of_field = [call for event, call, _ in charges if event.account_id == "field"]
    assert (len(of_field), sum(call.use.answered for call in of_field)) == (12, 7)


def test_offshores_calls_to_india_before_t_cost_0_0820(charges: Charges) -> None:
    india = [
        (call, outcome)
        for event, call, outcome in charges
        if event.account_id == "offshore"
        and isinstance(outcome, Rated)
        and outcome.price.prefix == "+91"
        and call.event_time < T
    ]
    assert format_nano(sum(outcome.amount_nano for _, outcome in india)) == "0.082"
    answered_s = [call.use.billable_s for call, _ in sorted(india, key=lambda pair: pair[0].event_time)]
    assert answered_s == [25, 23]
    for call, outcome in india:
        assert outcome.billed == 60
        assert explain(outcome.price, call.use.billable_s, 60)[-2:] == (
            "0.04 + connection fee 0.001 = 0.041",
            "rounded half-even to 9 decimals: 0.041 USD",
        )
