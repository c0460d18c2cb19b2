"""Why a prompt is not answered, apart from bugs."""

from __future__ import annotations

from collections.abc import Iterable


class InvalidPrompt(ValueError):
    """The request's tensors are no prompt for this model; the text says which tensor, its value, and what is accepted."""


class Refused(RuntimeError):
    """The prompt is valid, but cannot be answered here now; the text says why."""


class ItemsNotHeld(RuntimeError):
    """A prompt came without pixels, and the model does not hold all of its items: it is to be sent with its pixels.

    Args:
        items: Indices of those that are not held.
    """

    REASON = "ITEMS_NOT_HELD"
    """Begins the text; stable, for programs."""

    def __init__(self, items: Iterable[int]) -> None:
        self.items = tuple(items)
        super().__init__(f"{self.REASON}: {', '.join(map(str, self.items))}")
