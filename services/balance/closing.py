"""The room's part in closing: it says when every charge of a cut is posted, and posts what a closed invoice moves, and what
a credit note against one does.

Source: designs/closing, line 11; designs/ledger, section 2.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar
from uuid import UUID

from contracts.closing import Covered, Mark
from contracts.invoices import ClosingPosting, CreditNoteIssued, InvoiceClosed, InvoiceEvent
from contracts.topics import BALANCE_POSTINGS, CLOSING_PROGRESS, USAGE_CHARGES
from services.balance import drift, ledger, receivables_store, store
from services.balance.book import Book, transaction_id_of
from services.balance.debts import Credited, Debts, Receivable, take
from services.balance.evaluation import Tell, evaluate, load
from services.balance.ledger import TransactionKind
from services.balance.receivables_store import NewPayer
from services.balance.wallets import Wallet
from services.kernel.errors import Corrupt
from services.kernel.ids import derived_id
from services.kernel.money import parse_amount
from services.runtime import faults
from services.runtime.records import Record
from services.runtime.work import Work

Told = TypeVar("Told", InvoiceClosed, CreditNoteIssued)

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
    """Post what closed invoices and credit notes move, once by their ids: one transaction each, over all its accounts.

    In the order in which they were told, so that what pays what does not depend on how the log is cut into batches.
    """
    told: Sequence[InvoiceEvent] = [record.message["data"] for record in records]
    closed = await _not_posted(work, "closing", {each.invoice_id: each for each in told if each.kind == "closed"})
    notes = {each.credit_note_id: each for each in told if each.kind == "credit_note"}
    notes = await _not_posted(work, "credit_note", notes)
    if not closed and not notes:
        return
    book = Book()
    debts = await _owed(work, closed, notes.values())
    accounts = {posting.account_id for invoice in closed.values() for posting in invoice.postings}
    accounts |= {posting.account_id for note in notes.values() for posting in note.postings}
    wallets = await load(work, accounts | await debts.concerned(work))
    for each in told:
        if each.kind == "closed" and closed.pop(each.invoice_id, None) is not None:
            _close(work, debts, wallets, book, each)
        elif each.kind == "credit_note" and notes.pop(each.credit_note_id, None) is not None:
            _credit(work, debts, wallets, book, each)
    await debts.look(work)
    await debts.finish(work, wallets)
    await book.write(work)
    faults.step("balance.invoices.posted")
    await evaluate(work, wallets, funds_of=accounts | debts.funded, tell=tell)


async def _not_posted(work: Work, kind: TransactionKind, told: Mapping[UUID, Told]) -> dict[UUID, Told]:
    done = await store.posted(work, [transaction_id_of(kind, str(name)) for name in told])
    return {name: each for name, each in told.items() if transaction_id_of(kind, str(name)) not in done}


async def _owed(work: Work, closed: Mapping[UUID, InvoiceClosed], notes: Collection[CreditNoteIssued]) -> Debts:
    """The groups of the invoices of which something is due or credited, locked before wallets."""
    groups = {
        invoice.group_id: NewPayer(invoice.group_id, invoice.organization_id, invoice.currency, invoice.zone)
        for invoice in closed.values()
        if _is_due(invoice)
    }
    credited = [note for note in notes if note.voids or any(_nano(posting.owed) for posting in note.postings)]
    if not groups and not credited:
        return Debts((), ())
    if groups:
        await receivables_store.make_payers(work, groups.values())
    named = {str(note.invoice_id) for note in credited}
    return await take(work, groups.keys() | {note.group_id for note in credited}, named)


def _is_due(invoice: InvoiceClosed) -> bool:
    return any(_nano(posting.receivable) for posting in invoice.postings)


def _close(work: Work, debts: Debts, wallets: dict[str, Wallet], book: Book, invoice: InvoiceClosed) -> None:
    """What invoiced accounts have in their wallets pays it first, then what the group has to its credit."""
    invoice_id = str(invoice.invoice_id)
    book.post(work, "closing", invoice_id, invoice.currency, _entries(invoice), note=invoice.number)
    for posting in invoice.postings:
        _move(work, wallets, posting, invoice)
    if not _is_due(invoice):
        return
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
    payer = debts.payers[invoice.group_id]
    debts.pay_from_wallets(work, payer, wallets, book)
    debts.use_unapplied(work, payer, book, invoice_id)


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
    wallet = _wallet(wallets, posting.account_id)
    amounts = _amounts(posting)
    wallet.wallet_nano += amounts.wallet
    wallet.unbilled_nano += amounts.unbilled
    wallet.receivable_nano += amounts.receivable
    wallet.tell(
        work, "invoice_posted", amount_nano=amounts.wallet, message=f"invoice {invoice.number} of {invoice.period}"
    )


def _credit(work: Work, debts: Debts, wallets: dict[str, Wallet], book: Book, note: CreditNoteIssued) -> None:
    """What was paid from balances goes back into wallets, what is owed is owed no more; what came for the group pays what else
    it owes. Source: designs/ledger, section 2."""
    given = {posting.account_id: nano for posting in note.postings if (nano := _nano(posting.wallet))}
    owed = {posting.account_id: nano for posting in note.postings if (nano := _nano(posting.owed))}
    done = Credited({}, 0, {}, 0)
    invoice = debts.find(note.group_id, str(note.invoice_id)) if note.group_id in debts.payers else None
    if invoice is None and owed:
        raise Corrupt(f"credit note {note.number} is against invoice {note.invoice_number}, which is not known")
    if invoice is not None and (owed or note.voids):
        done = debts.credit(work, debts.payers[note.group_id], invoice, owed, note.number, voids=note.voids)
        given = {each: given.get(each, 0) + done.wallets.get(each, 0) for each in sorted({*given, *done.wallets})}
    entries = ledger.credit_note(
        note.group_id,
        by_product={each.product: _nano(each.exact) for each in note.products},
        tax_nano=_nano(note.tax),
        jurisdiction=TAX,
        rounding=-_nano(note.rounding),
        receivables=done.shares,
        unapplied_nano=done.kept_nano,
        wallets=given,
        write_off_nano=done.regained_nano,
        promotion_nano=_nano(note.promotion),
    )
    book.post(work, "credit_note", str(note.credit_note_id), note.currency, entries, note=note.number)
    for account_id, nano in given.items():
        wallet = _wallet(wallets, account_id)
        wallet.wallet_nano += nano
        message = f"credit note {note.number} for invoice {note.invoice_number}"
        wallet.tell(work, "credit_note_posted", amount_nano=nano, message=message)
    if done.kept_nano:
        debts.use_kept(work, debts.payers[note.group_id], done.kept_nano, book, str(note.credit_note_id))


def _wallet(wallets: dict[str, Wallet], account_id: str) -> Wallet:
    if account_id not in wallets:
        raise Corrupt(f"an invoice closes charges of account {account_id}, which has no wallet")
    return wallets[account_id]


def _is_reached(mark: dict[str, Any], received: dict[tuple[str, str, int], int]) -> bool:
    reached = received.get((mark["link"], mark["topic"], mark["partition"]), 0)
    return reached >= int(mark["last_seq"])
