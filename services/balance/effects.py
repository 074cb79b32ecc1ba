"""What the results of a payment mean together: its state, and what it moves, each a function of the *set* of results.

In whatever order and however often they come, the same set means the same: E = 0 if not settled, else settled - refunds -
disputes that are open or lost. A refund that was told as given and as failed came back to us, and is none. Pure; amounts are
nanos. Source: designs/recharge, section 4.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple
from uuid import UUID

from services.balance import ledger
from services.balance.ledger import Entry, TransactionKind
from services.kernel.errors import InvalidInput
from services.kernel.money import format_nano

SETTLED = "settled"
ENDED = {"declined": "declined", "error": "cancelled", "cancelled": "cancelled", "never_seen": "cancelled"}
DISPUTES = frozenset({"disputed", "dispute_won", "dispute_lost"})


class Said(NamedTuple):
    """One result: ``what`` is its kind, or why it failed (`declined`, `error`); ``part`` names the refund or the dispute."""

    what: str
    nano: int
    part: str | None = None


class Movement(NamedTuple):
    """One transaction that follows from a set of results; ``ref`` tells it from all others of its kind."""

    kind: TransactionKind
    ref: str
    entries: tuple[Entry, ...]


def state_of(said: Collection[Said]) -> str | None:
    """The state that a set of results puts an attempt in; None when no result of it says so.

    What settled stays settled; refunds and disputes are no state of the attempt.

    >>> state_of({Said("declined", 5), Said("settled", 5)}), state_of({Said("error", 5)}), state_of({Said("refunded", 5, "r")})
    ('settled', 'cancelled', None)
    """
    whats = {each.what for each in said}
    if SETTLED in whats:
        return SETTLED
    states = {ENDED[what] for what in whats & ENDED.keys()}
    return "declined" if "declined" in states else "cancelled" if states else None


def contradicts(said: Collection[Said]) -> bool:
    """Whether a processor said both that it took the money and that it did not, that a dispute was won and lost, or that a
    refund was given and failed."""
    whats = {each.what for each in said}
    return (
        (SETTLED in whats and not whats.isdisjoint(ENDED))
        or not parts_of(said, "dispute_won").isdisjoint(parts_of(said, "dispute_lost"))
        or not parts_of(said, "refunded").isdisjoint(parts_of(said, "refund_failed"))
    )


def parts_of(said: Iterable[Said], what: str) -> set[str | None]:
    """The refunds or disputes of which this was said."""
    return {each.part for each in said if each.what == what}


def movements(attempt_id: UUID, account_id: str, processor: str, said: Iterable[Said]) -> dict[str, Movement]:
    """Every transaction that a set of results makes, by a name: a larger set has all those of a smaller one.

    Nothing moves before it settled. A dispute that was won before it was ever told as open moves nothing; one that was told
    as won and as lost is lost.

    >>> a = UUID(int=1)
    >>> [each.kind for each in movements(a, "x", "p", [Said("settled", 9), Said("disputed", 9, "d"), Said("dispute_won", 9, "d")]).values()]
    ['payment', 'dispute_opened', 'dispute_won']
    >>> movements(a, "x", "p", [Said("refunded", 9, "r")])
    {}
    >>> failed = [Said("settled", 9), Said("refunded", 5, "r"), Said("refund_failed", 5, "r")]
    >>> [each.kind for each in movements(a, "x", "p", failed).values()], moved(a, "x", "p", failed)
    (['payment', 'refund', 'reversal'], 9)
    """
    said = sorted(set(said), key=lambda each: (each.what, each.part or "", each.nano))
    settled = next((each.nano for each in said if each.what == SETTLED), None)
    if settled is None:
        return {}
    made: dict[str, Movement] = {}

    def add(kind: TransactionKind, entries: tuple[Entry, ...], part: str | None = None, again: str = "") -> None:
        ref = f"{attempt_id}:{part}{again}" if part is not None else str(attempt_id)
        made[f"{kind} {ref}"] = Movement(kind, ref, entries)

    add("payment", ledger.payment(account_id, processor, settled))
    disputes: dict[str, tuple[int, set[str]]] = {}
    failed = parts_of(said, "refund_failed")
    for each in said:
        if each.what == "refunded" and each.part is not None:
            given = ledger.refund(account_id, processor, each.nano)
            add("refund", given, each.part)
            if each.part in failed:
                add("reversal", ledger.reversal(given), each.part)
        elif each.what in DISPUTES and each.part is not None:
            disputes.setdefault(each.part, (each.nano, set()))[1].add(each.what)
    for part, (nano, whats) in sorted(disputes.items()):
        if whats == {"dispute_won"}:
            continue
        opened = ledger.dispute_opened(account_id, processor, nano)
        add("dispute_opened", opened, part)
        if "dispute_won" in whats:
            add("dispute_won", ledger.dispute_won(account_id, processor, nano), part)
            if "dispute_lost" in whats:
                add("dispute_opened", opened, part, ":again")
        if "dispute_lost" in whats:
            add("dispute_lost", ledger.dispute_lost(account_id, processor, nano), part)
    return made


def moved(attempt_id: UUID, account_id: str, processor: str, said: Iterable[Said]) -> int:
    """E: what a set of results moves into the wallet.

    >>> moved(UUID(int=1), "x", "p", [Said("settled", 130), Said("refunded", 30, "r"), Said("disputed", 50, "d")])
    50
    """
    made = movements(attempt_id, account_id, processor, said).values()
    return sum(ledger.amounts(each.entries).get(ledger.WALLET, 0) for each in made)


def left_to_refund(attempt_nano: int, said: Iterable[Said]) -> int:
    """What of an attempt was not given back yet."""
    said = set(said)
    failed = parts_of(said, "refund_failed")
    return attempt_nano - sum(each.nano for each in said if each.what == "refunded" and each.part not in failed)


def check(new: Said, attempt_nano: int, said: Collection[Said]) -> None:
    """Refuse what cannot be true together with what was said before; it is for finance to look at.

    A refund beyond what settled, another amount than the attempt's, another amount of the same refund or dispute.

    >>> check(Said("refunded", 110, "r2"), 130, {Said("settled", 130), Said("refunded", 30, "r1")})
    Traceback (most recent call last):
    services.kernel.errors.InvalidInput: amount: refunds more than the 0.0000001 that is left of the attempt
    """
    if new.what not in ("refunded", "refund_failed", *DISPUTES):
        if new.nano != attempt_nano:
            raise InvalidInput("is not what was asked for", field="amount", code="amount_mismatch")
        return
    alike = DISPUTES if new.what in DISPUTES else {"refunded"}
    before = next((each.nano for each in said if each.what in alike and each.part == new.part), None)
    if before is not None and before != new.nano:
        raise InvalidInput(
            f"is another than the {format_nano(before)} of the same before", field="amount", code="amount_mismatch"
        )
    if new.nano <= 0 or new.nano > attempt_nano:
        raise InvalidInput("is not a part of the attempt", field="amount", code="amount_mismatch")
    if new.what == "refunded" and before is None and new.nano > (left := left_to_refund(attempt_nano, said)):
        raise InvalidInput(
            f"refunds more than the {format_nano(left)} that is left of the attempt",
            field="amount",
            code="refund_too_large",
        )
