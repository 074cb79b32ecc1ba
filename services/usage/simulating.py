"""What recorded usage would have cost by a draft of a price book: replayed charge by charge, and nothing is written.

A charge keeps its amount unless the draft decides its price, or priced it until now and is replaced. Prices by tiers are
costed by what an account used in a month of the range, from zero, so that no order of events shows.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar

from msgspec import Struct

from services.kernel.money import format_nano
from services.usage.books import RENTAL, BookVersion, Chain, PriceBook
from services.usage.price_files import PriceFile
from services.usage.rating import (
    Counted,
    NoPrice,
    Outcome,
    Rated,
    TooLarge,
    WrongCurrency,
    WrongUnit,
    amount_nano,
    rate,
)
from services.usage.registry import Prices, Registry
from services.usage.tiers import CounterKey, Schedule, schedule_version
from services.usage.uses import Free

DRAFT = "(draft)"  # no id that a book can have
_ALWAYS = datetime.min.replace(tzinfo=UTC)


class Recorded(Struct, frozen=True, gc=False):
    """A use as its charge tells it. What the carrier made of a message is not recorded: it was billed, so it was delivered."""

    product: str
    destination: str
    origin: str | None
    unit: str
    duration_s: int
    used: int
    month: str

    free: ClassVar[Free | None] = None
    outcome: ClassVar[str] = "delivered"

    @classmethod
    def of(cls, charge: Any, month: str) -> Recorded:
        """Of the row of a charge, in the month whose counters and days count."""
        return cls(
            charge.product, charge.destination, charge.origin, charge.unit, charge.duration_s, charge.used, month
        )


@dataclass(frozen=True, slots=True)
class Draft:
    """A book that is tried: in the place of another one, or without one before all that an account has."""

    book: PriceBook
    in_place_of: str | None = None

    def chain(self, books: Chain) -> Chain:
        """The books of an account with the draft among them."""
        if self.in_place_of is None:
            return (self.book, *(book for book in books if book.book_id != self.book.book_id))
        return tuple(self.book if book.book_id == self.in_place_of else book for book in books)

    def decides(self, outcome: Outcome) -> bool:
        """Whether the draft has the price of a use, or of its surcharge, also where they make no charge."""
        match outcome:
            case Rated(price=price, surcharge=surcharge):
                found = {price.book_id} | ({surcharge.price.book_id} if surcharge is not None else set())
                return self.book.book_id in found
            case Counted(price=price) | WrongCurrency(price=price) | WrongUnit(price=price) | TooLarge(price=price):
                return price.book_id == self.book.book_id
            case NoPrice(tiers_beside=beside, tiers_of=tiers):
                return self.book.book_id in (beside, tiers)
        return False

    def replaces(self, charge: Any) -> bool:
        """Whether a charge was priced by the book whose place the draft takes."""
        if self.in_place_of is None:
            return False
        surcharge = json.loads(charge.surcharge)["book_id"] if charge.surcharge is not None else None
        return self.in_place_of in (charge.book_id, surcharge)


def draft_of(prices: PriceFile) -> PriceBook:
    """A book of the rows of a file, valid at all times."""
    version = BookVersion(DRAFT, 1, prices.currency, _ALWAYS, prices.rows, prices.windows, schedules=prices.schedules)
    return PriceBook(DRAFT, [version])


@dataclass(slots=True)
class Line:
    """Charges now and by the draft; ``unpriced`` are those that would be quarantined, which make ``unpriced_nano`` now."""

    charges: int = 0
    now_nano: int = 0
    then_nano: int = 0
    unpriced: int = 0
    unpriced_nano: int = 0

    def told(self) -> dict[str, Any]:
        """As people and programs read it; the difference is that of the draft to now."""
        return {
            "charges": self.charges,
            "now": format_nano(self.now_nano),
            "then": format_nano(self.then_nano),
            "difference": format_nano(self.then_nano - self.now_nano),
            "unpriced": self.unpriced,
            "unpriced_now": format_nano(self.unpriced_nano),
        }


Lines = dict[tuple[Any, ...], Line]
_Place = tuple[tuple[Any, ...], ...]  # the keys of its total, account, group and destination


def _lines() -> Lines:
    return defaultdict(Line)


@dataclass(slots=True)
class Replay:
    """Sums over the charges that were added; as large as there are accounts, destinations and counters."""

    draft: Draft
    registry: Registry
    prices: Prices
    total: Lines = field(default_factory=_lines)  # by currency
    accounts: Lines = field(default_factory=_lines)  # by account, currency
    groups: Lines = field(default_factory=_lines)  # by group, currency
    destinations: Lines = field(default_factory=_lines)  # by product, prefix that matched now, currency
    has_tiers: bool = False
    _counters: dict[tuple[CounterKey, int], tuple[Schedule, dict[_Place, int]]] = field(default_factory=dict)
    _chains: dict[Hashable, tuple[Chain, bool]] = field(default_factory=dict)

    def add(self, charge: Any) -> None:
        """One charge: its row, or that of a reversal, whose quantity is below zero."""
        place: _Place = (
            (charge.currency,),
            (charge.account_id, charge.currency),
            (charge.group_id, charge.currency),
            (charge.product, charge.matched, charge.currency),
        )
        sign = -1 if charge.quantity < 0 else 1
        self._each(place, lambda line: _count(line, sign, charge.amount_nano))
        chain = self._chain(charge)
        if chain is None:
            self._add_then(place, charge.amount_nano)
            return
        month = charge.period or f"{charge.event_time.astimezone(UTC):%Y-%m}"
        outcome = rate(Recorded.of(charge, month), charge.event_time, chain, charge.currency)
        if not self.draft.decides(outcome) and not self.draft.replaces(charge):
            self._add_then(place, charge.amount_nano)
        elif isinstance(outcome, Rated):
            price, nano = outcome.price, outcome.amount_nano
            if price.product == RENTAL:  # whatever month its period is: the days of the one that was paid for
                nano = amount_nano(outcome.billed, charge.per, price)
            self._add_then(place, sign * nano)
        elif isinstance(outcome, Counted) and (schedule := outcome.price.tiers) is not None:
            self.has_tiers = True
            price = outcome.price
            name = schedule_version(price.book_id, price.version, schedule.schedule_id)
            key = CounterKey(
                charge.account_id, charge.group_id or "", month, charge.product, charge.plan != "invoiced", name
            )
            _, used = self._counters.setdefault((key, outcome.per), (schedule, {}))
            used[place] = used.get(place, 0) + sign * outcome.billed
        else:
            self._each(place, lambda line: _leave_out(line, sign, charge.amount_nano))

    def finish(self) -> None:
        """Cost what was counted: each counter once, shared out by quantity among the destinations it holds."""
        for (_, per), (schedule, used) in sorted(self._counters.items(), key=lambda item: item[0]):
            whole = sum(used.values())
            cost, before = schedule.total_nano(whole, per), 0
            for place, quantity in sorted(used.items(), key=lambda item: str(item[0])):
                after = before + quantity
                self._add_then(place, cost * after // whole - cost * before // whole if whole else 0)
                before = after
        self._counters.clear()

    def _chain(self, charge: Any) -> Chain | None:
        """The books of a charge's account then, with the draft; None where the draft is not among them."""
        account = self.registry.accounts.get(charge.account_id)
        if account is None:
            return None
        payer = account.payer_at(charge.event_time) if charge.plan != "trial" else None
        books = account.chain(payer, self.prices)
        if books not in self._chains:
            drafted = self.draft.chain(books)
            self._chains[books] = drafted, self.draft.book in drafted
        drafted, is_asked = self._chains[books]
        return drafted if is_asked else None

    def _each(self, place: _Place, change: Callable[[Line], None]) -> None:
        for lines, key in zip((self.total, self.accounts, self.groups, self.destinations), place, strict=True):
            change(lines[key])

    def _add_then(self, place: _Place, nano: int) -> None:
        for lines, key in zip((self.total, self.accounts, self.groups, self.destinations), place, strict=True):
            lines[key].then_nano += nano


def _count(line: Line, sign: int, now_nano: int) -> None:
    line.charges += sign
    line.now_nano += now_nano


def _leave_out(line: Line, sign: int, now_nano: int) -> None:
    line.unpriced += sign
    line.unpriced_nano += now_nano


def runs_out(available_nano: int, more_nano: int) -> bool:
    """Whether an account with this much available would have nothing left, had it paid this much more.

    >>> runs_out(5, 5), runs_out(5, 4), runs_out(-1, 4)
    (True, False, False)
    """
    return available_nano > 0 >= available_nano - more_nano
