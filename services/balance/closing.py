"""The room's part in closing: it says when every charge of a cut is posted, and posts what a closed invoice moves.

Source: designs/closing, line 11; designs/ledger, section 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from contracts.closing import Covered, Mark
from contracts.invoices import ClosingPosting, InvoiceClosed, InvoiceEvent
from contracts.topics import BALANCE_POSTINGS, CLOSING_PROGRESS, USAGE_CHARGES
from services.balance import drift, ledger, receivables_store, store
from services.balance.book import Book, transaction_id_of
from services.balance.debts import Debts, Receivable, take
from services.balance.evaluation import Tell, evaluate, load
from services.balance.receivables_store import NewPayer
from services.balance.wallets import Wallet
from services.kernel.errors import Corrupt
from services.kernel.ids import derived_id
from services.kernel.money import parse_amount
from services.runtime import faults
from services.runtime.records import Record
from services.runtime.work import Work

WHOLE_CUT = ""
TAX = "group"  # one rate per group: whose tax it is stands on the invoice


async def progress(work: Work, records: list[Record]) -> None:
    """Keep what usage covers until it can be answered; what other rooms say is not for this one."""
    told: Sequence[Covered] = [record.message["data"] for record in records]
    rows = [
        {
            "cutoff_id": each.cutoff_id,
            "group_id": each.group_id or WHOLE_CUT,
            "boundary": each.boundary,
            "marks": [mark.data() for mark in each.marks if mark.topic == USAGE_CHARGES.name],
        }
        for each in told
        if each.room == "usage"
    ]
    if rows:
        await store.append_covered(work, rows)


async def cover(work: Work, *, tell: Tell) -> None:
    """Tick: answer each cut of usage once every charge it speaks of is posted, and while all sums hold."""
    sums_hold = False
    for row in await store.unanswered(work):
        received, posted = await store.received_and_posted(work, USAGE_CHARGES.name, BALANCE_POSTINGS.name)
        if not all(_is_reached(mark, received) for mark in row.marks):
            continue
        sums_hold = sums_hold or await drift.look(work, tell=tell)
        if not sums_hold:
            return
        answer = Covered(
            cutoff_id=row.cutoff_id,
            boundary=row.boundary,
            room="balance",
            group_id=row.group_id or None,
            marks=tuple(
                Mark(link=link, topic=topic, partition=partition, last_seq=last_seq)
                for link, topic, partition, last_seq in posted
            ),
        )
        name = str(derived_id("covered", "balance", str(row.cutoff_id), row.group_id))
        work.publish(CLOSING_PROGRESS, str(row.cutoff_id), name, answer.data())
        faults.step("balance.covered")
        await store.answered(work, row.cutoff_id, row.group_id)


async def invoices(work: Work, records: list[Record], *, tell: Tell) -> None:
    """Post what closed invoices move, once by invoice id: one transaction an invoice, over all its accounts.

    What invoiced accounts have in their wallets pays first, then what the group has paid too much.
    """
    told: Sequence[InvoiceEvent] = [record.message["data"] for record in records]
    closed = {each.invoice_id: each for each in told if each.kind == "closed"}
    done = await store.posted(work, [transaction_id_of("closing", str(invoice_id)) for invoice_id in closed])
    closed = {
        invoice_id: invoice
        for invoice_id, invoice in closed.items()
        if transaction_id_of("closing", str(invoice_id)) not in done
    }
    if not closed:
        return
    book = Book()
    debts = await _owed(work, closed)
    accounts = {posting.account_id for invoice in closed.values() for posting in invoice.postings}
    wallets = await load(work, accounts | await debts.concerned(work))
    for invoice_id in sorted(closed):
        invoice = closed[invoice_id]
        book.post(work, "closing", str(invoice_id), invoice.currency, _entries(invoice), note=invoice.number)
        for posting in invoice.postings:
            _move(work, wallets, posting, invoice)
    await debts.pay_from_wallets(work, wallets, book)
    for payer in debts.payers.values():
        newest = max(each.invoice_id for each in closed.values() if each.group_id == payer.group_id)
        debts.use_unapplied(work, payer, book, str(newest))
    await debts.look(work)
    await debts.finish(work, wallets)
    await book.write(work)
    await evaluate(work, wallets, funds_of=accounts | debts.funded, tell=tell)


async def _owed(work: Work, closed: Mapping[UUID, InvoiceClosed]) -> Debts:
    """The groups of the invoices of which something is due, locked before wallets, with these invoices among what they owe."""
    due = [invoice for invoice in closed.values() if any(_nano(posting.receivable) for posting in invoice.postings)]
    groups = {
        invoice.group_id: NewPayer(invoice.group_id, invoice.organization_id, invoice.currency, invoice.zone)
        for invoice in due
    }
    if not groups:
        return Debts((), ())
    await receivables_store.make_payers(work, groups.values())
    debts = await take(work, groups)
    for invoice in due:
        shares = {posting.account_id: -_nano(posting.receivable) for posting in invoice.postings}
        debts.add(
            Receivable(
                invoice_id=invoice.invoice_id,
                group_id=invoice.group_id,
                number=invoice.number,
                period=invoice.period,
                due_on=invoice.due_on,
                due_nano=sum(shares.values()),
                shares={account_id: nano for account_id, nano in shares.items() if nano},
            )
        )
    return debts


def _entries(invoice: InvoiceClosed) -> tuple[ledger.Entry, ...]:
    return ledger.closing(
        invoice.group_id,
        [_amounts(posting) for posting in invoice.postings],
        rounding=_nano(invoice.posting_rounding),
        tax_nano=_nano(invoice.posting_tax),
        jurisdiction=TAX,
    )


def _amounts(posting: ClosingPosting) -> ledger.ClosingAmounts:
    return ledger.ClosingAmounts(
        posting.account_id, _nano(posting.wallet), _nano(posting.unbilled), _nano(posting.receivable)
    )


def _nano(text: str) -> int:
    return parse_amount(text, signed=True)


def _move(work: Work, wallets: dict[str, Wallet], posting: ClosingPosting, invoice: InvoiceClosed) -> None:
    wallet = wallets.get(posting.account_id)
    if wallet is None:
        raise Corrupt(f"an invoice closes charges of account {posting.account_id}, which has no wallet")
    amounts = _amounts(posting)
    wallet.wallet_nano += amounts.wallet
    wallet.unbilled_nano += amounts.unbilled
    wallet.receivable_nano += amounts.receivable
    wallet.tell(
        work, "invoice_posted", amount_nano=amounts.wallet, message=f"invoice {invoice.number} of {invoice.period}"
    )


def _is_reached(mark: dict[str, Any], received: dict[tuple[str, str, int], int]) -> bool:
    reached = received.get((mark["link"], mark["topic"], mark["partition"]), 0)
    return reached >= int(mark["last_seq"])
