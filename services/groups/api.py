"""What people and programs read of the registry, with the room's own role. Changes go through `groups.commands`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic_core import to_json
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts.groups import BillingInformation, CommandAnswer, Publisher
from services.groups import listing
from services.groups.adopting import adopt_numbers as adopt_numbers
from services.groups.adopting import tell_again as tell_again
from services.groups.messages import STATE_TOPICS as STATE_TOPICS
from services.groups.objects import SharingApproval
from services.groups.store import publisher_of
from services.groups.timeline import Span, Timeline
from services.kernel.errors import NotFound
from services.kernel.money import format_nano
from services.runtime import links
from services.runtime.database import transaction
from services.runtime.links import LinkMark
from services.runtime.tables import runtime_tables

LOG_LINES = 100  # what fits a screen or two; ask for more by name


@dataclass(frozen=True, slots=True)
class OrganizationNow:
    """An organization, and how many accounts and payer groups it has."""

    organization_id: str
    name: str
    consolidation: str
    primary_group_id: str | None
    created_at: datetime
    accounts: int
    groups: int


@dataclass(frozen=True, slots=True)
class AccountNow:
    """An account with the plan and payer group of this instant. ``credit_limit`` is a decimal string."""

    account_id: str
    account_no: int
    version: int
    organization_id: str
    name: str
    currency: str
    opened_at: datetime
    created_at: datetime
    level: int
    credit_limit: str
    plan: str | None
    group_id: str | None


@dataclass(frozen=True, slots=True)
class AccountHistory:
    """An account now, and its plans and payer groups over all time, coming moves among them."""

    account: AccountNow
    plans: Timeline
    groups: Timeline


@dataclass(frozen=True, slots=True)
class GroupNow:
    """A payer group and the accounts that are in it at this instant."""

    group_id: str
    version: int
    organization_id: str
    account_id: str | None
    name: str
    billing_entity_id: str
    billing_information: BillingInformation
    zone: str
    currency: str
    tax_rate: str
    pricing_model: str | None
    sharing: SharingApproval | None
    created_at: datetime
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LogLine:
    """Who asked what when, and what became of it."""

    at: datetime
    organization_id: str
    command_id: str
    kind: str
    actor: str
    role: str
    accepted: bool
    message: str
    content: dict[str, Any]


async def organizations(engine: AsyncEngine) -> list[OrganizationNow]:
    """Every organization."""
    async with transaction(engine) as connection:
        return [OrganizationNow(*row) for row in await listing.organizations(connection)]


async def organization(engine: AsyncEngine, organization_id: str) -> OrganizationNow:
    """One organization; `NotFound` when there is none."""
    async with transaction(engine) as connection:
        return OrganizationNow(
            *_one(await listing.organizations(connection, organization_id), "organization", organization_id)
        )


async def publishers(engine: AsyncEngine) -> list[Publisher]:
    """Every publisher."""
    async with transaction(engine) as connection:
        return [publisher_of(row) for row in await listing.publishers(connection)]


async def accounts(engine: AsyncEngine, organization_id: str | None = None) -> list[AccountNow]:
    """The accounts of an organization, or all."""
    async with transaction(engine) as connection:
        return [_account(row) for row in await listing.accounts(connection, organization_id=organization_id)]


async def account(engine: AsyncEngine, account_id: str) -> AccountHistory:
    """One account with its timelines; `NotFound` when there is none."""
    async with transaction(engine) as connection:
        found = _account(_one(await listing.accounts(connection, account_id=account_id), "account", account_id))
        plans = await listing.timeline(connection, found.account_no, of="plans")
        groups = await listing.timeline(connection, found.account_no, of="groups")
        return AccountHistory(found, tuple(Span(*row) for row in plans), tuple(Span(*row) for row in groups))


async def groups(engine: AsyncEngine, organization_id: str | None = None) -> list[GroupNow]:
    """The payer groups of an organization, or all."""
    async with transaction(engine) as connection:
        return [_group(row) for row in await listing.groups(connection, organization_id=organization_id)]


async def group(engine: AsyncEngine, group_id: str) -> GroupNow:
    """One payer group; `NotFound` when there is none."""
    async with transaction(engine) as connection:
        return _group(_one(await listing.groups(connection, group_id=group_id), "payer group", group_id))


async def log(engine: AsyncEngine, organization_id: str | None = None, *, limit: int = LOG_LINES) -> list[LogLine]:
    """What was asked of the registry, newest first."""
    async with transaction(engine) as connection:
        return [
            LogLine(
                row.at,
                row.organization_id,
                row.command_id,
                row.kind,
                row.actor,
                row.role,
                row.accepted,
                row.answer["message"],
                row.content,
            )
            for row in await listing.log(connection, organization_id=organization_id, limit=limit)
        ]


async def answer(engine: AsyncEngine, organization_id: str, command_id: str) -> CommandAnswer | None:
    """What became of a command; None while it was not decided (or is in quarantine)."""
    async with transaction(engine) as connection:
        said = await listing.answer(connection, organization_id, command_id)
    return None if said is None else CommandAnswer.model_validate_json(to_json(said))


async def marks(engine: AsyncEngine) -> list[LinkMark]:
    """The last seq of every link of the registry's timelines: who has received all of them knows the registry as it was
    at this instant. Compare with the reader's own links (`services.runtime.links.has_reached`)."""
    async with transaction(engine) as connection:
        return await links.marks(connection, runtime_tables("groups"), [topic.name for topic in STATE_TOPICS])


def _one(rows: Any, what: str, identifier: str) -> Any:
    if not rows:
        raise NotFound(f"there is no {what} {identifier}", field=what)
    return rows[0]


def _account(row: Any) -> AccountNow:
    return AccountNow(
        account_id=row.account_id,
        account_no=row.account_no,
        version=row.version,
        organization_id=row.organization_id,
        name=row.name,
        currency=row.currency,
        opened_at=row.opened_at,
        created_at=row.created_at,
        level=2 if row.level_2 else 1,
        credit_limit=format_nano(row.credit_limit_nano),
        plan=row.plan,
        group_id=row.group_id,
    )


def _group(row: Any) -> GroupNow:
    approved = row.sharing_approved_at is not None
    return GroupNow(
        group_id=row.group_id,
        version=row.version,
        organization_id=row.organization_id,
        account_id=row.account_id,
        name=row.name,
        billing_entity_id=row.billing_entity_id,
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
        members=tuple(row.members or ()),
    )
