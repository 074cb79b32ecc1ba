"""Gateways as processes, over real HTTP: what two of them promise, what a crash leaves, and how one ends."""

from __future__ import annotations

import asyncio
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import select

from services.balance import tables
from services.runtime.http_server import CONNECTIONS_MAX
from tests.gateway.conftest import Gateways
from tests.support.balance_factory import Town
from tests.support.http import Connection

CALL = {"account_id": "desk", "call_leg_id": "c1", "called": "+12485252160"}


async def authorize(connection: Connection, call: str, **more: Any) -> Any:
    answered = await connection.post("/v1/calls/authorize", CALL | {"call_leg_id": call} | more)
    assert answered.status == 200, answered
    return answered.body


async def test_64_calls_at_once_over_two_gateways_on_money_for_ten_are_ten(town: Town, gateways: Gateways) -> None:
    await town.account("shop", level_2=True)
    town.open("shop", "0.7139")  # a slice of five minutes costs 0.07, and the minute after ten of them 0.014
    await town.settle()
    await gateways.start("a")
    await gateways.start("b")
    wide = [gateways.to("ab"[number % 2]) for number in range(64)]
    answers = await asyncio.gather(
        *[authorize(each, f"c{number}", account_id="shop") for number, each in enumerate(wide)]
    )
    for each in wide:
        await each.close()
    granted = [each for each in answers if each["decision"] == "granted"]
    assert [each["held"] for each in granted] == ["0.07"] * 10
    assert {each["reason"] for each in answers if each["decision"] == "refused"} == {"insufficient_credit"}
    async with gateways.to("b") as connection:
        balance = (await connection.get("/v1/accounts/shop/balance")).body
        assert (balance["held"], balance["available"]) == ("0.7", "0.0139")
        assert len((await connection.get("/v1/accounts/shop/holds")).body["data"]) == 10


@pytest.mark.parametrize("step", ["balance.holds.written", "balance.holds.committed"])
async def test_a_gateway_that_dies_before_its_answer_is_asked_again_and_holds_once(
    town: Town, gateways: Gateways, step: str
) -> None:
    if step.endswith("written"):
        town.limit(
            "desk", None, 100
        )  # then it is decided under the wallet's lock, in a transaction with several statements
        await town.settle()
    async with await gateways.start("first", crash=step) as connection:
        with pytest.raises(ConnectionError):
            await authorize(connection, "c1")
    await gateways.processes.wait_crashed("first", step)
    rows = await town.rooms.query("balance", select(tables.call))
    assert len(rows) == (1 if step.endswith("committed") else 0)
    async with await gateways.start("second") as connection:
        again = await authorize(connection, "c1")
        assert (again["decision"], again["held"], again["granted_s"]) == ("granted", "0.07", 300)
        assert await authorize(connection, "c1") == again
        balance = (await connection.get("/v1/accounts/desk/balance")).body
        assert (balance["held"], balance["available"]) == ("0.07", "0.93")
    if rows:
        assert again["expires_at"] == rows[0].expires_at.isoformat().replace("+00:00", "Z")


@pytest.mark.parametrize(
    "crash", ["balance.holds.written", "balance.holds.committed:2"]
)  # once without, once with locks
async def test_a_gateway_that_dies_holds_once_of_what_a_group_shares(
    town: Town, gateways: Gateways, crash: str
) -> None:
    for name in ("east", "west"):
        await town.account(name, level_2=True, group="g")
    town.grant("east", "0.1", shared=True)
    await town.settle()
    async with await gateways.start("first", crash=crash) as connection:
        with pytest.raises(ConnectionError):
            await authorize(connection, "c1", account_id="east")
    await gateways.processes.wait_crashed("first", crash.partition(":")[0])
    held = [each.held_nano for each in await town.credits()]
    assert held == ([70_000_000] if "committed" in crash else [0])
    async with await gateways.start("second") as connection:
        again = await authorize(connection, "c1", account_id="east")
        assert (again["decision"], again["held"], again["granted_s"]) == ("granted", "0.07", 300)
        assert await authorize(connection, "c1", account_id="east") == again
        other = await authorize(connection, "c2", account_id="west")
        assert (other["held"], other["granted_s"]) == ("0.028", 120)
        balances = [(await connection.get(f"/v1/accounts/{name}/balance")).body for name in ("east", "west")]
        assert [(each["held"], each["held_by_others"], each["available"]) for each in balances] == [
            ("0.07", "0.028", "0.002"), ("0.028", "0.07", "0.002")
        ]  # fmt: skip
    await town.assert_credits_conserved()


async def test_a_crowd_that_says_nothing_keeps_nobody_out(town: Town, gateways: Gateways) -> None:
    async with await gateways.start() as connection:
        crowd = [
            await asyncio.open_connection("127.0.0.1", gateways.ports["gateway"]) for _ in range(CONNECTIONS_MAX + 100)
        ]
        for _, writer in crowd:
            writer.write(b"POST /v1/calls/authorize HTTP/1.1\r\nhost: ")
        assert (await authorize(connection, "c1"))["decision"] == "granted"
        held = len(psutil.Process(gateways.processes.running["gateway"].pid).net_connections("tcp"))
        assert held < CONNECTIONS_MAX + 50
        for _, writer in crowd:
            writer.close()


async def test_requests_are_counted_by_path_and_status(town: Town, gateways: Gateways) -> None:
    async with await gateways.start() as connection:
        for call in ("c1", "c2"):
            await authorize(connection, call)
        assert (await connection.get("/v1/accounts/desk/balance")).status == 200
        assert (await connection.get("/v1/accounts/nobody/balance")).status == 404
        assert (await connection.get("/v1/nothing/at/all")).status == 404
        counted = {
            (each.labels["method"], each.labels["path"], each.labels["status"]): each.value
            for family in text_string_to_metric_families((await connection.get("/metrics")).body)
            for each in family.samples
            if each.name == "tollbook_http_request_seconds_count" and each.labels["path"] not in ("/ready", "/live")
        }
        balance = "/v1/accounts/{account_id}/balance"
        assert counted == {
            ("POST", "/v1/calls/authorize", "200"): 2,
            ("GET", balance, "200"): 1,
            ("GET", balance, "404"): 1,
            ("", "", "404"): 1,
        }


async def test_a_gateway_answers_what_it_was_asked_before_it_stops(town: Town, gateways: Gateways) -> None:
    await gateways.start()
    wide = [gateways.to() for _ in range(32)]
    for each in wide:
        assert (await each.get("/live")).status == 200
    asked = [asyncio.create_task(authorize(each, f"c{number}", seconds=1)) for number, each in enumerate(wide)]
    await asyncio.sleep(0)
    gateways.processes.running["gateway"].terminate()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert gateways.processes.stop("gateway") == {"gateway": 0}
    granted = [each for each in answers if isinstance(each, dict)]
    rows = await town.rooms.query("balance", select(tables.call))
    assert len(rows) == len(granted)  # nobody was promised anything without being told
    assert all(isinstance(each, dict | ConnectionError) for each in answers)
    for each in wide:
        await each.close()
