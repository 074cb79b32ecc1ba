"""The chain over the ledger finds whatever was done to it behind the program's back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.balance import api, sealing, store
from services.balance.chain import Charged, content_of_batch, first_of, following
from services.runtime import migrate
from services.runtime.database import open_engine
from tests.support.balance_factory import Town
from tests.support.servers import Database, TestedServers

LEDGER = ("charge_batch", "charged", "transaction", "entry", "seal", "sealed_day")


@pytest.fixture
async def town(database: Database) -> AsyncIterator[Town]:
    """A ledger of three days: openings and goodwill, batches in two lanes, each day sealed when it is over."""
    async with Town(database) as made:
        for account_id in ("desk", "east"):
            await made.account(account_id, level_2=True)
            made.open(account_id, "100")
        await made.settle()
        for amount in ("1", "2"):
            for account_id in ("desk", "east", "west", "far"):
                made.charge(account_id, amount)
                made.charge(account_id, amount, product="sms")
            made.command("grant_goodwill", "desk", amount="0.5", currency="USD", note="sorry")
            await made.settle(timedelta(days=1))
        made.charge("desk", "4")
        await made.settle()
        yield made


def engine_of(town: Town) -> Any:
    return town.rooms.processors["balance"].engine


async def test_what_the_rooms_write_is_sealed_and_holds(town: Town) -> None:
    found = await api.broken_seals(engine_of(town))
    assert found.problems == []
    assert found.batches >= 3
    assert found.transactions == 4
    assert found.seals >= 5
    assert found.days == 3
    assert await api.batch_gaps(engine_of(town)) == []


async def test_the_database_and_the_program_follow_on_alike(town: Town) -> None:
    async with town.database.connected() as owner:
        rows = await owner.fetch("select * from balance.seal where seq = 2")
        assert rows
        for row in rows:
            first = await owner.fetchval("select hash from balance.seal where lane = $1 and seq = 1", row["lane"])
            assert row["hash"] == following(first, row["content"])


A_BATCH = "(select min(batch_id) from balance.charged where account_id = 'desk')"
LAST_BATCH = "(select max(batch_id) from balance.charged where account_id = 'desk')"
SECOND_BATCH = f"(select max(batch_id) from balance.charged where account_id = 'desk' and batch_id < {LAST_BATCH})"
ITS_LANE = f"(select lane from balance.seal where batch_id = {A_BATCH})"
GOODWILL = "(select id from balance.transaction where kind = 'goodwill' order by id limit 1)"

CORRUPTIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "an amount was edited, and still balances": (
        (
            "update balance.charged set wallet_nano = wallet_nano + 1, revenue_nano[1] = revenue_nano[1] - 1"
            f" where batch_id = {A_BATCH} and account_id = 'desk'",
        ),
        "of charges is not what was written",
    ),
    "a count was edited": (
        (f"update balance.charged set charges = charges + 1 where batch_id = {A_BATCH}",),
        "of charges is not what was written",
    ),
    "the instant of a batch was edited": (
        (f"update balance.charge_batch set at = at - interval '1 day' where id = {A_BATCH}",),
        "of charges is not what was written",
    ),
    "a row was dropped": (
        (f"delete from balance.charged where batch_id = {A_BATCH} and account_id = 'desk'",),
        "of charges is not what was written",
    ),
    "a batch was dropped": (
        (
            f"create temp table gone as select {A_BATCH} as id",
            "delete from balance.charged where batch_id in (select id from gone)",
            "delete from balance.charge_batch where id in (select id from gone)",
        ),
        "of charges is missing",
    ),
    "a batch was dropped, and its seal": (
        (
            f"create temp table gone as select {A_BATCH} as id",
            "delete from balance.seal where batch_id in (select id from gone)",
            "delete from balance.charged where batch_id in (select id from gone)",
            "delete from balance.charge_batch where id in (select id from gone)",
        ),
        "seal 1 of lane charges/",
    ),
    "rows of two batches were swapped": (
        (
            f"create temp table pair as select {A_BATCH} as a, {SECOND_BATCH} as b",
            "update balance.charged set batch_id = 0 from pair where account_id = 'desk' and batch_id = pair.a",
            "update balance.charged set batch_id = pair.a from pair where account_id = 'desk' and batch_id = pair.b",
            "update balance.charged set batch_id = pair.b from pair where account_id = 'desk' and batch_id = 0",
        ),
        "of charges is not what was written",
    ),
    "two seals were swapped": (
        (
            f"create temp table swap as select lane from balance.seal where batch_id = {A_BATCH}",
            "update balance.seal s set seq = s.seq + 1000 from swap where s.lane = swap.lane and s.seq in (1, 2)",
            "update balance.seal s set seq = 1003 - s.seq from swap where s.lane = swap.lane and s.seq > 1000",
        ),
        "seal 1 of lane charges/",
    ),
    "a row was put in by hand": (
        (f"insert into balance.charged values ({A_BATCH}, 'thief', 'USD', 1, 5, 0, '{{sms}}', '{{-5}}')",),
        "of charges is not what was written",
    ),
    "a row of no batch was put in by hand": (
        ("insert into balance.charged values (999999, 'thief', 'USD', 1, 5, 0, '{sms}', '{-5}')",),
        "rows of batch 999999 of charges are there, it is not",
    ),
    "a batch was put in by hand": (
        (
            "insert into balance.charge_batch (at, links) values (now(), '{}')",
            "insert into balance.charged select max(id), 'thief', 'USD', 1, 5, 0, '{sms}', '{-5}' from balance.charge_batch",
        ),
        "was put in by hand",
    ),
    "an entry was edited on both sides": (
        (f"update balance.entry set nano = nano * 2 where transaction_id = {GOODWILL}",),
        "goodwill desk/",
    ),
    "who granted goodwill was edited": (
        (f"update balance.transaction set actor = 'nobody' where id = {GOODWILL}",),
        "is not what was written",
    ),
    "a transaction was dropped": (
        (
            f"create temp table gone as select {GOODWILL} as id",
            "delete from balance.entry where transaction_id in (select id from gone)",
            "delete from balance.transaction where id in (select id from gone)",
        ),
        "is missing: seal",
    ),
    "a transaction was put in by hand": (
        (
            "insert into balance.transaction values (gen_random_uuid(), 'goodwill', 'thief', 'USD', now())",
            "insert into balance.entry select id, 'wallet', 'thief', 5 from balance.transaction where ref = 'thief'",
            "insert into balance.entry select id, 'promotion', null, -5 from balance.transaction where ref = 'thief'",
        ),
        "was put in by hand",
    ),
    "a tail was dropped that a day had sealed": (
        (
            f"create temp table gone as select batch_id as id from balance.seal where lane = {ITS_LANE} and seq > 1",
            "delete from balance.seal where batch_id in (select id from gone)",
            "delete from balance.charged where batch_id in (select id from gone)",
            "delete from balance.charge_batch where id in (select id from gone)",
        ),
        "its tail is missing",
    ),
    "a day was edited": (
        ("update balance.sealed_day set heads = heads - (select min(k) from jsonb_object_keys(heads) k)",),
        "does not follow from the one before",
    ),
    "a day was dropped": (
        ("delete from balance.sealed_day where day = (select min(day) from balance.sealed_day)",),
        "does not follow from the one before",
    ),
}


async def test_each_corruption_is_found_and_named(town: Town) -> None:
    engine = open_engine(town.database.owner, application="test")
    try:
        missed: dict[str, list[str]] = {}
        for what, (statements, expected) in CORRUPTIONS.items():
            async with engine.connect() as connection:
                await tamper(connection, *statements)
                problems = (await sealing.search(connection)).problems
                if not any(expected in problem for problem in problems):
                    missed[what] = problems
                await connection.rollback()
        assert missed == {}
        async with engine.connect() as connection:
            assert (await sealing.search(connection)).problems == []
    finally:
        await engine.dispose()


async def test_an_edited_row_whose_chain_is_written_anew_differs_from_what_its_day_says(town: Town) -> None:
    engine = open_engine(town.database.owner, application="test")
    try:
        async with engine.connect() as connection:
            await tamper(
                connection,
                "update balance.charged set wallet_nano = wallet_nano + 1, revenue_nano[1] = revenue_nano[1] - 1"
                f" where batch_id = {A_BATCH} and account_id = 'desk'",
            )
            await seal_anew(connection)
            problems = (await sealing.search(connection)).problems
            assert len(problems) == 1
            assert "is not the one that was the last on" in problems[0]
    finally:
        await engine.dispose()


async def test_a_tail_of_today_is_missed_by_the_links(town: Town) -> None:
    async with town.database.connected() as owner, owner.transaction():
        for table in LEDGER:
            await owner.execute(f"alter table balance.{table} disable trigger user")
        last = await owner.fetchval(f"select {LAST_BATCH}")
        await owner.execute("delete from balance.seal where batch_id = $1", last)
        await owner.execute("delete from balance.charged where batch_id = $1", last)
        await owner.execute("delete from balance.charge_batch where id = $1", last)
    [(link, expected, found)] = await api.batch_gaps(engine_of(town))
    assert link.startswith("test:lane|usage.charges/")
    assert found == expected + 1


async def test_seals_are_never_changed(town: Town) -> None:
    for role in ("balance", None):
        async with town.database.connected(role) as connection:
            for table in ("seal", "sealed_day"):
                for statement in (f"update balance.{table} set hash = hash", f"delete from balance.{table}"):
                    with pytest.raises(asyncpg.InsufficientPrivilegeError):
                        await connection.execute(statement)


async def test_what_stood_in_the_ledger_before_the_chain_is_sealed_by_the_upgrade(
    servers: TestedServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, to_head = Database("test_before_the_chain", await servers.postgres()), migrate.command.upgrade
    password = database.server.room_password
    try:
        monkeypatch.setattr(migrate.command, "upgrade", lambda config, _: to_head(config, "0034_payments_port"))
        await migrate.upgrade(database.owner, room_password=password, movable=True)
        async with database.connected("balance") as room:
            for statement in BEFORE:
                await room.execute(statement)
        monkeypatch.undo()
        await migrate.upgrade(database.owner, room_password=password, movable=True)
        async with Town(database) as town:
            found = await api.broken_seals(engine_of(town))
            assert found.problems == []
            assert (found.seals, found.batches, found.transactions) == (4, 3, 2)
            town.charge("desk", "3")
            await town.settle()
            assert (await api.broken_seals(engine_of(town))).problems == []
    finally:
        await database.drop()


BEFORE = (
    'insert into balance.charge_batch (at, links) values (clock_timestamp(), \'{"b|t/1": [3, 4], "a|t/0": [1, 2]}\')',
    "insert into balance.charge_batch (at, links) values (clock_timestamp(), '{}')",
    "insert into balance.charge_batch (at, links) values (clock_timestamp(), '{}')",
    "insert into balance.charged values (1, 'desk', 'USD', 2, -5, -1, '{sms,voice}', '{4,2}')",
    "insert into balance.charged values (1, 'Empfang', 'EUR', 1, 0, 0, '{}', '{}')",
    "insert into balance.charged values (3, 'desk', 'USD', 1, -3, 0, '{sms}', '{5}', '{summer}', '{-2}')",
    "insert into balance.transaction values (gen_random_uuid(), 'goodwill', 'desk/1', 'USD', now(), 'ann', 'sorry, \"überaus\"')",
    "insert into balance.transaction values (gen_random_uuid(), 'opening', 'desk', 'USD', now(), null, null)",
    "insert into balance.entry select id, ledger, account, nano from balance.transaction,"
    " (values ('wallet', 'desk', 4::bigint), ('promotion', null, -4)) as e (ledger, account, nano)",
)


async def tamper(connection: AsyncConnection, *statements: str) -> None:
    """As the owner, with every guard switched off; the caller rolls back."""
    await connection.execute(text("drop table if exists gone, pair, swap"))
    for table in LEDGER:
        await connection.execute(text(f"alter table balance.{table} disable trigger user"))
    for statement in statements:
        await connection.execute(text(statement))


async def seal_anew(connection: AsyncConnection) -> None:
    """What somebody who knows the program does after an edit: every digest and hash of the charges computed again."""
    heads: dict[str, bytes] = {}
    for seal in [row async for row in store.seals(connection)]:
        content = seal.content
        if seal.batch_id is not None:
            query = text("select at, links from balance.charge_batch where id = :id")
            batch = (await connection.execute(query, {"id": seal.batch_id})).one()
            rows = await store.charged_between(connection, seal.batch_id - 1, seal.batch_id)
            content = content_of_batch(batch.at, batch.links, [Charged._make(row[1:]) for row in rows])
        heads[seal.lane] = following(heads.get(seal.lane, first_of(seal.lane)), content)
        change = text("update balance.seal set content = :content, hash = :hash where lane = :lane and seq = :seq")
        new = {"content": content, "hash": heads[seal.lane], "lane": seal.lane, "seq": seal.seq}
        await connection.execute(change, new)
