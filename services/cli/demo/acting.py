"""What every play of the demo does: bring up its rooms, give commands, wait until all is at rest, judge its table."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from services.cli import verify
from services.cli.demo import cast as casting
from services.cli.demo.figures import Cell, show_cells
from services.cli.demo.narrator import FOLLOWED, Narrator
from services.cli.demo.stage import PROCESSOR, Stage
from services.cli.idle import Idle, watching
from services.cli.output import console
from services.cli.verifying import show_report
from services.cli.wire import Wire
from services.kernel.errors import Refused

ACTOR = "demo"
LOOK_S = 0.1


@asynccontextmanager
async def curtain(
    stage: Stage, servers: Awaitable[None], narrator: Narrator, publishers: Sequence[str] = ()
) -> AsyncIterator[tuple[Wire, Idle]]:
    """Migrates, makes the topics and starts the rooms on servers that are coming up."""
    wait = casting.until_safe(datetime.now(UTC))
    if wait:
        narrator.say("waits", f"{wait.seconds} s until 00:00Z is past: the top-up limit depends on the day")
        await asyncio.sleep(wait.total_seconds() + 1)
    narrator.act("Servers and rooms")
    await servers
    narrator.say("servers", f"Kafka {stage.settings.kafka_bootstrap}, PostgreSQL and Valkey, on {stage.data}")
    await asyncio.gather(stage.migrate(), stage.make_topics(publishers))
    stage.start_rooms()
    async with AsyncExitStack() as stack:
        wire = await stack.enter_async_context(Wire(stage.settings, FOLLOWED, narrator.hear))
        yield wire, await stack.enter_async_context(watching(stage.settings))


@dataclass
class Acting:
    """One run on servers and rooms that are up. A play adds its acts."""

    stage: Stage
    cast: Mapping[str, Any]
    narrator: Narrator
    wire: Wire
    idle: Idle

    async def at_rest(self) -> None:
        """Everything that was published is processed, and was said."""
        await self.idle.wait(meanwhile=self.meanwhile)
        self.narrator.flush()

    def meanwhile(self) -> None:
        """To be called often while something is waited for."""
        self.stage.rooms.check()
        self.narrator.pause()

    async def groups(self, commands: Sequence[dict[str, Any]]) -> None:
        """Commands to the registry; `Refused` when one is."""
        await self._carry_out("registry", commands)

    async def wallets(self, commands: Sequence[dict[str, Any]]) -> None:
        """Commands to wallets; `Refused` when one is."""
        await self._carry_out("wallet", commands)

    async def _carry_out(self, what: str, commands: Sequence[dict[str, Any]]) -> None:
        answering = asyncio.create_task(self.wire.carry_out_all([each | {"actor": ACTOR} for each in commands]))
        try:
            while not answering.done():
                await asyncio.wait({answering}, timeout=LOOK_S)
                self.meanwhile()
        finally:
            answering.cancel()
        for answer in await answering:
            if not answer.accepted:
                raise Refused(str(answer))
            self.narrator.say(what, answer.message)

    async def judged(self, cells: Sequence[Cell]) -> int:
        """Prints the table and asks the auditor; returns how many cells and checks differ."""
        self.narrator.act("The cast, expected and actual")
        differences = show_cells(cells)
        self.narrator.act("tollbook verify")
        report = await verify.run(self.stage.settings)
        show_report(report)
        differences += sum(1 for check in report.checks if not check.ok)
        console.print()
        self.narrator.say("result", "no difference" if not differences else f"{differences} differences")
        return differences

    # ---- commands --------------------------------------------------------------------------------------------------

    def organization(self, organization: Mapping[str, Any]) -> dict[str, Any]:
        """Who buys."""
        return {
            "kind": "create_organization", "role": "operator", "organization_id": organization["organization"],
            "name": organization["name"],
        }  # fmt: skip

    def seller(self, organization: Mapping[str, Any]) -> dict[str, Any]:
        """Who sells, and issues the invoices."""
        return {
            "kind": "create_billing_entity",
            "role": "operator",
            "organization_id": organization["organization"],
            **self.cast["billing_entity"],
        }

    def account(self, account: Mapping[str, Any], opened_at: datetime | None = None) -> list[dict[str, Any]]:
        """An account as its cast describes it."""
        who = {"organization_id": account["organization"], "account_id": account["account"]}
        commands = [
            {
                "kind": "create_account", **who, "name": account["account"], "plan": account["plan"],
                "opened_at": opened_at, "group_id": account.get("group"), "credit_limit": account.get("credit_limit"),
                "role": "operator" if account["plan"] == "invoiced" else "owner",
            }
        ]  # fmt: skip
        if account.get("level_2"):
            commands.append({"kind": "grant_level_2", "role": "operator", **who})
        return commands

    def money(self, account: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What an account has to begin with."""
        who = {"account_id": account["account"], "currency": "USD", "role": "operator"}
        if "opening" in account:
            return [{"kind": "open_balance", **who, "amount": account["opening"]}]
        if "goodwill" in account:
            return [{"kind": "grant_goodwill", **who, "amount": account["goodwill"], "note": "to try it"}]
        return []

    def recharging(self, account: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The method and the recharge preferences of an account that has them."""
        if "method" not in account:
            return []
        who = {"account_id": account["account"]}
        self.narrator.knows(account["account"], account["preferences"])
        return [
            {"kind": "save_method", **who, "processor": PROCESSOR, "token": account["method"]},
            {"kind": "set_preferences", **who, "enabled": True, **account["preferences"]},
        ]
