"""What a worker says is checked before anything uses it: an untrusted file may have taken over a decoder in it."""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from preprocessor.config import Limits
from preprocessor.errors import PreprocessorError
from preprocessor.models.loaded import PlannedItem
from preprocessor.pipeline.early import MOST_CUTS
from preprocessor.text.encoded_text import MAX_CUTS, EncodedText
from preprocessor.types.plan import ItemPlan, PixelPlan, Plan
from preprocessor.types.request import Media, PixelForm, PreparationRequest
from preprocessor.types.result import PixelReport
from preprocessor.types.timing import Timings
from preprocessor.vision.patches import PIXEL_DTYPES

_PLANNED = tuple[Plan, dict[str, PlannedItem], EncodedText | None]
_PLANNED_EARLY = tuple[PixelPlan | None, tuple[tuple[int, str, int], ...]]
_DIGEST_BYTES = 32
_MAX_TEXT = 1 << 20  # characters of an error, the traceback for the log included
_MAX_STAGES = 64
_MAX_NAME = 64  # characters of a stage's
_MISSING = object()
_REASON = re.compile(r"[A-Z][A-Z0-9_]{1,63}")


VIOLATION_KINDS = ("system_call", "message", "rows", "result", "threads", "cpu_time")
"""Labels of `preprocessor_worker_violations_total`."""


class Violation(Exception):
    """A worker did what none of this project's code does. It is killed, and its task is not tried again.

    Args:
        kind: One of `VIOLATION_KINDS`.
    """

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(what)
        self.kind = kind


def check_rows(first_row: int, row_count: int, expected: range) -> int:
    """Check rows that are said to be finished.

    Args:
        expected: Those of the task that are not finished yet.
    Returns:
        The row after them.
    Raises:
        Violation: They are not the next ones.
    """
    _require(type(first_row) is int and type(row_count) is int, "rows", "row numbers that are no numbers")
    stop = first_row + row_count
    _require(
        first_row == expected.start and first_row < stop <= expected.stop,
        "rows",
        f"rows {first_row} to {stop} of {expected.start} to {expected.stop}",
    )
    return stop


def check_error(error: PreprocessorError) -> None:
    """Check an error that a payload raised.

    Raises:
        Violation: It cannot be sent to a caller.
    """
    texts = [error.message, error.reason, error.field, error.trace, *error.metadata, *error.metadata.values()]
    _require(all(type(text) is str for text in texts), "result", "an error with other values than text")
    _require(sum(map(len, texts)) <= _MAX_TEXT, "result", "an error of too much text")
    _require(_REASON.fullmatch(error.reason) is not None, "result", "an error whose reason is none")


def check_report(report: Any, plan: PixelPlan) -> None:
    """Check the result of writing pixels.

    Raises:
        Violation: It does not belong to the plan.
    """
    _require(type(report) is PixelReport and _has_no_parts(report.timings), "result", "no report of pixels")
    _require(conforms(report, PixelReport), "result", "no report of pixels")
    _check_timings(report.timings)
    _check_substitutions(report.substitutions, plan.items)
    _require(report.decoded_frame_count >= 0, "result", "a negative count of frames")


def check_plan(outcome: Any, request: PreparationRequest, limits: Limits) -> None:
    """Check the result of planning: that later steps can rely on its numbers, and that it is about this request.

    Args:
        outcome: A plan, and items and a text for later requests, which go to workers alone.
    Raises:
        Violation: It is not.
    """
    is_triple = type(outcome) is tuple and len(outcome) == 3 and type(outcome[0]) is Plan
    _require(is_triple and _has_no_parts(outcome[0].timings), "result", "no plan")
    _require(conforms(outcome, _PLANNED), "result", "no plan")
    plan, items, text = outcome
    _require(items.keys() <= {medium.key for medium in request.media}, "result", "items of other media")
    if text is not None:
        _check_text(text)
    _check_timings(plan.timings)
    _check_substitutions(plan.substitutions, plan.items)
    _check_items(plan.items, request.media)
    for name, tensor in plan.tensors.items():
        _require(not tensor.dtype.hasobject, "result", f"a tensor {name} of objects")
    token_ids = plan.tensors.get("input_ids")
    _require(token_ids is not None and token_ids.ndim == 1, "result", "a plan without token ids")
    held_bytes = sum(tensor.nbytes for tensor in plan.tensors.values())
    _require(0 <= plan.pixel_bytes <= max(limits.max_pixel_bytes, held_bytes), "result", "a wrong size of pixels")
    if plan.pixels is not None:
        _check_pixels(plan.pixels, plan.items, request, limits)
        _require(plan.pixel_bytes == plan.pixels.size_bytes, "result", "two sizes of pixels")


def check_early_plan(outcome: Any, request: PreparationRequest, limits: Limits) -> None:
    """Check the result of planning a request whose files are still arriving, as `check_plan`.

    Args:
        outcome: A plan of pixels or None, and where its rows can be cut.
    Raises:
        Violation: It is no such result, or not about this request.
    """
    _require(conforms(outcome, _PLANNED_EARLY), "result", "no early plan")
    pixels, cuts = outcome
    if pixels is None:
        return
    _check_items(pixels.items, request.media)
    _check_pixels(pixels, pixels.items, request, limits)
    _require(len(cuts) <= MOST_CUTS, "result", "too many cuts")
    rows = [row for row, _, _ in cuts]
    _require(rows == sorted(rows) and all(0 <= row < pixels.row_count for row in rows), "result", "cuts in no order")
    _require({key for _, key, _ in cuts} <= {medium.key for medium in request.media}, "result", "cuts of other media")


def _check_text(text: EncodedText) -> None:
    cut_count = len(text.cuts)
    shapes = text.token_ids.ndim, text.cuts.shape, text.digests.shape
    _require(
        cut_count <= MAX_CUTS and shapes == (1, (cut_count, 2), (cut_count, _DIGEST_BYTES)), "result", "an odd text"
    )
    counts = text.cuts[:, 1]
    _require(
        bool((np.diff(text.cuts, axis=0) >= 0).all()) and bool((text.cuts >= 0).all()), "result", "cuts in disorder"
    )
    most = max([text.reused_count, *counts.tolist()])
    _require(text.reused_count >= 0 and most <= len(text.token_ids), "result", "cuts behind the text")


def _check_items(items: Sequence[ItemPlan], media: Sequence[Media]) -> None:
    given = {medium.key: medium for medium in media}
    _require({item.key for item in items} <= given.keys(), "result", "other media")
    row = 0
    for item in items:
        medium, rows = given[item.key], item.rows
        _require(item.modality is medium.modality, "result", "another modality")
        digests = item.digest, item.content_sha256, item.uint8_digest or bytes(_DIGEST_BYTES)
        _require({_DIGEST_BYTES} == set(map(len, digests)), "result", "digests of a wrong length")
        for known in (medium.content_sha256, medium.file_sha256):
            _require(known in (None, item.content_sha256), "result", "another digest than the file's")
        counts = (rows.group_count, rows.group_rows, rows.group_frames, rows.width_px, rows.height_px, item.token_count)
        _require(min(counts) >= 0, "result", "a negative count")
        _require(item.row_start == row or not rows.row_count, "result", "rows that overlap")
        row += rows.row_count
        if item.frames is not None:
            indices = item.frames.indices
            lengths = {len(indices), len(item.frames.times_seconds), len(item.frames.prompt_times_seconds)}
            _require(indices.ndim == 1 and len(lengths) == 1, "result", "frames without times")


def _check_pixels(pixels: PixelPlan, items: Sequence[ItemPlan], request: PreparationRequest, limits: Limits) -> None:
    _require(len(pixels.items) == len(items), "result", "pixels of other items")
    _require(all(ours is theirs for ours, theirs in zip(pixels.items, items, strict=True)), "result", "other items")
    _require(pixels.row_count == sum(item.rows.row_count for item in items), "result", "another number of rows")
    _require(pixels.form is (request.pixel_form or PixelForm.UINT8), "result", "another form of pixels")
    size_bytes = pixels.row_count * pixels.feature_count * PIXEL_DTYPES[pixels.form].itemsize
    _require(0 < size_bytes == pixels.size_bytes <= limits.max_pixel_bytes, "result", "a wrong size of pixels")
    settings = (pixels.video_decoder, pixels.max_file_cpu_seconds)
    _require(settings == (request.video_decoder, limits.max_file_cpu_seconds), "result", "other settings")


def _check_substitutions(substitutions: Any, items: Sequence[ItemPlan]) -> None:
    for one in substitutions:
        _require(0 <= one.item_index < len(items), "result", "a frame of no item")
        _require(min(one.frame_index, one.used_frame_index) >= 0, "result", "a frame before the first")


def _has_no_parts(timings: Any) -> bool:
    """Timings within timings could repeat each other so often that nobody would come to their end."""
    return type(timings) is Timings and type(timings.parts) is list and not timings.parts


def _check_timings(timings: Timings) -> None:
    _require(len(timings.stages) <= _MAX_STAGES, "result", "too many timings")
    for name, spent in timings.stages.items():
        _require(name.isidentifier() and len(name) <= _MAX_NAME, "result", "a stage without a name")
        values = (spent.wall_ms, spent.cpu_ms, spent.started_seconds, spent.ended_seconds)
        _require(bool(np.isfinite(values).all()), "result", "a time that is none")


def _require(is_so: bool, kind: str, otherwise: str) -> None:
    if not is_so:
        raise Violation(kind, otherwise)


def conforms(value: Any, hint: Any) -> bool:
    """Whether a value is what a type hint says, through data classes and containers."""
    return _check_of(hint)(value)


@functools.cache
def _check_of(hint: Any) -> Callable[[Any], bool]:
    """What tells whether a value is what a hint says. The hint is taken apart once: a plan has hundreds of values."""
    if hint is Any:
        return lambda value: True
    if dataclasses.is_dataclass(hint):  # or one derived from it; only this project's own can be unpickled
        kind = typing.cast(Any, hint)
        return lambda value: (
            isinstance(value, kind)
            and all(
                check(getattr(value, name, _MISSING)) for name, check in _field_checks(typing.cast(Any, type(value)))
            )
        )
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is np.ndarray:
        dtype = arguments[1]
        return lambda value: type(value) is np.ndarray and (dtype == np.dtype[Any] or _is_dtype(value, dtype))
    checks = tuple(_check_of(one) for one in arguments if one is not ...)
    if origin in (types.UnionType, typing.Union):
        return lambda value: any(check(value) for check in checks)
    if origin is tuple and arguments[-1] is not ...:
        return lambda value: (
            type(value) is tuple
            and len(value) == len(checks)
            and all(check(one) for check, one in zip(checks, value, strict=True))
        )
    if origin in (tuple, list):
        return lambda value: type(value) is origin and all(map(checks[0], value))
    if origin in (dict, Mapping):
        return lambda value: type(value) is dict and all(map(checks[0], value)) and all(map(checks[1], value.values()))
    return lambda value: type(value) is hint or (hint is float and type(value) is int)


def _is_dtype(array: np.ndarray[Any, Any], hint: Any) -> bool:
    (scalar,) = typing.get_args(hint)
    return scalar is Any or array.dtype == np.dtype(scalar)


@functools.cache
def _field_checks(kind: Any) -> Sequence[tuple[str, Callable[[Any], bool]]]:
    """The names of a data class's fields, each with what checks its value."""
    hints = typing.get_type_hints(kind)
    return [(one.name, _check_of(hints[one.name])) for one in dataclasses.fields(kind)]
