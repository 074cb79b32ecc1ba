"""What a command prints: tables for people, `--output json` for programs (one document, stable keys), never both."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import textwrap
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

from services.kernel.money import format_nano
from services.kernel.period import instant_text

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_FORMULA = re.compile("[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")  # what begins one: OWASP, CSV injection
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?", re.ASCII)
TABLE_ROWS_MAX = 1000  # of a list that grows: more is no reading for people, and a table is made whole
PLAIN_WIDTH = 160  # of output that goes to a file or a pipe, where nobody knows the width of a screen


class Format(StrEnum):
    """How a command answers."""

    table = "table"
    json = "json"


Output = Annotated[Format, typer.Option("--output", "-o", help="tables for people, or JSON for programs")]


class Export(StrEnum):
    """How a command answers whose rows go into spreadsheets too."""

    table = "table"
    json = "json"
    csv = "csv"


ExportAs = Annotated[
    Export, typer.Option("--output", "-o", help="tables for people, JSON for programs, CSV for spreadsheets")
]

console = Console(soft_wrap=False, highlight=False)
if not console.is_terminal:
    console = Console(width=PLAIN_WIDTH, highlight=False)

progress = Console(stderr=True)
"""For bars and spinners: beside the answer, and silent where nobody looks."""


def plain(value: Any) -> Any:
    """A value as JSON has it: dataclasses and models by their fields, instants in UTC with Z, ids as text.

    >>> from datetime import UTC
    >>> plain({"at": datetime(2026, 11, 1, tzinfo=UTC), "ids": (1, 2)})
    {'at': '2026-11-01T00:00:00Z', 'ids': [1, 2]}
    """
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, datetime):
        return instant(value)
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [plain(each) for each in value]
    return value


def visible(text: str) -> str:
    """A text from outside as a terminal may show it: with the escape of each character that would steer it, hide something or
    turn the writing around, and of half a character, which JSON can name and no output takes. Line feeds and tabs stay; JSON
    stays the same JSON.

    >>> visible("a" + chr(27) + "[2J" + chr(0x202E) + "b")
    'a\\\\u001b[2J\\\\u202eb'
    """
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def in_units(row: Any) -> dict[str, Any]:
    """The fields of a row as programs read them: amounts as decimal strings, not as nanos."""
    return {
        name.removesuffix("_nano"): value if not name.endswith("_nano") or value is None else format_nano(int(value))
        for name, value in plain(row).items()
    }


def instant(value: datetime | None) -> str:
    """UTC with Z; nothing for None."""
    return "" if value is None else instant_text(value)


def cell(value: Any) -> str:
    """A value in a table: nothing for None, lists with commas, fields as JSON.

    >>> cell(None), cell(True), cell(("a", "b")), cell({"a": 1})
    ('', 'yes', 'a, b', '{"a": 1}')
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return instant(value)
    if isinstance(value, Mapping):
        return visible(json.dumps(plain(value), ensure_ascii=False))
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(cell(each) for each in value)
    return visible(str(value))


def show_rows(
    rows: Sequence[Any], columns: Mapping[str, str], output: Format, *, empty: str = "none", right: Iterable[str] = ()
) -> None:
    """Rows as a table of these columns (attribute or key → heading), or all their fields as a JSON list."""
    if output is Format.json:
        show_json(rows)
        return
    if not rows:
        console.print(empty)
        return
    aligned = set(right)
    cells = {name: [cell(_field(row, name)) for row in rows] for name in columns}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, heading in columns.items():
        is_id = any(map(_ID.fullmatch, cells[name]))  # copied into other commands, so it stays in one piece
        table.add_column(heading, justify="right" if name in aligned else "left", overflow="fold", no_wrap=is_id)
    for row in zip(*cells.values(), strict=True):
        table.add_row(*map(Text, row))
    console.print(table)


def show_first_rows(
    rows: Sequence[Any], columns: Mapping[str, str], output: Format, *, empty: str = "none", right: Iterable[str] = ()
) -> None:
    """As `show_rows`, of a list that grows: the table is its first rows, and says so where there are more."""
    shown = rows if output is Format.json else rows[:TABLE_ROWS_MAX]
    show_rows(shown, columns, output, empty=empty, right=right)
    if len(shown) < len(rows):
        console.print(f"these are the first {len(shown)} of {len(rows)}; `--output json` gives all")


def show_csv(rows: Iterable[Mapping[str, Any]], names: Sequence[str], *, head: bool = True) -> None:
    """Rows as CSV with a line of names before them: commas, quotes where they are needed, a line feed at each end.

    What a spreadsheet would run as a formula has an apostrophe before it; a number below zero is none.
    """
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    if head:
        writer.writerow(names)
    writer.writerows([_inert(cell(row.get(name))) for name in names] for row in rows)
    typer.echo(written.getvalue(), nl=False)


async def stream(pages: AsyncIterator[Sequence[Any]], names: Sequence[str], output: Export) -> None:
    """Any number of rows as one CSV file or one JSON list, page by page; where the first page fails, nothing is printed."""
    is_first = True
    async for page in pages:
        rows = [plain(row) for row in page]
        if output is Export.csv:
            show_csv(rows, names, head=is_first)
        else:
            written = ",\n".join(textwrap.indent(json.dumps(row, indent=2, ensure_ascii=False), "  ") for row in rows)
            typer.echo(("[\n" if is_first else ",\n") + visible(written), nl=False)
        is_first = False
    if output is Export.json:
        typer.echo("[]" if is_first else "\n]")
    elif is_first:
        show_csv([], names)


def show_facts(facts: Mapping[str, Any], output: Format) -> None:
    """One object: its fields below each other, or a JSON object."""
    if output is Format.json:
        show_json(facts)
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), Text(cell(value)))
    console.print(table)


def show_json(value: Any) -> None:
    """One JSON document on standard output, as it is: no colours, no wrapping."""
    typer.echo(visible(json.dumps(plain(value), indent=2, ensure_ascii=False)))


def _inert(text: str) -> str:
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def _field(row: Any, name: str) -> Any:
    if isinstance(row, Mapping):
        return row.get(name)
    return getattr(row, name)
