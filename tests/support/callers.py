"""A switch's side of holds: calls that are authorised, renewed, settled and released through the room's own way in.

async with Callers(town) as desk:
    await desk.authorize("call-1")
    await desk.settle("call-1", 61)
"""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import timedelta
from typing import Any

from services.balance import api
from services.balance.calls import Authorize, Grant, Release, Renew, Settle
from services.balance.holding import Rate, Rates
from services.balance.spending import CallAsked, Refused
from services.kernel.ids import content_digest
from services.runtime.database import open_engine
from tests.support.balance_factory import Town

CENT = 10_000_000
CENT_A_MINUTE = (Rate(CENT, 60, 0, 60, 60),)


def asking(account_id: str, rates: Rates = CENT_A_MINUTE, **more: Any) -> CallAsked:
    """A call at a cent a minute in whole minutes, if nothing else is said."""
    price_nano = max((each.price_nano for each in rates), default=0)
    values = {"outbound_profile": None, "currency": "USD"} | more
    return CallAsked(account_id=account_id, price_nano=price_nano, rates=rates, **values)


class Callers:
    """What asks for calls, in this process; several of them are as several gateways."""

    def __init__(self, town: Town, account_id: str = "desk") -> None:
        self._town = town
        self._asked = asking(account_id)
        self.engine = open_engine(town.database.room("balance"), application="test.holds", pool_size=2)
        self.holds = api.Holds(self.engine, town.log)

    async def __aenter__(self) -> Callers:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.holds.close()
        await self.engine.dispose()

    def authorize(
        self, call: str, asked: CallAsked | None = None, *, seconds: int = 300, called: str = "+12485252160"
    ) -> Awaitable[Any]:
        """Ask for a slice of a new call."""
        return self.holds.ask(Authorize(asked or self._asked, call, seconds, content_digest(called.encode())))

    def renew(self, call: str, number: int, *, seconds: int = 300, account: str | None = None) -> Awaitable[Any]:
        """Ask for the next slice."""
        return self.holds.ask(Renew(account or self._asked.account_id, call, number, seconds))

    def settle(self, call: str, seconds: int, *, account: str | None = None) -> Awaitable[Any]:
        """Say that a call has ended."""
        return self.holds.ask(Settle(account or self._asked.account_id, call, seconds))

    def release(self, call: str, *, account: str | None = None) -> Awaitable[Any]:
        """Say that a call was not answered."""
        return self.holds.ask(Release(account or self._asked.account_id, call))

    async def starts(self, call: str, asked: CallAsked | None = None, *, seconds: int = 300) -> bool:
        """Whether it is granted anything."""
        return isinstance(await self.authorize(call, asked, seconds=seconds), Grant)

    async def refusal(self, said: Awaitable[Any]) -> str | None:
        """The reason of a refusal; None where there is none."""
        answer = await said
        return answer.reason if isinstance(answer, Refused) else None

    async def held(self, account_id: str | None = None) -> tuple[str, str]:
        """(held, available), as people read it."""
        balance = await api.balance(self.engine, account_id or self._asked.account_id)
        return balance.held, balance.available

    async def differences(self) -> list[api.HeldDifference | str]:
        """Wallets and credits that do not hold what calls hold of them."""
        return [*(await api.held_differences(self.engine))[1], *await api.share_differences(self.engine)]


def seconds(count: float) -> timedelta:
    """Short form."""
    return timedelta(seconds=count)
