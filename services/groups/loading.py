"""What a batch of commands needs of the registry, and back: the statements of the store in their order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from contracts.groups import (
    AssignResource,
    BillingEntity,
    ChangePlan,
    CreateAccount,
    CreateCostCenter,
    CreateGroup,
    GroupsCommand,
    MoveAccounts,
    Publisher,
)
from services.groups import store, tables
from services.groups.objects import Account, CostCenter, Organization, PayerGroup, Resource
from services.groups.registry import Registry, new_id
from services.runtime.work import Work


class _Named:
    """The ids that commands name, and those that they may create."""

    def __init__(self, commands: Iterable[GroupsCommand]) -> None:
        self.organizations: set[str] = set()
        self.publishers: set[str] = set()
        self.groups: set[str] = set()
        self.accounts: set[str] = set()
        self.cost_centers: set[str] = set()
        self.resources: set[str] = set()
        self.numbers: set[str] = set()
        self.created = 0
        self.dated_back = False
        self.plans = 0
        for command in commands:
            self._read(command)
        # a group that is created by itself is called like its account
        self.groups |= self.accounts

    def _read(self, command: GroupsCommand) -> None:
        for ids, names in (
            (self.organizations, ("organization_id",)),
            (self.publishers, ("publisher_id",)),
            (self.groups, ("group_id",)),
            (self.accounts, ("account_id",)),
            (self.cost_centers, ("cost_center_id",)),
            (self.resources, ("resource_id",)),
            (self.numbers, ("number",)),
        ):
            ids.update(value for name in names if (value := getattr(command, name, None)) is not None)
        self.organizations.update(getattr(command, "organization_ids", ()))
        self.accounts.update(getattr(command, "account_ids", ()))
        if isinstance(command, CreateAccount | AssignResource):
            self.created += 1
        if isinstance(command, CreateAccount | AssignResource | MoveAccounts):
            self.dated_back = True
        self.plans += isinstance(command, ChangePlan)
        for kind, ids, what in (
            (CreateAccount, self.accounts, "account"),
            (CreateGroup, self.groups, "group"),
            (CreateCostCenter, self.cost_centers, "cost_center"),
        ):
            if isinstance(command, kind):
                ids.add(new_id(command, what))


async def load(work: Work, commands: Sequence[GroupsCommand]) -> Registry:
    """The registry as far as these commands can see it; a statement that nobody needs is left out."""
    if not commands:
        return Registry()
    named = _Named(commands)
    resources = await store.resources(work, named.resources, named.numbers) if named.resources else {}
    named.accounts |= {each.account_id for each in resources.values() if each.account_id is not None}
    organizations = await store.organizations(work, named.organizations)
    entities, default_entity_id = await store.billing_entities(work)
    primary = {each.primary_group_id for each in organizations.values() if each.primary_group_id is not None}
    groups = await store.payer_groups(work, named.groups | primary, named.accounts)
    strict = {each for each, known in organizations.items() if known.consolidation == "strict"}
    watched = {group.group_id for group in groups.values() if group.organization_id in strict}
    return Registry(
        organizations=organizations,
        entities=entities,
        default_entity_id=default_entity_id,
        groups=groups,
        accounts=await store.accounts(work, named.accounts, watched) if named.accounts else {},
        cost_centers=await store.cost_centers(work, named.cost_centers) if named.cost_centers else {},
        resources=resources,
        publishers=await store.publishers(work, named.publishers) if named.publishers else {},
        owed=await store.owed_invoices(work, named.accounts) if named.plans else {},
        cuts=await store.cut_boundaries(work) if named.dated_back else (),
        numbers=await store.take_numbers(work, named.created) if named.created else iter(()),
        version_floor=work.version_floor,
    )


async def save(work: Work, registry: Registry, entries: Sequence[store.Entry]) -> None:
    """Everything that changed, those first that others point to, and the log."""
    await store.save_organizations(work, registry.of(Organization))
    await store.save_billing_entities(work, registry.of(BillingEntity), registry.default_entity_id)
    await store.save_publishers(work, registry.of(Publisher))
    await store.save_payer_groups(work, registry.of(PayerGroup))
    await _save_accounts(work, registry.of(Account))
    await store.save_cost_centers(work, registry.of(CostCenter))
    await _save_resources(work, registry.of(Resource))
    await store.append_entries(work, entries)


async def _save_accounts(work: Work, changed: Sequence[Account]) -> None:
    if not changed:
        return
    await store.save_accounts(work, changed)
    numbers = [each.account_no for each in changed]
    for table, value, timelines in (
        (tables.account_plan, "plan", [(each.account_no, each.plans) for each in changed]),
        (tables.account_group, "group_id", [(each.account_no, each.groups) for each in changed]),
    ):
        await store.forget_spans(work, table, table.c.account_no, numbers)
        await store.append_spans(work, table, "account_no", value, timelines)


async def _save_resources(work: Work, changed: Sequence[Resource]) -> None:
    if not changed:
        return
    await store.save_resources(work, changed)
    numbers = [each.resource_no for each in changed]
    for table, value, timelines in (
        (tables.resource_owner, "account_id", [(each.resource_no, each.owners) for each in changed]),
        (tables.resource_cost_center, "cost_center_id", [(each.resource_no, each.cost_centers) for each in changed]),
    ):
        await store.forget_spans(work, table, table.c.resource_no, numbers)
        await store.append_spans(work, table, "resource_no", value, timelines)
