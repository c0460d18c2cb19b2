"""One medium of a request → its plan: frames chosen, size and rows fixed, from the file's headers alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from preprocessor.config import Limits
from preprocessor.media.content import content_digest
from preprocessor.media.sampling import choose_frames
from preprocessor.models.family.budget import refuse_bounds
from preprocessor.models.family.rules import ItemLayout, ModelSettings
from preprocessor.models.probe import ChooseFrames, decoder_of, probe_medium
from preprocessor.models.versions import pixel_settings
from preprocessor.types.plan import ItemPlan
from preprocessor.types.request import Media, Modality, PixelForm, PreparationRequest
from preprocessor.types.source import ClipInfo, FrameChoice


def frames_by_family(model: ModelSettings) -> ChooseFrames:
    """Which frames of a video the family takes, where the caller names none."""

    def choose(clip: ClipInfo, medium: Media) -> FrameChoice:
        video = model.for_medium(medium).video

        def spread(total: int, rate: float) -> npt.NDArray[np.int64]:
            if video.takes_every_frame and medium.sampling.fps is medium.sampling.frame_count is None:
                return np.arange(total)
            return model.family.sample_indices(total, rate, medium.sampling, video)

        return choose_frames(clip, medium.sampling, spread, medium.key)

    return choose


def plan_item(
    model: ModelSettings,
    request: PreparationRequest,
    medium: Media,
    row_start: int,
    limits: Limits,
    check: Callable[[], None],
) -> tuple[ItemPlan, ItemLayout]:
    """Probe one file of a request and lay it out as the model's family does.

    Args:
        row_start: Rows of the items before it.
    Raises:
        InvalidRequest: `INVALID_PIXEL_BUDGET` for a bound that the family cannot heed.
        PreprocessorError: As probing the file does.
    """
    family = model.family
    refuse_bounds(medium, family.image_bounds if medium.modality is Modality.IMAGE else family.video_bounds)
    settings = model.for_medium(medium)
    content = content_digest(medium)  # before the file is read: one damaged on its way is no caller's corrupt file
    probed = probe_medium(medium, limits, check, frames_by_family(model))
    assert probed.source is not None, "sounds take the generic path"
    layout = family.layout(probed, settings)
    decoder, frames = decoder_of(probed, request.video_decoder), probed.frames
    # The rate changes no pixel, but it changes temporal positions, which the engine's key-value cache depends on too.
    chosen = None if frames is None else (frames.indices.tolist(), frames.sampled_fps)

    def digest(form: PixelForm | None) -> bytes:
        decided = (
            model.fingerprint,
            settings.pixels_of(medium.modality),
            layout.rows.grid or layout.rows,  # a grid determines the sizes
            chosen,
            pixel_settings(medium, decoder, form),
            request.cache_salt,
        )
        return hashlib.sha256(content + repr(decided).encode()).digest()

    item = ItemPlan(
        key=medium.key,
        modality=medium.modality,
        source=probed.source,
        decoder=decoder,
        frames=frames,
        content_sha256=content,
        digest=digest(request.pixel_form),
        uint8_digest=digest(PixelForm.UINT8),
        rows=layout.rows,
        row_start=row_start,
        token_count=sum(layout.spans.span_lengths),
    )
    return item, layout
