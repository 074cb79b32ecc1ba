"""A locked wallet row in the hands of a handler, and the events that its account is told about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from datetime import datetime
from operator import itemgetter
from typing import Any, Literal, cast

from contracts.balance import SUSPENSION_REASONS, BalanceEvent, BalanceEventKind, SuspensionReason
from contracts.topics import BALANCE_EVENTS
from services.balance.levels import Marks
from services.kernel.money import format_nano
from services.runtime.work import Work

PauseReason = Literal["declines", "refund", "dispute"]


@dataclass(slots=True)
class Wallet:
    """One account's money and all that decides about it; a row that this transaction holds. Nanos, signs of the ledger.

    It is changed in memory and saved as a whole; ``changed`` says that it must be. It knows no rule.
    """

    account_id: str
    organization_id: str
    currency: str
    wallet_nano: int
    unbilled_nano: int
    receivable_nano: int
    event_version: int
    trigger_version: int
    registry_version: int
    plan: str | None
    level_2: bool
    credit_limit_nano: int
    created_at: datetime | None
    closed_at: datetime | None
    opened_at: datetime | None
    method_processor: str | None
    method_kind: str | None
    method_token: str | None
    recharge_enabled: bool
    recharge_mode: str
    threshold_nano: int
    recharge_nano: int
    decline_streak: int
    retry_at: datetime | None
    paused_by: str | None
    notice: str | None
    suspended_funds: bool
    suspended_overdue: bool
    suspended_operator: bool
    spend_counted: bool
    level_next_nano: int | None
    level_told_nano: int | None
    held_nano: int
    calls_until: datetime | None
    method_version: int
    schedule_nano: int | None
    schedule_day: int | None
    schedule_at: datetime | None
    credit_nano: int
    on_its_way_nano: int
    shared_credit_nano: int  # of its group, as it was read: other accounts spend it too
    shared_held_nano: int  # of that: by calls of whomever
    shared_group_id: str | None  # which shares it, while something is left
    changed: bool = False
    was_suspended: bool = False  # when it was read
    has_paid: bool = False  # what it could of invoices, in this transaction

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Wallet:
        """From the columns of the table, and others maybe."""
        wallet = cls(*_columns_of(row))
        wallet.was_suspended = wallet.is_suspended
        return wallet

    def row(self) -> Mapping[str, Any]:
        """As the row to save."""
        return asdict(self)

    @property
    def own_nano(self) -> int:
        """What is in the wallet without what a card brought for the group's invoices, which only passes through."""
        return self.wallet_nano - self.on_its_way_nano

    @property
    def funds_nano(self) -> int:
        """Wallet + usable credits + credit limit - unbilled - unpaid invoices: what suspends when it is used up.

        The two that use the limit up are zero or below in the ledger, so all are added.
        """
        own = self.own_nano + self.credit_nano + self.credit_limit_nano + self.unbilled_nano + self.receivable_nano
        return own + self.shared_credit_nano

    @property
    def alone_nano(self) -> int:
        """Available credit without what the group shares: what a call is promised first, and what a recharge goes by."""
        return self.funds_nano - self.shared_credit_nano - self.held_nano

    @property
    def available_nano(self) -> int:
        """Funds less what calls in progress hold, those of others too where the group shares: what can be spent, or promised."""
        return self.alone_nano + self.shared_free_nano

    @property
    def shared_free_nano(self) -> int:
        """What the group shares and no call holds."""
        return self.shared_credit_nano - self.shared_held_nano

    def shares(self, row: Any) -> None:
        """From now on what its present group shares, from a row with those columns."""
        self.shared_credit_nano = row.shared_credit_nano
        self.shared_held_nano = row.shared_held_nano
        self.shared_group_id = row.shared_group_id

    @property
    def is_known(self) -> bool:
        """Whether the registry has told this account; before, it exists by a charge alone and nothing is decided."""
        return self.registry_version > 0

    @property
    def marks(self) -> Marks:
        """Where its available credit has to come before something is to be said of its low-balance levels."""
        return Marks(self.level_next_nano, self.level_told_nano)

    def set_marks(self, marks: Marks) -> None:
        """From now on these."""
        self.level_next_nano, self.level_told_nano = marks
        self.changed = True

    @property
    def reasons(self) -> tuple[SuspensionReason, ...]:
        """Why it is suspended; it is active only when this is empty."""
        return tuple(reason for reason in SUSPENSION_REASONS if getattr(self, f"suspended_{reason}"))

    @property
    def is_suspended(self) -> bool:
        """Whether any reason stands."""
        return self.suspended_funds or self.suspended_overdue or self.suspended_operator

    def add_reason(self, work: Work, reason: SuspensionReason, **about: Any) -> bool:
        """Suspend for this reason too, and tell the whole set; False, and nothing, when the reason stands already.

        Whoever calls this or `lift_reason` has `evaluate` run at the end, which saves the wallet and tells the refuse-fast set.
        """
        return self._set_reason(work, reason, True, about)

    def lift_reason(self, work: Work, reason: SuspensionReason, **about: Any) -> bool:
        """This reason stands no more: restored when it was the last one; False, and nothing, when it did not stand."""
        return self._set_reason(work, reason, False, about)

    def _set_reason(self, work: Work, reason: SuspensionReason, stands: bool, about: Mapping[str, Any]) -> bool:
        if (reason in self.reasons) == stands:
            return False
        setattr(self, f"suspended_{reason}", stands)
        kind: BalanceEventKind = "suspended" if self.reasons else "restored"
        self.tell(work, kind, reason=reason, reasons=self.reasons, **about)
        return True

    @property
    def paused(self) -> bool:
        """Whether auto-recharge waits for a person, whatever for."""
        return self.paused_by is not None

    def forget_method(self) -> None:
        """No payment method any more; what is on its way with it never brings it back."""
        self.method_processor = self.method_kind = self.method_token = None
        self.method_version += 1
        self.changed = True

    def save_method(self, processor: str, kind: str, token: str) -> None:
        """The one payment method. It starts anew: what another one was declined says nothing of it."""
        self.method_processor, self.method_kind, self.method_token = processor, kind, token
        self.forgive_declines()

    def forgive_declines(self) -> None:
        """Back-off and count of declines are over, and the pause if they made it; one for a refund or dispute stands."""
        self.decline_streak, self.retry_at = 0, None
        if self.paused_by == "declines":
            self.paused_by = None
        self.changed = True

    def pause(self, work: Work, reason: PauseReason, attempt: Any) -> None:
        """Auto-recharge waits for a person; told once. A refund or dispute stands before declines, not the other way round."""
        if self.paused_by in (reason, "refund", "dispute"):
            return
        self.paused_by, self.notice = reason, "paused"
        self.tell(work, "recharge_paused", reason=reason, attempt_id=attempt.attempt_id)

    def tell_attempt(self, work: Work, attempt: Any, what: str, **more: Any) -> None:
        """Publish a transition of an attempt: `recharge_…` of an automatic one, `payment_…` of any other."""
        kind = cast(BalanceEventKind, f"{'recharge' if attempt.kind == 'auto' else 'payment'}_{what}")
        amounts = {"amount_nano": attempt.amount_nano} | more
        self.tell(work, kind, attempt_id=attempt.attempt_id, **amounts)

    def alarm(self, work: Work, reason: str, message: str, attempt: Any) -> None:
        """Publish that finance has to look at an attempt."""
        self.tell(
            work,
            "finance_alarm",
            reason=reason,
            message=message,
            attempt_id=attempt.attempt_id,
            amount_nano=attempt.amount_nano,
        )

    def tell(self, work: Work, kind: BalanceEventKind, *, amount_nano: int | None = None, **more: Any) -> None:
        """Publish one event of this account, with the balance as it is now and the next version."""
        self.event_version = work.next_version(self.event_version)
        self.changed = True
        event = BalanceEvent(
            account_id=self.account_id,
            version=self.event_version,
            kind=kind,
            at=work.now,
            currency=self.currency,
            amount=None if amount_nano is None else format_nano(amount_nano),
            wallet=format_nano(self.wallet_nano),
            available=format_nano(self.available_nano),
            **more,
        )
        work.publish(BALANCE_EVENTS, self.account_id, f"{self.account_id}:{self.event_version}", event.data())


_columns_of = itemgetter(*[field.name for field in fields(Wallet) if field.default is MISSING])
