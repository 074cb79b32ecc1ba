"""What events would cost: the same charges as if they were published, and nothing of it kept. On a real database."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import func, select

from services.runtime.database import transaction
from services.usage import api, estimating
from services.usage.books import PriceRow
from services.usage.importing import LegEvent
from services.usage.price_files import PriceFile
from services.usage.tables import CHARGE, IDENTITY
from services.usage.tiers import Band, Schedule
from tests.support.usage_registry import LONG_AGO, PUBLISHER, leg
from tests.support.usage_room import Usage

NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
async def usage(usage: Usage) -> Usage:
    usage.send.account("night", zone="Europe/Berlin")
    usage.send.account("try", plan="trial")
    usage.send.account("euro", currency="EUR")
    usage.send.account("elsewhere", organization="hillside")
    await usage.rooms.pump()
    return usage


def of(event: dict[str, Any]) -> LegEvent:
    return LegEvent(event["data"]["account_id"], event)


async def estimated(usage: Usage, *events: dict[str, Any], at: datetime | None = None) -> estimating.Estimate:
    return await api.estimate(usage.engine, PUBLISHER, map(of, events), at=at)


async def kept(usage: Usage) -> list[int]:
    """Rows of what a worker writes."""
    async with transaction(usage.engine) as connection:
        tables = [CHARGE, IDENTITY, usage.processor.tables.parked, usage.processor.tables.outbox]
        return [(await connection.execute(select(func.count()).select_from(table))).scalar_one() for table in tables]


async def test_every_class_is_told_by_account_with_the_exact_amount_and_nothing_is_kept(usage: Usage) -> None:
    await usage.take(leg("known", NOW))
    before = await kept(usage)
    estimate = await estimated(
        usage,
        leg("known", NOW),
        leg("e1", NOW),
        leg("e2", NOW, direction="inbound", called="+13135550199", billable_s=7, duration_s=7),
        leg("e3", NOW, answered=False, billable_s=0),
        leg("e1", NOW),
        leg("e1", NOW, billable_s=1),
        leg("e4", NOW, "night", called="+49301234567"),
        leg("e5", NOW, "try"),
        leg("e6", NOW, "nobody"),
        leg("e7", NOW, "elsewhere"),
        leg("e8", NOW, "euro"),
        leg("e9", NOW - timedelta(days=36)),
        leg("e10", NOW + timedelta(hours=6)),
        leg("e11", NOW, source="pbx/other"),
    )
    assert await kept(usage) == before
    by_account = {each.account_id: each for each in estimate.accounts}
    sales = by_account["sales"]
    # 120 s of 0.0140 a minute and 7 s of 0.0085 a minute
    assert (sales.legs, sales.billed_s, sales.amount, sales.currency) == (2, 127, "0.028991667", "USD")
    assert (sales.not_billable, sales.repeats) == (1, 2)
    assert sales.quarantined == {"conflict": 1, "too_old": 1, "in_future": 1, "not_permitted": 1}
    trial = by_account["try"]
    assert (trial.legs, trial.amount, trial.currency) == (1, "0.028", "USD")
    reasons = {name: dict(by_account[name].quarantined) for name in ("night", "nobody", "elsewhere", "euro")}
    assert reasons == {
        "night": {"no_price": 1}, "nobody": {"unknown_account": 1}, "elsewhere": {"not_permitted": 1},
        "euro": {"wrong_currency": 1},
    }  # fmt: skip
    assert {by_account[name].currency for name in reasons} == {None}
    told = {(each.event_id, each.reason): each for each in estimate.quarantined}
    assert told["e6", "unknown_account"].field == "data.account_id"
    assert "register the account" in told["e6", "unknown_account"].message
    assert len(estimate.quarantined) == 8


@pytest.mark.parametrize("together", [20_000, 7])
async def test_what_is_estimated_is_what_is_charged(
    usage: Usage, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimating, "TOGETHER_MAX", together)
    chance = random.Random(17)
    events = []
    for number in range(120):
        seconds = chance.randrange(0, 4_000)
        events.append(
            leg(
                f"e{chance.randrange(100)}",
                NOW - timedelta(seconds=number),
                chance.choice(["sales", "night", "try", "nobody"]),
                called=chance.choice(["+12485550101", "+13135550199", "+49301234567"]),
                direction=chance.choice(["outbound", "inbound"]),
                duration_s=seconds,
                billable_s=seconds,
            )
        )
    events += chance.sample(events, 20)
    estimate = await estimated(usage, *events)
    await usage.take(*events)
    charged: dict[str, Decimal] = {}
    for charge in usage.charges:
        charged[charge["account_id"]] = charged.get(charge["account_id"], Decimal(0)) + Decimal(charge["amount"])
    assert {each.account_id: Decimal(each.amount) for each in estimate.accounts if each.legs} == charged
    classes = Counter(await usage.classes())
    assert sum(each.legs for each in estimate.accounts) == classes["rated"] + classes["rated_ungrouped"]
    assert sum(each.not_billable for each in estimate.accounts) == classes["not_billable"]
    assert sum(each.repeats for each in estimate.accounts) == classes["duplicate"]
    reasons = sum((each.quarantined for each in estimate.accounts), Counter[str]())
    told = Counter(rejection["reason"] for rejection in usage.rejections)
    if estimate.parts == 1:
        assert reasons == told
    assert (
        reasons.total() == told.total()
    )  # which of several reasons comes first depends on how records fall into batches
    assert estimate.parts == -(-len(events) // together)


async def test_what_is_priced_by_tiers_goes_on_from_where_the_counter_stands_and_leaves_it_there(usage: Usage) -> None:
    bands = (Band(300, 10**7), Band(None, 10**6))
    row = PriceRow("voice.outbound", "+44", 0, 0, 60, 60, 60, schedule="s")
    tiered = PriceFile("USD", (row,), (), schedules=(Schedule("s", "graduated", 60, bands),))
    await api.import_prices(usage.engine, "list", tiered, LONG_AGO, is_default=True)
    await usage.take(leg("before", NOW, called="+442071234567"))
    events = [leg(f"e{number}", NOW, called="+442071234567") for number in range(3)]
    first, again = await estimated(usage, *events), await estimated(usage, *events)
    assert first == again
    await usage.take(*events)
    charged = sum(Decimal(charge["amount"]) for charge in usage.charges[1:])
    # 120 s each: 180 s of the 300 at 0.01 a minute are left, and 180 s cost 0.001 a minute
    assert [(each.legs, each.billed_s, Decimal(each.amount)) for each in first.accounts] == [(3, 360, charged)]
    assert charged == Decimal("0.033")


async def test_what_only_the_database_refuses_is_told_alone(usage: Usage) -> None:
    far = NOW + timedelta(days=3_650)  # no partition is opened for such a day
    estimate = await estimated(usage, leg("e1", far), leg("e2", far), leg("e3", far - timedelta(days=36)), at=far)
    (sales,) = estimate.accounts
    assert (sales.legs, sales.quarantined) == (0, {"refused_by_store": 2, "too_old": 1})


async def test_quarantined_events_are_named_up_to_a_bound_and_counted_beyond_it(
    usage: Usage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimating, "QUARANTINED_NAMED_MAX", 2)
    estimate = await estimated(usage, *(leg(f"e{number}", NOW, "nobody") for number in range(5)))
    assert (len(estimate.quarantined), estimate.accounts[0].quarantined) == (2, {"unknown_account": 5})


async def test_nothing_is_estimated_of_nothing(usage: Usage) -> None:
    assert await estimated(usage) == estimating.Estimate([], [], 0)
