"""What an invoice amounts to: rounded lines, one rounding line, tax, and what each account pays of it. Pure.

Everything is in nanos; every division is half-even and by `services.kernel.money`. Source: domain, sections 2 and 6;
designs/ledger, section 4; designs/tiers, point 5.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from services.kernel.money import NANO, divide_half_even, round_minor


@dataclass(frozen=True, slots=True, order=True)
class LineKey:
    """What the charges of one line have in common. ``period`` is that of the use, so a late charge has a line of its own.

    An empty ``cost_center_id`` means ungrouped. ``prepaid`` follows from the account's plan at the time of use. ``schedule``
    is the version of the schedule of tiers that priced the use, empty for use with a price of its own.
    """

    account_id: str
    product: str
    cost_center_id: str
    period: str
    prepaid: bool
    currency: str
    schedule: str = ""


@dataclass(frozen=True, slots=True)
class LineSum:
    """The exact sum of the charges of a line; the prices are per unit of the product."""

    key: LineKey
    charges: int
    quantity: int
    exact_nano: int
    unit_price_min_nano: int
    unit_price_max_nano: int

    @property
    def is_nothing(self) -> bool:
        """What was used has all been taken back: such a line is not shown."""
        return not self.quantity and not self.exact_nano

    @property
    def unit_price_nano(self) -> int | None:
        """The price of a unit, where all charges of the line have the same; tiers have none."""
        if self.key.schedule:
            return None
        return self.unit_price_min_nano if self.unit_price_min_nano == self.unit_price_max_nano else None


@dataclass(frozen=True, slots=True)
class BilledLine:
    """A line with its amount, rounded once from its exact sum."""

    sum: LineSum
    amount_nano: int


@dataclass(frozen=True, slots=True)
class BilledCredit:
    """What promotional credit paid of an account's prepaid or postpaid use: exact, and rounded once; taken off the lines.

    Below zero where more was given back, by reversals, than was paid.
    """

    account_id: str
    prepaid: bool
    exact_nano: int
    amount_nano: int


@dataclass(frozen=True, slots=True)
class AccountShare:
    """What one account used without what credits paid (exact) and pays (whole minor units, tax included), by balance and by the amount due."""

    account_id: str
    prepaid_nano: int
    postpaid_nano: int
    paid_from_balance_nano: int
    due_nano: int

    @property
    def wallet_entry_nano(self) -> int:
        """What the close takes from the wallet beyond the charges that it has paid already (below zero: takes)."""
        return self.prepaid_nano - self.paid_from_balance_nano

    @property
    def unbilled_entry_nano(self) -> int:
        """What was rated and not invoiced is cleared, to the last nano."""
        return self.postpaid_nano

    @property
    def receivable_entry_nano(self) -> int:
        """What the group owes for this account from now on (below zero: owes)."""
        return -self.due_nano


@dataclass(frozen=True, slots=True)
class Bill:
    """An invoice's amounts. Always: total = lines - credits + rounding + tax = paid from balance + due."""

    lines: tuple[BilledLine, ...]
    credits: tuple[BilledCredit, ...]
    exact_nano: int
    rounding_nano: int
    tax_nano: int
    shares: tuple[AccountShare, ...]

    @property
    def net_nano(self) -> int:
        """Lines without credits, and rounding: the exact sum, rounded once."""
        return _net(self.lines, self.credits) + self.rounding_nano

    @property
    def used_nano(self) -> int:
        """The exact sum of the lines, whoever paid."""
        return sum(line.sum.exact_nano for line in self.lines)

    @property
    def total_nano(self) -> int:
        return self.net_nano + self.tax_nano

    @property
    def paid_from_balance_nano(self) -> int:
        return sum(share.paid_from_balance_nano for share in self.shares)

    @property
    def due_nano(self) -> int:
        return sum(share.due_nano for share in self.shares)

    @property
    def rounding_entry_nano(self) -> int:
        """What the ledger's rounding account gets: the difference of the rounded to the exact sum."""
        return self.net_nano - self.exact_nano


def tax_of(net_nano: int, rate_nano: int, exponent: int) -> int:
    """Tax of a category: its rounded total times the rate, half-even to the minor unit.

    >>> tax_of(600_000_000, 200_000_000, 2), tax_of(12_350_000_000, 200_000_000, 2)
    (120000000, 2470000000)
    """
    step: int = 10 ** (9 - exponent)
    return divide_half_even(net_nano * rate_nano, NANO * step) * step


def share_total(total_nano: int, weights_nano: list[int], rate_nano: int, exponent: int) -> list[int]:
    """Divide a total among those who used it, in whole minor units that sum to it exactly: the largest remainder.

    Each is owed its exact sum with tax; that is cut down to a whole minor unit. What is missing to the total goes, one unit
    each, to those who lost most by the cut, of equals to the first. What is too much, since the total is rounded as well, is
    taken, one unit each, from those who lost least, of equals from the largest share. Who used nothing has no share, and a
    share keeps the sign of what was used, as long as others can make up for it. Any signs.

    >>> share_total(720_000_000, [363_000_000, 124_400_000, 108_000_000], 200_000_000, 2)
    [440000000, 150000000, 130000000]
    >>> share_total(20_000_000, [0, 25_000_000], 200_000_000, 2)
    [0, 20000000]
    """
    step: int = 10 ** (9 - exponent)
    owed = [divmod(weight * (NANO + rate_nano), NANO * step) for weight in weights_nano]
    units = [whole for whole, _ in owed]
    missing = total_nano // step - sum(units)
    one = 1 if missing > 0 else -1
    order = sorted(range(len(owed)), key=lambda index: (-one * owed[index][1], min(one, 0) * units[index], index))
    users = [index for index in order if weights_nano[index]] or order
    while missing and users:
        able = [index for index in users if (units[index] + one) * weights_nano[index] >= 0] or users
        for index in able[: abs(missing)]:
            units[index] += one
            missing -= one
    return [each * step for each in units]


def split_by_quantity(total_nano: int, quantities: list[int]) -> list[int]:
    """Divide a total by quantity, in whole nanos that sum to it exactly: the largest remainder, of equals the first.

    Any signs. Quantities that sum to zero divide nothing, so the first has it all: of a counter that is where it was, 0.

    >>> split_by_quantity(100, [1, 1, 1]), split_by_quantity(-200, [300, -100]), split_by_quantity(5, [2, 2])
    ([34, 33, 33], [-300, 100], [3, 2])
    """
    whole = sum(quantities)
    if not whole:
        return [total_nano, *(0 for _ in quantities[1:])]
    sign = 1 if whole > 0 else -1
    parts = [divmod(total_nano * quantity * sign, abs(whole)) for quantity in quantities]
    missing = total_nano - sum(part for part, _ in parts)
    order = sorted(range(len(parts)), key=lambda index: (-parts[index][1], index))
    getting = set(order[:missing])
    return [part + (index in getting) for index, (part, _) in enumerate(parts)]


def split_tiers(sums: Iterable[LineSum]) -> list[LineSum]:
    """The lines in order, those of one counter with their amounts divided over its cost centers by quantity.

    The share that an event has of a counter depends on when it came; the sum of a counter does not, and so neither does
    what is divided here. Source: designs/tiers, point 5.

    >>> def line(center, quantity, nano): return LineSum(LineKey("a", "data", center, "2026-10", True, "USD", "list/1/d"), 1, quantity, nano, 0, 0)
    >>> [each.exact_nano for each in split_tiers([line("south", 1, 0), line("north", 2, 100)])]
    [67, 33]
    """
    ordered = sorted(sums, key=lambda line: line.key)
    counters: dict[tuple[str | bool, ...], list[LineSum]] = {}
    for line in ordered:
        if line.key.schedule:
            of = line.key
            key = (of.account_id, of.product, of.period, of.prepaid, of.currency, of.schedule)
            counters.setdefault(key, []).append(line)
    exact: dict[LineKey, int] = {}
    for of_counter in counters.values():
        total = sum(line.exact_nano for line in of_counter)
        parts = split_by_quantity(total, [line.quantity for line in of_counter])
        exact.update((line.key, part) for line, part in zip(of_counter, parts, strict=True))
    return [replace(line, exact_nano=exact.get(line.key, line.exact_nano)) if exact else line for line in ordered]


def _net(lines: Iterable[BilledLine], credits: Iterable[BilledCredit]) -> int:
    return sum(line.amount_nano for line in lines) - sum(credit.amount_nano for credit in credits)


def bill(
    sums: Iterable[LineSum], *, rate_nano: int, exponent: int, credits: Mapping[tuple[str, bool], int] | None = None
) -> Bill:
    """The amounts of an invoice with these lines, in any order; one tax category.

    A line is rounded once, half-even to the minor unit. The rounding line is the rounded exact sum minus the sum of the
    rounded lines. Tax is taken from the rounded sum. ``credits`` are what promotional credit paid, by account and whether of its
    prepaid use: lines of their own that are taken off before tax. Source: domain, sections 2 and 6.

    >>> def line(account, nano): return LineSum(LineKey(account, "voice.outbound", "", "2026-10", False, "USD"), 1, 60, nano, 0, 0)
    >>> northwind = bill([line("a", 363_000_000), line("b", 124_400_000), line("c", 108_000_000)], rate_nano=NANO // 5, exponent=2)
    >>> [each.amount_nano // 10**7 for each in northwind.lines], northwind.rounding_nano, northwind.tax_nano, northwind.due_nano
    ([36, 12, 11], 10000000, 120000000, 720000000)
    >>> paid = bill([line("a", 363_000_000)], rate_nano=NANO // 5, exponent=2, credits={("a", False): 113_000_000})
    >>> [each.amount_nano // 10**7 for each in paid.credits], paid.net_nano, paid.tax_nano, paid.due_nano
    ([11], 250000000, 50000000, 300000000)
    """
    lines = tuple(BilledLine(each, round_minor(each.exact_nano, exponent)) for each in split_tiers(sums))
    off = tuple(
        BilledCredit(*key, nano, round_minor(nano, exponent)) for key, nano in sorted((credits or {}).items()) if nano
    )
    exact = sum(line.sum.exact_nano for line in lines) - sum(credit.exact_nano for credit in off)
    net = round_minor(exact, exponent)
    tax = tax_of(net, rate_nano, exponent)
    used: dict[tuple[str, bool], int] = {}
    for line in lines:
        part = (line.sum.key.account_id, line.sum.key.prepaid)
        used[part] = used.get(part, 0) + line.sum.exact_nano
    for credit in off:
        part = (credit.account_id, credit.prepaid)
        used[part] = used.get(part, 0) - credit.exact_nano
    parts = sorted(used)
    pays = dict(zip(parts, share_total(net + tax, [used[part] for part in parts], rate_nano, exponent), strict=True))
    shares = tuple(
        AccountShare(
            account_id,
            prepaid_nano=used.get((account_id, True), 0),
            postpaid_nano=used.get((account_id, False), 0),
            paid_from_balance_nano=pays.get((account_id, True), 0),
            due_nano=pays.get((account_id, False), 0),
        )
        for account_id in sorted({account_id for account_id, _ in parts})
    )
    return Bill(lines, off, exact, net - _net(lines, off), tax, shares)
