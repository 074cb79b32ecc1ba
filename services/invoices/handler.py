"""Batches and ticks of the room: each is one transaction, rules between store calls.

Accumulation takes about five statements a batch, however many charges; a close about fifteen for up to 500 groups.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal
from uuid import UUID

from contracts.closing import Covered, Cutoff
from contracts.groups import AccountTimeline, BillingGroup
from contracts.invoices import InvoiceClosed, InvoiceMoved
from contracts.receivables import GroupEvent, InvoiceStanding
from contracts.topics import CLOSING_CUTOFFS, GROUPS_BILLING_GROUPS, INVOICES_EVENTS
from services.invoices import credit_note_documents, credit_note_store, credit_notes, documents, store
from services.invoices.accumulation import InvoiceKey, Tally, fold_charges, fold_postings
from services.invoices.closing import (
    Coverage,
    LinkKey,
    Mismatch,
    NothingToBill,
    OpenInvoice,
    amounts,
    boundaries_due,
    decide,
    number_text,
    periods_ending,
)
from services.invoices.documents import Issue
from services.invoices.rounding import Bill
from services.kernel.errors import Corrupt, TollbookError
from services.kernel.ids import cutoff_id
from services.kernel.money import parse_amount
from services.kernel.period import period_named
from services.runtime import faults
from services.runtime.records import Record
from services.runtime.work import Work

log = logging.getLogger(__name__)

NOTES_MAX = 100  # issued in one transaction
CLOSE_GROUPS_MAX = 500  # one closing transaction: statements are shared by many groups, row locks are held shortly


# ---- what is accumulated -------------------------------------------------------------------------------------------


async def charges(work: Work, records: list[Record]) -> None:
    """Add a batch of charges to the lines of their invoices."""
    folded = fold_charges(records)
    if not folded.tallies:
        return
    await _hold_open(work, folded.tallies)
    await store.add_lines(work.connection, folded.lines)
    await store.add_tallies(work.connection, folded.tallies)


async def postings(work: Work, records: list[Record]) -> None:
    """Add what balance posted for the charges of an invoice."""
    folded = fold_postings(record.message["data"] for record in records)
    if not folded:
        return
    await _hold_open(work, folded)
    await store.add_paid(work.connection, folded)


async def _hold_open(work: Work, keys: Iterable[InvoiceKey]) -> None:
    """Hold the invoices FOR SHARE, opened on first use; `Corrupt` when one is closed: its cut was said to be complete."""
    by_id = {key.invoice_id: key for key in keys}
    states = await store.share_invoices(work.connection, by_id)
    missing = [key for each, key in by_id.items() if each not in states]
    if missing:
        await _expect_not_passed(work, missing)
        await store.create_invoices(work.connection, missing)
        states |= await store.share_invoices(work.connection, [key.invoice_id for key in missing])
    for each, state in states.items():
        if state != "open":
            raise _too_late(by_id[each])


async def _expect_not_passed(work: Work, keys: Collection[InvoiceKey]) -> None:
    """A group that had nothing to bill has no invoice row: its period may be over all the same."""
    groups = await store.load_groups(work.connection, {key.group_id for key in keys})
    ends = {key: period_named(key.period, groups[key.group_id].zone).end for key in keys if key.group_id in groups}
    passed = await store.share_passed_cuts(work.connection, ends.values())
    if not passed:
        return
    rows = await store.load_evidence(work.connection, [cut for cut, _ in passed.values()])
    complete = {(cut, group_id) for cut, group_id, _, _ in rows}
    for key, end in ends.items():
        if end not in passed:
            continue
        cut, held = passed[end]
        if key.group_id not in held or (cut, key.group_id) in complete:
            raise _too_late(key)


def _too_late(key: InvoiceKey) -> Corrupt:
    return Corrupt(
        f"a charge or posting reached invoice {key.group_id} {key.period} after it was closed",
        code="charge_after_close",
    )


async def registry(work: Work, records: list[Record]) -> None:
    """Keep billing groups, account names and zones as the registry last told them."""
    groups: dict[str, BillingGroup] = {}
    accounts: dict[str, tuple[int, str]] = {}
    zones: dict[str, Any] = {}
    for record in records:
        told: Any = record.message["data"]
        if record.topic == GROUPS_BILLING_GROUPS.name:
            _keep_newest(groups, told)
            zones.setdefault(told.zone, work.now)
        else:
            timeline: AccountTimeline = told
            known = accounts.get(timeline.account_id)
            if known is None or known[0] < timeline.version:
                accounts[timeline.account_id] = (timeline.version, timeline.name)
            for interval in timeline.groups:
                zones[interval.zone] = min(zones.get(interval.zone, interval.start), interval.start)
    if groups:
        await store.save_groups(work.connection, groups.values())
    if accounts:
        await store.save_accounts(work.connection, accounts)
    if zones:
        await store.save_zones(work.connection, zones)


def _keep_newest(groups: dict[str, BillingGroup], told: BillingGroup) -> None:
    known = groups.get(told.group_id)
    if known is None or known.version < told.version:
        groups[told.group_id] = told


async def progress(work: Work, records: list[Record]) -> None:
    """Keep what rooms say of cuts, until the close reads it."""
    told: list[Covered] = [record.message["data"] for record in records]
    await store.save_covered(work.connection, told)


# ---- what becomes of a closed invoice ------------------------------------------------------------------------------

# What else is told of a group moves no invoice.
MOVES = frozenset({"invoice_paid", "invoice_credited", "invoice_written_off", "invoice_overdue"})


async def settlements(work: Work, records: list[Record]) -> None:
    """Keep what balance says of closed invoices, paid or overdue, and tell each step downstream, once."""
    told: list[GroupEvent] = [record.message["data"] for record in records]
    moves = [each for each in told if each.kind in MOVES and each.invoice is not None]
    if not moves:
        return
    fresh = await store.save_settlements(work.connection, moves)
    for each in moves:
        standing = each.invoice
        if standing is None or (standing.invoice_id, standing.version) not in fresh:
            continue
        fresh.discard((standing.invoice_id, standing.version))
        event = InvoiceMoved(
            kind=_happened(each, standing),
            invoice_id=standing.invoice_id,
            version=standing.version,
            number=standing.number,
            group_id=each.group_id,
            organization_id=each.organization_id,
            period=standing.period,
            state=standing.state,
            at=each.at,
            due_on=standing.due_on,
            currency=each.currency,
            due=standing.due,
            paid=standing.paid,
            written_off=standing.written_off,
            credited=standing.credited,
            open=standing.open,
            owed_by=standing.owed_by,
        )
        name = f"{standing.invoice_id}:{standing.version}"
        work.publish(INVOICES_EVENTS, each.group_id, name, event.data())
    faults.step("invoices.settlements.told")


Happened = Literal["partly_paid", "paid", "overdue", "written_off", "credited"]


def _happened(told: GroupEvent, standing: InvoiceStanding) -> Happened:
    if told.kind == "invoice_overdue":
        return "overdue"
    if told.kind == "invoice_written_off":
        return "written_off"
    if told.source == "credit_note":
        return "credited"
    return "partly_paid" if parse_amount(standing.open, signed=True) else "paid"


# ---- the cut -------------------------------------------------------------------------------------------------------


async def cut(work: Work) -> None:
    """Tick: cut every boundary that is due, once."""
    terms = await store.load_terms(work.connection)
    if terms is None:
        return
    zones = await store.load_zones(work.connection)
    named = await store.named_periods(work.connection)
    due = boundaries_due(terms, zones, named, work.now) - await store.cut_boundaries(work.connection)
    if not due:
        return
    cuts = {cutoff_id(boundary): boundary for boundary in due}
    for each in await store.insert_cutoffs(work.connection, cuts, work.now):
        told = Cutoff(cutoff_id=each, boundary=cuts[each])
        work.publish(CLOSING_CUTOFFS, str(each), str(each), told.data())
    faults.step("invoices.cutoff.insert")


# ---- the close -----------------------------------------------------------------------------------------------------


async def close(work: Work) -> None:
    """Tick: close what may close, oldest cut first, one bulk a transaction."""
    received = await store.load_received(work.connection)
    for each in await store.load_cuts(work.connection, unfinished=True):
        coverage = await store.load_coverage(work.connection, each.cutoff_id)
        if coverage.waits_for(received) is None and await _close_bulk(work, each, coverage, received):
            return


async def _close_bulk(work: Work, each: store.Cut, coverage: Coverage, received: dict[LinkKey, int]) -> bool:
    """Close up to a bulk of the groups that this cut lets close; True if any was."""
    waiting = coverage.still_held(received)
    ends = periods_ending(each.boundary, await store.load_zones(work.connection))
    evidence = await _evidence(work, each, coverage, waiting)
    candidates = await store.lock_open(work.connection, ends, waiting, CLOSE_GROUPS_MAX)
    if candidates:
        faults.step("invoices.close.locked")
    told = await store.load_undone(work.connection, [candidate.key for candidate in candidates])
    bills: list[tuple[OpenInvoice, BillingGroup, Bill]] = []
    nothing: list[UUID] = []
    refused: dict[UUID, str] = {}
    for candidate, invoice in zip(candidates, await _load(work, candidates), strict=True):
        decision = decide(invoice)
        if isinstance(decision, Mismatch):
            refused[invoice.key.invoice_id] = decision.reason
            if candidate.refused != decision.reason:
                log.critical("invoice %s %s is refused: %s", *invoice.key, decision.reason)
        elif invoice.group is None or (isinstance(decision, NothingToBill) and invoice.key not in told):
            nothing.append(invoice.key.invoice_id)
        elif isinstance(decision, NothingToBill):  # but a document went out: one over nothing replaces it
            bills.append((invoice, invoice.group, amounts(invoice, invoice.group)))
        else:
            bills.append((invoice, invoice.group, decision))
    if refused:
        await store.save_refused(work.connection, refused, work.now)
    if nothing:
        await store.save_nothing(work.connection, nothing, each.cutoff_id, work.now)
    if bills:
        await _issue(work, each, bills, evidence, told)
    if not waiting and not await store.any_open(work.connection, ends):
        await store.mark_finished(work.connection, each.cutoff_id, work.now)
    return bool(bills or nothing)


async def _evidence(work: Work, each: store.Cut, coverage: Coverage, waiting: Collection[str]) -> dict[str, str]:
    """SHA-256 of the cut's evidence, per group that was held, and under the empty name for all others; made once."""
    known = {
        group_id: sha256 for _, group_id, _, sha256 in await store.load_evidence(work.connection, [each.cutoff_id])
    }
    made: dict[str, tuple[str, str]] = {}
    if store.WHOLE_CUT not in known:
        await store.mark_passed(work.connection, each.cutoff_id, coverage.held, work.now)
        body = documents.canonical(documents.cutoff_evidence(each.cutoff_id, each.boundary, coverage))
        made[store.WHOLE_CUT] = (body, documents.sha256_of(body))
        known[store.WHOLE_CUT] = documents.sha256_of(body)
    for group_id in coverage.held - set(waiting) - set(known):
        body = documents.canonical(
            documents.cutoff_evidence(
                each.cutoff_id, each.boundary, coverage, group_id=group_id, whole_sha256=known[store.WHOLE_CUT]
            )
        )
        made[group_id] = (body, documents.sha256_of(body))
    if made:
        await store.save_evidence(work.connection, each.cutoff_id, made)
    return known | {group_id: sha256 for group_id, (_, sha256) in made.items()}


async def _load(work: Work, candidates: Collection[store.Candidate]) -> list[OpenInvoice]:
    if not candidates:
        return []
    ids = [candidate.key.invoice_id for candidate in candidates]
    groups = await store.load_groups(work.connection, [candidate.key.group_id for candidate in candidates])
    lines = await store.load_lines(work.connection, ids)
    tallies = await store.load_tallies(work.connection, ids)
    paid = await store.load_paid(work.connection, ids)
    return [
        OpenInvoice(
            key,
            groups.get(key.group_id),
            tuple(lines.get(key.invoice_id, ())),
            tallies.get(key.invoice_id, Tally(0, 0, 0)),
            tuple(paid.get(key.invoice_id, ())),
        )
        for key in (candidate.key for candidate in candidates)
    ]


async def _issue(
    work: Work,
    each: store.Cut,
    bills: list[tuple[OpenInvoice, BillingGroup, Bill]],
    evidence: dict[str, str],
    told: Mapping[InvoiceKey, InvoiceClosed],
) -> None:
    """Number last, then the documents and their events. One that a restore undid, and that comes out the same, is issued again
    as it was, by its number and on its day."""
    names = await store.load_account_names(
        work.connection, {share.account_id for _, _, bill in bills for share in bill.shares}
    )
    again = {
        invoice.key: issue
        for invoice, group, bill in bills
        if (issue := _again(invoice, group, bill, each, told.get(invoice.key))) is not None
    }
    counts = Counter(group.billing_entity.billing_entity_id for invoice, group, _ in bills if invoice.key not in again)
    numbers = await store.take_numbers(work.connection, counts) if counts else {}
    faults.step("invoices.close.numbered")
    closed: list[store.Closed] = []
    for invoice, group, bill in bills:
        entity = group.billing_entity
        issue = again.get(invoice.key)
        if issue is None:
            before = told.get(invoice.key)
            series_no = numbers[entity.billing_entity_id]
            numbers[entity.billing_entity_id] += 1
            number = number_text(entity.number_prefix, series_no)
            issue = Issue(number, series_no, work.now, None if before is None else before.number)
        document = documents.closed(
            invoice,
            group,
            bill,
            names,
            issue,
            cutoff_id=each.cutoff_id,
            cutoff_evidence_sha256=evidence.get(group.group_id, evidence[store.WHOLE_CUT]),
        )
        body = documents.canonical(document)
        sha256 = documents.sha256_of(body)
        closed.append(
            store.Closed(
                invoice.key, entity.billing_entity_id, issue.number, issue.issued_on, group.currency, bill, body, sha256
            )
        )
        event = documents.closed_event(invoice, group, bill, issue, boundary=each.boundary, sha256=sha256)
        identifier = str(event.invoice_id) if issue.replaces is None else f"{event.invoice_id}:{issue.number}"
        work.publish(INVOICES_EVENTS, group.group_id, identifier, event.data())
    await store.save_closed(work.connection, closed, each.cutoff_id)
    await store.save_documents(work.connection, closed)
    faults.step("invoices.close.events")


def _again(
    invoice: OpenInvoice, group: BillingGroup, bill: Bill, each: store.Cut, told: InvoiceClosed | None
) -> Issue | None:
    """How an invoice was issued that a restore undid, where its close comes to the same: the same charges by their number, sum
    and XOR, the same amounts and entries. An older record that does not say the XOR is never the same."""
    if told is None or told.xor is None:
        return None
    issue = Issue.again(told)
    event = documents.closed_event(invoice, group, bill, issue, boundary=each.boundary, sha256=told.sha256)
    return issue if event == told else None


# ---- credit notes --------------------------------------------------------------------------------------------------


async def issue_credit_notes(work: Work) -> None:
    """Tick: number what two persons decided, from the series of the invoices, and tell it; of an invoice one at a time."""
    rows = await credit_note_store.lock_approved(work.connection, NOTES_MAX)
    if not rows:
        return
    await credit_note_store.lock_invoices(work.connection, {row.invoice_id for row in rows})
    invoices = await store.load_documents(work.connection, {row.invoice_id for row in rows})
    earlier = await credit_note_store.load_issued(work.connection, {row.invoice_id for row in rows})
    decided: list[tuple[Any, documents.Document, credit_notes.CreditNote]] = []
    for row in rows:
        invoice = json.loads(invoices[row.invoice_id][0])
        try:
            before = map(credit_notes.parse, credit_note_documents.documents_of(earlier.get(row.invoice_id, ())))
            decided.append((row, invoice, credit_notes.decide(invoice, before, credit_notes.read(row.asked))))
        except TollbookError as error:  # it was possible when it was proposed; the others do not wait for it
            if await credit_note_store.refuse(work.connection, row.credit_note_id, str(error)):
                log.critical("credit note %s cannot be issued, withdraw it: %s", row.credit_note_id, error)
    entities = Counter(invoice["billing_entity"]["billing_entity_id"] for _, invoice, _ in decided)
    numbers = await store.take_numbers(work.connection, entities)
    faults.step("invoices.credit_notes.numbered")
    for row, invoice, note in decided:
        entity = invoice["billing_entity"]
        entity_id = entity["billing_entity_id"]
        series_no = numbers[entity_id]
        number = number_text(entity["number_prefix"], series_no)
        numbers[entity_id] += 1
        document = credit_note_documents.issued(
            note,
            row.credit_note_id,
            invoice,
            invoices[row.invoice_id][1],
            number=number,
            reason=row.reason,
            at=work.now,
        )
        body = documents.canonical(document)
        sha256 = documents.sha256_of(body)
        await credit_note_store.save_issued(work.connection, row.credit_note_id, entity_id, number, work.now)
        await credit_note_store.save_document(work.connection, row.credit_note_id, body, sha256)
        event = credit_note_documents.issued_event(note, document, sha256, work.now, series_no)
        work.publish(INVOICES_EVENTS, event.group_id, str(row.credit_note_id), event.data())
    faults.step("invoices.credit_notes.issued")
