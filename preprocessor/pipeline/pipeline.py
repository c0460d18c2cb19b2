"""From a request to a prompt that an engine can run: the whole story, synchronous, no network.

Rules that hold here:

* `plan` decodes nothing. It reads headers, so that token ids, grids, positions and bytes are known, checked against the
  limits and sent to the caller before the first frame is decoded. A generic model's processor is the exception: it does all
  of the work in `plan`, and leaves no pixels to be written.
* `write_pixels` writes exactly the `row_count` rows that were planned, in order, into memory that the caller owns. A frame is
  decoded, resized and cut into rows while it is in cache. Finished rows are announced, so that they can be sent while the rest is
  decoded.
* Sampling happens once, in `plan`, on the file's own frames. Every later number (timestamps, positions, the report) comes
  from those indices.
* Everything taken and returned pickles. Nothing is kept between calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessor.config import Limits
from preprocessor.media.container import keep_going
from preprocessor.media.cpu import within_cpu_seconds
from preprocessor.models.loaded import CancelCheck, LoadedModel, PlannedItem, RowWriter
from preprocessor.pipeline.decode_item import decode_item
from preprocessor.pipeline.request_checks import check_request
from preprocessor.types.plan import ItemPlan, PixelPlan, Plan, Substitution
from preprocessor.types.request import Media, PreparationRequest
from preprocessor.types.result import PixelReport, Prepared
from preprocessor.types.timing import Timings
from preprocessor.vision.patches import PIXEL_DTYPES, normalize_rows

AnnounceRows = Callable[[int, int], None]
"""Called with (first row, row count) when those rows are final."""


def _announce_nothing(first_row: int, row_count: int) -> None:
    pass


def prepare(model: LoadedModel, request: PreparationRequest, limits: Limits | None = None) -> Prepared:
    """Plan a request and make its pixels.

    Returns:
        `pixel_patches` uint8 [P, F] with `pixel_mean` and `pixel_std`, or `pixel_values` [P, F] in the requested float
        form, beside the tensors of the plan. For a generic model, its processor's output under its own names.
    Raises:
        InvalidRequest, UnsupportedMedia, CorruptMedia, LimitExceeded: As `plan` and `write_pixels`.
    """
    planned = plan(model, request, limits or Limits())
    timings = Timings()
    timings.merge(planned.timings)
    tensors, substitutions, decoded_frame_count = dict(planned.tensors), planned.substitutions, 0
    if planned.pixels is not None:
        pixels = tensors[planned.pixels.name] = allocate_pixels(planned.pixels)
        report = write_pixels(model, request.media, planned.pixels, pixels)
        timings.merge(report.timings)
        substitutions += report.substitutions
        decoded_frame_count = report.decoded_frame_count
    return Prepared(planned, tensors, timings, substitutions, decoded_frame_count)


def plan(
    model: LoadedModel,
    request: PreparationRequest,
    limits: Limits,
    check: CancelCheck = keep_going,
    planned_items: MutableMapping[str, PlannedItem] | None = None,
) -> Plan:
    """Everything but the pixels, from headers alone. For a generic model the pixels too: its processor makes all at once.

    Args:
        check: Called between packets; whatever it raises ends the work.
        planned_items: As in `LoadedModel.plan`.
    Raises:
        InvalidRequest: `PLACEHOLDER_MISMATCH`, `UNKNOWN_MEDIA_KEY`, `DUPLICATE_MEDIA_KEY`, `INVALID_SAMPLING`,
            `SAMPLING_CONFLICT`, `INVALID_PIXEL_BUDGET`, `INVALID_TOKEN_ID`, `CHAT_TEMPLATE_FAILED`, `EMPTY_PROMPT`,
            `LITERAL_TEXT_REFUSED`, `DIGEST_MISMATCH`, `INVALID_PROCESSOR_ARGUMENTS`.
        UnsupportedMedia, CorruptMedia: A file that is not what it should be; see `probe_video` and `probe_image`.
        LimitExceeded: More than `limits` allows.
    """
    check_request(request, model.modalities, limits)
    model.check_arguments(request.processor_arguments)
    return model.plan(request, limits, check, {} if planned_items is None else planned_items)


def write_pixels(
    model: LoadedModel,
    media: Sequence[Media],
    planned: PixelPlan,
    out: npt.NDArray[Any],
    announce: AnnounceRows = _announce_nothing,
    check: CancelCheck = keep_going,
    rows: range | None = None,
    cached: Mapping[int, npt.NDArray[Any]] | None = None,
) -> PixelReport:
    """Decode the items of the plan and write them into their rows of `out`.

    Args:
        media: The files, by the keys of the items.
        out: [row_count, feature_count], C-contiguous, in the dtype of the plan's form; see `allocate_pixels`.
        announce: Called for finished rows, in order.
        check: Called between packets; whatever it raises ends the work.
        rows: Write only these; from `cost.cut`. None writes all.
        cached: Finished rows of items, by index: these are copied, and their files not read.
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
        if cached is not None and index in cached:
            check()
            with timings.stage("copy"):
                _copy_groups(cached[index], item, groups, out, announce)
            continue

        def substituted(chosen: int, used: int, item_index: int = index) -> None:
            substitutions.append(Substitution(item_index, chosen, used))

        frames = decode_item(
            files[item.key],
            item,
            slice(groups.start * item.rows.group_frames, groups.stop * item.rows.group_frames),
            planned.video_decoder,
            substituted,
            within_cpu_seconds(planned.max_file_cpu_seconds, check, item.key),
            decoded,
        )
        _write_item(frames, item, groups.start, model.row_writer(item, planned.form), out, announce, timings)
    return PixelReport(timings, tuple(substitutions), decoded_frame_count)


def _write_item(
    frames: Iterable[npt.NDArray[np.uint8]],
    item: ItemPlan,
    first_group: int,
    writer: RowWriter,
    out: npt.NDArray[Any],
    announce: AnnounceRows,
    timings: Timings,
) -> None:
    """Write the frames of consecutive groups of one item, from `first_group` on, into their rows."""
    group_frames, group_rows = item.rows.group_frames, item.rows.group_rows
    last = item.frame_count - 1
    write_frame, table = writer.write_frame, writer.normalized
    scratch = None if table is None else np.empty((group_rows, out.shape[1]), np.uint8)
    row = item.row_start + first_group * group_rows
    stopwatch = timings.stopwatch()
    for number, frame in enumerate(frames, first_group * group_frames):
        stopwatch.end("decode")
        target = out[row : row + group_rows]
        first = number % group_frames
        is_whole = first == group_frames - 1 or number == last
        places = slice(first, group_frames if is_whole else first + 1)
        write_frame(frame, target if scratch is None else scratch, places, stopwatch)
        if not is_whole:
            continue
        if table is not None and scratch is not None:
            normalize_rows(scratch, table, target)
            stopwatch.end("normalize")
        announce(row, group_rows)
        row += group_rows
        stopwatch.restart()


def _copy_groups(
    source: npt.NDArray[Any], item: ItemPlan, groups: range, out: npt.NDArray[Any], announce: AnnounceRows
) -> None:
    """Copy finished rows of one item into their place."""
    first, stop = (group * item.rows.group_rows for group in (groups.start, groups.stop))
    out[item.row_start + first : item.row_start + stop] = source[first:stop]
    announce(item.row_start + first, stop - first)


def allocate_pixels(planned: PixelPlan) -> npt.NDArray[Any]:
    """An uninitialized pixel tensor for `write_pixels`."""
    return np.empty((planned.row_count, planned.feature_count), PIXEL_DTYPES[planned.form])


def _groups_within(item: ItemPlan, rows: range) -> range:
    """The groups of an item whose rows begin in `rows`."""
    group_rows, group_count = item.rows.group_rows, item.rows.group_count
    first, stop = (-(-(row - item.row_start) // group_rows) for row in (rows.start, rows.stop))
    return range(min(max(first, 0), group_count), min(max(stop, 0), group_count))
