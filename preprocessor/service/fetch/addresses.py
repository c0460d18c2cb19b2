"""The IP addresses that may be connected to: public ones, and those in configured networks."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from preprocessor.config.fetch import Network

_NOT_PUBLIC_V4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            # IANA IPv4 Special-Purpose Address Registry (RFC 6890): all that are not globally reachable. Python's
            # `is_global` is not used, because its table changed within 3.11.
            *(
                "0.0.0.0/8",
                "10.0.0.0/8",
                "100.64.0.0/10",
                "127.0.0.0/8",
                "169.254.0.0/16",
                "172.16.0.0/12",
                "192.0.0.0/24",
            ),
            *("192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
            "224.0.0.0/4",  # multicast, RFC 5771
            "240.0.0.0/4",  # reserved, and broadcast, RFC 1112 and RFC 919
            # Azure's platform address, which is in public space and reachable only from virtual machines:
            # learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16
            "168.63.129.16/32",
        ),
    )
)
_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")  # RFC 4291, 2.4: all global unicast there is
_NOT_PUBLIC_V6 = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "2001::/23",  # IETF protocol assignments, RFC 2928: Teredo, ORCHID, benchmarking
            "2001:db8::/32",  # documentation, RFC 3849 and RFC 9637
            "3fff::/20",
            "2002::/16",  # 6to4, RFC 3056: an IPv4 address behind a relay
        ),
    )
)
_NAT64 = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48")))  # RFC 6052, RFC 8215


class AddressRules:
    """Checks addresses.

    Args:
        networks: Networks that are allowed although they are not public.
    """

    def __init__(self, networks: Sequence[Network]) -> None:
        self._networks = tuple(networks)

    def allow(self, address: str) -> bool:
        """Whether connecting to an address is allowed; False for text that is no address.

        An IPv6 address that embeds an IPv4 one (mapped, compatible, 6to4, Teredo, NAT64) must be in a configured network, and
        the IPv4 address must be allowed, too: configuring NAT64's prefix does not allow 10.0.0.1.
        """
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        if isinstance(parsed, ipaddress.IPv4Address):
            return self._is_configured(parsed) or not any(parsed in network for network in _NOT_PUBLIC_V4)
        embedded = _embedded(parsed)
        return (self._is_configured(parsed) or _is_public_v6(parsed)) and all(
            self.allow(str(each)) for each in embedded
        )

    def _is_configured(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        return any(address in network for network in self._networks)


def _is_public_v6(address: ipaddress.IPv6Address) -> bool:
    return address in _PUBLIC_V6 and not any(address in network for network in _NOT_PUBLIC_V6)


def _embedded(address: ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    """The IPv4 addresses that an IPv6 address embeds."""
    last = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address.sixtofour is not None:
        return [address.sixtofour]
    if address.teredo is not None:
        return list(address.teredo)
    is_compatible = int(address) >> 32 == 0 and int(address) > 1  # RFC 4291, 2.5.5.1; except :: and ::1
    return [last] if is_compatible or any(address in prefix for prefix in _NAT64) else []
