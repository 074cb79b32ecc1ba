"""Payer groups that owe: closes, payments and days by hand, without the rooms that stand before balance.

async with Debtors(database) as town:
    await town.member("east", "northwind")
    town.close("TB-000001", {"east": "80.004"}, tax="0.20")
    await town.pay("northwind", "96", reference="R1")
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import select

from services.balance import tables
from services.kernel.ids import derived_id
from services.kernel.money import format_nano, parse_amount
from services.kernel.period import instant_text
from tests.support.balance_factory import Town

LONG_AGO = "2026-01-01T00:00:00Z"


def nanos(text: str) -> int:
    """An amount in nanos."""
    return parse_amount(text, signed=True)


class Debtors(Town):
    """A town whose accounts belong to payer groups; invoices are closed by their event alone."""

    _transfers = 0

    async def member(
        self,
        account_id: str,
        group_id: str = "northwind",
        *,
        plan: str = "invoiced",
        credit_limit: str = "1000",
        zone: str = "UTC",
        moves: Sequence[tuple[datetime, str]] = (),
    ) -> None:
        """The registry tells an account and who pays for it, with the moves that are to come."""
        self._versions[account_id] += 1
        starts = [LONG_AGO, *(instant_text(at) for at, _ in moves)]
        groups = [group_id, *(to for _, to in moves)]
        intervals = [
            {"from": start, "to": end, "group_id": each, "zone": zone, "currency": "USD", "pricing_model": None}
            for start, end, each in zip(starts, [*starts[1:], None], groups, strict=True)
        ]
        timeline = {
            "account_id": account_id,
            "account_no": 1,
            "version": self._versions[account_id],
            "organization_id": "northwind",
            "name": account_id,
            "currency": "USD",
            "opened_at": LONG_AGO,
            "created_at": LONG_AGO,
            "level_2": False,
            "credit_limit": credit_limit if plan == "invoiced" else "0",
            "closed_at": None,
            "plans": [{"from": LONG_AGO, "to": None, "plan": plan}],
            "groups": intervals if plan != "trial" else [],
        }
        self.send("groups.accounts", account_id, timeline)

    async def close(
        self,
        number: str,
        receivables: Mapping[str, str],
        *,
        group_id: str = "northwind",
        due_on: datetime | None = None,
        zone: str | None = "UTC",
        settled: bool = True,
    ) -> UUID:
        """Charges of these accounts and the invoice that closes them: what each owes, whole minor units, without tax.

        Due in 14 days unless said otherwise. Everything comes to rest before and after it, unless that is not ``settled``.
        """
        invoice_id = derived_id("test invoice", number)
        for account_id, amount in receivables.items():
            self.charge(account_id, amount, plan="invoiced", group_id=group_id)
        if settled:
            await self.settle()
        now = await self.now()
        total = format_nano(sum(map(nanos, receivables.values())))
        event: dict[str, Any] = {
            "kind": "closed",
            "invoice_id": str(invoice_id),
            "number": number,
            "group_id": group_id,
            "organization_id": "northwind",
            "period": "2026-10",
            "boundary": "2026-11-01T00:00:00Z",
            "issued_on": instant_text(now),
            "due_on": instant_text(due_on or now + timedelta(days=14)),
            "currency": "USD",
            "net": total,
            "tax": "0",
            "total": total,
            "paid_from_balance": "0",
            "due": total,
            "charges": 1,
            "document": "",
            "sha256": "",
            "postings": [
                {
                    "account_id": account_id,
                    "wallet": "0",
                    "unbilled": amount,
                    "receivable": format_nano(-nanos(amount)),
                }
                for account_id, amount in receivables.items()
            ],
            "posting_rounding": "0",
            "posting_tax": "0",
        }
        if zone is not None:
            event["zone"] = zone
        self.send("invoices.events", group_id, event)
        if settled:
            await self.settle()
        return invoice_id

    async def to(self, instant: datetime) -> None:
        """Moves the one clock to an instant, and lets happen what is due."""
        async with self.database.connected() as connection:
            await connection.execute("select runtime.clock_move($1 - runtime.clock_now())", instant)
        await self.settle()

    def order(self, kind: str, group_id: str = "northwind", **more: Any) -> str:
        """A command of finance to a group; returns its id."""
        self._count += 1
        command_id = more.pop("command_id", f"g{self._count}")
        value = {
            "command_id": command_id,
            "actor": "fin",
            "role": "finance",
            "group_id": group_id,
            "kind": kind,
            **more,
        }
        self.log.write("balance.group_commands", key=group_id, value=value)
        return command_id

    def pay(self, amount: str, *, reference: str | None = None, group_id: str = "northwind", **more: Any) -> str:
        """A transfer is recorded."""
        self._transfers += 1
        reference = (
            reference or f"R-{self._transfers}"
        )  # a random one looks like a card number once in five hundred times
        more.setdefault("currency", "USD")
        return self.order("record_payment", group_id, amount=amount, reference=reference, **more)

    # ---- what came of it ----

    def told(self, group_id: str = "northwind", *kinds: str) -> list[dict[str, Any]]:
        """What was told of a group, by version; only some kinds when named."""
        events = [each for each in self.log.data("balance.group_events") if each["group_id"] == group_id]
        assert sorted(each["version"] for each in events) == list(range(1, len(events) + 1))
        return sorted(
            (each for each in events if not kinds or each["kind"] in kinds), key=lambda event: int(event["version"])
        )

    def told_kinds(self, group_id: str = "northwind") -> list[str]:
        """The kinds of what was told of a group, by version."""
        return [each["kind"] for each in self.told(group_id)]

    async def invoice(self, number: str) -> dict[str, str]:
        """An invoice as it stands: state, paid, written_off, open; and what each account still owes of it."""
        row = (
            await self.rooms.query("balance", select(tables.receivable).where(tables.receivable.c.number == number))
        )[0]
        told = [
            each["invoice"]
            for each in self.log.data("balance.group_events")
            if each["invoice"] and each["invoice"]["number"] == number
        ]
        newest = max(told, key=lambda each: int(each["version"]), default=None)
        open_nano = int(row.due_nano - row.paid_nano - row.written_off_nano - row.credited_nano)
        assert newest is None or (newest["version"], newest["open"]) == (row.version, format_nano(open_nano))
        share = tables.receivable_share.c
        shares = await self.rooms.query(
            "balance",
            select(share.account_id, share.open_nano)
            .where(share.invoice_id == row.invoice_id, share.open_nano != 0)
            .order_by(share.account_id),
        )
        return {
            "state": newest["state"] if newest else "closed",
            "paid": format_nano(int(row.paid_nano)),
            "written_off": format_nano(int(row.written_off_nano)),
            "open": format_nano(open_nano),
        } | {each.account_id: format_nano(each.open_nano) for each in shares}

    async def owes(self, account_id: str) -> str:
        """What an account owes of invoices."""
        return format_nano(-(await self.wallet(account_id)).receivable_nano)

    async def unapplied(self, group_id: str = "northwind") -> str:
        """What a group has paid too much."""
        rows = await self.rooms.query("balance", select(tables.payer).where(tables.payer.c.group_id == group_id))
        return format_nano(int(rows[0].unapplied_nano))

    async def assert_conserved(self) -> None:
        """Besides the wallets: shares sum to what is open, and to what accounts owe; the ledger says the same of groups."""
        await super().assert_conserved()
        invoices = await self.rooms.query("balance", select(tables.receivable))
        shares = await self.rooms.query("balance", select(tables.receivable_share))
        applications = await self.rooms.query("balance", select(tables.application))
        entries = await self.rooms.query("balance", select(tables.ledger_entry))
        payers = await self.rooms.query("balance", select(tables.payer))
        of_invoice: dict[UUID, int] = defaultdict(int)
        of_account: dict[str, int] = defaultdict(int)
        for each in shares:
            of_invoice[each.invoice_id] += each.open_nano
            of_account[each.account_id] += each.open_nano
        moved: dict[UUID, int] = defaultdict(int)
        for each in applications:
            moved[each.invoice_id] += int(each.nano)
        for each in invoices:
            settled = int(each.paid_nano + each.written_off_nano + each.credited_nano)
            assert int(each.due_nano) - settled == of_invoice[each.invoice_id]
            assert settled == moved[each.invoice_id]
        for wallet in await self.rooms.query("balance", select(tables.wallet)):
            assert wallet.receivable_nano == -of_account[wallet.account_id]
        for payer in payers:
            kept = sum(each.nano for each in entries if each.ledger == f"unapplied:{payer.group_id}")
            assert int(payer.unapplied_nano) == kept >= 0
            owed = -sum(each.nano for each in entries if each.ledger == f"receivable:{payer.group_id}")
            mine = [each for each in invoices if each.group_id == payer.group_id]
            assert owed == sum(of_invoice[each.invoice_id] for each in mine)
