"""The call of a model's own processor: its arguments, and what its exceptions mean."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from huggingface_hub.errors import StrictDataclassError

from preprocessor.errors import InvalidRequest, PreprocessorError, trace_of
from preprocessor.models.generic.arguments import FIELD, KINDS, LOAD_SOUND, REASON, ProcessorArguments
from preprocessor.models.generic.media import metadata_for, short_sound
from preprocessor.models.generic.mistral_chat import run_chat
from preprocessor.models.generic.processor import ProcessorSettings, counts_pixels, own_size, part_of
from preprocessor.models.generic.tensors import ragged
from preprocessor.models.probe import ProbedMedium
from preprocessor.types.request import Media, Modality

_LOCK_POLL_SECONDS = 0.05  # how soon a request that waits for the processor notices that it was cancelled
_MESSAGE_LENGTH = 500  # of transformers' own words in an error

# How transformers' processors word a wrong number of placeholders; the type is ValueError for this as for all else.
_COUNTS_DIFFER = re.compile(r"\b(image|video|audio)s?\b.*\b(tokens?|number|placeholders?)\b", re.IGNORECASE)
# What a processor's code raises of itself for values that its author did not expect.
_BROKEN = (TypeError, ArithmeticError, LookupError, AttributeError, RuntimeError, StrictDataclassError)
_RAGGED = re.compile(r"Unable to convert output '(\w+)'")  # transformers 5.23, BatchFeature.convert_to_tensors


def size_argument(
    model: ProcessorSettings, media: Sequence[Media], modality: Modality, arguments: ProcessorArguments
) -> dict[str, int] | None:
    """The processor's `size` argument for the caller's pixel budget; None without a budget.

    Raises:
        InvalidRequest: `INVALID_PIXEL_BUDGET`: this processor does not take that one.
    """
    kind = modality.name.lower()
    given = {(one.min_pixels, one.max_pixels, one.cap_pixels_per_frame) for one in media if one.modality is modality}
    if given <= {(None, None, None)}:
        return None
    part = part_of(model.processor, modality)
    if not counts_pixels(part) or any(cap is not None for _, _, cap in given):
        raise _bad_budget(
            f"this model's processor takes no such pixel budget for its {kind}s; leave it out, or give the processor's own "
            f"arguments in {FIELD}"
        )
    if "size" in arguments.of(modality) or {"min_pixels", "max_pixels"} & arguments.of(modality).keys():
        raise _bad_budget(f"a pixel budget of {kind}s is given twice, in media and in {FIELD}; give one")
    if len(given) > 1:
        raise _bad_budget(f"this model's processor takes one pixel budget for all {kind}s of a request")
    first = next(one for one in media if one.modality is modality)
    own = own_size(part) | getattr(model.processor, KINDS[modality], {}).get("size", {})  # the processor's goes first
    least, most = first.pixel_budget(own["shortest_edge"], own["longest_edge"])
    return {"shortest_edge": least, "longest_edge": most}


def _bad_budget(message: str) -> InvalidRequest:
    return InvalidRequest(message, reason="INVALID_PIXEL_BUDGET")


def call_arguments(
    model: ProcessorSettings,
    text: str,
    probed: Sequence[ProbedMedium],
    contents: Sequence[Any],
    own_sounds: Sequence[npt.NDArray[np.float32] | None],
    sizes: Mapping[Modality, dict[str, int] | None],
    arguments: ProcessorArguments,
) -> dict[str, Any]:
    """The processor's arguments, as its own `apply_chat_template` passes them (transformers 5.23, ProcessorMixin).

    Args:
        own_sounds: For each medium the sound of a video that goes between its frames; None for all else.
    Raises:
        InvalidRequest: `SAMPLING_CONFLICT`, `PROCESSOR_REFUSED`: videos that this processor does not take together.
    """
    by_modality: dict[Modality, list[Any]] = {modality: [] for modality in Modality}
    sound_slots: list[int | None] = []  # of each sound, the video that it belongs to; None where it stands alone
    for one, content, own_sound in zip(probed, contents, own_sounds, strict=True):
        by_modality[one.medium.modality].append(content)
        if one.medium.modality is Modality.AUDIO:
            sound_slots.append(None)
        elif own_sound is not None:
            by_modality[Modality.AUDIO].append(own_sound)
            sound_slots.append(len(by_modality[Modality.VIDEO]) - 1)
    images, videos, sounds = (by_modality[modality] for modality in (Modality.IMAGE, Modality.VIDEO, Modality.AUDIO))
    call: dict[str, Any] = {
        **arguments.own,
        "text": text,
        "images": [images] if images else None,
        "videos": [videos] if videos else None,
        "audio": sounds or None,
        "return_tensors": "pt",
    }
    call.update({KINDS[modality]: dict(values) for modality, values in arguments.parts.items()})
    bos = model.tokenizer.bos_token
    if bos is not None and text.startswith(bos):
        call["add_special_tokens"] = False
    if sounds:
        call["sampling_rate"] = part_of(model.processor, Modality.AUDIO).sampling_rate
    if size := sizes[Modality.IMAGE]:
        call.setdefault("images_kwargs", {})["size"] = size
    if videos:
        metadata = metadata_for(model.processor, [one for one in probed if one.medium.modality is Modality.VIDEO])
        of_videos = call.setdefault("videos_kwargs", {})
        of_videos.update({"do_sample_frames": False, "video_metadata": metadata})
        if "video_second_per_grid" in model.processor.model_input_names:
            of_videos["fps"] = _one_rate(probed)
        if size := sizes[Modality.VIDEO]:
            of_videos["size"] = size
        if arguments.loads_sound:
            call[LOAD_SOUND] = True
            call["audio_from_video_indices"] = sound_slots
    return call


def _one_rate(probed: Sequence[ProbedMedium]) -> float:
    """Sampled frames a second, for processors that need it (Qwen-Omni's assume 2) and take one value for all videos.

    Raises:
        InvalidRequest: `SAMPLING_CONFLICT`: the videos' rates differ by more than a thousandth.
    """
    rates = [one.frames.sampled_fps for one in probed if one.frames is not None]
    if max(rates) > min(rates) * 1.001:
        raise InvalidRequest(
            f"this model's processor takes one frame rate for all videos of a request, and these have "
            f"{', '.join(f'{rate:g}' for rate in rates)}: ask for the same fps, or send one video",
            reason="SAMPLING_CONFLICT",
        )
    return rates[0]


def call_processor(
    model: ProcessorSettings, call: Mapping[str, Any], check: Callable[[], None], *, is_callers: bool
) -> Mapping[str, Any]:
    """Call the processor, one thread at a time.

    transformers raises ValueError for input that it does not accept. An exception of any other type may be a bug of its code or
    ours, and is not caught: unless the caller gave arguments, whose values may break any line of a processor, or a sound that is
    shorter than what some processors analyse at once.

    Args:
        is_callers: Whether the caller gave arguments.
    Raises:
        InvalidRequest: `PROCESSOR_REFUSED`, `PLACEHOLDER_MISMATCH` or `INVALID_PROCESSOR_ARGUMENTS`, with transformers' words.
        UnsupportedMedia: `RAGGED_TENSORS`.
        Whatever `check` raises.
    """
    while not model.lock.acquire(timeout=_LOCK_POLL_SECONDS):
        check()
    try:
        check()
        try:
            is_chat = "conversation" in call
            output: Mapping[str, Any] = run_chat(model.processor, call) if is_chat else model.processor(**call)
        except ValueError as error:
            refusal = _refusal(model, error)
            # A wrong setting of the model or a bug in its code may raise ValueError, too.
            refusal.trace = trace_of(error)
            raise refusal from error
        except _BROKEN as error:
            if isinstance(error, RuntimeError) and (short := short_sound(model.processor, call.get("audio") or ())):
                short.trace = trace_of(error)
                raise short from error
            if not is_callers or "allocate memory" in str(error):
                raise
            message = " ".join(f"{type(error).__name__}: {error}".split())[:_MESSAGE_LENGTH]
            refusal = InvalidRequest(
                f"the model's processor fails with these arguments: {message}", reason=REASON, field=FIELD
            )
            refusal.trace = trace_of(error)
            raise refusal from error
    finally:
        model.lock.release()
    return output


def _refusal(model: ProcessorSettings, error: ValueError) -> PreprocessorError:
    message = " ".join(str(error).split())[:_MESSAGE_LENGTH] or type(error).__name__
    if found := _RAGGED.match(message):
        return ragged(found[1])
    # Placeholders that are known were counted before; the others only the processor knows.
    reason = "PROCESSOR_REFUSED"
    if not model.modalities <= model.placeholders.keys() and _COUNTS_DIFFER.search(message):
        reason = "PLACEHOLDER_MISMATCH"
    return InvalidRequest(f"the model's processor does not accept this request: {message}", reason=reason)
