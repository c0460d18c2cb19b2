"""The Triton side of `vlm_tensorrt_llm`: requests in, tokens out, and every request ended with FINAL.

    execute() ──▶ event loop ──▶ (builder thread) engine.prepare ──▶ engine.generate ──▶ a response a step

Only this file knows Triton. `execute` returns at once; TensorRT-LLM batches what runs together. Its answers are read on
one event loop, on a thread of its own; what takes long, moving and normalizing pixels, is done on builder threads, so
that a large prompt does not hold up the tokens of others. Ways to end, each followed by FINAL, without which Triton
keeps the stream open for ever:

    stop, length   the last token came with this finish reason
    cancelled      the client left; the engine was told, and nothing more is sent
    rejected       InvalidPrompt                               INVALID_ARG
    refused        too many in flight, or the engine is gone   UNAVAILABLE
    failed         anything else                               INTERNAL, and logged with its traceback
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import os
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .contract import VISION_TENSORS, InvalidPrompt, Sampling
from .engine import CANCELLED, LENGTH, STOP, EngineGone, SharedPrompt, UnsupportedEngine, load_engine
from .params import TENSORS_OF_THIS_ENGINE
from .settings import EngineSettings, InvalidSettings

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
REJECTED, REFUSED, FAILED = "rejected", "refused", "failed"
SAMPLING_TENSORS = ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop_token_ids")
BUILDER_THREADS = 2  # one moves pixels while another checks; a GPU copies no faster with more
LEAVE_SECONDS = 15.0  # beyond drain_seconds: for aborted answers to end (engine.ABORT_SECONDS), and the loop


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._name = args["model_name"]
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        try:
            self._settings = EngineSettings.from_parameters(parameters, os.environ)
            self._engine = load_engine(self._settings)
        except (InvalidSettings, UnsupportedEngine) as error:
            raise pb_utils.TritonModelException(f"{self._name}: {error}") from error

        self._places = threading.BoundedSemaphore(self._settings.max_in_flight)
        self._builders = ThreadPoolExecutor(BUILDER_THREADS, thread_name_prefix="build")
        self._is_leaving = threading.Event()
        self._answers: set[concurrent.futures.Future[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="answers", daemon=True)
        self._thread.start()
        self._outcomes = pb_utils.MetricFamily(
            name="vlm_generations_total", description="Prompts by how they ended", kind=pb_utils.MetricFamily.COUNTER
        )
        self._counters = {
            outcome: self._outcomes.Metric(labels={"model": self._name, "outcome": outcome})
            for outcome in (STOP, LENGTH, CANCELLED, REJECTED, REFUSED, FAILED)
        }
        # Two threads that count at the same moment abort the whole server (2.51: lock_exception in its Python backend).
        self._counting = threading.Lock()
        pb_utils.Logger.log_info(f"{self._name}: {self._settings.checkpoint}, {self._engine.description}")

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            if self._places.acquire(blocking=False):
                answer = asyncio.run_coroutine_threadsafe(self._serve(request, sender), self._loop)
                self._answers.add(answer)
                answer.add_done_callback(self._answers.discard)
            else:
                error = _error("UNAVAILABLE", "too many prompts are in flight already")
                self._finish(sender, REFUSED, error)

    def finalize(self) -> None:
        # Triton (2.51) waits for answers before it calls this, whether it unloads the model or exits, and when its exit
        # timeout is over it does not call it at all. A release that called earlier would find them drained here.
        _, late = concurrent.futures.wait(set(self._answers), timeout=self._settings.drain_seconds)
        self._is_leaving.set()
        concurrent.futures.wait(late, timeout=LEAVE_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=LEAVE_SECONDS)
        self._builders.shutdown(wait=True)
        self._engine.shutdown()
        # Metrics that outlive this call are torn down too late and crash the process (server issue 8662).
        self._counters.clear()
        del self._outcomes

    async def _serve(self, request: Any, sender: Any) -> None:
        """Answer one request; its input arrays lie in memory that lives as long as `request`."""
        error = None
        try:
            outcome = await self._generate(request, sender)
            if outcome == CANCELLED and self._is_leaving.is_set() and not sender.is_cancelled():
                raise EngineGone("the model is being unloaded")
        except InvalidPrompt as invalid:
            outcome, error = REJECTED, _error("INVALID_ARGUMENT", str(invalid))
        except EngineGone as gone:
            outcome, error = REFUSED, _error("UNAVAILABLE", str(gone))
        except Exception as failure:  # whatever it was, the stream must end
            pb_utils.Logger.log_error(f"{self._name}: request {request.request_id()!r}: {traceback.format_exc()}")
            outcome, error = FAILED, _error("INTERNAL", f"generation: {failure!r}")
        finally:
            self._places.release()
        self._finish(sender, outcome, error)

    async def _generate(self, request: Any, sender: Any) -> str:
        def is_cancelled() -> bool:
            return bool(sender.is_cancelled()) or self._is_leaving.is_set()

        def prepare() -> tuple[SharedPrompt, Sampling] | None:
            if is_cancelled():  # while it waited for a builder
                return None
            tensors = _read_tensors(request)
            sampling = Sampling.from_tensors(tensors)
            return self._engine.prepare(tensors, sampling), sampling

        def emit(token_ids: list[int], finish_reason: str | None) -> None:
            outputs = [pb_utils.Tensor("token_ids", np.array(token_ids, np.int32))]
            if finish_reason is not None:
                outputs.append(pb_utils.Tensor("finish_reason", np.array([finish_reason.encode()], np.object_)))
            sender.send(pb_utils.InferenceResponse(output_tensors=outputs))

        prepared = await self._loop.run_in_executor(self._builders, prepare)
        if prepared is None:
            return CANCELLED
        prompt, sampling = prepared
        return await self._engine.generate(prompt, sampling, emit=emit, is_cancelled=is_cancelled)

    def _finish(self, sender: Any, outcome: str, error: Any) -> None:
        with self._counting:
            self._counters[outcome].increment(1)
        if error is None:
            sender.send(flags=FINAL)
        else:
            sender.send(pb_utils.InferenceResponse(error=error), flags=FINAL)


def _read_tensors(request: Any) -> dict[str, np.ndarray]:
    """Views of the request's tensors, by name; only those that this model reads."""
    named = (
        (name, pb_utils.get_input_tensor_by_name(request, name))
        for name in ("input_ids", *VISION_TENSORS, *TENSORS_OF_THIS_ENGINE, *SAMPLING_TENSORS)
    )
    return {name: tensor.as_numpy() for name, tensor in named if tensor is not None}


def _error(status: str, text: str) -> Any:
    """An error with the gRPC status in its text as well: a stream's replies carry the text alone."""
    codes = {
        "INVALID_ARGUMENT": pb_utils.TritonError.INVALID_ARG,
        "UNAVAILABLE": pb_utils.TritonError.UNAVAILABLE,
        "INTERNAL": pb_utils.TritonError.INTERNAL,
    }
    return pb_utils.TritonError(f"{status}: {text}", codes[status])
