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

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessor.config import Limits
from preprocessor.errors import LimitExceeded
from preprocessor.media.cpu import within_cpu_seconds
from preprocessor.models.family import Model
from preprocessor.models.generic import GenericModel, GenericPrepared, prepare_generic
from preprocessor.pipeline.decode_item import decode_item
from preprocessor.pipeline.plan_item import pixel_spec, plan_item
from preprocessor.pipeline.request_checks import check_request, render_prompt
from preprocessor.text.prompt import Replacement, expand_text, expand_token_ids, token_types
from preprocessor.types.plan import ExpandedPrompt, ItemPlan, PixelPlan, Plan
from preprocessor.types.request import Media, Modality, PixelForm, PreparationRequest, TokenPrompt
from preprocessor.types.result import PixelReport, Prepared, Substitution
from preprocessor.types.timing import Timings
from preprocessor.vision.patches import (
    PIXEL_DTYPES,
    normalization_table,
    normalize_rows,
    write_patches,
)
from preprocessor.vision.resize import resizer
from preprocessor.vision.spec import PixelSpec

RowsWritten = Callable[[int, int], None]
"""Called with (first row, row count) when those rows are final."""

Checkpoint = Callable[[], None]
"""Called between packets and frames; raises to stop the work."""


def _proceed(*_: object) -> None:
    pass


def prepare(model: Model | GenericModel, request: PreparationRequest, limits: Limits | None = None) -> Prepared:
    """Plan a request and make its pixels.

    Returns:
        `pixel_patches` uint8 [P, F] with `pixel_mean` and `pixel_std`, or `pixel_values` [P, F] in the asked float form,
        beside the tensors of the plan. Of a generic model, what its processor makes, under its own names.
    Raises:
        InvalidRequest, UnsupportedMedia, CorruptMedia, LimitExceeded: As `plan` and `write_pixels`.
    """
    planned = plan(model, request, limits or Limits())
    timings = Timings()
    timings.merge(planned.timings)
    tensors, substitutions = dict(planned.tensors), tuple[Substitution, ...]()
    if isinstance(planned, GenericPrepared):
        substitutions = planned.substitutions
    elif isinstance(model, Model) and planned.pixel_bytes:
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
            `SAMPLING_CONFLICT`, `INVALID_PIXEL_BUDGET`, `INVALID_TOKEN_ID`, `CHAT_TEMPLATE_FAILED`, `EMPTY_PROMPT`,
            `LITERAL_TEXT_REFUSED`, `DIGEST_MISMATCH`.
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
            items.append(plan_item(model, request, medium, row_start, limits, check_file))
        row_count = sum(item.grid.patch_count for item in items)
        features = model.image.feature_count
        pixel_bytes = _pixel_bytes(form, row_count * features, limits)
    with timings.stage("tokenize"):
        replacements = [_replacement(model, item) for item in items]
        if isinstance(request.prompt, TokenPrompt):
            prompt = expand_token_ids(model.tokenizer, model.placeholders, request.prompt.token_ids, replacements)
        else:
            prompt = expand_text(model.tokenizer, model.placeholders, text.text, replacements, text.literals, limits)
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
    decoded_frame_count = 0

    def decoded(frame_count: int) -> None:
        nonlocal decoded_frame_count
        decoded_frame_count += frame_count

    files = {medium.key: medium for medium in media}
    for index, item in enumerate(planned.items):
        groups = _groups_within(item, rows or range(planned.row_count))
        if not groups:
            continue

        def substituted(chosen: int, used: int, item_index: int = index) -> None:
            substitutions.append(Substitution(item_index, chosen, used))

        spec = pixel_spec(model, item.modality)
        frames = decode_item(
            files[item.key],
            item,
            slice(groups.start * spec.temporal_patch_size, groups.stop * spec.temporal_patch_size),
            planned.video_decoder,
            substituted,
            within_cpu_seconds(planned.max_file_cpu_seconds, check, item.key),
            decoded,
        )
        _write_item(frames, item, groups.start, spec, planned.form, out, rows_written, timings)
    return PixelReport(timings, tuple(substitutions), decoded_frame_count)


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
    resize = resizer((item.source.height_px, item.source.width_px), (item.height_px, item.width_px), last + 1)
    table = None if form is PixelForm.UINT8 else normalization_table(spec, form)
    scratch = None if table is None else np.empty((rows_each, spec.feature_count), np.uint8)
    row = item.row_start + first_group * rows_each
    stopwatch = timings.stopwatch()
    for number, frame in enumerate(frames, first_group * group_size):
        stopwatch.end("decode")
        planes = resize(frame)
        stopwatch.end("resize")
        target = out[row : row + rows_each]
        first = number % group_size
        is_whole = first == group_size - 1 or number == last
        positions = slice(first, group_size if is_whole else first + 1)
        write_patches(planes, spec, target if scratch is None else scratch, positions)
        stopwatch.end("patch")
        if not is_whole:
            continue
        if table is not None and scratch is not None:
            normalize_rows(scratch, table, target)
            stopwatch.end("normalize")
        rows_written(row, rows_each)
        row += rows_each
        stopwatch.restart()


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
