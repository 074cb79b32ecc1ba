"""`tollbook simulate`: what recorded usage would have cost by a draft of a price book."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli.account import instant_of
from services.cli.asynchronous import asynchronous
from services.cli.output import Format, Output, console, instant, show_json, show_rows
from services.cli.price import Windows, read_prices
from services.cli.reading import room
from services.kernel.errors import InvalidInput
from services.kernel.money import format_nano, parse_amount

if TYPE_CHECKING:
    from services.usage.price_files import PriceFile
    from services.usage.simulating import Line, Lines, Replay

DESTINATIONS_SHOWN = 30  # the largest differences; JSON has all
SUMS = {
    "currency": "currency", "charges": "charges", "now": "now", "then": "then", "difference": "difference",
    "unpriced": "no price",
}  # fmt: skip
RIGHT = ("charges", "now", "then", "difference", "unpriced", "available")


@asynchronous
async def simulate(
    book: Annotated[str, typer.Option(help="the draft: a price file (CSV, or JSON by its suffix), or a loaded book")],
    start: Annotated[str, typer.Option("--from", help="usage from then on, such as 2026-10-01")],
    end: Annotated[str, typer.Option("--to", help="up to then, such as 2026-11-01")],
    in_place_of: Annotated[
        str | None, typer.Option(help="the book whose place it takes; else it is asked before all others")
    ] = None,
    account: Annotated[str | None, typer.Option(help="of this account only")] = None,
    group: Annotated[str | None, typer.Option(help="of this payer group only")] = None,
    windows: Windows = None,
    output: Output = Format.table,
) -> None:
    """Replay recorded usage through a draft of a price book: revenue now and then, and who would run out of money.
    Nothing is written."""
    from services.balance import api as balance
    from services.usage import api

    begins, ends = instant_of(start, "from"), instant_of(end, "to")
    prices = _file(book, windows)
    async with room("usage") as engine:
        replay = await api.simulate(
            engine, prices or book, begins, ends, in_place_of=in_place_of, account_id=account, group_id=group
        )
    dearer = sorted({key[0] for key, line in replay.accounts.items() if line.then_nano > line.now_nano})
    async with room("balance") as engine:
        balances = await balance.balances(engine, dearer)
    out = run_out(replay, balances)
    notes = notes_of(replay, prices is not None and bool(prices.refused))
    if output is Format.json:
        show_json(
            {
                "book": book,
                "in_place_of": in_place_of,
                "from": begins,
                "to": ends,
                "total": told(replay.total, "currency"),
                "by_account": told(replay.accounts, "account_id", "currency"),
                "by_group": told(replay.groups, "group_id", "currency"),
                "by_destination": told(replay.destinations, "product", "prefix", "currency"),
                "run_out": out,
                "refused": prices.refused if prices is not None else (),
                "notes": notes,
            }
        )
        return
    place = "before all other books" if in_place_of is None else f"in the place of {in_place_of}"
    console.print(f"{book} {place}, usage from {instant(begins)} to {instant(ends)}", markup=False)
    show_rows(told(replay.total, "currency"), SUMS, output, empty="nothing was charged in that time", right=RIGHT)
    if not replay.total:
        return
    for heading, lines, names in (
        ("account", replay.accounts, {"account_id": "account"}),
        ("payer group", replay.groups, {"group_id": "payer group"}),
        ("destination", replay.destinations, {"product": "product", "prefix": "prefix"}),
    ):
        rows = told(lines, *names, "currency")
        shown = largest(rows) if heading == "destination" else rows
        console.print(f"\nby {heading}" + (f", {len(shown)} of {len(rows)}" if len(shown) < len(rows) else ""))
        show_rows(shown, names | SUMS, output, right=RIGHT)
    console.print(f"\naccounts that would run out of money: {len(out) or 'none'}")
    if out:
        show_rows(
            out,
            {"account_id": "account", "currency": "currency", "available": "available", "difference": "more to pay"},
            output,
            right=RIGHT,
        )
    for note in notes:
        console.print(note, markup=False)


def _file(book: str, windows: Path | None) -> PriceFile | None:
    """The draft that a path names; None for the id of a book."""
    path = Path(book)
    if path.is_file():
        return read_prices(path, windows, field="book")
    if path.suffix or len(path.parts) > 1:
        raise InvalidInput(f"there is no file {book}", field="book")
    return None


def told(lines: Lines, *names: str) -> list[dict[str, Any]]:
    """Lines by their keys, in order; a trial has no group."""
    return [
        dict(zip(names, key, strict=True)) | line.told()
        for key, line in sorted(lines.items(), key=lambda item: tuple(each or "" for each in item[0]))
    ]


def largest(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that differ most, the largest first."""
    ordered = sorted(rows, key=lambda row: -abs(parse_amount(row["difference"].lstrip("-"), field="difference")))
    return ordered[:DESTINATIONS_SHOWN]


def run_out(replay: Replay, balances: Sequence[Any]) -> list[dict[str, Any]]:
    """Accounts with money that would have none left, had they paid the difference and recharged nothing meanwhile."""
    from services.usage.simulating import runs_out

    found = []
    for each in balances:
        line: Line | None = replay.accounts.get((each.account_id, each.currency))
        negative = each.available.startswith("-")
        if line is None or negative:
            continue
        more = line.then_nano - line.now_nano
        if runs_out(parse_amount(each.available, field="available"), more):
            row = {"account_id": each.account_id, "currency": each.currency, "available": each.available}
            found.append(row | {"difference": format_nano(more)})
    return found


def notes_of(replay: Replay, has_refused: bool) -> list[str]:
    """What the figures do not say by themselves."""
    notes = []
    if any(line.unpriced for line in replay.total.values()):
        notes.append(
            "Uses without a price (or with one in another currency or unit) would be quarantined: they count nothing in the"
            " revenue then."
        )
    if replay.has_tiers:
        notes.append(
            "Prices by tiers: what an account used in each month of the range goes through the schedule from zero, so take"
            " whole months; charges by tiers that the draft does not touch are kept as they are."
        )
    if has_refused:
        notes.append("Lines of the file were refused; `tollbook price import` or --output json names them.")
    return notes
