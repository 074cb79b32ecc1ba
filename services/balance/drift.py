"""Sums checked while the room runs: each wallet row is the sum of its entries, of what its calls hold, of what is left of
its credits and of what cards brought for a group; what calls hold of shared credits is the sum of the parts, by call and by
credit; each transaction sums to zero.

What moved since the last look is added to sums of its own and compared with the wallets that it moved; a slow sweep adds up
everything again, some accounts and transactions at a time. What differs is kept as drift and told once; while one stands, no
cut is answered, so that nothing is closed on sums that are wrong. A person mends it; drift that is gone ends by itself.
"""

from __future__ import annotations

import logging
from typing import NamedTuple, cast
from uuid import UUID

from contracts.balance import BalanceEventKind
from services.balance import store
from services.balance.book import transaction_id_of
from services.balance.evaluation import Tell, evaluate, load
from services.balance.ledger import TransactionKind
from services.kernel.money import format_nano
from services.runtime.work import Work

log = logging.getLogger(__name__)

ACCOUNTS_SWEPT = 20  # all entries of each are added up: a few that had a million rows each take a second
TRANSACTIONS_SWEPT = 500

TRANSACTION = "transaction"
SUMMED_UP = {
    "held": "its calls hold",
    "call_shares": "its parts of shared credits sum to",
    "credit_holds": "calls hold of the shared credits that it asked for",
    "credit": "its credits sum to",
    "on_its_way": "its payments for groups sum to",
}  # all else: its entries sum to


class Drift(NamedTuple):
    """What differs: of an account its wallet, unbilled or receivable, its charges, what it holds, its credits or what
    is on its way to a group; or a transaction, by kind and ref."""

    about: str
    kind: str
    held_nano: int
    entries_nano: int

    @property
    def sentence(self) -> str:
        """In words.

        >>> Drift("desk", "wallet", 2_000_000_000, 1_500_000_000).sentence
        'wallet of desk is 2, its entries sum to 1.5'
        >>> Drift("desk", "held", 2_000_000_000, 1_500_000_000).sentence
        'held of desk is 2, its calls hold 1.5'
        >>> Drift("payment 7", "transaction", 0, 5).sentence
        'transaction payment 7 sums to 0.000000005, not to zero'
        """
        if self.kind == TRANSACTION:
            return f"transaction {self.about} sums to {format_nano(self.entries_nano)}, not to zero"
        if self.kind == "charges":
            return f"charges of {self.about} sum to {format_nano(self.entries_nano)} with what paid them, not to zero"
        summed_up = SUMMED_UP.get(self.kind, "its entries sum to")
        return f"{self.kind} of {self.about} is {format_nano(self.held_nano)}, {summed_up} {format_nano(self.entries_nano)}"


async def watch(work: Work, *, tell: Tell) -> None:
    """Tick: look again."""
    await look(work, tell=tell)


async def look(work: Work, *, tell: Tell) -> bool:
    """Compare what moved, and a part of all the rest. Returns whether all sums hold, as far as is known."""
    at = await store.lock_sweep(work)
    suspects = await store.add_to_summed(work)
    accounts = await store.accounts_after(work, at.account_id, ACCOUNTS_SWEPT)
    transactions = await store.transactions_after(work, at.transaction_id, TRANSACTIONS_SWEPT)
    before = {(row.about, row.kind): row for row in await store.open_drifts(work)}
    looked_at = {*suspects, *accounts, *(about for about, kind in before if kind != TRANSACTION)}
    found = {(each.about, each.kind): each for each in await _added_up(work, looked_at)}
    still_open = [_transaction_id(about) for about, kind in before if kind == TRANSACTION]
    for row in await store.off_zero(work, [*transactions, *still_open]):
        name = f"{row.kind} {row.ref}"
        found[name, TRANSACTION] = Drift(name, TRANSACTION, 0, int(row.nano))
    await store.save_sweep(work, accounts[-1] if accounts else "", transactions[-1] if transactions else None)
    new = [found[key] for key in sorted(found.keys() - before.keys())]
    gone = sorted(before.keys() - found.keys())
    if new or gone:
        if new:
            await store.append_drifts(work, [{**each._asdict(), "found_at": work.now} for each in new])
        if gone:
            await store.end_drifts(work, [before[key].id for key in gone])
        for each in new:
            log.critical("the ledger drifts: %s; no cut is answered until it is mended", each.sentence)
        for about, kind in gone:
            log.warning("%s of %s holds again", kind, about)
        await _tell(work, new, gone, tell)
    return not found


async def _added_up(work: Work, accounts: set[str]) -> list[Drift]:
    if not accounts:
        return []
    drifts = []
    for row in await store.add_up(work, accounts):
        pairs = {
            "wallet": (row.wallet_nano, row.wallet_sum),
            "unbilled": (row.unbilled_nano, row.unbilled_sum),
            "receivable": (row.receivable_nano, row.receivable_sum),
            "charges": (0, row.charges_sum),
            "held": (row.held_nano, row.held_sum),
            "call_shares": (row.call_shares_nano, row.call_shares_sum),
            "credit_holds": (row.credit_holds_nano, row.credit_holds_sum),
            "credit": (row.credit_nano, row.credit_sum),
            "on_its_way": (row.on_its_way_nano, row.on_its_way_sum),
        }
        drifts += [
            Drift(row.account_id, kind, int(held), int(entries))
            for kind, (held, entries) in pairs.items()
            if held != entries
        ]
    return drifts


async def _tell(work: Work, new: list[Drift], gone: list[tuple[str, str]], tell: Tell) -> None:
    """Events of the accounts, each once. A transaction is told to the first account that it touches; one that touches none,
    as a pay-out, stands in the log alone."""
    told: list[tuple[str, BalanceEventKind, str, str | None]] = [
        (each.about, "drift_found", each.kind, each.sentence) for each in new
    ]
    told += [
        (about, "drift_gone", kind, f"transaction {about} sums to zero again" if kind == TRANSACTION else None)
        for about, kind in gone
    ]
    transactions = {about: _transaction_id(about) for about, _, kind, _ in told if kind == TRANSACTION}
    touched = await store.first_accounts(work, transactions.values()) if transactions else {}
    owners = [touched.get(transactions[about]) if kind == TRANSACTION else about for about, _, kind, _ in told]
    wallets = await load(work, {owner for owner in owners if owner is not None})
    for owner, (_, event, kind, message) in zip(owners, told, strict=True):
        if owner is not None and owner in wallets:
            wallets[owner].tell(work, event, reason=kind, message=message)
    await evaluate(work, wallets, tell=tell, funds_of=())


def _transaction_id(about: str) -> UUID:
    """Of a transaction that is named by kind and ref: only its id finds it without looking through the whole ledger."""
    kind, _, ref = about.partition(" ")
    return transaction_id_of(cast(TransactionKind, kind), ref)
