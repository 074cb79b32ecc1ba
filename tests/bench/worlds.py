"""Worlds: a database and a topic prefix of their own, all with the same thousand customers, each used for one run.

The customers are registered once, by commands through the real rooms. A further world is a copy of that database beside
empty topics: its rooms read them from the start.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
from aiokafka import AIOKafkaProducer
from pydantic import SecretStr

from contracts.balance import OpenBalance, SaveMethod, SetPreferences
from contracts.groups import (
    ApproveSharing,
    CreateAccount,
    CreateBillingEntity,
    CreateGroup,
    CreateOrganization,
    CreatePublisher,
    GivenBillingInformation,
)
from contracts.topics import (
    BALANCE_COMMANDS,
    GROUPS_COMMANDS,
    PAYMENTS_RESULTS,
    TOPICS,
    USAGE_EVENTS,
    USAGE_REJECTIONS,
)
from contracts.words import Message
from services.cli.idle import watching
from services.runtime import migrate
from services.runtime.broker import ensure_topics
from services.runtime.database import open_engine
from services.runtime.settings import ROOMS, Settings
from services.usage import api as usage_api
from tests.bench.events import ORGANIZATION, PUBLISHER, SOURCE, Customer, customers, price_files
from tests.support.processes import Processes
from tests.support.servers import Database, EmbeddedServers

EVENTS_TOPIC = USAGE_EVENTS.of(PUBLISHER)
OPENED_BEFORE = timedelta(days=10)  # before the first call
OPENING, OPENING_OF_RECHARGED = "100000.00", "100.00"
THRESHOLD, RECHARGE = "90.00", "20.00"
SETUP_S_MAX = 120.0
LEAVE_S_MAX = 20.0


@dataclass
class World:
    """Where the rooms of one run are, and how to start them. ``loaded`` counts the events published here so far."""

    database: Database
    prefix: str
    kafka: str
    valkey: str
    data: Path
    processes: Processes = field(init=False)
    loaded: int = 0
    nano: dict[str, int] = field(default_factory=dict)

    @property
    def logs(self) -> Path:
        return self.data / "bench-logs" / self.database.name

    def __post_init__(self) -> None:
        self.logs.mkdir(parents=True, exist_ok=True)
        self.processes = Processes(self.environment, self.logs)

    @property
    def environment(self) -> dict[str, str]:
        # The workers are held while events are loaded: they must not be taken for dead meanwhile.
        return self.database.environment(
            TOLLBOOK_KAFKA=self.kafka,
            TOLLBOOK_VALKEY=self.valkey,
            TOLLBOOK_TOPIC_PREFIX=self.prefix,
            TOLLBOOK_SESSION_MS="120000",
            TOLLBOOK_LOG_LEVEL="WARNING",
        )

    @property
    def settings(self) -> Settings:
        server = self.database.server
        return Settings(
            kafka=self.kafka,
            valkey=self.valkey,
            topic_prefix=self.prefix,
            postgres=f"postgresql://{server.host}:{server.port}/{self.database.name}",
            owner_user=server.owner_user,
            owner_password=SecretStr(server.owner_password),
            room_password=SecretStr(server.room_password),
        )

    async def make_topics(self) -> None:
        """All topics, so that every room has its partitions from the start."""
        members = {topic.of(PUBLISHER): topic for topic in (USAGE_EVENTS, USAGE_REJECTIONS)}
        members[PAYMENTS_RESULTS.of("sandbox")] = PAYMENTS_RESULTS
        await ensure_topics(self.settings, {topic.name: topic for topic in TOPICS if not topic.is_family} | members)


class Worlds:
    """Makes worlds on the servers of the bench."""

    def __init__(self, servers: EmbeddedServers, tell: Callable[[str], None]) -> None:
        self._servers = servers
        self._tell = tell
        self._template: Database | None = None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Worlds]:
        """With the customers registered; their database goes with the block."""
        async with self._servers.fresh_database(movable=False) as database:
            first = await self._world(database)
            self._tell(f"registering {len(customers())} customers through the rooms")
            try:
                await _settle_in(first)
            finally:
                first.processes.stop()
            self._template = database
            yield self

    @asynccontextmanager
    async def fresh(self) -> AsyncIterator[World]:
        """A world without events; its processes and its database end with the block, its topics stay with the server."""
        if self._template is None:
            raise RuntimeError("open the worlds first")
        database = Database(f"bench_{uuid.uuid4().hex}", self._template.server)
        async with Database("postgres", database.server).connected() as maintenance:
            await maintenance.execute(f"CREATE DATABASE {database.name} TEMPLATE {self._template.name}")
            await migrate.close_to_others(maintenance, database.name)
        world = await self._world(database)
        try:
            await _forget_positions(database)
            yield world
        finally:
            world.processes.stop()
            await _drop(database)

    async def _world(self, database: Database) -> World:
        prefix = f"{database.name[-12:]}."
        kafka, valkey = await self._servers.kafka(), await self._servers.valkey()
        world = World(database, prefix, kafka, valkey, self._servers.data)
        await world.make_topics()
        return world


async def _drop(database: Database) -> None:
    """Wait for the last sessions to leave: the owner may not end those of the rooms. What stays goes with the folder."""
    give_up = time.monotonic() + LEAVE_S_MAX
    async with Database("postgres", database.server).connected() as maintenance:
        while time.monotonic() < give_up:
            try:
                await maintenance.execute(f"DROP DATABASE {database.name}")
                return
            except asyncpg.ObjectInUseError:
                continue


async def _forget_positions(database: Database) -> None:
    """The topics of the copy are empty: every lane begins again at their start. Links go on where they were."""
    async with database.connected() as owner:
        for room in ROOMS:
            await owner.execute(f"delete from {room}.lane where topic is not null")
        await owner.execute("delete from runtime.heartbeat")


async def _settle_in(world: World) -> None:
    """Prices, registry, opening balances and saved methods, by the ways everybody uses."""
    settings = world.settings
    opened_at = datetime.now(UTC).replace(microsecond=0) - OPENED_BEFORE
    engine = open_engine(settings.room_database_url("usage"), application="tollbook.bench", pool_size=1)
    try:
        for name, prices in price_files().items():
            await usage_api.import_prices(engine, name, prices, opened_at, is_default=True)
    finally:
        await engine.dispose()
    for room in ROOMS:
        world.processes.start(room, f"services.{room}")
    everybody = customers()
    async with watching(settings) as idle:
        registry = [(ORGANIZATION, command) for command in _registry(everybody, opened_at)]
        await _send(world, GROUPS_COMMANDS.name, registry)
        await idle.wait(timeout_s=SETUP_S_MAX)
        wallets = [(command.account_id, command) for command in _wallets(everybody)]
        await _send(world, BALANCE_COMMANDS.name, wallets)
        await idle.wait(timeout_s=SETUP_S_MAX)
    async with world.database.connected() as owner:
        known = await owner.fetchval("select count(*) from balance.wallet where registry_version > 0")
        ready = await owner.fetchval("select count(*) from usage.timeline where kind = 'account'")
        opened = await owner.fetchval("select count(*) from balance.transaction where kind = 'opening'")
    prepaid = sum(customer.plan == "payg" for customer in everybody)
    if (known, ready, opened) != (len(everybody), len(everybody), prepaid):
        raise RuntimeError(f"wallets {known}, accounts in usage {ready}, opening balances {opened}: see {world.logs}")


def _registry(everybody: Iterable[Customer], opened_at: datetime) -> list[Message]:
    common: dict[str, Any] = {"actor": "bench", "organization_id": ORGANIZATION}
    operator = common | {"role": "operator"}
    commands: list[Message] = [
        CreateOrganization(command_id="organization", name="Metro", **common),
        CreateBillingEntity(
            command_id="entity", billing_entity_id="seller", name="Seller", address="1 Main Street", **operator
        ),
        CreatePublisher(
            command_id="publisher",
            publisher_id=PUBLISHER,
            organization_ids=(ORGANIZATION,),
            sources=(SOURCE,),
            **operator,
        ),
    ]
    information = GivenBillingInformation(company="Metro")
    for fleet in sorted({customer.fleet for customer in everybody if customer.fleet is not None}):
        commands += [
            CreateGroup(
                command_id=f"create-{fleet}", group_id=fleet, name=fleet, billing_information=information, **common
            ),
            ApproveSharing(
                command_id=f"approve-{fleet}",
                group_id=fleet,
                yearly_spend="120000",
                threshold="100000",
                credit_check_passed=True,
                **operator,
            ),
        ]
    commands += [
        CreateAccount(
            command_id=f"create-{customer.account_id}",
            account_id=customer.account_id,
            name=customer.account_id,
            plan=customer.plan,
            opened_at=opened_at,
            group_id=customer.fleet,
            credit_limit="1000000" if customer.plan == "invoiced" else "0",
            **operator,
        )
        for customer in everybody
    ]
    return commands


def _wallets(everybody: Iterable[Customer]) -> list[Any]:
    commands: list[Any] = []
    for customer in everybody:
        if customer.plan != "payg":
            continue
        common: dict[str, Any] = {"actor": "bench", "account_id": customer.account_id, "role": "operator"}
        amount = OPENING_OF_RECHARGED if customer.recharges else OPENING
        commands.append(OpenBalance(command_id="open", amount=amount, currency="USD", **common))
        if customer.recharges:
            commands += [
                SaveMethod(command_id="method", processor="sandbox", token="tok_ok", **common),
                SetPreferences(
                    command_id="preferences", enabled=True, threshold=THRESHOLD, recharge=RECHARGE, **common
                ),
            ]
    return commands


async def _send(world: World, topic: str, commands: Iterable[tuple[str, Message]]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=world.kafka, acks="all", compression_type="lz4", linger_ms=20)
    await producer.start()
    try:
        for key, command in commands:
            await producer.send(world.prefix + topic, command.model_dump_json().encode(), key=key.encode())
        await producer.flush()
    finally:
        await producer.stop()
