"""Voucher codes: made, approved by a second person, listed. Redeeming one is a command: see `promotions`.

A code is shown once, to who makes it; what is kept is its digest. All redemptions of a code together may promise no more than
one person may promise alone, else another one has to approve it.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, select
from sqlalchemy.ext.asyncio import AsyncEngine

from services.balance import credit_store, tables
from services.balance.credits import digest_of_code, needs_second_person, new_code
from services.kernel.currency import currency
from services.kernel.errors import InvalidInput, NotFound, NotPermitted, Refused
from services.kernel.money import PAYMENT_NANO_MAX, format_nano, parse_amount
from services.runtime.database import transaction

CODES_MAX = 10_000  # made at once
REDEMPTIONS_MAX = 1_000_000  # of one code; more is a mistyped number
DAYS_MAX = 3_650
ROLES = ("operator", "finance")


@dataclass(frozen=True)
class NewVoucher:
    """A code that was just made; it is shown this once."""

    voucher_id: UUID
    code: str
    needs_approval: bool


@dataclass(frozen=True)
class VoucherRow:
    """A voucher as people see it."""

    voucher_id: UUID
    state: str
    amount: str
    currency: str
    shared: bool
    organization_id: str | None
    redeemed: int
    redemptions_max: int
    redeem_until: datetime | None
    credit_days: int | None
    created_by: str
    approved_by: str | None
    note: str | None


@dataclass(frozen=True)
class CreditRow:
    """A credit as people see it; granted = spent + remaining + lapsed, once it has begun. ``held``: what calls in progress hold
    of what remains."""

    credit_id: UUID
    state: str
    account_id: str | None
    group_id: str | None
    granted: str
    spent: str
    remaining: str
    held: str
    lapsed: str
    currency: str
    valid_from: datetime | None
    expires_at: datetime | None
    origin: str
    asked_for: str
    asked_by: str
    approved_by: str | None
    note: str | None


async def create_vouchers(
    engine: AsyncEngine,
    *,
    actor: str,
    role: str,
    amount: str,
    code_currency: str = "USD",
    count: int = 1,
    redemptions: int = 1,
    shared: bool = False,
    organization_id: str | None = None,
    redeem_until: datetime | None = None,
    credit_days: int | None = None,
    note: str | None = None,
) -> list[NewVoucher]:
    """Make codes that are alike. ``shared``: the credit is for all accounts of the group of who redeems it."""
    _check_role(role)
    nano = parse_amount(amount)
    if not 0 < nano <= PAYMENT_NANO_MAX:
        raise InvalidInput(f"must be above zero and at most {format_nano(PAYMENT_NANO_MAX)}", field="amount")
    for field, number, most in (
        ("count", count, CODES_MAX),
        ("redemptions", redemptions, REDEMPTIONS_MAX),
        ("credit_days", 1 if credit_days is None else credit_days, DAYS_MAX),
    ):
        if not 1 <= number <= most:
            raise InvalidInput(f"must be from 1 to {most}", field=field)
    made = [NewVoucher(uuid.uuid4(), new_code(), needs_second_person(nano, redemptions * count)) for _ in range(count)]
    async with transaction(engine) as connection:
        now = await credit_store.clock_now(connection)
        if redeem_until is not None and redeem_until <= now:
            raise InvalidInput("must lie in the future", field="redeem_until")
        alike = {
            "amount_nano": nano, "currency": currency(code_currency).code, "shared": shared,
            "organization_id": organization_id, "redemptions_max": redemptions, "redeemed": 0,
            "redeem_until": redeem_until, "credit_days": credit_days, "created_by": actor, "created_at": now, "note": note,
        }  # fmt: skip
        await credit_store.append_vouchers(
            connection,
            [
                {
                    "voucher_id": each.voucher_id,
                    "digest": digest_of_code(each.code),
                    "needs_approval": each.needs_approval,
                }
                | alike
                for each in made
            ],
        )
    return made


async def approve_voucher(engine: AsyncEngine, voucher_id: UUID, *, actor: str, role: str) -> None:
    """Let a code be redeemed that promises more than one person may; another person than who made it."""
    _check_role(role)
    async with transaction(engine) as connection:
        row = await credit_store.voucher(connection, voucher_id)
        if row is None:
            raise NotFound(f"no voucher {voucher_id}; see `tollbook credit codes list`", field="voucher_id")
        if not row.needs_approval or row.approved_by is not None:
            raise Refused("needs no approval", field="voucher_id", code="nothing_to_approve")
        if row.created_by == actor:
            raise NotPermitted(
                "who made it cannot approve it: another person has to", field="actor", code="needs_second_person"
            )
        await credit_store.approve_voucher(connection, voucher_id, actor)


async def vouchers(engine: AsyncEngine, *, limit: int = 1000) -> list[VoucherRow]:
    """The newest vouchers, newest first."""
    columns = tables.voucher.c
    query = select(tables.voucher).order_by(columns.created_at.desc(), columns.voucher_id).limit(limit)
    async with transaction(engine) as connection:
        now = await credit_store.clock_now(connection)
        rows = (await connection.execute(query)).all()
    return [
        VoucherRow(
            row.voucher_id, _voucher_state(row, now), format_nano(row.amount_nano), row.currency, row.shared,
            row.organization_id, row.redeemed, row.redemptions_max, row.redeem_until, row.credit_days, row.created_by,
            row.approved_by, row.note,
        )
        for row in rows
    ]  # fmt: skip


async def credits(
    engine: AsyncEngine, *, account_id: str | None = None, group_id: str | None = None, limit: int = 1000
) -> list[CreditRow]:
    """The newest credits, of an account alone or of a group where one is named; newest first."""
    columns = tables.credit.c
    query = select(tables.credit).order_by(columns.created_at.desc(), columns.credit_id).limit(limit)
    if account_id is not None:
        query = query.where(columns.account_id == account_id)
    if group_id is not None:
        query = query.where(columns.group_id == group_id)
    async with transaction(engine) as connection:
        rows: Sequence[Row[Any]] = (await connection.execute(query)).all()
    return [
        CreditRow(
            row.credit_id, _state(row), row.account_id, row.group_id, format_nano(row.granted_nano),
            format_nano(0 if row.valid_from is None else row.granted_nano - row.remaining_nano - row.breakage_nano),
            format_nano(row.remaining_nano), format_nano(row.held_nano if row.expired_at is None else 0),
            format_nano(row.breakage_nano), row.currency, row.valid_from, row.expires_at, row.origin, row.asked_for, row.asked_by, row.approved_by, row.note,
        )
        for row in rows
    ]  # fmt: skip


def _state(row: Any) -> str:
    if row.valid_from is None:
        return "proposed"
    if row.expired_at is not None:
        return "expired"
    return "open" if row.remaining_nano else "spent"


def _voucher_state(row: Any, now: datetime) -> str:
    if row.needs_approval and row.approved_by is None:
        return "proposed"
    if row.redeemed == row.redemptions_max:
        return "used_up"
    return "expired" if row.redeem_until is not None and row.redeem_until <= now else "open"


def _check_role(role: str) -> None:
    if role not in ROLES:
        raise NotPermitted(f"voucher codes need the role {' or '.join(ROLES)}", field="role")
