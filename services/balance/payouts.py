"""Pay-outs: what a processor, or a bank where transfers arrive, sent to the bank of ours, as finance takes it over from a
statement. Each is posted once by its id.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncEngine

from contracts.payments import PROCESSORS
from services.balance import ledger, receivables_store, store
from services.balance.book import Book, transaction_id_of
from services.kernel.currency import check_decimals
from services.kernel.errors import InvalidInput, Refused
from services.kernel.money import WALLET_NANO_MAX, format_nano
from services.runtime.known_topics import KnownTopics
from services.runtime.processor import Processor
from services.runtime.room import Room
from services.runtime.work import Work

LANE = "finance"


@dataclass(frozen=True)
class Payout:
    """One line of a processor's or bank's statement. ``nano`` below zero: the processor took money back.

    ``processor`` names what it clears: a processor, or the bank of a recorded transfer.
    """

    processor: str
    payout_id: str
    nano: int
    currency: str

    @property
    def ref(self) -> str:
        """The same pay-out has the same."""
        return f"{self.processor}:{self.payout_id}"


async def record(engine: AsyncEngine, payouts: Sequence[Payout], actor: str, note: str = "") -> list[Payout]:
    """Post all of them or none; returns those that were not posted before.

    Of a transfer of 100 that arrived at "bank" and a pay-out of 100 of "bank", clearing:bank is 0 and bank -100.
    `InvalidInput` for what cannot be a pay-out, `Refused` for an id that was posted with another amount.
    """
    for payout in payouts:
        _check(payout)
    new: list[Payout] = []

    async def run(work: Work) -> None:
        if any(payout.processor not in PROCESSORS for payout in payouts):
            _check_names(payouts, [*PROCESSORS, *await receivables_store.banks(work)])
        ids = {transaction_id_of("payout", payout.ref): payout for payout in payouts}
        before = {row.ref: (row.nano, row.currency) for row in await store.posted_to_bank(work, ids)}
        book = Book()
        for payout in _once(payouts):
            if payout.ref not in before:
                entries = ledger.payout(payout.processor, payout.nano)
                book.post(work, "payout", payout.ref, payout.currency, entries, actor=actor, note=note or None)
                new.append(payout)
            elif before[payout.ref] != (-payout.nano, payout.currency):
                posted = format_nano(-before[payout.ref][0])
                raise Refused(
                    f"pay-out {payout.payout_id} of {payout.processor} was posted with {posted} {before[payout.ref][1]};"
                    " what came back of it has an id of its own on the statement: post that, with a minus",
                    field="payout_id",
                    code="conflict",
                )
        await book.write(work)

    await Processor(Room("balance", ()), engine, KnownTopics({})).transact(run, lane=LANE)
    return new


def _once(payouts: Iterable[Payout]) -> list[Payout]:
    """Each id once; `InvalidInput` when one stands for two amounts."""
    by_ref: dict[str, Payout] = {}
    for payout in payouts:
        if by_ref.setdefault(payout.ref, payout) != payout:
            raise InvalidInput(f"{payout.payout_id} stands there twice, with two amounts", field="payout_id")
    return list(by_ref.values())


def _check_names(payouts: Iterable[Payout], known: Sequence[str]) -> None:
    """Refuse a pay-out of what nothing was ever paid through: its clearing account would never come to zero."""
    for payout in payouts:
        if payout.processor not in known:
            raise InvalidInput(
                f"nothing was paid through {payout.processor!r}; use one of {', '.join(dict.fromkeys(known))}",
                field="processor",
            )


def _check(payout: Payout) -> None:
    if not payout.payout_id or len(payout.payout_id) > 128:
        raise InvalidInput("must be the id that the processor gave it, at most 128 characters", field="payout_id")
    check_decimals(payout.nano, payout.currency)
    if payout.nano == 0 or abs(payout.nano) > WALLET_NANO_MAX:
        raise InvalidInput(f"must not be zero, and at most {format_nano(WALLET_NANO_MAX)}", field="amount")
