"""Which invoices a payment pays, and whose share of them. Pure.

Amounts are nanos as people say them: what is owed and what is paid is above zero. Source: designs/ledger, "Postpaid"; domain,
section 6.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from contracts.receivables import InvoiceState


class OpenInvoice(NamedTuple):
    """An invoice as far as it is still owed. Sorted, the one that is due first comes first."""

    due_on: datetime
    number: str
    invoice_id: UUID
    open_nano: int


@dataclass(frozen=True, slots=True)
class Applied:
    """What a payment pays, per invoice in the order in which they are paid, and what is left of it."""

    pays: tuple[tuple[UUID, int], ...]
    left_nano: int


def apply(amount_nano: int, invoices: Iterable[OpenInvoice], named: UUID | None = None) -> Applied:
    """Apply a payment: to the invoice that it names and no other, else to what is due first. What is left is kept.

    Exact, no rounding. Source: domain, section 6.

    >>> from datetime import UTC
    >>> october = OpenInvoice(datetime(2026, 11, 17, tzinfo=UTC), "TB-000007", UUID(int=7), 96)
    >>> november = OpenInvoice(datetime(2026, 12, 17, tzinfo=UTC), "TB-000009", UUID(int=9), 50)
    >>> def shown(applied): return [(each.int, nano) for each, nano in applied.pays], applied.left_nano
    >>> shown(apply(100, [november, october]))
    ([(7, 96), (9, 4)], 0)
    >>> shown(apply(100, [november, october], named=UUID(int=7)))
    ([(7, 96)], 4)
    >>> shown(apply(20, [november, october], named=UUID(int=9)))
    ([(9, 20)], 0)
    """
    pays: list[tuple[UUID, int]] = []
    left = amount_nano
    for invoice in sorted(invoices):
        if named is not None and invoice.invoice_id != named:
            continue
        part = min(left, max(0, invoice.open_nano))
        if part:
            pays.append((invoice.invoice_id, part))
            left -= part
    return Applied(tuple(pays), left)


def spread(amount_nano: int, open_nano: Mapping[str, int], step_nano: int) -> dict[str, int]:
    """Divide what is paid of an invoice among the accounts that owe it, by what each still owes.

    In whole minor units (``step_nano`` nanos) that sum to the amount exactly: cut down, the missing units to the largest
    remainders, of equals to the first by account id. Nobody pays more than it owes, so the last payment leaves nothing open.
    A share below zero (more taken back than used) is given up in the same proportion. Raises `ValueError` for more than is
    open.

    >>> spread(36, {"east": 44, "offshore": 13, "west": 15}, 1)
    {'east': 22, 'offshore': 7, 'west': 7}
    >>> spread(6, {"a": 10, "b": -4}, 1)
    {'a': 10, 'b': -4}
    """
    whole = sum(open_nano.values())
    if not 0 < amount_nano <= whole:
        raise ValueError(f"{amount_nano} of {whole} cannot be paid")
    accounts = sorted(open_nano)
    if amount_nano == whole:
        return {account_id: open_nano[account_id] for account_id in accounts if open_nano[account_id]}
    step = step_nano if amount_nano % step_nano == 0 else 1
    units, rest = zip(
        *(divmod(amount_nano * open_nano[account_id], whole * step) for account_id in accounts), strict=True
    )
    order = sorted(range(len(accounts)), key=lambda index: (-rest[index], index))
    more = set(order[: amount_nano // step - sum(units)])
    parts = {account_id: (units[index] + (index in more)) * step for index, account_id in enumerate(accounts)}
    return {account_id: nano for account_id, nano in parts.items() if nano}


def free(
    amount_nano: int, credited_nano: Mapping[str, int], open_nano: Mapping[str, int], step_nano: int
) -> dict[str, int]:
    """Whose shares of an invoice a credit note frees: of the accounts that it credits first, then of the others as by `spread`.

    ``credited_nano`` is what it credits each account, at least the amount in all; nothing is freed twice.

    >>> free(40, {"a": 40}, {"a": 48, "b": 48}, 1), free(40, {"a": 40}, {"a": 24, "b": 24}, 1)
    ({'a': 40}, {'a': 24, 'b': 16})
    """
    if amount_nano == sum(open_nano.values()):
        return dict(open_nano)
    own = {
        name: min(nano, open_nano.get(name, 0)) for name, nano in credited_nano.items() if open_nano.get(name, 0) > 0
    }
    rest = amount_nano - sum(own.values())
    if rest:
        left = {name: nano - own.get(name, 0) for name, nano in open_nano.items()}
        for name, nano in spread(rest, left, step_nano).items():
            own[name] = own.get(name, 0) + nano
    return own


def from_wallets(wallets_nano: Mapping[str, int], open_nano: Mapping[str, int], step_nano: int) -> dict[str, int]:
    """What each account pays of an invoice from its own wallet: its share, as far as whole minor units for it are there.

    ``open_nano`` says what each owes of the invoice. Where a share is below zero (more taken back than used), the others owe
    less than their shares: what is open in all, divided as by `spread`. Nothing of a part of a minor unit (``step_nano``
    nanos) is paid, so that what is left open can be paid by money that arrives.

    >>> from_wallets({"east": 50, "west": 7, "offshore": -3}, {"east": 40, "west": 20, "offshore": 9}, 1)
    {'east': 40, 'west': 7}
    >>> from_wallets({"a": 50, "b": 3}, {"a": 10, "b": -4}, 1)
    {'a': 6}
    >>> from_wallets({"a": 1999}, {"a": 5000}, 1000)
    {'a': 1000}
    """
    whole = sum(open_nano.values())
    if whole <= 0:
        return {}
    owed = spread(whole, {account_id: nano for account_id, nano in open_nano.items() if nano > 0}, step_nano)
    pays = {
        account_id: min(nano, whole_units(wallets_nano.get(account_id, 0), step_nano))
        for account_id, nano in owed.items()
    }
    return {account_id: nano for account_id, nano in pays.items() if nano}


def whole_units(wallet_nano: int, step_nano: int) -> int:
    """What a wallet can pay in whole minor units; nothing when it is below zero.

    >>> whole_units(1999, 1000), whole_units(-1, 1000)
    (1000, 0)
    """
    return max(0, wallet_nano - wallet_nano % step_nano)


def state_of(
    *, due_nano: int, paid_nano: int, written_off_nano: int, credited_nano: int, is_overdue: bool, is_void: bool
) -> InvoiceState:
    """The state of a closed invoice. One that a credit note voids is void, whatever was paid of it: that is kept.

    >>> def state(paid, written_off=0, credited=0, is_overdue=False, is_void=False):
    ...     return state_of(
    ...         due_nano=96, paid_nano=paid, written_off_nano=written_off, credited_nano=credited, is_overdue=is_overdue,
    ...         is_void=is_void,
    ...     )
    >>> state(0), state(50), state(96), state(50, is_overdue=True), state(96, is_overdue=True), state(50, 46)
    ('closed', 'partly_paid', 'paid', 'overdue', 'paid', 'written_off')
    >>> state(0, credited=12), state(84, credited=12), state(0, credited=96, is_void=True)
    ('closed', 'paid', 'void')
    """
    if is_void:
        return "void"
    if due_nano == paid_nano + written_off_nano + credited_nano:
        return "written_off" if written_off_nano else "paid"
    if is_overdue:
        return "overdue"
    return "partly_paid" if paid_nano else "closed"
