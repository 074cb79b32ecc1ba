"""One account's payments as the designs tell them, plain and slow: the judge of random runs. It imports nothing of the services.

`RechargeModel` knows the rule and the timers; here are the facts around it: payments by hand, results in any order as sets,
refunds, disputes, cancels, and a machine that sleeps: between two facts the clock jumps, and what was due on the way is done
at the end of the jump, all of it. Sources: domain, section 4; designs/recharge.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from tests.support.model import Attempt, RechargeModel, Result, payment_effect

CANCELLED = ("error", "cancelled", "never_seen")
RETRY = timedelta(minutes=15)


@dataclass
class PaymentModel(RechargeModel):
    """``said`` is the set of results of each attempt, ``balance_nano`` the wallet; the method counts its deletions."""

    balance_nano: int = 0
    said: dict[str, set[Result]] = field(default_factory=dict)
    brought: dict[str, int] = field(
        default_factory=dict
    )  # attempts that brought a method, with the deletions before them
    deletions: int = 0
    paused_by: str | None = None

    def advance(self, to: datetime) -> None:
        self.now = max(self.now, to)
        super().advance(to)

    def move_wallet(self, at: datetime, nano: int) -> None:
        """A charge (negative) or goodwill."""
        self.balance_nano += nano
        self.change(at, nano)

    def forget_method(self, at: datetime) -> None:
        if self.method:
            self.deletions += 1
        self.delete_method(at)

    def keep_method(self, at: datetime) -> None:
        """Refused while one is saved."""
        self.advance(at)
        if not self.method:
            self._saved()
            self._evaluate()

    def pay(self, at: datetime, nano: int, *, brings_method: bool) -> Attempt | None:
        """By hand; None when the rules refuse it."""
        self.advance(at)
        left = self.left_today()
        if nano < 10 * 10**9 or not (brings_method or self.method) or not (self.level_2 or nano <= left):
            return None
        attempt = self.pay_by_hand(at, nano)
        if brings_method:
            self.brought[attempt.attempt_id] = self.deletions
        return attempt

    def hear(self, at: datetime, attempt: Attempt, result: Result) -> bool:
        """One result; False when it cannot be true together with what was said before, so that it is not counted."""
        self.advance(at)
        said = self.said.setdefault(attempt.attempt_id, set())
        if result in said:
            return True
        failed = {each.part for each in said if each.kind == "refund_failed"}
        given_back = sum(each.amount_nano for each in said if each.kind == "refunded" and each.part not in failed)
        if result.kind == "refunded" and given_back + result.amount_nano > attempt.amount_nano:
            return False
        before = payment_effect(said)[0]
        is_first_of_its_part = all(each.part != result.part for each in said)
        said.add(result)
        moved = payment_effect(said)[0] - before
        self.balance_nano += moved
        self.available_nano += moved
        self._to_state(attempt, result)
        if is_first_of_its_part and (result.kind == "refunded" or result.kind.startswith("dispute")):
            self._pause("refund" if result.kind == "refunded" else "dispute")
        self._evaluate()
        return True

    def _to_state(self, attempt: Attempt, result: Result) -> None:
        kinds = {each.kind for each in self.said[attempt.attempt_id]}
        was = attempt.state
        if "settled" in kinds:
            state = "settled"
        elif "declined" in kinds:
            state = "declined"
        elif kinds & {*CANCELLED}:
            state = "cancelled"
        else:
            return
        if state == was:
            return
        attempt.state = state
        if state == "settled":
            self._forgive()
            if self.brought.get(attempt.attempt_id) == self.deletions and not self.method:
                self._saved()
        elif attempt.kind == "auto" and was != "abandoned":
            if state == "declined":
                self.streak += 1
                self.retry_at = None if self.streak >= 3 else self.now + timedelta(hours=self.streak)
                if self.streak >= 3:
                    self._pause("declines")
            else:
                self.retry_at = self.now + RETRY

    def wish(self, at: datetime, preferences: dict[str, object]) -> None:
        """Preferences that switch it on: a person has looked, so a pause for a refund or dispute is over. One for three
        declines in a row, which lay under it, comes to light again."""
        self.advance(at)
        if preferences["enabled"] and self.paused_by in ("refund", "dispute"):
            self.paused = self.streak > 2
            self.paused_by = "declines" if self.paused else None
        self.preferences = preferences
        self._evaluate()

    def _pause(self, reason: str) -> None:
        if self.paused_by not in ("refund", "dispute"):
            self.paused_by, self.paused = reason, True

    def _forgive(self) -> None:
        self.streak, self.retry_at = 0, None
        if self.paused_by == "declines":
            self.paused_by, self.paused = None, False

    def _saved(self) -> None:
        self.method = True
        self._forgive()
