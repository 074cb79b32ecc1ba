"""Charges that were made before the registry told of a change are moved to whom it says now, once, and sum to the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import select

from contracts.usage import Charge
from services.kernel.money import format_nano, parse_amount
from services.usage.tables import REASSIGNMENT
from tests.support.usage_registry import LONG_AGO, leg
from tests.support.usage_room import Usage
from tests.usage.test_rerating import live_once, sums

NOW = datetime.now(UTC).replace(microsecond=0)
HOUR = timedelta(hours=1)
MOVED = NOW - 2 * HOUR  # an event at NOW is after it, one at NOW - 3 hours before
NUMBER = "+13135550199"


async def looked_through(usage: Usage) -> None:
    """Ticks until every reassignment is done."""
    tick = next(each for each in usage.processor.room.ticks if each.name == "reassign")
    for _ in range(500):
        if not await usage.rooms.query("usage", select(REASSIGNMENT).where(REASSIGNMENT.c.done_at.is_(None))):
            break
        await usage.processor.tick(tick)
    else:
        raise AssertionError("the reassignments do not come to an end")
    await usage.rooms.pump()


async def told(usage: Usage) -> None:
    """What the registry sent arrives, and charges are moved by it."""
    await usage.rooms.pump()
    await looked_through(usage)


def moved_to(group: str, at: datetime = MOVED, before: str = "g-sales") -> dict[str, Any]:
    return {"groups": [(LONG_AGO, at, before), (at, None, group)]}


def by(usage: Usage, *names: str) -> dict[tuple[Any, ...], str]:
    """What is charged in all under each of these stamps."""
    found: dict[tuple[Any, ...], int] = defaultdict(int)
    for charge in usage.charges:
        found[tuple(charge[name] for name in names)] += parse_amount(charge["amount"], signed=True)
    return {key: format_nano(nano) for key, nano in found.items() if nano}


def inbound(name: str, at: datetime = NOW, **more: Any) -> dict[str, Any]:
    """A call to the number, which names no account unless it is said."""
    data = {"direction": "inbound", "called": NUMBER, "account_id": None} | more
    return leg(name, at, **data)


def live(usage: Usage) -> dict[str, Mapping[str, Any]]:
    """The charge that stands of each event."""
    taken_back = {charge["reverses"] for charge in usage.charges}
    return {
        charge["event_id"]: charge
        for charge in usage.charges
        if charge["reverses"] is None and charge["charge_id"] not in taken_back
    }


async def test_a_move_that_becomes_known_later_moves_what_was_charged_since(usage: Usage) -> None:
    await usage.take(leg("before", NOW - 3 * HOUR), leg("at", MOVED), leg("after", NOW))
    usage.send.account("sales", **moved_to("g2"))
    await told(usage)
    assert by(usage, "group_id") == {("g-sales",): "0.028", ("g2",): "0.056"}
    assert sums(usage) == {"before": "0.028", "at": "0.028", "after": "0.028"}
    first = next(charge for charge in usage.charges if charge["event_id"] == "after")
    reversal, replacement = (each for each in usage.charges if each["event_id"] == "after" and each != first)
    assert reversal == first | {
        "charge_id": reversal["charge_id"], "reverses": first["charge_id"], "amount": "-0.028", "quantity": -120,
    }  # fmt: skip
    assert replacement == first | {
        "charge_id": replacement["charge_id"], "group_id": "g2", "assignment_version": 2,
        "replaces": first["charge_id"],
    }  # fmt: skip
    for charge in usage.charges:
        TypeAdapter(Charge).validate_python(charge)
    await live_once(usage)


async def test_of_moves_in_one_second_the_last_word_holds(usage: Usage) -> None:
    await usage.take(leg("e1", NOW))
    usage.send.account("sales", **moved_to("g2"))
    usage.send.account("sales", **moved_to("g3"))
    await told(usage)
    assert by(usage, "group_id") == {("g3",): "0.028"}
    assert len(usage.charges) == 3
    await live_once(usage)


async def test_moves_that_come_in_reverse_are_moves_to_the_last(usage: Usage) -> None:
    await usage.take(leg("e1", NOW))
    usage.send.account("sales", version=3, **moved_to("g3"))
    await told(usage)
    usage.send.account("sales", version=2, **moved_to("g2"))
    await told(usage)
    assert by(usage, "group_id") == {("g3",): "0.028"}
    assert len(usage.charges) == 3


async def test_a_move_there_and_back_leaves_nothing(usage: Usage) -> None:
    await usage.take(leg("e1", NOW))
    usage.send.account("sales", **moved_to("g2"))
    await told(usage)
    usage.send.account("sales")
    await told(usage)
    assert by(usage, "group_id", "bill_to") == {("g-sales", NOW.strftime("%Y-%m")): "0.028"}
    assert [charge["amount"] for charge in usage.charges] == ["0.028", "-0.028", "0.028", "-0.028", "0.028"]
    await live_once(usage)
