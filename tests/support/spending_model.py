"""The judge of daily spend limits: every charge is kept, and each day is added up again each time it is asked.

Written from the domain page alone, as `model.py` is; it imports nothing of `services` or `contracts`. Amounts are nanos.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date
from fractions import Fraction

NEAR, REACHED = "spend_limit_near", "spend_limit_reached"

Owner = tuple[str, str | None]  # account, and the outbound profile when the limit is a profile's


@dataclass(frozen=True)
class Spent:
    """One charge, or a correction below zero, on the UTC day of its event."""

    account_id: str
    outbound_profile: str | None
    day: date
    nano: int


@dataclass
class DailySpend:
    """Limits, what was spent, and each notice in the order it must have been given.

    What an account spent before its first limit counts where it was posted on the day of that limit: on that day, for the
    account as a whole.
    """

    limits: dict[Owner, int | None] = field(default_factory=dict)
    charges: list[Spent] = field(default_factory=list)
    posted_before: list[tuple[str, date, int]] = field(default_factory=list)
    notices: list[tuple[str, str | None, str, date, int, int]] = field(default_factory=list)

    def set_limit(self, owner: Owner, limit: int | None, today: date) -> None:
        if not self._is_limited(owner[0]):
            posted = [nano for account_id, day, nano in self.posted_before if (account_id, day) == (owner[0], today)]
            self.charges += [Spent(owner[0], None, today, nano) for nano in posted]
        self.limits[owner] = limit
        self._look(owner, today, today)

    def charge(self, batch: Iterable[Spent], today: date) -> None:
        """Charges that come together: what they come to is looked at once, at their end."""
        new = [each for each in batch if self._is_limited(each.account_id)]
        self.posted_before += [(each.account_id, today, each.nano) for each in batch if each not in new]
        self.charges += new
        touched = {(each.account_id, each.day, profile) for each in new for profile in {None, each.outbound_profile}}
        for account_id, day, profile in sorted(touched, key=lambda key: (key[0], key[1], key[2] or "")):
            self._look((account_id, profile), day, today)

    def spent(self, owner: Owner, day: date) -> int:
        account_id, profile = owner
        return sum(
            each.nano
            for each in self.charges
            if each.account_id == account_id and each.day == day and profile in (None, each.outbound_profile)
        )

    def _is_limited(self, account_id: str) -> bool:
        return any(owner[0] == account_id for owner in self.limits)

    def _look(self, owner: Owner, day: date, today: date) -> None:
        limit = self.limits.get(owner)
        if limit is None or day < today:
            return
        spent = self.spent(owner, day)
        last = next((told for told in reversed(self.notices) if told[:2] == owner and told[3] == day), None)
        said = last[2] if last is not None and last[4] == limit else None  # another limit is told of anew
        if spent >= limit and said != REACHED:
            self.notices.append((*owner, REACHED, day, limit, spent))
        elif Fraction(4, 5) * limit <= spent < limit and said is None:
            self.notices.append((*owner, NEAR, day, limit, spent))
