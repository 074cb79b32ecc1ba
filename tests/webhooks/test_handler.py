"""Which events wait where: once each, in order, for those who asked, whenever the registry tells whose they are."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from sqlalchemy import event as sql_event
from sqlalchemy import text

from services.webhooks import api, handler
from tests.support.receiver import LOOPBACK, Receiver
from tests.webhooks.post import Post


async def endpoint(post: Post, receiver: Receiver, path: str = "", organization: str = "lakeside", **more: Any) -> str:
    made = await api.create(post.engine, organization, receiver.url + path, "ann", LOOPBACK, **more)
    return made.endpoint_id


async def queued(post: Post, endpoint_id: str) -> list[tuple[str, str | None]]:
    found = await api.deliveries(post.engine, endpoint_id)
    return [(each.type, each.account_id) for each in reversed(found)]


def invoice(**more: Any) -> dict[str, Any]:
    return {
        "kind": "closed",
        "invoice_id": "6f0a3c52-7f0e-8d0b-9a55-2b6c3a1f4e77",
        "number": "2026-1",
        "group_id": "g",
        "organization_id": "lakeside",
        "period": "2026-10",
        "boundary": "2026-11-01T00:00:00Z",
        "issued_on": "2026-11-03T00:00:00Z",
        "due_on": "2026-11-17T00:00:00Z",
        "currency": "USD",
        "net": "10.00",
        "tax": "2.00",
        "total": "12.00",
        "paid_from_balance": "0.00",
        "due": "12.00",
        "charges": 3,
        "document": "d",
        "sha256": "s",
        "postings": [{"account_id": "sales", "wallet": "0", "unbilled": "10.00", "receivable": "-12.00"}],
        "posting_rounding": "0",
        "posting_tax": "2.00",
        **more,
    }


async def test_each_endpoint_gets_what_it_asked_for_and_nothing_of_another_organization(
    post: Post, receiver: Receiver
) -> None:
    await post.account("support")
    await post.account("stranger", "hilltop")
    everything = await endpoint(post, receiver)
    suspensions = await endpoint(post, receiver, types=["balance.suspended", "invoice.closed"])
    of_support = await endpoint(post, receiver, account_ids=["support"])
    of_hilltop = await endpoint(post, receiver, organization="hilltop")
    post.happens("sales", "suspended")
    post.happens("sales", "restored")
    post.happens("support", "restored")
    post.happens("stranger", "suspended")
    post.town.send("invoices.events", "g", invoice())
    await post.arrive()
    assert sorted(await queued(post, everything), key=str) == sorted(
        [
            ("balance.suspended", "sales"),
            ("balance.restored", "sales"),
            ("balance.restored", "support"),
            ("invoice.closed", None),
        ],
        key=str,
    )
    assert set(await queued(post, suspensions)) == {("balance.suspended", "sales"), ("invoice.closed", None)}
    assert await queued(post, of_support) == [("balance.restored", "support")]
    assert await queued(post, of_hilltop) == [("balance.suspended", "stranger")]


async def test_what_a_group_owes_is_told_to_its_organization_alone(post: Post, receiver: Receiver) -> None:
    await post.account("stranger", "hilltop")
    made, other = await endpoint(post, receiver), await endpoint(post, receiver, organization="hilltop")
    notice = {
        "group_id": "g",
        "organization_id": "lakeside",
        "version": 1,
        "kind": "overdue_notice",
        "at": "2026-11-24T00:00:00Z",
        "currency": "USD",
        "unapplied": "0.00",
        "days": 7,
    }
    post.town.send("balance.group_events", "g", notice)
    await post.deliver()
    assert await queued(post, made) == [("group.overdue_notice", None)]
    assert await queued(post, other) == []
    assert receiver.requests[0].json["data"]["days"] == 7


async def test_how_an_invoice_stands_is_told_without_whose_shares_are_open(post: Post, receiver: Receiver) -> None:
    await endpoint(post, receiver)
    standing = {
        "invoice_id": "6f0a3c52-7f0e-8d0b-9a55-2b6c3a1f4e77", "number": "2026-1", "period": "2026-10", "version": 1,
        "state": "partly_paid", "due_on": "2026-11-17T00:00:00Z", "due": "12.00", "paid": "2.00", "written_off": "0",
        "open": "10.00", "owed_by": ["sales"],
    }  # fmt: skip
    about = {
        "group_id": "g", "organization_id": "lakeside", "version": 1, "at": "2026-11-10T00:00:00Z", "currency": "USD",
    }  # fmt: skip
    paid = {"kind": "invoice_paid", "unapplied": "0", "amount": "2.00", "invoice": standing}
    post.town.send("balance.group_events", "g", about | paid)
    post.town.send("invoices.events", "g", about | standing | {"kind": "partly_paid"})
    await post.deliver()
    assert [each.json["data"].get("invoice", each.json["data"])["open"] for each in receiver.requests] == ["10.00"] * 2
    assert not [each for each in receiver.requests if "owed_by" in json.dumps(each.json)]


async def test_an_invoice_is_told_without_the_entries_of_our_ledger(post: Post, receiver: Receiver) -> None:
    await endpoint(post, receiver)
    post.town.send("invoices.events", "g", invoice())
    await post.deliver()
    (received,) = receiver.requests
    assert received.json["type"] == "invoice.closed"
    assert received.json["data"]["total"] == "12.00"
    assert not [name for name in received.json["data"] if "posting" in name]


async def test_what_is_of_our_own_books_is_told_to_no_customer(post: Post, receiver: Receiver) -> None:
    made = await endpoint(post, receiver)
    for kind in ("contradiction", "drift_found", "drift_gone", "finance_alarm", "restored"):
        post.happens(kind=kind)
    await post.arrive()
    assert await queued(post, made) == [("balance.restored", "sales")]


async def test_a_record_that_comes_twice_is_one_event(post: Post, receiver: Receiver) -> None:
    made = await endpoint(post, receiver)
    event = {"account_id": "sales", "version": 1, "kind": "suspended", "at": "2026-10-31T23:50:00Z"}
    post.town.send("balance.events", "sales", event, message_id="once")
    await post.arrive()
    for records in list(post.town.log.records.values()):
        records.extend(list(records))  # a relay sent everything again
    post.town.send("balance.events", "sales", event, message_id="once", link="test:other")
    await post.deliver()
    assert await queued(post, made) == [("balance.suspended", "sales")]
    assert len(receiver.requests) == 1


async def test_events_of_an_account_come_in_the_order_of_their_versions_however_they_are_batched(
    post: Post, receiver: Receiver
) -> None:
    await post.account("support")
    await endpoint(post, receiver)
    for number in range(30):
        post.happens("sales" if number % 3 else "support")
        if number % 7 == 0:
            await post.arrive()
    await post.deliver()
    for account_id, count in (("sales", 20), ("support", 10)):
        versions = [
            each.json["data"]["version"] for each in receiver.requests if each.json["data"]["account_id"] == account_id
        ]
        assert versions == list(range(1, count + 1))


async def test_an_event_before_its_registry_waits_and_comes_before_later_ones(post: Post, receiver: Receiver) -> None:
    made = await endpoint(post, receiver)
    for _ in range(3):
        post.happens("newcomer")
    await post.arrive()
    assert await queued(post, made) == []
    post.tell("newcomer")
    post.happens("newcomer")
    await post.deliver()
    assert [each.json["data"]["version"] for each in receiver.requests] == [1, 2, 3, 4]


async def test_what_happened_before_an_endpoint_was_there_is_not_sent_and_not_kept_without_one(
    post: Post, receiver: Receiver
) -> None:
    post.happens()
    await post.arrive()
    async with post.town.database.connected("webhooks") as connection:
        assert await connection.fetchval("select count(*) from webhooks.event") == 0
    made = await endpoint(post, receiver)
    post.happens()
    await post.arrive()
    assert len(await queued(post, made)) == 1


async def test_a_batch_costs_the_same_few_statements_whatever_its_size(post: Post, receiver: Receiver) -> None:
    for number in range(3):
        await endpoint(post, receiver, path=str(number))
    post.happens()
    await post.arrive()  # the first batch of a partition makes its lane
    counts = []
    for size in (1, 200):
        for _ in range(size):
            post.happens()
        statements: list[str] = []

        def count(*arguments: Any, into: list[str] = statements) -> None:
            into.append(arguments[2])

        sql_event.listen(post.engine.sync_engine, "before_cursor_execute", count)
        processor = post.town.rooms.processors["webhooks"]
        await post.town.rooms.feed(processor, processor.room.input("balance"))
        sql_event.remove(post.engine.sync_engine, "before_cursor_execute", count)
        counts.append(len(statements))
    assert counts[0] == counts[1] <= 10


async def test_old_events_are_forgotten_with_their_history_but_never_what_waits(post: Post, receiver: Receiver) -> None:
    kept, dead = await endpoint(post, receiver, "taken"), await endpoint(post, receiver, "dead")
    receiver.answer = lambda received: None if received.path == "/dead" else b"HTTP/1.1 204 Taken\r\n\r\n"
    for _ in range(5):
        post.happens()
    await post.deliver()
    processor = post.town.rooms.processors["webhooks"]
    (tick,) = processor.room.ticks
    await post.town.move(handler.KEPT + timedelta(seconds=1))
    await processor.tick(tick)
    assert len(await post.states(kept)) == 5  # the other endpoint still waits for them
    await api.delete(post.engine, dead, "ann")
    post.happens()
    await post.arrive()
    await processor.tick(tick)
    assert await post.states(kept) == [("waiting", 0)]
    counted = text("select (select count(*) from webhooks.event), (select count(*) from webhooks.attempt)")
    [(events, attempts)] = await post.town.rooms.query("webhooks", counted)
    assert (events, attempts) == (1, 0)
