"""The statement of an account: what it had, each movement with its cause in words, what it has.

Amounts are nanos with the signs of the ledger: above zero is the customer's, below zero what is owed. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from services.kernel.errors import Corrupt


class Position(NamedTuple):
    """What an account has and owes at an instant: prepaid money, what is used and not invoiced, its share of unpaid invoices."""

    wallet: int
    unbilled: int
    receivable: int

    @property
    def balance(self) -> int:
        """All three together: below zero is owed.

        >>> Position(5, -2, -7).balance
        -4
        """
        return self.wallet + self.unbilled + self.receivable

    def plus(self, other: Position) -> Position:
        """The sum, part by part."""
        return Position(*[a + b for a, b in zip(self, other, strict=True)])

    def minus(self, other: Position) -> Position:
        """The difference, part by part."""
        return Position(*[a - b for a, b in zip(self, other, strict=True)])


@dataclass(frozen=True)
class Moved:
    """One transaction that moved an account, as it stands in the ledger."""

    at: datetime
    kind: str
    ref: str
    parts: Position
    charges: int = 0
    products: Sequence[str] = ()
    actor: str | None = None
    note: str | None = None
    processor: str | None = None
    attempt: str | None = None
    method: str | None = None


@dataclass(frozen=True)
class Line:
    """A movement in words, with the position after it."""

    moved: Moved
    cause: str
    after: Position


@dataclass(frozen=True)
class Statement:
    """From the opening position to the closing one, to the last digit."""

    opening: Position
    lines: tuple[Line, ...]
    closing: Position


def statement_of(now: Position, later: Position, moved: Iterable[Moved]) -> Statement:
    """The statement of a time that ended before ``later`` was moved: ``now`` is the position after all.

    Exact. What was there at the start follows from what is there now, so the cost is that of the time since, not of all
    history. A wallet of 90 now, of which 5 were moved since the end; in between 100 came and 20 were used:

    >>> from datetime import UTC
    >>> def on(day, kind, nano, **more): return Moved(datetime(2026, 10, day, tzinfo=UTC), kind, "r", Position(nano, 0, 0), **more)
    >>> made = statement_of(Position(90, 0, 0), Position(5, 0, 0), [on(2, "charges", -20, charges=3), on(1, "payment", 100)])
    >>> made.opening.balance, [(line.cause, line.after.balance) for line in made.lines], made.closing.balance
    (5, [('payment', 105), ('3 charges', 85)], 85)
    """
    ordered = sorted(moved, key=lambda each: (each.at, each.kind in _FOLLOWS_A_CLOSE, each.kind, each.ref))
    closing = now.minus(later)
    opening = closing
    for each in ordered:
        opening = opening.minus(each.parts)
    lines = []
    position = opening
    for each in ordered:
        position = position.plus(each.parts)
        lines.append(Line(each, cause(each), position))
    if position != closing:
        raise Corrupt("a statement does not add up")
    return Statement(opening, tuple(lines), closing)


PAYMENTS = {"auto": "recharge", "manual": "payment", "scheduled": "scheduled payment", "group": "payment for invoices"}
"""What a payment is called by the kind of its attempt."""

CAUSES = {
    "opening": "opening balance taken over",
    "goodwill": "goodwill",
    "credit_used": "paid by promotional credit",
    "payment": "payment",
    "transfer": "bank transfer",
    "refund": "refund of a payment",
    "dispute_opened": "dispute of a payment",
    "dispute_won": "dispute won",
    "reversal": "refund that failed",
    "closing": "closing of invoice",
    "balance_used": "invoice paid from balance",
    "invoice_paid": "payment of invoice",
    "unapplied_used": "earlier payment used for invoice",
    "unapplied_returned": "money sent back",
    "credit_note": "credit note",
    "write_off": "write-off of invoice",
}
_FOLLOWS_A_CLOSE = frozenset({"balance_used"})
"""What is posted in one instant with the close of the invoice that it pays; the close is read first."""
_NAMES_A_DOCUMENT = frozenset({"closing", "balance_used", "credit_note"})
"""Whose note is the number of an invoice or of a credit note; that of all others is what a person wrote."""


def cause(moved: Moved) -> str:
    """Why a movement was made, in words: charges with their number, documents by name, people by name.

    Charges that were posted together are one movement: one above zero says that more was taken back than was charged.

    >>> from datetime import UTC
    >>> def why(kind, wallet=1, **more):
    ...     return cause(Moved(datetime(2026, 10, 1, tzinfo=UTC), kind, "r", Position(wallet, 0, 0), **more))
    >>> why("charges", -9, charges=120, products=["voice.outbound", "sms"])
    '120 charges: sms, voice.outbound'
    >>> why("charges", 5, charges=1, products=["sms"]), why("charges", 5, charges=2, products=["sms"])
    ('1 charge taken back: sms', '2 charges, more taken back than charged: sms')
    >>> why("payment", attempt="auto", method="card", processor="sandbox")
    'recharge by card (sandbox)'
    >>> why("closing", note="INV-7"), why("goodwill", actor="ann", note="sorry for the outage")
    ('closing of invoice INV-7', 'goodwill by ann: sorry for the outage')
    >>> why("invoice_paid", actor="fin", note="BANK-17"), why("write_off", actor="cfo", note="proposed by fin: gone")
    ('payment of invoice by fin: BANK-17', 'write-off of invoice by cfo: proposed by fin: gone')
    """
    if moved.kind == "charges":
        count = f"{moved.charges} charge{'' if moved.charges == 1 else 's'}"
        if moved.parts.balance > 0:
            count += " taken back" if moved.charges == 1 else ", more taken back than charged"
        return f"{count}: {', '.join(sorted(moved.products))}" if moved.products else count
    words = CAUSES.get(moved.kind, moved.kind.replace("_", " "))
    if moved.kind == "payment" and moved.attempt is not None:
        words = PAYMENTS.get(moved.attempt, words)
    if moved.kind in _NAMES_A_DOCUMENT and moved.note:
        words += f" {moved.note}"
    if moved.method:
        words += f" by {moved.method.replace('_', ' ')}"
    if moved.processor:
        words += f" ({moved.processor})"
    if moved.actor:
        words += f" by {moved.actor}"
    if moved.note and moved.kind not in _NAMES_A_DOCUMENT:
        words += f": {moved.note}"
    return words
