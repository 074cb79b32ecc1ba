"""`tollbook payout`: what processors, and banks where transfers arrived, paid out to the bank, taken over by finance."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.asking import Actor, me
from services.cli.asynchronous import asynchronous
from services.cli.output import Format, Output, console, show_json, show_rows
from services.cli.reading import room
from services.kernel.errors import InvalidInput
from services.kernel.money import format_nano, parse_amount

if TYPE_CHECKING:
    from services.balance.api import Payout

app = typer.Typer(
    no_args_is_help=True, help="Pay-outs of processors, and of banks where transfers arrived, to the bank."
)

COLUMNS = ("processor", "payout_id", "amount", "currency")
ROWS_MAX = 100_000


@app.command()
@asynchronous
async def record(
    processor: Annotated[str, typer.Argument(help="such as sandbox; for transfers their bank, such as bank")],
    payout_id: Annotated[str, typer.Argument(metavar="ID", help="the processor's id of it: each is posted once")],
    amount: Annotated[str, typer.Argument(help="such as 1250.00; below zero when the processor took money back")],
    currency: Annotated[str, typer.Option(help="ISO 4217")] = "USD",
    note: Annotated[str, typer.Option(help="for the ledger")] = "",
    actor: Actor = "",
    output: Output = Format.table,
) -> None:
    """Post one pay-out: the clearing account of the processor, or of the transfers' bank, is that much less; the bank has it.

    One that failed afterwards came back as another line of the statement: post that by its own id, with a minus."""
    from services.balance.api import Payout

    payout = Payout(processor, payout_id, parse_amount(amount, signed=True), currency)
    await _record([payout], actor, note, output)


@app.command("import")
@asynchronous
async def import_(
    file: Annotated[Path, typer.Argument(help="CSV with the columns processor, payout_id, amount, currency")],
    note: Annotated[str, typer.Option(help="for the ledger")] = "",
    actor: Actor = "",
    output: Output = Format.table,
) -> None:
    """Post the pay-outs of a file, all or none; what was posted before is passed over, so a file may be imported again."""
    await _record(read(file), actor, note, output)


@app.command("list")
@asynchronous
async def list_(output: Output = Format.table) -> None:
    """Pay-outs, newest first."""
    from services.balance import api

    async with room("balance") as engine:
        rows = await api.list_payouts(engine)
    columns = {
        "at": "posted", "processor": "processor", "payout_id": "pay-out", "amount": "amount", "currency": "currency",
        "actor": "by", "note": "note",
    }  # fmt: skip
    show_rows(rows, columns, output, empty="no pay-out yet", right=("amount",))


def read(file: Path) -> list[Payout]:
    """The pay-outs of a CSV file. `InvalidInput` names the line and the column that is wrong."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"cannot be read: {type(error).__name__}", field="file") from None
    try:
        return _rows(csv.DictReader(text.splitlines()))
    except csv.Error as error:
        raise InvalidInput(f"is not CSV: {error}", field="file") from None


def _rows(reader: csv.DictReader[str]) -> list[Payout]:
    from services.balance.api import Payout

    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise InvalidInput(f"has no column {', '.join(missing)}; it needs {', '.join(COLUMNS)}", field="file")
    found: list[Payout] = []
    for row in reader:
        if len(found) == ROWS_MAX:
            raise InvalidInput(f"has more than {ROWS_MAX} lines; import it in parts", field="file")
        if surplus := row.get(None):  # half of 1,234.50 is another amount
            named = len(reader.fieldnames or ())
            raise InvalidInput(
                f"line {reader.line_num} has {named + len(surplus)} fields, the header {named}; quote a field that holds a"
                " comma",
                field="file",
            )
        try:
            nano = parse_amount(row["amount"] or "", signed=True)
        except InvalidInput as wrong:
            raise InvalidInput(f"line {reader.line_num}: {wrong.message}", field="amount") from None
        found.append(Payout(row["processor"] or "", row["payout_id"] or "", nano, row["currency"] or ""))
    return found


async def _record(payouts: list[Payout], actor: str, note: str, output: Format) -> None:
    from services.balance import api

    async with room("balance") as engine:
        new = await api.record_payouts(engine, payouts, actor or me(), note)
    if output is Format.json:
        show_json({"posted": len(new), "known": len(payouts) - len(new)})
        return
    for payout in new:
        console.print(
            f"posted {format_nano(payout.nano)} {payout.currency} of {payout.processor} as {payout.payout_id}",
            markup=False,
        )
    if len(new) < len(payouts):
        console.print(f"{len(payouts) - len(new)} were posted before", markup=False)
