"""Whether a run was right: every event is one charge of the amount worked out beforehand, in every room."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.balance import api as balance_api
from services.cli.idle import watching
from services.kernel.money import format_nano, parse_amount
from services.runtime.database import open_engine
from services.runtime.settings import ROOMS
from tests.bench.events import customers
from tests.bench.worlds import OPENING, OPENING_OF_RECHARGED, World

IDLE_S_MAX = 120.0

CHARGES = "select account_id, count(*) as count, sum(amount_nano) as nano from usage.charge group by 1"
DEBITS = "select account_id, sum(charges) as count, -sum(wallet_nano + unbilled_nano) as nano from balance.charged group by 1"
LINES = "select account_id, sum(charges) as count, sum(exact_nano) as nano from invoices.line group by 1"
PAID = "select account_id, null as count, sum(charged_nano) as nano from invoices.paid group by 1"
WALLETS = """
select account_id, wallet_nano + unbilled_nano + receivable_nano as nano,
       (select coalesce(sum(amount_nano), 0) from balance.attempt a
         where a.account_id = w.account_id and a.state = 'settled')::bigint as recharged
  from balance.wallet w
"""


async def stage_problems(world: World) -> list[str]:
    """After a run of usage alone."""
    async with world.database.connected() as owner:
        problems = await _parked(owner)
        problems += _compare("usage", await owner.fetch(CHARGES), world)
        problems += await _distinct(owner, world)
    return problems


async def posting_problems(world: World) -> list[str]:
    """After a run of usage and balance: each charge is debited once, and the chain over the ledger holds."""
    problems = await stage_problems(world)
    async with world.database.connected() as owner:
        problems += _compare("balance", await owner.fetch(DEBITS), world)
    engine = open_engine(world.settings.room_database_url("balance"), application="tollbook.bench", pool_size=1)
    try:
        problems += (await balance_api.broken_seals(engine)).problems
        problems += [str(each) for each in await balance_api.wallet_differences(engine)]
    finally:
        await engine.dispose()
    return problems


async def chain_problems(world: World) -> list[str]:
    """After a run of all rooms, which still run: first until nothing moves."""
    async with watching(world.settings) as idle:
        await idle.wait(timeout_s=IDLE_S_MAX)
    problems = await stage_problems(world)
    async with world.database.connected() as owner:
        for room, statement in (("balance", DEBITS), ("invoices, lines", LINES), ("invoices, paid", PAID)):
            problems += _compare(room, await owner.fetch(statement), world)
        count, nano = await owner.fetchrow("select sum(charges)::bigint, sum(exact_nano) from invoices.tally")
        if (count, nano) != (world.loaded, sum(world.nano.values())):
            problems.append(f"invoices tally {count} charges of {nano} nanos, not {world.loaded}")
        problems += _wallets(await owner.fetch(WALLETS), world)
    return problems


async def _parked(owner: Any) -> list[str]:
    problems = []
    for room in ROOMS:
        count = await owner.fetchval(f"select count(*) from {room}.parked")
        if count:
            row = await owner.fetchrow(f"select reason, field, message from {room}.parked order by id limit 1")
            problems.append(
                f"{room} parked {count} records, the first as {row['reason']} {row['field']}: {row['message']}"
            )
    return problems


async def _distinct(owner: Any, world: World) -> list[str]:
    distinct = await owner.fetchval("select count(distinct charge_id) from usage.charge")
    return [] if distinct == world.loaded else [f"usage has {distinct} different charges, not {world.loaded}"]


def _compare(room: str, rows: list[Mapping[str, Any]], world: World) -> list[str]:
    """Counts in all, amounts per account."""
    problems = []
    if all(row["count"] is not None for row in rows):
        count = sum(int(row["count"]) for row in rows)
        if count != world.loaded:
            problems.append(f"{room} has {count} charges of {world.loaded} events")
    found = {row["account_id"]: int(row["nano"]) for row in rows}
    wrong = [each for each, nano in world.nano.items() if found.get(each, 0) != nano]
    if wrong:
        expected, first = world.nano[wrong[0]], found.get(wrong[0], 0)
        problems.append(
            f"{room} is wrong for {len(wrong)} accounts, the first {wrong[0]}: {format_nano(first)}, not {format_nano(expected)}"
        )
    return problems


def _wallets(rows: list[Mapping[str, Any]], world: World) -> list[str]:
    """Opening balance + recharges - charges, to the last nano."""
    found = {row["account_id"]: row for row in rows}
    problems = []
    for customer in customers():
        opening = 0
        if customer.plan == "payg":
            opening = parse_amount(OPENING_OF_RECHARGED if customer.recharges else OPENING)
        row = found[customer.account_id]
        expected = opening + row["recharged"] - world.nano.get(customer.account_id, 0)
        if row["nano"] != expected:
            problems.append(
                f"the wallet of {customer.account_id} is {format_nano(row['nano'])}, not {format_nano(expected)}"
            )
    return problems[:3]
