"""Why a prompt is not answered, apart from bugs."""

from __future__ import annotations


class InvalidPrompt(ValueError):
    """The request's tensors are no prompt for this model; the text says which tensor, its value, and what is accepted."""


class Refused(RuntimeError):
    """The prompt is valid, but cannot be answered here now; the text says why."""
