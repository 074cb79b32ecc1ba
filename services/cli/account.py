"""`tollbook account`: accounts of the registry and their wallets."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, overload

import typer

from contracts.words import INFINITE
from services.cli.asking import Actor, CommandId, Role, ask, me
from services.cli.asynchronous import asynchronous
from services.cli.output import (
    Export,
    ExportAs,
    Format,
    Output,
    console,
    plain,
    show_csv,
    show_facts,
    show_json,
    show_rows,
)
from services.cli.paying import app as paying
from services.cli.reading import room
from services.kernel.errors import InvalidInput, NotFound
from services.kernel.money import parse_amount

if TYPE_CHECKING:  # a command imports a room only when it reads it
    from services.balance.api import AccountStatement

app = typer.Typer(no_args_is_help=True, help="Accounts, their plans and groups, their wallets and recharges.")

app.add_typer(paying)

AccountId = Annotated[str, typer.Argument(metavar="ACCOUNT", help="the account's id")]
Since = Annotated[
    str | None, typer.Option("--from", help="such as 2026-10-01, included; else the start of this month, UTC")
]
Until = Annotated[
    str | None, typer.Option("--to", help="such as 2026-11-01, not included, tomorrow at the latest; else now")
]
Organization = Annotated[str, typer.Option(help="the organization it belongs to")]


@overload
def instant_of(value: str, field: str) -> datetime: ...
@overload
def instant_of(value: str | None, field: str) -> datetime | None: ...


def instant_of(value: str | None, field: str) -> datetime | None:
    """A UTC instant: ``2026-10-01``, the start of that day, or ``2026-10-01T00:00:00Z``.

    >>> instant_of("2026-10-01", "from").isoformat()
    '2026-10-01T00:00:00+00:00'
    """
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise InvalidInput('must be an instant such as "2026-10-01" or "2026-10-01T00:00:00Z"', field=field) from None
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError:
        raise InvalidInput("must lie in the years 0001 to 9999, in UTC too", field=field) from None


def kept_instant(value: str, field: str) -> datetime:
    """`instant_of` for what is kept, and not only looked for."""
    moment = instant_of(value, field)
    if moment in INFINITE:
        raise InvalidInput("is the first or last instant of all, which cannot be kept; write another", field=field)
    return moment


# ---- the registry --------------------------------------------------------------------------------------------------


@app.command()
@asynchronous
async def create(
    account_id: AccountId,
    organization: Organization,
    plan: Annotated[str, typer.Option(help="trial, payg or invoiced")],
    name: Annotated[str | None, typer.Option(help="its name on invoices; else its id")] = None,
    group: Annotated[str | None, typer.Option(help="an existing payer group; else it gets one by itself")] = None,
    opened_at: Annotated[
        str | None, typer.Option(help="at the earliest the start of the oldest period not yet cut")
    ] = None,
    currency: Annotated[str, typer.Option(help="ISO 4217")] = "USD",
    credit_limit: Annotated[str, typer.Option(help="of an invoiced account")] = "0",
    role: Annotated[
        str, typer.Option(help="as whom: owner, billing_admin, or operator for an invoiced account")
    ] = "owner",
    actor: Actor = "",
    command_id: CommandId = None,
    output: Output = Format.table,
) -> None:
    """Create an account."""
    await ask(
        output, actor=actor, kind="create_account", organization_id=organization, account_id=account_id,
        name=name or account_id, plan=plan, group_id=group, opened_at=instant_of(opened_at, "opened_at"),
        currency=currency, credit_limit=credit_limit, role=role, command_id=command_id,
    )  # fmt: skip


@app.command()
@asynchronous
async def upgrade(
    account_id: AccountId,
    organization: Organization,
    group: Annotated[str | None, typer.Option(help="an existing payer group; else it gets one by itself")] = None,
    role: Role = "owner",
    actor: Actor = "",
    command_id: CommandId = None,
    output: Output = Format.table,
) -> None:
    """Make a trial account pay as it goes; it gets a payer group by itself."""
    await ask(
        output, actor=actor, kind="upgrade_account", organization_id=organization, account_id=account_id,
        group_id=group, role=role, command_id=command_id,
    )  # fmt: skip


@app.command("change-plan")
@asynchronous
async def change_plan(
    account_id: AccountId,
    organization: Organization,
    plan: Annotated[str, typer.Option(help="payg or invoiced")],
    credit_limit: Annotated[
        str, typer.Option(help="of an account that becomes invoiced: what it may owe beyond its wallet, such as 500.00")
    ] = "0",
    role: Role = "owner",
    actor: Actor = "",
    command_id: CommandId = None,
    output: Output = Format.table,
) -> None:
    """Change a plan, from now on: to invoiced, which an operator decides and which keeps the wallet, spent first; or to payg,
    refused while the account owes something of an invoice."""
    await ask(
        output, actor=actor, kind="change_plan", organization_id=organization, account_id=account_id, plan=plan,
        credit_limit=credit_limit, role=role, command_id=command_id,
    )  # fmt: skip


@app.command("credit-limit")
@asynchronous
async def credit_limit(
    account_id: AccountId,
    amount: Annotated[str, typer.Argument(help="what it may owe beyond its wallet, such as 500.00")],
    organization: Organization,
    role: Role = "operator",
    actor: Actor = "",
    command_id: CommandId = None,
    output: Output = Format.table,
) -> None:
    """Set the credit limit of an invoiced account, from now on; an operator's decision."""
    await ask(
        output, actor=actor, kind="set_credit_limit", organization_id=organization, account_id=account_id,
        credit_limit=amount, role=role, command_id=command_id,
    )  # fmt: skip


@app.command("level-2")
@asynchronous
async def level_2(
    account_id: AccountId,
    organization: Organization,
    role: Role = "operator",
    actor: Actor = "",
    command_id: CommandId = None,
    output: Output = Format.table,
) -> None:
    """Grant level 2, which lifts the top-up limit; an operator's decision."""
    await ask(
        output, actor=actor, kind="grant_level_2", organization_id=organization, account_id=account_id, role=role,
        command_id=command_id,
    )  # fmt: skip


@app.command()
@asynchronous
async def move(
    account_ids: Annotated[list[str], typer.Argument(metavar="ACCOUNT...", help="one account or several at once")],
    organization: Organization,
    group: Annotated[str, typer.Option(help="the payer group they move to")],
    period: Annotated[str | None, typer.Option(help="the coming period they move with, such as 2026-12")] = None,
    since: Annotated[
        str | None, typer.Option(help="or from when on they have moved, such as 2026-11-15; not in a month that is cut")
    ] = None,
    role: Role = "owner",
    actor: Actor = "",
    command_id: CommandId = None,
    output: Output = Format.table,
) -> None:
    """Move accounts to another payer group of their organization, all or none: at the start of a coming period, or since an
    instant of a month that is not cut. What was charged since then is taken back there and charged in the new group."""
    await ask(
        output, actor=actor, kind="move_accounts", organization_id=organization, account_ids=tuple(account_ids),
        group_id=group, period=period, since=instant_of(since, "since"), role=role, command_id=command_id,
    )  # fmt: skip


@app.command()
@asynchronous
async def assign(
    resource_id: Annotated[str, typer.Argument(metavar="RESOURCE", help="the id of a number or outbound profile")],
    account: Annotated[str, typer.Option(help="whose it is")],
    organization: Organization,
    number: Annotated[str | None, typer.Option(help="E.164, for a number; without it: an outbound profile")] = None,
    cost_center: Annotated[str | None, typer.Option(help="without it: ungrouped")] = None,
    since: Annotated[
        str | None, typer.Option(help="when the account got it, such as 2026-10-01; without it: now")
    ] = None,
    role: Role = "owner",
    actor: Actor = "",
    command_id: CommandId = None,
    output: Output = Format.table,
) -> None:
    """Register a number or outbound profile of an account and its cost center, or move it to another account."""
    await ask(
        output, actor=actor, kind="assign_resource", organization_id=organization, resource_id=resource_id,
        resource="outbound_profile" if number is None else "number", number=number, account_id=account,
        cost_center_id=cost_center, since=instant_of(since, "since"), role=role, command_id=command_id,
    )  # fmt: skip


@app.command()
@asynchronous
async def release(
    resource_id: Annotated[str, typer.Argument(metavar="RESOURCE", help="the id of a number or outbound profile")],
    organization: Organization,
    role: Role = "owner",
    actor: Actor = "",
    command_id: CommandId = None,
    output: Output = Format.table,
) -> None:
    """Take a number or outbound profile from its account, from now on; the number may be registered again."""
    await ask(
        output, actor=actor, kind="release_resource", organization_id=organization, resource_id=resource_id, role=role,
        command_id=command_id,
    )  # fmt: skip


# ---- wallets -------------------------------------------------------------------------------------------------------


# Unknown options are taken for arguments: an amount below zero looks like one.
@app.command("open-balance", context_settings={"ignore_unknown_options": True})
@asynchronous
async def open_balance(
    account_id: AccountId,
    amount: Annotated[str, typer.Argument(help="such as 100.02; may be below zero")],
    currency: Annotated[str, typer.Option(help="ISO 4217")] = "USD",
    role: Role = "operator",
    actor: Actor = "",
    command_id: CommandId = None,
    output: Output = Format.table,
) -> None:
    """Take over the balance an account had before; once per account, an operator's decision."""
    await ask(
        output, actor=actor, kind="open_balance", account_id=account_id, amount=amount, currency=currency, role=role,
        command_id=command_id,
    )  # fmt: skip


@app.command()
@asynchronous
async def goodwill(
    account_id: AccountId,
    amount: Annotated[str, typer.Argument(help="such as 5.00")],
    note: Annotated[str, typer.Option(help="why")] = "",
    currency: Annotated[str, typer.Option(help="ISO 4217")] = "USD",
    role: Role = "finance",
    actor: Actor = "",
    command_id: CommandId = None,
    output: Output = Format.table,
) -> None:
    """Add money to a wallet out of goodwill."""
    await ask(
        output, actor=actor, kind="grant_goodwill", account_id=account_id, amount=amount, note=note,
        currency=currency, role=role, command_id=command_id,
    )  # fmt: skip


@app.command()
@asynchronous
async def transfer(
    account_id: AccountId,
    amount: Annotated[str, typer.Argument(help="what arrived, such as 100.00")],
    reference: Annotated[str, typer.Option(help="the bank's id of the transfer: the same one is recorded once")],
    bank: Annotated[str, typer.Option(help="where it arrived")] = "bank",
    note: Annotated[str, typer.Option(help="for the log")] = "",
    currency: Annotated[str, typer.Option(help="ISO 4217")] = "USD",
    role: Role = "finance",
    actor: Actor = "",
    command_id: CommandId = None,
    output: Output = Format.table,
) -> None:
    """Record a transfer that arrived for a wallet; it counts for no limit. One that pays an invoice: `invoice pay`."""
    await ask(
        output, actor=actor, kind="record_transfer", account_id=account_id, amount=amount, currency=currency, bank=bank,
        reference=reference, note=note, role=role, command_id=command_id,
    )  # fmt: skip


Why = Annotated[str, typer.Option(help="why; it stands in the event and in the log")]


@app.command()
@asynchronous
async def suspend(
    account_id: AccountId,
    note: Why = "",
    role: Role = "operator",
    actor: Actor = "",
    command_id: CommandId = None,
    output: Output = Format.table,
) -> None:
    """Suspend an account whatever its money, until it is resumed; an operator's decision."""
    await ask(
        output, actor=actor, kind="suspend", account_id=account_id, note=note, role=role, command_id=command_id
    )  # fmt: skip


@app.command()
@asynchronous
async def resume(
    account_id: AccountId,
    note: Why = "",
    role: Role = "operator",
    actor: Actor = "",
    command_id: CommandId = None,
    output: Output = Format.table,
) -> None:
    """Lift an operator's suspension; other reasons stand until they are lifted themselves."""
    await ask(
        output, actor=actor, kind="resume", account_id=account_id, note=note, role=role, command_id=command_id
    )  # fmt: skip


@app.command("save-method")
@asynchronous
async def save_method(
    account_id: AccountId,
    token: Annotated[str, typer.Argument(help="a processor's token, never a card number")],
    processor: Annotated[str, typer.Option(help="the processor that gave the token")] = "sandbox",
    kind: Annotated[str, typer.Option(help="card, paypal, bank_debit or transfer")] = "card",
    role: Role = "owner",
    actor: Actor = "",
    command_id: CommandId = None,
    output: Output = Format.table,
) -> None:
    """Save the one payment method of an account; delete the saved one first."""
    await ask(
        output, actor=actor, kind="save_method", account_id=account_id, processor=processor, method_kind=kind,
        token=token, role=role, command_id=command_id,
    )  # fmt: skip


@app.command("delete-method")
@asynchronous
async def delete_method(
    account_id: AccountId,
    role: Role = "owner",
    actor: Actor = "",
    command_id: CommandId = None,
    output: Output = Format.table,
) -> None:
    """Delete the saved payment method."""
    await ask(output, actor=actor, kind="delete_method", account_id=account_id, role=role, command_id=command_id)


@app.command()
@asynchronous
async def preferences(
    account_id: AccountId,
    threshold: Annotated[str, typer.Option(help="recharge when available credit reaches this")] = "0",
    recharge: Annotated[str, typer.Option(help="the recharge amount; in mode target the target")] = "0",
    mode: Annotated[str, typer.Option(help="up_to_sum, target or fixed")] = "up_to_sum",
    off: Annotated[bool, typer.Option("--off", help="no automatic recharge")] = False,
    currency: Annotated[str, typer.Option(help="ISO 4217")] = "USD",
    role: Role = "owner",
    actor: Actor = "",
    command_id: CommandId = None,
    output: Output = Format.table,
) -> None:
    """Say when and by how much an account is recharged by itself."""
    await ask(
        output, actor=actor, kind="set_preferences", account_id=account_id, enabled=not off, mode=mode,
        threshold=threshold, recharge=recharge, currency=currency, role=role, command_id=command_id,
    )  # fmt: skip


NO_LIMIT = "none"
Whose = Annotated[str | None, typer.Option(help="of this outbound profile; else of the account as a whole")]


@app.command()
@asynchronous
async def limits(
    account_id: AccountId,
    profile: Whose = None,
    daily_spend: Annotated[
        str | None, typer.Option(help="what a UTC day may cost at most, such as 100.00; none lifts it")
    ] = None,
    calls_max: Annotated[str | None, typer.Option(help="calls at once at most, such as 10; none lifts it")] = None,
    max_price: Annotated[
        str | None, typer.Option(help="what a minute may cost at most, such as 0.05; none lifts it")
    ] = None,
    currency: Annotated[str, typer.Option(help="ISO 4217, of the daily spend")] = "USD",
    role: Role = "owner",
    actor: Actor = "",
    command_id: CommandId = None,
    output: Output = Format.table,
) -> None:
    """Show what an account and its outbound profiles may spend and call; with an option set that limit, and keep the others."""
    from services.balance import api as balance_api
    from services.usage import api as usage_api

    if daily_spend is None and calls_max is None and max_price is None:
        await _show_limits(account_id, output)
        return
    price = None if max_price in (None, NO_LIMIT) else max_price
    if price is not None:
        parse_amount(price, field="max_price")  # before anything is sent
    if daily_spend is not None or calls_max is not None:
        async with room("balance") as engine:
            rows = await balance_api.limits(engine, account_id)
        before = next((row for row in rows if row.outbound_profile == profile), None)
        kept = (before.daily_spend, before.calls_max) if before is not None else (None, None)
        await ask(
            output, actor=actor, kind="set_limits", account_id=account_id, outbound_profile=profile,
            daily_spend=kept[0] if daily_spend is None else None if daily_spend == NO_LIMIT else daily_spend,
            calls_max=kept[1] if calls_max is None else None if calls_max == NO_LIMIT else _whole(calls_max),
            currency=currency, role=role, command_id=command_id,
        )  # fmt: skip
    if max_price is not None:
        async with room("usage") as engine:
            await usage_api.set_maximum_price(engine, account_id, price, actor or me(), profile=profile)
        if output is Format.table:
            console.print(f"a minute costs {profile or account_id} at most: {max_price}", markup=False)


async def _show_limits(account_id: str, output: Format) -> None:
    from services.balance import api as balance_api
    from services.usage import api as usage_api

    async with room("balance") as engine:
        wallet = await balance_api.balance(engine, account_id)
        limited = {row.outbound_profile: row for row in await balance_api.limits(engine, account_id)}
    async with room("usage") as engine:
        maxima = {row.outbound_profile: row for row in await usage_api.maximum_prices(engine, account_id)}
    rows = []
    for profile in sorted({*limited, *maxima}, key=lambda name: name or ""):
        limit, maximum = limited.get(profile), maxima.get(profile)
        rows.append(
            {
                "outbound_profile": profile,
                "daily_spend": limit and limit.daily_spend,
                "spent_today": limit and limit.spent_today,
                "calls_max": limit and limit.calls_max,
                "calls": limit and limit.calls,
                "maximum_price": maximum and maximum.price,
                "currency": wallet.currency,
            }
        )
    columns = {
        "outbound_profile": "profile", "daily_spend": "a day at most", "spent_today": "spent today",
        "calls_max": "calls at most", "calls": "calls now", "maximum_price": "a minute at most", "currency": "currency",
    }  # fmt: skip
    show_rows(
        rows,
        columns,
        output,
        empty=f"{account_id} has no limits",
        right=("daily_spend", "spent_today", "calls_max", "calls", "maximum_price"),
    )


@app.command()
@asynchronous
async def holds(account_id: AccountId, output: Output = Format.table) -> None:
    """The calls of an account that hold money now: in progress, or settled and waiting for their charge."""
    from services.balance import api as balance_api

    async with room("balance") as engine:
        await balance_api.balance(engine, account_id)  # an account that is not known has no empty list
        page = await balance_api.open_holds(engine, account_id, limit=balance_api.HOLDS_AT_ONCE_MAX)
        rows = page.data
        while page.next is not None:
            page = await balance_api.open_holds(
                engine, account_id, limit=balance_api.HOLDS_AT_ONCE_MAX, after=page.next
            )
            rows += page.data
    columns = {
        "call_leg_id": "call", "state": "state", "held": "held", "shared": "of it shared", "currency": "currency",
        "seconds": "seconds", "max_s": "at most", "number": "renewals", "outbound_profile": "profile", "expires_at": "until",
    }  # fmt: skip
    show_rows(
        rows,
        columns,
        output,
        empty=f"{account_id} has no calls in progress",
        right=("held", "shared", "seconds", "max_s", "number"),
    )


def _whole(text: str) -> int:
    """A number of calls.

    >>> _whole("ten")
    Traceback (most recent call last):
    services.kernel.errors.InvalidInput: calls_max: must be a whole number such as 10, or none
    """
    if not (text.isascii() and text.isdigit()):
        raise InvalidInput(f"must be a whole number such as 10, or {NO_LIMIT}", field="calls_max")
    return int(text)


@app.command()
@asynchronous
async def levels(
    account_id: AccountId,
    amounts: Annotated[
        list[str] | None, typer.Argument(metavar="[AMOUNT...]", help="such as 50 20 5; they replace those before")
    ] = None,
    none: Annotated[bool, typer.Option("--none", help="no low-balance notice any more")] = False,
    currency: Annotated[str, typer.Option(help="ISO 4217")] = "USD",
    role: Role = "owner",
    actor: Actor = "",
    command_id: CommandId = None,
    output: Output = Format.table,
) -> None:
    """Show at which amounts of available credit an account is told that its balance is low; with amounts set them."""
    if amounts or none:
        if amounts and none:
            raise InvalidInput("give amounts or --none, not both", field="none")
        await ask(
            output, actor=actor, kind="set_levels", account_id=account_id, levels=tuple(amounts or ()),
            currency=currency, role=role, command_id=command_id,
        )  # fmt: skip
        return
    from services.balance import api

    async with room("balance") as engine:
        wallet = await api.balance(engine, account_id)
        rows = [
            {"level": level, "currency": wallet.currency, "available": wallet.available}
            for level in await api.levels(engine, account_id)
        ]
    columns = {"level": "level", "available": "available now", "currency": "currency"}
    show_rows(rows, columns, output, empty=f"{account_id} has no levels", right=("level", "available"))


# ---- reading -------------------------------------------------------------------------------------------------------


@app.command("list")
@asynchronous
async def list_(
    organization: Annotated[str | None, typer.Option(help="of this organization only")] = None,
    output: Output = Format.table,
) -> None:
    """Accounts with their plans, groups and wallets."""
    from services.balance import api as balance_api
    from services.groups import api as groups_api

    async with room("groups") as engine:
        accounts = await groups_api.accounts(engine, organization)
    async with room("balance") as engine:
        balances = {
            each.account_id: each for each in await balance_api.balances(engine, [a.account_id for a in accounts])
        }
    rows = []
    for account in accounts:
        wallet = balances.get(account.account_id)
        rows.append(
            plain(account)
            | {
                "status": wallet.status if wallet else None,
                "wallet": wallet.wallet if wallet else None,
                "available": wallet.available if wallet else None,
            }
        )
    columns = {
        "account_id": "account", "organization_id": "organization", "plan": "plan", "group_id": "group",
        "level": "level", "status": "status", "wallet": "wallet", "available": "available", "currency": "currency",
    }  # fmt: skip
    show_rows(
        rows,
        columns,
        output,
        empty="no account; create one by `tollbook account create`",
        right=("wallet", "available"),
    )


@app.command()
@asynchronous
async def show(
    account_id: AccountId,
    at: Annotated[
        str | None, typer.Option("--at", help="what it had at this instant, such as 2026-10-01; else: now")
    ] = None,
    output: Output = Format.table,
) -> None:
    """One account: plan and groups over time, wallet, method, recharges; or what it had and owed at a past instant."""
    from services.balance import api as balance_api
    from services.groups import api as groups_api

    if at is not None:
        async with room("balance") as engine:
            position = await balance_api.position(engine, account_id, instant_of(at, "at"))
        show_facts({"account_id": account_id, "at": instant_of(at, "at"), **plain(position)}, output)
        return
    async with room("groups") as engine:
        history = await groups_api.account(engine, account_id)
    async with room("balance") as engine:
        try:
            wallet = await balance_api.balance(engine, account_id)
        except NotFound:
            wallet = None
    facts = {
        "account": plain(history.account),
        "plans": plain(history.plans),
        "groups": plain(history.groups),
        "balance": plain(wallet),
    }
    if output is Format.json:
        show_json(facts)
        return
    show_facts(facts["account"], output)
    for title, spans in (("plan", history.plans), ("payer group", history.groups)):
        for each in spans:
            until = f" to {plain(each.end)}" if each.end is not None else " on"
            console.print(f"{title} {each.value} from {plain(each.start)}{until}", markup=False)
    if wallet is not None:
        console.print()
        show_facts({name: value for name, value in plain(wallet).items() if name not in facts["account"]}, output)


@app.command()
@asynchronous
async def statement(
    account_id: AccountId,
    since: Since = None,
    until: Until = None,
    output: ExportAs = Export.table,
) -> None:
    """What an account had, each movement with its cause and the balance after it, what it has; below zero is owed."""
    from services.balance import api

    async with room("balance") as engine:
        start = instant_of(since, "from") or await api.start_of_month(engine)
        told = await api.statement(engine, account_id, start, instant_of(until, "to"))
    if output is Export.json:
        show_json(told)
        return
    if output is Export.csv:
        names = ("at", "cause", "kind", "charges", "amount", "balance", *STATEMENT_PARTS, "currency", "ref")
        show_csv([row | {"currency": told.currency} for row in _statement_rows(told)], names)
        return
    show_statement(told)


STATEMENT_PARTS = ("wallet", "unbilled", "receivable")


def show_statement(told: AccountStatement) -> None:
    """A statement as a table; its parts only where something is owed beside the wallet."""
    rows = _statement_rows(told)
    columns = {"at": "at", "cause": "what", "amount": "amount", "balance": "balance"}
    if any(row.get(name) not in ("0", None) for row in rows for name in STATEMENT_PARTS[1:]):
        columns |= {name: name for name in STATEMENT_PARTS}
    console.print(f"{told.account_id}, {told.currency}", markup=False)
    show_rows(rows, columns, Format.table, right=("amount", "balance", *STATEMENT_PARTS))


def _statement_rows(told: AccountStatement) -> list[dict[str, Any]]:
    return [
        {"at": told.start, "cause": "opening balance", **plain(told.opening)},
        *[plain(each) | {"at": each.at} for each in told.movements],
        {"at": told.end, "cause": "closing balance", **plain(told.closing)},
    ]


@app.command()
@asynchronous
async def recharges(account_id: AccountId, output: Output = Format.table) -> None:
    """The automatic recharges of an account, newest first."""
    from services.balance import api

    async with room("balance") as engine:
        await api.balance(engine, account_id)
        rows = await api.attempts(engine, account_id, kind="auto")
    columns = {
        "requested_at": "requested", "state": "state", "amount": "amount", "currency": "currency",
        "processor": "processor", "ended_at": "ended", "attempt_id": "attempt",
    }  # fmt: skip
    show_rows(rows, columns, output, empty="no recharge yet", right=("amount",))
