"""The registry's SQL: one function, one statement, whatever the number of objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from pydantic_core import to_json
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Column,
    Label,
    Select,
    Table,
    Text,
    Uuid,
    bindparam,
    delete,
    func,
    or_,
    select,
    text,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import Range, aggregate_order_by, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from contracts.groups import BillingEntity, BillingInformation, Publisher
from services.groups import tables
from services.groups.objects import Account, CostCenter, Organization, PayerGroup, Resource, SharingApproval
from services.groups.timeline import Span, Timeline
from services.runtime.database import unnest
from services.runtime.work import Work

CUTS_MAX = 1_000  # the newest boundaries: years of months in every zone there is


@dataclass(frozen=True, slots=True)
class Decided:
    """A command that was decided before: the digest of its content, and its answer."""

    digest: bytes
    answer: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the log: who asked what when, and what became of it."""

    organization_id: str
    command_id: str
    digest: bytes
    kind: str
    actor: str
    role: str
    at: datetime
    accepted: bool
    content: dict[str, Any]
    answer: dict[str, Any]


async def lock_registry(work: Work) -> None:
    """Become the one writer of the registry until the end of this transaction."""
    await work.execute(select(tables.registry.c.only_row).with_for_update())


# ---- load ----------------------------------------------------------------------------------------------------------


async def decided_commands(work: Work, keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Decided]:
    """Those of these (organization id, command id) that were decided before."""
    columns = tables.command.c
    asked = unnest("asked", organization_id=Text(), command_id=Text())
    statement = select(columns.organization_id, columns.command_id, columns.digest, columns.answer).where(
        tuple_(columns.organization_id, columns.command_id).in_(select(asked.c.organization_id, asked.c.command_id))
    )
    ordered = sorted(set(keys))
    rows = await work.execute(
        statement,
        {"asked_organization_id": [key[0] for key in ordered], "asked_command_id": [key[1] for key in ordered]},
    )
    return {(row.organization_id, row.command_id): Decided(row.digest, row.answer) for row in rows.all()}


async def organizations(work: Work, ids: Iterable[str]) -> dict[str, Organization]:
    """These organizations, where they exist."""
    statement = select(tables.organization).where(_is_one_of(tables.organization.c.organization_id, "ids"))
    rows = await work.execute(statement, {"ids": sorted(ids)})
    return {row.organization_id: Organization(**_columns(row, tables.organization)) for row in rows.all()}


async def billing_entities(work: Work) -> tuple[dict[str, BillingEntity], str | None]:
    """Every billing entity of the platform, and the id of the default one."""
    rows = (await work.execute(select(tables.billing_entity))).all()
    default = next((row.billing_entity_id for row in rows if row.is_default), None)
    return {row.billing_entity_id: _entity(row) for row in rows}, default


async def publishers(work: Work, ids: Iterable[str]) -> dict[str, Publisher]:
    """These publishers, where they exist."""
    statement = select(tables.publisher).where(_is_one_of(tables.publisher.c.publisher_id, "ids"))
    rows = await work.execute(statement, {"ids": sorted(ids)})
    return {row.publisher_id: publisher_of(row) for row in rows.all()}


async def payer_groups(work: Work, ids: Iterable[str], account_ids: Iterable[str]) -> dict[str, PayerGroup]:
    """These payer groups, and those that pay, paid or will pay for these accounts."""
    paying = (
        select(tables.account_group.c.group_id)
        .join(tables.account, tables.account.c.account_no == tables.account_group.c.account_no)
        .where(_is_one_of(tables.account.c.account_id, "account_ids"))
    )
    entity = tables.billing_entity
    statement = (
        select(
            tables.payer_group,
            entity.c.name.label("entity_name"),
            entity.c.address.label("entity_address"),
            entity.c.vat_id.label("entity_vat_id"),
            entity.c.number_prefix.label("entity_number_prefix"),
        )
        .join(entity, entity.c.billing_entity_id == tables.payer_group.c.billing_entity_id)
        .where(_is_one_of_both(tables.payer_group.c.group_id, "ids", paying))
    )
    rows = await work.execute(statement, {"ids": sorted(ids), "account_ids": sorted(account_ids)})
    return {row.group_id: _payer_group(row) for row in rows.all()}


async def accounts(work: Work, ids: Iterable[str], group_ids: Iterable[str]) -> dict[str, Account]:
    """These accounts, and the members of these groups at any time, with their plans and groups."""
    number = tables.account.c.account_no
    members = (
        select(tables.account.c.account_id)
        .join(tables.account_group, tables.account_group.c.account_no == number)
        .where(_is_one_of(tables.account_group.c.group_id, "group_ids"))
    )
    statement = select(
        tables.account,
        *_spans("plans", tables.account_plan, tables.account_plan.c.plan, tables.account_plan.c.account_no, number),
        *_spans(
            "groups", tables.account_group, tables.account_group.c.group_id, tables.account_group.c.account_no, number
        ),
    ).where(_is_one_of_both(tables.account.c.account_id, "ids", members))
    rows = await work.execute(statement, {"ids": sorted(ids), "group_ids": sorted(group_ids)})
    return {
        row.account_id: Account(
            **_columns(row, tables.account), plans=_timeline(row, "plans"), groups=_timeline(row, "groups")
        )
        for row in rows.all()
    }


async def cost_centers(work: Work, ids: Iterable[str]) -> dict[str, CostCenter]:
    """These cost centers, where they exist."""
    statement = select(tables.cost_center).where(_is_one_of(tables.cost_center.c.cost_center_id, "ids"))
    rows = await work.execute(statement, {"ids": sorted(ids)})
    return {row.cost_center_id: CostCenter(**_columns(row, tables.cost_center)) for row in rows.all()}


async def resources(work: Work, ids: Iterable[str], numbers: Iterable[str]) -> dict[str, Resource]:
    """These resources and those that have or had these numbers, with their owners and cost centers."""
    number = tables.resource.c.resource_no
    owners, centers = tables.resource_owner, tables.resource_cost_center
    statement = select(
        tables.resource,
        *_spans("owners", owners, owners.c.account_id, owners.c.resource_no, number),
        *_spans("cost_centers", centers, centers.c.cost_center_id, centers.c.resource_no, number),
    ).where(or_(_is_one_of(tables.resource.c.resource_id, "ids"), _is_one_of(tables.resource.c.number, "numbers")))
    rows = await work.execute(statement, {"ids": sorted(ids), "numbers": sorted(numbers)})
    return {
        row.resource_id: Resource(
            **_columns(row, tables.resource),
            owners=_timeline(row, "owners"),
            cost_centers=_timeline(row, "cost_centers"),
        )
        for row in rows.all()
    }


async def cut_boundaries(work: Work) -> tuple[datetime, ...]:
    """The newest boundaries that were cut."""
    statement = select(tables.cut.c.boundary).order_by(tables.cut.c.boundary.desc()).limit(CUTS_MAX)
    return tuple((await work.execute(statement)).scalars())


async def owed_invoices(work: Work, account_ids: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The numbers of the invoices of which something is open, per account that has a share of one."""
    columns = tables.owed.c
    asked = bindparam("ids", type_=ARRAY(Text))
    statement = (
        select(columns.number, columns.accounts)
        .where(columns.open_nano > 0, columns.accounts.op("&&")(asked))
        .order_by(columns.number)
    )
    found: dict[str, tuple[str, ...]] = {}
    for row in (await work.execute(statement, {"ids": sorted(account_ids)})).all():
        for account_id in row.accounts:
            found[account_id] = (*found.get(account_id, ()), row.number)
    return found


async def save_closed(work: Work, rows: Sequence[tuple[UUID, str, Sequence[str], Decimal]]) -> None:
    """(invoice, number, accounts, due) of invoices that were closed with something due."""
    values = [
        {"invoice_id": invoice_id, "version": 0, "number": number, "accounts": list(accounts), "open_nano": due}
        for invoice_id, number, accounts, due in rows
    ]
    await work.execute(insert(tables.owed).on_conflict_do_nothing(), values)


async def save_open(work: Work, rows: Iterable[tuple[UUID, int, Decimal, Sequence[str] | None]]) -> None:
    """(invoice, version, what is open, who owes it) of invoices that moved, one row each; a lower version than is known
    changes nothing. None: an older record does not say who; it is whoever was known."""
    columns = tables.owed.c
    statement = (
        update(tables.owed)
        .where(columns.invoice_id == bindparam("id"), columns.version < bindparam("newer"))
        .values(
            version=bindparam("newer"),
            open_nano=bindparam("open"),
            accounts=func.coalesce(bindparam("owed_by", type_=ARRAY(Text)), columns.accounts),
        )
    )
    values = [
        {"id": invoice_id, "newer": version, "open": nano, "owed_by": None if owed_by is None else list(owed_by)}
        for invoice_id, version, nano, owed_by in sorted(rows, key=lambda row: row[0])
    ]
    await work.execute(statement, values)


async def take_numbers(work: Work, count: int) -> Iterator[int]:
    """Fresh numbers for accounts and resources; those that are not used are lost, which is no harm."""
    series = func.generate_series(1, bindparam("count", type_=BigInteger())).table_valued("each")
    statement = select(tables.object_no.next_value()).select_from(series)
    return iter((await work.execute(statement, {"count": count})).scalars().all())


# ---- save ----------------------------------------------------------------------------------------------------------


async def save_organizations(work: Work, changed: Sequence[Organization]) -> None:
    """Insert or replace."""
    await _upsert(work, tables.organization, [asdict(each) for each in changed])


async def save_billing_entities(work: Work, changed: Sequence[BillingEntity], default_id: str | None) -> None:
    """Insert or replace."""
    rows = [each.model_dump() | {"is_default": each.billing_entity_id == default_id} for each in changed]
    await _upsert(work, tables.billing_entity, rows)


async def save_publishers(work: Work, changed: Sequence[Publisher]) -> None:
    """Insert or replace."""
    rows = [
        each.model_dump() | {"organization_ids": list(each.organization_ids), "sources": list(each.sources)}
        for each in changed
    ]
    await _upsert(work, tables.publisher, rows)


async def save_payer_groups(work: Work, changed: Sequence[PayerGroup]) -> None:
    """Insert or replace."""
    await _upsert(work, tables.payer_group, [_group_row(each) for each in changed])


async def save_accounts(work: Work, changed: Sequence[Account]) -> None:
    """Insert or replace, without their timelines."""
    names = [column.name for column in tables.account.c]
    await _upsert(work, tables.account, [{name: getattr(each, name) for name in names} for each in changed])


async def save_cost_centers(work: Work, changed: Sequence[CostCenter]) -> None:
    """Insert or replace."""
    await _upsert(work, tables.cost_center, [asdict(each) for each in changed])


async def save_resources(work: Work, changed: Sequence[Resource]) -> None:
    """Insert or replace, without their timelines."""
    names = [column.name for column in tables.resource.c]
    released_first = sorted(changed, key=lambda each: each.account_id is not None)  # whose number another one takes
    await _upsert(work, tables.resource, [{name: getattr(each, name) for name in names} for each in released_first])


async def forget_spans(work: Work, table: Table, number: Column[int], numbers: Iterable[int]) -> None:
    """Take away the timelines of these objects, to be written anew."""
    statement = delete(table).where(number == func.any(bindparam("numbers", type_=ARRAY(BigInteger()))))
    await work.execute(statement, {"numbers": sorted(numbers)})


async def append_spans(
    work: Work, table: Table, number: str, value: str, timelines: Iterable[tuple[int, Timeline]]
) -> None:
    """Write timelines; the database refuses two spans of one object that overlap."""
    rows = [
        {number: object_no, "during": Range(span.start, span.end, bounds="[)"), value: span.value}
        for object_no, timeline in timelines
        for span in timeline
    ]
    if rows:
        await work.execute(insert(table), rows)


async def append_entries(work: Work, entries: Sequence[Entry]) -> None:
    """Log what was asked and decided."""
    if entries:
        await work.execute(insert(tables.command), [asdict(each) for each in entries])


async def remember_cuts(work: Work, cuts: dict[UUID, datetime]) -> set[UUID]:
    """Store cuts; returns those that were not known."""
    new = unnest("new", cutoff_id=Uuid(), boundary=tables.Instant)
    statement = (
        insert(tables.cut)
        .from_select(["cutoff_id", "boundary"], select(new.c.cutoff_id, new.c.boundary))
        .on_conflict_do_nothing()
        .returning(tables.cut.c.cutoff_id)
    )
    ids = sorted(cuts)
    rows = await work.execute(statement, {"new_cutoff_id": ids, "new_boundary": [cuts[each] for each in ids]})
    return set(rows.scalars())


# ---- rows and values -----------------------------------------------------------------------------------------------


def _is_one_of(column: Any, parameter: str) -> Any:
    return column == func.any(bindparam(parameter, type_=ARRAY(Text())))


def _is_one_of_both(column: Any, parameter: str, others: Select[Any]) -> Any:
    """One of these, or of what is found. In one array, as by an or of the two the whole table would be looked at."""
    asked = select(func.unnest(bindparam(parameter, type_=ARRAY(Text()))))
    return column == func.any(func.array(union_all(asked, others).scalar_subquery()))


def _spans(name: str, table: Table, value: Any, number: Any, of: Any) -> tuple[Label[Any], ...]:
    """Three arrays in order of time: the starts, ends and values of an object's timeline."""
    start = func.lower(table.c.during)
    return tuple(
        select(func.array_agg(aggregate_order_by(item, start)))
        .where(number == of)
        .correlate(of.table)
        .scalar_subquery()
        .label(f"{name}_{part}")
        for part, item in (("starts", start), ("ends", func.upper(table.c.during)), ("values", value))
    )


def _columns(row: Any, table: Table) -> dict[str, Any]:
    return {column.name: row._mapping[column.name] for column in table.c}


def _timeline(row: Any, name: str) -> Timeline:
    values = row._mapping
    starts, ends, held = (values[f"{name}_{part}"] or () for part in ("starts", "ends", "values"))
    return tuple(Span(*each) for each in zip(starts, ends, held, strict=True))


def publisher_of(row: Any) -> Publisher:
    """A publisher from the columns of its row."""
    return Publisher(
        publisher_id=row.publisher_id,
        version=row.version,
        organization_ids=tuple(row.organization_ids),
        sources=tuple(row.sources),
        late_s_max=row.late_s_max,
        early_s_max=row.early_s_max,
    )


def _entity(row: Any) -> BillingEntity:
    return BillingEntity(
        billing_entity_id=row.billing_entity_id,
        name=row.name,
        address=row.address,
        vat_id=row.vat_id,
        number_prefix=row.number_prefix,
    )


def _payer_group(row: Any) -> PayerGroup:
    approved = row.sharing_approved_at is not None
    return PayerGroup(
        group_id=row.group_id,
        version=row.version,
        organization_id=row.organization_id,
        account_id=row.account_id,
        name=row.name,
        billing_entity=BillingEntity(
            billing_entity_id=row.billing_entity_id,
            name=row.entity_name,
            address=row.entity_address,
            vat_id=row.entity_vat_id,
            number_prefix=row.entity_number_prefix,
        ),
        billing_information=BillingInformation.model_validate_json(to_json(row.billing_information)),
        zone=row.zone,
        currency=row.currency,
        tax_rate=row.tax_rate,
        pricing_model=row.pricing_model,
        sharing=SharingApproval(
            row.sharing_approved_at,
            row.sharing_approved_by,
            int(row.sharing_yearly_spend_nano),
            int(row.sharing_threshold_nano),
        )
        if approved
        else None,
        created_at=row.created_at,
    )


def _group_row(group: PayerGroup) -> dict[str, Any]:
    sharing = group.sharing
    return {
        "group_id": group.group_id,
        "version": group.version,
        "organization_id": group.organization_id,
        "account_id": group.account_id,
        "name": group.name,
        "billing_entity_id": group.billing_entity.billing_entity_id,
        "billing_information": group.billing_information.data(),
        "zone": group.zone,
        "currency": group.currency,
        "tax_rate": group.tax_rate,
        "pricing_model": group.pricing_model,
        "sharing_approved_at": sharing.approved_at if sharing else None,
        "sharing_approved_by": sharing.approved_by if sharing else None,
        "sharing_yearly_spend_nano": sharing.yearly_spend_nano if sharing else None,
        "sharing_threshold_nano": sharing.threshold_nano if sharing else None,
        "created_at": group.created_at,
    }


async def _upsert(work: Work, table: Table, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    statement = insert(table)
    key = [column.name for column in table.primary_key]
    statement = statement.on_conflict_do_update(
        index_elements=key,
        set_={column.name: statement.excluded[column.name] for column in table.c if column.name not in key},
    )
    await work.execute(statement, rows)


# ---- after a restore -----------------------------------------------------------------------------------------------


async def raise_numbers(connection: AsyncConnection, highest: int) -> None:
    """Accounts are numbered above this one from now on. The owner's alone: a room may only draw numbers."""
    statement = text("select setval('groups.object_no', greatest(last_value, :highest)) from groups.object_no")
    await connection.execute(statement, {"highest": highest})
