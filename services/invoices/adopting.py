"""After a restore from a backup: documents that went out and that the restore undid keep their numbers.

A number names one document for ever. The period is closed anew: where the outcome is the same it has the same number and event
again, else another one that replaces it. Source: designs/closing, line 15 and RESTORE (d).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection

from contracts.closing import Cutoff
from contracts.invoices import CreditNoteIssued, InvoiceClosed, InvoiceEvent
from services.invoices import store
from services.invoices.accumulation import InvoiceKey
from services.invoices.closing import boundaries_due, periods_ending


@dataclass(frozen=True, slots=True)
class Adopted:
    """What was adopted. ``unnumbered`` are documents whose seller is not known, so that its series could not be raised."""

    documents: int
    numbers: Mapping[str, int]
    unnumbered: tuple[str, ...]
    periods: tuple[str, ...]


async def adopt(
    connection: AsyncConnection, undone: Sequence[InvoiceEvent], cutoffs: Sequence[Cutoff], by: str
) -> Adopted:
    """Keep the undone documents, raise each seller's numbers above theirs, and name again the periods whose cuts were published
    and would not be taken by themselves."""
    documents = [each for each in undone if isinstance(each, InvoiceClosed | CreditNoteIssued)]
    sellers = await store.sellers(connection)
    highest: dict[str, int] = {}
    unnumbered: list[str] = []
    rows: list[tuple[InvoiceClosed | CreditNoteIssued, str | None]] = []
    for each in documents:
        found = _series_of(each, sellers)
        rows.append((each, found[0] if found else None))
        if found is None:
            unnumbered.append(each.number)
        else:
            highest[found[0]] = max(found[1], highest.get(found[0], 0))
    if rows:
        await store.save_undone(connection, rows)
        # Where no charge comes again, something has to replace what was told all the same.
        closed = {InvoiceKey(each.group_id, each.period) for each in documents if isinstance(each, InvoiceClosed)}
        await store.create_invoices(connection, closed)
    if highest:
        await store.raise_numbers(connection, highest)
    periods = await _name_again(connection, cutoffs, by)
    return Adopted(len(documents), highest, tuple(unnumbered), tuple(periods))


def _series_of(
    told: InvoiceClosed | CreditNoteIssued, sellers: Mapping[str, tuple[str, str]]
) -> tuple[str, int] | None:
    """The seller of a document, and its place in that series; an older record does not say it, but its group and number may.

    ``sellers`` has the seller and the prefix of its numbers by group.
    """
    if told.billing_entity_id is not None and told.series_no is not None:
        return told.billing_entity_id, told.series_no
    seller_id, prefix = sellers.get(told.group_id, (None, ""))
    digits = told.number.removeprefix(prefix)
    return (seller_id, int(digits)) if seller_id is not None and digits.isdecimal() else None


async def _name_again(connection: AsyncConnection, cutoffs: Iterable[Cutoff], by: str) -> list[str]:
    terms = await store.load_terms(connection)
    boundaries = {each.boundary for each in cutoffs} - await store.cut_boundaries(connection)
    if terms is None or not boundaries:
        return []
    zones = await store.load_zones(connection)
    automatic = boundaries_due(terms, zones, (), await store.clock_now(connection))
    periods = sorted({name for each in boundaries - automatic for name in periods_ending(each, zones).values()})
    for each in periods:
        await store.request_close(connection, each, by)
    return periods
