"""A caller's connection to the service: with TLS or without, with a token or without."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
import grpc.aio

from preprocessor.config import SettingError, is_loopback, split_address
from preprocessor.config.credentials import read_certificates, read_file, read_key

_Options = tuple[tuple[str, int | str], ...]

# A header carries token ids and positions, some 20 bytes a token: more than gRPC's default 4 MiB for a long video.
CHANNEL_OPTIONS: _Options = (("grpc.max_receive_message_length", 256 << 20),)

# gRPC's targets that are no host:port (grpc's doc/naming.md).
HAS_SCHEME = re.compile(r"(unix|unix-abstract|vsock|dns|ipv4|ipv6|xds):")


@dataclass(frozen=True, slots=True)
class Credentials:
    """How a caller finds out whom it calls, and shows who it is.

    Attributes:
        tls: Call by TLS, which any of the other files but the token's implies.
        tls_root: PEM of the authorities that may have signed the service's certificate; gRPC's own list where empty.
        tls_certificate, tls_key: PEM of the caller's own, for mutual TLS.
        tls_server_name: The name in the service's certificate, where that is not the host.
        token_file: A bearer token, read anew for every call.
        insecure: Call another machine without TLS.
    """

    tls: bool = False
    tls_root: str = ""
    tls_certificate: str = ""
    tls_key: str = ""
    tls_server_name: str = ""
    token_file: str = ""
    insecure: bool = False

    @property
    def with_tls(self) -> bool:
        return self.tls or bool(self.tls_root or self.tls_certificate or self.tls_key)


def open_channel(address: str, credentials: Credentials | None = None) -> grpc.Channel:
    """A channel to a service; nothing is sent yet. The token goes with each call: `call_metadata`.

    Raises:
        SettingError: A file cannot be used, or prompts would cross a network unencrypted.
    """
    tls, options = _security(address, credentials or Credentials())
    if tls is None:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, tls, options=options)


def open_aio_channel(
    address: str, credentials: Credentials | None = None, more_options: Sequence[tuple[str, int]] = ()
) -> grpc.aio.Channel:
    """The same for asyncio.

    Raises:
        SettingError: As `open_channel`.
    """
    tls, options = _security(address, credentials or Credentials())
    if tls is None:
        return grpc.aio.insecure_channel(address, options=(*options, *more_options))
    return grpc.aio.secure_channel(address, tls, options=(*options, *more_options))


def call_metadata(credentials: Credentials) -> tuple[tuple[str, str], ...]:
    """What each call sends along: the token in the file, if there is one.

    Raises:
        SettingError: The file cannot be used.
    """
    path = credentials.token_file
    if not path:
        return ()
    token = read_file("--token-file", path).decode("ascii", errors="replace").strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise SettingError("--token-file", path, "a file with one line of printable ASCII without blanks")
    return (("authorization", f"Bearer {token}"),)


def _security(address: str, given: Credentials) -> tuple[grpc.ChannelCredentials | None, _Options]:
    """How to encrypt, None where nothing is, and the channel's options."""
    if not HAS_SCHEME.match(address):
        split_address("--address", address)
    if given.with_tls:
        names = (("grpc.ssl_target_name_override", given.tls_server_name),) if given.tls_server_name else ()
        return _tls(given), (*CHANNEL_OPTIONS, *names)
    if given.insecure or address.startswith("unix:") or is_loopback(address.rpartition(":")[0].strip("[]")):
        return None, CHANNEL_OPTIONS
    raise SettingError("--address", address, "an address of this machine, or --tls, or --insecure to be overheard")


def _tls(given: Credentials) -> grpc.ChannelCredentials:
    root = read_certificates("--tls-root", given.tls_root) if given.tls_root else None
    if not (given.tls_certificate or given.tls_key):
        return grpc.ssl_channel_credentials(root)
    certificate = read_certificates("--tls-certificate", given.tls_certificate)
    return grpc.ssl_channel_credentials(root, read_key("--tls-key", given.tls_key, given.tls_certificate), certificate)
