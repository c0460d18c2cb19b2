"""The Triton side of `vlm_tensorrt_llm`: builder threads make prompts, one event loop reads answers.

    messages ──▶ intake ──▶ (builder threads) rows to floats as they come; all there: share
                                   └──▶ (event loop) generate_async ──▶ a response a step

`execute` returns at once; TensorRT-LLM batches what runs together. Its answers are read on one event loop, on a thread
of its own; what takes long, moving and normalizing pixels, is done on builder threads, so that a large prompt does not
hold up the tokens of others. `prompts.intake` knows how messages come, and `prompts.answers` how an answer ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .engine import Build, SharedPrompt, load_engine
from .params import TENSORS_OF_THIS_ENGINE
from .prompts.arrival import Arrival, State
from .prompts.contract import CANCELLED
from .prompts.intake import Intake, Served
from .settings import EngineSettings, InvalidSettings
from .surface import UnsupportedEngine

BUILDER_THREADS = 2  # one moves pixels while another checks; a GPU copies no faster with more
LEAVE_SECONDS = 15.0  # beyond drain_seconds: for aborted answers to end (engine.ABORT_SECONDS), and the loop


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        name = args["model_name"]
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        try:
            self._settings = EngineSettings.from_parameters(parameters, os.environ)
            self._engine = load_engine(self._settings)
        except (InvalidSettings, UnsupportedEngine) as error:
            raise pb_utils.TritonModelException(f"{name}: {error}") from error

        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="answers", daemon=True)
        self._thread.start()
        self._intake = Intake(
            name,
            self,
            tensor_names=TENSORS_OF_THIS_ENGINE,
            max_prompts=self._settings.max_in_flight,
            thread_count=BUILDER_THREADS,
            max_row_wait_seconds=self._settings.max_row_wait_seconds,
        )
        pb_utils.Logger.log_info(f"{name}: {self._settings.checkpoint}, {self._engine.description}")

    def execute(self, requests: list[Any]) -> None:
        self._intake.receive(requests)

    def finalize(self) -> None:
        # Triton (2.51) waits for answers before it calls this, whether it unloads the model or exits, and when its exit
        # timeout is over it does not call it at all. A release that called earlier would find them drained here.
        self._intake.close(self._settings.drain_seconds, LEAVE_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=LEAVE_SECONDS)
        self._engine.shutdown()

    def begin(self, tensors: dict[str, np.ndarray], owner: object, *, is_whole: bool) -> tuple[Arrival, Build]:
        """See `prompts.intake.Model`."""
        return self._engine.begin(tensors, owner, is_whole=is_whole)

    def advance(self, served: Served) -> str | None:
        """See `prompts.intake.Model`."""
        arrival, build = served.arrival, served.work
        state = arrival.advance(build.pixels.take_rows)
        if state is State.WAITING:
            return None
        # A shared tensor that no worker opens is never freed: so it is looked at once more.
        if state is State.STOPPED or arrival.is_stopped:
            return CANCELLED
        prompt = self._engine.share(build)
        arrival.let_go()
        served.work = None
        asyncio.run_coroutine_threadsafe(self._answer(served, arrival, prompt), self._loop)
        return None

    async def _answer(self, served: Served, arrival: Arrival, prompt: SharedPrompt) -> None:
        try:
            outcome = await self._engine.generate(
                prompt, arrival.sampling, emit=served.answer.send, is_cancelled=lambda: arrival.is_stopped
            )
        except Exception as failure:  # whatever it was, the stream must end
            served.answer.fail(failure)
        else:
            served.end(outcome)
