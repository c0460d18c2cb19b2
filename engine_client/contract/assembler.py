"""Assembles one prompt from its messages, apart from how messages are received.

A thread works on a prompt only while something of what was received is not processed. A prompt that waits for rows holds a
place, but no thread, so slow senders block nobody.

    a message ─▶ add_rows, refuse, stop ─▶ try_begin: true for one caller ─▶ that one has `advance` called on a thread
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable, Mapping

import numpy as np

from engine_client.contract.errors import InvalidPrompt
from engine_client.contract.layout import ModelLayout
from engine_client.contract.prompt import Prompt, check_prompt
from engine_client.contract.rows import RowBuffer, RowStorage
from engine_client.contract.sampling import SamplingParameters
from engine_client.contract.tensors import PIXELS, USES_HELD_ITEMS, Array

_NO = np.zeros(1, np.uint8)


class State(enum.Enum):
    """How far `PromptAssembler.advance` took a prompt."""

    WAITING = "more rows must come first"
    STOPPED = "nobody waits for its answer any more"
    WHOLE = "all of it is there, and the caller is to answer it"


class PromptAssembler:
    """One prompt that is being received.

    Args:
        tensors: Of the message that opens the prompt; they must not change as long as `owner` lives.
        owner: Owns their memory; held until `release`.
        layout: Of the model that will read them.
        storage: Where the rows are collected.
        is_whole: No rows follow.
    Raises:
        InvalidPrompt: the tensors are no prompt for this model.
    """

    def __init__(
        self,
        tensors: Mapping[str, Array],
        owner: object,
        layout: ModelLayout,
        storage: RowStorage,
        *,
        is_whole: bool,
    ) -> None:
        self.prompt: Prompt = check_prompt(tensors, layout)
        self.sampling = SamplingParameters.from_tensors(tensors)
        position_count = len(self.prompt.input_ids) + self.sampling.max_tokens
        if position_count > layout.max_positions:
            raise InvalidPrompt(
                f"input_ids and max_tokens make {position_count} positions; the model has {layout.max_positions}"
            )
        self.rows = RowBuffer(self.prompt, layout, storage)
        self.uses_held_items = bool(tensors.get(USES_HELD_ITEMS, _NO).any())
        """The prompt has no pixels: the model is to take what it holds of the items."""
        if self.uses_held_items:
            if PIXELS in tensors or not is_whole:
                raise InvalidPrompt(f"{USES_HELD_ITEMS} came with {PIXELS}, or more was to follow; send one of the two")
            self.rows.take_none()
        elif PIXELS in tensors:
            self.rows.take_all(tensors[PIXELS])
        elif is_whole and not self.rows.is_complete:
            raise InvalidPrompt(f"{PIXELS} is missing")
        self._owner: object = owner
        self._stop = threading.Event()
        self._failure: Exception | None = None
        self._lock = threading.Lock()
        self._is_worked_on = False
        self._has_changed = True
        self.last_message_at = time.monotonic()
        """When the last message was received, in seconds of the monotonic clock."""

    @property
    def is_waiting(self) -> bool:
        """More rows must come before it can go on."""
        return not self._is_worked_on and not self._has_changed

    @property
    def is_stopped(self) -> bool:
        """Nobody waits for the answer any more; to be asked often while it is made."""
        return self._stop.is_set()

    def add_rows(self, first_row: int, rows: Array, *, is_last: bool) -> None:
        """Take the next rows; wrong ones end the prompt, as does whatever prevents that, such as a full memory."""
        try:
            self.rows.add(first_row, rows)
            if is_last and not self.rows.is_complete:
                raise InvalidPrompt(f"the last rows came, {self.rows.row_count} in all; grid_thw needs more")
        except Exception as failure:
            self.fail(failure)
        self.last_message_at = time.monotonic()

    def fail(self, failure: Exception) -> None:
        """End the prompt because one of its messages could not be taken; InvalidPrompt where the message is wrong."""
        self._failure = failure

    def stop(self) -> None:
        """Nobody waits for the answer any more."""
        self._stop.set()

    def release(self) -> None:
        """Free the rows and the opening message; neither is read afterwards."""
        self.rows.free()
        self._owner = None

    def try_begin(self) -> bool:
        """Note that something has changed; returns whether the caller must have `advance` called."""
        with self._lock:
            self._has_changed = True
            may_begin = not self._is_worked_on
            self._is_worked_on = True
            return may_begin

    def advance(self, take_rows: Callable[[], None]) -> State:
        """Process what was received; to be called once for each `try_begin` that returned true.

        Args:
            take_rows: Called when there may be rows that it has not seen, and once when all of them are there.
        Returns:
            WAITING if another `try_begin` will say when to go on. After any other state none will.
        Raises:
            Exception: what `fail` was given, or kept rows from being taken; InvalidPrompt of a message that was invalid.
        """
        while True:
            with self._lock:
                if not self._has_changed:
                    self._is_worked_on = False
                    return State.WAITING
                self._has_changed = False
            if self._failure is not None:
                raise self._failure
            if self.is_stopped:
                return State.STOPPED
            is_whole = self.rows.is_complete  # read before they are taken, so that all of them are
            take_rows()
            if is_whole:
                return State.WHOLE
