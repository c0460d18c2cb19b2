"""Any model that transformers has a processor for: its own code runs, its own tensors leave.

The fast families know what a processor does and do it in a fraction of the time. Everything else comes here: media are
decoded as on the fast path, the chat is rendered by the model's template, and transformers does the rest.

Rules that hold here:

* The result equals `processor.apply_chat_template(…, tokenize=True, return_dict=True, return_tensors="pt")` with the same
  pixels: media go in nested in a list, and BOS is not added to a text that already begins with it.
* Sampling happens once, on the file's own frames; the processor is told not to sample (`do_sample_frames=False`) and which
  frames it got (`video_metadata`), so that its timestamps are true.
* Nothing is known before the processor has run: neither token count nor bytes. Only what is decoded is bounded ahead.
* How an item comes out may depend on its neighbours (one image is tiled, two are not; all are padded to the largest), so the
  digest of each holds the content of all.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessor.config import Limits
from preprocessor.errors import InvalidRequest, PreprocessorError, trace_of
from preprocessor.media.container import keep_going
from preprocessor.media.content import content_digest
from preprocessor.models.generic.media import (
    ChooseFrames,
    ProbedMedium,
    choose_evenly,
    decode,
    decoder_of,
    metadata_of,
    probe_media,
    refuse_above,
)
from preprocessor.models.generic.model import GenericModel, part_of
from preprocessor.models.generic.prompt import render
from preprocessor.models.generic.tensors import TEXT_TENSORS, ragged, to_tensors
from preprocessor.models.versions import pixel_settings
from preprocessor.types.request import Media, Modality, PixelForm, PreparationRequest
from preprocessor.types.result import Substitution
from preprocessor.types.source import ClipInfo, FrameChoice, ImageInfo, SoundInfo
from preprocessor.types.timing import Timings

_LOCK_POLL_SECONDS = 0.05  # how soon a request that waits for the processor notices that its caller has left
_MESSAGE_LENGTH = 500  # of transformers' own words in an error

# How transformers' processors word a wrong number of placeholders; they raise nothing more telling than ValueError.
_COUNTS_DIFFER = re.compile(r"\b(image|video|audio)s?\b.*\b(tokens?|number|placeholders?)\b", re.IGNORECASE)
_RAGGED = re.compile(r"Unable to convert output '(\w+)'")  # transformers 5.23, BatchFeature.convert_to_tensors


@dataclass(frozen=True, slots=True, eq=False)
class GenericItem:
    """One medium of a request, as used.

    Attributes:
        source: Header facts.
        decoder: The libraries that decode it, with versions.
        frames: The frames used of a video; None for all else.
        content_sha256: Digest of the file.
        digest: SHA-256 of the caller's salt and of everything that can change a value made of it, for caches.
    """

    key: str
    modality: Modality
    source: ImageInfo | ClipInfo | SoundInfo
    decoder: str
    frames: FrameChoice | None
    content_sha256: bytes
    digest: bytes


@dataclass(frozen=True, slots=True, eq=False)
class GenericPrepared:
    """A prompt ready for an engine.

    Attributes:
        token_ids: int32 [L], placeholders expanded; the same array as `tensors["input_ids"]`.
        tensors: All that the processor returned, under its own names; see `tensors.to_tensors`.
        items: The media in prompt order.
        substitutions: Damaged frames and what stands in their place.
    """

    token_ids: npt.NDArray[np.int32]
    tensors: Mapping[str, npt.NDArray[Any]] = field(repr=False)
    items: tuple[GenericItem, ...]
    timings: Timings
    substitutions: tuple[Substitution, ...] = ()

    @property
    def token_count(self) -> int:
        return len(self.token_ids)

    @property
    def pixel_bytes(self) -> int:
        """Bytes of everything but the text's tensors."""
        return sum(tensor.nbytes for name, tensor in self.tensors.items() if name not in TEXT_TENSORS)


def prepare_generic(
    model: GenericModel,
    request: PreparationRequest,
    limits: Limits,
    check: Callable[[], None] = keep_going,
    choose: ChooseFrames = choose_evenly,
) -> GenericPrepared:
    """Prepare a request with the model's own processor.

    Args:
        request: Checked by `check_request`. Without a `pixel_form` pixels stay as the processor makes them, float32 wherever
            known; BF16, FP16 and FP32 round that; NONE leaves out all but the text's tensors, though the work is done all the
            same.
        check: Called between packets and stages; whatever it raises ends the work. The processor is not interrupted.
        choose: Which frames of a video to use.
    Raises:
        InvalidRequest: As `prompt.render`; `UNSUPPORTED_PIXEL_FORM` for UINT8; `INVALID_PIXEL_BUDGET` for a budget that this
            processor does not take; `DIGEST_MISMATCH`; `PROCESSOR_REFUSED`, with transformers' own words, for what its code
            refuses.
        UnsupportedMedia: `UNSUPPORTED_MODALITY`, `RAGGED_TENSORS`, `UNKNOWN_TENSOR`, or a file that is not what it should be.
        CorruptMedia: A file that cannot be decoded.
        LimitExceeded: More than `limits` allows, before or after processing.
        Exception: Whatever else than ValueError the processor's code raises.
    """
    timings = Timings()
    with timings.stage("plan"):
        form = _form(request.pixel_form)
        sizes = {modality: _size(model, request.media, modality) for modality in (Modality.IMAGE, Modality.VIDEO)}
        text, media = render(model, request, limits)
        digests = [content_digest(medium) for medium in media]
        probed = probe_media(media, limits, check, choose)
    with timings.stage("decode"):
        sample_rate_hz = getattr(part_of(model.processor, Modality.AUDIO), "sampling_rate", 0)
        substitutions: list[Substitution] = []
        contents = []
        for index, one in enumerate(probed):

            def substituted(chosen: int, used: int, item_index: int = index) -> None:
                substitutions.append(Substitution(item_index, chosen, used))

            contents.append(decode(one, sample_rate_hz, limits, check, request.video_decoder, substituted))
    with timings.stage("process"):
        output = _process(model, _arguments(model, text, probed, contents, sizes), check)
    with timings.stage("convert"):
        tensors = to_tensors(output, form)
        refuse_above(sum(tensor.nbytes for tensor in tensors.values()), limits, "the tensors")
    sources = [
        SoundInfo(sample_rate_hz, len(content) / sample_rate_hz) if one.source is None else one.source
        for one, content in zip(probed, contents, strict=True)
    ]
    decoders = [decoder_of(one, request.video_decoder) for one in probed]
    settings = [pixel_settings(one.medium, decoder, form) for one, decoder in zip(probed, decoders, strict=True)]
    processing = repr((model.fingerprint, sizes, settings, request.cache_salt))
    items = _items(probed, digests, sources, decoders, processing)
    return GenericPrepared(tensors["input_ids"], tensors, items, timings, tuple(substitutions))


def _form(asked: PixelForm | None) -> PixelForm | None:
    if asked is PixelForm.UINT8:
        raise InvalidRequest(
            "this model runs through its own processor, which makes no uint8 pixels: ask for BF16, FP16 or FP32, or name no form",
            reason="UNSUPPORTED_PIXEL_FORM",
        )
    return asked


def _size(model: GenericModel, media: Sequence[Media], modality: Modality) -> dict[str, int] | None:
    """The processor's `size` argument for the caller's pixel budget; None where he gives none.

    Only processors that fit an image to whole merged patches within a budget (the Qwen and GLM way) count pixels in `size`;
    elsewhere the same words are lengths of an edge.
    """
    kind = modality.name.lower()
    given = {(one.min_pixels, one.max_pixels, one.cap_pixels_per_frame) for one in media if one.modality is modality}
    if given <= {(None, None, None)}:
        return None
    part = part_of(model.processor, modality)
    own = {name: value for name, value in dict(part.size or {}).items() if value is not None}
    counts_pixels = own.keys() == {"shortest_edge", "longest_edge"} and hasattr(part, "merge_size")
    if not counts_pixels or any(cap is not None for _, _, cap in given):
        raise _bad_budget(f"this model's processor takes no such pixel budget for its {kind}s; leave it out")
    if len(given) > 1:
        raise _bad_budget(f"this model's processor takes one pixel budget for all {kind}s of a request")
    ((min_pixels, max_pixels, _),) = given
    least = own["shortest_edge"] if min_pixels is None else min_pixels
    most = own["longest_edge"] if max_pixels is None else max_pixels
    return {"shortest_edge": least, "longest_edge": most}


def _bad_budget(message: str) -> InvalidRequest:
    return InvalidRequest(message, reason="INVALID_PIXEL_BUDGET")


def _arguments(
    model: GenericModel,
    text: str,
    probed: Sequence[ProbedMedium],
    contents: Sequence[Any],
    sizes: Mapping[Modality, dict[str, int] | None],
) -> dict[str, Any]:
    """The processor's arguments, as its own `apply_chat_template` passes them (transformers 5.23, ProcessorMixin)."""
    by_modality: dict[Modality, list[Any]] = {modality: [] for modality in Modality}
    for one, content in zip(probed, contents, strict=True):
        by_modality[one.medium.modality].append(content)
    images, videos, sounds = (by_modality[modality] for modality in (Modality.IMAGE, Modality.VIDEO, Modality.AUDIO))
    arguments: dict[str, Any] = {
        "text": text,
        "images": [images] if images else None,
        "videos": [videos] if videos else None,
        "audio": sounds or None,
        "return_tensors": "pt",
    }
    bos = model.tokenizer.bos_token
    if bos is not None and text.startswith(bos):
        arguments["add_special_tokens"] = False
    if sounds:
        arguments["sampling_rate"] = part_of(model.processor, Modality.AUDIO).sampling_rate
    if size := sizes[Modality.IMAGE]:
        arguments["images_kwargs"] = {"size": size}
    if videos:
        metadata = [metadata_of(one) for one in probed if one.medium.modality is Modality.VIDEO]
        arguments["videos_kwargs"] = {"do_sample_frames": False, "video_metadata": metadata}
        if "video_second_per_grid" in model.processor.model_input_names:
            arguments["videos_kwargs"]["fps"] = _one_rate(probed)
        if size := sizes[Modality.VIDEO]:
            arguments["videos_kwargs"]["size"] = size
    return arguments


def _one_rate(probed: Sequence[ProbedMedium]) -> float:
    """Sampled frames a second, for processors that want it said (Qwen-Omni's take 2 else) and take one for all videos.

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


def _process(model: GenericModel, arguments: Mapping[str, Any], check: Callable[[], None]) -> Mapping[str, Any]:
    """Call the processor, one thread at a time.

    transformers raises ValueError for input that it does not accept. Any other type is a fault of its code or ours, not known
    to be the caller's, and goes on as it is.
    """
    while not model.lock.acquire(timeout=_LOCK_POLL_SECONDS):
        check()
    try:
        check()
        try:
            output: Mapping[str, Any] = model.processor(**arguments)
        except ValueError as error:
            refusal = _refusal(model, error)
            refusal.trace = trace_of(
                error
            )  # a wrong setting of the model's or a fault of its code may say ValueError, too
            raise refusal from error
    finally:
        model.lock.release()
    return output


def _refusal(model: GenericModel, error: ValueError) -> PreprocessorError:
    message = " ".join(str(error).split())[:_MESSAGE_LENGTH] or type(error).__name__
    if found := _RAGGED.match(message):
        return ragged(found[1])
    # Named placeholders are counted before; of the others only the processor knows.
    reason = "PROCESSOR_REFUSED"
    if not model.modalities <= model.placeholders.keys() and _COUNTS_DIFFER.search(message):
        reason = "PLACEHOLDER_MISMATCH"
    return InvalidRequest(f"the model's processor does not accept this request: {message}", reason=reason)


def _items(
    probed: Sequence[ProbedMedium],
    contents: Sequence[bytes],
    sources: Sequence[ImageInfo | ClipInfo | SoundInfo],
    decoders: Sequence[str],
    processing: str,
) -> tuple[GenericItem, ...]:
    indices = [None if one.frames is None else one.frames.indices.tolist() for one in probed]
    modalities = [int(one.medium.modality) for one in probed]
    whole = hashlib.sha256(repr((processing, modalities, indices)).encode() + b"".join(contents))
    items = []
    for position, (one, source, decoder, content) in enumerate(zip(probed, sources, decoders, contents, strict=True)):
        digest = whole.copy()
        digest.update(position.to_bytes(4, "big"))
        items.append(
            GenericItem(
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
