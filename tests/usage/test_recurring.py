"""The fees of numbers: worked example, moves, prices, many workers; and any history judged by walking through time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from contracts.groups import AccountTimeline, GroupInterval, OwnerInterval, PlanInterval, ResourceTimeline
from contracts.topics import USAGE_EVENTS
from services.kernel.period import next_period, period_of
from services.runtime.database import open_engine
from services.runtime.processor import Processor
from services.usage import api
from services.usage.consumer import build
from services.usage.price_files import read_price_file
from services.usage.recurring import Stretch, due, stretches
from services.usage.registry import Account, Number
from tests.support.rooms import Log, Rooms
from tests.support.servers import Database
from tests.support.usage_registry import LONG_AGO, leg
from tests.support.usage_room import Usage

NUMBER = "+13135550177"
DETROIT = "America/Detroit"
BOUGHT = datetime(2027, 3, 20, 23, 30, tzinfo=ZoneInfo(DETROIT)).astimezone(UTC)
RENTAL_PRICES = b"product,prefix,price,currency\nnumber.rental,1,1.00,USD\n"


class Renting(Usage):
    """The room, in a database whose clock is moved."""

    def __init__(self, log: Log, rooms: Rooms, database: Database) -> None:
        super().__init__(log, rooms)
        self.database = database

    async def at(self, instant: datetime) -> None:
        """Move the clock on to an instant and let everything run."""
        async with self.database.connected() as owner:
            now: datetime = await owner.fetchval("select runtime.clock_now()")
            assert instant > now, "the clock only goes forward"
            await owner.execute("select runtime.clock_move($1)", instant - now)
        await self.rooms.pump(ticks=True)

    async def sells(self, prices: bytes = RENTAL_PRICES, since: datetime = LONG_AGO, book: str = "numbers") -> None:
        await api.import_prices(self.engine, book, read_price_file(prices), since, is_default=True)
        await self.rooms.pump(ticks=True)

    @property
    def fees(self) -> list[tuple[str, str, int, str]]:
        """(event id, account, days, amount) of every charge of a number, in the order of time."""
        found = [charge for charge in self.charges if charge["product"] == "number.rental"]
        return [
            (c["event_id"], c["account_id"], c["quantity"], c["amount"])
            for c in sorted(found, key=lambda c: (c["event_time"], c["event_id"]))
        ]


@pytest.fixture
async def renting(database: Database) -> AsyncIterator[Renting]:
    log = Log()
    async with Rooms(log, database, [build()]) as rooms:
        started = Renting(log, rooms, database)
        await started.start()
        started.send.account("detroit", zone=DETROIT)
        await rooms.pump(ticks=True)
        yield started


# ---- worked example --------------------------------------------------------------------------------------------------


async def test_a_number_bought_late_on_the_20th_pays_twelve_days_and_then_whole_months(renting: Renting) -> None:
    """March has 31 days and the change to summer time; the 20th has begun, so 12 days are paid: 12 x 1.00 / 31."""
    await renting.sells()
    await renting.at(BOUGHT + timedelta(seconds=5))
    renting.send.resource("main", "detroit", "cc-main", number=NUMBER, owners=[(BOUGHT, None, "detroit")])
    await renting.rooms.pump(ticks=True)
    (charge,) = renting.charges
    assert charge["event_time"] == "2027-03-21T03:30:00Z"
    assert (charge["period"], charge["group_id"], charge["cost_center_id"]) == ("2027-03", "g-detroit", "cc-main")
    assert (charge["publisher"], charge["source"], charge["event_id"]) == (
        "tollbook", "tollbook/recurring", "main:2027-03",
    )  # fmt: skip
    assert (charge["quantity"], charge["per"], charge["amount"]) == (12, 31, "0.387096774")
    await renting.at(datetime(2027, 4, 1, 3, 59, 59, tzinfo=UTC))
    assert len(renting.fees) == 1
    await renting.at(datetime(2027, 5, 2, tzinfo=UTC))  # away for a month: nothing is left out
    assert renting.fees[1:] == [("main:2027-04", "detroit", 30, "1"), ("main:2027-05", "detroit", 31, "1")]
    assert [c["event_time"] for c in renting.charges[1:]] == ["2027-04-01T04:00:00Z", "2027-05-01T04:00:00Z"]
    assert renting.rejections == []
    for event in renting.log.read(USAGE_EVENTS.of("tollbook")):
        assert set(event) == {"specversion", "id", "source", "type", "time", "data"}


async def test_prices_of_calls_have_no_number_looked_at(renting: Renting) -> None:
    """A carrier's list comes each week, and numbers may be a million."""

    async def is_due() -> bool:
        async with renting.database.connected() as owner:
            found: bool = await owner.fetchval("select exists (select from usage.due where kind = 'rental.prices')")
            return found

    await renting.sells()
    calls = read_price_file(b"product,prefix,price_per_minute,currency\nvoice.outbound,44,0.01,USD\n")
    await api.import_prices(renting.engine, "calls", calls, LONG_AGO, is_default=True)
    assert not await is_due()
    await api.import_prices(renting.engine, "numbers", read_price_file(RENTAL_PRICES), LONG_AGO)
    assert await is_due()


async def test_a_trial_pays_by_the_months_of_utc_and_is_on_no_invoice(renting: Renting) -> None:
    await renting.sells()
    await renting.at(BOUGHT + timedelta(seconds=5))
    renting.send.account("try", plan="trial", zone=DETROIT)
    renting.send.resource("main", "try", None, number=NUMBER, owners=[(BOUGHT, None, "try")])
    await renting.rooms.pump(ticks=True)
    (charge,) = renting.charges
    assert (charge["quantity"], charge["group_id"], charge["bill_to"]) == (11, None, None)  # there it is the 21st


# ---- moves -----------------------------------------------------------------------------------------------------------


async def test_the_month_stays_with_the_first_account_and_the_next_is_the_new_ones(renting: Renting) -> None:
    await renting.sells()
    await renting.at(BOUGHT + timedelta(days=2))
    moved = BOUGHT + timedelta(days=1)
    renting.send.resource(
        "main", "sales", None, number=NUMBER, owners=[(BOUGHT, moved, "detroit"), (moved, None, "sales")]
    )
    await renting.at(datetime(2027, 4, 15, tzinfo=UTC))
    assert renting.fees == [("main:2027-03", "detroit", 12, "0.387096774"), ("main:2027-04", "sales", 30, "1")]
    assert {c["event_time"] for c in renting.charges} == {"2027-03-21T03:30:00Z", "2027-04-01T00:00:00Z"}
    released = datetime(2027, 4, 20, tzinfo=UTC)
    renting.send.resource(
        "main", "sales", None, number=NUMBER, owners=[(BOUGHT, moved, "detroit"), (moved, released, "sales")]
    )
    await renting.at(datetime(2027, 6, 15, tzinfo=UTC))
    assert len(renting.fees) == 2


async def test_an_account_that_is_told_after_its_number_and_one_that_closes(renting: Renting) -> None:
    await renting.sells()
    await renting.at(BOUGHT + timedelta(seconds=5))
    renting.send.resource("main", "late", None, number=NUMBER, owners=[(BOUGHT, None, "late")])
    await renting.rooms.pump(ticks=True)
    assert renting.fees == []
    renting.send.account("late", opened_at=BOUGHT + timedelta(seconds=1), closed_at=datetime(2027, 4, 2, tzinfo=UTC))
    await renting.at(datetime(2027, 5, 15, tzinfo=UTC))
    assert [(fee[0], fee[2]) for fee in renting.fees] == [("main:2027-03", 11), ("main:2027-04", 30)]


# ---- prices ----------------------------------------------------------------------------------------------------------


async def test_numbers_are_free_where_no_book_sells_them_until_one_does(renting: Renting) -> None:
    await renting.at(BOUGHT + timedelta(seconds=5))
    renting.send.resource("main", "detroit", None, number=NUMBER, owners=[(BOUGHT, None, "detroit")])
    await renting.at(datetime(2027, 4, 10, tzinfo=UTC))
    assert renting.log.read(USAGE_EVENTS.of("tollbook")) == []
    # valid from the 15th of March: what had begun then, and was bought since, is paid
    await renting.sells(since=datetime(2027, 3, 15, tzinfo=UTC))
    assert [fee[0] for fee in renting.fees] == ["main:2027-03", "main:2027-04"]


async def test_a_price_dated_back_is_paid_from_there_also_where_a_later_month_was_paid(renting: Renting) -> None:
    await renting.sells(since=datetime(2027, 5, 1, tzinfo=UTC))
    await renting.at(BOUGHT + timedelta(seconds=5))
    renting.send.resource("main", "sales", None, number=NUMBER, owners=[(BOUGHT, None, "sales")])
    await renting.at(datetime(2027, 5, 10, tzinfo=UTC))
    assert [fee[0] for fee in renting.fees] == ["main:2027-05"]
    await renting.sells(since=BOUGHT)
    assert [(fee[0], fee[2]) for fee in renting.fees] == [
        ("main:2027-03", 11), ("main:2027-04", 30), ("main:2027-05", 31),
    ]  # fmt: skip


async def test_a_number_that_was_an_accounts_earlier_than_was_told_is_paid_from_there(renting: Renting) -> None:
    await renting.sells()
    told = datetime(2027, 4, 10, tzinfo=UTC)
    await renting.at(told + timedelta(seconds=5))
    renting.send.resource("main", "sales", None, number=NUMBER, owners=[(told, None, "sales")])
    await renting.rooms.pump(ticks=True)
    assert [(fee[0], fee[2]) for fee in renting.fees] == [("main:2027-04", 21)]
    renting.send.resource("main", "sales", None, number=NUMBER, owners=[(BOUGHT, None, "sales")])
    await renting.rooms.pump(ticks=True)
    assert [(fee[0], fee[2]) for fee in renting.fees] == [("main:2027-03", 11), ("main:2027-04", 21)]


async def test_a_price_that_begins_in_mid_month_begins_with_the_next_for_numbers_there_are(renting: Renting) -> None:
    await renting.sells(since=datetime(2027, 4, 15, tzinfo=UTC))
    await renting.at(BOUGHT + timedelta(seconds=5))
    renting.send.resource("main", "sales", None, number=NUMBER, owners=[(BOUGHT, None, "sales")])
    await renting.at(datetime(2027, 5, 10, tzinfo=UTC))
    assert [fee[0] for fee in renting.fees] == ["main:2027-05"]


async def test_a_number_whose_price_is_missing_is_seen_and_paid_when_it_comes(renting: Renting) -> None:
    await renting.sells()
    await renting.at(BOUGHT + timedelta(seconds=5))
    renting.send.resource("berlin", "detroit", None, number="+4930123456", owners=[(BOUGHT, None, "detroit")])
    await renting.rooms.pump(ticks=True)
    (rejection,) = renting.rejections
    assert (rejection["publisher"], rejection["reason"], rejection["field"]) == ("tollbook", "no_price", "data.number")
    await renting.sells(b"product,prefix,price,currency\nnumber.rental,49,3.10,USD\n", book="germany")
    assert renting.fees == [("berlin:2027-03", "detroit", 12, "1.2")]


async def test_months_that_had_begun_before_tollbook_was_installed_are_not_billed(renting: Renting) -> None:
    renting.send.resource("main", "sales", None, number=NUMBER)  # the account's since long ago
    await renting.sells()
    assert renting.fees == []
    now = datetime.now(UTC)
    following = next_period(period_of(now))
    await renting.at(following.start + timedelta(hours=1))
    (fee,) = renting.fees
    assert fee[0] == f"main:{following.name}"


# ---- once ------------------------------------------------------------------------------------------------------------


async def test_however_often_and_by_however_many_workers_a_fee_is_published_once(
    renting: Renting, database: Database
) -> None:
    await renting.sells()
    await renting.at(BOUGHT + timedelta(seconds=5))
    names = [f"n{each}" for each in range(7)]
    for each, name in enumerate(names):
        renting.send.resource(name, "detroit", None, number=f"+1313555018{each}", owners=[(BOUGHT, None, "detroit")])
    await renting.rooms.pump()  # known, not looked at yet
    engine = open_engine(database.room("usage"), application="test.second", pool_size=2)
    second = Processor(build(), engine, renting.log)
    try:
        for _ in range(3):
            await asyncio.gather(renting.processor.fire_timers(), second.fire_timers())
            async with database.connected() as owner:  # as if each had fired and not been noted
                await owner.execute("update usage.due set due_at = runtime.clock_now() where kind = 'rental'")
    finally:
        await engine.dispose()
    await renting.rooms.pump(ticks=True)
    published = [event["id"] for event in renting.log.read(USAGE_EVENTS.of("tollbook"))]
    assert sorted(published) == [f"{name}:2027-03" for name in names]
    assert len(renting.fees) == 7


async def test_only_tollbook_is_tollbook(renting: Renting) -> None:
    """Its name may bill every organization, from its one source; a registry that has that name changes nothing."""
    renting.send.publisher("tollbook", organizations=("lakeside",), sources=("pbx/detroit",))
    renting.send.account("northern", organization="northwind")
    await renting.rooms.pump()
    renting.send.leg(leg("e1", datetime.now(UTC).replace(microsecond=0)), publisher="tollbook")
    await renting.rooms.pump()
    assert [each["reason"] for each in renting.rejections] == ["not_permitted"]
    await renting.sells()
    await renting.at(BOUGHT + timedelta(seconds=5))
    renting.send.resource("main", "northern", None, number=NUMBER, owners=[(BOUGHT, None, "northern")])
    await renting.rooms.pump(ticks=True)
    assert [fee[:2] for fee in renting.fees] == [("main:2027-03", "northern")]


# ---- any history -----------------------------------------------------------------------------------------------------

STEP = timedelta(minutes=30)
FIRST = datetime(2027, 1, 28, tzinfo=UTC)
STEPS = 48 * 75  # into April: February, two changes of the clocks, months of 28 and 31 days
ZONES = ("UTC", DETROIT, "Pacific/Kiritimati", "Asia/Kolkata", "Europe/London", "Pacific/Honolulu")
histories = st.lists(
    st.tuples(
        st.integers(0, STEPS // 4),  # how long after the one before
        st.booleans(),  # nobody's in between
        st.sampled_from(("a", "b", "c")),
        st.sampled_from(ZONES),
    ),
    min_size=1,
    max_size=5,
)


def walked(parts: list[Stretch], since: datetime, end: datetime, has_fee: Any) -> list[tuple[str, str, datetime, int]]:
    """What is paid, found by walking through time by half hours: at each step, whose is it, and is the month paid?"""
    paid, fees, tried = "", [], None
    for step in range(STEPS):
        now = FIRST + step * STEP
        if now > end:
            break
        part = next((each for each in parts if each.start <= now and (each.end is None or now < each.end)), None)
        if part is None:
            continue
        local = now.astimezone(ZoneInfo(part.zone))
        month = f"{local:%Y-%m}"
        if now < since:
            paid = max(paid, month)
        elif month > paid and tried != (part, month):
            tried = part, month
            if has_fee(part.account_id, now):
                days, day = 0, local.date()
                while f"{day:%Y-%m}" == month:
                    days, day = days + 1, day + timedelta(days=1)
                fees.append((month, part.account_id, now, days))
                paid = month
    return fees


def test_what_lies_before_the_fees_that_are_looked_back_at_is_settled() -> None:
    """So that a look costs the same however long a number has been rented."""
    part, now = Stretch(FIRST, None, "a", "UTC"), datetime(2029, 6, 15, tzinfo=UTC)
    asked: list[datetime] = []

    def has_fee(_: str, instant: datetime) -> bool:
        asked.append(instant)
        return True

    paid = [f"2028-{month:02}" for month in range(7, 13)] + [f"2029-{month:02}" for month in (1, 2, 3, 4, 6)]
    assert [fee.period for fee in due([part], [*paid, "2028-05"], FIRST, now, has_fee).fees] == ["2028-06", "2029-05"]
    assert len(asked) == 2


def parts_of(history: list[tuple[int, bool, str, str]]) -> list[Stretch]:
    edges, at = [], 0
    for gap, is_pause, account, zone in history:
        at += gap
        edges.append((at, None if is_pause else (account, zone)))
    parts = []
    for (start, owner), following in zip(edges, [each[0] for each in edges[1:]] + [None], strict=True):
        if owner is not None and (following is None or following > start):
            end = None if following is None else FIRST + following * STEP
            parts.append(Stretch(FIRST + start * STEP, end, *owner))
    return parts


@settings(max_examples=150, deadline=None)
@given(
    words=st.lists(
        st.tuples(histories, st.dictionaries(st.sampled_from(("a", "b", "c")), st.integers(0, STEPS), max_size=3)),
        min_size=1, max_size=4,
    )
)  # fmt: skip
def test_whatever_was_known_before_each_month_that_is_due_by_the_last_word_is_paid_once(
    words: list[tuple[list[tuple[int, bool, str, str]], dict[str, int]]],
) -> None:
    """Whose the number was and what it cost is told anew between the looks."""
    found: list[str] = []
    for number, (history, priced) in enumerate(words, start=1):
        parts = parts_of([(*each[:3], "UTC") for each in history])
        known = dict(priced)

        def has_fee(account: str, instant: datetime, known: dict[str, int] = known) -> bool:
            return account in known and instant >= FIRST + known[account] * STEP

        now = FIRST + number * STEPS // len(words) * STEP
        decided = due(parts, found, FIRST, now, has_fee)
        found += [fee.period for fee in decided.fees]
        assert {fee[0] for fee in walked(parts, FIRST, now, has_fee)} <= set(found)
    assert len(set(found)) == len(found)


@settings(max_examples=150, deadline=None)
@given(
    history=histories,
    since=st.integers(0, STEPS // 2),
    priced=st.dictionaries(st.sampled_from(("a", "b", "c")), st.integers(0, STEPS), min_size=0, max_size=3),
    looks=st.lists(st.integers(0, STEPS - 1), min_size=1, max_size=6),
)
@example(  # released before Tollbook bills, and bought by another after that: it pays its first month
    history=[(0, False, "a", "UTC"), (10, True, "a", "UTC"), (48 * 20, False, "b", "UTC")],
    since=48 * 10,
    priced={"a": 0, "b": 0},
    looks=[STEPS - 1],
)
def test_any_history_is_paid_as_a_walk_through_time_says(
    history: list[tuple[int, bool, str, str]], since: int, priced: dict[str, int], looks: list[int]
) -> None:
    """However often it was looked at, and whenever: what was paid before, and then the rest."""
    parts = parts_of(history)

    def has_fee(account: str, instant: datetime) -> bool:
        return account in priced and instant >= FIRST + priced[account] * STEP

    begins = FIRST + since * STEP
    found: list[tuple[str, str, datetime, int]] = []
    for look in sorted(looks):
        decided = due(parts, {each[0] for each in found}, begins, FIRST + look * STEP, has_fee)
        found += [(fee.period, fee.account_id, fee.starts_at, fee.days) for fee in decided.fees]
        assert decided.look_again is None or decided.look_again > FIRST + look * STEP
    assert found == walked(parts, begins, FIRST + max(looks) * STEP, has_fee)
    assert len({fee[0] for fee in found}) == len(found)


cuts = st.lists(st.integers(0, 200), min_size=2, max_size=7, unique=True).map(sorted)


@settings(max_examples=100, deadline=None)
@given(
    owned=cuts,
    owners=st.lists(st.sampled_from(("a", "b", None)), min_size=6, max_size=6),
    paid=cuts,
    zones=st.lists(st.sampled_from(ZONES), min_size=6, max_size=6),
    opened=st.integers(0, 100),
    closed=st.none() | st.integers(100, 200),
    is_open_ended=st.booleans(),
)
def test_whose_a_number_is_and_in_which_zone_is_what_each_instant_says(
    owned: list[int],
    owners: list[str | None],
    paid: list[int],
    zones: list[str],
    opened: int,
    closed: int | None,
    is_open_ended: bool,
) -> None:
    """Owners may leave gaps; account `a` is a trial before its first group, opens and closes; `b` was not told."""

    def at(step: int) -> datetime:
        return FIRST + step * STEP

    def spans(edges: list[int], values: list[Any]) -> list[tuple[datetime, datetime | None, Any]]:
        ends = [*map(at, edges[1:]), None if is_open_ended else at(300)]
        return [(at(start), end, value) for start, end, value in zip(edges, ends, values, strict=False)]

    held = [(start, end, owner) for start, end, owner in spans(owned, owners) if owner is not None]
    payers = [
        (max(start, at(opened)), end, name)
        for start, end, name in spans(paid, zones)
        if end is None or end > at(opened)
    ]
    number = Number(
        ResourceTimeline(
            resource_id="main", version=1, kind="number", number=NUMBER, account_id=None, organization_id="lakeside",
            owners=tuple(OwnerInterval(start=start, end=end, account_id=owner) for start, end, owner in held),
            cost_centers=(),
        )
    )  # fmt: skip
    account = Account(
        AccountTimeline(
            account_id="a", account_no=1, version=1, organization_id="lakeside", name="a", currency="USD",
            opened_at=at(opened), created_at=at(opened), level_2=False, credit_limit="0",
            closed_at=None if closed is None else at(closed),
            plans=(PlanInterval(start=at(opened), end=None, plan="payg"),),
            groups=tuple(
                GroupInterval(start=start, end=end, group_id=f"g-{name[-3:]}", zone=name, currency="USD", pricing_model=None)
                for start, end, name in payers
            ),
        )
    )  # fmt: skip
    found = stretches(number, {"a": account})
    for step in range(310):
        now = at(step)
        holds = [each for each in found if each.start <= now and each.holds(now)]
        owner = next((name for start, end, name in held if start <= now and (end is None or now < end)), None)
        if owner != "a" or now < at(opened) or (closed is not None and now >= at(closed)):
            assert holds == []
            continue
        zone = next((name for start, end, name in payers if start <= now and (end is None or now < end)), "UTC")
        assert [(each.account_id, each.zone) for each in holds] == [("a", zone)]
