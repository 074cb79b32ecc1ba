"""Deliveries to a real receiver that is well, slow, dead or rude: order, retries, independence, and what is noted."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.kernel.errors import NotFound, Refused
from services.runtime.database import transaction
from services.webhooks import api, courier, store
from services.webhooks.addresses import Allowed, networks
from services.webhooks.calling import Caller
from services.webhooks.delivering import WAITS
from tests.support.receiver import LOOPBACK, OK, Answer, Received, Receiver, status
from tests.webhooks.post import Post

SECOND = timedelta(seconds=1)


async def endpoint(post: Post, receiver: Receiver, path: str = "", **more: Any) -> api.NewSecret:
    return await api.create(post.engine, "lakeside", receiver.url + path, "ann", LOOPBACK, **more)


def script(*answers: Answer) -> Any:
    """These answers one after the other, then 200 for ever."""
    left = list(answers)
    return lambda _: left.pop(0) if left else OK


async def test_a_receiver_verifies_what_it_gets_by_the_library_of_the_specification(
    post: Post, receiver: Receiver
) -> None:
    made = await endpoint(post, receiver)
    post.happens(amount="12.50", currency="USD")
    await post.deliver()
    (received,) = receiver.requests
    sent = received.verified(made.secret)
    assert sent["type"] == "balance.suspended"
    assert sent["timestamp"] == "2026-10-31T23:50:00Z"
    assert sent["data"]["amount"] == "12.50"
    assert received.headers["content-type"] == "application/json"
    assert received.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert await post.states(made.endpoint_id) == [("delivered", 1)]


@pytest.mark.parametrize(
    ("answer", "status_", "error"),
    [
        (status(500, body="out of order"), 500, None),
        (status(404), 404, None),
        (status(301, location="https://hooks.example.com/"), 301, None),
        (None, None, "RemoteProtocolError"),
        (b"this is no HTTP\r\n\r\n", None, "RemoteProtocolError"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\n\r\n", None, "RemoteProtocolError"),
    ],
    ids=["500", "404", "redirect", "closes", "no HTTP", "endless header"],
)
async def test_what_is_no_2xx_is_tried_again_with_the_same_id_and_bytes_and_noted(
    post: Post, receiver: Receiver, answer: Answer, status_: int | None, error: str | None
) -> None:
    made = await endpoint(post, receiver)
    receiver.answer = script(answer)
    post.happens()
    await post.deliver()
    assert await post.states(made.endpoint_id) == [("waiting", 1)]
    (waiting,) = await api.deliveries(post.engine, made.endpoint_id)
    assert waiting.next_at is not None
    assert waiting.last_at is not None
    assert waiting.next_at - waiting.last_at == WAITS[0]
    await post.deliver(after=SECOND)
    assert len(receiver.requests) == 1
    await post.deliver(after=WAITS[0] - SECOND)
    first, second = receiver.requests
    assert (first.id, first.body) == (second.id, second.body)
    second.verified(made.secret)
    assert await post.states(made.endpoint_id) == [("delivered", 2)]
    noted, taken = await api.attempts(post.engine, made.endpoint_id, first.id)
    assert noted.status == status_
    assert (noted.error is None) == (error is None)
    assert error is None or (noted.error or "").startswith(error)
    assert (taken.status, taken.piece) == (200, "taken")


async def test_a_redirect_is_never_followed(post: Post, receiver: Receiver) -> None:
    async with Receiver() as elsewhere:
        await endpoint(post, receiver)
        receiver.answer = lambda _: status(307, location=elsewhere.url)
        post.happens()
        await post.deliver()
        assert len(receiver.requests) == 1
        assert elsewhere.connections == 0


async def test_each_endpoint_is_in_strict_order_whatever_fails(post: Post, receiver: Receiver) -> None:
    made = await endpoint(post, receiver)
    failing = {2: 3, 5: 1}  # the number of an event → how often it fails

    def answer(received: Received) -> Answer:
        version = received.json["data"]["version"]
        failing[version] = failing.get(version, 0) - 1
        return status(503) if failing[version] >= 0 else OK

    receiver.answer = answer
    for _ in range(6):
        post.happens()
    for after in (timedelta(0), *WAITS[:4]):
        await post.deliver(after=after)
    assert [each.json["data"]["version"] for each in receiver.requests] == [1, 2, 2, 2, 2, 3, 4, 5, 5, 6]
    assert await post.states(made.endpoint_id) == [
        ("delivered", 1),
        ("delivered", 4),
        ("delivered", 1),
        ("delivered", 1),
        ("delivered", 2),
        ("delivered", 1),
    ]


async def test_two_workers_keep_the_order_and_never_call_an_endpoint_at_once(post: Post, receiver: Receiver) -> None:
    paths = ["one", "two"]
    for path in paths:
        await endpoint(post, receiver, path)
    receiver.answer = lambda _: 0.002
    other = post.another_courier()
    for _ in range(12):
        post.happens()
        await post.arrive()
        await post.courier.look(post.town.rooms.processors["webhooks"])
        await other.look(post.town.rooms.processors["webhooks"])
    await post.round(post.courier, other)
    for path in paths:
        versions = [each.json["data"]["version"] for each in receiver.requests if each.path == f"/{path}"]
        assert versions == list(range(1, 13))
        assert receiver.open_max[f"/{path}"] == 1


async def test_a_slow_and_a_dead_endpoint_hold_up_nobody(post: Post, receiver: Receiver) -> None:
    released = asyncio.Event()
    receiver.answer = lambda received: released if received.path.startswith("/slow") else OK
    slow = [await endpoint(post, receiver, f"slow{number}") for number in range(3)]
    dead = await api.create(post.engine, "lakeside", "http://127.0.0.1:9/", "ann", LOOPBACK)
    well = await endpoint(post, receiver, "well")
    for _ in range(8):
        post.happens()
    await post.arrive()
    processor = post.town.rooms.processors["webhooks"]
    while len(receiver.ids("/well")) < 8:  # the slow ones answer nothing before that
        await post.courier.look(processor)
        await asyncio.sleep(0.01)
    assert [len(receiver.ids(f"/slow{number}")) for number in range(3)] == [1, 1, 1]
    released.set()
    await post.round()
    for each in [*slow, well]:
        assert await post.states(each.endpoint_id) == [("delivered", 1)] * 8
    assert await post.states(dead.endpoint_id) == [("waiting", 1)] + [("waiting", 0)] * 7


async def test_a_receiver_that_says_nothing_is_cut_off_and_tried_again(
    post: Post, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.webhooks.calling.CALL_S_MAX", 0.3)
    made = await endpoint(post, receiver)
    receiver.answer = script(30.0)
    post.happens()
    await post.deliver()
    (attempt,) = await api.attempts(post.engine, made.endpoint_id, receiver.ids()[0])
    assert (attempt.status, attempt.error) == (None, "no answer within 0.3 s")
    await post.deliver(after=WAITS[0])
    assert await post.states(made.endpoint_id) == [("delivered", 2)]


async def test_an_answer_that_never_ends_is_an_answer_and_only_its_beginning_is_kept(
    post: Post, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.webhooks.calling.PIECE_S_MAX", 0.2)
    made = await endpoint(post, receiver)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n"
    receiver.answer = script(head + b"x" * 500_000, head + b"\xff\x00begun")
    for _ in range(2):
        post.happens()
    await post.deliver()
    assert await post.states(made.endpoint_id) == [("delivered", 1)] * 2
    pieces = [(await api.attempts(post.engine, made.endpoint_id, each))[0].piece for each in receiver.ids()]
    assert pieces == ["x" * 1_000, "\ufffd\ufffdbegun"]


async def test_a_delivery_is_tried_ten_times_within_days_and_then_the_next_one_goes(
    post: Post, receiver: Receiver
) -> None:
    made = await endpoint(post, receiver)
    receiver.answer = lambda received: status(500) if received.json["data"]["version"] == 1 else OK
    for _ in range(2):
        post.happens()
    await post.deliver()
    for wait in WAITS:
        assert (await post.states(made.endpoint_id))[1] == ("waiting", 0)
        await post.deliver(after=wait)
    assert await post.states(made.endpoint_id) == [("given_up", 10), ("delivered", 1)]
    (found,) = await api.endpoints(post.engine)
    assert (found.state, found.waiting, found.failing_since) == ("enabled", 0, None)


async def test_an_endpoint_that_takes_nothing_for_days_is_disabled_and_it_is_told_to_the_others(
    post: Post, receiver: Receiver
) -> None:
    made = await endpoint(post, receiver, "dead")
    other = await endpoint(post, receiver, "other", types=["webhook.endpoint_disabled"])
    receiver.answer = lambda received: None if received.path == "/dead" else OK
    for _ in range(4):
        post.happens()
    await post.deliver()
    for wait in [*WAITS, *WAITS]:
        await post.deliver(after=wait)
    assert await post.states(made.endpoint_id) == [("given_up", 10), ("given_up", 10), ("given_up", 0), ("given_up", 0)]
    found = await api.endpoint(post.engine, made.endpoint_id)
    assert (found.state, found.waiting) == ("disabled", 0)
    assert (found.disabled_reason or "").startswith("nothing was taken since")
    (told,) = [each for each in receiver.requests if each.path == "/other"]
    sent = told.verified(other.secret)
    assert sent["data"]["endpoint_id"] == made.endpoint_id
    assert sent["data"]["deliveries_given_up"] == 2
    post.happens()
    await post.deliver()
    assert len(await post.states(made.endpoint_id)) == 4
    assert [each.action for each in await api.actions(post.engine, made.endpoint_id)] == ["disabled", "created"]


async def test_gone_disables_at_once(post: Post, receiver: Receiver) -> None:
    made = await endpoint(post, receiver)
    receiver.answer = lambda _: status(410)
    for _ in range(3):
        post.happens()
    await post.deliver()
    assert len(receiver.requests) == 1
    found = await api.endpoint(post.engine, made.endpoint_id)
    assert (found.state, found.disabled_reason) == ("disabled", "it answered 410 Gone")
    assert await post.states(made.endpoint_id) == [("given_up", 1), ("given_up", 0), ("given_up", 0)]


async def test_retry_after_is_kept_to(post: Post, receiver: Receiver) -> None:
    await endpoint(post, receiver)
    receiver.answer = script(status(429, retry_after="60"))
    post.happens()
    await post.deliver()
    await post.deliver(after=timedelta(seconds=59))
    assert len(receiver.requests) == 1
    await post.deliver(after=SECOND)
    assert len(receiver.requests) == 2


async def test_during_a_rotation_both_secrets_verify_and_afterwards_the_new_one_alone(
    post: Post, receiver: Receiver
) -> None:
    old = await endpoint(post, receiver)
    new = await api.rotate(post.engine, old.endpoint_id, "ann", timedelta(hours=1))
    post.happens()
    await post.deliver()
    for secret in (old.secret, new.secret):
        receiver.requests[0].verified(secret)
    post.happens()
    await post.deliver(after=timedelta(hours=1))
    receiver.requests[1].verified(new.secret)
    assert len(receiver.requests[1].headers["webhook-signature"].split()) == 1
    newest = await api.rotate(post.engine, old.endpoint_id, "ann", timedelta(0))
    post.happens()
    await post.deliver()
    receiver.requests[2].verified(newest.secret)
    assert len(receiver.requests[2].headers["webhook-signature"].split()) == 1


async def test_a_worker_that_dies_after_the_call_has_it_made_again_when_its_lease_is_over(
    post: Post, receiver: Receiver
) -> None:
    made = await endpoint(post, receiver)
    post.happens()
    post.happens()
    await post.arrive()
    (parcel,) = await courier._take(post.engine, 10)
    await post.courier._call(parcel)  # and nobody notes it
    await post.round()
    assert len(receiver.requests) == 1
    await post.deliver(after=timedelta(seconds=courier.LEASE_S))
    first, second, third = receiver.requests
    assert first.id == second.id != third.id
    assert await post.states(made.endpoint_id) == [("delivered", 1), ("delivered", 1)]


async def test_what_is_noted_after_its_lease_changes_nothing(post: Post, receiver: Receiver) -> None:
    made = await endpoint(post, receiver)
    post.happens()
    await post.arrive()
    (parcel,) = await courier._take(post.engine, 10)
    answer = await post.courier._call(parcel)
    await post.deliver(after=timedelta(seconds=courier.LEASE_S))
    assert await post.states(made.endpoint_id) == [("delivered", 1)]
    assert await post.courier._note(post.engine, parcel, answer, go_on=True) is None
    assert await post.states(made.endpoint_id) == [("delivered", 1)]


async def test_what_arrives_while_it_is_noted_that_nothing_more_waits_is_not_forgotten(
    post: Post, receiver: Receiver
) -> None:
    made = await endpoint(post, receiver)
    post.happens()
    await post.arrive()
    (parcel,) = await courier._take(post.engine, 10)
    answer = await post.courier._call(parcel)
    async with transaction(post.engine) as connection:
        await courier.note(connection, parcel, answer, 0.0)
        post.happens()
        arriving = asyncio.create_task(post.arrive())
        await asyncio.wait({arriving}, timeout=0.5)
    await arriving
    await post.round()
    assert await post.states(made.endpoint_id) == [("delivered", 1), ("delivered", 1)]


@pytest.mark.parametrize("what", ["disable", "delete"])
async def test_an_endpoint_can_be_disabled_or_deleted_while_it_is_being_called(
    post: Post, receiver: Receiver, what: str
) -> None:
    made = await endpoint(post, receiver)
    released = asyncio.Event()
    receiver.answer = lambda _: released
    post.happens()
    post.happens()
    await post.arrive()
    await post.courier.look(post.town.rooms.processors["webhooks"])
    await receiver.asked.wait()
    if what == "disable":
        assert await api.disable(post.engine, made.endpoint_id, "ann", "maintenance") == 2
    else:
        await api.delete(post.engine, made.endpoint_id, "ann")
    released.set()
    await post.courier.rest()
    await post.round()
    assert len(receiver.requests) == 1
    if what == "disable":
        assert await post.states(made.endpoint_id) == [("given_up", 0)] * 2
    else:
        with pytest.raises(NotFound):
            await api.endpoint(post.engine, made.endpoint_id)


async def test_a_message_that_cannot_be_sent_counts_as_failed_and_is_not_repeated_for_ever(
    post: Post, receiver: Receiver
) -> None:
    made = await endpoint(post, receiver)
    async with post.town.database.connected("webhooks") as connection:
        await connection.execute("update webhooks.endpoint set secret = 'whsec_'")  # no key: signing raises
    post.happens()
    await post.deliver()
    (waiting,) = await api.deliveries(post.engine, made.endpoint_id)
    assert (waiting.state, waiting.attempts, waiting.status) == ("waiting", 1, None)
    assert receiver.requests == []


# ---- what people ask -----------------------------------------------------------------------------------------------


async def test_what_was_missed_while_disabled_is_sent_again_in_order_when_asked_for(
    post: Post, receiver: Receiver
) -> None:
    made = await endpoint(post, receiver, types=["balance.suspended"])
    post.happens()
    await post.deliver()
    receiver.answer = lambda _: status(500)
    post.happens()
    await post.deliver()
    await post.town.move(SECOND)
    await api.disable(post.engine, made.endpoint_id, "ann", "moving house")  # which gives up what waits
    receiver.answer = lambda _: OK
    with pytest.raises(Refused, match="enable it first"):
        await api.send_test(post.engine, made.endpoint_id, "ann")
    post.happens()
    post.happens(kind="restored")
    post.happens()
    await post.deliver()
    since = await api.enable(post.engine, made.endpoint_id, "ann", LOOPBACK)
    post.happens()
    await post.arrive()
    assert await api.resend(post.engine, made.endpoint_id, "ann", since=since) == 3
    await post.deliver()
    assert [each.json["data"]["version"] for each in receiver.requests] == [1, 2, 6, 2, 3, 5]
    assert await api.resend(post.engine, made.endpoint_id, "ann", since=since) == 0


async def test_much_that_is_sent_again_is_queued_piece_by_piece(
    post: Post, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events of all organizations wait while an endpoint is held: 200,000 that were missed held them up for 24 seconds."""
    monkeypatch.setattr(api, "RESENT_AT_ONCE", 2)
    made = await endpoint(post, receiver)
    since = datetime(2026, 1, 1, tzinfo=UTC)
    await api.disable(post.engine, made.endpoint_id, "ann", "moving house")
    versions = [post.happens() for _ in range(5)]
    await post.arrive()
    await api.enable(post.engine, made.endpoint_id, "ann", LOOPBACK)
    committed: list[int] = []
    find = store.events_to_resend

    async def noted(*arguments: Any, **more: Any) -> Any:
        committed.append(len(await post.states(made.endpoint_id)))
        return await find(*arguments, **more)

    monkeypatch.setattr(store, "events_to_resend", noted)
    assert await api.resend(post.engine, made.endpoint_id, "ann", since=since) == 5
    assert committed == [0, 2, 4]
    await post.deliver()
    assert [each.json["data"]["version"] for each in receiver.requests] == versions
    (logged, *_) = await api.actions(post.engine, made.endpoint_id)
    assert logged.detail.startswith("5 events: since ")
    assert await api.resend(post.engine, made.endpoint_id, "ann", event_ids=receiver.ids()) == 5, "by name at once"


async def test_an_event_that_is_sent_again_keeps_its_id_and_its_history(post: Post, receiver: Receiver) -> None:
    made = await endpoint(post, receiver)
    post.happens()
    await post.deliver()
    (event_id,) = receiver.ids()
    assert await api.resend(post.engine, made.endpoint_id, "ann", event_ids=[event_id]) == 1
    assert await api.resend(post.engine, made.endpoint_id, "ann", event_ids=[event_id]) == 0  # it waits already
    await post.deliver()
    assert receiver.ids() == [event_id, event_id]
    assert [each.number for each in await api.attempts(post.engine, made.endpoint_id, event_id)] == [1, 2]
    with pytest.raises(NotFound, match="no event msg_of_nobody"):
        await api.resend(post.engine, made.endpoint_id, "ann", event_ids=["msg_of_nobody"])


@pytest.mark.parametrize("by", ["resend", "resend since", "test"])
async def test_who_has_mended_a_receiver_need_not_wait_for_the_next_try(
    post: Post, receiver: Receiver, by: str
) -> None:
    made = await endpoint(post, receiver)
    receiver.answer = lambda _: status(500)
    versions = [post.happens() for _ in range(2)]
    for wait in (timedelta(0), *WAITS[:5]):
        await post.deliver(after=wait)  # then the next try is in ten hours
    (first, *_) = receiver.ids()
    tried = len(receiver.ids())
    await post.town.move(SECOND)
    if by == "resend":
        assert await api.resend(post.engine, made.endpoint_id, "ann", event_ids=[first]) == 0  # it waits already
    elif by == "resend since":
        assert await api.resend(post.engine, made.endpoint_id, "ann", since=datetime(2026, 1, 1, tzinfo=UTC)) == 0
    else:
        await api.send_test(post.engine, made.endpoint_id, "ann")
    await post.round()
    assert len(receiver.ids()) == tried + 1, "it is tried at once"
    (waiting, *_) = reversed(await api.deliveries(post.engine, made.endpoint_id))
    assert waiting.next_at is not None
    assert waiting.last_at is not None
    assert waiting.next_at - waiting.last_at == 5 * SECOND, "with all its tries anew"
    receiver.answer = lambda _: OK
    await post.deliver(after=5 * SECOND)
    assert [each.json["data"].get("version") for each in receiver.requests[tried + 1 :]] == [
        *versions, *([None] if by == "test" else []),
    ]  # fmt: skip


async def test_a_test_is_sent_whatever_is_asked_for(post: Post, receiver: Receiver) -> None:
    made = await endpoint(post, receiver, types=["invoice.closed"])
    event_id = await api.send_test(post.engine, made.endpoint_id, "ann")
    await post.round()
    assert receiver.ids() == [event_id]
    assert receiver.requests[0].verified(made.secret)["type"] == "webhook.test"


async def test_an_address_is_judged_again_at_each_call(post: Post, receiver: Receiver) -> None:
    made = await endpoint(post, receiver)
    post.caller._allowed = Allowed(networks("10.0.0.0/8"), http=True)  # the installation allows it no more
    post.happens()
    await post.deliver()
    (waiting,) = await api.deliveries(post.engine, made.endpoint_id)
    assert waiting.error == "not called: 127.0.0.1 is loopback"
    assert receiver.connections == 0


async def test_a_caller_that_resolves_a_name_anew_never_connects_to_what_was_not_judged(receiver: Receiver) -> None:
    answers = [["127.0.0.1"], ["10.0.0.1"], ["127.0.0.1", "10.0.0.1"]]

    async def rebinding(host: str, port: int) -> list[str]:
        return answers.pop(0)

    caller = Caller(LOOPBACK, lookup=rebinding)
    url = f"http://hooks.example.com:{receiver.port}/"
    first = await caller.call(url, {}, "{}")
    assert first.status == 200
    assert receiver.requests[0].headers["host"] == f"hooks.example.com:{receiver.port}"
    assert len(answers) == 2  # one look-up a call
    for _ in range(2):
        assert (await caller.call(url, {}, "{}")).error == "not called: 10.0.0.1 is private"
    assert receiver.connections == 1
