"""`tollbook charge`: what was charged, and why exactly that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli.asynchronous import asynchronous
from services.cli.output import Format, Output, console, instant, plain, show_json, show_rows
from services.cli.reading import identifier, room
from services.kernel.money import format_nano

if TYPE_CHECKING:
    from services.usage.api import ExplainedCharge

app = typer.Typer(no_args_is_help=True, help="Charges: list them, explain one to the last digit.")


def in_words(charge: Mapping[str, Any]) -> dict[str, Any]:
    """A charge as programs read it: the amount as a decimal string, instants and ids as text."""
    made = {"amount" if name == "amount_nano" else name: value for name, value in charge.items()}
    made["amount"] = format_nano(int(charge["amount_nano"]))
    return dict(plain(made))


@app.command("list")
@asynchronous
async def list_(
    account_id: Annotated[str, typer.Argument(metavar="ACCOUNT", help="whose charges")],
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="how many, latest first")] = 50,
    output: Output = Format.table,
) -> None:
    """The latest charges of an account."""
    from services.usage import api

    async with room("usage") as engine:
        rows = [in_words(row) for row in await api.charges(engine, account_id, limit=limit)]
    columns = {
        "event_time": "ended", "product": "product", "destination": "to", "quantity": "quantity", "unit": "unit",
        "amount": "amount",
        "currency": "currency", "group_id": "group", "bill_to": "billed", "charge_id": "charge",
    }  # fmt: skip
    show_rows(rows, columns, output, empty=f"no charge of an account {account_id}", right=("quantity", "amount"))


@app.command()
@asynchronous
async def explain(
    charge_id: Annotated[str, typer.Argument(metavar="CHARGE", help="its id, as `charge list` shows it")],
    output: Output = Format.table,
) -> None:
    """Say how a charge came about: the price that matched, what was billed, each step of the arithmetic, who pays and why."""
    from services.usage import api

    wanted = identifier(charge_id, "a charge", "charge list ACCOUNT", field="CHARGE")
    async with room("usage") as engine:
        explained = await api.charge(engine, wanted)
    if output is Format.json:
        reversed_by = plain({"reversed_by": explained.reversed_by})
        steps = {"steps": explained.steps, "who_pays": explained.who_pays}
        show_json({"charge": in_words(explained.charge), **steps, **reversed_by})
        return
    for line in explanation(explained):
        console.print(line, markup=False)


def explanation(explained: ExplainedCharge) -> list[str]:
    """A charge with the steps of its arithmetic, and who pays and why, line by line."""
    charge, reversed_by = explained.charge, explained.reversed_by
    who = f"{charge['account_id']} of {charge['organization_id']}"
    billed = (
        "on no invoice"
        if charge["group_id"] is None
        else f"on the invoice of {charge['group_id']} for {charge['bill_to']}"
    )
    to = f" to {charge['destination']}" if charge["destination"] else ""
    lasted = f", {charge['duration_s']} s in all" if charge["unit"] == "second" else ""
    revision = f", revision {charge['revision']}" if charge["revision"] else ""
    taken_back = [f"takes back charge {charge['reverses']}"] if charge["reverses"] is not None else []
    taken_back += [f"stands in the place of charge {charge['replaces']}"] if charge["replaces"] is not None else []
    taken_back += [f"taken back by charge {reversed_by}"] if reversed_by is not None else []
    return [
        f"charge {charge['charge_id']}: {format_nano(charge['amount_nano'])} {charge['currency']} for {who}, {billed}",
        f"{charge['product']}{to}, ended {instant(charge['event_time'])}{lasted}",
        f"event {charge['event_id']} of {charge['source']}, published by {charge['publisher']}{revision}",
        *taken_back,
        *[f"{number}. {step}" for number, step in enumerate(explained.steps, start=1)],
        *explained.who_pays,
    ]
