"""Authentication: TLS from PEM files, and a token that is sent with every call.

    TritonEngine(
        "engine:8001",
        credentials=tls_credentials(root="ca.pem", certificate="client.pem", key="client.key"),
        call_metadata=TokenMetadata("/var/run/secrets/tokens/engine"),
    )

Files are checked when they are read, each with its own message: gRPC itself says of a bad one only that a handshake
failed, later. A token that travels without TLS can be read on its way: give one only beside credentials, or where a
proxy on the same host encrypts.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import grpc

from engine_client.client import Metadata

logger = logging.getLogger(__name__)


class CredentialsError(ValueError):
    """A file of keys, certificates or tokens cannot be used; the text names the file and what it should be."""


def tls_credentials(
    root: str | Path | None = None, certificate: str | Path | None = None, key: str | Path | None = None
) -> grpc.ChannelCredentials:
    """Credentials for a TLS channel; with `certificate` and `key` for mutual TLS.

    Args:
        root: PEM of the authorities that may have signed the engine's certificate; None trusts gRPC's own list.
        certificate: PEM of this side's certificate, followed by those between it and a root.
        key: PEM of its private key, not encrypted.
    Raises:
        CredentialsError: a file cannot be read, is not what it should be, or key and certificate do not belong together.
    """
    if (certificate is None) != (key is None):
        given, missing = ("certificate", "key") if key is None else ("key", "certificate")
        raise CredentialsError(f"{given} is {certificate or key} and {missing} is missing; give both for mutual TLS")
    root_bytes = None if root is None else _read_certificates("root", root)
    if certificate is None or key is None:
        return grpc.ssl_channel_credentials(root_bytes)
    certificate_bytes = _read_certificates("certificate", certificate)
    return grpc.ssl_channel_credentials(root_bytes, _read_key(key, certificate), certificate_bytes)


class TokenMetadata:
    """Metadata with a token from a file, which may be replaced while it is in use, as Kubernetes does.

    Args:
        path: The file; blanks around the token are left out.
        header: The metadata key, in lower case.
        scheme: Stands before the token; empty sends the token alone.
        refresh_seconds: How long a token that was read is used before the file is read again.
        clock: Seconds that only ever grow.
    Raises:
        CredentialsError: the file cannot be read, or holds no token.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        header: str = "authorization",
        scheme: str = "Bearer",
        refresh_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._header = header
        self._scheme = scheme
        self._refresh_seconds = refresh_seconds
        self._clock = clock
        self._value = self._read_value()
        self._read_at = clock()

    def __call__(self) -> Metadata:
        """What to send along now. A file that has become unreadable is tried again later; the last token stays."""
        if self._clock() - self._read_at >= self._refresh_seconds:
            self._read_at = self._clock()
            try:
                self._value = self._read_value()
            except CredentialsError as error:
                logger.warning("%s; the last token stays in use", error)
        return ((self._header, self._value),)

    def _read_value(self) -> str:
        # The text of the file never goes into a message.
        try:
            token = _read("token", self._path).decode("ascii").strip()
        except UnicodeDecodeError:
            token = ""
        if not token or not token.isprintable() or " " in token:
            raise CredentialsError(f"token {self._path} holds no token: one line of printable ASCII without blanks")
        return f"{self._scheme} {token}".lstrip()


def _read_certificates(role: str, path: str | Path) -> bytes:
    content = _read(role, path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=content.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise CredentialsError(f"{role} {path} holds no PEM certificate ({error})") from error
    return content


def _read_key(path: str | Path, certificate: str | Path) -> bytes:
    content = _read("key", path)
    if b"ENCRYPTED" in content:
        raise CredentialsError(f"key {path} is encrypted; gRPC takes a plain one")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, path)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise CredentialsError(f"key {path} does not belong to certificate {certificate}") from error
        raise CredentialsError(f"key {path} holds no PEM private key ({error})") from error
    return content


def _read(role: str, path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise CredentialsError(f"{role} {path} cannot be read ({error.strerror})") from error
