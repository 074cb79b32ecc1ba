"""`tollbook price`: price books and their versions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services.cli.account import instant_of
from services.cli.asynchronous import asynchronous
from services.cli.output import Format, Output, console, instant, plain, show_json, show_rows
from services.cli.reading import room
from services.kernel.errors import InvalidInput

app = typer.Typer(no_args_is_help=True, help="Price books: import a version, list them, say whose they are.")

REFUSALS_SHOWN = 20


def read_file(path: Path, field: str = "FILE") -> bytes:
    """The bytes of a file that the user named."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}", field=field) from None


@app.command("import")
@asynchronous
async def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV: one price a country, or one price a prefix")],
    book: Annotated[str, typer.Option(help="the book; a new version of it is added")],
    effective_from: Annotated[str, typer.Option("--from", help="valid from, such as 2026-10-01; may be in the past")],
    default: Annotated[
        bool, typer.Option("--default", help="the book is asked for everybody, after all others")
    ] = False,
    minimum_s: Annotated[int, typer.Option(help="seconds billed at least, where a line does not say it")] = 60,
    increment_s: Annotated[int, typer.Option(help="steps of seconds above them, where a line does not say it")] = 60,
    output: Output = Format.table,
) -> None:
    """Add a version to a price book. Lines that cannot be used are named; the others go on."""
    from services.usage import api
    from services.usage.price_files import read_price_file

    start = instant_of(effective_from, "from")
    prices = read_price_file(read_file(file), minimum_s=minimum_s, increment_s=increment_s)
    if start is None:
        raise InvalidInput("is missing", field="from")
    async with room("usage") as engine:
        version = await api.import_prices(engine, book, prices, start, is_default=default)
    if output is Format.json:
        show_json(
            {
                "book_id": book,
                "version": version,
                "currency": prices.currency,
                "effective_from": start,
                "prices": len(prices.rows),
                "refused": plain(prices.refused),
            }
        )
        return
    console.print(
        f"{book} version {version}: {len(prices.rows)} prices in {prices.currency} from {instant(start)}", markup=False
    )
    for refusal in prices.refused[:REFUSALS_SHOWN]:
        console.print(f"refused: {refusal}", markup=False)
    if len(prices.refused) > REFUSALS_SHOWN:
        console.print(f"and {len(prices.refused) - REFUSALS_SHOWN} more; --output json names all")


@app.command("list")
@asynchronous
async def list_(output: Output = Format.table) -> None:
    """Every version of every book."""
    from services.usage import api

    async with room("usage") as engine:
        rows = await api.books(engine)
    columns = {
        "book_id": "book", "version": "version", "currency": "currency", "effective_from": "from", "prices": "prices",
        "imported_at": "imported",
    }  # fmt: skip
    show_rows(rows, columns, output, empty="no price book; `tollbook price import`", right=("version", "prices"))


@app.command()
@asynchronous
async def default(
    books: Annotated[list[str], typer.Argument(metavar="BOOK...", help="in the order they are asked")],
    output: Output = Format.table,
) -> None:
    """Say which books are asked for everybody, after all others."""
    from services.usage import api

    async with room("usage") as engine:
        known = {each.book_id for each in await api.books(engine)}
        unknown = [book for book in books if book not in known]
        if unknown:
            raise InvalidInput(f"there is no price book {unknown[0]}; import it first", field="BOOK")
        await api.set_default_books(engine, books)
    if output is Format.json:
        show_json({"default": books})
    else:
        console.print(f"default books: {', '.join(books)}", markup=False)


@app.command()
@asynchronous
async def use(
    book: Annotated[str | None, typer.Argument(metavar="[BOOK]", help="without it the book is taken back")] = None,
    account: Annotated[str | None, typer.Option(help="asked first for this account")] = None,
    organization: Annotated[
        str | None, typer.Option(help="asked before the default ones for this organization")
    ] = None,
    output: Output = Format.table,
) -> None:
    """Give an account or an organization a book of its own."""
    from services.usage import api

    if (account is None) == (organization is None):
        raise InvalidInput("name either an account or an organization", field="account")
    async with room("usage") as engine:
        if account is not None:
            await api.set_book_of(engine, "account", account, book)
        elif organization is not None:
            await api.set_book_of(engine, "organization", organization, book)
    whom = account or organization
    if output is Format.json:
        show_json({"subject": whom, "book_id": book})
    else:
        console.print(f"{whom} has {'no book of its own' if book is None else f'the book {book}'}", markup=False)
