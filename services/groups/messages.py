"""What the registry tells: whole timelines of its objects with their versions, and answers to commands."""

from __future__ import annotations

from typing import cast

from contracts.groups import (
    AccountTimeline,
    BillingGroup,
    CommandAnswer,
    CostCenter,
    CostCenterInterval,
    GroupInterval,
    OwnerInterval,
    Plan,
    PlanInterval,
    Publisher,
    ResourceTimeline,
)
from contracts.topics import (
    GROUPS_ACCOUNTS,
    GROUPS_ASSIGNMENTS,
    GROUPS_BILLING_GROUPS,
    GROUPS_COST_CENTERS,
    GROUPS_EVENTS,
    GROUPS_PUBLISHERS,
    Topic,
)
from contracts.words import Message
from services.groups import objects
from services.groups.objects import Account, PayerGroup, Resource
from services.groups.registry import Registry
from services.kernel.errors import Corrupt
from services.kernel.ids import derived_id
from services.kernel.money import format_nano
from services.runtime.records import Record
from services.runtime.work import Work

STATE_TOPICS = (GROUPS_ACCOUNTS, GROUPS_ASSIGNMENTS, GROUPS_BILLING_GROUPS, GROUPS_COST_CENTERS, GROUPS_PUBLISHERS)


def tell(work: Work, registry: Registry) -> None:
    """Publish everything that changed, each object once, in the order of ids."""
    for publisher in registry.of(Publisher):
        _publish(work, GROUPS_PUBLISHERS, publisher.publisher_id, publisher.version, publisher)
    for group in registry.of(PayerGroup):
        _publish(work, GROUPS_BILLING_GROUPS, group.group_id, group.version, billing_group(group))
    for account in registry.of(Account):
        _publish(work, GROUPS_ACCOUNTS, account.account_id, account.version, account_timeline(registry, account))
    for center in registry.of(objects.CostCenter):
        _publish(work, GROUPS_COST_CENTERS, center.cost_center_id, 1, cost_center(center))
    for resource in registry.of(Resource):
        _publish(work, GROUPS_ASSIGNMENTS, resource.resource_id, resource.version, resource_timeline(resource))


def answer(work: Work, record: Record, said: CommandAnswer) -> None:
    """Publish what became of the command in a record; run again from the quarantine, it is another answer."""
    place = (record.topic, str(record.partition), str(record.offset), work.now.isoformat() if record.replayed else "")
    work.publish(
        GROUPS_EVENTS,
        said.organization_id or said.command_id,
        str(derived_id("groups.answer", *place)),
        said.data(),
    )


def account_timeline(registry: Registry, account: Account) -> AccountTimeline:
    """An account with its plans and groups over time."""
    groups = []
    for span in account.groups:
        group = registry.groups[span.value or ""]
        groups.append(
            GroupInterval(
                start=span.start,
                end=span.end,
                group_id=group.group_id,
                zone=group.zone,
                currency=group.currency,
                pricing_model=group.pricing_model,
                account_id=group.account_id,
            )
        )
    return AccountTimeline(
        account_id=account.account_id,
        account_no=account.account_no,
        version=account.version,
        organization_id=account.organization_id,
        name=account.name,
        currency=account.currency,
        opened_at=account.opened_at,
        created_at=account.created_at,
        level_2=account.level_2,
        credit_limit=format_nano(account.credit_limit_nano),
        closed_at=None,
        plans=tuple(PlanInterval(start=span.start, end=span.end, plan=_plan(span.value)) for span in account.plans),
        groups=tuple(groups),
    )


def resource_timeline(resource: Resource) -> ResourceTimeline:
    """A number or outbound profile with its owners and cost centers over time."""
    return ResourceTimeline(
        resource_id=resource.resource_id,
        version=resource.version,
        kind=resource.kind,
        number=resource.number,
        account_id=resource.account_id,
        organization_id=resource.organization_id,
        owners=tuple(
            OwnerInterval(start=span.start, end=span.end, account_id=span.value)
            for span in resource.owners
            if span.value is not None
        ),
        cost_centers=tuple(
            CostCenterInterval(start=span.start, end=span.end, cost_center_id=span.value)
            for span in resource.cost_centers
        ),
    )


def cost_center(center: objects.CostCenter) -> CostCenter:
    """A cost center; it is never changed, so there is one version of it."""
    return CostCenter(
        cost_center_id=center.cost_center_id, version=1, organization_id=center.organization_id, name=center.name
    )


def billing_group(group: PayerGroup) -> BillingGroup:
    """A payer group as its invoice needs it."""
    return BillingGroup(
        group_id=group.group_id,
        version=group.version,
        organization_id=group.organization_id,
        account_id=group.account_id,
        name=group.name,
        billing_entity=group.billing_entity,
        billing_information=group.billing_information,
        zone=group.zone,
        currency=group.currency,
        tax_rate=group.tax_rate,
        pricing_model=group.pricing_model,
        deleted_at=None,
    )


def _plan(value: str | None) -> Plan:
    if value not in ("trial", "payg", "invoiced"):
        raise Corrupt(f"{value} is no plan")
    return cast(Plan, value)


def _publish(work: Work, topic: Topic, identifier: str, version: int, message: Message) -> None:
    data = message.model_dump(mode="json", by_alias=True)
    work.publish(topic, identifier, str(derived_id(topic.name, identifier, str(version))), data)
