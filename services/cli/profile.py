"""`tollbook profile`: switch profiles, before anything is imported with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services.cli.output import Format, Output, console, plain, show_facts, show_json
from services.usage.importing import read_profile, understood

app = typer.Typer(no_args_is_help=True, help="Switch profiles: check one before it is used.")


@app.callback()
def profile() -> None:
    """Switch profiles: what an importer must be told about a switch."""


@app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a switch profile, .json or .toml")],
    output: Output = Format.table,
) -> None:
    """Validate a switch profile and say what it means; needs no server."""
    said = understood(read_profile(file))
    if output is Format.json:
        show_json(said)
        return
    facts = plain(said)
    formats, warnings = facts.pop("formats"), facts.pop("warnings")
    show_facts(facts, output)
    for name, how in formats.items():
        console.print(f"--format {name}: {how}", markup=False)
    for warning in warnings:
        console.print(f"warning: {warning}", markup=False)
    console.print(f"{file.name} is a valid switch profile", markup=False)
