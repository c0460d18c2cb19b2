"""Arguments that a caller gives to a model's own processor, such as its pixel budgets, checked before anything is decoded.

Accepted is what the processor itself declares: the keyword arguments of its parts (`valid_kwargs`), those of its class
(`valid_processor_kwargs`), and those of its `__call__`. A name may stand alone, and is then given to the parts for images, videos
and sounds that declare it, as transformers gives it; or below `images_kwargs`, `videos_kwargs` or `audio_kwargs`.
Source: transformers 5.23, ProcessorMixin._merge_kwargs.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, is_typeddict

from huggingface_hub.dataclasses import validate_typed_dict
from huggingface_hub.errors import StrictDataclassError

from preprocessor.errors import InvalidRequest
from preprocessor.models.generic.processor import part_of
from preprocessor.types.request import Modality

FIELD = "processor_arguments_json"
REASON = "INVALID_PROCESSOR_ARGUMENTS"

KINDS: Mapping[Modality, str] = {
    Modality.IMAGE: "images_kwargs",
    Modality.VIDEO: "videos_kwargs",
    Modality.AUDIO: "audio_kwargs",
}
LOAD_SOUND = "load_audio_from_video"
_OLD_LOAD_SOUND = "use_audio_in_video"  # its name before transformers 5.22

_SAMPLED = "which frames are used is said by a video's `sampling`"
_OWN_FORM = "the service itself decides the form of its tensors"
_RESAMPLED = "the service decodes and resamples sounds"
_REFUSED: Mapping[str, str] = {
    "device": "the service prepares on CPUs",
    "video_metadata": "the service tells it from the file",
    "do_sample_frames": _SAMPLED,
    "fps": _SAMPLED,
    "num_frames": _SAMPLED,
    "min_frames": _SAMPLED,
    "max_frames": _SAMPLED,
    "sampling_rate": _RESAMPLED,
    "raw_speech": _RESAMPLED,
    "load_audio_backend": _RESAMPLED,
    "return_tensors": _OWN_FORM,
    "return_metadata": _OWN_FORM,
    "data_format": _OWN_FORM,
    "input_data_format": _OWN_FORM,
    "text_kwargs": "how the prompt becomes tokens is not to be changed",
    "common_kwargs": "name the part, such as images_kwargs",
}
# Of every processor's `__call__`; the service gives them.
_INPUTS = frozenset({"self", "images", "text", "videos", "audio", "audio_from_video_indices"})


@dataclass(frozen=True, slots=True)
class ProcessorArguments:
    """What to call a processor with, beside its inputs.

    Attributes:
        own: Arguments of the processor itself, by name.
        parts: Arguments of its parts, by modality and name.
        loads_sound: Whether the sound of each video goes between its frames.
    """

    own: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[Modality, Mapping[str, Any]] = field(default_factory=dict)
    loads_sound: bool = False

    def of(self, modality: Modality) -> Mapping[str, Any]:
        return self.parts.get(modality, {})


def read_arguments(processor: Any, given: Mapping[str, Any]) -> ProcessorArguments:
    """Sort and check a caller's arguments.

    Args:
        processor: transformers' `ProcessorMixin`.
        given: As the request has them.
    Raises:
        InvalidRequest: `INVALID_PROCESSOR_ARGUMENTS`: a name that the processor does not declare, or that is the service's to
            give, or a value of a wrong type.
    """
    if not given:
        return ProcessorArguments()
    own_schema = processor.valid_processor_kwargs
    schemas = {modality: _part_schemas(processor, modality) for modality in Modality if part_of(processor, modality)}
    own: dict[str, Any] = {}
    parts: dict[Modality, dict[str, Any]] = {modality: {} for modality in schemas}
    own_names = _own_names(processor)

    def place(name: str, value: Any) -> None:
        name = LOAD_SOUND if name == _OLD_LOAD_SOUND and LOAD_SOUND in own_names else name
        if name in own_names:
            _check(own_schema, name, value)
            own[name] = value
            return
        takers = [modality for modality, declared in schemas.items() if name in declared]
        if not takers:
            raise _refused(f"{name!r} is no argument of {type(processor).__name__}{_accepted(own_names, schemas)}")
        if name in own_schema.__annotations__["text_kwargs"].__annotations__:
            raise _refused(f"{name!r} is an argument of the tokenizer, too; give it below {KINDS[takers[0]]}")
        for modality in takers:
            place_in(modality, name, value)

    def place_in(modality: Modality, name: str, value: Any) -> None:
        kind = KINDS[modality]
        if name in (LOAD_SOUND, _OLD_LOAD_SOUND) or (name in own_names and name in schemas[modality]):
            place(name, value)  # transformers moves them up, too
            return
        if name not in schemas[modality]:
            raise _refused(
                f"{kind} has no {name!r} in {type(processor).__name__}; it has {', '.join(sorted(schemas[modality]))}"
            )
        if parts[modality].setdefault(name, value) != value:
            raise _refused(f"{name!r} stands alone and below {kind}, with two values")
        _check(schemas[modality][name], name, value)

    for name, value in given.items():
        _refuse_by_name(name)
        modality = next((modality for modality, kind in KINDS.items() if kind == name), None)
        if modality is None:
            place(name, value)
            continue
        if modality not in schemas or not isinstance(value, Mapping):
            raise _refused(f"{name} must be an object, and of a part that {type(processor).__name__} has")
        for inner, inner_value in value.items():
            _refuse_by_name(inner)
            place_in(modality, inner, inner_value)
    loads_sound = bool(own.pop(LOAD_SOUND, False))
    return ProcessorArguments(own, {modality: values for modality, values in parts.items() if values}, loads_sound)


def _part_schemas(processor: Any, modality: Modality) -> dict[str, Any]:
    """Name → typed dictionary that declares it, of every argument of a part that a caller may give."""
    part = part_of(processor, modality)
    declared = [getattr(part, "valid_kwargs", None), processor.valid_processor_kwargs.__annotations__[KINDS[modality]]]
    found = {name: schema for schema in reversed(declared) if schema is not None for name in schema.__annotations__}
    if declared[0] is None:  # a feature extractor declares nothing but its parameters
        parameters = inspect.signature(type(part).__call__).parameters
        found = {name: schema for name, schema in found.items() if name in parameters}
    return {name: schema for name, schema in found.items() if name not in _REFUSED}


def _own_names(processor: Any) -> frozenset[str]:
    declared = {
        name for name, kind in processor.valid_processor_kwargs.__annotations__.items() if not is_typeddict(kind)
    }
    parameters = inspect.signature(type(processor).__call__).parameters
    named = {name for name, one in parameters.items() if one.kind is not one.VAR_KEYWORD}
    return frozenset(name for name in declared | named - _INPUTS if not _why_refused(name))


def _why_refused(name: str) -> str:
    return _REFUSED.get(name, "") or (_OWN_FORM if name.startswith("return_") else "")


def _refuse_by_name(name: str) -> None:
    if (why := _why_refused(name)) and name != "return_attention_mask":
        raise _refused(f"{name!r} is not accepted: {why}")


def _accepted(own_names: frozenset[str], schemas: Mapping[Modality, Mapping[str, Any]]) -> str:
    names = sorted(own_names.union(*schemas.values()))
    return f"; it has {', '.join(names)}"


def _check(schema: Any, name: str, value: Any) -> None:
    if name not in schema.__annotations__:
        return
    try:
        validate_typed_dict(schema, {name: value})
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise _refused(f"{name!r} has a value that {schema.__name__} does not allow: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return " ".join(str(error.__cause__ or error).split())[:200]


def _refused(message: str) -> InvalidRequest:
    return InvalidRequest(message, reason=REASON, field=FIELD)
