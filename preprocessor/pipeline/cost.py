"""What a plan will cost: pure functions of header facts. `division` says where it can be cut.

Seconds only order work and bound waits; a factor of three is accurate enough. Bytes are reserved from the memory budget, so they
are upper estimates. The rates were measured on one core of an AMD EPYC (Zen 3).
"""

from __future__ import annotations

from collections.abc import Container, Sequence

import numpy as np
import numpy.typing as npt

from preprocessor.media.clip import IndexedClip
from preprocessor.media.video import has_pictures
from preprocessor.pipeline.write_item import GROUPS_A_THREAD
from preprocessor.types.plan import ItemPlan, PixelPlan, Workload
from preprocessor.types.request import Media
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
_BYTES_A_WAITING_PIXEL = 3  # of a frame that is decoded and not converted: 8 bits in 4:4:4, or 10 bits in 4:2:0
_BYTES_A_CONVERTED_PIXEL = 3
_BYTES_A_THREAD = 9 << 20  # its stack and scratch


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


def thread_bytes(planned: PixelPlan) -> int:
    """Bytes that each thread beside the first takes, of those that work on one item; see `write_item`."""
    most_bytes = 0
    for item in planned.items:
        pixels = item.picture.width_px * item.picture.height_px
        waiting = GROUPS_A_THREAD * item.rows.group_frames * pixels * _BYTES_A_WAITING_PIXEL
        group_bytes = _group_bytes(item, pixels, item.picture.height_px)
        most_bytes = max(most_bytes, waiting + pixels * _BYTES_A_CONVERTED_PIXEL + int(group_bytes))
    return most_bytes + _BYTES_A_THREAD


def seconds_of_groups(item: ItemPlan, groups: range, planned: PixelPlan) -> tuple[float, float]:
    """CPU seconds of making some groups of an item's rows: of what one thread does, and of what several can share."""
    out_bytes = planned.size_bytes / planned.row_count * item.rows.group_rows * len(groups)
    writing = out_bytes * _SECONDS_AN_OUTPUT_BYTE
    if not has_pictures(item.picture, planned.video_decoder):
        seconds, _ = _item_cost(item, planned.video_decoder)
        return seconds * len(groups) / max(1, item.rows.group_count) + writing, 0.0
    assert isinstance(item.source, IndexedClip) and item.frames is not None, "such have pictures"
    source, group_frames = item.source, item.rows.group_frames
    indices = item.frames.indices[groups.start * group_frames : groups.stop * group_frames]
    pixels = source.width_px * source.height_px
    walk = (int(indices.max(initial=-1)) + 1) * _SECONDS_A_PACKET  # from the beginning of the file
    decoding = _decoding_seconds(source, _decoded_count(source, indices), 0, pixels)
    return walk + decoding, len(indices) * pixels * _SECONDS_A_USED_PIXEL + writing


def _group_bytes(item: ItemPlan, pixels: int, height: int) -> int:
    """Bytes that resizing a video's frames and writing a group of rows take, for frames of that size in pixels."""
    rows = item.rows
    resized_px = rows.width_px * rows.height_px
    resizing_px = max(pixels, height * rows.width_px, resized_px)
    # Where floats are requested, a group's rows are first written as uint8.
    return _BYTES_A_RESIZED_PIXEL * resizing_px + rows.group_frames * resized_px * 3


def decoding_runs(clip: IndexedClip, indices: npt.NDArray[np.int64]) -> list[range]:
    """The frames that PyAV's decoder passes for the chosen ones: of each group of pictures that holds one, those up to the last.

    In these runs, a frame that is not chosen and that no other refers to is skipped, where the codec can.
    """
    runs = zip(clip.random_access_frames.tolist(), _run_stops(clip, indices).tolist(), strict=True)
    return [range(start, stop) for start, stop in runs if stop > start]


def _run_stops(clip: IndexedClip, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Of each group of pictures, the frame after the last chosen one; 0 where none is."""
    last_wanted = np.full(len(clip.random_access_frames), -1, np.int64)
    np.maximum.at(last_wanted, np.searchsorted(clip.random_access_frames, indices, "right") - 1, indices)
    return last_wanted + 1


def _decoded_count(clip: IndexedClip, indices: npt.NDArray[np.int64]) -> int:
    """Frames in `decoding_runs`."""
    return int(np.maximum(_run_stops(clip, indices) - clip.random_access_frames, 0).sum())


def _video_seconds(clip: IndexedClip, indices: npt.NDArray[np.int64], pixels: int) -> float:
    """Seconds for decoding the groups of pictures that hold a chosen frame, up to the last chosen frame in each."""
    decoded = _decoded_count(clip, indices)
    return clip.frame_count * _SECONDS_A_PACKET + _decoding_seconds(clip, decoded, len(indices), pixels)


def _seconds_from_the_start(clip: IndexedClip, indices: npt.NDArray[np.int64], pixels: int) -> float:
    """Seconds for decoding every frame up to the last chosen one."""
    return _decoding_seconds(clip, int(indices.max(initial=-1)) + 1, len(indices), pixels)


def _decoding_seconds(clip: IndexedClip, decoded: int, used: int, pixels: int) -> float:
    decode_rate = _SECONDS_A_DECODED_PIXEL.get(clip.codec, _SECONDS_A_DECODED_PIXEL_OF_OTHERS)
    return decoded * pixels * decode_rate + used * pixels * _SECONDS_A_USED_PIXEL
