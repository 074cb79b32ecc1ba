"""Folding a batch of charges or postings into few sums. Pure, and the same whatever the order or the cut into batches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple
from uuid import UUID

from contracts.balance import Posting
from contracts.topics import USAGE_CHARGES
from services.invoices.rounding import LineKey, LineSum
from services.kernel.errors import AmountError, Corrupt
from services.kernel.ids import derived_id, evidence_hash_of
from services.kernel.money import parse_amount
from services.runtime.links import judge
from services.runtime.records import Record


class InvoiceKey(NamedTuple):
    """Which invoice: one payer group, one period."""

    group_id: str
    period: str

    @property
    def invoice_id(self) -> UUID:
        """The invoice of a group and period has the same id wherever it is made."""
        return _invoice_id(self)


@lru_cache(maxsize=200_000)
def _invoice_id(key: InvoiceKey) -> UUID:
    return derived_id("invoice", key.group_id, key.period)


@lru_cache(maxsize=100_000)
def _nano(amount: str) -> int:
    return parse_amount(amount, signed=True)


@lru_cache(maxsize=100_000)
def _price(amount: str) -> int:
    return parse_amount(amount)


@dataclass(frozen=True, slots=True)
class Tally:
    """An invoice's charges counted beside its lines: how many, their exact sum, the XOR of their ids' hashes."""

    charges: int
    exact_nano: int
    xor: int


@dataclass(frozen=True, slots=True)
class Paid:
    """What balance posted for one account on one invoice: charged = credits + wallet + unbilled, all exact."""

    account_id: str
    currency: str
    charged_nano: int
    credits_nano: int
    wallet_nano: int
    unbilled_nano: int


@dataclass(frozen=True, slots=True)
class FoldedCharges:
    """The sums of a batch. Charges of trial accounts are in none: they stand on no invoice."""

    lines: dict[InvoiceKey, tuple[LineSum, ...]]
    tallies: dict[InvoiceKey, Tally]


READING = USAGE_CHARGES.reading(
    "charge_id", "account_id", "plan", "group_id", "bill_to", "period", "cost_center_id", "product", "quantity",
    "amount", "currency", "unit_price", "tier",
)  # fmt: skip
"""How a charge is read here."""


def fold_charges(records: Iterable[Record]) -> FoldedCharges:
    """The sums per line, and beside them per invoice, of the charges that have a payer group.

    Raises `LinkLost` for a charge that is not of its contract, `Corrupt` when one has a group and no period or invoice to stand
    on.
    """
    lines: dict[tuple[tuple[str, str], str, str, str | None, str, bool, str, str], list[int]] = {}
    tallies: dict[tuple[str, str], list[int]] = {}
    for record in records:
        charge = record.message.data
        group_id = charge.group_id
        if group_id is None:
            continue
        bill_to, period = charge.bill_to, charge.period
        if bill_to is None or period is None:
            judge(READING, record)
            raise Corrupt(f"charge {charge.charge_id} has payer group {group_id} but no period", field="bill_to")
        invoice = (group_id, bill_to)
        schedule = charge.tier["schedule"] if charge.tier else ""
        line = (
            invoice, charge.account_id, charge.product, charge.cost_center_id, period, charge.plan != "invoiced",
            charge.currency, schedule,
        )  # fmt: skip
        try:
            nano = _nano(charge.amount)
            price = 0 if charge.unit_price is None else _price(charge.unit_price)
        except AmountError:
            judge(READING, record)
            raise
        sums = lines.get(line)
        if sums is None:
            judge(READING, record)
            lines[line] = [1, charge.quantity, nano, price, price]
        else:
            sums[0] += 1
            sums[1] += charge.quantity
            sums[2] += nano
            if price < sums[3]:
                sums[3] = price
            elif price > sums[4]:
                sums[4] = price
        tally = tallies.get(invoice)
        if tally is None:
            tallies[invoice] = [1, nano, evidence_hash_of(charge.charge_id)]
        else:
            tally[0] += 1
            tally[1] += nano
            tally[2] ^= evidence_hash_of(charge.charge_id)
    folded: dict[tuple[str, str], list[LineSum]] = {invoice: [] for invoice in tallies}
    for (invoice, account_id, product, cost_center_id, period, prepaid, currency, schedule), sums in lines.items():
        key = LineKey(account_id, product, cost_center_id or "", period, prepaid, currency, schedule)
        folded[invoice].append(LineSum(key, *sums))
    return FoldedCharges(
        {InvoiceKey(*invoice): tuple(of_invoice) for invoice, of_invoice in folded.items()},
        {InvoiceKey(*invoice): Tally(*tally) for invoice, tally in tallies.items()},
    )


def fold_postings(postings: Iterable[Posting]) -> dict[InvoiceKey, tuple[Paid, ...]]:
    """The sums per invoice and account of the postings that have a payer group."""
    sums: dict[InvoiceKey, dict[tuple[str, str], list[int]]] = {}
    for posting in postings:
        group_id, bill_to = posting["group_id"], posting["bill_to"]
        if group_id is None:
            continue
        if bill_to is None:
            raise Corrupt(f"a posting of account {posting['account_id']} has no period", field="bill_to")
        accounts = sums.setdefault(InvoiceKey(group_id, bill_to), {})
        paid = accounts.setdefault((posting["account_id"], posting["currency"]), [0, 0, 0, 0])
        paid[0] += _nano(posting["charged"])
        paid[1] += _nano(posting["credits"])
        paid[2] += _nano(posting["wallet"])
        paid[3] += _nano(posting["unbilled"])
    return {
        invoice: tuple(Paid(account_id, currency, *paid) for (account_id, currency), paid in accounts.items())
        for invoice, accounts in sums.items()
    }
