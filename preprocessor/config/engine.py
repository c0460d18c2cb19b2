"""Where prepared prompts go."""

from __future__ import annotations

from dataclasses import dataclass

from preprocessor.config.checks import require_choices, require_key_pair, require_seconds, split_address
from preprocessor.config.declare import SettingError, setting


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Where prepared prompts go. Options begin with `--engine`."""

    address: str = setting(
        "",
        "the engine's address, or several, separated by commas; no scheme means triton://; without it, Generate is not served",
        "[SCHEME://]HOST:PORT",
        name="--engine",
        kind=str,
        is_joined=True,
    )
    model: str = setting("vlm_transformers", "the model's name in the engine", "NAME", kind=str)
    transport: str = setting(
        "auto",
        "how tensors travel: shared-memory is for an engine on this host, auto finds out",
        kind=str,
        choices=("auto", "grpc", "shared-memory"),
    )
    profile: str = setting(
        "", "how its model's tensors differ from the contract's: a built-in mapping, or a TOML file", "NAME", kind=str
    )
    max_silence_seconds: float = setting(
        120.0,
        "silence of an engine that ends a request: to the first token, between two, and while Triton reads a message",
        "S",
        kind=float,
    )
    on_mismatch: str = setting(
        "refuse",
        "what to do with an engine that was set up for another model; require refuses also one that does not declare its model",
        kind=str,
        choices=("refuse", "require", "warn"),
    )
    tls_root: str = setting("", "PEM of the authorities that may have signed its certificate", "FILE", kind=str)
    tls_certificate: str = setting("", "PEM of this side's certificate, for mutual TLS", "FILE", kind=str)
    tls_key: str = setting("", "PEM of its private key", "FILE", kind=str)
    tls_server_name: str = setting("", "the name in its certificate, where that is not the host", "NAME", kind=str)
    token_file: str = setting("", "a bearer token to send along; the file may be rotated", "FILE", kind=str)

    def __post_init__(self) -> None:
        for address in self.address.split(",") if self.address else ():
            # A scheme is looked up where engines are connected: this package knows none.
            split_address("--engine", address.strip().rpartition("://")[2])
        require_choices(self, "engine-")
        require_seconds("--engine-max-silence-seconds", self.max_silence_seconds)
        require_key_pair("--engine-tls-certificate", self.tls_certificate, "--engine-tls-key", self.tls_key)
        if self.tls_server_name and not (self.tls_root or self.tls_certificate):
            raise SettingError(
                "--engine-tls-server-name",
                self.tls_server_name,
                "--engine-tls-root with it: without authorities there is no TLS, and no name is looked at",
            )
