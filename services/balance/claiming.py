"""Commands that are read again after a restore: each takes over what it asked for in an earlier life, and asks for no money anew.

The lanes of commands are restored with the database, so every command whose effects were lost comes again. What it asked of a
processor may have been charged: `adopting` has put the attempt where the command finds it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import Literal, Self

from services.balance import store
from services.runtime.work import Work


class Claims:
    """Undone attempts of some accounts, whose wallets are locked, that wait for their commands."""

    def __init__(self, waiting: Collection[store.Unclaimed]) -> None:
        self._waiting: dict[str, list[store.Unclaimed]] = defaultdict(list)
        for each in waiting:
            self._waiting[each.account_id].append(each)
        self._ended: list[store.Unclaimed] = []

    @classmethod
    async def load(cls, work: Work, account_ids: Collection[str]) -> Self:
        return cls(await store.unclaimed(work, account_ids) if account_ids else ())

    def take(
        self, kind: Literal["manual", "group"], account_id: str, command_id: str, nano: int, token: str | None = None
    ) -> store.Unclaimed | None:
        """The attempt that this command asked for, if it did. Where an attempt's command is not known, the first one takes it over
        that asks for the same amount of the same account, by the token that it brings if any: which of two equal ones it was makes
        no difference. What stands as `manual` then may be a group's."""
        own = self._waiting[account_id]
        named = (each for each in own if (each.kind, each.command_id) == (kind, command_id))
        alike = (
            each
            for each in own
            if each.command_id is None
            and each.amount_nano == nano
            and each.kind in (kind, "manual")
            and token in (None, each.charged)
        )
        found = next(named, None) or next(alike, None)
        if found is not None:
            own.remove(found)
        return found

    def end(self, attempt: store.Unclaimed) -> None:
        """Taken over, as this says."""
        self._ended.append(attempt)

    async def write(self, work: Work) -> None:
        """Save what was taken over."""
        if self._ended:
            await store.end_unclaimed(work, self._ended)
            self._ended = []
