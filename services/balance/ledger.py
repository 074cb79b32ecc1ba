"""Double entry: which accounts there are, and what each event of billing posts.

Amounts are nanos; > 0 credits, < 0 debits; the entries of a transaction sum to zero. Liabilities and income are >= 0, assets
and expenses <= 0. Source: designs/ledger, sections 1, 2 and 4.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Literal, NamedTuple

from services.kernel.errors import Corrupt, InvalidInput
from services.kernel.money import WALLET_NANO_MAX, format_nano

OPENING = "opening"
BANK = "bank"
PROMOTION = "promotion"
BREAKAGE = "breakage"
WRITE_OFF = "write_off"
ROUNDING = "rounding"
WALLET = "wallet"
UNBILLED = "unbilled"
RECEIVABLE = "receivable"

TransactionKind = Literal[
    "opening",
    "goodwill",
    "payment",
    "transfer",
    "refund",
    "dispute_opened",
    "dispute_won",
    "dispute_lost",
    "payout",
    "credit_granted",
    "credit_used",
    "credit_expired",
    "reversal",
    "closing",
    "balance_used",
    "invoice_paid",
    "unapplied_used",
    "unapplied_returned",
    "credit_note",
    "write_off",
]
"""What a transaction that is not of charges follows from."""


class Entry(NamedTuple):
    """One signed amount on one ledger account; ``account_id`` is the customer account it is about, if any."""

    ledger: str
    nano: int
    account_id: str | None = None


def revenue(product: str) -> str:
    return f"revenue:{product}"


def credit(credit_id: str) -> str:
    return f"credit:{credit_id}"


def clearing(processor: str) -> str:
    return f"clearing:{processor}"


def disputes(processor: str) -> str:
    return f"disputes:{processor}"


def receivable(group_id: str) -> str:
    return f"{RECEIVABLE}:{group_id}"


def unapplied(group_id: str) -> str:
    return f"unapplied:{group_id}"


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


def amounts(entries: Iterable[Entry]) -> dict[str, int]:
    """Nanos by ledger account, added up over customer accounts: a transaction as a table of postings shows it.

    >>> amounts([Entry(WALLET, 2, "a"), Entry(WALLET, 3, "b"), Entry(OPENING, -5)])
    {'wallet': 5, 'opening': -5}
    """
    sums: dict[str, int] = {}
    for entry in entries:
        sums[entry.ledger] = sums.get(entry.ledger, 0) + entry.nano
    return sums


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


# ---- payments ------------------------------------------------------------------------------------------------------


def payment(account_id: str, processor: str, nano: int) -> tuple[Entry, ...]:
    """Payment of 100 settled, or a transfer of 100 that arrived at a bank: wallet +100, clearing -100.

    >>> amounts(payment("a", "sandbox", 100))
    {'wallet': 100, 'clearing:sandbox': -100}
    """
    return checked([Entry(WALLET, nano, account_id), Entry(clearing(processor), -nano, account_id)])


def refund(account_id: str, processor: str, nano: int) -> tuple[Entry, ...]:
    """Refund of 30 of a payment: wallet -30, clearing +30.

    >>> amounts(refund("a", "sandbox", 30))
    {'wallet': -30, 'clearing:sandbox': 30}
    """
    return checked([Entry(WALLET, -nano, account_id), Entry(clearing(processor), nano, account_id)])


def dispute_opened(account_id: str, processor: str, nano: int) -> tuple[Entry, ...]:
    """Dispute of 100 opened, the processor withholds it: wallet -100, disputes +100.

    >>> amounts(dispute_opened("a", "sandbox", 100))
    {'wallet': -100, 'disputes:sandbox': 100}
    """
    return checked([Entry(WALLET, -nano, account_id), Entry(disputes(processor), nano, account_id)])


def dispute_won(account_id: str, processor: str, nano: int) -> tuple[Entry, ...]:
    """Dispute of 100 won: what its opening posted is reversed.

    >>> amounts(dispute_won("a", "sandbox", 100))
    {'wallet': 100, 'disputes:sandbox': -100}
    """
    return reversal(dispute_opened(account_id, processor, nano))


def dispute_lost(account_id: str, processor: str, nano: int) -> tuple[Entry, ...]:
    """Dispute of 100 lost, the processor keeps it: disputes -100, clearing +100. The wallet was debited when it opened.

    >>> amounts(dispute_lost("a", "sandbox", 100))
    {'disputes:sandbox': -100, 'clearing:sandbox': 100}
    """
    return checked([Entry(disputes(processor), -nano, account_id), Entry(clearing(processor), nano, account_id)])


def payout(processor: str, nano: int) -> tuple[Entry, ...]:
    """The processor pays x out to the bank: clearing +x, bank -x.

    >>> amounts(payout("sandbox", 250))
    {'clearing:sandbox': 250, 'bank': -250}
    """
    return checked([Entry(clearing(processor), nano), Entry(BANK, -nano)])


# ---- credits -------------------------------------------------------------------------------------------------------


def credit_granted(credit_id: str, nano: int, account_id: str | None = None) -> tuple[Entry, ...]:
    """Credit of 50 granted: credit +50, promotion -50. ``account_id`` is that of a credit for one account alone.

    >>> amounts(credit_granted("summer", 50))
    {'credit:summer': 50, 'promotion': -50}
    """
    return checked([Entry(credit(credit_id), nano, account_id), Entry(PROMOTION, -nano, account_id)])


def credit_expired(credit_id: str, nano: int, account_id: str | None = None) -> tuple[Entry, ...]:
    """Credit expired with 20 left: credit -20, breakage +20.

    >>> amounts(credit_expired("summer", 20))
    {'credit:summer': -20, 'breakage': 20}
    """
    return checked([Entry(credit(credit_id), -nano, account_id), Entry(BREAKAGE, nano, account_id)])


def credit_used(
    account_id: str, credits: Mapping[str, int], *, wallet: int, unbilled: int, breakage: int = 0
) -> tuple[Entry, ...]:
    """What credits pay of an account's charges, which were posted whole: credit -, wallet + and unbilled +.

    Below zero for what reversals give back; what goes to a credit that has expired is ``breakage``. Of a prepaid charge of 5
    a credit pays 2, and gets it back after it expired:

    >>> amounts(credit_used("a", {"summer": 2}, wallet=2, unbilled=0))
    {'credit:summer': -2, 'wallet': 2}
    >>> amounts(credit_used("a", {}, wallet=-2, unbilled=0, breakage=-2))
    {'wallet': -2, 'breakage': 2}
    """
    return checked(
        [
            *(Entry(credit(credit_id), -nano, account_id) for credit_id, nano in sorted(credits.items())),
            Entry(WALLET, wallet, account_id),
            Entry(UNBILLED, unbilled, account_id),
            Entry(BREAKAGE, -breakage, account_id),
        ]
    )


# ---- charges -------------------------------------------------------------------------------------------------------


def charges(
    account_id: str,
    *,
    wallet: int,
    unbilled: int,
    by_product: Mapping[str, int],
    credits: Mapping[str, int] | None = None,
) -> tuple[Entry, ...]:
    """A batch's charges of one account: credit -, wallet - and unbilled - (what each pays), revenue + per product.

    Reversals are negative charges, so a part may have either sign. Prepaid charge of 5, of it 2 by credit; the same postpaid;
    two products, one of them taken back:

    >>> amounts(charges("a", wallet=3, unbilled=0, credits={"summer": 2}, by_product={"sms": 5}))
    {'credit:summer': -2, 'wallet': -3, 'revenue:sms': 5}
    >>> amounts(charges("a", wallet=0, unbilled=3, credits={"summer": 2}, by_product={"sms": 5}))
    {'credit:summer': -2, 'unbilled': -3, 'revenue:sms': 5}
    >>> [entry.nano for entry in charges("a", wallet=3, unbilled=0, by_product={"voice.outbound": 5, "voice.inbound": -2})]
    [-3, -2, 5]
    """
    return checked(
        [
            *(Entry(credit(credit_id), -nano, account_id) for credit_id, nano in sorted((credits or {}).items())),
            Entry(WALLET, -wallet, account_id),
            Entry(UNBILLED, -unbilled, account_id),
            *(Entry(revenue(product), nano, account_id) for product, nano in sorted(by_product.items())),
        ]
    )


def reversal(entries: Iterable[Entry], *, expired: Collection[str] = ()) -> tuple[Entry, ...]:
    """The exact negative of a transaction's entries. What a credit paid that has ``expired`` since becomes breakage, never cash.

    A charge of 5 of which 2 by credit, taken back while the credit is valid, and after it expired:

    >>> charge = charges("a", wallet=3, unbilled=0, credits={"summer": 2}, by_product={"sms": 5})
    >>> amounts(reversal(charge))
    {'credit:summer': 2, 'wallet': 3, 'revenue:sms': -5}
    >>> amounts(reversal(charge, expired={"summer"}))
    {'breakage': 2, 'wallet': 3, 'revenue:sms': -5}
    """
    over = {credit(credit_id) for credit_id in expired}
    return checked(
        entry._replace(ledger=BREAKAGE if entry.ledger in over else entry.ledger, nano=-entry.nano) for entry in entries
    )


# ---- invoices ------------------------------------------------------------------------------------------------------


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

    >>> postpaid = [ClosingAmounts("a", 0, 80_004_000_000, -96_000_000_000)]
    >>> amounts(closing("g", postpaid, rounding=-4_000_000, tax_nano=16_000_000_000, jurisdiction="X"))
    {'unbilled': 80004000000, 'receivable:g': -96000000000, 'rounding': -4000000, 'tax:X': 16000000000}
    >>> prepaid = [ClosingAmounts("a", -2_474_321_099, 0, 0)]
    >>> amounts(closing("g", prepaid, rounding=4_321_099, tax_nano=2_470_000_000, jurisdiction="X"))
    {'wallet': -2474321099, 'rounding': 4321099, 'tax:X': 2470000000}
    """
    entries: list[Entry] = []
    for each in accounts:
        entries += [
            Entry(WALLET, each.wallet, each.account_id),
            Entry(UNBILLED, each.unbilled, each.account_id),
            Entry(receivable(group_id), each.receivable, each.account_id),
        ]
    return checked([*entries, Entry(ROUNDING, rounding), Entry(tax(jurisdiction), tax_nano)])


def invoice_paid(group_id: str, processor: str, nano: int, shares: Mapping[str, int]) -> tuple[Entry, ...]:
    """A payment of an invoice: receivable + per account as far as it is owed, unapplied + the rest, clearing -.

    ``shares`` says, per account, what of its receivable is paid (above zero). Raises `Corrupt` when they are more than the
    payment. Invoice of 96 paid by card, and by a transfer of 100:

    >>> amounts(invoice_paid("g", "sandbox", 96, {"a": 96}))
    {'receivable:g': 96, 'clearing:sandbox': -96}
    >>> amounts(invoice_paid("g", "bank_transfer", 100, {"a": 96}))
    {'receivable:g': 96, 'unapplied:g': 4, 'clearing:bank_transfer': -100}
    """
    excess = nano - sum(shares.values())
    if excess < 0:
        raise Corrupt(f"a payment of {format_nano(nano)} pays {format_nano(nano - excess)} of receivables")
    return checked([*_freed(group_id, shares), Entry(unapplied(group_id), excess), Entry(clearing(processor), -nano)])


def invoice_paid_by_card(group_id: str, account_id: str, nano: int, shares: Mapping[str, int]) -> tuple[Entry, ...]:
    """A card payment of an invoice that settled into the wallet of the account whose card it is: wallet -, receivable + per
    account as far as it is owed, unapplied + the rest.

    With the payment itself (wallet +100, clearing -100), an invoice of 96 paid by 100:

    >>> amounts([*payment("a", "sandbox", 100), *invoice_paid_by_card("g", "a", 100, {"b": 96})])
    {'wallet': 0, 'clearing:sandbox': -100, 'receivable:g': 96, 'unapplied:g': 4}
    """
    excess = nano - sum(shares.values())
    if excess < 0:
        raise Corrupt(f"a payment of {format_nano(nano)} pays {format_nano(nano - excess)} of receivables")
    return checked([*_freed(group_id, shares), Entry(unapplied(group_id), excess), Entry(WALLET, -nano, account_id)])


def balance_used(group_id: str, wallets: Mapping[str, int], shares: Mapping[str, int]) -> tuple[Entry, ...]:
    """Wallets of invoiced accounts pay what these owe of an invoice: wallet - and receivable + per account.

    ``wallets`` says what each pays, ``shares`` what each owes no more; both sum to the same. They differ only for the last
    payment of an invoice on which more was taken back from one account than it used.

    >>> amounts(balance_used("g", {"a": 40, "b": 5}, {"a": 40, "b": 5}))
    {'wallet': -45, 'receivable:g': 45}
    >>> [entry.nano for entry in balance_used("g", {"a": 6}, {"a": 10, "b": -4})]
    [-6, 10, -4]
    """
    paid = [Entry(WALLET, -nano, account_id) for account_id, nano in sorted(wallets.items())]
    return checked([*paid, *_freed(group_id, shares)])


def unapplied_used(group_id: str, shares: Mapping[str, int]) -> tuple[Entry, ...]:
    """What was paid too much pays the next invoice: unapplied -4, receivable +4.

    >>> amounts(unapplied_used("g", {"a": 4}))
    {'receivable:g': 4, 'unapplied:g': -4}
    """
    return checked([*_freed(group_id, shares), Entry(unapplied(group_id), -sum(shares.values()))])


def unapplied_returned(group_id: str, bank: str, nano: int) -> tuple[Entry, ...]:
    """What is kept for a group is sent back to it: unapplied -4, clearing +4.

    >>> amounts(unapplied_returned("g", "bank", 4))
    {'clearing:bank': 4, 'unapplied:g': -4}
    """
    return checked([Entry(clearing(bank), nano), Entry(unapplied(group_id), -nano)])


def credit_note(
    group_id: str,
    *,
    by_product: Mapping[str, int],
    tax_nano: int,
    jurisdiction: str,
    rounding: int = 0,
    receivables: Mapping[str, int] | None = None,
    unapplied_nano: int = 0,
    wallets: Mapping[str, int] | None = None,
    write_off_nano: int = 0,
    promotion_nano: int = 0,
) -> tuple[Entry, ...]:
    """A credit note: revenue - per product, tax -, and + what frees or gives back: receivable, unapplied or wallet.

    All amounts as on the note, above zero; ``rounding`` with the sign of the ledger. What is not paid yet lowers receivables,
    what was written off is no loss any more, what is paid goes to the group's unapplied or back to wallets; a note of a partly
    paid invoice does more than one. What promotional credit had paid is not given back: it becomes breakage. Raises `Corrupt`
    when the two sides differ. Credit note of 10 + tax 2, unpaid, paid, and of a prepaid account; unpaid, 3 by credit:

    >>> note = dict(by_product={"sms": 10}, tax_nano=2, jurisdiction="X")
    >>> amounts(credit_note("g", receivables={"a": 12}, **note))
    {'receivable:g': 12, 'revenue:sms': -10, 'tax:X': -2}
    >>> amounts(credit_note("g", unapplied_nano=12, **note))
    {'unapplied:g': 12, 'revenue:sms': -10, 'tax:X': -2}
    >>> amounts(credit_note("g", wallets={"a": 12}, **note))
    {'wallet': 12, 'revenue:sms': -10, 'tax:X': -2}
    >>> amounts(credit_note("g", receivables={"a": 9}, promotion_nano=3, **note))
    {'receivable:g': 9, 'breakage': 3, 'revenue:sms': -10, 'tax:X': -2}
    """
    return checked(
        [
            *_freed(group_id, receivables or {}),
            Entry(WRITE_OFF, write_off_nano),
            Entry(BREAKAGE, promotion_nano),
            Entry(unapplied(group_id), unapplied_nano),
            *(Entry(WALLET, nano, account_id) for account_id, nano in sorted((wallets or {}).items())),
            *(Entry(revenue(product), -nano) for product, nano in sorted(by_product.items())),
            Entry(ROUNDING, rounding),
            Entry(tax(jurisdiction), -tax_nano),
        ]
    )


def write_off(group_id: str, shares: Mapping[str, int]) -> tuple[Entry, ...]:
    """Write-off of 96, per account: receivable +96, write_off -96.

    >>> amounts(write_off("g", {"a": 96}))
    {'receivable:g': 96, 'write_off': -96}
    """
    return checked([*_freed(group_id, shares), Entry(WRITE_OFF, -sum(shares.values()))])


def _freed(group_id: str, shares: Mapping[str, int]) -> list[Entry]:
    return [Entry(receivable(group_id), nano, account_id) for account_id, nano in sorted(shares.items())]
