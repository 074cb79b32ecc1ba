"""One HTTP call to a receiver: to an address that was looked at, and to no other. It never raises for what a receiver does.

`httpcore` is the client: it follows no redirect, reads no proxy and no credentials from its surroundings, keeps no cookies, and
lets us open the connection. So the addresses of a name are looked up once, all are judged, and the connection goes to one
of them: a second look-up, whose answer could differ, does not happen. TLS and the Host header keep the name.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import certifi
import httpcore

from services.kernel.errors import InvalidInput
from services.runtime.settings import Settings
from services.webhooks.addresses import Allowed, Target, checked_url, networks, refusal_of_all
from services.webhooks.delivering import Answer, retry_after

log = logging.getLogger(__name__)

CALL_S_MAX = 15.0  # all of it: name, connection, TLS, sending, and the head of the answer
CONNECT_S_MAX = 5.0  # for one address, so that the next of a name has its turn
ADDRESSES_MAX = 3  # that are tried, of a name with many
PIECE_BYTES_MAX = 1_000  # of the answer's body: enough for a sentence, no place to keep things
PIECE_S_MAX = 2.0  # the status has decided: nobody waits for the rest
ERROR_CHARACTERS_MAX = 300
# Threads: the system's resolver blocks, longer than a call may take, and a name that does not answer must hold up no other; so
# they are several times the calls at once.
LOOK_UPS_MAX = 512

Lookup = Callable[[str, int], Awaitable[Sequence[str]]]
_look_ups = ThreadPoolExecutor(LOOK_UPS_MAX, thread_name_prefix="webhooks-look-up")


def allowed_by(settings: Settings) -> Allowed:
    """What this installation allows beyond the public Internet."""
    return Allowed(networks(settings.webhooks_allow), settings.webhooks_http)


async def look_up(host: str, port: int) -> list[str]:
    """The addresses of a name, as the system resolves it."""
    found = await asyncio.get_running_loop().run_in_executor(
        _look_ups, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    )
    return list(dict.fromkeys(str(address[0]) for _, _, _, _, address in found))


async def check(url: str, allowed: Allowed, lookup: Lookup = look_up) -> None:
    """Whether a receiver may be registered; `InvalidInput` says what is wrong with its URL or with what its name stands for."""
    target = checked_url(url, allowed)
    try:
        async with asyncio.timeout(CALL_S_MAX):
            addresses = await lookup(target.host, target.port)
    except (OSError, UnicodeError, TimeoutError) as error:
        raise InvalidInput(f"the name {target.host} cannot be looked up ({_said(error)})", field="url") from None
    why = refusal_of_all(addresses, target.port, allowed)
    if why is not None:
        raise InvalidInput(
            f"{why}; a webhook must have a public address, or one that TOLLBOOK_WEBHOOKS_ALLOW allows", field="url"
        )


class Caller:
    """Calls receivers. ``tls`` and ``lookup`` are the system's unless a test has its own."""

    def __init__(self, allowed: Allowed, *, lookup: Lookup = look_up, tls: ssl.SSLContext | None = None) -> None:
        self._allowed = allowed
        self._lookup = lookup
        self._tls = tls or _tls()

    async def call(self, url: str, headers: Mapping[str, str], body: str) -> Answer:
        """POST a body; what came back, or why nothing did. Takes at most `CALL_S_MAX` and `PIECE_S_MAX` together."""
        started = time.monotonic()
        answer = await self._answer(url, headers, body)
        took_ms = int((time.monotonic() - started) * 1000)
        return Answer(answer.status, answer.error, answer.piece, answer.retry_after, took_ms)

    async def _answer(self, url: str, headers: Mapping[str, str], body: str) -> Answer:
        try:
            target = checked_url(url, self._allowed)
            async with asyncio.timeout(CALL_S_MAX) as limit:
                addresses = await self._lookup(target.host, target.port)
                why = refusal_of_all(addresses, target.port, self._allowed)
                if why is not None:
                    return Answer(error=f"not called: {why}")
                return await self._post(target, addresses, headers, body, limit)
        except TimeoutError:
            return Answer(error=f"no answer within {CALL_S_MAX:g} s")
        except InvalidInput as error:
            return Answer(error=f"not called: {error.message}")
        except (OSError, UnicodeError) as error:
            return Answer(error=f"the name cannot be looked up: {_said(error)}")
        except (
            httpcore.NetworkError,
            httpcore.ProtocolError,
            httpcore.TimeoutException,
            httpcore.UnsupportedProtocol,
        ) as error:
            return Answer(error=_said(error))

    async def _post(
        self, target: Target, addresses: Sequence[str], headers: Mapping[str, str], body: str, limit: asyncio.Timeout
    ) -> Answer:
        sent = {
            "Host": target.authority,
            "Content-Type": "application/json",
            "User-Agent": "Tollbook-Webhooks/1",
            "Connection": "close",
            **headers,
        }
        timeouts = {"connect": CONNECT_S_MAX}
        async with (
            httpcore.AsyncConnectionPool(ssl_context=self._tls, network_backend=_To(addresses)) as pool,
            pool.stream(
                "POST",
                _asked(target),
                headers=list(sent.items()),
                content=body.encode(),
                extensions={"timeout": timeouts},
            ) as response,
        ):
            limit.reschedule(None)  # the status is here: a body that never ends changes nothing any more
            asked = next((value for name, value in response.headers if name.lower() == b"retry-after"), b"")
            return Answer(
                status=response.status,
                piece=_text(await _beginning(response)),
                retry_after=retry_after(asked.decode("latin-1"), datetime.now(UTC)),
            )


class _To(httpcore.AnyIOBackend):
    """Connects to the addresses it was made with, whatever name is asked for."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses[:ADDRESSES_MAX]

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - as the client calls it
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        for address in self._addresses[:-1]:
            try:
                return await super().connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await super().connect_tcp(self._addresses[-1], port, timeout, local_address, socket_options)


def _asked(target: Target) -> httpcore.URL:
    """The URL as it was registered: the client's own parser drops what follows a `;` in its last segment, and an empty query."""
    rest = target.url.partition("://")[2][len(target.authority) :]
    return httpcore.URL(
        scheme=urlsplit(target.url).scheme,
        host=target.host,
        port=target.port,
        target=rest if rest.startswith("/") else f"/{rest}",
    )


def _tls() -> ssl.SSLContext:
    """What the system trusts (`SSL_CERT_FILE` names another file: a company's own authority), and what the web trusts."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


async def _beginning(response: httpcore.Response) -> bytes:
    """The first bytes of a body; what is more, or does not come, is left."""
    piece = b""
    try:
        async with asyncio.timeout(PIECE_S_MAX):
            async for chunk in response.aiter_stream():
                piece += chunk[: PIECE_BYTES_MAX - len(piece)]
                if len(piece) >= PIECE_BYTES_MAX:
                    break
    except (TimeoutError, httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException):
        log.debug("a receiver's answer broke off after its head")
    return piece


def _text(raw: bytes) -> str:
    """Bytes of anybody's as text that a database takes."""
    return raw.decode("utf-8", "replace").replace("\0", "\ufffd")


def _said(error: Exception) -> str:
    said = " ".join(str(error).split())
    return _text(f"{type(error).__name__}: {said}".encode("utf-8", "replace"))[:ERROR_CHARACTERS_MAX]
