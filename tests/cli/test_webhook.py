"""`tollbook webhook` as people and scripts use it: what it prints, what it refuses, and that a secret is shown once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.webhooks import api
from tests.cli.conftest import Tollbook
from tests.support.receiver import LOOPBACK, Receiver, status
from tests.support.servers import Database
from tests.webhooks.post import Post


@pytest.fixture
async def post(database: Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Post]:
    more = {"TOLLBOOK_WEBHOOKS_ALLOW": "127.0.0.0/8", "TOLLBOOK_WEBHOOKS_HTTP": "1", "TOLLBOOK_ACTOR": "ann"}
    for name, value in database.environment(**more).items():
        monkeypatch.setenv(name, value)
    async with Post(database) as made:
        await made.account("sales")
        yield made


async def test_a_receiver_from_its_creation_to_its_end(post: Post, tollbook: Tollbook) -> None:
    async with Receiver() as receiver:
        ran = await tollbook(
            "webhook",
            "create",
            "lakeside",
            receiver.url,
            "--type",
            "balance.suspended",
            "--account",
            "sales",
            "-o",
            "json",
        )
        assert ran.code == 0, ran.err
        endpoint, secret = ran.json["endpoint_id"], ran.json["secret"]
        post.happens()
        post.happens(kind="restored")
        await post.deliver()
        assert receiver.requests[0].verified(secret)["type"] == "balance.suspended"
        (delivery,) = (await tollbook("webhook", "deliveries", endpoint, "-o", "json")).json
        assert (delivery["state"], delivery["attempts"], delivery["status"]) == ("delivered", 1, 200)
        ran = await tollbook("webhook", "deliveries", endpoint, "--event", delivery["event_id"], "-o", "json")
        assert ran.json["body"] == receiver.requests[0].body
        assert [each["status"] for each in ran.json["attempts"]] == [200]

        new = (await tollbook("webhook", "rotate", endpoint, "--overlap", "1", "-o", "json")).json["secret"]
        assert new != secret
        assert (await tollbook("webhook", "resend", endpoint, delivery["event_id"], "-o", "json")).json["queued"] == 1
        await post.round()
        for each in (secret, new):
            receiver.requests[1].verified(each)

        assert (await tollbook("webhook", "disable", endpoint)).code == 2  # without a reason
        assert (await tollbook("webhook", "disable", endpoint, "--reason", "moving")).code == 0
        post.happens()
        await post.deliver()
        ran = await tollbook("webhook", "enable", endpoint)
        command = ran.out.partition("tollbook ")[2].split()
        assert command[:4] == ["webhook", "resend", endpoint, "--since"]
        assert (await tollbook(*command)).out == "1 event queued again\n"

        shown = await tollbook("webhook", "show", endpoint, "-o", "json")
        assert [each["action"] for each in shown.json["log"]] == [
            "resent", "enabled", "disabled", "resent", "rotated", "created",
        ]  # fmt: skip
        assert {each["actor"] for each in shown.json["log"]} == {"ann"}
        listed = await tollbook("webhook", "list", "--organization", "lakeside", "-o", "json")
        assert [each["endpoint_id"] for each in listed.json] == [endpoint]
        for ran in (shown, listed, await tollbook("webhook", "list"), await tollbook("webhook", "show", endpoint)):
            assert "whsec_" not in ran.out
        assert (await tollbook("webhook", "delete", endpoint)).code == 0
        assert (await tollbook("webhook", "list", "-o", "json")).json == []


async def test_a_test_says_what_the_receiver_answers(post: Post, tollbook: Tollbook) -> None:
    async def running() -> None:
        while True:
            await post.courier.look(post.town.rooms.processors["webhooks"])
            await asyncio.sleep(0.02)

    async with Receiver() as receiver:
        made = (await tollbook("webhook", "create", "lakeside", receiver.url, "-o", "json")).json
        worker = asyncio.create_task(running())
        try:
            ran = await tollbook("webhook", "test", made["endpoint_id"], "-o", "json")
            assert (ran.code, ran.json["status"], ran.json["piece"]) == (0, 200, "taken")
            receiver.requests[0].verified(made["secret"])
            receiver.answer = lambda _: status(401, body="who are you")
            ran = await tollbook("webhook", "test", made["endpoint_id"])
            assert ran.code == 1
            assert "status 401" in ran.out
            assert "who are you" in ran.out
        finally:
            worker.cancel()


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["create", "lakeside", "http://10.0.0.1/"], 2, "url: 10.0.0.1 is private; a webhook must have a public address"),
        (["create", "lakeside", "https://a:b@hooks.example.com/"], 2, "url: must not hold a user or a password"),
        (["create", "lakeside", "http://127.0.0.1:1/", "--type", "x"], 2, "type: there is no type 'x'; the types are balance."),
        (
            ["create", "lakeside", "http://127.0.0.1:1/", "--account", "sales", "--type", "invoice.closed"],
            2,
            "type: invoice.closed is not told of single accounts",
        ),
        (["create", "nobody", "http://127.0.0.1:1/"], 1, "organization: no account of an organization 'nobody' is known"),
        (["create", "lakeside", "http://127.0.0.1:1/", "--account", "x"], 1, "account: lakeside has no account 'x'"),
        (["show", "ep_0"], 1, "ENDPOINT: there is no endpoint 'ep_0'; see `tollbook webhook list`"),
        (["resend", "ep_0"], 2, "EVENT: name events, or since when"),
        (["deliveries", "ep_0", "--state", "lost"], 2, "state: must be one of waiting, delivered, given_up"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_named_with_the_fix(
    post: Post, tollbook: Tollbook, arguments: list[str], code: int, sentence: str
) -> None:
    ran = await tollbook("webhook", *arguments)
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.startswith(sentence)


async def test_the_twenty_first_endpoint_of_an_organization_is_refused(post: Post, tollbook: Tollbook) -> None:
    for number in range(api.ENDPOINTS_MAX):
        await api.create(post.engine, "lakeside", f"http://127.0.0.1:{number + 1}/", "ann", LOOPBACK)
    ran = await tollbook("webhook", "create", "lakeside", "http://127.0.0.1:1/")
    assert (ran.code, ran.err) == (1, "organization: lakeside has 20 endpoints; delete one first\n")


async def test_types_are_listed_without_a_server(tollbook: Tollbook) -> None:
    ran = await tollbook("webhook", "types", "-o", "json")
    assert {"balance.suspended", "invoice.closed"} <= set(ran.json)
