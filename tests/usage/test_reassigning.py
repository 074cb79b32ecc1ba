"""Which stretches a timeline changes, in which order charges are looked at, and whose they are: the pure part."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from contracts.groups import (
    AccountTimeline,
    CostCenterInterval,
    GroupInterval,
    OwnerInterval,
    PlanInterval,
    Publisher,
    ResourceTimeline,
)
from services.usage import reassigning
from services.usage.books import BookVersion, PriceBooks, PriceRow
from services.usage.reassigning import (
    BEFORE_ALL,
    NAMED_ACCOUNT,
    NAMED_CENTER,
    Job,
    Left,
    Moved,
    Reassigning,
    Stretch,
    account_stretches,
    changes,
    next_window,
    resource_stretches,
)
from services.usage.registry import Prices, Registry

DAY = timedelta(days=1)
START = datetime(2026, 11, 1, tzinfo=UTC)
HOURS = [START + timedelta(hours=6 * each) for each in range(16)]  # four days in quarters


def intervals(values: list[Any], make: Any) -> tuple[Any, ...]:
    """One interval for each run of equal values, the last one open; None: nothing then."""
    found = []
    begin = 0
    for index in range(1, len(values) + 1):
        if index == len(values) or values[index] != values[begin]:
            if values[begin] is not None:
                found.append(make(HOURS[begin], HOURS[index] if index < len(values) else None, values[begin]))
            begin = index
    return tuple(found)


def account(account_id: str, version: int, plans: list[Any], groups: list[Any]) -> AccountTimeline:
    return AccountTimeline(
        account_id=account_id, account_no=1, version=version, organization_id="lakeside", name="x", currency="USD",
        opened_at=START, created_at=START, level_2=False, credit_limit="0", closed_at=None,
        plans=intervals(plans, lambda start, end, plan: PlanInterval(start=start, end=end, plan=plan)),
        groups=intervals(
            groups,
            lambda start, end, group: GroupInterval(
                start=start, end=end, group_id=group, zone=ZONES[group], currency="USD", pricing_model=MODELS[group]
            ),
        ),
    )  # fmt: skip


def number(version: int, owners: list[Any], centers: list[Any], kind: str = "number") -> ResourceTimeline:
    return ResourceTimeline(
        resource_id=kind, version=version, kind=kind, number="+13135550199" if kind == "number" else None,  # type: ignore[arg-type]
        account_id=owners[-1], organization_id="lakeside",
        owners=intervals(owners, lambda start, end, owner: OwnerInterval(start=start, end=end, account_id=owner)),
        cost_centers=intervals(
            centers,
            lambda start, end, center: CostCenterInterval(
                start=start, end=end, cost_center_id=None if center == "none" else center
            ),
        ),
    )  # fmt: skip


ZONES = {"g1": "UTC", "g2": "UTC", "g3": "Asia/Tokyo"}
MODELS = {"g1": None, "g2": None, "g3": "cheap"}
RUNS = len(HOURS)


def runs(*values: Any) -> st.SearchStrategy[list[Any]]:
    """A value for each quarter of a day; it changes at most three times."""
    return st.lists(st.tuples(st.integers(0, RUNS - 1), st.sampled_from(values)), max_size=3).flatmap(
        lambda edges: st.sampled_from(values).map(
            lambda first: [
                next((value for at, value in sorted(edges, key=lambda each: -each[0]) if at <= index), first)
                for index in range(RUNS)
            ]
        )
    )


ACCOUNTS = st.tuples(runs("trial", "payg", "invoiced"), runs("g1", "g2", "g3"))


@given(ACCOUNTS, ACCOUNTS)
def test_the_stretches_of_an_account_are_the_instants_at_which_another_stamp_holds(before: Any, now: Any) -> None:
    found = account_stretches(account("a", 1, *before), account("a", 2, *now))
    for index, at in enumerate(HOURS):
        mine = [each for each in found if each.start <= at and (each.end is None or at < each.end)]
        was, becomes = ((plans[index], groups[index]) for plans, groups in (before, now))
        was, becomes = (("trial", None) if each[0] == "trial" else each for each in (was, becomes))
        assert len(mine) == (was != becomes)
        if mine:
            models = [MODELS[group] if group is not None else None for _, group in (was, becomes)]
            assert mine[0].reprices == (models[0] != models[1])
    assert all(first.end is not None and first.end <= second.start for first, second in pairwise(found))


RESOURCES = st.tuples(runs("a", "b", None), runs("x", "y", "none"))


@pytest.mark.parametrize("kind", ["number", "outbound_profile"])
@given(data=st.data())
def test_the_stretches_of_a_resource_are_the_instants_at_which_it_says_another_thing(kind: str, data: Any) -> None:
    before, now = data.draw(st.none() | RESOURCES), data.draw(RESOURCES)
    known = number(1, *before, kind) if before is not None else None
    found = resource_stretches(known, number(2, *now, kind))
    for index, at in enumerate(HOURS):
        says = []
        for each in (before, now):
            owner, center = (each[0][index], each[1][index]) if each is not None else (None, None)
            center = None if owner is None or center == "none" else center
            says.append((owner, center) if kind == "number" or center is not None else (None, None))
        is_in = any(each.start <= at and (each.end is None or at < each.end) for each in found)
        assert is_in == (says[0] != says[1])


def test_what_was_not_open_by_what_was_known_is_not_looked_at() -> None:
    later = account("a", 1, [None] * 4 + ["payg"] * 12, ["g1"] * 16)
    assert account_stretches(later, account("a", 2, ["payg"] * 16, ["g2"] * 16)) == [Stretch(HOURS[4], None, False)]
    assert account_stretches(account("a", 2, ["payg"] * 16, ["g1"] * 16), later) == [Stretch(START, HOURS[4], False)]


# ---- in which order ------------------------------------------------------------------------------------------------


def job(position: int, start: datetime, end: datetime | None, kind: str = "account", name: str = "a") -> Job:
    number = name if kind == "number" else None
    return Job(UUID(int=position), position, kind, name, number, start, end, False, start, BEFORE_ALL)


@given(
    st.lists(st.tuples(st.integers(0, 15), st.integers(1, 16), st.booleans()), max_size=5),
    st.sets(st.integers(0, 5)),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 86_399)), max_size=12),
    st.integers(1, 4),
)
def test_windows_hold_every_charge_of_every_stretch_and_come_to_an_end(
    made: list[tuple[int, int, bool]], days: set[int], uses: list[tuple[int, int]], chunk: int
) -> None:
    jobs = [
        job(position, HOURS[start], None if is_open else HOURS[start] + timedelta(hours=6 * lasts))
        for position, (start, lasts, is_open) in enumerate(made)
    ]
    there = [date(2026, 11, 1) + each * DAY for each in days]
    charges = sorted(
        (START + day * DAY + timedelta(seconds=second), UUID(int=index + 1))
        for index, (day, second) in enumerate(uses)
        if day in days
    )
    seen: dict[int, list[tuple[datetime, UUID]]] = {each.position: [] for each in jobs}
    for _ in range(200):
        window, over = next_window(jobs, there)
        jobs = [each for each in jobs if each not in over]
        if window is None:
            break
        assert {at.date() for at in (window.reached_at, window.end - timedelta(microseconds=1))} <= set(there)
        inside = [each for each in charges if (window.reached_at, window.reached_id) < each and each[0] < window.end]
        found = inside[:chunk]
        for each in window.jobs:
            seen[each.position] += [
                place for place in found if each.starts_at <= place[0] < each.end and each.reached < place
            ]
        reached = found[-1] if len(found) == chunk else (window.end, BEFORE_ALL)
        jobs = [each.up_to(*reached) if each in window.jobs else each for each in jobs]
    else:
        raise AssertionError("it does not come to an end")
    assert jobs == []
    for position, (start, lasts, is_open) in enumerate(made):
        end = None if is_open else HOURS[start] + timedelta(hours=6 * lasts)
        assert seen[position] == [
            each for each in charges if HOURS[start] <= each[0] and (end is None or each[0] < end)
        ]


# ---- whose it is ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Charge:
    """What of a row is asked, and what its price says."""

    charge_id: UUID
    event_time: datetime
    account_id: str
    plan: str
    group_id: str | None
    period: str | None
    cost_center_id: str | None
    named: int | None
    book_id: str
    amount_nano: int
    destination: str = "+13135550199"
    organization_id: str = "lakeside"
    outbound_profile: str | None = None
    origin: str | None = None
    product: str = "voice.inbound"
    unit: str = "second"
    duration_s: int = 60
    used: int = 60
    quantity: int = 60
    per: int = 60
    currency: str = "USD"
    publisher: str = "lakeside"
    schedule: str | None = None
    surcharge: str | None = None
    window: str | None = None
    book_version: int = 1
    matched: str = "+1"
    price_nano: int = 0
    connection_fee_nano: int = 0
    minimum: int = 60
    increment: int = 60
    delivered_only: bool = False


def prices() -> Prices:
    def book(name: str, nano: int) -> BookVersion:
        row = PriceRow("voice.inbound", "+1", nano, 0, 60, 60, 60, "second")
        return BookVersion(name, 1, "USD", START - DAY, (row,))

    books = [book("list", 10**7), book("cheap", 6 * 10**6)]
    return Prices(PriceBooks(books), {}, {}, ("list",))


class World:
    """A registry that learns, and the charges that were made by what it knew."""

    def __init__(self) -> None:
        self.registry, self.prices = Registry(), prices()
        self.known: dict[tuple[str, str], Any] = {}
        self.jobs: list[Job] = []
        self.left: set[tuple[str, Job]] = set()  # an account that was not there, and what left charges because of it
        self.charges: dict[str, Charge] = {}
        publisher = Publisher(publisher_id="lakeside", version=1, organization_ids=("lakeside",), sources=("s",))
        self.registry.learn([], [], [publisher], [])

    def tell(self, *timelines: Any) -> None:
        """What the handler of the registry does."""
        now = {
            ("account", each.account_id) if isinstance(each, AccountTimeline) else ("resource", each.resource_id): each
            for each in timelines
        }
        before = {key: self.known[key].data() for key in now if key in self.known}
        for kind, object_id, phone, version, stretch in changes(before, now):
            id = reassigning.reassignment_id(kind, object_id, version, stretch.start)
            self.jobs.append(Job(id, len(self.jobs), kind, object_id, phone, *stretch, stretch.start, BEFORE_ALL))
        for account_id, left in sorted(self.left, key=lambda each: each[1].starts_at):
            if ("account", account_id) in now:
                self.jobs.append(left)
        for key, each in now.items():
            if key not in self.known or self.known[key].version < each.version:
                self.known[key] = each
                is_account = isinstance(each, AccountTimeline)
                self.registry.learn([each] if is_account else [], [] if is_account else [each], [], [])

    def use(self, name: str, at: datetime, account_id: str | None, center: str | None) -> None:
        """What the handler of usage does with an inbound call; it has no charge where nobody is found."""
        named = (NAMED_ACCOUNT if account_id else 0) | (NAMED_CENTER if center else 0)
        whose = account_id or self.registry.owner_of("+13135550199", at)
        if whose is None or whose not in self.registry.accounts:
            return
        blank = Charge(UUID(int=len(self.charges) + 1), at, whose, "", None, None, center, named, "list", 0)
        found = Reassigning(self.registry, self.prices).stamps(blank)
        if isinstance(found, Left):
            return
        self.charges[name] = self.charged(blank, found[0])

    def charged(self, charge: Charge, stamps: Any) -> Charge:
        """A charge under stamps, by what the price of its group is: of the page, not of the code under test."""
        book = "cheap" if stamps.group_id is not None and MODELS[stamps.group_id] == "cheap" else "list"
        return replace(
            charge, account_id=stamps.account_id, plan=stamps.plan, group_id=stamps.group_id, period=stamps.period,
            cost_center_id=stamps.cost_center_id, book_id=book, amount_nano={"list": 10**7, "cheap": 6 * 10**6}[book],
        )  # fmt: skip

    def look_through(self, chunk: int) -> None:
        """What the tick does, in memory."""
        days = sorted({charge.event_time.date() for charge in self.charges.values()})
        while self.jobs:
            window, over = next_window(self.jobs, days)
            self.jobs = [each for each in self.jobs if each not in over]
            if window is None:
                return
            concerned = reassigning.Concerned(window.jobs)
            inside = sorted(
                (charge.event_time, charge.charge_id, name)
                for name, charge in self.charges.items()
                if (window.reached_at, window.reached_id) < (charge.event_time, charge.charge_id)
                and charge.event_time < window.end
            )
            for _, _, name in inside[:chunk]:
                charge = self.charges[name]
                mine = concerned.open_by(charge)
                if not mine:
                    continue
                outcome = Reassigning(self.registry, self.prices).of(charge, reprices=any(j.reprices for j in mine))
                if isinstance(outcome, Moved):
                    moved = self.charged(charge, outcome.stamps)
                    assert (outcome.terms.book_id, outcome.terms.amount_nano) == (moved.book_id, moved.amount_nano)
                    self.charges[name] = moved
                elif isinstance(outcome, Left) and outcome.account_id is not None:
                    anew = {structs.replace(each, reached_at=each.starts_at, reached_id=BEFORE_ALL) for each in mine}
                    self.left |= {(outcome.account_id, each) for each in anew}
            reached = inside[chunk - 1][:2] if len(inside) >= chunk else (window.end, BEFORE_ALL)
            self.jobs = [each.up_to(*reached) if each in window.jobs else each for each in self.jobs]


@given(
    st.randoms(use_true_random=False),
    st.lists(st.tuples(ACCOUNTS, ACCOUNTS, RESOURCES), min_size=2, max_size=4),
    st.integers(1, 5),
)
def test_in_whatever_order_the_registry_is_told_charges_stand_where_its_last_word_says(
    dice: random.Random, words: list[tuple[Any, Any, Any]], chunk: int
) -> None:
    timelines: list[Any] = []
    for version, (a, b, n) in enumerate(words, start=1):
        timelines += [account("a", version, *a), account("b", version, *b), number(version, *n)]
    uses = [
        (f"use{index}", START + timedelta(seconds=dice.randrange(5 * 86_400)), dice.choice(["a", "b", None]))
        for index in range(12)
    ]
    world, first = World(), World()
    first.tell(*timelines[-3:])
    for name, at, account_id in uses:
        first.use(name, at, account_id, None)
    told = dice.sample(timelines, len(timelines))  # moves in any order, in reverse too
    left = list(uses)
    while told or left:
        if told and (not left or dice.random() < 0.4):
            batch = sorted([told.pop() for _ in range(min(len(told), 2))], key=lambda each: each.version)
            world.tell(*{id_of(each): each for each in batch}.values())
        elif left:
            world.use(*left.pop(0), None)
        if dice.random() < 0.2:
            world.look_through(chunk)
    world.look_through(chunk)
    assert world.jobs == []
    for name, charge in world.charges.items():
        if name in first.charges:
            assert charge == replace(first.charges[name], charge_id=charge.charge_id)
        else:  # by the last word nobody had the number then: it stays where it was charged
            assert charge.named == 0
            assert world.registry.owner_of(charge.destination, charge.event_time) is None


def id_of(timeline: Any) -> str:
    return timeline.account_id if isinstance(timeline, AccountTimeline) else timeline.resource_id


def test_an_override_that_counted_is_kept_within_the_organization_only() -> None:
    world = World()
    world.tell(account("a", 1, ["payg"] * 16, ["g1"] * 16), number(1, ["a"] * 16, ["x"] * 16))
    world.use("call", START, None, "mine")
    (charge,) = world.charges.values()
    assert charge.cost_center_id == "mine"
    foreign = replace(charge, organization_id="northwind")
    stamps = Reassigning(world.registry, world.prices).stamps(foreign)
    assert not isinstance(stamps, Left)
    assert stamps[0].cost_center_id == "x"


def test_where_the_same_books_are_asked_the_price_is_not_looked_up_again() -> None:
    world = World()
    world.tell(account("a", 1, ["payg"] * 16, ["g1"] * 16))
    world.use("call", START, "a", None)
    world.charges["call"] = replace(world.charges["call"], amount_nano=123, book_version=7)
    world.tell(account("a", 2, ["payg"] * 16, ["g2"] * 16))
    outcome = Reassigning(world.registry, world.prices).of(world.charges["call"])
    assert isinstance(outcome, Moved)
    assert (outcome.stamps.group_id, outcome.terms.amount_nano, outcome.terms.book_version) == ("g2", 123, 7)
