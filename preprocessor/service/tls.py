"""The service's side of TLS, from files that may be renewed while it runs.

gRPC asks for the certificate at every handshake, on a thread of its own. Files whose stamps have changed are read again, all
of them, and used once they fit together: whoever renews them replaces several, and a handshake may come in between.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any, cast

import grpc

from preprocessor.config import AccessSettings, SettingError
from preprocessor.config.credentials import read_certificates, read_key, stamp_of

logger = logging.getLogger(__name__)


def server_credentials(settings: AccessSettings) -> grpc.ServerCredentials | None:
    """Credentials to listen with; None where the settings have no certificate.

    Raises:
        SettingError: A file cannot be used.
    """
    if not settings.tls_certificate:
        return None
    files = _Files(settings)
    return grpc.dynamic_ssl_server_credentials(
        files.read(),
        cast("Any", files.read_if_changed),  # the stubs do not know that None is "as before"
        require_client_authentication=bool(settings.tls_client_root),
    )


class _Files:
    """Certificate, key, and the authorities of callers."""

    def __init__(self, settings: AccessSettings) -> None:
        self._settings = settings
        self._paths = [path for path in (settings.tls_certificate, settings.tls_key, settings.tls_client_root) if path]
        self._lock = threading.Lock()
        self._stamps: Sequence[Any] = ()

    def read(self) -> grpc.ServerCertificateConfiguration:
        """What the files hold now.

        Raises:
            SettingError: One cannot be used.
        """
        settings = self._settings
        self._stamps = self._stamp()
        certificate = read_certificates("--tls-certificate", settings.tls_certificate)
        key = read_key("--tls-key", settings.tls_key, settings.tls_certificate)
        root = settings.tls_client_root
        return grpc.ssl_server_certificate_configuration(
            [(key, certificate)], read_certificates("--tls-client-root", root) if root else None
        )

    def read_if_changed(self) -> grpc.ServerCertificateConfiguration | None:
        """What the files hold now; None leaves in use what was read last, as where the new files do not fit together."""
        with self._lock:
            if self._stamp() == self._stamps:
                return None
            try:
                renewed = self.read()
            except SettingError as error:
                logger.warning("the last certificate stays in use: %s", error)
                self._stamps = ()  # to be looked at again at the next handshake
                return None
            logger.info("the certificate was renewed: %s", self._settings.tls_certificate)
            return renewed

    def _stamp(self) -> Sequence[Any]:
        return [stamp_of(path) for path in self._paths]
