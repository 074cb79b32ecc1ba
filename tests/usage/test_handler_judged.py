"""Random usage with every kind of bad input, judged by the reference model: classes and charges, to the last digit."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

import pytest

from services.usage import api
from services.usage.cloudevents import Headers
from services.usage.consumer import build
from tests.support.model import judge
from tests.support.prices import price_file
from tests.support.rooms import Log, Logged, Rooms
from tests.support.servers import Database
from tests.support.usage_factory import UsageFactory, as_records, example_prices
from tests.support.usage_registry import LONG_AGO, Sender

ALWAYS = {"from": LONG_AGO, "to": None}


def account(account_id: str, organization: str, group: str | None, plan: str = "payg") -> dict[str, Any]:
    return {
        "account_id": account_id,
        "organization_id": organization,
        "currency": "USD",
        "plans": [ALWAYS | {"plan": plan}],
        "groups": [ALWAYS | {"group_id": group}] if group else [],
    }


ACCOUNTS = [
    account("frontdesk", "lakeside", "g1"),
    account("tokyo", "lakeside", "g2"),
    account("try", "lakeside", None, "trial"),
    account("east", "northwind", "g3", "invoiced"),
    account("west", "northwind", "g3", "invoiced"),
]
PUBLISHERS = [
    {"publisher_id": "lake", "organization_ids": ["lakeside"], "sources": ["pbx/lake", "pbx/shore"]},
    {"publisher_id": "both", "organization_ids": ["lakeside", "northwind"], "sources": ["pbx/both"]},
]
ZONES = {"g1": "UTC", "g2": "Asia/Tokyo", "g3": "America/Detroit"}


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_every_class_and_every_charge_is_as_the_reference_model_says(database: Database, seed: int) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    prices = example_prices(LONG_AGO)
    for row in prices:
        row["book"] = "euro" if row["currency"] == "EUR" else "list"
    facts = {
        "publishers": PUBLISHERS,
        "accounts": ACCOUNTS,
        "billing_groups": [{"group_id": group, "zone": zone, "currency": "USD"} for group, zone in ZONES.items()],
        "prices": prices,
    }
    factory = UsageFactory(seed, ACCOUNTS, PUBLISHERS, now, euro=True)
    factory.mix(700, bad_share=0.3, repeat_share=0.15)
    records = as_records(factory.inputs, partitions=2, timestamp_ms=int(now.timestamp() * 1000))
    log = Log()
    send = Sender(log)
    for publisher in PUBLISHERS:
        send.publisher(publisher["publisher_id"], publisher["organization_ids"], publisher["sources"])  # type: ignore[arg-type]
    for known in ACCOUNTS:
        group = known["groups"][0]["group_id"] if known["groups"] else None
        send.account(
            known["account_id"], organization=known["organization_id"], plan=known["plans"][0]["plan"], group=group,
            zone=ZONES.get(group or "", "UTC"),
        )  # fmt: skip
    async with Rooms(log, database, [build()]) as rooms:
        await rooms.pump()
        engine = rooms.processors["usage"].engine
        for name, currency in (("list", "USD"), ("euro", "EUR")):
            file = price_file(row for row in prices if row["book"] == name)
            assert file.currency == currency
            await api.import_prices(engine, name, file, LONG_AGO, is_default=True)
        for record in records:
            log.records[record.topic, record.partition].append(Logged(record.timestamp_ms, record.key, record.value))
        source = rooms.processors["usage"].room.input("events")
        object.__setattr__(source, "max_records", 97)
        await rooms.pump()

        observed: dict[tuple[str, int, int], str] = {}
        lanes: dict[tuple[str, int], list[tuple[int, Headers, bytes | None]]] = defaultdict(list)
        for record in records:
            lanes[record.topic, record.partition].append((record.offset, (), record.value))
        for (topic, partition), values in lanes.items():
            for offset, found in (await api.classify(engine, topic, partition, values)).items():
                assert found is not None
                observed[topic, partition, offset] = found
        for parked in await api.parked(engine, limit=10_000):
            assert observed[parked.topic, parked.partition, parked.offset] == "quarantined"
            observed[parked.topic, parked.partition, parked.offset] = parked.reason

    judgement = judge([(facts, records)])
    assert judgement.check_classes(observed) == []
    _, problems = judgement.resolve(log.data("usage.charges"))
    assert problems == []
