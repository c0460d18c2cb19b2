"""The Triton side of `vlm_transformers`: a thread processes as much of a prompt as has arrived.

    rows that have come ──▶ VisionEncoding      all of them ──▶ generate_tokens ──▶ one response a token
                                  └──▶ ItemCache: features of items, for prompts that come without pixels

Prompts run side by side on threads, each with a batch of its own. `engine_client.triton.backend` receives
messages and ends answers; `execute` returns at once, so that a stop is read while others generate.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
import triton_python_backend_utils as pb_utils

from engine_client.contract.assembler import PromptAssembler, State
from engine_client.contract.held import HeldKey, held_keys
from engine_client.contract.layout import ModelLayout
from engine_client.contract.tensors import CANCELLED, ITEM_HASH, USES_HELD_ITEMS
from engine_client.triton.backend.item_cache import ItemCache
from engine_client.triton.backend.parameters import ParameterReader
from engine_client.triton.backend.receiver import OpenPrompt, PromptReceiver
from engine_client.triton.backend.rows import TorchRows
from engine_client.triton.backend.video_markers import check_video_markers

from .checkpoint import RANDOM_WEIGHTS, load_checkpoint
from .generation import build_model_inputs, forget_sampling_defaults, generate_tokens
from .vision import Features, VisionEncoding, encoder_outputs, own_memory

LEAVE_SECONDS = 60.0  # for a prefill under way, which looks for a stop only when it is over


@dataclass(frozen=True, slots=True)
class Work:
    """A prompt on its way."""

    keys: tuple[HeldKey, ...]
    """Of its items; empty where they have no hashes."""
    encoding: VisionEncoding


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        name = args["model_name"]
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        checkpoint = parameters["checkpoint"].strip() or os.environ.get("VLM_CHECKPOINT", "").strip()
        markers = check_video_markers(parameters, transformers.__version__)
        self._device = _choose_device(parameters["device"])
        self._model = load_checkpoint(checkpoint, self._device)
        self._layout = ModelLayout.from_config(self._model.config)
        forget_sampling_defaults(self._model)
        reader = ParameterReader({"encoder_cache_bytes": "0"} | parameters)
        rule = "a number of bytes; 0 keeps nothing"
        self._cache: ItemCache[Features] = ItemCache(
            name, reader.value("encoder_cache_bytes", int, lambda size: size >= 0, rule)
        )
        max_running = int(parameters["max_running"])
        self._receiver = PromptReceiver(
            name,
            self,
            tensor_names=(ITEM_HASH, USES_HELD_ITEMS),
            max_prompts=max_running + int(parameters["max_waiting"]),
            thread_count=max_running,
            max_row_wait_seconds=float(parameters["max_row_wait_seconds"]),
        )
        log = pb_utils.Logger.log_warn if checkpoint == RANDOM_WEIGHTS else pb_utils.Logger.log_info
        log(
            f"{name}: {checkpoint} on {self._device}; transformers {transformers.__version__}, video markers: {markers}"
        )

    def execute(self, requests: list[Any]) -> None:
        self._receiver.receive(requests)

    def finalize(self) -> None:
        # Triton calls this when no request is left, or its exit timeout is over and their clients are gone.
        self._receiver.close(drain_seconds=0, leave_seconds=LEAVE_SECONDS)
        self._cache.close()

    def begin(self, tensors: dict[str, np.ndarray], owner: object, *, is_whole: bool) -> tuple[PromptAssembler, Work]:
        """See `PromptModel`."""
        assembler = PromptAssembler(tensors, owner, self._layout, TorchRows(self._device), is_whole=is_whole)
        prompt = assembler.prompt
        keys = held_keys(tensors, prompt)
        held = self._cache.find(keys, must_find=assembler.uses_held_items)
        return assembler, Work(keys, VisionEncoding(self._model, prompt, assembler.rows, held))

    def advance(self, opened: OpenPrompt) -> str | None:
        """See `PromptModel`."""
        assembler, work = opened.assembler, opened.work
        assert assembler is not None  # only `advance` ends what is being advanced
        state = assembler.advance(work.encoding.take_rows)
        if state is State.WAITING:
            return None
        if state is State.STOPPED:
            return CANCELLED
        inputs: dict[str, Any] = build_model_inputs(assembler.prompt, self._device)
        features = work.encoding.take_features()
        inputs["mm_encoder_outputs"] = encoder_outputs(features, assembler.prompt.modality)
        if self._cache.is_on and work.keys:
            self._keep(work.keys, features)
            opened.answer.tell_held(self._cache.holds(work.keys))
        assembler.release()
        return generate_tokens(
            self._model,
            inputs,
            assembler.sampling,
            emit=lambda token_id, reason, logprobs: opened.answer.send([token_id], reason, logprobs),
            is_cancelled=lambda: assembler.is_stopped,
        )

    def _keep(self, keys: Sequence[HeldKey], features: Sequence[Features]) -> None:
        for key, each, is_held in zip(keys, features, self._cache.holds(keys), strict=True):
            if not is_held:
                kept = own_memory(each)
                self._cache.add(key, kept, kept.size_bytes)


def _choose_device(name: str) -> torch.device:
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
