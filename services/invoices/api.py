"""What people read of invoices and ask of them, with the room's own role. Every read is one snapshot."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from contracts.groups import BillingGroup
from services.invoices import credit_note_documents, credit_note_store, documents, store
from services.invoices.accumulation import InvoiceKey, Tally
from services.invoices.adopting import Adopted, adopt
from services.invoices.closing import (
    DUE_AFTER,
    Coverage,
    LinkKey,
    OpenInvoice,
    Terms,
    check_request,
    sums_mismatch,
)
from services.invoices.credit_note_documents import credit_notes_text
from services.invoices.documents import Document, Settlement, as_text, settlements_text, sha256_of
from services.invoices.rounding import split_tiers
from services.kernel.errors import Corrupt, InvalidInput, NotFound, Refused, TollbookError
from services.kernel.money import parse_amount
from services.kernel.period import instant_text, period_named, period_of
from services.runtime.database import transaction

GRACE_MAX = timedelta(days=30)  # a longer one would reach the next boundary
UNPAID = frozenset({"closed", "partly_paid", "overdue"})
PAID = frozenset({"paid"})
OVERDUE = frozenset({"overdue"})

__all__ = [
    "OVERDUE",
    "PAID",
    "UNPAID",
    "Adopted",
    "Audit",
    "AuditedInvoice",
    "CloseRequested",
    "CutStatus",
    "Document",
    "GroupStatus",
    "InvoiceSummary",
    "KeptEvidence",
    "Settlement",
    "Shown",
    "adopt",
    "as_text",
    "audit",
    "cuts",
    "estimate",
    "kept_evidence",
    "list_invoices",
    "received",
    "request_close",
    "set_grace",
    "settled",
    "sha256_of",
    "show",
    "status",
    "terms",
]

GroupState = Literal["open", "waiting", "refused", "closed", "nothing to bill"]


@asynccontextmanager
async def _reading(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    async with transaction(engine.execution_options(isolation_level="REPEATABLE READ")) as connection:
        yield connection


# ---- invoices ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InvoiceSummary:
    """One invoice of a list. Totals are known once it is closed; ``charges``, ``exact_nano`` and what credits paid always.

    ``standing`` says what became of a closed one: closed (nothing is paid yet), partly_paid, paid, overdue, written_off or void.
    """

    invoice_id: UUID
    group_id: str
    period: str
    state: Literal["open", "closed", "nothing"]
    number: str | None
    currency: str | None
    charges: int
    exact_nano: int
    credits_nano: int
    net_nano: int | None
    tax_nano: int | None
    total_nano: int | None
    due_nano: int | None
    refused: str | None
    closed_at: datetime | None
    sha256: str | None
    standing: str
    due_on: datetime | None
    paid_nano: int
    written_off_nano: int
    credited_nano: int
    open_nano: int


async def list_invoices(
    engine: AsyncEngine,
    *,
    period: str | None = None,
    group_id: str | None = None,
    state: Literal["open", "closed", "nothing"] | None = None,
    standings: Collection[str] | None = None,
    limit: int | None = None,
) -> list[InvoiceSummary]:
    """Invoices by period, number and group, all of them unless there is a ``limit``; groups without any charge have none.
    ``standings`` picks some, as `UNPAID`."""
    async with _reading(engine) as connection:
        rows = await store.list_invoices(
            connection, period=period, group_id=group_id, state=state, standings=standings, limit=limit
        )

    def whole(value: Decimal | None) -> int | None:
        return None if value is None else int(value)

    return [
        InvoiceSummary(
            row.invoice_id, row.group_id, row.period, row.state, row.number, row.currency, row.charges or 0,
            int(row.exact_nano or 0), int(row.credits_nano), whole(row.net_nano), whole(row.tax_nano),
            whole(row.total_nano), whole(row.due_nano), row.refused, row.closed_at, row.sha256, row.standing,
            None if row.due_nano is None else row.closed_at + DUE_AFTER,
            int(row.paid_nano or 0), int(row.written_off_nano or 0), int(row.credited_nano or 0),
            int(row.due_nano or 0) if row.open_nano is None else int(row.open_nano),
        )
        for row in rows
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shown:
    """A closed invoice. ``body`` is the canonical JSON whose SHA-256 was published."""

    document: Document
    body: str
    sha256: str
    settlements: tuple[Settlement, ...] = ()
    credit_notes: tuple[Document, ...] = ()

    @property
    def text(self) -> str:
        """The invoice as a page to read, and below it its credit notes and what was paid since."""
        since = credit_notes_text(self.credit_notes) + settlements_text(self.document, self.settlements)
        return as_text(self.document) + since

    @property
    def standing(self) -> str:
        """What became of it: closed, partly_paid, paid, overdue, written_off or void."""
        if any(each["voids"] for each in self.credit_notes):
            return "void"
        if self.settlements:
            return self.settlements[-1].state
        return "closed" if parse_amount(self.document["totals"]["due"], signed=True) else "paid"

    @property
    def open_nano(self) -> int:
        """What is still to be paid of it."""
        if self.settlements:
            return self.settlements[-1].open_nano
        return parse_amount(self.document["totals"]["due"], signed=True)


async def show(engine: AsyncEngine, reference: str) -> Shown:
    """A closed invoice by number or id. `NotFound` when there is none; `InvalidInput` when two sellers share the number."""
    async with _reading(engine) as connection:
        body, sha256 = await find_closed(connection, reference)
        document = _read(body)
        if document is None:
            raise Corrupt(f"the document of invoice {reference} cannot be read")
        invoice_id = UUID(document["invoice_id"])
        rows = await store.load_settlements(connection, invoice_id)
        notes = (await credit_note_store.load_issued(connection, [invoice_id])).get(invoice_id, [])
        before = tuple(credit_note_documents.documents_of(notes))
    return Shown(document, body, sha256, tuple(_settlement(row) for row in rows), before)


async def find_closed(connection: AsyncConnection, reference: str) -> tuple[str, str]:
    """Body and SHA-256 of the one closed invoice of this number or id."""
    found = await store.find_documents(connection, reference, as_id(reference))
    if not found:
        raise NotFound(f"no closed invoice has the number or id {reference!r}", field="invoice")
    if len(found) > 1:
        raise InvalidInput(f"{len(found)} billing entities have an invoice {reference}: give its id", field="invoice")
    return found[0]


def as_id(reference: str) -> UUID | None:
    """A reference, if it is an id and not a number."""
    try:
        return UUID(reference)
    except ValueError:
        return None


def _settlement(row: Any) -> Settlement:
    return Settlement(
        row.at, row.kind, row.state, int(row.amount_nano), row.source, row.reference, int(row.paid_nano),
        int(row.written_off_nano), int(row.credited_nano), int(row.open_nano),
    )  # fmt: skip


async def estimate(engine: AsyncEngine, group_id: str, period: str | None = None) -> Document:
    """The invoice of a group as if it were closed now; of the running period unless one is named.

    `NotFound` for a group that is not known here (yet), `Refused` when the period is closed: its invoice is not an estimate.
    """
    async with _reading(engine) as connection:
        now = await store.clock_now(connection)
        group = (await store.load_groups(connection, [group_id])).get(group_id)
        if group is None:
            raise NotFound(f"billing group {group_id!r} is not known to invoices", field="group_id")
        key = InvoiceKey(group_id, period_named(period, group.zone).name if period else period_of(now, group.zone).name)
        row = (await store.load_states(connection, [key])).get(key)
        if row is not None and row.state != "open":
            what = f"invoice {row.number}" if row.number else "nothing to bill"
            raise Refused(f"{key.period} is closed for {group_id}: {what}", field="period", code="closed")
        invoice = await _accumulated(connection, key, group)
        names = await store.load_account_names(connection, {line.key.account_id for line in invoice.lines})
    return documents.estimate(invoice, group, names, now)


async def _accumulated(connection: AsyncConnection, key: InvoiceKey, group: BillingGroup | None) -> OpenInvoice:
    ids = [key.invoice_id]
    return OpenInvoice(
        key,
        group,
        tuple((await store.load_lines(connection, ids)).get(key.invoice_id, ())),
        (await store.load_tallies(connection, ids)).get(key.invoice_id, Tally(0, 0, 0)),
        tuple((await store.load_paid(connection, ids)).get(key.invoice_id, ())),
    )


# ---- closing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CloseRequested:
    """An operator's naming of a period. ``again``: it had been named before, nothing changed."""

    period: str
    boundaries: tuple[datetime, ...]
    again: bool


async def request_close(engine: AsyncEngine, period: str, by: str) -> CloseRequested:
    """Ask to close a period in all zones of the known groups; the cut follows within a second.

    `Refused` while the period or its grace lasts in one of them.
    """
    async with transaction(engine) as connection:
        boundaries = check_request(
            period,
            await store.load_zones(connection),
            await _terms(connection),
            await store.clock_now(connection),
        )
        fresh = await store.request_close(connection, period, by)
    return CloseRequested(period, boundaries, not fresh)


async def terms(engine: AsyncEngine) -> Terms:
    """Since when closing is automatic, and the grace."""
    async with _reading(engine) as connection:
        return await _terms(connection)


async def set_grace(engine: AsyncEngine, grace: timedelta) -> Terms:
    """Set how long after its end a period is cut."""
    if not timedelta(0) <= grace <= GRACE_MAX:
        raise InvalidInput(f"must be between 0 and {GRACE_MAX.days} days", field="grace")
    async with transaction(engine) as connection:
        await store.save_grace(connection, grace)
        return await _terms(connection)


async def _terms(connection: AsyncConnection) -> Terms:
    found = await store.load_terms(connection)
    if found is None:
        raise Refused(
            "invoices has not run yet, so it is not known since when it closes: start it first", code="not_started"
        )
    return found


@dataclass(frozen=True, slots=True)
class GroupStatus:
    """Where the invoice of a group and period stands. ``waiting_for``: a room, ``quarantine``, an instant, or a reason."""

    group_id: str
    period: str
    boundary: datetime
    state: GroupState
    number: str | None
    waiting_for: str | None


async def status(engine: AsyncEngine, period: str, *, group_id: str | None = None) -> list[GroupStatus]:
    """For each known group: open, waiting (for what), refused (why), closed, or nothing to bill."""
    async with _reading(engine) as connection:
        now = await store.clock_now(connection)
        rules = await _terms(connection)
        named = period in await store.named_periods(connection)
        groups = await store.known_groups(connection, group_id)
        rows = await store.load_states(connection, [InvoiceKey(each, period) for each, _ in groups])
        cut = {each.boundary: each for each in await store.load_cuts(connection)}
        received_to = await store.load_received(connection)
        coverage: dict[datetime, Coverage] = {}
        found = []
        for each, zone in groups:
            end = period_named(period, zone).end
            if end in cut and end not in coverage:
                coverage[end] = await store.load_coverage(connection, cut[end].cutoff_id)
            row = rows.get(InvoiceKey(each, period))
            state, waiting_for = _standing(
                None if row is None else row.state,
                None if row is None else row.refused,
                _before_cut(end, rules, named, now)
                if end not in cut
                else coverage[end].group_waits_for(each, received_to),
                is_cut=end in cut,
            )
            found.append(GroupStatus(each, period, end, state, row.number if row else None, waiting_for))
    return found


def _standing(
    row_state: str | None, refused: str | None, waits_for: str | None, *, is_cut: bool
) -> tuple[GroupState, str | None]:
    if row_state == "closed":
        return "closed", None
    if row_state == "nothing":
        return "nothing to bill", None
    if not is_cut:
        return "open", waits_for
    if refused is not None:
        return "refused", refused
    if waits_for is not None:
        return "waiting", waits_for
    return ("nothing to bill", None) if row_state is None else ("waiting", "invoices")


def _before_cut(end: datetime, rules: Terms, named: bool, now: datetime) -> str:
    if now < end:
        return f"its end at {instant_text(end)}"
    if now < end + rules.grace:
        return f"its grace until {instant_text(end + rules.grace)}"
    if end <= rules.automatic_from and not named:
        return "an operator to name the period"
    return "the cut"


@dataclass(frozen=True, slots=True)
class CutStatus:
    """How far a cut is. ``waiting_for`` is what all groups wait for; ``held`` says it for each that usage held."""

    cutoff_id: UUID
    boundary: datetime
    cut_at: datetime
    passed_at: datetime | None
    finished_at: datetime | None
    waiting_for: str | None
    held: dict[str, str | None]
    coverage: Coverage


async def cuts(engine: AsyncEngine) -> list[CutStatus]:
    """Every cut, oldest first."""
    async with _reading(engine) as connection:
        received_to = await store.load_received(connection)
        found = []
        for each in await store.load_cuts(connection):
            coverage = await store.load_coverage(connection, each.cutoff_id)
            held = {name: coverage.group_waits_for(name, received_to) for name in sorted(coverage.held)}
            found.append(
                CutStatus(
                    each.cutoff_id, each.boundary, each.cut_at, each.passed_at, each.finished_at,
                    coverage.waits_for(received_to), held, coverage,
                )
            )  # fmt: skip
    return found


# ---- for the auditor -----------------------------------------------------------------------------------------------


LineSums = dict[tuple[str, str, str, str | None, bool, str], tuple[int, int, int]]
"""Number, quantity and exact sum of the charges by account, product, cost center, period, whether prepaid, currency."""


@dataclass(frozen=True, slots=True)
class AuditedInvoice:
    """An invoice counted again from its lines; compare with what usage has for (group, period).

    ``mismatch`` says which of its sums disagree; of an open one that is meaningful only while nothing is under way.
    """

    invoice_id: UUID
    group_id: str
    period: str
    state: str
    number: str | None
    cutoff_id: UUID | None
    charges: int
    exact_nano: int
    xor: int
    mismatch: str | None
    lines: LineSums


@dataclass(frozen=True)
class Audit:
    """What the auditor needs of this room. ``findings`` is empty when every closed document holds."""

    invoices: tuple[AuditedInvoice, ...]
    evidence: dict[UUID, dict[str, Document]]
    received_to: dict[LinkKey, int]
    findings: tuple[str, ...]


async def audit(engine: AsyncEngine, period: str | None = None) -> Audit:
    """Compute every closed invoice of a period (of all) again and compare it with what is stored and hashed.

    Also its credit notes, the hash of every evidence, and that the numbers have no gap. Nothing is asked of open invoices: their charges and
    postings arrive one after the other.
    """
    findings: list[str] = []
    invoices: list[AuditedInvoice] = []
    async with _reading(engine) as connection:
        rows = await store.list_invoices(connection, period=period)
        ids = [row.invoice_id for row in rows]
        lines = await store.load_lines(connection, ids)
        tallies = await store.load_tallies(connection, ids)
        paid = await store.load_paid(connection, ids)
        stored = await store.load_documents(connection, ids)
        notes = await credit_note_store.load_issued(connection, ids)
        kept = await store.load_evidence(connection, {row.cutoff_id for row in rows if row.cutoff_id is not None})
        received_to = await store.load_received(connection)
        ranges = await store.number_ranges(connection)
    hashes = {(cut, group_id): sha256 for cut, group_id, _, sha256 in kept}
    evidence: dict[UUID, dict[str, Document]] = {}
    for cut, group_id, body, sha256 in kept:
        evidence.setdefault(cut, {})[group_id] = _read(body) or {}
        if documents.sha256_of(body) != sha256:
            findings.append(f"evidence of cut-off {cut} {group_id} does not have the hash {sha256}")
    for row in rows:
        key = InvoiceKey(row.group_id, row.period)
        invoice = OpenInvoice(
            key,
            None,
            tuple(lines.get(row.invoice_id, ())),
            tallies.get(row.invoice_id, Tally(0, 0, 0)),
            tuple(paid.get(row.invoice_id, ())),
        )
        invoices.append(
            AuditedInvoice(
                row.invoice_id, *key, row.state, row.number, row.cutoff_id, invoice.tally.charges,
                sum(line.exact_nano for line in invoice.lines), invoice.tally.xor,
                None if (mismatch := sums_mismatch(invoice)) is None else mismatch.reason, _lines(invoice),
            )
        )  # fmt: skip
        if row.state == "closed":
            body, sha256 = stored.get(row.invoice_id, ("", ""))
            wrong = [] if documents.sha256_of(body) == sha256 else [f"the document does not have the hash {sha256}"]
            try:
                document = json.loads(body)
                wrong += _judge(row, invoice, document, hashes)
                findings += credit_note_documents.disagreements(document, sha256, notes.get(row.invoice_id, ()))
            except (LookupError, TypeError, ValueError, TollbookError):
                wrong.append("it has no document that can be read")
            findings += [f"invoice {row.number} ({row.group_id} {row.period}): {each}" for each in wrong]
        elif row.state == "nothing" and not _bills_nothing(invoice):
            findings.append(f"{row.group_id} {row.period} was closed with nothing to bill, but has charges")
    findings += [
        f"numbers of billing entity {entity}: {last} were given out, {count} documents have one"
        for entity, last, count in ranges
        if last != count
    ]
    return Audit(tuple(invoices), evidence, received_to, tuple(findings))


def _lines(invoice: OpenInvoice) -> LineSums:
    """The lines as charges make them: those of several schedules of tiers together."""
    sums: LineSums = {}
    for line in invoice.lines:
        of = line.key
        key = (of.account_id, of.product, of.cost_center_id, of.period, of.prepaid, of.currency)
        charges, quantity, nano = sums.get(key, (0, 0, 0))
        sums[key] = charges + line.charges, quantity + line.quantity, nano + line.exact_nano
    return sums


def _bills_nothing(invoice: OpenInvoice) -> bool:
    """No charges, or only such as take each other back."""
    counted = sum(line.charges for line in invoice.lines)
    return counted == invoice.tally.charges and all(line.is_nothing for line in split_tiers(invoice.lines))


def _read(body: str) -> Document | None:
    """A document as it is kept; None where what is kept is none."""
    try:
        document = json.loads(body)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _judge(row: Any, invoice: OpenInvoice, document: Document, hashes: dict[tuple[UUID, str], str]) -> list[str]:
    wrong = documents.disagreements(document, invoice)
    named = document["evidence"]
    said = {
        "number": document["number"],
        "currency": document["currency"],
        "billing_entity_id": document["billing_entity"]["billing_entity_id"],
        "cutoff_id": UUID(named["cutoff_id"]),
        "closed_at": datetime.fromisoformat(document["issued_on"]),
    }
    wrong += [
        f"its {name} is kept as {getattr(row, name)}, the document says {value}"
        for name, value in said.items()
        if getattr(row, name) != value
    ]
    whole = hashes.get((said["cutoff_id"], store.WHOLE_CUT))
    own = hashes.get((said["cutoff_id"], invoice.key.group_id), whole)
    if named["cutoff_evidence_sha256"] != own:
        wrong.append("it names evidence of its cut-off that is not kept")
    return wrong


async def settled(engine: AsyncEngine) -> dict[UUID, dict[int, tuple[str, int]]]:
    """What was applied to each closed invoice as it is shown: by version where from, and how much in nanos."""
    found: dict[UUID, dict[int, tuple[str, int]]] = {}
    async with _reading(engine) as connection:
        for row in await store.load_applied(connection):
            found.setdefault(row.invoice_id, {})[row.version] = row.source, int(row.amount_nano)
    return found


async def received(engine: AsyncEngine) -> dict[LinkKey, int]:
    """``received_to`` per link: what this room has applied."""
    async with _reading(engine) as connection:
        return await store.load_received(connection)


@dataclass(frozen=True, slots=True)
class KeptEvidence:
    """What was kept of a cut: of all of it (group empty), or of one group that was held. ``body`` is what was hashed."""

    cutoff_id: UUID
    group_id: str
    body: str
    sha256: str


async def kept_evidence(engine: AsyncEngine) -> list[KeptEvidence]:
    """All evidence that is kept, of whatever cut."""
    async with _reading(engine) as connection:
        return [KeptEvidence(*row) for row in await store.load_evidence(connection)]
