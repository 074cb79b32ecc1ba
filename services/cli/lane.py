"""`tollbook lane`: how far every input has read, which have stopped and why; letting one go on is a person's decision."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from services.cli.asking import Actor, me
from services.cli.asynchronous import asynchronous
from services.cli.output import Format, Output, console, plain, show_json, show_rows
from services.cli.reading import room
from services.kernel.errors import InvalidInput, Refused
from services.runtime import resuming
from services.runtime.database import transaction
from services.runtime.lanes import all_lanes
from services.runtime.settings import ROOMS, load
from services.runtime.tables import runtime_tables

app = typer.Typer(no_args_is_help=True, help="Inputs, each one partition of a topic: list, let a stopped one go on.")


def _known(name: str, field: str) -> str:
    if name not in ROOMS:
        raise InvalidInput(f"there is no room {name!r}; the rooms are {', '.join(ROOMS)}", field=field)
    return name


@app.command("list")
@asynchronous
async def list_(
    room_name: Annotated[str | None, typer.Option("--room", help="this room only")] = None,
    stopped: Annotated[bool, typer.Option("--stopped", help="only those that stopped")] = False,
    output: Output = Format.table,
) -> None:
    """Every lane of every room: its position, and why it stopped if it did."""
    rows: list[dict[str, Any]] = []
    for name in (_known(room_name, "room"),) if room_name is not None else ROOMS:
        async with room(name) as engine, transaction(engine) as connection:
            lanes = await all_lanes(connection, runtime_tables(name))
        rows += [{"room": name, **plain(lane)} for lane in lanes if lane.stopped is not None or not stopped]
    columns = {"room": "room", "name": "lane", "position": "position", "stopped": "stopped"}
    show_rows(rows, columns, output, empty="no lane is stopped" if stopped else "no lane yet", right=("position",))


@app.command()
@asynchronous
async def resume(
    room_name: Annotated[
        str, typer.Argument(metavar="ROOM", help="usage, balance, groups, invoices, payments or webhooks")
    ],
    lane: Annotated[str, typer.Argument(metavar="LANE", help="as `lane list` shows it")],
    reason: Annotated[str, typer.Option(help="why it may go on; kept, and shown by `verify`")],
    offset: Annotated[int | None, typer.Option("--from", min=0, help="go on here; else where the lane stands")] = None,
    earliest: Annotated[bool, typer.Option("--earliest", help="go on at the first record that is there")] = False,
    give_up: Annotated[bool, typer.Option("--give-up", help="yes: what is named may never be read")] = False,
    actor: Actor = "",
    output: Output = Format.table,
) -> None:
    """Let a stopped lane go on. What it would never read is named first, and given up only with --give-up.

    One whose topic was deleted is retired instead, so that invoices close without it. Running workers go on by themselves. Who, why, and which offsets and seqs were given up is kept for good.
    """
    tables = runtime_tables(_known(room_name, "ROOM"))
    if not reason.strip():
        raise InvalidInput("say why the lane may go on", field="reason")
    if offset is not None and earliest:
        raise InvalidInput("name an offset or --earliest, not both", field="from")
    async with room(room_name) as engine:
        plan = await resuming.plan(engine, tables, load(), lane, offset=offset, earliest=earliest)
        if plan.gives_up and not give_up:
            raise Refused(
                f"{lane} at {plan.to_offset} would give up {plan.gives_up}, for good; bring them back, or say --give-up",
                code="gives_up",
            )
        await resuming.resume(engine, tables, plan, by=actor or me(), reason=reason)
    if output is Format.json:
        show_json(
            {
                "room": room_name,
                "lane": lane,
                "from_offset": plan.lane.position,
                "to_offset": plan.to_offset,
                "links": plan.links,
            }
        )
    else:
        goes_on = "is retired" if plan.retires else "goes on"
        console.print(f"{lane} {goes_on} at {plan.to_offset}; given up: {plan.gives_up or 'nothing'}", markup=False)
