"""Tiers: what a quantity costs whose price depends on how much of the product was used in the month.

A counter holds how much that is, the schedule says what it costs in all, and an event is charged the difference that it
makes. So whatever comes in whatever order, all charges of a counter sum to what its last quantity costs. Pure. Amounts are
nanos, quantities whole units. Source: designs/tiers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple, get_args

from msgspec import Struct

from contracts.usage import Charge, Tier
from services.kernel.errors import Corrupt, InvalidInput
from services.kernel.money import CHARGE_NANO_MAX, divide_half_even, format_fraction, format_nano
from services.kernel.period import period_of

Form = Literal["graduated", "volume"]
BANDS_MAX = 100
PER_MAX = 10**15
UP_TO_MAX = 10**18  # a border above it is a slip


@dataclass(frozen=True, slots=True)
class Band:
    """The units above the band before it and up to ``up_to``, that one included; None: all above. A price of 0 makes them an
    included quantity. ``price_nano`` is for the `per` units of the schedule, ``fee_nano`` once a month."""

    up_to: int | None
    price_nano: int
    fee_nano: int = 0


@dataclass(frozen=True, slots=True)
class Schedule:
    """Bands in order. ``graduated``: each unit costs the price of its own band, and a band's fee is due once it is entered;
    ``volume``: all units cost the price of the band that the quantity lies in, and that band's fee.

    Raises `InvalidInput`, naming the band, for bands that are out of order or end, and for a border at which the cost
    jumps by more than one charge may be.
    """

    schedule_id: str
    form: Form
    per: int
    bands: tuple[Band, ...]

    def __post_init__(self) -> None:
        if self.form not in get_args(Form):
            raise InvalidInput("must be graduated or volume", field="form")
        if not 1 <= self.per <= PER_MAX:
            raise InvalidInput(f"must be a whole number from 1 to {PER_MAX}", field="per")
        if not 1 <= len(self.bands) <= BANDS_MAX:
            raise InvalidInput(f"must be 1 to {BANDS_MAX}", field="bands")
        below = 0
        for number, band in enumerate(self.bands):
            if band.up_to is None and number < len(self.bands) - 1:
                raise InvalidInput("must be a quantity: bands follow", field=f"bands[{number}].up_to")
            if band.up_to is not None and not below < band.up_to <= UP_TO_MAX:
                raise InvalidInput(
                    f"must be a whole number above {below}, at most {UP_TO_MAX}", field=f"bands[{number}].up_to"
                )
            if band.price_nano < 0 or band.fee_nano < 0:
                raise InvalidInput("must not be negative", field=f"bands[{number}].price")
            below = band.up_to or below
        if self.bands[-1].up_to is not None:
            raise InvalidInput(
                "must be null in the last band: what is used above it would have no price",
                field=f"bands[{len(self.bands) - 1}].up_to",
            )
        if self.largest_share_nano(0, self.per) > CHARGE_NANO_MAX:
            raise InvalidInput("cost jumps by more than one charge may be where a band ends", field="bands")

    def says_as(self, other: Schedule) -> bool:
        """Whether any quantity costs by this schedule what it costs by the other one, under whatever name."""
        return (self.form, self.per, self.bands) == (other.form, other.per, other.bands)

    def texts(self) -> dict[str, Any]:
        """As it stands in a price file."""
        bands = [
            {"up_to": band.up_to, "price": format_nano(band.price_nano), "fee": format_nano(band.fee_nano)}
            for band in self.bands
        ]
        return {"id": self.schedule_id, "form": self.form, "per": self.per, "bands": bands}

    def total_nano(self, quantity: int, per: int) -> int:
        """What a quantity costs in all, rounded half-even to 9 decimals.

        >>> graduated = Schedule("g", "graduated", 1, (Band(1_000, 10_000_000), Band(None, 8_000_000)))
        >>> volume = Schedule("v", "volume", 1, graduated.bands)
        >>> [format_nano(each.total_nano(1_400, 1)) for each in (graduated, volume)]
        ['13.2', '11.2']
        """
        return divide_half_even(sum(part.numerator(per) for part in self.parts(quantity)), per)

    def parts(self, quantity: int) -> Iterator[Part]:
        """The bands that a quantity is priced by, each with the units that it prices."""
        if quantity < 0:
            raise Corrupt("a counter fell below zero", code="counter_negative")
        below = 0
        for band in self.bands:
            if quantity <= below:
                return
            up_to = quantity if band.up_to is None else min(quantity, band.up_to)
            if self.form == "graduated":
                yield Part(up_to - below, band)
            elif up_to == quantity:
                yield Part(quantity, band)
            below = up_to

    def largest_share_nano(self, quantity: int, per: int) -> int:
        """What no share of this quantity can exceed, in either direction, wherever the counter stands."""
        jumps, before = 0, 0
        for number, band in enumerate(self.bands):
            start = (self.bands[number - 1].up_to or 0) if number else 0
            jump = band.fee_nano * per
            if self.form == "volume":
                jump += start * band.price_nano - before
                before = (band.up_to or 0) * band.price_nano + band.fee_nano * per
            jumps += abs(jump)
        dearest = max(band.price_nano for band in self.bands)
        return (quantity * dearest + jumps) // per + 1  # two roundings may be a nano apart from the exact difference


class Part(Struct, frozen=True, gc=False):
    """Units that one band prices."""

    units: int
    band: Band

    def numerator(self, per: int) -> int:
        """What they cost, times ``per``."""
        return self.units * self.band.price_nano + self.band.fee_nano * per

    def text(self, per: int) -> str:
        """They and their price, as a person writes it down."""
        fee = f" + fee {format_nano(self.band.fee_nano)}" if self.band.fee_nano else ""
        return f"{self.units} x {format_nano(self.band.price_nano)} / {per}{fee}"


class Share(Struct, frozen=True, gc=False):
    """How an event moved its counter, and what the counter costs more for it, or less."""

    before: int
    after: int
    amount_nano: int

    @property
    def is_adjustment(self) -> bool:
        """All use became cheaper by more than this one costs; or, of one taken back, dearer by more than it had cost."""
        return self.amount_nano * (self.after - self.before) < 0


def shares(schedule: Schedule, per: int, counter: int, quantities: Iterable[int]) -> Iterator[Share]:
    """The share of each quantity, below zero for a void, one after the other from where the counter stands.

    >>> bands = (Band(1_000, 10_000_000), Band(None, 8_000_000))
    >>> for form in ("graduated", "volume"):
    ...     print([format_nano(share.amount_nano) for share in shares(Schedule("s", form, 1, bands), 1, 0, (900, 200, 300))])
    ['9', '1.8', '2.4']
    ['9', '-0.2', '2.4']
    >>> [format_nano(share.amount_nano) for share in shares(Schedule("s", "volume", 1, bands), 1, 1_400, (-200, -500))]
    ['-1.6', '-2.6']
    """
    total = schedule.total_nano(counter, per)
    for quantity in quantities:
        after = counter + quantity
        next_total = schedule.total_nano(after, per)
        yield Share(counter, after, next_total - total)
        counter, total = after, next_total


class CounterKey(NamedTuple):
    """Which counter: of an account with its payer group (empty: a trial) in a month of event time, for one product and one
    version of a schedule. Prepaid and postpaid use have one each, or the wallet would depend on what came first."""

    account_id: str
    group_id: str
    period: str
    product: str
    prepaid: bool
    schedule: str


class Movement(Struct, frozen=True, gc=False):
    """A quantity that enters a counter, or with a minus leaves it. ``place`` says which of a batch comes first: event time,
    publisher, source, id."""

    key: CounterKey
    schedule: Schedule
    per: int
    quantity: int
    place: tuple[datetime, str, str, str]


def movement_for(
    charge: Any, name: str, schedule: Schedule, per: int, quantity: int, stamps: Any | None = None
) -> Movement:
    """What a quantity does to the counter that the use of a charge, given by its row, has for a version of a schedule; under
    other ``stamps`` (account, payer group, period and plan) than the charge's own, if there are any."""
    under = charge if stamps is None else stamps
    key = CounterKey(
        under.account_id,
        under.group_id or "",
        under.period or period_of(charge.event_time).name,
        charge.product,
        under.plan != "invoiced",
        name,
    )
    place = (charge.event_time, charge.publisher, charge.source, charge.event_id)
    return Movement(key, schedule, per, quantity, place)


def tell(charge: Charge, name: str, form: Form, share: Share) -> None:
    """Write into the data of a charge how it moved the counter of a schedule; it has no price of its own then."""
    charge["unit_price"] = None
    charge["tier"] = told(name, form, share)
    if share.is_adjustment:
        charge["kind"] = "tier_adjustment"


def told(name: str, form: Form, share: Share) -> Tier:
    """What a charge says of how it moved the counter of a schedule."""
    return {"schedule": name, "form": form, "before": share.before, "after": share.after}


def schedule_version(book_id: str, version: int, schedule_id: str) -> str:
    """The name of a schedule of one version of a book.

    >>> schedule_version("list", 3, "messages")
    'list/3/messages'
    """
    return f"{book_id}/{version}/{schedule_id}"


def moved(movements: Iterable[Movement]) -> dict[CounterKey, int]:
    """How far each counter is moved in all, in the order of keys."""
    sums: Counter[CounterKey] = Counter()
    for movement in movements:
        sums[movement.key] += movement.quantity
    return dict(sorted(sums.items()))


def apportion(movements: Sequence[Movement], before: Mapping[CounterKey, int]) -> list[Share]:
    """The share of each movement, in their order; ``before`` says where the counters stood.

    They are applied by their places, those of one place as they are given: what is taken back comes after it came.
    """
    of_counter: dict[CounterKey, list[int]] = {}
    for index in sorted(range(len(movements)), key=lambda index: movements[index].place):
        of_counter.setdefault(movements[index].key, []).append(index)
    found: dict[int, Share] = {}
    for key, indices in of_counter.items():
        first = movements[indices[0]]
        quantities = (movements[index].quantity for index in indices)
        found.update(zip(indices, shares(first.schedule, first.per, before[key], quantities), strict=True))
    return [found[index] for index in range(len(movements))]


def describe(schedule: Schedule, for_how_many: str) -> str:
    """A schedule in one sentence.

    >>> describe(Schedule("s", "graduated", 1_000, (Band(5_000, 0), Band(None, 8 * 10**9, 10**9))), "for 1000 request")
    'schedule s, graduated, prices for 1000 request: up to 5000 at 0; above at 8, fee 1'
    """
    bands = "; ".join(
        ("above" if band.up_to is None else f"up to {band.up_to}")
        + f" at {format_nano(band.price_nano)}"
        + (f", fee {format_nano(band.fee_nano)}" if band.fee_nano else "")
        for band in schedule.bands
    )
    return f"schedule {schedule.schedule_id}, {schedule.form}, prices {for_how_many}: {bands}"


def explain(schedule: Schedule, share: Share, per: int, unit: str, currency: str) -> tuple[str, ...]:
    """The steps from a counter's quantities to a share, one sentence each, to the last digit.

    >>> schedule = Schedule("s", "graduated", 3, (Band(1_000, 10**7), Band(None, 8 * 10**6)))
    >>> for step in explain(schedule, next(shares(schedule, 3, 900, [200])), 3, "request", "USD"): print(step)
    the month's counter stood at 900 request, and with these 200 at 1100
    900 request cost 900 x 0.01 / 3 = 3
    1100 request cost 1000 x 0.01 / 3 + 100 x 0.008 / 3 = 3.6
    3.6 - 3 = 0.6 USD
    """
    moved = share.after - share.before
    words = f"with these {moved}" if moved >= 0 else f"without these {-moved}"
    totals = [schedule.total_nano(quantity, per) for quantity in (share.before, share.after)]
    return (
        f"the month's counter stood at {share.before} {unit}, and {words} at {share.after}",
        *(_cost(schedule, quantity, per, unit) for quantity in (share.before, share.after)),
        f"{format_nano(totals[1])} - {format_nano(totals[0])} = {format_nano(share.amount_nano)} {currency}",
    )


def _cost(schedule: Schedule, quantity: int, per: int, unit: str) -> str:
    parts = tuple(schedule.parts(quantity))
    exact = format_fraction(sum(part.numerator(per) for part in parts), per)
    total = format_nano(schedule.total_nano(quantity, per))
    rounded = "" if exact == total else f", rounded half-even to 9 decimals: {total}"
    return f"{quantity} {unit} cost {' + '.join(part.text(per) for part in parts) or '0'} = {exact}{rounded}"
