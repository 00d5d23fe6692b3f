"""Which addresses a request may go to: the guard against server-side request forgery (OWASP API7:2023).

A URL that somebody configures must not reach what only this machine can: the cloud's metadata, a neighbour's database.
So an address is judged after it was looked up, right before it is connected to; a name says nothing.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING

from sagascope.errors import PermanentError

if TYPE_CHECKING:
    from collections.abc import Iterable

_RESERVED = {
    ip_network(network): what
    for network, what in {
        # IANA IPv4 Special-Purpose Address Registry
        "0.0.0.0/8": "this network",
        "10.0.0.0/8": "private",
        "100.64.0.0/10": "carrier-grade NAT",
        "127.0.0.0/8": "loopback",
        "169.254.0.0/16": "link-local, where clouds keep their metadata",
        "172.16.0.0/12": "private",
        "192.0.0.0/24": "protocol assignments",
        "192.0.2.0/24": "documentation",
        "192.88.99.0/24": "6to4 relay",
        "192.168.0.0/16": "private",
        "198.18.0.0/15": "benchmarking",
        "198.51.100.0/24": "documentation",
        "203.0.113.0/24": "documentation",
        "224.0.0.0/4": "multicast",
        "240.0.0.0/4": "reserved",
        # a public address that on Azure is the machine's own host
        "168.63.129.16/32": "Azure's virtual host",
        # IANA IPv6 Special-Purpose Address Registry, as far as it lies within the global unicast space
        "2001::/23": "protocol assignments, Teredo",
        "2001:db8::/32": "documentation",
        "2002::/16": "6to4",
        "3fff::/20": "documentation",
    }.items()
}
_NAMED = {
    ip_network(network): what
    for network, what in {
        "::/128": "unspecified",
        "::1/128": "loopback",
        "64:ff9b:1::/48": "local NAT64",
        "fc00::/7": "unique local",
        "fe80::/10": "link-local",
        "ff00::/8": "multicast",
    }.items()
}
"""Of what is refused anyway, as it lies outside the global unicast space: the names, for the message."""
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")


class RefusedAddressError(PermanentError):
    """A host has only addresses that no request may go to."""


class AddressGuard:
    """Judges addresses: public unicast ones pass; the others do where a network is allowed that they are in.

    Args:
        allow_networks: Networks in CIDR notation (`10.20.0.0/16`, `fd12::/48`) that may be connected to although they
            are not public. `0.0.0.0/0` and `::/0` allow everything.

    Raises:
        ValueError: something that is no network.
    """

    def __init__(self, allow_networks: Iterable[str] = ()) -> None:
        if isinstance(allow_networks, str):
            msg = f"allow_networks={allow_networks!r} is one string: write [{allow_networks!r}]"
            raise TypeError(msg)
        try:
            self._allowed = [ip_network(network) for network in allow_networks]
        except ValueError as error:
            msg = f"allow_networks: {error}; allowed: networks such as '10.20.0.0/16' or 'fd12::/48'"
            raise ValueError(msg) from None

    def objection(self, address: str) -> str | None:
        """Why this address is refused; None where it is not.

        Args:
            address: As `getaddrinfo` has it: an IPv4 or IPv6 address, maybe with a zone.
        """
        judged = _reached(ip_address(address))
        if any(judged in network for network in self._allowed):
            return None
        for network, what in _RESERVED.items():
            if judged in network:
                return what
        if isinstance(judged, IPv6Address) and judged not in _GLOBAL_UNICAST:
            return next((what for network, what in _NAMED.items() if judged in network), "not global unicast")
        return None


def _reached(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that an IPv6 one stands for: mapped (RFC 4291), or behind NAT64 (RFC 6052)."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address
