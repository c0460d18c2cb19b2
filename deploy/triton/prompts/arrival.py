"""One prompt from its first message to the moment when all of it is there, apart from how messages come and go.

A thread works on a prompt only while there is something to do with what has come. One that waits for rows holds a place,
and no thread; so prompts that come slowly hold nobody up, however many there are.

    a message ─▶ add_rows, refuse, stop ─▶ claim: true for one caller, who sees that ─▶ advance is called on a thread
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch

from .contract import PIXELS, ModelLayout, Prompt, Sampling, check_prompt
from .errors import InvalidPrompt
from .rows import RowBuffer


class State(enum.Enum):
    """How far `Arrival.advance` took a prompt."""

    WAITING = "it can only go on when more comes"
    STOPPED = "nobody waits for its answer any more"
    WHOLE = "all of it is there, and the caller's to answer"


class Arrival:
    """One prompt that comes.

    Args:
        tensors: Of the message that opens the prompt; they must stay as they are as long as `owner` lives.
        owner: What their memory belongs to; held until `let_go`.
        layout: Of the model that will read them.
        device: Where the rows are collected.
        is_whole: No rows follow.
    Raises:
        InvalidPrompt: the tensors are no prompt for this model.
    """

    def __init__(
        self,
        tensors: Mapping[str, np.ndarray],
        owner: object,
        layout: ModelLayout,
        device: torch.device,
        *,
        is_whole: bool,
    ) -> None:
        self.prompt: Prompt = check_prompt(tensors, layout)
        self.sampling = Sampling.from_tensors(tensors)
        position_count = len(self.prompt.input_ids) + self.sampling.max_tokens
        if position_count > layout.max_positions:
            raise InvalidPrompt(
                f"input_ids and max_tokens make {position_count} positions; the model has {layout.max_positions}"
            )
        self.rows = RowBuffer(self.prompt, layout, device)
        if PIXELS in tensors:
            self.rows.take_all(tensors[PIXELS])
        elif is_whole and not self.rows.is_complete:
            raise InvalidPrompt(f"{PIXELS} is missing")
        self._owner: object = owner
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

    @property
    def is_stopped(self) -> bool:
        """Nobody waits for the answer any more; to be asked often while it is made."""
        return self._stop.is_set()

    def add_rows(self, first_row: int, rows: np.ndarray, *, is_last: bool) -> None:
        """Take the next rows; wrong ones end the prompt."""
        try:
            self.rows.add(first_row, rows)
            if is_last and not self.rows.is_complete:
                raise InvalidPrompt(f"the last rows came, {self.rows.row_count} in all; grid_thw needs more")
        except InvalidPrompt as invalid:
            self._refusal = invalid
        self.last_news_seconds = time.monotonic()

    def refuse(self, why: str) -> None:
        """End the prompt for what a message of it said."""
        self._refusal = InvalidPrompt(why)

    def stop(self) -> None:
        """Nobody waits for the answer any more."""
        self._stop.set()

    def let_go(self) -> None:
        """Nothing of the opening message is read from now on, and no row."""
        self.rows.forget()
        self._owner = None

    def claim(self) -> bool:
        """There is news: whether the caller must see that `advance` is called."""
        with self._lock:
            self._has_news = True
            claimed = not self._is_worked_on
            self._is_worked_on = True
            return claimed

    def advance(self, take_rows: Callable[[], None]) -> State:
        """Do all that can be done now; to be called once for each `claim` that said so.

        Args:
            take_rows: Called when there may be rows that it has not seen, and once when all of them are there.
        Returns:
            WAITING if another `claim` will say when to go on. After any other state none will.
        Raises:
            InvalidPrompt: a message was wrong.
        """
        while True:
            with self._lock:
                if not self._has_news:
                    self._is_worked_on = False
                    return State.WAITING
                self._has_news = False
            if self._refusal is not None:
                raise self._refusal
            if self.is_stopped:
                return State.STOPPED
            is_whole = self.rows.is_complete  # before they are taken, which are then all
            take_rows()
            if is_whole:
                return State.WHOLE
