"""Re-rate: what charges that exist cost by other prices, as a plan that two people decide on. The pure part.

A plan names each charge that gets another price, old and new. What was used never changes; how much of it is billed follows
the rule of the new price. What tiers price leaves one counter and enters another, and costs what these make of it. Source:
designs/identity, "Void, amend, re-rate"; designs/tiers, points 3 and 6.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any
from uuid import UUID

from msgspec import Struct

from services.kernel.errors import Corrupt, NotPermitted
from services.kernel.money import CHARGE_NANO_MAX
from services.usage.books import RENTAL, Chain, Price
from services.usage.rating import Counted, Rated, Surcharge, amount_nano, rate, why_unpriced
from services.usage.registry import Prices, Registry
from services.usage.simulating import Draft, Recorded
from services.usage.tiers import CounterKey, Movement, Schedule, apportion, moved, movement_for

MAY_DECIDE = ("finance", "operator")
PLANNED, STALE, APPROVED, EXECUTING, DONE, CANCELLED = (
    "planned", "stale", "approved", "executing", "done", "cancelled",
)  # fmt: skip

LEFT_OUT = {
    "no_price": "the new prices have none for it",
    "wrong_currency": "the new price is in another currency than the charge",
    "wrong_unit": "the new price is for another unit than was used",
    "too_large": "by the new price it would cost more than one charge may",
    "outcome_unknown": "the new price is for delivered messages only, and whether this one was is not recorded",
    "payer_changed": "another payer group than the charge names pays for that time now; it is moved first, or says why not",
    "surcharge": "the new price is by tiers, to which the surcharge for its caller cannot be added",
    "tiers": "priced by tiers, until now or by the new prices, which re-rates did not move when this one was planned",
}
"""Why a charge is in no plan, though it is in the range; it stays as it is."""


class Change(Struct, frozen=True, gc=False):
    """A charge, given by its row, and what it is to cost: ``quantity`` units at ``price`` for ``per``, and the surcharge.

    Of a price of its own ``amount_nano`` says how much. Of a price by tiers it is None: the amount is what the counter costs
    more when ``enters`` comes into it. ``leaves`` is what is taken out of the counter that the charge is in, where it is in one.
    """

    charge: Any
    price: Price
    surcharge: Surcharge | None
    quantity: int
    per: int
    amount_nano: int | None
    leaves: Movement | None
    enters: Movement | None

    @property
    def movements(self) -> tuple[Movement, ...]:
        """What it does to counters: it leaves before it enters."""
        return tuple(each for each in (self.leaves, self.enters) if each is not None)

    @property
    def is_renamed(self) -> bool:
        """Whether as much goes from one counter into another one whose schedule says the same."""
        out, into = self.leaves, self.enters
        if out is None or into is None or not out.schedule.says_as(into.schedule):
            return False
        return (out.per, -out.quantity) == (into.per, into.quantity)


class Repricing:
    """By which prices: those that hold now, or a draft (`simulating`) before them, which then changes only what it prices."""

    def __init__(self, registry: Registry, prices: Prices, draft: Draft | None = None) -> None:
        self._registry = registry
        self._prices = prices
        self._draft = draft

    def of(self, charge: Any, schedule: Schedule | None = None, *, delivered: bool = False) -> Change | str | None:
        """What a live charge would cost; None if nothing changes, a word of `LEFT_OUT` where it cannot be re-rated.

        ``charge`` is its row, with the ``delivered_only`` of its price; ``schedule`` is the one that it names, if any;
        ``delivered``: it stands in the place of one that was for a delivered message.
        """
        books = self._books(charge)
        if isinstance(books, str):
            return books
        month = charge.period or f"{charge.event_time:%Y-%m}"
        outcome = rate(Recorded.of(charge, month), charge.event_time, books, charge.currency)
        if self._draft is not None and not self._draft.decides(outcome):
            return None
        if isinstance(outcome, Rated | Counted):
            return _changed(charge, outcome, schedule, delivered=delivered or charge.delivered_only)
        return why_unpriced(outcome)

    def _books(self, charge: Any) -> Chain | str:
        """The books of the account that was charged, for the group that was charged."""
        account = self._registry.accounts.get(charge.account_id)
        if account is None:
            return "payer_changed"
        payer = account.payer_at(charge.event_time) if charge.plan != "trial" else None
        if (payer.group_id if payer is not None else None) != charge.group_id:
            return "payer_changed"
        books = account.chain(payer, self._prices)
        return books if self._draft is None else self._draft.chain(books)


def _changed(
    charge: Any, outcome: Rated | Counted, schedule: Schedule | None, *, delivered: bool
) -> Change | str | None:
    """Of a price that was found. A charge that tiers priced, or will price, is moved whatever its share came to: the shares
    of a counter depend on who came first, and only their sum says what its use costs."""
    price = outcome.price
    if price.delivered_only and not delivered:
        return "outcome_unknown"
    leaves = None
    if charge.schedule is not None:
        if schedule is None:
            raise Corrupt(f"the schedule of charge {charge.charge_id} is gone", code="schedule_lost")
        leaves = movement_for(charge, charge.schedule, schedule, charge.per, -charge.quantity)
    if isinstance(outcome, Counted):
        return _counted(charge, outcome, leaves)
    per, nano = outcome.per, outcome.amount_nano
    if price.product == RENTAL:  # whatever the price: the days of the month that was paid for
        per = charge.per
        nano = amount_nano(outcome.billed, per, price)
        if nano > CHARGE_NANO_MAX:
            return "too_large"
    if leaves is None and nano == charge.amount_nano:
        return None
    return Change(charge, price, outcome.surcharge, outcome.billed, per, nano, leaves, None)


def _counted(charge: Any, outcome: Counted, leaves: Movement | None) -> Change | None:
    price, schedule = outcome.price, outcome.price.tiers
    if schedule is None:
        raise Corrupt(f"a price by tiers of {price.book_id} has none", code="schedule_lost")
    enters = movement_for(charge, price.schedule_version, schedule, outcome.per, outcome.billed)
    if leaves is not None and (leaves.key, -leaves.quantity) == (enters.key, enters.quantity):
        return None
    return Change(charge, price, None, outcome.billed, outcome.per, None, leaves, enters)


class Entering:
    """From where use comes into the counters, were every change carried out: what has to be known before any is.

    Use whose new price is by a schedule that says the same in another version stays in its counter, unless in the new one it
    meets other use: then the two cost something else together. `meets_nothing` says of which counters that is true.
    """

    def __init__(self) -> None:
        self.counters: set[CounterKey] = set()
        self._sources: dict[CounterKey, set[CounterKey | None]] = defaultdict(set)

    def add(self, change: Change) -> None:
        self.counters.update(movement.key for movement in change.movements)
        if change.enters is not None:
            renamed = change.leaves.key if change.leaves is not None and change.is_renamed else None
            self._sources[change.enters.key].add(renamed)

    def meets_nothing(self, stand: Mapping[CounterKey, int]) -> frozenset[CounterKey]:
        """The counters that are empty, by where they ``stand``, and into which comes only the use of one other counter, by a
        schedule that says the same."""
        return frozenset(
            key
            for key, sources in self._sources.items()
            if len(sources) == 1 and None not in sources and not stand[key]
        )


def amounts(changes: Sequence[Change], stand: dict[CounterKey, int]) -> list[tuple[int, int]]:
    """What each change takes back and what it charges instead, in nanos, when they are carried out one after the other from
    where the counters ``stand``; these stand where they leave them afterwards.

    What is taken back is the charge's amount or, of one that tiers priced, what its counter costs less without it.
    """
    movements = [movement for change in changes for movement in change.movements]
    shares = iter(apportion(movements, stand))
    for key, by in moved(movements).items():
        stand[key] += by
    found = []
    for change in changes:
        old_nano = change.charge.amount_nano if change.leaves is None else -next(shares).amount_nano
        found.append((old_nano, next(shares).amount_nano if change.amount_nano is None else change.amount_nano))
    return found


class Sum(Struct):
    """Charges, and what they cost before and after."""

    charges: int = 0
    old_nano: int = 0
    new_nano: int = 0


SumKey = tuple[str, str, str]  # of what ('total', 'account', 'group', 'product', 'left_out'), which, currency


class Sums:
    """What a plan comes to, by account, group and product; and what it leaves out, by reason."""

    def __init__(self) -> None:
        self.found: dict[SumKey, Sum] = defaultdict(Sum)

    def add(self, charge: Any, old_nano: int, new_nano: int) -> None:
        """A charge that the plan changes. A trial's has no group."""
        for of, which in (
            ("total", ""),
            ("account", charge.account_id),
            ("group", charge.group_id or ""),
            ("product", charge.product),
        ):
            self._add(of, which, charge, old_nano, new_nano)

    def leave_out(self, charge: Any, reason: str) -> None:
        """A charge that stays as it is, and why."""
        self._add("left_out", reason, charge, charge.amount_nano, charge.amount_nano)

    def _add(self, of: str, which: str, charge: Any, old_nano: int, new_nano: int) -> None:
        sums = self.found[of, which, charge.currency]
        sums.charges += 1
        sums.old_nano += old_nano
        sums.new_nano += new_nano


class Fingerprint:
    """The hash over (charge id, live revision) of charges, the ids in order: another set of live charges has another.

    >>> def of(*charges):
    ...     made = Fingerprint()
    ...     made.add(charges)
    ...     return made.text()
    >>> one, two = UUID(int=1), UUID(int=2)
    >>> len({of((one, 0)), of((one, 1)), of((one, 0), (two, 0)), of()})
    4
    """

    def __init__(self) -> None:
        self._hash = blake2b(digest_size=32)

    def add(self, charges: Iterable[tuple[UUID, int]]) -> None:
        for charge_id, revision in charges:
            self._hash.update(charge_id.bytes + revision.to_bytes(4, "big"))

    def text(self) -> str:
        return self._hash.hexdigest()


def check_role(role: str, what: str) -> None:
    """`NotPermitted` for one who may not decide on a re-rate.

    >>> check_role("owner", "approve")
    Traceback (most recent call last):
    services.kernel.errors.NotPermitted: role: owner may not approve a re-rate; it takes finance or operator
    """
    if role not in MAY_DECIDE:
        raise NotPermitted(f"{role} may not {what} a re-rate; it takes {' or '.join(MAY_DECIDE)}", field="role")


def check_second_person(planned_by: str, actor: str) -> None:
    """`NotPermitted` for the one who planned.

    >>> check_second_person("ann", "Ann")
    Traceback (most recent call last):
    services.kernel.errors.NotPermitted: actor: Ann planned this re-rate; another person must approve it
    """
    if actor.strip().casefold() == planned_by.strip().casefold():
        raise NotPermitted(f"{actor} planned this re-rate; another person must approve it", field="actor")
