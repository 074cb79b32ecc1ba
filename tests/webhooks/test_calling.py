"""The connection itself: TLS to the name of the URL, at the address that was judged, and no second look-up."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pytest

from services.kernel.errors import InvalidInput
from services.runtime.settings import load
from services.webhooks.addresses import Allowed, networks
from services.webhooks.calling import Caller, allowed_by, check, look_up
from tests.support.receiver import Receiver

# A key and a certificate for hooks.example.test until 2126, known to these tests alone: openssl req -x509 -newkey ec …
CERTIFICATE = Path(__file__).parents[1] / "support" / "receiver.pem"
NAME = "hooks.example.test"
LOOPBACK = Allowed(networks("127.0.0.0/8"))


@pytest.fixture
def tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


@pytest.fixture
def looked_up(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every name that this process asks the system's resolver for."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def noted(host: str, *arguments: object, **more: object) -> object:
        asked.append(str(host))
        return real(host, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", noted)
    return asked


async def at_the_loopback(host: str, port: int) -> list[str]:
    return ["127.0.0.1"]


async def test_tls_is_to_the_name_and_the_connection_to_the_judged_address(
    tls: ssl.SSLContext, looked_up: list[str]
) -> None:
    async with Receiver(tls=tls) as receiver:
        caller = Caller(LOOPBACK, lookup=at_the_loopback, tls=ssl.create_default_context(cafile=str(CERTIFICATE)))
        answer = await caller.call(f"https://{NAME}:{receiver.port}/x", {"webhook-id": "msg_1"}, "{}")
        assert (answer.status, answer.error) == (200, None)
        assert receiver.names == [NAME]
        assert receiver.requests[0].headers["host"] == f"{NAME}:{receiver.port}"
        assert receiver.requests[0].path == "/x"
    assert NAME not in looked_up  # the name was looked up once, by us, and nobody asked the system for it again


@pytest.mark.parametrize(
    ("url", "trusts_it"), [("https://hooks.example.test:{}/", False), ("https://other.example.test:{}/", True)]
)
async def test_a_certificate_that_is_not_trusted_or_of_another_name_is_refused(
    tls: ssl.SSLContext, url: str, trusts_it: bool
) -> None:
    async with Receiver(tls=tls) as receiver:
        trusted = ssl.create_default_context(cafile=str(CERTIFICATE)) if trusts_it else None
        answer = await Caller(LOOPBACK, lookup=at_the_loopback, tls=trusted).call(url.format(receiver.port), {}, "{}")
        assert answer.status is None
        assert "certificate" in (answer.error or "").lower()
        assert receiver.requests == []


@pytest.mark.parametrize("path", ["/a/b;c=d/e;f=g?h=i;j", "/x?", "/x;", "/", "/%2F;%3B?a=%3F", ""])
async def test_the_path_is_asked_for_as_it_was_registered(receiver: Receiver, path: str) -> None:
    caller = Caller(Allowed(LOOPBACK.networks, http=True), lookup=at_the_loopback)
    assert (await caller.call(f"http://{NAME}:{receiver.port}{path}", {}, "{}")).status == 200
    assert receiver.requests[0].path == path or "/"


async def test_the_next_address_of_a_name_is_tried_when_one_does_not_answer(receiver: Receiver) -> None:
    async def two(host: str, port: int) -> list[str]:
        return ["127.0.0.2", "127.0.0.1"]  # the receiver listens at the second alone

    allowed = Allowed(LOOPBACK.networks, http=True)
    assert (await Caller(allowed, lookup=two).call(f"http://{NAME}:{receiver.port}/", {}, "{}")).status == 200


async def test_a_literal_address_is_judged_like_a_name(receiver: Receiver) -> None:
    caller = Caller(Allowed(http=True))
    for host in ("127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433"):
        answer = await caller.call(f"http://{host}:{receiver.port}/", {}, "{}")
        assert (answer.error or "").startswith("not called: ")
    assert receiver.connections == 0


async def test_a_name_that_there_is_not_is_told_when_an_endpoint_is_made_and_when_it_is_called() -> None:
    async def nowhere(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(InvalidInput, match=r"url: the name hooks\.example\.test cannot be looked up"):
        await check(f"https://{NAME}/", LOOPBACK, nowhere)
    answer = await Caller(LOOPBACK, lookup=nowhere).call(f"https://{NAME}/", {}, "{}")
    assert (answer.error or "").startswith("the name cannot be looked up")
    with pytest.raises(InvalidInput, match=r"url: 127\.0\.0\.1 is loopback; a webhook must have a public address"):
        await check("https://127.0.0.1/", Allowed(), look_up)


async def test_surroundings_name_no_proxy_for_us(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/")
    assert (await Caller(Allowed(LOOPBACK.networks, http=True)).call(receiver.url, {}, "{}")).status == 200


def test_the_settings_say_what_is_allowed_and_a_wrong_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert allowed_by(load()) == Allowed()
    monkeypatch.setenv("TOLLBOOK_WEBHOOKS_ALLOW", "10.1.0.0/16, ::1")
    monkeypatch.setenv("TOLLBOOK_WEBHOOKS_HTTP", "1")
    assert allowed_by(load()) == Allowed(networks("10.1.0.0/16,::1"), http=True)
    monkeypatch.setenv("TOLLBOOK_WEBHOOKS_ALLOW", "hooks.example.com")
    with pytest.raises(InvalidInput, match="TOLLBOOK_WEBHOOKS_ALLOW"):
        allowed_by(load())
