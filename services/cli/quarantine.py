"""`tollbook quarantine`: records that were not carried out, with their reasons; replay them by name or reason, discard them by name."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from services.cli.asking import Actor, me
from services.cli.asynchronous import asynchronous
from services.cli.output import Format, Output, console, plain, show_facts, show_json, show_rows, visible
from services.cli.reading import room
from services.kernel.errors import InvalidInput, NotFound
from services.runtime import parking
from services.runtime.database import transaction
from services.runtime.settings import ROOMS
from services.runtime.tables import runtime_tables

app = typer.Typer(no_args_is_help=True, help="Records in quarantine: list, show, replay, discard by name.")

ALL_STATES = ("quarantined", "waiting", "replaying", "discarding", "replayed", "discarded")
SHOWN_BYTES = 4_000
ID_MAX = 2**63 - 1  # of the column

RoomName = Annotated[str, typer.Option("--room", help="usage, balance, groups, invoices, payments or webhooks")]
Ids = Annotated[list[int] | None, typer.Argument(metavar="[ID...]", max=ID_MAX, help="records by id")]
Reason = Annotated[str | None, typer.Option(help="every record with this reason, such as no_price")]


def _known(name: str) -> str:
    if name not in ROOMS:
        raise InvalidInput(f"there is no room {name!r}; the rooms are {', '.join(ROOMS)}", field="room")
    return name


@app.command("list")
@asynchronous
async def list_(
    room_name: RoomName = "usage",
    reason: Reason = None,
    every: Annotated[bool, typer.Option("--all", help="also what waits, is under way, or is decided")] = False,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="how many, oldest first")] = 100,
    output: Output = Format.table,
) -> None:
    """What stands in quarantine, and why."""
    states = ALL_STATES if every else ("quarantined",)
    async with room(_known(room_name)) as engine, transaction(engine) as connection:
        rows = await parking.listing(connection, runtime_tables(room_name), states=states, reason=reason, limit=limit)
    columns = {
        "id": "id", "state": "state", "reason": "reason", "account": "account", "field": "field", "message": "message",
        "topic": "topic", "partition": "p", "offset": "offset",
    }  # fmt: skip
    empty = f"nothing stands in the quarantine of {room_name}"
    shown = rows if output is Format.json else [plain(row) | {"account": row.about.get("account_id")} for row in rows]
    show_rows(shown, columns, output, empty=empty, right=("id", "offset"))


@app.command()
@asynchronous
async def show(
    identifier: Annotated[int, typer.Argument(metavar="ID", max=ID_MAX, help="as `quarantine list` shows it")],
    room_name: RoomName = "usage",
    output: Output = Format.table,
) -> None:
    """One record with its headers and its bytes."""
    async with room(_known(room_name)) as engine, transaction(engine) as connection:
        tables = runtime_tables(room_name)
        found = await parking.listing(connection, tables, states=ALL_STATES, ids=[identifier], limit=1)
    if not found:
        raise NotFound(f"there is no record {identifier} in the quarantine of {room_name}", field="ID")
    facts = plain(found[0])
    if output is Format.json:
        show_json(facts)
        return
    raw, headers = facts.pop("value"), facts.pop("headers")
    show_facts(facts, output)
    console.print()
    for name, text in headers:
        typer.echo(visible(f"{name}: {'(no value)' if text is None else text[:SHOWN_BYTES]}"))
    if headers:
        console.print()
    typer.echo("(no bytes: a tombstone)" if raw is None else visible(raw[:SHOWN_BYTES]))


@app.command()
@asynchronous
async def replay(
    ids: Ids = None,
    room_name: RoomName = "usage",
    reason: Reason = None,
    actor: Actor = "",
    output: Output = Format.table,
) -> None:
    """Run records again, as if they came now, with their first offset and time of arrival."""
    await _decide("replaying", ids, room_name, reason, actor, output)


@app.command()
@asynchronous
async def discard(
    ids: Annotated[
        list[int], typer.Argument(metavar="ID...", max=ID_MAX, help="records by id: each that is given up is named")
    ],
    room_name: RoomName = "usage",
    actor: Actor = "",
    output: Output = Format.table,
) -> None:
    """Give records up for good; it is told to their publisher and stays in the log."""
    await _decide("discarding", ids, room_name, None, actor, output)


async def _decide(
    decision: Literal["replaying", "discarding"],
    ids: list[int] | None,
    room_name: str,
    reason: str | None,
    actor: str,
    output: Format,
) -> None:
    if not ids and reason is None:
        raise InvalidInput("name records by id, or all of one reason by --reason", field="ID")
    async with room(_known(room_name)) as engine, transaction(engine) as connection:
        count = await parking.ask(
            connection, runtime_tables(room_name), decision, actor or me(), ids=ids or None, reason=reason
        )
    if output is Format.json:
        show_json({"asked": count, "decision": decision})
    else:
        console.print(f"{count} record{'' if count == 1 else 's'} asked for: {decision}")
    if ids and count < len(set(ids)):
        raise NotFound(
            f"{len(set(ids)) - count} of {len(set(ids))} do not stand in the quarantine of {room_name}; see "
            "`tollbook quarantine list --all`",
            field="ID",
        )
