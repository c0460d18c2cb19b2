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

Large tensors go in pieces where the engine's model takes them, also while they are still being written (`PendingRows`), and
by reference where the engine on the same host reads the memory that they lie in (`OwnedRegion`, `Transport`).

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
from engine_client.pending import PendingRows
from engine_client.profile_files import ProfileError, builtin_profile_names, load_profile, parse_profile
from engine_client.profiles import Constant, InputRule, PixelForm, Profile
from engine_client.shm import OwnedRegion, SharedRegion, remove_abandoned_regions
from engine_client.triton import TritonEngine
from engine_client.types import (
    EngineInfo,
    EngineRequest,
    EngineStep,
    FinishReason,
    SamplingParameters,
    TensorInfo,
    Transport,
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
    "OwnedRegion",
    "PendingRows",
    "PixelForm",
    "Profile",
    "ProfileError",
    "SamplingParameters",
    "SharedRegion",
    "Standing",
    "TensorInfo",
    "TokenFile",
    "Transport",
    "TritonEngine",
    "builtin_profile_names",
    "format_parameters",
    "load_profile",
    "parse_profile",
    "remove_abandoned_regions",
    "tls_credentials",
    "triton_endpoints",
]
