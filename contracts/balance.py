"""Commands to wallets, the totals that balance posts, and the events it tells."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from pydantic import ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import TypedDict

from contracts.payments import MethodKind, Token
from contracts.words import Amount, CurrencyCode, Id, Instant, Message, Month, Name, SignedAmount, Text

RechargeMode = Literal["up_to_sum", "target", "fixed"]


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


class SaveMethod(_Command):
    """Saves the one payment method of an account; refused while another is saved."""

    kind: Literal["save_method"] = "save_method"
    processor: Id
    method_kind: MethodKind = "card"
    token: Token


class DeleteMethod(_Command):
    kind: Literal["delete_method"] = "delete_method"


class SetPreferences(_Command):
    """Auto-recharge preferences. ``recharge`` is the recharge amount, for mode ``target`` the target."""

    kind: Literal["set_preferences"] = "set_preferences"
    enabled: bool
    mode: RechargeMode = "up_to_sum"
    threshold: Amount = "0"
    recharge: Amount = "0"
    currency: CurrencyCode = "USD"


BalanceCommand = Annotated[
    OpenBalance | GrantGoodwill | SaveMethod | DeleteMethod | SetPreferences, Field(discriminator="kind")
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
    "method_saved",
    "method_deleted",
    "preferences_set",
    "command_refused",
    "recharge_requested",
    "recharge_settled",
    "recharge_declined",
    "recharge_failed",
    "recharge_unknown",
    "recharge_capped",
    "recharge_refused",
    "recharge_paused",
    "recharge_eighth",
    "contradiction",
    "suspended",
    "restored",
    "invoice_posted",
]


class BalanceEvent(Message):
    """`balance.events`: one per transition. ``version`` counts per account, so a consumer can order and drop repeats."""

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
    reason: Text | None = None
    field: Text | None = None
    message: Text | None = None
    next_allowed_at: Instant | None = None
    reasons: tuple[Literal["funds", "overdue", "operator"], ...] = ()
