"""From a request to a prompt that an engine can run: the whole story, synchronous, no network.

Rules that hold here:

* `plan` decodes nothing. It reads headers, so that token ids, grids, positions and bytes are known, checked against the
  limits and sent to the caller before the first frame is decoded.
* `write_pixels` keeps the plan's promise: exactly `row_count` rows, in order, into memory that the caller owns. A frame
  is decoded, resized and cut into rows while it is in cache; rows that are finished are announced, so that they can be sent
  while the rest is decoded.
* Sampling happens once, in `plan`, on the file's own frames. Every later number (timestamps, positions, the report) comes
  from those indices.
* Everything taken and returned pickles. Nothing is kept between calls.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessor.config import Limits
from preprocessor.decoding import decode_item
from preprocessor.errors import InvalidRequest, LimitExceeded
from preprocessor.media.cpu import within_cpu_seconds
from preprocessor.media.image import probe_image
from preprocessor.media.sampling import Spread, choose_frames
from preprocessor.media.video import probe_video
from preprocessor.models.family import Model
from preprocessor.models.generic import GenericModel, GenericPrepared, prepare_generic
from preprocessor.requests import check_request, render_prompt
from preprocessor.text.prompt import Replacement, expand_text, expand_token_ids, token_types
from preprocessor.timing import Timings
from preprocessor.types.asked import Media, Modality, PixelForm, PreparationRequest, TokenPrompt
from preprocessor.types.found import ClipInfo, ImageInfo
from preprocessor.types.made import PixelReport, Prepared, Substitution
from preprocessor.types.planned import ExpandedPrompt, ItemPlan, PixelPlan, Plan
from preprocessor.vision.geometry import fit_image, patch_grid
from preprocessor.vision.patches import (
    PIXEL_DTYPES,
    normalization_table,
    normalize_rows,
    resize_frame,
    write_patches,
)
from preprocessor.vision.spec import PixelSpec, VideoSpec

RowsWritten = Callable[[int, int], None]
"""Called with (first row, row count) when those rows are final."""

Checkpoint = Callable[[], None]
"""Called between packets and frames; raises to stop the work."""


def _proceed(*_: object) -> None:
    pass


def prepare(model: Model | GenericModel, request: PreparationRequest, limits: Limits | None = None) -> Prepared:
    """Plan a request and make its pixels.

    Returns:
        Tensors by the engine contract's names: `pixel_patches` uint8 [P, F] with `pixel_mean` and `pixel_std`, or
        `pixel_values` [P, F] in the asked float form, beside those of the plan. Of a generic model, what its processor makes.
    Raises:
        InvalidRequest, UnsupportedMedia, CorruptMedia, LimitExceeded: As `plan` and `write_pixels`.
    """
    planned = plan(model, request, limits or Limits())
    timings = Timings()
    timings.merge(planned.timings)
    tensors, substitutions = dict(planned.tensors), tuple[Substitution, ...]()
    if isinstance(model, Model) and isinstance(planned, Plan) and planned.pixel_bytes:
        pixels = tensors[planned.pixels.name] = allocate_pixels(planned.pixels)
        report = write_pixels(model, request.media, planned.pixels, pixels)
        timings.merge(report.timings)
        substitutions = report.substitutions
    return Prepared(plan=planned, tensors=tensors, timings=timings, substitutions=substitutions)


def plan(
    model: Model | GenericModel, request: PreparationRequest, limits: Limits, check: Checkpoint = _proceed
) -> Plan | GenericPrepared:
    """Everything but the pixels, from headers alone; of a generic model everything, for only its processor knows.

    Args:
        check: Called between packets; whatever it raises ends the work.
    Raises:
        InvalidRequest: `PLACEHOLDER_MISMATCH`, `UNKNOWN_MEDIA_KEY`, `DUPLICATE_MEDIA_KEY`, `INVALID_SAMPLING`,
            `SAMPLING_CONFLICT`, `INVALID_PIXEL_BUDGET`, `INVALID_TOKEN_ID`, `CHAT_TEMPLATE_FAILED`, `EMPTY_PROMPT`.
        UnsupportedMedia, CorruptMedia: A file that is not what it should be; see `probe_video` and `probe_image`.
        LimitExceeded: More than `limits` allows.
    """
    check_request(request, model.modalities, limits)
    if isinstance(model, GenericModel):
        return prepare_generic(model, request, limits, check)
    return _plan_fast(model, request, limits, check)


def _plan_fast(model: Model, request: PreparationRequest, limits: Limits, check: Checkpoint) -> Plan:
    timings = Timings()
    with timings.stage("plan"):
        form = request.pixel_form or PixelForm.UINT8
        text, media = render_prompt(model, request, limits)
        items: list[ItemPlan] = []
        for medium in media:
            row_start = items[-1].row_start + items[-1].grid.patch_count if items else 0
            check_file = within_cpu_seconds(limits.max_file_cpu_seconds, check, medium.key)
            items.append(_plan_item(model, medium, request.cache_salt, row_start, limits, check_file))
        row_count = sum(item.grid.patch_count for item in items)
        features = model.image.feature_count
        pixel_bytes = _pixel_bytes(form, row_count * features, limits)
    with timings.stage("tokenize"):
        replacements = [_replacement(model, item) for item in items]
        if isinstance(request.prompt, TokenPrompt):
            prompt = expand_token_ids(model.tokenizer, model.placeholders, request.prompt.token_ids, replacements)
        else:
            prompt = expand_text(model.tokenizer, model.placeholders, text, replacements)
        positions, delta = model.family.positions(prompt, items, model)
    tensors = {
        "input_ids": prompt.token_ids,
        "mrope_position_ids": positions,
        "mrope_position_delta": np.array([delta], np.int32),
        **_item_tensors(model, items, prompt, request),
    }
    return Plan(
        pixels=PixelPlan(
            tuple(items),
            row_count,
            features,
            form,
            pixel_bytes,
            request.video_decoder,
            limits.max_file_cpu_seconds,
        ),
        prompt=prompt,
        mrope_position_ids=positions,
        mrope_position_delta=delta,
        tensors=tensors,
        timings=timings,
    )


def write_pixels(
    model: Model,
    media: Sequence[Media],
    planned: PixelPlan,
    out: npt.NDArray[Any],
    rows_written: RowsWritten = _proceed,
    check: Checkpoint = _proceed,
    rows: range | None = None,
) -> PixelReport:
    """Decode, resize and cut the items of the plan into their rows of `out`.

    Args:
        media: The files, by the keys of the items.
        out: [row_count, feature_count], C-contiguous, in the dtype of the plan's form; see `allocate_pixels`.
        rows_written: Told of finished rows, in order.
        check: Called between packets; whatever it raises ends the work.
        rows: Write only these; from `workload.cut`. None writes all.
    Raises:
        CorruptMedia: A frame that the header promised cannot be decoded.
    """
    timings = Timings()
    substitutions: list[Substitution] = []
    files = {medium.key: medium for medium in media}
    for index, item in enumerate(planned.items):
        groups = _groups_within(item, rows or range(planned.row_count))
        if not groups:
            continue

        def substituted(chosen: int, used: int, item_index: int = index) -> None:
            substitutions.append(Substitution(item_index, chosen, used))

        spec = _pixel_spec(model, item.modality)
        frames = decode_item(
            files[item.key],
            item,
            slice(groups.start * spec.temporal_patch_size, groups.stop * spec.temporal_patch_size),
            planned.video_decoder,
            substituted,
            within_cpu_seconds(planned.max_file_cpu_seconds, check, item.key),
        )
        _write_item(frames, item, groups.start, spec, planned.form, out, rows_written, timings)
    return PixelReport(timings, tuple(substitutions))


def _write_item(
    frames: Iterable[npt.NDArray[np.uint8]],
    item: ItemPlan,
    first_group: int,
    spec: PixelSpec,
    form: PixelForm,
    out: npt.NDArray[Any],
    rows_written: RowsWritten,
    timings: Timings,
) -> None:
    """Resize the frames of consecutive temporal patches of one item, from `first_group` on, and cut them into their rows."""
    group_size, rows_each = spec.temporal_patch_size, item.grid.h * item.grid.w
    last = 0 if item.frames is None else len(item.frames.indices) - 1
    table = None if form is PixelForm.UINT8 else normalization_table(spec, form)
    scratch = None if table is None else np.empty((rows_each, spec.feature_count), np.uint8)
    row = item.row_start + first_group * rows_each
    laps = timings.laps()
    for number, frame in enumerate(frames, first_group * group_size):
        laps.end("decode")
        frame = resize_frame(frame, item.height_px, item.width_px)
        laps.end("resize")
        target = out[row : row + rows_each]
        first = number % group_size
        is_whole = first == group_size - 1 or number == last
        positions = slice(first, group_size if is_whole else first + 1)
        write_patches(frame, spec, target if scratch is None else scratch, positions)
        laps.end("patch")
        if not is_whole:
            continue
        if table is not None and scratch is not None:
            normalize_rows(scratch, table, target)
            laps.end("normalize")
        rows_written(row, rows_each)
        row += rows_each
        laps.restart()


def allocate_pixels(planned: PixelPlan) -> npt.NDArray[Any]:
    """An uninitialized pixel tensor for `write_pixels`."""
    return np.empty((planned.row_count, planned.feature_count), PIXEL_DTYPES[planned.form])


def _groups_within(item: ItemPlan, rows: range) -> range:
    """The temporal patches of an item whose rows begin in `rows`."""
    rows_each = item.grid.h * item.grid.w
    first, stop = (-(-(row - item.row_start) // rows_each) for row in (rows.start, rows.stop))
    return range(min(max(first, 0), item.grid.t), min(max(stop, 0), item.grid.t))


def _item_tensors(
    model: Model, items: Sequence[ItemPlan], prompt: ExpandedPrompt, request: PreparationRequest
) -> dict[str, npt.NDArray[Any]]:
    """The contract's tensors that describe media; those that would be empty are left out."""
    tensors: dict[str, npt.NDArray[Any]] = {}
    if items:
        tensors = {
            "grid_thw": np.array([(item.grid.t, item.grid.h, item.grid.w) for item in items], np.int64),
            "item_modality": np.array([item.modality for item in items], np.int32),
            "item_spans": prompt.spans,
            "item_hash": np.frombuffer(b"".join(item.digest for item in items), np.uint8).reshape(-1, 32),
            **model.family.extra_tensors(items, model),
        }
    if request.with_token_types:
        tensors["mm_token_type_ids"] = token_types(prompt, [item.modality for item in items])
    if items and request.pixel_form in (None, PixelForm.UINT8):
        tensors["pixel_mean"] = np.array(model.image.mean, np.float32)
        tensors["pixel_std"] = np.array(model.image.std, np.float32)
    return tensors


def _plan_item(model: Model, medium: Media, salt: str, row_start: int, limits: Limits, check: Checkpoint) -> ItemPlan:
    """Probe one file and fix its frames, size and grid."""
    spec = _with_budget(_pixel_spec(model, medium.modality), medium)
    source: ImageInfo | ClipInfo
    if medium.modality is Modality.IMAGE:
        source = probe_image(medium.data, limits, medium.key)
        frames, frame_count = None, 1
        height, width = fit_image(
            source.height_px,
            source.width_px,
            factor=spec.factor,
            min_pixels=spec.min_pixels,
            max_pixels=spec.max_pixels,
        )
    else:
        source = probe_video(medium.data, limits, medium.key, check, medium.on_damage)
        video = _video_spec(model, medium, spec)
        frames = choose_frames(source, medium.sampling, _spread(model, medium, video), medium.key)
        frame_count = len(frames.indices)
        height, width = model.family.fit_video(frame_count, source.height_px, source.width_px, video)
    grid = patch_grid(frame_count, height, width, spec)
    content = hashlib.sha256(medium.data).digest()
    processing = repr((model.fingerprint, spec, grid, None if frames is None else frames.indices.tolist(), salt))
    return ItemPlan(
        key=medium.key,
        modality=medium.modality,
        source=source,
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
    return lambda total, rate: model.family.spread_frames(total, rate, medium.sampling, video)


def _video_spec(model: Model, medium: Media, pixels: PixelSpec) -> VideoSpec:
    """The model's video settings with the caller's overrides."""
    cap = model.video.cap_pixels_per_frame if medium.cap_pixels_per_frame is None else medium.cap_pixels_per_frame
    return dataclasses.replace(model.video, pixels=pixels, cap_pixels_per_frame=cap)


def _with_budget(spec: PixelSpec, medium: Media) -> PixelSpec:
    """The model's pixel settings with the caller's budget, where he gives one."""
    given = (medium.min_pixels, medium.max_pixels)
    least = spec.min_pixels if medium.min_pixels is None else medium.min_pixels
    most = spec.max_pixels if medium.max_pixels is None else medium.max_pixels
    if given != (None, None) and not 0 < least <= most:
        raise InvalidRequest(
            f"{medium.key}: min_pixels {least} and max_pixels {most}; 0 < min_pixels <= max_pixels is needed",
            reason="INVALID_PIXEL_BUDGET",
            media_key=medium.key,
        )
    return dataclasses.replace(spec, min_pixels=least, max_pixels=most)


def _pixel_spec(model: Model, modality: Modality) -> PixelSpec:
    return model.image if modality is Modality.IMAGE else model.video.pixels


def _replacement(model: Model, item: ItemPlan) -> Replacement:
    if item.modality is Modality.VIDEO:
        return model.family.replace_video(item, model)
    return Replacement(model.placeholders.tokens[item.modality], (item.token_count,))


def _pixel_bytes(form: PixelForm, value_count: int, limits: Limits) -> int:
    if form is PixelForm.NONE:
        return 0
    size = value_count * PIXEL_DTYPES[form].itemsize
    if size > limits.max_pixel_bytes:
        raise LimitExceeded(
            f"the pixel tensor would take {size} bytes; at most {limits.max_pixel_bytes} are accepted: "
            "ask for fewer frames or a smaller max_pixels",
            reason="PIXELS_TOO_LARGE",
        )
    return size
