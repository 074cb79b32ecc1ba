"""Whose a charge is by the registry as it is now, where that became known after the use was rated. The pure part.

A timeline of a higher version says for which stretches of time it says something else than the one before (`stretches`). In
them each charge is looked at again: `Reassigning.of` says under which stamps it stands now and by which terms, that it stands
where it should, or why it cannot be moved. Source: designs/assignment, points 3 to 5.
"""

from __future__ import annotations

import json
from calendar import monthrange
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any, NamedTuple
from uuid import UUID

from msgspec import Struct, structs
from msgspec.json import Encoder

from contracts.groups import AccountTimeline, ResourceTimeline
from services.kernel.ids import derived_id
from services.kernel.money import CHARGE_NANO_MAX
from services.kernel.period import instant_text, period_of
from services.usage.books import DATA, RENTAL
from services.usage.rating import Counted, Rated, amount_nano, rate, why_unpriced
from services.usage.registry import Account, Prices, Registry, Resource, Standing
from services.usage.replacing import Stamps, Terms
from services.usage.simulating import Recorded
from services.usage.uses import ResourceKind

NAMED_ACCOUNT, NAMED_CENTER = 1, 2
"""Bits of what a charge's event named itself: its account, and a cost center that counted."""

ACCOUNT, NUMBER, OUTBOUND_PROFILE = "account", "number", "outbound_profile"
MESSAGE = "message."  # how the products of messages begin

LEFT = {
    "no_price": "the prices of who pays now have none for it",
    "wrong_currency": "the price of who pays now is in another currency than the account",
    "wrong_unit": "the price of who pays now is for another unit than was used",
    "too_large": "by the prices of who pays now it would cost more than one charge may",
    "outcome_unknown": "the price of who pays now is for delivered messages only, and whether this one was is not recorded",
    "surcharge": "the price of who pays now is by tiers, to which the surcharge for its caller cannot be added",
    "unknown_number": "nobody had the number at that time, by the registry as it is now",
    "unknown_account": "the account is not registered, or was not opened yet at that time",
    "account_closed": "the account whose it would be was closed at that time",
    "not_permitted": "the account whose it would be is of an organization that the publisher may not bill",
    "unknown_payer": "nobody knows the zone of the payer group that was charged",
}
"""Why a charge stays as it is, though the registry says another thing than its stamps; nothing is taken back without a
charge in its place."""

_encode = Encoder().encode
_NEVER = datetime.max.replace(tzinfo=UTC)
BEFORE_ALL = UUID(int=0)  # sorts before the id of every charge


# ---- what a timeline changes ---------------------------------------------------------------------------------------


class Stretch(NamedTuple):
    """A time from ``start`` until ``end`` (None: for ever) in which another thing holds than was known. ``reprices``: another
    price may hold as well, under the same stamps too."""

    start: datetime
    end: datetime | None
    reprices: bool


def account_stretches(before: AccountTimeline, now: AccountTimeline) -> list[Stretch]:
    """Where plan, payer group, its zone, its currency or its pricing model is another one than was known.

    The times before an account was known to be open are left out: nothing was charged in them.
    """
    return stretches(
        _edges((*before.plans, *before.groups, *now.plans, *now.groups)),
        *(_account_at(Account(timeline)) for timeline in (before, now)),
    )


def _account_at(account: Account) -> At:
    def at(instant: datetime) -> tuple[Hashable, Hashable] | None:
        plan = account.plan_at(instant)
        if plan is None:
            return None
        payer = account.payer_at(instant) if plan != "trial" else None
        if payer is None:
            return (plan,), (account.currency, None)
        return (plan, payer.group_id, payer.zone), (payer.currency, payer.pricing_model)

    return at


def resource_stretches(before: ResourceTimeline | None, now: ResourceTimeline) -> list[Stretch]:
    """Where a number or outbound profile is another account's than was known, or gives another cost center; of one that was
    not known, where it is anybody's, or gives one."""
    known = () if before is None else (*before.owned(), *before.cost_centers)
    return stretches(
        _edges((*known, *now.owned(), *now.cost_centers)),
        _nobodys if before is None else _resource_at(before),
        _resource_at(now),
    )


def _resource_at(timeline: ResourceTimeline) -> At:
    resource, is_number = Resource(timeline), timeline.number is not None

    def at(instant: datetime) -> tuple[Hashable, Hashable] | None:
        owner = resource.owner_at(instant)
        center = resource.cost_center_of(owner, instant) if owner is not None else None
        if center is None and not is_number:  # who has a profile decides nothing but whose cost center it gives
            return _nobodys(instant)
        return (owner, center), None

    return at


def _nobodys(_: datetime) -> tuple[Hashable, Hashable]:
    return (None, None), None


At = Callable[[datetime], tuple[Hashable, Hashable] | None]
"""What decides stamps at an instant, and what else decides the price; None: nothing can be charged."""


def _edges(intervals: Iterable[Any]) -> list[datetime]:
    found = {each.start for each in intervals}
    return sorted(found | {each.end for each in intervals if each.end is not None})


def stretches(edges: Iterable[datetime], before: At, now: At) -> list[Stretch]:
    """Where two pictures differ that change at ``edges`` only; neighbours that change alike are one.

    >>> days = [datetime(2026, 11, day, tzinfo=UTC) for day in (1, 2, 3, 4)]
    >>> moved = stretches(days, lambda at: (1, "usd"), lambda at: (2 if at.day in (2, 3) else 1, "usd"))
    >>> [(each.start.day, each.end.day, each.reprices) for each in moved]
    [(2, 4, False)]
    """
    found: list[Stretch] = []
    for start, end in pairwise([*edges, None]):
        if start is None:
            break
        was, becomes = before(start), now(start)
        if was is None or was == becomes:
            continue
        stretch = Stretch(start, end, becomes is not None and was[1] != becomes[1])
        if found and found[-1].end == start and found[-1].reprices == stretch.reprices:
            found[-1] = found[-1]._replace(end=end)
        else:
            found.append(stretch)
    return found


def reassignment_id(kind: str, object_id: str, version: int, start: datetime, *again: str) -> UUID:
    """The reassignment of one stretch of one version of a timeline; the ids of what it charges follow from it. ``again`` says
    what it is looked through again for."""
    return derived_id("reassignment", kind, object_id, str(version), instant_text(start), *again)


# ---- which charges, in which order ---------------------------------------------------------------------------------


class Job(Struct, frozen=True, gc=False):
    """One stretch of one object, and up to which charge, by event time and id, it is looked through."""

    reassignment_id: UUID
    position: int
    kind: str
    object_id: str
    number: str | None
    starts_at: datetime
    ends_at: datetime | None
    reprices: bool
    reached_at: datetime
    reached_id: UUID

    @property
    def end(self) -> datetime:
        """When the stretch is over."""
        return self.ends_at or _NEVER

    @property
    def reached(self) -> tuple[datetime, UUID]:
        """The charge up to which it is looked through, in their order."""
        return self.reached_at, self.reached_id

    def up_to(self, at: datetime, id: UUID) -> Job:
        """The job when all up to this charge is looked at; one that is further stays there."""
        reached_at, reached_id = max(self.reached, (at, id))
        return structs.replace(self, reached_at=reached_at, reached_id=reached_id)


class Window(NamedTuple):
    """Jobs that are looked through together: the charges of one day, after ``reached_at`` and ``reached_id``, before ``end``."""

    jobs: tuple[Job, ...]
    reached_at: datetime
    reached_id: UUID
    end: datetime


def next_window(jobs: Iterable[Job], days: Iterable[date]) -> tuple[Window | None, list[Job]]:
    """What is to be looked through next, and the jobs that have nothing left. ``days`` are those of which there may be charges.

    The earliest day comes first, for all jobs that have something left in it: thousands of accounts that change together
    are one search.
    """
    ends = sorted(_midnight(day) for day in days)
    of_day: dict[datetime, list[Job]] = {}
    over: list[Job] = []
    for job in jobs:
        day_end = next((end for end in ends if end > job.reached_at), None)
        if job.reached_at >= job.end or day_end is None or day_end - _DAY >= job.end:
            over.append(job)
        else:
            of_day.setdefault(day_end, []).append(job)
    if not of_day:
        return None, over
    day_end = min(of_day)
    mine = of_day[day_end]
    reached = max(min(job.reached for job in mine), (day_end - _DAY, BEFORE_ALL))
    return Window(tuple(mine), *reached, min(day_end, max(job.end for job in mine))), over


_DAY = timedelta(days=1)


def _midnight(day: date) -> datetime:
    """The end of a day."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC) + _DAY


class Concerned:
    """Which of some jobs concern a charge."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._of: dict[tuple[str, str | None], list[Job]] = {}
        for job in jobs:
            key = job.object_id if job.number is None else job.number
            self._of.setdefault((job.kind, key), []).append(job)

    def names(self, kind: str) -> list[str]:
        """The accounts, numbers or outbound profiles that they are about."""
        return sorted(name for each, name in self._of if each == kind and name is not None)

    def by(self, charge: Any) -> list[Job]:
        """The jobs of whose object and stretch a charge is, the first word of the registry first."""
        keys, at = ((ACCOUNT, charge.account_id), resource_of(charge)), charge.event_time
        found = [job for key in keys for job in self._of.get(key, ()) if job.starts_at <= at < job.end]
        return sorted(found, key=lambda job: job.position)

    def open_by(self, charge: Any) -> list[Job]:
        """Those of them that have not looked at it yet."""
        place = charge.event_time, charge.charge_id
        return [job for job in self.by(charge) if job.reached < place]


def resource_of(charge: Any) -> tuple[ResourceKind, str | None]:
    """Whose cost center the use of a charge takes: what `uses` says of the use, told by its charge."""
    product = charge.product
    if product.startswith(("voice.", MESSAGE)) and product.endswith(".outbound"):
        return "outbound_profile", charge.outbound_profile
    return "number", (charge.origin if product == DATA else charge.destination) or None


# ---- whose it is now -----------------------------------------------------------------------------------------------


class Moved(NamedTuple):
    """A charge stands under these stamps now, by these terms."""

    stamps: Stamps
    terms: Terms


class Left(NamedTuple):
    """A charge stays as it is, for a reason of `LEFT`; ``account_id`` is whose it would be, if that account were there then."""

    reason: str
    account_id: str | None = None


class _Told(NamedTuple):
    """What of a use decides its cost center, as its charge tells it."""

    cost_center_id: str | None
    resource: tuple[ResourceKind, str | None]


class Reassigning:
    """By the registry and the prices as they are now."""

    def __init__(self, registry: Registry, prices: Prices) -> None:
        self._registry = registry
        self._prices = prices

    def of(self, charge: Any, *, reprices: bool = False, delivered: bool = False) -> Moved | Left | None:
        """Where a live charge stands now; None where it stands right.

        Its price stays unless other books may be asked: those of another account, or ``reprices``, of another pricing model or
        currency. Then it is rated by the prices as they are now; where the same book has the price, by the version that it was
        charged by. ``charge`` is its row, with what its price says; ``delivered``: it stands in the place of one that was for a
        delivered message.
        """
        found = self.stamps(charge)
        if isinstance(found, Left):
            return found
        stamps, standing = found
        is_moved = not stands_under(charge, stamps)
        if not is_moved and not reprices:
            return None
        if is_moved and (problem := self._problem(charge, stamps)) is not None:
            return problem
        if not reprices and stamps.account_id == charge.account_id:
            return Moved(stamps, _kept(charge, stamps))
        terms = self._rated(charge, stamps, standing, delivered or charge.delivered_only)
        if isinstance(terms, str):
            return Left(terms)
        if stamps.account_id == charge.account_id and _books(terms) == _books(charge):
            terms = _kept(charge, stamps)
        return Moved(stamps, terms) if is_moved or _costs_other(charge, terms) else None

    def stamps(self, charge: Any) -> tuple[Stamps, Standing] | Left:
        """The stamps of a charge by the registry as it is now."""
        at, account_id = charge.event_time, charge.account_id
        is_known = charge.named is not None
        if is_known and not charge.named & NAMED_ACCOUNT:
            account_id = self._registry.owner_of(charge.destination, at)
            if account_id is None:
                return Left("unknown_number")
        account = self._registry.accounts.get(account_id)
        standing = account.standing_at(at, self._prices) if account is not None else None
        if account is None or standing is None:
            return Left("unknown_account", account_id)
        payer, period = standing.payer, standing.period
        center = charge.cost_center_id
        is_override = is_known and bool(charge.named & NAMED_CENTER)
        if is_known and not (is_override and account.organization_id == charge.organization_id):
            override = center if is_override else None
            center = self._registry.cost_center(account, _Told(override, resource_of(charge)), at)
        stamps = Stamps(
            account_id, account.organization_id, standing.plan, payer.group_id if payer is not None else None,
            period.name if period is not None else None, center, account.version,
        )  # fmt: skip
        return stamps, standing

    def _problem(self, charge: Any, stamps: Stamps) -> Left | None:
        """Why the account whose it would be cannot be charged; one that is charged already stays."""
        if stamps.account_id == charge.account_id:
            return None
        account, publisher = self._registry.accounts[stamps.account_id], self._registry.publishers.get(charge.publisher)
        if publisher is None or account.organization_id not in publisher.organizations:
            return Left("not_permitted")
        if charge.event_time < account.opened_at:
            return Left("unknown_account", stamps.account_id)
        if account.closed_at is not None and charge.event_time >= account.closed_at:
            return Left("account_closed", stamps.account_id)
        return None

    def _rated(self, charge: Any, stamps: Stamps, standing: Standing, delivered: bool) -> Terms | str:
        if stamps.account_id == charge.account_id and standing.currency != charge.currency:
            return "wrong_currency"  # a wallet keeps its currency
        use = Recorded.of(charge, _month(charge, stamps))
        outcome = rate(use, charge.event_time, standing.books, standing.currency)
        if not isinstance(outcome, Rated | Counted):
            return why_unpriced(outcome) or "no_price"
        if outcome.price.delivered_only and not delivered:
            return "outcome_unknown"
        return _terms(charge, outcome)


def stands_under(charge: Any, stamps: Stamps) -> bool:
    """Whether a charge has these stamps already; of which version of a timeline they are decides nothing."""
    return all(
        getattr(charge, name) == getattr(stamps, name)
        for name in ("account_id", "plan", "group_id", "period", "cost_center_id")
    )


def _terms(charge: Any, outcome: Rated | Counted) -> Terms | str:
    price, per = outcome.price, outcome.per
    nano, surcharge, schedule = 0, None, None
    if isinstance(outcome, Rated):
        nano = outcome.amount_nano
        surcharge = outcome.surcharge.told() if outcome.surcharge is not None else None
        if price.product == RENTAL:  # whatever the price: the days of the month that was paid for
            per = charge.per
            nano = amount_nano(outcome.billed, per, price)
            if nano > CHARGE_NANO_MAX:
                return "too_large"
    else:
        schedule = price.schedule_version
    return Terms(
        price.book_id, price.version, price.prefix, price.window or None,
        _encode(surcharge).decode() if surcharge is not None else None, price.price_nano, price.connection_fee_nano,
        price.minimum, price.increment, price.currency, outcome.billed, per, nano, schedule,
    )  # fmt: skip


def _kept(charge: Any, stamps: Stamps) -> Terms:
    """The terms that a charge has. Days of a rental that tiers price are shared out by the month of the counter they enter."""
    per = charge.per
    if charge.schedule is not None and charge.product == RENTAL:
        month = _month(charge, stamps)
        per = monthrange(int(month[:4]), int(month[5:]))[1]
    return Terms(
        charge.book_id, charge.book_version, charge.matched, charge.window, charge.surcharge, charge.price_nano,
        charge.connection_fee_nano, charge.minimum, charge.increment, charge.currency, charge.quantity, per,
        charge.amount_nano, charge.schedule,
    )  # fmt: skip


def _books(of: Any) -> set[str]:
    """The books that a charge or terms are priced by: one, and the one of the surcharge for the caller."""
    return {of.book_id} | ({json.loads(of.surcharge)["book_id"]} if of.surcharge is not None else set())


def _month(charge: Any, stamps: Stamps) -> str:
    """The month whose counter a use is in, and whose days a rental is shared out by; of a trial that of UTC."""
    return stamps.period or period_of(charge.event_time).name


def _costs_other(charge: Any, terms: Terms) -> bool:
    """Whether terms under the same stamps come to another amount, or leave or enter a counter of tiers."""
    if charge.schedule is None and terms.schedule is None:
        return bool(charge.amount_nano != terms.amount_nano)
    return (charge.schedule, charge.quantity) != (terms.schedule, terms.quantity)


# ---- why -----------------------------------------------------------------------------------------------------------


def why(charge: Mapping[str, Any], job: Job, version: int) -> str:
    """Why a charge stands in the place of another one, or takes one back, in a sentence.

    >>> job = Job(UUID(int=1), 1, "account", "sales", None, _NEVER, None, False, _NEVER, BEFORE_ALL)
    >>> charge = {"account_id": "sales", "group_id": "north", "cost_center_id": None, "reverses": None}
    >>> why(charge, job, 3)
    "moved to sales, group north, ungrouped, by version 3 of the account's timeline"
    >>> why(charge | {"reverses": UUID(int=1), "group_id": None}, structs.replace(job, kind="number", object_id="main"), 2)
    'taken from sales, no group, ungrouped, by version 2 of the timeline of number main'
    """
    group = f"group {charge['group_id']}" if charge["group_id"] is not None else "no group"
    center = f"cost center {charge['cost_center_id']}" if charge["cost_center_id"] is not None else "ungrouped"
    moved = "moved to" if charge["reverses"] is None else "taken from"
    return f"{moved} {charge['account_id']}, {group}, {center}, by version {version} of {timeline_of(job)}"


def why_left(job: Job, version: int, reason: str) -> str:
    """Why a charge stays where the registry does not say it is, in a sentence."""
    return f"stays as it is, whatever version {version} of {timeline_of(job)} says: {LEFT[reason]}"


def timeline_of(job: Job) -> str:
    """The timeline that changed, for people."""
    if job.kind == ACCOUNT:
        return "the account's timeline"
    return f"the timeline of {job.kind.replace('_', ' ')} {job.object_id}"


def parsed(document: Mapping[str, Any], model: type[Any]) -> Any:
    """A timeline of what is stored of it."""
    return model.model_validate_json(json.dumps(document))


def changes(
    before: Mapping[tuple[str, str], Mapping[str, Any]], now: Mapping[tuple[str, str], Any]
) -> Iterator[tuple[str, str, str | None, int, Stretch]]:
    """Kind, id, number, version and stretch of all that timelines change; a version that is not higher changes nothing."""
    for (kind, object_id), timeline in sorted(now.items()):
        known = before.get((kind, object_id))
        if known is not None and known["version"] >= timeline.version:
            continue
        if isinstance(timeline, AccountTimeline):
            if known is not None:  # nothing can be charged to one that nobody knows
                for each in account_stretches(parsed(known, AccountTimeline), timeline):
                    yield ACCOUNT, object_id, None, timeline.version, each
        elif isinstance(timeline, ResourceTimeline):
            was = parsed(known, ResourceTimeline) if known is not None else None
            for each in resource_stretches(was, timeline):
                yield timeline.kind, object_id, timeline.number, timeline.version, each
