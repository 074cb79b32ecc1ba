"""`tollbook invoice`: estimates, closing a month by command and what it waits for, closed invoices and their payment."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.asking import Actor, CommandId, Role, ask, me
from services.cli.asynchronous import asynchronous
from services.cli.clock import span
from services.cli.output import (
    Format,
    Output,
    console,
    in_units,
    instant,
    show_facts,
    show_first_rows,
    show_json,
    show_rows,
)
from services.cli.reading import room
from services.kernel.errors import InvalidInput, Refused
from services.kernel.money import format_nano, parse_amount
from services.kernel.period import period_named

if TYPE_CHECKING:
    from services.invoices.api import GroupStatus

app = typer.Typer(no_args_is_help=True, help="Estimates, closing a month, invoices and their payment.")

Period = Annotated[str, typer.Option(help="a month such as 2026-10")]


async def _check_known(group: str | None) -> None:
    """For a list that is empty: that of a payer group that there is not would read as one of which there is nothing."""
    from services.groups import api

    if group is not None:
        async with room("groups") as engine:
            await api.group(engine, group)


STATES = ("open", "closed", "nothing", "partly_paid", "paid", "overdue", "written_off", "void")


@app.command("list")
@asynchronous
async def list_(
    period: Annotated[str | None, typer.Option("--period", "--month", help="of this month only")] = None,
    group: Annotated[str | None, typer.Option(help="of this payer group only")] = None,
    state: Annotated[
        str | None,
        typer.Option(
            help="open, closed (with all that became of it), nothing (closed without an invoice), partly_paid, paid, overdue,"
            " written_off or void"
        ),
    ] = None,
    paid: Annotated[bool, typer.Option("--paid", help="paid ones only")] = False,
    unpaid: Annotated[bool, typer.Option("--unpaid", help="those of which something is to be paid")] = False,
    overdue: Annotated[bool, typer.Option("--overdue", help="overdue ones only")] = False,
    output: Output = Format.table,
) -> None:
    """Invoices, open and closed, and what is open of them."""
    from services.invoices import api

    if state not in (None, *STATES):
        raise InvalidInput(f"must be one of {', '.join(STATES)}", field="state")
    if paid + unpaid + overdue + (state is not None) > 1:
        raise InvalidInput("give one of --state, --paid, --unpaid and --overdue", field="state")
    if period is not None:
        period_named(period)  # before anything is asked
    standings = api.PAID if paid else api.UNPAID if unpaid else api.OVERDUE if overdue else None
    if state in ("partly_paid", "paid", "overdue", "written_off", "void"):
        standings, state = frozenset({state}), None
    async with room("invoices") as engine:
        rows = await api.list_invoices(engine, period=period, group_id=group, state=state, standings=standings)  # type: ignore[arg-type]
    if not rows:
        await _check_known(group)
    columns = {
        "period": "period", "group_id": "group", "standing": "state", "number": "number", "charges": "charges",
        "exact": "exact", "net": "net", "tax": "tax", "total": "total", "due": "due", "open": "to pay",
        "currency": "currency",
    }  # fmt: skip
    right = ("charges", "exact", "net", "tax", "total", "due", "open")
    show_first_rows([in_units(row) for row in rows], columns, output, empty="no invoice yet", right=right)


Invoice = Annotated[str, typer.Argument(metavar="INVOICE", help="its number or id")]


@app.command()
@asynchronous
async def show(
    reference: Invoice,
    payments: Annotated[
        bool, typer.Option("--payments", help="only what was paid since it was closed, and what is open")
    ] = False,
    output: Output = Format.table,
) -> None:
    """A closed invoice with its payments and what is open, as a page to read; or as the JSON whose hash was published."""
    from services.invoices import api

    async with room("invoices") as engine:
        shown = await api.show(engine, reference)
    if payments:
        steps = [in_units(each) for each in shown.settlements]
        facts = {
            "number": shown.document["number"],
            "state": shown.standing,
            "due": shown.document["totals"]["due"],
            "open": format_nano(shown.open_nano),
        }
        if output is Format.json:
            show_json(facts | {"payments": steps})
            return
        show_facts(facts, output)
        console.print()
        columns = {
            "at": "at", "kind": "what", "state": "state", "amount": "amount", "source": "from", "reference": "reference",
            "open": "to pay",
        }  # fmt: skip
        show_rows(steps, columns, output, empty="no payment yet", right=("amount", "open"))
    elif output is Format.json:
        typer.echo(shown.body)
    else:
        typer.echo(shown.text, nl=False)


@app.command()
@asynchronous
async def estimate(
    group_id: Annotated[str, typer.Argument(metavar="GROUP", help="the payer group")],
    period: Annotated[str | None, typer.Option(help="else the running month")] = None,
    output: Output = Format.table,
) -> None:
    """The invoice of a group as if it were closed now."""
    from services.invoices import api

    async with room("invoices") as engine:
        document = await api.estimate(engine, group_id, period)
    if output is Format.json:
        show_json(document)
    else:
        typer.echo(api.as_text(document), nl=False)


@app.command()
@asynchronous
async def close(period: Period, actor: Actor = "", output: Output = Format.table) -> None:
    """Close a month that ended before this installation began, or before its automatic close; see `invoice status`."""
    from services.invoices import api

    async with room("invoices") as engine:
        asked = await api.request_close(engine, period, actor or me())
    if output is Format.json:
        show_json(asked)
        return
    when = ", ".join(instant(boundary) for boundary in asked.boundaries)
    again = "had been asked before" if asked.again else "is asked for"
    console.print(f"closing {period} {again}: cut at {when}; see `tollbook invoice status --period {period}`")


@app.command()
@asynchronous
async def status(
    period: Period,
    group: Annotated[str | None, typer.Option(help="of this payer group only")] = None,
    output: Output = Format.table,
) -> None:
    """Where each group's invoice of a month stands, and for what it waits."""
    from services.invoices import api
    from services.usage import api as usage

    async with room("invoices") as engine:
        rows = await api.status(engine, period, group_id=group)
        cuts = await api.cuts(engine)
    if not rows:
        await _check_known(group)
    if any(row.waiting_for == "usage" for row in rows):
        async with room("usage") as engine:
            rows = with_corrections(rows, await usage.corrected_from(engine))
    columns = {
        "group_id": "group",
        "state": "state",
        "number": "number",
        "waiting_for": "waits for",
        "boundary": "ends",
    }
    show_first_rows(rows, columns, output, empty="no payer group yet")
    if output is Format.json:
        return
    boundaries = {row.boundary for row in rows}
    silent = {source for cut in cuts if cut.boundary in boundaries for source in cut.coverage.silent_sources}
    if silent:
        console.print(f"used in the month before and not in {period}: {', '.join(sorted(silent))}", markup=False)


def with_corrections(rows: list[GroupStatus], corrected_from: datetime | None) -> list[GroupStatus]:
    """Say of groups that wait for usage when it is because charges of before their month's end are moved or re-rated."""
    return [
        replace(row, waiting_for=f"usage, which moves or re-rates charges since {instant(corrected_from)}")
        if row.waiting_for == "usage" and corrected_from is not None and corrected_from < row.boundary
        else row
        for row in rows
    ]


@app.command()
@asynchronous
async def grace(
    to: Annotated[str | None, typer.Argument(metavar="SPAN", help="such as 48h; without it the grace is shown")] = None,
    output: Output = Format.table,
) -> None:
    """How long after its end a month is cut."""
    from services.invoices import api

    wanted = None if to is None else span(to, "SPAN")
    async with room("invoices") as engine:
        terms = await (api.terms(engine) if wanted is None else api.set_grace(engine, wanted))
    show_facts({"grace_s": int(terms.grace / timedelta(seconds=1)), "automatic_from": terms.automatic_from}, output)


# ---- payment -------------------------------------------------------------------------------------------------------


async def _group_of(reference: str) -> str:
    """The payer group of a closed invoice of which something was due."""
    from services.invoices import api

    async with room("invoices") as engine:
        document = (await api.show(engine, reference)).document
    if not parse_amount(document["totals"]["due"], signed=True):
        raise Refused(f"nothing was due of invoice {document['number']}: it was paid from the balance", field="invoice")
    return str(document["billing_group"]["group_id"])


@app.command()
@asynchronous
async def pay(
    amount: Annotated[str, typer.Argument(metavar="AMOUNT", help="what arrived, such as 96.00")],
    reference: Annotated[str, typer.Option(help="the bank's id of the transfer: the same one is recorded once")],
    group: Annotated[str | None, typer.Option(help="the payer group; pays what is due first")] = None,
    invoice: Annotated[str | None, typer.Option(help="its number or id; pays this one alone")] = None,
    bank: Annotated[str, typer.Option(help="where it arrived")] = "bank",
    currency: Annotated[str, typer.Option(help="ISO 4217")] = "USD",
    note: Annotated[str, typer.Option(help="for the log")] = "",
    role: Role = "finance",
    actor: Actor = "",
    command_id: CommandId = None,
    output: Output = Format.table,
) -> None:
    """Record a transfer that arrived. What is paid too much is kept and pays the next invoice."""
    if group is None:
        if invoice is None:
            raise InvalidInput("give --group or --invoice", field="group")
        group = await _group_of(invoice)
    await ask(
        output, actor=actor, kind="record_payment", group_id=group, amount=amount, currency=currency, bank=bank,
        reference=reference, invoice=invoice, note=note, role=role, command_id=command_id,
    )  # fmt: skip


@app.command("return")
@asynchronous
async def return_(
    amount: Annotated[str, typer.Argument(metavar="AMOUNT", help="what was sent back, such as 46.00")],
    group: Annotated[str, typer.Option(help="the payer group, for which it was kept")],
    reference: Annotated[str, typer.Option(help="the bank's id of the transfer: the same one is recorded once")],
    bank: Annotated[str, typer.Option(help="which sent it")] = "bank",
    currency: Annotated[str, typer.Option(help="ISO 4217")] = "USD",
    note: Annotated[str, typer.Option(help="for the log")] = "",
    role: Role = "finance",
    actor: Actor = "",
    command_id: CommandId = None,
    output: Output = Format.table,
) -> None:
    """Record that money kept for a payer group was sent back by the bank: what it has paid too much, as `debts` shows it."""
    await ask(
        output, actor=actor, kind="return_money", group_id=group, amount=amount, currency=currency, bank=bank,
        reference=reference, note=note, role=role, command_id=command_id,
    )  # fmt: skip


@app.command("pay-by-card")
@asynchronous
async def pay_by_card(
    group: Annotated[str, typer.Argument(metavar="GROUP", help="the payer group")],
    account: Annotated[str, typer.Option(help="the account of the group whose saved method is charged")],
    invoice: Annotated[str | None, typer.Option(help="its number or id; pays this one alone")] = None,
    amount: Annotated[str | None, typer.Option(help="else all that is open")] = None,
    currency: Annotated[str, typer.Option(help="ISO 4217")] = "USD",
    role: Role = "owner",
    actor: Actor = "",
    command_id: CommandId = None,
    output: Output = Format.table,
) -> None:
    """Charge a saved method for what a payer group owes; `invoice show` says when it is paid."""
    await ask(
        output, actor=actor, kind="pay_by_card", group_id=group, account_id=account, invoice=invoice, amount=amount,
        currency=currency, role=role, command_id=command_id,
    )  # fmt: skip


@app.command("write-off")
@asynchronous
async def write_off(
    reference: Invoice,
    note: Annotated[str | None, typer.Option(help="why; with it the write-off is proposed")] = None,
    approve: Annotated[bool, typer.Option("--approve", help="a second person approves what was proposed")] = False,
    role: Role = "finance",
    actor: Actor = "",
    command_id: CommandId = None,
    output: Output = Format.table,
) -> None:
    """Give up what is open of an invoice: proposed with --note, carried out when another person says --approve."""
    if approve == (note is not None):
        raise InvalidInput("give either --note, to propose it, or --approve", field="note")
    kind = "approve_write_off" if approve else "propose_write_off"
    await ask(
        output, actor=actor, kind=kind, group_id=await _group_of(reference), invoice=reference, note=note, role=role,
        command_id=command_id,
    )  # fmt: skip


@app.command()
@asynchronous
async def debts(
    group: Annotated[str | None, typer.Option(help="this payer group only")] = None, output: Output = Format.table
) -> None:
    """What payer groups owe, and what they have paid too much."""
    from services.balance import receivables_api

    async with room("balance") as engine:
        rows = await receivables_api.group_debts(engine, group)
    if not rows:
        await _check_known(group)
    columns = {
        "group_id": "group", "invoices": "invoices", "open": "to pay", "unapplied": "paid too much",
        "currency": "currency", "suspends": "suspended",
    }  # fmt: skip
    show_first_rows(rows, columns, output, empty="nobody owes anything", right=("invoices", "open", "unapplied"))


@app.command("suspend-after")
@asynchronous
async def suspend_after(
    days: Annotated[int | None, typer.Argument(metavar="DAYS", help="without it the present term is shown")] = None,
    output: Output = Format.table,
) -> None:
    """After how many days of being overdue an invoice suspends the invoiced accounts of its group."""
    from services.balance import receivables_api

    async with room("balance") as engine:
        if days is not None:
            await receivables_api.set_suspend_after_days(engine, days)
        show_facts({"suspend_after_days": await receivables_api.suspend_after_days(engine)}, output)
