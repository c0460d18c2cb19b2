"""The other way to serve: one Python process that decodes, runs Hugging Face's processor and generates.

It decodes as TensorRT-LLM does since its PR 15598 (OpenCV over the file in memory, frames grabbed, the wanted retrieved), and
generates with the very code of `vlm_transformers`, as many prompts at once. There is no network: a caller is a thread.
So all that differs from the service in front of Triton is where the pixels are made.
"""

from __future__ import annotations

import io
import os
import threading
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import cv2
import numpy as np
import torch

from engine_client.contract.sampling import SamplingParameters
from preprocessor.models.family import Model
from preprocessor.models.registry import load_model
from preprocessor.traffic.seed import TEXT
from tests.engine.model_files import model_file
from tests.golden.huggingface import processor_of  # first: torchvision is imported there

from transformers.video_utils import VideoMetadata  # isort: skip

MAX_RUNNING = 4  # vlm_transformers/config.pbtxt


@dataclass(slots=True)
class Point:
    """What so many callers got done between two `time.time()`."""

    began_at: float = 0.0
    ended_at: float = 0.0
    answered_count: int = 0
    first_token_seconds: list[float] = field(default_factory=list)


class InProcess:
    """The server: `answer` may be called from many threads."""

    def __init__(self, checkpoint: Path) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._llm = model_file("vlm_transformers", "checkpoint").load_checkpoint(str(checkpoint), self._device)
        self._generation = model_file("vlm_transformers", "generation")
        model = load_model("qwen3-vl")
        assert isinstance(model, Model)
        self._processor = processor_of(model)
        self._running = threading.Semaphore(MAX_RUNNING)
        self.is_stopped = False

    def answer(self, clip: bytes, fps: float, max_tokens: int) -> float:
        """Answer the workload's question; returns the seconds to the first token."""
        began, first_token_at = time.perf_counter(), 0.0

        def emit(token_id: int, finish_reason: str | None) -> None:
            nonlocal first_token_at
            first_token_at = first_token_at or time.perf_counter()

        made = self.process(clip, fps)
        with self._running:
            if self.is_stopped:
                return float("nan")
            inputs = {name: tensor.to(self._device) for name, tensor in made.items() if name != "pixel_values_videos"}
            inputs["pixel_values_videos"] = made["pixel_values_videos"].to(self._device).to(self._llm.dtype)
            self._generation.generate_tokens(
                self._llm,
                inputs,
                SamplingParameters(max_tokens=max_tokens),
                emit=emit,
                is_cancelled=lambda: self.is_stopped,
            )
        return first_token_at - began

    def process(self, clip: bytes, fps: float) -> dict[str, torch.Tensor]:
        """Token ids and normalized float32 pixels, with everything else that `generate` takes."""
        buffer = io.BytesIO(clip)
        capture = cv2.VideoCapture(buffer, cv2.CAP_FFMPEG, [])  # type: ignore[call-overload]  # its stubs know no BytesIO
        total, rate, height, width = (
            capture.get(fact)
            for fact in (
                cv2.CAP_PROP_FRAME_COUNT,
                cv2.CAP_PROP_FPS,
                cv2.CAP_PROP_FRAME_HEIGHT,
                cv2.CAP_PROP_FRAME_WIDTH,
            )
        )
        video = VideoMetadata(
            total_num_frames=int(total), fps=rate, duration=total / rate, width=int(width), height=int(height)
        )
        indices = np.asarray(self._processor.video_processor.sample_frames(video, fps=fps)).tolist()
        wanted = set(indices)
        frames = np.empty((len(indices), int(height), int(width), 3), np.uint8)
        picture = iter(frames)
        for index in range(indices[-1] + 1):
            capture.grab()
            if index in wanted:
                cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB, dst=next(picture))
        capture.release()
        video.frames_indices = indices
        content = [{"type": "video"}, {"type": "text", "text": TEXT}]
        text = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        return dict(
            self._processor(
                text=[text],
                videos=[frames],
                videos_kwargs={"do_sample_frames": False, "video_metadata": [video]},
                return_tensors="pt",
            )
        )

    def run(self, clip: bytes, fps: float, max_tokens: int, callers: int, warm_seconds: float, seconds: float) -> Point:
        """Callers who ask again and again, for `warm_seconds`, then for `seconds` that count."""
        # Each gets its share of the cores: fewer would leave some idle, more would fight for them.
        threads = max(1, len(os.sched_getaffinity(0)) // callers)
        torch.set_num_threads(threads)
        os.environ["OPENCV_FFMPEG_THREADS"] = str(threads)
        now = time.time()
        point = Point(now + warm_seconds, now + warm_seconds + seconds)
        lock = threading.Lock()

        def call() -> None:
            while time.time() < point.ended_at:
                first_token_seconds = self.answer(clip, fps, max_tokens)
                with lock:
                    if point.began_at <= time.time() < point.ended_at:
                        point.answered_count += 1
                        point.first_token_seconds.append(first_token_seconds)

        self.is_stopped = False
        threads_of_callers = [threading.Thread(target=call) for _ in range(callers)]
        for thread in threads_of_callers:
            thread.start()
        time.sleep(max(0.0, point.ended_at - time.time()))
        self.is_stopped = True
        for thread in threads_of_callers:
            thread.join()
        return point


def serve(checkpoint: Path, orders: Connection) -> None:
    """A process's whole life: takes arguments of `run`, sends back what came of them, until it gets None."""
    server = InProcess(checkpoint)
    orders.send("ready")
    while (order := orders.recv()) is not None:
        orders.send(server.run(*order))
