"""Fields of a request that say how to generate → `GenerationParameters`."""

from __future__ import annotations

import json
import secrets
from typing import Any

from preprocessor.service.openai.fields import Fields
from preprocessor.v1 import preprocessor_pb2 as pb

DEFAULT_MAX_TOKENS = 1024
"""OpenAI's own default is the rest of the context, whose length only the engine knows."""

_ALL_TOKENS = -1  # as vLLM's own API has it, of `top_k`; ours is 0

DEFAULT_TEMPERATURE = 1.0  # OpenAI's default; that of `Generate` is 0

# Numbers that have the same name and meaning in both.
_REALS = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")


def read_parameters(fields: Fields) -> pb.GenerationParameters:
    """Take every parameter. Their ranges are checked where a gRPC caller's are.

    Raises:
        InvalidRequest: `INVALID_GENERATION_PARAMETERS`, `UNSUPPORTED_PARAMETER`: a wrong type, or two that exclude each other.
    """
    message = pb.GenerationParameters(max_tokens=_read_max_tokens(fields), temperature=DEFAULT_TEMPERATURE)
    if (top_k := fields.take_int("top_k")) is not None:
        message.top_k = 0 if top_k == _ALL_TOKENS else top_k
    for name in _REALS:
        if (real := fields.take(name, float)) is not None:
            setattr(message, name, real)
    seed = fields.take_int("seed", 64)
    message.seed = secrets.randbits(63) if seed is None else seed % (1 << 64)
    if (count := fields.take_int("n")) is not None:
        message.answer_count = count
    _read_stops(fields, message)
    _read_logprobs(fields, message)
    _read_constraint(fields, message)
    return message


def constrain(fields: Fields, message: pb.GenerationParameters, kind: str, text: str) -> None:
    """Set the constraint of that kind, unless there is one already.

    Raises:
        InvalidRequest: There is one.
    """
    if message.WhichOneof("constraint"):
        raise fields.error(
            kind, "is one constraint too many: give one of response_format, structured_outputs and a function"
        )
    setattr(message, kind, text)


def _read_max_tokens(fields: Fields) -> int:
    newer, older = fields.take_int("max_completion_tokens"), fields.take_int("max_tokens")
    given = older if newer is None else newer
    return DEFAULT_MAX_TOKENS if given is None else given


def _read_stops(fields: Fields, message: pb.GenerationParameters) -> None:
    stop = fields.take_any("stop")
    stops = [stop] if isinstance(stop, str) else [] if stop is None else stop
    if not isinstance(stops, list) or not all(isinstance(one, str) for one in stops):
        raise fields.error("stop", "must be a text or an array of texts")
    message.stop_strings.extend(stops)
    ids = fields.take("stop_token_ids", list) or []
    if not all(isinstance(one, int) and not isinstance(one, bool) and 0 <= one < 1 << 31 for one in ids):
        raise fields.error("stop_token_ids", "must be an array of token ids")
    message.stop_token_ids.extend(ids)


def _read_logprobs(fields: Fields, message: pb.GenerationParameters) -> None:
    is_wanted, top_count = fields.take("logprobs", bool), fields.take_int("top_logprobs")
    if is_wanted:
        message.logprobs = top_count or 0
    elif top_count:
        raise fields.error("top_logprobs", "needs logprobs: true")


def _read_constraint(fields: Fields, message: pb.GenerationParameters) -> None:
    """`response_format`, or vLLM's `structured_outputs`."""
    if (answer := fields.take_object("response_format")) is not None:
        kind = answer.take("type", str)
        if kind == "json_schema":
            holder = answer.take_object("json_schema")
            schema = None if holder is None else holder.take("schema", dict)
            if holder is None or schema is None:
                raise answer.error("json_schema", "must hold a schema")
            holder.ignore("name", "description", "strict")
            holder.end()
            message.json_schema = json.dumps(schema, ensure_ascii=False)
        elif kind == "json_object":
            message.json_schema = '{"type": "object"}'
        elif kind != "text":
            raise answer.error("type", "must be text, json_object or json_schema")
        answer.end()
    if (own := fields.take_object("structured_outputs")) is not None:
        given: dict[str, Any] = {"json_schema": own.take_any("json"), "regex": own.take("regex", str)}
        given["grammar"] = own.take("grammar", str)
        own.end()
        for kind, value in given.items():
            if value is not None:
                constrain(
                    own, message, kind, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                )
