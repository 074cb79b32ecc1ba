"""Commands to the registry, its answers, and the timelines it publishes.

A timeline message is always the whole timeline of one object with a version; a lower version is dropped.
Intervals are half-open [from, to); ``to`` null means open-ended.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, TypeAdapter

from contracts.words import E164, Amount, CurrencyCode, Id, Instant, Message, Month, Name, Text

Plan = Literal["trial", "payg", "invoiced"]
Zone = Annotated[
    str, StringConstraints(min_length=1, max_length=64), Field(description="IANA time zone", examples=["UTC"])
]
TaxRate = Annotated[str, StringConstraints(pattern=r"^(0(\.[0-9]{1,6})?|1(\.0{1,6})?)$"), Field(examples=["0.20"])]
NumberPrefix = Annotated[str, StringConstraints(pattern=r"^[A-Z0-9-]{0,16}$")]
Email = Annotated[str, StringConstraints(pattern=r"^[^@\s]+@[^@\s]+$", max_length=254)]


def _vat_id(text: str) -> str:
    """The compact form of a VAT id of the EU, whose check digits are right; what other countries give out, as it is.

    >>> _vat_id("de 136 695 976"), _vat_id("CHE-123.456.788 MWST")
    ('DE136695976', 'CHE-123.456.788 MWST')
    """
    from stdnum.eu import vat
    from stdnum.exceptions import ValidationError

    if not any(map(str.isdigit, text)):
        raise ValueError('must be a VAT id such as "DE136695976"; leave it out where there is none')
    if text.strip()[:2].lower() not in vat.MEMBER_STATES | {"el"}:  # Greece writes EL
        return text
    try:
        return vat.validate(text)
    except ValidationError:
        raise ValueError(
            'is no VAT id of its country: a digit is wrong, missing or too many; write it whole, such as "DE136695976"'
        ) from None


VatId = Annotated[
    Text,
    AfterValidator(_vat_id),
    Field(description="Of the EU only with the right check digits", examples=["DE136695976"]),
]


# ---- timelines -----------------------------------------------------------------------------------------------------


class PlanInterval(Message):
    model_config = ConfigDict(populate_by_name=True)
    start: Instant = Field(alias="from")
    end: Instant | None = Field(alias="to")
    plan: Plan


class GroupInterval(Message):
    model_config = ConfigDict(populate_by_name=True)
    start: Instant = Field(alias="from")
    end: Instant | None = Field(alias="to")
    group_id: Id
    zone: Zone
    currency: CurrencyCode
    pricing_model: Id | None
    account_id: Annotated[Id | None, Field(description="Set when the group is scoped to this account")] = None


class AccountTimeline(Message):
    """`groups.accounts`: who an account is, on which plan, and which payer group pays for it, at each instant."""

    account_id: Id
    account_no: int
    version: Annotated[int, Field(ge=1)]
    organization_id: Id
    name: Name
    currency: CurrencyCode
    opened_at: Instant
    created_at: Instant
    level_2: bool
    credit_limit: Amount
    closed_at: Instant | None
    plans: tuple[PlanInterval, ...]
    groups: tuple[GroupInterval, ...]


class CostCenterInterval(Message):
    model_config = ConfigDict(populate_by_name=True)
    start: Instant = Field(alias="from")
    end: Instant | None = Field(alias="to")
    cost_center_id: Id | None


class OwnerInterval(Message):
    model_config = ConfigDict(populate_by_name=True)
    start: Instant = Field(alias="from")
    end: Instant | None = Field(alias="to")
    account_id: Id


class ResourceTimeline(Message):
    """`groups.assignments`: a number or outbound profile, whose it is and its cost centers, at each instant."""

    resource_id: Id
    version: Annotated[int, Field(ge=1)]
    kind: Literal["number", "outbound_profile"]
    number: E164 | None
    account_id: Annotated[Id | None, Field(description="Whose it is by the last word; null when it was released")]
    organization_id: Id
    owners: Annotated[
        tuple[OwnerInterval, ...],
        Field(description="Empty in what was told by older versions: then the account's since the first cost center"),
    ] = ()
    cost_centers: tuple[CostCenterInterval, ...]

    def owned(self) -> tuple[OwnerInterval, ...]:
        """Whose it is over time, by whatever version it was told."""
        if self.owners or self.account_id is None or not self.cost_centers:
            return self.owners
        return (OwnerInterval(start=self.cost_centers[0].start, end=None, account_id=self.account_id),)


class CostCenter(Message):
    """`groups.cost_centers`: a label of an organization that splits its invoice lines, whether a resource has it or not."""

    cost_center_id: Id
    version: Annotated[int, Field(ge=1)]
    organization_id: Id
    name: Name


EventSource = Annotated[str, StringConstraints(min_length=1, max_length=256)]
LateSeconds = Annotated[int, Field(ge=0, le=35 * 86_400)]
EarlySeconds = Annotated[int, Field(ge=0, le=86_400)]


class Publisher(Message):
    """`groups.publishers`: the organizations a publisher may bill, the sources it owns, its time tolerance."""

    publisher_id: Id
    version: Annotated[int, Field(ge=1)]
    organization_ids: tuple[Id, ...]
    sources: tuple[EventSource, ...]
    late_s_max: LateSeconds = 35 * 86_400
    early_s_max: EarlySeconds = 600


class BillingEntity(Message):
    """The seller's legal company that issues the invoice."""

    billing_entity_id: Id
    name: Name
    address: Text
    vat_id: Text | None
    number_prefix: NumberPrefix


class BillingInformation(Message):
    company: Name
    address: Text = ""
    vat_id: Text | None = None
    emails: tuple[Email, ...] = ()
    extra: Text = ""


class BillingGroup(Message):
    """`groups.billing_groups`: a payer group with all that its invoice needs."""

    group_id: Id
    version: Annotated[int, Field(ge=1)]
    organization_id: Id
    account_id: Annotated[Id | None, Field(description="Set when the group is scoped to one account")]
    name: Name
    billing_entity: BillingEntity
    billing_information: BillingInformation
    zone: Zone
    currency: CurrencyCode
    tax_rate: TaxRate
    pricing_model: Id | None
    deleted_at: Instant | None


# ---- commands ------------------------------------------------------------------------------------------------------


def _is_none(value: object) -> bool:
    return value is None


class GivenBillingInformation(BillingInformation):
    """Only what is given is checked: a group from before VAT ids were checked stays readable."""

    vat_id: VatId | None = None


class _Command(Message):
    command_id: Annotated[Id, Field(description="The same id is carried out once")]
    actor: Annotated[Name, Field(description="Who asks, for the log")]
    role: Literal["owner", "billing_admin", "operator", "finance"] = "owner"
    organization_id: Id


class CreateOrganization(_Command):
    kind: Literal["create_organization"] = "create_organization"
    name: Name
    consolidation: Literal["strict", "open"] = "strict"


class CreatePublisher(_Command):
    """Platform wide; ``organization_id`` is the first organization it may bill."""

    kind: Literal["create_publisher"] = "create_publisher"
    publisher_id: Id
    organization_ids: tuple[Id, ...]
    sources: tuple[EventSource, ...]


class ChangePublisher(_Command):
    """From now on it may bill more or fewer organizations, owns more or fewer sources, or is judged by another tolerance; what is
    not named stays. ``organization_id`` is that in whose log it stands."""

    kind: Literal["change_publisher"] = "change_publisher"
    publisher_id: Id
    organization_ids: Annotated[tuple[Id, ...], Field(description="That it may bill as well")] = ()
    sources: Annotated[tuple[EventSource, ...], Field(description="That it owns as well")] = ()
    without_organization_ids: Annotated[tuple[Id, ...], Field(description="That it may no longer bill")] = ()
    without_sources: Annotated[tuple[EventSource, ...], Field(description="That it no longer owns")] = ()
    late_s_max: Annotated[
        LateSeconds | None, Field(description="How long before it is published an event may have been")
    ] = None
    early_s_max: Annotated[
        EarlySeconds | None, Field(description="How far ahead of the broker's clock an event may be")
    ] = None


class CreateBillingEntity(_Command):
    kind: Literal["create_billing_entity"] = "create_billing_entity"
    billing_entity_id: Id
    name: Name
    address: Text
    vat_id: VatId | None = None
    number_prefix: NumberPrefix = ""


class CreateGroup(_Command):
    kind: Literal["create_group"] = "create_group"
    group_id: Id | None = None
    name: Name
    billing_entity_id: Id | None = None
    billing_information: GivenBillingInformation
    account_id: Id | None = None
    zone: Zone = "UTC"
    currency: CurrencyCode = "USD"
    tax_rate: TaxRate = "0"
    pricing_model: Id | None = None
    primary: bool = False


class CreateAccount(_Command):
    """``group_id`` names an existing group; without it an account that needs one gets one by itself."""

    kind: Literal["create_account"] = "create_account"
    account_id: Id | None = None
    name: Name
    plan: Plan
    currency: CurrencyCode = "USD"
    opened_at: Instant | None = None
    group_id: Id | None = None
    credit_limit: Amount = "0"


class UpgradeAccount(_Command):
    """trial to pay-as-you-go: creates a payer group by itself."""

    kind: Literal["upgrade_account"] = "upgrade_account"
    account_id: Id
    group_id: Id | None = None


class ChangePlan(_Command):
    """Pay-as-you-go to invoiced, by an operator, with a credit limit; or back, refused while the account owes something of an
    invoice. From now on."""

    kind: Literal["change_plan"] = "change_plan"
    account_id: Id
    plan: Literal["payg", "invoiced"]
    credit_limit: Annotated[
        Amount, Field(description="Of an invoiced account: what it may owe beyond its wallet, above zero")
    ] = "0"


class SetCreditLimit(_Command):
    """Another credit limit of an invoiced account, by an operator, from now on."""

    kind: Literal["set_credit_limit"] = "set_credit_limit"
    account_id: Id
    credit_limit: Annotated[Amount, Field(description="What it may owe beyond its wallet, above zero")]


class GrantLevel2(_Command):
    kind: Literal["grant_level_2"] = "grant_level_2"
    account_id: Id


class ApproveSharing(_Command):
    """An operator's approval that several invoiced accounts share a group."""

    kind: Literal["approve_sharing"] = "approve_sharing"
    group_id: Id
    yearly_spend: Amount
    threshold: Amount
    credit_check_passed: bool


class MoveAccounts(_Command):
    """Accounts move with the start of a coming ``period``, or ``since`` an instant that has come: one of the two is named."""

    kind: Literal["move_accounts"] = "move_accounts"
    account_ids: Annotated[tuple[Id, ...], Field(min_length=1, max_length=1000)]
    group_id: Id
    period: Annotated[Month | None, Field(description="A coming period of both groups")] = None
    since: Annotated[
        Instant | None,
        Field(
            description="Not before the oldest period of both groups that is not cut. What was charged since then is taken"
            " back in the group that the account leaves, and charged in the one that it joins",
            exclude_if=_is_none,  # commands from before there was this field keep their digest: a repeat is one
        ),
    ] = None


class CreateCostCenter(_Command):
    kind: Literal["create_cost_center"] = "create_cost_center"
    cost_center_id: Id | None = None
    name: Name


class AssignResource(_Command):
    """Registers a number or outbound profile of an account and its cost center, or moves it to another account of the
    organization. Cost centers change from now on."""

    kind: Literal["assign_resource"] = "assign_resource"
    resource_id: Id
    resource: Literal["number", "outbound_profile"]
    number: E164 | None = None
    account_id: Id
    cost_center_id: Id | None = None
    since: Annotated[
        Instant | None,
        Field(description="When the account got it, if not now; not before the oldest period that is not cut"),
    ] = None


class ReleaseResource(_Command):
    """From now on it is nobody's, and its number may be registered again, for whomever."""

    kind: Literal["release_resource"] = "release_resource"
    resource_id: Id


GroupsCommand = Annotated[
    CreateOrganization
    | CreatePublisher
    | ChangePublisher
    | CreateBillingEntity
    | CreateGroup
    | CreateAccount
    | UpgradeAccount
    | ChangePlan
    | SetCreditLimit
    | GrantLevel2
    | ApproveSharing
    | MoveAccounts
    | CreateCostCenter
    | AssignResource
    | ReleaseResource,
    Field(discriminator="kind"),
]
groups_command: TypeAdapter[GroupsCommand] = TypeAdapter(GroupsCommand)


class CommandAnswer(Message):
    """`groups.events`: what became of a command, or what changed; refusals carry the reason and the field."""

    command_id: Text
    kind: Text
    organization_id: Text | None
    accepted: bool
    reason: Id | None
    field: Text | None
    message: Text
    objects: dict[str, str]
    warnings: tuple[Text, ...]
    at: Instant
