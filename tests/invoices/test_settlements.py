"""What becomes of a closed invoice: balance tells it, the list and the page show it, downstream is told each step once."""

from __future__ import annotations

from typing import Any

import pytest

from contracts.topics import BALANCE_GROUP_EVENTS
from services.invoices import api
from services.kernel.period import instant_text
from tests.invoices.neighbours import Neighbours, neighbours
from tests.invoices.test_room import close_two_invoices, engine


@pytest.fixture
async def around(database):
    made = await neighbours(database)
    await close_two_invoices(made)
    yield made
    await made.rooms.__aexit__()


def closed(around: Neighbours) -> dict[str, Any]:
    (event,) = [each for each in around.log.data("invoices.events") if each["group_id"] == "northwind"][:1]
    return event


def told(around: Neighbours, kind: str, version: int, state: str, paid: str, *, times: int = 1, **more: Any) -> None:
    """Balance says how the invoice of northwind stands; its due is 0.72."""
    event = closed(around)
    written_off, owed_by = more.pop("written_off", "0"), more.pop("owed_by", None)
    cents = 72 - round(float(paid) * 100) - round(float(written_off) * 100)
    data = {
        "group_id": "northwind",
        "organization_id": "org",
        "version": version,
        "kind": kind,
        "at": instant_text(around.now),
        "currency": "USD",
        "unapplied": "0",
        "invoice": {
            "invoice_id": event["invoice_id"],
            "version": version,
            "number": event["number"],
            "period": event["period"],
            "state": state,
            "due_on": event["due_on"],
            "due": "0.72",
            "paid": paid,
            "written_off": written_off,
            "open": f"{cents / 100:.2f}",
            "overdue_since": None,
            "owed_by": owed_by,
        },
    } | more
    for _ in range(times):
        around.publish("balance:group_commands/balance.group_commands/0", BALANCE_GROUP_EVENTS, "northwind", data)


def moves(around: Neighbours) -> list[tuple[int, str, str, str]]:
    events = [each for each in around.log.data("invoices.events") if each["kind"] != "closed"]
    return [(each["version"], each["kind"], each["paid"], each["open"]) for each in events]


async def listed(around: Neighbours, **wanted: Any) -> list[tuple[str, str, int]]:
    rows = await api.list_invoices(engine(around), **wanted)
    return sorted((row.group_id, row.standing, row.open_nano // 10**7) for row in rows)


async def test_a_closed_invoice_says_its_zone_and_until_it_is_paid_it_is_unpaid(around):
    assert closed(around)["zone"] == "UTC"
    assert await listed(around) == [("lakeside", "paid", 0), ("northwind", "closed", 72)]
    assert await listed(around, standings=api.UNPAID) == [("northwind", "closed", 72)]
    assert (await api.show(engine(around), closed(around)["number"])).standing == "closed"


async def test_each_step_is_shown_and_told_downstream_once(around):
    told(
        around, "invoice_paid", 1, "partly_paid", "0.30", amount="0.30", source="transfer", reference="R1", times=2,
        owed_by=["west"],
    )  # fmt: skip
    told(around, "write_off_proposed", 1, "partly_paid", "0.30", amount="0.42")
    told(around, "invoice_overdue", 2, "overdue", "0.30", amount="0.42", days=0, owed_by=["west"])
    told(around, "overdue_notice", 2, "overdue", "0.30", amount="0.42", days=7)
    await around.settle()
    assert await listed(around, standings=api.OVERDUE) == [("northwind", "overdue", 42)]
    told(around, "invoice_paid", 3, "paid", "0.72", amount="0.42", source="overpayment", owed_by=[])
    await around.settle()
    assert moves(around) == [
        (1, "partly_paid", "0.30", "0.42"),
        (2, "overdue", "0.30", "0.42"),
        (3, "paid", "0.72", "0.00"),
    ]
    assert [each.get("owed_by") for each in around.log.data("invoices.events")][-3:] == [["west"], ["west"], []]
    assert await listed(around, standings=api.UNPAID) == []
    shown = await api.show(engine(around), closed(around)["number"])
    assert (shown.standing, shown.open_nano) == ("paid", 0)
    assert "paid by transfer (R1)" in shown.text
    assert "paid from earlier overpayment" in shown.text
    assert shown.sha256 == closed(around)["sha256"]  # the document stays as it was


async def test_the_highest_version_holds_in_whatever_order_they_come(around):
    told(around, "invoice_written_off", 2, "written_off", "0.30", written_off="0.42", amount="0.42", source="write_off")
    told(around, "invoice_paid", 1, "partly_paid", "0.30", amount="0.30", source="transfer")
    await around.settle()
    assert await listed(around, standings={"written_off"}) == [("northwind", "written_off", 0)]
    assert sorted(version for version, *_ in moves(around)) == [1, 2]
