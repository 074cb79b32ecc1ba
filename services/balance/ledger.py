"""Double entry: which accounts there are, and what each event of billing posts.

Amounts are nanos; > 0 credits, < 0 debits; the entries of a transaction sum to zero. Liabilities and income are >= 0, assets
and expenses <= 0. Source: designs/ledger, sections 1, 2 and 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from services.kernel.errors import Corrupt, InvalidInput
from services.kernel.money import WALLET_NANO_MAX, format_nano

OPENING = "opening"
PROMOTION = "promotion"
ROUNDING = "rounding"
WALLET = "wallet"
UNBILLED = "unbilled"
RECEIVABLE = "receivable"


class Entry(NamedTuple):
    """One signed amount on one ledger account; ``account_id`` is the customer account it is about, if any."""

    ledger: str
    nano: int
    account_id: str | None = None


def revenue(product: str) -> str:
    return f"revenue:{product}"


def clearing(processor: str) -> str:
    return f"clearing:{processor}"


def tax(jurisdiction: str) -> str:
    return f"tax:{jurisdiction}"


def checked(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """The entries without those of zero; `Corrupt` when they do not sum to zero.

    >>> checked([Entry("wallet", 5, "a"), Entry("opening", -4)])
    Traceback (most recent call last):
    services.kernel.errors.Corrupt: the entries of a transaction sum to 0.000000001, not to zero
    """
    kept = tuple(entry for entry in entries if entry.nano)
    total = sum(entry.nano for entry in kept)
    if total:
        raise Corrupt(f"the entries of a transaction sum to {format_nano(total)}, not to zero")
    return kept


def check_wallet(nano: int, *, field: str = "amount") -> None:
    """Refuse what would take a wallet out of its bounds of +-4 x 10^9."""
    if abs(nano) > WALLET_NANO_MAX:
        raise InvalidInput(f"is more than a wallet may hold ({format_nano(WALLET_NANO_MAX)})", field=field)


def opening(account_id: str, nano: int) -> tuple[Entry, ...]:
    """Opening balance x taken over: wallet +x, opening -x. Not a payment."""
    return checked([Entry(WALLET, nano, account_id), Entry(OPENING, -nano)])


def goodwill(account_id: str, nano: int) -> tuple[Entry, ...]:
    """Goodwill x from finance: wallet +x, promotion -x."""
    return checked([Entry(WALLET, nano, account_id), Entry(PROMOTION, -nano)])


def payment(account_id: str, processor: str, nano: int) -> tuple[Entry, ...]:
    """Payment of 100 settled: wallet +100, clearing -100."""
    return checked([Entry(WALLET, nano, account_id), Entry(clearing(processor), -nano, account_id)])


def charges(account_id: str, *, wallet: int, unbilled: int, by_product: Mapping[str, int]) -> tuple[Entry, ...]:
    """A batch's charges of one account: wallet -(prepaid part), unbilled -(postpaid part), revenue + per product.

    Reversals are negative charges, so a part may have either sign.

    >>> [entry.nano for entry in charges("a", wallet=3, unbilled=0, by_product={"voice.outbound": 5, "voice.inbound": -2})]
    [-3, -2, 5]
    """
    return checked(
        [
            Entry(WALLET, -wallet, account_id),
            Entry(UNBILLED, -unbilled, account_id),
            *(Entry(revenue(product), nano, account_id) for product, nano in sorted(by_product.items())),
        ]
    )


class ClosingAmounts(NamedTuple):
    """What the close of an invoice posts for one account; signs of the ledger."""

    account_id: str
    wallet: int
    unbilled: int
    receivable: int


def closing(
    group_id: str, accounts: Iterable[ClosingAmounts], *, rounding: int, tax_nano: int, jurisdiction: str
) -> tuple[Entry, ...]:
    """The close of one invoice.

    Postpaid net 80.004 -> 80.00, tax 16.00: unbilled +80.004, receivable -96.00, rounding -0.004, tax +16.00.
    Prepaid net 12.345678901 -> 12.35, tax 2.47: wallet -2.474321099, rounding +0.004321099, tax +2.47.

    >>> from services.kernel.money import parse_amount
    >>> n = lambda text: parse_amount(text, signed=True)
    >>> [e.ledger for e in closing("g", [ClosingAmounts("a", 0, n("80.004"), n("-96"))], rounding=n("-0.004"), tax_nano=n("16"), jurisdiction="X")]
    ['unbilled', 'receivable', 'rounding', 'tax:X']
    >>> len(closing("g", [ClosingAmounts("a", n("-2.474321099"), 0, 0)], rounding=n("0.004321099"), tax_nano=n("2.47"), jurisdiction="X"))
    3
    """
    entries: list[Entry] = []
    for each in accounts:
        entries += [
            Entry(WALLET, each.wallet, each.account_id),
            Entry(UNBILLED, each.unbilled, each.account_id),
            Entry(RECEIVABLE, each.receivable, each.account_id),
        ]
    return checked([*entries, Entry(ROUNDING, rounding), Entry(tax(jurisdiction), tax_nano)])
