"""`tollbook reassignment`: charges that were moved because the registry told of a change after they were made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli.asynchronous import asynchronous
from services.cli.output import Format, Output, console, instant, plain, show_json, show_rows
from services.cli.reading import identifier, room

if TYPE_CHECKING:
    from services.usage.reassignments import Reassignment

app = typer.Typer(
    no_args_is_help=True, help="What was charged before the registry told of a change, and moved when it did."
)

LISTED = {
    "reassignment_id": "reassignment", "state": "state", "what": "what", "version": "version", "starts_at": "from",
    "ends_at": "to", "moved": "moved", "left": "left", "noticed_at": "noticed",
}  # fmt: skip
LINES = {
    "from": "from", "to": "to", "currency": "currency", "charges": "charges", "taken_back": "taken back",
    "charged": "charged",
}  # fmt: skip
LEFT_OUT = {"charges": "left", "why": "why"}
LEFT_CHARGES = {"event_time": "ended", "reason": "reason", "charge_id": "charge"}
RIGHT = ("version", "moved", "left", "charges", "taken_back", "charged")


@app.command("list")
@asynchronous
async def list_(
    idle: Annotated[bool, typer.Option("--all", help="also those that found no charge to move")] = False,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="how many")] = 100,
    output: Output = Format.table,
) -> None:
    """What is under way, and what moved charges or left some as they are; the newest first."""
    from services.usage import api

    async with room("usage") as engine:
        found = await api.reassignments(engine, idle=idle, limit=limit)
    if output is Format.json:
        show_json([told(each) for each in found])
        return
    show_rows(
        [{**told(each), "what": what(each)} for each in found], LISTED, output, empty="no charge was moved", right=RIGHT
    )


@app.command()
@asynchronous
async def show(
    reassignment_id: Annotated[
        str, typer.Argument(metavar="REASSIGNMENT", help="its id, as `reassignment list` shows it")
    ],
    charges: Annotated[int, typer.Option(min=0, max=100_000, help="how many of the charges that it left")] = 20,
    output: Output = Format.table,
) -> None:
    """Show what one change of the registry moved from where to where, and which charges stay as they are and why."""
    from services.usage import api

    wanted = identifier(reassignment_id, "a reassignment", "reassignment list", field="REASSIGNMENT")
    async with room("usage") as engine:
        found = await api.reassignment(engine, wanted, limit=charges)
    if output is Format.json:
        show_json(told(found))
        return
    for line in facts(found):
        console.print(line, markup=False)
    if found.lines:
        show_rows([_line(each) for each in told(found)["lines"]], LINES, output, right=RIGHT)
    if found.left_out:
        show_rows(found.left_out, LEFT_OUT, output, right=RIGHT)
    if found.left_charges:
        console.print(f"\n{len(found.left_charges)} charges of {found.left} that stay as they are:")
        show_rows(found.left_charges, LEFT_CHARGES, output)


def told(found: Reassignment) -> dict[str, Any]:
    """A reassignment as programs read it: instants and ids as text, what is not there yet null."""
    return dict(plain(found))


def what(found: Reassignment) -> str:
    """The object whose timeline changed."""
    number = f" {found.number}" if found.number is not None else ""
    return f"{found.kind.replace('_', ' ')} {found.object_id}{number}"


def facts(found: Reassignment) -> list[str]:
    """What changed when, and how far the charges are looked through."""
    until = f" to {instant(found.ends_at)}" if found.ends_at is not None else " on"
    lines = [
        f"reassignment {found.reassignment_id}: {found.state}",
        f"version {found.version} of the timeline of {what(found)} changed what holds from {instant(found.starts_at)}"
        f"{until}; noticed {instant(found.noticed_at)}",
        f"{found.moved} charges moved, {found.left} left as they are",
    ]
    if found.state == "open":
        lines.append(f"looked through up to {instant(found.reached_at)}")
    return lines


def _line(line: dict[str, Any]) -> dict[str, Any]:
    """From where to where as people read it: account, group and cost center."""

    def place(side: str) -> str:
        names = (line[f"{side}_account"], line[f"{side}_group"], line[f"{side}_cost_center"])
        return " / ".join(name or "-" for name in names)

    return {**line, "from": place("from"), "to": place("to")}
