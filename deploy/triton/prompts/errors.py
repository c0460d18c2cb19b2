"""Why a prompt gets no answer, apart from bugs. `answers` says what becomes of each."""

from __future__ import annotations


class InvalidPrompt(ValueError):
    """The request's tensors are not a prompt for this model; the text says which, the value, and what would be."""


class Refused(RuntimeError):
    """Nothing is wrong with the prompt, and it gets no answer here now; the text says why."""
