"""`tollbook price`: price books and their versions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from sqlalchemy.ext.asyncio import AsyncEngine

from services.cli.account import instant_of, kept_instant
from services.cli.asynchronous import asynchronous
from services.cli.output import Format, Output, console, instant, plain, show_json, show_rows, visible
from services.cli.reading import room
from services.kernel.errors import InvalidInput, Refused
from services.kernel.money import format_nano
from services.usage.books import BookVersion, Price, PriceRow
from services.usage.comparing import Change, Kind, compare
from services.usage.price_files import NoPrices, PriceFile
from services.usage.tiers import describe

app = typer.Typer(no_args_is_help=True, help="Price books: import a version, list them, say whose they are.")

REFUSALS_SHOWN = 20
PRICES_SHOWN = 50
PRICE_COLUMNS = {
    "product": "product", "prefix": "prefix", "window": "window", "price": "price", "per": "per", "unit": "unit",
    "minimum": "at least", "increment": "steps of", "fee": "fee", "bill_on": "only", "schedule": "schedule",
}  # fmt: skip


def read_file(path: Path, field: str = "FILE") -> bytes:
    """The bytes of a file that the user named."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}", field=field) from None


def read_prices(
    file: Path, windows: Path | None = None, *, minimum_s: int = 60, increment_s: int = 60, field: str = "FILE"
) -> PriceFile:
    """The price file that the user named: JSON by its suffix, else CSV, whose windows stand in a file of their own."""
    from services.usage.price_documents import read_price_document
    from services.usage.price_files import read_price_file, read_windows

    data = read_file(file, field)
    if file.suffix.lower() == ".json":
        if windows is not None:
            raise InvalidInput("a JSON file names its windows itself", field="windows")
        return read_price_document(data, minimum_s=minimum_s, increment_s=increment_s)
    named = read_windows(read_file(windows, "windows")) if windows is not None else ()
    return read_price_file(data, minimum_s=minimum_s, increment_s=increment_s, windows=named)


Windows = Annotated[
    Path | None, typer.Option(help="CSV of the windows that a CSV price file names: id, zone, days, from, to, holidays")
]


@app.command("import")
@asynchronous
async def import_(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="CSV: one price a country, a prefix or a product; or JSON, by its suffix"),
    ],
    book: Annotated[str, typer.Option(help="the book; a new version of it is added")],
    effective_from: Annotated[str, typer.Option("--from", help="valid from, such as 2026-10-01; may be in the past")],
    default: Annotated[
        bool, typer.Option("--default", help="the book is asked for everybody, after all others")
    ] = False,
    minimum_s: Annotated[int, typer.Option(help="seconds of voice billed at least, where a line does not say it")] = 60,
    increment_s: Annotated[int, typer.Option(help="steps of seconds above them, where a line does not say it")] = 60,
    windows: Windows = None,
    allow_refused: Annotated[
        bool, typer.Option("--allow-refused", help="import what can be used of a file that has mistakes")
    ] = False,
    output: Output = Format.table,
) -> None:
    """Add a version to a price book, or none where a line has a mistake. Countries that by the number plan have no numbers
    of their own are named, and the others go on."""
    from services.usage import api

    start = kept_instant(effective_from, "from")
    nothing: NoPrices | None = None
    version = None
    try:
        prices = read_prices(file, windows, minimum_s=minimum_s, increment_s=increment_s)
    except NoPrices as error:
        prices, nothing = PriceFile("", (), error.refused), error
    if nothing is None and (allow_refused or not prices.mistakes):
        async with room("usage") as engine:
            version = await api.import_prices(engine, book, prices, start, is_default=default)
    if output is Format.json:
        show_json(
            {
                "book_id": book,
                "version": version,
                "currency": prices.currency or None,
                "effective_from": start,
                "prices": len(prices.rows),
                "refused": plain(prices.refused),
            }
        )
    else:
        if version is not None:
            also = f", {len(prices.refused)} refused" if prices.refused else ""
            console.print(
                f"{book} version {version}: {len(prices.rows)} prices in {prices.currency} from {instant(start)}{also}",
                markup=False,
            )
        _show_refused(prices)
    if nothing is not None:
        raise nothing
    if version is None:
        raise Refused(
            f"has mistakes ({len(prices.mistakes)}), and a version replaces the whole list, so nothing was imported; mend"
            " them, or leave out what is refused by --allow-refused",
            field="FILE",
        )


def _show_refused(prices: PriceFile) -> None:
    for refusal in prices.refused[:REFUSALS_SHOWN]:
        console.print(f"refused: {visible(str(refusal))}", markup=False)
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
async def show(
    book: Annotated[str, typer.Argument(metavar="BOOK", help="its id, as `price list` shows it")],
    version: Annotated[int | None, typer.Option(help="the prices of this version, whenever it holds")] = None,
    number: Annotated[
        str | None,
        typer.Option(help="the prices of this number, such as +4930123456, short code, or network, such as 310260"),
    ] = None,
    at: Annotated[
        str | None, typer.Option(help="for a use that begins then, such as 2026-10-01T22:00:00Z; else now")
    ] = None,
    output: Output = Format.table,
) -> None:
    """Say which versions a book has; with --version its windows and prices, with --number what that number costs."""
    from services.usage import api

    moment = instant_of(at, "at")
    async with room("usage") as engine:
        if number is not None:
            when, prices = await api.prices_of_number(engine, book, number, version, at=moment)
            if output is Format.json:
                show_json(
                    {"book_id": book, "number": number, "at": when, "prices": [price_in_words(each) for each in prices]}
                )
                return
            console.print(f"{number} at {instant(when)} by book {book}", markup=False)
            rows = [price_in_words(each) for each in prices]
            show_rows(rows, PRICE_COLUMNS, output, empty=f"no price of {number} in {book}", right=("price",))
            return
        if version is None and moment is None:
            columns = {
                "version": "version", "currency": "currency", "effective_from": "from", "prices": "prices",
                "imported_at": "imported",
            }  # fmt: skip
            show_rows(await api.book(engine, book), columns, output, right=("version", "prices"))
            return
        found = await api.book_version(engine, book, version, at=moment)
    if output is Format.json:
        show_json(
            {
                "book_id": found.book_id,
                "version": found.version,
                "currency": found.currency,
                "effective_from": found.effective_from,
                "windows": [window.texts() for window in found.windows],
                "schedules": [schedule.texts() for schedule in found.schedules],
                "prices": [price_in_words(row) for row in found.rows],
            }
        )
        return
    console.print(
        f"{book} version {found.version}: {len(found.rows)} prices in {found.currency} from {instant(found.effective_from)}",
        markup=False,
    )
    for window in found.windows:
        console.print(f"window {window}", markup=False)
    for schedule in found.schedules:
        console.print(describe(schedule, f"for {schedule.per}"), markup=False)
    show_rows([price_in_words(row) for row in found.rows[:PRICES_SHOWN]], PRICE_COLUMNS, output, right=("price",))
    if len(found.rows) > PRICES_SHOWN:
        console.print(f"and {len(found.rows) - PRICES_SHOWN} more; --output json shows all, --number those of a number")


def price_in_words(price: PriceRow | Price) -> dict[str, Any]:
    """A price with the names of a price file, and where it stands if that is known."""
    where = {"version": price.version, "currency": price.currency} if isinstance(price, Price) else {}
    return where | {
        "product": price.product,
        "prefix": price.prefix,
        "window": price.window or None,
        "price": None if price.schedule else format_nano(price.price_nano),
        "per": price.per,
        "unit": price.unit,
        "minimum": price.minimum,
        "increment": price.increment,
        "fee": format_nano(price.connection_fee_nano),
        "bill_on": "delivered" if price.delivered_only else None,
        "schedule": price.schedule or None,
    }


@app.command()
@asynchronous
async def diff(
    book: Annotated[str, typer.Argument(metavar="BOOK", help="its id, as `price list` shows it")],
    old: Annotated[int | None, typer.Option("--from", help="the version that was; else the one that holds now")] = None,
    new: Annotated[int | None, typer.Option("--to", help="the version that is compared with it")] = None,
    other: Annotated[str | None, typer.Option("--to-book", help="of another book; else of the same")] = None,
    file: Annotated[
        Path | None, typer.Option(help="a price file that is not imported yet, instead of a version")
    ] = None,
    minimum_s: Annotated[int, typer.Option(help="of the file, as in import")] = 60,
    increment_s: Annotated[int, typer.Option(help="of the file, as in import")] = 60,
    windows: Windows = None,
    output: Output = Format.table,
) -> None:
    """Say which prices are added, removed, raised and lowered from one version to another, to another book, or to a file."""
    from services.usage import api

    if file is not None and (new is not None or other is not None):
        raise InvalidInput("compare with a file, or with a version; not with both", field="file")
    if file is None and new is None and other is None:
        raise InvalidInput("name what to compare with: --to VERSION, --to-book BOOK or --file FILE", field="to")
    prices = None
    if file is not None:
        prices = read_prices(file, windows, minimum_s=minimum_s, increment_s=increment_s, field="file")
    async with room("usage") as engine:
        before = await api.book_version(engine, book, old)
        if prices is None:
            after = await api.book_version(engine, other or book, new)
        else:
            after = BookVersion(
                book,
                before.version,
                prices.currency,
                before.effective_from,
                prices.rows,
                prices.windows,
                prices.schedules,
            )
    changes = compare(before, after)
    counts = {kind: sum(each.kind == kind for each in changes) for kind in get_args(Kind)}
    compared = str(file) if file is not None else f"{after.book_id} version {after.version}"
    rows = [change_in_words(change) for change in changes]
    if output is Format.json:
        show_json(
            {
                "from": {"book_id": before.book_id, "version": before.version},
                "to": {"file": str(file)} if file is not None else {"book_id": after.book_id, "version": after.version},
                "counts": counts,
                "changes": rows,
                "refused": plain(prices.refused) if prices is not None else [],
            }
        )
        return
    said = ", ".join(f"{number} {kind}" for kind, number in counts.items() if number)
    console.print(f"from {book} version {before.version} to {compared}: {said or 'no difference'}", markup=False)
    columns = {
        "kind": "what", "product": "product", "prefix": "prefix", "window": "window", "was": "was", "is": "is",
        "percent": "%", "fields": "differs in",
    }  # fmt: skip
    if rows:
        show_rows(rows[:PRICES_SHOWN], columns, output, right=("percent",))
    if len(rows) > PRICES_SHOWN:
        console.print(f"and {len(rows) - PRICES_SHOWN} more; --output json shows all")
    if prices is not None:
        _show_refused(prices)


def change_in_words(change: Change) -> dict[str, Any]:
    """A change with both prices, and each in short for people."""
    covered = f" (by {change.covered_by.prefix})" if change.covered_by is not None else ""
    old, new = change.old or (change.covered_by if change.new else None), change.new or change.covered_by
    return {
        "kind": change.kind,
        "product": change.product,
        "prefix": change.prefix,
        "window": change.window or None,
        "old": price_in_words(change.old) if change.old is not None else None,
        "new": price_in_words(change.new) if change.new is not None else None,
        "percent": change.percent,
        "fields": list(change.fields),
        "covered_by": price_in_words(change.covered_by) if change.covered_by is not None else None,
        "was": short(old) + ("" if change.old is not None else covered),
        "is": short(new) + ("" if change.new is not None else covered),
    }


def short(price: PriceRow | None) -> str:
    """A price in a few characters.

    >>> short(PriceRow("voice.outbound", "+1", 14_000_000, 1_000_000, 60, 6)), short(None)
    ('0.014 for 60, 60/6, fee 0.001', 'none')
    """
    if price is None:
        return "none"
    if price.schedule:
        return f"tiers of {price.schedule}, {price.minimum}/{price.increment}"
    fee = f", fee {format_nano(price.connection_fee_nano)}" if price.connection_fee_nano else ""
    return f"{format_nano(price.price_nano)} for {price.per}, {price.minimum}/{price.increment}{fee}"


async def _check_known(engine: AsyncEngine, books: Sequence[str]) -> None:
    from services.usage import api

    known = {each.book_id for each in await api.books(engine)}
    unknown = [book for book in books if book not in known]
    if unknown:
        raise InvalidInput(f"there is no price book {unknown[0]}; import it first", field="BOOK")


@app.command()
@asynchronous
async def default(
    books: Annotated[list[str], typer.Argument(metavar="BOOK...", help="in the order they are asked")],
    output: Output = Format.table,
) -> None:
    """Say which books are asked for everybody, after all others."""
    from services.usage import api

    async with room("usage") as engine:
        await _check_known(engine, books)
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
    """Give an account or an organization that is registered a book of its own."""
    from services.groups import api as groups_api
    from services.usage import api

    if (account is None) == (organization is None):
        raise InvalidInput("name either an account or an organization", field="account")
    async with room("usage") as engine, room("groups") as registry:
        if book is not None:  # to take one back nobody need be there: it may have been given to a mistyped name
            await _check_known(engine, [book])
            if account is not None:
                await groups_api.account(registry, account)
            elif organization is not None:
                await groups_api.organization(registry, organization)
        if account is not None:
            await api.set_book_of(engine, "account", account, book)
        elif organization is not None:
            await api.set_book_of(engine, "organization", organization, book)
    whom = account or organization
    if output is Format.json:
        show_json({"subject": whom, "book_id": book})
    else:
        console.print(f"{whom} has {'no book of its own' if book is None else f'the book {book}'}", markup=False)
