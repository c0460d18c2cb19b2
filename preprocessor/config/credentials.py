"""PEM files and tokens, checked when they are read: gRPC itself reports a bad one only as a failed handshake.

The service and its callers use this, so it imports neither gRPC nor the service.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from preprocessor.config import AccessSettings, SettingError


def read_server_files(access: AccessSettings) -> tuple[bytes, bytes, bytes | None]:
    """Certificate, private key, and the CA certificates for callers, if any, of a service with TLS.

    Raises:
        SettingError: A file cannot be used.
    """
    certificate = read_certificates("--tls-certificate", access.tls_certificate)
    key = read_key("--tls-key", access.tls_key, access.tls_certificate)
    root = access.tls_client_root
    return certificate, key, read_certificates("--tls-client-root", root) if root else None


def read_certificates(option: str, path: str) -> bytes:
    """The file, which holds at least one certificate.

    Args:
        option: Named in errors.
    Raises:
        SettingError: It cannot be read, or holds none.
    """
    content = read_file(option, path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=content.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise SettingError(option, path, f"a file of PEM certificates ({error})") from error
    return content


def read_key(option: str, path: str, certificate_path: str) -> bytes:
    """The file, which holds the private key of that certificate, not encrypted.

    Raises:
        SettingError: As `read_certificates`, or the two do not belong together.
    """
    content = read_file(option, path)
    if b"ENCRYPTED" in content:  # loading it would ask for the passphrase on the terminal
        raise SettingError(option, path, "a private key that is not encrypted")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate_path, path)
    except ssl.SSLError as error:
        raise SettingError(option, path, f"the PEM private key of {certificate_path} ({error})") from error
    return content


def read_file(option: str, path: str) -> bytes:
    """The whole of a file.

    Raises:
        SettingError: It cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise SettingError(option, path, f"a file that can be read ({error.strerror})") from error


def stamp_of(path: str) -> tuple[int, int, int] | None:
    """Modification time, inode and size, which change when a file is replaced; None if it is missing."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
