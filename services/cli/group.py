"""`tollbook group`: payer groups, who is in them, and the approval that lets invoiced accounts share one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli.asking import Actor, CommandId, Role, ask
from services.cli.asynchronous import asynchronous
from services.cli.output import Format, Output, in_units, show_facts, show_rows
from services.cli.reading import room

if TYPE_CHECKING:
    from services.groups.api import GroupNow

app = typer.Typer(no_args_is_help=True, help="Payer groups: who gets the invoice.")

GroupId = Annotated[str, typer.Argument(metavar="GROUP", help="the payer group's id")]
Organization = Annotated[str, typer.Option(help="the organization it belongs to")]


@app.command()
@asynchronous
async def create(
    group_id: GroupId,
    organization: Organization,
    company: Annotated[str, typer.Option(help="to whom the invoice is addressed")],
    name: Annotated[str | None, typer.Option(help="else its id")] = None,
    address: Annotated[str, typer.Option(help="of the company")] = "",
    vat_id: Annotated[str | None, typer.Option(help="of the company")] = None,
    email: Annotated[list[str] | None, typer.Option(help="may be repeated")] = None,
    entity: Annotated[str | None, typer.Option(help="the billing entity that issues; else the default one")] = None,
    account: Annotated[str | None, typer.Option(help="scopes the group to this account")] = None,
    zone: Annotated[str, typer.Option(help="IANA time zone of its months")] = "UTC",
    currency: Annotated[str, typer.Option(help="ISO 4217")] = "USD",
    tax_rate: Annotated[str, typer.Option(help="such as 0.20")] = "0",
    pricing_model: Annotated[str | None, typer.Option(help="the price book that comes first for its accounts")] = None,
    primary: Annotated[bool, typer.Option("--primary", help="new accounts of the organization join it")] = False,
    role: Role = "owner",
    actor: Actor = "",
    command_id: CommandId = None,
    output: Output = Format.table,
) -> None:
    """Create a payer group."""
    information = {"company": company, "address": address, "vat_id": vat_id, "emails": tuple(email or ())}
    await ask(
        output, actor=actor, kind="create_group", organization_id=organization, group_id=group_id,
        name=name or group_id, billing_entity_id=entity, billing_information=information, account_id=account,
        zone=zone, currency=currency, tax_rate=tax_rate, pricing_model=pricing_model, primary=primary, role=role,
        command_id=command_id,
    )  # fmt: skip


@app.command("approve-sharing")
@asynchronous
async def approve_sharing(
    group_id: GroupId,
    organization: Organization,
    spend: Annotated[str, typer.Option(help="the organization's combined yearly spend")],
    threshold: Annotated[str, typer.Option(help="the spend from which sharing is approved")],
    credit_check_passed: Annotated[
        bool, typer.Option("--credit-check-passed", help="the credit check was passed")
    ] = False,
    role: Role = "operator",
    actor: Actor = "",
    command_id: CommandId = None,
    output: Output = Format.table,
) -> None:
    """Approve that several invoiced accounts share a group; an operator's decision."""
    await ask(
        output, actor=actor, kind="approve_sharing", organization_id=organization, group_id=group_id,
        yearly_spend=spend, threshold=threshold, credit_check_passed=credit_check_passed, role=role,
        command_id=command_id,
    )  # fmt: skip


@app.command("list")
@asynchronous
async def list_(
    organization: Annotated[str | None, typer.Option(help="of this organization only")] = None,
    output: Output = Format.table,
) -> None:
    """Payer groups and the accounts in them now."""
    from services.groups import api

    async with room("groups") as engine:
        rows = [_as_told(group) for group in await api.groups(engine, organization)]
    columns = {
        "group_id": "group", "organization_id": "organization", "name": "name", "members": "accounts", "zone": "zone",
        "currency": "currency", "tax_rate": "tax rate", "pricing_model": "pricing model",
    }  # fmt: skip
    show_rows(rows, columns, output, empty="no payer group yet")


@app.command()
@asynchronous
async def show(group_id: GroupId, output: Output = Format.table) -> None:
    """One payer group with all that its invoice needs."""
    from services.groups import api

    async with room("groups") as engine:
        show_facts(_as_told(await api.group(engine, group_id)), output)


def _as_told(group: GroupNow) -> dict[str, Any]:
    facts = in_units(group)
    return facts | {"sharing": facts["sharing"] and in_units(facts["sharing"])}
