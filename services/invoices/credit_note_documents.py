"""The document of a credit note, as an invoice has one: canonical JSON, its page for people, and what is told of it. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from contracts.invoices import CreditNoteIssued, CreditNotePosting, ProductCredit
from services.invoices.credit_notes import CreditNote, decide, read
from services.invoices.documents import WIDTH, Document, canonical, letterhead, percent, sha256_of, sides, sum_row
from services.kernel.currency import currency
from services.kernel.errors import Corrupt, TollbookError
from services.kernel.money import format_nano, parse_amount
from services.kernel.period import instant_text

SCHEMA = "tollbook.credit_note.v1"


def issued(
    note: CreditNote,
    credit_note_id: UUID,
    invoice: Document,
    invoice_sha256: str,
    *,
    number: str,
    reason: str,
    at: datetime,
) -> Document:
    """The document of a note; it never changes. Seller, buyer, currency and rate are those of its invoice."""
    decimals = currency(invoice["currency"]).exponent
    names = {each["account_id"]: each["name"] for each in invoice["accounts"]}

    def minor(nano: int) -> str:
        return format_nano(nano, decimals_min=decimals)

    return {
        "schema": SCHEMA,
        "credit_note_id": str(credit_note_id),
        "number": number,
        "issued_on": instant_text(at),
        "invoice": {
            "invoice_id": invoice["invoice_id"],
            "number": invoice["number"],
            "issued_on": invoice["issued_on"],
            "period": invoice["period"]["name"],
            "sha256": invoice_sha256,
        },
        "billing_entity": invoice["billing_entity"],
        "billing_group": invoice["billing_group"],
        "currency": invoice["currency"],
        "tax_rate": invoice["tax_rate"],
        "reason": reason,
        "voids": note.voids,
        "lines": [
            {
                "account_id": line.account_id,
                "account_name": names.get(line.account_id, line.account_id),
                "product": line.product,
                "payment": "prepaid" if line.prepaid else "postpaid",
                "exact": format_nano(amount.exact_nano),
                "amount": minor(amount.minor_nano),
            }
            for line, amount in sorted(note.lines.items())
            if amount.minor_nano or amount.exact_nano
        ],
        **_promotion(note, minor(-note.promotion.minor_nano)),
        "rounding": minor(note.rounding_nano),
        "tax": minor(note.tax_nano),
        "totals": {
            "net": minor(note.net_nano),
            "tax": minor(note.tax_nano),
            "total": minor(note.total_nano),
            "to_balance": minor(sum(share.wallet_nano for share in note.shares.values())),
            "owed": minor(sum(share.owed_nano for share in note.shares.values())),
        },
        "accounts": [
            {
                "account_id": account_id,
                "name": names.get(account_id, account_id),
                "to_balance": minor(share.wallet_nano),
                "owed": minor(share.owed_nano),
            }
            for account_id, share in sorted(note.shares.items())
            if any(share)
        ],
    }


def _promotion(note: CreditNote, amount: str) -> Document:
    """What promotional credit had paid, as the invoice shows it: taken off; absent where it paid nothing of the lines."""
    if not any(note.promotion):
        return {}
    return {"credits": [{"exact": format_nano(-note.promotion.exact_nano), "amount": amount}]}


def issued_event(note: CreditNote, document: Document, sha256: str, at: datetime, series_no: int) -> CreditNoteIssued:
    """What downstream and balance read: totals, hash and what each account gets back."""
    invoice, group, totals = document["invoice"], document["billing_group"], document["totals"]
    return CreditNoteIssued(
        credit_note_id=UUID(document["credit_note_id"]),
        number=document["number"],
        invoice_id=UUID(invoice["invoice_id"]),
        invoice_number=invoice["number"],
        group_id=group["group_id"],
        organization_id=group["organization_id"],
        period=invoice["period"],
        issued_on=at,
        currency=document["currency"],
        net=totals["net"],
        tax=totals["tax"],
        total=totals["total"],
        voids=note.voids,
        document=f"credit_notes/{document['credit_note_id']}.json",
        sha256=sha256,
        postings=tuple(
            CreditNotePosting(
                account_id=account_id, wallet=format_nano(share.wallet_nano), owed=format_nano(share.owed_nano)
            )
            for account_id, share in sorted(note.shares.items())
            if any(share)
        ),
        products=tuple(
            ProductCredit(product=product, exact=format_nano(nano))
            for product, nano in sorted(note.by_product.items())
            if nano
        ),
        promotion=format_nano(note.promotion.exact_nano),
        rounding=format_nano(note.rounding_entry_nano),
        billing_entity_id=document["billing_entity"]["billing_entity_id"],
        series_no=series_no,
    )


def as_text(document: Document) -> str:
    """A credit note as a page to read."""
    invoice, totals = document["invoice"], document["totals"]
    page = letterhead(f"CREDIT NOTE {document['number']}", document)
    voids = ", which is void by it" if document["voids"] else ""
    page += [
        "",
        f"For invoice {invoice['number']} of {invoice['issued_on']}, period {invoice['period']}{voids}",
        f"Issued {document['issued_on']}",
        f"Reason: {document['reason']}",
        "",
        _row("account", "product", "", document["currency"]),
        "-" * WIDTH,
    ]
    page += [_row(each["account_name"], each["product"], each["payment"], each["amount"]) for each in document["lines"]]
    page += [_row("", "promotional credit, not given back", "", each["amount"]) for each in document.get("credits", ())]
    page += [
        "-" * WIDTH,
        sum_row("rounding", document["rounding"]),
        sum_row("net", totals["net"]),
        sum_row(f"tax {percent(document['tax_rate'])}", totals["tax"]),
        sum_row(f"CREDITED {document['currency']}", totals["total"]),
        "",
    ]
    page += [f"  {each['name']}: {_gets(each)}" for each in document["accounts"]]
    return "\n".join(line.rstrip() for line in page) + "\n"


def credit_notes_text(notes: Sequence[Document]) -> str:
    """The notes that were issued against an invoice: stands below its page, for the page never changes."""
    if not notes:
        return ""
    page = ["", "Credit notes:"]
    for each in notes:
        page.append(sides(f"  {each['issued_on']} {each['number']}: {each['reason']}", each["totals"]["total"]))
        page += [f"    {account['name']}: {_gets(account)}" for account in each["accounts"]]
    if any(each["voids"] for each in notes):
        page.append("  nothing is left of the invoice: it is void")
    return "\n".join(page) + "\n"


def documents_of(rows: Iterable[Any]) -> list[Document]:
    """The documents of these issued notes; `Corrupt` where one is gone or cannot be read."""
    found: list[Document] = []
    for row in rows:
        if row.body is None:
            raise Corrupt(f"credit note {row.number} is issued and has no document")
        try:
            found.append(json.loads(row.body))
        except ValueError:
            raise Corrupt(f"the document of credit note {row.number} cannot be read") from None
    return found


def disagreements(invoice: Document, invoice_sha256: str, rows: Iterable[Any]) -> list[str]:
    """What the notes of an invoice say otherwise than they do when they are worked out again, each after those before it."""
    earlier: list[CreditNote] = []
    wrong = []
    for row in rows:
        name = f"credit note {row.number} of invoice {invoice['number']}"
        if row.body is None:
            wrong.append(f"{name} has no document")
            continue
        try:
            note = decide(invoice, earlier, read(row.asked))
        except TollbookError as error:
            wrong.append(f"{name} is not possible: {error.message}")
            continue
        again = canonical(
            issued(
                note,
                row.credit_note_id,
                invoice,
                invoice_sha256,
                number=row.number,
                reason=row.reason,
                at=row.issued_at,
            )
        )
        if again != row.body:
            wrong.append(f"{name} is {row.body} and {again} when worked out again")
        if sha256_of(row.body) != row.sha256:
            wrong.append(f"{name} does not have the hash {row.sha256}")
        earlier.append(note)
    return wrong


def _gets(account: Mapping[str, str]) -> str:
    said = []
    if parse_amount(account["to_balance"]):
        said.append(f"{account['to_balance']} back to the balance")
    if parse_amount(account["owed"]):
        said.append(f"{account['owed']} off what is owed")
    return ", ".join(said)


def _row(account: str, product: str, payment: str, amount: str) -> str:
    return f"{account:<16} {product:<40} {payment:<30} {amount:>11}"
