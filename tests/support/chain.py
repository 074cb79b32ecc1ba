"""The whole chain on real servers: all rooms as processes, a registry made by commands, prices, usage, a closed period,
and everything that the reference model needs to judge what came of it.

    async with running(servers, folder, seed=7) as chain:
        chain.start_rooms()
        await chain.found()                       # registry, prices, opening balances
        await chain.publish(chain.factory.mix(500))
        await chain.idle()
        await chain.name_period(chain.period)
        assert await chain.judged() == []

Everything random follows from the seed but the schedule of the machine.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import signal
import socket
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts.openings import OPENING
from contracts.topics import TOPICS, USAGE_EVENTS
from services.cli import idle, verify
from services.invoices import api as invoices
from services.invoices import credit_note_api as credit_notes
from services.invoices.credit_notes import Asked
from services.kernel.errors import Unavailable
from services.runtime.broker import Offsets, ensure_topics
from services.runtime.database import is_retryable, open_engine
from services.runtime.settings import ROOMS, Settings
from services.usage import api as usage
from tests.support import model
from tests.support.model import Attempt, Charge, RawRecord, RestingAccount, nano
from tests.support.money_paths import MoneyPaths
from tests.support.outside import followed
from tests.support.people import Person
from tests.support.prices import price_file
from tests.support.processes import NOTHING, Processes, nursery, until
from tests.support.servers import Database, TestedServers
from tests.support.usage_factory import (
    UNPRICED_NUMBER,
    UNPRICED_PRODUCT,
    UsageFactory,
    UsageInput,
    example_prices,
)

REFUSED_PREFIX = "refuse-"  # events whose id begins so are refused by the database alone
GRACE = timedelta(hours=49)  # a little more than a period rests after its end
PARIS = "Europe/Paris"
T = TypeVar("T")

IDLE_S_MAX = 300.0  # the machine may be busy with other tests


CAST = (
    Person("frontdesk", "lakeside", "payg", None, "100.00", {"threshold": "95", "recharge": "20"}, "tok_ok", True),
    Person("night", "lakeside", "payg", None, "40.00", {"threshold": "38", "recharge": "150"}, "tok_twice"),
    Person("kiosk", "lakeside", "payg", None, "12.00", {"threshold": "11", "recharge": "20"}, "tok_declined", True),
    Person("late", "lakeside", "payg", "late-payers", "15.00", {"threshold": "14", "recharge": "10"}, "tok_late_5s", True),
    Person("silent", "lakeside", "payg", None, "15.00", {"threshold": "14", "recharge": "10"}, "tok_silent", True),
    Person("faulty", "lakeside", "payg", None, "15.00", {"threshold": "14", "recharge": "10"}, "tok_error", True),
    Person("poor", "lakeside", "payg", None, "0.10"),
    Person("try", "lakeside", "trial", None),
    Person("east", "northwind", "invoiced", "northwind"),
    Person("west", "northwind", "invoiced", "northwind"),
    Person("alone", "northwind", "invoiced", None),
)  # fmt: skip


@dataclass(frozen=True)
class Command:
    """A command that was sent, and what the rules may say to it."""

    room: str
    owner: str  # the organization or the account in which its id counts
    command_id: str
    answers: frozenset[str | None]  # the reason it is refused for; None: it is carried out


@dataclass
class Chain:
    """One installation with everything that a test does to it and knows of it."""

    database: Database
    settings: Settings
    processes: Processes
    seed: int
    topic_prefix: str
    producer: Any
    owner: asyncpg.Pool[Any]
    random: random.Random
    now: datetime
    facts: dict[str, Any] = field(default_factory=dict)
    openings: list[tuple[str, int]] = field(default_factory=list)
    goodwill: list[tuple[str, int]] = field(default_factory=list)
    payers: dict[str, tuple[Mapping[str, Any] | None, bool]] = field(default_factory=dict)  # preferences, level 2
    limited: set[str] = field(default_factory=set)  # accounts with a daily spend limit, from before their first use on
    commands: list[Command] = field(default_factory=list)
    facts_before_prices: dict[str, Any] | None = None
    facts_before_corrections: dict[str, Any] | None = None  # by the registry, or by new prices
    credited: set[str] = field(
        default_factory=set
    )  # groups whose invoice of the month that ends is taken back, all of it
    discards: set[model.Position] = field(default_factory=set)
    armed: set[str] = field(default_factory=set)
    clock_of_copies: Mapping[str, str] = field(default_factory=dict)  # variables of every copy but the first
    restored: bool = False  # from a backup, so that the log knows more than the database
    paths: MoneyPaths | None = None  # what else people do with their money, if anything
    factory: UsageFactory = field(init=False)

    # ---- processes ---------------------------------------------------------------------------------------------------

    def start_rooms(self, copy: int = 1) -> None:
        """Start a copy of every room."""
        for room in ROOMS:
            self.start(room, copy)

    def start(self, room: str, copy: int = 1, *, crash: str | None = None) -> None:
        name = f"{room}{copy}"
        (self.armed.discard if crash is None else self.armed.add)(name)
        more = self.clock_of_copies if copy > 1 else {}
        self.processes.start(name, f"services.{room}", crash=crash, more=more)

    def kill(self, room: str, copy: int = 1) -> None:
        """SIGKILL from outside."""
        self.processes.kill(f"{room}{copy}")

    async def begun(self, room: str, copy: int = 1) -> bool:
        """Whether a copy has come so far as to work: its heart has beaten."""
        return await self._has_beaten(self.processes.running[f"{room}{copy}"].pid)

    async def stop(self, *names: str) -> None:
        """SIGTERM, and wait; all of them by default. Whoever had begun to work ends in good order, by 0; who had not may be ended
        by the signal."""
        pids = {name: process.pid for name, process in self.processes.running.items()}
        for name, code in (await asyncio.to_thread(self.processes.stop, *names)).items():
            if code != 0 and (code != -signal.SIGTERM or await self._has_beaten(pids[name])):
                raise AssertionError(f"{name} ended by {code}\n{self.processes.tail(name)}")

    async def _has_beaten(self, pid: int) -> bool:
        process = f"{socket.gethostname()}-{pid}"
        return bool(await self.rows("select 1 from runtime.heartbeat where process = $1", process))

    def check_alive(self) -> None:
        """Every process that was started, but for those that are to kill themselves, still runs."""
        for name, process in self.processes.running.items():
            if name not in self.armed and process.poll() is not None:
                raise AssertionError(f"{name} ended by {process.returncode}\n{self.processes.tail(name)}")

    # ---- what goes in ------------------------------------------------------------------------------------------------

    async def send(self, topic: str, key: bytes | None, value: bytes | None) -> Any:
        """One record; the returned future ends with the acknowledgement."""
        if key is None and value is None:
            key = b"nobody"  # the client refuses to send nothing at all
        return await self.producer.send(self.topic_prefix + topic, value, key=key)

    async def command(self, kind: str, organization_id: str, *, refused: str | None = None, **fields: Any) -> None:
        """A command to the registry, by the operator; ``refused`` is the reason if the rules forbid it."""
        command_id = f"c{len(self.commands)}"
        command = {"kind": kind, "command_id": command_id, "actor": "ops", "role": "operator"}
        command |= {"organization_id": organization_id, **fields}
        # one key, so that commands of several organizations come in the order in which they were given
        await self.send("groups.commands", b"one", json.dumps(command).encode())
        self.commands.append(Command("groups", organization_id, command_id, frozenset({refused})))

    async def wallet_command(
        self, kind: str, account_id: str, *, refused: str | None = None, or_refused: Iterable[str] = (), **fields: Any
    ) -> Command:
        """A command to a wallet, by the operator; sent twice, as a program does that saw no answer. ``refused`` is the reason
        if the rules forbid it, ``or_refused`` are those that depend on what came before it."""
        command_id = f"c{len(self.commands)}"
        command = {"kind": kind, "command_id": command_id, "actor": "ops", "role": "operator", "account_id": account_id}
        for _ in range(2):
            await self.send("balance.commands", account_id.encode(), json.dumps(command | fields).encode())
        self.commands.append(Command("balance", account_id, command_id, frozenset({refused, *or_refused})))
        return self.commands[-1]

    async def found(self, others: Iterable[Person] = ()) -> None:
        """The registry of the cast and of others, the prices, the opening balances; waits until every room knows them. The
        factory makes usage of the cast alone."""
        await self.command("create_organization", "lakeside", name="Lakeside")
        await self.command("create_organization", "northwind", name="Northwind")
        await self.command(
            "create_billing_entity", "lakeside", billing_entity_id="tollbook", name="Tollbook Inc.", address="1 Main St",
            number_prefix="TB-",
        )  # fmt: skip
        self.facts = {"billing_groups": []}
        await self.make_group("northwind", "northwind", zone=PARIS, tax_rate="0.20")
        await self.make_group("late-payers", "lakeside", tax_rate="0.075")
        await self.command(
            "approve_sharing", "northwind", group_id="northwind", yearly_spend="120000", threshold="100000",
            credit_check_passed=True,
        )  # fmt: skip
        self.facts = {
            "publishers": [
                {
                    "publisher_id": "switch",
                    "organization_ids": ["lakeside", "northwind"],
                    "sources": ["pbx/1", "pbx/2"],
                },
                {"publisher_id": "carrier", "organization_ids": ["northwind"], "sources": ["trunk/a"]},
            ],
            "accounts": [],
            **self.facts,
            "resources": [],
            "prices": [],
        }
        for publisher in self.facts["publishers"]:
            await self.command("create_publisher", publisher["organization_ids"][0], **publisher)
        for person in (*CAST, *others):
            await self.join(person, self.opened_at)
        await self.price(example_prices(self.factory_boundary - timedelta(days=60)))
        await self.known()
        self.factory = UsageFactory(
            self.seed,
            [
                account
                for account in self.facts["accounts"]
                if account["account_id"] in {each.account_id for each in CAST}
            ],
            self.facts["publishers"],
            self.now,
            euro=True,
            refused_prefix=REFUSED_PREFIX,
        )

    async def make_group(self, group_id: str, organization_id: str, *, tax_rate: str, zone: str = "UTC") -> None:
        """A payer group of an organization."""
        group = {"group_id": group_id, "zone": zone, "currency": "USD", "tax_rate": tax_rate}
        billing_information = {"company": "Some"}
        await self.command(
            "create_group", organization_id, name=group_id, billing_information=billing_information, **group
        )
        self.facts["billing_groups"].append(group)

    async def join(self, person: Person, opened_at: str) -> None:
        """Create an account, its opening balance, method and preferences."""
        named = {"group_id": person.group_id} if person.group_id else {}
        limit = {"credit_limit": "1000"} if person.plan == "invoiced" else {}
        await self.command(
            "create_account", person.organization_id, account_id=person.account_id, name=person.account_id,
            plan=person.plan, opened_at=opened_at, **named, **limit,
        )  # fmt: skip
        if person.level_2:
            await self.command("grant_level_2", person.organization_id, account_id=person.account_id)
        group_id = None if person.plan == "trial" else person.group_id or person.account_id
        if group_id == person.account_id:
            self.facts["billing_groups"].append(
                {"group_id": group_id, "zone": "UTC", "currency": "USD", "tax_rate": "0"}
            )
        self.facts["accounts"].append(
            {
                "account_id": person.account_id,
                "organization_id": person.organization_id,
                "currency": "USD",
                "plans": [{"from": opened_at, "to": None, "plan": person.plan}],
                "groups": [{"from": opened_at, "to": None, "group_id": group_id}] if group_id else [],
            }
        )
        if person.opening:
            await self.wallet_command("open_balance", person.account_id, amount=person.opening, currency="USD")
            self.openings.append((person.account_id, nano(person.opening)))
        if person.token:
            await self.wallet_command("save_method", person.account_id, processor="sandbox", token=person.token)
        wish = {"enabled": True, "mode": "up_to_sum", **person.recharge} if person.recharge else None
        if wish:
            await self.wallet_command("set_preferences", person.account_id, currency="USD", **wish)
        if person.opening or person.token:
            self.payers[person.account_id] = (wish, person.level_2)
        if person.limit:
            await self.wallet_command("set_limits", person.account_id, daily_spend=person.limit, currency="USD")
            self.limited.add(person.account_id)

    async def move(self, account_id: str, group_id: str, since: datetime) -> None:
        """Another payer group has paid for an account since then, once in a test: what was charged meanwhile is moved."""
        (account,) = (each for each in self.facts["accounts"] if each["account_id"] == account_id)
        await self.command(
            "move_accounts", account["organization_id"], account_ids=[account_id], group_id=group_id, since=_text(since)
        )
        (first,) = account["groups"]
        groups = [first | {"to": _text(since)}, {"from": _text(since), "to": None, "group_id": group_id}]
        self._correcting()
        others = [each for each in self.facts["accounts"] if each is not account]
        self.facts = self.facts | {"accounts": [*others, account | {"groups": groups}]}

    async def reprice(self, account_id: str, row: Mapping[str, Any], since: datetime) -> None:
        """An account gets a book of its own, once in a test, which is dated back: one person plans what was charged meanwhile
        anew, another one lets it be carried out. Each asks until it is answered, whatever cuts the connection."""
        own = {**row, "book": f"{account_id}-own", "effective_from": _text(since), "account_id": account_id}
        await self._insist(lambda engine: usage.import_prices(engine, own["book"], price_file([own]), since))
        await self._insist(lambda engine: usage.set_book_of(engine, "account", account_id, own["book"]))
        self._correcting()
        self.facts = self.facts | {"prices": [*self.facts["prices"], own]}
        planned = await self._insist(
            lambda engine: usage.plan_rerate(engine, since, self.now, "ann", "finance", account_ids=[account_id])
        )

        async def approved(engine: AsyncEngine) -> Any:
            plan = await usage.rerate(engine, planned.plan_id)
            if plan.state != "planned":  # the answer was lost
                return plan
            return await usage.approve_rerate(engine, plan.plan_id, "bea", "finance")

        await self._insist(approved)
        await self._insist(lambda engine: usage.execute_rerate(engine, planned.plan_id, "bea", "finance"))

    async def credit(self, group_id: str, *lines: Asked) -> None:
        """One person proposes to credit lines of a group's invoice of the month that ended, or all that is left of it, and another
        one approves."""
        (row,) = await self.rows(
            "select number from invoices.invoice where group_id = $1 and period = $2", group_id, self.period
        )

        async def proposed(engine: AsyncEngine) -> credit_notes.KeptNote:
            for each in await credit_notes.credit_notes(engine, group_id=group_id, state="proposed"):
                return each  # the answer was lost
            return await credit_notes.propose(engine, row["number"], "wrong", "ann", "finance", lines or None)

        note = await self._insist(proposed, "invoices")
        approve = partial(credit_notes.approve, credit_note_id=note.credit_note_id, by="bea", role="finance")
        await self._insist(approve, "invoices")
        if not lines:
            self.credited.add(group_id)

    async def credits_carried_out(self) -> bool:
        """Whether every credit note is issued and posted."""
        return not await self.rows(
            "select 1 from invoices.credit_note note left join balance.transaction made"
            " on made.kind = 'credit_note' and made.ref = note.credit_note_id::text where made.ref is null"
        )

    def _correcting(self) -> None:
        if self.facts_before_corrections is None:
            self.facts_before_corrections = self.facts

    async def _insist(self, ask: Callable[[AsyncEngine], Awaitable[T]], room: str = "usage") -> T:
        async with self.engine(room) as engine:
            while True:
                try:
                    return await ask(engine)
                except Exception as error:
                    if not is_retryable(error):
                        raise
                await asyncio.sleep(0.05)

    async def grant(self, account_id: str, amount: str) -> None:
        await self.wallet_command("grant_goodwill", account_id, amount=amount, currency="USD")
        self.goodwill.append((account_id, nano(amount)))

    async def price(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Import versions of default books, in the order of their rows, and remember them for the model."""
        books: dict[tuple[str, datetime], list[Mapping[str, Any]]] = defaultdict(list)
        for row in rows:
            books[row["book"], row["effective_from"]].append(row)
        known = list(dict.fromkeys(row["book"] for row in [*self.facts["prices"], *rows] if "account_id" not in row))
        async with self.engine("usage") as engine:
            for (book, effective_from), prices in books.items():
                await usage.import_prices(engine, book, price_file(prices), effective_from)
            await usage.set_default_books(engine, known)
        self.facts = self.facts | {"prices": [*self.facts["prices"], *rows]}

    async def known(self) -> None:
        """Until the registry has carried out every command, and every room has heard of it."""

        async def decided() -> bool:
            self.check_alive()
            done = {row[0] for row in await self.rows("select command_id from groups.command")}
            return all(each.command_id in done for each in self.commands if each.room == "groups")

        await until(decided, "the registry carries out every command", IDLE_S_MAX)
        refused = await self.rows("select content, answer from groups.command where not accepted")
        assert not refused, f"refused: {[tuple(row) for row in refused]}"
        await self.idle()

    async def publish(self, inputs: Iterable[UsageInput]) -> None:
        """Usage, in its order, acknowledged when this returns."""
        futures = [await self.send(item.topic, item.key, item.value) for item in inputs]
        await asyncio.gather(*futures)

    async def forbidden(self, person: Person) -> None:
        """What the rules refuse after `join`: the account is made again, its opening balance taken over again."""
        await self.command(
            "create_account", person.organization_id, account_id=person.account_id, name="another", plan=person.plan,
            refused="already_exists",
        )  # fmt: skip
        if person.opening:
            await self.wallet_command(
                "open_balance", person.account_id, amount="1", currency="USD", refused="already_opened"
            )

    async def forbidden_payment(self, group_id: str) -> None:
        """A transfer to a group, recorded by somebody who may not: told as refused, and nothing moves."""
        command = {
            "kind": "record_payment", "command_id": uuid.uuid4().hex, "actor": "eve", "role": "owner", "group_id": group_id,
            "amount": "1.00", "currency": "USD", "reference": "none",
        }  # fmt: skip
        await self.send("balance.group_commands", group_id.encode(), json.dumps(command).encode())

    async def publish_aborted(self, inputs: Sequence[UsageInput]) -> None:
        """Usage in a transaction that is aborted: nobody may ever see it, but its offsets and a marker are taken."""
        producer = AIOKafkaProducer(
            bootstrap_servers=self.settings.kafka_bootstrap, transactional_id=f"{self.topic_prefix}{uuid.uuid4().hex}"
        )
        await producer.start()
        try:
            await producer.begin_transaction()
            for item in inputs:
                key = b"none" if item.value is None else item.key  # `send` takes no record that has neither
                await producer.send(self.topic_prefix + item.topic, item.value, key=key)
            await producer.flush()
            await producer.abort_transaction()
        finally:
            await producer.stop()

    # ---- closing -----------------------------------------------------------------------------------------------------

    @property
    def factory_boundary(self) -> datetime:
        """The boundary around which usage is made: the start of this month, UTC."""
        return self.now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)

    @property
    def opened_at(self) -> str:
        """When the accounts were opened."""
        return _text(self.factory_boundary - timedelta(days=20))

    @property
    def newly_opened_at(self) -> str:
        """When accounts open that are created on the way: not before a boundary that may be cut by then."""
        return _text(self.factory_boundary)

    @property
    def period(self) -> str:
        """The period that ends there."""
        return (self.factory_boundary - timedelta(days=1)).strftime("%Y-%m")

    def period_before(self, months: int) -> str:
        """A period that ended so many months before that one: nobody used anything in it, its cut is still a cut."""
        index = self.factory_boundary.year * 12 + self.factory_boundary.month - 2 - months
        return f"{index // 12:04d}-{index % 12 + 1:02d}"

    async def end_grace(self) -> None:
        """In the first two days of a month the grace still runs: it is none then. The clock stays what it is, since usage is
        dated by the broker's, and no credit pays for what was used before it was given."""
        if self.now < self.factory_boundary + GRACE:
            async with self.engine("invoices") as engine:
                await invoices.set_grace(engine, timedelta(0))

    async def move_clock(self, forward: timedelta) -> None:
        await self.rows("select runtime.clock_move($1)", forward)

    async def clock(self) -> datetime:
        """The instant of the one clock."""
        now: datetime = (await self.rows("select runtime.clock_now()"))[0][0]
        return now

    async def name_period(self, period: str) -> None:
        """An operator closes a period by name."""
        async with self.engine("invoices") as engine:
            await invoices.request_close(engine, period, "ops")

    async def cuts(self) -> dict[datetime, dict[model.Lane, int]]:
        """The vector of every cut that was taken, by boundary."""
        vectors: dict[datetime, dict[model.Lane, int]] = {
            row["boundary"]: {} for row in await self.rows("select boundary from usage.cut where taken_at is not null")
        }
        for row in await self.rows(
            "select boundary, topic, partition, position from usage.cut_position join usage.cut using (cutoff_id)"
        ):
            vectors[row["boundary"]][row["topic"], row["partition"]] = row["position"]
        return vectors

    async def passed(self, period: str, within_s: float = IDLE_S_MAX) -> None:
        """Until every cut of a period has passed the lanes: its end in each zone of the groups."""
        ends = {model.month_end(period, group["zone"]) for group in self.facts["billing_groups"]}

        async def done() -> bool:
            self.check_alive()
            return ends <= {
                row[0] for row in await self.rows("select boundary from usage.cut where passed_at is not null")
            }

        await until(done, f"the cuts of {period} pass the lanes", within_s)

    async def finished(self) -> None:
        """Until no cut waits for anything any more."""

        async def done() -> bool:
            self.check_alive()
            return not await self.rows("select 1 from invoices.cutoff where finished_at is null")

        try:
            await until(done, "every cut is closed", IDLE_S_MAX)
        except AssertionError as late:
            raise AssertionError(f"seed {self.seed}: {late}\n{await self._what_waits()}") from None

    async def _what_waits(self) -> str:
        lines = []
        async with self.engine("invoices") as engine:
            for cut in await invoices.cuts(engine):
                lines.append(f"{cut.boundary}: {cut.waiting_for or cut.held}, finished {cut.finished_at}")
        async with self.engine("usage") as engine:
            lines += [str(holder) for state in await usage.cuts(engine) for holder in state.holders]
        refused = await self.rows("select group_id, period, refused from invoices.invoice where refused is not null")
        return "\n".join(lines + [str(tuple(row)) for row in refused])

    async def decide_quarantine(self) -> None:
        """A person decides about what stands below a cut: discards it. What had no price gets one, and is rated by itself
        ("retried by themselves when the account, number or price appears", domain, section 3)."""
        cuts = await self.cuts()
        held = [t for t in cuts if t > self.factory_boundary - timedelta(days=2)]
        rows = await self.rows(
            'select id, topic, partition, "offset", reason from usage.parked where state = $1 order by id',
            "quarantined",
        )
        given_up = [
            row
            for row in rows
            if row["reason"] != model.NO_PRICE
            and any(row["offset"] < cuts[t].get((row["topic"], row["partition"]), 0) for t in held)
        ]
        lists = [row for row in self.facts["prices"] if row["book"] == "list"]
        number = {"product": "voice.outbound", "prefix": UNPRICED_NUMBER[1:4], "price": "1.2500"}
        product = {"product": UNPRICED_PRODUCT, "prefix": "*", "price": "0.05", "per": 10, "unit": "request"}
        self.facts_before_prices = self.facts
        await self.price([{**row, "version": 2} for row in [*lists, lists[0] | number, lists[0] | product]])
        async with self.engine("usage") as engine:
            await usage.discard(engine, "ops", ids=[row["id"] for row in given_up])
        self.discards |= {_place(row) for row in given_up}

    async def retried(self) -> set[model.Position]:
        """Records that had no price and were rated when one came."""
        rows = await self.rows(
            'select topic, partition, "offset" from usage.parked where state = $1 and reason = $2',
            "replayed",
            model.NO_PRICE,
        )
        return {_place(row) for row in rows}

    # ---- waiting -----------------------------------------------------------------------------------------------------

    async def idle(self, timeout_s: float = IDLE_S_MAX) -> None:
        """Until everything that went in is processed in every room, the sandbox has answered, and nothing is due."""

        async def answered() -> bool:
            self.check_alive()
            await self._no_lane_stopped()
            due = "select 1 from payments.due union all select 1 from balance.due where due_at <= runtime.clock_now()"
            return not await self.rows(due)

        async with idle.watching(self.settings) as watch:
            for _ in range(2):  # an answer that was due in between makes new work
                try:
                    await watch.wait(timeout_s=timeout_s, meanwhile=self.check_alive)
                except Unavailable as error:
                    await self._no_lane_stopped()
                    raise AssertionError(f"seed {self.seed}: {error}") from None
                await until(answered, "the sandbox answers", timeout_s)

    async def rest(self) -> None:
        """Idle, and every command that is in quarantine because the registry was away for long has run by itself."""
        await self.idle()

        async def none_waits() -> bool:
            self.check_alive()
            statement = "select 1 from balance.parked where state = 'quarantined' and reason = $1"
            return not await self.rows(statement, model.UNKNOWN_ACCOUNT)

        await until(none_waits, "commands whose account is known by now run", IDLE_S_MAX)
        await self.idle()

    async def _no_lane_stopped(self) -> None:
        for room in ROOMS:
            stopped = await self.rows(f"select name, stopped from {room}.lane where stopped is not null")
            assert not stopped, f"seed {self.seed}: {room} stopped {[tuple(row) for row in stopped]}"

    # ---- what came out -----------------------------------------------------------------------------------------------

    async def rows(self, statement: str, *arguments: Any) -> list[Any]:
        """Rows as the owner sees them."""
        async with self.owner.acquire() as connection:
            return list(await connection.fetch(statement, *arguments))

    @asynccontextmanager
    async def engine(self, room: str) -> AsyncIterator[Any]:
        """An engine with the role of a room."""
        engine = open_engine(self.database.room(room), application="test.chain", pool_size=1)
        try:
            yield engine
        finally:
            await engine.dispose()

    async def records(self, family: str) -> list[RawRecord]:
        """Every committed record of a topic or family of topics, as the broker holds it; none that a person gave up."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.settings.kafka_bootstrap, isolation_level="read_committed", enable_auto_commit=False
        )
        await consumer.start()
        try:
            offsets = Offsets(self.settings)
            await offsets.start()
            try:
                counts = await offsets.partitions(TOPICS)
            finally:
                await offsets.stop()
            names = [name for name in counts if name == family or (family.endswith(".") and name.startswith(family))]
            places = [TopicPartition(self.topic_prefix + name, part) for name in names for part in range(counts[name])]
            if not places:
                return []
            consumer.assign(places)
            await consumer.seek_to_beginning(*places)
            ends = await consumer.end_offsets(places)
            found: list[RawRecord] = []
            while any([await consumer.position(place) < ends[place] for place in places]):
                for place, batch in (await consumer.getmany(timeout_ms=200)).items():
                    topic = place.topic.removeprefix(self.topic_prefix)
                    found += [RawRecord(topic, r.partition, r.offset, r.timestamp, r.key, r.value) for r in batch]
            lost = await self.rows("select topic, partition, from_offset, to_offset from usage.resumed")
            given_up = {(row[0], row[1], offset) for row in lost for offset in range(row[2], row[3])}
            return sorted((each for each in found if each.position not in given_up), key=lambda each: each.position)
        finally:
            await consumer.stop()

    async def published(self, topic: str) -> list[dict[str, Any]]:
        """What holds of all that was told on a topic, once per link and seq, for somebody outside who follows the one rule;
        repeats must say the same, seqs must have no gap."""
        records = ((record.partition, json.loads(record.value or b"")) for record in await self.records(topic))
        return [envelope["data"] for envelope in followed(records).holds.values()]

    async def observed_classes(self, records: Iterable[RawRecord]) -> dict[model.Position, str]:
        """The class of every record as usage's tables have it: parked, or accepted under its identity, or a duplicate."""
        states = {1: model.RATED, 2: model.RATED_UNGROUPED, 3: model.NOT_BILLABLE, 4: model.VOIDED}
        known: set[bytes] = set()
        accepted: dict[tuple[bytes, int, int], str] = {}
        for row in await self.rows('select digest, state, partition, "offset" from usage.identity'):
            assert row["digest"].bytes not in known, "an identity was accepted in two generations"
            known.add(row["digest"].bytes)
            accepted[row["digest"].bytes, row["partition"], row["offset"]] = states[row["state"]]
        for row in await self.rows('select digest, state, partition, "offset" from usage.superseded'):
            assert row["digest"].bytes in known, "what was superseded has no revision that holds"
            accepted[row["digest"].bytes, row["partition"], row["offset"]] = states[row["state"]]
        parked = {
            _place(row): row["reason"]
            for row in await self.rows(
                'select topic, partition, "offset", reason from usage.parked where state <> $1', "replayed"
            )
        }
        lanes = {
            (row["topic"], row["partition"]): row["position"]
            for row in await self.rows("select topic, partition, position from usage.lane where input = 'events'")
        }
        observed: dict[model.Position, str] = {}
        for record in records:
            if record.offset >= lanes.get((record.topic, record.partition), 0):
                continue  # not read: the model calls it unaccounted for
            if record.position in parked:
                observed[record.position] = parked[record.position]
                continue
            try:
                leg = model.read_use(record.value)
            except model.Unacceptable:
                continue  # neither parked nor readable: lost
            identity = model.identity_of(record.publisher, leg.source, leg.event_id)
            if identity in known:
                place = identity, record.partition, record.offset
                observed[record.position] = accepted.get(place, model.DUPLICATE)
        return observed

    async def judged(self) -> list[str]:
        """Everything that differs between what the model computes from the records in Kafka and what the rooms did."""
        records = await self.records(USAGE_EVENTS.name)
        cuts = await self.cuts()
        replays = dict.fromkeys(await self.retried(), ())

        def judged_by(facts: model.Facts) -> model.Judgement:
            return model.judge(
                [(facts, records)],
                cuts=cuts,
                replays=replays,
                discards=self.discards,
                store_refuses=lambda leg: leg.event_id.startswith(REFUSED_PREFIX),
            )

        judgement = judged_by(self.facts)
        problems = judgement.check_classes(await self.observed_classes(records))
        stand, moved = model.unmoved(await self.published("usage.charges"))
        charges, differences = judgement.resolve(stand)
        problems += differences
        charges, differences = model.moved_back(
            charges, judged_by(before).charges if (before := self.facts_before_corrections) is not None else {}, moved
        )
        problems += differences
        stored = {str(row["charge_id"]): row["amount_nano"] for row in await self.rows("select * from usage.charge")}
        wanted = {charge_id: charge.amount_nano for charge_id, charge in charges.items()}
        problems += [f"charge {i}: stored {stored.get(i)}, expected {wanted.get(i)}" for i in _differ(stored, wanted)]
        problems += await self._check_money(charges)
        problems += await self._check_spend(charges)
        problems += await self._check_recharges()
        problems += await self._check_held(records, cuts)
        problems += await self._check_commands()
        if self.paths is not None:
            problems += await self.paths.judged(charges, await self.clock())
        return problems

    async def audited(self) -> list[str]:
        """What the auditor finds wrong."""
        report = await verify.run(self.settings)
        return [f"{check.name}: {difference}" for check in report.checks for difference in check.differences]

    async def _check_money(self, charges: Mapping[str, Charge]) -> list[str]:
        problems = []
        bundles = model.make_invoices(charges.values(), self.facts)
        state = {
            (row["group_id"], row["period"]): row
            for row in await self.rows(
                "select i.*, coalesce(t.charges, 0) as charges, coalesce(t.exact_nano, 0) as exact_nano, t.xor"
                " from invoices.invoice i left join invoices.tally t using (invoice_id)"
            )
        }
        closed = []
        for key in sorted(bundles.keys() | state.keys()):
            row, invoice = state.get(key), bundles.get(key)
            if invoice is None or row is None:
                if row is None or row["charges"]:
                    problems.append(f"invoice {key}: {row}, expected {invoice}")
                continue
            have = [row["charges"], int(row["exact_nano"]), row["xor"]]
            want = [invoice.charges, invoice.exact_nano, invoice.xor]
            if row["state"] == "closed":
                closed.append(invoice)
                have += [int(row[name]) for name in ("net_nano", "tax_nano", "total_nano", "due_nano")]
                want += [invoice.net_nano, invoice.tax_nano, invoice.total_nano, invoice.due_nano]
            if have != want:
                problems.append(f"invoice {key}: {have}, expected {want}")
        finished = [t for t in await self.cuts() if t > self.factory_boundary - timedelta(days=2)]
        if finished and not await self.rows("select 1 from invoices.cutoff where finished_at is null"):
            zones = {group["group_id"]: group["zone"] for group in self.facts["billing_groups"]}
            for (group_id, period), invoice in bundles.items():
                is_over = model.month_end(period, zones[group_id]) in finished
                must = "open" if not is_over else "nothing" if invoice.is_nothing else "closed"
                if must != state[group_id, period]["state"]:
                    problems.append(f"invoice {group_id} {period}: is {state[group_id, period]['state']}")
        ledger = model.make_ledger(
            charges.values(),
            openings=self.openings,
            goodwill=self.goodwill,
            results=await self._said_of_payments(),
            credits=await self.paths.credits() if self.paths is not None else (),
            closed=closed,
            transfers=self.paths.transfers.values() if self.paths is not None else (),
            group_payments=self.paths.group_payments.values() if self.paths is not None else (),
            write_offs=self.paths.written_off if self.paths is not None else (),
            credited=[each for each in closed if each.period == self.period and each.group_id in self.credited],
        )
        for row in await self.rows("select account_id, wallet_nano, unbilled_nano from balance.wallet"):
            account_id = row["account_id"]
            have = [row["wallet_nano"], -row["unbilled_nano"]]
            want = [ledger.wallet(account_id), ledger.unbilled(account_id)]
            if have != want:
                problems.append(f"wallet {account_id}: {have}, expected {want}")
        owed: dict[str, int] = defaultdict(int)
        members = {a["account_id"]: a["groups"][-1]["group_id"] for a in self.facts["accounts"] if a["groups"]}
        for row in await self.rows("select account_id, receivable_nano from balance.wallet"):
            owed[members.get(row["account_id"], "")] -= row["receivable_nano"]
        for group_id in sorted(owed):
            if group_id and owed[group_id] != ledger.receivable(group_id):
                problems.append(f"receivable {group_id}: {owed[group_id]}, expected {ledger.receivable(group_id)}")
        for row in await self.rows("select group_id, unapplied_nano from balance.payer"):
            have, want = int(row["unapplied_nano"]), ledger.unapplied(row["group_id"])
            if have != want:
                problems.append(f"unapplied {row['group_id']}: {have}, expected {want}")
        kinds: dict[str, int] = defaultdict(int)
        for name, amount in ledger.balances.items():
            kinds[name.partition(":")[0]] += amount
        have_kinds = {
            row["kind"]: int(row["nano"])
            for row in await self.rows(
                "select split_part(ledger, ':', 1) as kind, sum(nano) as nano from balance.ledger_entry group by 1"
            )
        }
        for kind in sorted(kinds.keys() | have_kinds.keys()):
            if kinds.get(kind, 0) != have_kinds.get(kind, 0):
                problems.append(f"ledger {kind}: {have_kinds.get(kind, 0)}, expected {kinds.get(kind, 0)}")
        return problems

    async def _said_of_payments(self) -> list[tuple[str, list[model.Result]]]:
        """(account, everything that was told in the sandbox's name) of each payment."""
        if self.restored:
            return await self._said_in_the_log()
        told: dict[tuple[str, str], list[model.Result]] = defaultdict(list)
        if self.paths is not None:
            told[self.paths.told_early[:2]].append(self.paths.told_early[2])
        for row in await self.rows(
            "select account_id, attempt_id, result_id, kind, failure, refund_id, dispute_id,"
            " coalesce(answer.amount, attempt.amount) as amount"
            " from payments.answer join payments.attempt using (attempt_id) where told_at is not null"
        ):
            refund = (row["refund_id"] or row["result_id"]) if row["kind"] == "refunded" else None
            part = row["dispute_id"] or (str(refund) if refund else None)
            said = model.Result(row["failure"] or row["kind"], model.nano(row["amount"]), part)
            told[row["account_id"], str(row["attempt_id"])].append(said)
        return [(account_id, said) for (account_id, _), said in told.items()]

    async def _said_in_the_log(self) -> list[tuple[str, list[model.Result]]]:
        """The same by what stands in the log: payments does not know any more what it told in a life that was undone."""
        accounts = {}
        for record in await self.records("payments.requests"):
            envelope = json.loads(record.value or b"")
            if envelope["type"] != OPENING:
                accounts[envelope["data"]["attempt_id"]] = envelope["data"]["account_id"]
        told: dict[str, dict[str, model.Result]] = defaultdict(dict)
        for record in await self.records("payments.results."):
            said = json.loads(record.value or b"")
            refund = (said["refund_id"] or said["result_id"]) if said["kind"] == "refunded" else None
            result = model.Result(said["failure"] or said["kind"], nano(said["amount"]), said["dispute_id"] or refund)
            told[said["attempt_id"]][said["result_id"]] = result
        return [(accounts[attempt_id], [*results.values()]) for attempt_id, results in told.items()]

    async def _check_spend(self, charges: Mapping[str, Charge]) -> list[str]:
        """What each limited account spent on each day, and that no notice of a day and limit was given twice."""
        want: Counter[tuple[str, date]] = Counter()
        for charge in charges.values():
            if charge.account_id in self.limited:
                want[charge.account_id, charge.event_time.astimezone(UTC).date()] += charge.amount_nano
        rows = await self.rows("select account_id, day, spent_nano from balance.spend where outbound_profile = ''")
        have = {(row["account_id"], row["day"]): row["spent_nano"] for row in rows}
        notices = Counter(
            (said["account_id"], said["day"], said["limit"], said["kind"])
            for said in await self.published("balance.events")
            if said["kind"] in ("spend_limit_near", "spend_limit_reached")
        )
        return [
            f"spent by {account_id} on {day}: {have.get((account_id, day), 0)}, expected {want[account_id, day]}"
            for account_id, day in sorted(have.keys() | want.keys())
            if have.get((account_id, day), 0) != want[account_id, day]
        ] + [f"told {count} times: {notice}" for notice, count in notices.items() if count > 1]

    async def _check_recharges(self) -> list[str]:
        now = await self.clock()
        attempts = [
            Attempt(
                str(row["attempt_id"]), row["account_id"], row["amount_nano"], row["requested_at"], row["state"],
                row["kind"], row["ended_at"],
            )
            for row in await self.rows("select * from balance.attempt")
        ]  # fmt: skip
        attempts = in_order(attempts, await self.published("balance.events"))
        credited = [
            (row["ref"], row["nano"])
            for row in await self.rows(
                "select ref, nano from balance.ledger_entry where kind = 'payment' and split_part(ledger, ':', 1) = 'wallet'"
            )
        ]
        resting = []
        problems = []
        for row in await self.rows("select * from balance.wallet where account_id = any($1)", list(self.payers)):
            wish, level_2 = self.payers[row["account_id"]]
            funds = row["wallet_nano"] + row["credit_limit_nano"] + row["unbilled_nano"] + row["receivable_nano"]
            funds += row["credit_nano"]
            resting.append(
                RestingAccount(
                    row["account_id"], row["created_at"], funds - row["held_nano"], wish, row["plan"], row["method_token"] is not None,
                    row["paused_by"] is not None, row["retry_at"], level_2,
                )
            )  # fmt: skip
            flying = next(
                (
                    (attempt.amount_nano, attempt.requested_at)
                    for attempt in attempts
                    if attempt.account_id == row["account_id"] and attempt.state in model.IN_FLIGHT
                ),
                None,
            )
            must = model.must_be_suspended(funds, flying, now, is_suspended=row["suspended_funds"])
            if must != row["suspended_funds"]:
                problems.append(f"account {row['account_id']}: funds {funds}, suspended {row['suspended_funds']}")
        return problems + model.check_recharge_invariants(attempts, resting, credited, now)

    async def _check_commands(self) -> list[str]:
        """Each command was decided once, as the rules say, and answered once; the ledger says what the accepted ones moved."""
        wanted = {(each.room, each.owner, each.command_id): each.answers for each in self.commands}
        logged = [
            (("groups", row["organization_id"], row["command_id"]), row["reason"])
            for row in await self.rows(
                "select organization_id, command_id, answer->>'reason' as reason from groups.command"
            )
        ] + [
            (("balance", row["account_id"], row["command_id"]), row["reason"])
            for row in await self.rows("select account_id, command_id, reason from balance.command")
        ]
        told = [
            (("groups", said["organization_id"], said["command_id"]), said.get("reason"))
            for said in await self.published("groups.events")
        ] + [
            (("balance", said["account_id"], said["command_id"]), said.get("reason"))
            for said in await self.published("balance.events")
            if said.get("command_id") is not None
        ]
        problems = [
            f"command in quarantine: {tuple(row)}"
            for room in ("groups", "balance")
            for row in await self.rows(
                f"select reason, message, value from {room}.parked where input = 'commands' and state <> 'replayed'"
            )
        ]
        for what, found in (("decided", logged), ("answered", told)):
            counts = Counter(key for key, _ in found)
            problems += [
                f"command {key}: {what} {counts[key]} times"
                for key in counts.keys() | wanted
                if counts[key] != 1 or key not in wanted
            ]
            problems += [
                f"command {key}: {what} {reason}, expected one of {wanted[key]}"
                for key, reason in found
                if key in wanted and reason not in wanted[key]
            ]
        return problems

    async def _check_held(
        self, records: Sequence[RawRecord], cuts: Mapping[datetime, Mapping[model.Lane, int]]
    ) -> list[str]:
        """Groups held at each cut, judged from the records as they stood before anybody decided about them."""
        before = self.facts | {"prices": (self.facts_before_prices or self.facts)["prices"]}
        # After a restore what had no price has one from the start, unless it is in quarantine since before the backup.
        certain = self.facts if self.restored else before

        def judged_by(facts: model.Facts) -> model.Judgement:
            return model.judge(
                [(facts, records)], cuts=cuts, store_refuses=lambda leg: leg.event_id.startswith(REFUSED_PREFIX)
            )

        judgement, sure = judged_by(before), judged_by(certain)
        problems = []
        for boundary, vector in cuts.items():
            held = {
                row["group_id"]
                for row in await self.rows(
                    "select group_id from usage.held_group join usage.cut using (cutoff_id) where boundary = $1",
                    boundary,
                )
            }
            must, _ = sure.held_groups(boundary, vector, certain)
            _, may = judgement.held_groups(boundary, vector, before)
            may |= self._readable_groups(records, vector)
            if not must <= held <= may:
                problems.append(f"cut {boundary}: held {sorted(held)}, must {sorted(must)}, may {sorted(may)}")
        return problems

    def _readable_groups(self, records: Iterable[RawRecord], vector: model.Vector) -> set[str]:
        """Payer groups of accounts that can be read in events which are no valid ones: those may be held as well."""
        payers = {a["account_id"]: a["groups"][0]["group_id"] for a in self.facts["accounts"] if a["groups"]}
        found = set()
        for record in records:
            if record.offset >= vector.get((record.topic, record.partition), 0):
                continue
            try:
                model.read_use(record.value)
            except model.Unacceptable:
                read = re.search(rb'"account_id": *"([^"]+)"', record.value or b"")
                found.add(payers.get(read[1].decode("utf-8", "replace"), "") if read else "")
        return found


def in_order(attempts: Iterable[Attempt], events: Iterable[Mapping[str, Any]]) -> list[Attempt]:
    """The attempts, none of which ends after the one that was told after its end has begun.

    Each instant is that at which a transaction began: one that has waited for the wallet of another one seems to be earlier than
    that. What came first is what was told first.
    """
    told = {(said["attempt_id"], said["kind"].removeprefix("recharge_")): said["version"] for said in events}
    ends = ("settled", "declined", "failed", "abandoned")
    own: dict[str, list[Attempt]] = defaultdict(list)
    for each in attempts:
        own[each.account_id].append(each)
    ordered = []
    for mine in own.values():
        recharges = [each for each in mine if (each.attempt_id, "requested") in told and each.kind == "auto"]
        recharges.sort(key=lambda each: told[each.attempt_id, "requested"])
        following = {one.attempt_id: other for one, other in pairwise(recharges)}
        for each in mine:
            after = following.get(each.attempt_id)
            landed = next((told[each.attempt_id, end] for end in ends if (each.attempt_id, end) in told), None)
            if after is not None and landed is not None and landed < told[after.attempt_id, "requested"]:
                assert each.ended_at is not None, f"{each.attempt_id} was told as ended"
                each = replace(each, ended_at=min(each.ended_at, after.requested_at))
            ordered.append(each)
    return ordered


def _differ(have: Mapping[str, Any], want: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in have.keys() | want.keys() if have.get(key) != want.get(key))


def _names_the_seed(seed: int) -> Callable[[Any, BaseException | None, Any], None]:
    def note(_: Any, error: BaseException | None, __: Any) -> None:
        if error is not None:
            error.add_note(
                f"The seed of this run is {seed}: TOLLBOOK_TEST_SEED={seed} repeats its inputs and schedule."
            )

    return note


def _place(row: Mapping[str, Any]) -> model.Position:
    return row["topic"], row["partition"], row["offset"]


def _text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


@asynccontextmanager
async def running(
    servers: TestedServers,
    folder: Path,
    *,
    seed: int,
    tick_ms: int = 200,
    session_ms: int = 2000,
    clock_of_copies: Mapping[str, str] = NOTHING,
) -> AsyncIterator[Chain]:
    """A fresh database and fresh topics; every process that was started is ended at the end. A failure names the seed."""
    async with AsyncExitStack() as stack:
        for more in (NOTHING, clock_of_copies):
            nursery(more)  # it imports while the servers start
        stack.push(_names_the_seed(seed))
        database = await stack.enter_async_context(servers.fresh_database())
        kafka, valkey = await servers.kafka(), await servers.valkey()
        prefix = f"t{uuid.uuid4().hex[:12]}."
        environment = database.environment(
            TOLLBOOK_KAFKA=kafka, TOLLBOOK_VALKEY=valkey, TOLLBOOK_TOPIC_PREFIX=prefix, TOLLBOOK_TICK_MS=str(tick_ms),
            TOLLBOOK_SESSION_MS=str(session_ms), TOLLBOOK_LOG_LEVEL="WARNING",
            TOLLBOOK_WEBHOOKS_ALLOW="127.0.0.0/8", TOLLBOOK_WEBHOOKS_HTTP="1",
        )  # fmt: skip
        settings = Settings(
            kafka=kafka, valkey=valkey, topic_prefix=prefix, tick_ms=tick_ms, session_ms=session_ms,
            postgres=environment["TOLLBOOK_POSTGRES"], owner_password=environment["TOLLBOOK_OWNER_PASSWORD"],
            room_password=environment["TOLLBOOK_ROOM_PASSWORD"],
        )  # fmt: skip
        server = database.server
        owner = await asyncpg.create_pool(
            host=server.host, port=server.port, user=server.owner_user, password=server.owner_password,
            database=database.name, min_size=0, max_size=3,
        )  # fmt: skip
        stack.push_async_callback(owner.close)
        async with owner.acquire() as connection:
            # what only the database refuses
            await connection.execute(
                f"alter table usage.charge add constraint refused check (event_id not like '{REFUSED_PREFIX}%')"
            )
        topics = {topic.name: topic for topic in TOPICS if not topic.is_family}
        topics |= {USAGE_EVENTS.of(publisher): USAGE_EVENTS for publisher in ("switch", "carrier")}
        await ensure_topics(settings, topics)
        producer = AIOKafkaProducer(
            bootstrap_servers=kafka, acks="all", enable_idempotence=True, linger_ms=5, max_request_size=2_000_000
        )
        await producer.start()
        stack.push_async_callback(producer.stop)
        processes = Processes(environment, folder, forked=True)
        stack.callback(processes.stop)
        yield Chain(
            database=database, settings=settings, processes=processes, seed=seed, topic_prefix=prefix,
            producer=producer, owner=owner, random=random.Random(seed), now=datetime.now(UTC),
            clock_of_copies=clock_of_copies,
        )  # fmt: skip
