"""Accounts with wallets, without the rooms that stand before them: timelines, charges, commands and results by hand.

async with Town(database) as town:
    await town.account("frontdesk", level_2=True)
    await town.command("open_balance", "frontdesk", role="operator", amount="100.02", currency="USD")
    await town.charge("frontdesk", "0.028")
    await town.settle()
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import select

from contracts.topics import topic_of
from services.balance import consumer as balance_room
from services.balance import tables
from services.balance.refuse_fast import RefuseFast
from services.kernel.money import format_nano
from services.kernel.period import instant_text
from services.payments import consumer as payments_room
from services.runtime.outbox import partition_of
from services.runtime.room import Room
from tests.support.rooms import Log, Rooms
from tests.support.servers import Database

BY_OPERATORS = ("open_balance", "grant_goodwill", "grant_credit", "approve_credit", "suspend", "resume")
NO_VALKEY = "redis://127.0.0.1:1/0"  # nothing listens there: everything has to pass without it


class Town:
    """The rooms balance and payments over one log, and hands to write what others would."""

    def __init__(
        self,
        database: Database,
        *,
        valkey: str = NO_VALKEY,
        partitions: int = 2,
        rooms: Sequence[Room] | None = None,
        log: Log | None = None,
    ) -> None:
        self.database = database
        self.log = Log(partitions) if log is None else log
        self.refuse_fast = RefuseFast(lambda: valkey, prefix=f"t{uuid.uuid4().hex}.")
        chosen = [balance_room.room(self.refuse_fast), payments_room.room()] if rooms is None else rooms
        self.rooms = Rooms(self.log, database, chosen)
        self._seqs: dict[tuple[str, str, int], int] = defaultdict(int)
        self._versions: dict[str, int] = defaultdict(int)
        self._count = 0

    async def __aenter__(self) -> Town:
        await self.rooms.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.rooms.__aexit__()

    # ---- time ----

    async def now(self) -> datetime:
        async with self.database.connected() as connection:
            now: datetime = await connection.fetchval("select runtime.clock_now()")
            return now

    async def move(self, forward: timedelta) -> None:
        """Moves the one clock."""
        async with self.database.connected() as connection:
            await connection.execute("select runtime.clock_move($1)", forward)

    async def settle(self, after: timedelta | None = None) -> None:
        """Moves the clock when asked to, then everything until nothing moves, ticks and timers included."""
        if after is not None:
            await self.move(after)
        for _ in range(2):  # what a tick asks for is replayed by the next round
            await self.rooms.pump(ticks=True)

    # ---- what others write ----

    def send(self, topic: str, key: str, data: Any, *, link: str = "test:lane", message_id: str | None = None) -> None:
        """A record in the envelope, with the next seq of its link."""
        partition = partition_of(key, self.log.partitions(topic))
        self._seqs[link, topic, partition] += 1
        seq = self._seqs[link, topic, partition]
        envelope = {
            "id": message_id or f"{topic}:{partition}:{seq}",
            "type": topic_of(topic).type,
            "version": 1,
            "time": "2026-10-31T23:50:00Z",
            "link": link,
            "seq": seq,
            "epoch": 0,
            "trace": None,
            "data": data,
        }
        self.log.write(topic, key=key, value=envelope, partition=partition)

    async def account(
        self,
        account_id: str,
        *,
        plan: str = "payg",
        level_2: bool = False,
        credit_limit: str = "0",
        created_at: datetime | None = None,
        currency: str = "USD",
        group: str | None = None,
        scoped: bool = False,
    ) -> None:
        """The registry tells an account; again with another version when it is told again."""
        created = instant_text(created_at or await self.now())
        self._versions[account_id] += 1
        timeline = {
            "account_id": account_id,
            "account_no": 1,
            "version": self._versions[account_id],
            "organization_id": "lakeside",
            "name": account_id,
            "currency": currency,
            "opened_at": "2026-01-01T00:00:00Z",
            "created_at": created,
            "level_2": level_2,
            "credit_limit": credit_limit,
            "closed_at": None,
            "plans": [{"from": "2026-01-01T00:00:00Z", "to": None, "plan": plan}],
            "groups": []
            if group is None
            else [_interval(group, "2026-01-01T00:00:00Z", account_id if scoped else None)],
        }
        self.send("groups.accounts", account_id, timeline)

    def charge(
        self,
        account_id: str,
        amount: str,
        *,
        plan: str = "payg",
        group_id: str | None = "g",
        bill_to: str | None = "2026-10",
        product: str = "voice.outbound",
        currency: str = "USD",
        **more: Any,
    ) -> str:
        """A rated call; returns the charge's id."""
        made = charge(account_id, amount, plan, group_id, bill_to, product, currency) | more
        self.send("usage.charges", account_id, made)
        return str(made["charge_id"])

    def command(self, kind: str, account_id: str, *, command_id: str | None = None, **more: Any) -> str:
        """A command; returns its id."""
        self._count += 1
        command_id = command_id or f"c{self._count}"
        role = more.pop("role", "operator" if kind in BY_OPERATORS else "owner")
        value = {"command_id": command_id, "actor": "ann", "role": role, "account_id": account_id, "kind": kind, **more}
        self.log.write("balance.commands", key=account_id, value=value)
        return command_id

    def open(self, account_id: str, amount: str) -> None:
        """An opening balance."""
        self.command("open_balance", account_id, amount=amount, currency="USD")

    def pay(self, account_id: str, amount: str, token: str | None = None, **more: Any) -> str:
        """A manual payment, by the saved method or by a token; returns the command's id."""
        if token is not None:
            more = {"token": token, "processor": "sandbox"} | more
        return self.command("pay", account_id, amount=amount, **more)

    def method(self, account_id: str, token: str, processor: str = "sandbox") -> None:
        """A payment method is saved."""
        self.command("save_method", account_id, processor=processor, token=token)

    def prefer(self, account_id: str, threshold: str, recharge: str, mode: str = "up_to_sum") -> None:
        """Auto-recharge is switched on."""
        self.command("set_preferences", account_id, enabled=True, mode=mode, threshold=threshold, recharge=recharge)

    def limit(self, account_id: str, daily_spend: str | None = None, calls_max: int | None = None, **more: Any) -> None:
        """Limits of an account or, with `outbound_profile`, of a profile of it."""
        self.command("set_limits", account_id, daily_spend=daily_spend, calls_max=calls_max, **more)

    def result(
        self,
        attempt: Any,
        kind: str = "settled",
        *,
        result_id: str | None = None,
        failure: str | None = None,
        processor: str = "sandbox",
        topic_of_processor: str | None = None,
        **more: Any,
    ) -> None:
        """What a processor says of an attempt (a row of the table)."""
        self._count += 1
        value = {
            "result_id": result_id or f"r{self._count}",
            "attempt_id": str(attempt.attempt_id),
            "processor": processor,
            "kind": kind,
            "failure": failure,
            "reason": None,
            "amount": format_nano(attempt.amount_nano),
            "currency": attempt.currency,
            "at": "2026-10-31T23:50:00Z",
        } | more
        topic = f"payments.results.{topic_of_processor or processor}"
        self.log.write(topic, key=str(attempt.attempt_id), value=value)

    # ---- what came of it ----

    async def wallet(self, account_id: str) -> Any:
        """The wallet row."""
        rows = await self.rooms.query("balance", select(tables.wallet).where(tables.wallet.c.account_id == account_id))
        return rows[0]

    async def balance(self, account_id: str) -> str:
        """The wallet as a decimal string."""
        return format_nano((await self.wallet(account_id)).wallet_nano)

    async def attempts(self, account_id: str) -> list[Any]:
        """Its attempts, oldest first."""
        columns = tables.attempt.c
        statement = select(tables.attempt).where(columns.account_id == account_id).order_by(columns.trigger_version)
        return await self.rooms.query("balance", statement)

    def events(self, account_id: str, *kinds: str) -> list[dict[str, Any]]:
        """Its events by version; only some kinds when named."""
        told = [each for each in self.log.data("balance.events") if each["account_id"] == account_id]
        versions = [each["version"] for each in told]
        assert sorted(versions) == list(range(1, len(told) + 1)), f"versions of {account_id} are {versions}"
        return sorted(
            (each for each in told if not kinds or each["kind"] in kinds), key=lambda event: int(event["version"])
        )

    def kinds(self, account_id: str) -> list[str]:
        """The kinds of its events, by version."""
        return [event["kind"] for event in self.events(account_id)]

    async def quarantined(self) -> list[Any]:
        """(reason, field) of what balance has in quarantine, in the order it came."""
        parked = self.rooms.processors["balance"].tables.parked
        statement = select(parked).where(parked.c.state == "quarantined").order_by(parked.c.id)
        return [(row.reason, row.field) for row in await self.rooms.query("balance", statement)]

    async def entries(self, account_id: str | None = None) -> list[tuple[str, str]]:
        """(ledger account, amount) of every entry, or of those of an account."""
        columns = tables.ledger_entry.c
        statement = select(columns.ledger, columns.nano).order_by(columns.at, columns.ledger)
        if account_id is not None:
            statement = statement.where(columns.account_id == account_id)
        return [(row.ledger, format_nano(row.nano)) for row in await self.rooms.query("balance", statement)]

    def grant(self, account_id: str, amount: str, **more: Any) -> str:
        """A credit by an operator; returns the command's id."""
        return self.command("grant_credit", account_id, amount=amount, currency="USD", **more)

    async def credits(self) -> list[Any]:
        """The rows of all credits, the oldest first."""
        columns = tables.credit.c
        return await self.rooms.query("balance", select(tables.credit).order_by(columns.created_at, columns.credit_id))

    async def assert_credits_conserved(self) -> None:
        """What was granted was spent, is left or has lapsed; each row is the sum of its entries, each wallet of its credits; what
        is held of a credit is what calls hold of it, and no more than is left while it has not expired."""
        columns = tables.ledger_entry.c
        entries: dict[str, int] = defaultdict(int)
        for row in await self.rooms.query("balance", select(columns.ledger, columns.nano)):
            entries[row.ledger] += row.nano
        paid: dict[uuid.UUID, int] = defaultdict(int)
        for row in await self.rooms.query("balance", select(tables.funding)):
            paid[row.credit_id] += row.nano
        held: dict[uuid.UUID, int] = defaultdict(int)
        by_call: dict[tuple[str, str], int] = defaultdict(int)
        for row in await self.rooms.query("balance", select(tables.credit_hold)):
            held[row.credit_id] += row.nano
            by_call[row.account_id, row.call_leg_id] += row.nano
        calls = await self.rooms.query("balance", select(tables.call))
        assert by_call == {(row.account_id, row.call_leg_id): row.shared_nano for row in calls if row.shared_nano}
        own: dict[str, int] = defaultdict(int)
        for credit in await self.credits():
            assert credit.held_nano == held[credit.credit_id]
            assert credit.expired_at is not None or credit.held_nano <= credit.remaining_nano
            if credit.valid_from is not None:
                whole = paid[credit.credit_id] + credit.remaining_nano + credit.breakage_nano
                assert credit.granted_nano == whole, f"{credit} was granted, {paid[credit.credit_id]} spent"
            assert entries[f"credit:{credit.credit_id}"] == credit.remaining_nano
            own[credit.account_id] += credit.remaining_nano
        assert entries["breakage"] == sum(credit.breakage_nano for credit in await self.credits())
        for wallet in await self.rooms.query("balance", select(tables.wallet)):
            assert wallet.credit_nano == own[wallet.account_id], wallet.account_id

    async def assert_conserved(self) -> None:
        """Every entry together is zero, and each wallet row is the sum of its entries."""
        columns = tables.ledger_entry.c
        rows = await self.rooms.query("balance", select(columns.account_id, columns.ledger, columns.nano))
        assert sum(row.nano for row in rows) == 0
        sums: dict[tuple[str, str], int] = defaultdict(int)
        for row in rows:
            sums[row.account_id or "", row.ledger.partition(":")[0]] += row.nano
        for wallet in await self.rooms.query("balance", select(tables.wallet)):
            held = (wallet.wallet_nano, wallet.unbilled_nano, wallet.receivable_nano)
            summed = tuple(sums[wallet.account_id, kind] for kind in ("wallet", "unbilled", "receivable"))
            assert held == summed, f"{wallet.account_id} holds {held}, its entries sum to {summed}"


def _interval(group_id: str, start: str, account_id: str | None) -> dict[str, Any]:
    return {
        "from": start, "to": None, "group_id": group_id, "zone": "UTC", "currency": "USD", "pricing_model": None,
        "account_id": account_id,
    }  # fmt: skip


def charge(
    account_id: str,
    amount: str,
    plan: str = "payg",
    group_id: str | None = "g",
    bill_to: str | None = "2026-10",
    product: str = "voice.outbound",
    currency: str = "USD",
) -> dict[str, Any]:
    """The data of a charge."""
    return {
        "charge_id": str(uuid.uuid4()),
        "revision": 0,
        "reverses": None,
        "account_id": account_id,
        "organization_id": "lakeside",
        "plan": plan,
        "group_id": group_id,
        "period": bill_to,
        "bill_to": bill_to,
        "cost_center_id": None,
        "assignment_version": 1,
        "event_time": "2026-10-31T23:50:00Z",
        "publisher": "lakeside",
        "source": "switch",
        "event_id": "e",
        "call_leg_id": None,
        "product": product,
        "unit": "second",
        "quantity": 60,
        "duration_s": 60,
        "amount": amount,
        "currency": currency,
        "book_id": "list",
        "book_version": 1,
        "matched": "1",
        "unit_price": "0.0140",
        "connection_fee": "0",
        "per": 60,
        "minimum": 60,
        "increment": 60,
    }


def minutes(count: float) -> timedelta:
    """Short form."""
    return timedelta(minutes=count)


def of_day(now: datetime, days_before: int) -> datetime:
    """The same instant some days before, in UTC."""
    return now.astimezone(UTC) - timedelta(days=days_before)


def kinds_of(events: Iterable[dict[str, Any]]) -> list[str]:
    """The kinds of events."""
    return [event["kind"] for event in events]
