"""`tollbook credit-note`: what is taken back of a closed invoice, proposed by one person, approved by another, then issued."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, get_args
from uuid import UUID

import typer

from services.cli.asking import Actor, me
from services.cli.asynchronous import asynchronous
from services.cli.invoice import Invoice
from services.cli.output import Format, Output, console, in_units, show_json, show_rows
from services.cli.reading import identifier, room
from services.kernel.currency import currency
from services.kernel.errors import InvalidInput
from services.kernel.money import format_nano, parse_amount

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

    from services.invoices.credit_note_api import KeptNote
    from services.invoices.credit_notes import Asked

    Decision = Callable[[AsyncEngine, UUID, str, str], Awaitable[KeptNote]]

app = typer.Typer(
    no_args_is_help=True,
    help="Credit a closed invoice, all of it or some lines: propose it, have a second person approve it.",
)

NoteId = Annotated[str, typer.Argument(metavar="ID", help="its id, as `credit-note list` shows it")]
Role = Annotated[str, typer.Option(help="as whom: finance")]
COLUMNS = {
    "credit_note_id": "credit note", "state": "state", "number": "number", "invoice_number": "invoice",
    "group_id": "group", "net": "net", "tax": "tax", "total": "total", "currency": "currency",
    "proposed_by": "proposed by", "decided_by": "approved by", "reason": "reason", "refused": "cannot be issued",
}  # fmt: skip


@app.command()
@asynchronous
async def propose(
    reference: Invoice,
    reason: Annotated[str, typer.Option(help="why; stands on the document")],
    line: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ACCOUNT:PRODUCT=AMOUNT",
            help="credit this much of a line, without tax, such as sales:voice.outbound=4.00; may be repeated. Where an account"
            " paid for a product in both ways, say which: sales:voice.outbound:prepaid=4.00",
        ),
    ] = None,
    all_of_it: Annotated[
        bool, typer.Option("--all", help="credit all that is left of the invoice: it is void then")
    ] = False,
    role: Role = "finance",
    actor: Actor = "",
    output: Output = Format.table,
) -> None:
    """Propose to credit a closed invoice; shows what would be given back. Nothing moves until another person approves it."""
    from services.invoices import credit_note_api as api

    if all_of_it == bool(line):
        raise InvalidInput("give either --line, once for each line to credit, or --all", field="line")
    lines = None if all_of_it else [asked(each) for each in line or ()]
    async with room("invoices") as engine:
        made = await api.propose(engine, reference, reason, actor or me(), role, lines)
    _say(made, output)


@app.command()
@asynchronous
async def approve(note_id: NoteId, role: Role = "finance", actor: Actor = "", output: Output = Format.table) -> None:
    """Approve a credit note that another person proposed: it gets its number and is carried out within seconds."""
    from services.invoices import credit_note_api as api

    await _decide(api.approve, note_id, actor, role, output)


@app.command()
@asynchronous
async def withdraw(note_id: NoteId, role: Role = "finance", actor: Actor = "", output: Output = Format.table) -> None:
    """Give up a credit note that is not issued yet."""
    from services.invoices import credit_note_api as api

    await _decide(api.withdraw, note_id, actor, role, output)


@app.command("list")
@asynchronous
async def list_(
    group: Annotated[str | None, typer.Option(help="of this payer group only")] = None,
    state: Annotated[str | None, typer.Option(help="proposed, approved, issued or withdrawn")] = None,
    output: Output = Format.table,
) -> None:
    """Credit notes in the order in which they were proposed."""
    from services.invoices import credit_note_api as api

    if state not in (None, *get_args(api.State)):
        raise InvalidInput(f"must be one of {', '.join(get_args(api.State))}", field="state")
    async with room("invoices") as engine:
        rows = await api.credit_notes(engine, group_id=group, state=state)  # type: ignore[arg-type]
    show_rows([_told(row) for row in rows], COLUMNS, output, empty="no credit note yet", right=("net", "tax", "total"))


@app.command()
@asynchronous
async def show(
    reference: Annotated[str, typer.Argument(metavar="NOTE", help="its number or id")], output: Output = Format.table
) -> None:
    """A credit note as a page to read, or as the JSON whose hash is published; before it is issued what it would be, for who
    approves it."""
    from services.invoices import credit_note_api as api

    async with room("invoices") as engine:
        shown = await api.show(engine, reference)
    typer.echo(shown.body if output is Format.json else shown.text, nl=output is Format.json)
    _warn(shown.warnings)


def asked(text: str) -> Asked:
    """A line to credit, as it is typed.

    >>> asked("sales:voice.outbound:postpaid=4.00")
    Asked(account_id='sales', product='voice.outbound', amount_nano=4000000000, prepaid=False)
    """
    from services.invoices.credit_notes import Asked

    of, has_amount, amount = text.rpartition("=")
    account_id, *rest = of.split(":")
    product, payment = rest[0] if rest else "", rest[1] if len(rest) > 1 else None
    if not (has_amount and account_id and product) or len(rest) > 2 or payment not in (None, "prepaid", "postpaid"):
        raise InvalidInput(
            f"{text!r} must be ACCOUNT:PRODUCT=AMOUNT, with :prepaid or :postpaid before the = where both are billed",
            field="line",
        )
    return Asked(
        account_id, product, parse_amount(amount, field="line"), None if payment is None else payment == "prepaid"
    )


async def _decide(decide: Decision, note_id: str, actor: str, role: str, output: Format) -> None:
    wanted = identifier(note_id, "a credit note", "credit-note list", field="ID")
    async with room("invoices") as engine:
        found = await decide(engine, wanted, actor or me(), role)
    _say(found, output)


def _told(found: KeptNote) -> dict[str, Any]:
    """A note as programs read it: amounts as decimal strings, what it credits line by line, or null for all of it."""
    lines = None if found.lines is None else [in_units(each) for each in found.lines]
    return {**in_units(found), "lines": lines}


def _warn(warnings: tuple[str, ...]) -> None:
    for warning in warnings:
        typer.echo(f"note: {warning}", err=True)


def _say(found: KeptNote, output: Format) -> None:
    _warn(found.warnings)
    if output is Format.json:
        show_json(_told(found))
        return
    decimals = currency(found.currency).exponent
    net, tax, total = (
        format_nano(nano, decimals_min=decimals) for nano in (found.net_nano, found.tax_nano, found.total_nano)
    )
    what = (
        "all that is left of"
        if found.lines is None
        else f"{len(found.lines)} line{'s' if len(found.lines) > 1 else ''} of"
    )
    then = {
        "proposed": f"another person approves it: tollbook credit-note approve {found.credit_note_id}; what each account gets"
        f" back: tollbook credit-note show {found.credit_note_id}",
        "approved": "it is numbered within a second: see tollbook credit-note list",
        "issued": f"it is number {found.number}",
        "withdrawn": "nothing moves",
    }[found.state]
    console.print(
        f"credit note {found.credit_note_id} is {found.state}: {what} invoice {found.invoice_number},"
        f" net {net} + tax {tax} = {total} {found.currency}; {then}",
        markup=False,
        soft_wrap=True,
    )
