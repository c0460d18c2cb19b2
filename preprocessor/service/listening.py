"""The gRPC server's sockets and transport limits."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import grpc.aio

from preprocessor.config import AccessSettings, SettingError, WireSettings, is_loopback, split_address
from preprocessor.service.addresses import try_to_listen
from preprocessor.service.tls import server_credentials

logger = logging.getLogger(__name__)

_KEEPALIVE_SECONDS = 60.0  # after this an unreachable caller is detected and its resources are released
_KEEPALIVE_TIMEOUT_SECONDS = 20.0
_HANDSHAKE_SECONDS = 10.0  # an idle connection keeps its file descriptor that long; gRPC's default is two minutes
_PING_STRIKES = 2  # gRPC's default
_MAX_BACKLOG = 16_384
"""Calls that gRPC core has accepted and not yet passed to Python, including those that were cancelled meanwhile. Above this gRPC
ends new calls with CANCELLED at random, and above twice as many all of them. With gRPC's default of 1,000 one caller that opens
and resets calls continuously made other callers' calls fail; peak memory is the same (0.5 GB with 180,000 such calls)."""


def create_server(wire: WireSettings, auth_interceptor: grpc.aio.ServerInterceptor) -> grpc.aio.Server:
    """A server without services; every call passes the interceptor."""
    return grpc.aio.server(options=_channel_options(wire), interceptors=[auth_interceptor, _SerializedResponses()])


def create_shared_server(wire: WireSettings, handler: grpc.GenericRpcHandler) -> grpc.aio.Server:
    """A server whose port other processes may share; one handler gets every call."""
    return grpc.aio.server(handlers=[handler], options=_channel_options(wire, is_shared=True))


def bind(server: grpc.aio.Server, address: str, access: AccessSettings) -> str:
    """Listen on an address; returns it with the bound port.

    Raises:
        SettingError: The address is in use or not one of this machine, or a TLS file cannot be used.
    """
    host = check_address(address, access)
    return f"{host}:{add_port(server, address, access)}"


def check_address(address: str, access: AccessSettings) -> str:
    """Find out whether an address can be listened on, and warn if untrusted callers can reach it; returns its host.

    Raises:
        SettingError: As `bind`.
    """
    host, _ = split_address("--address", address)
    credentials = server_credentials(access)
    try_to_listen("--address", address)
    if credentials is None and not is_loopback(host):
        logger.warning(
            "listening on %s without TLS: anyone who can connect can call, and traffic is not encrypted", address
        )
    return host


def add_port(server: grpc.aio.Server, address: str, access: AccessSettings) -> int:
    """Listen on an address; returns the bound port.

    Raises:
        SettingError: The address is in use, or a TLS file cannot be used.
    """
    credentials = server_credentials(access)
    try:
        return server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except RuntimeError as error:
        raise SettingError("--address", address, f"an unused address ({error})") from error


def _channel_options(wire: WireSettings, *, is_shared: bool = False) -> Sequence[tuple[str, int]]:
    """Source of the names: grpc/impl/channel_arg_names.h of gRPC 1.85."""
    return (
        ("grpc.so_reuseport", int(is_shared)),  # else a port in use is an error
        ("grpc.max_receive_message_length", wire.max_message_bytes),
        (
            "grpc.max_send_message_length",
            -1,
        ),  # the header of a long prompt is large; messages of rows are 2 MiB at most
        # A stream that is not read from buffers one flow-control window: 64 KiB, or 4 MiB with gRPC's BDP probing. A pending read
        # enlarges the window to the message's size, so uploads are as fast without probing.
        ("grpc.http2.bdp_probe", 0),
        # Between these two sizes gRPC refuses at random; equal values make one exact limit.
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


class _SerializedResponses(grpc.aio.ServerInterceptor):
    """Lets the handler of `Prepare` write responses that are already serialized."""

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        handler = await continuation(details)
        if handler is None or not details.method.endswith("/Prepare"):
            return handler
        serialize = handler.response_serializer
        return handler._replace(
            response_serializer=lambda message: message if isinstance(message, bytes) else serialize(message)
        )
