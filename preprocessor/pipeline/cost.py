"""What a plan will cost, and where it can be cut: pure functions of header facts.

Seconds only order work and bound waits; a factor of three is accurate enough. Bytes are reserved from the memory budget, so they
are upper estimates. The rates were measured on one core of an AMD EPYC (Zen 3).
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Sequence

import numpy as np
import numpy.typing as npt

from preprocessor.media.clip import IndexedClip
from preprocessor.types.plan import ItemPlan, PixelPlan, Workload
from preprocessor.types.request import Media, OnDamage
from preprocessor.types.source import FrameListInfo, ImageInfo

_SECONDS_A_DECODED_PIXEL = {"h264": 0.5e-9, "hevc": 0.7e-9, "vp9": 0.6e-9, "libdav1d": 0.8e-9}
_SECONDS_A_DECODED_PIXEL_OF_OTHERS = 1.5e-9
_SECONDS_A_PACKET = 4e-6
_SECONDS_A_USED_PIXEL = 2e-9  # colour conversion, resize and copy of a source pixel
_SECONDS_AN_OUTPUT_BYTE = 0.5e-9
_SECONDS_AN_IMAGE_PIXEL = {"JPEG2000": 200e-9}  # of others:
_SECONDS_AN_IMAGE_PIXEL_OF_OTHERS = 10e-9

# FFmpeg holds up to 16 reference frames of 1.5 bytes a pixel and a few in flight; beside them a frame as RGB.
_BYTES_A_FRAME_PIXEL = 1.5 * 20 + 3
_BYTES_A_RESIZED_PIXEL = 6  # three planes of the one step and of the next; of the largest
# Pillow's own buffer takes 4 bytes a pixel, the RGB copy 3, a transposed or converted one 4, the planes of a resize 3.
_BYTES_AN_IMAGE_PIXEL_OF_OTHERS = 14
_BYTES_AN_IMAGE_PIXEL = {"JPEG2000": 28}  # OpenJPEG holds 4 bytes a channel of the whole picture beside that
_BYTES_A_LISTED_FRAME_PIXEL = 3  # the frame before, which may stand for one that cannot be decoded
_BYTES_A_JOB = 16 << 20  # codec contexts, packet tables, scratch


def estimate(planned: PixelPlan | None, media: Sequence[Media], cached: Container[int] = ()) -> Workload:
    """The workload of `pipeline.write_pixels`.

    Args:
        planned: None for a plan that leaves no pixels to be made.
        media: The files; a worker holds a copy of its own of each.
        cached: Indices of items whose rows are copied, not made.
    """
    seconds, peak_bytes = 0.0, 0.0
    if planned is not None:
        costs = [
            (0.0, 0.0) if index in cached else _item_cost(item, planned.video_decoder)
            for index, item in enumerate(planned.items)
        ]
        seconds = sum(cost[0] for cost in costs) + planned.size_bytes * _SECONDS_AN_OUTPUT_BYTE
        peak_bytes = max(cost[1] for cost in costs)
    return Workload(seconds, int(peak_bytes) + sum(len(medium.data) for medium in media) + _BYTES_A_JOB)


def _item_cost(item: ItemPlan, video_decoder: str) -> tuple[float, float]:
    """CPU seconds of decoding and resizing one item, and bytes held meanwhile."""
    source, rows = item.picture, item.rows
    pixels = source.width_px * source.height_px
    resized_bytes = rows.width_px * rows.height_px * 3
    if isinstance(source, FrameListInfo):
        decoding = _SECONDS_AN_IMAGE_PIXEL_OF_OTHERS if source.decoder else 0.0
        seconds = item.frame_count * pixels * (decoding + _SECONDS_A_USED_PIXEL)
        bytes_a_pixel = _BYTES_AN_IMAGE_PIXEL_OF_OTHERS + _BYTES_A_LISTED_FRAME_PIXEL
        return seconds, pixels * bytes_a_pixel + _group_bytes(item, pixels, source.height_px)
    if not isinstance(source, IndexedClip) or item.frames is None:
        name = source.format if isinstance(source, ImageInfo) else ""
        seconds = pixels * _SECONDS_AN_IMAGE_PIXEL.get(name, _SECONDS_AN_IMAGE_PIXEL_OF_OTHERS)
        bytes_a_pixel = _BYTES_AN_IMAGE_PIXEL.get(name, _BYTES_AN_IMAGE_PIXEL_OF_OTHERS)
        return seconds, pixels * bytes_a_pixel + 2 * resized_bytes
    seconds, decoder_count = _video_seconds(source, item.frames.indices, pixels), 1
    if video_decoder == "opencv":  # PyAV decodes as well, to check it: see `media.opencv`
        seconds += _seconds_from_the_start(source, item.frames.indices, pixels)
        decoder_count = 2
    group_bytes = _group_bytes(item, pixels, source.height_px)
    return seconds, decoder_count * pixels * _BYTES_A_FRAME_PIXEL + group_bytes


def _group_bytes(item: ItemPlan, pixels: int, height: int) -> int:
    """Bytes that resizing a video's frames and writing a group of rows take, for frames of that size in pixels."""
    rows = item.rows
    resized_px = rows.width_px * rows.height_px
    resizing_px = max(pixels, height * rows.width_px, resized_px)
    # Where floats are requested, a group's rows are first written as uint8.
    return _BYTES_A_RESIZED_PIXEL * resizing_px + rows.group_frames * resized_px * 3


def cut(planned: PixelPlan, media: Sequence[Media], part_count: int) -> list[range]:
    """Divide the rows into at most `part_count` ranges of about equal work, each of which can be made alone.

    A cut lies between two items, or inside a video where a new group of pictures begins, so that parts decode few frames
    twice; in a list of frames, between any two groups of rows. A video with `OnDamage.REPEAT` is not cut: a damaged frame is
    replaced by an earlier one.

    Returns:
        Row ranges in order, covering all rows; a single one where no cut is possible.
    """
    if part_count < 2 or planned.video_decoder != "pyav":
        return [range(planned.row_count)]
    tolerant = {medium.key for medium in media if medium.on_damage is OnDamage.REPEAT}
    places = [
        item.row_start + group * item.rows.group_rows
        for item in planned.items
        for group in (_separate_groups(item) if item.key not in tolerant else [0])
    ]
    wanted = (planned.row_count * part // part_count for part in range(1, part_count))
    cuts = sorted({min(places, key=lambda place: abs(place - row)) for row in wanted} - {0})
    return [range(start, stop) for start, stop in itertools.pairwise([0, *cuts, planned.row_count])]


def decoding_runs(clip: IndexedClip, indices: npt.NDArray[np.int64]) -> list[range]:
    """The frames that PyAV's decoder passes for the chosen ones: of each group of pictures that holds one, those up to the last.

    In these runs, a frame that is not chosen and that no other refers to is skipped, where the codec can.
    """
    group_starts = np.append(clip.random_access_frames, clip.frame_count)
    last_wanted = np.full(len(clip.random_access_frames), -1, np.int64)
    np.maximum.at(last_wanted, np.searchsorted(clip.random_access_frames, indices, "right") - 1, indices)
    runs = zip(group_starts[:-1].tolist(), (last_wanted + 1).tolist(), strict=True)
    return [range(start, stop) for start, stop in runs if stop > start]


def _separate_groups(item: ItemPlan) -> list[int]:
    """Groups of rows whose first frame lies in another group of pictures than that of the group before; 0 included."""
    if isinstance(item.source, FrameListInfo):
        return list(range(item.rows.group_count))
    if item.frames is None or not isinstance(item.source, IndexedClip):
        return [0]
    access_points = np.searchsorted(item.source.random_access_frames, item.frames.indices, "right")
    first_of_groups = access_points[:: item.rows.group_frames]
    return [0, *(np.flatnonzero(np.diff(first_of_groups)) + 1).tolist()]


def _video_seconds(clip: IndexedClip, indices: npt.NDArray[np.int64], pixels: int) -> float:
    """Seconds for decoding the groups of pictures that hold a chosen frame, up to the last chosen frame in each."""
    decoded = sum(len(run) for run in decoding_runs(clip, indices))
    return clip.frame_count * _SECONDS_A_PACKET + _decoding_seconds(clip, decoded, len(indices), pixels)


def _seconds_from_the_start(clip: IndexedClip, indices: npt.NDArray[np.int64], pixels: int) -> float:
    """Seconds for decoding every frame up to the last chosen one."""
    return _decoding_seconds(clip, int(indices.max(initial=-1)) + 1, len(indices), pixels)


def _decoding_seconds(clip: IndexedClip, decoded: int, used: int, pixels: int) -> float:
    decode_rate = _SECONDS_A_DECODED_PIXEL.get(clip.codec, _SECONDS_A_DECODED_PIXEL_OF_OTHERS)
    return decoded * pixels * decode_rate + used * pixels * _SECONDS_A_USED_PIXEL
