"""What every peer is asked, in the form that each understands, and what the pipeline makes of it."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from preprocessor import pipeline
from preprocessor.models.family import Model
from preprocessor.traffic.seed import TEXT
from preprocessor.types.request import PixelForm, PreparationRequest
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.bench import image_paths, paths, workloads
from tests.bench.clips import video_spec
from tests.bench.contest import Result
from tests.bench.images import image_spec
from tests.bench.peers.made import Made

SERVED_NAME = "qwen3-vl"
_MAX_TOKENS = 4
_END_BYTES = 16


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """One request.

    Attributes:
        fps: Of a clip; None for images.
        files: In the order of the prompt.
        spec, sent: The request as our service takes it by gRPC.
        request: As the pipeline takes it.
        path: `pipeline.prepare`, timed by the bench.
    """

    name: str
    fps: float | None
    files: tuple[bytes, ...]
    spec: pb.PrepareSpec
    sent: Mapping[str, bytes]
    request: PreparationRequest
    path: Callable[[], Result]

    def chat_body(self, *, model: str = SERVED_NAME, fps_beside_url: bool = False) -> bytes:
        """The body of OpenAI's chat completions, with the files as data URLs before the text.

        Each time the files have other bytes at their ends, which no decoder reads, so that no cache knows them.

        Args:
            fps_beside_url: The rate is a field of `video_url`, as SMG takes it; else vLLM's `media_io_kwargs` has it.
        """
        kind, media_type = ("image_url", "image/jpeg") if self.fps is None else ("video_url", "video/mp4")
        parts: list[dict[str, Any]] = []
        for file in self.files:
            new = file + (os.urandom(_END_BYTES) if self.fps is None else _box(os.urandom(_END_BYTES)))
            part: dict[str, Any] = {"url": f"data:{media_type};base64,{base64.b64encode(new).decode()}"}
            if fps_beside_url and self.fps is not None:
                part["fps"] = self.fps
            parts.append({"type": kind, kind: part})
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": TEXT}]}],
            "max_tokens": _MAX_TOKENS,
            "temperature": 0,
        }
        if not fps_beside_url and self.fps is not None:
            body["media_io_kwargs"] = {"video": {"fps": self.fps}}
        return json.dumps(body).encode()


def _box(content: bytes) -> bytes:
    """Of an mp4, that readers pass over."""
    return (8 + len(content)).to_bytes(4, "big") + b"free" + content


def made_by_pipeline(model: Model, workload: Workload) -> Made:
    prepared = pipeline.prepare(model, workload.request)
    assert prepared.plan.pixels is not None
    tensors = prepared.tensors
    return Made(tensors["input_ids"].ravel(), tensors["grid_thw"], tensors[prepared.plan.pixels.name])


def run_on(core: int, path: Callable[[], Result]) -> Result:
    """The path, on that core from now on."""
    os.sched_setaffinity(0, {core})
    return path()


def make_workloads(model: Model, rates: tuple[float, ...]) -> Iterator[Workload]:
    """The seed clip at each rate, then the images."""
    (clip,) = workloads.data_of(workloads.SEED)
    for fps in rates:
        job = paths.make_job(model, clip, fps, TEXT)
        yield Workload(
            f"the seed clip at {fps:g} fps",
            fps,
            (clip,),
            video_spec(fps),
            {"clip": clip},
            job.requests[PixelForm.UINT8],
            partial(paths.ours, job),
        )
    for pictures in workloads.PICTURES:
        files = workloads.data_of(pictures)
        photos = image_paths.make_image_job(model, files, TEXT)
        yield Workload(
            pictures.name,
            None,
            files,
            image_spec(len(files)),
            {f"photo {index}": data for index, data in enumerate(files)},
            photos.requests[PixelForm.UINT8],
            partial(image_paths.ours, photos),
        )
