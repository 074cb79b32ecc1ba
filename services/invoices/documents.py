"""The document of an invoice: its JSON, byte for byte the same from the same sums, its hash, and a text for people. Pure.

Amounts are decimal strings: rounded ones with the decimals of the currency, exact ones with all they have.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any
from uuid import UUID

from contracts.closing import Covered, Mark
from contracts.groups import BillingGroup
from contracts.invoices import ClosingPosting, InvoiceClosed
from services.invoices.accumulation import InvoiceKey, Tally
from services.invoices.closing import (
    DUE_AFTER,
    Coverage,
    OpenInvoice,
    credits_of,
    currencies_of,
    estimated,
    marks_read,
    sums_mismatch,
)
from services.invoices.rounding import Bill, BilledLine, bill
from services.kernel.currency import currency
from services.kernel.money import format_nano, parse_amount
from services.kernel.period import instant_text, period_named

SCHEMA = "tollbook.invoice.v1"
EVIDENCE_SCHEMA = "tollbook.cutoff_evidence.v1"
WIDTH = 100  # of the text: fits a terminal and a sheet of paper

Document = dict[str, Any]


def canonical(document: Document) -> str:
    """The one JSON text of a document: keys sorted, no spaces. Its UTF-8 bytes are what is hashed.

    >>> canonical({"b": "€", "a": 1})
    '{"a":1,"b":"€"}'
    """
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_of(text: str) -> str:
    """SHA-256 of a canonical text, in hexadecimal."""
    return sha256(text.encode()).hexdigest()


def xor_text(xor: int) -> str:
    """The XOR of the 64-bit hashes of charge ids, as 16 hexadecimal digits.

    >>> xor_text(-1)
    'ffffffffffffffff'
    """
    return f"{xor & 0xFFFF_FFFF_FFFF_FFFF:016x}"


@dataclass(frozen=True, slots=True)
class Issue:
    """Under which number of its seller's series an invoice goes out, when, and which number it replaces."""

    number: str
    series_no: int | None
    issued_on: datetime
    replaces: str | None = None

    @classmethod
    def again(cls, told: InvoiceClosed) -> Issue:
        """As it was told before."""
        return cls(told.number, told.series_no, told.issued_on, told.replaces)


# ---- the invoice ---------------------------------------------------------------------------------------------------


def estimate(invoice: OpenInvoice, group: BillingGroup, account_names: Mapping[str, str], as_of: datetime) -> Document:
    """The running estimate: the invoice as if it were closed now."""
    return _head(invoice.key, group) | {
        "state": "estimate",
        "as_of": instant_text(as_of),
        **amount_sections(invoice.key, estimated(invoice, group), invoice.tally, group.currency, account_names),
    }


def closed(
    invoice: OpenInvoice,
    group: BillingGroup,
    amount: Bill,
    account_names: Mapping[str, str],
    issue: Issue,
    *,
    cutoff_id: UUID,
    cutoff_evidence_sha256: str,
) -> Document:
    """The document of a closed invoice; it never changes. One whose total is below zero has the form of a credit note."""
    sections = amount_sections(invoice.key, amount, invoice.tally, group.currency, account_names)
    sections["evidence"] |= {"cutoff_id": str(cutoff_id), "cutoff_evidence_sha256": cutoff_evidence_sha256}
    form = {"type": "credit_note"} if amount.total_nano < 0 else {}
    return _head(invoice.key, group) | {
        "state": "closed",
        **form,
        "number": issue.number,
        **({} if issue.replaces is None else {"replaces": issue.replaces}),
        "issued_on": instant_text(issue.issued_on),
        "due_on": instant_text(issue.issued_on + DUE_AFTER),
        **sections,
    }


def _head(key: InvoiceKey, group: BillingGroup) -> Document:
    period = period_named(key.period, group.zone)
    return {
        "schema": SCHEMA,
        "invoice_id": str(key.invoice_id),
        "period": {
            "name": period.name,
            "start": instant_text(period.start),
            "end": instant_text(period.end),
            "zone": group.zone,
        },
        "billing_entity": group.billing_entity.data(),
        "billing_group": {
            "group_id": group.group_id,
            "version": group.version,
            "organization_id": group.organization_id,
            "name": group.name,
            **group.billing_information.data(),
        },
        "currency": group.currency,
        "tax_rate": group.tax_rate,
    }


def amount_sections(
    key: InvoiceKey, amount: Bill, tally: Tally, currency_code: str, account_names: Mapping[str, str]
) -> Document:
    """Everything in a document that follows from the charges: lines, rounding, tax, totals, shares, evidence."""
    decimals = currency(currency_code).exponent

    def minor(nano: int) -> str:
        return format_nano(nano, decimals_min=decimals)

    return {
        "lines": [_line(key, line, decimals, account_names) for line in amount.lines if not line.sum.is_nothing],
        **_credits(amount, decimals, account_names),
        "rounding": minor(amount.rounding_nano),
        "tax": minor(amount.tax_nano),
        "totals": {
            "net": minor(amount.net_nano),
            "tax": minor(amount.tax_nano),
            "total": minor(amount.total_nano),
            "paid_from_balance": minor(amount.paid_from_balance_nano),
            "due": minor(amount.due_nano),
        },
        "accounts": [
            {
                "account_id": share.account_id,
                "name": account_names.get(share.account_id, share.account_id),
                "exact": format_nano(share.prepaid_nano + share.postpaid_nano),
                "paid_from_balance": minor(share.paid_from_balance_nano),
                "due": minor(share.due_nano),
            }
            for share in amount.shares
        ],
        "evidence": {
            "charges": tally.charges,
            "exact_sum": format_nano(tally.exact_nano),
            "xor": xor_text(tally.xor),
        },
    }


def _credits(amount: Bill, decimals: int, account_names: Mapping[str, str]) -> Document:
    """What promotional credit paid, taken off before tax; absent where none did."""
    if not amount.credits:
        return {}
    return {
        "credits": [
            {
                "account_id": credit.account_id,
                "account_name": account_names.get(credit.account_id, credit.account_id),
                "payment": "prepaid" if credit.prepaid else "postpaid",
                "exact": format_nano(-credit.exact_nano),
                "amount": format_nano(-credit.amount_nano, decimals_min=decimals),
            }
            for credit in amount.credits
        ]
    }


def _line(key: InvoiceKey, line: BilledLine, decimals: int, account_names: Mapping[str, str]) -> Document:
    of = line.sum.key
    price = line.sum.unit_price_nano
    return {
        "account_id": of.account_id,
        "account_name": account_names.get(of.account_id, of.account_id),
        "product": of.product,
        "cost_center_id": of.cost_center_id or None,
        "period": of.period,
        "prior_period": of.period != key.period,
        "payment": "prepaid" if of.prepaid else "postpaid",
        "charges": line.sum.charges,
        "quantity": line.sum.quantity,
        "unit_price": None if price is None else format_nano(price),
        "exact": format_nano(line.sum.exact_nano),
        "amount": format_nano(line.amount_nano, decimals_min=decimals),
        **({"schedule": of.schedule} if of.schedule else {}),
    }


def disagreements(document: Document, invoice: OpenInvoice) -> list[str]:
    """What a closed document says otherwise than its lines and postings, computed again, do; empty when all holds.

    The rate and the names are taken from the document: they are those of the day of the close.
    """
    key = InvoiceKey(document["billing_group"]["group_id"], document["period"]["name"])
    names = {each["account_id"]: each["name"] for each in document["accounts"]}
    rate = parse_amount(document["tax_rate"], field="tax_rate")
    exponent = currency(document["currency"]).exponent
    again = bill(invoice.lines, rate_nano=rate, exponent=exponent, credits=credits_of(invoice))
    sections = amount_sections(key, again, invoice.tally, document["currency"], names)
    wrong = [
        f"{name} {document.get(name)!r} is {sections.get(name)!r} when computed again"
        for name in ("lines", "credits", "rounding", "tax", "totals", "accounts")
        if document.get(name, []) != sections.get(name, [])
    ]
    wrong += [
        f"evidence.{name} {document['evidence'][name]!r} is {value!r} when counted again"
        for name, value in sections["evidence"].items()
        if document["evidence"][name] != value
    ]
    if others := currencies_of(invoice) - {document["currency"]}:
        wrong.append(f"it is in {document['currency']}, and charges are in {', '.join(sorted(others))}")
    if (mismatch := sums_mismatch(invoice)) is not None:
        wrong.append(mismatch.reason)
    return wrong


# ---- what is told --------------------------------------------------------------------------------------------------


def closing_postings(amount: Bill) -> tuple[ClosingPosting, ...]:
    """The ledger's entries per account at close; with rounding and tax they sum to zero, to the nano.

    Each account's share of the total is a whole number of minor units (largest remainder of exact use with tax). Source:
    designs/ledger, sections 2 and 4.
    """
    return tuple(
        ClosingPosting(
            account_id=share.account_id,
            wallet=format_nano(share.wallet_entry_nano),
            unbilled=format_nano(share.unbilled_entry_nano),
            receivable=format_nano(share.receivable_entry_nano),
        )
        for share in amount.shares
    )


def closed_event(
    invoice: OpenInvoice,
    group: BillingGroup,
    amount: Bill,
    issue: Issue,
    *,
    boundary: datetime,
    sha256: str,
) -> InvoiceClosed:
    """What downstream and balance read: totals, hash and closing postings, never the lines."""
    decimals = currency(group.currency).exponent
    return InvoiceClosed(
        invoice_id=invoice.key.invoice_id,
        number=issue.number,
        group_id=group.group_id,
        organization_id=group.organization_id,
        period=invoice.key.period,
        boundary=boundary,
        issued_on=issue.issued_on,
        due_on=issue.issued_on + DUE_AFTER,
        currency=group.currency,
        net=format_nano(amount.net_nano, decimals_min=decimals),
        tax=format_nano(amount.tax_nano, decimals_min=decimals),
        total=format_nano(amount.total_nano, decimals_min=decimals),
        paid_from_balance=format_nano(amount.paid_from_balance_nano, decimals_min=decimals),
        due=format_nano(amount.due_nano, decimals_min=decimals),
        charges=invoice.tally.charges,
        document=f"invoices/{invoice.key.invoice_id}.json",
        sha256=sha256,
        postings=closing_postings(amount),
        posting_rounding=format_nano(amount.rounding_entry_nano),
        posting_tax=format_nano(amount.tax_nano),
        zone=group.zone,
        exact_sum=format_nano(invoice.tally.exact_nano),
        xor=xor_text(invoice.tally.xor),
        billing_entity_id=group.billing_entity.billing_entity_id,
        series_no=issue.series_no,
        replaces=issue.replaces,
    )


# ---- the evidence of a cut -----------------------------------------------------------------------------------------


def cutoff_evidence(
    cutoff_id: UUID,
    boundary: datetime,
    coverage: Coverage,
    group_id: str | None = None,
    whole_sha256: str | None = None,
) -> Document:
    """What the rooms said of a cut: from and to offset per lane, counts per class, marks, held groups, silent sources.

    A held group has evidence of its own, which names that of the whole cut by its hash.
    """
    if group_id is None:
        said = [coverage.whole[room] for room in ("groups", "usage", "balance")]
    else:
        said = [coverage.groups[room, group_id] for room in ("usage", "balance")]
    usage = next(covered for covered in said if covered.room == "usage")
    lanes = sorted(usage.lanes, key=lambda lane: (lane.topic, lane.partition))
    counts: dict[str, int] = {}
    for lane in lanes:
        for name, count in lane.counts.items():
            counts[name] = counts.get(name, 0) + count
    return {
        "schema": EVIDENCE_SCHEMA,
        "cutoff_id": str(cutoff_id),
        "boundary": instant_text(boundary),
        "group_id": group_id,
        "whole_sha256": whole_sha256,
        "topics": sorted({lane.topic for lane in lanes}),
        "lanes": [lane.data() for lane in lanes],
        "counts": counts or dict(usage.counts),
        "marks": {covered.room: _marks(covered) for covered in said},
        "held": sorted(usage.held),
        "silent_sources": [each.data() for each in usage.silent_sources],
        "silent_sources_count": usage.silent_sources_count,
    }


def _marks(covered: Covered) -> list[Document]:
    def place(mark: Mark) -> tuple[str, int, str]:
        return mark.topic, mark.partition, mark.link

    return [mark.data() for mark in sorted(marks_read(covered), key=place)]


# ---- for people ----------------------------------------------------------------------------------------------------


def as_text(document: Document) -> str:
    """An invoice or an estimate as a page to read."""
    period = document["period"]
    code, totals, evidence = document["currency"], document["totals"], document["evidence"]
    is_closed = document["state"] == "closed"
    gives_back = document.get("type") == "credit_note"
    form = "CREDIT NOTE" if gives_back else "INVOICE"
    page = letterhead(f"{form} {document['number']}" if is_closed else f"ESTIMATE as of {document['as_of']}", document)
    page += ["", f"Period {period['name']}: {period['start']} to {period['end']} ({period['zone']})"]
    if is_closed:
        page.append(f"Issued {document['issued_on']}, due {document['due_on']}")
    if "replaces" in document:
        page.append(f"In place of {document['replaces']}, which is cancelled")
    page += ["", _row("account", "product", "cost center", "uses", "quantity", "unit price", code), "-" * WIDTH]
    for line in document["lines"]:
        product = line["product"] + (f" (use of {line['period']})" if line["prior_period"] else "")
        page.append(
            _row(
                line["account_name"],
                product,
                line["cost_center_id"] or "ungrouped",
                str(line["charges"]),
                str(line["quantity"]),
                line["unit_price"] or ("tiers" if "schedule" in line else "various"),
                line["amount"],
            )
        )
    for each in document.get("credits", ()):
        page.append(_row(each["account_name"], "promotional credit", "", "", "", "", each["amount"]))
    page += ["-" * WIDTH, sum_row("rounding", document["rounding"]), sum_row("net", totals["net"])]
    page += [
        sum_row(f"tax {percent(document['tax_rate'])}", totals["tax"]),
        sum_row(f"total {code}", totals["total"]),
        sum_row("paid from the balance", totals["paid_from_balance"]),
        sum_row(f"DUE {code}", totals["due"]),
    ]
    if len(document["accounts"]) > 1:
        page += ["", "Of the total, tax included:"]
        page += [
            f"  {each['name']}: due {each['due']}, paid from the balance {each['paid_from_balance']}"
            for each in document["accounts"]
        ]
    page += [
        "",
        f"{evidence['charges']} charges, exact sum {evidence['exact_sum']}, xor of their ids {evidence['xor']}",
    ]
    if is_closed:
        page += [f"cut-off {evidence['cutoff_id']}", f"its evidence: sha-256 {evidence['cutoff_evidence_sha256']}"]
    return "\n".join(line.rstrip() for line in page) + "\n"


@dataclass(frozen=True, slots=True)
class Settlement:
    """A step of a closed invoice after its close: money that moved, or that it became overdue; and how it stands then."""

    at: datetime
    kind: str
    state: str
    amount_nano: int
    source: str | None
    reference: str | None
    paid_nano: int
    written_off_nano: int
    credited_nano: int
    open_nano: int


_WORDS = {
    "transfer": "paid by transfer",
    "card": "paid by card",
    "balance": "paid from the balance of its accounts",
    "overpayment": "paid from earlier overpayment",
    "credit": "kept for the next invoice",
    "write_off": "written off",
    "credit_note": "credited by note",
}


def settlements_text(document: Document, settlements: Collection[Settlement]) -> str:
    """What was paid of an invoice since its close, and what is open: stands below its page, for the page never changes."""
    if not settlements:
        return ""
    decimals = currency(document["currency"]).exponent
    page = ["", "Since then:"]
    for each in settlements:
        words = _WORDS.get(each.source or "", each.kind.removeprefix("invoice_"))
        reference = f" ({each.reference})" if each.reference else ""
        amount = format_nano(each.amount_nano, decimals_min=decimals)
        page.append(sides(f"  {instant_text(each.at)} {words}{reference}", amount))
    newest = list(settlements)[-1]
    left = format_nano(newest.open_nano, decimals_min=decimals)
    page.append(sides(f"  {newest.state.replace('_', ' ')}, open {document['currency']}", left))
    return "\n".join(page) + "\n"


def letterhead(title: str, document: Document) -> list[str]:
    """Who bills whom."""
    group, entity = document["billing_group"], document["billing_entity"]
    page = [sides(title, entity["name"])]
    page += [sides("", line) for line in entity["address"].splitlines()]
    if entity["vat_id"]:
        page.append(sides("", f"VAT {entity['vat_id']}"))
    page += ["", f"{group['company']} ({group['name']}, {group['group_id']})", *group["address"].splitlines()]
    if group["vat_id"]:
        page.append(f"VAT {group['vat_id']}")
    page += group["extra"].splitlines()
    return page


def sides(left: str, right: str) -> str:
    return f"{left}{right:>{max(1, WIDTH - len(left))}}"


def _row(account: str, product: str, center: str, charges: str, quantity: str, price: str, amount: str) -> str:
    return f"{account:<16} {product:<32} {center:<12} {charges:>6} {quantity:>9} {price:>10} {amount:>9}"


def sum_row(name: str, amount: str) -> str:
    return f"{name:>{WIDTH - 10}} {amount:>9}"


def percent(rate: str) -> str:
    """
    >>> percent("0.20"), percent("0.075")
    ('20 %', '7.5 %')
    """
    return f"{format_nano(parse_amount(rate) * 100)} %"
