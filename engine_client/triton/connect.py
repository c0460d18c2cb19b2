"""From an address and options to a `TritonEngine`."""

from __future__ import annotations

from engine_client.options import EngineOptions
from engine_client.triton.engine import TritonEngine
from engine_client.triton.mapping_files import load_mapping


def connect(target: str, options: EngineOptions) -> TritonEngine:
    """Make the client of one Triton server; nothing is sent yet.

    Args:
        target: host:port, or any gRPC target.
    Raises:
        MappingError: `options.tensor_mapping` cannot be read.
    """
    return TritonEngine(
        target,
        options.model_name,
        credentials=options.credentials,
        tls_server_name=options.tls_server_name,
        call_metadata=options.call_metadata,
        mapping=load_mapping(options.tensor_mapping) if options.tensor_mapping else None,
        fingerprint=options.fingerprint,
        executor=options.executor,
        max_silence_seconds=options.max_silence_seconds,
    )
