"""The transactions of one batch that are not charges, on their way into the ledger."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from services.balance import store
from services.balance.chain import Posted, content_of_transactions
from services.balance.ledger import Entry, TransactionKind, checked
from services.kernel.ids import derived_id
from services.runtime.work import Work


class Book:
    """Collects transactions and writes them by two statements."""

    def __init__(self) -> None:
        self._transactions: list[Posted] = []

    def post(
        self,
        work: Work,
        kind: TransactionKind,
        ref: str,
        currency: str,
        entries: Iterable[Entry],
        *,
        actor: str | None = None,
        note: str | None = None,
    ) -> None:
        """One transaction. ``ref`` names what it follows from: the same kind and ref make the same transaction id.

        Raises `Corrupt` when its entries do not sum to zero.
        """
        kept = [(entry.ledger, entry.account_id, entry.nano) for entry in checked(entries)]
        self._transactions.append(
            Posted(transaction_id_of(kind, ref), kind, ref, currency, work.now, actor, note, kept)
        )

    async def write(self, work: Work) -> None:
        """Append all of it."""
        if self._transactions:
            await store.append_transactions(work, self._transactions, content_of_transactions(self._transactions))
            await store.append_entries(work, self._transactions)


def transaction_id_of(kind: TransactionKind, ref: str) -> UUID:
    """The id of the one transaction that follows from this."""
    return derived_id("transaction", kind, ref)
