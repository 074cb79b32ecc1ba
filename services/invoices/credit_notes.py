"""What a credit note takes back of a closed invoice: a person's decision, worked out from the invoice's own document. Pure.

A note credits all that is left of an invoice, or amounts of some of its lines: what an account used of a product, paid in one
of the two ways. Notes never take back more than the invoice says, in all, of a line, or of an account; the last one that
takes what is left leaves nothing, to the nano. Source: domain, section 6; designs/ledger, section 2.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from services.invoices.rounding import share_total, tax_of
from services.kernel.currency import currency
from services.kernel.errors import InvalidInput, Refused
from services.kernel.money import format_nano, parse_amount, round_minor

Document = Mapping[str, Any]


Part = tuple[str, bool]
"""Of an invoice: what an account paid from its balance (True) or owes of it."""


class Line(NamedTuple):
    """What an account used of a product, paid from its balance or on invoice; on several lines of the invoice, perhaps."""

    account_id: str
    product: str
    prepaid: bool

    @property
    def part(self) -> Part:
        return self.account_id, self.prepaid


class Amount(NamedTuple):
    """As it is shown, in whole minor units, and as it was used, to the nano."""

    minor_nano: int
    exact_nano: int


class Share(NamedTuple):
    """What an account gets back, tax included: into its wallet, and of what its group owes for it."""

    wallet_nano: int
    owed_nano: int


@dataclass(frozen=True, slots=True)
class Asked:
    """A line to credit and how much of it, without tax. ``prepaid`` None: the one way in which it was paid."""

    account_id: str
    product: str
    amount_nano: int
    prepaid: bool | None = None


@dataclass(frozen=True, slots=True)
class CreditNote:
    """What one note takes back. Always: total = lines - promotion + rounding + tax = the sum over shares."""

    lines: Mapping[Line, Amount]
    promotion: Amount
    rounding_nano: int
    tax_nano: int
    shares: Mapping[str, Share]
    voids: bool = False

    @property
    def net_nano(self) -> int:
        return sum(each.minor_nano for each in self.lines.values()) - self.promotion.minor_nano + self.rounding_nano

    @property
    def total_nano(self) -> int:
        return self.net_nano + self.tax_nano

    @property
    def rounding_entry_nano(self) -> int:
        """Of what is taken back, what was never used: the difference of the rounded to the exact sum."""
        exact = sum(each.exact_nano for each in self.lines.values()) - self.promotion.exact_nano
        return self.net_nano - exact

    @property
    def by_product(self) -> dict[str, int]:
        """The exact sums of its lines: what is no revenue any more."""
        sums: dict[str, int] = defaultdict(int)
        for line, amount in self.lines.items():
            sums[line.product] += amount.exact_nano
        return dict(sums)


def decide(invoice: Document, earlier: Iterable[CreditNote], asked: Sequence[Asked] | None) -> CreditNote:
    """The note that credits these lines of a closed invoice, or all that is left of it.

    The tax of all notes together is that of their sum, so notes that credit everything give back all of it; each account gets
    the tax of its own lines, by the largest remainder. A unit of tax for which an account's part has no room is left to the note
    that takes the rest; where all lines of a part are named, so is one by which they were rounded to more than it. Promotional credit is not given back: where all is credited, what it had
    paid is taken off. Refused: what exceeds what is left of the invoice, of the line, or of what the account paid; all of an
    invoice on which an account was given back more than it used. An invoice of 10.00 + 20 % tax, of which 4.00 is credited:

    >>> line = {"account_id": "a", "product": "sms", "payment": "postpaid", "amount": "10.00", "exact": "10"}
    >>> account = {"account_id": "a", "paid_from_balance": "0.00", "due": "12.00"}
    >>> invoice = {"number": "TB-1", "currency": "USD", "tax_rate": "0.20", "lines": [line], "rounding": "0.00", "tax": "2.00"}
    >>> invoice |= {"accounts": [account], "totals": {"net": "10.00", "total": "12.00"}}
    >>> some = decide(invoice, [], [Asked("a", "sms", 4_000_000_000)])
    >>> some.net_nano // 10**7, some.tax_nano // 10**7, some.shares["a"].owed_nano // 10**7, some.voids
    (400, 80, 480, False)
    >>> rest = decide(invoice, [some], None)
    >>> rest.net_nano // 10**7, rest.tax_nano // 10**7, rest.voids
    (600, 120, True)
    """
    number = invoice["number"]
    whole = _whole(invoice)
    if whole.total_nano <= 0:
        raise Refused(
            f"nothing is to be paid of invoice {number}: it gives back itself", field="invoice", code="not_owed"
        )
    left = whole
    for note in earlier:
        left = _without(left, note)
    if left.total_nano <= 0:
        raise Refused(f"all of invoice {number} is credited already", field="invoice", code="nothing_left")
    if asked is not None:
        return _of_lines(invoice, whole, left, asked)
    if (account_id := _given_back_to(left)) is not None:
        raise Refused(
            f"account {account_id} was given back more than it used on invoice {number}; credit lines of others instead",
            field="invoice",
            code="gives_back",
        )
    return left


def _of_lines(invoice: Document, whole: CreditNote, left: CreditNote, asked: Sequence[Asked]) -> CreditNote:
    number = invoice["number"]
    exponent = currency(invoice["currency"]).exponent
    lines = _named(invoice, left, asked)
    may_take_all = _given_back_to(left) is None
    if may_take_all and _in_full(lines, left):
        return left
    net = sum(each.minor_nano for each in lines.values())
    if net > left.net_nano:
        raise Refused(
            f"at most {format_nano(left.net_nano)} is left of invoice {number}, rounding and promotional credit taken off; to"
            " credit all of it, name no line",
            field="line",
            code="more_than_left",
        )
    rate = parse_amount(invoice["tax_rate"], field="tax_rate")
    credited = whole.net_nano - left.net_nano
    tax = tax_of(credited + net, rate, exponent) - (whole.tax_nano - left.tax_nano)
    if may_take_all and net + tax == left.total_nano:
        return left
    used: dict[Part, int] = defaultdict(int)
    for line, amount in lines.items():
        used[line.part] += amount.minor_nano
    parts = sorted(used)
    gets = dict(zip(parts, share_total(net + tax, [used[part] for part in parts], rate, exponent), strict=True))
    rounding = 0
    for part in parts:
        account_id, prepaid = part
        most, what = left.shares[account_id][0 if prepaid else 1], "paid from its balance" if prepaid else "owed"
        if gets[part] <= most:
            continue
        over = max(0, used[part] - most)
        if left.promotion.minor_nano or (over and not _in_full(lines, left, part)):
            raise Refused(
                f"with tax {format_nano(gets[part])} would be given back to account {account_id}, of whose part of invoice"
                f" {number} {format_nano(max(0, most))} is left ({what})",
                field="line",
                code="more_than_left",
            )
        rounding -= over
        tax -= gets[part] - most - over
        gets[part] = most
    shares = {
        account_id: Share(gets.get((account_id, True), 0), gets.get((account_id, False), 0))
        for account_id in sorted({account_id for account_id, _ in parts})
    }
    return CreditNote(lines, Amount(0, 0), rounding, tax, shares)


def _named(invoice: Document, left: CreditNote, asked: Sequence[Asked]) -> dict[Line, Amount]:
    """The lines that are asked for, each with what is to be credited of it."""
    exponent = currency(invoice["currency"]).exponent
    lines: dict[Line, Amount] = {}
    for each in asked:
        line = _find(invoice, left.lines, each)
        if line in lines:
            raise InvalidInput(f"{_name(line)} is named twice; name it once, with the sum", field="line")
        if each.amount_nano <= 0 or each.amount_nano % 10 ** (9 - exponent):
            raise InvalidInput(
                f"{format_nano(each.amount_nano)} of {_name(line)} must be above 0, with at most {exponent} decimals",
                field="line",
            )
        most = left.lines[line].minor_nano
        if each.amount_nano > most:
            raise Refused(
                f"at most {format_nano(max(0, most))} is left of {_name(line)} on invoice {invoice['number']}",
                field="line",
                code="more_than_left",
            )
        lines[line] = Amount(each.amount_nano, each.amount_nano)
    return lines


def _in_full(lines: Mapping[Line, Amount], left: CreditNote, part: Part | None = None) -> bool:
    """Whether these are all lines of which something is left, of a part or of the invoice, and all of it."""
    return all(
        line in lines and lines[line].minor_nano == most.minor_nano
        for line, most in left.lines.items()
        if most.minor_nano > 0 and part in (None, line.part)
    )


def given_back_twice(invoice: Document, notes: Iterable[CreditNote], given_back: Mapping[Line, int]) -> list[str]:
    """A sentence for each line of which these notes and later invoices together give back more than it says.

    ``given_back`` is what later invoices give back of the lines by themselves, to the nano: a voided call, a re-rate. Nobody can
    say whether a note is for the same calls, so people are told, and decide.
    """
    exponent = currency(invoice["currency"]).exponent
    left = _whole(invoice)
    for note in notes:
        left = _without(left, note)
    return [
        f"a later invoice gives {format_nano(round_minor(nano, exponent))} of {_name(line)} back by itself as well"
        for line, nano in sorted(given_back.items())
        if line in left.lines and round_minor(nano, exponent) > max(0, left.lines[line].minor_nano)
    ]


def _given_back_to(left: CreditNote) -> str | None:
    """An account that has more of the invoice than it used: a note gives, and takes nothing from anybody."""
    return next((account_id for account_id, share in left.shares.items() if min(share) < 0), None)


def _find(invoice: Document, lines: Iterable[Line], asked: Asked) -> Line:
    found = [
        line
        for line in lines
        if (line.account_id, line.product) == (asked.account_id, asked.product)
        and asked.prepaid in (None, line.prepaid)
    ]
    if not found:
        raise InvalidInput(
            f"invoice {invoice['number']} has no line of {asked.product} of account {asked.account_id}", field="line"
        )
    if len(found) > 1:
        raise InvalidInput(
            f"{asked.product} of account {asked.account_id} was paid in both ways: say prepaid or postpaid",
            field="line",
        )
    return found[0]


def _name(line: Line) -> str:
    return f"{line.product} of account {line.account_id}"


def _without(whole: CreditNote, note: CreditNote) -> CreditNote:
    """What is left when a note has been issued; then whatever takes the rest voids the invoice."""
    none = Amount(0, 0)
    return CreditNote(
        {line: _less(amount, note.lines.get(line, none)) for line, amount in whole.lines.items()},
        _less(whole.promotion, note.promotion),
        whole.rounding_nano - note.rounding_nano,
        whole.tax_nano - note.tax_nano,
        {
            account_id: Share(
                share.wallet_nano - note.shares.get(account_id, Share(0, 0)).wallet_nano,
                share.owed_nano - note.shares.get(account_id, Share(0, 0)).owed_nano,
            )
            for account_id, share in whole.shares.items()
        },
        voids=True,
    )


def _less(one: Amount, other: Amount) -> Amount:
    return Amount(one.minor_nano - other.minor_nano, one.exact_nano - other.exact_nano)


# ---- documents -----------------------------------------------------------------------------------------------------


def _whole(invoice: Document) -> CreditNote:
    """A closed invoice as the note that credits all of it."""
    return _read(invoice, ("paid_from_balance", "due"), voids=True)


def parse(document: Document) -> CreditNote:
    """A note from its document."""
    return _read(document, ("to_balance", "owed"), voids=document["voids"])


def _read(document: Document, shares: tuple[str, str], *, voids: bool) -> CreditNote:
    lines: dict[Line, Amount] = {}
    for each in document["lines"]:
        line = Line(each["account_id"], each["product"], each["payment"] == "prepaid")
        known = lines.get(line, Amount(0, 0))
        lines[line] = Amount(known.minor_nano + _nano(each["amount"]), known.exact_nano + _nano(each["exact"]))
    promotion = [(-_nano(each["amount"]), -_nano(each["exact"])) for each in document.get("credits", ())]
    return CreditNote(
        lines,
        Amount(sum(minor for minor, _ in promotion), sum(exact for _, exact in promotion)),
        _nano(document["rounding"]),
        _nano(document["tax"]),
        {each["account_id"]: Share(_nano(each[shares[0]]), _nano(each[shares[1]])) for each in document["accounts"]},
        voids,
    )


def _nano(text: str) -> int:
    return parse_amount(text, signed=True)


# ---- what was asked ------------------------------------------------------------------------------------------------


def written(asked: Sequence[Asked] | None) -> str | None:
    """What was asked, as it is kept until the note is issued.

    >>> read(written([Asked("a", "sms", 4_000_000_000, True)]))
    (Asked(account_id='a', product='sms', amount_nano=4000000000, prepaid=True),)
    """
    if asked is None:
        return None
    return json.dumps([[each.account_id, each.product, format_nano(each.amount_nano), each.prepaid] for each in asked])


def read(text: str | None) -> tuple[Asked, ...] | None:
    """The inverse of `written`."""
    if text is None:
        return None
    return tuple(
        Asked(account, product, parse_amount(nano), prepaid) for account, product, nano, prepaid in json.loads(text)
    )
