"""`tollbook account pay` and its neighbours: payments by hand and every month, refunds, what became of each payment."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import typer

from services.cli.asking import Actor, CommandId, Role, ask
from services.cli.asynchronous import asynchronous
from services.cli.output import Format, Output, plain, show_json, show_rows
from services.cli.reading import room
from services.kernel.errors import InvalidInput

app = typer.Typer()

AccountId = Annotated[str, typer.Argument(metavar="ACCOUNT", help="the account's id")]
PaymentId = Annotated[str, typer.Argument(metavar="PAYMENT", help="its id, as `tollbook account payments` shows it")]
PAYMENTS_MAX = 1000  # shown at once, and all that is read of each state
Currency = Annotated[str, typer.Option(help="ISO 4217")]


@app.command()
@asynchronous
async def pay(
    account_id: AccountId,
    amount: Annotated[str, typer.Argument(help="such as 50.00, at least the minimum payment")],
    token: Annotated[
        str | None, typer.Option(help="a processor's token, never a card number; without it: the saved method")
    ] = None,
    processor: Annotated[str | None, typer.Option(help="the processor that gave the token")] = None,
    kind: Annotated[str | None, typer.Option(help="of the token: card (the default), paypal or bank_debit")] = None,
    currency: Currency = "USD",
    role: Role = "owner",
    actor: Actor = "",
    command_id: CommandId = None,
    output: Output = Format.table,
) -> None:
    """Pay into the wallet now. A method that comes with a payment that succeeds is saved when none is saved."""
    await ask(
        output, actor=actor, kind="pay", account_id=account_id, amount=amount, currency=currency, token=token,
        processor=processor, method_kind=kind, role=role, command_id=command_id,
    )  # fmt: skip


@app.command()
@asynchronous
async def schedule(
    account_id: AccountId,
    amount: Annotated[str | None, typer.Argument(help="such as 50.00, every month")] = None,
    day: Annotated[str | None, typer.Option(help="of the month: 1 to 28, or last")] = None,
    off: Annotated[bool, typer.Option("--off", help="no more")] = False,
    currency: Currency = "USD",
    role: Role = "owner",
    actor: Actor = "",
    command_id: CommandId = None,
    output: Output = Format.table,
) -> None:
    """Pay an amount into the wallet every month at 00:00 UTC of a day, by the saved method."""
    if off == (amount is not None):
        raise InvalidInput("give an amount and a day, or --off", field="amount")
    await ask(
        output, actor=actor, kind="set_schedule", account_id=account_id, amount=amount, currency=currency,
        day=None if day is None else _day(day), role=role, command_id=command_id,
    )  # fmt: skip


@app.command()
@asynchronous
async def refund(
    account_id: AccountId,
    payment_id: PaymentId,
    amount: Annotated[str | None, typer.Option(help="such as 10.00; without it: all that is left of it")] = None,
    note: Annotated[str, typer.Option(help="why")] = "",
    role: Role = "finance",
    actor: Actor = "",
    command_id: CommandId = None,
    output: Output = Format.table,
) -> None:
    """Have a payment given back, or a part of it; the wallet is debited when the processor confirms it."""
    await ask(
        output, actor=actor, kind="refund_payment", account_id=account_id, attempt_id=_id(payment_id), amount=amount,
        note=note, role=role, command_id=command_id,
    )  # fmt: skip


@app.command("cancel-payment")
@asynchronous
async def cancel_payment(
    account_id: AccountId,
    payment_id: PaymentId,
    role: Role = "owner",
    actor: Actor = "",
    command_id: CommandId = None,
    output: Output = Format.table,
) -> None:
    """Ask the processor to give up a payment that has no result yet."""
    await ask(
        output, actor=actor, kind="cancel_payment", account_id=account_id, attempt_id=_id(payment_id), role=role,
        command_id=command_id,
    )  # fmt: skip


@app.command()
@asynchronous
async def payments(
    account_id: Annotated[
        str | None, typer.Argument(metavar="[ACCOUNT]", help="the account's id; without it: payments of all accounts")
    ] = None,
    state: Annotated[
        str | None,
        typer.Option(
            help="in these states only, with commas; unknown,abandoned are those that somebody has to look at"
        ),
    ] = None,
    output: Output = Format.table,
) -> None:
    """Payments, newest first: states, what each moved into the wallet, what its processor said."""
    from services.balance import api

    states = None if state is None else [each.strip() for each in state.split(",") if each.strip()]
    async with room("balance") as engine:
        if account_id is not None:
            await api.balance(engine, account_id)
        found = await api.payments(engine, account_id, states=states, limit=PAYMENTS_MAX)
    if len(found) == PAYMENTS_MAX:
        typer.echo(f"these are the newest {PAYMENTS_MAX}; name an account or states to see others", err=True)
    if output is Format.json:
        show_json(found)
        return
    rows = [
        plain(each.payment)
        | {
            "requested_at": each.payment.requested_at,
            "method": f"{each.payment.processor} {each.method_kind}",
            "moved": each.moved,
            "results": ", ".join(result.result for result in each.results),
        }
        for each in found
    ]
    columns = {} if account_id is not None else {"account_id": "account"}
    columns |= {
        "requested_at": "requested", "kind": "kind", "state": "state", "amount": "amount", "moved": "in the wallet",
        "currency": "currency", "method": "method", "results": "results", "attempt_id": "payment",
    }  # fmt: skip
    show_rows(
        rows,
        columns,
        output,
        empty="no payment yet" if state is None else f"no payment is {state}",
        right=("amount", "moved"),
    )


def _day(text: str) -> int | str:
    """
    >>> _day("31")
    Traceback (most recent call last):
    services.kernel.errors.InvalidInput: day: must be a day of every month, 1 to 28, or last
    """
    if text == "last":
        return text
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 28):
        raise InvalidInput("must be a day of every month, 1 to 28, or last", field="day")
    return int(text)


def _id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise InvalidInput("must be the id of a payment; see `tollbook account payments`", field="payment") from None
