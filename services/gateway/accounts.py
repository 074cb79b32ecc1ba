"""Accounts over HTTP: what is in a wallet, and which calls hold what of it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts.words import Id
from services.balance import api as balance
from services.gateway import errors
from services.gateway.deadlines import TimedRoute

AccountId = Annotated[Id, Path(description="the account's id")]
Limit = Annotated[int, Query(ge=1, le=balance.HOLDS_AT_ONCE_MAX, description="of one page")]
After = Annotated[
    str | None, Query(max_length=2048, description="`next` of the page before; left out: from the beginning")
]
ERRORS = errors.of_path({404: ("unknown_account",), 422: ("invalid",)})


def routes(engine: AsyncEngine) -> APIRouter:
    """The paths below /v1/accounts; ``engine`` logs in as balance."""
    router = APIRouter(prefix="/v1/accounts", tags=["accounts"], route_class=TimedRoute)

    @router.get("/{account_id}/balance", responses=ERRORS)
    async def show(account_id: AccountId) -> balance.Balance:
        """The wallet, what is held of it, and what is available."""
        return await balance.balance(engine, account_id)

    @router.get("/{account_id}/holds", responses=ERRORS)
    async def holds(
        account_id: AccountId, limit: Limit = balance.HOLDS_AT_ONCE, after: After = None
    ) -> balance.HoldPage:
        """The calls that hold money now, in progress or waiting for their charge, oldest first, a page of them."""
        await balance.balance(engine, account_id)  # an account that is not known has no empty list
        return await balance.open_holds(engine, account_id, limit=limit, after=after)

    return router
