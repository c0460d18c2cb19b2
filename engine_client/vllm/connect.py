"""From an address and options to a `VllmEngine`."""

from __future__ import annotations

from engine_client.options import EngineOptions
from engine_client.vllm.engine import VllmEngine


def connect(target: str, options: EngineOptions) -> VllmEngine:
    """Make the client of one vLLM server; nothing is sent yet.

    Args:
        target: host:port, or any gRPC target.
    Raises:
        ValueError: `options.tensor_mapping` is set; vLLM takes its own tensors alone.
    """
    if options.tensor_mapping:
        raise ValueError(
            f"the tensor mapping {options.tensor_mapping} is for Triton's models; vLLM has one form of prompts"
        )
    return VllmEngine(
        target,
        credentials=options.credentials,
        tls_server_name=options.tls_server_name,
        call_metadata=options.call_metadata,
        fingerprint=options.fingerprint,
        model_files=options.model_files,
        executor=options.executor,
        max_silence_seconds=options.max_silence_seconds,
    )
