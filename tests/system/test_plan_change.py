"""A month in which an account became invoiced: what it used before is paid from its wallet, and what is left there pays first
of what it used afterwards. Usage, balance and invoices, over an in-memory log.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from contracts.topics import BALANCE_COMMANDS, GROUPS_BILLING_GROUPS
from services.balance import api as balance_api
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
from tests.support.usage_registry import LONG_AGO, Sender, leg

BOUNDARY = period_of(datetime.now(UTC)).start
LAST = period_of(BOUNDARY - timedelta(seconds=1)).name
CHANGED = BOUNDARY - timedelta(minutes=30)
A_DOLLAR_A_MINUTE = b"""product,prefix,price_per_minute,currency,minimum_s,increment_s
voice.outbound,1,1.00,USD,60,60
"""


async def test_a_month_of_both_plans_is_paid_from_the_wallet_as_far_as_it_goes(database: Database) -> None:
    log = Log()
    balance = balance_room(RefuseFast(lambda: None, prefix="t."))
    async with Rooms(log, database, [usage_room(), balance, invoices_room(Settings())]) as rooms:
        send, engines = Sender(log), {name: each.engine for name, each in rooms.processors.items()}

        def money(kind: str, role: str, amount: str, **more: Any) -> None:
            command = {"command_id": kind, "actor": "ann", "role": role, "account_id": "desk", "kind": kind}
            log.write(BALANCE_COMMANDS.name, key="desk", value=command | {"amount": amount, "currency": "USD"} | more)

        async def shown() -> tuple[Any, ...]:
            (each,) = await invoices_api.list_invoices(engines["invoices"], group_id="g", state="closed")
            (wallet,) = await balance_api.balances(engines["balance"], ["desk"])
            return each.standing, each.paid_nano / 10**9, each.open_nano / 10**9, wallet.wallet

        send.publisher()
        send.send(GROUPS_BILLING_GROUPS, "g", billing_group("g", organization_id="lakeside", tax_rate="0.20").data())
        send.account("desk", group="g")
        await rooms.pump()
        await usage_api.import_prices(
            engines["usage"], "list", read_price_file(A_DOLLAR_A_MINUTE), LONG_AGO, is_default=True
        )
        money("open_balance", "operator", "25")
        arrived = BOUNDARY + timedelta(minutes=1)
        send.leg(leg("a", CHANGED - timedelta(minutes=5), "desk", duration_s=600, billable_s=600), at=arrived)
        await rooms.pump()
        send.account("desk", group="g", plans=[(LONG_AGO, CHANGED, "payg"), (CHANGED, None, "invoiced")])
        await rooms.pump()
        send.leg(leg("b", CHANGED + timedelta(minutes=25), "desk", duration_s=1200, billable_s=1200), at=arrived)
        await rooms.pump()

        await invoices_api.set_grace(engines["invoices"], timedelta(0))
        await invoices_api.request_close(engines["invoices"], LAST, "test")
        await rooms.pump(ticks=True)
        send.groups_covered(BOUNDARY)
        for _ in range(3):
            await rooms.pump(ticks=True)
        (closed,) = await invoices_api.list_invoices(engines["invoices"], group_id="g", state="closed")
        totals = (await invoices_api.show(engines["invoices"], closed.number or "")).document["totals"]
        # 10 and its tax of 2 are prepaid; of the wallet's 25 are 13 left, which pay first of 20 and its tax of 4
        assert (totals["total"], totals["paid_from_balance"], totals["due"]) == ("36.00", "12.00", "24.00")
        assert await shown() == ("partly_paid", 13, 11, "0")

        money("record_transfer", "finance", "15", reference="R1")
        await rooms.pump(ticks=True)
        assert await shown() == ("paid", 24, 0, "4")
        assert await balance_api.wallet_differences(engines["balance"]) == []
        assert (await balance_api.broken_seals(engines["balance"])).problems == []
        no_log: Any = None
        audited = await Auditor(engines, no_log, None, lambda _: None)._receivables(is_at_rest=True)
        assert (audited.ok, audited.differences) == (True, ())
