"""Records that failed for want of an account or a number run by themselves when it appears; inbound usage without account."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.dialects.postgresql import asyncpg

from contracts.usage import MESSAGE
from services.runtime import parking
from services.runtime.database import transaction
from services.usage import api, retrying, store
from services.usage.price_files import read_price_file
from tests.support.servers import Database
from tests.support.usage_registry import LONG_AGO, SOURCE, leg
from tests.support.usage_room import Usage

NOW = datetime.now(UTC).replace(microsecond=0)
NUMBER = "+13135550177"


def inbound(event_id: str, at: datetime = NOW, **changes: Any) -> dict[str, Any]:
    """An inbound leg to our number that names no account."""
    event = leg(event_id, at, **({"direction": "inbound", "called": NUMBER} | changes))
    if "account_id" not in changes:
        del event["data"]["account_id"]
    return event


def told(usage: Usage) -> list[tuple[str, str, str | None]]:
    return [(each["action"], each["reason"], each["event_id"]) for each in usage.rejections]


# ---- accounts ------------------------------------------------------------------------------------------------------


async def test_what_has_no_account_yet_runs_when_the_account_appears(usage: Usage) -> None:
    await usage.take(leg("e1", NOW, "late"), leg("e2", NOW, "later"))
    usage.send.account("late")
    await usage.rooms.pump()
    (charge,) = usage.charges
    assert (charge["event_id"], charge["account_id"], charge["amount"]) == ("e1", "late", "0.028")
    assert await usage.classes() == {"rated": 1, "quarantined": 1}
    assert told(usage) == [
        ("quarantined", "unknown_account", "e1"),
        ("quarantined", "unknown_account", "e2"),
        ("replayed", "rated", "e1"),
    ]
    (left,) = await api.parked(usage.engine)
    assert (left.about["account_id"], left.decided_by) == ("later", None)


async def test_what_still_fails_goes_back_without_a_word_unless_for_another_reason(usage: Usage) -> None:
    before = NOW - timedelta(days=2)
    await usage.take(leg("early", before, "late"), leg("unpriced", NOW, "late", called="+999912345"))
    usage.send.account("late", opened_at=NOW - timedelta(days=1))
    await usage.rooms.pump()
    assert told(usage) == [
        ("quarantined", "unknown_account", "early"),
        ("quarantined", "unknown_account", "unpriced"),
        ("quarantined", "no_price", "unpriced"),
    ]
    usage.send.account("late", opened_at=before)  # dated back: what was too early for it may run
    await usage.rooms.pump()
    assert told(usage)[3:] == [("replayed", "rated", "early")]
    assert await usage.classes() == {"rated": 1, "quarantined": 1}


async def test_what_had_no_price_runs_when_its_account_moves_to_a_group_that_has_one(usage: Usage) -> None:
    row = "product,prefix,price_per_minute,connection_fee,currency,minimum_s,increment_s\nvoice.outbound,999,0.5,0,USD,60,60\n"
    await api.import_prices(usage.engine, "premium", read_price_file(row.encode()), LONG_AGO)
    await usage.take(leg("e1", NOW, "sales", called="+999912345"), leg("e2", NOW, "main", called="+999912345"))
    usage.send.account("sales", group="g-premium", pricing_model="premium")
    await usage.rooms.pump()
    (charge,) = usage.charges
    assert (charge["event_id"], charge["group_id"], charge["book_id"]) == ("e1", "g-premium", "premium")
    assert told(usage)[2:] == [("replayed", "rated", "e1")]


async def test_what_had_no_price_is_tried_piece_by_piece_however_much_it_is(
    usage: Usage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All charging waits for an import, so it must not ask for them all: ten thousands took seconds, with every import again."""
    monkeypatch.setattr(retrying, "ASKED_AT_ONCE", 3)
    asked: list[int] = []
    ask = parking.ask

    async def noted(*arguments: Any, ids: Sequence[int], **more: Any) -> int:
        asked.extend(ids)
        return await ask(*arguments, ids=ids, **more)

    monkeypatch.setattr(parking, "ask", noted)
    legs = [leg(f"e{n}", NOW, called=f"+999{n % 2}12345") for n in range(10)]
    await usage.take(*legs)
    assert usage.charges == []
    row = "product,prefix,price_per_minute,currency\nvoice.outbound,{},0.01,USD\n"
    await api.import_prices(
        usage.engine, "special", read_price_file(row.format("9990").encode()), LONG_AGO, is_default=True
    )
    assert len(asked) == 3
    await usage.rooms.pump(ticks=True)
    assert len(asked) == len(set(asked)) == 10
    assert {charge["event_id"] for charge in usage.charges} == {f"e{n}" for n in range(0, 10, 2)}
    await api.import_prices(
        usage.engine, "other", read_price_file(row.format("9991").encode()), LONG_AGO, is_default=True
    )
    await usage.rooms.pump(ticks=True)
    assert len(asked) == 15
    assert await usage.classes() == {"rated": 10}


async def test_a_person_who_replays_too_early_is_told_again(usage: Usage) -> None:
    await usage.take(leg("e1", NOW, "late"))
    await api.replay(usage.engine, "ann", reason="unknown_account")
    await usage.rooms.pump()
    assert told(usage) == [("quarantined", "unknown_account", "e1")] * 2


async def test_a_message_of_the_registry_asks_only_for_the_records_of_what_is_new_in_it(
    usage: Usage, database: Database
) -> None:
    """However many are parked: by index, and none for an account that was known as it is."""
    await usage.take(*(leg(f"e{n}", NOW, f"nobody-{n}") for n in range(40)))
    usage.send.account("sales", group="g-other")  # known, opened at the same time
    usage.send.account("nobody-7")
    await usage.rooms.pump()
    assert [charge["account_id"] for charge in usage.charges] == ["nobody-7"]
    async with transaction(usage.engine) as connection:
        asked = "select count(*) from usage.parked where decided_by = 'usage'"
        assert (await connection.execute(text(asked))).scalar_one() == 1
    async with database.connected() as owner:
        indexed = (("unknown_account", "account_id"), ("unknown_number", "number"), ("no_price", "account_id"))
        for reason, name in indexed:
            await owner.execute(
                'insert into usage.parked (input, topic, partition, "offset", "timestamp", state, reason, message, about,'
                " parked_at) select 'events', $1, 0, n, now(), 'quarantined', $1, '', jsonb_build_object($2::text, n),"
                " now() from generate_series(1, 5000) n",
                reason,
                name,
            )
            await owner.execute("analyze usage.parked")
            await owner.execute("set plan_cache_mode = force_generic_plan")  # the worst that a prepared statement meets
            statement = str(store.retry_statement(reason, name, "usage").compile(dialect=asyncpg.dialect()))
            await owner.execute("prepare retry as " + statement)
            plan = await owner.fetch("explain execute retry('replaying', 'usage', array['1', '2'])")
            await owner.execute("deallocate retry")
            assert f"parked_{reason}" in "\n".join(row[0] for row in plan), statement


# ---- numbers -------------------------------------------------------------------------------------------------------


async def test_an_inbound_leg_without_account_is_whose_number_it_is_at_event_time(usage: Usage) -> None:
    moved = NOW - timedelta(hours=2)
    usage.send.account("field")
    usage.send.resource(
        "main", "field", "cc-main", number=NUMBER, owners=[(LONG_AGO, moved, "sales"), (moved, None, "field")]
    )
    await usage.rooms.pump()
    before, after = inbound("before", moved - timedelta(seconds=1)), inbound("after", moved, account_id=None)
    await usage.take(before, after, before)
    assert {(c["event_id"], c["account_id"], c["cost_center_id"]) for c in usage.charges} == {
        ("before", "sales", "cc-main"), ("after", "field", "cc-main"),
    }  # fmt: skip
    assert await usage.classes() == {"rated": 2, "duplicate": 1}


async def test_a_number_that_nobody_has_is_quarantined_and_runs_when_somebody_has_it(usage: Usage) -> None:
    released = NOW - timedelta(hours=1)
    message = {
        "direction": "inbound", "channel": "sms", "sender": "+12485550101", "recipient": "+13135550178", "segments": 1,
        "outcome": "accepted", "sent_at": f"{NOW:%Y-%m-%dT%H:%M:%SZ}",
    }  # fmt: skip
    await api.import_prices(
        usage.engine, "sms", read_price_file(b"product,prefix,price,currency\nmessage.sms.inbound,1,0.01,USD\n"),
        LONG_AGO, is_default=True,
    )  # fmt: skip
    text_message = {"specversion": "1.0", "id": "text", "source": SOURCE, "type": MESSAGE, "data": message}
    await usage.take(inbound("call"), text_message)
    assert [(r["reason"], r["field"]) for r in usage.rejections] == [
        ("unknown_number", "data.called"), ("unknown_number", "data.recipient"),
    ]  # fmt: skip
    usage.send.resource("main", "sales", None, number=NUMBER, owners=[(LONG_AGO, released, "sales")])
    await usage.rooms.pump()  # it was somebody's, but not then
    assert usage.charges == []
    assert len(usage.rejections) == 2
    usage.send.resource("main", "sales", None, number=NUMBER)
    usage.send.resource("second", "sales", None, number="+13135550178")
    await usage.rooms.pump()
    assert {charge["event_id"] for charge in usage.charges} == {"call", "text"}
    assert told(usage)[2:] == [("replayed", "rated", "call"), ("replayed", "rated", "text")]
    assert await usage.classes() == {"rated": 2}


async def test_a_number_whose_account_comes_after_it_runs_then(usage: Usage) -> None:
    usage.send.resource("main", "late", None, number=NUMBER)
    await usage.rooms.pump()
    await usage.take(inbound("call"))
    (rejection,) = usage.rejections
    assert (rejection["reason"], rejection["field"], rejection["account_id"]) == (
        "unknown_account", "data.called", "late",
    )  # fmt: skip
    usage.send.account("late")
    await usage.rooms.pump()
    assert [charge["account_id"] for charge in usage.charges] == ["late"]


async def test_a_call_runs_when_its_number_turns_out_to_be_anothers(usage: Usage) -> None:
    """It waited for the account or the prices of whom the number was thought to be, which have nothing to do with it."""
    premium = "+19005550177"
    await api.import_prices(
        usage.engine, "premium",
        read_price_file(b"product,prefix,price_per_minute,currency\nvoice.inbound,1900,0.5,USD\n"), LONG_AGO,
    )  # fmt: skip
    rows = b"product,prefix,price_per_minute,currency\nvoice.inbound,1313,0.0085,USD\n"
    await api.import_prices(usage.engine, "list", read_price_file(rows), LONG_AGO)
    usage.send.account("field", pricing_model="premium")
    usage.send.account("late", opened_at=NOW + timedelta(days=1))
    for name, owner, number in (("main", "late", NUMBER), ("hotline", "sales", premium)):
        usage.send.resource(name, owner, None, number=number)
    await usage.rooms.pump()
    await usage.take(
        inbound("call"), inbound("hot", called=premium), inbound("other", called=NUMBER, account_id="late")
    )
    assert sorted(each[1] for each in told(usage)) == ["no_price", "unknown_account", "unknown_account"]
    for name, number in (("main", NUMBER), ("hotline", premium)):
        usage.send.resource(name, "field", None, number=number)
    await usage.rooms.pump()
    assert {(charge["event_id"], charge["account_id"]) for charge in usage.charges} == {
        ("call", "field"), ("hot", "field"),
    }  # fmt: skip
    assert set(told(usage)[3:]) == {("replayed", "rated", "call"), ("replayed", "rated", "hot")}


async def test_a_number_of_an_organization_that_the_publisher_may_not_bill_is_not_charged(usage: Usage) -> None:
    usage.send.account("foreign", organization="northwind")
    usage.send.resource("theirs", "foreign", None, number=NUMBER)
    await usage.rooms.pump()
    await usage.take(inbound("call"))
    (rejection,) = usage.rejections
    assert (rejection["reason"], rejection["field"]) == ("not_permitted", "data.called")
    assert usage.charges == []


async def test_the_same_call_with_and_without_its_account_is_a_conflict(usage: Usage) -> None:
    usage.send.resource("main", "sales", None, number=NUMBER)
    await usage.rooms.pump()
    await usage.take(inbound("call"), inbound("call", account_id="sales"))
    assert await usage.classes() == {"rated": 1, "quarantined": 1}
    assert usage.rejections[0]["reason"] == "conflict"
