"""`tollbook ledger`: the double entry behind every balance, as finance reads it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli.account import Since, Until, instant_of
from services.cli.asynchronous import asynchronous
from services.cli.output import (
    TABLE_ROWS_MAX,
    Export,
    ExportAs,
    Format,
    console,
    plain,
    show_csv,
    show_json,
    show_rows,
    stream,
)
from services.cli.reading import room

if TYPE_CHECKING:
    from services.balance.api import EntryRow, TrialBalance

app = typer.Typer(no_args_is_help=True, help="The ledger: balances of all ledger accounts, and each entry.")


@app.command()
@asynchronous
async def totals(
    at: Annotated[
        str | None, typer.Option("--at", help="what was posted before this instant, such as 2026-11-01; else: all")
    ] = None,
    output: ExportAs = Export.table,
) -> None:
    """The balance of every ledger account by its full name, and their sum, which is 0 in each currency; else exit 1.

    Above zero is what is owed or earned, below zero what is had or spent. Reads the whole ledger.
    """
    from services.balance import api

    async with room("balance") as engine:
        told = await api.trial_balance(engine, instant_of(at, "at"))
    _show_totals(told, output)
    if any(nano != "0" for nano in told.sums.values()):
        typer.echo("the entries do not sum to zero; `tollbook verify` says which", err=True)
        raise typer.Exit(1)


def _show_totals(told: TrialBalance, output: Export) -> None:
    if output is Export.json:
        show_json(told)
        return
    sums = [{"ledger": "sum", "currency": currency, "balance": nano} for currency, nano in told.sums.items()]
    rows: list[dict[str, Any]] = [*map(plain, told.totals), *sums]
    if output is Export.csv:
        show_csv(rows, ("ledger", "currency", "balance"))
        return
    columns = {"ledger": "ledger account", "currency": "currency", "balance": "balance"}
    show_rows(rows, columns, Format.table, empty="nothing is posted yet", right=("balance",))


@app.command()
@asynchronous
async def entries(
    account: Annotated[str | None, typer.Option(help="entries about this account only")] = None,
    ledger: Annotated[
        str | None, typer.Option(help="on this ledger account, such as clearing:bank, or all of a kind: clearing")
    ] = None,
    since: Since = None,
    until: Until = None,
    output: ExportAs = Export.table,
) -> None:
    """Every entry of a time, oldest first, the entries of a transaction together: they sum to zero.

    The charges of an account that were posted together are one transaction. Entries that are about no account, such as the
    tax of an invoice of a group, are left out by --account.
    """
    from services.balance import api

    async with room("balance") as engine:
        start = instant_of(since, "from") or await api.start_of_month(engine)
        pages = api.ledger_entries(engine, start, instant_of(until, "to"), account_id=account, ledger_account=ledger)
        async with aclosing(pages):
            if output is Export.table:
                await _show_entries(pages)
                return
            names = (
                "at", "kind", "ref", "account_id", "ledger", "amount", "currency", "charges", "actor", "note",
            )  # fmt: skip
            await stream(pages, names, output)


async def _show_entries(pages: AsyncIterator[Sequence[EntryRow]]) -> None:
    rows: list[EntryRow] = []
    async for page in pages:
        rows += page
        if len(rows) > TABLE_ROWS_MAX:
            break
    columns = {
        "at": "at", "kind": "kind", "ref": "transaction", "account_id": "account", "ledger": "ledger account",
        "amount": "amount", "currency": "currency",
    }  # fmt: skip
    show_rows(rows[:TABLE_ROWS_MAX], columns, Format.table, empty="no entry in this time", right=("amount",))
    if len(rows) > TABLE_ROWS_MAX:
        console.print(f"these are the first {TABLE_ROWS_MAX}; `--output csv` and `--output json` give all")
