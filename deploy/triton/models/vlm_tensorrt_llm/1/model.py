"""The Triton side of `vlm_tensorrt_llm`: builder threads make prompts, one event loop reads answers.

    messages ──▶ receiver ──▶ (builder threads) rows to floats as they come; all there: share
                                     └──▶ (event loop) generate_async ──▶ a response a step

`execute` returns at once; TensorRT-LLM batches what runs together. Its answers are read on one event loop, on a thread
of its own; what takes long, moving and normalizing pixels, is done on builder threads, so that a large prompt does not
hold up the tokens of others. `engine_client.triton.backend` receives messages and ends answers.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from importlib.metadata import version
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from engine_client.contract.assembler import PromptAssembler, State
from engine_client.contract.tensors import CANCELLED
from engine_client.triton.backend.receiver import OpenPrompt, PromptReceiver
from engine_client.triton.backend.video_markers import check_video_markers

from .engine import Build, SharedPrompt, load_engine
from .params import TENSORS_OF_THIS_ENGINE
from .settings import InvalidSettings, ModelParameters
from .surface import UnsupportedEngine

BUILDER_THREADS = 2  # one moves pixels while another checks; a GPU copies no faster with more
LEAVE_SECONDS = 15.0  # beyond drain_seconds: for aborted answers to end (engine.ABORT_SECONDS), and the loop


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        name = args["model_name"]
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        transformers_version = version("transformers")  # that of TensorRT-LLM's input processor
        markers = check_video_markers(parameters, transformers_version)
        try:
            self._settings = ModelParameters.from_parameters(parameters, os.environ)
            self._engine = load_engine(self._settings)
        except (InvalidSettings, UnsupportedEngine) as error:
            raise pb_utils.TritonModelException(f"{name}: {error}") from error

        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="answers", daemon=True)
        self._thread.start()
        self._receiver = PromptReceiver(
            name,
            self,
            tensor_names=TENSORS_OF_THIS_ENGINE,
            max_prompts=self._settings.max_in_flight,
            thread_count=BUILDER_THREADS,
            max_row_wait_seconds=self._settings.max_row_wait_seconds,
        )
        pb_utils.Logger.log_info(
            f"{name}: {self._settings.checkpoint}, {self._engine.description}; transformers {transformers_version}, "
            f"video markers: {markers}"
        )

    def execute(self, requests: list[Any]) -> None:
        self._receiver.receive(requests)

    def finalize(self) -> None:
        # Triton (2.51) waits for answers before it calls this, whether it unloads the model or exits, and when its exit
        # timeout is over it does not call it at all. A release that called earlier would find them drained here.
        self._receiver.close(self._settings.drain_seconds, LEAVE_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=LEAVE_SECONDS)
        self._engine.shutdown()

    def begin(self, tensors: dict[str, np.ndarray], owner: object, *, is_whole: bool) -> tuple[PromptAssembler, Build]:
        """See `PromptModel`."""
        return self._engine.begin(tensors, owner, is_whole=is_whole)

    def advance(self, opened: OpenPrompt) -> str | None:
        """See `PromptModel`."""
        assembler, build = opened.assembler, opened.work
        assert assembler is not None  # only `advance` ends what is being advanced
        state = assembler.advance(build.pixels.take_rows)
        if state is State.WAITING:
            return None
        # A shared tensor that no worker opens is never freed: so it is looked at once more.
        if state is State.STOPPED or assembler.is_stopped:
            return CANCELLED
        prompt = self._engine.share(build)
        assembler.release()
        opened.work = None
        asyncio.run_coroutine_threadsafe(self._answer(opened, assembler, prompt), self._loop)
        return None

    async def _answer(self, opened: OpenPrompt, assembler: PromptAssembler, prompt: SharedPrompt) -> None:
        try:
            outcome = await self._engine.generate(
                prompt, assembler.sampling, emit=opened.answer.send, is_cancelled=lambda: assembler.is_stopped
            )
        except Exception as failure:  # whatever it was, the stream must end
            opened.answer.fail(failure)
        else:
            opened.end(outcome)
