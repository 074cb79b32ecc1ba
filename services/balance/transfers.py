"""Transfers that arrived at a bank, which finance records: each reference of a bank is one payment, of a payer group's invoices
or into a wallet.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple
from uuid import UUID

from contracts.payments import PROCESSORS
from services.balance import receivables_store
from services.kernel.currency import currency
from services.kernel.errors import InvalidInput, Refused
from services.kernel.ids import derived_id
from services.kernel.money import PAYMENT_NANO_MAX, floor_minor, format_nano
from services.kernel.period import instant_text
from services.runtime.work import Work

Key = tuple[str, str]  # bank and reference


class Transfer(NamedTuple):
    """One that is to be recorded: for a payer group, or for the wallet of an account."""

    bank: str
    reference: str
    nano: int
    currency: str
    actor: str
    note: str
    group_id: str | None = None
    account_id: str | None = None

    @property
    def payment_id(self) -> UUID:
        return payment_id_of(self.bank, self.reference)


def payment_id_of(bank: str, reference: str) -> UUID:
    """The same reference of a bank is the same payment."""
    return derived_id("group payment", bank, reference)


class Transfers:
    """The transfers of a batch as they stand in the table: which of them were recorded by it, and which before."""

    def __init__(self, fresh: set[Key], recorded: dict[Key, Any]) -> None:
        self._fresh = fresh
        self._recorded = recorded

    @classmethod
    async def of(cls, work: Work, transfers: Iterable[Transfer]) -> Transfers:
        """Record what may be recorded, before it is applied: the same reference in two batches at once is one payment."""
        first: dict[Key, Transfer] = {}
        for each in transfers:
            first.setdefault((each.bank, each.reference), each)
        if not first:
            return cls(set(), {})
        fresh = await receivables_store.append_payments(work, [_row(work, each) for each in first.values()])
        return cls(fresh, await receivables_store.load_payments(work, first))

    def take(self, transfer: Transfer) -> bool:
        """Whether this is the one that is recorded by its reference; `Refused` when that stands for another payment."""
        key = (transfer.bank, transfer.reference)
        row = self._recorded[key]
        if (row.group_id, row.amount_nano, row.currency) != (transfer.group_id, transfer.nano, transfer.currency) or (
            transfer.group_id is None and row.account_id != transfer.account_id
        ):
            whose = f"account {row.account_id}" if row.group_id is None else f"group {row.group_id}"
            raise Refused(
                f"{transfer.bank} named another payment so: {format_nano(row.amount_nano)} {row.currency} of {whose},"
                f" recorded at {instant_text(row.received_at)} by {row.actor}",
                field="reference",
                code="reference_used",
            )
        is_first = key in self._fresh
        self._fresh.discard(key)
        return is_first


def _row(work: Work, transfer: Transfer) -> dict[str, Any]:
    return {
        "payment_id": transfer.payment_id,
        "group_id": transfer.group_id,
        "bank": transfer.bank,
        "reference": transfer.reference,
        "amount_nano": transfer.nano,
        "currency": transfer.currency,
        "received_at": work.now,
        "actor": transfer.actor,
        "note": transfer.note,
        "account_id": transfer.account_id,
    }


def check_bank(bank: str) -> None:
    """Refuse what a payment processor says by itself: recorded by hand as well, it would be booked twice.

    >>> check_bank("stripe")
    Traceback (most recent call last):
    services.kernel.errors.Refused: bank: stripe is a payment processor: what it settles is booked by itself; name the bank
    """
    if bank in PROCESSORS:
        raise Refused(
            f"{bank} is a payment processor: what it settles is booked by itself; name the bank", field="bank",
            code="not_a_bank",
        )  # fmt: skip


def check_money(nano: int, code: str, wanted: str, whose: str) -> None:
    """Refuse an amount that cannot arrive, or one that is not in the currency of whoever it is for.

    >>> check_money(10**9, "EUR", "USD", "the wallet is in")
    Traceback (most recent call last):
    services.kernel.errors.InvalidInput: currency: the wallet is in USD
    >>> check_money(1, "USD", "USD", "the wallet is in")
    Traceback (most recent call last):
    services.kernel.errors.InvalidInput: amount: money arrives in whole units of 2 decimals
    """
    if code != wanted:
        raise InvalidInput(f"{whose} {wanted}", field="currency", code="wrong_currency")
    if not 0 < nano <= PAYMENT_NANO_MAX:
        raise InvalidInput(
            f"must be above zero and at most {format_nano(PAYMENT_NANO_MAX)}", field="amount", code="invalid_amount"
        )
    exponent = currency(code).exponent
    if floor_minor(nano, exponent) != nano:
        raise InvalidInput(
            f"money arrives in whole units of {exponent} decimals", field="amount", code="invalid_amount"
        )
