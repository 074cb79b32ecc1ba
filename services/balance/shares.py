"""What calls hold of the credits that their payer group shares: the credits and each call's parts of them, in hand together.

The wallets of the calls are locked before, the credits here: all that a transaction needs of them by one statement, in the
order of their ids. Of a credit never more is held than is left; what is held of one that has expired, or of a group that its
account has left, is worth nothing and goes with its call.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from services.balance import credit_store
from services.balance.credit_store import Share
from services.balance.credits import Credit
from services.balance.holding import Lasting, lasts_s
from services.balance.store import CallKey
from services.balance.wallets import Wallet
from services.kernel.errors import Corrupt

CallRow = Mapping[str, Any]
"""A row of the table `call`."""


class Shares:
    """Locked credits, and the parts that calls of some accounts hold of them."""

    def __init__(self, account_ids: Collection[str], credits: Iterable[Credit], shares: Iterable[Share]) -> None:
        self.accounts = frozenset(account_ids)  # the parts of whose calls are in hand, as far as the calls are
        self._credits = {each.credit_id: each for each in credits}
        self._before = {credit_id: each.held_nano for credit_id, each in self._credits.items()}
        self._parts: dict[CallKey, dict[UUID, int]] = defaultdict(dict)
        self._changed: set[tuple[CallKey, UUID]] = set()
        for share in shares:
            self._parts[share.account_id, share.call_leg_id][share.credit_id] = share.nano

    @classmethod
    async def load(
        cls, connection: AsyncConnection, groups: Mapping[str, str | None], calls: Iterable[CallRow]
    ) -> Shares:
        """All credits of which these calls hold something, and what is left of those that the groups of these accounts share, by
        account; without the accounts of whose credits others hold one for longer than a moment."""
        shares = await _shares_of(connection, calls)
        shared_by = {group_id for group_id in groups.values() if group_id is not None}
        credits, held = await credit_store.lock_credits_soon(connection, shared_by, _credits_of(shares))
        held_ids, held_of = {each.credit_id for each in held}, {each.group_id for each in held}
        waiting = {share.account_id for share in shares if share.credit_id in held_ids}
        waiting |= {account_id for account_id, group_id in groups.items() if group_id in held_of}
        return cls(groups.keys() - waiting, credits, [each for each in shares if each.account_id not in waiting])

    @classmethod
    async def look(
        cls,
        connection: AsyncConnection,
        account_ids: Collection[str],
        group_ids: Iterable[str],
        calls: Iterable[CallRow],
    ) -> Shares:
        """The same without locks: to promise nothing."""
        shares = await _shares_of(connection, calls)
        return cls(account_ids, await credit_store.look_at_credits(connection, group_ids, _credits_of(shares)), shares)

    # ---- to hold -----------------------------------------------------------------------------------------------------

    def usable(self, group_id: str | None, now: datetime) -> list[Credit]:
        """The credits that accounts of a group share now, in the order in which they are spent."""
        shared = [
            each
            for each in self._credits.values()
            if each.account_id is None
            and each.group_id == group_id
            and each.expired_at is None
            and each.valid_from <= now
            and (each.expires_at is None or each.expires_at > now)
        ]
        return sorted(shared, key=lambda each: each.turn)

    def promising(self, key: CallKey, credit: Credit, now: datetime, runs_until: datetime | None) -> Lasting:
        """What a credit can promise to a call: what nobody holds of it and what the call itself does, to a slice whose lease
        ends before it."""
        nano = credit.free_nano + self._parts[key].get(credit.credit_id, 0)
        return Lasting(nano, None if credit.expires_at is None else lasts_s(now, credit.expires_at, runs_until))

    def held_nano(self, key: CallKey, credits: Iterable[Credit]) -> int:
        """What a call holds of these."""
        return sum(self._parts[key].get(each.credit_id, 0) for each in credits)

    def hold(self, key: CallKey, nano: int, credits: Sequence[Credit]) -> None:
        """Let a call hold so much of these in their turn, and nothing of others. What it holds of them already stays."""
        for credit_id in self._parts[key].keys() - {each.credit_id for each in credits}:
            self._set(key, credit_id, 0)
        left = nano - self.held_nano(key, credits)
        for credit in credits:
            more = min(left, credit.free_nano)
            if more > 0:
                self._set(key, credit.credit_id, self._parts[key].get(credit.credit_id, 0) + more)
                left -= more
        if left:
            raise Corrupt(f"{key} is promised {left} nanos that no shared credit has", field="shared_nano")

    def give_back(self, key: CallKey, nano: int) -> None:
        """So much less: first of what has expired and is worth nothing, then in the reverse order of holding."""
        parts = self._parts[key]
        turns = sorted(
            parts, key=lambda each: (self._of(each).expired_at is not None, self._of(each).turn), reverse=True
        )
        for credit_id in turns:
            less = min(nano, parts[credit_id])
            if less:
                self._set(key, credit_id, parts[credit_id] - less)
                nano -= less

    def _set(self, key: CallKey, credit_id: UUID, nano: int) -> None:
        self._of(credit_id).held_nano += nano - self._parts[key].get(credit_id, 0)
        self._note(key, credit_id, nano)

    def _note(self, key: CallKey, credit_id: UUID, nano: int) -> None:
        self._parts[key][credit_id] = nano
        self._changed.add((key, credit_id))

    def _of(self, credit_id: UUID) -> Credit:
        return self._credits[credit_id]

    # ---- to pay ------------------------------------------------------------------------------------------------------

    def tell_holders(self) -> None:
        """Tell the credits what calls of the accounts in hand hold of them: charges of those may use it."""
        for (account_id, _), parts in self._parts.items():
            for credit_id, nano in parts.items():
                credit = self._credits.get(credit_id)
                if credit is not None:
                    credit.held_by[account_id] = credit.held_by.get(account_id, 0) + nano

    def displaced(self) -> dict[CallKey, int]:
        """What charges took of what calls of their own account hold: by call, which holds it of these credits no more."""
        by_call: dict[CallKey, int] = defaultdict(int)
        for credit in self._credits.values():
            for account_id, nano in credit.displaced.items():
                left = nano
                for key in sorted(key for key in self._parts if key[0] == account_id):
                    part = self._parts[key].get(credit.credit_id, 0)
                    less = min(left, part)
                    if less:
                        self._note(key, credit.credit_id, part - less)
                        by_call[key] += less
                        left -= less
        return by_call

    # ---- to end ------------------------------------------------------------------------------------------------------

    @property
    def moved(self) -> list[Credit]:
        """The credits of which calls hold another amount now."""
        return [each for credit_id, each in self._credits.items() if each.held_nano != self._before[credit_id]]

    def tell(self, wallets: Mapping[str, Wallet]) -> None:
        """Tell wallets in hand what calls hold more or less of what their groups share than when they were read."""
        for credit in self.moved:
            if credit.expired_at is None:
                for wallet in wallets.values():
                    if wallet.shared_group_id == credit.group_id:
                        wallet.shared_held_nano += credit.held_nano - self._before[credit.credit_id]

    async def warned(self, connection: AsyncConnection) -> set[str]:
        """The groups of which some account is to be told of a low balance, or no more, by what calls hold now."""
        groups = {each.group_id for each in self.moved if each.group_id is not None and each.expired_at is None}
        return await credit_store.warned(connection, groups) if groups else set()

    async def save(self, connection: AsyncConnection) -> None:
        """Write what calls hold, and of credits that only calls have moved what they hold in all."""
        if self.moved:
            await credit_store.save_credits(connection, self.moved)
        await self.save_parts(connection)

    async def save_parts(self, connection: AsyncConnection) -> None:
        """Write what calls hold; the credits are written by whoever has moved them as well."""
        if self._changed:
            await credit_store.save_shares(
                connection,
                [
                    Share(*key, credit_id, self._parts[key][credit_id])
                    for key, credit_id in sorted(self._changed, key=lambda each: (each[0], each[1].bytes))
                ],
            )


async def _shares_of(connection: AsyncConnection, calls: Iterable[CallRow]) -> list[Share]:
    keys = [(row["account_id"], row["call_leg_id"]) for row in calls if row["shared_nano"]]
    return await credit_store.shares_of_calls(connection, keys) if keys else []


def _credits_of(shares: Iterable[Share]) -> set[UUID]:
    return {each.credit_id for each in shares}
