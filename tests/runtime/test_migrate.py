"""Roles, schemas and the one clock of a migrated database."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import asyncpg
import pytest

from services.kernel.errors import NotPermitted, Refused, Unavailable
from services.runtime import migrate
from services.runtime.settings import ROOMS, room_role
from tests.support.servers import Database, TestedServers


async def upgrade(database: Database, *, movable: bool = False) -> None:
    await migrate.upgrade(database.owner, room_password=database.server.room_password, movable=movable)


async def test_a_missing_database_is_made_and_a_second_upgrade_changes_nothing(servers: TestedServers) -> None:
    database = Database("test_made_by_upgrade", await servers.postgres())
    try:
        await upgrade(database)
        async with database.connected() as connection:
            before = await connection.fetch("SELECT * FROM alembic_version")
        await upgrade(database)
        async with database.connected() as connection:
            assert await connection.fetch("SELECT * FROM alembic_version") == before
    finally:
        await database.drop()


async def test_two_upgrades_at_once_both_succeed(servers: TestedServers) -> None:
    pair = [Database(f"test_pair_{number}", await servers.postgres()) for number in (1, 2)]
    try:
        await asyncio.gather(*(upgrade(database) for database in [*pair, *pair]))
        for database in pair:
            async with database.connected("usage") as connection:
                assert await connection.fetchval("SELECT runtime.clock_now()")
    finally:
        for database in pair:
            await database.drop()


@pytest.mark.parametrize("room", ROOMS)
async def test_a_room_works_in_its_own_schema_only(database: Database, room: str) -> None:
    other = ROOMS[(ROOMS.index(room) + 1) % len(ROOMS)]
    async with database.connected() as owner:
        for schema in (room, other):
            await owner.execute(f"CREATE TABLE {schema}.probe (id bigserial PRIMARY KEY, word text)")
    async with database.connected(room) as connection:
        await connection.execute(f"INSERT INTO {room}.probe (word) VALUES ('a'), ('b')")
        await connection.execute(f"UPDATE {room}.probe SET word = 'c' WHERE id = 1")
        await connection.execute(f"DELETE FROM {room}.probe WHERE id = 2")
        assert await connection.fetchval(f"SELECT word FROM {room}.probe") == "c"
        for forbidden in (
            f"SELECT * FROM {other}.probe",
            f"CREATE TABLE {room}.own (id int)",
            f"TRUNCATE {room}.probe",
            "CREATE TABLE public.own (id int)",
            "UPDATE runtime.clock SET ahead = interval '1 day'",
            "SELECT * FROM public.alembic_version",
            "CREATE ROLE intruder",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(forbidden)


async def test_rooms_are_no_superusers_and_nobody_else_may_connect(database: Database) -> None:
    async with database.connected() as owner:
        roles = await owner.fetch(
            "SELECT rolname FROM pg_roles WHERE rolname LIKE 'tollbook\\_%' AND rolname <> $1"
            " AND rolcanlogin AND NOT (rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb)",
            database.server.owner_user,
        )
        assert {row["rolname"] for row in roles} == {room_role(room) for room in ROOMS}
        await owner.execute("CREATE ROLE somebody LOGIN PASSWORD 'somebody'")
        try:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await asyncpg.connect(
                    host=database.server.host,
                    port=database.server.port,
                    user="somebody",
                    password="somebody",
                    database=database.name,
                )
        finally:
            await owner.execute("DROP ROLE somebody")


async def test_new_functions_of_the_runtime_are_open_to_rooms_and_not_to_everybody(database: Database) -> None:
    async with database.connected() as owner:
        await owner.execute("CREATE FUNCTION runtime.one() RETURNS int LANGUAGE sql AS 'SELECT 1'")
        grantees = await owner.fetch(
            "SELECT coalesce(r.rolname, 'PUBLIC') AS name FROM pg_proc p, aclexplode(p.proacl) a"
            " LEFT JOIN pg_roles r ON r.oid = a.grantee WHERE p.oid = 'runtime.one()'::regprocedure"
        )
    expected = {room_role(room) for room in ROOMS} | {database.server.owner_user}
    assert {row["name"] for row in grantees} == expected


async def test_every_room_reports_its_heartbeat(database: Database) -> None:
    for room in ROOMS:
        async with database.connected(room) as connection:
            await connection.execute(
                "INSERT INTO runtime.heartbeat VALUES ($1, 'p1', runtime.clock_now(), 5, 6, 0)"
                " ON CONFLICT (room, process) DO UPDATE SET at = excluded.at",
                room,
            )
    async with database.connected("balance") as connection:
        assert await connection.fetchval("SELECT count(*) FROM runtime.heartbeat") == len(ROOMS)


async def test_the_clock_is_the_transaction_time_until_it_is_moved(database: Database) -> None:
    async with database.connected("usage") as connection:
        assert await connection.fetchval("SELECT runtime.clock_now() = transaction_timestamp()")
        moved = await connection.fetchval("SELECT runtime.clock_move(interval '1 month 3 hours')")
        ahead = await connection.fetchval("SELECT runtime.clock_now() - transaction_timestamp()")
        assert timedelta(days=28) < ahead < timedelta(days=32)
        assert await connection.fetchval("SELECT runtime.clock_now() >= $1", moved)
    async with database.connected("invoices") as another:
        assert await another.fetchval("SELECT runtime.clock_now() - transaction_timestamp()") == ahead


async def test_the_clock_never_goes_back(database: Database) -> None:
    async with database.connected("usage") as connection:
        await connection.execute("SELECT runtime.clock_move(interval '1 day')")
        for backwards in ("interval '-1 second'", "interval '-2 days'", "NULL"):
            with pytest.raises(asyncpg.RaiseError, match="does not go back"):
                await connection.execute(f"SELECT runtime.clock_move({backwards})")


async def test_the_clock_of_an_ordinary_database_cannot_be_moved(servers: TestedServers) -> None:
    async with servers.fresh_database(movable=False) as database:
        async with database.connected("usage") as connection:
            with pytest.raises(asyncpg.RaiseError, match="cannot be moved"):
                await connection.execute("SELECT runtime.clock_move(interval '1 day')")
        async with database.connected() as owner:
            with pytest.raises(asyncpg.CheckViolationError):
                await owner.execute("UPDATE runtime.clock SET ahead = interval '1 day'")
        with pytest.raises(Refused, match="decided when a database is made"):
            await upgrade(database, movable=True)


async def test_a_role_that_may_do_too_much_is_refused(database: Database) -> None:
    async with database.connected() as owner:
        await owner.execute("ALTER ROLE tollbook_payments CREATEDB")
        try:
            with pytest.raises(Refused, match="tollbook_payments"):
                await upgrade(database)
        finally:
            await owner.execute("ALTER ROLE tollbook_payments NOCREATEDB")


async def test_a_wrong_password_and_a_missing_server_are_named(database: Database) -> None:
    wrong = database.owner.replace(database.server.owner_password, "wrong")
    with pytest.raises(NotPermitted, match="TOLLBOOK_OWNER_PASSWORD"):
        await migrate.upgrade(wrong, room_password="x")
    nowhere = database.owner.replace(f":{database.server.port}/", ":1/")
    with pytest.raises(Unavailable, match="TOLLBOOK_POSTGRES"):
        await migrate.upgrade(nowhere, room_password="x")


async def test_what_was_accepted_before_there_were_revisions_is_known_as_revision_0(
    servers: TestedServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, to_head = Database("test_before_revisions", await servers.postgres()), migrate.command.upgrade
    try:
        monkeypatch.setattr(migrate.command, "upgrade", lambda config, _: to_head(config, "0023_calls_in_progress"))
        await upgrade(database)
        async with database.connected() as owner:
            await owner.execute("select usage.open_generation(2)")
            await owner.execute(
                'insert into usage.identity (generation, digest, content, state, partition, "offset")'
                " select 1 + n % 2, gen_random_uuid(), gen_random_uuid(), 1 + n % 3, n, n from generate_series(1, 60) n"
            )
            before = await owner.fetch(
                'select generation, digest, content, state, partition, "offset" from usage.identity'
            )
        monkeypatch.undo()
        await upgrade(database)
        async with database.connected("usage") as room:
            after = await room.fetch(
                'select generation, digest, content, state, partition, "offset" from usage.identity'
            )
            assert sorted(map(tuple, after)) == sorted(map(tuple, before))
            assert await room.fetchval("select count(*) from usage.identity where revision = 0 and day is null") == 60
            await room.execute("select usage.open_generation(3)")
            names = await room.fetch(
                "select relname from pg_class where relname ~ '^(identity|superseded)_[0-9]+$' order by 1"
            )
            assert [name for (name,) in names] == [
                f"{kind}_{n}" for kind in ("identity", "superseded") for n in (1, 2, 3)
            ]
            await room.execute("update usage.state set generation = 3")
            await room.execute("select usage.drop_generation(1)")
            assert await room.fetchval("select count(*) from usage.identity") == 30
    finally:
        await database.drop()


async def test_invoices_that_were_closed_before_they_could_be_paid_are_owed(
    servers: TestedServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, to_head = Database("test_before_payments", await servers.postgres()), migrate.command.upgrade
    try:
        monkeypatch.setattr(migrate.command, "upgrade", lambda config, _: to_head(config, "0040_webhooks"))
        await upgrade(database)
        async with database.connected() as owner:
            await owner.execute(CLOSED_BEFORE)
        monkeypatch.undo()
        await upgrade(database)
        async with database.connected("balance") as room:
            owed = await room.fetch("select group_id, number, due_on, due_nano, paid_nano from balance.receivable")
            (row,) = owed
            assert tuple(row)[:2] == ("northwind", "TB-000001")
            assert (row["due_on"].isoformat(), row["due_nano"], row["paid_nano"]) == (
                "2026-11-17T00:00:00+00:00",
                720_000_000,
                0,
            )
            shares = await room.fetch("select account_id, open_nano from balance.receivable_share order by 1")
            assert [tuple(each) for each in shares] == [("east", 500_000_000), ("west", 220_000_000)]
            assert await room.fetchval("select zone from balance.payer where group_id = 'northwind'") == "Europe/Paris"
            members = await room.fetch("select account_id, group_id, end_at from balance.membership")
            assert [tuple(each) for each in members] == [("east", "northwind", None)]
            assert [tuple(each) for each in await room.fetch("select kind, key from balance.due")] == [
                ("overdue", "northwind")
            ]
    finally:
        await database.drop()


CLOSED_BEFORE = """
insert into groups.organization values ('org', 'Org', 'open', null, now());
insert into groups.billing_entity values ('seller', 'Seller', 'here', null, 'TB-', true);
insert into groups.payer_group (group_id, version, organization_id, name, billing_entity_id, billing_information, zone,
  currency, tax_rate, created_at)
values ('northwind', 1, 'org', 'Northwind', 'seller', '{}', 'Europe/Paris', 'USD', '0.20', now());
insert into groups.account (account_id, account_no, version, organization_id, name, currency, opened_at, created_at,
  level_2, credit_limit_nano)
values ('east', 1, 1, 'org', 'East', 'USD', '2026-01-01', '2026-01-01', false, 0);
insert into groups.account_group (account_no, during, group_id) values (1, '[2026-01-01,)', 'northwind');
insert into balance.wallet (account_id, organization_id, currency, receivable_nano, registry_version, plan, created_at)
values ('east', 'org', 'USD', -500000000, 1, 'invoiced', '2026-01-01'), ('west', 'org', 'USD', -220000000, 0, null, null);
insert into invoices.invoice (invoice_id, group_id, period, state, closed_at, billing_entity_id, number, currency,
  net_nano, tax_nano, total_nano, due_nano)
values ('00000000-0000-8000-8000-000000000001', 'northwind', '2026-10', 'closed', '2026-11-03', 'seller', 'TB-000001',
  'USD', 600000000, 120000000, 720000000, 720000000);
insert into invoices.document (invoice_id, body, sha256)
values ('00000000-0000-8000-8000-000000000001', '{"due_on":"2026-11-17T00:00:00Z"}', repeat('0', 64));
insert into balance.transaction (id, kind, ref, currency, at)
values ('00000000-0000-8000-8000-00000000000a', 'closing', '00000000-0000-8000-8000-000000000001', 'USD', now());
insert into balance.entry (transaction_id, ledger, account_id, nano) values
  ('00000000-0000-8000-8000-00000000000a', 'receivable', 'east', -500000000),
  ('00000000-0000-8000-8000-00000000000a', 'receivable', 'west', -220000000),
  ('00000000-0000-8000-8000-00000000000a', 'unbilled', 'east', 720000000);
"""


async def test_payments_that_were_on_their_way_before_there_were_inquiries_are_inquired_about(
    servers: TestedServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, to_head = Database("test_before_inquiries", await servers.postgres()), migrate.command.upgrade
    try:
        monkeypatch.setattr(migrate.command, "upgrade", lambda config, _: to_head(config, "0033_low_balance"))
        await upgrade(database)
        async with database.connected() as owner:
            await owner.execute(
                "insert into balance.wallet (account_id, organization_id, currency, paused, decline_streak)"
                " values ('a', 'o', 'USD', true, 3), ('b', 'o', 'USD', false, 0)"
            )
            await owner.execute(
                "insert into balance.attempt (attempt_id, account_id, kind, state, trigger_version, processor, method_kind,"
                " amount_nano, currency, requested_at)"
                " select gen_random_uuid(), account_id, 'auto', state, 1, 'sandbox', 'card', 130000000000, 'USD', now()"
                " from (values ('a', 'settled'), ('b', 'unknown')) as known (account_id, state)"
            )
            await owner.execute(
                "insert into balance.result (processor, result_id, attempt_id, kind, at, received_at)"
                " select 'sandbox', 'r', attempt_id, 'settled', now(), now() from balance.attempt where state = 'settled'"
            )
            await owner.execute(
                "insert into payments.attempt (attempt_id, account_id, processor, token, amount, currency, requested_at,"
                " received_at) values ('00000000-0000-8000-8000-000000000001', 'b', 'sandbox', 't', '130', 'USD', now(), now())"
            )
        monkeypatch.undo()
        await upgrade(database)
        async with database.connected("balance") as room:
            paused = await room.fetch("select account_id, paused_by from balance.wallet order by 1")
            assert [tuple(row) for row in paused] == [("a", "declines"), ("b", None)]
            assert await room.fetchval("select amount_nano from balance.result") == 130_000_000_000
            timers = await room.fetch(
                "select due.kind, attempt_id::text = key as is_its, due_at <= now() as is_due from balance.due,"
                " balance.attempt where state = 'unknown' order by due.kind"
            )
            assert [tuple(row) for row in timers] == [("abandon", True, False), ("inquiry", True, True)]
        async with database.connected("payments") as room:
            assert await room.fetchval("select origin from payments.attempt") == "auto"
    finally:
        await database.drop()
