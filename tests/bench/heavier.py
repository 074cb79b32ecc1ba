"""What makes usage heavier: a carrier's price list of 50,000 prefixes with tiers, and millions of charges that were made before."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime, timedelta

import asyncpg
from msgspec.structs import replace

from services.runtime.database import open_engine
from services.usage import api
from services.usage.books import PriceRow
from services.usage.price_files import PriceFile
from services.usage.tiers import Band, Schedule
from tests.bench.events import ORGANIZATION, price_files
from tests.bench.worlds import OPENED_BEFORE, World

PREFIXES = 50_000
BOOK = "carrier"
DAYS_BACK = 25  # history lies on the days before the calls of the run, some of it among them

COLUMNS = """
select attname from pg_attribute where attrelid = 'usage.charge'::regclass and attnum > 0 and not attisdropped order by attnum
"""
IDENTITIES = """
insert into usage.identity (generation, digest, content, state, revision, partition, "offset")
select case when n % 2 = 0 then 1 else 2 end, gen_random_uuid(), gen_random_uuid(), 1, 0, 0, n from generate_series(1, $1) n
"""


def carrier_prices() -> PriceFile:
    """The outbound prices of the list, told apart by three to five more digits. The American ones, half of all calls, are
    tiers of which both bands have the same price. In whole minutes every call costs what it costs without all this."""
    dice = random.Random(1)
    listed = {row.prefix: _tiered(row) for row in price_files()["list"].rows}
    rows = dict(listed)
    while len(rows) < PREFIXES:
        number = dice.choice(tuple(listed)) + "".join(dice.choices("0123456789", k=dice.choice((3, 4, 5))))
        longest = next(number[:length] for length in range(len(number), 1, -1) if number[:length] in listed)
        rows[number] = replace(listed[longest], prefix=number)
    named = sorted({row.schedule for row in rows.values() if row.schedule})
    return PriceFile("USD", tuple(rows.values()), (), schedules=tuple(_schedule(name) for name in named))


def _tiered(row: PriceRow) -> PriceRow:
    return replace(row, price_nano=0, schedule=f"nano-{row.price_nano}") if row.prefix.startswith("+1") else row


def _schedule(name: str) -> Schedule:
    price_nano = int(name.removeprefix("nano-"))
    return Schedule(name, "graduated", 60, (Band(6_000, price_nano), Band(None, price_nano)))


async def sell_by_carrier(world: World) -> float:
    """Gives the organization the carrier's book before the two of everybody; returns the seconds of the import."""
    prices = carrier_prices()
    engine = open_engine(world.settings.room_database_url("usage"), application="tollbook.bench", pool_size=1)
    try:
        begin = time.monotonic()
        await api.import_prices(engine, BOOK, prices, datetime.now(UTC) - OPENED_BEFORE)
        took = time.monotonic() - begin
        await api.set_book_of(engine, "organization", ORGANIZATION, BOOK)
    finally:
        await engine.dispose()
    return took


async def store_history(world: World, charges: int) -> None:
    """Copies the charges that a run made, under ids and on days of their own, until there are at least so many, and as many
    identities in two generations. Usage does not run meanwhile."""
    async with world.database.connected() as owner:
        names = [row["attname"] for row in await owner.fetch(COLUMNS)]
        values = {"charge_id": "gen_random_uuid()", "event_time": "event_time - make_interval(days => day)"}
        columns = ", ".join(f'"{name}"' for name in names)
        copied = ", ".join(values.get(name, f'"{name}"') for name in names)
        made, first, last = await owner.fetchrow("select count(*), min(event_time), max(event_time) from usage.charge")
        copies = -(-charges // made)
        days = [(first - timedelta(days=DAYS_BACK - n)).date() for n in range(DAYS_BACK + (last - first).days + 2)]
        await owner.execute("select usage.open_charge_days($1)", days)
        await owner.execute("create table public.made as select * from usage.charge")
        for copy in range(copies - 1):
            statement = (
                f"insert into usage.charge ({columns}) select {copied} from public.made, (select $1::integer as day) d"
            )
            await owner.execute(statement, copy % DAYS_BACK)
        await owner.execute("drop table public.made")
        await _store_identities(owner, made * (copies - 1))
    world.loaded *= copies
    world.nano = {account_id: nano * copies for account_id, nano in world.nano.items()}


async def store_identities(world: World, count: int) -> None:
    """As many identities in two generations, so that a world without history has a sealed generation to look into too."""
    async with world.database.connected() as owner:
        await _store_identities(owner, count)


async def _store_identities(owner: asyncpg.Connection, count: int) -> None:
    await owner.execute("select usage.open_generation(2)")
    await owner.execute("update usage.state set generation = 2")
    await owner.execute(IDENTITIES, count)
    for table in ("charge", "identity"):  # else the server tidies up while usage is measured
        await owner.execute(f"vacuum analyze usage.{table}")
