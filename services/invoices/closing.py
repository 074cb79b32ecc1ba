"""When a boundary is cut, when an invoice may close, and when closing it is refused. Pure.

Source: designs/closing, lines 4 and 12 to 15.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from contracts.closing import Covered, Mark
from contracts.groups import BillingGroup
from contracts.topics import BALANCE_POSTINGS, GROUPS_ACCOUNTS, GROUPS_BILLING_GROUPS, USAGE_CHARGES
from services.invoices.accumulation import InvoiceKey, Paid, Tally
from services.invoices.rounding import Bill, LineSum, bill
from services.kernel.currency import currency
from services.kernel.errors import Refused
from services.kernel.money import format_nano, parse_amount
from services.kernel.period import instant_text, is_boundary, next_period, period_named, period_of

GRACE_DEFAULT = timedelta(hours=48)  # invoices appear in the first days of the month
DUE_AFTER = timedelta(days=14)  # the terms of payment
ACCOUNTS_MAX = 40_000  # of one invoice: it tells a posting of each, of at most 200 bytes, in a record of 8 MiB

LinkKey = tuple[str, str, int]  # (link, topic, partition)

# Only these of a room's links are read here; its marks on other topics are for others.
READ_FROM = {
    "groups": frozenset({GROUPS_BILLING_GROUPS.name, GROUPS_ACCOUNTS.name}),
    "usage": frozenset({USAGE_CHARGES.name}),
    "balance": frozenset({BALANCE_POSTINGS.name}),
}


# ---- the cut -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Terms:
    """How this installation closes. Periods that ended before ``automatic_from`` are cut only when named."""

    automatic_from: datetime
    grace: timedelta = GRACE_DEFAULT


def boundaries_due(
    terms: Terms, zones: Mapping[str, datetime], named: Collection[str], now: datetime
) -> frozenset[datetime]:
    """Every boundary that may be cut by now: ends of periods that had begun in a zone, plus those of named periods.

    ``zones`` gives, per zone of the groups, since when a group of it exists. Source: designs/closing, line 4.

    >>> from datetime import UTC
    >>> terms = Terms(datetime(2026, 10, 5, tzinfo=UTC))
    >>> zones = {"UTC": datetime(2026, 1, 1, tzinfo=UTC)}
    >>> [each.isoformat() for each in boundaries_due(terms, zones, (), datetime(2026, 11, 3, tzinfo=UTC))]
    ['2026-11-01T00:00:00+00:00']
    >>> boundaries_due(terms, zones, (), datetime(2026, 11, 2, 23, tzinfo=UTC))
    frozenset()
    """
    due: set[datetime] = set()
    for zone, since in zones.items():
        period = period_of(max(terms.automatic_from, since), zone)
        while period.end + terms.grace <= now:
            if period.end > terms.automatic_from:
                due.add(period.end)
            period = next_period(period, zone)
        for name in named:
            end = period_named(name, zone).end
            if end + terms.grace <= now:
                due.add(end)
    return frozenset(due)


def check_request(period: str, zones: Iterable[str], terms: Terms, now: datetime) -> tuple[datetime, ...]:
    """The boundaries that an operator asks to cut by naming a period; `Refused` while one of them may not be cut yet.

    >>> from datetime import UTC
    >>> check_request("2026-10", ["UTC"], Terms(datetime(2026, 9, 1, tzinfo=UTC)), datetime(2026, 10, 20, tzinfo=UTC))
    Traceback (most recent call last):
    services.kernel.errors.Refused: period: 2026-10 ends at 2026-11-01T00:00:00Z (UTC): only a period that has ended can be closed
    """
    boundaries: dict[datetime, str] = {}
    for zone in sorted(zones):
        boundaries.setdefault(period_named(period, zone).end, zone)
    if not boundaries:
        period_named(period)
        raise Refused("no billing group is known yet, so there is nothing to close", field="period", code="no_groups")
    last = max(boundaries)
    if now < last:
        raise Refused(
            f"{period} ends at {instant_text(last)} ({boundaries[last]}): only a period that has ended can be closed",
            field="period",
            code="period_not_ended",
        )
    if now < last + terms.grace:
        raise Refused(
            f"{period} ended at {instant_text(last)} ({boundaries[last]}) and its grace of {_hours(terms.grace)} lasts until "
            f"{instant_text(last + terms.grace)}: ask again then",
            field="period",
            code="in_grace",
        )
    return tuple(sorted(boundaries))


def periods_ending(boundary: datetime, zones: Iterable[str]) -> dict[str, str]:
    """The period that ends at a boundary, by zone; zones of which it is no boundary are left out.

    >>> from datetime import UTC
    >>> periods_ending(datetime(2026, 11, 1, tzinfo=UTC), ["UTC", "Europe/Paris"])
    {'UTC': '2026-10'}
    """
    just_before = boundary - timedelta(microseconds=1)
    return {zone: period_of(just_before, zone).name for zone in sorted(zones) if is_boundary(boundary, zone)}


# ---- the gate ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Coverage:
    """What the rooms have said of one cut: of all of it, and of each held group."""

    whole: Mapping[str, Covered] = field(default_factory=dict)
    groups: Mapping[tuple[str, str], Covered] = field(default_factory=dict)

    @classmethod
    def of(cls, said: Iterable[Covered]) -> Coverage:
        """From single statements; of a repeat the first holds."""
        whole: dict[str, Covered] = {}
        groups: dict[tuple[str, str], Covered] = {}
        for covered in said:
            if covered.group_id is None:
                whole.setdefault(covered.room, covered)
            else:
                groups.setdefault((covered.room, covered.group_id), covered)
        return cls(whole, groups)

    @property
    def held(self) -> frozenset[str]:
        """Groups that usage held when it passed the cut."""
        usage = self.whole.get("usage")
        return frozenset(usage.held) if usage is not None else frozenset()

    @property
    def silent_sources(self) -> tuple[str, ...]:
        """Publisher and source of what was seen in the month before and not in this one; last, how many more there are."""
        usage = self.whole.get("usage")
        if usage is None:
            return ()
        named = tuple(f"{each.publisher_id} {each.source}" for each in usage.silent_sources)
        more = usage.silent_sources_count - len(named)
        return (*named, f"and {more} more") if more else named

    @property
    def links(self) -> frozenset[LinkKey]:
        """Every link whose ``received_to`` matters."""
        said = (*self.whole.values(), *self.groups.values())
        return frozenset((mark.link, mark.topic, mark.partition) for covered in said for mark in marks_read(covered))

    def waits_for(self, received_to: Mapping[LinkKey, int]) -> str | None:
        """What the close of every group waits for; None when the gate is open. Source: designs/closing, line 12."""
        for room in ("groups", "usage", "balance"):
            covered = self.whole.get(room)
            if covered is None:
                return room
            if not reached(marks_read(covered), received_to):
                return f"records of {room}"
        return None

    def group_waits_for(self, group_id: str, received_to: Mapping[LinkKey, int]) -> str | None:
        """What the close of one group waits for; a held one needs statements of its own as well."""
        if (waits := self.waits_for(received_to)) is not None or group_id not in self.held:
            return waits
        for room, name in (("usage", "quarantine"), ("balance", "balance")):
            covered = self.groups.get((room, group_id))
            if covered is None:
                return name
            if not reached(marks_read(covered), received_to):
                return f"records of {room}"
        return None

    def still_held(self, received_to: Mapping[LinkKey, int]) -> frozenset[str]:
        """Held groups that may not close yet."""
        return frozenset(group_id for group_id in self.held if self.group_waits_for(group_id, received_to) is not None)


def marks_read(covered: Covered) -> tuple[Mark, ...]:
    """The marks on links that this room reads."""
    return tuple(mark for mark in covered.marks if mark.topic in READ_FROM[covered.room])


def reached(marks: Iterable[Mark], received_to: Mapping[LinkKey, int]) -> bool:
    """Whether everything up to the marks has been applied here.

    >>> reached([Mark(link="u", topic="usage.charges", partition=0, last_seq=80)], {("u", "usage.charges", 0): 79})
    False
    """
    return all(received_to.get((mark.link, mark.topic, mark.partition), 0) >= mark.last_seq for mark in marks)


# ---- the close -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenInvoice:
    """An invoice about to close, with everything that was accumulated for it."""

    key: InvoiceKey
    group: BillingGroup | None
    lines: tuple[LineSum, ...]
    tally: Tally
    paid: tuple[Paid, ...]


@dataclass(frozen=True, slots=True)
class NothingToBill:
    """No charge stands on it, or only such as take each other back whoever paid: it is closed without a number."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Closing is refused and a person must look: the sums do not agree, or no record can tell them."""

    reason: str


def decide(invoice: OpenInvoice) -> Bill | NothingToBill | Mismatch:
    """The amounts of an invoice, unless its sums disagree by a nano. Source: designs/closing, lines 14 and 15."""
    if (mismatch := mismatch_of(invoice)) is not None:
        return mismatch
    if (accounts := len(_accounts(invoice))) > ACCOUNTS_MAX:
        return Mismatch(f"{accounts} accounts stand on it; at most {ACCOUNTS_MAX} fit into the record that tells it")
    if not invoice.lines or invoice.group is None:
        return NothingToBill()
    made = amounts(invoice, invoice.group)
    return made if made.credits or any(not line.sum.is_nothing for line in made.lines) else NothingToBill()


def amounts(invoice: OpenInvoice, group: BillingGroup) -> Bill:
    """The amounts of these lines for this group: its currency's minor unit, its tax rate."""
    return _bill(invoice, group, credits_of(invoice))


def estimated(invoice: OpenInvoice, group: BillingGroup) -> Bill:
    """The amounts by now, when postings may come a moment after their charges."""
    return _bill(invoice, group, credits_of(invoice) if mismatch_of(invoice) is None else _credits_so_far(invoice))


def _bill(invoice: OpenInvoice, group: BillingGroup, credits: Mapping[tuple[str, bool], int]) -> Bill:
    return bill(
        invoice.lines,
        rate_nano=parse_amount(group.tax_rate, field="tax_rate"),
        exponent=currency(group.currency).exponent,
        credits=credits,
    )


def credits_of(invoice: OpenInvoice) -> dict[tuple[str, bool], int]:
    """What promotional credit paid, by account and whether of its prepaid use; exact, below zero where it was given back.

    It is what the wallet did not pay of the prepaid use, and what does not stand unbilled of the postpaid use.
    """
    credits = {(account_id, prepaid): nano for (prepaid, account_id), nano in _used(invoice).items()}
    for paid in invoice.paid:
        credits[paid.account_id, True] -= paid.wallet_nano
        credits[paid.account_id, False] -= paid.unbilled_nano
    return credits


def _credits_so_far(invoice: OpenInvoice) -> dict[tuple[str, bool], int]:
    """Of an account with both kinds of use what the wallet did not pay of the prepaid use, never more than the credit in all."""
    credits: dict[tuple[str, bool], int] = {}
    used = _used(invoice)
    for paid in invoice.paid:
        if not paid.credits_nano:
            continue
        account_id, whole = paid.account_id, paid.credits_nano
        if not used[False, account_id]:
            prepaid = whole
        elif not used[True, account_id]:
            prepaid = 0
        else:
            prepaid = max(min(used[True, account_id] - paid.wallet_nano, max(whole, 0)), min(whole, 0))
        credits[account_id, True] = credits.get((account_id, True), 0) + prepaid
        credits[account_id, False] = credits.get((account_id, False), 0) + whole - prepaid
    return credits


def _used(invoice: OpenInvoice) -> dict[tuple[bool, str], int]:
    used = {(prepaid, each): 0 for prepaid in (True, False) for each in _accounts(invoice)}
    for line in invoice.lines:
        used[line.key.prepaid, line.key.account_id] += line.exact_nano
    return used


def mismatch_of(invoice: OpenInvoice) -> Mismatch | None:
    """Why it cannot be billed: a sum that disagrees, or a group that is not known or has another currency."""
    if (mismatch := sums_mismatch(invoice)) is not None:
        return mismatch
    if invoice.lines and invoice.group is None:
        return Mismatch(f"billing group {invoice.key.group_id} is not known")
    money = currencies_of(invoice)
    if invoice.group is not None and money - {invoice.group.currency}:
        return Mismatch(f"charges are in {', '.join(sorted(money))}, the group's currency is {invoice.group.currency}")
    return None


def sums_mismatch(invoice: OpenInvoice) -> Mismatch | None:
    """The first sum that disagrees: charges = lines = credits + wallet + unbilled, in all and for each account.

    What the wallet did not pay of prepaid use and does not stand unbilled of postpaid use must be what credits paid; none of
    it can be of a kind of use that has no line.
    """
    lines = sum(line.exact_nano for line in invoice.lines)
    counted = sum(line.charges for line in invoice.lines)
    if counted != invoice.tally.charges:
        return Mismatch(f"{invoice.tally.charges} charges were counted, the lines hold {counted}")
    if lines != invoice.tally.exact_nano:
        return Mismatch(f"charges sum to {format_nano(invoice.tally.exact_nano)}, lines to {format_nano(lines)}")
    if not all(paid.charged_nano == _posted(paid) for paid in invoice.paid):
        return Mismatch("a posting's parts do not sum to what it charged")
    posted = sum(_posted(paid) for paid in invoice.paid)
    if lines != posted:
        return Mismatch(f"charges sum to {format_nano(lines)}, the postings of balance to {format_nano(posted)}")
    parts = credits_of(invoice)
    credits = dict.fromkeys(_accounts(invoice), 0)
    for paid in invoice.paid:
        credits[paid.account_id] += paid.credits_nano
    kinds = {(line.key.account_id, line.key.prepaid) for line in invoice.lines}
    wrong = {
        account_id for account_id, prepaid in parts if parts[account_id, prepaid] and (account_id, prepaid) not in kinds
    }
    wrong |= {each for each, nano in credits.items() if parts[each, True] + parts[each, False] != nano}
    if wrong:
        return Mismatch(f"lines and postings of account {min(wrong)} differ")
    return None


def currencies_of(invoice: OpenInvoice) -> set[str]:
    """Of its lines and postings; of one that can be billed that of its group."""
    return {line.key.currency for line in invoice.lines} | {paid.currency for paid in invoice.paid}


def _posted(paid: Paid) -> int:
    return paid.credits_nano + paid.wallet_nano + paid.unbilled_nano


def _accounts(invoice: OpenInvoice) -> set[str]:
    return {line.key.account_id for line in invoice.lines} | {paid.account_id for paid in invoice.paid}


def number_text(prefix: str, number: int) -> str:
    """How an invoice number reads: the billing entity's prefix and the number with at least six digits.

    >>> number_text("LS-", 42)
    'LS-000042'
    """
    return f"{prefix}{number:06d}"


def _hours(span: timedelta) -> str:
    return f"{span.total_seconds() / 3600:g} hours"
