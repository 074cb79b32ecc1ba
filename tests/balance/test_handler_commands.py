"""Commands to wallets: once each, refused with the field, quarantined when unreadable, waiting for a late registry."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from tests.support.balance_factory import Town
from tests.support.servers import Database

CARD = "4111111111111111"


@pytest.fixture
async def town(database: Database) -> AsyncIterator[Town]:
    async with Town(database) as made:
        await made.account("desk", level_2=True)
        yield made
        await made.assert_conserved()


async def refusals(town: Town) -> list[tuple[str, str | None]]:
    await town.settle()
    return [(each["reason"], each["field"]) for each in town.events("desk", "command_refused")]


async def test_an_opening_balance_is_taken_over_once_and_is_no_payment(town: Town) -> None:
    town.open("desk", "10.50")
    town.open("desk", "10.50")
    assert await refusals(town) == [("already_opened", None)]
    assert await town.balance("desk") == "10.5"
    assert await town.entries() == [("opening", "-10.5"), ("wallet", "10.5")]


async def test_the_same_command_id_is_carried_out_once(town: Town) -> None:
    for _ in range(2):
        town.command("grant_goodwill", "desk", command_id="g1", amount="5", currency="USD")
    await town.settle()
    town.command("grant_goodwill", "desk", command_id="g1", amount="5", currency="USD")
    await town.settle()
    assert await town.balance("desk") == "5"
    assert town.kinds("desk") == ["goodwill_granted"]


async def test_a_negative_opening_balance_is_taken_over_and_suspends(town: Town) -> None:
    town.open("desk", "-3")
    await town.settle()
    assert town.kinds("desk") == ["balance_opened", "suspended"]


@pytest.mark.parametrize(
    ("kind", "role", "fields"),
    [
        ("open_balance", "owner", {"amount": "1", "currency": "USD"}),
        ("open_balance", "finance", {"amount": "1", "currency": "USD"}),
        ("grant_goodwill", "billing_admin", {"amount": "1", "currency": "USD"}),
    ],
)
async def test_only_the_platform_gives_money(town: Town, kind: str, role: str, fields: dict[str, Any]) -> None:
    town.command(kind, "desk", role=role, **fields)
    assert await refusals(town) == [("not_permitted", "role")]
    assert await town.balance("desk") == "0"


async def test_one_method_is_saved_until_it_is_deleted(town: Town) -> None:
    town.method("desk", "tok_ok")
    town.method("desk", "tok_declined")
    town.command("delete_method", "desk")
    town.command("delete_method", "desk")
    town.method("desk", "tok_twice")
    assert await refusals(town) == [("method_saved", "token"), ("no_method", None)]
    assert (await town.wallet("desk")).method_token == "tok_twice"


async def test_a_method_of_an_unknown_processor_is_refused(town: Town) -> None:
    town.method("desk", "tok_ok", processor="acme")
    assert await refusals(town) == [("invalid", "processor")]


@pytest.mark.parametrize(
    ("preferences", "field"),
    [
        ({"mode": "target", "threshold": "10", "recharge": "10"}, "recharge"),
        ({"mode": "fixed", "threshold": "10", "recharge": "9.99"}, "recharge"),
        ({"mode": "up_to_sum", "threshold": "10", "recharge": "0"}, "recharge"),
        ({"mode": "up_to_sum", "threshold": "900000000000", "recharge": "1"}, "threshold"),
    ],
)
async def test_preferences_that_make_no_sense_are_refused(town: Town, preferences: dict[str, str], field: str) -> None:
    town.command("set_preferences", "desk", enabled=True, **preferences)
    ((_, named),) = await refusals(town)
    assert named == field
    assert not (await town.wallet("desk")).recharge_enabled


async def test_auto_recharge_is_switched_off(town: Town) -> None:
    town.open("desk", "200")
    town.method("desk", "tok_ok")
    town.prefer("desk", "100", "50")
    town.command("set_preferences", "desk", enabled=False)
    town.charge("desk", "150")
    await town.settle()
    assert await town.attempts("desk") == []


GOOD = {"command_id": "c", "actor": "ann", "role": "operator", "account_id": "desk", "kind": "open_balance"}


@pytest.mark.parametrize(
    ("value", "reason", "field"),
    [
        (b"", "empty", None),
        (b"{", "not_json", None),
        (b'{"a": "\xff\xfe"}', "not_json", None),
        (b"[" * 10_000, "not_json", None),
        (b"[]", "invalid_command", None),
        (b" " * 900_000, "too_large", None),
        ({**GOOD, "kind": "print_money"}, "invalid_command", "kind"),
        ({**GOOD, "currency": "USD"}, "invalid_command", "amount"),
        ({**GOOD, "amount": 10, "currency": "USD"}, "invalid_command", "amount"),
        ({**GOOD, "amount": 10.5, "currency": "USD"}, "invalid_command", "amount"),
        (json.dumps({**GOOD, "currency": "USD"})[:-1].encode() + b', "amount": NaN}', "invalid_command", "amount"),
        ({**GOOD, "amount": "NaN", "currency": "USD"}, "invalid_command", "amount"),
        ({**GOOD, "amount": "1_000", "currency": "USD"}, "invalid_command", "amount"),
        ({**GOOD, "amount": "１０", "currency": "USD"}, "invalid_command", "amount"),
        ({**GOOD, "amount": "1e3", "currency": "USD"}, "invalid_command", "amount"),
        ({**GOOD, "amount": "10", "currency": "XXX"}, "unknown_currency", "currency"),
        ({**GOOD, "amount": "10", "currency": "usd"}, "invalid_command", "currency"),
        ({**GOOD, "amount": "10", "currency": "USD", "actor": "a\u0000b"}, "invalid_command", "actor"),
        ({**GOOD, "amount": "10", "currency": "USD", "colour": "red"}, "invalid_command", "colour"),
        (b'{"kind": "delete_method", "command_id": "c", "actor": "a", "account_id": "desk", "account_id": "desk"}',
         "duplicate_key", "account_id"),
    ],
)  # fmt: skip
async def test_what_cannot_be_read_is_quarantined_with_its_field_and_disturbs_nobody(
    town: Town, value: Any, reason: str, field: str | None
) -> None:
    town.open("desk", "1")
    town.log.write("balance.commands", key="desk", value=value)
    town.command("grant_goodwill", "desk", amount="2", currency="USD")
    await town.settle()
    assert await town.quarantined() == [(reason, field)]
    assert await town.balance("desk") == "3"


async def test_a_tombstone_is_quarantined(town: Town) -> None:
    town.log.write("balance.commands", key="desk", value=None)
    await town.settle()
    assert await town.quarantined() == [("empty", None)]


async def test_an_amount_beyond_what_a_wallet_holds_is_refused(town: Town) -> None:
    town.open("desk", "4000000001")
    town.command("grant_goodwill", "desk", amount="10000001", currency="USD")
    town.command("grant_goodwill", "desk", amount="0", currency="USD")
    assert [field for _, field in await refusals(town)] == ["amount"] * 3


async def test_goodwill_of_more_than_one_person_may_promise_is_refused(town: Town) -> None:
    town.command("grant_goodwill", "desk", amount="1000.000000001", currency="USD")
    town.command("grant_goodwill", "desk", amount="1000", currency="USD", role="finance")
    await town.settle()
    assert await refusals(town) == [("needs_approval", "amount")]
    assert await town.balance("desk") == "1000"


# ---- card numbers --------------------------------------------------------------------------------------------------


async def everything_stored(town: Town) -> str:
    """Every row of every table of the two rooms, as text."""
    texts = []
    async with town.database.connected() as connection:
        tables = await connection.fetch(
            "select schemaname, tablename from pg_tables where schemaname in ('balance', 'payments')"
        )
        for schema, table in tables:
            for row in await connection.fetch(f'select * from {schema}."{table}"'):
                texts += [value.decode("latin-1") if isinstance(value, bytes) else str(value) for value in row.values()]
    return "\n".join(texts)


async def test_a_card_number_is_refused_and_stands_nowhere(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    town.method("desk", CARD)
    town.method("desk", "4111-1111-1111-1111")
    town.command("delete_method", "desk", actor=f"ann {CARD}")
    town.command("grant_goodwill", "desk", amount="1", currency="USD", note=f"card {CARD}")
    town.log.write("balance.commands", key=CARD, value={**GOOD, "kind": "save_method", "token": CARD})
    town.log.write("balance.commands", key="desk", value=f"4111 1111 1111 1111 {CARD}".encode())
    town.command("save_method", "nobody", processor="sandbox", token=CARD)
    town.log.write("balance.commands", key="desk", value={**GOOD, CARD: 1})
    await town.settle()
    await town.settle(after=timedelta(minutes=2))
    assert [reason for reason, _ in await refusals(town)] == ["card_number"] * 4
    stored = await everything_stored(town)
    sent = "\n".join(
        str(record) for topic in ("balance.events", "payments.requests") for record in town.log.read(topic)
    )
    for text in (stored, sent, caplog.text):
        assert CARD not in text
        assert "4111-1111-1111-1111" not in text
        assert "4111 1111 1111 1111" not in text


async def test_the_headers_of_what_is_refused_are_kept_without_card_numbers(town: Town) -> None:
    headers = (("trace", None), ("empty", b""), ("card", CARD.encode()), ("raw", b"\xff"))
    town.log.write("balance.commands", key="desk", value=b"no JSON", headers=headers)
    await town.settle()
    parked = town.rooms.processors["balance"].tables.parked
    (row,) = await town.rooms.query("balance", select(parked))
    kept = [(name, None if value is None else bytes.fromhex(value)) for name, value in row.headers]
    assert kept == [("trace", None), ("empty", b""), ("card", b"*" * len(CARD)), ("raw", b"\xff")]


# ---- the registry comes late ---------------------------------------------------------------------------------------


async def test_commands_that_overtake_the_registry_wait_for_it_in_order(town: Town) -> None:
    town.open("late", "5")
    town.method("late", "tok_declined")
    await town.settle()
    await town.account("late", level_2=True)
    town.command("delete_method", "late")
    town.method("late", "tok_ok")
    await town.settle()
    assert await town.quarantined() == []
    assert town.kinds("late") == ["balance_opened", "method_saved", "method_deleted", "method_saved"]
    assert await town.balance("late") == "5"


async def test_a_command_that_waits_runs_as_it_was_written_even_when_its_id_looks_like_a_card_number(
    town: Town,
) -> None:
    town.command("grant_goodwill", "late", command_id=CARD, amount="5", currency="USD")
    await town.settle()
    await town.account("late")
    await town.settle()
    assert await town.quarantined() == []
    assert await town.balance("late") == "5"


async def test_a_command_whose_account_does_not_come_is_shown_in_quarantine_and_runs_when_it_comes_after_all(
    town: Town,
) -> None:
    town.open("nobody", "5")
    await town.settle()
    assert await town.quarantined() == []
    await town.settle(after=timedelta(seconds=61))
    assert await town.quarantined() == [("unknown_account", "account_id")]
    await town.account("nobody")
    await town.settle()
    assert await town.quarantined() == []
    assert await town.balance("nobody") == "5"


async def test_commands_keep_their_order_when_their_account_comes_after_some_were_quarantined(town: Town) -> None:
    town.method("nobody", "tok_declined")
    await town.settle()
    await town.settle(after=timedelta(seconds=61))
    assert await town.quarantined() == [("unknown_account", "account_id")]
    town.command("delete_method", "nobody")
    await town.settle()
    await town.account("nobody")
    await town.rooms.pump()  # no tick yet: the account is known, what is in quarantine was not asked to run
    town.method("nobody", "tok_ok")
    await town.settle()
    assert await town.quarantined() == []
    assert town.kinds("nobody") == ["method_saved", "method_deleted", "method_saved"]
    assert (await town.wallet("nobody")).method_token == "tok_ok"


async def test_a_quarantined_command_that_a_person_discards_never_runs(town: Town) -> None:
    town.open("nobody", "5")
    await town.settle()
    await town.settle(after=timedelta(seconds=61))
    async with town.database.connected("balance") as connection:
        await connection.execute("update balance.parked set state = 'discarding' where state = 'quarantined'")
    await town.settle()
    await town.account("nobody")
    await town.settle()
    assert await town.balance("nobody") == "0"


async def test_the_same_command_id_with_other_content_is_refused_and_moves_nothing(town: Town) -> None:
    town.command("grant_goodwill", "desk", command_id="once", amount="5", currency="USD")
    await town.settle()
    town.command("grant_goodwill", "desk", command_id="once", amount="5", currency="USD")
    town.command("grant_goodwill", "desk", command_id="once", amount="50", currency="USD")
    await town.settle()
    assert await refusals(town) == [("idempotency_conflict", "command_id")]
    assert await town.balance("desk") == "5"
