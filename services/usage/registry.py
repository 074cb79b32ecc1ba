"""Who a publisher may bill, and who pays for an event: the registry's timelines, compiled for looking up.

Pure values, made from what the store holds. Source: domain, sections 3 and 5; designs/assignment, points 1 to 3.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from msgspec import Struct

from contracts.groups import (
    AccountTimeline,
    CostCenter,
    CostCenterInterval,
    GroupInterval,
    Plan,
    PlanInterval,
    Publisher,
    ResourceTimeline,
)
from contracts.topics import GROUPS_ACCOUNTS, GROUPS_ASSIGNMENTS, GROUPS_COST_CENTERS, GROUPS_PUBLISHERS
from contracts.usage import RECURRING_SOURCE, TOLLBOOK
from services.kernel.period import Period, period_of
from services.usage.books import Chain, PriceBooks
from services.usage.uses import ResourceKind

REGISTRY_TOPICS = (GROUPS_ACCOUNTS, GROUPS_ASSIGNMENTS, GROUPS_COST_CENTERS, GROUPS_PUBLISHERS)
"""All of the registry that rating and stamping depend on; what else it says (addresses, tax) is for invoices."""


ANY_TIME_MS = 100 * 365 * 86_400_000
_NEVER = datetime.max.replace(tzinfo=UTC)


class Payer:
    """The payer group of one interval. It remembers the period it was asked for last: events come roughly in order."""

    __slots__ = ("_period", "currency", "end", "group_id", "pricing_model", "start", "zone")

    def __init__(self, interval: GroupInterval) -> None:
        self.start = interval.start
        self.end = interval.end
        self.group_id: str = interval.group_id
        self.zone: str = interval.zone
        self.currency: str = interval.currency
        self.pricing_model = interval.pricing_model
        self._period: Period | None = None

    def period(self, event_time: datetime) -> Period:
        """The billing month of an instant in the group's zone."""
        period = self._period
        if period is None or not period.start <= event_time < period.end:
            period = self._period = period_of(event_time, self.zone)
        return period


class Standing(Struct, frozen=True, gc=False):
    """What holds for an account from ``start`` until ``end``. A trial has no payer and no period."""

    start: datetime
    end: datetime
    plan: Plan
    payer: Payer | None
    period: Period | None
    currency: str
    books: Chain


class Account:
    """One account at every instant. It remembers what held when it was asked last: one comparison then answers for a run of
    events."""

    __slots__ = (
        "_chains", "_plans", "_standing", "account_id", "closed_at", "currency", "opened_at", "organization_id", "payers",
        "version",
    )  # fmt: skip

    def __init__(self, timeline: AccountTimeline) -> None:
        self.account_id: str = timeline.account_id
        self.organization_id: str = timeline.organization_id
        self.currency: str = timeline.currency
        self.version: int = timeline.version
        self.opened_at = timeline.opened_at
        self.closed_at = timeline.closed_at
        self._plans: tuple[PlanInterval, ...] = timeline.plans
        self.payers = tuple(Payer(interval) for interval in timeline.groups)
        self._chains: dict[str | None, Chain] = {}
        self._standing: Standing | None = None

    def standing_at(self, event_time: datetime, prices: Prices) -> Standing | None:
        """Plan, payer, period and price books at an instant, remembered until `forget_books`; None before it was opened."""
        standing = self._standing
        if standing is None or not standing.start <= event_time < standing.end:
            standing = self._standing = self._standing_of(event_time, prices)
        return standing

    def _standing_of(self, event_time: datetime, prices: Prices) -> Standing | None:
        plan = self._plan_interval(event_time)
        if plan is None:
            return None
        payer = self.payer_at(event_time) if plan.plan != "trial" else None
        starts, ends = [plan.start], [plan.end or _NEVER]
        period, currency = None, self.currency
        if payer is not None:
            period, currency = payer.period(event_time), payer.currency
            starts += (payer.start, period.start)
            ends += (payer.end or _NEVER, period.end)
        elif plan.plan != "trial":
            ends.append(plan.start)  # nobody pays just now: that is not remembered
        books = self.chain(payer, prices)
        return Standing(max(starts), min(ends), plan.plan, payer, period, currency, books)

    def _plan_interval(self, event_time: datetime) -> PlanInterval | None:
        for interval in self._plans:
            if interval.start <= event_time and (interval.end is None or event_time < interval.end):
                return interval
        return None

    def plan_at(self, event_time: datetime) -> Plan | None:
        """The plan at an instant; None before the account was opened."""
        interval = self._plan_interval(event_time)
        return interval.plan if interval is not None else None

    def payer_at(self, event_time: datetime) -> Payer | None:
        """Who pays for what was used at an instant; None for a trial."""
        for payer in self.payers:
            if payer.start <= event_time and (payer.end is None or event_time < payer.end):
                return payer
        return None

    def chain(self, payer: Payer | None, prices: Prices) -> Chain:
        """The price books in the order they are asked, remembered until `forget_books`."""
        pricing_model = payer.pricing_model if payer is not None else None
        chain = self._chains.get(pricing_model)
        if chain is None:
            chain = self._chains[pricing_model] = prices.chain(self.account_id, pricing_model, self.organization_id)
        return chain

    def forget_books(self) -> None:
        """The price books have changed."""
        self._chains.clear()
        self._standing = None


@dataclass(frozen=True, slots=True)
class Prices:
    """All books, and which of them are asked for whom."""

    books: PriceBooks
    of_accounts: dict[str, str]
    of_organizations: dict[str, str]
    default: tuple[str, ...]

    def chain(self, account_id: str, pricing_model: str | None, organization_id: str) -> Chain:
        """Account override, pricing model of the payer group, organization, default."""
        return self.books.chain(
            account=self.of_accounts.get(account_id),
            pricing_model=pricing_model,
            organization=self.of_organizations.get(organization_id),
            default=self.default,
        )


class Source:
    """What a publisher may do: which organizations it may bill, which sources are its own, how late it may be."""

    __slots__ = ("early_ms", "late_ms", "organizations", "publisher_id", "sources")

    def __init__(self, publisher: Publisher) -> None:
        self.publisher_id: str = publisher.publisher_id
        self.organizations: Container[str] = frozenset(publisher.organization_ids)
        self.sources = frozenset(publisher.sources)
        self.late_ms = publisher.late_s_max * 1000
        self.early_ms = publisher.early_s_max * 1000


class _Every:
    """Holds every organization."""

    def __contains__(self, _: object) -> bool:
        return True


def _tollbook() -> Source:
    """Tollbook itself: it bills everybody, from one source. The one clock decided that its fees are due, so a broker's clock
    has no say."""
    source = Source(Publisher(publisher_id=TOLLBOOK, version=1, organization_ids=(), sources=(RECURRING_SOURCE,)))
    source.organizations = _Every()
    source.late_ms = source.early_ms = ANY_TIME_MS
    return source


class Resource:
    """A number or an outbound profile at every instant."""

    __slots__ = ("cost_centers", "owners", "resource_id")

    def __init__(self, resource: ResourceTimeline) -> None:
        self.resource_id: str = resource.resource_id
        self.cost_centers = resource.cost_centers
        self.owners = resource.owned()

    def owner_at(self, instant: datetime) -> str | None:
        """The account that has it at an instant."""
        for interval in self.owners:
            if interval.start <= instant and (interval.end is None or instant < interval.end):
                return interval.account_id
        return None

    def cost_center_of(self, account_id: str, instant: datetime) -> str | None:
        """The cost center that it gives to the use of an account at an instant: only to that of its owner."""
        return center_at(self.cost_centers, instant) if self.owner_at(instant) == account_id else None


class Number(Resource):
    """One number at every instant."""

    __slots__ = ("number",)

    def __init__(self, resource: ResourceTimeline) -> None:
        super().__init__(resource)
        self.number: str = resource.number or ""


class Used(Protocol):
    """What of a use decides its cost center."""

    @property
    def cost_center_id(self) -> str | None: ...
    @property
    def resource(self) -> tuple[ResourceKind, str | None]: ...


class Registry:
    """All that is known of accounts, resources and publishers."""

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self.publishers: dict[str, Source] = {TOLLBOOK: _tollbook()}
        self._resources: dict[str, ResourceTimeline] = {}
        self._number_of: dict[str, Number] = {}  # by resource
        self._numbers_of: dict[str, set[str]] = {}  # resources by account: the numbers that it has or had
        self._profiles: dict[str, Resource] = {}
        self._numbers: dict[str, dict[str, Number]] = {}  # by number, then by resource: another one may take it over
        self._cost_centers: dict[str, set[str]] = {}
        self._zones: dict[str, str] = {}

    def learn(
        self,
        accounts: Iterable[AccountTimeline],
        resources: Iterable[ResourceTimeline],
        publishers: Iterable[Publisher],
        cost_centers: Iterable[CostCenter],
    ) -> None:
        """Take in timelines; each replaces what was known of its object."""
        for account in accounts:
            self.accounts[account.account_id] = Account(account)
            self._zones.update((interval.group_id, interval.zone) for interval in account.groups)
        for publisher in publishers:
            if publisher.publisher_id == TOLLBOOK:
                continue  # registered before that name was ours
            self.publishers[publisher.publisher_id] = Source(publisher)
        for center in cost_centers:
            self._cost_centers.setdefault(center.organization_id, set()).add(center.cost_center_id)
        for resource in resources:
            self._forget(self._resources.get(resource.resource_id))
            self._resources[resource.resource_id] = resource
            if resource.number is not None:
                number = self._number_of[resource.resource_id] = Number(resource)
                self._numbers.setdefault(resource.number, {})[resource.resource_id] = number
                for owner in number.owners:
                    self._numbers_of.setdefault(owner.account_id, set()).add(resource.resource_id)
            else:
                self._profiles[resource.resource_id] = Resource(resource)
            centers = self._cost_centers.setdefault(resource.organization_id, set())
            centers.update(each.cost_center_id for each in resource.cost_centers if each.cost_center_id is not None)

    def learn_zones(self, zones: Mapping[str, str]) -> None:
        """Take in the zones of payer groups that some timeline named, if only once: charges may name them still."""
        self._zones.update(zones)

    def _forget(self, resource: ResourceTimeline | None) -> None:
        if resource is None:
            return
        if resource.number is not None:
            self._numbers[resource.number].pop(resource.resource_id, None)
            for owner in resource.owned():
                self._numbers_of[owner.account_id].discard(resource.resource_id)

    def forget_books(self) -> None:
        """The price books have changed."""
        for account in self.accounts.values():
            account.forget_books()

    def zone_of(self, group_id: str) -> str | None:
        """The zone of a payer group that some account has or had; None for one that no timeline ever named."""
        return self._zones.get(group_id)

    def cost_center(self, account: Account, use: Used, event_time: datetime) -> str | None:
        """The override of the event if it is one of the account's organization, else the outbound profile's (outbound) or the
        customer's number's (all else), else None: ungrouped."""
        override = use.cost_center_id
        if override is not None and override in self._cost_centers.get(account.organization_id, ()):
            return override
        kind, name = use.resource
        if name is None:
            return None
        if kind == "outbound_profile":
            profile = self._profiles.get(name)
            return profile.cost_center_of(account.account_id, event_time) if profile is not None else None
        for number in self._numbers.get(name, {}).values():
            if number.owner_at(event_time) == account.account_id:
                return center_at(number.cost_centers, event_time)
        return None

    def number(self, resource_id: str) -> Number | None:
        """The number that a resource is; None for an outbound profile, and for what is not known."""
        return self._number_of.get(resource_id)

    def numbers_of(self, account_id: str) -> frozenset[str]:
        """The resources that are numbers which an account has or had."""
        return frozenset(self._numbers_of.get(account_id, ()))

    def all_numbers(self) -> list[str]:
        """Every resource that is a number."""
        return list(self._number_of)

    def owner_of(self, number: str, event_time: datetime) -> str | None:
        """The account that had a number at an instant; None where nobody had it."""
        for each in self._numbers.get(number, {}).values():
            owner = each.owner_at(event_time)
            if owner is not None:
                return owner
        return None


def center_at(intervals: Iterable[CostCenterInterval], event_time: datetime) -> str | None:
    """The cost center of a resource at an instant; None: ungrouped."""
    for interval in intervals:
        if interval.start <= event_time and (interval.end is None or event_time < interval.end):
            return interval.cost_center_id
    return None
