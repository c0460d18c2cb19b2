"""The Triton side of `vlm_transformers`: a thread processes as much of a prompt as has arrived.

    rows that have come ──▶ VisionEncoding      all of them ──▶ generate_tokens ──▶ one response a token

Prompts run side by side on threads, each with a batch of its own. `engine_client.triton.backend` receives
messages and ends answers; `execute` returns at once, so that a stop is read while others generate.
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

from engine_client.contract.assembler import PromptAssembler, State
from engine_client.contract.prompt import ModelLayout
from engine_client.contract.tensors import CANCELLED
from engine_client.triton.backend.receiver import OpenPrompt, PromptReceiver
from engine_client.triton.backend.rows import TorchRows

from .checkpoint import RANDOM_WEIGHTS, load_checkpoint
from .generation import build_model_inputs, forget_sampling_defaults, generate_tokens
from .vision import VisionEncoding

LEAVE_SECONDS = 60.0  # for a prefill under way, which looks for a stop only when it is over


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        name = args["model_name"]
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        checkpoint = parameters["checkpoint"].strip() or os.environ.get("VLM_CHECKPOINT", "").strip()
        self._device = _choose_device(parameters["device"])
        self._model = load_checkpoint(checkpoint, self._device)
        self._layout = ModelLayout.from_config(self._model.config)
        forget_sampling_defaults(self._model)
        max_running = int(parameters["max_running"])
        self._receiver = PromptReceiver(
            name,
            self,
            max_prompts=max_running + int(parameters["max_waiting"]),
            thread_count=max_running,
            max_row_wait_seconds=float(parameters["max_row_wait_seconds"]),
        )
        log = pb_utils.Logger.log_warn if checkpoint == RANDOM_WEIGHTS else pb_utils.Logger.log_info
        log(f"{name}: {checkpoint} on {self._device}")

    def execute(self, requests: list[Any]) -> None:
        self._receiver.receive(requests)

    def finalize(self) -> None:
        # Triton calls this when no request is left, or its exit timeout is over and their clients are gone.
        self._receiver.close(drain_seconds=0, leave_seconds=LEAVE_SECONDS)

    def begin(
        self, tensors: dict[str, np.ndarray], owner: object, *, is_whole: bool
    ) -> tuple[PromptAssembler, VisionEncoding]:
        """See `PromptModel`."""
        assembler = PromptAssembler(tensors, owner, self._layout, TorchRows(self._device), is_whole=is_whole)
        return assembler, VisionEncoding(self._model, assembler.prompt, assembler.rows)

    def advance(self, opened: OpenPrompt) -> str | None:
        """See `PromptModel`."""
        assembler, encoding = opened.assembler, opened.work
        assert assembler is not None  # only `advance` ends what is being advanced
        state = assembler.advance(encoding.take_rows)
        if state is State.WAITING:
            return None
        if state is State.STOPPED:
            return CANCELLED
        inputs: dict[str, Any] = build_model_inputs(assembler.prompt, self._device)
        inputs["mm_encoder_outputs"] = encoding.take_outputs()
        assembler.release()
        return generate_tokens(
            self._model,
            inputs,
            assembler.sampling,
            emit=lambda token_id, reason, logprobs: opened.answer.send([token_id], reason, logprobs),
            is_cancelled=lambda: assembler.is_stopped,
        )


def _choose_device(name: str) -> torch.device:
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
