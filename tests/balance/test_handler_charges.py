"""The charge path: wallets, ledger, postings, links; the part of balance in closing; conservation under random load."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, get_args
from uuid import uuid4

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from contracts.topics import USAGE_CHARGES
from services.balance import api
from services.balance.consumer import ACCOUNTS_MAX, room
from services.balance.ledger import TransactionKind
from services.kernel.errors import Corrupt
from services.kernel.money import format_nano, parse_amount
from services.runtime.database import open_engine
from services.runtime.lanes import give_birth
from services.runtime.outbox import partition_of
from services.runtime.processor import Processor
from services.runtime.records import Record, lane_name
from tests.support.balance_factory import Town, charge
from tests.support.servers import Database, TestedServers


@pytest.fixture
async def town(database: Database) -> AsyncIterator[Town]:
    async with Town(database) as made:
        yield made


def engine_of(town: Town) -> Any:
    return town.rooms.processors["balance"].engine


# ---- charges -------------------------------------------------------------------------------------------------------


async def test_charges_of_many_accounts_are_posted_lane_by_lane_each_account_once(town: Town) -> None:
    count = 2 * ACCOUNTS_MAX + 100
    for number in range(count):
        town.charge(f"a{number:04}", "0.014")
    for number in range(0, count, 2):
        town.charge(f"a{number:04}", "0.0003")
    await town.settle()
    batches = await town.rooms.query(
        "balance", text("select count(*) as accounts, sum(charges) as charges from balance.charged group by batch_id")
    )
    assert sum(batch.charges for batch in batches) == count + count // 2
    assert sum(batch.accounts for batch in batches) == count  # whatever came of one was posted together
    lanes = Counter(partition_of(f"a{number:04}", town.log.partitions(USAGE_CHARGES.name)) for number in range(count))
    assert 1 < len(batches) <= len(lanes)
    assert max(batch.accounts for batch in batches) <= max(ACCOUNTS_MAX, *lanes.values())
    assert (await town.wallet("a0000")).wallet_nano == -parse_amount("0.0143")
    assert (await town.wallet(f"a{count - 1:04}")).wallet_nano == -parse_amount("0.014")
    await town.assert_conserved()


async def test_a_batch_posts_one_transaction_an_account_with_its_entries_summed(town: Town) -> None:
    for amount, product in (("0.014", "voice.outbound"), ("0.028", "voice.outbound"), ("0.000425", "voice.inbound")):
        town.charge("desk", amount, product=product)
    town.charge("east", "0.3630", plan="invoiced")
    await town.settle()
    assert sorted(await town.entries("desk")) == [
        ("revenue:voice.inbound", "0.000425"),
        ("revenue:voice.outbound", "0.042"),
        ("wallet", "-0.042425"),
    ]
    assert sorted(await town.entries("east")) == [("revenue:voice.outbound", "0.363"), ("unbilled", "-0.363")]
    assert [total.charged_nano for total in await api.charge_totals(engine_of(town))] == [42_425_000, 363_000_000]
    await town.assert_conserved()


async def test_postings_say_who_paid_per_account_group_and_bill_to(town: Town) -> None:
    town.charge("desk", "1", group_id="g1", bill_to="2026-10")
    town.charge("desk", "2", group_id="g1", bill_to="2026-10")
    town.charge("desk", "4", group_id="g1", bill_to="2026-11")
    town.charge("desk", "8", group_id="g2", bill_to="2026-10", plan="invoiced")
    town.charge("desk", "-0.5", group_id="g2", bill_to="2026-10", plan="invoiced")
    town.charge("try", "16", plan="trial", group_id=None, bill_to=None)
    await town.settle()
    seen = {
        (each["account_id"], each["group_id"], each["bill_to"]): (
            each["charges"], each["charged"], each["credits"], each["wallet"], each["unbilled"],
        )
        for each in town.log.data("balance.postings")
    }  # fmt: skip
    assert seen == {
        ("desk", "g1", "2026-10"): (2, "3", "0", "3", "0"),
        ("desk", "g1", "2026-11"): (1, "4", "0", "4", "0"),
        ("desk", "g2", "2026-10"): (2, "7.5", "0", "0", "7.5"),
        ("try", None, None): (1, "16", "0", "16", "0"),
    }


async def test_what_is_taken_back_returns_to_the_wallet_or_the_unbilled_amount_and_restores_by_itself(
    town: Town,
) -> None:
    await town.account("desk", level_2=True)
    town.open("desk", "10")
    await town.settle()
    town.charge("desk", "12", charge_id="6f0a3c52-7f0e-8d0b-9a55-2b6c3a1f4e77")
    town.charge("east", "3", plan="invoiced")
    await town.settle()
    assert town.kinds("desk") == ["balance_opened", "suspended"]
    town.charge("desk", "-12", reverses="6f0a3c52-7f0e-8d0b-9a55-2b6c3a1f4e77", quantity=-60)
    town.charge("desk", "0.5")
    town.charge("east", "-3", plan="invoiced", quantity=-60)
    await town.settle()
    assert town.kinds("desk") == ["balance_opened", "suspended", "restored"]
    assert await town.balance("desk") == "9.5"
    assert (
        sum(parse_amount(nano, signed=True) for ledger, nano in await town.entries("east") if ledger == "unbilled") == 0
    )
    assert [each.charged_nano for each in await api.charge_totals(engine_of(town))] == [500_000_000, 0]
    await town.assert_conserved()


async def test_a_charge_before_its_registry_makes_the_wallet_and_waits_for_nothing(town: Town) -> None:
    town.charge("early", "3")
    await town.settle()
    assert await town.balance("early") == "-3"
    assert town.kinds("early") == []
    await town.account("early", level_2=True)
    await town.settle()
    assert town.kinds("early") == ["suspended"]
    town.open("early", "10")
    await town.settle()
    assert town.kinds("early") == ["suspended", "balance_opened", "restored"]
    await town.assert_conserved()


async def test_a_charge_in_another_currency_than_its_wallet_stops_the_room(town: Town) -> None:
    town.charge("desk", "1")
    await town.settle()
    town.charge("desk", "1", currency="EUR")
    processor = town.rooms.processors["balance"]
    partition = partition_of("desk", town.log.partitions("usage.charges"))
    lane = lane_name("charges", "usage.charges", partition)
    value = town.log.records["usage.charges", partition][1].value
    record = Record("usage.charges", partition, 1, 0, b"desk", value, lane)
    with pytest.raises(Corrupt, match="EUR"):
        await processor._commit(processor.room.input("charges"), [record], {lane: (1, 2)})
    assert await town.balance("desk") == "-1"


async def test_the_ledger_refuses_to_be_changed(town: Town) -> None:
    await town.account("desk")
    town.open("desk", "10")
    town.charge("desk", "1")
    await town.settle()
    for role in ("balance", None):
        async with town.database.connected(role) as connection:
            for table in ("charge_batch", "charged", "transaction", "entry"):
                for statement in (f"delete from balance.{table}", f"truncate balance.{table} cascade"):
                    with pytest.raises(asyncpg.InsufficientPrivilegeError):
                        await connection.execute(statement)
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute("update balance.charged set wallet_nano = 0")
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute("update balance.entry set nano = 1")


async def test_the_database_refuses_a_transaction_that_does_not_sum_to_zero(town: Town) -> None:
    async with town.database.connected("balance") as connection:
        with pytest.raises(asyncpg.CheckViolationError):
            await connection.execute("insert into balance.charged values (1, 'a', 'USD', 1, -5, 0, '{x}', '{4}')")
        number = uuid4()
        await connection.execute("insert into balance.transaction values ($1, 'opening', 'a', 'USD', now())", number)
        with pytest.raises(asyncpg.CheckViolationError):
            await connection.execute("insert into balance.entry values ($1, 'wallet', 'a', 5)", number)


async def test_the_database_takes_every_kind_of_transaction_that_the_rules_know(town: Town) -> None:
    async with town.database.connected("balance") as connection:
        for kind in get_args(TransactionKind):
            await connection.execute(
                "insert into balance.transaction values ($1, $2, 'a', 'USD', now())", uuid4(), kind
            )
        with pytest.raises(asyncpg.CheckViolationError):
            await connection.execute("insert into balance.transaction values ($1, 'gift', 'a', 'USD', now())", uuid4())


async def test_a_charge_paid_in_part_by_a_credit_balances_with_it(town: Town) -> None:
    async with town.database.connected("balance") as connection:
        batch = await connection.fetchval(
            "insert into balance.charge_batch (at, links) values (now(), '{}') returning id"
        )
        row = "insert into balance.charged values ($1, 'a', 'USD', 1, $2, 0, '{sms}', '{5}', $3, $4)"
        for wallet, credits, nanos in (
            (-3, None, None), (-3, ["summer"], [-1]), (-3, ["summer"], [-1, -1]), (-5, ["summer"], None),
        ):  # fmt: skip
            with pytest.raises(asyncpg.CheckViolationError):
                await connection.execute(row, batch, wallet, credits, nanos)
        await connection.execute(row, batch, -3, ["summer"], [-2])
    assert sorted(await town.entries("a")) == [
        ("credit:summer", "-0.000000002"),
        ("revenue:sms", "0.000000005"),
        ("wallet", "-0.000000003"),
    ]


# ---- any batches, any order ----------------------------------------------------------------------------------------


async def feed(processor: Processor, source: str, records: list[Record], first: int) -> None:
    """One batch of consecutive offsets of one partition."""
    lane = records[0].lane
    await processor.process(processor.room.input(source), records, {lane: (first, first + len(records))})


async def wallets_of(town: Town) -> dict[str, tuple[str, str]]:
    return {each.account_id: (each.wallet, each.unbilled) for each in await api.balances(engine_of(town))}


async def test_any_split_into_batches_gives_the_same_wallets(servers: TestedServers) -> None:
    chance = random.Random(7)
    charges = [
        (f"a{chance.randrange(12)}", format_nano(chance.randrange(1, 10**9)), chance.choice(["payg", "invoiced"]))
        for _ in range(300)
    ]
    seen = []
    for size in (1, 7, 300):
        async with servers.fresh_database() as database, Town(database, partitions=1) as town:
            processor = town.rooms.processors["balance"]
            for account_id, amount, plan in charges:
                town.charge(account_id, amount, plan=plan)
            lane = lane_name("charges", "usage.charges", 0)
            async with engine_of(town).begin() as connection:
                await give_birth(connection, processor.tables, "charges", [(lane, "usage.charges", 0, 0)])
            logged = town.log.records["usage.charges", 0]
            ends = 40 if size == 1 else len(logged)  # the rest of the single ones comes as one batch
            for at in range(0, ends, size):
                chunk = logged[at : at + size]
                records = [
                    Record("usage.charges", 0, at + n, each.timestamp_ms, each.key, each.value, lane)
                    for n, each in enumerate(chunk)
                ]
                await feed(processor, "charges", records, at)
            await town.settle()
            await town.assert_conserved()
            assert await api.batch_gaps(engine_of(town)) == []
            seen.append(await wallets_of(town))
    assert seen[0] == seen[1] == seen[2]


async def test_two_workers_on_shared_accounts_never_lock_each_other_out(database: Database) -> None:
    """Each account is charged from both partitions, by two processors at once, while commands and results run too."""
    accounts = [f"a{n:02d}" for n in range(30)]
    async with Town(database, partitions=2) as town:
        for account_id in accounts:
            await town.account(account_id, level_2=True)
            town.open(account_id, "200")
            town.method(account_id, "tok_ok")
            town.prefer(account_id, "190", "20")
        await town.settle()
        chance = random.Random(11)
        totals: dict[str, int] = defaultdict(int)
        seqs = [0, 0]
        batches: list[list[list[bytes]]] = [[], []]
        for partition in (0, 1):
            for _ in range(15):
                batch = []
                for _ in range(60):
                    account_id = chance.choice([*accounts, f"new{chance.randrange(10)}"])
                    nano = chance.randrange(1, 10**9)
                    totals[account_id] += nano
                    seqs[partition] += 1
                    batch.append(encoded(account_id, format_nano(nano), f"test:{partition}", seqs[partition]))
                batches[partition].append(batch)
        engines = [open_engine(database.room("balance"), application="test.copy", pool_size=2) for _ in range(2)]
        processors = [Processor(room(town.refuse_fast), engine, town.log) for engine in engines]
        lanes = [lane_name("charges", "usage.charges", partition) for partition in (0, 1)]
        async with engines[0].begin() as connection:
            births = [(lane, "usage.charges", partition, 0) for partition, lane in enumerate(lanes)]
            await give_birth(connection, processors[0].tables, "charges", births)

        async def work(partition: int) -> None:
            offset = 0
            for batch in batches[partition]:
                records = [
                    Record("usage.charges", partition, offset + n, 0, b"k", value, lanes[partition])
                    for n, value in enumerate(batch)
                ]
                await feed(processors[partition], "charges", records, offset)
                offset += len(batch)

        async def others() -> None:
            for round_ in range(5):
                for account_id in accounts:
                    town.command("grant_goodwill", account_id, amount="1", currency="USD")
                await town.rooms.drain("balance")
                await town.rooms.pump(only=["payments"])
                balance = town.rooms.processors["balance"]
                for name in ("commands", "results"):
                    await town.rooms.feed(balance, balance.room.input(name))
                await asyncio.sleep(0.01 * round_)

        async with asyncio.timeout(60):
            await asyncio.gather(work(0), work(1), others())
        deadlocks = await deadlocks_of(database)
        for engine in engines:
            await engine.dispose()
        assert deadlocks == 0
        await town.assert_conserved()
        charged = {each.account_id: each.charged_nano for each in await api.charge_totals(engine_of(town))}
        assert charged == dict(totals)


async def deadlocks_of(database: Database) -> int:
    async with database.connected() as connection:
        found: int = await connection.fetchval(
            "select deadlocks from pg_stat_database where datname = current_database()"
        )
        return found


def encoded(account_id: str, amount: str, link: str, seq: int) -> bytes:
    envelope = {
        "id": f"{link}:{seq}", "type": "usage.charge", "version": 1, "time": "2026-10-31T23:50:00Z", "link": link,
        "seq": seq, "epoch": 0, "trace": None, "data": charge(account_id, amount),
    }  # fmt: skip
    return json.dumps(envelope).encode()


ACCOUNTS = ("ant", "bee", "cat")
TOKENS = ("tok_ok", "tok_declined", "tok_silent", "tok_twice", "tok_late_5s", "tok_error")
STEP = st.one_of(
    st.tuples(st.just("charge"), st.sampled_from(ACCOUNTS), st.integers(-(10**9), 60 * 10**9)),
    st.tuples(st.just("open"), st.sampled_from(ACCOUNTS), st.integers(-(10**10), 10**11)),
    st.tuples(st.just("goodwill"), st.sampled_from(ACCOUNTS), st.integers(0, 10**11)),
    st.tuples(st.just("method"), st.sampled_from(ACCOUNTS), st.sampled_from(TOKENS)),
    st.tuples(st.just("forget"), st.sampled_from(ACCOUNTS), st.none()),
    st.tuples(st.just("prefer"), st.sampled_from(ACCOUNTS), st.sampled_from(["up_to_sum", "target", "fixed"])),
    st.tuples(st.just("result"), st.sampled_from(ACCOUNTS), st.sampled_from(["settled", "declined", "error"])),
    st.tuples(st.just("wait"), st.none(), st.sampled_from([1, 16, 61, 130, 1500])),
    st.tuples(st.just("pump"), st.none(), st.none()),
)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(STEP, min_size=5, max_size=40))
async def test_money_is_conserved_whatever_happens(servers: TestedServers, steps: list[Any]) -> None:
    async with servers.fresh_database() as database, Town(database) as town:
        for account_id in ACCOUNTS:
            await town.account(account_id, level_2=account_id != "cat", plan="payg")
        await town.settle()
        for kind, account_id, value in steps:
            await play(town, kind, account_id, value)
        await town.settle()
        await town.settle()
        await town.assert_conserved()
        assert sum((await api.ledger_totals(engine_of(town))).values()) == 0
        assert await api.wallet_differences(engine_of(town)) == []
        for account_id in ACCOUNTS:
            attempts = await town.attempts(account_id)
            assert sum(each.state in ("requested", "unknown") for each in attempts) <= 1
            credited = sum(each.amount_nano for each in attempts if each.state == "settled")
            paid = [parse_amount(event["amount"]) for event in town.events(account_id, "recharge_settled")]
            assert sum(paid) == credited
            wallet = await town.wallet(account_id)
            if wallet.suspended_funds:
                assert wallet.wallet_nano <= 0


async def play(town: Town, kind: str, account_id: str, value: Any) -> None:
    match kind:
        case "charge":
            town.charge(account_id, format_nano(value))
        case "open":
            town.open(account_id, format_nano(value))
        case "goodwill":
            town.command("grant_goodwill", account_id, amount=format_nano(value), currency="USD")
        case "method":
            town.method(account_id, value)
        case "forget":
            town.command("delete_method", account_id)
        case "prefer":
            town.prefer(account_id, "20", "30", mode=value)
        case "result":
            for attempt in (await town.attempts(account_id))[-1:]:
                failure = None if value == "settled" else value
                town.result(attempt, "failed" if failure else "settled", failure=failure)
        case "wait":
            await town.settle(after=timedelta(minutes=value))
        case _:
            await town.settle()


# ---- closing -------------------------------------------------------------------------------------------------------


def covered(cutoff_id: str, last_seq: int, *, group_id: str | None = None, partition: int = 0) -> dict[str, Any]:
    return {
        "cutoff_id": cutoff_id,
        "boundary": "2026-11-01T00:00:00Z",
        "room": "usage",
        "group_id": group_id,
        "marks": [{"link": "test:lane", "topic": "usage.charges", "partition": partition, "last_seq": last_seq}],
        "lanes": [],
        "held": [],
        "counts": {},
    }


def answers(town: Town) -> list[dict[str, Any]]:
    return [each for each in town.log.data("closing.progress") if each["room"] == "balance"]


async def test_a_cut_is_covered_when_every_charge_of_it_is_posted_and_answered_once(database: Database) -> None:
    async with Town(database, partitions=1) as town:
        cutoff_id = str(uuid4())
        town.send("closing.progress", cutoff_id, covered(cutoff_id, 2))
        town.charge("desk", "1")
        await town.settle()
        assert answers(town) == []
        town.charge("desk", "1")
        await town.settle()
        (answer,) = answers(town)
        assert (answer["cutoff_id"], answer["group_id"]) == (cutoff_id, None)
        postings = town.log.read("balance.postings")
        marks = {(mark["link"], mark["topic"], mark["partition"]): mark["last_seq"] for mark in answer["marks"]}
        assert marks == {(each["link"], "balance.postings", 0): len(postings) for each in postings}
        await town.settle()
        assert len(answers(town)) == 1


async def test_a_held_group_is_answered_by_its_name(database: Database) -> None:
    async with Town(database, partitions=1) as town:
        cutoff_id = str(uuid4())
        town.send("closing.progress", cutoff_id, covered(cutoff_id, 0))
        town.send("closing.progress", cutoff_id, covered(cutoff_id, 1, group_id="support"))
        other = covered(str(uuid4()), 0) | {"room": "groups"}
        town.send("closing.progress", cutoff_id, other)
        await town.settle()
        assert [each["group_id"] for each in answers(town)] == [None]
        town.charge("desk", "1")
        await town.settle()
        assert [each["group_id"] for each in answers(town)] == [None, "support"]


def closed(invoice_id: str, postings: list[dict[str, str]], rounding: str, tax: str) -> dict[str, Any]:
    return {
        "kind": "closed",
        "invoice_id": invoice_id,
        "number": "L-1",
        "group_id": "g",
        "organization_id": "lakeside",
        "period": "2026-10",
        "boundary": "2026-11-01T00:00:00Z",
        "issued_on": "2026-11-03T00:00:00Z",
        "due_on": "2026-11-17T00:00:00Z",
        "currency": "USD",
        "net": "1",
        "tax": tax,
        "total": "1",
        "paid_from_balance": "1",
        "due": "0",
        "charges": 1,
        "document": "",
        "sha256": "",
        "postings": postings,
        "posting_rounding": rounding,
        "posting_tax": tax,
    }


async def test_closing_postings_are_posted_once_by_invoice(town: Town) -> None:
    for account_id, amount in (("east", "0.3630"), ("west", "0.1244"), ("offshore", "0.1080")):
        await town.account(account_id, plan="invoiced", credit_limit="100")
        town.charge(account_id, amount, plan="invoiced")
    await town.settle()
    invoice_id = str(uuid4())
    postings = [
        {"account_id": "east", "wallet": "0", "unbilled": "0.3630", "receivable": "-0.72"},
        {"account_id": "west", "wallet": "0", "unbilled": "0.1244", "receivable": "0"},
        {"account_id": "offshore", "wallet": "0", "unbilled": "0.1080", "receivable": "0"},
    ]
    for _ in range(2):
        town.send("invoices.events", "g", closed(invoice_id, postings, "0.0046", "0.12"))
        await town.settle()
    east = await api.balance(engine_of(town), "east")
    assert (east.unbilled, east.receivable, east.available) == ("0", "0.72", "99.28")
    assert town.kinds("east") == ["invoice_posted"]
    assert await api.ledger_totals(engine_of(town)) == {
        ("USD", "receivable"): -720_000_000,
        ("USD", "revenue"): 595_400_000,
        ("USD", "rounding"): 4_600_000,
        ("USD", "tax"): 120_000_000,
        ("USD", "unbilled"): 0,
    }
    await town.assert_conserved()


async def test_a_prepaid_close_rounds_the_wallet(town: Town) -> None:
    await town.account("frontdesk")
    town.open("frontdesk", "150.002")
    town.send(
        "invoices.events",
        "g",
        closed(str(uuid4()), [{"account_id": "frontdesk", "wallet": "-0.002"}], "0.002", "0"),
    )
    await town.settle()
    assert await town.balance("frontdesk") == "150"
    await town.assert_conserved()
