"""Addresses that the service listens on: whether it can, and why not.

Without gRPC: `serve` tries them before it loads anything.
"""

from __future__ import annotations

import errno
import os
import socket

from preprocessor.config import ServeSettings, SettingError, split_address


def check_addresses(settings: ServeSettings) -> None:
    """Find out whether each address can be listened on now. Another process may still take one before the service listens.

    Raises:
        SettingError: One is in use or not one of this machine.
    """
    for option, address in (
        ("--address", settings.address),
        ("--http-address", settings.http_address),
        ("--openai-address", settings.openai_address),
    ):
        if address:
            try_to_listen(option, address, is_v6_alone=option == "--http-address")  # as asyncio binds it


def try_to_listen(option: str, address: str, *, is_v6_alone: bool = False) -> None:
    """Listen and stop at once, because gRPC's own error does not say why an address cannot be bound.

    Args:
        is_v6_alone: An IPv6 address does not stand for those of IPv4 too.
    Raises:
        SettingError: As `check_addresses`.
    """
    host, port = split_address(option, address)
    try:
        with bound_socket(host, port, is_v6_alone=is_v6_alone) as tried:
            tried.listen(1)
    except OSError as error:
        raise unusable_address(option, address, error) from error


def unusable_address(option: str, address: str, error: OSError) -> SettingError:
    """The error for an address that cannot be bound."""
    if error.errno == errno.EADDRINUSE:
        return SettingError(
            option,
            address,
            "an unused address: another process listens there, perhaps another instance of this service",
        )
    cause = error.strerror if isinstance(error, socket.gaierror) or not error.errno else os.strerror(error.errno)
    return SettingError(option, address, f"an address of this machine that this user may listen on ({cause})")


def bound_socket(host: str, port: int, *, is_shared: bool = False, is_v6_alone: bool = False) -> socket.socket:
    """A socket at the first address of a host.

    Args:
        is_shared: Other processes of this user may bind to the same port.
        is_v6_alone: As for `try_to_listen`.
    Raises:
        OSError: The address cannot be bound.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, place = found[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if is_v6_alone and family is socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(place)
    except OSError:
        bound.close()
        raise
    return bound
