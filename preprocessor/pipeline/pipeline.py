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

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessor.config import Limits
from preprocessor.media.checks import keep_going, within_cpu_seconds
from preprocessor.media.frames import Choice
from preprocessor.media.video import decode_pictures, has_pictures
from preprocessor.models.loaded import CancelCheck, LoadedModel, PlanMemory
from preprocessor.pipeline.decode_item import decode_item
from preprocessor.pipeline.request_checks import check_request
from preprocessor.pipeline.write_item import AnnounceRows, ItemWriter, write_item, write_item_in_threads
from preprocessor.types.plan import ItemPlan, PixelPlan, Plan, Substitution
from preprocessor.types.request import Media, PreparationRequest
from preprocessor.types.result import PixelReport, Prepared
from preprocessor.types.timing import Timings
from preprocessor.vision.patches import PIXEL_DTYPES, normalize_rows


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
    memory: PlanMemory | None = None,
) -> Plan:
    """Everything but the pixels, from headers alone. For a generic model the pixels too: its processor makes all at once.

    Args:
        check: Called between packets; whatever it raises ends the work.
        memory: As in `LoadedModel.plan`.
    Raises:
        InvalidRequest: `PLACEHOLDER_MISMATCH`, `UNKNOWN_MEDIA_KEY`, `DUPLICATE_MEDIA_KEY`, `INVALID_SAMPLING`,
            `SAMPLING_CONFLICT`, `INVALID_PIXEL_BUDGET`, `INVALID_TOKEN_ID`, `CHAT_TEMPLATE_FAILED`, `EMPTY_PROMPT`,
            `LITERAL_TEXT_REFUSED`, `DIGEST_MISMATCH`, `INVALID_PROCESSOR_ARGUMENTS`.
        UnsupportedMedia, CorruptMedia: A file that is not what it should be; see `probe_video` and `probe_image`.
        LimitExceeded: More than `limits` allows.
    """
    check_request(request, model.modalities, limits)
    model.check_arguments(request.processor_arguments)
    return model.plan(request, limits, check, memory or PlanMemory())


def write_pixels(
    model: LoadedModel,
    media: Sequence[Media],
    planned: PixelPlan,
    out: npt.NDArray[Any],
    announce: AnnounceRows = _announce_nothing,
    check: CancelCheck = keep_going,
    rows: range | None = None,
    cached: Mapping[int, npt.NDArray[Any]] | None = None,
    thread_count: int = 1,
) -> PixelReport:
    """Decode the items of the plan and write them into their rows of `out`.

    Args:
        media: The files, by the keys of the items.
        out: [row_count, feature_count], C-contiguous, in the dtype of the plan's form; see `allocate_pixels`.
        announce: Called for finished rows, in order.
        check: Called between packets; whatever it raises ends the work.
        rows: Write only these; from `division.divide`. None writes all.
        cached: Finished rows of items, by index, in the dtype of `out` or as uint8: they are copied, or normalized, and their
            files not read.
        thread_count: Threads that may work on one item, this one included; the process must have no other work.
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
    made: dict[bytes, int] = {}  # indices of items that are wholly written, by digest
    for index, item in enumerate(planned.items):
        groups = item.groups_within(rows or range(planned.row_count))
        if not groups:
            continue
        is_whole = len(groups) == item.rows.group_count
        finished = None if cached is None else cached.get(index)
        if finished is None and is_whole and item.digest in made:
            twin = made[item.digest]
            finished = planned.items[twin].rows_of(out)
            substitutions.extend(
                [dataclasses.replace(one, item_index=index) for one in substitutions if one.item_index == twin]
            )
        if finished is not None:
            table = None if finished.dtype == out.dtype else model.row_writer(item, planned.form).normalized
            with timings.stage("copy" if table is None else "normalize"):
                _write_finished(finished, table, item, groups, out, announce, check)
            continue

        def substituted(chosen: int, used: int, item_index: int = index) -> None:
            substitutions.append(Substitution(item_index, chosen, used))

        wanted = slice(groups.start * item.rows.group_frames, groups.stop * item.rows.group_frames)
        medium, seconds = files[item.key], planned.max_file_cpu_seconds

        def new_writer(item: ItemPlan = item) -> ItemWriter:
            return ItemWriter(item, model.row_writer(item, planned.form), out)

        in_threads = thread_count > 1 and len(groups) > 1 and has_pictures(item.picture, planned.video_decoder)
        if in_threads:
            checked = within_cpu_seconds(seconds, check, item.key, time.process_time, thread_count)
        else:
            checked = within_cpu_seconds(seconds, check, item.key)
        choice = Choice(item.frame_indices[wanted], item.key, checked, medium.on_damage, substituted, decoded)
        if in_threads:
            pictures = decode_pictures(medium.content, item.picture, choice)
            write_item_in_threads(pictures, item, groups, new_writer, announce, checked, timings, thread_count)
        else:
            frames = decode_item(medium, item, choice, planned.video_decoder)
            write_item(frames, wanted.start, item.rows.group_rows, new_writer(), announce, timings)
        if is_whole:
            made[item.digest] = index
    return PixelReport(timings, tuple(substitutions), decoded_frame_count)


def _write_finished(
    source: npt.NDArray[Any],
    table: npt.NDArray[Any] | None,
    item: ItemPlan,
    groups: range,
    out: npt.NDArray[Any],
    announce: AnnounceRows,
    check: CancelCheck,
) -> None:
    """Write finished rows of one item into their place.

    Args:
        table: As of `RowWriter.normalized`, by which they are normalized; None copies them.
    """
    for group in groups:
        check()
        first, stop = (number * item.rows.group_rows for number in (group, group + 1))
        target = out[item.row_start + first : item.row_start + stop]
        if table is None:
            target[:] = source[first:stop]
        else:
            normalize_rows(source[first:stop], table, target)
        announce(item.row_start + first, stop - first)


def allocate_pixels(planned: PixelPlan) -> npt.NDArray[Any]:
    """An uninitialized pixel tensor for `write_pixels`."""
    return np.empty((planned.row_count, planned.feature_count), PIXEL_DTYPES[planned.form])
