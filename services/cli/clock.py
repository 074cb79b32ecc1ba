"""`tollbook clock`: the one clock that decides money, shown, and moved where the database was made movable."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Annotated

import typer
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from services.cli.asynchronous import asynchronous
from services.cli.output import Format, Output, show_facts
from services.cli.reading import room
from services.kernel.errors import InvalidInput, Refused
from services.runtime.database import open_engine, transaction
from services.runtime.settings import Settings, load

app = typer.Typer(no_args_is_help=True, help="The one clock: show it, or move it in a database made for tests.")

_SPAN = re.compile(r"([0-9]{1,6})([smhd])", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def span(text: str, field: str) -> timedelta:
    """A time span: whole seconds, minutes, hours or days.

    >>> span("49h", "BY")
    datetime.timedelta(days=2, seconds=3600)
    """
    match = _SPAN.fullmatch(text)
    if match is None:
        raise InvalidInput("must be a whole number with s, m, h or d, such as 49h", field=field)
    return timedelta(seconds=int(match[1]) * _SECONDS[match[2]])


@app.command()
@asynchronous
async def show(output: Output = Format.table) -> None:
    """What time it is for money, how far that is ahead of the machine, and whether it can be moved."""
    async with room("groups") as engine, transaction(engine) as connection:
        row = (await connection.execute(text("select runtime.clock_now(), ahead, movable from runtime.clock"))).one()
    show_facts({"now": row[0], "ahead_s": int(row[1].total_seconds()), "movable": row[2]}, output)


@app.command()
@asynchronous
async def move(
    by: Annotated[str, typer.Argument(help="such as 90s, 15m, 49h or 31d")], output: Output = Format.table
) -> None:
    """Move the clock forward; it never goes back. Only in a database that was made movable."""
    forward = span(by, "BY")
    now = await moved(load(), forward)
    show_facts({"now": now}, output)


async def moved(settings: Settings, forward: timedelta) -> datetime:
    """Move the clock forward; what time it is then. `Refused` where the database was not made movable."""
    engine = open_engine(settings.owner_database_url(), application="tollbook.cli", pool_size=1)
    try:
        async with transaction(engine) as connection:
            now: datetime = (
                await connection.execute(text("select runtime.clock_move(:forward)"), {"forward": forward})
            ).scalar_one()
    except DBAPIError as error:
        if "cannot be moved" not in str(error.orig):
            raise
        raise Refused(
            "this database has a clock that cannot be moved; only one made by `tollbook up --movable` has",
            field="clock",
            code="not_movable",
        ) from None
    finally:
        await engine.dispose()
    return now
