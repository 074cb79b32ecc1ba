"""What the gateway answers: a call from its quote to its charge, and every error with its field and its fix."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from fastapi import FastAPI

from services.balance.api import Holds
from services.gateway.bodies import BODY_BYTES_MAX
from services.gateway.server import application
from services.runtime.database import open_engine
from services.usage import api as usage_api
from services.usage.api import Quotes
from services.usage.price_files import read_price_file
from tests.support.balance_factory import Town
from tests.support.usage_registry import LONG_AGO
from tests.support.wire import Wire

PLAN = {"account_id": "desk", "called": "+12485252160"}
CALL = {"account_id": "desk", "call_leg_id": "a call@of-ours"}


class Asking:
    """The application, asked without a server."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        return await self.ask("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode())

    async def get(self, path: str) -> tuple[int, Any]:
        return await self.ask("GET", path)

    async def ask(
        self, method: str, path: str, body: bytes | None = b"", content_type: bytes = b"application/json"
    ) -> tuple[int, Any]:
        """What comes back. Without a body its head came, and nothing more."""
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            if body is None:
                await asyncio.Event().wait()
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        path, _, query = path.partition("?")
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": path, "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
            "headers": [(b"content-type", content_type)], "client": ("127.0.0.1", 1), "server": ("gateway", 80),
        }  # fmt: skip
        try:
            await self._app(scope, receive, send)
        except Exception:  # the server logs what was answered by 500
            if not sent:
                raise
        content = b"".join(each.get("body", b"") for each in sent)
        status, shown = int(sent[0]["status"]), json.loads(content)
        if status != 200 and shown["error"]["code"] not in ("unknown_path", "wrong_method"):
            self._assert_described(method, path, status, shown["error"]["code"])
        return status, shown

    def _assert_described(self, method: str, path: str, status: int, code: str) -> None:
        """Every error is one of those that the description has for its path."""
        described = self._app.openapi()["paths"][re.sub("/accounts/[^/]+", "/accounts/{account_id}", path)]
        answer = described[method.lower()]["responses"][str(status)]
        assert f"`{code}`" in answer["description"]
        assert answer["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Failure"}


@pytest.fixture
async def quotes(town: Town) -> Quotes:
    made = Quotes(town.rooms.processors["usage"].engine)
    await made.refresh()
    return made


@pytest.fixture
async def gateway(town: Town, quotes: Quotes) -> AsyncIterator[Asking]:
    engine = open_engine(town.database.room("balance"), application="test.gateway", pool_size=2)
    holds = Holds(engine, town.log)
    yield Asking(application(quotes, holds, engine))
    await holds.close()
    await engine.dispose()


async def test_a_call_from_its_quote_to_its_charge(town: Town, gateway: Asking) -> None:
    status, quote = await gateway.post("/v1/calls/quote", PLAN)
    assert (status, quote["price_per_minute"], quote["currency"], quote["matched"]) == (200, "0.014", "USD", "+1")
    status, first = await gateway.post("/v1/calls/authorize", PLAN | CALL)
    assert (status, first["decision"], first["granted_s"], first["held"]) == (200, "granted", 300, "0.07")
    assert (first["max_s"], first["number"], first["expires_at"][-1]) == (71 * 60, 0, "Z")
    assert await gateway.post("/v1/calls/authorize", PLAN | CALL) == (200, first)
    status, second = await gateway.post("/v1/calls/renew", CALL | {"number": 1, "seconds": 60})
    assert (second["hold_id"], second["granted_s"], second["total_s"], second["held"]) == (
        first["hold_id"], 60, 360, "0.084",
    )  # fmt: skip
    _, holds = await gateway.get("/v1/accounts/desk/holds")
    assert [(each["call_leg_id"], each["held"], each["seconds"]) for each in holds["data"]] == [
        (CALL["call_leg_id"], "0.084", 360)
    ]
    status, settled = await gateway.post("/v1/calls/settle", CALL | {"seconds": 61})
    assert (status, settled["ended_by"], settled["held"]) == (200, "settle", "0.028")
    town.charge("desk", "0.028", call_leg_id=CALL["call_leg_id"])
    await town.settle()
    _, balance = await gateway.get("/v1/accounts/desk/balance")
    assert (balance["wallet"], balance["held"], balance["available"]) == ("0.972", "0", "0.972")
    assert (await gateway.post("/v1/calls/release", CALL))[1]["ended_by"] == "charge"


async def test_a_refusal_is_an_answer_with_its_reason(town: Town, gateway: Asking) -> None:
    town.limit("desk", None, 0)
    await town.settle()
    status, answer = await gateway.post("/v1/calls/authorize", PLAN | CALL)
    assert (status, answer) == (
        200,
        {
            "decision": "refused",
            "reason": "concurrent_calls",
            "message": "account desk has 0 of at most 0 calls in progress",
        },
    )


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "field"),
    [
        ("authorize", PLAN | CALL | {"account_id": "nobody"}, 404, "unknown_account", "account_id"),
        ("authorize", PLAN | CALL | {"called": "+99912345678"}, 404, "no_price", "called"),
        ("authorize", PLAN | CALL | {"called": "0123"}, 422, "invalid", "called"),
        ("authorize", PLAN | CALL | {"seconds": 0}, 422, "invalid", "seconds"),
        ("authorize", PLAN | CALL | {"seconds": "60"}, 422, "invalid", "seconds"),
        ("authorize", PLAN | CALL | {"colour": "red"}, 422, "invalid", "colour"),
        ("authorize", PLAN | CALL | {"body": "red"}, 422, "invalid", "body"),
        ("authorize", b" " * (BODY_BYTES_MAX + 1), 413, "too_large", "body"),
        ("authorize/", PLAN | CALL, 404, "unknown_path", None),
        ("authorize", PLAN, 422, "invalid", "call_leg_id"),
        ("authorize", PLAN | {"call_leg_id": "a\x00b"}, 422, "invalid", "call_leg_id"),
        ("authorize", PLAN | CALL | {"direction": "inbound", "outbound_profile": "p"}, 422, "invalid", "outbound_profile"),
        ("authorize", b"{", 400, "invalid_json", None),
        ("authorize", b"[]", 422, "invalid", None),
        ("settle", b'{"account_id": "desk", "call_leg_id": "c", "seconds": 1, "seconds": 9}', 422, "invalid", "seconds"),
        ("settle", b'{"seconds": [{}, 1e999], "account_id": "desk", "call_leg_id": "c", "\\u0073econds": 9}', 422, "invalid", "seconds"),
        ("renew", CALL | {"number": 1}, 404, "unknown_call", "call_leg_id"),
        ("settle", CALL | {"seconds": -1}, 422, "invalid", "seconds"),
        ("release", CALL, 404, "unknown_call", "call_leg_id"),
        ("hang_up", CALL, 404, "unknown_path", None),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_named_with_its_field(
    gateway: Asking, path: str, body: Any, status: int, code: str, field: str | None
) -> None:
    answered, shown = await gateway.post(f"/v1/calls/{path}", body)
    assert (answered, shown["error"]["code"], shown["error"]["field"]) == (status, code, field)
    assert shown["error"]["message"]
    assert set(shown["error"]) == {"code", "field", "message", "retry_can_help"}


async def test_a_body_must_say_that_it_is_json(gateway: Asking) -> None:
    """What a page of another site can make a browser send without asking first authorises nothing."""
    body = json.dumps(PLAN | CALL).encode()
    for content_type, expected in ((b"text/plain", 422), (b"", 422), (b"application/json; charset=utf-8", 200)):
        status, shown = await gateway.ask("POST", "/v1/calls/authorize", body, content_type)
        assert status == expected
        if status == 422:
            assert (shown["error"]["code"], shown["error"]["field"]) == ("invalid", "content-type")


async def test_a_body_that_does_not_come_may_be_sent_again(gateway: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.runtime.http_server.BODY_S_MAX", 0.1)
    status, shown = await gateway.ask("POST", "/v1/calls/authorize", None)
    assert (status, shown["error"]["code"], shown["error"]["field"]) == (408, "timeout", "body")
    assert shown["error"]["retry_can_help"] is True


async def test_a_granted_call_that_is_asked_for_again_is_answered_as_before_though_it_has_no_price_now(
    town: Town, quotes: Quotes, gateway: Asking
) -> None:
    granted = await gateway.post("/v1/calls/authorize", PLAN | CALL)
    assert (granted[0], granted[1]["decision"]) == (200, "granted")
    other = b"product,prefix,price_per_minute,currency\nvoice.outbound,44,0.02,USD\n"
    start = LONG_AGO + timedelta(days=1)
    await usage_api.import_prices(
        town.rooms.processors["usage"].engine, "list", read_price_file(other), start, is_default=True
    )
    await quotes.refresh()
    assert await gateway.post("/v1/calls/authorize", PLAN | CALL) == granted
    for changed in ({"call_leg_id": "another"}, {"seconds": 60}):
        status, shown = await gateway.post("/v1/calls/authorize", PLAN | CALL | changed)
        assert (status, shown["error"]["code"]) == (404, "no_price")
    await gateway.post("/v1/calls/settle", CALL | {"seconds": 5})
    assert (await gateway.post("/v1/calls/authorize", PLAN | CALL))[1]["error"]["code"] == "no_price"


async def test_what_no_retry_can_help_says_so(gateway: Asking) -> None:
    async def said(path: str, **more: Any) -> tuple[str, bool]:
        status, shown = await gateway.post(f"/v1/calls/{path}", CALL | more)
        assert status >= 400
        return shown["error"]["code"], shown["error"]["retry_can_help"]

    assert await said("authorize", called="+99912345678") == ("no_price", True)  # a price may be imported
    assert await said("authorize", called="+12485252160", account_id="nobody") == ("unknown_account", True)
    assert await said("renew", number=1) == ("unknown_call", False)
    await gateway.post("/v1/calls/authorize", PLAN | CALL)
    assert await said("authorize", called="+12485252161") == ("idempotency_conflict", False)
    assert await said("renew", number=2) == ("out_of_order", False)
    await gateway.post("/v1/calls/renew", CALL | {"number": 1})
    assert await said("renew", number=1, seconds=7) == ("idempotency_conflict", False)
    assert await said("authorize", called="+12485252160") == ("out_of_order", False)
    await gateway.post("/v1/calls/settle", CALL | {"seconds": 5})
    assert await said("settle", seconds=6) == ("idempotency_conflict", False)
    assert await said("authorize", called="+12485252160") == ("call_ended", False)


async def test_holds_are_read_in_pages_and_none_is_left_out(town: Town, gateway: Asking) -> None:
    await town.account("shop", level_2=True)
    town.open("shop", "10")
    await town.settle()
    names = [f"c{number}" for number in range(7)]
    for each in names:
        await gateway.post("/v1/calls/authorize", PLAN | {"account_id": "shop", "call_leg_id": each})
    seen, path = [], "/v1/accounts/shop/holds?limit=3"
    after = ""
    while True:
        _, page = await gateway.get(path + after)
        seen.append([each["call_leg_id"] for each in page["data"]])
        if page["next"] is None:
            break
        if len(seen) == 1:  # what ends meanwhile moves nothing else
            await gateway.post("/v1/calls/release", {"account_id": "shop", "call_leg_id": names[2]})
            await gateway.post("/v1/calls/release", {"account_id": "shop", "call_leg_id": names[4]})
        after = f"&after={page['next']}"
    assert seen == [names[:3], ["c3", "c5", "c6"]]
    for wrong in ("limit=0", "limit=1001", "after=x", "after=W10=", "after=" + "x" * 3000):
        status, shown = await gateway.get(f"/v1/accounts/shop/holds?{wrong}")
        assert (status, shown["error"]["field"]) == (422, wrong.partition("=")[0])


async def test_a_conflict_and_an_unknown_account_of_the_reading_paths(gateway: Asking) -> None:
    await gateway.post("/v1/calls/authorize", PLAN | CALL)
    status, shown = await gateway.post("/v1/calls/authorize", PLAN | CALL | {"called": "+12485252161"})
    assert (status, shown["error"]["code"]) == (409, "idempotency_conflict")
    for path in ("balance", "holds"):
        status, shown = await gateway.get(f"/v1/accounts/nobody/{path}")
        assert (status, shown["error"]["code"], shown["error"]["field"]) == (404, "unknown_account", "account_id")
    assert (await gateway.get("/v1/calls/authorize"))[0] == 405


async def test_what_was_just_made_is_quoted_at_once_and_what_was_changed_within_a_second(
    town: Town, quotes: Quotes, gateway: Asking
) -> None:
    await town.account("new", level_2=True)
    await town.settle()
    assert (await gateway.post("/v1/calls/quote", PLAN | {"account_id": "new"}))[0] == 200
    engine = town.rooms.processors["usage"].engine
    dearer = b"product,prefix,price_per_minute,currency,minimum_s,increment_s\nvoice.outbound,1,0.5,USD,60,60\n"
    await usage_api.import_prices(
        engine, "list", read_price_file(dearer), LONG_AGO + timedelta(days=1), is_default=True
    )
    await quotes.refresh()  # as the gateway does every second
    assert (await gateway.post("/v1/calls/quote", PLAN))[1]["price_per_minute"] == "0.5"


async def test_a_database_that_is_away_is_said(town: Town, quotes: Quotes) -> None:
    engine = open_engine("postgresql+asyncpg://nobody@127.0.0.1:1/nowhere", application="test.gateway")
    gateway = Asking(application(quotes, Holds(engine, town.log), engine))
    for status, shown in (
        await gateway.post("/v1/calls/authorize", PLAN | CALL),
        await gateway.get("/v1/accounts/desk/balance"),
    ):
        assert (status, shown["error"]["code"], shown["error"]["retry_can_help"]) == (503, "unavailable", True)
    await engine.dispose()


async def test_a_database_that_stands_still_is_said_in_time_and_what_it_grants_late_is_found_again(
    town: Town, quotes: Quotes
) -> None:
    async with Wire.to(town.database.room("balance")) as wire:
        engine = open_engine(wire.url, application="test.gateway", pool_size=2)
        holds = Holds(engine, town.log)
        gateway = Asking(application(quotes, holds, engine, answer_s_max=0.3))
        assert (await gateway.get("/v1/accounts/desk/balance"))[0] == 200
        assert (await gateway.post("/v1/calls/authorize", PLAN | CALL | {"call_leg_id": "before"}))[0] == 200
        wire.freeze()
        began = time.monotonic()
        answers = await asyncio.gather(
            *[gateway.post("/v1/calls/authorize", PLAN | CALL | {"call_leg_id": each}) for each in ("first", "second")],
            gateway.get("/v1/accounts/desk/balance"),
            gateway.get("/v1/accounts/desk/holds"),
        )
        answers.append(await gateway.post("/v1/calls/authorize", PLAN | CALL | {"call_leg_id": "third"}))
        answers.append(await gateway.post("/v1/calls/settle", CALL | {"call_leg_id": "before", "seconds": 61}))
        assert time.monotonic() - began < 3
        for status, shown in answers:
            assert (status, shown["error"]["code"], shown["error"]["retry_can_help"]) == (503, "timeout", True)
        wire.thaw()
        await holds.close()  # what was under way is committed, and what nobody waits for is not begun
        _, shown = await gateway.get("/v1/accounts/desk/holds")
        assert [(each["call_leg_id"], each["held"]) for each in shown["data"]] == [
            ("before", "0.028"),
            ("first", "0.07"),
            ("second", "0.07"),
        ]
        _, again = await gateway.post("/v1/calls/authorize", PLAN | CALL | {"call_leg_id": "first"})
        assert (again["hold_id"], again["held"]) == (shown["data"][1]["hold_id"], "0.07")
        assert (await gateway.get("/v1/accounts/desk/balance"))[1]["held"] == "0.168"
        await holds.close()
        await engine.dispose()


async def test_a_fault_of_ours_is_said_in_the_same_shape(
    town: Town, quotes: Quotes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any) -> None:
        raise KeyError("a fault")

    monkeypatch.setattr("services.balance.api.balance", broken)
    engine = town.rooms.processors["balance"].engine
    gateway = Asking(application(quotes, Holds(engine, town.log), engine))
    status, shown = await gateway.get("/v1/accounts/desk/balance")
    assert (status, shown["error"]["code"], shown["error"]["retry_can_help"]) == (500, "internal_error", False)


async def test_a_connection_that_the_database_cut_is_opened_again(town: Town, gateway: Asking) -> None:
    _, first = await gateway.post("/v1/calls/authorize", PLAN | CALL)
    async with town.database.connected("balance") as other:
        await other.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'test.gateway'"
            " and datname = current_database() and pid <> pg_backend_pid()"
        )
    assert await gateway.post("/v1/calls/authorize", PLAN | CALL) == (200, first)
