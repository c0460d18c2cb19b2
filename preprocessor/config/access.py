"""Who may call."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from preprocessor.config.checks import is_loopback, require_key_pair, split_address
from preprocessor.config.declare import SettingError, setting
from preprocessor.config.values import parse_bytes

_METADATA_KEY = re.compile(r"(?!grpc-)[a-z0-9_.-]+(?<!-bin)")  # without gRPC's own keys and those of binary values


@dataclass(frozen=True, slots=True)
class AccessSettings:
    """Who may call, and how much. Files may be replaced while they are in use."""

    tls_certificate: str = setting("", "PEM of the service's certificate, which turns TLS on", "FILE", kind=str)
    tls_key: str = setting("", "PEM of its private key", "FILE", kind=str)
    tls_client_root: str = setting(
        "", "PEM of the authorities that sign callers' certificates, which makes TLS mutual", "FILE", kind=str
    )
    is_insecure: bool = setting(
        False,
        "listen without TLS where other machines can connect; a certificate goes before it",
        "",
        name="--insecure",
        kind=bool,
    )
    token_file: str = setting("", "who may call: a line each with a name and a token, or its SHA-256", "FILE", kind=str)
    caller_metadata: str = setting(
        "", "metadata key by which a proxy says who calls; only where nobody else can connect", "KEY", kind=str
    )
    max_calls_per_second: float = setting(
        0.0, "calls a second of one caller, counted over ten seconds; 0 sets no bound", kind=float
    )
    max_bytes_per_second: int = setting(
        0, "uploaded bytes a second of one caller, counted over ten seconds; 0 sets no bound", "SIZE", kind=parse_bytes
    )
    max_calls_a_caller: int = setting(0, "calls that one caller may have open; 0 sets no bound")
    is_caller_shared_memory_on: bool = setting(
        False,
        "let callers on this host have rows of Prepare written into shared memory of theirs",
        "",
        name="--caller-shared-memory",
        kind=bool,
    )

    @property
    def are_callers_named(self) -> bool:
        """Whether callers prove who they are, or a proxy tells."""
        return bool(self.token_file or self.tls_client_root or self.caller_metadata)

    def __post_init__(self) -> None:
        require_key_pair("--tls-certificate", self.tls_certificate, "--tls-key", self.tls_key)
        if self.tls_client_root and not self.tls_certificate:
            raise SettingError("--tls-client-root", self.tls_client_root, "it beside --tls-certificate and --tls-key")
        if self.caller_metadata and not _METADATA_KEY.fullmatch(self.caller_metadata):
            raise SettingError(
                "--caller-metadata",
                self.caller_metadata,
                "a key of gRPC's metadata with text, in lower case, such as x-caller",
            )
        for option, most in (
            ("--max-calls-per-second", self.max_calls_per_second),
            ("--max-bytes-per-second", self.max_bytes_per_second),
            ("--max-calls-a-caller", self.max_calls_a_caller),
        ):
            if isinstance(most, bool) or not (math.isfinite(most) and most >= 0):
                raise SettingError(option, most, "a number above 0, or 0 for no bound")

    def check_address(self, option: str, address: str) -> None:
        """Refuse to listen to other machines without TLS, unless --insecure is set.

        Raises:
            SettingError: Other machines can connect to the address, and nothing is encrypted.
        """
        if not (self.tls_certificate or self.is_insecure or is_loopback(split_address(option, address)[0])):
            raise SettingError(
                option, address, "a loopback address, or --tls-certificate and --tls-key, or --insecure to be overheard"
            )
