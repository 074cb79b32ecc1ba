"""Commands to wallets, the totals that balance posts, and the events it tells."""

from __future__ import annotations

from typing import Annotated, Literal, get_args
from uuid import UUID

from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter, with_config
from typing_extensions import TypedDict

from contracts.payments import MethodKind, Token
from contracts.receivables import Reference
from contracts.words import Amount, CurrencyCode, Day, Id, Instant, Message, Month, Name, SignedAmount, Text

RechargeMode = Literal["up_to_sum", "target", "fixed"]
ScheduleDay = Annotated[int, Field(ge=1, le=28)] | Literal["last"]
LEVELS_MAX = 10  # of one account; more would be a graph, not a warning
CALLS_MAX = 1_000_000  # calls of one account at once; more is a mistyped limit


SuspensionReason = Literal["funds", "overdue", "operator"]
SUSPENSION_REASONS: tuple[SuspensionReason, ...] = get_args(SuspensionReason)


VoucherCode = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9 -]{1,64}$"),
    Field(description="Case, spaces and dashes do not matter", examples=["7K2QD-9XW4M-0PZ8R-C3VNB"]),
]


class _Command(Message):
    command_id: Annotated[Id, Field(description="The same id is carried out once")]
    actor: Name
    role: Literal["owner", "billing_admin", "operator", "finance"] = "owner"
    account_id: Id


class OpenBalance(_Command):
    """An operator takes over the balance an account had before; once per account, not a payment."""

    kind: Literal["open_balance"] = "open_balance"
    amount: SignedAmount
    currency: CurrencyCode


class GrantGoodwill(_Command):
    """Finance or an operator adds money to a wallet."""

    kind: Literal["grant_goodwill"] = "grant_goodwill"
    amount: Amount
    currency: CurrencyCode
    note: Text = ""


class RecordTransfer(_Command):
    """Finance records a transfer that arrived for a wallet. The same reference of the same bank is recorded once, whether it
    came for a wallet or for the invoices of a payer group. It counts for no limit."""

    kind: Literal["record_transfer"] = "record_transfer"
    amount: Amount
    currency: CurrencyCode
    bank: Annotated[Id, Field(description="Where it arrived; its clearing account has this name")] = "bank"
    reference: Reference
    note: Text = ""


class SaveMethod(_Command):
    """Saves the one payment method of an account; refused while another is saved."""

    kind: Literal["save_method"] = "save_method"
    processor: Id
    method_kind: MethodKind = "card"
    token: Token


class DeleteMethod(_Command):
    kind: Literal["delete_method"] = "delete_method"


class Pay(_Command):
    """Pays an amount into the wallet now, by the saved method or by one that comes with the payment.

    One that comes with it is saved when the payment succeeds and none is saved. No more than the top-up limit of the day
    leaves an account without level 2; refused below the minimum payment.
    """

    kind: Literal["pay"] = "pay"
    amount: Amount
    currency: CurrencyCode = "USD"
    processor: Annotated[Id | None, Field(description="With a token only; null: the saved method is charged")] = None
    method_kind: MethodKind = "card"
    token: Token | None = None


class SetSchedule(_Command):
    """A payment of every month at 00:00 UTC of a day, by the saved method; without an amount: no more.

    It counts for the top-up limit of its day; one that is not possible then is told and left out, not made up for.
    """

    kind: Literal["set_schedule"] = "set_schedule"
    amount: Amount | None = None
    currency: CurrencyCode = "USD"
    day: Annotated[ScheduleDay | None, Field(description="1 to 28, or last")] = None


class RefundPayment(_Command):
    """Finance has a payment given back, or a part of it. The wallet is debited when the processor confirms it."""

    kind: Literal["refund_payment"] = "refund_payment"
    attempt_id: UUID
    amount: Annotated[Amount | None, Field(description="null: all that is left of it")] = None
    note: Text = ""


class CancelPayment(_Command):
    """Asks the processor to give a payment up that has no result yet."""

    kind: Literal["cancel_payment"] = "cancel_payment"
    attempt_id: UUID


class SetPreferences(_Command):
    """Auto-recharge preferences. ``recharge`` is the recharge amount, for mode ``target`` the target."""

    kind: Literal["set_preferences"] = "set_preferences"
    enabled: bool
    mode: RechargeMode = "up_to_sum"
    threshold: Amount = "0"
    recharge: Amount = "0"
    currency: CurrencyCode = "USD"


class SetLimits(_Command):
    """What an account, or one of its outbound profiles, may spend a UTC day and how many calls it may have at once.

    The command says all of it: what is null or left out has no limit. 0 allows nothing.
    """

    kind: Literal["set_limits"] = "set_limits"
    outbound_profile: Annotated[Id | None, Field(description="null: the account as a whole")] = None
    daily_spend: Annotated[Amount | None, Field(description="by the event time of charges; resets at 00:00 UTC")] = None
    calls_max: Annotated[int | None, Field(ge=0, le=CALLS_MAX, description="calls in progress at once")] = None
    currency: Annotated[CurrencyCode, Field(description="ISO 4217, of daily_spend")] = "USD"


class SetLevels(_Command):
    """At which amounts of available credit an account is told that its balance is low. The command says all of them."""

    kind: Literal["set_levels"] = "set_levels"
    levels: Annotated[tuple[Amount, ...], Field(max_length=LEVELS_MAX, description="empty: no notice")]
    currency: CurrencyCode = "USD"


class GrantCredit(_Command):
    """Finance or an operator grants promotional money. Above a limit it waits for another person's `approve_credit`."""

    kind: Literal["grant_credit"] = "grant_credit"
    amount: Amount
    currency: CurrencyCode
    shared: Annotated[
        bool, Field(description="by all accounts of the account's payer group, which must be the organization's")
    ] = False
    expires_at: Annotated[Instant | None, Field(description="null: never")] = None
    note: Text = ""


class ApproveCredit(_Command):
    """Another person than who proposed it lets a credit begin; `account_id` is the account that it was asked for."""

    kind: Literal["approve_credit"] = "approve_credit"
    credit_id: UUID


class RedeemCode(_Command):
    """A voucher code becomes a credit of the account or, if the code says so, of all accounts of its payer group."""

    kind: Literal["redeem_code"] = "redeem_code"
    code: VoucherCode


class SuspendAccount(_Command):
    """An operator suspends an account, whatever its money: calls are refused and it is not recharged by itself."""

    kind: Literal["suspend"] = "suspend"
    note: Annotated[Text, Field(description="why; it stands in the event and in the log")] = ""


class ResumeAccount(_Command):
    """An operator lifts that suspension; other reasons stand until they are lifted themselves."""

    kind: Literal["resume"] = "resume"
    note: Text = ""


BalanceCommand = Annotated[
    OpenBalance
    | GrantGoodwill
    | RecordTransfer
    | SaveMethod
    | DeleteMethod
    | Pay
    | SetSchedule
    | RefundPayment
    | CancelPayment
    | SetPreferences
    | SetLimits
    | SetLevels
    | GrantCredit
    | ApproveCredit
    | RedeemCode
    | SuspendAccount
    | ResumeAccount,
    Field(discriminator="kind"),
]
balance_command: TypeAdapter[BalanceCommand] = TypeAdapter(BalanceCommand)


@with_config(ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True))
class Posting(TypedDict):
    """`balance.postings`: totals of a batch per (account, group, bill_to). charged = credits + wallet + unbilled."""

    account_id: Id
    group_id: Id | None
    bill_to: Month | None
    currency: CurrencyCode
    charges: int
    charged: SignedAmount
    credits: SignedAmount
    wallet: SignedAmount
    unbilled: SignedAmount


BalanceEventKind = Literal[
    "balance_opened",
    "goodwill_granted",
    "transfer_recorded",
    "transfer_known",
    "credit_granted",
    "credit_proposed",
    "credit_expired",
    "method_saved",
    "method_deleted",
    "preferences_set",
    "limits_set",
    "levels_set",
    "command_refused",
    "recharge_requested",
    "recharge_settled",
    "recharge_declined",
    "recharge_failed",
    "recharge_unknown",
    "recharge_cancelled",
    "recharge_abandoned",
    "recharge_late",
    "recharge_capped",
    "recharge_refused",
    "recharge_paused",
    "recharge_eighth",
    "payment_requested",
    "payment_settled",
    "payment_declined",
    "payment_failed",
    "payment_unknown",
    "payment_cancelled",
    "payment_abandoned",
    "payment_late",
    "payment_refused",
    "cancel_requested",
    "schedule_set",
    "refund_requested",
    "refunded",
    "refund_failed",
    "disputed",
    "dispute_won",
    "dispute_lost",
    "contradiction",
    "finance_alarm",
    "low_balance",
    "suspended",
    "restored",
    "spend_limit_near",
    "spend_limit_reached",
    "invoice_posted",
    "credit_note_posted",
    "balance_used",
    "drift_found",
    "drift_gone",
]


class BalanceEvent(Message):
    """`balance.events`: one per transition. ``version`` counts per account, so a consumer can order and drop repeats.

    `suspended` comes with each change of the set of reasons while one stands, `restored` when none stands any more.
    """

    account_id: Id
    version: Annotated[int, Field(ge=1)]
    kind: BalanceEventKind
    at: Instant
    currency: CurrencyCode | None = None
    amount: SignedAmount | None = None
    wallet: SignedAmount | None = None
    available: SignedAmount | None = None
    attempt_id: UUID | None = None
    command_id: Text | None = None
    credit_id: UUID | None = None
    expires_at: Annotated[Instant | None, Field(description="When the credit ends; null: never")] = None
    reference: Annotated[Text | None, Field(description="Of a transfer, as the bank names it")] = None
    reason: Text | None = None
    field: Text | None = None
    message: Text | None = None
    next_allowed_at: Instant | None = None
    refund_id: UUID | None = None
    reasons: Annotated[
        tuple[SuspensionReason, ...],
        Field(
            description="Of `suspended` and `restored`: every reason that stands now, the one that changed in `reason`"
        ),
    ] = ()
    outbound_profile: Annotated[Id | None, Field(description="Whose limit it is; null: the account's")] = None
    limit: Annotated[Amount | None, Field(description="The daily spend limit; `amount` is what was spent")] = None
    calls_max: int | None = None
    level: Annotated[
        Amount | None, Field(description="Of `low_balance`: the level that available credit has reached")
    ] = None
    levels: Annotated[tuple[Amount, ...], Field(description="Of `levels_set`: all of them")] = ()
    day: Annotated[Day | None, Field(description="The UTC day that was spent on")] = None
