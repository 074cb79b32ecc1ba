"""Re-rate: what charges that exist cost by other prices, as a plan that two people decide on. The pure part.

A plan names each charge whose amount changes, old and new. What was used never changes; how much of it is billed follows the
rule of the new price. Source: designs/identity, "Void, amend, re-rate".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any
from uuid import UUID

from msgspec import Struct

from services.kernel.errors import NotPermitted
from services.kernel.money import CHARGE_NANO_MAX
from services.usage.books import RENTAL, Chain
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
from services.usage.simulating import Draft, Recorded

MAY_DECIDE = ("finance", "operator")
PLANNED, STALE, APPROVED, EXECUTING, DONE, CANCELLED = (
    "planned", "stale", "approved", "executing", "done", "cancelled",
)  # fmt: skip

LEFT_OUT = {
    "tiers": "priced by tiers, until now or by the new prices: what one of them costs depends on all others of its month",
    "no_price": "the new prices have none for it",
    "wrong_currency": "the new price is in another currency than the charge",
    "wrong_unit": "the new price is for another unit than was used",
    "too_large": "by the new price it would cost more than one charge may",
    "outcome_unknown": "the new price is for delivered messages only, and whether this one was is not recorded",
    "payer_changed": "another payer group than the charge names pays for that time now; correct that first",
}
"""Why a charge is in no plan, though it is in the range; it stays as it is."""


class Repriced(Struct, frozen=True, gc=False):
    """What a charge costs by the price that was found: ``quantity`` units at a price for ``per``."""

    rated: Rated
    quantity: int
    per: int
    amount_nano: int


class Repricing:
    """By which prices: those that hold now, or a draft (`simulating`) before them, which then changes only what it prices."""

    def __init__(self, registry: Registry, prices: Prices, draft: Draft | None = None) -> None:
        self._registry = registry
        self._prices = prices
        self._draft = draft

    def of(self, charge: Any) -> Repriced | str | None:
        """What a live charge would cost; None for as much as now, a word of `LEFT_OUT` where it cannot be re-rated.

        ``charge`` is its row, with the ``delivered_only`` of its price.
        """
        books = self._books(charge)
        if isinstance(books, str):
            return books
        month = charge.period or f"{charge.event_time:%Y-%m}"
        use = Recorded(
            charge.product, charge.destination, charge.origin, charge.unit, charge.duration_s, charge.used, month
        )
        outcome = rate(use, charge.event_time, books, charge.currency)
        if self._draft is not None and not self._is_drafted(outcome):
            return None
        match outcome:
            case Counted():
                return "tiers"
            case NoPrice():
                return "tiers" if outcome.tiers_beside is not None or charge.schedule is not None else "no_price"
            case WrongCurrency():
                return "wrong_currency"
            case WrongUnit():
                return "wrong_unit"
            case TooLarge():
                return "too_large"
            case Rated():
                return self._changed(charge, outcome)
        return None

    def _is_drafted(self, outcome: Outcome) -> bool:
        if isinstance(outcome, WrongCurrency | WrongUnit | TooLarge):
            return self._draft is not None and outcome.price.book_id == self._draft.book.book_id
        return self._draft is not None and self._draft.decides(outcome)

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

    def _changed(self, charge: Any, outcome: Rated) -> Repriced | str | None:
        if charge.schedule is not None:
            return "tiers"
        price, per, nano = outcome.price, outcome.per, outcome.amount_nano
        if price.delivered_only and not charge.delivered_only:
            return "outcome_unknown"
        if price.product == RENTAL:  # whatever the price: the days of the month that was paid for
            per = charge.per
            nano = amount_nano(outcome.billed, per, price)
            if nano > CHARGE_NANO_MAX:
                return "too_large"
        if nano == charge.amount_nano:
            return None
        return Repriced(outcome, outcome.billed, per, nano)


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

    def add(self, charge: Any, new_nano: int) -> None:
        """A charge that the plan changes. A trial's has no group."""
        for of, which in (
            ("total", ""),
            ("account", charge.account_id),
            ("group", charge.group_id or ""),
            ("product", charge.product),
        ):
            self._add(of, which, charge, new_nano)

    def leave_out(self, charge: Any, reason: str) -> None:
        """A charge that stays as it is, and why."""
        self._add("left_out", reason, charge, charge.amount_nano)

    def _add(self, of: str, which: str, charge: Any, new_nano: int) -> None:
        sums = self.found[of, which, charge.currency]
        sums.charges += 1
        sums.old_nano += charge.amount_nano
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
