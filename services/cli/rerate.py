"""`tollbook rerate`: what past usage costs by other prices, planned by one person, approved by another, carried out once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from services.cli.account import kept_instant
from services.cli.asking import Actor, me
from services.cli.asynchronous import asynchronous
from services.cli.output import Format, Output, console, instant, plain, show_json, show_rows
from services.cli.reading import identifier, room

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

    from services.usage.rerate_plans import Plan

    Decision = Callable[[AsyncEngine, UUID, str, str], Awaitable[Plan]]

app = typer.Typer(
    no_args_is_help=True, help="Re-rate past usage: plan it, have a second person approve it, execute it."
)

PlanId = Annotated[str, typer.Argument(metavar="PLAN", help="its id, as `rerate list` shows it")]
Role = Annotated[str, typer.Option(help="as whom: finance or operator")]
LINES = {
    "of": "of", "which": "which", "currency": "currency", "charges": "charges", "old": "now", "new": "then",
    "difference": "difference",
}  # fmt: skip
CHARGED = {"settled": "settled", "charged": "charged"}  # beside what was planned
LEFT_OUT = {"which": "left out", "currency": "currency", "charges": "charges", "old": "now", "reason": "why"}
CHARGES = {
    "event_time": "ended", "account_id": "account", "product": "product", "matched": "prefix", "book_id": "book",
    "book_version": "version", "old": "now", "new": "then", "currency": "currency", "charge_id": "charge",
}  # fmt: skip
PLANS = {
    "plan_id": "re-rate", "state": "state", "starts_at": "from", "ends_at": "to", "charges": "charges",
    "difference": "difference", "planned_by": "planned by", "approved_by": "approved by", "note": "note",
}  # fmt: skip
RIGHT = ("charges", "old", "new", "difference", "book_version", *CHARGED)


@app.command()
@asynchronous
async def plan(
    start: Annotated[str, typer.Option("--from", help="usage from then on, such as 2026-10-01")],
    end: Annotated[str, typer.Option("--to", help="up to then, such as 2026-11-01")],
    account: Annotated[list[str] | None, typer.Option(help="of this account only; may be repeated")] = None,
    group: Annotated[str | None, typer.Option(help="of this payer group only")] = None,
    product: Annotated[str | None, typer.Option(help="of this product only, such as voice.outbound")] = None,
    book: Annotated[
        str | None, typer.Option(help="by this book before all others; else by the prices as they are now")
    ] = None,
    version: Annotated[
        int | None, typer.Option(help="by this version of the book for all of the time; else by each from its date")
    ] = None,
    note: Annotated[str, typer.Option(help="why, for who approves it")] = "",
    role: Role = "finance",
    actor: Actor = "",
    output: Output = Format.table,
) -> None:
    """Work out what charges of that time would cost by other prices; nothing is charged yet."""
    from services.usage import api

    begins, ends = kept_instant(start, "from"), kept_instant(end, "to")
    async with room("usage") as engine:
        made = await api.plan_rerate(
            engine, begins, ends, actor or me(), role, account_ids=account or (), group_id=group, product=product,
            book_id=book, book_version=version, note=note,
        )  # fmt: skip
    _say(made, output)


@app.command()
@asynchronous
async def show(
    plan_id: PlanId,
    charges: Annotated[int, typer.Option(min=0, max=100_000, help="how many of its charges")] = 20,
    stale: Annotated[
        bool, typer.Option("--stale", help="only charges that were corrected before it came to them")
    ] = False,
    output: Output = Format.table,
) -> None:
    """Show a re-rate: what it changes, who decided what, how far it is, and what was charged beside what was planned."""
    from services.usage import api

    wanted = _id(plan_id)
    async with room("usage") as engine:
        found = await api.rerate(engine, wanted, limit=charges, stale_only=stale)
    _say(found, output)


@app.command("list")
@asynchronous
async def list_(output: Output = Format.table) -> None:
    """Every re-rate, the newest first."""
    from services.usage import api

    async with room("usage") as engine:
        found = await api.rerates(engine)
    if output is Format.json:
        show_json([told(each) for each in found])
        return
    rows = [{**told(each), "difference": difference(each)} for each in found]
    show_rows(rows, PLANS, output, empty="no re-rate was planned", right=RIGHT)


@app.command()
@asynchronous
async def approve(plan_id: PlanId, role: Role = "finance", actor: Actor = "", output: Output = Format.table) -> None:
    """Approve a re-rate that another person planned; it is stale if a charge of it was corrected since, or a counter moved."""
    from services.usage import api

    await _decide(api.approve_rerate, plan_id, actor, role, output)


@app.command()
@asynchronous
async def execute(plan_id: PlanId, role: Role = "finance", actor: Actor = "", output: Output = Format.table) -> None:
    """Have an approved re-rate carried out by the usage workers; `rerate show` says how far it is."""
    from services.usage import api

    await _decide(api.execute_rerate, plan_id, actor, role, output)


@app.command()
@asynchronous
async def cancel(plan_id: PlanId, role: Role = "finance", actor: Actor = "", output: Output = Format.table) -> None:
    """Give up a re-rate that nobody has executed."""
    from services.usage import api

    await _decide(api.cancel_rerate, plan_id, actor, role, output)


async def _decide(decide: Decision, plan_id: str, actor: str, role: str, output: Format) -> None:
    wanted = _id(plan_id)
    async with room("usage") as engine:
        found = await decide(engine, wanted, actor or me(), role)
    _say(found, output)


def _id(text: str) -> UUID:
    return identifier(text, "a re-rate", "rerate list", field="PLAN")


def told(found: Plan) -> dict[str, Any]:
    """A plan as programs read it: instants and ids as text, what is not there yet null."""
    return dict(plain(found))


def difference(found: Plan) -> str:
    """What a plan comes to, by currency."""
    return ", ".join(f"{line.difference} {line.currency}" for line in found.sums if line.of == "total")


def lines_of(found: Plan) -> list[dict[str, Any]]:
    """The sums of a plan as people read them: what was planned, and what was charged of it."""
    rows = []
    for line in found.sums:
        charged = line.charged
        settled, came_to = (charged.charges, charged.difference) if charged is not None else (0, "0")
        rows.append({name: getattr(line, name) for name in LINES} | {"settled": settled, "charged": came_to})
    return rows


def _say(found: Plan, output: Format) -> None:
    if output is Format.json:
        show_json(told(found))
        return
    for line in facts(found):
        console.print(line, markup=False)
    if found.sums:
        show_rows(lines_of(found), LINES | CHARGED if found.settled else LINES, output, right=RIGHT)
    if found.left_out:
        show_rows(found.left_out, LEFT_OUT, output, right=RIGHT)
    if found.changes:
        shown: Sequence[Any] = found.changes
        console.print(f"\n{len(shown)} charges of {found.charges}:")
        show_rows(shown, CHARGES, output, right=RIGHT)


def facts(found: Plan) -> list[str]:
    """What was asked for, who decided what, and what is next."""
    of = [f"of {', '.join(found.account_ids)}"] if found.account_ids else []
    of += [f"of group {found.group_id}"] if found.group_id is not None else []
    of += [found.product] if found.product is not None else []
    version = f", version {found.book_version}" if found.book_version is not None else ""
    prices = (
        f"{found.book_id}{version}, before all other books" if found.book_id is not None else "prices as they are now"
    )
    lines = [
        f"re-rate {found.plan_id}: {found.state}",
        f"{' '.join(['usage', *of])} from {instant(found.starts_at)} to {instant(found.ends_at)}, by {prices}",
        f"{found.charges} charges change; planned by {found.planned_by} ({found.planned_role}),"
        f" {instant(found.planned_at)}" + (f": {found.note}" if found.note else ""),
    ]
    for word, by, at in (
        ("approved", found.approved_by, found.approved_at),
        ("executed", found.executed_by, found.executed_at),
        ("cancelled", found.cancelled_by, found.cancelled_at),
    ):
        if by is not None:
            lines.append(f"{word} by {by}, {instant(at)}")
    if found.state in ("executing", "done"):
        lines.append(f"{found.settled} of {found.charges} charges settled")
    if found.left_stale:
        lines.append(
            f"{found.left_stale} of them left as they are, corrected after the approval: `tollbook rerate show"
            f" {found.plan_id} --stale` names them"
        )
    following = {"planned": "another person approves it", "approved": "execute it", "stale": "plan again"}.get(
        found.state
    )
    if following is not None and found.charges:
        lines.append(f"next: {following}")
    return lines
