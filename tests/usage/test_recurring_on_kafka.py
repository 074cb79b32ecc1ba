"""The fees of numbers on a real broker: two workers make the topic of the publisher `tollbook` and read it themselves."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import func, select

from contracts.groups import (
    AccountTimeline,
    CostCenterInterval,
    GroupInterval,
    OwnerInterval,
    PlanInterval,
    ResourceTimeline,
)
from contracts.topics import USAGE_EVENTS
from services.runtime.database import open_engine, transaction
from services.runtime.settings import Settings, load
from services.runtime.worker import Worker
from services.usage import api, store
from services.usage.consumer import build
from services.usage.price_files import read_price_file
from services.usage.tables import CHARGE, RUNTIME
from tests.support.processes import until
from tests.support.servers import Database
from tests.support.usage_registry import LONG_AGO

NUMBERS = 12


@pytest.fixture
def settings(database: Database, kafka: str, topic_prefix: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    variables = {"TOLLBOOK_KAFKA": kafka, "TOLLBOOK_TOPIC_PREFIX": topic_prefix, "TOLLBOOK_TICK_MS": "100"}
    for name, value in database.environment(**variables).items():
        monkeypatch.setenv(name, value)
    return load()


def timelines(now: datetime) -> list[tuple[str, str, int, dict[str, Any]]]:
    """An account in Detroit and its numbers, bought just now."""
    group = GroupInterval(
        start=LONG_AGO, end=None, group_id="g", zone="America/Detroit", currency="USD", pricing_model=None
    )
    account = AccountTimeline(
        account_id="sales", account_no=1, version=1, organization_id="lakeside", name="sales", currency="USD",
        opened_at=LONG_AGO, created_at=LONG_AGO, level_2=False, credit_limit="0", closed_at=None,
        plans=(PlanInterval(start=LONG_AGO, end=None, plan="payg"),), groups=(group,),
    )  # fmt: skip
    found = [("account", "sales", 1, account.data())]
    for number in range(NUMBERS):
        resource = ResourceTimeline(
            resource_id=f"n{number}", version=1, kind="number", number=f"+131355501{number:02d}", account_id="sales",
            organization_id="lakeside", owners=(OwnerInterval(start=now, end=None, account_id="sales"),),
            cost_centers=(CostCenterInterval(start=now, end=None, cost_center_id=None),),
        )  # fmt: skip
        found.append(("resource", resource.resource_id, 1, resource.data()))
    return sorted(found, key=lambda each: each[:2])


async def test_the_fees_go_through_kafka_and_are_charged_once_each(settings: Settings) -> None:
    engine = open_engine(settings.room_database_url("usage"), application="test.fees", pool_size=2)
    workers = [Worker(build(), settings), Worker(build(), settings)]
    try:
        now = datetime.now(UTC)
        async with transaction(engine) as connection:
            await store.lock_state(connection)
            changed = await store.bump(connection, "registry_version")
            await store.project_timelines(connection, changed, timelines(now))
        prices = read_price_file(b"product,prefix,price,currency\nnumber.rental,1,1.00,USD\n")
        await api.import_prices(engine, "list", prices, LONG_AGO, is_default=True)  # lets all numbers be looked at
        for worker in workers:
            await worker.start()

        async def charged() -> bool:
            async with transaction(engine) as connection:
                return (await connection.execute(select(func.count()).select_from(CHARGE))).scalar_one() == NUMBERS

        await until(charged, "every number is charged")
        async with transaction(engine) as connection:  # as if all had fired and nobody had noted it
            due = RUNTIME.due
            await connection.execute(due.update().where(due.c.kind == "rental").values(due_at=func.runtime.clock_now()))

        async def looked() -> bool:
            async with transaction(engine) as connection:
                waiting = select(func.count()).select_from(due).where(due.c.due_at <= func.runtime.clock_now())
                unsent = select(func.count()).select_from(RUNTIME.outbox)
                return not [n for n in [await connection.scalar(waiting), await connection.scalar(unsent)] if n]

        await until(looked, "every number is looked at again")
        published = await workers[0].end_offsets(USAGE_EVENTS)
        assert {topic for topic, _ in published} == {USAGE_EVENTS.of("tollbook")}
        assert await api.parked(engine) == []
        counts = [counts for of in (await api.class_counts(engine)).values() for counts in of.values()]
        assert sum(each.get("rated", 0) for each in counts) == NUMBERS
        assert all(each.keys() <= {"rated", "duplicate"} for each in counts)  # a relay may send twice, a charge is one
    finally:
        for worker in workers:
            await worker.stop()
        await engine.dispose()
