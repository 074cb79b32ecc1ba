"""When an account is suspended for want of funds, and when that reason is lifted.

Funds <= 0 suspend, except while a recharge that was requested less than 15 minutes ago would bring them above zero; the
exception only delays. A suspended account is restored when its funds are above zero. Other reasons (`overdue`, `operator`) stand beside this one, and each is lifted by
itself. Source: domain, section 4; designs/ledger, "Postpaid".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from services.balance.recharge import RESULT_TIMEOUT, Attempt


@dataclass(frozen=True, slots=True)
class Suspend:
    """The reason `funds` stands from now on."""


@dataclass(frozen=True, slots=True)
class Restore:
    """The reason `funds` stands no more."""


@dataclass(frozen=True, slots=True)
class Unchanged:
    """Nothing to tell. ``look_again_at``: a suspension is only delayed until then."""

    look_again_at: datetime | None = None


def judge(
    *, funds_nano: int, suspended: bool, attempts: Iterable[Attempt], now: datetime
) -> Suspend | Restore | Unchanged:
    """Compare an account's funds (available credit without subtracting holds) with its state.

    Funds -5 with 130 requested 2 minutes ago: not suspended, looked at again at 15 minutes; then suspended. Funds -200
    with 130 requested: suspended at once, 130 does not lift it above zero.
    """
    if funds_nano > 0:
        return Restore() if suspended else Unchanged()
    if suspended:
        return Unchanged()
    deadline = hope_ends_at(funds_nano, attempts, now)
    return Suspend() if deadline is None else Unchanged(deadline)


def hope_ends_at(funds_nano: int, attempts: Iterable[Attempt], now: datetime) -> datetime | None:
    """Until when a recharge on its way delays the suspension; None when none does."""
    for attempt in attempts:
        deadline = attempt.requested_at + RESULT_TIMEOUT
        on_its_way = attempt.kind == "auto" and attempt.state == "requested" and now < deadline
        if on_its_way and funds_nano + attempt.amount_nano > 0:
            return deadline
    return None
