"""Why a service does not answer, in a sentence that says what to do.

gRPC's errors describe its internals. So this module connects to the address itself, reads a gRPC server's first bytes, and
reports what it found. It does not parse gRPC's messages.
"""

from __future__ import annotations

import argparse
import re
import socket
import ssl
from pathlib import Path

import grpc

from preprocessor.client import CallFailed, Credentials
from preprocessor.client.channel import HAS_SCHEME
from preprocessor.config import split_address

_TRY_SECONDS = 3.0
# What a client says first, and the type of the frame that a server says first (RFC 9113, sections 3.4 and 6.5).
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_SETTINGS_FRAME = 4
_SILENT = "it takes connections and says nothing; correct --address, or restart what listens there"
_STRANGER = "it does not accept this caller; give --tls-certificate and --tls-key, signed by an authority of its own"
_NO_TLS = "it does not speak TLS; leave out --tls and its files, with --insecure for another machine"


def explain(error: CallFailed, options: argparse.Namespace, credentials: Credentials) -> str:
    """One sentence on a call that failed: the service's own, or where it did not answer, why not."""
    if error.reason:
        return str(error)
    if error.code is grpc.StatusCode.UNAVAILABLE:
        what = why_unanswered(options.address, credentials) or "no answer came, or not all of it; try again"
    elif error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
        late = (
            f"no whole answer within {options.timeout_seconds:g} s; give more --timeout-seconds, or a smaller request"
        )
        what = why_unanswered(options.address, credentials) or late
    elif error.code is grpc.StatusCode.UNIMPLEMENTED:
        what = "another gRPC server listens there; give the --address of a `preprocessor serve`"
    else:
        what = error.message
    return f"{error.code.name}: {options.address}: {what}"


def why_unanswered(address: str, credentials: Credentials) -> str:
    """What keeps callers from a service at this address; empty where a gRPC server answers there, or nobody can tell."""
    if address.startswith("unix:") and not Path(address.removeprefix("unix:")).is_socket():
        return "there is no such socket; start a service on it, or correct --address"
    if HAS_SCHEME.match(address):
        return ""
    host, port = split_address("--address", address)
    try:
        with socket.create_connection((host, port), _TRY_SECONDS) as connection:
            return _why_not_tls(connection, host, credentials) if credentials.with_tls else _why_not_plain(connection)
    except socket.gaierror as error:
        return f"there is no such host ({error.strerror}); correct --address"
    except TimeoutError:
        return "nothing answers there, perhaps for a firewall; correct --address, or open the way"
    except ConnectionRefusedError:
        return f"nobody listens there; start `preprocessor serve --address {address}`, or give the --address of one"
    except OSError as error:
        return f"it cannot be reached ({error.strerror or error}); correct --address"


def _why_not_plain(connection: socket.socket) -> str:
    try:
        first = _first_bytes(connection)
    except TimeoutError:
        return _SILENT
    except ConnectionError:
        first = b""
    if first[3:4] == bytes((_SETTINGS_FRAME,)):
        return ""
    if first.startswith(b"HTTP/1"):
        return "an HTTP server listens there; give the service's --address, not its --http-address"
    if _speaks_tls(connection.getpeername()):
        return "the service speaks TLS; add --tls, or --tls-root FILE for an authority of your own"
    return "what listens there does not answer as a gRPC server does; correct --address"


def _why_not_tls(connection: socket.socket, host: str, credentials: Credentials) -> str:
    context = ssl.create_default_context(cafile=credentials.tls_root or None)
    context.set_alpn_protocols(["h2"])
    if credentials.tls_certificate:
        context.load_cert_chain(credentials.tls_certificate, credentials.tls_key)
    try:
        with context.wrap_socket(connection, server_hostname=credentials.tls_server_name or host) as encrypted:
            return "" if _first_bytes(encrypted) else _STRANGER
    except ssl.SSLCertVerificationError as error:
        fix = "give its authority as --tls-root FILE"
        if error.verify_code in (62, 64):  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
            fix = "give the name in it as --tls-server-name NAME"
        return f"its certificate is not accepted ({error.verify_message}); {fix}"
    except TimeoutError:
        return _SILENT
    except ssl.SSLError as error:
        if re.search("ALERT|CERTIFICATE_REQUIRED", error.reason or ""):
            return _STRANGER
        return _NO_TLS
    except ConnectionError:
        return _NO_TLS


def _first_bytes(connection: socket.socket) -> bytes:
    connection.sendall(_PREFACE)
    return connection.recv(16)


def _speaks_tls(place: tuple[str, int]) -> bool:
    """Whether a TLS handshake succeeds; certificates are not checked."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection(place[:2], _TRY_SECONDS) as connection, context.wrap_socket(connection):
            return True
    except OSError:
        return False
