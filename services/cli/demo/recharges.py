"""Two days of recharges, on a clock that is moved: a cap that opens by itself, a card that is declined until it is paused,
a processor that is silent until it is asked, a payment that is refunded.

Source: domain, section 4; designs/recharge.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable
from datetime import timedelta
from typing import Any

from services.balance import api as balance_api
from services.cli.account import show_statement
from services.cli.clock import moved
from services.cli.demo import cast as casting
from services.cli.demo.acting import Acting, curtain
from services.cli.demo.figures import Cell, notices, recharges
from services.cli.demo.narrator import Narrator
from services.cli.demo.stage import PROCESSOR, Stage
from services.cli.output import instant
from services.cli.reading import room

CAST = "recharges.json"
DAY = timedelta(hours=24)


async def play(stage: Stage, servers: Awaitable[None], narrator: Narrator) -> int:
    """Plays it all on servers that are coming up; returns how many cells and checks differ."""
    cast = json.loads(casting.path(CAST).read_text())
    async with curtain(stage, servers, narrator) as (wire, idle):
        return await Recharges(stage, cast, narrator, wire, idle).run()


class Recharges(Acting):
    """Accounts without any usage: what moves their money is payments, and time."""

    async def run(self) -> int:
        """Every act."""
        await self.registry()
        await self.opening()
        await self.payment_and_refund()
        await self.hours_pass()
        await self.another_card()
        await self.the_window_opens()
        return await self.judged(await self.cells())

    async def registry(self) -> None:
        """One organization with its accounts."""
        self.narrator.act("Registry")
        async with room("balance", self.stage.settings) as engine:
            self.since = await balance_api.start_of_month(engine)
        (organization,) = self.cast["organizations"]
        await self.groups([self.organization(organization), self.seller(organization)])
        await self.groups([command for each in self.cast["accounts"] for command in self.account(each)])
        await self.at_rest()

    async def opening(self) -> None:
        """Opening balances, methods, preferences: what is at its threshold is recharged at once."""
        self.narrator.act("Opening balances and recharge preferences")
        await self.wallets([command for each in self.cast["accounts"] for command in self.money(each)])
        await self.wallets([command for each in self.cast["accounts"] for command in self.recharging(each)])
        await self.at_rest()

    async def payment_and_refund(self) -> None:
        """An owner pays by hand, and finance gives a part of it back."""
        paid = self.cast["paid"]
        account_id = paid["account"]
        self.narrator.act(f"{account_id} pays {paid['amount']}, of which finance refunds {paid['refunded']}")
        await self.wallets([{"kind": "pay", "account_id": account_id, "amount": paid["amount"]}])
        await self.at_rest()
        async with room("balance", self.stage.settings) as engine:
            (payment,) = await balance_api.attempts(engine, account_id)
        refund = {"kind": "refund_payment", "role": "finance", "account_id": account_id, "amount": paid["refunded"]}
        await self.wallets([refund | {"attempt_id": payment.attempt_id, "note": "paid twice by mistake"}])
        await self.at_rest()

    async def hours_pass(self) -> None:
        """The declined card is tried again after its back-offs, and paused after the third time; who was silent is asked."""
        for hours in self.cast["back_offs_h"]:
            await self._move(timedelta(hours=hours))

    async def another_card(self) -> None:
        """The owner replaces the declined card."""
        account_id, token = self.cast["replaced"]["account"], self.cast["replaced"]["method"]
        self.narrator.act(f"{account_id} deletes the declined card and saves another")
        who = {"account_id": account_id}
        await self.wallets([{"kind": "delete_method", **who}])
        await self.wallets([{"kind": "save_method", **who, "processor": PROCESSOR, "token": token}])
        await self.at_rest()

    async def the_window_opens(self) -> None:
        """24 hours after the first of ten recharges the capped one is made by itself."""
        hours = sum(self.cast["back_offs_h"])
        await self._move(DAY - timedelta(hours=hours))

    async def _move(self, forward: timedelta) -> None:
        now = await moved(self.stage.settings, forward)
        self.narrator.act(f"The clock is moved by {forward.total_seconds() / 3600:g} h, to {instant(now)}")
        await self.at_rest()

    async def cells(self) -> list[Cell]:
        """What the cast says, and what came."""
        cells = []
        self.narrator.act(f"tollbook account statement {self.cast['paid']['account']}")
        async with room("balance", self.stage.settings) as engine:
            for account in self.cast["accounts"]:
                name, expected = account["account"], account["expected"]
                attempts = await balance_api.attempts(engine, name)
                wallet = await balance_api.balance(engine, name)
                statement = await balance_api.statement(engine, name, self.since)
                if name == self.cast["paid"]["account"]:
                    show_statement(statement)
                actual = {
                    "recharges": recharges(attempts),
                    "notices": notices(name, self.narrator),
                    "wallet": wallet.wallet,
                    "from the first to the last": _span(attempts),
                    "movements": _added_up(statement),
                }
                cells += [Cell(name, what, expected[what], actual[what]) for what in expected]
        return cells


def _added_up(statement: balance_api.AccountStatement) -> str:
    """The movements of a statement that begins with nothing, in one line."""
    amounts = [each.amount for each in statement.movements]
    return f"{' + '.join(amounts).replace('+ -', '- ')} = {statement.closing.balance}"


def _span(attempts: list[Any]) -> str:
    """Between the first and the last request of an account, in whole hours: the clock itself goes on between acts."""
    instants = sorted(each.requested_at for each in attempts)
    return f"{(instants[-1] - instants[0]) // timedelta(hours=1)} h"
