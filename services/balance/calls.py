"""Calls in progress: authorised, renewed, settled, released, charged. A call is one row with its lease, its place among the
concurrent calls, and what it holds of its account's money.

The wallets are locked before anything is read, so that calls that start at once are decided one after the other. A call holds
its place and its money for as long as its lease runs, by the one clock: what dies without a word is forgotten by itself.
Only charges debit. Source: domain, section 4; designs/holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import singledispatchmethod
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from contracts.usage import CALL_SECONDS_MAX
from services.balance import store
from services.balance.credits import Credit
from services.balance.daily_spend import WHOLE
from services.balance.evaluation import Tell, evaluate, has_consequences, load
from services.balance.funding import GROUP_CREDIT
from services.balance.holding import SETTLED_KEPT, SLICE_S_MAX, Lasting, cost_nano, lease_end, next_slice, settled_nano
from services.balance.leases import KEPT, Call, EndedBy, Leases
from services.balance.shares import Shares
from services.balance.spending import Allowed, CallAsked, Limit, decide
from services.balance.spending import Refused as RefusedCall
from services.balance.wallets import Wallet
from services.kernel.errors import InvalidInput, NotFound, Refused, TollbookError
from services.kernel.ids import derived_id
from services.kernel.money import format_nano
from services.runtime.database import Kept
from services.runtime.work import Work

CALLS_AT_ONCE = 10_000  # deleted in one go
ACCOUNTS_AT_ONCE = 500  # whose leases are ended in one go: as many wallets are locked
DAYS_KEPT = timedelta(days=40)  # of spend: events come 35 days late at most


@dataclass(frozen=True, slots=True)
class Authorize:
    """A call wants to start. ``content`` is a digest of all that was asked: the same request again has the same."""

    asked: CallAsked
    call_leg_id: str
    seconds: int
    content: bytes

    @property
    def account_id(self) -> str:
        return self.asked.account_id


@dataclass(frozen=True, slots=True)
class Renew:
    """A call wants to go on. ``number`` counts its renewals: 1, 2, 3…"""

    account_id: str
    call_leg_id: str
    number: int
    seconds: int


@dataclass(frozen=True, slots=True)
class Settle:
    """A call has ended after so many billable seconds; its charge is to come."""

    account_id: str
    call_leg_id: str
    seconds: int


@dataclass(frozen=True, slots=True)
class Release:
    """A call was never answered: no charge will come."""

    account_id: str
    call_leg_id: str


@dataclass(frozen=True, slots=True)
class Again:
    """A call wants to start that has no price now, or whose account is closed: ``error`` says so. One that was granted before is
    answered as before, since its answer may have been lost."""

    account_id: str
    call_leg_id: str
    content: bytes
    error: TollbookError


Request = Authorize | Again | Renew | Settle | Release


@dataclass(frozen=True, slots=True)
class Grant:
    """The call may go on for ``granted_s`` seconds, until its length is ``total_s``; ``max_s`` is how long it could become.

    ``max_s`` is by what is available now, if nothing else used it. The lease runs until ``expires_at``: a renewal has to come
    before. Nanos of ``currency``.
    """

    hold_id: UUID
    number: int
    granted_s: int
    total_s: int
    max_s: int
    held_nano: int
    currency: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Ended:
    """The call is over, by what, and what it still holds until its charge comes or ``expires_at``."""

    hold_id: UUID
    ended_by: EndedBy | None
    held_nano: int
    currency: str
    expires_at: datetime


Answer = Grant | RefusedCall | Ended


def hold_id(account_id: str, call_leg_id: str) -> UUID:
    """The id of a call's one hold, which every renewal raises."""
    return derived_id("hold", account_id, call_leg_id)


async def ask(connection: AsyncConnection, asked: CallAsked) -> Allowed | RefusedCall:
    """Whether a call could start now for a second at least; nothing is changed, and nothing is promised."""
    rows = await store.callers(connection, [asked.account_id], lock=False)
    if not rows:
        raise _unknown(asked.account_id)
    desk = Desk([dict(row._mapping) for row in rows])
    wallet = desk.caller(asked)
    over = await store.calls_in_hand(connection, (), [asked.account_id], desk.now)
    if wallet.shared_credit_nano > 0 or any(row["shared_nano"] for row in over):
        desk.share(await Shares.look(connection, [asked.account_id], _groups_of([wallet]), over))
    desk.leases.take(over)
    owners = {(asked.account_id, WHOLE), (asked.account_id, asked.outbound_profile or WHOLE)}
    desk.take_limits(await store.limits_of(connection, owners, desk.now))
    decision = desk.decide(asked)
    if isinstance(decision, RefusedCall):
        return decision
    begun = Call(asked.account_id, "", asked.outbound_profile or WHOLE, desk.now, desk.now, rates=asked.rates)
    granted = desk.grant(wallet, begun, asked, 1, before_s=0, number=0)
    return granted if isinstance(granted, RefusedCall) else decision


Decided = list[Answer | TollbookError | None]
"""The answers of requests, each in its place; what is wrong with one is its answer. None: nothing was decided or changed."""


async def carry_out_at_once(kept: Kept, requests: Sequence[Request]) -> tuple[Decided, set[str]]:
    """Decide requests without a lock, each statement a transaction of its own: one that reads and one that writes.

    The one that writes does so for each account only if nothing has touched its wallet since it was read, and nobody holds it.
    Beside the answers: the accounts of which there is more to it, limits, leases that are over, shared credits, something that
    follows from what is available then. `carry_out` does all of that. What is over of other calls counts as held as long as that
    makes no difference to what is granted; it goes back within a second.
    """
    rows, calls = await store.callers_at_once(kept, {(request.account_id, request.call_leg_id) for request in requests})
    if not rows:
        return [_unknown(request.account_id) for request in requests], set()
    desk = Desk(rows.values())
    desk.leases.take(calls)
    more = {account_id for account_id, _ in desk.owners_of_limits(requests)}
    answers = desk.answers(requests)
    more |= desk.leases.lapsed | desk.in_need
    more |= {each for each in desk.leases.moved if has_consequences(desk.wallets[each])}
    in_doubt = {each for each in desk.short - more if rows[each]["held_nano"] or rows[each]["shared_held_nano"]}
    if in_doubt:
        more |= await store.accounts_with_lapsed(kept, in_doubt, desk.now)
    changed = desk.leases.changed - more
    revisions = {each: rows[each]["revision"] for each in changed}
    undecided = more | changed - await desk.leases.save_if_unchanged(kept, revisions, changed)
    return _but_for(undecided, requests, answers), more


@dataclass(frozen=True, slots=True)
class Follows:
    """What follows from decided requests, in their own transaction: locked wallets to be looked at, and groups of which others are
    to be warned, as calls hold more or less of what they share."""

    now: datetime
    wallets: Mapping[str, Wallet]
    groups: Collection[str]

    def __bool__(self) -> bool:
        return bool(self.wallets or self.groups)


async def carry_out(connection: AsyncConnection, requests: Sequence[Request]) -> tuple[Decided, Follows | None]:
    """Decide requests of known accounts, each in the order they came, in one transaction; not of wallets that somebody holds.

    Those that their accounts' own money covers are decided without shared credits. Where one needs those, they are locked, after
    the wallets, and all is decided once more: nothing was written yet. Of accounts that need shared credits of which others hold
    one for longer than a moment nothing is decided.
    """
    rows = [
        dict(row._mapping)
        for row in await store.callers(connection, {request.account_id for request in requests}, lock=True)
    ]
    if not rows:
        return [None] * len(requests), None
    desk = Desk(rows)
    calls = await desk.calls_of(connection, requests)
    desk.leases.take(calls)
    owners = desk.owners_of_limits(requests)
    limits = await store.limits_of(connection, owners, desk.now) if owners else ()
    desk.take_limits(limits)
    answers = desk.answers(requests)
    shares = await desk.shares_in_need(connection, calls) if desk.in_need else None
    if shares is not None:
        desk = Desk(rows)
        desk.share(shares)
        desk.leases.take(calls)
        desk.take_limits(limits)
        answers = desk.answers(requests)
    undecided = desk.in_need
    await desk.leases.save(connection, but_for=undecided)
    warned: Collection[str] = ()
    if shares is not None:
        await shares.save(connection)
        shares.tell(desk.wallets)
        warned = await shares.warned(connection)
    moved = sorted(desk.leases.moved - undecided)
    looked_at = {each: desk.wallets[each] for each in moved if has_consequences(desk.wallets[each])}
    undecided |= {request.account_id for request in requests} - desk.wallets.keys()  # others hold their wallets
    return _but_for(undecided, requests, answers), Follows(desk.now, looked_at, warned)


def _groups_of(wallets: Iterable[Wallet]) -> set[str]:
    """The groups of these that share something."""
    return {each.shared_group_id for each in wallets if each.shared_group_id is not None}


def _but_for(
    undecided: Collection[str], requests: Iterable[Request], answers: Iterable[Answer | TollbookError]
) -> Decided:
    return [
        None if request.account_id in undecided else answer for request, answer in zip(requests, answers, strict=True)
    ]


class Desk:
    """What the requests of one transaction are decided by. Whatever one of them changes, the next one sees."""

    def __init__(self, rows: Collection[Mapping[str, Any]]) -> None:
        """From the columns of wallets, one at least, each with the one clock's instant."""
        self.now: datetime = next(iter(rows))["now"]
        self.wallets = {row["account_id"]: Wallet.of(row) for row in rows}
        self.leases = Leases(self.wallets, self.now)
        self.short: set[str] = set()  # accounts that have less than somebody asked for
        self.in_need: set[str] = set()  # accounts that shared credits make a difference to, which are not in hand
        self._shares: Shares | None = None
        self._limits: dict[tuple[str, str], Any] = {}
        self._started: Counter[tuple[str, str]] = Counter()  # since the limits were read, less what ended

    async def calls_of(self, connection: AsyncConnection, requests: Iterable[Request]) -> Sequence[Mapping[str, Any]]:
        """The rows of the calls that these requests are about, and of those of their accounts whose leases are over."""
        keys = {(each.account_id, each.call_leg_id) for each in requests if each.account_id in self.wallets}
        holding = [name for name, each in self.wallets.items() if each.held_nano or each.shared_held_nano]
        return await store.calls_in_hand(connection, keys, holding, self.now) if keys or holding else ()

    async def shares_in_need(self, connection: AsyncConnection, calls: Iterable[Mapping[str, Any]]) -> Shares:
        """Lock the shared credits that make a difference, for all accounts in hand that share them, with what these calls hold of
        them; but for those of which others hold one."""
        groups = _groups_of(self.wallets[each] for each in self.in_need)
        accounts = {
            name: each.shared_group_id
            for name, each in self.wallets.items()
            if name in self.in_need or each.shared_group_id in groups
        }
        return await Shares.load(connection, accounts, [row for row in calls if row["account_id"] in accounts])

    def share(self, shares: Shares) -> None:
        """From now on what these accounts may hold of shared credits is in hand as well."""
        self._shares = shares
        self.leases.share(shares)

    def answers(self, requests: Iterable[Request]) -> list[Answer | TollbookError]:
        """Decide each in the order they came; what is wrong with one is its answer."""
        answers: list[Answer | TollbookError] = []
        for request in requests:
            try:
                answers.append(self.answer(request))
            except TollbookError as error:
                answers.append(error)
        return answers

    def take_limits(self, rows: Iterable[Any]) -> None:
        """The limits that count for these requests, with what was spent today and the calls in progress."""
        self._limits = {(row.account_id, row.outbound_profile): row for row in rows}

    def owners_of_limits(self, requests: Iterable[Request]) -> set[tuple[str, str]]:
        """Whose limits these requests ask for: only accounts of which spend is counted have ever had one."""
        owners: set[tuple[str, str]] = set()
        for request in requests:
            wallet = self.wallets.get(request.account_id)
            if wallet is None or not wallet.spend_counted:
                continue
            if isinstance(request, Authorize):
                profile = request.asked.outbound_profile or WHOLE
            elif isinstance(request, Renew) and (call := self.leases.get((request.account_id, request.call_leg_id))):
                profile = call.outbound_profile
            else:
                continue
            owners |= {(request.account_id, WHOLE), (request.account_id, profile)}
        return owners

    def caller(self, asked: CallAsked) -> Wallet:
        """The wallet of one who asks. `NotFound` when the registry never told the account, `InvalidInput` for a currency."""
        wallet = self._wallet(asked.account_id)
        if wallet.currency != asked.currency:
            raise InvalidInput(f"the wallet is in {wallet.currency}", field="currency", code="wrong_currency")
        return wallet

    def decide(self, asked: CallAsked) -> Allowed | RefusedCall:
        """What stands against a call that wants to start, but for its money."""
        wallet = self.wallets[asked.account_id]
        limits = []
        for profile in dict.fromkeys((WHOLE, asked.outbound_profile or WHOLE)):
            row = self._limits.get((asked.account_id, profile))
            if row is not None:
                calls = row.calls + self._started[asked.account_id, profile]
                limits.append(Limit(profile or None, row.daily_spend_nano, row.calls_max, row.spent_nano, calls))
        return decide(asked, limits, closed=wallet.closed_at is not None, suspended=wallet.is_suspended)

    @singledispatchmethod
    def answer(self, request: Any) -> Answer:
        """Decide one request; raises what is wrong with it."""
        raise TypeError(type(request))

    @answer.register
    def _authorize(self, request: Authorize) -> Answer:
        asked = request.asked
        wallet = self.caller(asked)
        _check_seconds(request.seconds, least=1)
        call = self._found(asked.account_id, request.call_leg_id)
        if call is not None:
            _refuse_ended(call)
            if call.runs(self.now):
                if call.content != request.content:
                    raise _asked_otherwise(call, "call_leg_id")
                if call.number:
                    raise _out_of_order(call)
                return self._granted(wallet, call)
        decision = self.decide(asked)
        if isinstance(decision, RefusedCall):
            return decision
        begun = Call(
            asked.account_id, request.call_leg_id, asked.outbound_profile or WHOLE, self.now, self.now,
            rates=asked.rates, content=request.content,
        )  # fmt: skip
        return self.grant(wallet, begun, asked, request.seconds, before_s=0, number=0)

    @answer.register
    def _again(self, request: Again) -> Answer:
        wallet = self.wallets.get(request.account_id)
        call = None if wallet is None else self._found(request.account_id, request.call_leg_id)
        is_first_grant = (
            call is not None and call.runs(self.now) and not call.number and call.content == request.content
        )
        if wallet is None or call is None or not is_first_grant:
            raise request.error
        return self._granted(wallet, call)

    @answer.register
    def _renew(self, request: Renew) -> Answer:
        wallet = self._wallet(request.account_id)
        _check_seconds(request.seconds, least=1)
        call = self._call(request)
        _refuse_ended(call)
        runs = call.runs(self.now)
        again = request.number == call.number > 0
        if again and runs:
            if call.asked_s != request.seconds:
                raise _asked_otherwise(call, "seconds")
            return self._granted(wallet, call)
        if not again and request.number != call.number + 1:
            raise _out_of_order(call)
        asked = CallAsked(call.account_id, call.outbound_profile or None, 0, wallet.currency, call.rates)
        # Limits stop calls that start. One that let its lease run out has lost its place, and starts again.
        decision = self.decide(asked) if not runs else _against(asked, wallet)
        if isinstance(decision, RefusedCall):
            return decision
        before_s = call.total_s - call.granted_s if again else call.total_s
        return self.grant(wallet, call, asked, request.seconds, before_s=before_s, number=request.number)

    @answer.register
    def _settle(self, request: Settle) -> Answer:
        wallet = self._wallet(request.account_id)
        _check_seconds(request.seconds, least=0)
        call = self._call(request)
        if call.ended_by == "settle" and call.settled_s != request.seconds:
            raise _asked_otherwise(call, "seconds")
        if call.ended_at is None:
            nano = settled_nano(call.rates, request.seconds, call.held_nano)
            call.settled_s = request.seconds
            self._end(call, "settle", nano)
        return self._ended(wallet, call)

    @answer.register
    def _release(self, request: Release) -> Answer:
        wallet = self._wallet(request.account_id)
        call = self._call(request)
        if call.ended_at is None:
            self._end(call, "release", 0)
        return self._ended(wallet, call)

    # ---- small parts ----

    def _wallet(self, account_id: str) -> Wallet:
        wallet = self.wallets.get(account_id)
        if wallet is None or not wallet.is_known:
            raise _unknown(account_id)
        return wallet

    def _found(self, account_id: str, call_leg_id: str) -> Call | None:
        call = self.leases.get((account_id, call_leg_id))
        if call is not None and call.shared_nano and call.is_over(self.now):
            self.in_need.add(account_id)  # it holds nothing, and is to be answered so
        return call

    def _call(self, request: Renew | Settle | Release) -> Call:
        call = self._found(request.account_id, request.call_leg_id)
        if call is None:
            raise NotFound(
                f"no call {request.call_leg_id} of {request.account_id} is known, and nothing is held for it; it was never"
                " granted, or ended more than an hour ago",
                field="call_leg_id",
                code="unknown_call",
                retry_can_help=False,
            )
        return call

    def grant(
        self, wallet: Wallet, call: Call, asked: CallAsked, seconds: int, *, before_s: int, number: int
    ) -> Answer:
        """The slice of a call that what its account has alone covers, and what its group shares where that is too little."""
        if before_s >= CALL_SECONDS_MAX:
            raise Refused(
                f"no call is longer than {CALL_SECONDS_MAX} s",
                field="call_leg_id",
                code="call_too_long",
                retry_can_help=False,
            )
        shares = self._shares if self.leases.can_share(call.account_id) else None
        runs_until = call.expires_at if call.runs(self.now) else None
        usable: list[Credit] = []
        beside: list[Lasting] = []
        if shares is None and wallet.shared_free_nano > 0:
            beside = [Lasting(wallet.shared_free_nano, 0)]  # for how long the call could become, which promises nothing
        elif shares is not None:
            usable = shares.usable(wallet.shared_group_id, self.now)
            beside = [shares.promising(call.key, each, self.now, runs_until) for each in usable]
        own_nano = wallet.alone_nano + call.own_nano
        made = next_slice(call.rates, spendable_nano=own_nano, before_s=before_s, asked_s=seconds, beside=beside)
        if made is None or made.granted_s < min(seconds, SLICE_S_MAX):
            self.short.add(call.account_id)
            if shares is None and (wallet.shared_free_nano > 0 or call.account_id in self.leases.left_over):
                self.in_need.add(call.account_id)
        if shares is None and call.shared_nano:
            self.in_need.add(call.account_id)
        if call.account_id in self.in_need:
            return _LATER
        if made is None:
            shared_nano = sum(each.nano for each in beside if each.lasts(1))
            return insufficient(wallet, asked, before_s, shared_nano)
        if not call.runs(self.now):
            self._count(call, 1)
        call.expires_at = lease_end(self.now, made.granted_s, call.expires_at)
        call.number, call.asked_s = number, seconds
        call.granted_s, call.total_s, call.max_s = made.granted_s, made.total_s, made.max_s
        shared_nano = 0
        if shares is not None:
            lasting = [credit for credit, each in zip(usable, beside, strict=True) if each.lasts(made.granted_s)]
            rest_nano = made.held_nano - shares.held_nano(call.key, lasting)
            shared_nano = made.held_nano - max(call.own_nano, min(own_nano, rest_nano))
            shares.hold(call.key, shared_nano, lasting)
        self.leases.hold(call, made.held_nano, shared_nano=shared_nano)
        return self._granted(wallet, call)

    def _end(self, call: Call, by: EndedBy, nano: int) -> None:
        if call.shared_nano and not self.leases.can_share(call.account_id):
            self.in_need.add(call.account_id)
            return
        if call.runs(self.now):
            self._count(call, -1)
        if nano:
            call.expires_at = self.now + SETTLED_KEPT
        self.leases.end(call, by, nano)

    def _count(self, call: Call, change: int) -> None:
        for profile in {WHOLE, call.outbound_profile}:
            self._started[call.account_id, profile] += change

    def _granted(self, wallet: Wallet, call: Call) -> Grant:
        return Grant(
            hold_id(*call.key), call.number, call.granted_s, call.total_s, call.max_s, call.held_nano, wallet.currency,
            call.expires_at,
        )  # fmt: skip

    def _ended(self, wallet: Wallet, call: Call) -> Ended:
        return Ended(hold_id(*call.key), call.ended_by, call.held_nano, wallet.currency, call.expires_at)


_LATER = RefusedCall("insufficient_credit", "is decided once more, with shared credits in hand")
"""In place of an answer that nobody is given."""


def insufficient(wallet: Wallet, asked: CallAsked, before_s: int, shared_nano: int) -> RefusedCall:
    """The refusal for want of money: what is there, ``shared_nano`` of what the group shares among it, and what one second more
    would cost. Who shares more than that is told why it does not help."""
    more = cost_nano(asked.rates, before_s + 1) - cost_nano(asked.rates, before_s)
    what = "the next second" if before_s else "the first second"
    message = (
        f"account {asked.account_id} has {format_nano(wallet.alone_nano + shared_nano)} {wallet.currency} available; {what} costs"
        f" {format_nano(more)}"
    )
    if wallet.shared_credit_nano > shared_nano:
        message += (
            f"; of the {format_nano(wallet.shared_credit_nano)} that its payer group shares {format_nano(shared_nano)} can be"
            " promised to this call: other calls hold the rest, or it expires too soon"
        )
    return RefusedCall("insufficient_credit", message)


def _against(asked: CallAsked, wallet: Wallet) -> Allowed | RefusedCall:
    return decide(asked, [], closed=wallet.closed_at is not None, suspended=wallet.is_suspended)


def _check_seconds(seconds: int, *, least: int) -> None:
    if not least <= seconds <= CALL_SECONDS_MAX:
        raise InvalidInput(f"must be from {least} to {CALL_SECONDS_MAX}", field="seconds")


def _refuse_ended(call: Call) -> None:
    if call.ended_at is not None:
        raise Refused(
            f"call {call.call_leg_id} has ended; give each call an id of its own",
            field="call_leg_id",
            code="call_ended",
            retry_can_help=False,
        )


def _asked_otherwise(call: Call, field: str) -> Refused:
    return Refused(
        f"call {call.call_leg_id} was asked for with other content before; send the same again, or give each call an id"
        " of its own",
        field=field,
        code="idempotency_conflict",
        retry_can_help=False,
    )


def _out_of_order(call: Call) -> Refused:
    return Refused(
        f"the next renewal of call {call.call_leg_id} is number {call.number + 1}",
        field="number",
        code="out_of_order",
        retry_can_help=False,
    )


def _unknown(account_id: str) -> NotFound:
    return NotFound(f"no account {account_id} is known; create it first", field="account_id", code="unknown_account")


# ---- ticks ---------------------------------------------------------------------------------------------------------


async def end_leases(work: Work, *, tell: Tell) -> None:
    """Tick: the money of calls whose leases are over goes back, and what they hold of shared credits; nobody may have asked about
    their wallets since. What somebody keeps a credit of for longer than a moment is left to a later tick: no wallet waits for it."""
    accounts = await store.accounts_holding_over(work, ACCOUNTS_AT_ONCE)
    if accounts:
        wallets = await load(work, accounts)  # which takes the money back
        await _end_shares(
            work, {name: wallets[name] for name, shares in accounts.items() if shares and name in wallets}
        )
        await evaluate(
            work, {name: each for name, each in wallets.items() if has_consequences(each)}, tell=tell, funds_of=()
        )


async def _end_shares(work: Work, wallets: Mapping[str, Wallet]) -> None:
    if not wallets:
        return
    over = await store.calls_in_hand(work.connection, (), wallets, work.now)
    shares = await Shares.load(work.connection, dict.fromkeys(wallets), over)
    leases = Leases(wallets, work.now, shares)
    leases.take(over)
    await leases.save(work.connection)
    await shares.save(work.connection)
    shares.tell(wallets)
    await work.set_timers(GROUP_CREDIT, dict.fromkeys(await shares.warned(work.connection), work.now))


async def forget(work: Work) -> None:
    """Tick: calls whose leases ended long ago, and days that no event can reach any more."""
    await store.forget_calls(work, work.now - KEPT, CALLS_AT_ONCE)
    await store.forget_days(work, (work.now - DAYS_KEPT).date())
