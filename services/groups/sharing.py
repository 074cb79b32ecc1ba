"""The rules of the registry: who may share a payer group, which group a new account gets, and from when things hold.

Every rule takes values and returns a decision, or raises the refusal that the asker reads. Source: domain, sections 1
and 5; designs/assignment, points 1 and 2.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from services.groups.objects import Account, Organization, PayerGroup, SharingApproval
from services.groups.timeline import during, values_during
from services.kernel.errors import InvalidInput, NotPermitted, Refused
from services.kernel.money import WALLET_NANO_MAX, format_nano
from services.kernel.period import instant_text, is_boundary, next_period, period_of

DEFAULT_ZONE = "UTC"
OPENED_AT_MIN = datetime(2000, 1, 1, tzinfo=UTC)  # older than any switch record; keeps calendar arithmetic in range
MOVE_PERIODS_MAX = 24  # how far ahead a move may be planned: two years of invoices


# ---- who may ask ---------------------------------------------------------------------------------------------------


def require_operator(role: str, what: str) -> None:
    """Only the platform's operator may do this.

    >>> require_operator("owner", "grant level 2")
    Traceback (most recent call last):
    services.kernel.errors.NotPermitted: role: only an operator may grant level 2; you are owner
    """
    if role != "operator":
        raise NotPermitted(f"only an operator may {what}; you are {role}", field="role")


# ---- which group a new account gets --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NoGroup:
    """A trial: nobody gets an invoice."""


@dataclass(frozen=True, slots=True)
class OwnGroup:
    """A payer group is created by itself, scoped to the account."""


@dataclass(frozen=True, slots=True)
class Joins:
    """The account joins this group."""

    group_id: str


Destination = NoGroup | OwnGroup | Joins


def destination(plan: str, organization: Organization, named: str | None) -> Destination:
    """The payer group of an account that starts on this plan, created or upgraded.

    The group that was named wins. Else the organization's primary group, except for pay-as-you-go in `strict`, which is
    always alone. Else a group of its own. A trial has none; naming one is refused.

    >>> lakeside = Organization("lakeside", "Lakeside", "strict", "main", OPENED_AT_MIN)
    >>> destination("payg", lakeside, None), destination("invoiced", lakeside, None), destination("trial", lakeside, None)
    (OwnGroup(), Joins(group_id='main'), NoGroup())
    """
    if plan == "trial":
        if named is not None:
            raise InvalidInput(
                "a trial account has no payer group; leave it out, it gets one when it is upgraded",
                field="group_id",
                code="trial_has_no_group",
            )
        return NoGroup()
    if named is not None:
        return Joins(named)
    if organization.primary_group_id is None or (plan == "payg" and organization.consolidation == "strict"):
        return OwnGroup()
    return Joins(organization.primary_group_id)


# ---- who may share -------------------------------------------------------------------------------------------------


def check_joining(
    organization: Organization,
    group: PayerGroup,
    account: Account,
    start: datetime,
    members: Iterable[Account],
    *,
    field: str,
    end: datetime | None = None,
) -> None:
    """Refuse unless the account may be in the group from ``start`` on, until ``end`` if there is one. ``members`` are the
    accounts that are in the group at any time; those count that are in it meanwhile, with the plans that they have then.

    Group and account are of one organization and one currency; a group scoped to an account takes no other; in `strict`
    a pay-as-you-go account is alone, and invoiced accounts share only with an operator's approval.
    """
    if not group.organization_id == account.organization_id == organization.organization_id:
        raise Refused(
            f"there is no payer group {group.group_id} in organization {account.organization_id}",
            field=field,
            code="not_found",
        )
    if group.account_id is not None and group.account_id != account.account_id:
        raise Refused(
            f"group {group.group_id} is scoped to account {group.account_id}; choose a group of the organization",
            field=field,
            code="group_of_one_account",
        )
    if group.currency != account.currency:
        raise Refused(
            f"account {account.account_id} has {account.currency} and group {group.group_id} has {group.currency}; "
            "all accounts of a group share its currency",
            field=field,
            code="currency_differs",
        )
    if organization.consolidation == "open":
        return
    beside: Account | None = None
    for other in members:
        if other.account_id == account.account_id:
            continue
        for shared in during(other.groups, start, end):
            if shared.value != group.group_id:
                continue
            beside = beside or other
            for each in (account, other):
                if values_during(each.plans, shared.start, shared.end) != {"invoiced"}:
                    raise Refused(
                        f"in a strict organization pay-as-you-go account {each.account_id} is alone in its group, but "
                        f"group {group.group_id} would hold {account.account_id} and {other.account_id}; leave the group "
                        "out, or choose an empty one",
                        field=field,
                        code="payg_alone",
                    )
    if beside is not None and group.sharing is None:
        raise Refused(
            f"group {group.group_id} would hold {account.account_id} and {beside.account_id}; invoiced accounts of a "
            "strict organization share a group only after an operator's approval (approve_sharing)",
            field=field,
            code="sharing_not_approved",
        )


def approval(
    role: str,
    by: str,
    now: datetime,
    group: PayerGroup,
    *,
    yearly_spend_nano: int,
    threshold_nano: int,
    credit_check_passed: bool,
) -> SharingApproval:
    """An operator's approval of sharing: the organization's combined yearly spend reaches the threshold (>=) and the
    credit check is passed. Amounts in nanos of the group's currency."""
    require_operator(role, "approve that accounts share a group")
    if group.account_id is not None:
        raise Refused(
            f"group {group.group_id} is scoped to account {group.account_id} and cannot be shared",
            field="group_id",
            code="group_of_one_account",
        )
    if not credit_check_passed:
        raise Refused(
            "the credit check is not passed; sharing a group needs a passed one",
            field="credit_check_passed",
            code="credit_check_not_passed",
        )
    if yearly_spend_nano < threshold_nano:
        raise Refused(
            f"the yearly spend {format_nano(yearly_spend_nano)} is below the threshold {format_nano(threshold_nano)}",
            field="yearly_spend",
            code="spend_below_threshold",
        )
    return SharingApproval(now, by, yearly_spend_nano, threshold_nano)


# ---- what an account may have --------------------------------------------------------------------------------------


def credit_limit(plan: str, limit_nano: int) -> int:
    """The credit limit of a plan in nanos: invoiced accounts only, at most what a wallet can hold.

    >>> credit_limit("invoiced", 100_000_000_000)
    100000000000
    >>> credit_limit("payg", 1)
    Traceback (most recent call last):
    services.kernel.errors.InvalidInput: credit_limit: only an invoiced account has a credit limit; leave it out, or choose the plan invoiced
    """
    if limit_nano and plan != "invoiced":
        raise InvalidInput(
            "only an invoiced account has a credit limit; leave it out, or choose the plan invoiced",
            field="credit_limit",
            code="credit_limit_not_allowed",
        )
    if limit_nano > WALLET_NANO_MAX:
        raise InvalidInput(
            f"must be at most {format_nano(WALLET_NANO_MAX)}", field="credit_limit", code="credit_limit_too_high"
        )
    return limit_nano


def changed_plan(role: str, account: Account, plan: str, limit_nano: int, *, owed: Sequence[str]) -> int:
    """The credit limit in nanos of an account that changes to a plan, pay-as-you-go or invoiced; refused when it may not.

    Only an operator lets an account be invoiced, with a limit above zero: without one it would be suspended as soon as its
    wallet is spent. An account that is invoiced stays so while it owes something of invoices (``owed``, their numbers). A
    trial is upgraded first. Source: domain, section 4.
    """
    before = account.plans[-1].value
    if before == plan:
        raise Refused(f"account {account.account_id} is {plan} already", field="account_id", code="nothing_to_change")
    if before == "trial":
        raise Refused(
            f"account {account.account_id} is a trial; upgrade it to pay-as-you-go first (upgrade_account)",
            field="account_id",
            code="is_a_trial",
        )
    limit = credit_limit(plan, limit_nano)
    if plan == "invoiced":
        require_operator(role, "let an account be invoiced")
        _require_limit(limit)
    elif owed:
        raise Refused(
            f"account {account.account_id} owes something of invoice {', '.join(owed[:5])}; its plan can be changed when that"
            " is paid",
            field="account_id",
            code="open_receivable",
        )
    return limit


def changed_limit(role: str, account: Account, limit_nano: int) -> int:
    """Another credit limit in nanos of an account that is invoiced; refused when it may not have it.

    An operator's decision, as the first one was. It may be below what the account owes: its funds are looked at anew.
    """
    require_operator(role, "set a credit limit")
    plan = account.plans[-1].value
    if plan != "invoiced":
        raise Refused(
            f"account {account.account_id} is {plan}; only an invoiced account has a credit limit (change_plan)",
            field="account_id",
            code="not_invoiced",
        )
    limit = credit_limit(plan, limit_nano)
    _require_limit(limit)
    if limit == account.credit_limit_nano:
        raise Refused(
            f"account {account.account_id} may owe {format_nano(limit)} already",
            field="credit_limit",
            code="nothing_to_change",
        )
    return limit


def _require_limit(limit_nano: int) -> None:
    if limit_nano == 0:
        raise InvalidInput(
            "an invoiced account needs a credit limit above zero: say how much it may owe beyond its wallet",
            field="credit_limit",
            code="credit_limit_missing",
        )


# ---- dates ---------------------------------------------------------------------------------------------------------


def earliest_opening(zone: str, cuts: Sequence[datetime]) -> datetime:
    """The start of the oldest period not yet cut in a zone: the newest cut that ends one of its periods.

    Periods before a cut one count as cut, even one that nobody ever closed: usage that old goes to an invoice after the
    newest cut anyway.

    >>> earliest_opening("UTC", [datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 10, 31, 23, tzinfo=UTC)]).isoformat()
    '2026-10-01T00:00:00+00:00'
    """
    return max((cut for cut in cuts if is_boundary(cut, zone)), default=OPENED_AT_MIN)


def opening(asked: datetime | None, now: datetime, zone: str, cuts: Sequence[datetime]) -> datetime:
    """When an account opens: now, unless an earlier instant is asked for that is not before the oldest period not yet cut.

    >>> opening(None, datetime(2026, 11, 5, tzinfo=UTC), "UTC", []).isoformat()
    '2026-11-05T00:00:00+00:00'
    """
    return _dated_back(asked, now, zone, cuts, field="opened_at", code="opened")


def owned_since(
    asked: datetime | None,
    now: datetime,
    opened_at: datetime,
    before: datetime,
    zones: Collection[str],
    cuts: Sequence[datetime],
) -> datetime:
    """Since when an account has a resource: now, unless an earlier instant is asked for at which the account was open, that
    is not before the last change of hands (``before``), nor before the oldest period not yet cut of any group that has paid
    since then for the account or for whose it was. Their zones are ``zones``."""
    start = _dated_back(asked, now, _last_cut(zones, cuts), cuts, field="since", code="since")
    for earliest, why in ((opened_at, "when the account was opened"), (before, "when it last changed hands")):
        if start < earliest and asked is not None:
            raise Refused(f"must not be before {instant_text(earliest)}, {why}", field="since", code="since_too_early")
    # a copy of the room that waited for the registry's lock has a `now` from before the wait
    return max(start, opened_at, before)


def moved_since(
    asked: datetime, now: datetime, first: datetime, zones: Iterable[str], cuts: Sequence[datetime]
) -> datetime:
    """Since when an account is in another group: an instant that has come, at which it had one (``first``), and not before the
    oldest period not yet cut of any group that it was in since then, or joins. Their zones are ``zones``.

    >>> cuts = [datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 10, 31, 23, tzinfo=UTC)]
    >>> def since(day, *zones): return moved_since(
    ...     datetime(2026, 10, day, tzinfo=UTC), datetime(2026, 11, 5, tzinfo=UTC), OPENED_AT_MIN, zones, cuts)
    >>> since(20, "UTC", "UTC").isoformat()
    '2026-10-20T00:00:00+00:00'
    >>> since(20, "UTC", "Europe/Paris")
    Traceback (most recent call last):
    services.kernel.errors.Refused: since: must not be before 2026-10-31T23:00:00Z, the start of the oldest period not yet cut (Europe/Paris)
    """
    if asked < first:
        raise Refused(
            f"must not be before {instant_text(first)}, when the account got its first payer group",
            field="since",
            code="since_too_early",
        )
    _dated_back(asked, now, _last_cut(zones, cuts), cuts, field="since", code="since")
    return asked


def _last_cut(zones: Iterable[str], cuts: Sequence[datetime]) -> str:
    """Of these zones the one whose oldest period not yet cut begins last; without a payer group that of `DEFAULT_ZONE`."""
    return max(zones, key=lambda zone: earliest_opening(zone, cuts), default=DEFAULT_ZONE)


def _dated_back(
    asked: datetime | None, now: datetime, zone: str, cuts: Sequence[datetime], *, field: str, code: str
) -> datetime:
    if asked is None:
        return now
    if asked > now:
        raise Refused(f"must not be in the future; now is {instant_text(now)}", field=field, code=f"{code}_in_future")
    earliest = earliest_opening(zone, cuts)
    if asked < earliest:
        raise Refused(
            f"must not be before {instant_text(earliest)}, the start of the oldest period not yet cut ({zone})",
            field=field,
            code=f"{code}_too_early",
        )
    return asked


def next_possible_move(now: datetime, from_zone: str, to_zone: str) -> str | None:
    """The first coming period that starts at the same instant in both zones; None when there is none in sight.

    >>> next_possible_move(datetime(2026, 11, 5, tzinfo=UTC), "UTC", "UTC")
    '2026-12'
    """
    period = period_of(now, to_zone)
    for _ in range(MOVE_PERIODS_MAX):
        period = next_period(period, to_zone)
        if period.start > now and is_boundary(period.start, from_zone):
            return period.name
    return None


def coming_start(period: str, now: datetime, zone: str) -> datetime | None:
    """The start of a period that is still to come in a zone, at most `MOVE_PERIODS_MAX` ahead; None for any other.

    >>> coming_start("2026-12", datetime(2026, 11, 30, 23, 59, tzinfo=UTC), "UTC").isoformat()
    '2026-12-01T00:00:00+00:00'
    >>> coming_start("2026-12", datetime(2026, 12, 1, tzinfo=UTC), "UTC") is None
    True
    """
    coming = period_of(now, zone)
    for _ in range(MOVE_PERIODS_MAX):
        coming = next_period(coming, zone)
        if coming.name == period:
            return coming.start
    return None


def move_start(period: str, now: datetime, from_zone: str, to_zone: str) -> datetime:
    """The instant at which a move takes effect: the start of a coming period of both groups, strictly after now.

    >>> move_start("2026-12", datetime(2026, 11, 30, 23, 59, tzinfo=UTC), "UTC", "UTC").isoformat()
    '2026-12-01T00:00:00+00:00'
    >>> move_start("2026-11", datetime(2026, 11, 5, tzinfo=UTC), "UTC", "UTC")
    Traceback (most recent call last):
    services.kernel.errors.Refused: period: accounts move only at the start of a coming period of both groups; the next possible one is 2026-12
    """
    possible = next_possible_move(now, from_zone, to_zone)
    if possible is None:
        raise Refused(
            f"periods of {from_zone} and {to_zone} do not start at the same instant within {MOVE_PERIODS_MAX} periods; "
            f"choose a group in {from_zone}",
            field="period",
            code="zones_differ",
        )
    start = coming_start(period, now, to_zone)
    if start is None or not is_boundary(start, from_zone):
        raise Refused(
            "accounts move only at the start of a coming period of both groups"
            f"{_too_far(period, possible)}; the next possible one is {possible}",
            field="period",
            code="not_a_coming_period",
        )
    return start


def _too_far(period: str, possible: str) -> str:
    return f", at most {MOVE_PERIODS_MAX} periods ahead" if period > possible else ""
