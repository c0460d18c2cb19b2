"""A prompt from its first message to its last token, apart from how messages come and go.

A thread works on a prompt only while there is something to do: rows to encode, or tokens to generate. One that waits
for rows holds a place, and no thread; so prompts that come slowly hold nobody up, however many there are.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .contract import PIXELS, InvalidPrompt, ModelLayout, Prompt, Sampling, build_model_inputs, check_prompt
from .generation import CANCELLED, generate_tokens
from .rows import RowBuffer, StepPlan
from .vision import Features, encode_run, encoder_outputs


class PromptInProgress:
    """One prompt's state.

    Args:
        tensors: Of the message that opens the prompt; they must stay as they are as long as `owner` lives.
        owner: What their memory belongs to; let go as soon as nothing is read from it any more.
        is_whole: No rows follow.
        is_left: Whether the client is gone; asked often.
        emit: Called with each token id, and on the last with the finish reason.
    Raises:
        InvalidPrompt: the tensors are no prompt for this model.
    """

    def __init__(
        self,
        tensors: dict[str, np.ndarray],
        owner: object,
        layout: ModelLayout,
        device: torch.device,
        *,
        is_whole: bool,
        is_left: Callable[[], bool],
        emit: Callable[[int, str | None], None],
    ) -> None:
        self._prompt: Prompt = check_prompt(tensors, layout)
        self._sampling = Sampling.from_tensors(tensors)
        position_count = len(self._prompt.input_ids) + self._sampling.max_tokens
        if position_count > layout.max_positions:
            raise InvalidPrompt(
                f"input_ids and max_tokens make {position_count} positions; the model has {layout.max_positions}"
            )
        self._rows = RowBuffer(self._prompt, layout, device)
        if PIXELS in tensors:
            self._rows.take_all(tensors[PIXELS])
        elif is_whole and not self._rows.is_complete:
            raise InvalidPrompt(f"{PIXELS} is missing")
        self._owner: object = owner
        self._device = device
        self._is_left = is_left
        self._emit = emit
        self._plan = StepPlan(self._prompt.grids)
        self._features: list[Features] = []
        self._encoded_rows = 0
        self._stop = threading.Event()
        self._refusal: InvalidPrompt | None = None
        self._lock = threading.Lock()
        self._is_worked_on = False
        self._has_news = True
        self.last_news_seconds = time.monotonic()
        """When a message last came."""

    @property
    def is_waiting(self) -> bool:
        """It can only go on when more rows come."""
        return not self._is_worked_on and not self._has_news

    def add_rows(self, first_row: int, rows: np.ndarray, *, is_last: bool) -> None:
        """Take the next rows; wrong ones end the prompt."""
        try:
            self._rows.add(first_row, rows)
            if is_last and not self._rows.is_complete:
                raise InvalidPrompt(f"the last rows came, {self._rows.row_count} in all; grid_thw needs more")
        except InvalidPrompt as invalid:
            self._refusal = invalid
        self.last_news_seconds = time.monotonic()

    def refuse(self, why: str) -> None:
        """End the prompt for what a message of it said."""
        self._refusal = InvalidPrompt(why)

    def stop(self) -> None:
        """Nobody waits for the answer any more."""
        self._stop.set()

    def claim(self) -> bool:
        """There is news: whether the caller must see that `advance` is called."""
        with self._lock:
            self._has_news = True
            claimed = not self._is_worked_on
            self._is_worked_on = True
            return claimed

    def advance(self, model: Any) -> str | None:
        """Do all that can be done now; to be called once for each `claim` that said so.

        Returns:
            How the prompt ended; None if it waits for more rows.
        Raises:
            InvalidPrompt: rows were wrong.
        """
        while True:
            with self._lock:
                if not self._has_news:
                    self._is_worked_on = False
                    return None
                self._has_news = False
            if self._refusal is not None:
                raise self._refusal
            if self._is_cancelled():
                return CANCELLED
            is_complete = self._rows.is_complete  # before the run, which then holds all
            run = self._plan.run(self._encoded_rows, self._rows.row_count)
            if run is not None:
                rows = self._rows.between(run.start, run.stop)
                self._features.append(encode_run(model, rows, run, self._prompt))
                self._encoded_rows = run.stop
            if is_complete:
                return self._generate(model)

    def _generate(self, model: Any) -> str:
        inputs: dict[str, Any] = build_model_inputs(self._prompt, self._device)
        inputs["mm_encoder_outputs"] = encoder_outputs(self._prompt, self._features)
        self._features.clear()
        self._rows.forget()
        self._owner = None
        return generate_tokens(model, inputs, self._sampling, emit=self._emit, is_cancelled=self._is_cancelled)

    def _is_cancelled(self) -> bool:
        return self._stop.is_set() or self._is_left()
