"""Calls of locked wallets in hand: what each holds and what their wallets hold are changed together, or not at all.

A hold whose lease is over holds nothing: it is taken back here before anything is decided about its wallet. What it holds of
shared credits is taken back where those are in hand as well, by the tick that ends leases at the latest.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol

from sqlalchemy.ext.asyncio import AsyncConnection

from services.balance import store
from services.balance.holding import Rate, Rates
from services.balance.shares import Shares
from services.balance.store import CallKey
from services.kernel.errors import Corrupt
from services.runtime.database import Kept

EndedBy = Literal["settle", "release", "charge"]

KEPT = timedelta(
    hours=1
)  # after its lease a call is remembered: longer than any copy of what was said of it is under way


@dataclass(slots=True)
class Call:
    """One call: its lease, what it holds by which rates, and its last grant. ``number`` 0 is the authorisation.

    ``held_nano`` is all that it holds, ``shared_nano`` what of it is of shared credits; the rest is its account's own money.
    """

    account_id: str
    call_leg_id: str
    outbound_profile: str
    started_at: datetime
    expires_at: datetime
    ended_at: datetime | None = None
    ended_by: EndedBy | None = None
    settled_s: int | None = None
    held_nano: int = 0
    rates: Rates = ()
    content: bytes | None = None
    number: int = 0
    asked_s: int = 0
    granted_s: int = 0
    total_s: int = 0
    max_s: int = 0
    shared_nano: int = 0

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Call:
        """From a row of the table."""
        rates = tuple(Rate(*each) for each in json.loads(row["rates"]))
        return cls(**{**row, "rates": rates})

    @property
    def key(self) -> CallKey:
        return self.account_id, self.call_leg_id

    def row(self) -> Mapping[str, Any]:
        """As the row to save."""
        values = {name: getattr(self, name) for name in _NAMES}
        values["rates"] = rates_text(self.rates)
        return values

    def runs(self, now: datetime) -> bool:
        """Whether it is in progress: its lease runs, and nobody has said that it ended."""
        return self.ended_at is None and self.expires_at > now

    def is_over(self, now: datetime) -> bool:
        """Whether its lease is: it holds nothing any more, whatever is written."""
        return self.expires_at <= now

    @property
    def own_nano(self) -> int:
        """What it holds of its account's own money."""
        return self.held_nano - self.shared_nano


_NAMES = tuple(field.name for field in fields(Call))


def rates_text(rates: Rates) -> str:
    """Rates as they are stored: numbers in the order of `Rate`.

    >>> rates_text((Rate(14_000_000, 60, 0, 60, 6),))
    '[[14000000, 60, 0, 60, 6]]'
    """
    return json.dumps(
        [[each.price_nano, each.per_s, each.connection_fee_nano, each.minimum_s, each.increment_s] for each in rates]
    )


class Holder(Protocol):
    """A locked wallet, as far as holds are concerned."""

    account_id: str
    held_nano: int
    calls_until: datetime | None


class Leases:
    """The calls that a transaction works with. Their wallets are locked, and are changed here in memory too.

    ``shares`` are the shared credits that they hold something of, or may; without them nothing of those is changed.
    """

    def __init__(self, holders: Mapping[str, Holder], now: datetime, shares: Shares | None = None) -> None:
        self._holders = holders
        self._now = now
        self._shares = shares
        self._before = {account_id: holder.held_nano for account_id, holder in holders.items()}
        self._calls: dict[CallKey, Call] = {}
        self._changed: dict[CallKey, Call] = {}
        self._sharing: set[str] = set()  # accounts whose calls hold another part of shared credits than before
        self.lapsed: set[str] = set()  # accounts of which something was taken back, since leases of theirs are over
        self.left_over: set[str] = set()  # of these: what calls hold of shared credits that are not in hand

    @classmethod
    async def load(
        cls, connection: AsyncConnection, holders: Mapping[str, Holder], keys: Iterable[CallKey], now: datetime
    ) -> Leases:
        """The calls of these keys that there are, and of every hold that is over the money back in its wallet."""
        leases = cls(holders, now)
        keys = list(keys)
        holding = [account_id for account_id, holder in holders.items() if holder.held_nano]
        if keys or holding:
            leases.take(await store.calls_in_hand(connection, keys, holding, now))
        return leases

    def take(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Calls as they were read, into the hand."""
        for call in self.bring(rows):
            if call.held_nano and call.is_over(self._now):
                self._lapse(call)

    def bring(self, rows: Iterable[Mapping[str, Any]]) -> list[Call]:
        """The same without taking back what is over; returns those that were not in hand before."""
        fresh = []
        for row in rows:
            call = Call.of(row)
            if call.key not in self._calls:  # one that is asked for, and over as well, comes twice
                self._calls[call.key] = call
                fresh.append(call)
        return fresh

    def share(self, shares: Shares) -> None:
        """From now on shared credits are in hand as well."""
        self._shares = shares

    def _lapse(self, call: Call) -> None:
        self.lapsed.add(call.account_id)
        if self.can_share(call.account_id):
            self.reduce(call, 0)
            return
        if call.own_nano:
            self.hold(call, call.shared_nano, shared_nano=call.shared_nano)
        if call.shared_nano:
            self.left_over.add(call.account_id)

    def can_share(self, account_id: str) -> bool:
        """Whether what calls of an account hold of shared credits is in hand, with the credits."""
        return self._shares is not None and account_id in self._shares.accounts

    def get(self, key: CallKey) -> Call | None:
        """A call that was asked for, if it is there."""
        return self._calls.get(key)

    def hold(self, call: Call, nano: int, *, shared_nano: int = 0) -> None:
        """Let a call hold so much from now on, in its wallet too; of it so much of shared credits, of which `Shares` knows.
        What else was changed of it is saved with it."""
        holder = self._holders[call.account_id]
        holder.held_nano += nano - shared_nano - call.own_nano
        if shared_nano != call.shared_nano:
            self._sharing.add(call.account_id)
        call.held_nano, call.shared_nano = nano, shared_nano
        if holder.calls_until is None or holder.calls_until < call.expires_at:
            holder.calls_until = call.expires_at
        self._calls[call.key] = self._changed[call.key] = call

    def reduce(self, call: Call, nano: int) -> None:
        """Let a call hold no more than so much: what it holds of shared credits goes back first, so that others can use it."""
        shared_nano = max(0, nano - call.own_nano)
        if shared_nano != call.shared_nano:
            if self._shares is None or call.account_id not in self._shares.accounts:
                raise Corrupt(f"call {call.call_leg_id} holds of credits that are not in hand", field="shared_nano")
            self._shares.give_back(call.key, call.shared_nano - shared_nano)
        self.hold(call, nano, shared_nano=shared_nano)

    def displace(self, call: Call, nano: int) -> None:
        """A charge of the account has taken so much of what a call of its holds of shared credits: it holds it of the account's
        own money now, or not at all where its lease is over."""
        whole = call.held_nano - nano if call.is_over(self._now) else call.held_nano
        self.hold(call, whole, shared_nano=call.shared_nano - nano)

    def end(self, call: Call, by: EndedBy, nano: int = 0) -> None:
        """The call is over: it frees its place, and what it holds but for ``nano``."""
        if call.ended_at is None:
            call.ended_at = self._now
        call.ended_by = by
        self.reduce(call, nano)

    @property
    def changed(self) -> set[str]:
        """The accounts of calls that are to be saved."""
        return {account_id for account_id, _ in self._changed}

    @property
    def moved(self) -> set[str]:
        """The accounts whose available credit is another one now."""
        return self._sharing | {each for each in self.changed if self._holders[each].held_nano != self._before[each]}

    async def save(self, connection: AsyncConnection, *, but_for: Collection[str] = ()) -> None:
        """Write what was changed, in one statement, but for some accounts; the wallets are locked."""
        rows, held = self._to_save(self.changed.difference(but_for))
        if rows and await store.save_calls(connection, rows, held) != len(held):
            raise Corrupt("a wallet held another amount than when it was locked", field="held_nano")

    async def save_if_unchanged(
        self, kept: Kept, revisions: Mapping[str, str], account_ids: Collection[str]
    ) -> set[str]:
        """The same of wallets that are not locked: of those among these that nobody has touched since; returns which."""
        rows, held = self._to_save(account_ids)
        return await store.save_calls_if_unchanged(kept, rows, held, revisions) if rows else set()

    def _to_save(self, account_ids: Collection[str]) -> tuple[Sequence[Mapping[str, Any]], Sequence[store.Held]]:
        held = [
            store.Held(each, self._before[each], self._holders[each].held_nano, self._holders[each].calls_until)
            for each in sorted(account_ids)
        ]
        return [self._changed[key].row() for key in sorted(self._changed) if key[0] in account_ids], held


async def lapse(connection: AsyncConnection, holders: Mapping[str, Holder], now: datetime) -> None:
    """Take back what calls of these locked wallets hold whose leases are over; asks nothing where nothing is held."""
    leases = await Leases.load(connection, holders, (), now)
    await leases.save(connection)
