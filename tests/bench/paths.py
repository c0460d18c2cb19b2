"""The ways from an mp4 in memory to Qwen3-VL pixels that the benchmark times.

A path is a plain function of a `Job` and keeps nothing between calls. What another system would work out by itself (which
frames to take) is given to every path but ours, and only ours makes token ids and positions: both favour the others.

One thread each: the caller sets torch's and OpenCV's, `OPENCV_FFMPEG_THREADS=1` holds for both `VideoCapture`s.
"""

from __future__ import annotations

import io
import itertools
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
from preprocessor.types.request import (
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
from preprocessor.types.source import ClipInfo
from preprocessor.types.timing import Timings
from tests.bench.contest import CannotDo, Disagreement, Result, stage
from tests.bench.scripts import auto_processor, chat_text, file_of
from tests.golden.oracle import video_processor

from transformers.video_utils import VideoMetadata, load_video  # isort: skip  # torchvision is imported above


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One clip at one sampling rate.

    Attributes:
        data: The file.
        fps: Asked frames a second.
        indices: The frames that Hugging Face's sampling chooses, ascending int64 [n].
        wanted_pts, needed_packets: Their presentation timestamps, and packets to decode for them; for `bound`.
        output_bytes: Size of our uint8 patches, for `bound`.
        requests: What `ours` is asked, by pixel form.
    """

    model: Model
    data: bytes
    fps: float
    indices: npt.NDArray[np.int64]
    wanted_pts: frozenset[int]
    needed_packets: frozenset[int]
    output_bytes: int
    requests: Mapping[PixelForm, PreparationRequest]


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
    indices = np.asarray(seed_processor().sample_frames(metadata, fps=fps), np.int64)
    if not np.array_equal(indices, item.frames.indices):
        raise Disagreement(f"Hugging Face takes frames {indices.tolist()}, we {item.frames.indices.tolist()}")
    wanted_pts = frozenset(item.source.pts[indices].tolist())
    return Job(model, data, fps, indices, wanted_pts, needed_packets(data, wanted_pts), planned.pixel_bytes, requests)


def before(job: Job) -> Result:
    """Temporary file → OpenCV's default open → a float32 CHW tensor a frame → Hugging Face's processor on the list.

    Source: TensorRT-LLM before PR 15598, inputs/media_io.py `VideoMediaIO.load_bytes` and `_load_video_by_cv2` (format
    "pt"); do_rescale=False for scaled tensors as in its modeling_qwen3vl.py.
    """
    timings = Timings()
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        with stage(timings, "decode"):
            file.write(job.data)
            file.flush()
            frames = list(_grab_frames(cv2.VideoCapture(file.name), job.indices))
        with stage(timings, "convert"):
            pictures = [cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) for frame in frames]
            tensors = [torch.from_numpy(picture).permute(2, 0, 1).float().div_(255.0) for picture in pictures]
    return _process(tensors, timings, do_rescale=False)


def seed(job: Job) -> Result:
    """OpenCV over `BytesIO` → uint8 [n, H, W, 3] → Hugging Face's processor, which is not to sample again.

    Source: TensorRT-LLM since PR 15598, the same functions (format "np"). Here in the faster form of its PR 16513: frames
    are converted into one array, which the processor takes as it is, instead of a list that it would copy twice.
    """
    timings = Timings()
    buffer = io.BytesIO(job.data)
    with stage(timings, "decode"):
        capture = _open(buffer)
    height, width = (int(capture.get(side)) for side in (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH))
    stacked = np.empty((len(job.indices), height, width, 3), np.uint8)
    frames = _grab_frames(capture, job.indices)
    for picture in stacked:
        with stage(timings, "decode"):
            frame = next(frames)
        with stage(timings, "convert"):
            cv2.cvtColor(frame, cv2.COLOR_BGR2RGB, dst=picture)
    return _process(stacked, timings, do_rescale=True)


def hf(job: Job) -> Result:
    """`AutoProcessor`, from the file, as a script would: frames by `load_video`, then the processor on them and the prompt.

    `load_video` decodes by PyAV, since transformers' default, torchcodec, is not among this project's dependencies. It decodes
    every frame up to the last one used. FFmpeg chooses the number of its threads.
    """
    timings = Timings()
    processor = auto_processor(job.model)

    def choose(metadata: VideoMetadata, **_: Any) -> npt.NDArray[np.int64]:
        return np.asarray(processor.video_processor.sample_frames(metadata, fps=job.fps), np.int64)

    with stage(timings, "decode"):
        frames, metadata = load_video(str(file_of(job.data)), backend="pyav", sample_indices_fn=choose)
    with stage(timings, "process"):
        output = processor(
            text=[chat_text(processor, job.requests[PixelForm.UINT8])],
            videos=[frames],
            video_metadata=[metadata],
            do_sample_frames=False,
            return_tensors="pt",
        )
    return Result(output["pixel_values_videos"].numpy(), output["video_grid_thw"].tolist(), len(frames), timings)


def ours(job: Job) -> Result:
    """`pipeline.prepare` as a service calls it: uint8 patches, and with them plan, token ids and positions."""
    return _prepare(job, PixelForm.UINT8)


def ours_fp32(job: Job) -> Result:
    """The same, ended in the normalized float32 that `before` and `seed` end in."""
    return _prepare(job, PixelForm.FP32)


def bound(job: Job) -> Result:
    """Decode just the frames that are needed, convert none, and write the output's bytes once.

    The floor of our way on one core. It neither probes nor samples: it is told the timestamps, and which packets come last.
    """
    found = 0
    timings = Timings()
    with stage(timings, "decode"), av.open(io.BytesIO(job.data), mode="r") as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        for ordinal, packet in enumerate(container.demux(stream)):
            if packet.size and ordinal not in job.needed_packets:
                continue
            is_wanted = packet.pts is None or packet.pts in job.wanted_pts
            stream.codec_context.skip_frame = "DEFAULT" if is_wanted else "NONREF"
            found += sum(frame.pts in job.wanted_pts for frame in packet.decode())
            if found == len(job.wanted_pts):
                break
    with stage(timings, "write"):
        pixels = np.full(job.output_bytes, 127, np.uint8)
    return Result(pixels, None, found, timings)


def needed_packets(data: bytes, wanted_pts: frozenset[int]) -> frozenset[int]:
    """Which packets, counted in decode order, may have to be decoded: a group of pictures that holds a wanted frame from its
    keyframe to the last wanted one, and the group before where a wanted frame is shown before the keyframe.
    """
    with av.open(io.BytesIO(data), "r") as container:
        packets = [(p.pts or 0, p.is_keyframe) for p in container.demux(container.streams.video[0]) if p.size]
    starts = [ordinal for ordinal, (_, is_keyframe) in enumerate(packets) if is_keyframe or ordinal == 0]
    needed: set[int] = set()
    previous = range(0)
    for start, stop in itertools.pairwise([*starts, len(packets)]):
        wanted = [ordinal for ordinal in range(start, stop) if packets[ordinal][0] in wanted_pts]
        if wanted:
            needed.update(range(start, wanted[-1] + 1))
        if any(packets[ordinal][0] < packets[start][0] for ordinal in wanted):
            needed.update(previous)
        previous = range(start, stop)
    return frozenset(needed)


PixelPath = Callable[[Job], Result]

PATHS: dict[str, PixelPath] = {
    "before": before,
    "seed": seed,
    "hf": hf,
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
            raise CannotDo(f"OpenCV cannot decode frame {index}")
        if index in wanted:
            yield capture.retrieve()[1]
    capture.release()


@cache
def seed_processor() -> Any:
    return video_processor()


def _process(frames: Any, timings: Timings, *, do_rescale: bool) -> Result:
    with stage(timings, "process"):
        output = seed_processor()(videos=[frames], do_sample_frames=False, do_rescale=do_rescale, return_tensors="pt")
    return Result(output["pixel_values_videos"].numpy(), output["video_grid_thw"].tolist(), len(frames), timings)


def _prepare(job: Job, form: PixelForm) -> Result:
    prepared = pipeline.prepare(job.model, job.requests[form])
    (item,) = prepared.plan.items
    assert item.frames is not None
    assert prepared.plan.pixels is not None
    pixels = prepared.tensors[prepared.plan.pixels.name]
    return Result(pixels, prepared.tensors["grid_thw"].tolist(), len(item.frames.indices), prepared.timings)
