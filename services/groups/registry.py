"""How each command changes the registry: pure, one function a command, checks before changes.

A function takes the registry as it stands and returns what becomes different; a refusal is raised and changes nothing.
What a later command of the same batch asks sees what an earlier one changed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from contracts.groups import (
    ApproveSharing,
    AssignResource,
    BillingEntity,
    BillingInformation,
    ChangePlan,
    ChangePublisher,
    CreateAccount,
    CreateBillingEntity,
    CreateCostCenter,
    CreateGroup,
    CreateOrganization,
    CreatePublisher,
    GrantLevel2,
    GroupsCommand,
    MoveAccounts,
    Publisher,
    ReleaseResource,
    SetCreditLimit,
    UpgradeAccount,
)
from contracts.usage import TOLLBOOK
from services.groups import sharing
from services.groups.objects import Account, CostCenter, Organization, PayerGroup, Resource
from services.groups.timeline import Span, during, from_then_on, value_before
from services.kernel.currency import currency
from services.kernel.errors import InvalidInput, NotFound, Refused
from services.kernel.ids import derived_id
from services.kernel.money import format_nano, parse_amount
from services.kernel.period import instant_text, zone

Change = Organization | BillingEntity | PayerGroup | Account | CostCenter | Resource | Publisher


@dataclass
class Registry:
    """What the commands of one batch need of the registry, by id.

    ``owed`` names, per account, the invoices of which something is open; ``cuts`` are the boundaries that were cut; ``numbers`` are fresh account and resource numbers. Members of a group are
    known where their organization is strict: only there the others matter.
    """

    organizations: dict[str, Organization] = field(default_factory=dict)
    entities: dict[str, BillingEntity] = field(default_factory=dict)
    default_entity_id: str | None = None
    groups: dict[str, PayerGroup] = field(default_factory=dict)
    accounts: dict[str, Account] = field(default_factory=dict)
    cost_centers: dict[str, CostCenter] = field(default_factory=dict)
    resources: dict[str, Resource] = field(default_factory=dict)
    publishers: dict[str, Publisher] = field(default_factory=dict)
    owed: dict[str, tuple[str, ...]] = field(default_factory=dict)
    cuts: tuple[datetime, ...] = ()
    numbers: Iterator[int] = field(default_factory=lambda: iter(()))
    version_floor: int = 0
    changed: dict[tuple[type[Any], str], Change] = field(default_factory=dict)
    _members: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _numbered: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def __post_init__(self) -> None:
        for account in self.accounts.values():
            self._index(account)
        for resource in self.resources.values():
            self._index(resource)

    def _index(self, item: Change) -> None:
        if isinstance(item, Account):
            for span in item.groups:
                self._members[span.value or ""].add(item.account_id)
        elif isinstance(item, Resource) and item.number is not None:
            self._numbered[item.number].add(item.resource_id)

    def put(self, changes: Iterable[Change]) -> None:
        """Make the changes of one command; they are to be stored and told, with versions above ``version_floor``."""
        for item in map(self._above_floor, changes):
            id_of, known = _KNOWN[type(item)]
            identifier = id_of(item)
            known(self)[identifier] = item
            self._index(item)
            self.changed[type(item), identifier] = item
            if isinstance(item, BillingEntity) and self.default_entity_id is None:
                self.default_entity_id = identifier

    def _above_floor(self, item: Change) -> Change:
        version = self.version_floor + 1
        if isinstance(item, Publisher) and item.version < version:
            return item.model_copy(update={"version": version})
        if isinstance(item, PayerGroup | Account | Resource) and item.version < version:
            return replace(item, version=version)
        return item

    def of(self, kind: type[Any]) -> list[Any]:
        """The changed objects of one kind, in the order of their ids."""
        return [self.changed[key] for key in sorted(self.changed, key=lambda key: key[1]) if key[0] is kind]

    # ---- what a command names, or why it cannot name it -------------------------------------------------------------

    def organization(self, organization_id: str, *, field: str = "organization_id") -> Organization:
        found = self.organizations.get(organization_id)
        if found is None:
            raise NotFound(f"there is no organization {organization_id}; create it first", field=field)
        return found

    def account(self, organization: Organization, account_id: str, *, field: str = "account_id") -> Account:
        found = self.accounts.get(account_id)
        if found is None or found.organization_id != organization.organization_id:
            raise NotFound(
                f"there is no account {account_id} in organization {organization.organization_id}", field=field
            )
        return found

    def group(self, organization: Organization, group_id: str, *, field: str = "group_id") -> PayerGroup:
        found = self.groups.get(group_id)
        if found is None or found.organization_id != organization.organization_id:
            raise NotFound(
                f"there is no payer group {group_id} in organization {organization.organization_id}", field=field
            )
        return found

    def entity(self, billing_entity_id: str | None) -> BillingEntity:
        """The company that issues a group's invoices: the one named, else the platform's default."""
        if billing_entity_id is not None:
            found = self.entities.get(billing_entity_id)
            if found is None:
                raise NotFound(f"there is no billing entity {billing_entity_id}", field="billing_entity_id")
            return found
        if self.default_entity_id is None:
            raise Refused(
                "the platform has no billing entity yet, so nobody could issue an invoice; "
                "create one first (create_billing_entity)",
                field="billing_entity_id",
                code="no_billing_entity",
            )
        return self.entities[self.default_entity_id]

    def members(self, group_id: str) -> list[Account]:
        """The accounts that are, were or will be in a group."""
        return [self.accounts[account_id] for account_id in sorted(self._members.get(group_id, ()))]

    def resources_with(self, number: str | None) -> list[Resource]:
        """The resources that have or had this number."""
        return [self.resources[resource_id] for resource_id in sorted(self._numbered.get(number or "", ()))]


_KNOWN: dict[type[Any], tuple[Callable[[Any], str], Callable[[Registry], dict[str, Any]]]] = {
    Organization: (lambda item: item.organization_id, lambda registry: registry.organizations),
    BillingEntity: (lambda item: item.billing_entity_id, lambda registry: registry.entities),
    PayerGroup: (lambda item: item.group_id, lambda registry: registry.groups),
    Account: (lambda item: item.account_id, lambda registry: registry.accounts),
    CostCenter: (lambda item: item.cost_center_id, lambda registry: registry.cost_centers),
    Resource: (lambda item: item.resource_id, lambda registry: registry.resources),
    Publisher: (lambda item: item.publisher_id, lambda registry: registry.publishers),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command changed, in words for its answer: the ids of its objects, and what the asker should know."""

    changes: tuple[Change, ...]
    objects: dict[str, str]
    message: str
    warnings: tuple[str, ...] = ()


def new_id(command: Any, what: str) -> str:
    """The id of an object whose command names none: it follows from the command, so a repeat makes no second object."""
    return str(derived_id(what, command.organization_id, command.command_id))


# ---- organizations, publishers, billing entities -------------------------------------------------------------------


def create_organization(registry: Registry, command: CreateOrganization, now: datetime) -> Outcome:
    identifier = command.organization_id
    _must_be_new(registry.organizations, identifier, "organization", "organization_id")
    made = Organization(identifier, command.name, command.consolidation, None, now)
    return Outcome((made,), {"organization_id": identifier}, f"organization {identifier} created")


def create_publisher(registry: Registry, command: CreatePublisher, now: datetime) -> Outcome:
    sharing.require_operator(command.role, "create a publisher")
    if command.publisher_id == TOLLBOOK:
        raise Refused(
            f"{TOLLBOOK} is the name by which Tollbook publishes the fees of numbers; choose another",
            field="publisher_id",
            code="reserved",
        )
    _must_be_new(registry.publishers, command.publisher_id, "publisher", "publisher_id")
    organization_ids = tuple(dict.fromkeys((command.organization_id, *command.organization_ids)))
    for organization_id in organization_ids:
        registry.organization(organization_id, field="organization_ids")
    if not command.sources:
        raise InvalidInput("name at least one CloudEvents source that the publisher owns", field="sources")
    made = Publisher(
        publisher_id=command.publisher_id,
        version=1,
        organization_ids=organization_ids,
        sources=tuple(dict.fromkeys(command.sources)),
    )
    return Outcome((made,), {"publisher_id": made.publisher_id}, f"publisher {made.publisher_id} created")


def change_publisher(registry: Registry, command: ChangePublisher, now: datetime) -> Outcome:
    sharing.require_operator(command.role, "change a publisher")
    known = registry.publishers.get(command.publisher_id)
    if known is None:
        raise NotFound(f"there is no publisher {command.publisher_id}", field="publisher_id")
    for organization_id in command.organization_ids:
        registry.organization(organization_id, field="organization_ids")
    changed = Publisher(
        publisher_id=known.publisher_id,
        version=known.version + 1,
        organization_ids=_with_and_without(
            known.organization_ids, command.organization_ids, command.without_organization_ids, "organization_ids"
        ),
        sources=_with_and_without(known.sources, command.sources, command.without_sources, "sources"),
        late_s_max=known.late_s_max if command.late_s_max is None else command.late_s_max,
        early_s_max=known.early_s_max if command.early_s_max is None else command.early_s_max,
    )
    if changed.model_copy(update={"version": known.version}) == known:
        raise Refused(f"publisher {known.publisher_id} is like that already", code="nothing_to_change")
    return Outcome((changed,), {"publisher_id": changed.publisher_id}, f"publisher {changed.publisher_id} changed")


def _with_and_without(
    known: tuple[str, ...], more: tuple[str, ...], less: tuple[str, ...], field: str
) -> tuple[str, ...]:
    for each in less:
        if each not in known:
            raise InvalidInput(f"{each} is not among those that it has; leave it out", field=f"without_{field}")
        if each in more:
            raise InvalidInput(f"{each} is to be added too; choose one", field=f"without_{field}")
    kept = tuple(each for each in dict.fromkeys((*known, *more)) if each not in less)
    if not kept:
        raise InvalidInput("would be the last; a publisher keeps at least one", field=f"without_{field}")
    return kept


def create_billing_entity(registry: Registry, command: CreateBillingEntity, now: datetime) -> Outcome:
    sharing.require_operator(command.role, "create a billing entity")
    _must_be_new(registry.entities, command.billing_entity_id, "billing entity", "billing_entity_id")
    made = BillingEntity(
        billing_entity_id=command.billing_entity_id,
        name=command.name,
        address=command.address,
        vat_id=command.vat_id,
        number_prefix=command.number_prefix,
    )
    default = ", the platform's default" if registry.default_entity_id is None else ""
    identifier = made.billing_entity_id
    return Outcome((made,), {"billing_entity_id": identifier}, f"billing entity {identifier} created{default}")


# ---- payer groups --------------------------------------------------------------------------------------------------


def create_group(registry: Registry, command: CreateGroup, now: datetime) -> Outcome:
    organization = registry.organization(command.organization_id)
    group_id = command.group_id or new_id(command, "group")
    _must_be_new(registry.groups, group_id, "payer group", "group_id")
    zone(command.zone)
    currency(command.currency)
    if command.account_id is not None:
        account = registry.account(organization, command.account_id)
        if command.primary:
            raise InvalidInput(
                "a group that is scoped to one account cannot be the primary group; leave account_id or primary out",
                field="primary",
            )
        if account.currency != command.currency:
            raise Refused(
                f"account {account.account_id} has {account.currency}", field="currency", code="currency_differs"
            )
    made = PayerGroup(
        group_id=group_id,
        version=1,
        organization_id=organization.organization_id,
        account_id=command.account_id,
        name=command.name,
        billing_entity=registry.entity(command.billing_entity_id),
        billing_information=command.billing_information,
        zone=command.zone,
        currency=command.currency,
        tax_rate=command.tax_rate,
        pricing_model=command.pricing_model,
        sharing=None,
        created_at=now,
    )
    objects = {"group_id": group_id}
    message = f"payer group {group_id} created"
    if not command.primary:
        return Outcome((made,), objects, message)
    before = organization.primary_group_id
    warnings = () if before is None else (f"{before} is no longer the primary group; its accounts stay in it",)
    primary = replace(organization, primary_group_id=group_id)
    return Outcome((made, primary), objects, f"{message}; new accounts join it", warnings)


def approve_sharing(registry: Registry, command: ApproveSharing, now: datetime) -> Outcome:
    organization = registry.organization(command.organization_id)
    group = registry.group(organization, command.group_id)
    approved = sharing.approval(
        command.role,
        command.actor,
        now,
        group,
        yearly_spend_nano=parse_amount(command.yearly_spend, field="yearly_spend"),
        threshold_nano=parse_amount(command.threshold, field="threshold"),
        credit_check_passed=command.credit_check_passed,
    )
    made = replace(group, version=group.version + 1, sharing=approved)
    return Outcome((made,), {"group_id": group.group_id}, f"invoiced accounts may share group {group.group_id}")


# ---- accounts ------------------------------------------------------------------------------------------------------


def create_account(registry: Registry, command: CreateAccount, now: datetime) -> Outcome:
    organization = registry.organization(command.organization_id)
    account_id = command.account_id or new_id(command, "account")
    _must_be_new(registry.accounts, account_id, "account", "account_id")
    currency(command.currency)
    if command.plan == "invoiced":
        sharing.require_operator(command.role, "let an account be invoiced")
    limit = sharing.credit_limit(command.plan, parse_amount(command.credit_limit, field="credit_limit"))
    target = sharing.destination(command.plan, organization, command.group_id)
    place = sharing.DEFAULT_ZONE
    if isinstance(target, sharing.Joins):
        place = registry.group(organization, target.group_id).zone
    opened_at = sharing.opening(command.opened_at, now, place, registry.cuts)
    account = Account(
        account_id=account_id,
        account_no=next(registry.numbers),
        version=1,
        organization_id=organization.organization_id,
        name=command.name,
        currency=command.currency,
        opened_at=opened_at,
        created_at=now,
        level_2=False,
        credit_limit_nano=limit,
        plans=(Span(opened_at, None, command.plan),),
        groups=(),
    )
    return _settle(registry, command, organization, account, target, opened_at, now, f"account {account_id} created")


def upgrade_account(registry: Registry, command: UpgradeAccount, now: datetime) -> Outcome:
    organization = registry.organization(command.organization_id)
    account = registry.account(organization, command.account_id)
    plan = account.plans[-1].value
    if plan != "trial":
        raise Refused(
            f"account {account.account_id} is {plan}; only a trial is upgraded", field="account_id", code="not_a_trial"
        )
    start = max(now, account.opened_at)
    upgraded = replace(account, version=account.version + 1, plans=from_then_on(account.plans, start, "payg"))
    target = sharing.destination("payg", organization, command.group_id)
    message = f"account {account.account_id} pays as it goes"
    return _settle(registry, command, organization, upgraded, target, start, now, message)


def change_plan(registry: Registry, command: ChangePlan, now: datetime) -> Outcome:
    """Between pay-as-you-go and invoiced, from now on. What was used until now is paid for as before."""
    organization = registry.organization(command.organization_id)
    account = registry.account(organization, command.account_id)
    limit = sharing.changed_plan(
        command.role, account, command.plan, parse_amount(command.credit_limit, field="credit_limit"),
        owed=registry.owed.get(account.account_id, ()),
    )  # fmt: skip
    start = max(now, account.opened_at)
    changed = replace(
        account,
        version=account.version + 1,
        plans=from_then_on(account.plans, start, command.plan),
        credit_limit_nano=limit,
    )
    for span in during(account.groups, start, None):
        group = registry.group(organization, span.value or "")
        members = registry.members(group.group_id)
        sharing.check_joining(organization, group, changed, span.start, members, field="account_id", end=span.end)
    message = f"account {account.account_id} pays as it goes"
    if command.plan == "invoiced":
        message = f"account {account.account_id} is invoiced and may owe {format_nano(limit)} beyond its wallet"
    return Outcome((changed,), {"account_id": account.account_id}, message)


def _settle(
    registry: Registry,
    command: CreateAccount | UpgradeAccount,
    organization: Organization,
    account: Account,
    target: sharing.Destination,
    start: datetime,
    now: datetime,
    message: str,
) -> Outcome:
    """The account in its payer group from ``start`` on: the one it joins, or one of its own that is created here."""
    objects = {"account_id": account.account_id}
    match target:
        case sharing.NoGroup():
            return Outcome((account,), objects, message)
        case sharing.Joins(group_id):
            group = registry.group(organization, group_id)
            sharing.check_joining(organization, group, account, start, registry.members(group_id), field="group_id")
            created: tuple[Change, ...] = ()
        case sharing.OwnGroup():
            group = own_group(registry, command, organization, account, now)
            created = (group,)
    settled = replace(account, groups=from_then_on(account.groups, start, group.group_id))
    return Outcome(
        (*created, settled), objects | {"group_id": group.group_id}, f"{message}; payer group {group.group_id}"
    )


def own_group(
    registry: Registry, command: Any, organization: Organization, account: Account, now: datetime
) -> PayerGroup:
    """The payer group that is created by itself: scoped to the account and, where that id is free, called like it."""
    taken = account.account_id in registry.groups
    return PayerGroup(
        group_id=new_id(command, "group") if taken else account.account_id,
        version=1,
        organization_id=organization.organization_id,
        account_id=account.account_id,
        name=account.name,
        billing_entity=registry.entity(None),
        billing_information=BillingInformation(company=organization.name),
        zone=sharing.DEFAULT_ZONE,
        currency=account.currency,
        tax_rate="0",
        pricing_model=None,
        sharing=None,
        created_at=now,
    )


def set_credit_limit(registry: Registry, command: SetCreditLimit, now: datetime) -> Outcome:
    organization = registry.organization(command.organization_id)
    account = registry.account(organization, command.account_id)
    limit = sharing.changed_limit(command.role, account, parse_amount(command.credit_limit, field="credit_limit"))
    changed = replace(account, version=account.version + 1, credit_limit_nano=limit)
    message = f"account {account.account_id} may owe {format_nano(limit)} beyond its wallet"
    return Outcome((changed,), {"account_id": account.account_id}, message)


def grant_level_2(registry: Registry, command: GrantLevel2, now: datetime) -> Outcome:
    sharing.require_operator(command.role, "grant level 2")
    organization = registry.organization(command.organization_id)
    account = registry.account(organization, command.account_id)
    if account.level_2:
        raise Refused(f"account {account.account_id} already has level 2", field="account_id", code="nothing_to_change")
    granted = replace(account, version=account.version + 1, level_2=True)
    return Outcome((granted,), {"account_id": account.account_id}, f"account {account.account_id} has level 2")


def move_accounts(registry: Registry, command: MoveAccounts, now: datetime) -> Outcome:
    """All of the list move, or none."""
    organization = registry.organization(command.organization_id)
    group = registry.group(organization, command.group_id)
    moved: list[Account] = []
    starts: list[datetime] = []
    warnings: list[str] = []
    for account_id in dict.fromkeys(command.account_ids):
        account = registry.account(organization, account_id, field="account_ids")
        if not account.groups:
            raise Refused(
                f"account {account_id} is a trial and has no payer group; upgrade it instead",
                field="account_ids",
                code="trial_has_no_group",
            )
        start, left = _move_start(registry, command, account, group, now)
        timeline = from_then_on(account.groups, start, group.group_id)
        if timeline == account.groups:
            raise Refused(
                f"account {account_id} is in group {group.group_id} from {command.period or instant_text(start)} on anyway",
                field="account_ids",
                code="nothing_to_change",
            )
        if left.group_id != group.group_id:
            warnings.append(f"account {account_id} leaves group {left.group_id} {_when(command)}")
        warnings += [
            f"account {account_id} was to move to group {span.value} later; that move is given up"
            if span.start > now
            else f"account {account_id} leaves group {span.value} too, in which it was since {instant_text(span.start)}"
            for span in account.groups
            if span.start >= start and span.value != group.group_id and span.value != left.group_id
        ]
        moved.append(replace(account, version=account.version + 1, groups=timeline))
        starts.append(start)
    movers = {account.account_id for account in moved}
    members = [each for each in registry.members(group.group_id) if each.account_id not in movers] + moved
    for account, start in zip(moved, starts, strict=True):
        sharing.check_joining(organization, group, account, start, members, field="account_ids")
    return Outcome(
        tuple(moved),
        {"group_id": group.group_id},
        f"{len(moved)} {'account moves' if len(moved) == 1 else 'accounts move'} to group {group.group_id} {_when(command)}",
        tuple(warnings),
    )


def _move_start(
    registry: Registry, command: MoveAccounts, account: Account, group: PayerGroup, now: datetime
) -> tuple[datetime, PayerGroup]:
    """When an account moves, and which group it leaves then."""
    if command.since is not None and command.period is None:
        passed = [span for span in account.groups if span.overlaps(command.since, now)] or account.groups[:1]
        zones = [group.zone, *(registry.groups[span.value or ""].zone for span in passed)]
        start = sharing.moved_since(command.since, now, account.groups[0].start, zones, registry.cuts)
        return start, registry.groups[passed[0].value or ""]
    if command.period is None or command.since is not None:
        raise InvalidInput(
            "name the coming period with which they move, or by since from when on they have moved: one of the two",
            field="period",
            code="move_without_date",
        )
    asked = sharing.coming_start(command.period, now, group.zone)
    left = registry.groups[value_before(account.groups, asked or now) or account.groups[-1].value or ""]
    return sharing.move_start(command.period, now, left.zone, group.zone), left


def _when(command: MoveAccounts) -> str:
    return f"since {instant_text(command.since)}" if command.since is not None else f"with {command.period}"


# ---- cost centers and resources ------------------------------------------------------------------------------------


def create_cost_center(registry: Registry, command: CreateCostCenter, now: datetime) -> Outcome:
    organization = registry.organization(command.organization_id)
    identifier = command.cost_center_id or new_id(command, "cost_center")
    _must_be_new(registry.cost_centers, identifier, "cost center", "cost_center_id")
    made = CostCenter(identifier, organization.organization_id, command.name, now)
    return Outcome((made,), {"cost_center_id": identifier}, f"cost center {identifier} created")


def assign_resource(registry: Registry, command: AssignResource, now: datetime) -> Outcome:
    organization = registry.organization(command.organization_id)
    account = registry.account(organization, command.account_id)
    _check_cost_center(registry, organization, command.cost_center_id)
    _check_number(registry, command)
    known = registry.resources.get(command.resource_id)
    objects = {"resource_id": command.resource_id}
    message = (
        f"{command.resource_id} of account {account.account_id} is in {command.cost_center_id or 'no cost center'}"
    )
    if known is None:
        start = _owned_since(registry, command, [account], now, _last_owned(registry, command.number))
        made = Resource(
            resource_id=command.resource_id,
            resource_no=next(registry.numbers),
            version=1,
            kind=command.resource,
            number=command.number,
            account_id=account.account_id,
            organization_id=organization.organization_id,
            owners=(Span(start, None, account.account_id),),
            cost_centers=(Span(start, None, command.cost_center_id),),
        )
        return Outcome((made,), objects, message)
    if known.organization_id != organization.organization_id:
        raise Refused(f"{command.resource_id} is taken", field="resource_id", code="already_exists")
    for name, have, asked in (("resource", known.kind, command.resource), ("number", known.number, command.number)):
        if have != asked:
            raise Refused(
                f"{command.resource_id} is registered with {have}, not {asked}", field=name, code="resource_differs"
            )
    if known.account_id != account.account_id:
        return _take_over(registry, command, known, account, now, message)
    if command.since is not None:
        raise Refused(
            f"{command.resource_id} is account {account.account_id}'s since"
            f" {instant_text(known.owners[-1].start)}; leave since out",
            field="since",
            code="nothing_to_change",
        )
    # a copy of the room that waited for the registry's lock has a `now` from before the wait
    start = max(now, known.cost_centers[-1].start)
    timeline = from_then_on(known.cost_centers, start, command.cost_center_id)
    if timeline == known.cost_centers:
        raise Refused(f"{message} already", field="cost_center_id", code="nothing_to_change")
    return Outcome((replace(known, version=known.version + 1, cost_centers=timeline),), objects, message)


def _take_over(
    registry: Registry, command: AssignResource, known: Resource, account: Account, now: datetime, message: str
) -> Outcome:
    """A resource becomes another account's; what was used before stays with the one before."""
    before = max(known.owners[-1].start, _last_owned(registry, known.number, but=known.resource_id))
    left = [] if known.account_id is None else [registry.accounts[known.account_id]]
    start = _owned_since(registry, command, [account, *left], now, before)
    moved = replace(
        known,
        version=known.version + 1,
        account_id=account.account_id,
        owners=from_then_on(known.owners, start, account.account_id),
        cost_centers=from_then_on(known.cost_centers, start, command.cost_center_id),
    )
    warnings = () if known.account_id is None else (f"{known.resource_id} leaves account {known.account_id}",)
    return Outcome((moved,), {"resource_id": known.resource_id}, message, warnings)


def release_resource(registry: Registry, command: ReleaseResource, now: datetime) -> Outcome:
    organization = registry.organization(command.organization_id)
    known = registry.resources.get(command.resource_id)
    if known is None or known.organization_id != organization.organization_id:
        raise NotFound(
            f"there is no resource {command.resource_id} in organization {organization.organization_id}",
            field="resource_id",
        )
    if known.account_id is None:
        raise Refused(f"{known.resource_id} is nobody's already", field="resource_id", code="nothing_to_change")
    start = max(now, known.owners[-1].start)
    released = replace(
        known,
        version=known.version + 1,
        account_id=None,
        owners=from_then_on(known.owners, start, None),
        cost_centers=from_then_on(known.cost_centers, start, None),
    )
    message = f"{known.resource_id} of account {known.account_id} is released"
    return Outcome((released,), {"resource_id": known.resource_id}, message)


def _owned_since(
    registry: Registry, command: AssignResource, accounts: Sequence[Account], now: datetime, before: datetime
) -> datetime:
    """``accounts``: who gets the resource, and whose it is before."""
    since = command.since or now
    zones = {
        registry.groups[span.value or ""].zone
        for each in accounts
        for span in each.groups
        if span.start <= now and span.overlaps(since, None)
    }
    return sharing.owned_since(command.since, now, accounts[0].opened_at, before, zones, registry.cuts)


def _last_owned(registry: Registry, number: str | None, *, but: str | None = None) -> datetime:
    """Until when a number was others'; they have released it."""
    ends = [each.owners[-1].start for each in registry.resources_with(number) if each.resource_id != but]
    return max(ends, default=sharing.OPENED_AT_MIN)


def _check_cost_center(registry: Registry, organization: Organization, cost_center_id: str | None) -> None:
    if cost_center_id is None:
        return
    found = registry.cost_centers.get(cost_center_id)
    if found is None or found.organization_id != organization.organization_id:
        raise NotFound(
            f"there is no cost center {cost_center_id} in organization {organization.organization_id}",
            field="cost_center_id",
        )


def _check_number(registry: Registry, command: AssignResource) -> None:
    if (command.number is None) == (command.resource == "number"):
        raise InvalidInput(
            "a resource of kind number needs its number such as +12485252160; an outbound profile has none",
            field="number",
        )
    for holder in registry.resources_with(command.number):
        if holder.account_id is not None and holder.resource_id != command.resource_id:
            raise Refused(f"{command.number} is registered as another resource", field="number", code="number_taken")


# ---- one command ---------------------------------------------------------------------------------------------------

CARRY_OUT: dict[type[Any], Callable[[Registry, Any, datetime], Outcome]] = {
    CreateOrganization: create_organization,
    CreatePublisher: create_publisher,
    ChangePublisher: change_publisher,
    CreateBillingEntity: create_billing_entity,
    CreateGroup: create_group,
    CreateAccount: create_account,
    UpgradeAccount: upgrade_account,
    ChangePlan: change_plan,
    SetCreditLimit: set_credit_limit,
    GrantLevel2: grant_level_2,
    ApproveSharing: approve_sharing,
    MoveAccounts: move_accounts,
    CreateCostCenter: create_cost_center,
    AssignResource: assign_resource,
    ReleaseResource: release_resource,
}


def carry_out(registry: Registry, command: GroupsCommand, now: datetime) -> Outcome:
    """Carry out one command in the registry, or raise its refusal and leave the registry as it was."""
    outcome = CARRY_OUT[type(command)](registry, command, now)
    registry.put(outcome.changes)
    return outcome


def _must_be_new(known: dict[str, Any], identifier: str, what: str, field: str) -> None:
    if identifier in known:
        raise Refused(f"the {what} id {identifier} is taken; choose another", field=field, code="already_exists")
