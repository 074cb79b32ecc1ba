"""Which URLs and addresses may be called: nothing that only we can reach, in whatever way it is written."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kernel.errors import InvalidInput
from services.webhooks.addresses import Allowed, checked_url, networks, refusal, refusal_of_all

NOTHING = Allowed()
NAT64 = int(IPv6Address("64:ff9b::"))
MAPPED = int(IPv6Address("::ffff:0:0"))
COMPATIBLE = 0
SIX_TO_FOUR = int(IPv6Address("2002::"))

PRIVATE = (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.0.2.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
    "::/128", "::1/128", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8", "64:ff9b::/96", "64:ff9b:1::/48", "::ffff:0:0/96",
    "::/96", "100::/64", "2001::/32", "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16",
)  # fmt: skip


def addresses_of(network: str) -> st.SearchStrategy[str]:
    found = ip_network(network)
    make = IPv4Address if found.version == 4 else IPv6Address
    return st.integers(int(found.network_address), int(found.broadcast_address)).map(lambda number: str(make(number)))


@given(st.sampled_from(PRIVATE).flatmap(addresses_of), st.sampled_from((80, 443, 8443, 9000)))
def test_no_address_of_a_network_that_is_not_public_is_ever_called(address: str, port: int) -> None:
    assert refusal(address, port, NOTHING) is not None
    assert refusal(address, port, Allowed(networks("8.8.8.0/24, 2606:4700::/32"), http=True)) is not None


@given(st.integers(0, 2**32 - 1), st.sampled_from((NAT64, MAPPED, COMPATIBLE)))
def test_no_ipv4_address_is_called_in_the_clothes_of_ipv6(number: int, prefix: int) -> None:
    assert refusal(str(IPv6Address(prefix + number)), 443, NOTHING) is not None
    assert refusal(str(IPv6Address(SIX_TO_FOUR + (number << 80))), 443, NOTHING) is not None


@given(st.integers(0, 2**32 - 1).map(IPv4Address) | st.integers(0, 2**128 - 1).map(IPv6Address))
def test_what_is_called_is_public_by_the_standard_library_too(address: IPv4Address | IPv6Address) -> None:
    if refusal(str(address), 443, NOTHING) is None:
        assert address.is_global
        assert not address.is_multicast
        assert not address.is_reserved


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254", "fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192", "fe80::1%eth0",
        "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "::", "255.255.255.255", "hooks.example.com", "",
    ],
)  # fmt: skip
def test_metadata_and_what_is_no_address_are_refused(address: str) -> None:
    assert refusal(address, 443, NOTHING) is not None


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "93.184.215.14", "2606:4700:4700::1111", "2a00:1450:4001::1"]
)
def test_public_addresses_are_called_on_the_ports_of_the_web_only(address: str) -> None:
    assert refusal(address, 443, NOTHING) is None
    assert refusal(address, 8443, NOTHING) is None
    for port in (22, 25, 80, 3306, 5432, 6379, 8080, 9092):
        assert refusal(address, port, NOTHING) is not None
    assert refusal(address, 80, Allowed(http=True)) is None


def test_a_name_with_one_private_address_is_refused_whatever_else_it_has() -> None:
    assert refusal_of_all(["8.8.8.8", "2606:4700::1"], 443, NOTHING) is None
    assert refusal_of_all(["8.8.8.8", "10.0.0.7"], 443, NOTHING) == "10.0.0.7 is private"
    assert refusal_of_all([], 443, NOTHING) == "the name has no address"


def test_what_the_installation_allows_is_called_on_any_port_and_nothing_beside_it() -> None:
    allowed = Allowed(networks("10.1.0.0/16,::1"))
    assert refusal("10.1.2.3", 9000, allowed) is None
    assert refusal("::1", 9000, allowed) is None
    assert refusal("10.2.0.1", 443, allowed) is not None
    assert refusal("::ffff:10.1.2.3", 443, allowed) is not None


@pytest.mark.parametrize("wrong", ["10.1.0.1/16", "hooks.example.com", "10.1.0.0/33"])
def test_a_wrong_list_of_networks_is_refused_with_the_variable(wrong: str) -> None:
    with pytest.raises(InvalidInput, match="TOLLBOOK_WEBHOOKS_ALLOW"):
        networks(wrong)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://hooks.example.com/", "must begin with https://"),
        ("ftp://hooks.example.com/", "must begin with https://"),
        ("file:///etc/passwd", "must begin with https://"),
        ("hooks.example.com/tollbook", "must begin with https://"),
        ("https://", "must name a host"),
        ("https:///path", "must name a host"),
        ("https://ann@hooks.example.com/", "user or a password"),
        ("https://ann:pw@hooks.example.com/", "user or a password"),
        ("https://8.8.8.8@127.0.0.1/", "user or a password"),
        ("https://@127.0.0.1/", "user or a password"),
        ("https://hooks.example.com/#part", "fragment"),
        ("https://hooks.example.com/#", "fragment"),
        ("https://hooks.example.com/a b", "ASCII without blanks"),
        ("https://hooks.example.com/\r\nX-Evil: 1", "ASCII without blanks"),
        ("https://hooks.example.com\\@127.0.0.1/", "ASCII without blanks"),
        ("https://bücher.example/", "ASCII"),
        ("https://[fe80::1%25eth0]/", "must name a host"),
        ("https://hooks.example.com:0x50/", "is no URL"),
        ("https://hooks.example.com:99999/", "is no URL"),
        ("https://[::1/", "is no URL"),
        ("https://hooks.example.com/" + "x" * 2_000, "at most 2000 characters"),
    ],
)
def test_a_url_that_may_not_be_called_is_refused_with_the_fix(url: str, sentence: str) -> None:
    with pytest.raises(InvalidInput, match=f"^url: .*{sentence}"):
        checked_url(url, NOTHING)


def test_http_is_for_installations_that_allow_it() -> None:
    assert checked_url("http://hooks.example.com/", Allowed(http=True)).port == 80
    assert checked_url("https://hooks.example.com:8443/a?b=c", NOTHING).authority == "hooks.example.com:8443"
    assert checked_url("https://[2606:4700::1]/", NOTHING).host == "2606:4700::1"


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f.0.0.1", "0177.0.0.1", "localhost"])
def test_other_ways_to_write_the_loopback_are_looked_up_and_refused(host: str) -> None:
    target = checked_url(f"https://{host}/", NOTHING)
    found = [str(address[0]) for *_, address in socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)]
    assert refusal_of_all(found, target.port, NOTHING) is not None
