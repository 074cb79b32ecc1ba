"""What the registry holds, as values. Money in nanos, times aware UTC."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from contracts.groups import BillingEntity, BillingInformation
from services.groups.timeline import Timeline

Consolidation = Literal["strict", "open"]
ResourceKind = Literal["number", "outbound_profile"]


@dataclass(frozen=True, slots=True)
class Organization:
    """The customer company; ``primary_group_id`` is the payer group that new accounts join."""

    organization_id: str
    name: str
    consolidation: Consolidation
    primary_group_id: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class SharingApproval:
    """An operator's approval that several invoiced accounts share a group, with the figures it rests on."""

    approved_at: datetime
    approved_by: str
    yearly_spend_nano: int
    threshold_nano: int


@dataclass(frozen=True, slots=True)
class PayerGroup:
    """Who gets the invoice. ``account_id`` is set when the group is scoped to one account."""

    group_id: str
    version: int
    organization_id: str
    account_id: str | None
    name: str
    billing_entity: BillingEntity
    billing_information: BillingInformation
    zone: str
    currency: str
    tax_rate: str
    pricing_model: str | None
    sharing: SharingApproval | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Account:
    """A unit that uses services, its plans and the payer groups that pay for it, each over time."""

    account_id: str
    account_no: int
    version: int
    organization_id: str
    name: str
    currency: str
    opened_at: datetime
    created_at: datetime
    level_2: bool
    credit_limit_nano: int
    plans: Timeline
    groups: Timeline


@dataclass(frozen=True, slots=True)
class CostCenter:
    """A label on numbers and outbound profiles that splits invoice lines."""

    cost_center_id: str
    organization_id: str
    name: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Resource:
    """A number or outbound profile, whose it is and its cost centers, each over time. ``account_id`` is by the last word;
    None when it was released."""

    resource_id: str
    resource_no: int
    version: int
    kind: ResourceKind
    number: str | None
    account_id: str | None
    organization_id: str
    owners: Timeline
    cost_centers: Timeline
