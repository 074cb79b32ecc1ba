"""`tollbook org`: organizations, who may publish their usage, and the companies that issue their invoices."""

from __future__ import annotations

from typing import Annotated

import typer

from contracts.topics import USAGE_EVENTS, USAGE_REJECTIONS
from services.cli.asking import Actor, CommandId, Role, ask
from services.cli.asynchronous import asynchronous
from services.cli.output import Format, Output, show_facts, show_rows
from services.cli.reading import room
from services.runtime.broker import ensure_topics
from services.runtime.settings import load

app = typer.Typer(no_args_is_help=True, help="Organizations, publishers, billing entities, cost centers.")

OrganizationId = Annotated[str, typer.Argument(metavar="ORGANIZATION", help="the organization's id")]


@app.command()
@asynchronous
async def create(
    organization_id: OrganizationId,
    name: Annotated[str, typer.Option(help="its name on paper")],
    consolidation: Annotated[
        str, typer.Option(help="strict: pay-as-you-go accounts do not share groups; open: any may")
    ] = "strict",
    role: Role = "operator",
    actor: Actor = "",
    command_id: CommandId = None,
    output: Output = Format.table,
) -> None:
    """Create an organization."""
    await ask(
        output, actor=actor, kind="create_organization", organization_id=organization_id, name=name,
        consolidation=consolidation, role=role, command_id=command_id,
    )  # fmt: skip


@app.command("list")
@asynchronous
async def list_(output: Output = Format.table) -> None:
    """Every organization."""
    from services.groups import api

    async with room("groups") as engine:
        rows = await api.organizations(engine)
    columns = {
        "organization_id": "organization", "name": "name", "consolidation": "consolidation",
        "primary_group_id": "primary group", "accounts": "accounts", "groups": "groups", "created_at": "created",
    }  # fmt: skip
    show_rows(
        rows,
        columns,
        output,
        empty="no organization; create one by `tollbook org create`",
        right=("accounts", "groups"),
    )


@app.command()
@asynchronous
async def show(organization_id: OrganizationId, output: Output = Format.table) -> None:
    """One organization."""
    from services.cli.output import plain
    from services.groups import api

    async with room("groups") as engine:
        show_facts(plain(await api.organization(engine, organization_id)), output)


@app.command()
@asynchronous
async def publisher(
    publisher_id: Annotated[str, typer.Argument(metavar="PUBLISHER", help="the name behind usage.events.")],
    organization: Annotated[list[str], typer.Option(help="an organization it may bill; may be repeated")],
    source: Annotated[list[str], typer.Option(help="a CloudEvents source it owns; may be repeated")],
    role: Role = "operator",
    actor: Actor = "",
    command_id: CommandId = None,
    output: Output = Format.table,
) -> None:
    """Register a telephony system, whom it may bill and its sources, and make its two topics."""
    await ask(
        output, actor=actor, kind="create_publisher", organization_id=organization[0], publisher_id=publisher_id,
        organization_ids=tuple(organization), sources=tuple(source), role=role, command_id=command_id,
    )  # fmt: skip
    await ensure_topics(
        load(), {USAGE_EVENTS.of(publisher_id): USAGE_EVENTS, USAGE_REJECTIONS.of(publisher_id): USAGE_REJECTIONS}
    )


@app.command("change-publisher")
@asynchronous
async def change_publisher(
    publisher_id: Annotated[str, typer.Argument(metavar="PUBLISHER", help="its name, as `org publishers` shows it")],
    organization: Annotated[str, typer.Option(help="the organization in whose log this stands")],
    bill: Annotated[list[str] | None, typer.Option(help="an organization it may bill too; may be repeated")] = None,
    not_bill: Annotated[
        list[str] | None, typer.Option(help="an organization it may no longer bill; may be repeated")
    ] = None,
    source: Annotated[list[str] | None, typer.Option(help="a source it owns too; may be repeated")] = None,
    without_source: Annotated[
        list[str] | None, typer.Option(help="a source it no longer owns; may be repeated")
    ] = None,
    late_s: Annotated[
        int | None, typer.Option(help="how many seconds before it is published an event may have been; at most 35 days")
    ] = None,
    early_s: Annotated[
        int | None, typer.Option(help="how many seconds ahead of the broker's clock an event may be; at most a day")
    ] = None,
    role: Role = "operator",
    actor: Actor = "",
    command_id: CommandId = None,
    output: Output = Format.table,
) -> None:
    """Say whom a telephony system may bill, its sources and how late its events may be, from now on; what is not named
    stays. What was quarantined as not permitted: `quarantine replay --reason not_permitted`."""
    await ask(
        output, actor=actor, kind="change_publisher", organization_id=organization, publisher_id=publisher_id,
        organization_ids=tuple(bill or ()), without_organization_ids=tuple(not_bill or ()),
        sources=tuple(source or ()), without_sources=tuple(without_source or ()),
        late_s_max=late_s, early_s_max=early_s, role=role, command_id=command_id,
    )  # fmt: skip


@app.command()
@asynchronous
async def publishers(output: Output = Format.table) -> None:
    """Every telephony system, whom it may bill and its sources."""
    from services.groups import api

    async with room("groups") as engine:
        rows = await api.publishers(engine)
    columns = {
        "publisher_id": "publisher", "organization_ids": "may bill", "sources": "sources", "late_s_max": "late s",
        "early_s_max": "early s",
    }  # fmt: skip
    show_rows(
        rows, columns, output, empty="no publisher; `tollbook org publisher`", right=("late_s_max", "early_s_max")
    )


@app.command()
@asynchronous
async def entity(
    billing_entity_id: Annotated[str, typer.Argument(metavar="ENTITY", help="the billing entity's id")],
    organization: Annotated[str, typer.Option(help="the organization in whose log this stands")],
    name: Annotated[str, typer.Option(help="the seller's name")],
    address: Annotated[str, typer.Option(help="the seller's address")],
    vat_id: Annotated[str | None, typer.Option(help="the seller's VAT id")] = None,
    number_prefix: Annotated[str, typer.Option(help="what its invoice numbers begin with")] = "",
    role: Role = "operator",
    actor: Actor = "",
    command_id: CommandId = None,
    output: Output = Format.table,
) -> None:
    """Register a company of the seller that issues invoices; the first one is the default."""
    await ask(
        output, actor=actor, kind="create_billing_entity", organization_id=organization,
        billing_entity_id=billing_entity_id, name=name, address=address, vat_id=vat_id, number_prefix=number_prefix,
        role=role, command_id=command_id,
    )  # fmt: skip


@app.command("cost-center")
@asynchronous
async def cost_center(
    cost_center_id: Annotated[str, typer.Argument(metavar="COST_CENTER", help="the cost center's id")],
    organization: Annotated[str, typer.Option(help="whose cost center it is")],
    name: Annotated[str, typer.Option(help="its name on invoices")],
    role: Role = "owner",
    actor: Actor = "",
    command_id: CommandId = None,
    output: Output = Format.table,
) -> None:
    """Create a label that splits invoice lines."""
    await ask(
        output, actor=actor, kind="create_cost_center", organization_id=organization, cost_center_id=cost_center_id,
        name=name, role=role, command_id=command_id,
    )  # fmt: skip


@app.command()
@asynchronous
async def log(
    organization: Annotated[str | None, typer.Option(help="of this organization only")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="how many, newest first")] = 50,
    output: Output = Format.table,
) -> None:
    """Who asked what of the registry, when, and what became of it."""
    from services.groups import api

    async with room("groups") as engine:
        rows = await api.log(engine, organization, limit=limit)
    columns = {
        "at": "at", "organization_id": "organization", "actor": "actor", "role": "role", "kind": "what",
        "accepted": "accepted", "message": "answer",
    }  # fmt: skip
    show_rows(rows, columns, output, empty="nothing was asked yet")
