"""How the service listens: what gRPC itself may take of the network, and what it asks of those who connect."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Sequence
from typing import Any

import grpc.aio

from preprocessor.config import AccessSettings, SettingError, WireSettings, is_loopback, split_address
from preprocessor.service.tls import server_credentials

logger = logging.getLogger(__name__)

_KEEPALIVE_SECONDS = 60.0  # a caller whose machine is gone is noticed after this, and what it holds is free
_KEEPALIVE_TIMEOUT_SECONDS = 20.0
_HANDSHAKE_SECONDS = 10.0  # a connection that says nothing; gRPC's own two minutes hold its descriptor
_PING_STRIKES = 2  # gRPC's own
_MAX_BACKLOG = 16_384
"""Calls that have come and that Python has not yet been given, those already taken back among them. Above it gRPC ends new
calls as CANCELLED, at random, and from twice as many on all of them. gRPC's own 1,000 let one caller who opens and resets
calls without pause have other callers' calls ended so; memory at its highest is the same (0.5 GB, 180,000 such calls)."""


def create_server(wire: WireSettings, gate: grpc.aio.ServerInterceptor) -> grpc.aio.Server:
    """A server without services, in which every call passes the gate."""
    return grpc.aio.server(options=_channel_options(wire), interceptors=[gate, _Serialized()])


def bind(server: grpc.aio.Server, address: str, access: AccessSettings) -> str:
    """Listen there; returns the address with the port as bound.

    Raises:
        SettingError: The address is taken or no address of this machine, or a file of TLS cannot be used.
    """
    host, wanted_port = split_address("--address", address)
    credentials = server_credentials(access)
    try:
        _try_to_bind(host, wanted_port)
    except OSError as error:
        raise unusable_address("--address", address, error) from error
    if credentials is None and not is_loopback(host):
        logger.warning("%s listens without TLS: whoever can connect can call, and be overheard", address)
    try:
        port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except RuntimeError as error:
        raise SettingError("--address", address, f"an address that is free ({error})") from error
    return f"{host}:{port}"


def unusable_address(option: str, address: str, error: OSError) -> SettingError:
    """Why nothing can listen there, and what to give instead."""
    if error.errno == errno.EADDRINUSE:
        return SettingError(option, address, "an address that is free: something listens there, perhaps this service")
    said = error.strerror if isinstance(error, socket.gaierror) or not error.errno else os.strerror(error.errno)
    return SettingError(option, address, f"an address of this machine that this user may listen on ({said})")


def _try_to_bind(host: str, port: int) -> None:
    """gRPC itself says of an address that it cannot bind only where to look for more.

    Raises:
        OSError: Nothing can listen there.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, place = found[0]
    with socket.socket(family, kind, protocol) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tried.bind(place)
        tried.listen(1)


def _channel_options(wire: WireSettings) -> Sequence[tuple[str, int]]:
    """Source of the names: grpc/impl/channel_arg_names.h of gRPC 1.85."""
    return (
        ("grpc.so_reuseport", 0),  # a port in use is an error, not a second server
        ("grpc.max_receive_message_length", wire.max_message_bytes),
        ("grpc.max_send_message_length", -1),  # a header of a long prompt; rows are cut to 2 MiB
        # A stream that nobody reads from holds a window of 64 KiB; where gRPC measures the network, one of 4 MiB from the start.
        # A message that is waited for opens it as far as it needs, so uploads are as fast.
        ("grpc.http2.bdp_probe", 0),
        # Between the two gRPC refuses at random, the likelier the more there is; together they are one limit.
        ("grpc.max_metadata_size", wire.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", wire.max_metadata_bytes),
        ("grpc.max_concurrent_streams", wire.max_streams_a_connection),
        ("grpc.server.max_pending_requests", _MAX_BACKLOG),
        ("grpc.server.max_pending_requests_hard_limit", 2 * _MAX_BACKLOG),
        ("grpc.max_allowed_incoming_connections", wire.max_connections),
        ("grpc.max_connection_age_ms", _milliseconds(wire.max_connection_age_seconds)),
        ("grpc.max_connection_age_grace_ms", _milliseconds(wire.max_timeout_seconds)),
        ("grpc.server_handshake_timeout_ms", _milliseconds(_HANDSHAKE_SECONDS)),
        ("grpc.keepalive_time_ms", _milliseconds(_KEEPALIVE_SECONDS)),
        ("grpc.keepalive_timeout_ms", _milliseconds(_KEEPALIVE_TIMEOUT_SECONDS)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _milliseconds(wire.min_ping_seconds)),
        ("grpc.http2.max_ping_strikes", _PING_STRIKES),
    )


def _milliseconds(seconds: float) -> int:
    return min(round(seconds * 1e3), 2**31 - 1)


class _Serialized(grpc.aio.ServerInterceptor):
    """Lets the handler of `Prepare` write messages that are serialized already."""

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        handler = await continuation(details)
        if handler is None or not details.method.endswith("/Prepare"):
            return handler
        serialize = handler.response_serializer
        return handler._replace(
            response_serializer=lambda message: message if isinstance(message, bytes) else serialize(message)
        )
