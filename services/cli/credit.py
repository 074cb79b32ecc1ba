"""`tollbook credit`: promotional credit, granted or by voucher codes; what is left of it, and who promised it."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import typer

from services.cli.account import AccountId, instant_of, kept_instant
from services.cli.asking import Actor, CommandId, Role, ask, me
from services.cli.asynchronous import asynchronous
from services.cli.output import Format, Output, console, show_json, show_rows
from services.cli.reading import room
from services.kernel.errors import InvalidInput

app = typer.Typer(no_args_is_help=True, help="Promotional credit: grants, voucher codes, what is left.")
codes = typer.Typer(no_args_is_help=True, help="Voucher codes: make them, approve them, list them.")
app.add_typer(codes, name="codes")

Currency = Annotated[str, typer.Option(help="ISO 4217")]
Promiser = Annotated[str, typer.Option(help="as whom: finance or operator")]


@app.command()
@asynchronous
async def grant(
    account_id: AccountId,
    amount: Annotated[str, typer.Argument(help="such as 25.00")],
    shared: Annotated[
        bool, typer.Option("--shared", help="for all accounts of its payer group, which must be the organization's")
    ] = False,
    expires_at: Annotated[str | None, typer.Option(help="such as 2027-01-01; without it never")] = None,
    note: Annotated[str, typer.Option(help="why")] = "",
    currency: Currency = "USD",
    role: Role = "finance",
    actor: Actor = "",
    command_id: CommandId = None,
    output: Output = Format.table,
) -> None:
    """Grant credit to an account or its group; above 1,000 it waits for another person's approval."""
    await ask(
        output, actor=actor, kind="grant_credit", account_id=account_id, amount=amount, currency=currency, shared=shared,
        expires_at=instant_of(expires_at, "expires_at"), note=note, role=role, command_id=command_id,
    )  # fmt: skip


@app.command()
@asynchronous
async def approve(
    account_id: AccountId,
    credit_id: Annotated[str, typer.Argument(metavar="CREDIT", help="its id, as `credit list` shows it")],
    role: Role = "finance",
    actor: Actor = "",
    command_id: CommandId = None,
    output: Output = Format.table,
) -> None:
    """Approve a proposed credit, as another person than who proposed it."""
    await ask(
        output, actor=actor, kind="approve_credit", account_id=account_id, credit_id=_uuid(credit_id, "credit_id"),
        role=role, command_id=command_id,
    )  # fmt: skip


@app.command()
@asynchronous
async def redeem(
    account_id: AccountId,
    code: Annotated[str, typer.Argument(help="a voucher code; case, spaces and dashes do not matter")],
    role: Role = "owner",
    actor: Actor = "",
    command_id: CommandId = None,
    output: Output = Format.table,
) -> None:
    """Redeem a voucher code for an account or, if the code says so, for its payer group."""
    await ask(
        output, actor=actor, kind="redeem_code", account_id=account_id, code=code, role=role, command_id=command_id
    )  # fmt: skip


@app.command("list")
@asynchronous
async def list_credits(
    account: Annotated[str | None, typer.Option(help="of this account alone")] = None,
    group: Annotated[str | None, typer.Option(help="that belong to this payer group")] = None,
    output: Output = Format.table,
) -> None:
    """Credits, the newest first: granted = spent + remaining + lapsed."""
    from services.balance import vouchers

    async with room("balance") as engine:
        rows = await vouchers.credits(engine, account_id=account, group_id=group)
    columns = {
        "credit_id": "credit", "state": "state", "account_id": "account", "group_id": "group", "granted": "granted",
        "spent": "spent", "remaining": "remaining", "held": "held by calls", "lapsed": "lapsed", "currency": "currency",
        "expires_at": "expires", "asked_by": "asked by", "approved_by": "approved by", "note": "note",
    }  # fmt: skip
    show_rows(rows, columns, output, empty="no credit", right=("granted", "spent", "remaining", "held", "lapsed"))


@codes.command()
@asynchronous
async def create(
    amount: Annotated[str, typer.Argument(help="of each redemption, such as 10.00")],
    count: Annotated[int, typer.Option(help="how many codes")] = 1,
    redemptions: Annotated[int, typer.Option(help="how often each can be redeemed, once by each")] = 1,
    shared: Annotated[
        bool, typer.Option("--shared", help="the credit is for all accounts of the group of who redeems it")
    ] = False,
    organization: Annotated[str | None, typer.Option(help="only this organization can redeem it")] = None,
    until: Annotated[
        str | None, typer.Option(help="redeemed before then, such as 2027-01-01; without it always")
    ] = None,
    days: Annotated[int | None, typer.Option(help="how long the credit lasts; without it it never ends")] = None,
    note: Annotated[str | None, typer.Option(help="what for")] = None,
    currency: Currency = "USD",
    role: Promiser = "finance",
    actor: Actor = "",
    output: Output = Format.table,
) -> None:
    """Make voucher codes and show them, this once: what is kept cannot be turned back into them."""
    from services.balance import vouchers

    async with room("balance") as engine:
        made = await vouchers.create_vouchers(
            engine, actor=actor or me(), role=role, amount=amount, code_currency=currency, count=count,
            redemptions=redemptions, shared=shared, organization_id=organization,
            redeem_until=None if until is None else kept_instant(until, "until"), credit_days=days, note=note,
        )  # fmt: skip
    columns = {"code": "code", "voucher_id": "voucher", "needs_approval": "needs approval"}
    show_rows(made, columns, output)


@codes.command("approve")
@asynchronous
async def approve_code(
    voucher_id: Annotated[str, typer.Argument(metavar="VOUCHER", help="its id, as `credit codes list` shows it")],
    role: Promiser = "finance",
    actor: Actor = "",
    output: Output = Format.table,
) -> None:
    """Approve a code that promises more than one person may, as another person than who made it."""
    from services.balance import vouchers

    async with room("balance") as engine:
        await vouchers.approve_voucher(engine, _uuid(voucher_id, "voucher_id"), actor=actor or me(), role=role)
    if output is Format.json:
        show_json({"voucher_id": voucher_id, "state": "open"})
    else:
        console.print(f"voucher {voucher_id} can be redeemed", markup=False)


@codes.command("list")
@asynchronous
async def list_codes(output: Output = Format.table) -> None:
    """Voucher codes without the codes themselves, the newest first."""
    from services.balance import vouchers

    async with room("balance") as engine:
        rows = await vouchers.vouchers(engine)
    columns = {
        "voucher_id": "voucher", "state": "state", "amount": "amount", "currency": "currency", "redeemed": "redeemed",
        "redemptions_max": "at most", "shared": "shared", "organization_id": "organization",
        "redeem_until": "redeemed until", "credit_days": "days", "created_by": "made by", "approved_by": "approved by",
        "note": "note",
    }  # fmt: skip
    show_rows(rows, columns, output, empty="no voucher code", right=("amount", "redeemed", "redemptions_max"))


def _uuid(text: str, field: str) -> UUID:
    """An id that was typed.

    >>> _uuid("7", "credit_id")
    Traceback (most recent call last):
    services.kernel.errors.InvalidInput: credit_id: must be an id such as "6f0a3c52-7f0e-8d0b-9a55-2b6c3a1f4e77"
    """
    try:
        return UUID(text)
    except ValueError:
        raise InvalidInput('must be an id such as "6f0a3c52-7f0e-8d0b-9a55-2b6c3a1f4e77"', field=field) from None
