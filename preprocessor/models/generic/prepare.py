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
from collections.abc import Callable, Sequence

from preprocessor.config import Limits
from preprocessor.errors import InvalidRequest
from preprocessor.media.checks import keep_going
from preprocessor.media.content import content_digest
from preprocessor.models.generic.argument_limits import refuse_large
from preprocessor.models.generic.arguments import read_arguments
from preprocessor.models.generic.call import call_arguments, call_processor, size_argument
from preprocessor.models.generic.media import (
    choose_evenly,
    choose_every,
    decode,
    probe_media,
    refuse_above,
    sound_of_video,
)
from preprocessor.models.generic.mistral_chat import chat_call
from preprocessor.models.generic.processor import ProcessorSettings, part_of
from preprocessor.models.generic.prompt import render
from preprocessor.models.generic.spans import item_tensors
from preprocessor.models.generic.tensors import TEXT_TENSORS, to_tensors
from preprocessor.models.probe import ChooseFrames, ProbedMedium, decoder_of
from preprocessor.models.versions import pixel_settings
from preprocessor.types.plan import ItemPlan, Plan, Substitution
from preprocessor.types.request import Modality, PixelForm, PreparationRequest
from preprocessor.types.source import ImageInfo, SoundInfo, VideoInfo
from preprocessor.types.timing import Timings


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
            modality: size_argument(model, request.media, modality, arguments)
            for modality in (Modality.IMAGE, Modality.VIDEO)
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
            call = call_arguments(model, text, probed, contents, own_sounds, sizes, arguments)
        output = call_processor(model, call, check, is_callers=bool(request.processor_arguments))
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
