"""`tollbook invoice`: estimates, closing a month by command and what it waits for, closed invoices."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

import typer

from services.cli.asking import Actor, me
from services.cli.asynchronous import asynchronous
from services.cli.clock import span
from services.cli.output import Format, Output, console, instant, plain, show_facts, show_json, show_rows
from services.cli.reading import room
from services.kernel.errors import InvalidInput
from services.kernel.money import format_nano

app = typer.Typer(no_args_is_help=True, help="Estimates, closing a month, invoices.")

Period = Annotated[str, typer.Option(help="a month such as 2026-10")]


def in_units(row: Any) -> dict[str, Any]:
    """The fields of a row as programs read them: amounts as decimal strings, not as nanos."""
    return {
        name.removesuffix("_nano"): value if not name.endswith("_nano") or value is None else format_nano(int(value))
        for name, value in plain(row).items()
    }


@app.command("list")
@asynchronous
async def list_(
    period: Annotated[str | None, typer.Option(help="of this month only")] = None,
    group: Annotated[str | None, typer.Option(help="of this payer group only")] = None,
    state: Annotated[str | None, typer.Option(help="open, closed or nothing (closed without an invoice)")] = None,
    output: Output = Format.table,
) -> None:
    """Invoices, open and closed."""
    from services.invoices import api

    if state not in (None, "open", "closed", "nothing"):
        raise InvalidInput("must be open, closed or nothing", field="state")
    async with room("invoices") as engine:
        rows = await api.list_invoices(engine, period=period, group_id=group, state=state)  # type: ignore[arg-type]
    columns = {
        "period": "period", "group_id": "group", "state": "state", "number": "number", "charges": "charges",
        "exact": "exact", "net": "net", "tax": "tax", "total": "total", "due": "due", "currency": "currency",
    }  # fmt: skip
    right = ("charges", "exact", "net", "tax", "total", "due")
    show_rows([in_units(row) for row in rows], columns, output, empty="no invoice yet", right=right)


@app.command()
@asynchronous
async def show(
    reference: Annotated[str, typer.Argument(metavar="INVOICE", help="its number or id")], output: Output = Format.table
) -> None:
    """A closed invoice, as a page to read or as the JSON whose hash was published."""
    from services.invoices import api

    async with room("invoices") as engine:
        shown = await api.show(engine, reference)
    if output is Format.json:
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

    async with room("invoices") as engine:
        rows = await api.status(engine, period, group_id=group)
        cuts = await api.cuts(engine)
    columns = {
        "group_id": "group",
        "state": "state",
        "number": "number",
        "waiting_for": "waits for",
        "boundary": "ends",
    }
    show_rows(rows, columns, output, empty="no payer group yet")
    if output is Format.json:
        return
    boundaries = {row.boundary for row in rows}
    silent = {source for cut in cuts if cut.boundary in boundaries for source in cut.coverage.silent_sources}
    if silent:
        console.print(f"used in the month before and not in {period}: {', '.join(sorted(silent))}", markup=False)


@app.command()
@asynchronous
async def grace(
    to: Annotated[str | None, typer.Argument(metavar="SPAN", help="such as 48h; without it the grace is shown")] = None,
    output: Output = Format.table,
) -> None:
    """How long after its end a month is cut."""
    from services.invoices import api

    async with room("invoices") as engine:
        terms = await (api.terms(engine) if to is None else api.set_grace(engine, span(to)))
    show_facts({"grace_s": int(terms.grace / timedelta(seconds=1)), "automatic_from": terms.automatic_from}, output)
