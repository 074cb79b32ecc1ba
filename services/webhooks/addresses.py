"""Which addresses a webhook may call: a customer names the URL, and must not reach what only we can reach. Pure.

Two looks: `checked_url` when an endpoint is made, and `refusal` of each address that the name has, when an endpoint is made
and again at each call. Source: the special-purpose address registries of IANA (IPv4 and IPv6).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

from services.kernel.errors import InvalidInput

Network = IPv4Network | IPv6Network

URL_CHARACTERS_MAX = 2_000
PORTS = frozenset({443, 8443})
"""Where the public Internet takes HTTPS. Any other port of it would make us a port scanner for who names the URL."""
HTTP_PORTS = frozenset({80, 8080})
"""As well, where plain HTTP is allowed."""

REFUSED_IPV4: dict[IPv4Network, str] = {
    IPv4Network("0.0.0.0/8"): "this host",
    IPv4Network("10.0.0.0/8"): "private",
    IPv4Network("100.64.0.0/10"): "shared by a carrier, or a cloud's metadata",
    IPv4Network("127.0.0.0/8"): "loopback",
    IPv4Network("168.63.129.16/32"): "a cloud's metadata",
    IPv4Network("169.254.0.0/16"): "link-local, or a cloud's metadata",
    IPv4Network("172.16.0.0/12"): "private",
    IPv4Network("192.0.0.0/24"): "reserved, or a cloud's metadata",
    IPv4Network("192.0.2.0/24"): "for documentation",
    IPv4Network("192.31.196.0/24"): "reserved",
    IPv4Network("192.52.193.0/24"): "reserved",
    IPv4Network("192.88.99.0/24"): "a relay",
    IPv4Network("192.168.0.0/16"): "private",
    IPv4Network("192.175.48.0/24"): "reserved",
    IPv4Network("198.18.0.0/15"): "for benchmarks",
    IPv4Network("198.51.100.0/24"): "for documentation",
    IPv4Network("203.0.113.0/24"): "for documentation",
    IPv4Network("224.0.0.0/4"): "multicast",
    IPv4Network("240.0.0.0/4"): "reserved, or broadcast",
}

PUBLIC_IPV6 = IPv6Network("2000::/3")
"""All that is given out as public IPv6. What lies outside is refused unseen: loopback, link-local, unique local,
multicast, and what carries an IPv4 address in it (mapped, NAT64), whatever that address is."""

REFUSED_IPV6: dict[IPv6Network, str] = {
    IPv6Network("2001::/23"): "reserved, or a tunnel",
    IPv6Network("2001:db8::/32"): "for documentation",
    IPv6Network("2002::/16"): "a tunnel to an IPv4 address",
    IPv6Network("2620:4f:8000::/48"): "reserved",
    IPv6Network("3fff::/20"): "for documentation",
}


@dataclass(frozen=True)
class Allowed:
    """What an installation allows beyond the public Internet: networks of its own (any port of them), and plain HTTP."""

    networks: tuple[Network, ...] = ()
    http: bool = False


@dataclass(frozen=True)
class Target:
    """Where a URL points: at which port of which name. ``authority`` is both as they stand in the URL."""

    url: str
    authority: str
    host: str
    port: int


def networks(text: str) -> tuple[Network, ...]:
    """The networks of a list with commas; `InvalidInput` for what is none.

    >>> networks("10.1.0.0/16, ::1")
    (IPv4Network('10.1.0.0/16'), IPv6Network('::1/128'))
    """
    try:
        return tuple(ip_network(each.strip()) for each in text.split(",") if each.strip())
    except ValueError as error:
        raise InvalidInput(
            f"{error}; give addresses or networks such as 10.1.0.0/16, with commas", field="TOLLBOOK_WEBHOOKS_ALLOW"
        ) from None


def checked_url(url: str, allowed: Allowed) -> Target:
    """Where a URL points, if it is one that may be called at all; `InvalidInput` names the fix.

    Its name is not looked up here: what it stands for is judged by `refusal`, at each call anew.

    >>> checked_url("https://hooks.example.com/tollbook?x=1", Allowed()).port
    443
    >>> checked_url("https://ann:secret@hooks.example.com/", Allowed())
    Traceback (most recent call last):
    services.kernel.errors.InvalidInput: url: must not hold a user or a password; what comes from Tollbook is known by its signature
    """
    if len(url) > URL_CHARACTERS_MAX:
        raise InvalidInput(f"must have at most {URL_CHARACTERS_MAX} characters", field="url")
    if not url.isascii() or any(character <= " " or character in "\x7f\\" for character in url):
        raise InvalidInput(
            "must be ASCII without blanks and backslashes: encode them by %, and a name as xn--…", field="url"
        )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidInput(f"is no URL ({error})", field="url") from None
    if parts.scheme != "https" and not (allowed.http and parts.scheme == "http"):
        raise InvalidInput("must begin with https://", field="url")
    if "@" in parts.netloc:
        raise InvalidInput(
            "must not hold a user or a password; what comes from Tollbook is known by its signature", field="url"
        )
    if not host or "%" in host:
        raise InvalidInput("must name a host, such as https://hooks.example.com/tollbook", field="url")
    if "#" in url:
        raise InvalidInput("must not have a fragment (#…): no server ever sees it", field="url")
    if port is None:
        port = 443 if parts.scheme == "https" else 80
    return Target(url, parts.netloc, host, port)


def refusal(address: str, port: int, allowed: Allowed) -> str | None:
    """Why this address and port must not be called; None if they may.

    An address that is not public is refused whatever its port; a public one is called on `PORTS` only. Networks that the
    installation allows may be called on any port.

    >>> refusal("192.168.1.10", 443, Allowed())
    '192.168.1.10 is private'
    >>> refusal("::ffff:8.8.8.8", 443, Allowed())
    '::ffff:8.8.8.8 is not a public address'
    >>> refusal("192.168.1.10", 9000, Allowed(networks("192.168.1.0/24"))) is None
    True
    """
    try:
        found = ip_address(address)
    except ValueError:
        return f"{address} is no address"
    if any(found.version == network.version and found in network for network in allowed.networks):
        return None
    why = _not_public(found)
    if why is not None:
        return f"{address} is {why}"
    ports = PORTS | HTTP_PORTS if allowed.http else PORTS
    if port not in ports:
        return f"port {port} is not one of {', '.join(map(str, sorted(ports)))}"
    return None


def _not_public(address: IPv4Address | IPv6Address) -> str | None:
    if isinstance(address, IPv4Address):
        return next((why for network, why in REFUSED_IPV4.items() if address in network), None)
    if address.scope_id is not None or address not in PUBLIC_IPV6:
        return "not a public address"
    return next((why for network, why in REFUSED_IPV6.items() if address in network), None)


def refusal_of_all(addresses: Sequence[str], port: int, allowed: Allowed) -> str | None:
    """Why a name with these addresses must not be called. One that is refused refuses all: a name that has a private
    address beside a public one is no receiver's.

    >>> refusal_of_all(["8.8.8.8", "127.0.0.1"], 443, Allowed())
    '127.0.0.1 is loopback'
    """
    if not addresses:
        return "the name has no address"
    return next((why for each in addresses if (why := refusal(each, port, allowed)) is not None), None)
