"""What the auditor says of closed invoices and of what they posted: usage, balance and invoices, over an in-memory log."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from contracts.topics import BALANCE_COMMANDS, GROUPS_BILLING_GROUPS
from services.balance.consumer import room as balance_room
from services.balance.refuse_fast import RefuseFast
from services.cli.verify import Auditor
from services.invoices import api as invoices_api
from services.invoices.consumer import build as invoices_room
from services.kernel.period import period_of
from services.runtime.settings import Settings
from services.usage import api as usage_api
from services.usage.consumer import build as usage_room
from services.usage.price_files import read_price_file
from tests.invoices.neighbours import billing_group
from tests.support.rooms import Log, Rooms
from tests.support.servers import Database
from tests.support.usage_registry import LONG_AGO, Sender, leg, void

BOUNDARY = period_of(datetime.now(UTC)).start
LAST = period_of(BOUNDARY - timedelta(seconds=1))
BEFORE = period_of(LAST.start - timedelta(seconds=1))
A_DOLLAR_A_MINUTE = b"""product,prefix,price_per_minute,currency,minimum_s,increment_s
voice.outbound,1,1.00,USD,60,1
"""
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


async def test_closings_that_move_little_or_nothing_are_posted_like_every_other(database: Database) -> None:
    """Whole cents that wallets have paid already, credit that paid a part, and two accounts of which one gets what one owes."""
    log = Log()
    balance = balance_room(RefuseFast(lambda: None, prefix="t."))
    async with Rooms(log, database, [usage_room(), balance, invoices_room(Settings())]) as rooms:
        send, engines = Sender(log), {name: each.engine for name, each in rooms.processors.items()}

        def money(kind: str, role: str, account_id: str, amount: str) -> None:
            command = {"command_id": f"{kind}-{account_id}", "actor": "ann", "role": role, "account_id": account_id}
            command |= {"kind": kind, "amount": amount, "currency": "USD"}
            log.write(BALANCE_COMMANDS.name, key=account_id, value=command)

        def call(name: str, account_id: str, at: datetime, seconds: int) -> None:
            send.leg(leg(name, at, account_id, duration_s=seconds, billable_s=seconds), at=at + MINUTE)

        async def close(period: str, boundary: datetime) -> None:
            await invoices_api.request_close(engines["invoices"], period, "test")
            await rooms.pump(ticks=True)
            send.groups_covered(boundary)
            for _ in range(3):
                await rooms.pump(ticks=True)

        async def differences() -> tuple[str, ...]:
            no_log: Any = None
            auditor = Auditor(engines, no_log, None, lambda _: None)
            return (await auditor._ledger({}, [], is_at_rest=True)).differences

        send.publisher()
        for group_id, rate in (("whole", "0"), ("promoted", "0.20"), ("even", "0")):
            told = billing_group(group_id, organization_id="lakeside", tax_rate=rate)
            send.send(GROUPS_BILLING_GROUPS, group_id, told.data())
        send.account("desk", group="whole")
        send.account("fair", group="promoted", plan="invoiced")
        for account_id in ("east", "west"):
            send.account(account_id, group="even", plan="invoiced")
        await rooms.pump()
        prices = read_price_file(A_DOLLAR_A_MINUTE)
        await usage_api.import_prices(engines["usage"], "list", prices, LONG_AGO, is_default=True)
        await invoices_api.set_grace(engines["invoices"], timedelta(0))
        money("open_balance", "operator", "desk", "25")
        money("grant_credit", "finance", "fair", "2")
        await rooms.pump()
        async with database.connected() as owner:
            await owner.execute("update balance.credit set valid_from = '2020-01-01'")

        call("a", "east", BEFORE.end - HOUR, 60)
        await rooms.pump()
        await close(BEFORE.name, BEFORE.end)
        call("b", "desk", LAST.start + HOUR, 120)
        call("c", "fair", LAST.start + HOUR, 301)
        send.leg(void("a", 1, account="east"), at=LAST.start + HOUR)
        call("d", "west", LAST.start + HOUR, 60)
        await rooms.pump(ticks=True)
        await close(LAST.name, BOUNDARY)

        listed = await invoices_api.list_invoices(engines["invoices"], period=LAST.name, state="closed")
        # 5.016666667 of which credit paid 2: 3.02 and tax of 0.60
        assert {each.group_id: (each.total_nano or 0) / 10**9 for each in listed} == {
            "whole": 2,
            "promoted": 3.62,
            "even": 0,
        }
        assert await differences() == ()

        whole = next(each for each in listed if each.group_id == "whole")
        async with database.connected() as owner, owner.transaction():
            await owner.execute("alter table balance.transaction disable trigger user")
            await owner.execute("delete from balance.transaction where ref = $1", str(whole.invoice_id))
            await owner.execute("alter table balance.transaction enable trigger user")
        assert await differences() == (f"invoice {whole.number} is not posted",)
