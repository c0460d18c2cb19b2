"""The ways from an mp4 in memory to Qwen3-VL pixels that the benchmark times.

A path is a plain function of a `Job` and keeps nothing between calls. What another system would work out by itself (which
frames to take) is given to every path but ours, and only ours makes token ids and positions: both favour the others.

One thread each: the caller sets torch's and OpenCV's, `OPENCV_FFMPEG_THREADS=1` holds for both `VideoCapture`s.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt
import torch

from preprocessor import pipeline
from preprocessor.config import Limits
from preprocessor.models.family import Model
from preprocessor.types.asked import (
    ChatPrompt,
    Media,
    MediaPart,
    Message,
    Modality,
    PixelForm,
    PreparationRequest,
    Sampling,
    TextPart,
)
from preprocessor.types.found import ClipInfo
from tests.golden.oracle import VideoMetadata, video_processor


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One clip at one sampling rate.

    Attributes:
        data: The mp4.
        indices: The frames that Hugging Face's sampling chooses, ascending int64 [n].
        wanted_pts: Their presentation timestamps, for `bound`.
        output_bytes: Size of our uint8 patches, for `bound`.
        requests: What `ours` is asked, by pixel form.
    """

    model: Model
    data: bytes
    indices: npt.NDArray[np.int64]
    wanted_pts: frozenset[int]
    output_bytes: int
    requests: Mapping[PixelForm, PreparationRequest]


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What a path made: pixel rows [P, F] (`bound`: as many bytes), the grid where it makes one, frames decoded."""

    pixels: npt.NDArray[Any]
    grid_thw: list[list[int]] | None
    frame_count: int


class Disagreement(Exception):
    """Paths that should make the same pixels do not."""


def make_job(model: Model, data: bytes, fps: float, text: str) -> Job:
    """Choose the frames as Hugging Face does from OpenCV's header facts, and plan our side of it.

    Raises:
        Disagreement: We would choose other frames.
    """
    media = (Media("clip", Modality.VIDEO, data, Sampling(fps=fps)),)
    prompt = ChatPrompt((Message("user", (MediaPart("clip"), TextPart(text))),))
    requests = {form: PreparationRequest(prompt, media, form) for form in (PixelForm.UINT8, PixelForm.FP32)}
    planned = pipeline.plan(model, requests[PixelForm.UINT8], Limits())
    (item,) = planned.items
    assert item.frames is not None and isinstance(item.source, ClipInfo)
    buffer = io.BytesIO(data)
    capture = _open(buffer)
    total, rate = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), capture.get(cv2.CAP_PROP_FPS)
    capture.release()
    metadata = VideoMetadata(total_num_frames=total, fps=rate, duration=total / rate)
    indices = np.asarray(_processor().sample_frames(metadata, fps=fps), np.int64)
    if not np.array_equal(indices, item.frames.indices):
        raise Disagreement(f"Hugging Face takes frames {indices.tolist()}, we {item.frames.indices.tolist()}")
    wanted_pts = frozenset(item.source.pts[indices].tolist())
    return Job(model, data, indices, wanted_pts, planned.pixel_bytes, requests)


def before(job: Job) -> Result:
    """Temporary file → OpenCV's default open → a float32 CHW tensor a frame → Hugging Face's processor on the list.

    Source: TensorRT-LLM before PR 15598, inputs/media_io.py `VideoMediaIO.load_bytes` and `_load_video_by_cv2` (format
    "pt"); do_rescale=False for scaled tensors as in its modeling_qwen3vl.py.
    """
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(job.data)
        file.flush()
        frames = _grab_frames(cv2.VideoCapture(file.name), job.indices)
        pictures = [cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) for frame in frames]
    tensors = [torch.from_numpy(picture).permute(2, 0, 1).float().div_(255.0) for picture in pictures]
    return _process(tensors, do_rescale=False)


def seed(job: Job) -> Result:
    """OpenCV over `BytesIO` → uint8 [n, H, W, 3] → Hugging Face's processor, which is not to sample again.

    Source: TensorRT-LLM since PR 15598, the same functions (format "np"). Here in the faster form of its PR 16513: frames
    are converted into one array, which the processor takes as it is, instead of a list that it would copy twice.
    """
    buffer = io.BytesIO(job.data)
    capture = _open(buffer)
    height, width = (int(capture.get(side)) for side in (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH))
    stacked = np.empty((len(job.indices), height, width, 3), np.uint8)
    for picture, frame in zip(stacked, _grab_frames(capture, job.indices), strict=True):
        cv2.cvtColor(frame, cv2.COLOR_BGR2RGB, dst=picture)
    return _process(stacked, do_rescale=True)


def ours(job: Job) -> Result:
    """`pipeline.prepare` as a service calls it: uint8 patches, and with them plan, token ids and positions."""
    return _prepare(job, PixelForm.UINT8)


def ours_fp32(job: Job) -> Result:
    """The same, ended in the normalized float32 that `before` and `seed` end in."""
    return _prepare(job, PixelForm.FP32)


def bound(job: Job) -> Result:
    """Decode just the frames that are needed, convert none, and write the output's bytes once.

    The floor of our way on one core. It neither probes nor samples: it is told the timestamps.
    """
    found = 0
    with av.open(io.BytesIO(job.data), mode="r") as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        for packet in container.demux(stream):
            needed = packet.pts is None or packet.pts in job.wanted_pts
            stream.codec_context.skip_frame = "DEFAULT" if needed else "NONREF"
            found += sum(frame.pts in job.wanted_pts for frame in packet.decode())
            if found == len(job.wanted_pts):
                break
    return Result(np.full(job.output_bytes, 127, np.uint8), None, found)


PixelPath = Callable[[Job], Result]

PATHS: dict[str, PixelPath] = {
    "before": before,
    "seed": seed,
    "ours": ours,
    "ours FP32": ours_fp32,
    "bound": bound,
}


def _open(buffer: io.BytesIO) -> Any:
    """A capture that reads `buffer`, which the caller keeps alive: OpenCV holds no reference, and crashes without it."""
    return cv2.VideoCapture(buffer, cv2.CAP_FFMPEG, [])  # type: ignore[call-overload]  # its stubs know no BytesIO


def _grab_frames(capture: cv2.VideoCapture, indices: npt.NDArray[np.int64]) -> Iterator[Any]:
    """Grab every frame up to the last wanted one and retrieve the wanted ones, BGR uint8 [H, W, 3]."""
    wanted = frozenset(indices.tolist())
    for index in range(int(indices[-1]) + 1):
        if not capture.grab():
            raise Disagreement(f"OpenCV cannot decode frame {index}")
        if index in wanted:
            yield capture.retrieve()[1]
    capture.release()


@cache
def _processor() -> Any:
    return video_processor()


def _process(frames: Any, *, do_rescale: bool) -> Result:
    output = _processor()(videos=[frames], do_sample_frames=False, do_rescale=do_rescale, return_tensors="pt")
    return Result(output["pixel_values_videos"].numpy(), output["video_grid_thw"].tolist(), len(frames))


def _prepare(job: Job, form: PixelForm) -> Result:
    prepared = pipeline.prepare(job.model, job.requests[form])
    (item,) = prepared.plan.items
    assert item.frames is not None
    pixels = prepared.tensors[prepared.plan.pixels.name]
    return Result(pixels, prepared.tensors["grid_thw"].tolist(), len(item.frames.indices))
