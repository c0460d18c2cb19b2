"""The public names of `engine_client`, which looks them up here when they are first used."""

from engine_client.breaker import EndpointHealth, EndpointPolicy
from engine_client.capabilities import EngineCapabilities, PixelType
from engine_client.client import EngineClient, HoldsItems, Metadata
from engine_client.contract.sampling import SamplingParameters, TokenLogprob
from engine_client.contract.tensors import CONTRACT_INPUTS, FEATURE_TENSORS, ContractTensor
from engine_client.credentials import CredentialsError, TokenMetadata, tls_credentials
from engine_client.endpoint import EndpointState
from engine_client.endpoints import Endpoints
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
from engine_client.options import EngineOptions
from engine_client.pending import RowProgress
from engine_client.schemes import UnknownScheme, connect_endpoints, connect_engine
from engine_client.shm import OwnedRegion, SharedRegion, remove_abandoned_regions
from engine_client.triton.engine import TritonEngine
from engine_client.triton.mapping_files import MappingError, builtin_mapping_names, load_mapping, parse_mapping
from engine_client.triton.outputs import Outputs
from engine_client.triton.tensor_mapping import Constant, InputRule, TensorMapping
from engine_client.types import (
    EngineInfo,
    EngineRequest,
    EngineStep,
    FinishReason,
    Pixels,
    TensorInfo,
    Transport,
)

__all__ = [
    "CONTRACT_INPUTS",
    "EXACT_PARTS",
    "FEATURE_TENSORS",
    "Constant",
    "ContractTensor",
    "CredentialsError",
    "EndpointHealth",
    "EndpointPolicy",
    "EndpointState",
    "Endpoints",
    "EngineCapabilities",
    "EngineClient",
    "EngineDeadlineExceeded",
    "EngineError",
    "EngineFailed",
    "EngineInfo",
    "EngineMismatch",
    "EngineOptions",
    "EngineOverloaded",
    "EngineRejected",
    "EngineRequest",
    "EngineStep",
    "EngineUnavailable",
    "Fingerprint",
    "FinishReason",
    "HoldsItems",
    "InputRule",
    "MappingError",
    "Metadata",
    "OnMismatch",
    "Outputs",
    "OwnedRegion",
    "PixelType",
    "Pixels",
    "RowProgress",
    "SamplingParameters",
    "SharedRegion",
    "TensorInfo",
    "TensorMapping",
    "TokenLogprob",
    "TokenMetadata",
    "Transport",
    "TritonEngine",
    "UnknownScheme",
    "builtin_mapping_names",
    "connect_endpoints",
    "connect_engine",
    "format_parameters",
    "load_mapping",
    "parse_mapping",
    "remove_abandoned_regions",
    "tls_credentials",
]
