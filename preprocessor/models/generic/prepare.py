"""Any model that transformers has a processor for: its code runs, and its tensors are the result.

The fast families reimplement a processor and take a fraction of its time. All other models come here: media are decoded as on
the fast path, the chat is rendered by the model's template, and transformers does the rest.

Rules that hold here:

* The result equals `processor.apply_chat_template(…, tokenize=True, return_dict=True, return_tensors="pt")` with the same
  pixels: media go in nested in a list, and BOS is not added to a text that already begins with it.
* Sampling happens once, on the file's own frames. The processor does not sample (`do_sample_frames=False`); it gets the
  indices of its frames (`video_metadata`), so that its timestamps are right.
* Arguments of the caller are the processor's own, checked and bounded before any work; where the sound of a video belongs between
  its frames, it is decoded here and given beside them.
* Neither token count nor bytes are known before the processor has run. Only the size of the decoded media is checked before.
* The result of an item may depend on the other items (one image is tiled, two are not; all are padded to the largest), so the
  digest of each covers the content of all.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from huggingface_hub.errors import StrictDataclassError

from preprocessor.config import Limits
from preprocessor.errors import InvalidRequest, PreprocessorError, trace_of
from preprocessor.media.container import keep_going
from preprocessor.media.content import content_digest
from preprocessor.models.generic.argument_limits import refuse_large
from preprocessor.models.generic.arguments import FIELD, KINDS, LOAD_SOUND, REASON, ProcessorArguments, read_arguments
from preprocessor.models.generic.media import (
    choose_evenly,
    choose_every,
    decode,
    metadata_for,
    probe_media,
    refuse_above,
    short_sound,
    sound_of_video,
)
from preprocessor.models.generic.mistral_chat import chat_call, run_chat
from preprocessor.models.generic.processor import ProcessorSettings, counts_pixels, own_size, part_of
from preprocessor.models.generic.prompt import render
from preprocessor.models.generic.spans import item_tensors
from preprocessor.models.generic.tensors import TEXT_TENSORS, ragged, to_tensors
from preprocessor.models.probe import ChooseFrames, ProbedMedium, decoder_of
from preprocessor.models.versions import pixel_settings
from preprocessor.types.plan import ItemPlan, Plan, Substitution
from preprocessor.types.request import Media, Modality, PixelForm, PreparationRequest
from preprocessor.types.source import ImageInfo, SoundInfo, VideoInfo
from preprocessor.types.timing import Timings

_LOCK_POLL_SECONDS = 0.05  # how soon a request that waits for the processor notices that it was cancelled
_MESSAGE_LENGTH = 500  # of transformers' own words in an error

# How transformers' processors word a wrong number of placeholders; the type is ValueError for this as for all else.
_COUNTS_DIFFER = re.compile(r"\b(image|video|audio)s?\b.*\b(tokens?|number|placeholders?)\b", re.IGNORECASE)
# What a processor's code raises of itself for values that its author did not expect.
_BROKEN = (TypeError, ArithmeticError, LookupError, AttributeError, RuntimeError, StrictDataclassError)
_RAGGED = re.compile(r"Unable to convert output '(\w+)'")  # transformers 5.23, BatchFeature.convert_to_tensors


def prepare_generic(
    model: ProcessorSettings,
    request: PreparationRequest,
    limits: Limits,
    check: Callable[[], None] = keep_going,
    choose: ChooseFrames | None = None,
) -> Plan:
    """Prepare a request with the model's own processor.

    Args:
        request: Checked by `check_request`. Without a `pixel_form` pixels stay as the processor makes them, float32 wherever
            known; BF16, FP16 and FP32 round that; NONE leaves out all but the text's tensors, though the work is done all the
            same.
        check: Called between packets and stages; whatever it raises ends the work. The processor is not interrupted.
        choose: Which frames of a video to use; None: as `choose_evenly`, or `choose_every` for a model that does not sample.
    Raises:
        InvalidRequest: As `prompt.render` and `read_arguments`; `UNSUPPORTED_PIXEL_FORM` for UINT8; `INVALID_PIXEL_BUDGET` for a
            budget that this processor does not take; `DIGEST_MISMATCH`; `PROCESSOR_REFUSED`, with transformers' own words, for
            what its code refuses.
        UnsupportedMedia: `UNSUPPORTED_MODALITY`, `RAGGED_TENSORS`, `UNKNOWN_TENSOR`, or a file that is not what it should be.
        CorruptMedia: A file that cannot be decoded.
        LimitExceeded: More than `limits` allows, before or after processing.
        Exception: Whatever else than ValueError the processor's code raises.
    """
    timings = Timings()
    with timings.stage("plan"):
        form = _form(request.pixel_form)
        arguments = read_arguments(model.processor, request.processor_arguments)
        refuse_large(model.processor, arguments, limits)
        sizes = {
            modality: _size(model, request.media, modality, arguments) for modality in (Modality.IMAGE, Modality.VIDEO)
        }
        text, media = render(model, request, limits)
        digests = [content_digest(medium) for medium in media]
        probed = probe_media(media, limits, check, choose or (choose_evenly if model.samples_frames else choose_every))
    with timings.stage("decode"):
        sample_rate_hz = getattr(part_of(model.processor, Modality.AUDIO), "sampling_rate", 0)
        substitutions: list[Substitution] = []
        contents = []
        for index, one in enumerate(probed):

            def substituted(chosen: int, used: int, item_index: int = index) -> None:
                substitutions.append(Substitution(item_index, chosen, used))

            contents.append(decode(one, sample_rate_hz, limits, check, request.video_decoder, substituted))
        own_sounds = [
            sound_of_video(one, sample_rate_hz, limits, check) if arguments.loads_sound else None for one in probed
        ]
    with timings.stage("process"):
        if text is None:
            call = chat_call(request, contents, sample_rate_hz, arguments)
        else:
            call = _call_arguments(model, text, probed, contents, own_sounds, sizes, arguments)
        output = _process(model, call, check, is_callers=bool(request.processor_arguments))
    with timings.stage("convert"):
        tensors = to_tensors(output, form)
        refuse_above(sum(tensor.nbytes for tensor in tensors.values()), limits, "the tensors")
    sources = [
        SoundInfo(sample_rate_hz, len(content) / sample_rate_hz) if one.source is None else one.source
        for one, content in zip(probed, contents, strict=True)
    ]
    decoders = [decoder_of(one, request.video_decoder) for one in probed]
    settings = [pixel_settings(one.medium, decoder, form) for one, decoder in zip(probed, decoders, strict=True)]
    decided = (
        model.fingerprint,
        sizes,
        settings,
        request.cache_salt,
        json.dumps(request.processor_arguments, sort_keys=True),
    )
    items = _items(probed, digests, sources, decoders, repr(decided))
    pixel_bytes = sum(tensor.nbytes for name, tensor in tensors.items() if name not in TEXT_TENSORS)
    told = item_tensors(model.processor, items, tensors["input_ids"])
    return Plan(items, tensors, timings, None, pixel_bytes, tuple(substitutions), told)


def _form(asked: PixelForm | None) -> PixelForm | None:
    if asked is PixelForm.UINT8:
        raise InvalidRequest(
            "this model runs through its own processor, which makes no uint8 pixels: ask for BF16, FP16 or FP32, or name no form",
            reason="UNSUPPORTED_PIXEL_FORM",
        )
    return asked


def _size(
    model: ProcessorSettings, media: Sequence[Media], modality: Modality, arguments: ProcessorArguments
) -> dict[str, int] | None:
    """The processor's `size` argument for the caller's pixel budget; None without a budget."""
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


def _call_arguments(
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


def _process(
    model: ProcessorSettings, call: Mapping[str, Any], check: Callable[[], None], *, is_callers: bool
) -> Mapping[str, Any]:
    """Call the processor, one thread at a time.

    transformers raises ValueError for input that it does not accept. An exception of any other type may be a bug of its code or
    ours, and is not caught: unless the caller gave arguments, whose values may break any line of a processor, or a sound that is
    shorter than what some processors analyse at once.
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


def _items(
    probed: Sequence[ProbedMedium],
    contents: Sequence[bytes],
    sources: Sequence[ImageInfo | VideoInfo | SoundInfo],
    decoders: Sequence[str],
    processing: str,
) -> tuple[ItemPlan, ...]:
    indices = [None if one.frames is None else one.frames.indices.tolist() for one in probed]
    modalities = [int(one.medium.modality) for one in probed]
    whole = hashlib.sha256(repr((processing, modalities, indices)).encode() + b"".join(contents))
    items = []
    for position, (one, source, decoder, content) in enumerate(zip(probed, sources, decoders, contents, strict=True)):
        digest = whole.copy()
        digest.update(position.to_bytes(4, "big"))
        items.append(
            ItemPlan(
                key=one.medium.key,
                modality=one.medium.modality,
                source=source,
                decoder=decoder,
                frames=one.frames,
                content_sha256=content,
                digest=digest.digest(),
            )
        )
    return tuple(items)
