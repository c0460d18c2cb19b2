"""`GenerationParameters` → how the engine generates, and whether it can."""

from __future__ import annotations

from engine_client import EngineClient, SamplingParameters
from preprocessor.errors import InvalidRequest
from preprocessor.service.json_text import read_json
from preprocessor.v1 import preprocessor_pb2 as pb

MAX_STOP_STRINGS = 16
MAX_STOP_STRING_LENGTH = 256
MAX_STOP_TOKEN_IDS = 1024

_NUMBERS = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logprobs",
    "answer_count",
)


def read_parameters(message: pb.GenerationParameters, default_stop_token_ids: tuple[int, ...]) -> SamplingParameters:
    """Generation parameters; those that are absent have the engine client's defaults.

    Raises:
        InvalidRequest: `INVALID_GENERATION_PARAMETERS`; for a JSON schema also what `read_json` raises.
    """
    if len(message.stop_token_ids) > MAX_STOP_TOKEN_IDS:
        raise InvalidRequest(
            f"{len(message.stop_token_ids)} stop_token_ids; at most {MAX_STOP_TOKEN_IDS} are accepted",
            reason="INVALID_GENERATION_PARAMETERS",
            field="parameters.stop_token_ids",
        )
    given = {name: getattr(message, name) for name in _NUMBERS if message.HasField(name)}  # type: ignore[arg-type]
    constraint = message.WhichOneof("constraint")
    if constraint is not None:
        given[constraint] = text = getattr(message, constraint)
        if not text:
            raise InvalidRequest(
                f"parameters: {constraint} is empty; leave it out where an answer may be anything",
                reason="INVALID_GENERATION_PARAMETERS",
                field=f"parameters.{constraint}",
            )
    try:
        sampling = SamplingParameters(stop_token_ids=tuple(message.stop_token_ids) or default_stop_token_ids, **given)
    except ValueError as error:
        name = str(error).partition(" ")[0]  # each message of `SamplingParameters` begins with the field's name
        raise InvalidRequest(
            f"parameters: {error}", reason="INVALID_GENERATION_PARAMETERS", field=f"parameters.{name}"
        ) from error
    if sampling.json_schema:
        read_json(sampling.json_schema, dict, "parameters.json_schema")
    return sampling


def read_stop_strings(message: pb.GenerationParameters) -> tuple[str, ...]:
    """Stop strings.

    Raises:
        InvalidRequest: `INVALID_GENERATION_PARAMETERS`.
    """
    stops = tuple(message.stop_strings)
    if len(stops) > MAX_STOP_STRINGS or any(not 0 < len(stop) <= MAX_STOP_STRING_LENGTH for stop in stops):
        raise InvalidRequest(
            f"stop_strings: at most {MAX_STOP_STRINGS}, each of 1 to {MAX_STOP_STRING_LENGTH} characters",
            reason="INVALID_GENERATION_PARAMETERS",
            field="parameters.stop_strings",
        )
    return stops


async def require_features(engine: EngineClient, sampling: SamplingParameters) -> None:
    """Return if the engine has every parameter that is set. It is asked only if one is set that an engine may lack.

    Raises:
        InvalidRequest: `UNSUPPORTED_PARAMETER`: it lacks one.
        EngineUnavailable: It does not say.
    """
    wanted = sampling.features
    if not wanted:
        return
    had = await engine.sampling_features()
    if lacking := sorted(wanted - had):
        raise InvalidRequest(
            f"the engine has no {', '.join(lacking)}; of such parameters it has {', '.join(sorted(had)) or 'none'}",
            reason="UNSUPPORTED_PARAMETER",
            field=f"parameters.{lacking[0]}",
        )
