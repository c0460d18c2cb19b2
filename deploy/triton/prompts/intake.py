"""The Triton side of prompts: messages in, and every message answered with FINAL.

    opening, or whole prompt ──▶ Arrival ──▶ thread pool: the model's `advance`, whenever more has come
    rows of a prompt ──────────▶   (copied into it)      a response without tensors: they were read
    stop ──────────────────────▶

Messages of a prompt carry Triton's sequence parameters, but the model has no sequence batcher: that binds a prompt to a
slot, of which an instance has one, until its last message or a timeout, and one instance serves many prompts at once.
Messages of one stream come in order, because there is one instance.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import triton_python_backend_utils as pb_utils

from .answers import Answer, Outcomes, error, finish
from .arrival import Arrival
from .contract import CANCELLED, FIRST_ROW, PIXELS, SAMPLING_TENSORS, VISION_TENSORS
from .errors import Refused

SEQUENCE_START = pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START
SEQUENCE_END = pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END
# How soon a client that left is noticed, and rows that do not come.
WATCH_SECONDS = 0.1


@dataclass(eq=False)
class Served:
    """A prompt that has a place here, until its answer ends."""

    key: int
    """0 for one that came whole, outside a sequence."""
    answer: Answer
    arrival: Arrival | None = None
    """None before it was found to be a prompt, and when its answer has ended."""
    work: Any = None
    """What the model has made of it so far."""
    refusal: Refused | None = None
    """Why it was stopped, where that was not its client's doing."""
    scheduled: Future[None] | None = None
    """What was last asked of a thread; taken out by whoever stops it."""

    def end(self, outcome: str) -> None:
        """See `Answer.end`; a prompt that was stopped from here is refused and not cancelled."""
        if outcome == CANCELLED and self.refusal is not None:
            self.answer.fail(self.refusal)
        else:
            self.answer.end(outcome)


class Model(Protocol):
    """What a model has to say about prompts."""

    def begin(self, tensors: dict[str, np.ndarray], owner: object, *, is_whole: bool) -> tuple[Arrival, Any]:
        """Look at the message that opens a prompt.

        Returns:
            The prompt, and what `Served.work` is to be.
        Raises:
            InvalidPrompt: it is none for this model.
        """

    def advance(self, served: Served) -> str | None:
        """Do what can be done with what has come; on a thread, never on two at once for one prompt.

        Returns:
            How the answer ended; None if it waits for more, or if the model ends `served` itself, later.
        Raises:
            Exception: the answer ends with it; `answers` says how.
        """


class Intake:
    """Takes in the messages of one model.

    Args:
        model_name: For metrics and the log.
        model: Works on prompts.
        tensor_names: What it reads beside the tensors that every model here does.
        max_prompts: That may have a place at once; one more is refused.
        thread_count: Prompts that are worked on at once.
        max_row_wait_seconds: A prompt that gets no rows for so long is refused.
    """

    def __init__(
        self,
        model_name: str,
        model: Model,
        *,
        tensor_names: Iterable[str] = (),
        max_prompts: int,
        thread_count: int,
        max_row_wait_seconds: float,
    ) -> None:
        self._model_name = model_name
        self._model = model
        self._tensor_names = ("input_ids", *VISION_TENSORS, *SAMPLING_TENSORS, *tensor_names)
        self._max_prompts = max_prompts
        self._max_row_wait_seconds = max_row_wait_seconds
        self._outcomes = Outcomes(model_name)
        self._served: set[Served] = set()
        self._by_key: dict[int, Served] = {}
        self._changed = threading.Condition()  # of the two above: `receive` fills them, any thread empties them
        self._pool = ThreadPoolExecutor(thread_count, thread_name_prefix="prompt")
        self._is_closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._watcher.start()

    def receive(self, requests: list[Any]) -> None:
        """Take in what Triton gives to `execute`; returns at once."""
        for request in requests:
            key, flags = _sequence_id(request), request.flags()
            if not key or flags & SEQUENCE_START:
                self._open(request, key, is_whole=not key or bool(flags & SEQUENCE_END))
            else:
                self._continue(request, key, is_last=bool(flags & SEQUENCE_END))

    def close(self, drain_seconds: float, leave_seconds: float) -> None:
        """Let answers under way end, then end them; no messages come any more.

        Args:
            drain_seconds: How long they may take by themselves.
            leave_seconds: How long they may take from when they were told.
        """
        self._await_none(drain_seconds)
        self._is_closing.set()
        self._watcher.join()
        for served in self._all():
            self._stop(served, Refused("the model is being unloaded"))
        self._await_none(leave_seconds)
        self._pool.shutdown(wait=True)
        self._outcomes.close()

    def _open(self, request: Any, key: int, *, is_whole: bool) -> None:
        if key in self._by_key:
            why = error("INVALID_ARGUMENT", f"a prompt with sequence_id {key} is open already")
            finish(request.get_response_sender(), why)
            return
        served = Served(key, Answer(self._model_name, request, self._outcomes, lambda: self._forget(served)))
        if not self._remember(served):
            served.answer.fail(Refused(f"too many prompts are here already; {self._max_prompts} may be"))
            return
        try:
            tensors = {name: array for name in self._tensor_names if (array := _tensor(request, name)) is not None}
            served.arrival, served.work = self._model.begin(tensors, request, is_whole=is_whole)
        except Exception as failure:  # whatever it was, the stream must end
            served.answer.fail(failure)
        else:
            self._wake(served)

    def _continue(self, request: Any, key: int, *, is_last: bool) -> None:
        """Rows of a prompt, or its stop. The reply says that they were read; what is wrong with them ends the prompt."""
        served = self._by_key.get(key)
        sender = request.get_response_sender()
        if json.loads(request.parameters() or "{}").get("stop"):
            if served is not None:
                self._stop(served)
        elif served is None:
            # It was refused or stopped, or this process is not the one that it began in.
            finish(sender, error("INVALID_ARGUMENT", f"rows of prompt {key}, which is not open"))
            return
        else:
            self._add_rows(request, served, is_last=is_last)
        finish(sender)

    def _add_rows(self, request: Any, served: Served, *, is_last: bool) -> None:
        arrival = served.arrival
        if arrival is None:  # ended a moment ago
            return
        first_row, rows = (_tensor(request, name) for name in (FIRST_ROW, PIXELS))
        if first_row is None or rows is None or first_row.size != 1:
            arrival.refuse(f"a message with more of a prompt has {FIRST_ROW} int64 [1] and {PIXELS}, both")
        else:
            arrival.add_rows(int(first_row.reshape(-1)[0]), rows, is_last=is_last)
        self._wake(served)

    def _stop(self, served: Served, refusal: Refused | None = None) -> None:
        arrival = served.arrival
        if arrival is not None:
            served.refusal = refusal
            arrival.stop()
            self._wake(served)
            with self._changed:
                scheduled, served.scheduled = served.scheduled, None
            if (
                scheduled is not None and scheduled.cancel()
            ):  # it waits for a thread, and need not keep its place meanwhile
                served.end(CANCELLED)

    def _wake(self, served: Served) -> None:
        arrival = served.arrival
        if arrival is not None and arrival.claim():
            served.scheduled = self._pool.submit(self._advance, served)

    def _advance(self, served: Served) -> None:
        try:
            outcome = self._model.advance(served)
        except Exception as failure:  # whatever it was, the stream must end
            served.answer.fail(failure)
        else:
            if outcome is not None:
                served.end(outcome)

    def _watch(self) -> None:
        """End prompts that nobody waits for any more, and those whose rows do not come."""
        while not self._is_closing.wait(WATCH_SECONDS):
            for served in self._all():
                arrival = served.arrival
                if arrival is None or arrival.is_stopped:
                    continue
                silence_seconds = time.monotonic() - arrival.last_news_seconds
                if arrival.is_waiting and silence_seconds > self._max_row_wait_seconds:
                    self._stop(served, Refused(f"no rows came for {self._max_row_wait_seconds} s"))
                elif served.answer.is_left():
                    self._stop(served)

    def _remember(self, served: Served) -> bool:
        with self._changed:
            if len(self._served) >= self._max_prompts:
                return False
            self._served.add(served)
            if served.key:
                self._by_key[served.key] = served
            return True

    def _forget(self, served: Served) -> None:
        with self._changed:
            self._served.discard(served)
            if self._by_key.get(served.key) is served:
                del self._by_key[served.key]
            self._changed.notify_all()
        # And with them the rows, whoever else holds `served`.
        served.arrival = served.work = None

    def _all(self) -> tuple[Served, ...]:
        with self._changed:
            return tuple(self._served)

    def _await_none(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._served, seconds)


def _sequence_id(request: Any) -> int:
    """0 for a request outside any sequence."""
    key = request.correlation_id()
    if isinstance(key, str):
        key = int(key) if key.isdecimal() else 0
    return int(key)


def _tensor(request: Any, name: str) -> np.ndarray | None:
    """A view that lives as long as `request`."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()
