"""Calls that charges end: what they hold goes back before credits pay for their charges, all in the charges' own transaction.

Asks nothing of accounts that hold nothing and of whose calls the last one is long over; only where calls hold something of the
credits that pay, it may still be theirs: after an outage charges may come before the tick that takes it back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from contracts.topics import USAGE_CHARGES
from services.balance import credit_store, store
from services.balance.leases import KEPT, Leases
from services.balance.shares import Shares
from services.balance.store import CallKey
from services.runtime.records import Record
from services.runtime.work import Work

VOICE = "voice."  # what only calls are priced as: another service may use the same word as its reference

# The charge path reads only what it needs of every charge; this is read for accounts with calls alone.
_read = USAGE_CHARGES.reading("call_leg_id").judge


@dataclass(slots=True)
class _Holder:
    account_id: str
    held_nano: int
    calls_until: datetime | None


class EndedCalls:
    """The calls of a batch of charges; their wallets are locked. First `load`, last `save`."""

    def __init__(self, holders: dict[str, _Holder], leases: Leases, legs: Collection[CallKey]) -> None:
        self._holders = holders
        self._leases = leases
        self._calls = [call for leg in legs if (call := leases.get(leg)) is not None]
        self.sharing = {call.account_id for call in self._calls if call.shared_nano}

    @classmethod
    async def load(
        cls, work: Work, records: Sequence[Record], standings: Sequence[store.Standing]
    ) -> EndedCalls | None:
        """The calls that these charges are of; None where none of these accounts ever had any."""
        holders: dict[str, _Holder] = {}
        lately: set[str] = set()
        for each in standings:
            if each.calls_until is not None:
                holders[each.account_id] = _Holder(each.account_id, each.held_nano, each.calls_until)
                if each.held_nano or each.calls_until > work.now - KEPT:
                    lately.add(each.account_id)
        if not holders:
            return None
        legs = _legs(records, lately) if lately else []
        return cls(holders, await Leases.load(work.connection, holders, legs, work.now), legs)

    def of(self, account_ids: Collection[str]) -> set[str]:
        """Those of these accounts that have calls, or ever had some."""
        return self._holders.keys() & account_ids

    def end(self, shares: Shares | None) -> None:
        """They are over, and hold nothing any more. ``shares``: of those in `sharing`, with their credits."""
        if shares is not None:
            self._leases.share(shares)
        for call in self._calls:
            self._leases.end(call, "charge")

    async def displace(self, work: Work, shares: Shares) -> None:
        """What charges took of what other calls of their accounts hold of shared credits is held of the accounts' own money."""
        nanos = shares.displaced()
        unread = [key for key in nanos if self._leases.get(key) is None]
        if unread:
            self._leases.bring(await store.calls_in_hand(work.connection, unread, (), work.now))
        for key, nano in nanos.items():
            call = self._leases.get(key)
            if call is not None:
                self._leases.displace(call, nano)

    async def save(self, work: Work, standings: Iterable[store.Standing]) -> list[store.Standing]:
        """Write them, and return the wallets as they stand then."""
        await self._leases.save(work.connection)
        return [
            each._replace(held_nano=self._holders[each.account_id].held_nano)
            if each.account_id in self._holders
            else each
            for each in standings
        ]


async def shares_to_lock(work: Work, account_ids: Collection[str]) -> list[credit_store.Share]:
    """What calls of these accounts hold of shared credits, which are to be locked; nothing is asked for nobody."""
    return await credit_store.shares_of(work.connection, account_ids) if account_ids else []


def _legs(records: Iterable[Record], account_ids: Collection[str]) -> list[CallKey]:
    """The calls of these accounts that charges name."""
    legs = []
    for record in records:
        charge = record.message.data
        if charge.account_id in account_ids and charge.product.startswith(VOICE):
            call_leg_id = _read(record.value or b"")["data"]["call_leg_id"]
            if call_leg_id is not None:
                legs.append((charge.account_id, call_leg_id))
    return legs
