"""Send prepared prompts to an inference engine and stream its tokens back.

    from contextlib import aclosing
    from engine_client import EngineRequest, EngineUnavailable, SamplingParameters, TritonEngine

    async with TritonEngine("triton:8001") as engine:
        request = EngineRequest(
            "request-1",
            {"input_ids": input_ids, "pixel_patches": patches, "pixel_mean": mean, "pixel_std": std,
             "grid_thw": grid_thw, "item_modality": item_modality, "item_spans": item_spans},
            SamplingParameters(max_tokens=256, temperature=0.7, seed=1),
        )
        async with aclosing(engine.generate(request, timeout_seconds=60)) as steps:
            async for step in steps:             # leaving the loop early stops the engine too
                print(step.token_ids, step.finish_reason)

Which tensors an engine takes is the engine contract's matter; this package carries any. It knows nothing of images,
prompts or the service that makes them. `engine_client.testing.FakeEngine` stands in for an engine in tests.
"""

from engine_client.breaker import EndpointPolicy, Standing
from engine_client.client import EngineClient, Metadata
from engine_client.contract import CONTRACT_INPUTS, Outputs
from engine_client.credentials import CredentialsError, TokenFile, tls_credentials
from engine_client.endpoint import EndpointState
from engine_client.endpoints import Endpoints, triton_endpoints
from engine_client.errors import (
    EngineDeadlineExceeded,
    EngineError,
    EngineFailed,
    EngineMismatch,
    EngineOverloaded,
    EngineRejected,
    EngineUnavailable,
)
from engine_client.fingerprint import EXACT_PARTS, Fingerprint, OnMismatch, format_parameters
from engine_client.profile_files import ProfileError, builtin_profile_names, load_profile, parse_profile
from engine_client.profiles import Constant, InputRule, PixelForm, Profile
from engine_client.triton import TritonEngine
from engine_client.types import (
    EngineInfo,
    EngineRequest,
    EngineStep,
    FinishReason,
    SamplingParameters,
    TensorInfo,
)

__all__ = [
    "CONTRACT_INPUTS",
    "EXACT_PARTS",
    "Constant",
    "CredentialsError",
    "EndpointPolicy",
    "EndpointState",
    "Endpoints",
    "EngineClient",
    "EngineDeadlineExceeded",
    "EngineError",
    "EngineFailed",
    "EngineInfo",
    "EngineMismatch",
    "EngineOverloaded",
    "EngineRejected",
    "EngineRequest",
    "EngineStep",
    "EngineUnavailable",
    "Fingerprint",
    "FinishReason",
    "InputRule",
    "Metadata",
    "OnMismatch",
    "Outputs",
    "PixelForm",
    "Profile",
    "ProfileError",
    "SamplingParameters",
    "Standing",
    "TensorInfo",
    "TokenFile",
    "TritonEngine",
    "builtin_profile_names",
    "format_parameters",
    "load_profile",
    "parse_profile",
    "tls_credentials",
    "triton_endpoints",
]
