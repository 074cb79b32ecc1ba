"""Accounts as tests create them, and the tokens of the sandbox that they pay by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

TOKENS = (
    "tok_ok", "tok_declined", "tok_twice", "tok_late_5s", "tok_silent", "tok_error", "tok_silent_settled", "tok_never_seen",
    "tok_declined_settled", "tok_settled_declined", "tok_refunded", "tok_refund_first", "tok_dispute_won", "tok_dispute_lost",
)  # fmt: skip


@dataclass(frozen=True)
class Person:
    """One account of the cast, as it is created."""

    account_id: str
    organization_id: str
    plan: str
    group_id: str | None  # None: a trial, or its own, which is called like the account
    opening: str | None = None
    recharge: Mapping[str, str] | None = None
    token: str | None = None
    level_2: bool = False
    limit: str | None = "0.50"  # of what it may spend a day
