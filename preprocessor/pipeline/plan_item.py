"""One medium of a request → its plan: frames chosen, size and grid fixed, from the file's headers alone."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable

from preprocessor.config import Limits
from preprocessor.media.content import content_digest
from preprocessor.media.image import probe_image
from preprocessor.media.sampling import Spread, choose_frames
from preprocessor.media.video import probe_video, video_decoder_of
from preprocessor.models.family import Model
from preprocessor.models.versions import pixel_settings
from preprocessor.types.plan import ItemPlan
from preprocessor.types.request import Media, Modality, PreparationRequest
from preprocessor.types.source import ClipInfo, ImageInfo
from preprocessor.vision.geometry import fit_image, patch_grid
from preprocessor.vision.spec import PixelSpec, VideoSpec


def plan_item(
    model: Model,
    request: PreparationRequest,
    medium: Media,
    row_start: int,
    limits: Limits,
    check: Callable[[], None],
) -> ItemPlan:
    """Probe one file of a request and fix its frames, size and grid."""
    spec = _with_budget(pixel_spec(model, medium.modality), medium)
    content = content_digest(medium)  # before the file is read: one damaged on its way is no caller's corrupt file
    source: ImageInfo | ClipInfo
    if medium.modality is Modality.IMAGE:
        source = probe_image(medium.data, limits, medium.key)
        decoder, frames, frame_count = source.decoder, None, 1
        height, width = fit_image(
            source.height_px,
            source.width_px,
            factor=spec.factor,
            min_pixels=spec.min_pixels,
            max_pixels=spec.max_pixels,
        )
    else:
        source = probe_video(medium.data, limits, medium.key, check, medium.on_damage)
        decoder = video_decoder_of(source, request.video_decoder)
        video = _video_spec(model, medium, spec)
        frames = choose_frames(source, medium.sampling, _spread(model, medium, video), medium.key)
        frame_count = len(frames.indices)
        height, width = model.family.fit_video(frame_count, source.height_px, source.width_px, video)
    grid = patch_grid(frame_count, height, width, spec)
    # The rate changes no pixel, but temporal positions, which the engine's key-value cache holds with the pixels.
    chosen = None if frames is None else (frames.indices.tolist(), frames.sampled_fps)
    settings = pixel_settings(medium, decoder, request.pixel_form)
    processing = repr((model.fingerprint, spec, grid, chosen, settings, request.cache_salt))
    return ItemPlan(
        key=medium.key,
        modality=medium.modality,
        source=source,
        decoder=decoder,
        frames=frames,
        padded_frame_count=-frame_count % spec.temporal_patch_size,
        grid=grid,
        width_px=width,
        height_px=height,
        row_start=row_start,
        token_count=grid.patch_count // spec.merge_size**2,
        content_sha256=content,
        digest=hashlib.sha256(content + processing.encode()).digest(),
    )


def _spread(model: Model, medium: Media, video: VideoSpec) -> Spread:
    """The family's rule for this medium."""
    return lambda total, rate: model.family.sample_indices(total, rate, medium.sampling, video)


def _video_spec(model: Model, medium: Media, pixels: PixelSpec) -> VideoSpec:
    """The model's video settings with the caller's overrides."""
    cap = model.video.cap_pixels_per_frame if medium.cap_pixels_per_frame is None else medium.cap_pixels_per_frame
    return dataclasses.replace(model.video, pixels=pixels, cap_pixels_per_frame=cap)


def _with_budget(spec: PixelSpec, medium: Media) -> PixelSpec:
    """The model's pixel settings with the caller's budget, where he gives one.

    A single bound is not held against the model's other one, of which the caller need not know: as in transformers.
    """
    least = spec.min_pixels if medium.min_pixels is None else medium.min_pixels
    most = spec.max_pixels if medium.max_pixels is None else medium.max_pixels
    return dataclasses.replace(spec, min_pixels=least, max_pixels=most)


def pixel_spec(model: Model, modality: Modality) -> PixelSpec:
    return model.image if modality is Modality.IMAGE else model.video.pixels
