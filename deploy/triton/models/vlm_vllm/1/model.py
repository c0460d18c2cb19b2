"""The Triton side of `vlm_vllm`: builder threads make inputs, vLLM's event loop answers, one thread sends.

    messages ──▶ receiver ──▶ (builder threads) all rows there: build_input
                                    └──▶ (event loop) AsyncLLM ──▶ (sender thread) a response a step

`execute` returns at once; vLLM batches what runs together. Sending a response waits for Triton, so it is done apart from the
event loop, which all prompts share. `engine_client.triton.backend` receives messages and ends answers.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

from engine_client.contract.assembler import PromptAssembler, State
from engine_client.contract.held import HeldKey, held_keys
from engine_client.contract.prompt import Prompt
from engine_client.contract.sampling import TokenLogprob
from engine_client.contract.tensors import CANCELLED, PIXELS, USES_HELD_ITEMS
from engine_client.triton.backend.item_cache import ItemCache
from engine_client.triton.backend.parameters import InvalidSettings
from engine_client.triton.backend.receiver import OpenPrompt, PromptReceiver
from engine_client.triton.backend.rows import TorchRows

from .engine import CORE_IS_DEAD, Engine, EngineGone, SlowStart
from .facts import UnsupportedEngine
from .items import TENSORS_OF_THIS_ENGINE, Item, read_items
from .metrics import EngineMetrics
from .settings import STOP_SERVER, ModelParameters

BUILDER_THREADS = 2  # one normalizes, where vLLM does not, while another checks
LEAVE_SECONDS = 15.0  # beyond drain_seconds: for aborted answers to end
EXIT_SECONDS = 60.0  # Triton's own limit is 30 (--exit-timeout-secs), and with a request open it may never end


@dataclass(frozen=True, slots=True, eq=False)
class Build:
    """A prompt on its way: all but its rows is checked and laid out."""

    prompt: Prompt
    items: tuple[Item, ...]
    keys: tuple[HeldKey, ...]
    """Of the items."""
    held: Mapping[int, torch.Tensor]
    """Rows of items that the model has already, by index."""
    is_in_pieces: bool
    """The rows are collected in memory of this process; else they lie in Triton's."""


class TritonPythonModel:
    """What Triton calls: one vLLM engine for all prompts. A request is one message of a prompt, whole or in pieces."""

    def initialize(self, args: dict[str, str]) -> None:
        self._name = args["model_name"]
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        self._server_pid = os.getppid()
        try:
            self._settings = ModelParameters.from_parameters(parameters, os.environ)
            self._engine = Engine(self._settings)
        except (InvalidSettings, UnsupportedEngine, SlowStart) as error:
            raise pb_utils.TritonModelException(f"{self._name}: {error}") from error
        self._cache: ItemCache[torch.Tensor] = ItemCache(self._name, self._settings.held_items_bytes)
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="sender")
        self._receiver = PromptReceiver(
            self._name,
            self,
            tensor_names=(*TENSORS_OF_THIS_ENGINE, USES_HELD_ITEMS),
            max_prompts=self._settings.max_in_flight,
            thread_count=BUILDER_THREADS,
            max_row_wait_seconds=self._settings.max_row_wait_seconds,
        )
        self._metrics = EngineMetrics(self._name, self._engine.registry)
        self._engine.watch(self._on_death)
        pb_utils.Logger.log_info(f"{self._name}: {self._settings.checkpoint}, {self._engine.description}")

    def is_ready(self) -> bool:
        """Asked by Triton releases that ask; 2.51 does not."""
        return not self._engine.is_dead

    def execute(self, requests: list[Any]) -> None:
        self._receiver.receive(requests)

    def finalize(self) -> None:
        # Triton calls this when no request is left, or its exit timeout is over and their clients are gone.
        self._receiver.close(self._settings.drain_seconds, LEAVE_SECONDS)
        self._sender.shutdown(wait=True)
        self._cache.close()
        self._metrics.close()
        self._engine.shutdown()

    def begin(self, tensors: dict[str, np.ndarray], owner: object, *, is_whole: bool) -> tuple[PromptAssembler, Build]:
        """See `PromptModel`."""
        from .inputs import OwnedArray  # not above: vLLM is imported when settings are known to be right

        self._engine.require_alive()
        facts = self._engine.facts
        if PIXELS in tensors:
            tensors[PIXELS] = OwnedArray.wrap(tensors[PIXELS], owner)
        storage = TorchRows(torch.device("cpu"))
        assembler = PromptAssembler(tensors, owner, facts.layout, storage, is_whole=is_whole)
        prompt = assembler.prompt
        items, keys = read_items(tensors, prompt, facts), held_keys(tensors, prompt)
        held = self._cache.find(keys, must_find=assembler.uses_held_items)
        return assembler, Build(prompt, items, keys, held, PIXELS not in tensors)

    def advance(self, opened: OpenPrompt) -> str | None:
        """See `PromptModel`."""
        from .inputs import build_input

        assembler, build = opened.assembler, opened.work
        assert assembler is not None  # only `advance` ends what is being advanced
        state = assembler.advance(lambda: None)
        if state is State.WAITING:
            return None
        if state is State.STOPPED:
            return CANCELLED
        self._engine.require_alive()
        inputs = build_input(build.prompt, build.items, self._pixels(assembler, build), self._engine.facts)
        if self._cache.is_on and build.keys:
            opened.answer.tell_held(self._cache.holds(build.keys))
        assembler.release()
        opened.work = None
        self._engine.start(
            "prompt",
            assembler,
            inputs,
            on_tokens=lambda *step: self._send(opened, *step),
            on_end=lambda outcome: self._end(opened, outcome),
        )
        return None

    def _pixels(self, assembler: PromptAssembler, build: Build) -> torch.Tensor:
        """The rows of a prompt, those that came or those that are held; the former are held from now on.

        A copy is kept of rows that lie in Triton's own shared memory, or together with those of other items.
        """
        if assembler.uses_held_items:
            held = [build.held[index] for index in range(len(build.items))]
            return held[0] if len(held) == 1 else torch.cat(held)
        rows = assembler.rows
        pixels: torch.Tensor = rows.between(0, rows.row_count) if build.items else torch.empty(0)
        for index, (item, key) in enumerate(zip(build.items, build.keys, strict=True)):
            part = pixels[item.first_row : item.first_row + item.row_count]
            if index not in build.held and part.nbytes <= self._settings.held_items_bytes:
                is_own = build.is_in_pieces and len(build.items) == 1
                self._cache.add(key, part if is_own else part.clone(), part.nbytes)
        return pixels

    def _send(
        self, opened: OpenPrompt, token_ids: list[int], reason: str | None, told: Sequence[TokenLogprob], index: int
    ) -> None:
        self._sender.submit(self._deliver, opened, token_ids, reason, told, index)

    def _end(self, opened: OpenPrompt, outcome: str | BaseException) -> None:
        self._sender.submit(self._finish, opened, outcome)

    def _deliver(
        self, opened: OpenPrompt, token_ids: list[int], reason: str | None, told: Sequence[TokenLogprob], index: int
    ) -> None:
        if opened.assembler is None:  # sending failed before
            return
        try:
            opened.answer.send(token_ids, reason, told, index)
        except Exception as failure:  # whatever it was, the stream must end
            opened.assembler.stop()
            opened.answer.fail(failure)

    def _finish(self, opened: OpenPrompt, outcome: str | BaseException) -> None:
        if opened.assembler is None:
            return
        if isinstance(outcome, BaseException):
            opened.answer.fail(outcome)
        else:
            opened.end(outcome)

    def _on_death(self) -> None:
        pb_utils.Logger.log_error(f"{self._name}: {CORE_IS_DEAD}")
        threading.Thread(target=self._leave, name="leave", daemon=True).start()

    def _leave(self) -> None:
        """End what is open, and with `stop_server` Triton itself: 2.51 finds a model ready whose process is gone."""
        stops_server = self._settings.when_engine_dies == STOP_SERVER
        if stops_server:
            pb_utils.Logger.log_error(f"{self._name}: stopping the server, to be started anew (when_engine_dies)")
            os.kill(self._server_pid, signal.SIGTERM)  # it is not ready from now on
        self._receiver.refuse_all(EngineGone(CORE_IS_DEAD))
        if stops_server:
            time.sleep(EXIT_SECONDS)
            os.kill(self._server_pid, signal.SIGKILL)
