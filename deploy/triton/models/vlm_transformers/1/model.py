"""The Triton side of `vlm_transformers`: messages in, tokens out, and every message ended with FINAL.

    opening, or whole prompt ──▶ PromptInProgress ──▶ thread pool: encode, generate ──▶ one response a token
    rows of a prompt ──────────▶   (copied into it)      a response without tensors: they were read
    stop ──────────────────────▶

Only this file knows Triton. `execute` returns at once, so that several prompts run together and a cancelled one is
noticed while others generate. The messages of a prompt carry Triton's sequence parameters, but the model has no
sequence batcher: that binds a prompt to a slot, of which an instance has one, until its last message or a timeout, and
this instance serves many prompts at once. Messages of one stream come in order, because there is one instance.

Ways to end, each followed by FINAL, without which Triton keeps the stream open for ever:

    stop, length   the last token came with this finish reason
    cancelled      the client stopped it or left; nothing more is sent
    rejected       InvalidPrompt        INVALID_ARG
    refused        too many waiting, or rows that do not come     UNAVAILABLE
    failed         anything else        INTERNAL, and logged with its traceback
"""

from __future__ import annotations

import json
import os
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

from .checkpoint import load_model
from .contract import PIXELS, VISION_TENSORS, InvalidPrompt, ModelLayout
from .generation import CANCELLED, LENGTH, STOP, forget_sampling_defaults
from .progress import PromptInProgress

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
REJECTED, REFUSED, FAILED = "rejected", "refused", "failed"
FIRST_ROW = "first_row"
SEQUENCE_START = pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START
SEQUENCE_END = pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END
# How soon a prompt that waits for rows is found to have been left; one that generates looks once a token.
WATCH_SECONDS = 0.1
SAMPLING_TENSORS = ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop_token_ids")


@dataclass(eq=False)
class Served:
    """A prompt and where its answer goes."""

    key: int
    """0 for one that came whole, outside a sequence."""
    request_id: str
    sender: Any
    progress: PromptInProgress | None = None
    is_overdue: bool = False


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
        self._max_row_wait_seconds = float(parameters["max_row_wait_seconds"])
        # By sequence id, from the opening message to the end of the answer. Filled by `execute`, emptied by any thread.
        self._served: dict[int, Served] = {}
        self._is_closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watch", daemon=True)
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
        self._watcher.start()
        log = pb_utils.Logger.log_info if checkpoint else pb_utils.Logger.log_warn
        log(f"{self._name}: {checkpoint or 'a tiny RANDOM model, because no checkpoint is set'} on {self._device}")

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            key, flags = _sequence_id(request), request.flags()
            if not key or flags & SEQUENCE_START:
                self._open(request, key, is_whole=not key or bool(flags & SEQUENCE_END))
            else:
                self._continue(request, key, is_last=bool(flags & SEQUENCE_END))

    def finalize(self) -> None:
        # Triton calls this when no request is left, or its exit timeout is over and their clients are gone.
        self._is_closing.set()
        self._watcher.join()
        for served in list(self._served.values()):
            self._stop(served)
        self._pool.shutdown(wait=True)
        # Metrics that outlive this call are torn down too late and crash the process (server issue 8662).
        self._counters.clear()
        del self._outcomes

    def _open(self, request: Any, key: int, *, is_whole: bool) -> None:
        sender = request.get_response_sender()
        served = Served(key, request.request_id(), sender)
        if key in self._served:
            sender.send(_error_response(_rejection(f"a prompt with sequence_id {key} is open already")), flags=FINAL)
            return
        if not self._places.acquire(blocking=False):
            error = _error("UNAVAILABLE", "too many prompts wait already")
            self._finish(sender, REFUSED, error)
            return
        try:
            served.progress = PromptInProgress(
                _read_prompt(request),
                request,
                self._layout,
                self._device,
                is_whole=is_whole,
                is_left=sender.is_cancelled,
                emit=lambda token_id, reason: sender.send(_step(token_id, reason)),
            )
        except InvalidPrompt as invalid:
            self._end(served, REJECTED, _rejection(str(invalid)))
        except Exception as failure:  # whatever it was, the stream must end
            self._end(served, FAILED, self._failure(served, failure))
        else:
            if key:
                self._served[key] = served
            self._wake(served, served.progress)

    def _continue(self, request: Any, key: int, *, is_last: bool) -> None:
        """Rows of a prompt, or its stop. The reply says that they were read; what is wrong with them ends the prompt."""
        served = self._served.get(key)
        sender = request.get_response_sender()
        if json.loads(request.parameters() or "{}").get("stop"):
            if served is not None:
                self._stop(served)
        elif served is None:
            # It was refused or stopped, or this process is not the one that it began in.
            sender.send(_error_response(_rejection(f"rows of prompt {key}, which is not open")), flags=FINAL)
            return
        else:
            self._add_rows(request, served, is_last=is_last)
        sender.send(flags=FINAL)

    def _add_rows(self, request: Any, served: Served, *, is_last: bool) -> None:
        progress = served.progress
        if progress is None:  # ended a moment ago
            return
        first_row, rows = (_tensor(request, name) for name in (FIRST_ROW, PIXELS))
        if first_row is None or rows is None or first_row.size != 1:
            progress.refuse(f"a message with more of a prompt has {FIRST_ROW} int64 [1] and {PIXELS}, both")
        else:
            progress.add_rows(int(first_row.reshape(-1)[0]), rows, is_last=is_last)
        self._wake(served, progress)

    def _stop(self, served: Served) -> None:
        progress = served.progress
        if progress is not None:
            progress.stop()
            self._wake(served, progress)

    def _wake(self, served: Served, progress: PromptInProgress) -> None:
        if progress.claim():
            self._pool.submit(self._advance, served, progress)

    def _advance(self, served: Served, progress: PromptInProgress) -> None:
        """Take one prompt as far as it goes."""
        error = None
        try:
            outcome = progress.advance(self._model)
            if outcome is None:
                return
            if outcome == CANCELLED and served.is_overdue:
                text = f"no rows came for {self._max_row_wait_seconds} s"
                outcome, error = REFUSED, _error("UNAVAILABLE", text)
        except InvalidPrompt as invalid:
            outcome, error = REJECTED, _rejection(str(invalid))
        except Exception as failure:  # whatever it was, the stream must end
            outcome, error = FAILED, self._failure(served, failure)
        self._end(served, outcome, error)

    def _end(self, served: Served, outcome: str, error: Any) -> None:
        self._served.pop(served.key, None)
        served.progress = None  # and with it the rows, whoever else holds `served`
        self._places.release()
        self._finish(served.sender, outcome, error)

    def _watch(self) -> None:
        """End prompts whose rows will not come: those whose client left, and those that got none for too long."""
        while not self._is_closing.wait(WATCH_SECONDS):
            for served in list(self._served.values()):
                progress = served.progress
                if progress is None or not progress.is_waiting:
                    continue
                served.is_overdue = time.monotonic() - progress.last_news_seconds > self._max_row_wait_seconds
                if served.is_overdue or served.sender.is_cancelled():
                    self._stop(served)

    def _failure(self, served: Served, failure: Exception) -> Any:
        pb_utils.Logger.log_error(f"{self._name}: request {served.request_id!r}: {traceback.format_exc()}")
        return _error("INTERNAL", f"generation: {failure!r}")

    def _finish(self, sender: Any, outcome: str, error: Any) -> None:
        with self._counting:
            self._counters[outcome].increment(1)
        if error is None:
            sender.send(flags=FINAL)
        else:
            sender.send(_error_response(error), flags=FINAL)


def _choose_device(name: str) -> torch.device:
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _sequence_id(request: Any) -> int:
    """0 for a request outside any sequence."""
    key = request.correlation_id()
    if isinstance(key, str):
        key = int(key) if key.isdecimal() else 0
    return key


def _tensor(request: Any, name: str) -> np.ndarray | None:
    """A view that lives as long as `request`."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def _read_prompt(request: Any) -> dict[str, np.ndarray]:
    """The tensors that this model reads, by name."""
    named = ((name, _tensor(request, name)) for name in ("input_ids", *VISION_TENSORS, *SAMPLING_TENSORS))
    return {name: array for name, array in named if array is not None}


def _error(status: str, text: str) -> Any:
    """An error with the gRPC status in its text as well: a stream's replies carry the text alone."""
    codes = {
        "INVALID_ARGUMENT": pb_utils.TritonError.INVALID_ARG,
        "UNAVAILABLE": pb_utils.TritonError.UNAVAILABLE,
        "INTERNAL": pb_utils.TritonError.INTERNAL,
    }
    return pb_utils.TritonError(f"{status}: {text}", codes[status])


def _rejection(why: str) -> Any:
    return _error("INVALID_ARGUMENT", why)


def _error_response(error: Any) -> Any:
    return pb_utils.InferenceResponse(error=error)


def _step(token_id: int, finish_reason: str | None) -> Any:
    outputs = [pb_utils.Tensor("token_ids", np.array([token_id], np.int32))]
    if finish_reason is not None:
        outputs.append(pb_utils.Tensor("finish_reason", np.array([finish_reason.encode()], np.object_)))
    return pb_utils.InferenceResponse(output_tensors=outputs)
