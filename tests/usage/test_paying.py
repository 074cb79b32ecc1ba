"""Why a charge stands where it stands, said with the charge."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from contracts.usage import DATA
from services.usage import api
from services.usage.price_files import read_price_file
from tests.support.usage_registry import LONG_AGO, SOURCE, leg
from tests.support.usage_room import Usage

NOW = datetime.now(UTC).replace(microsecond=0)
NUMBER = "+12484329407"


async def reasons(usage: Usage, event: dict[str, Any]) -> tuple[str, ...]:
    await usage.take(event)
    (row,) = [
        each for each in await api.charges(usage.engine, event["data"]["account_id"]) if each["event_id"] == event["id"]
    ]
    return (await api.charge(usage.engine, row["charge_id"])).who_pays


async def test_the_payer_group_the_period_and_the_plan_are_named(usage: Usage) -> None:
    usage.send.account("east", plan="invoiced", group="fleet", zone="Asia/Tokyo")
    usage.send.account("trying", plan="trial")
    await usage.rooms.pump()
    month = f"{NOW + timedelta(hours=9):%Y-%m}"
    assert await reasons(usage, leg("e1", NOW, "east")) == (
        "east was invoiced: after what its wallet holds, owed on its group's invoice",
        f"its payer group from {LONG_AGO:%Y-%m-%dT%H:%M:%SZ} is fleet",
        f"the event time lies in {month} in Asia/Tokyo, the group's zone",
        "no cost center: neither the event nor its number or outbound profile names one",
    )
    assert await reasons(usage, leg("e2", NOW, "trying")) == (
        "trying was a trial account: debited from its wallet, on no invoice",
        "no cost center: neither the event nor its number or outbound profile names one",
    )


async def test_where_the_cost_center_comes_from_is_named(usage: Usage) -> None:
    usage.send.resource("profile-1", "sales", "north")
    usage.send.resource("n1", "sales", "south", number=NUMBER)
    usage.send.resource("n2", "other", "east", number="+12484329408")
    await usage.rooms.pump()
    of_profile = await reasons(usage, leg("e1", NOW, outbound_profile="profile-1"))
    assert of_profile[-1] == "cost center north: that of outbound profile profile-1 at event time"
    of_number = await reasons(usage, leg("e2", NOW, direction="inbound", called=NUMBER))
    assert of_number[-1] == "cost center south: that of the number at event time"
    of_event = await reasons(usage, leg("e3", NOW, outbound_profile="profile-1", cost_center_id="south"))
    assert of_event[-1] == "cost center south: named by the event"


async def test_a_data_session_has_the_cost_center_of_its_subscribers_number(usage: Usage) -> None:
    prices = b"product,price,currency,per\ndata,0.01,USD,1000000\n"
    await api.import_prices(usage.engine, "data", read_price_file(prices), LONG_AGO, is_default=True)
    usage.send.resource("n1", "sales", "south", number=NUMBER)
    await usage.rooms.pump()
    at = f"{NOW:%Y-%m-%dT%H:%M:%SZ}"
    data = {
        "account_id": "sales", "bytes": 5_000_000, "started_at": at, "ended_at": at, "network": "310260", "subscriber": NUMBER,
    }  # fmt: skip
    event = {"specversion": "1.0", "id": "d1", "source": SOURCE, "type": DATA, "data": data}
    assert (await reasons(usage, event))[-1] == "cost center south: that of the number at event time"


async def test_a_timeline_that_says_otherwise_by_now_is_named(usage: Usage) -> None:
    before = await reasons(usage, leg("e1", NOW))
    usage.send.account("sales", group="another")
    await usage.rooms.pump()
    after = (await api.charge(usage.engine, usage.charges[0]["charge_id"])).who_pays
    assert "its payer group was g-sales when the charge was made" in after[1]
    assert after[2] == "it was decided by version 1 of the account's timeline; now there is 2"
    assert len(before) == 4
