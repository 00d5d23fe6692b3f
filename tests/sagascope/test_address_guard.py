"""Which addresses a request may go to."""

from __future__ import annotations

import pytest

from sagascope.address_guard import AddressGuard

PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "100.63.255.255",
    "100.128.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "223.255.255.255",
    "2606:4700:4700::1111",
    "2a00:1450:4001::200e",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
]
REFUSED = {
    "0.0.0.0": "this network",  # noqa: S104 - to be refused
    "0.1.2.3": "this network",
    "10.255.255.255": "private",
    "100.64.0.1": "carrier-grade NAT",
    "100.100.100.200": "carrier-grade NAT",
    "127.0.0.1": "loopback",
    "127.255.255.254": "loopback",
    "168.63.129.16": "Azure",
    "169.254.169.254": "link-local",
    "172.16.0.1": "private",
    "172.31.255.255": "private",
    "192.0.0.192": "protocol assignments",
    "192.0.2.1": "documentation",
    "192.168.1.1": "private",
    "198.18.0.1": "benchmarking",
    "224.0.0.1": "multicast",
    "239.255.255.250": "multicast",
    "255.255.255.255": "reserved",
    "::": "unspecified",
    "::1": "loopback",
    "::127.0.0.1": "not global unicast",
    "::ffff:10.0.0.1": "private",
    "::ffff:169.254.169.254": "link-local",
    "::ffff:0:10.0.0.1": "not global unicast",
    "64:ff9b::10.0.0.1": "private",
    "64:ff9b::169.254.169.254": "link-local",
    "64:ff9b:1::8.8.8.8": "local NAT64",
    "2001::1": "Teredo",
    "2001:db8::1": "documentation",
    "2002:0a00:0001::1": "6to4",
    "3fff::1": "documentation",
    "fc00::1": "unique local",
    "fd00:ec2::254": "unique local",
    "fe80::1": "link-local",
    "fe80::1%2": "link-local",
    "fec0::1": "not global unicast",
    "ff02::1": "multicast",
}


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_pass(address: str) -> None:
    """What anybody may reach is no secret of this machine, also where a network translates IPv4."""
    assert AddressGuard().objection(address) is None


@pytest.mark.parametrize(("address", "what"), REFUSED.items())
def test_other_addresses_are_refused_by_name(address: str, what: str) -> None:
    """Every special-purpose address is refused, in each of its disguises, and it is said what it is."""
    objection = AddressGuard().objection(address)
    assert objection is not None
    assert what in objection


@pytest.mark.parametrize("address", REFUSED)
def test_all_networks_allowed_is_no_guard(address: str) -> None:
    """The owner of the service has the last word."""
    assert AddressGuard(["0.0.0.0/0", "::/0"]).objection(address) is None


def test_an_allowed_network_allows_no_other() -> None:
    """Allowing a network opens just that one, for an IPv4 address in either spelling."""
    guard = AddressGuard(["10.20.0.0/16", "fd12:3456::/48"])
    for allowed in ("10.20.0.1", "::ffff:10.20.255.255", "64:ff9b::10.20.0.1", "fd12:3456::1"):
        assert guard.objection(allowed) is None
    for refused in ("10.21.0.1", "127.0.0.1", "fd12:3457::1", "::1"):
        assert guard.objection(refused)


@pytest.mark.parametrize("network", ["10.0.0.1/8", "localhost", "", "10.0.0.0/33"])
def test_what_is_no_network_is_refused(network: str) -> None:
    """A mistyped network is an error at once, not a hole or a wall later."""
    with pytest.raises(ValueError, match=r"allow_networks: .*; allowed: networks such as"):
        AddressGuard([network])


def test_one_string_is_no_list_of_networks() -> None:
    """A network forgotten to be put into a list is told, rather than read letter by letter."""
    with pytest.raises(TypeError, match=r"write \['10\.0\.0\.0/8'\]"):
        AddressGuard("10.0.0.0/8")
