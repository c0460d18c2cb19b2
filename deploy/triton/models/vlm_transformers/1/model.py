"""The Triton side of `vlm_transformers`: requests in, tokens out, and every request ended with FINAL.

    execute() ──▶ thread pool ──▶ contract.build_model_inputs ──▶ generation.generate_tokens ──▶ one response a token

Only this file knows Triton. `execute` returns at once, so that several prompts run together and a cancelled one is
noticed while others generate. Ways to end, each followed by FINAL, without which Triton keeps the stream open for ever:

    stop, length   the last token came with this finish reason
    cancelled      the client left; nothing more is sent
    rejected       InvalidPrompt        INVALID_ARG
    refused        too many waiting     UNAVAILABLE
    failed         anything else        INTERNAL, and logged with its traceback
"""

from __future__ import annotations

import json
import os
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

from .checkpoint import load_model
from .contract import VISION_TENSORS, InvalidPrompt, ModelLayout, Sampling, build_model_inputs
from .generation import CANCELLED, LENGTH, STOP, forget_sampling_defaults, generate_tokens

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
REJECTED, REFUSED, FAILED = "rejected", "refused", "failed"
SAMPLING_TENSORS = ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop_token_ids")


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._name = args["model_name"]
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        checkpoint = parameters["checkpoint"] or os.environ.get("VLM_CHECKPOINT", "")
        self._device = _choose_device(parameters["device"])
        self._model = load_model(checkpoint, self._device)
        self._layout = ModelLayout.from_config(self._model.config)
        forget_sampling_defaults(self._model)

        max_running = int(parameters["max_running"])
        self._places = threading.BoundedSemaphore(max_running + int(parameters["max_waiting"]))
        self._pool = ThreadPoolExecutor(max_running, thread_name_prefix="generate")
        self._outcomes = pb_utils.MetricFamily(
            name="vlm_generations_total", description="Prompts by how they ended", kind=pb_utils.MetricFamily.COUNTER
        )
        self._counters = {
            outcome: self._outcomes.Metric(labels={"model": self._name, "outcome": outcome})
            for outcome in (STOP, LENGTH, CANCELLED, REJECTED, REFUSED, FAILED)
        }
        # Two threads that count at the same moment abort the whole server (2.51: lock_exception in its Python backend).
        self._counting = threading.Lock()
        log = pb_utils.Logger.log_info if checkpoint else pb_utils.Logger.log_warn
        log(f"{self._name}: {checkpoint or 'a tiny RANDOM model, because no checkpoint is set'} on {self._device}")

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            if self._places.acquire(blocking=False):
                self._pool.submit(self._serve, request, sender)
            else:
                error = pb_utils.TritonError("too many prompts wait already", pb_utils.TritonError.UNAVAILABLE)
                self._finish(sender, REFUSED, error)

    def finalize(self) -> None:
        # Triton calls this when no request is left, or its exit timeout is over and their clients are gone.
        self._pool.shutdown(wait=True)
        # Metrics that outlive this call are torn down too late and crash the process (server issue 8662).
        self._counters.clear()
        del self._outcomes

    def _serve(self, request: Any, sender: Any) -> None:
        """Answer one request; its input arrays lie in memory that lives as long as `request`."""
        error = None
        try:
            outcome = self._generate(request, sender)
        except InvalidPrompt as invalid:
            outcome, error = REJECTED, pb_utils.TritonError(str(invalid), pb_utils.TritonError.INVALID_ARG)
        except Exception as failure:  # whatever it was, the stream must end
            pb_utils.Logger.log_error(f"{self._name}: request {request.request_id()!r}: {traceback.format_exc()}")
            outcome, error = FAILED, pb_utils.TritonError(f"generation: {failure!r}", pb_utils.TritonError.INTERNAL)
        finally:
            self._places.release()
        self._finish(sender, outcome, error)

    def _generate(self, request: Any, sender: Any) -> str:
        if sender.is_cancelled():  # while it waited for its turn
            return CANCELLED
        tensors = _read_tensors(request)
        sampling = Sampling.from_tensors(tensors)
        inputs = build_model_inputs(tensors, self._layout, device=self._device, dtype=self._model.dtype)
        position_count = inputs["input_ids"].shape[1] + sampling.max_tokens
        if position_count > self._layout.max_positions:
            raise InvalidPrompt(
                f"input_ids and max_tokens make {position_count} positions; the model has {self._layout.max_positions}"
            )

        def emit(token_id: int, finish_reason: str | None) -> None:
            outputs = [pb_utils.Tensor("token_ids", np.array([token_id], np.int32))]
            if finish_reason is not None:
                outputs.append(pb_utils.Tensor("finish_reason", np.array([finish_reason.encode()], np.object_)))
            sender.send(pb_utils.InferenceResponse(output_tensors=outputs))

        return generate_tokens(self._model, inputs, sampling, emit=emit, is_cancelled=sender.is_cancelled)

    def _finish(self, sender: Any, outcome: str, error: Any) -> None:
        with self._counting:
            self._counters[outcome].increment(1)
        if error is None:
            sender.send(flags=FINAL)
        else:
            sender.send(pb_utils.InferenceResponse(error=error), flags=FINAL)


def _choose_device(name: str) -> torch.device:
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _read_tensors(request: Any) -> dict[str, np.ndarray]:
    """Views of the request's tensors, by name; only those that this model reads."""
    named = (
        (name, pb_utils.get_input_tensor_by_name(request, name))
        for name in ("input_ids", *VISION_TENSORS, *SAMPLING_TENSORS)
    )
    return {name: tensor.as_numpy() for name, tensor in named if tensor is not None}
