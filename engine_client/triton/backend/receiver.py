"""Receives prompts from Triton: their messages in, and every message answered with FINAL.

    opening, or whole prompt ──▶ PromptAssembler ──▶ thread pool: the model's `advance`, whenever more has come
    rows of a prompt ──────────▶   (copied into it)      a response without tensors: they were read
    stop ──────────────────────▶

Messages of a prompt have Triton's sequence parameters, but the model has no sequence batcher: that binds a prompt to a
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

import torch
import triton_python_backend_utils as pb_utils

from engine_client.contract.assembler import PromptAssembler
from engine_client.contract.errors import InvalidPrompt, Refused
from engine_client.contract.tensors import (
    CANCELLED,
    FEATURE_TENSORS,
    FIRST_ROW,
    INPUT_IDS,
    PIXELS,
    SAMPLING_TENSORS,
    VISION_TENSORS,
    Array,
)
from engine_client.triton.backend.answers import Answer, Outcomes, error, finish

SEQUENCE_START = pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START
SEQUENCE_END = pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END
# From one look for clients that left, and for rows that do not come, to the next.
WATCH_SECONDS = 0.1


@dataclass(eq=False)
class OpenPrompt:
    """A prompt that was admitted, until its answer ends."""

    key: int
    """0 for one that came whole, outside a sequence."""
    answer: Answer
    assembler: PromptAssembler | None = None
    """None until the message is validated, and after the answer has ended."""
    work: Any = None
    """What the model has made of it so far."""
    refusal: Refused | None = None
    """Why it was stopped, where that was not its client's doing."""
    scheduled: Future[None] | None = None
    """What was last given to the thread pool; whoever stops the prompt takes it."""

    def end(self, outcome: str) -> None:
        """See `Answer.end`; a prompt that was stopped from here is refused and not cancelled."""
        if outcome == CANCELLED and self.refusal is not None:
            self.answer.fail(self.refusal)
        else:
            self.answer.end(outcome)


class PromptModel(Protocol):
    """What a model does with prompts."""

    def begin(self, tensors: dict[str, Array], owner: object, *, is_whole: bool) -> tuple[PromptAssembler, Any]:
        """Look at the message that opens a prompt.

        Returns:
            The prompt, and what `OpenPrompt.work` is to be.
        Raises:
            InvalidPrompt: it is none for this model.
        """

    def advance(self, opened: OpenPrompt) -> str | None:
        """Do what can be done with what has come; on a thread, never on two at once for one prompt.

        Returns:
            How the answer ended; None if it waits for more, or if the model ends `opened` itself, later.
        Raises:
            Exception: the answer ends with it; `answers` says how.
        """


class PromptReceiver:
    """Receives the messages of one model.

    Args:
        model_name: For metrics and the log.
        model: Works on prompts.
        tensor_names: Tensors that it reads beside those that every model here does.
        max_prompts: Prompts that may be open at once; one more is refused.
        thread_count: Prompts that are worked on at once.
        max_row_wait_seconds: A prompt that gets no rows for so long is refused.
    """

    def __init__(
        self,
        model_name: str,
        model: PromptModel,
        *,
        tensor_names: Iterable[str] = (),
        max_prompts: int,
        thread_count: int,
        max_row_wait_seconds: float,
    ) -> None:
        self._model_name = model_name
        self._model = model
        self._tensor_names = (INPUT_IDS, *VISION_TENSORS, *SAMPLING_TENSORS, *FEATURE_TENSORS, *tensor_names)
        self._max_prompts = max_prompts
        self._max_row_wait_seconds = max_row_wait_seconds
        self._outcomes = Outcomes(model_name)
        self._opened: set[OpenPrompt] = set()
        self._by_key: dict[int, OpenPrompt] = {}
        self._changed = threading.Condition()  # of the two above: `receive` fills them, any thread empties them
        self._pool = ThreadPoolExecutor(thread_count, thread_name_prefix="prompt")
        self._is_closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._watcher.start()

    def receive(self, requests: list[Any]) -> None:
        """Process what Triton gives to `execute`; returns at once."""
        for request in requests:
            key, flags = _sequence_id(request), request.flags()
            if not key or flags & SEQUENCE_START:
                self._open(request, key, is_whole=not key or bool(flags & SEQUENCE_END))
            else:
                self._continue(request, key, is_last=bool(flags & SEQUENCE_END))

    def close(self, drain_seconds: float, leave_seconds: float) -> None:
        """Let answers in progress end, then end them; no further message is received.

        Args:
            drain_seconds: How long they may take to end by themselves.
            leave_seconds: How long they may take to end once they were stopped.
        """
        self._await_none(drain_seconds)
        self._is_closing.set()
        self._watcher.join()
        self.refuse_all(Refused("the model is being unloaded"))
        self._await_none(leave_seconds)
        self._pool.shutdown(wait=True)
        self._outcomes.close()

    def refuse_all(self, refusal: Refused) -> None:
        """Stop every prompt that is open now; each ends with that error."""
        for opened in self._all():
            self._stop(opened, refusal)

    def _open(self, request: Any, key: int, *, is_whole: bool) -> None:
        if key in self._by_key:
            why = error("INVALID_ARGUMENT", f"a prompt with sequence_id {key} is open already")
            finish(request.get_response_sender(), why)
            return
        opened = OpenPrompt(key, Answer(self._model_name, request, self._outcomes, lambda: self._forget(opened)))
        if not self._remember(opened):
            opened.answer.fail(Refused(f"too many prompts are here already; {self._max_prompts} may be"))
            return
        try:
            tensors = {name: array for name in self._tensor_names if (array := _tensor(request, name)) is not None}
            opened.assembler, opened.work = self._model.begin(tensors, request, is_whole=is_whole)
        except Exception as failure:  # whatever it was, the stream must end
            opened.answer.fail(failure)
        else:
            self._wake(opened)

    def _continue(self, request: Any, key: int, *, is_last: bool) -> None:
        """Rows of a prompt, or its stop. The reply says that they were read; what is wrong with them ends the prompt."""
        opened = self._by_key.get(key)
        sender = request.get_response_sender()
        if json.loads(request.parameters() or "{}").get("stop"):
            if opened is not None:
                self._stop(opened)
        elif opened is None:
            # It was refused or stopped, or this process is not the one that it began in.
            finish(sender, error("INVALID_ARGUMENT", f"rows of prompt {key}, which is not open"))
            return
        else:
            self._add_rows(request, opened, is_last=is_last)
        finish(sender)

    def _add_rows(self, request: Any, opened: OpenPrompt, *, is_last: bool) -> None:
        assembler = opened.assembler
        if assembler is None:  # ended a moment ago
            return
        try:
            first_row, rows = (_tensor(request, name) for name in (FIRST_ROW, PIXELS))
            if first_row is None or rows is None or first_row.size != 1:
                raise InvalidPrompt(f"a message with more of a prompt has {FIRST_ROW} int64 [1] and {PIXELS}, both")
        except (
            Exception
        ) as failure:  # any: it is of this prompt alone, and others of the batch are still to be received
            assembler.fail(failure)
        else:
            assembler.add_rows(int(first_row.reshape(-1)[0]), rows, is_last=is_last)
        self._wake(opened)

    def _stop(self, opened: OpenPrompt, refusal: Refused | None = None) -> None:
        assembler = opened.assembler
        if assembler is not None:
            opened.refusal = refusal
            assembler.stop()
            self._wake(opened)
            with self._changed:
                scheduled, opened.scheduled = opened.scheduled, None
            if (
                scheduled is not None and scheduled.cancel()
            ):  # it waits for a thread, and need not keep its place meanwhile
                opened.end(CANCELLED)

    def _wake(self, opened: OpenPrompt) -> None:
        assembler = opened.assembler
        if assembler is not None and assembler.try_begin():
            opened.scheduled = self._pool.submit(self._advance, opened)

    def _advance(self, opened: OpenPrompt) -> None:
        try:
            outcome = self._model.advance(opened)
        except Exception as failure:  # whatever it was, the stream must end
            opened.answer.fail(failure)
        else:
            if outcome is not None:
                opened.end(outcome)

    def _watch(self) -> None:
        """End prompts that nobody waits for any more, and those whose rows do not come."""
        while not self._is_closing.wait(WATCH_SECONDS):
            for opened in self._all():
                assembler = opened.assembler
                if assembler is None or assembler.is_stopped:
                    continue
                silence_seconds = time.monotonic() - assembler.last_message_at
                if assembler.is_waiting and silence_seconds > self._max_row_wait_seconds:
                    self._stop(opened, Refused(f"no rows came for {self._max_row_wait_seconds} s"))
                elif opened.answer.is_left():
                    self._stop(opened)

    def _remember(self, opened: OpenPrompt) -> bool:
        with self._changed:
            if len(self._opened) >= self._max_prompts:
                return False
            self._opened.add(opened)
            if opened.key:
                self._by_key[opened.key] = opened
            return True

    def _forget(self, opened: OpenPrompt) -> None:
        with self._changed:
            self._opened.discard(opened)
            if self._by_key.get(opened.key) is opened:
                del self._by_key[opened.key]
            self._changed.notify_all()
        # And with them the rows, whoever else holds `opened`.
        opened.assembler = opened.work = None

    def _all(self) -> tuple[OpenPrompt, ...]:
        with self._changed:
            return tuple(self._opened)

    def _await_none(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._opened, seconds)


def _sequence_id(request: Any) -> int:
    """0 for a request outside any sequence."""
    key = request.correlation_id()
    if isinstance(key, str):
        key = int(key) if key.isdecimal() else 0
    return int(key)


def _tensor(request: Any, name: str) -> Array | None:
    """A view that lives as long as `request`.

    By DLPack: `as_numpy` of 24.10 is wrong where numpy is 2 (it reads the size of an element from another place).
    """
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return None
    array: Array = torch.from_dlpack(tensor.to_dlpack()).numpy()
    return array
