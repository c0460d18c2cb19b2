"""One answer: its steps, and its one end, which is always a FINAL response. Without it Triton keeps the stream open for ever.

stop, length   the last token came with this finish reason
cancelled      the client stopped it or left; nothing more is sent
rejected       InvalidPrompt                                  INVALID_ARG
not_held       ItemsNotHeld: the prompt comes again, whole    INVALID_ARG, its text FAILED_PRECONDITION
refused        Refused: no place, no rows, an engine gone     UNAVAILABLE
failed         anything else                                  INTERNAL, and logged with its traceback
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

from engine_client.contract.errors import InvalidPrompt, ItemsNotHeld, Refused
from engine_client.contract.sampling import TokenLogprob
from engine_client.contract.tensors import (
    ANSWER_INDEX,
    CANCELLED,
    FINISH_REASON,
    HELD_ITEMS,
    LENGTH,
    LOGPROBS,
    STOP,
    TOKEN_IDS,
    TOP_LOGPROBS,
    TOP_TOKEN_IDS,
)

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
REJECTED, REFUSED, FAILED = "rejected", "refused", "failed"
NOT_HELD = "not_held"
METRICS_LOCK = threading.Lock()
"""Held while any metric of the process is changed: two threads that do so at the same moment abort the whole server (2.51:
lock_exception in its Python backend)."""


class Outcomes:
    """Counts prompts by how they ended, in `vlm_generations_total{model,outcome}` of Triton's metrics."""

    def __init__(self, model_name: str) -> None:
        self._family = pb_utils.MetricFamily(
            name="vlm_generations_total", description="Prompts by how they ended", kind=pb_utils.MetricFamily.COUNTER
        )
        self._counters = {
            outcome: self._family.Metric(labels={"model": model_name, "outcome": outcome})
            for outcome in (STOP, LENGTH, CANCELLED, REJECTED, NOT_HELD, REFUSED, FAILED)
        }

    def count(self, outcome: str) -> None:
        with METRICS_LOCK:
            self._counters[outcome].increment(1)

    def close(self) -> None:
        """To be called before the model is gone: metrics that outlive it crash the process (server issue 8662)."""
        self._counters.clear()
        del self._family


class Answer:
    """One answer, or several of one prompt, to whoever sent `request`.

    Args:
        model_name: For the log.
        request: Triton's.
        outcomes: Where its end is counted.
        on_end: Called once, before the end is sent.
    """

    def __init__(self, model_name: str, request: Any, outcomes: Outcomes, on_end: Callable[[], None]) -> None:
        self._who = f"{model_name}: request {request.request_id()!r}"
        self._sender = request.get_response_sender()
        self._outcomes = outcomes
        self._on_end = on_end
        self._held_items: Sequence[bool] = ()
        self._is_ended = False
        self._lock = threading.Lock()

    def tell_held(self, items: Sequence[bool]) -> None:
        """Tell with the next tokens which items of the prompt are held from now on; the model declares that output."""
        self._held_items = items

    def send(
        self,
        token_ids: Sequence[int],
        finish_reason: str | None,
        logprobs: Sequence[TokenLogprob] = (),
        answer_index: int = 0,
    ) -> None:
        """Send the next tokens of an answer.

        Args:
            finish_reason: On the last of an answer; when all have ended, `end` is still to be called.
            logprobs: One for each token, or none. With as many alternatives each. The model declares the outputs
                that carry them.
            answer_index: Which of several answers; above 0 the model declares the output that carries it.
        """
        outputs = [_tensor(TOKEN_IDS, token_ids, torch.int32)]
        if answer_index:
            outputs.append(_tensor(ANSWER_INDEX, [answer_index], torch.int32))
        if logprobs:
            outputs.append(_tensor(LOGPROBS, [one.logprob for one in logprobs], torch.float32))
            if logprobs[0].top:
                ids, values = ([[pair[i] for pair in one.top] for one in logprobs] for i in (0, 1))
                outputs.append(_tensor(TOP_TOKEN_IDS, ids, torch.int32))
                outputs.append(_tensor(TOP_LOGPROBS, values, torch.float32))
        if self._held_items:
            outputs.append(_tensor(HELD_ITEMS, self._held_items, torch.uint8))
            self._held_items = ()
        if finish_reason is not None:
            outputs.append(pb_utils.Tensor(FINISH_REASON, np.array([finish_reason.encode()], np.object_)))
        self._sender.send(pb_utils.InferenceResponse(output_tensors=outputs))

    def is_left(self) -> bool:
        """Whether its client is gone. Triton does not call back, so it must be asked."""
        with self._lock:  # what is asked is freed with the end (2.51: ResponseFactory)
            return not self._is_ended and bool(self._sender.is_cancelled())

    def end(self, outcome: str) -> None:
        """It ended as `outcome` says, and everything was sent."""
        self._finish(outcome, None)

    def fail(self, failure: BaseException) -> None:
        """It ended in an error, the caller's or ours: the table above says whose."""
        if isinstance(failure, InvalidPrompt):
            self._finish(REJECTED, error("INVALID_ARGUMENT", str(failure)))
        elif isinstance(failure, ItemsNotHeld):
            self._finish(NOT_HELD, error("FAILED_PRECONDITION", str(failure)))
        elif isinstance(failure, Refused):
            self._finish(REFUSED, error("UNAVAILABLE", str(failure)))
        else:
            trace = "".join(traceback.format_exception(failure))
            pb_utils.Logger.log_error(f"{self._who}: {trace}")
            self._finish(FAILED, error("INTERNAL", f"generation: {failure!r}"))

    def _finish(self, outcome: str, error_or_none: Any) -> None:
        self._on_end()
        self._outcomes.count(outcome)
        with self._lock:
            self._is_ended = True
            finish(self._sender, error_or_none)


def _tensor(name: str, values: Sequence[Any], dtype: torch.dtype) -> Any:
    """By DLPack: the Python backend of 24.10 misreads numpy 2 arrays. Text it takes by numpy alone."""
    return pb_utils.Tensor.from_dlpack(name, torch.tensor(values, dtype=dtype))


def finish(sender: Any, error_or_none: Any = None) -> None:
    """Send the FINAL that ends the replies to one message, with an error if there is one."""
    if error_or_none is None:
        sender.send(flags=FINAL)
    else:
        sender.send(pb_utils.InferenceResponse(error=error_or_none), flags=FINAL)


def error(status: str, text: str) -> Any:
    """An error with the gRPC status in its text as well: a stream's replies carry the text alone."""
    codes = {
        "INVALID_ARGUMENT": pb_utils.TritonError.INVALID_ARG,
        "FAILED_PRECONDITION": pb_utils.TritonError.INVALID_ARG,
        "UNAVAILABLE": pb_utils.TritonError.UNAVAILABLE,
        "INTERNAL": pb_utils.TritonError.INTERNAL,
    }
    return pb_utils.TritonError(f"{status}: {text}", codes[status])
