"""Server TLS credentials, for gRPC and for HTTP, from files that may be replaced while the service runs.

gRPC requests the certificate for every handshake, on a thread of its own. If a file's stamp has changed, all files are read
again and used if they match. They may not match for a moment, because a renewal replaces several files one after another.
"""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Sequence
from typing import Any, cast

import grpc

from preprocessor.config import AccessSettings, SettingError
from preprocessor.config.credentials import read_server_files, stamp_of

logger = logging.getLogger(__name__)


def server_credentials(settings: AccessSettings) -> grpc.ServerCredentials | None:
    """Credentials for the listening port; None if no certificate is configured.

    Raises:
        SettingError: A file cannot be used.
    """
    if not settings.tls_certificate:
        return None
    files = _Files(settings)
    return grpc.dynamic_ssl_server_credentials(
        files.read(),
        cast("Any", files.read_if_changed),  # None means "unchanged", which the stubs do not allow
        require_client_authentication=bool(settings.tls_client_root),
    )


def server_context(settings: AccessSettings) -> ssl.SSLContext | None:
    """The same for a port of HTTP; None if no certificate is configured.

    Raises:
        SettingError: A file cannot be used.
    """
    return _Contexts(settings).current if settings.tls_certificate else None


class _Contexts:
    """The context of new connections.

    Attributes:
        current: Made of the files as they were last seen to match.
    """

    def __init__(self, settings: AccessSettings) -> None:
        self._files = _Files(settings)
        self._settings = settings
        self.current = self._make()

    def _make(self) -> ssl.SSLContext:
        self._files.read()
        settings, context = self._settings, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["http/1.1"])
        context.sni_callback = self._choose  # called for every handshake, also of a client that names no server
        try:
            context.load_cert_chain(settings.tls_certificate, settings.tls_key)
            if settings.tls_client_root:
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(settings.tls_client_root)
        except (OSError, ssl.SSLError) as error:  # replaced since they were read
            raise SettingError("--tls-certificate", settings.tls_certificate, f"files that match ({error})") from error
        return context

    def _choose(self, connection: ssl.SSLObject, _: str | None, __: ssl.SSLContext) -> None:
        if self._files.are_changed:
            try:
                self.current = self._make()
            except SettingError as error:
                self._files.retry_after(error)
            else:
                logger.info("certificate renewed: %s", self._settings.tls_certificate)
        connection.context = self.current


class _Files:
    """Certificate, key, and the CA certificates for callers."""

    def __init__(self, settings: AccessSettings) -> None:
        self._settings = settings
        self._paths = [path for path in (settings.tls_certificate, settings.tls_key, settings.tls_client_root) if path]
        self._lock = threading.Lock()
        self._stamps: Sequence[Any] = ()

    def read(self) -> grpc.ServerCertificateConfiguration:
        """Read all files.

        Raises:
            SettingError: A file cannot be used.
        """
        self._stamps = self._stamp()
        certificate, key, root = read_server_files(self._settings)
        return grpc.ssl_server_certificate_configuration([(key, certificate)], root)

    def read_if_changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Read all files if one has changed; None keeps the last configuration, also if the new files do not match."""
        with self._lock:
            if not self.are_changed:
                return None
            try:
                renewed = self.read()
            except SettingError as error:
                self.retry_after(error)
                return None
            logger.info("certificate renewed: %s", self._settings.tls_certificate)
            return renewed

    @property
    def are_changed(self) -> bool:
        return self._stamp() != self._stamps

    def retry_after(self, error: SettingError) -> None:
        """Have them read again at the next handshake."""
        logger.warning("the previous certificate stays in use: %s", error)
        self._stamps = ()

    def _stamp(self) -> Sequence[Any]:
        return [stamp_of(path) for path in self._paths]
