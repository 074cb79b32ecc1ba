"""`tollbook call`: what a call would cost, and whether it may start."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli.asynchronous import asynchronous
from services.cli.output import Format, Output, console, show_facts, show_json
from services.cli.reading import room
from services.kernel.money import format_nano

app = typer.Typer(no_args_is_help=True, help="Calls before they start: their price, and whether they may.")


@app.callback()
def calls() -> None:
    """Calls before they start: their price, and whether they may."""


@app.command()
@asynchronous
async def check(
    account_id: Annotated[str, typer.Argument(metavar="ACCOUNT", help="whose call it is")],
    number: Annotated[str, typer.Argument(metavar="NUMBER", help="the called number, such as +12485252160")],
    profile: Annotated[str | None, typer.Option(help="the outbound profile that it goes out by")] = None,
    inbound: Annotated[bool, typer.Option("--inbound", help="a call to a number of the account's own")] = False,
    caller: Annotated[str | None, typer.Option(help="who calls, where the price depends on it")] = None,
    output: Output = Format.table,
) -> None:
    """Say what a call would cost now and whether it might start; starts nothing. A refusal is exit 1."""
    from services.balance import api as balance_api
    from services.balance.holding import Rate
    from services.balance.spending import CallAsked, Refused
    from services.usage import api as usage_api

    async with room("usage") as engine:
        quote = await usage_api.quote(
            engine, account_id, number, direction="inbound" if inbound else "outbound", caller=caller, profile=profile
        )
    rates = tuple(Rate(*each) for each in quote.rates)
    maximum = quote.maximum_nano, quote.maximum_profile
    asked = CallAsked(account_id, profile, quote.price_nano, quote.currency, rates, *maximum)
    async with room("balance") as engine:
        decision = await balance_api.may_call(engine, asked)
    refused = decision if isinstance(decision, Refused) else None
    facts = {
        "product": quote.product,
        "price_per_minute": format_nano(quote.price_nano),
        "connection_fee": format_nano(quote.connection_fee_nano),
        "currency": quote.currency,
        "minimum_s": quote.minimum_s,
        "increment_s": quote.increment_s,
        "book_id": quote.book_id,
        "book_version": quote.book_version,
        "matched": quote.matched,
        "window": quote.window,
        "by_tiers": quote.by_tiers,
        "maximum_price": None if quote.maximum_nano is None else format_nano(quote.maximum_nano),
        "maximum_price_of": None if quote.maximum_nano is None else quote.maximum_profile or account_id,
    }
    if output is Format.json:
        why = {"reason": refused and refused.reason, "message": refused and refused.message}
        show_json({"quote": facts | {"at": quote.at}, "allowed": refused is None, **why})
    else:
        show_facts({name: value for name, value in facts.items() if value not in (None, False)}, output)
        said = "allowed" if refused is None else f"refused ({refused.reason}): {refused.message}"
        console.print(said, markup=False)
    if refused is not None:
        raise typer.Exit(1)
